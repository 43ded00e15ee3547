//! Keeping house from the command line: a generated workload is verified, replayed, rebuilt, copied and looked at.

#![allow(clippy::unwrap_used)]

use lastbeat_acceptance::Place;
use serde_json::{Value, json};

fn generated() -> Place {
    let place = Place::default();
    let arguments =
        ["generate", "--runs", "200", "--events", "20000", "--seed", "1", "--until", "2026-05-04T06:00:00Z"];
    let report = place.json(&arguments);
    assert_eq!((&report["runs"], &report["events"]), (&json!(200), &json!(20_000)));
    place
}

fn export(place: &Place) -> String {
    String::from_utf8(place.run(&["export"]).stdout).unwrap()
}

#[test]
fn a_generated_workload_is_the_same_each_time_and_is_found_well() {
    let (place, again) = (generated(), generated());
    let lines = export(&place);
    assert_eq!((lines.lines().count(), lines == export(&again)), (20_000, true));
    let verified = place.json(&["verify"]);
    assert_eq!(verified, json!({"runs": 200, "events": 20_000, "quarantined": 0, "damage": []}));
    let rebuilt = place.json(&["rebuild"]);
    assert_eq!((&rebuilt["runs"], &rebuilt["differed"]), (&json!(200), &json!(0)));
    assert_eq!(export(&place), lines);
    // It goes into an empty database only, and says so.
    assert_eq!(place.error(&["generate", "--runs", "1", "--events", "20", "--seed", "1"])["code"], "not_empty");
    let empty = Place::default();
    let error = empty.error(&["generate", "--runs", "10", "--events", "20", "--seed", "1"]);
    assert!(error["message"].as_str().unwrap().contains("--events 80"), "{error}");
}

#[test]
fn a_replay_tells_the_verdict_of_each_moment_as_why_does() {
    let place = generated();
    let runs = place.json(&["run", "list", "--status", "timed_out", "--limit", "5"])["runs"].clone();
    for run in runs.as_array().unwrap() {
        let id = run["run"].as_str().unwrap();
        let replay = place.json(&["replay", id]);
        assert_eq!(replay["state"]["status"], "timed_out");
        let stretches = replay["stretches"].as_array().unwrap();
        assert_eq!((&stretches[0]["verdict"], &stretches[0]["because"]), (&json!("waiting"), &json!("created")));
        for pair in stretches.windows(2) {
            assert_eq!(pair[0]["to"], pair[1]["from"], "no time is left out");
        }
        for stretch in stretches {
            let why = place.json(&["why", id, "--at", stretch["from"].as_str().unwrap()]);
            assert_eq!(why["verdict"], stretch["verdict"], "{stretch}");
            if stretch["verdict"] != "settled" {
                assert_eq!(why["rule"], stretch["rule"], "{stretch}");
            }
        }
        let lapsed = stretches.iter().find(|stretch| stretch["verdict"] == "lapsed").unwrap();
        assert_eq!(lapsed["because"], Value::Null, "time alone did it");
    }
}

#[test]
fn a_backup_answers_as_the_original_and_replaces_nothing() {
    let place = generated();
    let copy = place.file("copy.db");
    place.json(&["backup", copy.to_str().unwrap()]);
    assert_eq!(place.error(&["backup", copy.to_str().unwrap()])["code"], "exists");
    let error = place.error(&["backup", place.file("not-there/copy.db").to_str().unwrap()]);
    assert!(error["message"].as_str().unwrap().contains("No such file"), "{error}");
    let url = format!("sqlite://{}", copy.display());
    let copied = String::from_utf8(place.run(&["--database", &url, "export"]).stdout).unwrap();
    assert_eq!(copied, export(&place));
}

#[test]
fn the_doctor_says_what_is_not_well_and_what_to_do() {
    let place = generated();
    let checks = |place: &Place| {
        let checks = place.json(&["doctor"])["checks"].as_array().unwrap().clone();
        move |name: &str| checks.iter().find(|check| check["name"] == name).unwrap().clone()
    };
    let listening = checks(&place)("listening");
    assert_eq!(listening["health"], "warning");
    assert!(listening["advice"].as_str().unwrap().contains("lastbeat sweep"), "{listening}");
    place.json(&["sweep", "--once"]);
    assert_eq!(checks(&place)("listening")["health"], "fine");
    for name in
        ["file", "disk", "pages", "schema", "durability", "append-only", "clock", "backlog", "holds", "newer facts"]
    {
        assert_eq!(checks(&place)(name)["health"], "fine", "{name}");
    }
}

#[test]
fn sweeping_says_when_the_next_pass_is_due_and_what_it_means_if_it_does_not_come() {
    let place = Place::default();
    place.json(&["sweep", "--once", "--every", "100ms"]);
    lastbeat_acceptance::pause(std::time::Duration::from_millis(400));
    let deaf = place.json(&["sweep", "--once", "--every", "100ms"])["deaf"].clone();
    assert_eq!((deaf.as_array().unwrap().len(), &deaf[0]["cause"]), (1, &json!("gap")));
    assert_eq!(place.run(&["sweep", "--every", "1m"]).status.code(), Some(2), "only with --once");
}
