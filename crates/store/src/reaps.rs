//! How often reaps were wrong: the reaps of a store, and those of which the executor was heard afterwards.
//!
//! A reap was probably wrong if its executor spoke about that attempt later, by a late signal or by a completion that was
//! adopted, and what it said [contradicts](Rule::is_contradicted_by) the rule: that a run still beats is no news where it
//! was reaped for want of progress. It counts once, however often that happened. The counts follow from the log alone. They are kept in memory
//! and brought up to date by the rows that came since, which an index finds that holds nothing else: so the first look
//! costs as much as there were reaps, and each further one next to nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lastbeat_domain::event::{RunEvent, Signal};
use lastbeat_domain::{Name, Recorded, Rule, RunId, Span, Timestamp};
use uuid::Uuid;

use crate::error::StoreError;
use crate::log::unsigned;
use crate::record::{Stored, decode_run_event};
use crate::service::ServiceLog;

/// How many rows are read at a time.
pub(crate) const PAGE_ROWS: i64 = 2_000;

/// Which reaps are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReapKind {
    /// The lane of the runs.
    pub lane: Name,
    /// The rule under which they lapsed.
    pub rule: Rule,
    /// The heartbeat window of the policy that was in force at the reap.
    pub window: Span,
}

/// How many reaps there were, of attempts: a run that nobody had claimed has no executor that could be heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReapCount {
    /// All of them.
    pub reaped: u64,
    /// Those that the executor contradicted afterwards.
    pub wrong: u64,
}

impl ReapCount {
    /// Returns the share of the wrong ones; `None` if there were no reaps.
    #[allow(clippy::cast_precision_loss)] // Counts of reaps are far below the 2^53 up to which they are exact.
    pub fn rate(self) -> Option<f64> {
        (self.reaped > 0).then(|| self.wrong as f64 / self.reaped as f64)
    }

    /// Returns the sum of two counts.
    #[must_use]
    pub fn plus(self, other: ReapCount) -> ReapCount {
        ReapCount { reaped: self.reaped + other.reaped, wrong: self.wrong + other.wrong }
    }
}

/// The reaps of a store, up to a position of its log.
#[derive(Clone, Debug, Default)]
pub struct ReapTally {
    /// The position up to which the log was read.
    pub(crate) through: i64,
    counts: BTreeMap<ReapKind, ReapCount>,
}

impl ReapTally {
    /// Returns the counts, by lane, rule and window.
    pub fn iter(&self) -> impl Iterator<Item = (&ReapKind, ReapCount)> {
        self.counts.iter().map(|(kind, count)| (kind, *count))
    }

    /// Returns the counts of a lane.
    pub fn of_lane<'a>(&'a self, lane: &'a Name) -> impl Iterator<Item = (&'a ReapKind, ReapCount)> {
        self.iter().filter(move |(kind, _)| kind.lane == *lane)
    }

    /// Returns what is known after a page of rows was read that followed on `known`.
    pub(crate) fn after(
        known: &Arc<ReapTally>,
        page: &ReapPage,
        service: &ServiceLog,
    ) -> Result<Arc<ReapTally>, StoreError> {
        if page.rows.is_empty() {
            return Ok(Arc::clone(known));
        }
        let mut tally = ReapTally::clone(known);
        let histories = page.histories()?;
        for row in &page.rows {
            tally.through = row.position;
            let Stored::Known(fact) = row.fact()? else { continue };
            let lane = row.lane()?;
            let attempt = match fact.event {
                RunEvent::TimedOut { attempt, .. } if attempt > 0 => {
                    tally.note(lane, &fact, service, |count| count.reaped += 1);
                    continue;
                }
                RunEvent::LateSignal { attempt, .. } | RunEvent::Completed { attempt, late: true, .. } => attempt,
                _ => continue,
            };
            let history = histories.get(&row.run).into_iter().flatten();
            let until = history.filter(|earlier| earlier.version <= fact.version);
            if let Some(reap) = first_contradiction(until, attempt, fact.version) {
                tally.note(lane, reap, service, |count| count.wrong += 1);
            }
        }
        Ok(Arc::new(tally))
    }

    fn note(&mut self, lane: Name, reap: &Recorded, service: &ServiceLog, count: impl FnOnce(&mut ReapCount)) {
        let RunEvent::TimedOut { rule, .. } = reap.event else { return };
        let window = service.policy(&lane, reap.recorded_at).terms.heartbeat_window;
        count(self.counts.entry(ReapKind { lane, rule, window }).or_default());
    }
}

