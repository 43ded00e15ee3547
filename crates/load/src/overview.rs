//! The dashboard's overview, open while heartbeats come: how soon it is painted, and what it costs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::beats::{CONNECTIONS, shares, single};
use crate::connection::{Connection, get};
use crate::served::{Member, Served};

/// How many heartbeats come a second, one by one.
pub(crate) const RATE: u32 = 2_000;
/// How often it is looked at in turn with its being left alone, since much else happens on a machine.
const ROUNDS: u32 = 5;
/// How many windows have the overview open.
pub(crate) const VIEWERS: usize = 3;

/// What was measured.
pub(crate) struct Overview {
    /// How long heartbeats took from the moment they were due, in milliseconds, round by round: while nobody looked, and
    /// while somebody did.
    pub(crate) alone: Vec<Vec<f64>>,
    pub(crate) watched: Vec<Vec<f64>>,
    /// How often the page was fetched meanwhile, and how long each time took.
    pub(crate) pages: Vec<f64>,
    /// How long after it was asked for a browser first painted something of it, for each window that was opened.
    pub(crate) paints: Vec<f64>,
}

/// Measures the overview of a server. `browser` is the command that opens it in a real one.
pub(crate) async fn measure(served: &Served, time: Duration, browser: &[String]) -> Result<Overview> {
    // Once before: what is read for the first time is read from the disk, whoever asks.
    Connection::open(&served.address).await?.send(&get("/")).await?;
    let (mut alone, mut watched, mut pages) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(beats(served, time / ROUNDS).await?);
        let done = Arc::new(AtomicBool::new(false));
        let mut viewers = JoinSet::new();
        for _ in 0..VIEWERS {
            viewers.spawn(view(served.address.clone(), Arc::clone(&done)));
        }
        watched.push(beats(served, time / ROUNDS).await?);
        done.store(true, Ordering::Relaxed);
        while let Some(viewed) = viewers.join_next().await {
            pages.extend(viewed??);
        }
    }
    let (painted, _) = tokio::join!(paint(&served.address, browser), beats(served, time));
    Ok(Overview { alone, watched, pages, paints: painted? })
}

/// Sends heartbeats for a while, as many a second as they come, however long they take.
async fn beats(served: &Served, time: Duration) -> Result<Vec<f64>> {
    let pause = Duration::from_secs(1) * CONNECTIONS as u32 / RATE;
    let begin = Instant::now() + Duration::from_millis(50);
    let mut connections = JoinSet::new();
    for (number, share) in shares(served, CONNECTIONS).into_iter().enumerate() {
        let first = begin + pause * number as u32 / CONNECTIONS as u32;
        connections.spawn(paced(served.address.clone(), share, first, pause, begin + time));
    }
    let mut millis = Vec::new();
    while let Some(sent) = connections.join_next().await {
        millis.extend(sent??);
    }
    Ok(millis)
}

async fn paced(address: String, share: Vec<Member>, first: Instant, pause: Duration, end: Instant) -> Result<Vec<f64>> {
    let mut connection = Connection::open(&address).await?;
    let mut millis = Vec::new();
    let mut due = first;
    for request in share.iter().map(single).collect::<Vec<_>>().iter().cycle() {
        if due > end {
            break;
        }
        sleep_until(due).await;
        connection.send(request).await?;
        // One that had to wait for the one before was late by that, too.
        millis.push(due.elapsed().as_secs_f64() * 1e3);
        due += pause;
    }
    Ok(millis)
}

/// Does what an open page does: follows the stream that tells it when to look again, and looks.
async fn view(address: String, done: Arc<AtomicBool>) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(&address).await?;
    stream.write_all(&get("/live")).await?;
    let mut lines = BufReader::new(stream).lines();
    let mut connection = Connection::open(&address).await?;
    let mut millis = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let line = lines.next_line().await?.context("the stream ended")?;
        if line.starts_with("event: look") || line.starts_with("event:look") {
            let asked = Instant::now();
            let page = connection.send(&get("/")).await?;
            ensure!(page.starts_with(b"<!DOCTYPE html>"), "the overview is no page");
            millis.push(asked.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(millis)
}

/// Has a real browser open the overview a few times and see it stay live, and returns when it first painted each time.
async fn paint(address: &str, browser: &[String]) -> Result<Vec<f64>> {
    let (program, arguments) = browser.split_first().context("no browser was named")?;
    let arguments = arguments.iter().map(|argument| argument.replace("{}", &format!("http://{address}")));
    let output = Command::new(program).args(arguments).output().await;
    let output = output.with_context(|| format!("failed to start {program}"))?;
    ensure!(output.status.success(), "the browser failed: {}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stdout);
    let told: Value =
        serde_json::from_str(told.lines().next().unwrap_or_default()).context("the browser told nothing")?;
    let paints = told["paints"].as_array().context("the browser told of no paint")?;
    paints.iter().map(|millis| millis.as_f64().context("no number")).collect()
}
