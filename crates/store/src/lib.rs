//! The append-only log of Lastbeat, its projection, and the one path on which both are written.
//!
//! A [`Store`] is asked and told through the trait; [`sqlite::SqliteStore`] keeps it in one file, and
//! [`postgres::PostgresStore`] in a database that many processes share. Facts are the truth,
//! the projection is made from them, and no answer about a run comes from here without [`judge`]: see [`ask`].
//!
//! Every write goes through [`Store::execute`] or one of its siblings: [`Store::import`], [`Store::compact`] and
//! [`Store::rebuild`].

pub mod ask;
pub mod backtest;
mod batch;
pub mod bundle;
mod clock;
pub mod compact;
mod digest;
mod doctor;
mod error;
pub mod generate;
mod idempotency;
mod import;
mod log;
pub mod observe;
mod packing;
mod past;
pub mod postgres;
mod queue;
mod reaps;
mod record;
mod replay;
pub mod secret;
mod service;
pub mod sqlite;
mod timeline;
mod truth;
mod verify;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use lastbeat_domain::backtest::BacktestReport;
use lastbeat_domain::decide::Command;
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::{
    LanePolicy, Listening, Name, Recorded, Run, RunId, ServiceRecorded, Span, Status, Timestamp, Verdict, judge,
};
use serde_json::Value;

pub use backtest::Question;
pub use bundle::{Bundle, BundleLine, With};
pub use clock::{Clock, SystemClock};
pub use doctor::{Check, Health};
pub use error::{CommandError, ImportError, StoreError};
pub use import::{CheckedImport, ImportReport, check as check_import};
pub use observe::{Commit, Noted, Observer};
pub use reaps::{ReapCount, ReapKind, ReapTally};
pub use record::{Stored, UnknownFact, fold, take_in};
pub use replay::{Replay, Stretch, replay};
pub use service::{LaneHold, ServiceLog};
pub use timeline::{Silence, Timeline, timeline};
pub use verify::{Damage, DamageKind, RebuildReport, VerifyReport};

/// A run judged at an instant, with what it was judged by.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The run as its stream said at that instant.
    pub run: Run,
    /// The verdict.
    pub verdict: Verdict,
    /// The policy that was in force.
    pub policy: LanePolicy,
    /// The listening record as of that instant.
    pub listening: Arc<Listening>,
    /// The log time of the verdict.
    pub at: Timestamp,
}

impl Judged {
    /// Judges a run at log time `at`.
    pub fn new(run: Run, policy: LanePolicy, listening: Arc<Listening>, at: Timestamp) -> Judged {
        let verdict = judge(&run, &policy, &listening, at);
        Judged { run, verdict, policy, listening, at }
    }
}

/// What an executor learns from a heartbeat that was taken: all that it needs to go on, and no more, since heartbeats
/// are the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The run's version after it.
    pub version: u64,
    /// The log time of the heartbeat.
    pub at: Timestamp,
    /// Whether somebody asked for the run to be cancelled.
    pub cancel_requested: bool,
    /// Within which time the next heartbeat is expected.
    pub interval: Span,
    /// When the run lapses if nothing more is heard of it.
    pub lapses_at: Option<Timestamp>,
}

impl Heard {
    /// Returns the heartbeat as it stands in the log, which is a plain one.
    fn fact(&self) -> Recorded {
        let event = RunEvent::Heartbeat { attempt: self.attempt, progress: None };
        Recorded { run: self.run, version: self.version, recorded_at: self.at, event }
    }

    /// Says what the executor of a run that has just beaten is to know.
    pub(crate) fn of(judged: &Judged) -> Heard {
        let run = &judged.run;
        Heard {
            run: run.id,
            attempt: run.attempt,
            version: run.version,
            at: run.updated_at,
            cancel_requested: run.cancel_requested.is_some(),
            interval: judged.policy.terms.heartbeat_interval,
            lapses_at: judged.verdict.lapses_at(),
        }
    }
}

