//! Making the projection anew from the truth: beside the old one, page by page, while others go on writing; then what
//! they wrote meanwhile is caught up on, and the two are swapped in one short transaction.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use lastbeat_domain::{Span, judge};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::compact::keep_out;
use super::open;
use super::read::{head, refresh_service_log};
use super::rows::{PUT_RUN, bind_run};
use super::source::Snapshot;
use super::write::set_due;
use crate::Progress;
use crate::batch::RunRow;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::service::ServiceLog;
use crate::truth::{self, PAGE_RUNS, Source, sound};
use crate::verify::RebuildReport;

/// The projection that is being made.
const BESIDE: &str = "runs_beside";

/// What has been done so far, and up to where in the log.
struct Rebuild<'a> {
    connection: SqliteConnection,
    clock: &'a dyn Clock,
    service: Arc<ServiceLog>,
    /// The ends of `events` and `beats` that were looked at for runs that changed meanwhile.
    events_through: i64,
    beats_through: i64,
    changed: BTreeSet<i64>,
    report: RebuildReport,
}

/// Makes the projection anew.
pub(super) async fn rebuild(
    path: &Path,
    clock: &dyn Clock,
    progress: &Progress<'_>,
) -> Result<RebuildReport, StoreError> {
    let _lock = only_one(path)?;
    let _no_compaction = keep_out(path).await?;
    let connection = open::options(path, false).connect().await?;
    let mut rebuild = Rebuild {
        connection,
        clock,
        service: Arc::default(),
        events_through: 0,
        beats_through: 0,
        changed: BTreeSet::new(),
        report: RebuildReport::default(),
    };
    let result = rebuild.run(progress).await;
    if result.is_err() {
        // The old projection stands as it was.
        let _ = sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE IF EXISTS {BESIDE}")))
            .execute(&mut rebuild.connection)
            .await;
    }
    rebuild.connection.close().await?;
    result
}

/// Two rebuilds at once would take each other's table away. The lock goes with the process.
fn only_one(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push("-rebuild");
    let cannot =
        |error: std::io::Error| StoreError::Unavailable(format!("cannot lock {}: {error}", Path::new(&name).display()));
    let file = File::create(&name).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable("another rebuild is under way".to_owned())),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

