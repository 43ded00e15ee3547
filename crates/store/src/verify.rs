//! Holding the projection against the log, and what is found.

use std::collections::BTreeMap;
use std::fmt;

use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::{RunId, Span, Timestamp, judge};
use serde::Serialize;

use crate::Progress;
use crate::batch::{Head, RunRow};
use crate::error::StoreError;
use crate::record::decode_service_event;
use crate::service::ServiceLog;
use crate::truth::{Page, Problem, Source, Table, TrueRun, Walk};

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// A version is missing from a stream, or a row from the log.
    Hole,
    /// A fact follows on the end of its run.
    AfterEnd,
    /// A stream is impossible otherwise: a step that cannot follow, or a stamp that does not increase.
    Stream,
    /// A row of the log is not what was written.
    Changed,
    /// The packed heartbeats of the commits and those of the runs differ.
    Beats,
    /// The projection of a run is not the fold of its stream.
    Projection,
    /// The tail of a run is not what the commits hold beyond its segments.
    Tail,
    /// A run that may be reaped would not be looked at in time.
    Due,
    /// A trigger that keeps the log append-only is missing.
    Trigger,
    /// The end of the log is not where the log ends.
    Head,
}

impl DamageKind {
    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            DamageKind::Hole => "hole",
            DamageKind::AfterEnd => "after_end",
            DamageKind::Stream => "stream",
            DamageKind::Changed => "changed",
            DamageKind::Beats => "beats",
            DamageKind::Projection => "projection",
            DamageKind::Tail => "tail",
            DamageKind::Due => "due",
            DamageKind::Trigger => "trigger",
            DamageKind::Head => "head",
        }
    }

    /// Says whether making the projection anew from the log mends it.
    pub const fn is_mended_by_rebuild(self) -> bool {
        matches!(self, DamageKind::Projection | DamageKind::Tail | DamageKind::Due)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its kind.
    pub kind: DamageKind,
    /// The run, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// What is wrong, for people.
    pub message: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str();
        match self.run {
            Some(run) => write!(f, "{kind}: run {run}: {}", self.message),
            None => write!(f, "{kind}: {}", self.message),
        }
    }
}

/// What was looked at and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// How many runs were folded.
    pub runs: u64,
    /// How many facts they have.
    pub events: u64,
    /// How many runs hold a fact that this program does not know; they are well, and not judged.
    pub quarantined: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// What a rebuild did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// How many runs were made anew.
    pub runs: u64,
    /// From how many facts.
    pub events: u64,
    /// How many of them were not as they had been in the old projection.
    pub differed: u64,
}
/// How many missing rows are named one by one.
const NAMED_MAX: i64 = 10;

impl VerifyReport {
    fn say(&mut self, kind: DamageKind, run: Option<RunId>, message: impl Into<String>) {
        self.damage.push(Damage { kind, run, message: message.into() });
    }

    fn say_all(&mut self, run: Option<RunId>, problems: Vec<Problem>) {
        problems.into_iter().for_each(|(kind, message)| self.say(kind, run, message));
    }
}

/// Looks for every kind of damage in one snapshot: holds the projection against the fold of the truth.
pub(crate) async fn verify(
    source: &mut dyn Source,
    service: &ServiceLog,
    now: Timestamp,
    progress: &Progress<'_>,
) -> Result<VerifyReport, StoreError> {
    let mut report = VerifyReport::default();
    for trigger in source.missing_triggers().await? {
        let message = format!("the trigger {trigger} is missing: the log can be changed");
        report.say(DamageKind::Trigger, None, message);
    }
    let head = source.head().await?;
    check_log(source, &head, &mut report).await?;
    let now = now.max(head.latest_at);
    let rearming = source.rearming().await?;
    let mut walk = Walk::begin(source).await?;
    while let Some(Page { from, to, runs }) = walk.next(source).await? {
        report.say_all(None, std::mem::take(&mut walk.problems));
        let mut rows = projections(source, from, to).await?;
        let due = source.due_of(from, to).await?;
        for run in &runs {
            let row = rows.remove(&run.number);
            check_run(run, row.as_ref(), &mut report);
            if let Some(row) = row.filter(|row| !rearming.contains(&row.run.lane)) {
                check_due(&row, due.get(&row.number), service, now, &mut report);
            }
        }
        without_facts(&rows, &mut report);
        progress((to - 1).unsigned_abs(), walk.last);
    }
    Ok(report)
}

/// Makes every run anew from the truth, in one snapshot, and compares it with its projection; nothing else is looked at.
pub(crate) async fn replay_all(source: &mut dyn Source, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
    let mut report = VerifyReport::default();
    let mut walk = Walk::begin(source).await?;
    while let Some(Page { from, to, runs }) = walk.next(source).await? {
        report.say_all(None, std::mem::take(&mut walk.problems));
        let mut rows = projections(source, from, to).await?;
        for run in &runs {
            check_run(run, rows.remove(&run.number).as_ref(), &mut report);
        }
        without_facts(&rows, &mut report);
        progress((to - 1).unsigned_abs(), walk.last);
    }
    Ok(report)
}

