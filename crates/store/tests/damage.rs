//! What is changed behind the store's back is refused by the database, or named by `verify`, or mended by `rebuild`.

#![allow(clippy::unwrap_used)]

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::{RunId, Span};
use lastbeat_store::compact::Bounds;
use lastbeat_store::sqlite::SqliteStore;
use lastbeat_store::{DamageKind, Store, StoreError};
use lastbeat_testkit::{Place, claimant, exported, name, report, run_id};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

const NOW: &str = "2026-05-04T06:00:00Z";
const ALL: [&str; 3] = ["events", "beats", "segments"];

async fn one(store: &dyn Store, command: Command) {
    store.execute(vec![command]).await.pop().unwrap().unwrap();
}

/// A store with a run that ended and one that is beating, each with plain heartbeats in a segment, the latter with a
/// tail too.
async fn filled(place: &Place) -> SqliteStore {
    let store = place.open("a.db").await;
    for run in [run_id(1), run_id(2)] {
        let spec = Box::new(RunSpec { input: Some(serde_json::json!({"n": 1})), ..RunSpec::of_lane(name("watcher")) });
        one(&store, Command::Create { run, spec, claim: Some(claimant("mac-7", "c")) }).await;
        for _ in 0..40 {
            place.clock.advance(Span::from_seconds(30));
            one(&store, Command::Heartbeat { report: report(run, 1, "c"), progress: None }).await;
        }
    }
    one(&store, Command::Complete { report: report(run_id(1), 1, "c"), output: None }).await;
    store
}

/// Another program's connection to the file.
async fn shell(place: &Place) -> SqliteConnection {
    SqliteConnectOptions::new().filename(place.file("a.db")).connect().await.unwrap()
}

async fn sql(place: &Place, statements: &str) -> Result<(), sqlx::Error> {
    let mut shell = shell(place).await;
    let done = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut shell).await;
    shell.close().await.unwrap();
    done.map(|_| ())
}

async fn sql_without_triggers(place: &Place, statements: &str) {
    let drops: String = ALL
        .iter()
        .flat_map(|table| ["update", "delete", "replace"].map(|act| format!("DROP TRIGGER {table}_no_{act};")))
        .collect();
    sql(place, &format!("{drops}{statements}")).await.unwrap();
}

/// A kind of damage, and the run that it names.
type Named = (DamageKind, Option<RunId>);

/// The kinds of damage that are found, without the missing triggers, and the runs that they name.
async fn found(store: &SqliteStore) -> Vec<Named> {
    let report = store.verify(&|_, _| ()).await.unwrap();
    let missing = report.damage.iter().filter(|damage| damage.kind == DamageKind::Trigger).count();
    assert!(missing == 0 || missing == 9);
    let damage = report.damage.iter().filter(|damage| damage.kind != DamageKind::Trigger);
    let mut found: Vec<_> = damage.map(|damage| (damage.kind, damage.run)).collect();
    found.dedup();
    found
}

#[tokio::test]
async fn the_database_itself_refuses_to_change_delete_or_replace_what_was_written() {
    let place = Place::at(NOW);
    let store = filled(&place).await;
    for table in ALL {
        let column = if table == "segments" { "count" } else { "recorded_at" };
        for statement in [
            format!("UPDATE {table} SET {column} = {column} + 1"),
            format!("DELETE FROM {table}"),
            format!("INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1"),
            format!("REPLACE INTO {table} SELECT * FROM {table}"),
        ] {
            let error = sql(&place, &statement).await.unwrap_err().to_string();
            assert!(error.contains("append-only"), "{statement}: {error}");
        }
    }
    assert_eq!(found(&store).await, []);
}

