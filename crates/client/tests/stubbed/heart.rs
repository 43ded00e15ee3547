//! The heart beats whatever its host does, and tells why the work has to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lastbeat_client::{Api, Heart, Lease, Options, Stop};
use lastbeat_wire::AnswerDocument;
use serde_json::{Value, json};

use crate::stub::{Does, RUN, Stub, claimed, fenced, heard, unavailable};

/// How long to wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn lease() -> Lease {
    Lease::of(&serde_json::from_value::<AnswerDocument>(claimed()).unwrap()).unwrap()
}

fn start(servers: &str) -> Heart {
    Heart::start(&Api::new(Options::new(servers).unwrap()).unwrap(), lease()).unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_blocked_runtime_does_not_stop_it() {
    let stub = Stub::start(|_| heard("continue"));
    let heart = start(&stub.url);
    // The only thread of the runtime is blocked for ten windows of 600 ms.
    std::thread::sleep(Duration::from_secs(6));
    assert!(stub.asked().len() >= 40, "{} heartbeats", stub.asked().len());
    assert_eq!(heart.stop(), None);
    let asked = stub.asked()[0].clone();
    assert_eq!(asked.line, format!("POST /v1/runs/{RUN}/heartbeat"));
    assert_eq!(asked.body, json!({"attempt": 1, "claim": "c"}));
}

#[tokio::test]
async fn it_ends_when_it_is_dropped() {
    let stub = Stub::start(|_| heard("continue"));
    let heart = start(&stub.url);
    until("it beats", || stub.asked().len() >= 2);
    assert!(stub.open() > 0);
    drop(heart);
    // Nobody else holds a connection: with the last one gone there is nobody left who could beat.
    until("it hangs up", || stub.open() == 0);
}

#[tokio::test]
async fn it_says_that_it_was_fenced_and_beats_no_more() {
    let times = AtomicUsize::new(0);
    let stub =
        Stub::start(move |_| if times.fetch_add(1, Ordering::SeqCst) < 2 { heard("continue") } else { fenced() });
    let heart = start(&stub.url);
    let stop = tokio::time::timeout(PATIENCE, heart.stopped()).await.unwrap();
    assert_eq!(stop, Stop::Fenced("attempt 1 was reaped".to_owned()));
    assert_eq!(tokio::time::timeout(PATIENCE, heart.ended()).await.unwrap(), stop, "and says so again");
    assert_eq!((heart.stop(), stub.asked().len()), (Some(stop), 3));
}

#[tokio::test]
async fn it_says_that_it_is_to_be_cancelled_and_beats_on() {
    let stub = Stub::start(|_| heard("cancel"));
    let heart = start(&stub.url);
    assert_eq!(tokio::time::timeout(PATIENCE, heart.stopped()).await.unwrap(), Stop::Cancelled);
    let beats = stub.asked().len();
    until("whoever winds up is still heard of", || stub.asked().len() > beats + 1);
}

#[tokio::test]
async fn it_says_that_contact_is_lost_after_the_window_and_takes_it_back() {
    let phase = Arc::new(AtomicU8::new(0));
    let theirs = Arc::clone(&phase);
    let stub = Stub::start(move |_| match theirs.load(Ordering::SeqCst) {
        0 => heard("continue"),
        1 => Does::Hangs,
        _ => heard("continue"),
    });
    let heart = start(&stub.url);
    until("it beats", || stub.asked().len() >= 3);
    let silent = Instant::now();
    phase.store(1, Ordering::SeqCst);
    assert_eq!(tokio::time::timeout(PATIENCE, heart.stopped()).await.unwrap(), Stop::LostContact);
    let after = silent.elapsed();
    // The last answered heartbeat was sent up to one interval before.
    assert!(after >= Duration::from_millis(450) && after < Duration::from_millis(1_500), "{after:?}");
    phase.store(2, Ordering::SeqCst);
    until("it has contact again", || heart.stop().is_none());
}

#[tokio::test]
async fn an_outage_shorter_than_the_window_is_nobodys_business() {
    let times = AtomicUsize::new(0);
    let stub = Stub::start(move |_| match times.fetch_add(1, Ordering::SeqCst) % 3 {
        0 => heard("continue"),
        1 => unavailable("retry-after: 30\r\n"),
        _ => Does::Loses,
    });
    let heart = start(&stub.url);
    until("it beats through it", || stub.asked().len() >= 15);
    assert_eq!(heart.stop(), None);
}

#[tokio::test]
async fn it_goes_to_another_server_when_one_is_down() {
    let well = Stub::start(|_| heard("continue"));
    let down = Stub::start(|_| heard("continue"));
    let heart = start(&format!("{},{}", down.url, well.url));
    until("it beats", || down.asked().len() >= 2);
    assert!(well.asked().is_empty());
    drop(down);
    until("the other one hears it", || well.asked().len() >= 3);
    assert_eq!(heart.stop(), None);
}

#[tokio::test]
async fn progress_is_told_until_it_was_heard_and_then_no_more() {
    let times = AtomicUsize::new(0);
    let stub =
        Stub::start(move |_| if times.fetch_add(1, Ordering::SeqCst) == 3 { Does::Loses } else { heard("continue") });
    let heart = start(&stub.url);
    heart.progress(json!({"done": 1}));
    let told =
        || -> Vec<Value> { stub.asked().iter().filter_map(|asked| asked.body.get("progress").cloned()).collect() };
    until("it was told", || told().contains(&json!({"done": 1})));
    heart.progress(json!({"done": 2}));
    until("the next was told", || told().contains(&json!({"done": 2})));
    let beats = stub.asked().len();
    until("plain heartbeats follow", || stub.asked().len() > beats + 3);
    let last = stub.asked().into_iter().rev().take(2);
    assert!(last.into_iter().all(|asked| asked.body.get("progress").is_none()));
}
