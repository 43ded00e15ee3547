//! The shared store: one PostgreSQL database, used by any number of processes on any number of hosts.
//!
//! Each process has a few writers, which group what waits into transactions, and a pool of connections that read. All
//! writers of all processes append under one lock, the log lock, so the order of positions is the order of commits.

mod beats;
mod clock;
mod compact;
mod doctor;
mod ground;
mod import;
mod migrate;
mod open;
mod outcome;
mod read;
mod rebuild;
mod rows;
mod source;
mod tail;
mod write;
mod writer;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lastbeat_domain::backtest::BacktestReport;
use lastbeat_domain::decide::Command;
use lastbeat_domain::{Name, Run, RunId, Status, Timestamp};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, Postgres};
use tokio::sync::mpsc;

use crate::backtest;
use crate::clock::Clock;
use crate::compact::{Bounds, CompactionReport};
use crate::error::{ImportError, StoreError};
use crate::import::{CheckedImport, ImportReport};
use crate::log::EventRow;
use crate::observe::Observer;
use crate::queue::{self, Job, QUEUE_MAX};
use crate::reaps::ReapTally;
use crate::record;
use crate::service::ServiceLog;
use crate::truth::Source;
use crate::verify::{self, RebuildReport, VerifyReport};
use crate::{
    Check, Due, Executing, FeedEntry, Filter, Judged, LineSink, Progress, Question, Sample, Store, StreamPage, Watch,
};

use self::clock::PgClock;
use self::open::Purpose;
use self::source::Snapshot;
use self::writer::{Shared, Writer};

pub use migrate::{Schema, migrate, role_setup, set_up_role};
pub(crate) use open::SCHEMA_VERSION;
pub use open::is_url;

/// How many writers a process has: while one waits for its commit, the other takes heartbeats. More of them make batches
/// smaller, and are in each other's way.
const WRITERS: usize = 2;
/// How many connections read at a time.
const READERS_MAX: u32 = 4;
/// How long a question waits for one of them.
const READER_WAIT: Duration = Duration::from_secs(5);
/// How long a connection on which something failed has to show that it is alive.
const PING_MAX: Duration = Duration::from_secs(1);
/// How many runs an export reads at a time.
const EXPORT_RUNS: i64 = 500;

/// Asks something that changes nothing, of a connection of the pool. One that died while it lay there, as all do when the
/// server is restarted, is noticed only now; then the same is asked of another one. There may be as many of them as the
/// pool holds, and the one after those is new. (A macro, because no bound says that the future of a closure which borrows
/// both its argument and its surroundings can be sent.)
macro_rules! read {
    ($readers:expr, |$reader:ident| $ask:expr) => {{
        let mut others = READERS_MAX;
        loop {
            let mut connection = $readers.acquire().await?;
            let $reader = &mut connection;
            let answer = $ask.await;
            let failed = answer.as_ref().is_err_and(StoreError::is_transient);
            if !failed || others == 0 || !is_dead(connection).await {
                break answer;
            }
            others -= 1;
        }
    }};
}

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    /// How to connect for what takes long.
    keep: PgConnectOptions,
    /// How to connect for a compaction.
    compact: PgConnectOptions,
    shared: Arc<Shared>,
    readers: PgPool,
    /// The reaps as they were last counted.
    reaps: Mutex<Arc<ReapTally>>,
    writers: Vec<mpsc::Sender<Job>>,
}

/// A connection that reads.
type Reader = PoolConnection<Postgres>;

type Asked<'c, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'c>>;

