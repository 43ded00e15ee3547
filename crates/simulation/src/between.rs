//! What comes between a sweeper and its store: whatever happens after the plan was made and before it is carried out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use lastbeat_domain::backtest::BacktestReport;
use lastbeat_domain::decide::Command;
use lastbeat_domain::{Name, Recorded, RefusalCode, Run, RunId, ServiceRecorded, Span, Status, Timestamp};
use lastbeat_store::compact::{Bounds, CompactionReport};
use lastbeat_store::sqlite::SqliteStore;
use lastbeat_store::{
    Check, CheckedImport, Clock, CommandError, Due, Executing, FeedEntry, Filter, ImportError, ImportReport, LineSink,
    Observer, Outcome, Progress, Question, ReapTally, RebuildReport, Sample, ServiceLog, Store, StoreError, Stored,
    StreamPage, VerifyReport, Watch,
};
use lastbeat_sweeper::{SweepReport, Sweeper};
use lastbeat_testkit::SimulatedClock;

/// A process that sweeps, and the store as it sees it.
pub(crate) struct Process {
    pub(crate) name: Name,
    pub(crate) sweeper: Sweeper,
    pub(crate) store: Arc<Between>,
    /// Whether the clock was set forward and this process has not recorded it.
    pub(crate) stepped: bool,
    /// How far the clock was set forward since it last beaconed, if that is known.
    pub(crate) skipped: Span,
    /// How long after the start it last beaconed.
    pub(crate) beaconed_at: Span,
}

/// Something that happens in the middle of a pass.
pub(crate) enum Intrusion {
    /// Time passes.
    Advance(Span),
    /// The clock is set to that far from where it stands.
    Step(i64),
    /// An executor's command arrives.
    Command(Parcel),
    /// Another sweeper makes a whole pass.
    Pass(Box<Process>),
}

/// A command on its way, and who sent it: the executor and its generation.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) from: Option<(usize, u32)>,
    pub(crate) command: Command,
}

/// What the store answered.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// It was done.
    Done {
        appended: Vec<Recorded>,
        service: Vec<ServiceRecorded>,
        run: Option<Box<Run>>,
        /// The run, if its executor is told to stop working on it.
        cancel: Option<RunId>,
    },
    /// It was decided against; `left_behind` was recorded all the same, or before.
    Refused { code: RefusalCode, left_behind: Vec<Recorded> },
    /// It could not be decided or written.
    Failed(String),
}

impl Said {
    fn of(outcome: &Outcome) -> Said {
        match outcome {
            Ok(answer) => {
                let run = answer.judged.as_ref().map(|judged| Box::new(judged.run.clone()));
                let held = run.as_ref().filter(|run| run.cancel_requested.is_some() && run.status.is_in_flight());
                let heard = answer.heard.as_ref().filter(|heard| heard.cancel_requested);
                let cancel = held.map(|run| run.id).or(heard.map(|heard| heard.run));
                Said::Done { appended: answer.appended.clone(), service: answer.service.clone(), run, cancel }
            }
            Err(CommandError::Refused(refusal)) => Said::Refused { code: refusal.code, left_behind: Vec::new() },
            Err(CommandError::Failed(error)) => Said::Failed(error.to_string()),
        }
    }
}

/// A command that the store answered.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) parcel: Parcel,
    pub(crate) said: Said,
}

/// Sends a command to a store. What a refusal leaves behind in the run's stream is read from there.
pub(crate) async fn send(store: &SqliteStore, parcel: Parcel) -> Result<Seen, StoreError> {
    let outcome = store.execute(vec![parcel.command.clone()]).await.pop().unwrap();
    let mut said = Said::of(&outcome);
    if let (Said::Refused { left_behind, .. }, Some(run)) = (&mut said, parcel.command.run())
        && let Some(run) = store.run(run).await?
    {
        let last = store.stream(run.id, run.version - 1, 1).await?;
        left_behind.extend(last.facts.iter().filter_map(Stored::known).cloned());
    }
    Ok(Seen { parcel, said })
}

/// A store that lets others in before a plan is carried out, and remembers all that was said.
pub(crate) struct Between {
    inner: SqliteStore,
    desk: Arc<SqliteStore>,
    clock: Arc<SimulatedClock>,
    intrusions: Mutex<Vec<Intrusion>>,
    seen: Mutex<Vec<Seen>>,
    back: Mutex<Option<Box<Process>>>,
}

impl Between {
    /// Stands before `inner`; executors write through `desk`.
    pub(crate) fn new(inner: SqliteStore, desk: Arc<SqliteStore>, clock: Arc<SimulatedClock>) -> Between {
        let (intrusions, seen, back) = (Mutex::default(), Mutex::default(), Mutex::default());
        Between { inner, desk, clock, intrusions, seen, back }
    }

    /// Prepares what happens before the next reap.
    pub(crate) fn prepare(&self, intrusions: Vec<Intrusion>) {
        *locked(&self.intrusions) = intrusions;
    }

    /// Returns what did not happen because nothing was reaped.
    pub(crate) fn unused(&self) -> Vec<Intrusion> {
        std::mem::take(&mut *locked(&self.intrusions))
    }

