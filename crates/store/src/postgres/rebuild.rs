//! Making the projection anew from the truth: beside the old one, from one snapshot, while others go on writing; then
//! what they wrote meanwhile is caught up on, and what differs is replaced in one transaction.
//!
//! The tables beside are temporary ones, so they go with the session, however that ends. They hold the runs that are not
//! as they should be, and no others: so the swap is as short as the damage is small, and the tables that everybody reads
//! keep their indexes and their grants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lastbeat_domain::{Span, judge};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};

use super::clock::PgClock;
use super::read::{head, refresh_service_log};
use super::rows::{RUN_COLUMNS, read_run};
use super::source::Snapshot;
use super::write::{self, Tables, put_runs};
use super::writer::lock_log;
use crate::Progress;
use crate::batch::{Head, RunRow, Writes};
use crate::error::StoreError;
use crate::service::ServiceLog;
use crate::truth::{self, Committed, PAGE_RUNS, Source, sound};
use crate::verify::RebuildReport;

/// Keeps two rebuilds from working at once; the lock goes with the session.
const ONLY_ONE: &str = "SELECT pg_try_advisory_lock(hashtext('lastbeat rebuild'), hashtext(current_schema()))";
/// Keeps compactions away: what was written meanwhile is learned from the rows of `beats`.
const NO_COMPACTION: &str = "SELECT pg_advisory_lock(hashtext('lastbeat compaction'), hashtext(current_schema()))";
/// The tables beside. They are filled by number, and a run that is folded twice is written over.
const MAKE_BESIDE: &str = "\
    CREATE TEMPORARY TABLE runs_beside (LIKE runs INCLUDING DEFAULTS, PRIMARY KEY (number)); \
    CREATE TEMPORARY TABLE beating_beside (LIKE beating INCLUDING DEFAULTS, PRIMARY KEY (id))";
const BESIDE: Tables = Tables { runs: "runs_beside", beating: "beating_beside" };
/// How often the swap is tried.
const SWAPS_MAX: u32 = 5;
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
    // It ends with the step that is under way, and begins no other until this is done.
    sqlx::query(NO_COMPACTION).execute(&mut *connection).await?;
    connection.execute(MAKE_BESIDE).await?;
    let mut report = RebuildReport::default();
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let begun = head(connection).await?;
    let damaged = make_beside(connection, &mut report, progress).await?;
    connection.execute("COMMIT").await?;
    let mut swaps = 0;
    while let Err(error) = swap(connection, clock, &begun, &damaged, &mut report).await {
        swaps += 1;
        // Somebody who took heartbeats, and only then locked other runs, met the locks of the tables: a deadlock, of which
        // this may have been the victim.
        if !error.is_transient() || swaps == SWAPS_MAX {
            return Err(error);
        }
        connection.execute("ROLLBACK").await?;
    }
    arm(connection, clock).await?;
    Ok(report)
}

/// Catches up on what changed since the beginning, and replaces what differs.
///
/// The tables are locked before the log: whoever writes a run locks its row first and then the log, so nobody holds the
/// log while it waits for a table.
async fn swap(
    connection: &mut PgConnection,
    clock: &PgClock,
    begun: &Head,
    damaged: &BTreeSet<i64>,
    report: &mut RebuildReport,
) -> Result<(), StoreError> {
    connection.execute("BEGIN").await?;
    connection.execute("LOCK TABLE runs, beating IN EXCLUSIVE MODE").await?;
    lock_log(connection, clock).await?;
    let changed = changed_since(connection, begun.position, begun.beat_position).await?;
    let mut replaced: BTreeSet<i64> = damaged.difference(&changed).copied().collect();
    replaced.extend(catch_up(connection, &changed, report).await?);
    let numbers: Vec<i64> = replaced.into_iter().collect();
    // Deleted and inserted, since an update could run into the unique keys of a row that is yet to be mended.
    for statement in [
        "DELETE FROM beating AS b WHERE b.number = ANY($1) \
         OR b.id IN (SELECT id FROM runs_beside WHERE number = ANY($1))",
        "DELETE FROM runs WHERE number = ANY($1)",
        "INSERT INTO runs SELECT * FROM runs_beside WHERE number = ANY($1)",
        "INSERT INTO beating SELECT * FROM beating_beside WHERE number = ANY($1)",
    ] {
        sqlx::query(statement).bind(&numbers).execute(&mut *connection).await?;
    }
    connection.execute("COMMIT").await?;
    report.differed = numbers.len() as u64;
    Ok(())
}

/// Folds every run of the snapshot, and puts those whose projection differs into the tables beside. Returns their
/// numbers, and those of projections without a run.
async fn make_beside(
    connection: &mut PgConnection,
    report: &mut RebuildReport,
    progress: &Progress<'_>,
) -> Result<BTreeSet<i64>, StoreError> {
    let mut damaged = BTreeSet::new();
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
            damaged.extend(put_differing(connection, from, to, &mut committed, report).await?);
            progress(to.unsigned_abs(), all);
            from = to;
        }
    }
    Ok(damaged)
}

/// Folds runs, and puts those whose projection differs into the tables beside. Returns the numbers of all that differ.
async fn put_differing(
    connection: &mut PgConnection,
    from: i64,
    to: i64,
    committed: &mut Committed,
    report: &mut RebuildReport,
) -> Result<BTreeSet<i64>, StoreError> {
    let runs = truth::page(&mut Snapshot(connection), from, to, committed).await?;
    report.runs += runs.len() as u64;
    report.events += runs.iter().map(|run| run.stream.len() as u64).sum::<u64>();
    let rows = runs.iter().map(truth::TrueRun::anew).collect::<Result<Vec<RunRow>, StoreError>>()?;
    let mut found = projected(connection, from, to).await?;
    let is_wrong = |row: &RunRow| !matches!(found.remove(&row.number), Some(Some(stored)) if stored == *row);
    let wrong: Vec<RunRow> = rows.into_iter().filter(is_wrong).collect();
    let mut differ: BTreeSet<i64> = wrong.iter().map(|row| row.number).collect();
    // What is left is no run's.
    differ.extend(found.into_keys());
    if !wrong.is_empty() {
        put_runs(connection, &wrong, BESIDE).await?;
    }
    Ok(differ)
}

/// The projections of runs as they are stored; `None` for one that cannot be read.
async fn projected(
    connection: &mut PgConnection,
    from: i64,
    to: i64,
) -> Result<BTreeMap<i64, Option<RunRow>>, StoreError> {
    let select = format!("SELECT {RUN_COLUMNS} FROM whole_runs WHERE number >= $1 AND number < $2");
    let rows = sqlx::query(AssertSqlSafe(select)).bind(from).bind(to).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("number")?, read_run(row).ok()))).collect()
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

/// Folds runs once more, as they are by now. Returns those that differ.
async fn catch_up(
    connection: &mut PgConnection,
    changed: &BTreeSet<i64>,
    report: &mut RebuildReport,
) -> Result<BTreeSet<i64>, StoreError> {
    let mut differ = BTreeSet::new();
    if changed.is_empty() {
        return Ok(differ);
    }
    let mut problems = Vec::new();
    let wanted = |run| changed.contains(&run);
    let (mut committed, _) = truth::committed(&mut Snapshot(connection), 0, wanted, &mut problems).await?;
    sound(&problems, None)?;
    for number in changed {
        differ.extend(put_differing(connection, *number, number + 1, &mut committed, report).await?);
    }
    Ok(differ)
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
