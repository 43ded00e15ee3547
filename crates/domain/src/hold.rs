//! The hold: when too much of a lane goes silent at once, the fault is more likely ours or the network's than theirs.
//!
//! Forty executors behind one switch die together in every log that we can read; one of forty dies alone. So before
//! anybody is reaped for silence, the lane is counted ([`Census`]). If at least `hold_min` of its beating runs are
//! silent, and they are more than `hold_share` of them, the lane is **held**: nothing of it is reaped for silence. A
//! hold ends when the share has fallen, when an operator releases it, or after `hold_max`. After the last two the lane
//! is **drained**: it reaps at `reap_rate`, and no new hold starts until the share has once fallen.
//!
//! Where a lane stands is told by the log alone: `reaping_held` begins a hold, `reaping_released` ends it, and one with
//! the cause `recovered` ends a drain too.

use crate::event::{ReleaseCause, ServiceEvent};
use crate::ids::Name;
use crate::policy::Terms;
use crate::time::{Span, Timestamp};
use crate::verdict::{Liveness, Verdict};

/// Whether a lane may reap for silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HoldState {
    /// It may.
    #[default]
    Free,
    /// It may not.
    Held {
        /// The log time at which the hold began.
        since: Timestamp,
    },
    /// It may, at the policy's `reap_rate`.
    Draining {
        /// The log time at which the hold was released.
        since: Timestamp,
    },
}

impl HoldState {
    /// Returns the state after a service event about the lane.
    #[must_use]
    pub fn after(self, event: &ServiceEvent, recorded_at: Timestamp) -> HoldState {
        match event {
            ServiceEvent::ReapingHeld { .. } => HoldState::Held { since: recorded_at },
            ServiceEvent::ReapingReleased { cause: ReleaseCause::Recovered, .. } => HoldState::Free,
            ServiceEvent::ReapingReleased { .. } => HoldState::Draining { since: recorded_at },
            _ => self,
        }
    }

    /// Says whether nothing is reaped for silence.
    pub fn is_held(self) -> bool {
        matches!(self, HoldState::Held { .. })
    }
}

/// A time in which nothing of a lane was reaped for silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSpan {
    /// The log time at which the hold began.
    pub from: Timestamp,
    /// The log time at which it ended; `None` while it lasts.
    pub to: Option<Timestamp>,
    /// Why it ended.
    pub cause: Option<ReleaseCause>,
}

impl HeldSpan {
    /// Returns it as it was known at log time `at`; `None` if it began later.
    pub fn as_of(&self, at: Timestamp) -> Option<HeldSpan> {
        let over = self.to.is_some_and(|to| to <= at);
        let (to, cause) = if over { (self.to, self.cause) } else { (None, None) };
        (self.from <= at).then_some(HeldSpan { from: self.from, to, cause })
    }
}

/// How many of a lane's beating runs are silent; in a large lane estimated from a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// How many runs are beating.
    pub beating: u64,
    /// How many of them are quiet or lapsed.
    pub silent: u64,
    /// How many of them are lapsed.
    pub lapsed: u64,
}

impl Census {
    /// Counts verdicts on runs that are beating.
    pub fn of<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> Census {
        let mut census = Census::default();
        verdicts.into_iter().for_each(|verdict| census.add(verdict));
        census
    }

    /// Counts one more run that is beating.
    pub fn add(&mut self, verdict: &Verdict) {
        self.beating += 1;
        self.silent += u64::from(matches!(verdict.liveness, Liveness::Quiet | Liveness::Lapsed));
        self.lapsed += u64::from(verdict.is_lapsed());
    }

    /// Takes the census of a sample for that of `beating` runs.
    #[must_use]
    pub fn scaled_to(self, beating: u64) -> Census {
        let scale = |count: u64| match self.beating {
            0 => 0,
            sample => u64::try_from(u128::from(count) * u128::from(beating) / u128::from(sample)).unwrap_or(u64::MAX),
        };
        Census { beating, silent: scale(self.silent), lapsed: scale(self.lapsed) }
    }

    /// Says whether so much is silent that nobody should be reaped for it.
    pub fn calls_for_hold(&self, terms: &Terms) -> bool {
        // Counts of runs are far below the 2^53 up to which they are exact.
        #[allow(clippy::cast_precision_loss)]
        let over_share = self.silent as f64 > terms.hold_share * self.beating as f64;
        terms.hold_min.is_some_and(|least| self.silent >= u64::from(least)) && over_share
    }
}

