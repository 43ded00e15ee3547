//! How soon a death is noticed: executors fall silent, a part of their lane at a time, so that no hold begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lastbeat_domain::Timestamp;
use serde_json::{Value, json};

use crate::connection::Connection;
use crate::served::{DYING, INTERVAL, Served, WINDOW};

/// How many die at a time, and how many of their lane live on: never is more than a quarter of it silent.
const GROUP: usize = 100;
const LIVING: usize = 3 * GROUP;
/// How long a group may take to be reaped after the last of it lapsed.
const REAPED_MAX: Duration = Duration::from_secs(30);

/// Lets executors die, and returns for each how many milliseconds after its lapse it was reaped.
pub(crate) async fn lags(served: &Served, deaths: usize) -> Result<Vec<f64>> {
    let mut connection = Connection::open(&served.address).await?;
    let mut living = Vec::new();
    for _ in 0..LIVING {
        living.push(claimed(&mut connection).await?);
    }
    let over = Arc::new(AtomicBool::new(false));
    let keeper = tokio::spawn(keep_alive(served.address.clone(), living, Arc::clone(&over)));
    let mut lags = Vec::new();
    while lags.len() < deaths {
        let group = die(&mut connection, GROUP.min(deaths - lags.len())).await?;
        for run in &group {
            lags.push(lag(&mut connection, run).await?);
        }
    }
    over.store(true, Ordering::SeqCst);
    keeper.await??;
    Ok(lags)
}

/// Makes a run that is claimed, and returns what its executor says with each heartbeat.
async fn claimed(connection: &mut Connection) -> Result<Value> {
    let run = connection.post("/v1/runs", &json!({"lane": DYING, "claim": {"executor": "load"}})).await?;
    Ok(json!({"run": run["run"], "attempt": 1, "claim": run["claim"]}))
}

/// Beats for those that live on, until it is over.
async fn keep_alive(address: String, living: Vec<Value>, over: Arc<AtomicBool>) -> Result<()> {
    let mut connection = Connection::open(&address).await?;
    while !over.load(Ordering::SeqCst) {
        let told = connection.post("/v1/heartbeats", &json!({"beats": living})).await?;
        let fenced = told["results"].as_array().into_iter().flatten().find(|result| result["directive"] != "continue");
        if let Some(result) = fenced {
            bail!("one that beats was told {result}");
        }
        tokio::time::sleep(INTERVAL / 2).await;
    }
    Ok(())
}

/// Lets a group beat twice, one after the other, so that they do not lapse at the same instant; then they are silent.
async fn die(connection: &mut Connection, count: usize) -> Result<Vec<String>> {
    let mut group = Vec::new();
    for _ in 0..count {
        let beat = claimed(connection).await?;
        let run = beat["run"].as_str().context("a run without an id")?.to_owned();
        for _ in 0..2 {
            connection.post("/v1/heartbeats", &json!({"beats": [beat]})).await?;
        }
        group.push(run);
    }
    tokio::time::sleep(WINDOW).await;
    Ok(group)
}

/// Reads off a run's history how long after its lapse it was reaped.
async fn lag(connection: &mut Connection, run: &str) -> Result<f64> {
    let started = Instant::now();
    while started.elapsed() < REAPED_MAX {
        let page = connection.get(&format!("/v1/runs/{run}/events")).await?;
        let last = page["events"].as_array().and_then(|events| events.last()).context("no events")?;
        if last["type"] == "timed_out" {
            let evidence = &last["evidence"];
            let charged = evidence["charged_seconds"].as_f64().context("no charge")?;
            let window = evidence["window_seconds"].as_f64().context("no window")?;
            let judged: Timestamp = evidence["judged_at"].as_str().context("no judgement")?.parse()?;
            let recorded: Timestamp = last["recorded_at"].as_str().context("no stamp")?.parse()?;
            return Ok((charged - window + recorded.since(judged).to_std().as_secs_f64()) * 1e3);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("run {run} was not reaped within {} s", REAPED_MAX.as_secs())
}
