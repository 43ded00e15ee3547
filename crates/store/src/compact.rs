//! Compaction: what the commits' rows of heartbeats hold is in the runs' segments too, in the end. Then the rows can go.
//!
//! A heartbeat stands twice in a store: in the row of `beats` of its commit, which makes the tail of its run recoverable,
//! and in that tail, or the segment that it became. A step of the compaction takes the oldest rows of `beats`, a bounded
//! number of them, and
//!
//! 1. writes out the tails that hold heartbeats of these rows, as segments, a few runs at a time;
//! 2. makes sure that every heartbeat of the rows stands in a segment, at its instant; in one transaction it then appends
//!    `beats_compacted`, which moves the **watermark**, and drops the rows;
//! 3. merges the segments of these runs: of an attempt that has ended into one, of one that goes on once there are many
//!    small ones. It makes sure that the merged segment holds what those held, and no more.
//!
//! Each transaction leaves the same heartbeats in the store as it found, so it may end after any of them; and whoever
//! reads a snapshot finds each heartbeat once. Steps exclude one another, and rebuilds: a rebuild learns from the rows of
//! `beats` what was written while it worked.
//!
//! * **Invariant:** a heartbeat stands in a tail or a segment if and only if the row of its commit was written.
//! * **Invariant:** what is at or below the watermark is in segments, and in no tail.
//! * **Invariant:** the last row of `beats` stays, since the end of the log is read off it.
//! * **Invariant:** a row that is not what was written is neither dropped nor merged: it would be the last witness.
//!
//! Rejected: dropping rows by age alone, since a tail that is not full may hold heartbeats of any age; and a run's
//! history rewritten as a whole at its end, which would be one long transaction for one long run.

use std::time::Duration;

use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::{ServiceRecorded, Span, Status, Timestamp};
use serde::Serialize;

use crate::Store;
use crate::error::StoreError;
use crate::log::{BeatsRow, SegmentRow, signed, unsigned};
use crate::packing::Beat;

/// How many rows of `beats` a step takes at the most.
pub(crate) const STEP_ROWS_MAX: i64 = 4_000;
/// How many heartbeats: what a step holds in memory. The more they are, the fewer times a segment is looked into.
pub(crate) const STEP_BEATS_MAX: i64 = 100_000;
/// The tails or segments of how many runs one transaction writes.
pub(crate) const RUNS_AT_ONCE: usize = 100;
/// How many heartbeats a merged segment holds at the most: whoever reads one of them unpacks them all.
pub(crate) const MERGED_BEATS_MAX: u64 = 4_096;
/// Below this many heartbeats a segment is small: a full tail has fewer.
const SMALL_BEATS: u64 = 64;
/// How many small segments of an attempt that goes on are merged at the least. What is merged is not small any more, so
/// no heartbeat is written over and over.
const SMALL_SEGMENTS_MIN: usize = 8;

/// How often a step is tried in vain, and how long after the last time.
const TRIES_MAX: u32 = 50;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Rows that were recorded later stay, by log time. It is an instant, and no age, so that there is an end to it while
    /// others write.
    pub until: Timestamp,
    /// With fewer rows that are old enough nothing is done, so that an idle store is not filled with events.
    pub rows_min: u64,
}

impl Bounds {
    /// Everything but the last row, which stays.
    pub const ALL: Bounds = Bounds { until: Timestamp::MAX, rows_min: 0 };

    /// What is older than that at the log's now.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn older_than(store: &dyn Store, age: Span, rows_min: u64) -> Result<Bounds, StoreError> {
        Ok(Bounds { until: store.now().await?.minus(age), rows_min })
    }
}

/// What was compacted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompactionReport {
    /// The watermark: the last row of heartbeats that went; `None` if none did.
    pub through: Option<u64>,
    /// How many rows of commits went.
    pub rows: u64,
    /// How many heartbeats they held; each of them is in the segment of its run.
    pub beats: u64,
    /// How many tails were written out before they were full.
    pub tails: u64,
    /// How many segments were merged.
    pub merged: u64,
    /// Into how many.
    pub merged_into: u64,
    /// How many rows of commits are left: the young ones, and the last of all.
    pub left: u64,
    /// The bytes of the rows of the log that went: packed heartbeats, and 8 for each number beside them. What the database
    /// adds to a row is not counted.
    pub bytes_before: u64,
    /// The bytes of the rows that came in their place.
    pub bytes_after: u64,
}

impl CompactionReport {
    /// Says whether nothing was old enough.
    pub fn is_empty(&self) -> bool {
        self.through.is_none()
    }