    /// Returns what was said since it was last asked, in the order of the log.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *locked(&self.seen))
    }

    /// Gives the other sweeper back.
    pub(crate) fn back(&self) -> Option<Box<Process>> {
        locked(&self.back).take()
    }

    async fn intrude(&self, intrusion: Intrusion) -> Result<(), StoreError> {
        match intrusion {
            Intrusion::Advance(span) => self.clock.advance(span),
            Intrusion::Step(micros) => set_by(&self.clock, micros),
            Intrusion::Command(parcel) => {
                let seen = send(&self.desk, parcel).await?;
                locked(&self.seen).push(seen);
            }
            Intrusion::Pass(mut other) => {
                pass(&mut other).await?;
                let seen = other.store.seen();
                locked(&self.seen).extend(seen);
                *locked(&self.back) = Some(other);
            }
        }
        Ok(())
    }
}

/// Makes a pass; while the beacon is part of it, a step of the clock that was noticed is recorded.
pub(crate) async fn pass(process: &mut Process) -> Result<SweepReport, StoreError> {
    process.sweeper.pass(process.store.as_ref()).await
}

/// Sets the clock that far from where it stands.
pub(crate) fn set_by(clock: &SimulatedClock, micros: i64) {
    clock.set(Timestamp::from_micros(clock.now().as_micros() + micros));
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

#[async_trait]
impl Store for Between {
    fn execute(&self, batch: Vec<Command>) -> Executing<'_> {
        Box::pin(async move {
            if batch.iter().any(|command| matches!(command, Command::Reap { .. })) {
                for intrusion in self.unused() {
                    self.intrude(intrusion).await.unwrap();
                }
            }
            let outcomes = self.inner.execute(batch.clone()).await;
            for (command, outcome) in batch.into_iter().zip(&outcomes) {
                let seen = Seen { parcel: Parcel { from: None, command }, said: Said::of(outcome) };
                locked(&self.seen).push(seen);
            }
            outcomes
        })
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.inner.now().await
    }

    async fn service_log(&self) -> Result<Arc<ServiceLog>, StoreError> {
        self.inner.service_log().await
    }

    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        self.inner.run(id).await
    }

    async fn stream(&self, id: RunId, after: u64, limit: usize) -> Result<StreamPage, StoreError> {
        self.inner.stream(id, after, limit).await
    }

    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedEntry>, StoreError> {
        self.inner.feed(after, limit).await
    }

    async fn log_end(&self) -> Result<u64, StoreError> {
        self.inner.log_end().await
    }

    async fn list(&self, filter: &Filter, after: Option<RunId>, limit: usize) -> Result<Vec<Run>, StoreError> {
        self.inner.list(filter, after, limit).await
    }

    async fn goals(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Name>, StoreError> {
        self.inner.goals(after, limit).await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Due>, StoreError> {
        self.inner.due(now, limit).await
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.inner.next_due().await
    }

    async fn running(&self, lane: &Name, limit: usize) -> Result<Sample, StoreError> {
        self.inner.running(lane, limit).await
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock()
    }

    async fn cursor(&self, name: &Name) -> Result<Option<u64>, StoreError> {
        self.inner.cursor(name).await
    }

    async fn lanes_to_rearm(&self) -> Result<Vec<Name>, StoreError> {
        self.inner.lanes_to_rearm().await
    }

    async fn lanes(&self) -> Result<Vec<Name>, StoreError> {
        self.inner.lanes().await
    }

    async fn reap_tally(&self) -> Result<Arc<ReapTally>, StoreError> {
        self.inner.reap_tally().await
    }

    async fn count(&self, lane: &Name) -> Result<BTreeMap<Status, u64>, StoreError> {
        self.inner.count(lane).await
    }

    async fn import(&self, import: CheckedImport) -> Result<ImportReport, ImportError> {
        self.inner.import(import).await
    }

    async fn export(&self, sink: &mut LineSink<'_>) -> Result<u64, StoreError> {
        self.inner.export(sink).await
    }

    async fn service_lines(&self) -> Result<Vec<String>, StoreError> {
        self.inner.service_lines().await
    }

    async fn verify(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
        self.inner.verify(progress).await
    }

    async fn replay_all(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
        self.inner.replay_all(progress).await
    }

    async fn backtest(&self, question: &Question, watch: &Watch<'_>) -> Result<BacktestReport, StoreError> {
        self.inner.backtest(question, watch).await
    }

    async fn rebuild(&self, progress: &Progress<'_>) -> Result<RebuildReport, StoreError> {
        self.inner.rebuild(progress).await
    }

    async fn compact(&self, bounds: Bounds) -> Result<CompactionReport, StoreError> {
        self.inner.compact(bounds).await
    }

    async fn backup(&self, file: &Path) -> Result<(), StoreError> {
        self.inner.backup(file).await
    }

    async fn doctor(&self) -> Result<Vec<Check>, StoreError> {
        self.inner.doctor().await
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.inner.observe(observer);
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
