//! Reading the truth, and nothing else: events, segments, and what the commits' heartbeats hold that is in no segment
//! yet. The projection is not asked, so what is read here can be held against it, or make it anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::run::EvolveError;
use lastbeat_domain::{Name, Recorded, Run, RunId, Span, Timestamp};

use crate::batch::{Head, RunRow};
use crate::error::StoreError;
use crate::log::{BeatsRow, EventRow, SegmentRow, unsigned};
use crate::packing::Beat;
use crate::past::Wanted;
use crate::record::{Stored, decode_run_event, take_in};
use crate::verify::DamageKind;

/// How many runs are read at a time.
pub(crate) const PAGE_RUNS: i64 = 256;
/// How many heartbeats of commits are held in memory at a time.
const BEATS_IN_MEMORY: i64 = 2_000_000;
/// How many commits' heartbeats are read at a time.
const PAGE_BEATS: i64 = 4_096;

/// A table of the log whose rows are numbered in the order of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Events,
    Beats,
}

impl Table {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Table::Events => "events",
            Table::Beats => "beats",
        }
    }
}

/// What a table of the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) rows: i64,
    pub(crate) first: Option<i64>,
    pub(crate) last: Option<i64>,
    pub(crate) latest_at: Option<i64>,
}

/// One snapshot of a database, as far as `verify`, `rebuild`, replays and backtests read it: each method is a statement.
#[async_trait]
pub(crate) trait Source: Send {
    /// Returns the end of the log.
    async fn head(&mut self) -> Result<Head, StoreError>;
    /// Returns the triggers that should keep the log append-only and do not.
    async fn missing_triggers(&mut self) -> Result<Vec<String>, StoreError>;
    /// Returns the last run number that is mentioned anywhere, and how many heartbeats the commits hold.
    async fn size(&mut self) -> Result<(i64, i64), StoreError>;
    /// Returns the rows of the service events.
    async fn service_rows(&mut self) -> Result<Vec<EventRow>, StoreError>;
    /// Returns what a table holds.
    async fn extent(&mut self, table: Table) -> Result<Extent, StoreError>;
    /// Returns the first stretches of positions in (after, end] that are missing, first and last each.
    async fn holes(&mut self, table: Table, after: i64, end: i64, limit: i64) -> Result<Vec<(i64, i64)>, StoreError>;
    /// Returns rows of `beats` after that position, in order.
    async fn beats_after(&mut self, position: i64, limit: i64) -> Result<Vec<BeatsRow>, StoreError>;
    /// Returns the rows of `events` of runs with numbers from `from` up to, and without, `to`, by run and version.
    async fn events_of(&mut self, from: i64, to: i64) -> Result<Vec<EventRow>, StoreError>;
    /// Returns their rows of `segments`, in the same order.
    async fn segments_of(&mut self, from: i64, to: i64) -> Result<Vec<SegmentRow>, StoreError>;
    /// Returns their projections.
    async fn rows_of(&mut self, from: i64, to: i64) -> Result<Vec<RunRow>, StoreError>;
    /// Returns when they are to be looked at, and by how much they were put off.
    async fn due_of(&mut self, from: i64, to: i64) -> Result<BTreeMap<i64, (Timestamp, Span)>, StoreError>;
    /// Returns rows of the log that lack their digest and should have one: what they are, and whose.
    async fn unsealed(&mut self, limit: i64) -> Result<Vec<(String, Option<RunId>)>, StoreError>;
    /// Returns how many runs of a lane are wanted.
    async fn count_of_lane(&mut self, wanted: &Wanted) -> Result<u64, StoreError>;
    /// Returns projections of runs that are wanted, with numbers after `after`, in order.
    async fn runs_of_lane(&mut self, wanted: &Wanted, after: i64, limit: i64) -> Result<Vec<RunRow>, StoreError>;
    /// Returns the rows of `events` of those runs, by run and version.
    async fn events_of_runs(&mut self, runs: &[i64]) -> Result<Vec<EventRow>, StoreError>;
    /// Returns their rows of `segments`, in the same order.
    async fn segments_of_runs(&mut self, runs: &[i64]) -> Result<Vec<SegmentRow>, StoreError>;
    /// Returns rows of `events` of a run, after a version, in order.
    async fn events_after(&mut self, run: i64, version: i64, limit: i64) -> Result<Vec<EventRow>, StoreError>;
    /// Returns its rows of `segments` that begin after a version, in order.
    async fn segments_after(&mut self, run: i64, version: i64, limit: i64) -> Result<Vec<SegmentRow>, StoreError>;
    /// Returns the lanes whose runs are being re-armed.
    async fn rearming(&mut self) -> Result<BTreeSet<Name>, StoreError>;
}

