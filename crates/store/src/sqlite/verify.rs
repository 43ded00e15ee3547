//! Comparing the projection with the fold of the truth, from one snapshot.

use std::collections::HashMap;

use lastbeat_domain::{RunId, Timestamp, judge};
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::read::{run_rows, whole_stream};
use super::rows::{RunRow, unsigned};
use super::transaction::Head;
use crate::error::StoreError;
use crate::packing;
use crate::record::{Stored, fold};
use crate::service::ServiceLog;
use crate::verify::{Damage, DamageKind, VerifyReport};

/// How many runs are loaded at a time.
const PAGE_RUNS: i64 = 500;
/// The triggers that keep the log append-only.
const TRIGGERS: [&str; 9] = [
    "events_no_update",
    "events_no_delete",
    "events_no_replace",
    "beats_no_update",
    "beats_no_delete",
    "beats_no_replace",
    "segments_no_update",
    "segments_no_delete",
    "segments_no_replace",
];

/// The plain heartbeats of the commits: for each run number the versions with their instants.
type CommittedBeats = HashMap<i64, Vec<(u64, i64)>>;

/// Looks for every kind of damage. The connection holds a snapshot.
pub(super) async fn verify(
    connection: &mut SqliteConnection,
    service: &ServiceLog,
    now: Timestamp,
) -> Result<VerifyReport, StoreError> {
    let mut report = VerifyReport::default();
    check_triggers(connection, &mut report).await?;
    let head = Head::read(connection).await?;
    let mut beats = committed_beats(connection, &head, &mut report).await?;
    check_head(connection, &head, &mut report).await?;
    let now = now.max(head.latest_at);
    let mut after = 0;
    loop {
        let rows = run_rows(connection, after, PAGE_RUNS).await?;
        let Some(last) = rows.last() else { break };
        after = last.number;
        for row in rows {
            report.runs += 1;
            let committed = beats.remove(&row.number).unwrap_or_default();
            check_run(connection, &row, &committed, &mut report).await?;
            check_due(connection, &row, service, now, &mut report).await?;
        }
    }
    check_orphans(connection, &beats, &mut report).await?;
    Ok(report)
}

fn say(report: &mut VerifyReport, kind: DamageKind, run: Option<RunId>, message: impl Into<String>) {
    report.damage.push(Damage { kind, run, message: message.into() });
}

async fn check_triggers(connection: &mut SqliteConnection, report: &mut VerifyReport) -> Result<(), StoreError> {
    let found: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetch_all(connection).await?;
    for trigger in TRIGGERS {
        if !found.iter().any(|name| name == trigger) {
            say(report, DamageKind::Trigger, None, format!("the trigger {trigger} is missing: the log can be changed"));
        }
    }
    Ok(())
}

async fn committed_beats(
    connection: &mut SqliteConnection,
    head: &Head,
    report: &mut VerifyReport,
) -> Result<CommittedBeats, StoreError> {
    let mut beats = CommittedBeats::new();
    let rows = sqlx::query("SELECT position, recorded_at, count, data FROM beats ORDER BY position")
        .fetch_all(connection)
        .await?;
    for row in rows {
        let (position, at): (i64, i64) = (row.try_get("position")?, row.try_get("recorded_at")?);
        let count = usize::try_from(row.try_get::<i64, _>("count")?).unwrap_or(usize::MAX);
        let data: Vec<u8> = row.try_get("data")?;
        match packing::unpack_beats(count, &data) {
            Ok(packed) => {
                for (run, version) in packed {
                    beats.entry(run).or_default().push((version, at));
                }
            }
            Err(error) => say(report, DamageKind::Beats, None, format!("beats row {position}: {error}")),
        }
        if position > head.beat_position || at > head.latest_at.as_micros() {
            say(report, DamageKind::Head, None, format!("beats row {position} lies after the end of the log"));
        }
    }
    Ok(beats)
}

