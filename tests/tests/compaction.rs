//! `lastbeat compact`, killed again and again while others write: nothing that was acknowledged is lost, and no answer is
//! another one.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use lastbeat_acceptance::{Numbers, Place, Started, extent, helper, pause, until};
use lastbeat_testkit::postgres::Cluster;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Compacts whatever there is.
const NOW: [&str; 3] = ["compact", "--older-than", "0s"];

#[test]
fn a_compaction_of_a_file_may_be_killed_at_any_time() {
    let place = Place::default();
    place.json(&["migrate"]);
    let url = format!("sqlite://{}", place.file("lastbeat.db").display());
    killed_again_and_again(&place, &url);
}

#[test]
fn a_compaction_on_a_server_may_be_killed_at_any_time() {
    let cluster = Cluster::start();
    let url = cluster.create_database();
    killed_again_and_again(&Place::on(&url), &url);
}

/// The lines of an export, without the traces of compactions.
fn facts(place: &Place) -> Vec<String> {
    let export = String::from_utf8(place.run(&["export"]).stdout).unwrap();
    export.lines().filter(|line| !line.contains("\"beats_compacted\"")).map(ToOwned::to_owned).collect()
}

/// Starts a compaction and kills it after a moment. Says whether it was still at work.
fn kill_one(place: &Place, numbers: &mut Numbers) -> bool {
    let mut compaction = Started::new(place.lastbeat(&NOW).stdout(Stdio::null()).stderr(Stdio::null()));
    pause(Duration::from_millis(10 + numbers.below(90)));
    compaction.signal(Signal::KILL);
    !compaction.0.wait().unwrap().success()
}

/// `LASTBEAT_KILLS` makes it more.
fn killed_again_and_again(place: &Place, url: &str) {
    let writers: Vec<Started> = (0..2)
        .map(|number: u32| {
            let mut command = Command::new(helper("acknowledge"));
            command.args([url, &number.to_string(), "70"]);
            Started::new(command.stdout(std::fs::File::create(place.file(&format!("told-{number}"))).unwrap()))
        })
        .collect();
    until("heartbeats are written", || facts(place).len() > 500);
    let (mut numbers, mut cut_off) = (Numbers(11), 0);
    for kill in 0..extent("LASTBEAT_KILLS", 30) {
        cut_off += u64::from(kill_one(place, &mut numbers));
        if kill % 10 == 4 {
            place.verified();
        }
    }
    // One that is let be, among writers.
    assert!(place.json(&NOW)["beats"].as_u64().unwrap() > 0);
    writers.into_iter().for_each(|writer| drop(writer.terminate()));
    place.verified();
    let lines = facts(place);
    let asked = asked(&lines, &mut numbers);
    let before: Vec<Value> = asked.iter().map(|(run, at)| place.json(&["why", run, "--at", at])).collect();
    for _ in 0..5 {
        cut_off += u64::from(kill_one(place, &mut numbers));
        assert_eq!(facts(place), lines);
    }
    assert!(cut_off > 10, "only {cut_off} were cut off, so hardly anything was tried");

    let report = place.json(&NOW);
    assert_eq!(report["left"], 1, "the last row stays: {report}");
    assert!(place.json(&NOW)["through"].is_null());
    place.verified();
    assert_eq!(facts(place), lines);
    assert_eq!(place.json(&["rebuild"])["differed"], 0);
    for ((run, at), before) in asked.iter().zip(&before) {
        assert_eq!(place.json(&["why", run, "--at", at]), *before);
    }
    all_that_was_told_is_there(place, &lines);

    let whole = String::from_utf8(place.run(&["export"]).stdout).unwrap();
    std::fs::write(place.file("whole.jsonl"), &whole).unwrap();
    let copy = Place::default();
    copy.json(&["import", place.file("whole.jsonl").to_str().unwrap()]);
    assert_eq!(String::from_utf8(copy.run(&["export"]).stdout).unwrap(), whole);
    for ((run, at), before) in asked.iter().zip(&before) {
        assert_eq!(copy.json(&["why", run, "--at", at]), *before);
    }
    println!("{cut_off} cut off, {} facts", lines.len());
}

/// Runs and instants, some in the middle between two facts.
fn asked(lines: &[String], numbers: &mut Numbers) -> Vec<(String, String)> {
    let facts: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_runs: Vec<&Value> = facts.iter().filter(|fact| fact["run"].is_string()).collect();
    let pick = |numbers: &mut Numbers| of_runs[usize::try_from(numbers.below(of_runs.len() as u64)).unwrap()];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (0..25).map(|_| pick(numbers)).map(|fact| (text(&fact["run"]), text(&fact["recorded_at"]))).collect()
}

fn all_that_was_told_is_there(place: &Place, lines: &[String]) {
    let facts: HashSet<String> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|fact| format!("{} {}", fact["run"].as_str().unwrap_or("service"), fact["version"]))
        .collect();
    let mut told = String::new();
    for number in 0..2 {
        std::fs::File::open(place.file(&format!("told-{number}"))).unwrap().read_to_string(&mut told).unwrap();
    }
    assert!(told.lines().count() > 1_000);
    for line in told.lines() {
        assert!(facts.contains(line), "{line} was acknowledged and is not there");
    }
}

#[test]
fn a_compaction_says_what_it_did_and_refuses_what_cannot_be_meant() {
    let place = Place::default();
    let error = place.error(&["compact"]);
    assert_eq!(error["code"], "no_database");
    place.json(&["migrate"]);
    let run = place.json(&["run", "create", "--lane", "nightly", "--claim", "mac-7"]);
    let (id, claim) = (run["run"].as_str().unwrap(), run["claim"].as_str().unwrap());
    for _ in 0..6 {
        place.json(&["run", "beat", id, "--attempt", "1", "--claim", claim]);
    }
    let nothing = String::from_utf8(place.run(&["compact"]).stdout).unwrap();
    assert!(nothing.starts_with("nothing to compact: none of the rows of heartbeats is older than 1h"), "{nothing}");
    assert_eq!(place.json(&["compact"])["rows"], 0);
    let report = place.json(&NOW);
    assert_eq!(
        (&report["through"], &report["rows"], &report["beats"], &report["tails"], &report["left"]),
        (&json!(4), &json!(4), &json!(4), &json!(1), &json!(1))
    );
    assert!(report["beats_per_second"].as_f64().unwrap() > 0.0 && report["duration_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(place.run(&["compact", "--older-than", "soon"]).status.code(), Some(2));
    let error = place.error(&["--server", "http://127.0.0.1:1", "compact"]);
    assert_eq!(error["code"], "needs_database");
    assert!(error["message"].as_str().unwrap().contains("--database"), "{error}");
    place.verified();
}
