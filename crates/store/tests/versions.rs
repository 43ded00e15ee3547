//! Older and newer programs: what they wrote is read, or left alone.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::{Liveness, Span};
use lastbeat_store::compact::{Bounds, compact_all};
use lastbeat_store::{Store, ask};
use lastbeat_testkit::{Place, claimant, exported, name, report, run_id};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

/// `fixtures/schema1.db` was written by version 0.1 of the program with the first migration only, and `schema1.jsonl`
/// is what that program exported of it.
#[tokio::test]
async fn a_file_of_the_first_schema_is_migrated_and_says_the_same() {
    let place = Place::at("2026-12-01T00:00:00Z");
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::copy(format!("{fixtures}/schema1.db"), place.file("old.db")).unwrap();
    let store = place.open("old.db").await;
    let before = std::fs::read_to_string(format!("{fixtures}/schema1.jsonl")).unwrap();
    let before: Vec<Value> = before.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let after: Vec<Value> = exported(&store).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(before.len(), after.len());
    for (mut before, after) in before.into_iter().zip(after) {
        if before["type"] == "deaf" {
            // What could be left out in the first schema is said now.
            assert_eq!(before["promised_until"], Value::Null);
            before["promised_until"] = before["from"].clone();
        }
        if before["type"] == "policy_set" {
            // So is a term that there was not yet.
            before["policy"]["stall_window_seconds"] = Value::Null;
        }
        assert_eq!(before, after);
    }
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    // The deaf span of the first schema is not charged: silent from 01:01:02 to 01:12:00, of which ten minutes are deaf.
    let run = "01930000-0000-7000-8000-000000000001".parse().unwrap();
    let judged = ask::run_at(&store, run, "2026-05-01T01:12:04Z".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(judged.verdict.charge.unwrap().charged, Span::from_seconds(62));
    assert_eq!(store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
    // And it goes on.
    let open = store.run(run).await.unwrap().unwrap();
    let claim = open.claim.unwrap().id.unwrap();
    let command = Command::Heartbeat { report: report(run, 2, &claim.to_string()), progress: None };
    store.execute(vec![command]).await.pop().unwrap().unwrap();
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    // Its rows of heartbeats have no digests, and can be compacted all the same.
    let lines = exported(&store).await;
    let bounds = Bounds::ALL;
    assert!(compact_all(&store, bounds, |_| true).await.unwrap().beats > 0);
    let after: Vec<String> = exported(&store).await.into_iter().filter(|line| !line.contains("compacted")).collect();
    assert_eq!(after, lines);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test]
async fn what_a_newer_program_wrote_quarantines_its_run_and_nothing_else() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let store = place.open("a.db").await;
    for number in 1..=3 {
        let (run, spec) = (run_id(number), Box::new(RunSpec::of_lane(name("watcher"))));
        let claim = Some(claimant("mac-7", "c"));
        store.execute(vec![Command::Create { run, spec, claim }]).await.pop().unwrap().unwrap();
        let beat = Command::Heartbeat { report: report(run, 1, "c"), progress: None };
        store.execute(vec![beat]).await.pop().unwrap().unwrap();
    }
    // A fact of an unknown type, and one of a known type in a schema to come; both as the newer program would leave
    // the projection, which is its own business.
    let newer = |position: i64, run: i64, kind: &str, schema: i64| {
        format!(
            "INSERT INTO events (position, run, version, recorded_at, type, schema, body) SELECT {position}, {run}, 4, \
             latest_at + {position}, '{kind}', {schema}, '{{\"type\":\"{kind}\",\"attempt\":1}}' FROM head;"
        )
    };
    let statements = [
        newer(10, 1, "paused", 1),
        newer(11, 2, "started", 9),
        "INSERT INTO events (position, recorded_at, type, schema, body) SELECT 12, latest_at + 12, 'moon_phase', 1, \
         '{\"type\":\"moon_phase\",\"full\":true}' FROM head;"
            .to_owned(),
        "UPDATE head SET position = 12, latest_at = latest_at + 12".to_owned(),
    ];
    let mut shell = SqliteConnectOptions::new().filename(place.file("a.db")).connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements.concat())).execute(&mut shell).await.unwrap();
    shell.close().await.unwrap();
    store.rebuild(&|_, _| ()).await.unwrap();

    place.clock.advance(Span::from_seconds(100_000));
    let page = ask::list(&store, &lastbeat_store::Filter::default(), None, None, 10).await.unwrap();
    let verdicts: BTreeMap<_, _> = page.runs.iter().map(|judged| (judged.run.id, judged.verdict.liveness)).collect();
    let (quarantined, lapsed) = (Liveness::Quarantined, Liveness::Lapsed);
    assert_eq!(verdicts, BTreeMap::from([(run_id(1), quarantined), (run_id(2), quarantined), (run_id(3), lapsed)]));
    let due = store.due(store.now().await.unwrap(), 10).await.unwrap();
    assert_eq!(due.iter().map(|due| due.judged.run.id).collect::<Vec<_>>(), [run_id(3)]);
    let report = store.verify(&|_, _| ()).await.unwrap();
    assert_eq!(report.quarantined, 2);
    // The newer program would have left digests too, which is all that is missing.
    assert!(report.damage.iter().all(|damage| damage.message.contains("has no digest")), "{report:?}");
    assert_eq!(store.service_log().await.unwrap().unknown, 1);
    // An export loses nothing of it.
    let lines = exported(&store).await.join("\n");
    assert!(lines.contains("\"paused\"") && lines.contains("\"moon_phase\"") && lines.contains("\"full\":true"));
}

#[tokio::test]
async fn a_token_of_the_first_schema_is_read_and_admits_nobody() {
    let place = Place::at("2026-05-04T00:00:00Z");
    let store = place.open("a.db").await;
    let statements = "INSERT INTO events (position, recorded_at, type, schema, body) SELECT 1, latest_at + 1, \
         'token_issued', 1, '{\"type\":\"token_issued\",\"token\":\"t1\",\"name\":\"ci\",\"role\":\"admin\",\"by\":\"ada\"}' \
         FROM head; UPDATE head SET position = 1, latest_at = latest_at + 1";
    let mut shell = SqliteConnectOptions::new().filename(place.file("a.db")).connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut shell).await.unwrap();
    shell.close().await.unwrap();
    let log = store.service_log().await.unwrap();
    assert_eq!(log.unknown, 0);
    let token = log.tokens.of_id(&name("t1")).unwrap();
    assert_eq!((token.digest, token.admits(store.now().await.unwrap())), (None, None));
}
