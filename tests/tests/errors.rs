//! What goes wrong is said clearly, says what to do, and changes nothing.

#![allow(clippy::unwrap_used)]

use lastbeat_acceptance::Place;
use serde_json::json;

const RUN: &str = "01930000-0000-7000-8000-000000000001";

#[test]
fn reading_where_there_is_no_database_makes_none() {
    let place = Place::default();
    assert_eq!(place.error(&["run", "list"])["code"], "no_database");
    assert!(!place.file("lastbeat.db").exists());
}

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let place = Place::default();
    std::fs::write(place.file("lastbeat.db"), "this is a letter to my aunt, long enough to be no empty file").unwrap();
    assert_eq!(place.error(&["run", "list"])["code"], "unreadable_database");
    assert_eq!(place.error(&["migrate"])["code"], "unreadable_database");
    assert!(std::fs::read_to_string(place.file("lastbeat.db")).unwrap().starts_with("this is a letter"));
}

#[test]
fn an_unknown_run_and_a_bad_duration_are_named() {
    let place = Place::default();
    assert!(place.run(&["migrate"]).status.success());
    assert_eq!(place.error(&["why", RUN])["code"], "unknown_run");
    assert_eq!(place.error(&["history", RUN])["code"], "unknown_run");
    assert_eq!(place.error(&["run", "start", RUN, "--attempt", "1"])["code"], "unknown_run");
    let output = place.run(&["lane", "set", "watcher", "--heartbeat-window", "3 minutes"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("write it like 90s, 3m or 1h30m"));
}

#[test]
fn a_bad_line_is_named_and_nothing_is_imported() {
    let place = Place::default();
    let line = |n: usize| {
        let run = format!("01930000-0000-7000-8000-{n:012}");
        json!({"run": run, "recorded_at": "2026-05-04T02:37:00Z", "type": "created", "lane": "watcher"})
    };
    let mut lines: Vec<_> = (1..=20).map(line).collect();
    lines[16] = json!({"run": RUN, "recorded_at": "2026-05-04T02:38:00Z", "type": "completed", "attempt": 1});
    let output = place.import(&lines);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("line 17") && error.contains("`completed` cannot follow"), "{error}");
    assert_eq!(place.json(&["run", "list"])["runs"], json!([]));
    assert!(place.run(&["export"]).stdout.is_empty());
}

#[test]
fn a_policy_that_would_reap_live_runs_is_refused_by_name() {
    let place = Place::default();
    place.json(&["run", "create", "--lane", "watcher", "--claim", "mac-7"]);
    assert_eq!(place.error(&["lane", "set", "watcher", "--heartbeat-window", "1s"])["code"], "invalid");
    let run = place.json(&["run", "list"])["runs"][0]["run"].as_str().unwrap().to_owned();
    let error = place.error(&["lane", "set", "watcher", "--coarse-ttl", "1us"]);
    assert_eq!(error["code"], "would_lapse");
    assert!(error["message"].as_str().unwrap().contains(&run));
    assert_eq!(place.json(&["lane", "show", "watcher"])["policy_version"], 0);
    assert_eq!(place.json(&["lane", "set", "watcher", "--coarse-ttl", "1us", "--force"])["policy_version"], 1);
    assert_eq!(place.json(&["sweep", "--once"])["reaped"][0]["run"], run.as_str());
}
