//! Heartbeats over HTTP: one by one, and a thousand at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::connection::{Connection, post};
use crate::served::{Member, Served};

/// How many connections send single heartbeats; each waits for its answer before it sends the next.
pub(crate) const CONNECTIONS: usize = 64;
/// How many send batches, and how many heartbeats are in one.
const HOSTS: usize = 4;
const BATCH: usize = 1_000;

/// What was carried.
pub(crate) struct Carried {
    /// Heartbeats a second.
    pub(crate) rate: f64,
    /// How long each request took, in milliseconds.
    pub(crate) millis: Vec<f64>,
}

/// Sends single heartbeats for a while.
pub(crate) async fn singles(served: &Served, time: Duration) -> Result<Carried> {
    let mut connections = JoinSet::new();
    for share in shares(served, CONNECTIONS) {
        let address = served.address.clone();
        let requests: Vec<Vec<u8>> = share.iter().map(single).collect();
        connections.spawn(async move { send(&address, &requests, time).await });
    }
    carried(connections, 1, time).await
}

/// Sends batches for a while.
pub(crate) async fn batches(served: &Served, time: Duration) -> Result<Carried> {
    let mut connections = JoinSet::new();
    for share in shares(served, HOSTS) {
        let address = served.address.clone();
        let requests: Vec<Vec<u8>> = share.chunks_exact(BATCH).map(batch).collect();
        ensure!(!requests.is_empty(), "--runs is too few: {HOSTS} hosts with {BATCH} each is the least");
        connections.spawn(async move { send(&address, &requests, time).await });
    }
    carried(connections, BATCH, time).await
}

/// Shares runs out: no two connections beat for the same one.
pub(crate) fn shares(served: &Served, connections: usize) -> Vec<Vec<Member>> {
    const BEATING_MAX: usize = 20_480;
    let beating = &served.fleet[..served.fleet.len().min(BEATING_MAX)];
    beating.chunks(beating.len() / connections).take(connections).map(<[Member]>::to_vec).collect()
}

pub(crate) fn single(member: &Member) -> Vec<u8> {
    let Member { run, claim } = member;
    post(&format!("/v1/runs/{run}/heartbeat"), &format!(r#"{{"attempt":1,"claim":"{claim}"}}"#))
}

fn batch(members: &[Member]) -> Vec<u8> {
    let beat = |member: &Member| format!(r#"{{"run":"{}","attempt":1,"claim":"{}"}}"#, member.run, member.claim);
    let beats: Vec<String> = members.iter().map(beat).collect();
    post("/v1/heartbeats", &format!(r#"{{"beats":[{}]}}"#, beats.join(",")))
}

/// Sends the requests round and round, and returns how long each took.
async fn send(address: &str, requests: &[Vec<u8>], time: Duration) -> Result<Vec<f64>> {
    let mut connection = Connection::open(address).await?;
    let started = Instant::now();
    let mut millis = Vec::new();
    for request in requests.iter().cycle() {
        let sent = Instant::now();
        let body = connection.send(request).await?;
        // A heartbeat in a batch that is fenced is told to stop; one of an unknown run is an error.
        let says = |word: &[u8]| body.windows(word.len()).any(|bytes| bytes == word);
        let refused = says(br#""error":"#) || says(br#":"stop""#);
        ensure!(!refused, "a heartbeat was refused: {}", String::from_utf8_lossy(body));
        millis.push(sent.elapsed().as_secs_f64() * 1e3);
        if started.elapsed() > time {
            break;
        }
    }
    Ok(millis)
}

async fn carried(mut connections: JoinSet<Result<Vec<f64>>>, each: usize, time: Duration) -> Result<Carried> {
    let started = Instant::now();
    let mut millis = Vec::new();
    while let Some(sent) = connections.join_next().await {
        millis.extend(sent??);
    }
    let took = started.elapsed().max(time).as_secs_f64();
    Ok(Carried { rate: (millis.len() * each) as f64 / took, millis })
}
