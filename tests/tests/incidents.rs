//! From a question at night to a regression test: `why`, the false reap rate, bundles and cases, through the binary on both
//! kinds of store.

#![allow(clippy::unwrap_used)]

// The test that reads the recorded situations: what is exported as a case must pass it as it is.
#[path = "../../crates/domain/tests/cases.rs"]
mod rule;

use std::process::Stdio;

use lastbeat_acceptance::{Numbers, Place, Started, until};
use lastbeat_domain::{Span, Timestamp};
use lastbeat_testkit::postgres::Cluster;
use serde_json::{Value, json};

/// When the last thing happened in the workloads here.
const UNTIL: &str = "2026-05-04T06:00:00Z";

fn generate(place: &Place) {
    // In force before anything happened.
    let policy = json!({"heartbeat_interval_seconds": 20, "heartbeat_window_seconds": 80});
    let set = json!({"recorded_at": "2026-05-01T00:00:00Z", "type": "policy_set", "lane": "watcher", "policy_version": 1,
        "policy": policy});
    assert!(place.import(&[set]).status.success());
    place.json(&["generate", "--runs", "200", "--events", "8000", "--seed", "3", "--until", UNTIL]);
}

#[test]
fn the_false_reap_rate_is_the_share_of_executors_that_spoke_again() {
    let cluster = Cluster::start();
    for place in [Place::default(), Place::on(&cluster.create_database())] {
        generate(&place);
        // Counted by hand in the log: the reaps of attempts, and those after which somebody spoke about the attempt.
        let export = String::from_utf8(place.run(&["export"]).stdout).unwrap();
        let facts: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |fact: &Value| (fact["run"].to_string(), fact["attempt"].to_string());
        let reaps: Vec<_> = facts.iter().filter(|fact| fact["type"] == "timed_out").map(of).collect();
        let spoke: Vec<_> =
            facts.iter().filter(|fact| fact["type"] == "late_signal" || fact["late"] == json!(true)).map(of).collect();
        let wrong = reaps.iter().filter(|reap| spoke.contains(reap)).count();
        // 18 of a hundred runs are reaped, and 9 of them wake again.
        assert_eq!((reaps.len(), wrong), (36, 18));
        let lane = place.json(&["lane", "show", "watcher"]);
        let told = &lane["false_reaps"];
        assert_eq!(told["reaped"], json!(reaps.len()), "{told}");
        assert_eq!((&told["wrong"], &told["rate"]), (&json!(wrong), &json!(0.5)), "{told}");
        let silence = told["by_window"].as_array().unwrap().iter().find(|kind| kind["rule"] == "heartbeat_silence");
        let expected = json!({"rule": "heartbeat_silence", "heartbeat_window_seconds": 80, "reaped": 32, "wrong": 18,
            "rate": 0.5625});
        assert_eq!(silence.unwrap(), &expected);
        let table = String::from_utf8(place.run(&["lane", "show", "watcher"]).stdout).unwrap();
        assert!(table.contains("18 of 36, 50.0%"), "{table}");
        assert_eq!(place.json(&["lane", "show", "another"])["false_reaps"]["rate"], Value::Null);
    }
}

