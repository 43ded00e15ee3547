//! The figures say what happened, under the names that dashboards and alerts rely on.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::listening::{BeaconRole, Promise};
use lastbeat_domain::{RunId, Span, Terms};
use lastbeat_server::metrics::{Metrics, count_runs};
use lastbeat_store::Store;
use lastbeat_sweeper::Sweeper;
use lastbeat_testkit::{Place, claimant, name, on_each_backend, report, run_id};

const NOW: &str = "2026-05-04T06:00:00Z";

on_each_backend! {
    super::NOW;
    a_reap_and_what_came_after_it_are_counted,
    a_deaf_span_and_a_held_lane_show,
    heartbeats_are_counted_by_what_became_of_them,
}

/// The value of a sample.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == sample));
    line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

async fn one(store: &dyn Store, command: Command) -> lastbeat_store::Outcome {
    store.execute(vec![command]).await.pop().unwrap()
}

fn create(run: RunId) -> Command {
    let spec = Box::new(RunSpec::of_lane(name("watcher")));
    Command::Create { run, spec, claim: Some(claimant("mac-7", "c")) }
}

fn beat(run: RunId) -> Command {
    Command::Heartbeat { report: report(run, 1, "c"), progress: None }
}

async fn counted(metrics: &Metrics, store: &dyn Store) {
    count_runs(metrics, store, Duration::from_secs(60), async {}).await;
}

async fn a_reap_and_what_came_after_it_are_counted(place: Place) {
    let (store, metrics) = (place.store("a").await, Metrics::new());
    store.observe(metrics.clone());
    let mut sweeper = Sweeper::silent(name("sweeper"), store.clock());
    one(store.as_ref(), create(run_id(1))).await.unwrap();
    one(store.as_ref(), create(run_id(2))).await.unwrap();
    one(store.as_ref(), beat(run_id(1))).await.unwrap();
    place.clock.advance(Span::from_seconds(182));
    metrics.swept(&sweeper.pass(store.as_ref()).await.unwrap());
    assert!(one(store.as_ref(), beat(run_id(1))).await.is_err());
    counted(&metrics, store.as_ref()).await;
    let text = metrics.encode();
    assert_eq!(value(&text, r#"lastbeat_reaped_total{lane="watcher",rule="heartbeat_silence"}"#), 1.0);
    assert_eq!(value(&text, r#"lastbeat_late_signals_total{lane="watcher",signal="heartbeat"}"#), 1.0);
    let of_window = r#"{lane="watcher",rule="heartbeat_silence",window="180"}"#;
    assert_eq!(value(&text, &format!("lastbeat_false_reap_rate{of_window}")), 1.0);
    assert_eq!(value(&text, &format!("lastbeat_false_reap_rate_reaps{of_window}")), 1.0);
    assert_eq!(value(&text, r#"lastbeat_runs{lane="watcher",status="timed_out"}"#), 1.0);
    assert_eq!(value(&text, r#"lastbeat_runs{lane="watcher",status="claimed"}"#), 1.0);
    assert_eq!(value(&text, r#"lastbeat_runs{lane="watcher",status="running"}"#), 0.0);
    assert_eq!(value(&text, "lastbeat_detection_lag_seconds_count"), 1.0);
    let lag = value(&text, "lastbeat_detection_lag_seconds_sum");
    assert!((1.9..2.1).contains(&lag), "{lag}");
    assert_eq!(value(&text, "lastbeat_sweep_duration_seconds_count"), 1.0);
    let success = value(&text, "lastbeat_sweep_last_success_timestamp_seconds");
    assert!((success - 1_777_874_582.0).abs() < 1.0, "{success}");
    // Two creates, a heartbeat, the reap, the late heartbeat.
    assert!(value(&text, "lastbeat_append_batch_size_count") >= 5.0);
    assert!(value(&text, "lastbeat_append_batch_size_sum") >= 5.0);
    assert!(value(&text, "lastbeat_append_duration_seconds_sum") > 0.0);
    assert!(text.ends_with("# EOF\n"));
}

async fn a_deaf_span_and_a_held_lane_show(place: Place) {
    let (store, metrics) = (place.store("a").await, Metrics::new());
    store.observe(metrics.clone());
    assert_eq!(value(&metrics.encode(), r#"lastbeat_deaf_seconds_total{cause="gap"}"#), 0.0);
    let beacon = || Command::Beacon {
        process: name("s"),
        role: BeaconRole::Serve,
        promise: Promise::Within(Span::from_seconds(10)),
    };
    one(store.as_ref(), beacon()).await.unwrap();
    place.clock.advance(Span::from_seconds(60));
    one(store.as_ref(), beacon()).await.unwrap();
    let deaf = value(&metrics.encode(), r#"lastbeat_deaf_seconds_total{cause="gap"}"#);
    assert!((59.9..60.1).contains(&deaf), "{deaf}");

    let terms = Box::new(Terms { hold_min: Some(2), ..Terms::default() });
    let set = Command::SetPolicy { lane: name("watcher"), terms, expected_version: None, by: None };
    one(store.as_ref(), set).await.unwrap();
    for number in 1..=3 {
        one(store.as_ref(), create(run_id(number))).await.unwrap();
        one(store.as_ref(), beat(run_id(number))).await.unwrap();
    }
    place.clock.advance(Span::from_seconds(9));
    for _ in 0..21 {
        one(store.as_ref(), beacon()).await.unwrap();
        place.clock.advance(Span::from_seconds(9));
    }
    one(store.as_ref(), beacon()).await.unwrap();
    let mut sweeper = Sweeper::silent(name("sweeper"), store.clock());
    metrics.swept(&sweeper.pass(store.as_ref()).await.unwrap());
    assert_eq!(value(&metrics.encode(), r#"lastbeat_held{lane="watcher"}"#), 1.0);
    let release = Command::ReleaseHold { lane: name("watcher"), by: name("ada"), reason: None };
    one(store.as_ref(), release).await.unwrap();
    counted(&metrics, store.as_ref()).await;
    assert_eq!(value(&metrics.encode(), r#"lastbeat_held{lane="watcher"}"#), 0.0);
}

async fn heartbeats_are_counted_by_what_became_of_them(place: Place) {
    let (store, metrics) = (place.store("a").await, Metrics::new());
    one(store.as_ref(), create(run_id(1))).await.unwrap();
    let fenced = Command::Heartbeat { report: report(run_id(1), 2, "d"), progress: None };
    for command in [beat(run_id(1)), beat(run_id(1)), fenced, beat(run_id(9))] {
        metrics.heard(&one(store.as_ref(), command).await);
    }
    let text = metrics.encode();
    let results = ["accepted", "fenced", "refused", "failed"];
    let values = results.map(|result| value(&text, &format!("lastbeat_heartbeats_total{{result=\"{result}\"}}")));
    assert_eq!(values, [2.0, 1.0, 1.0, 0.0]);
}
