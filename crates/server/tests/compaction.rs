//! A server compacts old heartbeats by itself, says so in its figures, and any number of replicas may do it.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use lastbeat_domain::Span;
use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_server::{Compaction, Options, serve};
use lastbeat_testkit::{Place, claimant, exported, name, on_each_backend, report, run_id};

const NOW: &str = "2026-05-04T06:00:00Z";

on_each_backend! {
    super::NOW;
    replicas_compact_what_is_old_and_no_answer_changes,
}

async fn replicas_compact_what_is_old_and_no_answer_changes(place: Place) {
    let store = place.store("a").await;
    for number in 1..=4 {
        let (run, spec) = (run_id(number), Box::new(RunSpec::of_lane(name("watcher"))));
        let create = Command::Create { run, spec, claim: Some(claimant("mac-7", "c")) };
        store.execute(vec![create]).await.pop().unwrap().unwrap();
    }
    for round in 0..1_300 {
        let beat = Command::Heartbeat { report: report(run_id(round % 4 + 1), 1, "c"), progress: None };
        store.execute(vec![beat]).await.pop().unwrap().unwrap();
    }
    place.clock.advance(Span::from_seconds(60));
    let before = exported(store.as_ref()).await;
    let compaction = Some(Compaction { interval: Span::from_millis(20), older_than: Span::from_seconds(30) });
    let mut servers = Vec::new();
    for number in 1..=2 {
        let process = name(&format!("here/serve-{number}"));
        let options = Options { compaction, process, sweep_interval: None, ..support::options() };
        servers.push(serve(Arc::clone(&store), options).await.unwrap());
    }
    // Each row is of one heartbeat; the first of a run has none.
    let compacted = |lines: &[String]| lines.iter().filter(|line| line.contains("beats_compacted")).count();
    let mut lines = before.clone();
    while compacted(&lines) == 0 {
        tokio::task::yield_now().await;
        lines = exported(store.as_ref()).await;
    }
    let mut figures = String::new();
    for server in &servers {
        let url = format!("http://{}/metrics", server.address);
        figures += &support::said(support::client().get(url)).await.text;
    }
    for server in servers {
        server.stop().await;
    }
    let lines = exported(store.as_ref()).await;
    assert_eq!(compacted(&lines), 1, "what is left is not worth another event");
    assert!(lines.iter().any(|line| line.contains(r#""through":1295,"rows":1295,"beats":1295"#)), "{lines:?}");
    let facts =
        |lines: Vec<String>| -> Vec<String> { lines.into_iter().filter(|line| line.contains("\"run\"")).collect() };
    assert_eq!(facts(lines), facts(before));
    assert!(figures.contains("lastbeat_compacted_heartbeats_total") && figures.contains("lastbeat_uncompacted_rows"));
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}
