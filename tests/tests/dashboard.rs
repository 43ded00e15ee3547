//! The dashboard, in a real browser: seen live, asked about the past, by keyboard, by those who do not see, and by those
//! who mean harm.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use lastbeat_acceptance::Place;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};

const MEND: &str = "`cargo xtask setup` installs what the browser tests need";

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Plays a scenario of `tests/browser/dashboard.mjs` against a server. What is missing is no reason to skip anything.
fn play(url: &str, scenario: &str, arguments: &[&str]) {
    let modules = workspace().join("target/browser");
    assert!(modules.join("node_modules/playwright-core").exists(), "playwright-core is not in target/browser; {MEND}");
    let mut node = Command::new("node");
    node.arg(workspace().join("tests/browser/dashboard.mjs")).arg(modules).args([url, scenario]).args(arguments);
    let output = node.output().unwrap_or_else(|error| panic!("node: {error}; {MEND}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains(&format!("played {scenario}")), "{scenario}: {out}{err}\n{MEND}");
}

/// Fills a place with the runs that filters, keys and pages are tried on: 60 in lane `alpha`, five in `beta`.
fn runs(place: &Place) -> Vec<String> {
    let mut runs = Vec::new();
    let mut make = |arguments: &[&str]| {
        let made = place.json(&[&["run", "create"][..], arguments].concat());
        runs.push(made["run"].as_str().unwrap().to_owned());
    };
    for number in 0..5 {
        let (executor, team) = (format!("worker-{number}"), if number % 2 == 1 { "team=blue" } else { "team=red" });
        make(&["--lane", "beta", "--goal", "report", "--label", team, "--claim", &executor]);
    }
    for _ in 0..60 {
        make(&["--lane", "alpha", "--goal", "nightly", "--claim", "worker-9"]);
    }
    runs
}

/// A past with two attempts, a reap, a late signal, a deaf span, and heartbeats for an hour.
fn past(place: &Place) -> String {
    let run = "01970000-0000-7000-8000-00000000000a";
    let at = |second: u64| {
        format!("2026-05-04T{:02}:{:02}:{:02}.000000Z", 2 + second / 3_600, second / 60 % 60, second % 60)
    };
    let mut version = 0;
    let mut fact = |second: u64, mut fact: Value| {
        version += 1;
        fact["run"] = json!(run);
        fact["version"] = json!(version);
        fact["recorded_at"] = json!(at(second));
        fact
    };
    let mut lines = vec![
        json!({"recorded_at": at(0), "type": "policy_set", "lane": "watcher", "policy_version": 1, "policy": {"max_attempts": 2}}),
        json!({"recorded_at": at(2_900), "type": "deaf", "from": at(2_600), "to": at(2_900), "promised_until": at(2_612), "cause": "gap"}),
        fact(1, json!({"type": "created", "lane": "watcher", "goal": "nightly", "labels": {}, "input": {"day": 4}})),
        fact(10, json!({"type": "claimed", "attempt": 1, "executor": "mac-7"})),
    ];
    for beat in 1..=20 {
        lines.push(fact(10 + beat * 30, json!({"type": "heartbeat", "attempt": 1})));
    }
    lines.push(fact(
        800,
        json!({"type": "timed_out", "attempt": 1, "rule": "heartbeat_silence", "evidence": {}, "message": "silent"}),
    ));
    lines.push(fact(801, json!({"type": "requeued", "next_attempt": 2, "not_before": at(811)})));
    lines.push(fact(805, json!({"type": "late_signal", "attempt": 1, "signal": "heartbeat", "executor": "mac-7"})));
    lines.push(fact(900, json!({"type": "claimed", "attempt": 2, "executor": "mac-8"})));
    for beat in 1..=80 {
        let second = 900 + beat * 30;
        if !(2_600..2_900).contains(&second) {
            lines.push(fact(
                second,
                json!({"type": "heartbeat", "attempt": 2, "progress": {"done": beat, "total": 80}}),
            ));
        }
    }
    lines.push(fact(3_310, json!({"type": "completed", "attempt": 2, "output": {"rows": 12}, "late": false})));
    let imported = place.import(&lines);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    run.to_owned()
}

fn micros(instant: &str) -> i64 {
    instant.parse::<lastbeat_domain::Timestamp>().unwrap().as_micros()
}

/// A demo that leaves nobody behind, however the test ends: its processes are a group.
struct Told(Child);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn the_story_of_the_demo_is_seen_live_without_reloading() {
    let place = Place::default();
    let mut demo = place.lastbeat(&["demo", "--serve=127.0.0.1:0"]);
    let mut demo = Told(demo.process_group(0).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut told = BufReader::new(demo.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address = told.find_map(|line| line.strip_prefix("The dashboard shows it: ").map(ToOwned::to_owned));
    let url = address.unwrap();
    play(&url, "story", &[]);
    // It stays up after the story until it is told to end, and ends well.
    assert!(told.any(|line| line.contains("stays up until Ctrl-C")));
    kill_process(Pid::from_child(&demo.0), Signal::INT).unwrap();
    assert!(told.any(|line| line.contains("Every claim of the story held.")));
    assert!(demo.0.wait().unwrap().success());
}

#[test]
fn the_scrubber_says_the_same_as_why() {
    let place = Place::default();
    let run = past(&place);
    let (_server, url) = place.serve();
    let seconds = [
        "02:00:05", "02:00:30", "02:01:17", "02:12:00", "02:13:21", "02:14:59", "02:30:00", "02:44:30", "02:48:20",
        "02:55:10",
    ];
    let told: Vec<Value> = seconds
        .iter()
        .map(|second| {
            let instant = format!("2026-05-04T{second}.000000Z");
            let message = place.json(&["why", &run, "--at", &instant])["message"].clone();
            json!([{"instant": instant, "micros": micros(&instant)}, message])
        })
        .collect();
    let messages: std::collections::BTreeSet<String> = told.iter().map(|one| one[1].to_string()).collect();
    assert!(messages.len() > 7, "{messages:?}");
    play(&url, "scrubber", &[&run, &Value::from(told).to_string()]);
}

#[test]
fn filters_survive_a_reload_and_pages_follow_on_each_other() {
    let place = Place::default();
    runs(&place);
    let (_server, url) = place.serve();
    play(&url, "filters", &[]);
}

#[test]
fn what_is_not_refreshed_does_not_say_that_it_is_live() {
    let place = Place::default();
    runs(&place);
    let (_server, url) = place.serve();
    play(&url, "stale", &[]);
}

#[test]
fn the_keyboard_is_enough() {
    let place = Place::default();
    runs(&place);
    let (_server, url) = place.serve();
    play(&url, "keys", &[]);
}

#[test]
fn every_page_is_for_those_too_who_do_not_see_it() {
    let empty = Place::default();
    let (_server, url) = empty.serve();
    play(&url, "access", &["/", "/runs", "/lanes", "/executors", "/goals"]);
    let place = Place::default();
    let run = past(&place);
    runs(&place);
    let (_server, url) = place.serve();
    let run = format!("/runs/{run}");
    play(
        &url,
        "access",
        &[
            "/",
            "/goals",
            "/runs",
            &run,
            "/lanes",
            "/lanes/watcher",
            "/lanes/watcher/backtest?windows=60s,90s,3m,10m",
            "/executors",
            "/runs/nothing",
        ],
    );
}

#[test]
fn names_that_look_like_markup_do_no_harm() {
    let place = Place::default();
    let evil = "<script>window.harmed=1</script><img src=x onerror=window.harmed=1>\"'";
    let label = format!("team={evil}");
    let made = place.json(&[
        "run",
        "create",
        "--lane",
        evil,
        "--goal",
        evil,
        "--label",
        &label,
        "--claim",
        evil,
        "--device",
        evil,
        "--input",
        &json!({"a": evil}).to_string(),
    ]);
    place.json(&[
        "run",
        "beat",
        made["run"].as_str().unwrap(),
        "--attempt",
        "1",
        "--progress",
        &json!({"note": evil}).to_string(),
    ]);
    let (_server, url) = place.serve();
    let run = format!("/runs/{}", made["run"].as_str().unwrap());
    let lane =
        "/lanes/%3Cscript%3Ewindow.harmed%3D1%3C%2Fscript%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.harmed%3D1%3E%22%27";
    play(&url, "names", &["/", "/runs", &run, "/lanes", lane, "/executors", "/goals"]);
}

#[test]
fn people_sign_in_and_do_what_they_may_and_a_forged_form_is_refused() {
    let place = Place::default();
    let runs = runs(&place);
    let token = |role: &str, name: &str| {
        let made = place.json(&["token", "create", "--role", role, "--name", name]);
        made["token"].as_str().unwrap().to_owned()
    };
    let (operator, auditor) = (token("operator", "olga"), token("auditor", "axel"));
    let (_server, url) = place.serve();
    let (run, other) = (runs.last().unwrap(), &runs[0]);
    play(&url, "people", &[&operator, &auditor, run, other]);
    let asked = place.json(&["run", "show", run])["cancel_requested"].clone();
    assert_eq!((asked["by"].as_str(), asked["reason"].as_str()), (Some("olga"), Some("it was <b>wrong</b>")));
    assert_eq!(place.json(&["run", "show", other])["cancel_requested"], Value::Null);
    let policy = place.json(&["lane", "show", "alpha"]);
    assert_eq!(
        (policy["policy_version"].as_u64(), policy["policy"]["heartbeat_window_seconds"].as_f64()),
        (Some(1), Some(300.0))
    );
}

#[test]
fn without_a_script_everything_can_be_read() {
    let place = Place::default();
    let run = past(&place);
    place.json(&["run", "create", "--lane", "alpha", "--claim", "worker"]);
    let (_server, url) = place.serve();
    let at = "2026-05-04T02:12:00Z";
    let message = place.json(&["why", &run, "--at", at])["message"].as_str().unwrap().to_owned();
    play(&url, "plain", &[&run, at, &message]);
}
