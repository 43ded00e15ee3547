//! The writers: tasks that hold a connection each, and group what waits into the next transaction.
//!
//! Runs are shared out among them, so that the commands of one call about one run are carried out in order; a command
//! with an idempotency key goes by that. While one of them holds the log lock and waits for its commit, the other takes
//! heartbeats. A caller that goes away stops no task, so a transaction is never cancelled half-way. While the database is
//! away a batch is tried again for a while, and then answered with [`StoreError::Unavailable`]; nothing that was answered
//! as done is lost, and a commit whose outcome is unknown is looked up before anything is tried again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use lastbeat_domain::decide::Command;
use lastbeat_domain::listening::ClockSample;
use lastbeat_domain::{Name, Timestamp};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::sync::mpsc;

use super::beats::{self, Answers, Begun, Known, Taken};
use super::clock::PgClock;
use super::outcome::{self, Mark};
use super::read::refresh_service_log;
use super::{ground, open, write};
use crate::batch::{Batch, Clocks, Ground, Head};
use crate::error::StoreError;
use crate::import::{CheckedImport, ImportReport};
use crate::observe::{Noted, Observed};
use crate::queue::{BATCH_COMMANDS_MAX, Errand, Job, Queue, Waiting, answer_all};
use crate::service::ServiceLog;
use crate::{ImportError, Outcome};

/// How long a batch is tried again while the database is away, before its callers are told.
const PATIENCE: Duration = Duration::from_secs(10);
/// The shortest and the longest pause between two tries.
const STEP_MIN: Duration = Duration::from_millis(20);
const STEP_MAX: Duration = Duration::from_secs(1);
/// How long it is tried to find out what became of a commit.
const LOOK_UP_MAX: Duration = Duration::from_secs(60);
/// How long a transaction may take before its connection is given up: longer than any of its statements may.
const TRANSACTION_MAX: Duration = Duration::from_secs(60);
/// How old what is known of the service may be when a heartbeat is answered.
const SERVICE_AGE_MAX: Duration = Duration::from_millis(500);

/// What the writers of a process share.
pub(super) struct Shared {
    pub(super) clock: PgClock,
    /// The service events as they were last read.
    pub(super) service: Mutex<Arc<ServiceLog>>,
    /// The clocks as they were at this process's last beacon.
    last_beacon: Mutex<Option<ClockSample>>,
    /// Who is told of each commit.
    pub(super) observed: Observed,
}

impl Shared {
    pub(super) fn new(clock: PgClock) -> Shared {
        Shared { clock, service: Mutex::default(), last_beacon: Mutex::default(), observed: Observed::default() }
    }