/// What became of a command that was carried out.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The run after it, judged at the log time of the command; `None` for a heartbeat and for a command about no run.
    pub judged: Option<Box<Judged>>,
    /// What the executor is to know, for a heartbeat.
    pub heard: Option<Heard>,
    /// The facts of the run that were appended, but for a plain heartbeat of which `heard` says it all: see
    /// [`Answer::facts`].
    pub appended: Vec<Recorded>,
    /// The service facts that were appended.
    pub service: Vec<ServiceRecorded>,
    /// True when `create` found an open run with the unique key: that run is the answer, and nothing was appended.
    pub existing: bool,
    /// What the executor is to work on, for a claim.
    pub input: Option<Value>,
    /// How many runs were re-armed.
    pub rearmed: u64,
}

impl Answer {
    /// Returns the facts of the run that were appended.
    pub fn facts(&self) -> Vec<Recorded> {
        match &self.heard {
            Some(heard) if self.appended.is_empty() => vec![heard.fact()],
            _ => self.appended.clone(),
        }
    }
}

/// What became of one command of a batch.
pub type Outcome = Result<Answer, CommandError>;

/// A batch that is being carried out, once it is waited for.
pub type Executing<'s> = Pin<Box<dyn Future<Output = Vec<Outcome>> + Send + 's>>;

/// Which runs to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only runs of this lane.
    pub lane: Option<Name>,
    /// Only runs of this goal.
    pub goal: Option<Name>,
    /// Only runs of these statuses; empty: of any.
    pub statuses: Vec<Status>,
}

/// A run that a sweeper is to look at.
#[derive(Clone, Debug)]
pub struct Due {
    /// The run, judged at the log time of the look.
    pub judged: Judged,
    /// The log time for which the look was due.
    pub check_at: Timestamp,
}

/// A page of a run's stream.
#[derive(Clone, Debug)]
pub struct StreamPage {
    /// The facts, in order.
    pub facts: Vec<Stored>,
    /// The version after which the next page begins; `None` when there is none.
    pub next: Option<u64>,
}

/// A fact of the feed: the whole store's facts in the order of their commits, but for plain heartbeats, which are read
/// by run.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedEntry {
    /// Its place in the order. Whoever has seen one never misses a smaller one.
    pub position: u64,
    /// The fact.
    pub fact: FeedFact,
}

/// What the feed tells of.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedFact {
    /// A fact of a run.
    Run(Stored),
    /// A fact of the service, in the form of an export.
    Service(String),
}

/// Some of the running runs of a lane.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The runs: all of them, or a random choice.
    pub runs: Vec<Run>,
    /// How many there are.
    pub of: u64,
}

/// Is told how far a long piece of work is: how much is done, and of how much.
pub type Progress<'a> = dyn Fn(u64, u64) + Send + Sync + 'a;

/// Is told the same of a long question, and says whether it is still to be answered.
pub type Watch<'a> = dyn Fn(u64, u64) -> ControlFlow<()> + Send + Sync + 'a;

/// What takes the lines of an export, one at a time.
pub type LineSink<'a> = dyn FnMut(&str) -> std::io::Result<()> + Send + 'a;

/// A log of facts and its projection.
#[async_trait]
pub trait Store: Send + Sync {
    /// Carries out a batch of commands and answers each, in order, once what it appended is durable. One bad command
    /// never fails the others. Commands about the same run are carried out in order, but not in one transaction.
    fn execute(&self, batch: Vec<Command>) -> Executing<'_>;

    /// Returns the log's now: the later of the clock and the latest instant that the store holds.
    async fn now(&self) -> Result<Timestamp, StoreError>;

    /// Returns what the service events say.
    async fn service_log(&self) -> Result<Arc<ServiceLog>, StoreError>;

    /// Returns a run as the projection says; `None` if there is no such run.
    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError>;

    /// Returns a page of a run's stream: at most `limit` facts after version `after`. Empty if there is no such run.
    async fn stream(&self, id: RunId, after: u64, limit: usize) -> Result<StreamPage, StoreError>;

    /// Returns at most `limit` facts after a position, in the order of their commits.
    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedEntry>, StoreError>;

    /// Returns the position of the last fact of the feed; 0 if there is none.
    async fn log_end(&self) -> Result<u64, StoreError>;

    /// Returns runs, newest first, at most `limit`, beginning after the run `after`.
    async fn list(&self, filter: &Filter, after: Option<RunId>, limit: usize) -> Result<Vec<Run>, StoreError>;