impl PostgresStore {
    /// Opens the database that `url` names, which [`migrate`] has made ready. Log time is drawn from the server's clock,
    /// or in tests from `simulated`.
    ///
    /// # Errors
    /// If the URL cannot be read or names no user, the server cannot be reached or is too old, or the schema is not the
    /// one that this program knows.
    pub async fn open(url: &str, simulated: Option<Arc<dyn Clock>>) -> Result<PostgresStore, StoreError> {
        let keep = open::options(url, Purpose::Keep)?;
        open::check(&keep).await?;
        let shared = Arc::new(Shared::new(PgClock::new(simulated)));
        let write = open::options(url, Purpose::Write)?;
        let writers = (0..WRITERS)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(QUEUE_MAX);
                tokio::spawn(Writer::new(write.clone(), Arc::clone(&shared)).run(receiver));
                sender
            })
            .collect();
        let pool = PgPoolOptions::new()
            .min_connections(0)
            .max_connections(READERS_MAX)
            .acquire_timeout(READER_WAIT)
            .test_before_acquire(false);
        let readers = pool.connect_lazy_with(open::options(url, Purpose::Read)?);
        let compact = open::options(url, Purpose::Compact)?;
        Ok(PostgresStore { keep, compact, shared, readers, reaps: Mutex::default(), writers })
    }

    /// Asks several things of one snapshot. It is a task of its own: a caller that goes away must not leave a connection
    /// with an open transaction behind, in which others would read the past.
    async fn in_snapshot<T: Send + 'static>(
        &self,
        ask: impl for<'c> Fn(&'c mut PgConnection) -> Asked<'c, T> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let readers = self.readers.clone();
        let task = tokio::spawn(async move { read!(readers, |reader| snapshot(reader, &ask)) });
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Makes a connection of its own that holds a snapshot for as long as it takes.
    async fn long_snapshot(&self) -> Result<PgConnection, StoreError> {
        let mut connection = open::connect(&self.keep).await?;
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        Ok(connection)
    }

    async fn service_log_in(&self, connection: &mut PgConnection) -> Result<Arc<ServiceLog>, StoreError> {
        let log = read::refresh_service_log(connection, &self.shared.service()).await?;
        self.shared.keep(&log);
        Ok(log)
    }

    /// Returns the writer of a command: commands about the same run or the same key, and claims from the same lanes, go to
    /// the same one.
    fn writer(&self, command: &Command) -> &mpsc::Sender<Job> {
        let mut hash = foldhash::quality::FixedState::default().build_hasher();
        match (command.idempotency_key(), command.run(), command.inner()) {
            (Some(key), ..) => key.hash(&mut hash),
            (None, Some(run), _) => run.hash(&mut hash),
            (None, None, Command::Claim { lanes, .. }) => lanes.hash(&mut hash),
            _ => return &self.writers[0],
        }
        &self.writers[usize::try_from(hash.finish() % self.writers.len() as u64).unwrap_or(0)]
    }
}

/// Ends a session that holds locks. The server may notice its end later than whoever wants them next comes along.
async fn end_session(mut connection: PgConnection) {
    let _ = connection.execute("SELECT pg_advisory_unlock_all()").await;
    let _ = connection.close().await;
}

/// Says whether a connection on which something failed answers no more, and then takes it out of the pool. What was only
/// too slow, or in another's way, is not asked again.
async fn is_dead(mut reader: Reader) -> bool {
    let dead = !matches!(tokio::time::timeout(PING_MAX, reader.ping()).await, Ok(Ok(())));
    if dead {
        drop(reader.detach());
    }
    dead
}

async fn snapshot<T>(
    reader: &mut Reader,
    ask: &impl for<'c> Fn(&'c mut PgConnection) -> Asked<'c, T>,
) -> Result<T, StoreError> {
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let answer = ask(reader).await;
    if reader.execute("COMMIT").await.is_err() {
        // It is of no use to anybody else.
        reader.close_on_drop();
    }
    answer
}

