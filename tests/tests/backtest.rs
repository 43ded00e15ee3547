//! Backtests and replays from the command line, on a generated workload whose histories are counted beside it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

use lastbeat_acceptance::Place;
use serde_json::{Value, json};

fn generated() -> Place {
    let place = Place::default();
    place.json(&["generate", "--runs", "300", "--events", "12000", "--seed", "1", "--until", "2026-05-04T06:00:00Z"]);
    place
}

/// Of each run, in the order of the export, its events.
fn histories(place: &Place) -> Vec<Vec<Value>> {
    let lines = String::from_utf8(place.run(&["export"]).stdout).unwrap();
    let mut histories: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if let Some(run) = line["run"].as_str() {
            histories.entry(run.to_owned()).or_default().push(line);
        }
    }
    histories.into_values().collect()
}

fn is(event: &Value, kinds: &[&str]) -> bool {
    kinds.contains(&event["type"].as_str().unwrap())
}

/// Says whether an executor of the reaped attempt was heard of after its reap.
fn was_wrong(history: &[Value]) -> bool {
    history.iter().any(|event| is(event, &["late_signal"]) || event["late"] == true)
}

/// Seconds since the day began: the workload lies within few days, and none of its silences is long.
fn seconds(instant: &Value) -> f64 {
    let text = instant.as_str().unwrap();
    let (day, time) = (text[8..10].parse::<f64>().unwrap(), &text[11..26]);
    let parts: Vec<f64> = time.split(':').map(|part| part.parse().unwrap()).collect();
    day * 86_400.0 + parts[0] * 3_600.0 + parts[1] * 60.0 + parts[2]
}

/// The longest time between two heartbeats, or a heartbeat and the end, of the attempts that were not reaped.
fn longest_silence(histories: &[Vec<Value>]) -> f64 {
    let mut longest = 0.0_f64;
    for history in histories.iter().filter(|history| !was_wrong(history)) {
        for pair in history.windows(2) {
            if is(&pair[0], &["heartbeat"]) && is(&pair[1], &["heartbeat", "completed", "failed"]) {
                longest = longest.max(seconds(&pair[1]["recorded_at"]) - seconds(&pair[0]["recorded_at"]));
            }
        }
    }
    longest
}

#[test]
fn a_backtest_says_how_long_the_heartbeat_window_would_have_had_to_be() {
    let place = generated();
    let histories = histories(&place);
    let reaped: Vec<&Vec<Value>> =
        histories.iter().filter(|history| history.iter().any(|event| is(event, &["timed_out"]))).collect();
    let wrong = reaped.iter().filter(|history| was_wrong(history)).count();
    let windows = "--heartbeat-window=60s,120s,3m,10m";
    let document = place.json(&["backtest", "--lane", "watcher", windows, "--examples", "1000"]);
    assert_eq!((&document["runs"], &document["events"]), (&json!(300), &json!(12_000)));
    assert_eq!((&document["reaps"], &document["wrong"]), (&json!(reaped.len()), &json!(wrong)));
    let alternatives = document["alternatives"].as_array().unwrap();
    let count = |index: usize, field: &str| alternatives[index][field].as_u64().unwrap();
    // What was in force leads to what was recorded, though every reap came a moment after its lapse; but whoever was
    // still at work in the end would have been reaped since.
    assert_eq!((count(0, "same"), count(0, "newly_wrong")), (reaped.len() as u64, 0));
    assert_eq!((count(0, "newly"), count(0, "undecided")), (count(3, "newly"), count(3, "undecided")));
    assert_eq!(count(0, "newly"), document["open"].as_u64().unwrap());
    assert!(count(1, "newly_wrong") >= count(2, "newly_wrong") && count(2, "newly_wrong") > 0);
    assert!(count(4, "no_longer") > 0 && count(4, "later") > 0);
    // Who beat and was reaped is noticed two minutes earlier by a window of one minute than by one of three.
    assert_eq!(alternatives[1]["sooner"]["longest_seconds"], 120);
    for reap in alternatives[1]["wrong_reaps"].as_array().unwrap() {
        let history = histories.iter().find(|history| history[0]["run"] == reap["run"]).unwrap();
        assert!(history.iter().any(|event| event["recorded_at"] == reap["heard_at"]), "{reap}");
    }
    assert_eq!(alternatives[1]["wrong_reaps"].as_array().unwrap().len() as u64, count(1, "wrong"));
    let recommended = &document["recommendations"][0];
    let shortest = recommended["no_newly_wrong"]["seconds"].as_f64().unwrap();
    assert!((shortest - longest_silence(&histories)).abs() < 0.00001, "{recommended}");
    assert_eq!(recommended["no_newly_wrong"]["tried_seconds"], 180);
    // To the microsecond: so long does no harm, and a microsecond less does.
    let at_edge = format!("--heartbeat-window={:.6}s,{:.6}s", shortest, shortest - 0.000_001);
    let edge = place.json(&["backtest", "--lane", "watcher", &at_edge])["alternatives"].clone();
    assert_eq!((&edge[1]["newly_wrong"], &edge[2]["newly_wrong"]), (&json!(0), &json!(1)));
}

