//! Making the projection anew from the truth: beside the old one, from one snapshot, while others go on writing; then
//! what they wrote meanwhile is caught up on, and what differs is replaced in one transaction.
//!
//! The table beside is a temporary one, so it goes with the session, however that ends. Runs that are as they should be
//! are left alone in the swap: it is as short as the damage is small, and the table keeps its indexes and its grants.

use std::collections::BTreeSet;
use std::sync::Arc;

use lastbeat_domain::{Span, judge};
use sqlx::Executor;
use sqlx::postgres::PgConnection;

use super::clock::PgClock;
use super::read::{head, refresh_service_log};
use super::source::Snapshot;
use super::write::{self, put_runs};
use super::writer::lock_log;
use crate::Progress;
use crate::batch::{Head, RunRow, Writes};
use crate::error::StoreError;
use crate::service::ServiceLog;
use crate::truth::{self, PAGE_RUNS, Source, sound};
use crate::verify::RebuildReport;

/// Keeps two rebuilds from working at once; the lock goes with the session.
const ONLY_ONE: &str = "SELECT pg_try_advisory_lock(hashtext('lastbeat rebuild'), hashtext(current_schema()))";
/// How many runs are armed by one transaction.
const ARM_RUNS: i64 = 1_000;

/// Makes the projection anew. The connection is given up afterwards.
pub(super) async fn rebuild(
    connection: &mut PgConnection,
    clock: &PgClock,
    progress: &Progress<'_>,
) -> Result<RebuildReport, StoreError> {
    if !sqlx::query_scalar::<_, bool>(ONLY_ONE).fetch_one(&mut *connection).await? {
        return Err(StoreError::Unavailable("another rebuild is under way".to_owned()));
    }
    let beside = "CREATE TEMPORARY TABLE runs_beside (LIKE runs INCLUDING DEFAULTS, PRIMARY KEY (number))";
    connection.execute(beside).await?;
    let mut report = RebuildReport::default();
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let begun = head(connection).await?;
    make_beside(connection, &mut report, progress).await?;
    let damaged = differing(connection, None).await?;
    connection.execute("COMMIT").await?;
    swap(connection, clock, &begun, damaged, &mut report).await?;
    arm(connection, clock).await?;
    Ok(report)
}

/// Catches up on what changed since the beginning, and replaces what differs.
///
/// The table is locked before the log: whoever writes a run locks its row first and then the log, so nobody holds the
/// log while it waits for the table.
async fn swap(
    connection: &mut PgConnection,
    clock: &PgClock,
    begun: &Head,
    mut suspects: BTreeSet<i64>,
    report: &mut RebuildReport,
) -> Result<(), StoreError> {
    connection.execute("BEGIN").await?;
    connection.execute("LOCK TABLE runs IN EXCLUSIVE MODE").await?;
    lock_log(connection, clock).await?;
    let changed = changed_since(connection, begun.position, begun.beat_position).await?;
    catch_up(connection, &changed, report).await?;
    suspects.extend(&changed);
    let suspects: Vec<i64> = suspects.into_iter().collect();
    let replaced: Vec<i64> = differing(connection, Some(&suspects)).await?.into_iter().collect();
    // Deleted and inserted, since an update could run into the unique keys of a row that is yet to be mended.
    sqlx::query("DELETE FROM runs WHERE number = ANY($1)").bind(&replaced).execute(&mut *connection).await?;
    sqlx::query("INSERT INTO runs SELECT * FROM runs_beside WHERE number = ANY($1)")
        .bind(&replaced)
        .execute(&mut *connection)
        .await?;
    connection.execute("COMMIT").await?;
    report.differed = replaced.len() as u64;
    Ok(())
}

/// The runs that are not the same in both tables, or stand in one alone; of some runs, or of all.
async fn differing(connection: &mut PgConnection, of: Option<&[i64]>) -> Result<BTreeSet<i64>, StoreError> {
    let numbers: Vec<i64> = sqlx::query_scalar(
        "SELECT coalesce(b.number, r.number) FROM runs_beside AS b FULL JOIN runs AS r ON r.number = b.number \
         WHERE ($1::bigint[] IS NULL OR coalesce(b.number, r.number) = ANY($1)) \
         AND (r.*)::text IS DISTINCT FROM (b.*)::text",
    )
    .bind(of)
    .fetch_all(connection)
    .await?;
    Ok(numbers.into_iter().collect())
}