    pub(super) fn service(&self) -> Arc<ServiceLog> {
        Arc::clone(&self.service.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what was read of the service, unless it is older than what is known.
    pub(super) fn keep(&self, log: &Arc<ServiceLog>) {
        let mut latest = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.through <= log.through {
            *latest = Arc::clone(log);
        }
    }
}

/// A transaction that is about to be committed: its number, how to tell that it was, and what will be answered then.
struct Pending {
    transaction: String,
    mark: Mark,
    outcomes: Outcomes,
    /// The clocks, if this process beaconed in it.
    beacon: Option<ClockSample>,
    /// What is left to be written, sent with its commit.
    last: String,
    /// What an observer is told of.
    noted: Vec<Noted>,
}

/// Why a transaction failed; and what would be answered, if it is not known whether it was committed all the same.
struct Failed {
    error: StoreError,
    doubtful: Option<Box<Pending>>,
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Failed {
        Failed { error, doubtful: None }
    }
}

/// What will be answered to the commands of a batch.
struct Outcomes {
    /// To the heartbeats that the fast path took.
    heard: Answers,
    /// To the others, each with its index in the batch.
    decided: Vec<(usize, Outcome)>,
}

impl Outcomes {
    fn len(&self) -> usize {
        self.heard.len() + self.decided.len()
    }
}

/// Answers everybody. Whoever has gone away does not hear it.
fn tell(batch: Vec<Waiting>, outcomes: Outcomes) {
    let mut replies: Vec<_> = batch.into_iter().map(|waiting| Some(waiting.reply)).collect();
    let mut say = |index: usize, told| {
        let reply = replies[index].take();
        debug_assert!(reply.is_some(), "command {index} was answered twice");
        if let Some(reply) = reply {
            let _ = reply.send(told);
        }
    };
    outcomes.heard.tell(&mut say);
    outcomes.decided.into_iter().for_each(|(index, outcome)| say(index, outcome.into()));
    debug_assert!(replies.iter().all(Option::is_none), "a command was not answered");
}

/// A writer's connection.
pub(super) struct Link {
    pub(super) connection: PgConnection,
    /// Whether a transaction is open in which nothing was done yet: the commit before it began it, so that it costs no
    /// message of its own.
    open: bool,
}

impl Link {
    /// Begins a transaction, unless one is open already.
    async fn open(&mut self) -> Result<(), StoreError> {
        if !std::mem::replace(&mut self.open, false) {
            self.connection.execute("BEGIN").await?;
        }
        Ok(())
    }

    /// The same, and reads its number and the log's now, in one round trip.
    pub(super) async fn begin(&mut self, simulated: Option<i64>) -> Result<Begun, StoreError> {
        let begin = if std::mem::replace(&mut self.open, false) { "" } else { "BEGIN; " };
        // A simulated clock is a number.
        let clock = simulated.map_or_else(|| "NULL".to_owned(), |micros| micros.to_string());
        let begin = AssertSqlSafe(format!("{begin}EXECUTE lastbeat_begin({clock})"));
        Begun::read(&sqlx::raw_sql(begin).fetch_one(&mut self.connection).await?)
    }

    /// Commits. If more is `waiting`, the next transaction begins with the same message.
    async fn commit(&mut self, statements: &str, waiting: bool) -> Result<(), StoreError> {
        let commit = format!("{statements}COMMIT{}", if waiting { " AND CHAIN" } else { "" });
        sqlx::raw_sql(AssertSqlSafe(commit)).execute(&mut self.connection).await?;
        self.open = waiting;
        Ok(())
    }
}

pub(super) struct Writer {
    options: PgConnectOptions,
    shared: Arc<Shared>,
    link: Option<Link>,
    waiting: Queue,
    /// Whether the database is known to be away; while it is, nobody is made to wait again.
    away: bool,
    recent: Recent,
}

/// What a writer knows from its latest batches.
#[derive(Default)]
struct Recent {
    /// When it read the service events.
    read: Option<Instant>,
    /// Where most of the runs were whose heartbeats it took.
    lane: Option<Name>,
}

impl Recent {
    fn keep(&mut self, shared: &Shared, service: &Arc<ServiceLog>) {
        shared.keep(service);
        self.read = Some(Instant::now());
    }
}

impl Writer {
    pub(super) fn new(options: PgConnectOptions, shared: Arc<Shared>) -> Writer {
        Writer { options, shared, link: None, waiting: Queue::default(), away: false, recent: Recent::default() }
    }

    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Ok(errand) = self.waiting.fill(&mut jobs).await {
            // What came before the errand is carried out before it.
            while !self.waiting.is_empty() {
                let batch = self.waiting.next_batch();
                let many = batch.len() > 1;
                self.carry_out(batch, &jobs).await;
                if many {
                    gather(&jobs).await;
                }
                if errand.is_none() {
                    break;
                }
            }
            match errand {
                Some(Errand::Import { import, reply }) => {
                    let result = self.import(&import).await;
                    let _ = reply.send(result);
                }
                Some(Errand::Close { reply }) => {
                    jobs.close();
                    self.hang_up().await;
                    let _ = reply.send(());
                    return;
                }
                None => {}
            }
        }
        self.hang_up().await;
    }

    async fn hang_up(&mut self) {
        if let Some(link) = self.link.take() {
            let _ = link.connection.close().await;
        }
    }

    /// Carries out a batch. A failure that may lie in one command is sought by halves, so that it fails no other.
    async fn carry_out(&mut self, batch: Vec<Waiting>, jobs: &mpsc::Receiver<Job>) {
        let mut batches = VecDeque::from([batch]);
        while let Some(mut batch) = batches.pop_front() {
            match self.persist(&batch, jobs).await {
                Ok(outcomes) => tell(batch, outcomes),
                Err(error) if batch.len() > 1 && !error.is_transient() => {
                    let second = batch.split_off(batch.len() / 2);
                    batches.push_front(second);
                    batches.push_front(batch);
                }
                Err(error) => answer_all(batch, error),
            }
        }
    }

    /// Carries out a batch in one transaction, which is tried again while that may help.
    async fn persist(&mut self, batch: &[Waiting], jobs: &mpsc::Receiver<Job>) -> Result<Outcomes, StoreError> {
        let (started, mut delays) = (Instant::now(), patience(self.away));
        loop {
            let Failed { error, doubtful } = match self.attempt(batch, jobs).await {
                Ok(pending) => {
                    self.away = false;
                    return Ok(self.committed(pending, started));
                }
                Err(failed) => failed,
            };
            if let Some(pending) = doubtful
                && self.was_committed(&pending.transaction, &pending.mark).await?
            {
                tracing::info!(%error, "the connection was lost during a commit that went through");
                return Ok(self.committed(*pending, started));
            }
            if !error.is_transient() {
                return Err(error);
            }
            match delays.next() {
                Some(delay) => tokio::time::sleep(delay).await,
                None => {
                    self.away = true;
                    return Err(error);
                }
            }
        }
    }

    /// Returns the answers of a transaction that is committed. Only now a beacon of it counts: the clocks are compared
    /// with one that the log knows, or a step would be forgotten that was never recorded.
    fn committed(&self, pending: Pending, started: Instant) -> Outcomes {
        if pending.beacon.is_some() {
            *self.shared.last_beacon.lock().unwrap_or_else(PoisonError::into_inner) = pending.beacon;
        }
        self.shared.observed.tell(pending.outcomes.len(), started.elapsed(), &pending.noted);
        pending.outcomes
    }

    /// Makes one transaction of a batch.
    async fn attempt(&mut self, batch: &[Waiting], jobs: &mpsc::Receiver<Job>) -> Result<Pending, Failed> {
        let mut link = self.connected().await?;
        let deadline = tokio::time::Instant::now() + TRANSACTION_MAX;
        let carried_out = in_time(deadline, transact(&mut link, &self.shared, batch, &mut self.recent)).await;
        let pending = match carried_out {
            Ok(pending) => pending,
            Err(error) => {
                // What is left open is rolled back; a connection on which even that fails is dropped.
                if link.connection.execute("ROLLBACK").await.is_ok() {
                    self.link = Some(Link { open: false, ..link });
                }
                return Err(error.into());
            }
        };
        let waiting = !self.waiting.is_empty() || !jobs.is_empty();
        match in_time(deadline, link.commit(&pending.last, waiting)).await {
            Ok(()) => {
                self.link = Some(link);
                Ok(pending)
            }
            Err(error) => Err(Failed { error, doubtful: Some(Box::new(pending)) }),
        }
    }

    async fn connected(&mut self) -> Result<Link, StoreError> {
        match self.link.take() {
            Some(link) => Ok(link),
            None => {
                let mut connection = open::connect(&self.options).await?;
                connection.execute(sqlx::raw_sql(beats::PREPARE)).await?;
                Ok(Link { connection, open: false })
            }
        }
    }

    /// Looks up what became of a transaction whose commit was not answered, on a new connection, as soon as there is one.
    async fn was_committed(&mut self, transaction: &str, mark: &Mark) -> Result<bool, StoreError> {
        let started = Instant::now();
        let mut delays = steps().build();
        while started.elapsed() < LOOK_UP_MAX {
            match self.look_up(transaction, mark).await {
                Ok(Some(committed)) => return Ok(committed),
                // The server has not noticed yet that its client is gone, or is not back.
                Ok(None) => {}
                Err(error) if error.is_transient() => {}
                // Nothing is tried again then, and nobody is told that it failed.
                Err(error) => return Err(unknown(&error.to_string())),
            }
            tokio::time::sleep(delays.next().unwrap_or(STEP_MAX)).await;
        }
        self.away = true;
        Err(unknown("it is still away"))
    }

    /// Returns whether a transaction was committed; `None` while it is not over.
    async fn look_up(&mut self, transaction: &str, mark: &Mark) -> Result<Option<bool>, StoreError> {
        let mut link = self.connected().await?;
        let outcome = outcome::look_up(&mut link.connection, transaction, mark).await?;
        self.link = Some(link);
        Ok(outcome)
    }

    async fn import(&mut self, import: &CheckedImport) -> Result<ImportReport, ImportError> {
        let mut link = self.connected().await?;
        match super::import::import(&mut link, &self.shared.clock, import).await {
            Ok((transaction, mark)) => match link.commit("", false).await {
                Ok(()) => {
                    self.link = Some(link);
                    Ok(import.report)
                }
                Err(_) if self.was_committed(&transaction, &mark).await? => Ok(import.report),
                Err(error) => Err(error.into()),
            },
            Err(error) => {
                if link.connection.execute("ROLLBACK").await.is_ok() {
                    self.link = Some(link);
                }
                Err(error)
            }
        }
    }
}

/// Says that nobody knows what became of a commit.
fn unknown(why: &str) -> StoreError {
    StoreError::Unavailable(format!(
        "it went away during a commit, and it is not known whether that went through ({why}); look before you repeat it"
    ))
}

/// Does a part of a transaction, unless that takes too long.
async fn in_time<T>(
    deadline: tokio::time::Instant,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let too_long = || StoreError::Unavailable(format!("no end after {} s", TRANSACTION_MAX.as_secs()));
    tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| Err(too_long()))
}