#[async_trait]
impl Store for PostgresStore {
    fn execute(&self, batch: Vec<Command>) -> Executing<'_> {
        queue::execute(batch, |command| self.writer(command))
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        let simulated = self.shared.clock.simulated();
        read!(self.readers, |reader| read::now(reader, simulated))
    }

    async fn service_log(&self) -> Result<Arc<ServiceLog>, StoreError> {
        read!(self.readers, |reader| self.service_log_in(reader))
    }

    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        Ok(read!(self.readers, |reader| read::run_row(reader, id))?.map(|row| row.run))
    }

    async fn stream(&self, id: RunId, after: u64, limit: usize) -> Result<StreamPage, StoreError> {
        self.in_snapshot(move |connection| {
            Box::pin(async move {
                match read::run_row(connection, id).await? {
                    Some(row) => read::stream(connection, &row, after, limit).await,
                    None => Ok(StreamPage { facts: Vec::new(), next: None }),
                }
            })
        })
        .await
    }

    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedEntry>, StoreError> {
        read!(self.readers, |reader| read::feed(reader, after, limit))
    }

    async fn log_end(&self) -> Result<u64, StoreError> {
        read!(self.readers, |reader| read::log_end(reader))
    }

    async fn list(&self, filter: &Filter, after: Option<RunId>, limit: usize) -> Result<Vec<Run>, StoreError> {
        read!(self.readers, |reader| read::list(reader, filter, after, limit))
    }

    async fn goals(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Name>, StoreError> {
        read!(self.readers, |reader| read::goals(reader, after, limit))
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Due>, StoreError> {
        let due = read!(self.readers, |reader| read::due(reader, now, limit))?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let service = self.service_log().await?;
        let listening = Arc::new(service.listening(now));
        let judge = |(run, check_at): (Run, Timestamp)| {
            let policy = service.policy(&run.lane, now);
            Due { judged: Judged::new(run, policy, Arc::clone(&listening), now), check_at }
        };
        Ok(due.into_iter().map(judge).collect())
    }

    async fn running(&self, lane: &Name, limit: usize) -> Result<Sample, StoreError> {
        read!(self.readers, |reader| read::running(reader, lane, limit))
    }

    async fn cursor(&self, name: &Name) -> Result<Option<u64>, StoreError> {
        read!(self.readers, |reader| read::cursor(reader, name))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.shared.clock.host()
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        read!(self.readers, |reader| read::next_due(reader))
    }

    async fn lanes_to_rearm(&self) -> Result<Vec<Name>, StoreError> {
        read!(self.readers, |reader| read::lanes(reader, true))
    }

    async fn lanes(&self) -> Result<Vec<Name>, StoreError> {
        read!(self.readers, |reader| read::lanes(reader, false))
    }

    async fn reap_tally(&self) -> Result<Arc<ReapTally>, StoreError> {
        let mut tally = Arc::clone(&self.reaps.lock().unwrap_or_else(PoisonError::into_inner));
        loop {
            let after = tally.through;
            let page = self
                .in_snapshot(move |connection| Box::pin(async move { read::reaps(connection, after).await }))
                .await?;
            // Read later, so it holds every policy that was in force at one of these reaps.
            let service = self.service_log().await?;
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
        read!(self.readers, |reader| read::count(reader, lane))
    }

    async fn import(&self, import: CheckedImport) -> Result<ImportReport, ImportError> {
        queue::import(&self.writers[0], import).await
    }

    async fn service_lines(&self) -> Result<Vec<String>, StoreError> {
        let rows = read!(self.readers, |reader| read::service_rows(reader))?;
        let line =
            |row: &EventRow| record::service_line(Timestamp::from_micros(row.recorded_at), row.schema, &row.body);
        rows.iter().map(line).collect()
    }

    async fn export(&self, sink: &mut LineSink<'_>) -> Result<u64, StoreError> {
        let mut snapshot = self.long_snapshot().await?;
        let mut lines = 0;
        for row in Snapshot(&mut snapshot).service_rows().await? {
            let line = record::service_line(Timestamp::from_micros(row.recorded_at), row.schema, &row.body)?;
            sink(line.as_str()).map_err(StoreError::Output)?;
            lines += 1;
        }
        let mut after = 0;
        loop {
            let page = read::run_rows(&mut snapshot, after, EXPORT_RUNS).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            for row in &page {
                for fact in read::whole_stream(&mut snapshot, row).await? {
                    let line = record::line(&fact);
                    sink(line.as_str()).map_err(StoreError::Output)?;
                    lines += 1;
                }
            }
        }
        let _ = snapshot.close().await;
        Ok(lines)
    }

    async fn verify(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
        let mut snapshot = self.long_snapshot().await?;
        let service = self.service_log_in(&mut snapshot).await?;
        let now = read::now(&mut snapshot, self.shared.clock.simulated()).await?;
        let report = verify::verify(&mut Snapshot(&mut snapshot), &service, now, progress).await;
        let _ = snapshot.close().await;
        report
    }

    async fn replay_all(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
        let mut snapshot = self.long_snapshot().await?;
        let report = verify::replay_all(&mut Snapshot(&mut snapshot), progress).await;
        let _ = snapshot.close().await;
        report
    }

    async fn backtest(&self, question: &Question, watch: &Watch<'_>) -> Result<BacktestReport, StoreError> {
        let mut snapshot = self.long_snapshot().await?;
        let service = self.service_log_in(&mut snapshot).await?;
        let now = read::now(&mut snapshot, self.shared.clock.simulated()).await?;
        let report = backtest::backtest(&mut Snapshot(&mut snapshot), &service, now, question, watch).await;
        let _ = snapshot.close().await;
        report
    }

    async fn rebuild(&self, progress: &Progress<'_>) -> Result<RebuildReport, StoreError> {
        let mut connection = open::connect(&self.keep).await?;
        let report = rebuild::rebuild(&mut connection, &self.shared.clock, progress).await;
        end_session(connection).await;
        report
    }

    async fn compact(&self, bounds: Bounds) -> Result<CompactionReport, StoreError> {
        let mut connection = open::connect(&self.compact).await?;
        let report = compact::compact(&mut connection, &self.shared.clock, bounds).await;
        end_session(connection).await;
        report
    }

    async fn backup(&self, _: &Path) -> Result<(), StoreError> {
        Err(StoreError::Unsupported(
            "copying a PostgreSQL database: use pg_dump or pg_basebackup, or `lastbeat export > FILE` for the log alone",
        ))
    }

    async fn doctor(&self) -> Result<Vec<Check>, StoreError> {
        let mut connection = open::connect(&self.keep).await?;
        let service = self.service_log_in(&mut connection).await?;
        let checks = doctor::doctor(&mut connection, &self.shared.clock, &service).await;
        let _ = connection.close().await;
        checks
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.shared.observed.by(observer);
    }

    async fn close(&self) {
        self.readers.close().await;
        for writer in &self.writers {
            queue::close(writer).await;
        }
    }
}