/// Something that is wrong with the truth.
pub(crate) type Problem = (DamageKind, String);

/// The plain heartbeats of the commits, by run number.
pub(crate) type Committed = HashMap<i64, Vec<Beat>>;

/// A run as the truth says.
pub(crate) struct TrueRun {
    pub(crate) number: i64,
    pub(crate) id: Option<RunId>,
    pub(crate) stream: Vec<Stored>,
    /// The plain heartbeats that are in no segment.
    pub(crate) tail: Vec<Beat>,
    pub(crate) problems: Vec<Problem>,
}

impl TrueRun {
    /// Folds the stream, or says what is wrong with it.
    pub(crate) fn fold(&self) -> Result<Run, Problem> {
        let mut run = None;
        for stored in &self.stream {
            take_in(&mut run, stored).map_err(|error| {
                let kind = match &error {
                    EvolveError::Version { .. } | EvolveError::NotCreated(_) => DamageKind::Hole,
                    _ if run.as_ref().is_some_and(|run| run.status.is_terminal()) => DamageKind::AfterEnd,
                    _ => DamageKind::Stream,
                };
                (kind, format!("version {}: {error}", stored.version()))
            })?;
        }
        run.ok_or_else(|| (DamageKind::Hole, "the run has no facts".to_owned()))
    }

    /// Makes the projection anew, unless something is wrong with the run: a damaged log must not become a projection
    /// that looks well.
    pub(crate) fn anew(&self) -> Result<RunRow, StoreError> {
        sound(&self.problems, self.id)?;
        let run = self.fold().map_err(|(_, message)| unsound(&message, self.id))?;
        Ok(RunRow { number: self.number, run, tail: Ok(self.tail.clone()) })
    }
}

/// Returns the first problem as an error.
pub(crate) fn sound(problems: &[Problem], run: Option<RunId>) -> Result<(), StoreError> {
    problems.first().map_or(Ok(()), |(_, message)| Err(unsound(message, run)))
}

fn unsound(message: &str, run: Option<RunId>) -> StoreError {
    let of = run.map_or_else(String::new, |run| format!("run {run}: "));
    StoreError::Corrupt(format!("the log itself: {of}{message}; restore it from a backup"))
}

/// Returns the spans of run numbers whose committed heartbeats fit into memory together, from the first on.
pub(crate) async fn spans(source: &mut dyn Source) -> Result<Vec<(i64, i64)>, StoreError> {
    let (last, beats) = source.size().await?;
    let runs = (last / (beats / BEATS_IN_MEMORY + 1)).max(PAGE_RUNS);
    let firsts = (1..=last).step_by(usize::try_from(runs).unwrap_or(usize::MAX));
    Ok(firsts.map(|first| (first, (first + runs).min(last + 1))).collect())
}

