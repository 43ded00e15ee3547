//! A step of the compaction of a database: short transactions. The rows that go go by the functions of
//! `migrations/postgres/0002_compaction.sql`, which make sure themselves that nothing is lost.
//!
//! A tail is written out under the lock of its row of `beating`, as a heartbeat is taken; rows that others hold are left for
//! last. Nothing else is locked but the log, for the length of one event.

use std::time::Duration;

use lastbeat_domain::{Status, Timestamp};
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};
use uuid::Uuid;

use super::clock::PgClock;
use super::rows::{read_beats, read_segment, read_word};
use super::tail::{NOTHING, TAIL_BYTES_MAX, last_fact, unwritten_tail};
use super::write::insert_segments;
use crate::compact::{
    Bounds, CompactionReport, MERGED_BEATS_MAX, Merge, RUNS_AT_ONCE, STEP_BEATS_MAX, STEP_ROWS_MAX, Step, has_ended,
    merges,
};
use crate::error::StoreError;
use crate::log::{SegmentRow, signed, unsigned};

/// Keeps other compactions and rebuilds away; the lock goes with the session. The doors take it too, whoever knocks.
const ONLY_ONE: &str = "SELECT pg_try_advisory_lock(hashtext('lastbeat compaction'), hashtext(current_schema()))";
/// How long others may write between two transactions, whatever they wait for.
const PAUSE: Duration = Duration::from_millis(2);

/// Compacts the oldest rows of heartbeats. The connection is given up afterwards.
pub(super) async fn compact(
    connection: &mut PgConnection,
    clock: &PgClock,
    bounds: Bounds,
) -> Result<CompactionReport, StoreError> {
    if !sqlx::query_scalar::<_, bool>(ONLY_ONE).fetch_one(&mut *connection).await? {
        return Err(StoreError::Unavailable("another compaction, or a rebuild, is under way".to_owned()));
    }
    step(connection, clock, bounds).await
}

async fn step(connection: &mut PgConnection, clock: &PgClock, bounds: Bounds) -> Result<CompactionReport, StoreError> {
    let mut report = CompactionReport::default();
    let left = "SELECT coalesce((SELECT max(position) FROM beats) - lastbeat_compacted_through(), 0)";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut *connection).await?;
    report.left = u64::try_from(left).unwrap_or(0);
    let Some(step) = plan(connection, bounds).await? else {
        return Ok(report);
    };
    let runs = step.runs();
    let mut busy = Vec::new();
    for runs in runs.chunks(RUNS_AT_ONCE) {
        let ids = ids_with_tail(connection, runs).await?;
        busy.extend(flush(connection, &step, ids, true, &mut report).await?);
    }
    for ids in busy.chunks(RUNS_AT_ONCE) {
        flush(connection, &step, ids.to_vec(), false, &mut report).await?;
    }
    let drop = sqlx::query("SELECT * FROM lastbeat_compact($1, $2)").bind(step.through).bind(clock.simulated());
    drop.execute(&mut *connection).await.map_err(at_the_door)?;
    report.dropped(&step);
    for runs in runs.chunks(RUNS_AT_ONCE) {
        merge(connection, runs, &mut report).await?;
    }
    Ok(report)
}

/// What it means when a door stays shut.
fn at_the_door(error: sqlx::Error) -> StoreError {
    if let sqlx::Error::Database(database) = &error {
        match database.code().as_deref() {
            // It says itself what is wrong.
            Some("23001") => return StoreError::Corrupt(database.message().to_owned()),
            Some("42501") => return StoreError::NoRight(database.message().to_owned()),
            _ => {}
        }
    }
    error.into()
}

/// Reads the first rows after the watermark, but for the last of all.
async fn plan(connection: &mut PgConnection, bounds: Bounds) -> Result<Option<Step>, StoreError> {
    if !are_enough(connection, bounds).await? {
        return Ok(None);
    }
    let select = "SELECT * FROM (SELECT *, sum(count) OVER (ORDER BY position) AS total FROM (SELECT * FROM beats \
                  WHERE position > lastbeat_compacted_through() AND position < (SELECT max(position) FROM beats) \
                  ORDER BY position LIMIT $1) AS first) AS summed WHERE total <= $2 OR total = count ORDER BY position";
    let rows = sqlx::query(select).bind(STEP_ROWS_MAX).bind(STEP_BEATS_MAX).fetch_all(connection).await?;
    let rows = rows.iter().map(read_beats).collect::<Result<Vec<_>, StoreError>>()?;
    Step::plan(rows, bounds.until)
}

/// Says whether the first rows that it takes to begin with are old enough, whatever number of them a step holds.
async fn are_enough(connection: &mut PgConnection, bounds: Bounds) -> Result<bool, StoreError> {
    let select = "SELECT count(*) FROM (SELECT recorded_at FROM beats WHERE position > lastbeat_compacted_through() \
                  AND position < (SELECT max(position) FROM beats) ORDER BY position LIMIT $1) AS first \
                  WHERE recorded_at <= $2";
    let query = sqlx::query_scalar(select).bind(signed(bounds.rows_min)).bind(bounds.until.as_micros());
    Ok(unsigned(query.fetch_one(connection).await?)? >= bounds.rows_min)
}

