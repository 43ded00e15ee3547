//! **The rule**: who is alive.
//!
//! # Intuition
//!
//! A run says *running* because somebody once wrote so. The executor may have died a second later; nobody wrote that,
//! because the only one who knew is dead. So "running" is not a fact that can be stored. What can be stored is when
//! the executor was last heard of, and what can be decided, at any instant, is how long a silence we are willing to
//! believe. [`judge`] decides it, from a run's facts, its lane's policy and the listening record. Nothing else in this
//! project compares a time with a window.
//!
//! # Approach
//!
//! Two kinds of executor exist. One that beats has shown that it can be heard, so its silence means something, and a
//! short window is enough: three minutes. One that has never beaten since its claim (an old client, a shell script)
//! tells us nothing by being silent, so it is believed for as long as work may reasonably take: two hours from the
//! claim. Which path a run is on is decided by one question, *has it beaten since its claim?*, the **gate**:
//!
//! * `heartbeat_silence` applies if and only if the run is beating;
//! * `coarse_ttl` applies if and only if it is in flight and not beating.
//!
//! An old client is therefore never judged by the fast path, and a run that beats is never touched by the coarse one,
//! however old its claim. The optional windows (off by default) are further rules that may apply at the same time; of
//! all the applicable ones that which lapses first governs.
//!
//! Time is charged, not measured: a silence is charged only with **listening time**, in which a heartbeat could have
//! been recorded ([`Listening`]). A run has lapsed when the charge is *over* the window; at the window to the
//! microsecond it has not.
//!
//! # Rejected alternatives
//!
//! *One age limit for everything*, measured from the claim. It was what the system had that this one cures: a device
//! died, and its goal showed "running" for two hours. Shortening the limit kills the long runs that are well; leaving
//! it long believes the dead. No single number is right, because age is not silence.
//!
//! *"Any heartbeat ever" as the gate.* A run that beat in attempt 1 and was claimed again by an old client would be
//! judged by the fast path for beats that another process sent, and killed three minutes after its claim. The gate
//! must ask about the current attempt, which is why it compares the last heartbeat with the claim.
//!
//! *The age limit as a backstop for beating runs too.* It reads like safety and kills exactly the runs that matter
//! most: those that have worked for three hours and were heard of thirty seconds ago.
//!
//! *Charging wall time.* After an outage of the service every run looks silent for as long as it lasted, and the first
//! sweep kills them all. We were deaf; they were not silent.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::listening::Listening;
use crate::policy::LanePolicy;
use crate::run::{Run, Status};
use crate::time::{Span, Timestamp};

/// A rule under which a run may lapse. The order is the one in which ties are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A beating run was not heard of for the heartbeat window.
    HeartbeatSilence,
    /// A run that never beat since its claim has no end after the coarse window.
    CoarseTtl,
    /// A due run was not claimed within the claim window.
    Unclaimed,
    /// A claimed run did not start within the start window.
    Unstarted,
    /// An attempt took longer than the longest runtime.
    MaxRuntime,
}

impl Rule {
    /// All rules, in the order in which ties are settled.
    pub const ALL: [Rule; 5] =
        [Rule::HeartbeatSilence, Rule::CoarseTtl, Rule::Unclaimed, Rule::Unstarted, Rule::MaxRuntime];

    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rule::HeartbeatSilence => "heartbeat_silence",
            Rule::CoarseTtl => "coarse_ttl",
            Rule::Unclaimed => "unclaimed",
            Rule::Unstarted => "unstarted",
            Rule::MaxRuntime => "max_runtime",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The type of fact from which a silence is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasisFact {
    /// The run was created.
    Created,
    /// It was requeued.
    Requeued,
    /// It was claimed.
    Claimed,
    /// It was heard of.
    Heartbeat,
}

impl BasisFact {
    /// Returns the event type of the fact.
    pub const fn as_str(self) -> &'static str {
        match self {
            BasisFact::Created => "created",
            BasisFact::Requeued => "requeued",
            BasisFact::Claimed => "claimed",
            BasisFact::Heartbeat => "heartbeat",
        }
    }
}