    /// Adds what a later step did.
    pub fn add(&mut self, step: &CompactionReport) {
        self.through = step.through.or(self.through);
        self.left = step.left;
        for (sum, more) in [
            (&mut self.rows, step.rows),
            (&mut self.beats, step.beats),
            (&mut self.tails, step.tails),
            (&mut self.merged, step.merged),
            (&mut self.merged_into, step.merged_into),
            (&mut self.bytes_before, step.bytes_before),
            (&mut self.bytes_after, step.bytes_after),
        ] {
            *sum += more;
        }
    }

    pub(crate) fn flushed(&mut self, segment: &SegmentRow) {
        self.tails += 1;
        self.bytes_after += segment.bytes();
    }

    pub(crate) fn merged(&mut self, merge: &Merge) {
        self.merged += merge.parts.len() as u64;
        self.merged_into += 1;
        self.bytes_before += merge.parts.iter().map(SegmentRow::bytes).sum::<u64>();
        self.bytes_after += merge.whole.bytes();
    }

    pub(crate) fn dropped(&mut self, step: &Step) {
        self.through = u64::try_from(step.through).ok();
        self.left = self.left.saturating_sub(step.rows.len() as u64);
        self.rows += step.rows.len() as u64;
        self.beats += step.beats;
        self.bytes_before += step.rows.iter().map(BeatsRow::bytes).sum::<u64>();
    }
}

