//! Faults of the host with real processes: all of it stopped, its clock set, and many executors cut off at once.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use lastbeat_acceptance::{Place, Started, pause, until};
use lastbeat_domain::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};

const INTERVAL: &str = "400ms";
const WINDOW: f64 = 2.0;

fn policy(place: &Place) {
    place.json(&["lane", "set", "nightly", "--heartbeat-interval", INTERVAL, "--heartbeat-window", "2s"]);
}

fn exec(place: &Place, executor: &str) -> Started {
    let mut command = place.lastbeat(&["exec", "--lane", "nightly", "--executor", executor, "--", "sleep", "600"]);
    Started::new(command.stderr(Stdio::null()))
}

fn runs(place: &Place) -> Vec<Value> {
    place.json(&["run", "list", "--limit", "100"])["runs"].as_array().unwrap().clone()
}

fn run_of(place: &Place, executor: &str) -> Value {
    runs(place).into_iter().find(|run| run["executor"] == executor).unwrap_or_default()
}

fn heard(place: &Place, executors: &[&str]) {
    for executor in executors {
        until("they were heard of", || run_of(place, executor)["beats"].as_u64() >= Some(2));
    }
}

/// The dead executor's reap: for listening time alone, and hardly late.
fn assert_reaped_in_time(place: &Place, executor: &str, deaf_at_least: f64) {
    until("the dead one is reaped", || run_of(place, executor)["status"] == "timed_out");
    let why = place.json(&["why", run_of(place, executor)["run"].as_str().unwrap()]);
    let (charged, deaf) = (why["charged_seconds"].as_f64().unwrap(), why["deaf_seconds"].as_f64().unwrap());
    assert!(charged > WINDOW && charged < WINDOW + 2.0, "{why}");
    assert!(deaf >= deaf_at_least, "{why}");
    assert!(why["message"].as_str().unwrap().contains("deaf time not charged"), "{why}");
}

fn assert_living(place: &Place, executors: &[&str]) {
    for executor in executors {
        let run = run_of(place, executor);
        assert_eq!((&run["status"], &run["attempt"]), (&json!("running"), &json!(1)), "{executor}");
    }
}

#[test]
fn a_host_that_was_stopped_reaps_nobody_but_the_dead_and_that_in_time() {
    let place = Place::default();
    policy(&place);
    let sweeper = Started::new(place.lastbeat(&["sweep"]).stdout(Stdio::null()));
    let living: Vec<Started> = ["a", "b", "c"].iter().map(|name| exec(&place, name)).collect();
    let dead = exec(&place, "dead");
    heard(&place, &["a", "b", "c", "dead"]);
    dead.signal(Signal::KILL);
    let all = || living.iter().chain([&sweeper]);
    all().for_each(|process| process.signal(Signal::STOP));
    pause(Duration::from_secs_f64(3.0 * WINDOW));
    // Whoever asks meanwhile is told that nobody listens, and that nobody is charged for it.
    let why = place.json(&["why", run_of(&place, "a")["run"].as_str().unwrap()]);
    assert!(why["deaf_since"].is_string() && why["deaf_seconds"].as_f64().unwrap() > WINDOW, "{why}");
    all().for_each(|process| process.signal(Signal::CONT));
    assert_reaped_in_time(&place, "dead", 2.0 * WINDOW);
    pause(Duration::from_secs_f64(WINDOW));
    assert_living(&place, &["a", "b", "c"]);
    let deaf = place.run(&["export"]).stdout;
    let spans = String::from_utf8(deaf).unwrap().matches("\"type\":\"deaf\"").count();
    assert_eq!(spans, 1, "the gap is recorded once");
}

