//! Executors that speak to servers: one of two servers dies, and strangers hold connections without a word.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lastbeat_acceptance::{Place, Started, extent, until};
use lastbeat_client::{Api, Heart, Lease, Options};
use lastbeat_domain::{Name, RunId};
use lastbeat_testkit::postgres::Cluster;
use lastbeat_wire::{ClaimBy, CreateRequest, HeartbeatRequest};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const INTERVAL: &str = "500ms";
const WINDOW: Duration = Duration::from_secs(3);

/// An address at which nobody listens yet.
fn address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn serve(place: &Place, address: &str) -> Started {
    let mut command = place.lastbeat(&["serve", "--listen", address, "--sweep-interval", "200ms"]);
    let server = Started::new(command.stderr(Stdio::null()));
    until("the server listens", || std::net::TcpStream::connect(address).is_ok());
    server
}

fn lane(place: &Place) -> Name {
    let window = format!("{}s", WINDOW.as_secs());
    place.json(&["lane", "set", "night", "--heartbeat-interval", INTERVAL, "--heartbeat-window", &window]);
    "night".parse().unwrap()
}

async fn claimed(api: &Api, lane: &Name, executor: usize) -> Lease {
    let claim = Some(ClaimBy { executor: format!("e{executor}").parse().unwrap(), device: None });
    let request = CreateRequest { claim, ..CreateRequest::of_lane(lane.clone()) };
    Lease::of(&api.create(&request).await.unwrap()).unwrap()
}

fn beat(lease: &Lease) -> HeartbeatRequest {
    HeartbeatRequest { attempt: lease.attempt, claim: lease.claim.clone(), progress: None }
}

