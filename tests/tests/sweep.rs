//! Sweepers that work at once reap exactly the dead, each once.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use lastbeat_acceptance::Place;
use lastbeat_domain::Timestamp;
use serde_json::{Value, json};

/// An instant so many seconds ago.
fn ago(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_micros(i64::try_from(now.as_micros()).unwrap() - seconds * 1_000_000).to_string()
}

/// A history of one of four kinds, of which two must be reaped.
fn history(n: usize) -> (String, bool, Vec<Value>) {
    let run = format!("01930000-0000-7000-8000-{n:012}");
    let fact = |seconds: i64, fact: Value| {
        let mut line = json!({"run": run, "recorded_at": ago(seconds)});
        line.as_object_mut().unwrap().extend(fact.as_object().unwrap().clone());
        line
    };
    let created = fact(20_000, json!({"type": "created", "lane": "watcher"}));
    let claimed = |seconds| fact(seconds, json!({"type": "claimed", "attempt": 1, "executor": "mac-7"}));
    let beat = |seconds| fact(seconds, json!({"type": "heartbeat", "attempt": 1}));
    match n % 4 {
        0 => (run.clone(), true, vec![created, claimed(10_000), beat(9_000), beat(240)]),
        1 => (run.clone(), true, vec![created, claimed(7_300)]),
        2 => (run.clone(), false, vec![created, claimed(15_000), beat(14_000), beat(20)]),
        _ => (run.clone(), false, vec![created, claimed(6_000)]),
    }
}

#[test]
fn four_sweeps_at_once_reap_each_dead_run_once_and_a_fifth_none() {
    let place = Place::default();
    let histories: Vec<_> = (0..200).map(history).collect();
    let lines: Vec<Value> = histories.iter().flat_map(|(_, _, lines)| lines.clone()).collect();
    assert!(place.import(&lines).status.success());
    let dead: BTreeSet<&str> = histories.iter().filter(|(_, dead, _)| *dead).map(|(run, _, _)| run.as_str()).collect();

    let foreseen = place.json(&["sweep", "--dry-run"]);
    assert_eq!(foreseen["reaped"].as_array().unwrap().len(), dead.len());

    let start = |_| place.lastbeat(&["sweep", "--once", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let sweeps: Vec<_> = (0..4).map(start).collect();
    let mut reaped = Vec::new();
    for sweep in sweeps {
        let output = sweep.wait_with_output().unwrap();
        assert!(output.status.success());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        reaped.extend(report["reaped"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap().to_owned()));
    }
    assert_eq!(reaped.len(), dead.len(), "a run was reaped twice or not at all");
    assert_eq!(reaped.iter().map(String::as_str).collect::<BTreeSet<_>>(), dead);

    let fifth = place.json(&["sweep", "--once"]);
    assert_eq!((&fifth["reaped"], &fifth["examined"]), (&json!([]), &json!(0)));
    let why = place.json(&["why", &reaped[0]]);
    assert_eq!((&why["verdict"], &why["status"]), (&json!("settled"), &json!("timed_out")));
    assert!(why["charged_seconds"].as_f64().unwrap() > why["window_seconds"].as_f64().unwrap());
    assert_eq!(place.json(&["verify"])["damage"], json!([]));
}
