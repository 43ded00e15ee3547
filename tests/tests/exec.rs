//! `exec` with real processes: what happens when the command ends, when `exec` is killed, and when it is stopped.

#![allow(clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use lastbeat_acceptance::{Place, until};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

fn policy(place: &Place) {
    place.json(&["lane", "set", "nightly", "--heartbeat-interval", "300ms", "--heartbeat-window", "1s"]);
}

fn only_run(place: &Place) -> Value {
    place.json(&["run", "list"])["runs"][0].clone()
}

/// Starts `exec` with a command that writes the pids of itself and of its child, and sleeps.
fn start(place: &Place) -> (Child, Vec<Pid>) {
    let script = "sleep 600 & echo $! $$ > pids; wait";
    let exec = place.lastbeat(&["exec", "--lane", "nightly", "--", "sh", "-c", script]);
    let child = { exec }.stderr(Stdio::null()).spawn().unwrap();
    until("the command runs and was heard of twice", || {
        let written = std::fs::read_to_string(place.file("pids")).is_ok_and(|text| text.ends_with('\n'));
        written && only_run(place)["beats"].as_u64() >= Some(2)
    });
    let pids = std::fs::read_to_string(place.file("pids")).unwrap();
    (child, pids.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect())
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

#[test]
fn the_exit_code_and_the_output_are_passed_on() {
    let place = Place::default();
    let output = place.run(&["exec", "--lane", "nightly", "--", "sh", "-c", "echo $LASTBEAT_ATTEMPT; exit 3"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"1\n"[..]));
    assert_eq!(only_run(&place)["status"], "failed");
    assert_eq!(place.run(&["exec", "--lane", "nightly", "--", "true"]).status.code(), Some(0));
    assert_eq!(only_run(&place)["status"], "completed");
    assert_eq!(place.run(&["exec", "--lane", "nightly", "--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(place.run(&["exec", "--lane", "nightly", "--", "./not-there"]).status.code(), Some(127));
}

#[test]
fn a_killed_exec_takes_its_command_along_and_is_reaped_for_its_silence() {
    let place = Place::default();
    policy(&place);
    let (mut exec, pids) = start(&place);
    kill_process(pid(&exec), Signal::KILL).unwrap();
    assert_eq!(exec.wait().unwrap().signal(), Some(9));
    until("the command and its child are gone", || pids.iter().all(|pid| test_kill_process(*pid).is_err()));
    until("it has lapsed", || only_run(&place)["verdict"] == "lapsed");
    let run = only_run(&place);
    assert_eq!(run["status"], "running", "the fold still says so, the verdict knows better");
    let reaped = place.json(&["sweep", "--once"])["reaped"].clone();
    assert_eq!((&reaped[0]["run"], &reaped[0]["rule"]), (&run["run"], &json!("heartbeat_silence")));
    let why = place.json(&["why", run["run"].as_str().unwrap()]);
    assert_eq!((&why["basis"]["fact"], &why["window_seconds"]), (&json!("heartbeat"), &json!(1)));
    assert_eq!((&why["executor"], &why["basis"]["at"]), (&run["executor"], &run["last_heartbeat_at"]));
    let history = place.run(&["history", run["run"].as_str().unwrap(), "-o", "jsonl"]).stdout;
    let beats = String::from_utf8(history).unwrap().matches("\"heartbeat\",\"attempt\"").count();
    assert_eq!(json!(beats), run["beats"], "history shows every beat");
}

#[test]
fn a_stopped_exec_is_reaped_and_told_that_it_is_fenced() {
    let place = Place::default();
    policy(&place);
    let (mut exec, pids) = start(&place);
    let beats = only_run(&place)["beats"].clone();
    until("it has just beaten", || only_run(&place)["beats"] != beats);
    kill_process(pid(&exec), Signal::STOP).unwrap();
    until("it has lapsed", || only_run(&place)["verdict"] == "lapsed");
    assert_eq!(place.json(&["sweep", "--once"])["reaped"].as_array().unwrap().len(), 1);
    kill_process(pid(&exec), Signal::CONT).unwrap();
    assert_eq!(exec.wait().unwrap().code(), Some(75));
    until("the command and its child are gone", || pids.iter().all(|pid| test_kill_process(*pid).is_err()));
    let events = place.json(&["history", only_run(&place)["run"].as_str().unwrap()])["events"].clone();
    let types: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(types.ends_with(&["timed_out", "late_signal"]), "{types:?}");
}

#[test]
fn a_cancelled_exec_ends_its_command() {
    let place = Place::default();
    policy(&place);
    let (mut exec, pids) = start(&place);
    let run = only_run(&place)["run"].as_str().unwrap().to_owned();
    place.json(&["run", "cancel", &run, "--reason", "no longer needed"]);
    assert_eq!(exec.wait().unwrap().code(), Some(75));
    until("the command and its child are gone", || pids.iter().all(|pid| test_kill_process(*pid).is_err()));
    assert_eq!(only_run(&place)["status"], "cancelled");
}

#[test]
fn a_unique_key_runs_one_command_at_a_time_and_a_dead_one_is_taken_over() {
    let place = Place::default();
    policy(&place);
    let retries = ["--max-attempts", "2", "--retry-backoff-base", "300ms"];
    place.json(&[&["lane", "set", "nightly"], &retries[..]].concat());
    let keyed = |script: &str| {
        let mut exec = place.lastbeat(&["exec", "--lane", "nightly", "--unique-key", "k", "--", "sh", "-c", script]);
        exec.stdin(Stdio::null());
        exec
    };
    let mut first = keyed("sleep 600").stderr(Stdio::null()).spawn().unwrap();
    until("the first was heard of", || place.json(&["run", "list"])["runs"][0]["beats"].as_u64() >= Some(2));
    let run = only_run(&place)["run"].as_str().unwrap().to_owned();
    let second = keyed("echo ran").output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!((second.status.code(), second.stdout.len()), (Some(1), 0));
    assert!(said.contains(&run) && said.contains("is running"), "{said}");

    kill_process(pid(&first), Signal::KILL).unwrap();
    first.wait().unwrap();
    until("it has lapsed", || only_run(&place)["verdict"] == "lapsed");
    // No sweeper: the next one reaps it, waits out the backoff, and is its second attempt.
    let third = keyed("echo $LASTBEAT_RUN $LASTBEAT_ATTEMPT").output().unwrap();
    assert_eq!(String::from_utf8(third.stdout).unwrap(), format!("{run} 2\n"));
    let events = place.json(&["history", &run])["events"].clone();
    let types: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    let ending = ["timed_out", "requeued", "claimed", "heartbeat", "completed"];
    assert!(types.ends_with(&ending), "{types:?}");
    // Ended for good, it leaves the key to a new run.
    assert_eq!(keyed("exit 0").status().unwrap().code(), Some(0));
    assert_eq!(place.json(&["run", "list"])["runs"].as_array().unwrap().len(), 2);
}

#[test]
fn a_waiting_run_with_the_key_is_claimed() {
    let place = Place::default();
    let made = place.json(&["run", "create", "--lane", "nightly", "--unique-key", "k", "--input", "{\"n\":1}"]);
    let output = place.run(&["exec", "--lane", "nightly", "--unique-key", "k", "--", "sh", "-c", "echo $LASTBEAT_RUN"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), made["run"].as_str().unwrap());
    assert_eq!(only_run(&place)["status"], "completed");
    let later = place.json(
        &[&["run", "create", "--lane", "nightly", "--unique-key", "k"][..], &["--not-before", "2099-01-01T00:00:00Z"]]
            .concat(),
    );
    let refused = place.run(&["-o", "json", "exec", "--lane", "nightly", "--unique-key", "k", "--", "true"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("unique_key_open") && said.contains(later["run"].as_str().unwrap()), "{said}");
}

#[test]
fn bytes_go_through_untouched_in_both_directions() {
    let place = Place::default();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    std::fs::write(place.file("in"), &bytes).unwrap();
    let mut exec = place.lastbeat(&["exec", "--lane", "nightly", "--", "sh", "-c", "tee /dev/stderr"]);
    let output = exec.stdin(std::fs::File::open(place.file("in")).unwrap()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout == bytes, output.stderr == bytes), (Some(0), true, true));
}