/// Reads the heartbeats of the commits after the row `after`, of the runs that are wanted. Returns the last row too.
pub(crate) async fn committed(
    source: &mut dyn Source,
    after: i64,
    wanted: impl Fn(i64) -> bool + Send,
    problems: &mut Vec<Problem>,
) -> Result<(Committed, i64), StoreError> {
    let (mut beats, mut last) = (Committed::new(), after);
    loop {
        let rows = source.beats_after(last, PAGE_BEATS).await?;
        if rows.is_empty() {
            return Ok((beats, last));
        }
        for row in rows {
            last = row.position;
            if row.was_changed() {
                problems.push((DamageKind::Changed, format!("beats row {last} was changed after it was written")));
            }
            match row.unpack() {
                Ok(packed) => {
                    for (run, version) in packed.into_iter().filter(|(run, _)| wanted(*run)) {
                        beats.entry(run).or_default().push(Beat { version, at: row.recorded_at });
                    }
                }
                Err(error) => problems.push((DamageKind::Beats, format!("beats row {last}: {error}"))),
            }
        }
    }
}

/// Reads the runs with numbers from `from` up to, and without, `to`.
pub(crate) async fn page(
    source: &mut dyn Source,
    from: i64,
    to: i64,
    committed: &mut Committed,
) -> Result<Vec<TrueRun>, StoreError> {
    let mut runs: BTreeMap<i64, Parts> = BTreeMap::new();
    for row in source.events_of(from, to).await? {
        runs.entry(row.run.unwrap_or_default()).or_default().take_event(&row)?;
    }
    for row in source.segments_of(from, to).await? {
        runs.entry(row.run).or_default().take_segment(&row)?;
    }
    let numbers: BTreeSet<i64> =
        runs.keys().copied().chain(committed.keys().copied().filter(|run| (from..to).contains(run))).collect();
    let put_together = |number| {
        let beats = committed.remove(&number).unwrap_or_default();
        runs.remove(&number).unwrap_or_default().put_together(number, beats)
    };
    Ok(numbers.into_iter().map(put_together).collect())
}

/// A way through all the runs of the truth, a page at a time.
pub(crate) struct Walk {
    /// The spans of run numbers that are still to come; the last of them comes first.
    spans: Vec<(i64, i64)>,
    /// What is left of the span that is being read.
    left: (i64, i64),
    committed: Committed,
    /// What is wrong with the commits' heartbeats.
    pub(crate) problems: Vec<Problem>,
    /// The last run number that there is.
    pub(crate) last: u64,
}

/// A page of a [`Walk`]: runs with numbers from `from` up to, and without, `to`.
pub(crate) struct Page {
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) runs: Vec<TrueRun>,
}

impl Walk {
    pub(crate) async fn begin(source: &mut dyn Source) -> Result<Walk, StoreError> {
        let mut spans = spans(source).await?;
        let last = spans.last().map_or(0, |(_, end)| (end - 1).unsigned_abs());
        spans.reverse();
        Ok(Walk { spans, left: (0, 0), committed: Committed::new(), problems: Vec::new(), last })
    }

    /// Reads the next page; `None` after the last one.
    pub(crate) async fn next(&mut self, source: &mut dyn Source) -> Result<Option<Page>, StoreError> {
        if self.left.0 == self.left.1 {
            let Some((first, end)) = self.spans.pop() else { return Ok(None) };
            let mut problems = Vec::new();
            let wanted = |run| (first..end).contains(&run);
            self.committed = committed(source, 0, wanted, &mut problems).await?.0;
            // For each span the commits are read again, and found to be as they are.
            if first == 1 {
                self.problems = problems;
            }
            self.left = (first, end);
        }
        let (from, end) = self.left;
        let to = (from + PAGE_RUNS).min(end);
        self.left = (to, end);
        let runs = page(source, from, to, &mut self.committed).await?;
        Ok(Some(Page { from, to, runs }))
    }
}

/// The rows of one run, before they are put together.
#[derive(Default)]
struct Parts {
    id: Option<RunId>,
    facts: Vec<Stored>,
    /// The heartbeats of the segments, with their attempt.
    packed: BTreeMap<u64, (i64, u32)>,
    problems: Vec<Problem>,
}