/// Returns the reap of an attempt if the fact at that version is the first that contradicts it.
fn first_contradiction<'a>(
    history: impl Iterator<Item = &'a Recorded>,
    about: u32,
    version: u64,
) -> Option<&'a Recorded> {
    let mut reaped = None;
    for fact in history {
        let (attempt, signal) = match fact.event {
            RunEvent::TimedOut { attempt, rule, .. } if attempt == about => {
                reaped = Some((fact, rule));
                continue;
            }
            RunEvent::LateSignal { attempt, signal, .. } => (attempt, signal),
            RunEvent::Completed { attempt, late: true, .. } => (attempt, Signal::Completed),
            _ => continue,
        };
        if let Some((reap, _)) = reaped.filter(|(_, rule)| attempt == about && rule.is_contradicted_by(signal)) {
            return (fact.version == version).then_some(reap);
        }
    }
    None
}

/// A row of `events` that is a reap, or something that was said after one.
#[derive(Debug)]
pub(crate) struct ReapRow {
    pub(crate) position: i64,
    pub(crate) run: i64,
    pub(crate) version: i64,
    pub(crate) recorded_at: i64,
    pub(crate) schema: i64,
    pub(crate) body: String,
    /// The body of the run's first fact, which names its lane.
    pub(crate) created: String,
}

/// Some of them in the order of their commits, and all of the runs of which something was said.
#[derive(Debug, Default)]
pub(crate) struct ReapPage {
    pub(crate) rows: Vec<ReapRow>,
    /// By run and version. What it was created with is left out.
    pub(crate) around: Vec<ReapRow>,
}

impl ReapRow {
    fn fact(&self) -> Result<Stored, StoreError> {
        let at = Timestamp::from_micros(self.recorded_at);
        // Who the run is for the outside plays no part here.
        decode_run_event(RunId::from_uuid(Uuid::nil()), unsigned(self.version)?, at, self.schema, &self.body)
    }

    fn lane(&self) -> Result<Name, StoreError> {
        let created: Option<serde_json::Value> = serde_json::from_str(&self.created).ok();
        let lane = created.as_ref().and_then(|created| created.get("lane")?.as_str());
        let lane = lane.and_then(|lane| Name::new(lane).ok());
        lane.ok_or_else(|| StoreError::Corrupt(format!("the run of position {} has no lane", self.position)))
    }

    /// Says whether it may be something that was said after a reap. What an executor says may hold any text, so only the
    /// fact itself can tell.
    fn is_word(&self) -> bool {
        !matches!(self.fact(), Ok(Stored::Known(Recorded { event: RunEvent::TimedOut { .. }, .. })))
    }
}

impl ReapPage {
    /// Says whether there may be more rows.
    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() >= usize::try_from(PAGE_ROWS).unwrap_or(usize::MAX)
    }

    /// Returns the runs of which something was said.
    pub(crate) fn spoken_of(rows: &[ReapRow]) -> Vec<i64> {
        let runs: BTreeSet<i64> = rows.iter().filter(|row| row.is_word()).map(|row| row.run).collect();
        runs.into_iter().collect()
    }

    fn histories(&self) -> Result<HashMap<i64, Vec<Recorded>>, StoreError> {
        let mut histories: HashMap<i64, Vec<Recorded>> = HashMap::new();
        for row in &self.around {
            if let Stored::Known(fact) = row.fact()? {
                histories.entry(row.run).or_default().push(fact);
            }
        }
        Ok(histories)
    }
}
