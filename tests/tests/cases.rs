//! The recorded situations through the binary, on either kind of store: import, then why.

#![allow(clippy::unwrap_used)]

use lastbeat_acceptance::Place;
use lastbeat_testkit::postgres::Cluster;
use serde_json::Value;

#[test]
fn why_gives_every_recorded_situation_its_verdict() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../cases/seed.json")).unwrap();
    assert!(cases.len() >= 16);
    let cluster = Cluster::start();
    let on_both = |case| [(case, Place::default()), (case, Place::on(&cluster.create_database()))];
    for (case, place) in cases.iter().flat_map(on_both) {
        let name = &case["name"];
        let imported = place.import(case["history"].as_array().unwrap());
        assert!(imported.status.success(), "{name}: {}", String::from_utf8_lossy(&imported.stderr));
        let (run, at) = (case["run"].as_str().unwrap(), case["at"].as_str().unwrap());
        let why = place.json(&["why", run, "--at", at]);
        for (field, expected) in case["expect"].as_object().unwrap() {
            let same = match (why[field].as_f64(), expected.as_f64()) {
                (Some(found), Some(expected)) => (found - expected).abs() < 1e-9,
                _ => &why[field] == expected,
            };
            assert!(same, "{name}: {field} is {}, not {expected}", why[field]);
        }
        assert_eq!(place.json(&["verify"])["damage"], serde_json::json!([]), "{name}");
    }
}

#[test]
fn an_exported_history_is_imported_as_it_was() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../cases/seed.json")).unwrap();
    let cluster = Cluster::start();
    for case in &cases {
        // From a file into a server: each says what the other does.
        let (first, second) = (Place::default(), Place::on(&cluster.create_database()));
        assert!(first.import(case["history"].as_array().unwrap()).status.success());
        let exported = first.run(&["export"]).stdout;
        std::fs::write(second.file("export.jsonl"), &exported).unwrap();
        assert!(second.run(&["import", "export.jsonl"]).status.success(), "{}", case["name"]);
        assert_eq!(second.run(&["export"]).stdout, exported, "{}", case["name"]);
        let why = ["why", case["run"].as_str().unwrap(), "--at", case["at"].as_str().unwrap()];
        assert_eq!(first.json(&why), second.json(&why), "{}", case["name"]);
    }
}