/// The ids of those runs that have something in their tails that is in no segment.
async fn ids_with_tail(connection: &mut PgConnection, runs: &[i64]) -> Result<Vec<Uuid>, StoreError> {
    let select = "SELECT b.id FROM runs AS r JOIN beating AS b ON b.id = r.id \
                  WHERE r.number = ANY($1) AND octet_length(b.tail) NOT IN (0, $2)";
    let full = i32::try_from(TAIL_BYTES_MAX).unwrap_or(i32::MAX);
    Ok(sqlx::query_scalar(select).bind(runs).bind(full).fetch_all(connection).await?)
}

/// Writes out the tails of some runs that hold heartbeats of the step. Returns the runs that others were at work on, if
/// they are to be left out.
async fn flush(
    connection: &mut PgConnection,
    step: &Step,
    ids: Vec<Uuid>,
    leave_out: bool,
    report: &mut CompactionReport,
) -> Result<Vec<Uuid>, StoreError> {
    if ids.is_empty() {
        return Ok(ids);
    }
    connection.execute("BEGIN").await?;
    let lock = if leave_out {
        "SELECT id FROM beating WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED"
    } else {
        "SELECT id FROM beating WHERE id = ANY($1) ORDER BY id FOR UPDATE"
    };
    let held: Vec<Uuid> = sqlx::query_scalar(lock).bind(&ids).fetch_all(&mut *connection).await?;
    // The attempt is that of `runs`: a quarantined run has none in the other table.
    let select = "SELECT w.id, w.number, w.attempt, w.version, w.updated_at, w.tail, w.sound FROM whole_runs AS w \
                  WHERE w.id = ANY($1)";
    let (mut segments, mut emptied) = (Vec::new(), Vec::new());
    for row in sqlx::query(select).bind(&held).fetch_all(&mut *connection).await? {
        let (id, number): (Uuid, i64) = (row.try_get("id")?, row.try_get("number")?);
        let damaged = || StoreError::Corrupt(format!("the tail of run {id} cannot be relied on"));
        if !row.try_get::<bool, _>("sound")? {
            return Err(damaged());
        }
        let updated_at = Timestamp::from_micros(row.try_get("updated_at")?);
        let last = last_fact(unsigned(row.try_get("version")?)?, updated_at);
        let tail = unwritten_tail(row.try_get("tail")?, last).map_err(|_| damaged())?;
        if step.is_in_tail(number, &tail) {
            let attempt = u32::try_from(row.try_get::<i32, _>("attempt")?).map_err(|_| damaged())?;
            segments.push(SegmentRow::pack(number, attempt, &tail));
            emptied.push(id);
        }
    }
    if !segments.is_empty() {
        insert_segments(connection, &segments).await?;
        let empty = "UPDATE beating SET tail = $2 WHERE id = ANY($1)";
        sqlx::query(empty).bind(emptied).bind(NOTHING.as_slice()).execute(&mut *connection).await?;
    }
    connection.execute("COMMIT").await?;
    segments.iter().for_each(|segment| report.flushed(segment));
    tokio::time::sleep(PAUSE).await;
    Ok(ids.into_iter().filter(|id| !held.contains(id)).collect())
}

/// Merges the segments of some runs.
async fn merge(connection: &mut PgConnection, runs: &[i64], report: &mut CompactionReport) -> Result<(), StoreError> {
    // One statement, so one snapshot; a run whose attempt ends meanwhile is merged another time.
    let select = "SELECT s.run, s.first_version, s.last_version, s.attempt, s.first_at, s.last_at, s.count, s.digest, \
                  CASE WHEN s.count < $2 THEN s.data ELSE '' END AS data, r.status, r.attempt AS last_attempt \
                  FROM segments AS s JOIN runs AS r ON r.number = s.run WHERE s.run = ANY($1) \
                  ORDER BY s.run, s.first_version";
    let query = sqlx::query(select).bind(runs).bind(signed(MERGED_BEATS_MAX));
    let rows = query.fetch_all(&mut *connection).await?;
    let mut planned = Vec::new();
    let mut rest = rows.as_slice();
    while let Some(first) = rest.first() {
        let run: i64 = first.try_get("run")?;
        let (status, attempt): (Status, i32) = (read_word(first, "status")?, first.try_get("last_attempt")?);
        let of_run = rest.iter().take_while(|row| row.try_get("run").is_ok_and(|other: i64| other == run)).count();
        let segments = rest[..of_run].iter().map(read_segment).collect::<Result<Vec<_>, StoreError>>()?;
        planned.extend(merges(segments, |of| has_ended(status, i64::from(attempt), of))?);
        rest = &rest[of_run..];
    }
    if planned.is_empty() {
        return Ok(());
    }
    replace(connection, &planned).await?;
    planned.iter().for_each(|merge| report.merged(merge));
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

async fn replace(connection: &mut PgConnection, planned: &[Merge]) -> Result<(), StoreError> {
    let column = |index: usize| planned.iter().map(|merge| merge.whole.numbers()[index]).collect::<Vec<i64>>();
    let mut query = sqlx::query("SELECT lastbeat_merge_segments($1, $2, $3, $4, $5, $6, $7, $8)");
    for index in 0..7 {
        query = query.bind(column(index));
    }
    let data: Vec<&[u8]> = planned.iter().map(|merge| merge.whole.data.as_slice()).collect();
    query.bind(data).execute(connection).await.map_err(at_the_door)?;
    Ok(())
}