/// The streams of the log, an entry for each event of a run.
fn logged(place: &Place) -> Vec<(RunId, u64, String)> {
    let output = place.run(&["export"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_runs = events.filter(|event| event["run"].is_string());
    let entry = |event: Value| {
        let text = |field: &str| event[field].as_str().unwrap().to_owned();
        (text("run").parse().unwrap(), event["version"].as_u64().unwrap(), text("type"))
    };
    of_runs.map(entry).collect()
}

/// An executor that makes a run, beats for it in the background and by hand, and completes it once it is told to.
/// Returns what was acknowledged.
async fn work(api: Api, lane: Name, executor: usize, enough: Arc<AtomicBool>) -> Vec<(RunId, u64)> {
    let lease = claimed(&api, &lane, executor).await;
    let mut acknowledged = vec![(lease.run, 1), (lease.run, 2)];
    let heart = Heart::start(&api, lease.clone()).unwrap();
    while !enough.load(Ordering::SeqCst) {
        let heard = api.heartbeat(lease.run, &beat(&lease)).await.unwrap();
        acknowledged.push((lease.run, heard.version));
        assert_eq!(heart.stop(), None, "{}", lease.run);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(heart);
    let completed = api.complete(&lease, Some(json!({"by": executor}))).await.unwrap();
    acknowledged.push((lease.run, completed.run.version));
    acknowledged
}

/// An executor that makes one short run after the other, so that some call of each kind is under way whenever a server
/// dies: an answer that is lost then must not make a second run. Returns what was acknowledged.
async fn hurry(api: Api, lane: Name, executor: usize, enough: Arc<AtomicBool>) -> Vec<(RunId, u64)> {
    let mut acknowledged = Vec::new();
    while !enough.load(Ordering::SeqCst) {
        let lease = claimed(&api, &lane, executor).await;
        let heard = api.heartbeat(lease.run, &beat(&lease)).await.unwrap();
        let completed = api.complete(&lease, None).await.unwrap();
        acknowledged.extend([(lease.run, 1), (lease.run, 2), (lease.run, heard.version)]);
        acknowledged.push((lease.run, completed.run.version));
    }
    acknowledged
}

/// `LASTBEAT_KILLS` makes it more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing_that_was_acknowledged_and_reaps_nobody() {
    const EXECUTORS: usize = 20;
    const HURRIED: usize = 10;
    let cluster = Cluster::start();
    let place = Place::on(&cluster.create_database());
    let lane = lane(&place);
    let addresses = [address(), address()];
    let mut servers = addresses.each_ref().map(|address| serve(&place, address));
    let enough = Arc::new(AtomicBool::new(false));
    let mut executors = Vec::new();
    for executor in 0..EXECUTORS + HURRIED {
        // Half of them ask the one that dies first.
        let mut urls = addresses.each_ref().map(|address| format!("http://{address}"));
        urls.rotate_left(executor % 2);
        let api = Api::new(Options::new(&urls.join(",")).unwrap()).unwrap();
        let (lane, enough) = (lane.clone(), Arc::clone(&enough));
        executors.push(if executor < EXECUTORS {
            tokio::spawn(work(api, lane, executor, enough))
        } else {
            tokio::spawn(hurry(api, lane, executor, enough))
        });
    }
    tokio::time::sleep(WINDOW).await;
    // One after the other is killed and comes back, and the last one stays dead.
    for kill in 1..extent("LASTBEAT_KILLS", 6) {
        let killed = usize::from(kill.is_multiple_of(2));
        servers[killed].signal(Signal::KILL);
        tokio::time::sleep(Duration::from_millis(500)).await;
        servers[killed] = serve(&place, &addresses[killed]);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    servers[0].signal(Signal::KILL);
    tokio::time::sleep(2 * WINDOW).await;
    enough.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    for (executor, work) in executors.into_iter().enumerate() {
        let theirs = work.await.unwrap();
        // Each was heard of all along: by hand alone some 100 times.
        assert!(theirs.len() > 20, "of e{executor} only {} were acknowledged", theirs.len());
        acknowledged.extend(theirs);
    }

    let log = logged(&place);
    let there: BTreeSet<(RunId, u64)> = log.iter().map(|(run, version, _)| (*run, *version)).collect();
    assert_eq!(there.len(), log.len(), "an event is there twice");
    let lost: Vec<&(RunId, u64)> = acknowledged.iter().filter(|event| !there.contains(event)).collect();
    assert!(lost.is_empty(), "of {} acknowledged events {lost:?} are not there", acknowledged.len());
    let count = |wanted: &str| log.iter().filter(|(.., kind)| kind == wanted).count();
    // Each run that is there was acknowledged once: no creation was carried out twice.
    let runs: BTreeSet<RunId> = acknowledged.iter().map(|(run, _)| *run).collect();
    assert_eq!((count("created"), count("completed"), count("timed_out")), (runs.len(), runs.len(), 0));
    assert!(runs.len() > EXECUTORS + 10 * HURRIED, "only {} runs were made", runs.len());
    println!("{} runs, {} acknowledged calls", runs.len(), acknowledged.len());
    place.verified();
}

/// A stranger that says a letter of its request now and then. Counts how often it had to begin anew.
async fn dawdle(address: String, begun: Arc<AtomicU64>, enough: Arc<AtomicBool>) {
    while !enough.load(Ordering::SeqCst) {
        let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
        begun.fetch_add(1, Ordering::SeqCst);
        if stream.write_all(b"POST /v1/heartbeats HTTP/1.1\r\nx-slow: ").await.is_err() {
            continue;
        }
        let mut answer = [0; 512];
        while !enough.load(Ordering::SeqCst) {
            if stream.write_all(b"a").await.is_err() {
                break;
            }
            // Whatever comes back, it was sent away.
            if tokio::time::timeout(Duration::from_millis(500), stream.read(&mut answer)).await.is_ok() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_connections_that_dawdle_stop_no_heartbeat_of_two_hundred_executors() {
    const DAWDLERS: usize = 500;
    const EXECUTORS: usize = 200;
    let place = Place::default();
    let lane = lane(&place);
    let address = address();
    let _server = serve(&place, &address);
    let (enough, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let strangers: Vec<_> =
        (0..DAWDLERS).map(|_| tokio::spawn(dawdle(address.clone(), Arc::clone(&begun), Arc::clone(&enough)))).collect();
    while begun.load(Ordering::SeqCst) < DAWDLERS as u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // No second try: what fails, fails.
    let options = Options::new(&format!("http://{address}")).unwrap().patience(Duration::ZERO);
    let api = Api::new(options.request_timeout(WINDOW)).unwrap();
    let mut executors = Vec::new();
    for executor in 0..EXECUTORS {
        let (api, lane) = (api.clone(), lane.clone());
        executors.push(tokio::spawn(async move {
            let lease = claimed(&api, &lane, executor).await;
            let (started, mut beats) = (Instant::now(), 0);
            while started.elapsed() < 3 * WINDOW {
                api.heartbeat(lease.run, &beat(&lease)).await.unwrap();
                beats += 1;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            api.complete(&lease, None).await.unwrap();
            beats
        }));
    }
    let mut beats = 0;
    for executor in executors {
        beats += executor.await.unwrap();
    }
    enough.store(true, Ordering::SeqCst);
    for stranger in strangers {
        stranger.await.unwrap();
    }
    let reaped = logged(&place).iter().filter(|(.., kind)| kind == "timed_out").count();
    assert_eq!(reaped, 0);
    assert!(beats > EXECUTORS as u64 * 5, "only {beats} heartbeats");
}
