//! A step of the compaction of a file: short transactions, with a pause after each in which others may write.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use lastbeat_domain::Status;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::open;
use super::read::head;
use super::rows::{RUN_COLUMNS, read_beats, read_run, read_segment, read_word};
use super::write::{insert_event, insert_segment, put_head};
use crate::clock::Clock;
use crate::compact::{
    Bounds, CompactionReport, MERGED_BEATS_MAX, Merge, RUNS_AT_ONCE, STEP_BEATS_MAX, STEP_ROWS_MAX, Step, has_ended,
    merges,
};
use crate::error::StoreError;
use crate::log::{EventRow, SegmentRow, signed, unsigned};

/// How long others may write after each transaction. Whoever waits for the file looks again after a moment, so a pause
/// must be longer than that moment.
const PAUSE: Duration = Duration::from_millis(5);

/// Compacts the oldest rows of heartbeats.
pub(super) async fn compact(path: &Path, clock: &dyn Clock, bounds: Bounds) -> Result<CompactionReport, StoreError> {
    let _lock = try_lock(path)?;
    let mut connection = open::options(path, false).connect().await?;
    let result = step(&mut connection, clock, bounds).await;
    connection.close().await?;
    result
}

async fn step(
    connection: &mut SqliteConnection,
    clock: &dyn Clock,
    bounds: Bounds,
) -> Result<CompactionReport, StoreError> {
    let mut report = CompactionReport::default();
    let Some(step) = plan(connection, bounds, &mut report).await? else { return Ok(report) };
    let runs = step.runs();
    for runs in runs.chunks(RUNS_AT_ONCE) {
        flush(connection, &step, runs, &mut report).await?;
    }
    for run in &runs {
        let (first, last) = step.versions_of(*run);
        step.check_kept(*run, &segments(connection, *run, first, last).await?)?;
    }
    drop_rows(connection, clock, &step).await?;
    report.dropped(&step);
    for runs in runs.chunks(RUNS_AT_ONCE) {
        merge(connection, runs, &mut report).await?;
    }
    Ok(report)
}

/// Locks out other compactions and rebuilds. The lock goes with the process.
fn try_lock(path: &Path) -> Result<File, StoreError> {
    let (file, name) = lock_file(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::Unavailable("another compaction, or a rebuild, is under way".to_owned()))
        }
        Err(TryLockError::Error(error)) => Err(cannot_lock(&name, &error)),
    }
}

/// Locks out compactions, once the step that is under way is done.
pub(super) async fn keep_out(path: &Path) -> Result<File, StoreError> {
    let (file, name) = lock_file(path)?;
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|error| cannot_lock(&name, &error))
}

fn lock_file(path: &Path) -> Result<(File, String), StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push("-compact");
    let shown = Path::new(&name).display().to_string();
    let file = File::create(&name).map_err(|error| cannot_lock(&shown, &error))?;
    Ok((file, shown))
}

fn cannot_lock(name: &str, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot lock {name}: {error}"))
}

/// Reads the first rows after the watermark, but for the last of all.
async fn plan(
    connection: &mut SqliteConnection,
    bounds: Bounds,
    report: &mut CompactionReport,
) -> Result<Option<Step>, StoreError> {
    let mut snapshot = connection.begin().await?;
    let left = "SELECT coalesce((SELECT max(position) FROM beats) - (SELECT min(position) FROM beats) + 1, 0)";
    report.left = unsigned(sqlx::query_scalar(left).fetch_one(&mut *snapshot).await?)?;
    if !are_enough(&mut snapshot, bounds).await? {
        return Ok(None);
    }
    let select = "SELECT * FROM (SELECT *, sum(count) OVER (ORDER BY position) AS total FROM (SELECT * FROM beats \
                  WHERE position < (SELECT max(position) FROM beats) ORDER BY position LIMIT ?1)) \
                  WHERE total <= ?2 OR total = count ORDER BY position";
    let rows = sqlx::query(select).bind(STEP_ROWS_MAX).bind(STEP_BEATS_MAX).fetch_all(&mut *snapshot).await?;
    let rows = rows.iter().map(read_beats).collect::<Result<Vec<_>, StoreError>>()?;
    Step::plan(rows, bounds.until)
}

/// Says whether the first rows that it takes to begin with are old enough, whatever number of them a step holds.
async fn are_enough(connection: &mut SqliteConnection, bounds: Bounds) -> Result<bool, StoreError> {
    let select = "SELECT count(*) FROM (SELECT recorded_at FROM beats \
                  WHERE position < (SELECT max(position) FROM beats) ORDER BY position LIMIT ?1) WHERE recorded_at <= ?2";
    let query = sqlx::query_scalar(select).bind(signed(bounds.rows_min)).bind(bounds.until.as_micros());
    Ok(unsigned(query.fetch_one(connection).await?)? >= bounds.rows_min)
}