impl Parts {
    fn id(&self) -> RunId {
        self.id.unwrap_or(RunId::from_uuid(uuid::Uuid::nil()))
    }

    fn take_event(&mut self, row: &EventRow) -> Result<(), StoreError> {
        let version = unsigned(row.version.unwrap_or_default())?;
        if version == 1 {
            let uuid = uuid::Uuid::from_slice(row.run_id.as_deref().unwrap_or_default())
                .map_err(|_| StoreError::Corrupt("run_id is not a UUID".to_owned()))?;
            self.id = Some(RunId::from_uuid(uuid));
        }
        if row.was_changed() {
            let position = row.position;
            let message =
                format!("the row of version {version} (position {position}) was changed after it was written");
            self.problems.push((DamageKind::Changed, message));
        }
        match decode_run_event(self.id(), version, Timestamp::from_micros(row.recorded_at), row.schema, &row.body) {
            Ok(fact) => self.facts.push(fact),
            Err(error) => self.problems.push((DamageKind::Stream, error.to_string())),
        }
        Ok(())
    }

    fn take_segment(&mut self, row: &SegmentRow) -> Result<(), StoreError> {
        let first = row.first_version;
        if row.was_changed() {
            let message = format!("the segment from version {first} on was changed after it was written");
            self.problems.push((DamageKind::Changed, message));
        }
        match row.unpack(self.id()) {
            Ok((attempt, beats)) => {
                let last = beats.last().map(|beat| (beat.version, beat.at));
                if last != Some((unsigned(row.last_version)?, row.last_at)) {
                    let message = format!("the segment from version {first} on does not end where it says");
                    self.problems.push((DamageKind::Beats, message));
                }
                self.packed.extend(beats.into_iter().map(|beat| (beat.version, (beat.at, attempt))));
            }
            Err(error) => self.problems.push((DamageKind::Beats, error.to_string())),
        }
        Ok(())
    }

    fn put_together(mut self, number: i64, committed: Vec<Beat>) -> TrueRun {
        let mut tail = Vec::new();
        for beat in committed {
            match self.packed.get(&beat.version) {
                None => tail.push(beat),
                Some((at, _)) if *at == beat.at => {}
                Some((at, _)) => {
                    let (committed, packed) = (Timestamp::from_micros(beat.at), Timestamp::from_micros(*at));
                    let message =
                        format!("version {} was committed at {committed}; its segment says {packed}", beat.version);
                    self.problems.push((DamageKind::Beats, message));
                }
            }
        }
        tail.sort_by_key(|beat| beat.version);
        if self.id.is_none() {
            self.problems.push((DamageKind::Hole, format!("run number {number}: version 1 is missing")));
        }
        let id = self.id();
        let plain = |version, at, attempt| {
            let event = RunEvent::Heartbeat { attempt, progress: None };
            Stored::Known(Recorded { run: id, version, recorded_at: Timestamp::from_micros(at), event })
        };
        let mut stream = self.facts;
        stream.extend(self.packed.iter().map(|(version, (at, attempt))| plain(*version, *at, *attempt)));
        // A commit does not say of which attempt its heartbeats are; they are of the one that was claimed last.
        let attempts: Vec<(u64, u32)> = stream.iter().filter_map(claimed).collect();
        let attempt_at =
            |version| attempts.iter().rev().find(|(claimed, _)| *claimed < version).map_or(0, |found| found.1);
        stream.extend(tail.iter().map(|beat| plain(beat.version, beat.at, attempt_at(beat.version))));
        stream.sort_by_key(Stored::version);
        TrueRun { number, id: self.id, stream, tail, problems: self.problems }
    }
}

fn claimed(fact: &Stored) -> Option<(u64, u32)> {
    match &fact.known()?.event {
        RunEvent::Claimed { attempt, .. } => Some((fact.version(), *attempt)),
        _ => None,
    }
}