/// The fact from which a silence is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    /// Its type.
    pub fact: BasisFact,
    /// Its version in the run's stream.
    pub version: u64,
    /// The log time from which charging starts: that of the fact, or its `not_before`.
    pub at: Timestamp,
}

/// What the governing rule holds against a run at the instant of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The rule.
    pub rule: Rule,
    /// The fact from which charging starts.
    pub basis: Basis,
    /// How much may be charged before the run lapses.
    pub window: Span,
    /// The listening time since the basis.
    pub charged: Span,
    /// The deaf time since the basis, which is not charged.
    pub deaf: Span,
    /// The earliest log time at which the charge reaches the window, over the deaf spans that are known.
    pub lapses_at: Timestamp,
}

impl Charge {
    fn is_over(&self) -> bool {
        self.charged > self.window
    }
}

/// What the rule says of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It ended.
    Settled,
    /// It waits to be claimed.
    Waiting,
    /// It is in flight, beats, and was heard of lately.
    Live,
    /// It is in flight, beats, and missed a heartbeat, but has not lapsed.
    Quiet,
    /// It is in flight and never beat: nobody can know, so it is believed until the coarse window ends.
    Presumed,
    /// Its charge is over the window of the governing rule.
    Lapsed,
    /// Its stream holds a fact that this program does not know, so it is not judged.
    Quarantined,
}

impl Liveness {
    /// All verdicts.
    pub const ALL: [Liveness; 7] = [
        Liveness::Settled,
        Liveness::Waiting,
        Liveness::Live,
        Liveness::Quiet,
        Liveness::Presumed,
        Liveness::Lapsed,
        Liveness::Quarantined,
    ];

    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Liveness::Settled => "settled",
            Liveness::Waiting => "waiting",
            Liveness::Live => "live",
            Liveness::Quiet => "quiet",
            Liveness::Presumed => "presumed",
            Liveness::Lapsed => "lapsed",
            Liveness::Quarantined => "quarantined",
        }
    }

    /// Says whether a goal may be called running because of such a run.
    pub const fn counts_as_running(self) -> bool {
        matches!(self, Liveness::Live | Liveness::Quiet | Liveness::Presumed)
    }
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The verdict on a run at an instant, with what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The verdict.
    pub liveness: Liveness,
    /// What the governing rule holds against the run; `None` where no rule applies.
    pub charge: Option<Charge>,
    /// The earliest log time at which the verdict, or the rule that governs, can change by itself, without a new fact.
    pub changes_at: Option<Timestamp>,
}

impl Verdict {
    const fn without_rule(liveness: Liveness, changes_at: Option<Timestamp>) -> Verdict {
        Verdict { liveness, charge: None, changes_at }
    }

    /// Returns the governing rule.
    pub fn rule(&self) -> Option<Rule> {
        self.charge.map(|charge| charge.rule)
    }

    /// Returns the log time at which the run lapses unless something is heard.
    pub fn lapses_at(&self) -> Option<Timestamp> {
        self.charge.map(|charge| charge.lapses_at)
    }

    /// Says whether the run may be reaped.
    pub fn is_lapsed(&self) -> bool {
        self.liveness == Liveness::Lapsed
    }

    /// Returns the log time at which a sweeper should look at the run again: never after it lapses. `None`: it need
    /// not look until there is a new fact.
    pub fn check_at(&self) -> Option<Timestamp> {
        self.lapses_at().or(self.changes_at)
    }
}

/// Judges a run at log time `now`.
///
/// `listening` is the record [as of](Listening::as_of) the same instant, and `policy` the one that was in force then.
/// The answer depends on nothing else, so it can be had again for any instant of the past.
pub fn judge(run: &Run, policy: &LanePolicy, listening: &Listening, now: Timestamp) -> Verdict {
    if run.quarantined.is_some() {
        return Verdict::without_rule(Liveness::Quarantined, None);
    }
    match run.status {
        Status::Pending => judge_pending(run, policy, listening, now),
        Status::Claimed | Status::Running => judge_in_flight(run, policy, listening, now),
        Status::Completed | Status::Failed | Status::TimedOut | Status::Cancelled => {
            Verdict::without_rule(Liveness::Settled, None)
        }
    }
}

