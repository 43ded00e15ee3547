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

use crate::event::{DeafCause, ServiceEvent};
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

impl BeaconRole {
    /// Returns the word for it in JSON and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            BeaconRole::Serve => "serve",
            BeaconRole::Local => "local",
        }
    }
}

/// By when a process promises to be heard of again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Within so much log time.
    Within(Span),
    /// When another counted process beacons, however late that is.
    UntilAnother,
}

impl Promise {
    /// Returns the instant until which a beacon at `now` promises.
    pub fn until(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Promise::Within(span) => Some(now.plus(span)),
            Promise::UntilAnother => None,
        }
    }
}

/// How long a server that is not heard of keeps everybody else from counting.
pub const RETIRES_AFTER: Span = Span::from_seconds(24 * 3_600);
/// How often a listening process beacons at least.
pub const BEACON_INTERVAL_MAX: Span = Span::from_seconds(5);

/// Returns how often to beacon where the smallest heartbeat window is `window`: often enough that a gap is noticed
/// long before a silence can be over the window.
pub fn beacon_interval(window: Span) -> Span {
    Span::from_micros(window.as_micros() / 6).clamp(Span::from_millis(1), BEACON_INTERVAL_MAX)
}

/// Returns the time within which a process that beacons so often is to be heard of again: two and a half intervals.
pub fn promise_for(interval: Span) -> Span {
    Span::from_micros(interval.as_micros().saturating_mul(5) / 2)
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

/// What a beacon brings to light: the service events to append, and the beacons as they stand after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Servers that were not heard of for so long that they retire.
    pub retired: Vec<Name>,
    /// The gap that was open until now.
    pub gap: Option<OpenGap>,
    /// The beacons after it.
    pub beacons: Vec<Beacon>,
}

impl Noted {
    /// Returns the facts that are to be recorded, at `now`, because `by` beaconed or retired others.
    pub fn events(&self, by: &Name, now: Timestamp) -> Vec<ServiceEvent> {
        let gap = self.gap.map(|gap| {
            let (from, promised_until) = (gap.since, gap.promised_until);
            ServiceEvent::Deaf { from, to: now, promised_until, cause: DeafCause::Gap }
        });
        let retired = self.retired.iter();
        let retired = retired.map(|process| ServiceEvent::BeaconRetired { process: process.clone(), by: by.clone() });
        gap.into_iter().chain(retired).collect()
    }
}

/// Takes in a beacon of `process` at log time `now`.
///
/// Only a counted process ends a gap. Counted beacons whose promise is broken are dropped: the new one lies after
/// their last sign of life, so they say nothing any more, and must not stay behind when it goes.
pub fn beacon(beacons: &[Beacon], process: &Name, role: BeaconRole, promise: Promise, now: Timestamp) -> Noted {
    let (old, mut rest): (Vec<Beacon>, Vec<Beacon>) = beacons.iter().cloned().partition(|beacon| {
        beacon.role == BeaconRole::Serve && beacon.process != *process && now.since(beacon.at) >= RETIRES_AFTER
    });
    let servers = rest.iter().any(|beacon| beacon.role == BeaconRole::Serve);
    let counts = role == BeaconRole::Serve || !servers;
    let gap = open_gap(beacons, now).filter(|_| counts);
    let own = Beacon { process: process.clone(), role, at: now, promise: promise.until(now) };
    rest.retain(|beacon| {
        let broken = beacon.promise.is_none_or(|promise| promise < now);
        let as_counted = counts && beacon.role == role;
        beacon.process != *process && !(as_counted && broken)
    });
    rest.push(own);
    rest.sort_by(|a, b| a.process.cmp(&b.process));
    Noted { retired: old.into_iter().map(|beacon| beacon.process).collect(), gap, beacons: rest }
}

/// Retires every server by hand, so that local processes count. The gap until now is recorded.
///
/// # Errors
/// Returns the server that has not broken its promise: it is still there, and would be back at once.
pub fn retire_servers(beacons: &[Beacon], now: Timestamp) -> Result<Noted, Beacon> {
    let (servers, rest): (Vec<Beacon>, Vec<Beacon>) =
        beacons.iter().cloned().partition(|beacon| beacon.role == BeaconRole::Serve);
    if let Some(alive) = servers.iter().find(|beacon| beacon.promise.is_none_or(|promise| promise >= now)) {
        return Err(alive.clone());
    }
    let gap = if servers.is_empty() { None } else { open_gap(beacons, now) };
    Ok(Noted { retired: servers.into_iter().map(|beacon| beacon.process).collect(), gap, beacons: rest })
}

/// How far the clocks may drift apart, or be slewed, before it is called a step.
pub const CLOCK_STEP_MIN: Span = Span::from_seconds(2);

/// A reading of the clocks for a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSample {
    /// The host's boottime clock before the clock was read. It never jumps, and runs on while the host sleeps.
    pub boot_before: Span,
    /// What the clock said from which log time is drawn.
    pub clock: Timestamp,
    /// The log time that it made.
    pub log: Timestamp,
    /// The boottime clock after it was read.
    pub boot_after: Span,
}

/// A step of the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStep {
    /// Log time was set forward over this span.
    Forward {
        /// Its start.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// The clock was set back.
    Back {
        /// What it should have said.
        from: Timestamp,
        /// What it said.
        to: Timestamp,
    },
}