#[tokio::test]
async fn the_door_of_the_compaction_lets_nothing_out_that_it_should_not() {
    let place = Place::at(NOW);
    let store = filled(&place).await;
    let event = |through: i64, rows: i64, beats: i64| {
        format!(
            "INSERT INTO events (position, recorded_at, type, schema, body) SELECT position + 1, latest_at + 1, \
             'beats_compacted', 1, json_object('type', 'beats_compacted', 'through', {through}, 'rows', {rows}, \
             'beats', {beats}) FROM head;"
        )
    };
    // There are 78 rows: 39 heartbeats of each run after its first.
    let merging = |columns: &str| {
        format!("INSERT INTO merging SELECT run, first_version, last_version, attempt, {columns} FROM segments;")
    };
    let refused = [
        "DELETE FROM beats WHERE position <= 10;".to_owned(),
        event(10, 9, 10),
        event(10, 10, 11),
        // The last row stays.
        event(78, 78, 78),
        format!("{} DELETE FROM beats WHERE position <= 11;", event(10, 10, 10)),
        merging("first_at, last_at, count + 1, data, digest"),
        merging("first_at + 1, last_at, count, data, digest"),
        format!("{} DELETE FROM merging;", merging("first_at, last_at, count, x'00', digest")),
        format!("{} UPDATE merging SET run = 9;", merging("first_at, last_at, count, data, digest")),
    ];
    for statements in refused {
        // As a whole, so that nothing is left of what came before the refusal.
        let error = sql(&place, &format!("BEGIN; {statements} COMMIT;")).await.unwrap_err().to_string();
        assert!(error.contains("append-only"), "{statements}: {error}");
    }
    assert_eq!(found(&store).await, []);
    let (bounds, before) = (Bounds::ALL, exported(&store).await);
    assert_eq!(store.compact(bounds).await.unwrap().rows, 77);
    let after: Vec<String> = exported(&store).await.into_iter().filter(|line| !line.contains("compacted")).collect();
    assert_eq!((found(&store).await, after), (vec![], before));
}

#[tokio::test]
async fn what_was_changed_is_neither_dropped_nor_merged_away() {
    for change in [
        "UPDATE beats SET recorded_at = recorded_at + 1 WHERE position = 3",
        "UPDATE segments SET first_at = first_at + 1 WHERE run = 1 AND first_version = 4",
        "DELETE FROM segments WHERE run = 1 AND first_version = 4",
    ] {
        let place = Place::at(NOW);
        let store = filled(&place).await;
        sql_without_triggers(&place, change).await;
        let damage = found(&store).await;
        let error = store.compact(Bounds::ALL).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{change}: {error}");
        assert_eq!(found(&store).await, damage, "{change}");
    }
}

#[tokio::test]
async fn each_kind_of_damage_is_found_and_named() {
    use DamageKind::{AfterEnd, Beats, Changed, Due, Head, Hole, Projection, Tail};
    let (ended, beating) = (Some(run_id(1)), Some(run_id(2)));
    let cases: [(&str, &[Named]); 17] = [
        // Rows of the log that were changed, even where no answer would be another one.
        ("UPDATE events SET body = json_set(body, '$.input.n', 2) WHERE run = 1 AND version = 1", &[(Changed, ended)]),
        (
            "UPDATE events SET recorded_at = recorded_at - 1 WHERE run = 1 AND version = 1",
            &[(Changed, ended), (Projection, ended)],
        ),
        ("UPDATE events SET schema = 0 WHERE run = 2 AND version = 1", &[(Changed, beating)]),
        (
            "UPDATE segments SET first_at = first_at + 1 WHERE run = 1 AND first_version = 4",
            &[(Changed, ended), (Beats, ended)],
        ),
        ("UPDATE beats SET recorded_at = recorded_at + 1 WHERE position = 3", &[(Changed, None), (Beats, ended)]),
        // Rows that were replaced by somebody who knows nothing of digests.
        (
            "UPDATE events SET body = json_set(body, '$.input.n', 2), digest = NULL WHERE run = 2 AND version = 1",
            &[(Changed, beating)],
        ),
        ("UPDATE segments SET digest = NULL WHERE run = 1 AND first_version = 4", &[(Changed, ended)]),
        ("UPDATE beats SET digest = NULL WHERE position = 3", &[(Changed, None)]),
        // Rows that are missing.
        ("DELETE FROM events WHERE run = 2 AND version = 3", &[(Hole, None), (Hole, beating)]),
        ("DELETE FROM events WHERE run = 1 AND type = 'completed'", &[(Hole, None), (Projection, ended)]),
        (
            "DELETE FROM beats WHERE position = (SELECT max(position) FROM beats)",
            &[(Hole, None), (Projection, beating), (Tail, beating)],
        ),
        // A fact after the end of its run, written as this program writes it but for the digest.
        (
            "INSERT INTO events (position, run, version, recorded_at, type, schema, body) SELECT position + 1, 1, 44, \
             recorded_at + 1, 'started', 1, '{\"type\":\"started\",\"attempt\":1}' FROM events ORDER BY position DESC LIMIT 1",
            &[(Head, None), (Changed, ended), (AfterEnd, ended)],
        ),
        // A projection that is not what the log says.
        ("UPDATE runs SET status = 'running', outcome = NULL WHERE number = 1", &[(Projection, ended), (Due, ended)]),
        ("UPDATE runs SET tail = substr(tail, 17) WHERE number = 2", &[(Tail, beating)]),
        ("DELETE FROM runs WHERE number = 1", &[(Projection, ended)]),
        // An index that would let the dead lie.
        ("DELETE FROM due", &[(Due, beating)]),
        ("UPDATE due SET check_at = check_at + 3600000000", &[(Due, beating)]),
    ];
    for (statement, expected) in cases {
        let place = Place::at(NOW);
        let store = filled(&place).await;
        sql_without_triggers(&place, statement).await;
        assert_eq!(found(&store).await, expected, "{statement}");
    }
}

