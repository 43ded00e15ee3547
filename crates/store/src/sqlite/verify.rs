//! Comparing the projection with the fold of the truth, from one snapshot.

use std::collections::BTreeMap;

use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::{RunId, Timestamp, judge};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row};

use super::read::run_rows_between;
use super::rows::RunRow;
use super::transaction::Head;
use super::truth::{self, PAGE_RUNS, Problem, TrueRun};
use crate::Progress;
use crate::digest;
use crate::error::StoreError;
use crate::packing;
use crate::record::decode_service_event;
use crate::service::ServiceLog;
use crate::verify::{Damage, DamageKind, VerifyReport};

/// How many missing rows are named one by one.
const NAMED_MAX: i64 = 10;
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

/// Looks for every kind of damage. The connection holds a snapshot.
pub(super) async fn verify(
    connection: &mut SqliteConnection,
    service: &ServiceLog,
    now: Timestamp,
    progress: &Progress<'_>,
) -> Result<VerifyReport, StoreError> {
    let mut report = VerifyReport::default();
    check_triggers(connection, &mut report).await?;
    let head = Head::read(connection).await?;
    check_log(connection, &head, &mut report).await?;
    let now = now.max(head.latest_at);
    let rearming = rearming_lanes(connection).await?;
    let spans = truth::spans(connection).await?;
    let all = spans.last().map_or(0, |(_, end)| end.unsigned_abs());
    for (span, (first, end)) in spans.into_iter().enumerate() {
        let mut problems = Vec::new();
        let wanted = |run| (first..end).contains(&run);
        let (mut committed, _) = truth::committed(connection, 0, wanted, &mut problems).await?;
        if span == 0 {
            say_all(&mut report, None, problems);
        }
        let mut from = first;
        while from < end {
            let to = (from + PAGE_RUNS).min(end);
            let runs = truth::page(connection, from, to, &mut committed).await?;
            let mut rows: BTreeMap<i64, RunRow> =
                run_rows_between(connection, from, to).await?.into_iter().map(|row| (row.number, row)).collect();
            for run in &runs {
                let row = rows.remove(&run.number);
                check_run(run, row.as_ref(), &mut report);
                if let Some(row) = row.filter(|row| !rearming.iter().any(|lane| lane == row.run.lane.as_str())) {
                    check_due(connection, &row, service, now, &mut report).await?;
                }
            }
            for row in rows.values() {
                say(&mut report, DamageKind::Hole, Some(row.run.id), "it is in the projection and has no facts");
            }
            progress(to.unsigned_abs(), all);
            from = to;
        }
    }
    Ok(report)
}

fn say(report: &mut VerifyReport, kind: DamageKind, run: Option<RunId>, message: impl Into<String>) {
    report.damage.push(Damage { kind, run, message: message.into() });
}

fn say_all(report: &mut VerifyReport, run: Option<RunId>, problems: Vec<Problem>) {
    problems.into_iter().for_each(|(kind, message)| say(report, kind, run, message));
}

/// Returns the triggers that should keep the log append-only and are not there.
pub(super) async fn missing_triggers(connection: &mut SqliteConnection) -> Result<Vec<&'static str>, StoreError> {
    let found: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetch_all(connection).await?;
    Ok(TRIGGERS.into_iter().filter(|trigger| !found.iter().any(|name| name == trigger)).collect())
}

async fn check_triggers(connection: &mut SqliteConnection, report: &mut VerifyReport) -> Result<(), StoreError> {
    for trigger in missing_triggers(connection).await? {
        say(report, DamageKind::Trigger, None, format!("the trigger {trigger} is missing: the log can be changed"));
    }
    Ok(())
}

