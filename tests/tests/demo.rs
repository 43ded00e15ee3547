//! The demo tells its story, checks its own claims, and can leave its database behind.

#![allow(clippy::unwrap_used)]

use lastbeat_acceptance::Place;
use serde_json::json;

#[test]
fn the_demo_holds_its_claims_and_keeps_its_database() {
    let place = Place::default();
    let output = place.run(&["demo", "--keep", "story.db"]);
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{error}");
    assert!(told.contains("Every claim of the story held."), "{told}");
    assert!(!told.contains('\u{1b}'), "colour is for terminals");
    let database = ["--database", "sqlite://story.db"];
    assert_eq!(place.json(&[&database[..], &["verify"]].concat())["damage"], json!([]));
    assert_eq!(place.json(&[&database[..], &["run", "list"]].concat())["runs"].as_array().unwrap().len(), 13);
    assert_eq!(place.error(&["demo", "--keep", "story.db"])["code"], "exists");
}