#[test]
fn a_bundle_answers_every_why_as_the_store_did() {
    let cluster = Cluster::start();
    let (file, server) = (Place::default(), Place::on(&cluster.create_database()));
    generate(&file);
    let runs = file.json(&["run", "list", "--limit", "40"])["runs"].clone();
    let ids: Vec<&str> = runs.as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap()).collect();
    let selection: Vec<&str> = ids.iter().flat_map(|id| ["--run", id]).collect();
    let bundle = file.run(&[&["export", "--with-policy", "--with-deaf"], &selection[..]].concat()).stdout;
    std::fs::write(server.file("bundle.jsonl"), &bundle).unwrap();
    let imported = server.json(&["import", "bundle.jsonl"]);
    assert_eq!(imported["runs"], json!(ids.len()));
    let (end, mut numbers, mut verdicts) = (UNTIL.parse::<Timestamp>().unwrap(), Numbers(5), Vec::new());
    for id in &ids {
        let back = Span::from_seconds(numbers.below(4_000));
        let at = end.plus(Span::from_seconds(600)).minus(back).to_string();
        let ask = ["why", id, "--at", &at, "-o", "json"];
        let (here, there) = (file.run(&ask), server.run(&ask));
        assert_eq!(String::from_utf8_lossy(&here.stdout), String::from_utf8_lossy(&there.stdout), "{ask:?}");
        assert_eq!(here.status, there.status, "{ask:?}");
        verdicts.extend(serde_json::from_slice::<Value>(&here.stdout).ok().map(|why| why["verdict"].to_string()));
    }
    verdicts.sort();
    verdicts.dedup();
    assert!(verdicts.len() >= 3, "too little was asked: {verdicts:?}");
    // What is selected by goal or instant, and what cannot be.
    assert!(file.run(&["export", "--goal", "nothing"]).stdout.is_empty());
    assert!(file.run(&["export", "--since", "2026-05-04T06:00:01Z"]).stdout.is_empty());
    let since = "2026-05-04T05:30:00Z";
    let runs_of = |selection: &[&str]| {
        let output = file.run(&[&["export"], selection].concat());
        assert!(output.status.success(), "{selection:?}: {}", String::from_utf8_lossy(&output.stderr));
        let facts = String::from_utf8(output.stdout).unwrap();
        let run = |line: &str| serde_json::from_str::<Value>(line).unwrap()["run"].as_str().unwrap().to_owned();
        facts.lines().map(run).collect::<std::collections::BTreeSet<String>>()
    };
    assert!(runs_of(&["--goal", "nothing", "--since", since]).is_empty());
    let goal =
        file.json(&["run", "create", "--lane", "watcher", "--goal", "chores"])["run"].as_str().unwrap().to_owned();
    assert_eq!(runs_of(&["--goal", "chores", "--since", since]), [goal.clone()].into());
    assert!(runs_of(&["--since", since]).len() > 1);
    let both = file.run(&["export", "--goal", "chores", "--run", &goal]);
    assert_eq!(both.status.code(), Some(2), "either runs or what they are selected by");
    let error = file.error(&["export", "--run", "01930000-0000-7000-8000-0000000000ff"]);
    assert_eq!(error["code"], "unknown_run");
    assert_eq!(file.run(&["export", "--with-policy"]).status.code(), Some(2), "of which runs?");
}

/// A gap that nobody has recorded is known from the beacons alone, which are no facts.
#[test]
fn a_copy_of_the_whole_log_takes_the_open_gap_along_if_it_is_asked_to() {
    let cluster = Cluster::start();
    for place in [Place::default(), Place::on(&cluster.create_database())] {
        place.json(&["sweep", "--once", "--every", "200ms"]);
        let run =
            place.json(&["run", "create", "--lane", "watcher", "--claim", "mac-7"])["run"].as_str().unwrap().to_owned();
        for _ in 0..3 {
            place.json(&["run", "beat", &run, "--attempt", "1"]);
        }
        until("the promise is broken", || !place.json(&["why", &run])["deaf_since"].is_null());
        let now = place.json(&["why", &run])["at"].as_str().unwrap().to_owned();
        let why = |place: &Place| place.json(&["why", &run, "--at", &now]);
        let original = why(&place);
        for (flags, same) in [(&["export", "--with-deaf"][..], true), (&["export"], false)] {
            let copy = Place::default();
            std::fs::write(copy.file("log.jsonl"), place.run(flags).stdout).unwrap();
            assert_eq!(copy.json(&["import", "log.jsonl"])["runs"], json!(1));
            assert_eq!(why(&copy) == original, same, "{flags:?}: {} is not {original}", why(&copy));
            let history = |place: &Place| place.run(&["history", &run, "-o", "jsonl"]).stdout;
            assert_eq!(history(&copy), history(&place));
        }
    }
}

#[test]
fn a_bundle_comes_through_a_server_as_from_the_store() {
    let place = Place::default();
    generate(&place);
    let runs = place.json(&["run", "list", "--status", "timed_out", "--limit", "1"])["runs"].clone();
    let id = runs[0]["run"].as_str().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let server = Started::new(place.lastbeat(&["serve", "--listen", &address]).stderr(Stdio::null()));
    until("the server listens", || std::net::TcpStream::connect(&address).is_ok());
    let url = format!("http://{address}");
    let ask = ["export", "--server", &url, "--run", id, "--with-policy", "--with-deaf"];
    let bundle = place.run(&ask);
    assert!(bundle.status.success(), "{}", String::from_utf8_lossy(&bundle.stderr));
    let copy = Place::default();
    std::fs::write(copy.file("bundle.jsonl"), &bundle.stdout).unwrap();
    copy.json(&["import", "bundle.jsonl"]);
    let why = ["why", id, "--at", UNTIL];
    assert_eq!(copy.json(&why), place.json(&why));
    for arguments in [&ask[..5], &["export", "--server", &url], &["export", "--server", &url, "--run", id, "--as-case"]]
    {
        assert_eq!(place.error(arguments)["code"], "needs_database", "{arguments:?}");
    }
    drop(server);
}