/// Lets those who were answered just now say what more they have to say, so that it shares the next commit, which would
/// otherwise begin with the first of them alone. It is no wait: it lasts as long as each turn of the runtime brings more.
async fn gather(jobs: &mpsc::Receiver<Job>) {
    loop {
        let waiting = jobs.len();
        tokio::task::yield_now().await;
        if jobs.len() == waiting || waiting >= BATCH_COMMANDS_MAX {
            return;
        }
    }
}

/// The end of the log, and what the clocks said, under the log lock.
pub(super) struct End {
    pub(super) head: Head,
    pub(super) clocks: Clocks,
}

/// Takes the log lock until the end of the transaction, and reads the clock and the end of the log.
pub(super) async fn lock_log(connection: &mut PgConnection, clock: &PgClock) -> Result<End, StoreError> {
    let before = clock.boottime();
    let row = sqlx::query("SELECT * FROM lastbeat_lock_log($1)").bind(clock.simulated()).fetch_one(connection).await?;
    let after = clock.boottime();
    let head = Head {
        latest_at: Timestamp::from_micros(row.try_get("latest_at")?),
        position: row.try_get("position")?,
        beat_position: row.try_get("beat_position")?,
        run: row.try_get("run")?,
    };
    let clocks = (before, Timestamp::from_micros(row.try_get("clock")?), after);
    Ok(End { head, clocks })
}