/// Writes out the tails of some runs that hold heartbeats of the step.
async fn flush(
    connection: &mut SqliteConnection,
    step: &Step,
    runs: &[i64],
    report: &mut CompactionReport,
) -> Result<(), StoreError> {
    let select = format!("SELECT {RUN_COLUMNS} FROM runs WHERE number = ? AND length(tail) > 0");
    let (mut tails, mut transaction) = (0, connection.begin_with("BEGIN IMMEDIATE").await?);
    for number in runs {
        let found = sqlx::query(AssertSqlSafe(select.clone())).bind(*number).fetch_optional(&mut *transaction).await?;
        let Some(row) = found.as_ref().map(read_run).transpose()? else { continue };
        let damaged = |error| StoreError::Corrupt(format!("the tail of run {}: {error}", row.run.id));
        let tail = row.tail.map_err(damaged)?;
        if !step.is_in_tail(*number, &tail) {
            continue;
        }
        let segment = SegmentRow::pack(*number, row.run.attempt, &tail);
        insert_segment(&mut transaction, &segment).await?;
        sqlx::query("UPDATE runs SET tail = x'' WHERE number = ?").bind(*number).execute(&mut *transaction).await?;
        report.flushed(&segment);
        tails += 1;
    }
    if tails == 0 {
        return Ok(transaction.rollback().await?);
    }
    transaction.commit().await?;
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// Appends the event, which opens the door for the rows up to the watermark, and drops them.
async fn drop_rows(connection: &mut SqliteConnection, clock: &dyn Clock, step: &Step) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut head = head(&mut transaction).await?;
    head.position += 1;
    head.latest_at = clock.now().max(head.latest_at.next());
    insert_event(&mut transaction, &EventRow::of_service(head.position, &step.event(head.latest_at))).await?;
    let through = sqlx::query("DELETE FROM beats WHERE position <= ?").bind(step.through);
    through.execute(&mut *transaction).await?;
    put_head(&mut transaction, &head).await?;
    transaction.commit().await?;
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// The segments of a run that may hold versions from `first` to `last`: they do not overlap, so the one that holds the
/// first is the last that begins by then.
async fn segments(
    connection: &mut SqliteConnection,
    run: i64,
    first: i64,
    last: i64,
) -> Result<Vec<SegmentRow>, StoreError> {
    let select = "SELECT * FROM segments WHERE run = ?1 AND first_version <= ?3 AND first_version >= \
                  coalesce((SELECT max(first_version) FROM segments WHERE run = ?1 AND first_version <= ?2), ?2) \
                  ORDER BY first_version";
    let query = sqlx::query(select).bind(run).bind(first).bind(last);
    query.fetch_all(connection).await?.iter().map(read_segment).collect()
}

/// Merges the segments of some runs.
async fn merge(
    connection: &mut SqliteConnection,
    runs: &[i64],
    report: &mut CompactionReport,
) -> Result<(), StoreError> {
    let mut planned = Vec::new();
    for run in runs {
        let select = sqlx::query("SELECT status, attempt FROM runs WHERE number = ?").bind(*run);
        let Some(row) = select.fetch_optional(&mut *connection).await? else { continue };
        let (status, attempt): (Status, i64) = (read_word(&row, "status")?, row.try_get("attempt")?);
        let select = "SELECT run, first_version, last_version, attempt, first_at, last_at, count, digest, \
                      iif(count < ?2, data, x'') AS data FROM segments WHERE run = ?1 ORDER BY first_version";
        let query = sqlx::query(select).bind(*run).bind(signed(MERGED_BEATS_MAX));
        let rows = query.fetch_all(&mut *connection).await?;
        let segments = rows.iter().map(read_segment).collect::<Result<Vec<_>, StoreError>>()?;
        planned.extend(merges(segments, |of| has_ended(status, attempt, of))?);
    }
    if planned.is_empty() {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for merge in &planned {
        replace(&mut transaction, merge).await?;
        report.merged(merge);
    }
    transaction.commit().await?;
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// Puts a merged segment in the place of its parts. It waits in `merging` while they go.
async fn replace(connection: &mut SqliteConnection, merge: &Merge) -> Result<(), StoreError> {
    let whole = &merge.whole;
    let mut query = sqlx::query(
        "INSERT INTO merging (run, first_version, last_version, attempt, first_at, last_at, count, data, digest) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    );
    for number in whole.numbers() {
        query = query.bind(number);
    }
    query.bind(whole.data.as_slice()).bind(whole.digest).execute(&mut *connection).await?;
    for part in &merge.parts {
        sqlx::query("DELETE FROM segments WHERE run = ? AND first_version = ?")
            .bind(part.run)
            .bind(part.first_version)
            .execute(&mut *connection)
            .await?;
    }
    insert_segment(connection, whole).await?;
    sqlx::query("DELETE FROM merging").execute(connection).await?;
    Ok(())
}