impl Rebuild<'_> {
    async fn run(&mut self, progress: &Progress<'_>) -> Result<RebuildReport, StoreError> {
        self.begin().await?;
        let spans = truth::spans(&mut Snapshot(&mut self.connection)).await?;
        let all = spans.last().map_or(0, |(_, end)| end.unsigned_abs());
        for (first, end) in spans {
            let mut problems = Vec::new();
            let wanted = |run| (first..end).contains(&run);
            let (mut committed, _) =
                truth::committed(&mut Snapshot(&mut self.connection), 0, wanted, &mut problems).await?;
            sound(&problems, None)?;
            let mut from = first;
            while from < end {
                let to = (from + PAGE_RUNS).min(end);
                self.page(from, to, &mut committed).await?;
                progress(to.unsigned_abs(), all);
                from = to;
            }
        }
        self.swap().await?;
        Ok(self.report)
    }

    /// Makes the empty table beside the old one, of the same form.
    async fn begin(&mut self) -> Result<(), StoreError> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let head = head(&mut transaction).await?;
        (self.events_through, self.beats_through) = (head.position, head.beat_position);
        // One that was killed may have left its table.
        let drop = format!("DROP TABLE IF EXISTS {BESIDE}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *transaction).await?;
        let forms =
            sqlx::query("SELECT type, name, sql FROM sqlite_schema WHERE tbl_name = 'runs' AND sql IS NOT NULL")
                .fetch_all(&mut *transaction)
                .await?;
        for form in forms {
            let (kind, name, sql): (String, String, String) =
                (form.try_get("type")?, form.try_get("name")?, form.try_get("sql")?);
            let columns = sql.find('(').map_or("", |at| &sql[at..]);
            let unique = if sql.starts_with("CREATE UNIQUE") { "UNIQUE " } else { "" };
            let copy = match kind.as_str() {
                "table" => format!("CREATE TABLE {BESIDE} {columns}"),
                _ => format!("CREATE {unique}INDEX {} ON {BESIDE} {columns}", other_name(&name)),
            };
            sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Writes some runs, but for those that others wrote to since the beginning.
    async fn page(&mut self, from: i64, to: i64, committed: &mut truth::Committed) -> Result<(), StoreError> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let ends = (&mut self.events_through, &mut self.beats_through);
        note_changed(&mut transaction, ends, &mut self.changed).await?;
        self.service = refresh_service_log(&mut transaction, &self.service).await?;
        let mut source = Snapshot(&mut transaction);
        let runs = truth::page(&mut source, from, to, committed).await?;
        let rows = source.rows_of(from, to).await?;
        for run in runs.iter().filter(|run| !self.changed.contains(&run.number)) {
            let row = run.anew()?;
            self.report.runs += 1;
            self.report.events += run.stream.len() as u64;
            self.report.differed += u64::from(!rows.contains(&row));
            put(&mut transaction, &row).await?;
            arm(&mut transaction, &row, &self.service, self.clock).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Catches up on what changed since the beginning, and swaps.
    async fn swap(&mut self) -> Result<(), StoreError> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let ends = (&mut self.events_through, &mut self.beats_through);
        note_changed(&mut transaction, ends, &mut self.changed).await?;
        self.service = refresh_service_log(&mut transaction, &self.service).await?;
        let mut problems = Vec::new();
        let wanted = |run| self.changed.contains(&run);
        let (mut committed, _) = truth::committed(&mut Snapshot(&mut transaction), 0, wanted, &mut problems).await?;
        sound(&problems, None)?;
        for number in &self.changed {
            let mut source = Snapshot(&mut transaction);
            for run in truth::page(&mut source, *number, number + 1, &mut committed).await? {
                let row = run.anew()?;
                self.report.runs += 1;
                self.report.events += run.stream.len() as u64;
                let before = Snapshot(&mut transaction).rows_of(*number, number + 1).await?;
                self.report.differed += u64::from(!before.contains(&row));
                put(&mut transaction, &row).await?;
                arm(&mut transaction, &row, &self.service, self.clock).await?;
            }
        }
        let swap = format!(
            "DROP TABLE runs; ALTER TABLE {BESIDE} RENAME TO runs; \
             DELETE FROM due WHERE run NOT IN (SELECT number FROM runs WHERE status IN ('pending', 'claimed', 'running')); \
             INSERT OR IGNORE INTO lanes (lane) SELECT DISTINCT lane FROM runs; \
             UPDATE head SET position = max(position, coalesce((SELECT max(position) FROM events), 0)), \
             beat_position = max(beat_position, coalesce((SELECT max(position) FROM beats), 0)), \
             run = max(run, coalesce((SELECT max(number) FROM runs), 0)), \
             latest_at = max(latest_at, coalesce((SELECT max(recorded_at) FROM events), latest_at), \
             coalesce((SELECT max(recorded_at) FROM beats), latest_at));"
        );
        sqlx::raw_sql(AssertSqlSafe(swap)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// Index names are global, and the old ones are taken until the swap: so they alternate.
fn other_name(name: &str) -> String {
    name.strip_suffix("_2").map_or_else(|| format!("{name}_2"), ToOwned::to_owned)
}

/// Adds the runs that were written to since it was last looked.
async fn note_changed(
    connection: &mut SqliteConnection,
    (events_through, beats_through): (&mut i64, &mut i64),
    changed: &mut BTreeSet<i64>,
) -> Result<(), StoreError> {
    let select = "SELECT DISTINCT run FROM events WHERE position > ? AND run IS NOT NULL";
    let runs: Vec<i64> = sqlx::query_scalar(select).bind(*events_through).fetch_all(&mut *connection).await?;
    changed.extend(runs);
    let mut problems = Vec::new();
    let (beats, last) = truth::committed(&mut Snapshot(connection), *beats_through, |_| true, &mut problems).await?;
    sound(&problems, None)?;
    changed.extend(beats.keys());
    let head = head(connection).await?;
    (*events_through, *beats_through) = (head.position, last);
    Ok(())
}

async fn put(connection: &mut SqliteConnection, row: &RunRow) -> Result<(), StoreError> {
    let statement = PUT_RUN.replacen("INTO runs ", &format!("INTO {BESIDE} "), 1);
    bind_run(sqlx::query(AssertSqlSafe(statement)), row).execute(connection).await?;
    Ok(())
}

async fn arm(
    connection: &mut SqliteConnection,
    row: &RunRow,
    service: &ServiceLog,
    clock: &dyn Clock,
) -> Result<(), StoreError> {
    let now = clock.now().max(row.run.updated_at);
    let policy = service.policy(&row.run.lane, now);
    let check_at = judge(&row.run, &policy, &service.listening(now), now).check_at();
    set_due(connection, row.number, check_at.map(|at| (at, Span::ZERO))).await
}
