//! The listening record: when anybody could have heard a heartbeat.
//!
//! An executor must not be blamed for our own faults. While every server is down, the database is away or the host
//! sleeps, heartbeats cannot be recorded, so that time is not charged to anybody. All time is listening time unless it
//! lies in a **deaf span**; overlapping spans count as their union.
//!
//! Deaf spans come from two sources. A `deaf` event records one that is over. And processes that listen keep a
//! [`Beacon`] with a **promise**, the instant by which the next one is due: when every counted promise is broken and
//! nobody has recorded it yet, the gap is **open**, and the time since the last counted beacon is deaf too.
//!
//! Time travel must not see the future, and must not depend on when a gap was written down. So at an instant T a gap
//! counts as soon as its promise was broken before T, recorded or not, and only up to T; a clock step counts from its
//! record on. [`Listening::as_of`] is that rule.

use serde::{Deserialize, Serialize};

use crate::event::DeafCause;
use crate::ids::Name;
use crate::time::{Span, Timestamp};

/// A recorded deaf span, all in log time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeafSpan {
    /// Its start.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// The instant by which somebody had promised to be heard of.
    pub promised_until: Timestamp,
    /// What made the service deaf.
    pub cause: DeafCause,
    /// When it was recorded.
    pub recorded_at: Timestamp,
}

/// The sign of life of a process that listens for executors or sweeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// The process.
    pub process: Name,
    /// How it listens.
    pub role: BeaconRole,
    /// The log time of its last beacon.
    pub at: Timestamp,
    /// The log time by which its next beacon is due; `None`: until another counted process beacons.
    pub promise: Option<Timestamp>,
}

/// How a process listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeaconRole {
    /// It answers executors over the network.
    Serve,
    /// It sweeps a store to which executors write directly.
    Local,
}

/// Returns the beacons that count: those of servers while there is one, since executors then depend on them.
pub fn counted(beacons: &[Beacon]) -> impl Iterator<Item = &Beacon> {
    let serves = beacons.iter().any(|beacon| beacon.role == BeaconRole::Serve);
    beacons.iter().filter(move |beacon| !serves || beacon.role == BeaconRole::Serve)
}

/// A gap that nobody has recorded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenGap {
    /// The last counted beacon.
    pub since: Timestamp,
    /// The last promise that was broken.
    pub promised_until: Timestamp,
}

/// Returns the open gap at log time `at`: there is one when every counted promise lies before it.
pub fn open_gap(beacons: &[Beacon], at: Timestamp) -> Option<OpenGap> {
    let since = counted(beacons).map(|beacon| beacon.at).max()?;
    let mut promised_until = since;
    for beacon in counted(beacons) {
        match beacon.promise {
            Some(promise) => promised_until = promised_until.max(promise),
            // An unlimited promise ends with the next beacon of another counted process.
            None if beacon.at == since => return None,
            None => {}
        }
    }
    (promised_until < at).then_some(OpenGap { since, promised_until })
}

/// The listening record as of one instant of log time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// The deaf time: disjoint, not empty, in order, with listening time between any two.
    spans: Vec<(Timestamp, Timestamp)>,
    /// The start of the gap that was not over at that instant.
    deaf_since: Option<Timestamp>,
}

impl Listening {
    /// Returns what is known at log time `at` of when anybody listened.
    ///
    /// `recorded` are the store's `deaf` events, all of them, in any order; `beacons` are the beacons as they stand.
    pub fn as_of(at: Timestamp, recorded: &[DeafSpan], beacons: &[Beacon]) -> Listening {
        let mut deaf_since: Option<Timestamp> = None;
        let mut spans = Vec::with_capacity(recorded.len() + 1);
        for span in recorded {
            match span.cause {
                DeafCause::ClockStep if span.recorded_at <= at => spans.push((span.from, span.to)),
                DeafCause::ClockStep => {}
                DeafCause::Gap if span.promised_until < at => {
                    spans.push((span.from, span.to.min(at)));
                    if span.recorded_at > at {
                        deaf_since = Some(deaf_since.map_or(span.from, |since| since.min(span.from)));
                    }
                }
                DeafCause::Gap => {}
            }
        }
        if let Some(gap) = open_gap(beacons, at) {
            spans.push((gap.since, at));
            deaf_since = Some(deaf_since.map_or(gap.since, |since| since.min(gap.since)));
        }
        Listening { spans: union(spans), deaf_since }
    }

    /// Returns the start of the gap that is open as of this record; while there is one, nothing is reaped.
    pub fn deaf_since(&self) -> Option<Timestamp> {
        self.deaf_since
    }

    /// Returns the deaf time between two instants.
    pub fn deaf(&self, from: Timestamp, to: Timestamp) -> Span {
        self.spans_after(from)
            .iter()
            .take_while(|(start, _)| *start < to)
            .fold(Span::ZERO, |sum, &(start, end)| sum.plus(end.min(to).since(start.max(from))))
    }

    /// Returns the listening time between two instants: zero if `to` is not after `from`.
    pub fn charged(&self, from: Timestamp, to: Timestamp) -> Span {
        to.since(from).minus(self.deaf(from, to))
    }

    /// Returns the earliest instant at which the listening time since `from` reaches `needed`.
    pub fn reaches(&self, from: Timestamp, needed: Span) -> Timestamp {
        let (mut at, mut missing) = (from, needed);
        for &(start, end) in self.spans_after(from) {
            let heard = start.since(at);
            if heard >= missing {
                break;
            }
            missing = missing.minus(heard);
            at = end;
        }
        at.plus(missing)
    }