fn judge_pending(run: &Run, policy: &LanePolicy, listening: &Listening, now: Timestamp) -> Verdict {
    let Some(window) = policy.terms.claim_window else {
        return Verdict::without_rule(Liveness::Waiting, None);
    };
    let waiting = run.waiting;
    if now < waiting.due_at {
        return Verdict::without_rule(Liveness::Waiting, Some(waiting.due_at));
    }
    let basis = Basis { fact: waiting.fact, version: waiting.version, at: waiting.due_at };
    let charge = charge(Rule::Unclaimed, basis, window, listening, now);
    verdict(Liveness::Waiting, charge, None, listening)
}

fn judge_in_flight(run: &Run, policy: &LanePolicy, listening: &Listening, now: Timestamp) -> Verdict {
    let terms = &policy.terms;
    let Some(claim) = &run.claim else {
        // The fold never yields a run in flight without its claim; of one that nobody can name, nothing is known.
        return Verdict::without_rule(Liveness::Quarantined, None);
    };
    let claimed = Basis { fact: BasisFact::Claimed, version: claim.version, at: claim.at };
    // The gate.
    let heard = run.last_beat.filter(|_| run.is_beating());
    let main = match heard {
        Some(beat) => {
            let basis = Basis { fact: BasisFact::Heartbeat, version: beat.version, at: beat.at };
            charge(Rule::HeartbeatSilence, basis, terms.heartbeat_window, listening, now)
        }
        None => charge(Rule::CoarseTtl, claimed, terms.coarse_ttl, listening, now),
    };
    let start_window = terms.start_window.filter(|_| run.status == Status::Claimed && heard.is_none());
    let unstarted = start_window.map(|window| charge(Rule::Unstarted, claimed, window, listening, now));
    let max_runtime = terms.max_runtime.map(|window| charge(Rule::MaxRuntime, claimed, window, listening, now));
    let governing = earliest(main, [unstarted, max_runtime]);

    let Some(beat) = heard else {
        return verdict(Liveness::Presumed, governing, None, listening);
    };
    let missed = terms.heartbeat_interval.and_a_half();
    if listening.charged(beat.at, now) > missed {
        return verdict(Liveness::Quiet, governing, None, listening);
    }
    let quiet_at = listening.reaches(beat.at, missed.plus(Span::from_micros(1)));
    verdict(Liveness::Live, governing, Some(quiet_at), listening)
}

/// Measures one rule.
fn charge(rule: Rule, basis: Basis, window: Span, listening: &Listening, now: Timestamp) -> Charge {
    Charge {
        rule,
        basis,
        window,
        charged: listening.charged(basis.at, now),
        deaf: listening.deaf(basis.at, now),
        lapses_at: listening.reaches(basis.at, window),
    }
}

/// Returns the charge that lapses first; of several at the same instant, that of the rule which comes first.
fn earliest(main: Charge, optional: [Option<Charge>; 2]) -> Charge {
    let candidates = optional.into_iter().flatten();
    candidates.fold(
        main,
        |first, next| {
            if (next.lapses_at, next.rule) < (first.lapses_at, first.rule) { next } else { first }
        },
    )
}

/// Turns the governing charge into the verdict: lapsed if it is over its window, else what the run is otherwise.
///
/// The governing rule is over its window whenever any is: listening time passes for all alike, so the one that reaches
/// its window first is the first to be over it.
fn verdict(otherwise: Liveness, governing: Charge, changes_at: Option<Timestamp>, listening: &Listening) -> Verdict {
    if governing.is_over() {
        return Verdict { liveness: Liveness::Lapsed, charge: Some(governing), changes_at: None };
    }
    let over_at = listening.reaches(governing.basis.at, governing.window.plus(Span::from_micros(1)));
    let changes_at = changes_at.map_or(over_at, |earlier| earlier.min(over_at));
    Verdict { liveness: otherwise, charge: Some(governing), changes_at: Some(changes_at) }
}