/// Checks that no row of the log is missing, that none lies after its end, and the rows of the service.
async fn check_log(
    connection: &mut SqliteConnection,
    head: &Head,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let service = sqlx::query(
        "SELECT position, recorded_at, type, schema, body, digest FROM events WHERE run IS NULL ORDER BY position",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut compacted = 0;
    for row in &service {
        let (position, at, schema): (i64, i64, i64) =
            (row.try_get("position")?, row.try_get("recorded_at")?, row.try_get("schema")?);
        let (type_name, body): (String, String) = (row.try_get("type")?, row.try_get("body")?);
        let digest = digest::of_event(position, None, None, at, &type_name, schema, None, &body);
        if truth::differs(row, digest)? {
            let message = format!("the service event at position {position} was changed after it was written");
            say(report, DamageKind::Changed, None, message);
        }
        let event = decode_service_event(Timestamp::from_micros(at), schema, &body).map(|recorded| recorded.event);
        if let Some(ServiceEvent::BeatsCompacted { through, .. }) = event {
            compacted = compacted.max(i64::try_from(through).unwrap_or(i64::MAX));
        }
    }
    check_table(connection, "events", 0, head.position, head.latest_at, report).await?;
    check_table(connection, "beats", compacted, head.beat_position, head.latest_at, report).await?;
    let last_run: Option<i64> = sqlx::query_scalar("SELECT max(run) FROM events").fetch_one(connection).await?;
    if last_run.is_some_and(|run| run > head.run) {
        say(report, DamageKind::Head, None, "runs lie after the last number that was given out");
    }
    Ok(())
}

/// Checks that positions go from `after` to `end` without a hole.
async fn check_table(
    connection: &mut SqliteConnection,
    table: &str,
    after: i64,
    end: i64,
    latest_at: Timestamp,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let select = format!("SELECT count(*) AS rows, max(position) AS last, max(recorded_at) AS latest FROM {table}");
    let row = sqlx::query(AssertSqlSafe(select)).fetch_one(&mut *connection).await?;
    let (rows, last): (i64, Option<i64>) = (row.try_get("rows")?, row.try_get("last")?);
    let latest: Option<i64> = row.try_get("latest")?;
    if last.is_some_and(|last| last > end) || latest.is_some_and(|latest| latest > latest_at.as_micros()) {
        say(report, DamageKind::Head, None, format!("rows of {table} lie after the end of the log"));
    }
    if rows >= end - after {
        return Ok(());
    }
    let select = format!(
        "SELECT here.position + 1 AS first, \
         coalesce((SELECT min(position) FROM {table} WHERE position > here.position), ?2 + 1) - 1 AS last \
         FROM (SELECT position FROM {table} UNION SELECT ?1) AS here \
         WHERE here.position >= ?1 AND here.position < ?2 \
         AND NOT EXISTS (SELECT 1 FROM {table} WHERE position = here.position + 1) ORDER BY 1 LIMIT ?3"
    );
    let query = sqlx::query(AssertSqlSafe(select)).bind(after).bind(end).bind(NAMED_MAX);
    for hole in query.fetch_all(connection).await? {
        let (first, last): (i64, i64) = (hole.try_get("first")?, hole.try_get("last")?);
        let which = if first == last { format!("row {first}") } else { format!("rows {first} to {last}") };
        say(report, DamageKind::Hole, None, format!("{which} of {table} are missing from the log"));
    }
    Ok(())
}

async fn rearming_lanes(connection: &mut SqliteConnection) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT lane FROM lanes WHERE rearm_after IS NOT NULL").fetch_all(connection).await?)
}

fn check_run(run: &TrueRun, row: Option<&RunRow>, report: &mut VerifyReport) {
    report.runs += 1;
    report.events += run.stream.len() as u64;
    say_all(report, run.id, run.problems.clone());
    let folded = match run.fold() {
        Ok(folded) => folded,
        Err((kind, message)) => return say(report, kind, run.id, message),
    };
    report.quarantined += u64::from(folded.quarantined.is_some());
    let Some(row) = row else {
        return say(report, DamageKind::Projection, run.id, "it has facts and is missing from the projection");
    };
    if folded != row.run {
        let versions = if row.run.version == folded.version {
            format!("both at version {}", folded.version)
        } else {
            format!("at version {}, its stream at {}", row.run.version, folded.version)
        };
        say(
            report,
            DamageKind::Projection,
            run.id,
            format!("its projection is not the fold of its stream ({versions})"),
        );
    }
    match packing::unpack_tail(&row.tail) {
        Ok(tail) if tail == run.tail => {}
        Ok(tail) => {
            let (has, should) = (tail.len(), run.tail.len());
            let message =
                format!("its tail ({has} heartbeats) is not what was committed since its last segment ({should})");
            say(report, DamageKind::Tail, run.id, message);
        }
        Err(error) => say(report, DamageKind::Tail, run.id, format!("its tail: {error}")),
    }
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