/// Returns what follows from a count of the lane: a hold, the end of one, or nothing.
pub fn review(lane: &Name, state: HoldState, census: &Census, terms: &Terms, now: Timestamp) -> Option<ServiceEvent> {
    let released = |cause| ServiceEvent::ReapingReleased { lane: lane.clone(), cause, by: None, reason: None };
    match state {
        HoldState::Free if census.calls_for_hold(terms) => {
            let Census { beating, silent, lapsed } = *census;
            Some(ServiceEvent::ReapingHeld { lane: lane.clone(), lapsed, silent, beating })
        }
        HoldState::Held { .. } | HoldState::Draining { .. } if !census.calls_for_hold(terms) => {
            Some(released(ReleaseCause::Recovered))
        }
        HoldState::Held { since } if now.since(since) >= terms.hold_max => Some(released(ReleaseCause::Expired)),
        _ => None,
    }
}

/// The pace at which a lane is drained: one turn each 1/`reap_rate` of a second.
///
/// It is the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371, annex A): what is kept is the
/// instant of the next turn, and unused turns are saved up for [`Pace::SAVED`] at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The log time from which the next run may be reaped.
    pub next: Timestamp,
}

impl Pace {
    /// How long unused turns are saved up, so that a sweeper that wakes now and then still keeps the rate.
    pub const SAVED: Span = Span::from_millis(100);

    /// Says whether it is anybody's turn.
    pub fn allows(self, now: Timestamp) -> bool {
        self.next <= now
    }

    /// Returns the pace after a reap.
    #[must_use]
    pub fn after_reap(self, reap_rate: u32, now: Timestamp) -> Pace {
        Pace { next: self.next.max(now.minus(Pace::SAVED)).plus(turn(reap_rate)) }
    }
}

/// Returns how long a turn takes.
pub fn turn(reap_rate: u32) -> Span {
    Span::from_micros(1_000_000 / u64::from(reap_rate.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn census(silent: u64, beating: u64) -> Census {
        Census { beating, silent, lapsed: silent }
    }

    fn after(state: HoldState, census: &Census, second: i64) -> HoldState {
        let lane = Name::new("watcher").unwrap();
        match review(&lane, state, census, &Terms::default(), at(second)) {
            Some(event) => state.after(&event, at(second)),
            None => state,
        }
    }

    #[test]
    fn a_lane_is_held_from_the_least_number_on_if_they_are_more_than_the_share() {
        let terms = Terms::default();
        assert!(census(20, 39).calls_for_hold(&terms));
        assert!(!census(20, 40).calls_for_hold(&terms), "half is not more than half");
        assert!(!census(19, 19).calls_for_hold(&terms), "a few may well die together");
        assert!(!census(500, 500).calls_for_hold(&Terms { hold_min: None, ..terms }));
    }

    #[test]
    fn a_hold_ends_when_the_share_falls_or_after_its_time_and_the_drain_only_when_it_falls() {
        let held = after(HoldState::Free, &census(40, 40), 0);
        assert_eq!(held, HoldState::Held { since: at(0) });
        assert_eq!(after(held, &census(10, 40), 5), HoldState::Free);
        assert_eq!(after(held, &census(40, 40), 599), held);
        let draining = after(held, &census(40, 40), 600);
        assert_eq!(draining, HoldState::Draining { since: at(600) });
        assert_eq!(after(draining, &census(40, 40), 9_000), draining, "no new hold until the share has once fallen");
        assert_eq!(after(draining, &census(0, 40), 9_001), HoldState::Free);
    }

    #[test]
    fn a_drain_keeps_its_rate_and_saves_little_up() {
        let reaped_in = |seconds: i64, wake: Span, rate: u32| {
            let (mut pace, mut now, mut reaped) = (Pace { next: at(0) }, at(0), 0_u32);
            while now < at(seconds) {
                while pace.allows(now) {
                    pace = pace.after_reap(rate, now);
                    reaped += 1;
                }
                now = now.plus(wake);
            }
            reaped
        };
        assert_eq!(reaped_in(10, Span::from_millis(1), 10), 100);
        assert_eq!(reaped_in(10, Span::from_millis(50), 1_000), 9_951, "turns are saved up from one look to the next");
        let pace = Pace { next: at(0) };
        assert!(!pace.after_reap(10, at(1_000)).after_reap(10, at(1_000)).allows(at(1_000)), "and not for long");
    }

    #[test]
    fn a_sample_stands_for_the_lane() {
        let sample = Census { beating: 1_000, silent: 600, lapsed: 250 };
        assert_eq!(sample.scaled_to(40_000), Census { beating: 40_000, silent: 24_000, lapsed: 10_000 });
    }
}