    /// Returns the goals that runs ever had, in the database's order of text, at most `limit`, beginning after the goal
    /// `after`.
    async fn goals(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Name>, StoreError>;

    /// Returns the runs that a sweeper is to look at by log time `now`, the longest due first.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Due>, StoreError>;

    /// Returns the log time at which the next run is due.
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Returns the running runs of a lane: all of them, or of more than `limit` a random choice.
    async fn running(&self, lane: &Name, limit: usize) -> Result<Sample, StoreError>;

    /// Returns the position of a cursor; `None` if there is none with that name.
    async fn cursor(&self, name: &Name) -> Result<Option<u64>, StoreError>;

    /// Returns the clocks from which the store draws log time.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Returns the lanes whose policy was set, or whose hold ended, since all their open runs were armed.
    async fn lanes_to_rearm(&self) -> Result<Vec<Name>, StoreError>;

    /// Returns every lane that was ever named.
    async fn lanes(&self) -> Result<Vec<Name>, StoreError>;

    /// Counts the reaps, and those of which the executor was heard afterwards. Only what came since it was last asked
    /// is read.
    async fn reap_tally(&self) -> Result<Arc<ReapTally>, StoreError>;
    /// Counts the runs of a lane by status.
    async fn count(&self, lane: &Name) -> Result<BTreeMap<Status, u64>, StoreError>;

    /// Makes checked histories part of the store, all or nothing.
    async fn import(&self, import: CheckedImport) -> Result<ImportReport, ImportError>;

    /// Hands every fact to `sink`, as one line each: the service events, then run by run, as of one instant. Returns
    /// the number of lines.
    async fn export(&self, sink: &mut LineSink<'_>) -> Result<u64, StoreError>;

    /// Returns the service events, as one line of an export each, in the order of their commits.
    async fn service_lines(&self) -> Result<Vec<String>, StoreError>;
    /// Compares the projection with the fold of the truth and looks for every kind of damage.
    async fn verify(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError>;

    /// Makes every run anew from the truth alone and compares it with the projection. Of what [`Store::verify`] looks for,
    /// the report has what concerns runs and their heartbeats.
    async fn replay_all(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError>;

    /// Judges a lane's recorded past under other policies, as it is at one instant. When `watch` breaks it off, the
    /// answer is [`StoreError::Stopped`].
    async fn backtest(&self, question: &Question, watch: &Watch<'_>) -> Result<BacktestReport, StoreError>;

    /// Makes the projection anew from the log, beside the old one, and swaps them. Others may go on writing meanwhile.
    async fn rebuild(&self, progress: &Progress<'_>) -> Result<RebuildReport, StoreError>;

    /// Moves the oldest commits' heartbeats out of their rows, a bounded number of them, once they stand in the segments of
    /// their runs. No answer changes. Others may go on writing meanwhile; another compaction or a rebuild may not, and then
    /// the store is unavailable for this.
    async fn compact(&self, bounds: compact::Bounds) -> Result<compact::CompactionReport, StoreError>;

    /// Copies the store, as it is at one instant, into a new file. Others may go on writing meanwhile.
    async fn backup(&self, file: &Path) -> Result<(), StoreError>;

    /// Looks at what the store stands on, and says what to do about what is not well.
    async fn doctor(&self) -> Result<Vec<Check>, StoreError>;

    /// Lets an observer be told of each commit of this process; the first one stays.
    fn observe(&self, observer: Arc<dyn Observer>);

    /// Finishes what is under way and closes the store.
    async fn close(&self);
}

/// Opens the store that a database URL names. `create` makes and migrates a file where it is missing; a PostgreSQL
/// database is made ready by [`postgres::migrate`], on purpose.
///
/// # Errors
/// If the URL is of no known form, or the database is missing, unreadable, another program's or too new.
pub async fn open(url: &str, create: bool) -> Result<Arc<dyn Store>, StoreError> {
    if postgres::is_url(url) {
        return Ok(Arc::new(postgres::PostgresStore::open(url, None).await?));
    }
    let store = sqlite::SqliteStore::open(url, create, Arc::new(SystemClock)).await?;
    Ok(Arc::new(store))
}
