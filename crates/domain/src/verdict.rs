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
//! One of them asks for more than a sign of life: a process whose work hangs may go on beating from a thread that does
//! not. `no_progress` applies to a beating run that **has reported progress** in its attempt, and charges from the
//! heartbeat that last *changed* it: the same JSON again is no progress, and a run that never reports any is not judged
//! by it.
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
//! *Progress as the sign of life.* Charging silence from the last progress instead of the last heartbeat would need no
//! further rule. But then a lane could not ask for a heartbeat each thirty seconds and for progress each hour, and an
//! executor that reports none would count as silent.
//!
//! *Charging wall time.* After an outage of the service every run looks silent for as long as it lasted, and the first
//! sweep kills them all. We were deaf; they were not silent.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Signal;
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
    /// A beating run that has reported progress has made none for the stall window.
    NoProgress,
}

impl Rule {
    /// All rules, in the order in which ties are settled.
    pub const ALL: [Rule; 6] =
        [Rule::HeartbeatSilence, Rule::CoarseTtl, Rule::Unclaimed, Rule::Unstarted, Rule::MaxRuntime, Rule::NoProgress];

    /// Says whether a reap by this rule was probably wrong if its executor said that afterwards. Where silence was held
    /// against it, any word of it contradicts that. Where it was known to be alive, a heartbeat is no news: only that the
    /// work is done shows that it should have been let alone.
    pub const fn is_contradicted_by(self, signal: Signal) -> bool {
        match self {
            Rule::HeartbeatSilence | Rule::CoarseTtl | Rule::Unclaimed | Rule::Unstarted => true,
            Rule::MaxRuntime | Rule::NoProgress => matches!(signal, Signal::Completed),
        }
    }

    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rule::HeartbeatSilence => "heartbeat_silence",
            Rule::CoarseTtl => "coarse_ttl",
            Rule::Unclaimed => "unclaimed",
            Rule::Unstarted => "unstarted",
            Rule::MaxRuntime => "max_runtime",
            Rule::NoProgress => "no_progress",
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

    /// Returns the listening time that may still pass before the charge reaches the window.
    pub fn left(&self) -> Span {
        self.window.minus(self.charged)
    }

