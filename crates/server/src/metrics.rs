//! Figures for Prometheus.
//!
//! Counters count what this process did, so a sum over the replicas is what all of them did. They are fed where things
//! happen: by the store as it commits ([`Observer`]), by the sweeper after each pass, by the handlers that take
//! heartbeats. How many runs there are is counted by a task of its own each [`COUNT_INTERVAL`], never at a scrape, which
//! must cost nothing however often somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lastbeat_domain::event::{ServiceEvent, Signal};
use lastbeat_domain::{Name, RefusalCode, Span, Status, Timestamp};
use lastbeat_store::compact::CompactionReport;
use lastbeat_store::{CommandError, Commit, Noted, Observer, Outcome, ReapCount, ReapTally, Store, StoreError};
use lastbeat_sweeper::SweepReport;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// How often runs are counted.
pub const COUNT_INTERVAL: Duration = Duration::from_secs(15);
/// How often at the most, while somebody looks.
const COUNT_PAUSE_MIN: Duration = Duration::from_millis(900);
/// Which part of the time is spent on it at the most while somebody looks: one in so many.
const COUNT_SHARE: u32 = 20;
/// The type of what [`Metrics::encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How many lanes have figures of their own. Whoever may make runs may name lanes, and each name is memory.
const LANES_MAX: usize = 1_000;
/// What stands for all further lanes.
const OTHER_LANES: &str = "(other)";