async fn check_head(
    connection: &mut SqliteConnection,
    head: &Head,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT max(position) AS position, max(recorded_at) AS latest, max(run) AS run FROM events")
        .fetch_one(connection)
        .await?;
    let exceeds = |column: &str, end: i64| -> Result<bool, StoreError> {
        Ok(row.try_get::<Option<i64>, _>(column)?.is_some_and(|found| found > end))
    };
    if exceeds("position", head.position)?
        || exceeds("latest", head.latest_at.as_micros())?
        || exceeds("run", head.run)?
    {
        say(report, DamageKind::Head, None, "events lie after the end of the log");
    }
    Ok(())
}

async fn check_run(
    connection: &mut SqliteConnection,
    row: &RunRow,
    committed: &[(u64, i64)],
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let id = Some(row.run.id);
    let stream = match whole_stream(connection, row).await {
        Ok(stream) => stream,
        Err(StoreError::Corrupt(why)) => {
            say(report, DamageKind::Stream, id, why);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    report.events += stream.len() as u64;
    match fold(&stream) {
        Err(error) => say(report, DamageKind::Stream, id, error.to_string()),
        Ok(None) => say(report, DamageKind::Stream, id, "the run has no facts"),
        Ok(Some(folded)) if folded != row.run => {
            let message = format!("the projection (version {}) is not the fold of the stream", row.run.version);
            say(report, DamageKind::Projection, id, message);
        }
        Ok(Some(_)) => {}
    }
    let at: HashMap<u64, Timestamp> = stream.iter().map(|fact: &Stored| (fact.version(), fact.recorded_at())).collect();
    for (version, micros) in committed {
        if at.get(version).map(|at| at.as_micros()) != Some(*micros) {
            say(
                report,
                DamageKind::Beats,
                id,
                format!("version {version} was committed as a heartbeat and is not in the stream"),
            );
        }
    }
    let tail = packing::unpack_tail(&row.tail).unwrap_or_default();
    for beat in tail {
        if !committed.contains(&(beat.version, beat.at)) {
            say(
                report,
                DamageKind::Beats,
                id,
                format!("version {} is in the tail and was never committed", beat.version),
            );
        }
    }
    Ok(())
}

async fn check_due(
    connection: &mut SqliteConnection,
    row: &RunRow,
    service: &ServiceLog,
    now: Timestamp,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let policy = service.policy(&row.run.lane, now);
    let verdict = judge(&row.run, &policy, &service.listening(now), now);
    let Some(check_at) = verdict.check_at() else {
        return Ok(());
    };
    let found = sqlx::query("SELECT check_at, delay FROM due WHERE run = ?")
        .bind(row.number)
        .fetch_optional(&mut *connection)
        .await?;
    let rearming: Option<i64> = sqlx::query_scalar("SELECT rearm_after FROM lanes WHERE lane = ?")
        .bind(row.run.lane.as_str())
        .fetch_one(connection)
        .await?;
    if rearming.is_some() {
        return Ok(());
    }
    match found {
        None => say(report, DamageKind::Due, Some(row.run.id), "it is open, and no sweeper will look at it"),
        Some(due) => {
            let late = Timestamp::from_micros(due.try_get("check_at")?) > check_at;
            if late && due.try_get::<i64, _>("delay")? == 0 {
                say(report, DamageKind::Due, Some(row.run.id), format!("no sweeper will look at it by {check_at}"));
            }
        }
    }
    Ok(())
}

async fn check_orphans(
    connection: &mut SqliteConnection,
    beats: &CommittedBeats,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    for number in beats.keys() {
        say(
            report,
            DamageKind::Beats,
            None,
            format!("heartbeats were committed of run number {number}, which is not there"),
        );
    }
    let orphans: Vec<i64> = sqlx::query_scalar(
        "SELECT DISTINCT run FROM events WHERE run IS NOT NULL AND run NOT IN (SELECT number FROM runs) \
         UNION SELECT DISTINCT run FROM segments WHERE run NOT IN (SELECT number FROM runs)",
    )
    .fetch_all(connection)
    .await?;
    for number in orphans {
        let number = unsigned(number)?;
        say(
            report,
            DamageKind::Projection,
            None,
            format!("run number {number} has facts and is missing from the projection"),
        );
    }
    Ok(())
}