/// The library that shows a process another clock. See <https://github.com/wolfcw/libfaketime>.
fn libfaketime() -> PathBuf {
    let folders = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"];
    let found =
        folders.iter().map(|folder| PathBuf::from(folder).join("libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime is missing; `cargo xtask setup` installs it")
}

#[test]
fn a_clock_that_is_set_forward_on_the_sweeper_reaps_nobody_but_the_dead_and_that_in_time() {
    let place = Place::default();
    policy(&place);
    let offset = place.file("offset");
    std::fs::write(&offset, "+0").unwrap();
    let mut sweep = place.lastbeat(&["sweep"]);
    sweep.env("LD_PRELOAD", libfaketime()).env("FAKETIME_TIMESTAMP_FILE", &offset);
    // The boottime clock is that of the kernel, as it would be.
    sweep.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let sweeper = Started::new(sweep.stdout(Stdio::null()));
    let _living: Vec<Started> = ["a", "b", "c"].iter().map(|name| exec(&place, name)).collect();
    let dead = exec(&place, "dead");
    heard(&place, &["a", "b", "c", "dead"]);
    dead.signal(Signal::KILL);
    std::fs::write(&offset, "+3600").unwrap();
    assert_reaped_in_time(&place, "dead", 3_590.0);
    pause(Duration::from_secs_f64(2.0 * WINDOW));
    assert_living(&place, &["a", "b", "c"]);
    let export = String::from_utf8(place.run(&["export"]).stdout).unwrap();
    assert!(export.contains("\"cause\":\"clock_step\""), "the step is recorded");
    sweeper.terminate();
}

#[test]
fn forty_executors_cut_off_at_once_are_held_and_drained_at_the_rate() {
    let place = Place::default();
    let policy = ["--heartbeat-interval", "1s", "--heartbeat-window", "4s", "--reap-rate", "5", "--hold-max", "1m"];
    place.json(&[&["lane", "set", "nightly"], &policy[..]].concat());
    let sweeper = Started::new(place.lastbeat(&["sweep"]).stdout(Stdio::null()));
    let executors: Vec<Started> = (0..40).map(|number| exec(&place, &format!("e{number}"))).collect();
    until("all were heard of", || {
        let beating = runs(&place).iter().filter(|run| run["beats"].as_u64() >= Some(2)).count();
        beating == 40
    });
    // Killed, not stopped: one that is stopped in the middle of a write would keep the file locked.
    executors.iter().for_each(|executor| executor.signal(Signal::KILL));
    let holds = || place.json(&["hold", "list"])["holds"].as_array().unwrap().clone();
    until("the lane is held", || holds().iter().any(|hold| hold["state"] == "held"));
    pause(Duration::from_secs(2));
    let hold = &holds()[0];
    assert_eq!((&hold["lane"], &hold["beating"]), (&json!("nightly"), &json!(40)), "nobody was reaped: {hold}");
    assert!(hold["silent"].as_u64() > Some(20) && hold["lapsed"].as_u64() > Some(0), "{hold}");

    place.json(&["hold", "release", "nightly", "--reason", "the switch is dead for good"]);
    until("it is drained", || holds().is_empty());
    until("all are reaped", || runs(&place).iter().all(|run| run["status"] == "timed_out"));
    let export = String::from_utf8(place.run(&["export"]).stdout).unwrap();
    let facts = export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let at = |fact: &Value| fact["recorded_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let (mut reaps, mut recovered) = (Vec::new(), None);
    for fact in facts {
        match (fact["type"].as_str().unwrap(), fact["cause"].as_str()) {
            ("timed_out", _) => reaps.push(at(&fact)),
            ("reaping_released", Some("recovered")) => recovered = Some(at(&fact)),
            _ => {}
        }
    }
    // Until under twenty are silent it goes at five a second; then it is an ordinary lane again.
    let mut drained: Vec<Timestamp> = reaps.into_iter().filter(|at| recovered.is_some_and(|end| *at < end)).collect();
    drained.sort_unstable();
    assert!(drained.len() >= 20, "{}", drained.len());
    for pair in drained.windows(6) {
        let time = pair[5].since(pair[0]).as_seconds();
        assert!(time > 0.85, "five more in {time} s");
    }
    let took = drained[drained.len() - 1].since(drained[0]).as_seconds();
    assert!(took < drained.len() as f64 / 5.0 + 3.0, "{} in {took} s", drained.len());
    sweeper.terminate();
}
