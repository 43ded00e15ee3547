//! Tokens from the command line, on a database of its own.

#![allow(clippy::unwrap_used)]

use lastbeat_acceptance::Place;
use serde_json::Value;

fn listed(place: &Place) -> Vec<Value> {
    place.json(&["token", "list"])["tokens"].as_array().unwrap().clone()
}

#[test]
fn a_secret_is_shown_once_and_a_revoked_token_stays_in_the_list() {
    let place = Place::default();
    let bound = ["--executor", "mac-7", "--lane", "watcher", "--lane", "sync", "--expires", "90d"];
    let made = place.json(&[&["token", "create", "--role", "executor", "--name", "mac"][..], &bound].concat());
    let secret = made["token"].as_str().unwrap();
    assert!(secret.starts_with("lb_") && secret.len() == 46, "{secret}");
    assert_eq!((&made["name"], &made["role"]), (&"mac".into(), &"executor".into()));

    let token = listed(&place).pop().unwrap();
    assert_eq!((&token["id"], &token["state"]), (&made["id"], &"active".into()));
    assert_eq!((&token["executor"], &token["lanes"]), (&"mac-7".into(), &serde_json::json!(["watcher", "sync"])));
    let log = String::from_utf8(place.run(&["export"]).stdout).unwrap();
    let digest = serde_json::from_str::<Value>(&log).unwrap()["digest"].as_str().unwrap().to_owned();
    for form in ["table", "json", "jsonl"] {
        let shown = String::from_utf8(place.run(&["token", "list", "-o", form]).stdout).unwrap();
        assert!(shown.contains("mac-7") && !shown.contains(secret) && !shown.contains(&digest), "{shown}");
    }
    assert!(!log.contains(secret));

    assert_eq!(place.json(&["token", "revoke", "mac"])["state"], "revoked");
    // Again is the same, and no second fact.
    place.json(&["token", "revoke", made["id"].as_str().unwrap()]);
    assert_eq!(String::from_utf8(place.run(&["export"]).stdout).unwrap().lines().count(), 2);
    place.json(&["token", "create", "--role", "auditor", "--name", "mac"]);
    let states: Vec<Value> = listed(&place).into_iter().map(|mut token| token["state"].take()).collect();
    assert_eq!(states, ["revoked", "active"]);
}

#[test]
fn what_could_not_be_meant_is_refused() {
    let place = Place::default();
    let code = |arguments: &[&str]| place.error(arguments)["code"].clone();
    assert_eq!(code(&["token", "create", "--role", "executor", "--name", "mac"]), "invalid");
    assert_eq!(code(&["token", "create", "--role", "auditor", "--name", "eye", "--lane", "watcher"]), "invalid");
    assert_eq!(code(&["token", "revoke", "nobody"]), "unknown_token");
    place.json(&["token", "create", "--role", "auditor", "--name", "eye"]);
    assert_eq!(code(&["token", "create", "--role", "admin", "--name", "eye"]), "token_exists");
    let output = place.run(&["token", "create", "--role", "emperor", "--name", "x"]);
    assert_eq!(output.status.code(), Some(2));
}
