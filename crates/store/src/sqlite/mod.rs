//! The embedded store: one SQLite file, shared by any number of processes of one machine.

mod backup;
mod compact;
mod doctor;
mod ground;
mod import;
mod open;
mod read;
mod rebuild;
mod rows;
mod source;
mod write;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lastbeat_domain::backtest::BacktestReport;
use lastbeat_domain::decide::Command;
use lastbeat_domain::{Name, Run, RunId, Status, Timestamp};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqlitePoolOptions};
use tokio::sync::mpsc;

use crate::backtest;
use crate::clock::Clock;
use crate::compact::{Bounds, CompactionReport};
use crate::error::{ImportError, StoreError};
use crate::import::{CheckedImport, ImportReport};
use crate::log::EventRow;
use crate::observe::{Observed, Observer};
use crate::queue::{self, Job};
use crate::reaps::ReapTally;
use crate::record;
use crate::service::ServiceLog;
use crate::truth::Source;
use crate::verify::{self, RebuildReport, VerifyReport};
use crate::{
    Check, Due, Executing, FeedEntry, Filter, Judged, LineSink, Progress, Question, Sample, Store, StreamPage, Watch,
};

use self::source::Snapshot;

/// How many connections read at a time.
const READERS_MAX: u32 = 4;
/// How long a question waits for one of them.
const READER_WAIT: Duration = Duration::from_secs(30);

/// A store in one SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    readers: SqlitePool,
    writer: mpsc::Sender<Job>,
    observed: Observed,
    /// The service events as they were last read.
    service: Mutex<Arc<ServiceLog>>,
    /// The reaps as they were last counted.
    reaps: Mutex<Arc<ReapTally>>,
}

impl SqliteStore {
    /// Opens the file that `url` names, and migrates it. `create` makes it where it is missing. Log time is drawn from
    /// `clock`.
    ///
    /// # Errors
    /// If the URL is of no known form, or the file is missing, unreadable, another program's or of a newer schema.
    pub async fn open(url: &str, create: bool, clock: Arc<dyn Clock>) -> Result<SqliteStore, StoreError> {
        let path = open::path_of(url)?;
        let connection = open::open_and_migrate(&path, create).await?;
        let observed = Observed::default();
        let writer = writer::start(connection, Arc::clone(&clock), observed.clone());
        let options = open::options(&path, false).pragma("query_only", "ON");
        let pool =
            SqlitePoolOptions::new().min_connections(0).max_connections(READERS_MAX).acquire_timeout(READER_WAIT);
        let readers = pool.connect_lazy_with(options);
        Ok(SqliteStore { path, clock, readers, writer, observed, service: Mutex::default(), reaps: Mutex::default() })
    }