#[tokio::test]
async fn a_missing_trigger_is_named() {
    let place = Place::at(NOW);
    let store = filled(&place).await;
    sql(&place, "DROP TRIGGER beats_no_delete").await.unwrap();
    let damage = store.verify(&|_, _| ()).await.unwrap().damage;
    assert_eq!(damage.len(), 1);
    assert!(damage[0].message.contains("beats_no_delete"));
}

#[tokio::test]
async fn a_rebuild_mends_the_projection_and_can_be_done_again() {
    let place = Place::at(NOW);
    let store = filled(&place).await;
    let wrong = "UPDATE runs SET status = 'pending', tail = x'', beats = 7; DELETE FROM runs WHERE number = 1; \
                 DELETE FROM due; DELETE FROM lanes; UPDATE head SET run = 0, position = 0";
    sql(&place, wrong).await.unwrap();
    assert!(!found(&store).await.is_empty());
    let report = store.rebuild(&|_, _| ()).await.unwrap();
    assert_eq!((report.runs, report.differed), (2, 2));
    assert_eq!(found(&store).await, []);
    assert_eq!(store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
    // Life goes on, in this store and in one that is opened anew.
    place.clock.advance(Span::from_seconds(30));
    one(&store, Command::Heartbeat { report: report_of(2), progress: None }).await;
    store.close().await;
    let store = place.open("a.db").await;
    one(&store, Command::Complete { report: report_of(2), output: None }).await;
    assert_eq!(found(&store).await, []);
}

fn report_of(number: u128) -> lastbeat_domain::decide::Report {
    report(run_id(number), 1, "c")
}

#[tokio::test]
async fn a_damaged_log_is_not_made_into_a_projection_that_looks_well() {
    let place = Place::at(NOW);
    let store = filled(&place).await;
    sql_without_triggers(&place, "UPDATE events SET body = replace(body, 'mac-7', 'mac-8')").await;
    let error = store.rebuild(&|_, _| ()).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    let executor = store.run(run_id(2)).await.unwrap().unwrap().executor().unwrap().clone();
    assert_eq!(executor, name("mac-7"), "the old projection stands");
}

#[tokio::test]
async fn a_rebuild_misses_nothing_that_is_written_meanwhile() {
    let place = Place::at(NOW);
    let store = filled(&place).await;
    for number in 3..600 {
        let claim = Some(claimant("mac-7", "c"));
        one(&store, Command::Create { run: run_id(number), spec: Box::new(RunSpec::of_lane(name("l"))), claim }).await;
    }
    let writer = async {
        for number in (3..600).rev() {
            one(&store, Command::Heartbeat { report: report_of(number), progress: None }).await;
            one(&store, Command::Heartbeat { report: report_of(2), progress: None }).await;
        }
    };
    let rebuilds = async {
        for _ in 0..3 {
            store.rebuild(&|_, _| ()).await.unwrap();
        }
    };
    tokio::join!(writer, rebuilds);
    assert_eq!(found(&store).await, []);
    assert_eq!(store.run(run_id(2)).await.unwrap().unwrap().beats, 40 + 597);
}

#[tokio::test]
async fn a_backup_is_whole_while_others_write_and_replaces_nothing() {
    let place = Place::at(NOW);
    let store = filled(&place).await;
    let writer = async {
        for _ in 0..200 {
            one(&store, Command::Heartbeat { report: report_of(2), progress: None }).await;
        }
    };
    let file = place.file("copy.db");
    let (copied, ()) = tokio::join!(store.backup(&file), writer);
    copied.unwrap();
    assert!(matches!(store.backup(&file).await, Err(StoreError::Exists { .. })));
    let copy = place.open("copy.db").await;
    assert_eq!(copy.verify(&|_, _| ()).await.unwrap().damage, []);
    assert_eq!(copy.run(run_id(1)).await.unwrap(), store.run(run_id(1)).await.unwrap());
    one(&copy, Command::Heartbeat { report: report_of(2), progress: None }).await;
}