    /// Returns the listening time by which the charge is over the window; zero unless the run has lapsed.
    pub fn over(&self) -> Span {
        self.charged.minus(self.window)
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
    // Progress comes with a heartbeat, so a run that has made some in this attempt is beating.
    let progress = run.progress_changed.filter(|_| heard.is_some());
    let no_progress = terms.stall_window.zip(progress).map(|(window, progress)| {
        let basis = Basis { fact: BasisFact::Heartbeat, version: progress.version, at: progress.at };
        charge(Rule::NoProgress, basis, window, listening, now)
    });
    let governing = earliest(main, [unstarted, max_runtime, no_progress]);

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
fn earliest(main: Charge, optional: [Option<Charge>; 3]) -> Charge {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{DeafCause, RunEvent};
    use crate::listening::DeafSpan;
    use crate::policy::Terms;
    use crate::told::{beat, claimed, stream};

    const MICRO: Span = Span::from_micros(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn seconds(count: u64) -> Span {
        Span::from_seconds(count)
    }

    /// Folds a stream that is told as (second, fact); `created` at second 0 goes without saying.
    fn run(facts: &[(i64, RunEvent)]) -> Run {
        let facts = facts.iter().map(|(second, event)| (at(*second), event.clone()));
        Run::fold(&stream(7, at(0), facts)).unwrap().unwrap()
    }

    fn reaped(attempt: u32) -> RunEvent {
        let (rule, message) = (Rule::HeartbeatSilence, "silent".to_owned());
        RunEvent::TimedOut { attempt, rule, evidence: None, message }
    }

    fn requeued(next_attempt: u32, not_before: i64) -> RunEvent {
        RunEvent::Requeued { next_attempt, not_before: at(not_before), by: None, reason: None }
    }

    fn policy(change: impl FnOnce(&mut Terms)) -> LanePolicy {
        let mut terms = Terms::default();
        change(&mut terms);
        LanePolicy { version: 1, terms }
    }

    /// Judges under the default policy, with everybody listening all the time.
    fn judged(run: &Run, now: Timestamp) -> Verdict {
        judge(run, &LanePolicy::default(), &Listening::default(), now)
    }

    /// What is known at `now` of a gap whose promise was broken 12 s after its start.
    fn deaf(from: i64, to: i64, now: Timestamp) -> Listening {
        let (promised_until, cause, recorded_at) = (at(from + 12), DeafCause::Gap, at(to));
        let gap = DeafSpan { from: at(from), to: at(to), promised_until, cause, recorded_at };
        Listening::as_of(now, &[gap], &[])
    }

    #[test]
    fn a_beating_run_is_judged_by_its_silence_alone() {
        let run = run(&[(10, claimed(1)), (40, beat(1))]);
        for (now, liveness) in [(50, Liveness::Live), (200, Liveness::Quiet), (500, Liveness::Lapsed)] {
            let verdict = judged(&run, at(now));
            assert_eq!((verdict.liveness, verdict.rule()), (liveness, Some(Rule::HeartbeatSilence)), "at {now}");
        }
    }

    #[test]
    fn a_run_that_never_beat_is_judged_by_the_coarse_window_alone() {
        let run = run(&[(10, claimed(1)), (11, RunEvent::Started { attempt: 1 })]);
        for (now, liveness) in [(50, Liveness::Presumed), (7_000, Liveness::Presumed), (7_300, Liveness::Lapsed)] {
            let verdict = judged(&run, at(now));
            assert_eq!((verdict.liveness, verdict.rule()), (liveness, Some(Rule::CoarseTtl)), "at {now}");
        }
    }

    #[test]
    fn a_beating_run_of_any_age_is_never_touched_by_the_coarse_path() {
        for age in [3 * 3_600, 86_400, 365 * 86_400] {
            let run = run(&[(10, claimed(1)), (20, beat(1)), (age, beat(1))]);
            let verdict = judged(&run, at(age + 30));
            assert_eq!((verdict.liveness, verdict.rule()), (Liveness::Live, Some(Rule::HeartbeatSilence)));
        }
    }

    #[test]
    fn beats_of_an_earlier_attempt_do_not_open_the_gate() {
        let run = run(&[(10, claimed(1)), (40, beat(1)), (300, reaped(1)), (301, requeued(2, 301)), (400, claimed(2))]);
        let verdict = judged(&run, at(1_000));
        assert_eq!((verdict.liveness, verdict.rule()), (Liveness::Presumed, Some(Rule::CoarseTtl)));
        assert_eq!(verdict.charge.unwrap().basis, Basis { fact: BasisFact::Claimed, version: 6, at: at(400) });
    }

    #[test]
    fn at_the_window_is_not_over_it_and_a_microsecond_later_is() {
        let heard = run(&[(10, claimed(1)), (40, beat(1))]);
        let mute = run(&[(10, claimed(1))]);
        for (run, lapses_at) in [(&heard, at(220)), (&mute, at(7_210))] {
            let edge = judged(run, lapses_at);
            assert_eq!((edge.is_lapsed(), edge.lapses_at()), (false, Some(lapses_at)));
            assert_eq!(edge.charge.unwrap().charged, edge.charge.unwrap().window);
            assert!(judged(run, lapses_at.next()).is_lapsed());
        }
    }

    #[test]
    fn a_run_is_quiet_once_it_is_over_one_and_a_half_intervals_late() {
        let run = run(&[(10, claimed(1)), (40, beat(1))]);
        assert_eq!(judged(&run, at(85)).liveness, Liveness::Live);
        assert_eq!(judged(&run, at(85).next()).liveness, Liveness::Quiet);
        let odd = policy(|terms| terms.heartbeat_interval = Span::from_micros(3));
        let verdict = |late| judge(&run, &odd, &Listening::default(), at(40).plus(Span::from_micros(late))).liveness;
        assert_eq!((verdict(4), verdict(5)), (Liveness::Live, Liveness::Quiet));
    }

    #[test]
    fn an_unclaimed_run_lapses_only_in_a_lane_with_a_claim_window() {
        let run = run(&[]);
        let verdict = judged(&run, at(1_000_000));
        assert_eq!((verdict.liveness, verdict.charge, verdict.changes_at), (Liveness::Waiting, None, None));
        let limited = policy(|terms| terms.claim_window = Some(seconds(60)));
        let verdict = |now| judge(&run, &limited, &Listening::default(), now);
        assert_eq!((verdict(at(60)).liveness, verdict(at(60)).rule()), (Liveness::Waiting, Some(Rule::Unclaimed)));
        assert!(verdict(at(60).next()).is_lapsed());
    }

    #[test]
    fn a_run_is_charged_for_waiting_only_once_it_is_due() {
        let run = run(&[(10, claimed(1)), (300, reaped(1)), (301, requeued(2, 500))]);
        let limited = policy(|terms| terms.claim_window = Some(seconds(60)));
        let verdict = |now| judge(&run, &limited, &Listening::default(), now);
        let early = verdict(at(499));
        assert_eq!((early.liveness, early.rule()), (Liveness::Waiting, None));
        assert_eq!((early.changes_at, early.check_at()), (Some(at(500)), Some(at(500))));
        let due = verdict(at(500)).charge.unwrap();
        assert_eq!(due.basis, Basis { fact: BasisFact::Requeued, version: 4, at: at(500) });
        assert_eq!((due.charged, due.lapses_at), (Span::ZERO, at(560)));
    }

    #[test]
    fn the_start_window_applies_until_the_executor_is_heard_of() {
        let limited = policy(|terms| terms.start_window = Some(seconds(60)));
        let rule_of = |facts: &[(i64, RunEvent)]| {
            let verdict = judge(&run(facts), &limited, &Listening::default(), at(71));
            (verdict.liveness, verdict.rule())
        };
        assert_eq!(rule_of(&[(10, claimed(1))]), (Liveness::Lapsed, Some(Rule::Unstarted)));
        let started = (20, RunEvent::Started { attempt: 1 });
        assert_eq!(rule_of(&[(10, claimed(1)), started]), (Liveness::Presumed, Some(Rule::CoarseTtl)));
        assert_eq!(rule_of(&[(10, claimed(1)), (30, beat(1))]), (Liveness::Live, Some(Rule::HeartbeatSilence)));
    }

    #[test]
    fn the_longest_runtime_ends_even_a_run_that_beats() {
        let limited = policy(|terms| terms.max_runtime = Some(seconds(600)));
        let run = run(&[(10, claimed(1)), (20, beat(1)), (605, beat(1))]);
        let verdict = |now| judge(&run, &limited, &Listening::default(), now);
        assert_eq!((verdict(at(610)).liveness, verdict(at(610)).rule()), (Liveness::Live, Some(Rule::MaxRuntime)));
        assert!(verdict(at(610).next()).is_lapsed());
    }

    fn progress(attempt: u32, done: u64) -> RunEvent {
        RunEvent::Heartbeat { attempt, progress: Some(serde_json::json!({"done": done})) }
    }

    #[test]
    fn who_beats_and_gets_nowhere_lapses_once_the_stall_window_is_over() {
        let stall = policy(|terms| terms.stall_window = Some(seconds(600)));
        let run = run(&[
            (10, claimed(1)),
            (20, progress(1, 1)),
            (100, progress(1, 2)),
            (400, progress(1, 2)),
            (650, beat(1)),
            (690, beat(1)),
        ]);
        let verdict = |now| judge(&run, &stall, &Listening::default(), now);
        let before = verdict(at(700));
        assert_eq!((before.liveness, before.rule()), (Liveness::Live, Some(Rule::NoProgress)));
        let charge = before.charge.unwrap();
        assert_eq!((charge.basis.version, charge.basis.at, charge.charged), (4, at(100), seconds(600)));
        assert_eq!((before.lapses_at(), before.changes_at), (Some(at(700)), Some(at(700).next())));
        assert!(verdict(at(700).next()).is_lapsed());
        assert_eq!(judged(&run, at(800)).rule(), Some(Rule::HeartbeatSilence), "it is off by default");
    }

    #[test]
    fn no_progress_is_charged_to_whoever_reported_some_in_this_attempt_and_in_listening_time() {
        let stall = policy(|terms| terms.stall_window = Some(seconds(600)));
        let judged = |facts: &[(i64, RunEvent)], listening: &Listening, now| {
            let verdict = judge(&run(facts), &stall, listening, now);
            (verdict.liveness, verdict.rule().unwrap())
        };
        let all = Listening::default();
        let none = [(10, claimed(1)), (20, beat(1)), (890, beat(1))];
        assert_eq!(judged(&none, &all, at(900)), (Liveness::Live, Rule::HeartbeatSilence), "it never reported any");
        let earlier =
            [(10, claimed(1)), (20, progress(1, 1)), (210, reaped(1)), (211, requeued(2, 211)), (220, claimed(2))];
        assert_eq!(judged(&earlier, &all, at(900)), (Liveness::Presumed, Rule::CoarseTtl), "another attempt did");
        let again = [&earlier[..], &[(230, progress(2, 1)), (880, beat(2))]].concat();
        assert_eq!(
            judged(&again, &all, at(900)),
            (Liveness::Lapsed, Rule::NoProgress),
            "the same, and new to this one"
        );
        let now = at(900);
        let stalled = [(10, claimed(1)), (20, progress(1, 1)), (880, beat(1))];
        assert_eq!(judged(&stalled, &all, now), (Liveness::Lapsed, Rule::NoProgress));
        assert_eq!(judged(&stalled, &deaf(100, 400, now), now), (Liveness::Live, Rule::NoProgress));
    }

    #[test]
    fn of_the_rules_that_apply_the_one_that_lapses_first_governs() {
        let run = run(&[(10, claimed(1))]);
        let governing = |start: u64, runtime: u64| {
            let terms = |terms: &mut Terms| {
                (terms.coarse_ttl, terms.start_window) = (seconds(100), Some(seconds(start)));
                terms.max_runtime = Some(seconds(runtime));
            };
            judge(&run, &policy(terms), &Listening::default(), at(20)).rule().unwrap()
        };
        assert_eq!(governing(99, 98), Rule::MaxRuntime);
        assert_eq!(governing(98, 99), Rule::Unstarted);
        assert_eq!(governing(101, 101), Rule::CoarseTtl);
    }

    #[test]
    fn a_tie_goes_to_the_rule_that_stands_higher_in_the_table() {
        let mute = run(&[(10, claimed(1))]);
        let heard = run(&[(10, claimed(1)), (40, beat(1))]);
        let governing = |run: &Run, coarse: u64, start: u64, runtime: u64| {
            let terms = |terms: &mut Terms| {
                (terms.coarse_ttl, terms.start_window) = (seconds(coarse), Some(seconds(start)));
                terms.max_runtime = Some(seconds(runtime));
            };
            judge(run, &policy(terms), &Listening::default(), at(50)).rule().unwrap()
        };
        assert_eq!(governing(&mute, 210, 210, 210), Rule::CoarseTtl);
        assert_eq!(governing(&mute, 211, 210, 210), Rule::Unstarted);
        // Both lapse at second 220: the one 180 s after the beat, the other 210 s after the claim.
        assert_eq!(governing(&heard, 211, 211, 210), Rule::HeartbeatSilence);
        assert_eq!(governing(&heard, 211, 211, 209), Rule::MaxRuntime);
    }

    #[test]
    fn deaf_time_is_not_charged() {
        let run = run(&[(10, claimed(1)), (100, beat(1))]);
        let now = at(1_000);
        let listening = deaf(160, 880, now);
        let verdict = judge(&run, &LanePolicy::default(), &listening, now);
        let charge = verdict.charge.unwrap();
        assert_eq!((charge.charged, charge.deaf, charge.lapses_at), (seconds(180), seconds(720), now));
        assert_eq!(verdict.liveness, Liveness::Quiet);
        assert!(judge(&run, &LanePolicy::default(), &listening, now.next()).is_lapsed());
    }

    #[test]
    fn the_charge_stands_still_while_a_gap_is_open() {
        let run = run(&[(10, claimed(1)), (100, beat(1))]);
        let verdict = |now| judge(&run, &LanePolicy::default(), &deaf(160, 1_000_000, now), now);
        for now in [at(173), at(10_000), at(999_999)] {
            let charge = verdict(now).charge.unwrap();
            assert_eq!((verdict(now).liveness, charge.charged), (Liveness::Quiet, seconds(60)), "at {now}");
        }
        // Until the promise is broken nobody can know that there is a gap.
        assert_eq!(verdict(at(172)).charge.unwrap().charged, seconds(72));
    }

    #[test]
    fn a_window_that_ends_as_a_gap_begins_lapses_after_the_gap() {
        let run = run(&[(10, claimed(1)), (100, beat(1))]);
        let listening = deaf(280, 500, at(600));
        let verdict = |now| judge(&run, &LanePolicy::default(), &listening, now);
        assert_eq!(verdict(at(280)).lapses_at(), Some(at(280)));
        assert!(!verdict(at(500)).is_lapsed());
        assert!(verdict(at(500).next()).is_lapsed());
    }

    #[test]
    fn what_has_ended_or_is_not_understood_is_not_judged() {
        let ended = run(&[(10, claimed(1)), (40, beat(1)), (50, reaped(1))]);
        assert_eq!(judged(&ended, at(10_000)), Verdict::without_rule(Liveness::Settled, None));
        let mut unknown = run(&[(10, claimed(1)), (40, beat(1))]);
        unknown.quarantine(4, at(50), "paused".to_owned());
        assert_eq!(judged(&unknown, at(10_000)), Verdict::without_rule(Liveness::Quarantined, None));
    }

    #[test]
    fn a_verdict_before_its_basis_charges_nothing() {
        let run = run(&[(10, claimed(1)), (40, beat(1))]);
        assert_eq!(judged(&run, at(20)).charge.unwrap().charged, Span::ZERO);
    }

    #[test]
    fn a_verdict_holds_until_changes_at_and_not_longer() {
        let run = run(&[(10, claimed(1)), (100, beat(1))]);
        let listening = deaf(160, 880, at(2_000));
        let verdict = |now| judge(&run, &LanePolicy::default(), &listening, now);
        let (mut now, mut seen) = (at(100), Vec::new());
        while let Some(changes_at) = verdict(now).changes_at {
            seen.push((verdict(now).liveness, changes_at));
            assert_eq!(verdict(changes_at.minus(MICRO)).liveness, verdict(now).liveness);
            assert_ne!(verdict(changes_at).liveness, verdict(now).liveness);
            now = changes_at;
        }
        // A beat is late after 45 s, and over the window after 60 s before the gap and 120 s after it.
        assert_eq!(seen, [(Liveness::Live, at(145).next()), (Liveness::Quiet, at(1_000).next())]);
        assert!(verdict(now).is_lapsed());
    }

    #[test]
    fn a_sweeper_looks_again_no_later_than_the_run_lapses() {
        let waiting = run(&[(10, claimed(1)), (300, reaped(1)), (301, requeued(2, 500))]);
        let mute = run(&[(10, claimed(1))]);
        let heard = run(&[(10, claimed(1)), (300, beat(1))]);
        let limited = policy(|terms| terms.claim_window = Some(seconds(60)));
        for run in [&waiting, &mute, &heard] {
            let verdict = |now| judge(run, &limited, &Listening::default(), now);
            let first_lapsed = (0..8_000).map(at).find(|now| verdict(*now).is_lapsed()).unwrap();
            for now in (302..8_000).step_by(50).map(at) {
                assert!(verdict(now).check_at().unwrap() < first_lapsed, "at {now}");
            }
        }
        assert_eq!(judged(&run(&[]), at(50)).check_at(), None);
    }
}