    /// Returns the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn service_log_in(&self, snapshot: &mut SqliteConnection) -> Result<Arc<ServiceLog>, StoreError> {
        let known = Arc::clone(&self.service.lock().unwrap_or_else(PoisonError::into_inner));
        let log = read::refresh_service_log(snapshot, &known).await?;
        let mut latest = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.through <= log.through {
            *latest = Arc::clone(&log);
        }
        Ok(log)
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn execute(&self, batch: Vec<Command>) -> Executing<'_> {
        queue::execute(batch, |_| &self.writer)
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        Ok(self.clock.now().max(read::latest_at(&mut snapshot).await?))
    }

    async fn service_log(&self) -> Result<Arc<ServiceLog>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        self.service_log_in(&mut snapshot).await
    }

    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        Ok(read::run_row(&mut snapshot, id).await?.map(|row| row.run))
    }

    async fn stream(&self, id: RunId, after: u64, limit: usize) -> Result<StreamPage, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        match read::run_row(&mut snapshot, id).await? {
            Some(row) => read::stream(&mut snapshot, &row, after, limit).await,
            None => Ok(StreamPage { facts: Vec::new(), next: None }),
        }
    }

    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedEntry>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::feed(&mut snapshot, after, limit).await
    }

    async fn log_end(&self) -> Result<u64, StoreError> {
        read::log_end(&mut *self.readers.acquire().await?).await
    }

    async fn list(&self, filter: &Filter, after: Option<RunId>, limit: usize) -> Result<Vec<Run>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::list(&mut snapshot, filter, after, limit).await
    }

    async fn goals(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Name>, StoreError> {
        read::goals(&mut *self.readers.acquire().await?, after, limit).await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Due>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        let service = self.service_log_in(&mut snapshot).await?;
        let listening = Arc::new(service.listening(now));
        let due = read::due(&mut snapshot, now, limit).await?;
        let judge = |(run, check_at): (Run, Timestamp)| {
            let policy = service.policy(&run.lane, now);
            Due { judged: Judged::new(run, policy, Arc::clone(&listening), now), check_at }
        };
        Ok(due.into_iter().map(judge).collect())
    }

    async fn running(&self, lane: &Name, limit: usize) -> Result<Sample, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::running(&mut snapshot, lane, limit).await
    }

    async fn cursor(&self, name: &Name) -> Result<Option<u64>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::cursor(&mut snapshot, name).await
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::next_due(&mut snapshot).await
    }

    async fn lanes_to_rearm(&self) -> Result<Vec<Name>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::lanes(&mut snapshot, true).await
    }

    async fn lanes(&self) -> Result<Vec<Name>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::lanes(&mut snapshot, false).await
    }

    async fn reap_tally(&self) -> Result<Arc<ReapTally>, StoreError> {
        let mut tally = Arc::clone(&self.reaps.lock().unwrap_or_else(PoisonError::into_inner));
        loop {
            let mut snapshot = self.readers.begin().await?;
            let page = read::reaps(&mut snapshot, tally.through).await?;
            let service = self.service_log_in(&mut snapshot).await?;
            drop(snapshot);
            tally = ReapTally::after(&tally, &page, &service)?;
            if !page.is_full() {
                break;
            }
        }
        let mut latest = self.reaps.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.through < tally.through {
            *latest = Arc::clone(&tally);
        }
        Ok(tally)
    }

    async fn count(&self, lane: &Name) -> Result<BTreeMap<Status, u64>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        read::count(&mut snapshot, lane).await
    }

    async fn import(&self, import: CheckedImport) -> Result<ImportReport, ImportError> {
        queue::import(&self.writer, import).await
    }

    async fn service_lines(&self) -> Result<Vec<String>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        let rows = Snapshot(&mut snapshot).service_rows().await?;
        let line =
            |row: &EventRow| record::service_line(Timestamp::from_micros(row.recorded_at), row.schema, &row.body);
        rows.iter().map(line).collect()
    }

    async fn export(&self, sink: &mut LineSink<'_>) -> Result<u64, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        let mut lines = 0;
        let service = sqlx::query("SELECT recorded_at, schema, body FROM events WHERE run IS NULL ORDER BY position")
            .fetch_all(&mut *snapshot)
            .await?;
        for row in service {
            let recorded_at = Timestamp::from_micros(row.try_get("recorded_at")?);
            let body: String = row.try_get("body")?;
            let line = record::service_line(recorded_at, row.try_get("schema")?, &body)?;
            sink(line.as_str()).map_err(StoreError::Output)?;
            lines += 1;
        }
        let mut after = 0;
        loop {
            let page = read::run_rows(&mut snapshot, after, 500).await?;
            let Some(last) = page.last() else { return Ok(lines) };
            after = last.number;
            for row in &page {
                for fact in read::whole_stream(&mut snapshot, row).await? {
                    let line = record::line(&fact);
                    sink(line.as_str()).map_err(StoreError::Output)?;
                    lines += 1;
                }
            }
        }
    }

    async fn verify(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        let service = self.service_log_in(&mut snapshot).await?;
        verify::verify(&mut Snapshot(&mut snapshot), &service, self.clock.now(), progress).await
    }

    async fn replay_all(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        verify::replay_all(&mut Snapshot(&mut snapshot), progress).await
    }

    async fn backtest(&self, question: &Question, watch: &Watch<'_>) -> Result<BacktestReport, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        let service = self.service_log_in(&mut snapshot).await?;
        backtest::backtest(&mut Snapshot(&mut snapshot), &service, self.clock.now(), question, watch).await
    }

    async fn rebuild(&self, progress: &Progress<'_>) -> Result<RebuildReport, StoreError> {
        rebuild::rebuild(&self.path, self.clock.as_ref(), progress).await
    }

    async fn compact(&self, bounds: Bounds) -> Result<CompactionReport, StoreError> {
        compact::compact(&self.path, self.clock.as_ref(), bounds).await
    }

    async fn backup(&self, file: &Path) -> Result<(), StoreError> {
        backup::backup(&self.path, file).await
    }

    async fn doctor(&self) -> Result<Vec<Check>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        let service = self.service_log_in(&mut snapshot).await?;
        doctor::doctor(&mut snapshot, &self.path, &service, self.clock.now()).await
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.observed.by(observer);
    }

    async fn close(&self) {
        self.readers.close().await;
        queue::close(&self.writer).await;
    }
}