/// Folds every run of the snapshot into the table beside.
async fn make_beside(
    connection: &mut PgConnection,
    report: &mut RebuildReport,
    progress: &Progress<'_>,
) -> Result<(), StoreError> {
    let spans = truth::spans(&mut Snapshot(connection)).await?;
    let all = spans.last().map_or(0, |(_, end)| end.unsigned_abs());
    for (first, end) in spans {
        let mut problems = Vec::new();
        let wanted = |run| (first..end).contains(&run);
        let (mut committed, _) = truth::committed(&mut Snapshot(connection), 0, wanted, &mut problems).await?;
        sound(&problems, None)?;
        let mut from = first;
        while from < end {
            let to = (from + PAGE_RUNS).min(end);
            let runs = truth::page(&mut Snapshot(connection), from, to, &mut committed).await?;
            let rows = runs.iter().map(truth::TrueRun::anew).collect::<Result<Vec<RunRow>, StoreError>>()?;
            report.runs += rows.len() as u64;
            report.events += runs.iter().map(|run| run.stream.len() as u64).sum::<u64>();
            if !rows.is_empty() {
                put_runs(connection, &rows, "runs_beside").await?;
            }
            progress(to.unsigned_abs(), all);
            from = to;
        }
    }
    Ok(())
}

/// The runs that were written to since the log ended there.
async fn changed_since(
    connection: &mut PgConnection,
    position: i64,
    beat_position: i64,
) -> Result<BTreeSet<i64>, StoreError> {
    let select = "SELECT DISTINCT run FROM events WHERE position > $1 AND run IS NOT NULL";
    let runs: Vec<i64> = sqlx::query_scalar(select).bind(position).fetch_all(&mut *connection).await?;
    let mut problems = Vec::new();
    let (beats, _) = truth::committed(&mut Snapshot(connection), beat_position, |_| true, &mut problems).await?;
    sound(&problems, None)?;
    Ok(runs.into_iter().chain(beats.into_keys()).collect())
}

/// Folds runs once more, as they are by now.
async fn catch_up(
    connection: &mut PgConnection,
    changed: &BTreeSet<i64>,
    report: &mut RebuildReport,
) -> Result<(), StoreError> {
    if changed.is_empty() {
        return Ok(());
    }
    let mut problems = Vec::new();
    let wanted = |run| changed.contains(&run);
    let (mut committed, _) = truth::committed(&mut Snapshot(connection), 0, wanted, &mut problems).await?;
    sound(&problems, None)?;
    for number in changed {
        for run in truth::page(&mut Snapshot(connection), *number, number + 1, &mut committed).await? {
            report.runs += 1;
            report.events += run.stream.len() as u64;
            put_runs(connection, &[run.anew()?], "runs_beside").await?;
        }
    }
    Ok(())
}

/// Arms every run anew, page by page, each under the log lock.
async fn arm(connection: &mut PgConnection, clock: &PgClock) -> Result<(), StoreError> {
    let last: i64 = sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM runs").fetch_one(&mut *connection).await?;
    let mut from = 1;
    while from <= last {
        let to = from + ARM_RUNS;
        connection.execute("BEGIN").await?;
        let end = lock_log(connection, clock).await?;
        let service = refresh_service_log(connection, &Arc::<ServiceLog>::default()).await?;
        let mut writes = Writes::default();
        for row in Snapshot(connection).rows_of(from, to).await? {
            let now = end.clocks.1.max(row.run.updated_at);
            let policy = service.policy(&row.run.lane, now);
            let check_at = judge(&row.run, &policy, &service.listening(now), now).check_at();
            writes.due.insert(row.number, check_at.map(|at| (at, Span::ZERO)));
            writes.lanes.insert(row.run.lane);
        }
        write::apply(connection, &writes, end.head.latest_at).await?;
        connection.execute("COMMIT").await?;
        from = to;
    }
    Ok(())
}