async fn projections(source: &mut dyn Source, from: i64, to: i64) -> Result<BTreeMap<i64, RunRow>, StoreError> {
    let rows = source.rows_of(from, to).await?;
    Ok(rows.into_iter().map(|row| (row.number, row)).collect())
}

/// Names the projections that were not asked for by any run of the truth.
fn without_facts(rows: &BTreeMap<i64, RunRow>, report: &mut VerifyReport) {
    for row in rows.values() {
        report.say(DamageKind::Hole, Some(row.run.id), "it is in the projection and has no facts");
    }
}

/// Checks that no row of the log is missing, that none lies after its end, and the rows of the service.
async fn check_log(source: &mut dyn Source, head: &Head, report: &mut VerifyReport) -> Result<(), StoreError> {
    let mut compacted = 0;
    for row in source.service_rows().await? {
        if row.was_changed() {
            let message = format!("the service event at position {} was changed after it was written", row.position);
            report.say(DamageKind::Changed, None, message);
        }
        let recorded = decode_service_event(Timestamp::from_micros(row.recorded_at), row.schema, &row.body);
        if let Some(ServiceEvent::BeatsCompacted { through, .. }) = recorded.map(|recorded| recorded.event) {
            compacted = compacted.max(i64::try_from(through).unwrap_or(i64::MAX));
        }
    }
    check_table(source, Table::Events, (0, head.position), head.latest_at, report).await?;
    check_table(source, Table::Beats, (compacted, head.beat_position), head.latest_at, report).await?;
    for (what, run) in source.unsealed(NAMED_MAX).await? {
        let message = format!("the {what} has no digest, so this program did not write it");
        report.say(DamageKind::Changed, run, message);
    }
    if source.size().await?.0 > head.run {
        report.say(DamageKind::Head, None, "runs lie after the last number that was given out");
    }
    Ok(())
}

/// Checks that positions go from the first to the last of `(after, end]` without a hole.
async fn check_table(
    source: &mut dyn Source,
    table: Table,
    (after, end): (i64, i64),
    latest_at: Timestamp,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let extent = source.extent(table).await?;
    let name = table.name();
    if extent.last.is_some_and(|last| last > end) || extent.latest_at.is_some_and(|at| at > latest_at.as_micros()) {
        report.say(DamageKind::Head, None, format!("rows of {name} lie after the end of the log"));
    }
    if extent.first.is_some_and(|first| first <= after) {
        report.say(DamageKind::Head, None, format!("rows of {name} lie at or below the watermark of the compaction"));
    }
    if extent.rows >= end - after {
        return Ok(());
    }
    for (first, last) in source.holes(table, after, end, NAMED_MAX).await? {
        let which = if first == last {
            format!("row {first} of {name} is")
        } else {
            format!("rows {first} to {last} of {name} are")
        };
        report.say(DamageKind::Hole, None, format!("{which} missing from the log"));
    }
    Ok(())
}

fn check_run(run: &TrueRun, row: Option<&RunRow>, report: &mut VerifyReport) {
    report.runs += 1;
    report.events += run.stream.len() as u64;
    report.say_all(run.id, run.problems.clone());
    let folded = match run.fold() {
        Ok(folded) => folded,
        Err((kind, message)) => return report.say(kind, run.id, message),
    };
    report.quarantined += u64::from(folded.quarantined.is_some());
    let Some(row) = row else {
        return report.say(DamageKind::Projection, run.id, "it has facts and is missing from the projection");
    };
    if folded != row.run {
        let versions = if row.run.version == folded.version {
            format!("both at version {}", folded.version)
        } else {
            format!("at version {}, its stream at {}", row.run.version, folded.version)
        };
        let message = format!("its projection is not the fold of its stream ({versions})");
        report.say(DamageKind::Projection, run.id, message);
    }
    match &row.tail {
        Ok(tail) if *tail == run.tail => {}
        Ok(tail) => {
            let (has, should) = (tail.len(), run.tail.len());
            let message =
                format!("its tail ({has} heartbeats) is not what was committed since its last segment ({should})");
            report.say(DamageKind::Tail, run.id, message);
        }
        Err(error) => report.say(DamageKind::Tail, run.id, format!("its tail: {error}")),
    }
}

fn check_due(
    row: &RunRow,
    due: Option<&(Timestamp, Span)>,
    service: &ServiceLog,
    now: Timestamp,
    report: &mut VerifyReport,
) {
    let policy = service.policy(&row.run.lane, now);
    let Some(check_at) = judge(&row.run, &policy, &service.listening(now), now).check_at() else { return };
    let run = Some(row.run.id);
    match due {
        None => report.say(DamageKind::Due, run, "it is open, and no sweeper will look at it"),
        Some((at, delay)) if *at > check_at && *delay == Span::ZERO => {
            report.say(DamageKind::Due, run, format!("no sweeper will look at it by {check_at}"));
        }
        Some(_) => {}
    }
}
