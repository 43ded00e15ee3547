//! Several processes on one file.

#![allow(clippy::unwrap_used)]

use lastbeat_acceptance::Place;
use serde_json::json;

#[test]
fn twelve_processes_that_come_first_at_once_make_one_database() {
    for _ in 0..3 {
        let place = Place::default();
        let start = |_| place.lastbeat(&["exec", "--lane", "nightly", "--", "true"]).spawn().unwrap();
        let processes: Vec<_> = (0..12).map(start).collect();
        for mut process in processes {
            assert_eq!(process.wait().unwrap().code(), Some(0));
        }
        let runs = place.json(&["run", "list", "--status", "completed"])["runs"].clone();
        assert_eq!(runs.as_array().unwrap().len(), 12);
        assert_eq!(place.json(&["verify"])["damage"], json!([]));
    }
}

#[test]
fn a_newer_schema_is_refused_by_its_number() {
    let place = Place::default();
    assert!(place.run(&["migrate"]).status.success());
    // The schema's version is the 32-bit number at byte 60 of the file: https://sqlite.org/fileformat.html
    let file = place.file("lastbeat.db");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[60..64].copy_from_slice(&77_u32.to_be_bytes());
    std::fs::write(&file, bytes).unwrap();
    let error = place.error(&["run", "list"]);
    assert_eq!(error["code"], "schema_too_new");
    assert!(error["message"].as_str().unwrap().contains("version 77"));
}
