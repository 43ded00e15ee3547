//! A lane's past, fact by fact: the runs of a lane in the order of their numbers, each run's facts in the order of their
//! versions. However much there is, little of it is in memory at a time.
//!
//! Which runs are the lane's, and how long they are, the projection says; the facts are read from the log. Only the
//! latest plain heartbeats come from the tail, as in every history.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use lastbeat_domain::event::RunEvent;
use lastbeat_domain::{Name, Recorded, RunId, Timestamp};

use crate::Watch;
use crate::batch::RunRow;
use crate::error::StoreError;
use crate::log::{EventRow, SegmentRow, unsigned};
use crate::packing::Beat;
use crate::record::{Stored, decode_run_event};
use crate::truth::Source;

/// How many runs are read at a time.
const PAGE_RUNS: i64 = 256;
/// How many facts the runs have that are read together. One that has more is read in pieces.
const PAGE_FACTS: u64 = 4_096;
/// How many rows of such a run are read at a time: of its events, and of its segments, which hold many facts each.
const PIECE_EVENTS: i64 = 1_024;
const PIECE_SEGMENTS: i64 = 16;

/// Which runs of a lane are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) lane: Name,
    /// Only those that were created then or later, in log time.
    pub(crate) since: Option<Timestamp>,
}

/// Is shown the facts, one after the other.
pub(crate) type Visit<'a> = dyn FnMut(&Stored) -> Result<(), StoreError> + Send + 'a;

/// Shows every fact of the runs that are wanted.
pub(crate) async fn each_fact(
    source: &mut dyn Source,
    wanted: &Wanted,
    watch: &Watch<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), StoreError> {
    let all = source.count_of_lane(wanted).await?;
    let (mut after, mut done) = (0, 0);
    loop {
        if watch(done, all.max(done)) == ControlFlow::Break(()) {
            return Err(StoreError::Stopped);
        }
        let page = source.runs_of_lane(wanted, after, PAGE_RUNS).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.number;
        let mut rest = &page[..];
        while !rest.is_empty() {
            let together = fitting(rest);
            match rest {
                [long, ..] if together == 0 => in_pieces(source, long, watch, (done, all), visit).await?,
                _ => at_once(source, &rest[..together], visit).await?,
            }
            let read = together.max(1);
            rest = &rest[read..];
            done += read as u64;
            if watch(done, all.max(done)) == ControlFlow::Break(()) {
                return Err(StoreError::Stopped);
            }
        }
    }
}

/// Returns how many runs, from the first on, are read together; 0: the first one is too long.
fn fitting(rows: &[RunRow]) -> usize {
    let mut facts = 0_u64;
    let fits = |row: &&RunRow| {
        facts = facts.saturating_add(row.run.version);
        facts <= PAGE_FACTS
    };
    rows.iter().take_while(fits).count()
}

async fn at_once(source: &mut dyn Source, rows: &[RunRow], visit: &mut Visit<'_>) -> Result<(), StoreError> {
    let numbers: Vec<i64> = rows.iter().map(|row| row.number).collect();
    let mut strands: BTreeMap<i64, Strand> = rows.iter().map(|row| (row.number, Strand::of(row))).collect();
    for event in source.events_of_runs(&numbers).await? {
        if let Some(strand) = event.run.and_then(|run| strands.get_mut(&run)) {
            strand.take_event(&event)?;
        }
    }
    for segment in source.segments_of_runs(&numbers).await? {
        if let Some(strand) = strands.get_mut(&segment.run) {
            strand.take_segment(&segment)?;
        }
    }
    for (strand, row) in strands.values_mut().zip(rows) {
        strand.take_tail(row)?;
        while let Some(fact) = strand.next() {
            visit(&fact)?;
        }
    }
    Ok(())
}

/// Reads a run that is too long to be read at once.
async fn in_pieces(
    source: &mut dyn Source,
    row: &RunRow,
    watch: &Watch<'_>,
    (done, all): (u64, u64),
    visit: &mut Visit<'_>,
) -> Result<(), StoreError> {
    let mut strand = Strand::of(row);
    // The version after which the next piece of each begins; `None` when there is none.
    let (mut events_after, mut segments_after, mut has_tail) = (Some(0), Some(0), true);
    loop {
        if let Some(after) = events_after.filter(|_| strand.events.is_empty()) {
            let piece = source.events_after(row.number, after, PIECE_EVENTS).await?;
            piece.iter().try_for_each(|event| strand.take_event(event))?;
            events_after = piece.last().and_then(|event| event.version);
        }
        if let Some(after) = segments_after.filter(|_| strand.beats.is_empty()) {
            let piece = source.segments_after(row.number, after, PIECE_SEGMENTS).await?;
            piece.iter().try_for_each(|segment| strand.take_segment(segment))?;
            segments_after = piece.last().map(|segment| segment.first_version);
        }
        if segments_after.is_none() && std::mem::take(&mut has_tail) {
            strand.take_tail(row)?;
        }
        let (more_events, more_beats) = (events_after.is_some(), segments_after.is_some());
        // What comes next is known while neither of the two has run out.
        while !(strand.events.is_empty() && more_events || strand.beats.is_empty() && more_beats) {
            match strand.next() {
                Some(fact) => visit(&fact)?,
                None => return Ok(()),
            }
        }
        if watch(done, all.max(done)) == ControlFlow::Break(()) {
            return Err(StoreError::Stopped);
        }
    }
}

/// What has been read of a run: its events, and its plain heartbeats with their attempt, both in order.
struct Strand {
    run: RunId,
    events: VecDeque<Stored>,
    beats: VecDeque<(Beat, u32)>,
}

impl Strand {
    fn of(row: &RunRow) -> Strand {
        Strand { run: row.run.id, events: VecDeque::new(), beats: VecDeque::new() }
    }

    fn take_event(&mut self, row: &EventRow) -> Result<(), StoreError> {
        let (version, at) = (unsigned(row.version.unwrap_or_default())?, Timestamp::from_micros(row.recorded_at));
        self.events.push_back(decode_run_event(self.run, version, at, row.schema, &row.body)?);
        Ok(())
    }

    fn take_segment(&mut self, row: &SegmentRow) -> Result<(), StoreError> {
        let (attempt, beats) = row.unpack(self.run)?;
        self.beats.extend(beats.into_iter().map(|beat| (beat, attempt)));
        Ok(())
    }

    fn take_tail(&mut self, row: &RunRow) -> Result<(), StoreError> {
        let run = self.run;
        let tail = row.tail.as_ref().map_err(|error| StoreError::Corrupt(format!("the tail of run {run}: {error}")))?;
        self.beats.extend(tail.iter().map(|beat| (*beat, row.run.attempt)));
        Ok(())
    }

    /// Takes out the fact that comes next.
    fn next(&mut self) -> Option<Stored> {
        let first_beat = self.beats.front().map(|(beat, _)| beat.version);
        match (self.events.front().map(Stored::version), first_beat) {
            (Some(event), Some(beat)) if event < beat => self.events.pop_front(),
            (_, Some(_)) => self.beats.pop_front().map(|(beat, attempt)| {
                let event = RunEvent::Heartbeat { attempt, progress: None };
                let recorded_at = Timestamp::from_micros(beat.at);
                Stored::Known(Recorded { run: self.run, version: beat.version, recorded_at, event })
            }),
            (_, None) => self.events.pop_front(),
        }
    }
}