/// Carries out a batch up to its commit: heartbeats first, by the fast path; then what that left and all else is decided.
async fn transact(
    link: &mut Link,
    shared: &Shared,
    batch: &[Waiting],
    recent: &mut Recent,
) -> Result<Pending, StoreError> {
    let simulated = shared.clock.simulated();
    let plain = beats::plain(batch);
    if !plain.is_empty() && recent.read.is_none_or(|read| read.elapsed() > SERVICE_AGE_MAX) {
        recent.keep(shared, &refresh_service_log(&mut link.connection, &shared.service()).await?);
    }
    let known = Known::new(recent.lane.clone(), shared.service());
    let (Begun { at, transaction }, mut taken) = if plain.is_empty() {
        (link.begin(simulated).await?, Taken::default())
    } else {
        link.open().await?;
        beats::accept(&mut link.connection, &plain, simulated, &known).await?
    };
    let connection = &mut link.connection;
    if !plain.is_empty() {
        recent.lane = taken.usual_lane().or_else(|| known.lane.clone());
        taken.read_progress(connection, &known, at).await?;
    }
    let mut heard = Answers::new(taken, &known, at);
    if heard.len() == batch.len() {
        let row = heard.taken.row(0, at);
        let (last, mark) = (heard.taken.appends(&row), Mark::of_row(&row));
        let outcomes = Outcomes { heard, decided: Vec::new() };
        return Ok(Pending { transaction, mark, outcomes, beacon: None, last, noted: Vec::new() });
    }
    let left = heard.taken.left_of(batch.len());
    let rest: Vec<Command> = left.iter().map(|index| batch[*index].command.clone()).collect();
    let ground = ground::lock(connection, &rest, simulated).await?;
    let End { mut head, clocks } = lock_log(connection, &shared.clock).await?;
    let taken = write_taken(connection, &heard.taken, at, &mut head).await?;
    let service = refresh_service_log(connection, &shared.service()).await?;
    recent.keep(shared, &service);
    let (decided, mark, beacon, noted) = decide(connection, shared, &rest, (ground, service, head, clocks)).await?;
    let decided = left.into_iter().zip(decided).collect();
    let outcomes = Outcomes { heard, decided };
    Ok(Pending { transaction, mark: mark.or(taken), outcomes, beacon, last: String::new(), noted })
}