/// Seconds from a thousandth to a few minutes.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Commands of a batch.
const COMMANDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLane {
    lane: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    lane: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRule {
    lane: String,
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWindow {
    lane: String,
    rule: &'static str,
    /// In seconds.
    window: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSignal {
    lane: String,
    signal: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCause {
    cause: &'static str,
}

/// How many runs of each status each lane had.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    /// When they had been counted.
    at: Instant,
    /// How long that took.
    took: Duration,
    /// For each lane, for each status.
    pub(crate) lanes: BTreeMap<Name, BTreeMap<Status, u64>>,
}

/// The figures of a process.
pub struct Metrics {
    registry: Registry,
    /// The runs as they were last counted.
    counted: Mutex<Option<Arc<Counted>>>,
    /// The lanes that have figures of their own.
    lanes: Mutex<BTreeSet<Name>>,
    runs: Family<OfStatus, Gauge>,
    reaped: Family<OfRule, Counter>,
    late_signals: Family<OfSignal, Counter>,
    false_reap_rate: Family<OfWindow, Gauge<f64, std::sync::atomic::AtomicU64>>,
    false_reap_rate_reaps: Family<OfWindow, Gauge>,
    heartbeats: Family<OfResult, Counter>,
    detection_lag: Histogram,
    sweep_duration: Histogram,
    sweep_last_success: Gauge<f64, std::sync::atomic::AtomicU64>,
    deaf: Family<OfCause, Counter<f64, std::sync::atomic::AtomicU64>>,
    held: Family<OfLane, Gauge>,
    append_batch_size: Histogram,
    append_duration: Histogram,
    compaction: CompactionFigures,
}

/// The figures of compactions.
struct CompactionFigures {
    compacted: Counter,
    uncompacted: Gauge,
}

impl CompactionFigures {
    fn new(registry: &mut Registry) -> CompactionFigures {
        let help = "Heartbeats that this process moved out of the rows of their commits";
        let compacted = register(registry, "lastbeat_compacted_heartbeats", help, Counter::default());
        let help = "Rows of commits that this process last found not compacted";
        let uncompacted = register(registry, "lastbeat_uncompacted_rows", help, Gauge::default());
        CompactionFigures { compacted, uncompacted }
    }
}

impl Metrics {
    /// Makes figures that say nothing yet.
    pub fn new() -> Arc<Metrics> {
        let mut registry = Registry::default();
        let seconds = || Histogram::new(SECONDS);
        let metrics = Metrics {
            counted: Mutex::default(),
            lanes: Mutex::default(),
            runs: register(&mut registry, "lastbeat_runs", "Runs, counted each 15 s", Family::default()),
            reaped: register(&mut registry, "lastbeat_reaped", "Runs reaped by this process", Family::default()),
            late_signals: register(
                &mut registry,
                "lastbeat_late_signals",
                "What executors said for the first time after a reap, which may have been wrong then",
                Family::default(),
            ),
            false_reap_rate: register(
                &mut registry,
                "lastbeat_false_reap_rate",
                "Share of all reaps of which the executor was heard afterwards, by rule and heartbeat window in force",
                Family::default(),
            ),
            false_reap_rate_reaps: register(
                &mut registry,
                "lastbeat_false_reap_rate_reaps",
                "Reaps on which the false reap rate rests",
                Family::default(),
            ),
            heartbeats: register(
                &mut registry,
                "lastbeat_heartbeats",
                "Heartbeats that came to this process, by what became of them",
                Family::default(),
            ),
            detection_lag: register(
                &mut registry,
                "lastbeat_detection_lag_seconds",
                "From the end of a run's window to its reap",
                seconds(),
            ),
            sweep_duration: register(
                &mut registry,
                "lastbeat_sweep_duration_seconds",
                "How long a pass of the sweeper took",
                seconds(),
            ),
            sweep_last_success: register(
                &mut registry,
                "lastbeat_sweep_last_success_timestamp_seconds",
                "When the last pass of the sweeper ended, in log time",
                Gauge::default(),
            ),
            deaf: register(
                &mut registry,
                "lastbeat_deaf_seconds",
                "Time in which nobody could have been heard, as this process recorded it",
                Family::default(),
            ),
            held: register(
                &mut registry,
                "lastbeat_held",
                "1 where nothing is reaped by silence, because too much went silent at once",
                Family::default(),
            ),
            append_batch_size: register(
                &mut registry,
                "lastbeat_append_batch_size",
                "Commands that one transaction carried out",
                Histogram::new(COMMANDS),
            ),
            append_duration: register(
                &mut registry,
                "lastbeat_append_duration_seconds",
                "How long a transaction took, from its beginning to its commit",
                seconds(),
            ),
            compaction: CompactionFigures::new(&mut registry),
            registry,
        };
        metrics.stand_at_nought();
        Arc::new(metrics)
    }

    /// What is watched for standing at nought is there from the start.
    fn stand_at_nought(&self) {
        for result in HEARTBEAT_RESULTS {
            let _ = self.heartbeats.get_or_create(&OfResult { result });
        }
        for cause in ["gap", "clock_step"] {
            let _ = self.deaf.get_or_create(&OfCause { cause });
        }
    }

    /// Takes in what a pass of the sweeper did.
    pub fn swept(&self, report: &SweepReport) {
        for lag in report.reaped.iter().filter_map(lastbeat_sweeper::ReapedRun::lag) {
            self.detection_lag.observe(lag.as_seconds());
        }
        self.sweep_duration.observe(report.duration.as_seconds());
        let ended = report.at.plus(report.duration);
        self.sweep_last_success.set(micros_to_seconds(ended.as_micros()));
        self.held(report.held.iter().map(|held| &held.lane));
    }

    /// Takes in what a step of a compaction did.
    pub fn compacted(&self, step: &CompactionReport) {
        self.compaction.compacted.inc_by(step.beats);
        self.compaction.uncompacted.set(i64::try_from(step.left).unwrap_or(i64::MAX));
    }

    /// Takes in what became of a heartbeat.
    pub fn heard(&self, outcome: &Outcome) {
        let result = match outcome {
            Ok(_) => "accepted",
            Err(CommandError::Refused(refusal)) => match refusal.code {
                RefusalCode::StaleAttempt | RefusalCode::Settled => "fenced",
                _ => "refused",
            },
            Err(CommandError::Failed(_)) => "failed",
        };
        self.heartbeats.get_or_create(&OfResult { result }).inc();
    }

    /// Takes in which lanes are held; no other is.
    fn held<'a>(&self, lanes: impl Iterator<Item = &'a Name>) {
        let held: BTreeSet<String> = lanes.map(|lane| self.lane(lane)).collect();
        let known = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = known.iter().map(Name::as_str).chain([OTHER_LANES]);
        for lane in known.filter(|lane| !held.contains(*lane)) {
            let label = OfLane { lane: lane.to_owned() };
            if let Some(gauge) = self.held.get(&label) {
                gauge.set(0);
            }
        }
        for lane in held {
            self.held.get_or_create(&OfLane { lane }).set(1);
        }
    }

    /// Returns all figures in the text format of OpenMetrics.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// The label of a lane.
    fn lane(&self, lane: &Name) -> String {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.contains(lane) {
            return lane.to_string();
        }
        if lanes.len() >= LANES_MAX {
            return OTHER_LANES.to_owned();
        }
        lanes.insert(lane.clone());
        lane.to_string()
    }

    /// Takes in how often reaps were wrong, over the whole log.
    fn rate_reaps(&self, tally: &ReapTally) {
        let mut counts: BTreeMap<(String, &'static str, Span), ReapCount> = BTreeMap::new();
        for (kind, count) in tally.iter() {
            let known = counts.entry((self.lane(&kind.lane), kind.rule.as_str(), kind.window)).or_default();
            *known = known.plus(count);
        }
        for ((lane, rule, window), count) in counts {
            let labels = OfWindow { lane, rule, window: window.as_seconds().to_string() };
            self.false_reap_rate.get_or_create(&labels).set(count.rate().unwrap_or_default());
            let reaped = i64::try_from(count.reaped).unwrap_or(i64::MAX);
            self.false_reap_rate_reaps.get_or_create(&labels).set(reaped);
        }
    }

    /// Returns how many runs there are, counted lately: the longer that takes, the longer ago it may be, and no longer
    /// than [`COUNT_INTERVAL`].
    pub(crate) async fn counts(&self, store: &dyn Store) -> Result<Arc<Counted>, StoreError> {
        let known = self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_fresh = |counted: &Counted| {
            let fresh_for = (counted.took * COUNT_SHARE).clamp(COUNT_PAUSE_MIN, COUNT_INTERVAL);
            !counted.lanes.is_empty() && counted.at.elapsed() < fresh_for
        };
        match known.filter(|counted| is_fresh(counted)) {
            Some(counted) => Ok(counted),
            None => self.count_lanes(store).await,
        }
    }

    async fn count_lanes(&self, store: &dyn Store) -> Result<Arc<Counted>, StoreError> {
        let (started, mut lanes) = (Instant::now(), BTreeMap::new());
        for lane in store.lanes().await? {
            let found = store.count(&lane).await?;
            lanes.insert(lane, found);
        }
        let counted = Arc::new(Counted { at: Instant::now(), took: started.elapsed(), lanes });
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&counted));
        Ok(counted)
    }

    /// Returns when the last pass of this process's sweeper ended, in log time; `None` before the first one.
    pub(crate) fn last_sweep(&self) -> Option<Timestamp> {
        #[allow(clippy::cast_possible_truncation)] // To the microsecond until the year 2255.
        let micros = (self.sweep_last_success.get() * 1e6) as i64;
        (micros > 0).then(|| Timestamp::from_micros(micros))
    }

    async fn count(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut counts: BTreeMap<(String, Status), u64> = BTreeMap::new();
        let counted = self.count_lanes(store).await?;
        for (lane, found) in &counted.lanes {
            let label = self.lane(lane);
            for status in Status::ALL {
                *counts.entry((label.clone(), status)).or_default() += found.get(&status).copied().unwrap_or(0);
            }
        }
        for ((lane, status), count) in counts {
            let labels = OfStatus { lane, status: status.as_str() };
            self.runs.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.rate_reaps(&*store.reap_tally().await?);
        let service = store.service_log().await?;
        self.held(service.holds().filter(|(_, hold)| hold.state.is_held()).map(|(lane, _)| lane));
        Ok(())
    }
}

impl Observer for Metrics {
    fn committed(&self, commit: &Commit<'_>) {
        self.append_batch_size.observe(f64::from(u32::try_from(commit.commands).unwrap_or(u32::MAX)));
        self.append_duration.observe(commit.took.as_secs_f64());
        for noted in commit.noted {
            match noted {
                Noted::Reaped { lane, rule } => {
                    let labels = OfRule { lane: self.lane(lane), rule: rule.as_str() };
                    self.reaped.get_or_create(&labels).inc();
                }
                Noted::LateSignal { lane, signal } => {
                    let labels = OfSignal { lane: self.lane(lane), signal: word_for(*signal) };
                    self.late_signals.get_or_create(&labels).inc();
                }
                Noted::Service(ServiceEvent::Deaf { from, to, cause, .. }) => {
                    let cause = match cause {
                        lastbeat_domain::event::DeafCause::Gap => "gap",
                        lastbeat_domain::event::DeafCause::ClockStep => "clock_step",
                    };
                    self.deaf.get_or_create(&OfCause { cause }).inc_by(to.since(*from).as_seconds());
                }
                Noted::Service(_) => {}
            }
        }
    }
}

/// Counts the runs of each lane each `every`, until `stop` completes.
pub async fn count_runs(metrics: &Metrics, store: &dyn Store, every: Duration, stop: impl Future<Output = ()>) {
    tokio::pin!(stop);
    loop {
        if let Err(error) = metrics.count(store).await {
            tracing::warn!(%error, "the runs could not be counted; the figures are those of before");
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = &mut stop => return,
        }
    }
}

/// What may become of a heartbeat.
const HEARTBEAT_RESULTS: [&str; 4] = ["accepted", "fenced", "refused", "failed"];

fn word_for(signal: Signal) -> &'static str {
    match signal {
        Signal::Heartbeat => "heartbeat",
        Signal::Started => "started",
        Signal::Completed => "completed",
        Signal::Failed => "failed",
    }
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

#[allow(clippy::cast_precision_loss)] // To the microsecond until the year 2255.
fn micros_to_seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