    /// Returns the deaf spans that overlap the time between two instants, cut to it.
    pub fn spans_between(&self, from: Timestamp, to: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let overlapping = self.spans_after(from).iter().take_while(|(start, _)| *start < to);
        overlapping.map(|&(start, end)| (start.max(from), end.min(to))).collect()
    }

    /// The spans that end after `from`.
    fn spans_after(&self, from: Timestamp) -> &[(Timestamp, Timestamp)] {
        let first = self.spans.partition_point(|(_, end)| *end <= from);
        &self.spans[first..]
    }
}

fn union(mut spans: Vec<(Timestamp, Timestamp)>) -> Vec<(Timestamp, Timestamp)> {
    spans.retain(|(from, to)| from < to);
    spans.sort_unstable();
    let mut merged: Vec<(Timestamp, Timestamp)> = Vec::with_capacity(spans.len());
    for (from, to) in spans {
        match merged.last_mut() {
            Some((_, end)) if from <= *end => *end = (*end).max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn seconds(count: u64) -> Span {
        Span::from_seconds(count)
    }

    fn gap(from: i64, to: i64) -> DeafSpan {
        let promised_until = at(from + 12);
        DeafSpan { from: at(from), to: at(to), promised_until, cause: DeafCause::Gap, recorded_at: at(to) }
    }

    fn beacon(role: BeaconRole, last: i64, promise: Option<i64>) -> Beacon {
        Beacon { process: Name::new(format!("p{last}")).unwrap(), role, at: at(last), promise: promise.map(at) }
    }

    #[test]
    fn overlapping_spans_count_once() {
        let listening = Listening::as_of(at(1_000), &[gap(100, 200), gap(150, 250), gap(250, 300)], &[]);
        assert_eq!(listening.deaf(at(0), at(1_000)), seconds(200));
        assert_eq!(listening.charged(at(0), at(1_000)), seconds(800));
        assert_eq!(listening.charged(at(120), at(180)), Span::ZERO);
        assert_eq!(listening.charged(at(180), at(120)), Span::ZERO);
        assert_eq!(listening.spans_between(at(150), at(260)), [(at(150), at(260))]);
    }

    #[test]
    fn a_window_is_reached_at_the_earliest_instant_and_stretched_by_deaf_time() {
        let listening = Listening::as_of(at(1_000), &[gap(100, 200)], &[]);
        assert_eq!(listening.reaches(at(0), seconds(50)), at(50));
        assert_eq!(listening.reaches(at(0), seconds(100)), at(100));
        assert_eq!(listening.reaches(at(0), seconds(101)), at(201));
        assert_eq!(listening.reaches(at(150), seconds(10)), at(210));
        assert_eq!(listening.reaches(at(300), seconds(10)), at(310));
    }

    #[test]
    fn recording_a_gap_changes_no_past_answer() {
        let (before, after) = ([], [gap(100, 400)]);
        let beacons = [beacon(BeaconRole::Local, 100, Some(112))];
        for instant in [99, 100, 111, 112, 113, 250, 399] {
            let open = Listening::as_of(at(instant), &before, &beacons);
            let recorded = Listening::as_of(at(instant), &after, &[]);
            assert_eq!(open, recorded, "at {instant}");
        }
        assert_eq!(Listening::as_of(at(250), &after, &[]).deaf_since(), Some(at(100)));
        assert_eq!(Listening::as_of(at(400), &after, &[]).deaf_since(), None);
    }

    #[test]
    fn a_promise_that_holds_leaves_no_gap() {
        let beacons = [beacon(BeaconRole::Local, 100, Some(112)), beacon(BeaconRole::Local, 50, Some(62))];
        assert_eq!(open_gap(&beacons, at(112)), None);
        assert_eq!(open_gap(&beacons, at(113)), Some(OpenGap { since: at(100), promised_until: at(112) }));
        assert_eq!(open_gap(&[], at(113)), None);
    }

    #[test]
    fn only_servers_count_while_there_is_one() {
        let beacons = [beacon(BeaconRole::Serve, 50, Some(62)), beacon(BeaconRole::Local, 100, Some(112))];
        assert_eq!(open_gap(&beacons, at(70)).unwrap().since, at(50));
    }

    #[test]
    fn a_promise_without_end_holds_until_another_process_beacons() {
        let alone = [beacon(BeaconRole::Local, 50, None)];
        assert_eq!(open_gap(&alone, at(5_000)), None);
        let joined = [beacon(BeaconRole::Local, 50, None), beacon(BeaconRole::Local, 100, Some(112))];
        assert_eq!(open_gap(&joined, at(113)).unwrap().since, at(100));
    }

    #[test]
    fn a_clock_step_counts_from_its_record_on() {
        let step = DeafSpan {
            from: at(100),
            to: at(3_700),
            promised_until: at(100),
            cause: DeafCause::ClockStep,
            recorded_at: at(3_701),
        };
        assert_eq!(Listening::as_of(at(3_700), &[step], &[]).deaf(at(0), at(3_700)), Span::ZERO);
        assert_eq!(Listening::as_of(at(3_701), &[step], &[]).deaf(at(0), at(3_701)), seconds(3_600));
    }
}