#[test]
fn an_incident_becomes_a_case_that_passes_our_own_tests() {
    let place = Place::default();
    generate(&place);
    let runs = place.json(&["run", "list", "--limit", "200"])["runs"].clone();
    let (mut reaped, mut rules) = (0, Vec::new());
    for run in runs.as_array().unwrap().iter().take(60) {
        let (id, status) = (run["run"].as_str().unwrap(), run["status"].as_str().unwrap());
        let output = place.run(&["export", "--run", id, "--as-case"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let cases: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let [case] = &cases[..] else { panic!("one case: {cases:?}") };
        // By the pure rule.
        rule::check(case);
        // Through a store.
        let again = Place::default();
        assert!(again.import(case["history"].as_array().unwrap()).status.success());
        let why = again.json(&["why", id, "--at", case["at"].as_str().unwrap()]);
        for (field, expected) in case["expect"].as_object().unwrap() {
            let same = match (why[field].as_f64(), expected.as_f64()) {
                (Some(found), Some(expected)) => (found - expected).abs() < 1e-9,
                _ => &why[field] == expected,
            };
            assert!(same, "{id}: {field} is {}, not {expected}", why[field]);
        }
        if status == "timed_out" {
            // The default instant is the one just before the reap, at which the run had lapsed.
            assert_eq!(case["expect"]["verdict"], "lapsed", "{case}");
            reaped += 1;
        }
        rules.push(case["expect"]["rule"].to_string());
    }
    rules.sort();
    rules.dedup();
    assert!(reaped > 2 && rules.len() >= 2, "{reaped} reaped, {rules:?}");
    // A case that is not true is noticed.
    let id = runs[0]["run"].as_str().unwrap();
    let mut cases: Value = serde_json::from_slice(&place.run(&["export", "--run", id, "--as-case"]).stdout).unwrap();
    cases[0]["expect"]["verdict"] = json!("waiting");
    assert!(std::panic::catch_unwind(|| rule::check(&cases[0])).is_err());
}

#[test]
fn why_tells_of_a_run_that_ended_how_near_it_came_to_being_reaped() {
    let place = Place::default();
    let run = "01930000-0000-7000-8000-000000000001";
    let fact = |at: &str, kind: Value| {
        let mut fact = json!({"run": run, "recorded_at": format!("2026-05-04T02:{at}Z")});
        fact.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        fact
    };
    let beat = |at: &str| fact(at, json!({"type": "heartbeat", "attempt": 1}));
    let lines = [
        fact("38:00", json!({"type": "created", "lane": "watcher"})),
        fact("38:10", json!({"type": "claimed", "attempt": 1, "executor": "mac-7"})),
        beat("38:20"),
        beat("38:50"),
        beat("39:31"),
        beat("39:50"),
        beat("40:20"),
        fact("41:00", json!({"type": "completed", "attempt": 1})),
    ];
    assert!(place.import(&lines).status.success());
    let why = place.json(&["why", run]);
    let ends = "heard of every 30s, longest silence 41s, never closer than 2m 19s to being reaped";
    assert!(why["message"].as_str().unwrap().ends_with(ends), "{why}");
    assert_eq!(why["heard"]["longest_silence_seconds"], 41);
    assert_eq!((&why["nearest"]["left_seconds"], &why["nearest"]["rule"]), (&json!(139), &json!("heartbeat_silence")));
    let table = String::from_utf8(place.run(&["why", run]).stdout).unwrap();
    assert!(table.contains("nearest to being reaped at 2026-05-04T02:39:31.000000Z"), "{table}");
    // Before it ended nothing of that was known.
    let before = place.json(&["why", run, "--at", "2026-05-04T02:40:30Z"]);
    assert_eq!((&before["verdict"], &before["nearest"]), (&json!("live"), &Value::Null));
}