impl ClockStep {
    /// Returns the fact that records it.
    pub fn event(self) -> ServiceEvent {
        match self {
            ClockStep::Forward { from, to } => {
                ServiceEvent::Deaf { from, to, promised_until: from, cause: DeafCause::ClockStep }
            }
            ClockStep::Back { from, to } => ServiceEvent::ClockBack { from, to },
        }
    }
}

/// Compares how far log time went between two beacons of a process with how much time passed. Only what cannot be
/// explained by a pause between two readings counts.
///
/// When between the two it was set is not known. The span ends with the later one: so a silence that began before the
/// step is charged with the time that really passed, and one that began after it with less.
pub fn clock_step(earlier: &ClockSample, later: &ClockSample) -> Option<ClockStep> {
    let passed_most = later.boot_after.minus(earlier.boot_before);
    let forward = later.log.since(earlier.log).minus(passed_most);
    if forward > CLOCK_STEP_MIN {
        return Some(ClockStep::Forward { from: later.log.minus(forward), to: later.log });
    }
    let passed_least = later.boot_before.minus(earlier.boot_after);
    let expected = earlier.clock.plus(passed_least);
    (expected.since(later.clock) > CLOCK_STEP_MIN).then_some(ClockStep::Back { from: expected, to: later.clock })
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

    /// Returns the start and the end of the deaf span in which an instant lies.
    pub fn deaf_span_at(&self, at: Timestamp) -> Option<(Timestamp, Timestamp)> {
        self.spans_after(at).first().filter(|(start, _)| *start <= at).copied()
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
    fn the_deaf_span_of_an_instant_is_the_whole_one() {
        let listening = Listening::as_of(at(1_000), &[gap(100, 200), gap(150, 250)], &[]);
        let found = [99, 100, 249, 250].map(|second| listening.deaf_span_at(at(second)));
        let span = Some((at(100), at(250)));
        assert_eq!(found, [None, span, span, None]);
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

    fn named(name: &str, role: BeaconRole, last: i64, promise: Option<i64>) -> Beacon {
        Beacon { process: Name::new(name).unwrap(), ..beacon(role, last, promise) }
    }

    fn beacon_of(beacons: &[Beacon], name: &str, role: BeaconRole, now: i64) -> Noted {
        super::beacon(beacons, &Name::new(name).unwrap(), role, Promise::Within(seconds(12)), at(now))
    }

    #[test]
    fn a_broken_beacon_goes_with_the_next_one_so_that_it_does_not_stay_behind_alone() {
        let killed = named("killed", BeaconRole::Local, 100, Some(112));
        let noted = beacon_of(&[killed], "next", BeaconRole::Local, 500);
        assert_eq!(noted.gap, Some(OpenGap { since: at(100), promised_until: at(112) }));
        assert_eq!(noted.beacons, [named("next", BeaconRole::Local, 500, Some(512))]);
        let unlimited = [named("cron", BeaconRole::Local, 100, None)];
        assert_eq!(beacon_of(&unlimited, "next", BeaconRole::Local, 500).gap, None);
        assert_eq!(beacon_of(&unlimited, "next", BeaconRole::Local, 500).beacons.len(), 1);
    }

    #[test]
    fn a_server_that_is_gone_keeps_the_others_from_counting_for_a_day() {
        let server = [named("server", BeaconRole::Serve, 100, Some(112))];
        let noted = beacon_of(&server, "sweep", BeaconRole::Local, 5_000);
        assert_eq!((noted.gap, noted.retired.len(), noted.beacons.len()), (None, 0, 2));
        let noted = beacon_of(&noted.beacons, "sweep", BeaconRole::Local, 100 + 24 * 3_600);
        assert_eq!(noted.gap.unwrap().since, at(100));
        assert_eq!((noted.retired.len(), noted.beacons.len()), (1, 1));
    }

    #[test]
    fn servers_are_retired_by_hand_unless_they_are_there() {
        let server = [named("server", BeaconRole::Serve, 100, Some(112))];
        assert_eq!(retire_servers(&server, at(112)).unwrap_err().process.as_str(), "server");
        let noted = retire_servers(&server, at(113)).unwrap();
        assert_eq!((noted.gap.unwrap().since, noted.beacons), (at(100), Vec::new()));
        assert_eq!(retire_servers(&[], at(113)).unwrap().gap, None);
    }

    #[test]
    fn a_step_of_the_clock_is_what_the_boottime_clock_did_not_see() {
        let sample = |boot: u64, clock: i64| ClockSample {
            boot_before: seconds(boot),
            clock: at(clock),
            log: at(clock),
            boot_after: seconds(boot + 1),
        };
        let first = sample(10, 1_000);
        assert_eq!(clock_step(&first, &sample(15, 1_005)), None);
        assert_eq!(clock_step(&first, &sample(15, 1_008)), None, "2 s, and the second between the readings");
        let hour = ClockStep::Forward { from: at(1_006), to: at(4_605) };
        assert_eq!(clock_step(&first, &sample(15, 4_605)), Some(hour));
        let back = ClockStep::Back { from: at(1_004), to: at(900) };
        assert_eq!(clock_step(&first, &sample(15, 900)), Some(back));
        assert_eq!(clock_step(&first, &sample(3_610, 4_600)), None, "a host that slept was not set");
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