/// Compacts step by step until nothing is left that is old enough. `told` hears what was done so far after each step, and
/// says whether to go on. While another compaction is under way, or a rebuild, it waits for ten seconds.
///
/// # Errors
/// If the store fails, or what is stored is damaged; what was done until then stays done.
pub async fn compact_all(
    store: &dyn Store,
    bounds: Bounds,
    mut told: impl FnMut(&CompactionReport) -> bool + Send,
) -> Result<CompactionReport, StoreError> {
    let (mut report, mut failures) = (CompactionReport::default(), 0);
    loop {
        match store.compact(bounds).await {
            Ok(step) => {
                failures = 0;
                report.add(&step);
                if step.is_empty() || !told(&report) {
                    return Ok(report);
                }
            }
            Err(error) if error.is_transient() && failures < TRIES_MAX => {
                failures += 1;
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The rows of a step, and whose heartbeats they hold.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) rows: Vec<BeatsRow>,
    pub(crate) through: i64,
    pub(crate) beats: u64,
    /// The heartbeats with their run numbers, in the order of these and of their versions.
    heard: Vec<(i64, Beat)>,
}

impl Step {
    /// Plans a step. `rows` are the first ones after the watermark, without the last of all; those up to log time `until`
    /// may go. `None` if there are none. Whether they are enough to begin with is not asked of them, since a step may hold
    /// fewer rows than that, if there are many heartbeats to a row.
    ///
    /// # Errors
    /// If a row is not what was written.
    pub(crate) fn plan(mut rows: Vec<BeatsRow>, until: Timestamp) -> Result<Option<Step>, StoreError> {
        let old = rows.iter().take_while(|row| row.recorded_at <= until.as_micros()).count();
        rows.truncate(old);
        let Some(through) = rows.last().map(|row| row.position) else { return Ok(None) };
        let mut heard = Vec::new();
        for row in &rows {
            let position = row.position;
            if row.was_changed() {
                return Err(damaged(format!("beats row {position} was changed after it was written")));
            }
            let packed = row.unpack().map_err(|error| damaged(format!("beats row {position}: {error}")))?;
            heard.extend(packed.into_iter().map(|(run, version)| (run, Beat { version, at: row.recorded_at })));
        }
        heard.sort_unstable_by_key(|(run, beat)| (*run, beat.version));
        Ok(Some(Step { rows, through, beats: heard.len() as u64, heard }))
    }

    /// Returns the event that the step leaves behind.
    pub(crate) fn event(&self, recorded_at: Timestamp) -> ServiceRecorded {
        let (through, rows) = (self.through.unsigned_abs(), self.rows.len() as u64);
        ServiceRecorded { recorded_at, event: ServiceEvent::BeatsCompacted { through, rows, beats: self.beats } }
    }

    /// Returns the numbers of the runs whose heartbeats it holds, in order.
    pub(crate) fn runs(&self) -> Vec<i64> {
        let mut runs: Vec<i64> = self.heard.iter().map(|(run, _)| *run).collect();
        runs.dedup();
        runs
    }

    /// The heartbeats of a run, in the order of their versions.
    fn heard_of(&self, run: i64) -> &[(i64, Beat)] {
        let first = self.heard.partition_point(|(other, _)| *other < run);
        let end = self.heard.partition_point(|(other, _)| *other <= run);
        &self.heard[first..end]
    }

    /// Says whether a tail holds heartbeats of the step.
    pub(crate) fn is_in_tail(&self, run: i64, tail: &[Beat]) -> bool {
        let heard = self.heard_of(run);
        tail.iter().any(|beat| heard.binary_search_by_key(&beat.version, |(_, heard)| heard.version).is_ok())
    }

    /// Returns the first and the last version of a run's heartbeats.
    pub(crate) fn versions_of(&self, run: i64) -> (i64, i64) {
        let version = |heard: Option<&(i64, Beat)>| heard.map_or(0, |(_, beat)| signed(beat.version));
        let heard = self.heard_of(run);
        (version(heard.first()), version(heard.last()))
    }

    /// Makes sure that every heartbeat of a run in the step stands in one of these segments, at its instant.
    ///
    /// # Errors
    /// If one does not.
    pub(crate) fn check_kept(&self, run: i64, segments: &[SegmentRow]) -> Result<(), StoreError> {
        let mut kept = Vec::new();
        for segment in segments {
            kept.extend(segment.unpack_by_number()?.1);
        }
        kept.sort_unstable_by_key(|beat| beat.version);
        let is_kept = |beat: &Beat| {
            let found = kept.binary_search_by_key(&beat.version, |kept| kept.version);
            found.is_ok_and(|at| kept[at].at == beat.at)
        };
        match self.heard_of(run).iter().find(|(_, beat)| !is_kept(beat)) {
            None => Ok(()),
            Some((_, Beat { version, .. })) => {
                Err(damaged(format!("version {version} of run number {run} is in no segment; nothing was dropped")))
            }
        }
    }
}

fn damaged(what: String) -> StoreError {
    StoreError::Corrupt(what)
}

/// Segments of a run, and the one that is to take their place.
#[derive(Debug)]
pub(crate) struct Merge {
    pub(crate) parts: Vec<SegmentRow>,
    pub(crate) whole: SegmentRow,
}

impl Merge {
    fn of(parts: Vec<SegmentRow>) -> Result<Merge, StoreError> {
        let Some(first) = parts.first() else { return Err(damaged("nothing is to be merged".to_owned())) };
        let (run, mut attempt, mut beats) = (first.run, 0, Vec::new());
        for part in &parts {
            if part.was_changed() {
                let version = part.first_version;
                let what = format!(
                    "the segment of run number {run} from version {version} on was changed after it was written"
                );
                return Err(damaged(what));
            }
            let (of, more) = part.unpack_by_number()?;
            attempt = of;
            beats.extend(more);
        }
        if beats.windows(2).any(|pair| pair[0].version >= pair[1].version) {
            return Err(damaged(format!("the segments of run number {run} overlap")));
        }
        Ok(Merge { whole: SegmentRow::pack(run, attempt, &beats), parts })
    }
}

/// Says whether the attempt `of` of a run will have no more heartbeats; `attempt` is the run's last one.
pub(crate) fn has_ended(status: Status, attempt: i64, of: i64) -> bool {
    !status.is_in_flight() || attempt != of
}

/// Plans which segments of a run are merged; they come in the order of their versions. Those that are full are not merged,
/// and keep what is before them apart from what comes after: they need not bring their heartbeats.
///
/// # Errors
/// If one is not what was written.
pub(crate) fn merges(segments: Vec<SegmentRow>, has_ended: impl Fn(i64) -> bool) -> Result<Vec<Merge>, StoreError> {
    let mut groups: Vec<Vec<SegmentRow>> = Vec::new();
    let mut held = 0;
    for segment in segments {
        let count = unsigned(segment.count)?;
        // One without a digest was written before there were any, or behind the store's back: it is let be.
        let mergeable = (has_ended(segment.attempt) || count < SMALL_BEATS) && segment.digest.is_some();
        match groups.last_mut() {
            Some(group)
                if mergeable
                    && held + count <= MERGED_BEATS_MAX
                    && group.last().is_some_and(|last| last.attempt == segment.attempt) =>
            {
                held += count;
                group.push(segment);
            }
            _ => {
                // One that is not to be merged leaves no room for the next.
                held = if mergeable { count } else { MERGED_BEATS_MAX };
                groups.push(vec![segment]);
            }
        }
    }
    let enough = |group: &Vec<SegmentRow>| {
        let least = if group.first().is_some_and(|first| has_ended(first.attempt)) { 2 } else { SMALL_SEGMENTS_MIN };
        group.len() >= least
    };
    groups.into_iter().filter(enough).map(Merge::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: u64, count: u64, attempt: u32) -> SegmentRow {
        let beats: Vec<Beat> =
            (first..first + count).map(|version| Beat { version, at: version as i64 * 30_000_000 }).collect();
        SegmentRow::pack(7, attempt, &beats)
    }

    fn shape(merges: &[Merge]) -> Vec<(usize, i64, i64)> {
        merges.iter().map(|merge| (merge.parts.len(), merge.whole.first_version, merge.whole.last_version)).collect()
    }

    #[test]
    fn the_segments_of_an_ended_attempt_become_one_and_attempts_stay_apart() {
        let segments = vec![segment(4, 30, 1), segment(34, 30, 1), segment(64, 7, 1), segment(75, 30, 2)];
        let planned = merges(segments.clone(), |_| true).unwrap();
        assert_eq!(shape(&planned), [(3, 4, 70)]);
        let (attempt, beats) = planned[0].whole.unpack_by_number().unwrap();
        let parts: Vec<Beat> = segments[..3].iter().flat_map(|part| part.unpack_by_number().unwrap().1).collect();
        assert_eq!((attempt, beats), (1, parts));
    }

    #[test]
    fn an_attempt_that_goes_on_is_merged_once_there_are_many_small_ones_and_never_again() {
        let small = |from: u64, many: u64| (0..many).map(move |n| segment(from + 30 * n, 30, 1));
        assert!(merges(small(4, 7).collect(), |_| false).unwrap().is_empty());
        let planned = merges(small(4, 8).collect(), |_| false).unwrap();
        assert_eq!(shape(&planned), [(8, 4, 243)]);
        let whole = planned.into_iter().next().unwrap().whole;
        assert!(merges(std::iter::once(whole.clone()).chain(small(244, 7)).collect(), |_| false).unwrap().is_empty());
        let later: Vec<SegmentRow> = std::iter::once(whole).chain(small(244, 8)).collect();
        assert_eq!(shape(&merges(later.clone(), |_| false).unwrap()), [(8, 244, 483)]);
        assert_eq!(shape(&merges(later, |_| true).unwrap()), [(9, 4, 483)]);
    }

    #[test]
    fn no_merged_segment_is_longer_than_one_may_be() {
        let segments: Vec<SegmentRow> = (0..200).map(|n| segment(4 + 30 * n, 30, 1)).collect();
        let planned = merges(segments, |_| true).unwrap();
        assert!(planned.iter().all(|merge| merge.whole.count <= signed(MERGED_BEATS_MAX)));
        assert_eq!(planned.iter().map(|merge| merge.parts.len()).sum::<usize>(), 200);
    }

    #[test]
    fn a_full_segment_stays_and_keeps_its_neighbours_apart() {
        let full = SegmentRow { data: Vec::new(), ..segment(64, MERGED_BEATS_MAX, 1) };
        let after = 64 + MERGED_BEATS_MAX;
        let segments = vec![segment(4, 30, 1), segment(34, 30, 1), full, segment(after, 30, 1)];
        assert_eq!(shape(&merges(segments.clone(), |_| true).unwrap()), [(2, 4, 63)]);
        assert!(merges(segments[1..].to_vec(), |_| true).unwrap().is_empty());
    }

    #[test]
    fn a_changed_segment_is_not_merged_away() {
        let mut changed = segment(34, 30, 1);
        changed.first_at += 1;
        assert!(matches!(merges(vec![segment(4, 30, 1), changed], |_| true), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn a_step_takes_the_oldest_rows_that_are_old_enough_and_no_row_that_was_changed() {
        let row =
            |position: i64, at: i64| BeatsRow::pack(position, Timestamp::from_micros(at), &[(1, position as u64)]);
        let rows = vec![row(5, 10), row(6, 30), row(7, 20)];
        let plan = |rows: &[BeatsRow], until| Step::plan(rows.to_vec(), Timestamp::from_micros(until));
        // Row 7 is old enough, and comes after one that is not.
        assert_eq!(plan(&rows, 20).unwrap().unwrap().through, 5);
        assert_eq!(plan(&rows, 30).unwrap().unwrap().through, 7);
        assert!(plan(&rows, 9).unwrap().is_none() && plan(&[], 30).unwrap().is_none());
        let mut changed = rows.clone();
        changed[1].recorded_at -= 1;
        assert!(plan(&changed, 10).unwrap().is_some());
        assert!(matches!(plan(&changed, 30), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn a_heartbeat_is_kept_only_at_its_instant() {
        let rows = vec![BeatsRow::pack(1, Timestamp::from_micros(150_000_000), &[(7, 5)])];
        let step = Step::plan(rows, Timestamp::from_micros(i64::MAX)).unwrap().unwrap();
        assert!(step.check_kept(7, &[segment(4, 3, 1)]).is_ok());
        assert!(step.check_kept(7, &[segment(6, 3, 1)]).is_err());
        let late = SegmentRow::pack(7, 1, &[Beat { version: 5, at: 150_000_001 }]);
        assert!(step.check_kept(7, &[late]).is_err());
    }
}