#[test]
fn a_backtest_is_a_table_for_people_and_a_line_for_each_policy() {
    let place = generated();
    let table = String::from_utf8(place.run(&["backtest", "--lane", "watcher"]).stdout).unwrap();
    for part in ["as it was", "heartbeat_window 1m 30s", "NEWLY WRONG", "no reap would have been wrong with"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let lines = String::from_utf8(place.run(&["backtest", "--lane", "watcher", "-o", "jsonl"]).stdout).unwrap();
    let whole = place.json(&["backtest", "--lane", "watcher"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json!(lines), whole["alternatives"]);
    let nobody = place.json(&["backtest", "--lane", "never named"]);
    assert_eq!((&nobody["runs"], &nobody["recommendations"][0]["no_wrong"]), (&json!(0), &Value::Null));
    let error = place.error(&["backtest", "--lane", "watcher", "--heartbeat-window", "0s"]);
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("invalid"), &json!("heartbeat_window: must be longer than 0s"))
    );
    assert_eq!(place.run(&["backtest", "--lane", "watcher", "--heartbeat-window", "off"]).status.code(), Some(2));
    assert_eq!(place.run(&["backtest"]).status.code(), Some(2));
}

/// Another program's statement on the file of the place.
fn sql(place: &Place, statement: &str) {
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()";
    let mut python = Command::new("python3");
    let status = python.args(["-c", script]).arg(place.file("lastbeat.db")).arg(statement).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_replay_of_everything_needs_the_log_alone_and_names_the_runs_that_differ() {
    let place = generated();
    let mut report = place.json(&["replay", "--all"]);
    assert!(report["events_per_second"].as_f64().unwrap() > 0.0 && report["seconds"].is_number());
    for field in ["events_per_second", "seconds"] {
        report.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(report, json!({"runs": 300, "events": 12_000, "quarantined": 0, "damage": []}));
    sql(&place, "UPDATE runs SET attempt = attempt + 1 WHERE number IN (3, 5)");
    let output = place.run(&["replay", "--all", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let damage = report["damage"].as_array().unwrap();
    assert!(damage.iter().all(|damage| damage["kind"] == "projection" && damage["run"].is_string()), "{report}");
    assert_eq!((damage.len(), &report["events"]), (2, &json!(12_000)));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("2 runs differ") && error.contains("lastbeat verify"), "{error}");
    // Without any projection every run is there all the same.
    sql(&place, "DELETE FROM runs");
    let output = place.run(&["replay", "--all", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["runs"], &report["events"]), (&json!(300), &json!(12_000)));
    assert_eq!(report["damage"].as_array().unwrap().len(), 300);
    place.json(&["rebuild"]);
    assert_eq!(place.json(&["replay", "--all"])["damage"], json!([]));
    assert_eq!(place.run(&["replay"]).status.code(), Some(2), "a run, or all");
    assert_eq!(place.run(&["replay", "--all", "--at", "2026-05-04T06:00:00Z"]).status.code(), Some(2));
}

/// The commands of the guide, and what it says that they print.
fn guide() -> (Vec<String>, String) {
    let text = include_str!("../../docs/guides/backtest.md");
    let block = |kind: &str| text.split(&format!("```{kind}\n")).nth(1).unwrap().split("```").next().unwrap();
    let commands = block("sh").replace("\\\n", " ");
    (commands.lines().map(ToOwned::to_owned).collect(), block("text").to_owned())
}

#[test]
fn the_guide_shows_what_its_commands_print() {
    let place = Place::default();
    let (commands, expected) = guide();
    let mut printed = String::new();
    for command in &commands {
        let words: Vec<&str> = command.split_whitespace().skip(1).collect();
        printed = String::from_utf8(place.run(&words).stdout).unwrap();
    }
    // Only until when the past was known is another instant each time.
    let timeless = |text: &str| {
        let lines = text.lines().map(|line| line.split(", up to ").next().unwrap().trim_end().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(timeless(&printed), timeless(&expected), "{printed}");
}