/// Writes the heartbeats that the fast path took as a row of their own, under the log lock. Returns how to tell that they
/// were committed.
async fn write_taken(
    connection: &mut PgConnection,
    taken: &Taken,
    at: Timestamp,
    head: &mut Head,
) -> Result<Mark, StoreError> {
    if taken.beats.is_empty() {
        return Ok(Mark::Nothing);
    }
    if !taken.segments.is_empty() {
        write::insert_segments(connection, &taken.segments).await?;
    }
    head.beat_position += 1;
    head.latest_at = head.latest_at.max(at);
    let row = taken.row(head.beat_position, at);
    write::insert_beats(connection, &row, head.latest_at).await?;
    Ok(Mark::of_row(&row))
}

/// Decides commands whose runs are locked, and writes what follows. Returns also how to tell that it was committed, and
/// the clocks, if this process beaconed, and what an observer is told of.
async fn decide(
    connection: &mut PgConnection,
    shared: &Shared,
    commands: &[Command],
    (mut ground, service, head, clocks): (Ground, Arc<ServiceLog>, Head, Clocks),
) -> Result<(Vec<Outcome>, Mark, Option<ClockSample>, Vec<Noted>), StoreError> {
    let now = clocks.1.max(head.latest_at.next());
    ground::read(connection, &service, commands, now, &mut ground).await?;
    let last_beacon = *shared.last_beacon.lock().unwrap_or_else(PoisonError::into_inner);
    let mut batch = Batch::begin(ground, service, head, clocks, last_beacon.as_ref(), commands);
    let outcomes = batch.decide_all(commands)?;
    let decided = batch.finish();
    write::apply(connection, &decided.writes, decided.head.latest_at).await?;
    Ok((outcomes, Mark::of(&decided.writes), decided.beacon, decided.noted))
}

/// The pauses between two tries.
fn steps() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(STEP_MIN).with_max_delay(STEP_MAX).with_jitter().without_max_times()
}

/// The pauses between the tries of a batch: few while the database is known to be away, so that callers hear of it soon.
fn patience(away: bool) -> impl Iterator<Item = Duration> {
    let total = if away { Duration::ZERO } else { PATIENCE };
    steps().build().scan(Duration::ZERO, move |waited, delay| {
        *waited += delay;
        (*waited <= total).then_some(delay)
    })
}
