//! An attempt looked back on: how often its executor was heard of, how near it came to being reaped, and what was heard
//! of it after a reap.
//!
//! The facts are told one by one, in their order, so looking back on a hundred thousand heartbeats takes no more memory
//! than on three. Between two facts a charge only grows. So an attempt is nearest to being reaped just before the fact
//! that ends a silence, just before its lane's policy changes, and at the end; there the rule is asked, and nothing here
//! compares by itself.
//!
//! The listening record is the one that is known at the instant of the question, not the one of the time: while a gap
//! was not noticed yet, or a step of the clock not recorded, nobody was reaped either, so what was charged meanwhile on
//! paper brought nobody nearer to it.

use crate::event::{Recorded, RunEvent, Signal};
use crate::listening::Listening;
use crate::policy::LanePolicy;
use crate::run::{Run, Status};
use crate::time::{Span, Timestamp};
use crate::verdict::{Rule, Verdict, judge};

/// What is known beside the facts of the run.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The policies that were set in the lane, with the log time of each, oldest first.
    pub policies: &'a [(Timestamp, LanePolicy)],
    /// The listening record as of the instant of the question.
    pub listening: &'a Listening,
}

impl Surroundings<'_> {
    fn policy(&self, at: Timestamp) -> LanePolicy {
        let known = self.policies.partition_point(|(recorded_at, _)| *recorded_at <= at);
        known.checked_sub(1).map(|last| self.policies[last].1.clone()).unwrap_or_default()
    }
}

/// How near an attempt came to being reaped: the least listening time that was left to it, or the most that it was over
/// its window without being reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// The log time at which it was nearest.
    pub at: Timestamp,
    /// The rule that governed.
    pub rule: Rule,
    /// The listening time that was left.
    pub left: Span,
    /// The listening time by which it was over its window; zero unless it had lapsed.
    pub over: Span,
}

impl Nearest {
    fn of(verdict: &Verdict, at: Timestamp) -> Option<Nearest> {
        let charge = verdict.charge?;
        let over = if verdict.is_lapsed() { charge.over() } else { Span::ZERO };
        Some(Nearest { at, rule: charge.rule, left: charge.left(), over })
    }

    fn nearer(self, other: Nearest) -> Nearest {
        let distance = |nearest: &Nearest| (nearest.left, std::cmp::Reverse(nearest.over));
        if distance(&other) < distance(&self) { other } else { self }
    }
}

/// A time in which nothing was heard of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The log time at which the executor was last heard of, or claimed the run.
    pub from: Timestamp,
    /// The listening time in it.
    pub charged: Span,
}

/// Something that an executor said of an attempt after it was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Afterwards {
    /// What it said.
    pub signal: Signal,
    /// The log time at which it did so.
    pub at: Timestamp,
    /// Whether the work was taken all the same.
    pub adopted: bool,
}

/// An attempt looked back on. All instants are those of the log clock, all spans listening time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Life {
    /// The attempt that is asked about; `None`: the last one.
    asked: Option<u32>,
    /// The last attempt, while the run that was reaped as it waited for another is looked back on instead.
    shelved: Option<Box<Life>>,
    /// When it was claimed; `None` of a run that never was.
    pub claimed_at: Option<Timestamp>,
    /// When it ended, or up to when it was looked at.
    pub until: Option<Timestamp>,
    /// How many heartbeats it has.
    pub beats: u64,
    /// The first and the last of them.
    pub heard: Option<(Timestamp, Timestamp)>,
    /// The longest time in which nothing was heard of the executor.
    pub longest: Option<Silence>,
    /// How near it came to being reaped.
    pub nearest: Option<Nearest>,
    /// When it would have been reaped if deaf time were charged; `None` if it would not have been.
    pub spared_at: Option<Timestamp>,
    /// Its reap.
    pub reap: Option<Recorded>,
    /// What was said after it, in order.
    pub afterwards: Vec<Afterwards>,
}

impl Life {
    /// Begins to look back on an attempt, or on the last one.
    pub fn of(asked: Option<u32>) -> Life {
        Life { asked, ..Life::default() }
    }

    /// Takes in the next fact. `before` is the run as it was before it.
    pub fn take_in(&mut self, before: Option<&Run>, fact: &Recorded, around: Surroundings<'_>) {
        let at = fact.recorded_at;
        if let Some(run) = before {
            self.measure(run, at, around);
        }
        if let Some(mut last) = self.shelved.take() {
            match &fact.event {
                RunEvent::LateSignal { .. } => last.take_in(before, fact, around),
                // Its work was taken, so that is how the run ended.
                RunEvent::Completed { late: true, .. } => {
                    *self = *last;
                    return self.take_in(before, fact, around);
                }
                _ => {}
            }
            self.shelved = Some(last);
        }
        match &fact.event {
            RunEvent::Claimed { attempt, .. } if self.asked.is_none_or(|asked| asked == *attempt) => {
                *self = Life { claimed_at: Some(at), ..Life::of(self.asked) };
            }
            RunEvent::Heartbeat { attempt, .. } if self.is_about(*attempt, before) => {
                self.beats += 1;
                self.heard = Some((self.heard.map_or(at, |(first, _)| first), at));
            }
            // It waited for another attempt that nobody made: what the last one did has nothing to do with it.
            RunEvent::TimedOut { attempt: 0, .. } if self.asked.is_none() && self.claimed_at.is_some() => {
                let last = Some(Box::new(std::mem::take(self)));
                *self = Life { reap: Some(fact.clone()), shelved: last, ..Life::default() };
            }
            RunEvent::TimedOut { attempt, .. } if self.is_about(*attempt, before) => self.reap = Some(fact.clone()),
            RunEvent::LateSignal { attempt, signal, .. } if self.is_about(*attempt, before) => {
                self.afterwards.push(Afterwards { signal: *signal, at, adopted: false });
            }
            RunEvent::Completed { attempt, late: true, .. } if self.is_about(*attempt, before) => {
                self.afterwards.push(Afterwards { signal: Signal::Completed, at, adopted: true });
            }
            _ => {}
        }
    }

    /// Ends at log time `at`, up to which nothing more is known of the run.
    pub fn end(&mut self, run: &Run, at: Timestamp, around: Surroundings<'_>) {
        self.measure(run, at, around);
    }

    /// Returns how often the executor was heard of, on the average, once it was heard of twice.
    pub fn every(&self, listening: &Listening) -> Option<Span> {
        let (first, last) = self.heard?;
        let charged = listening.charged(first, last).as_micros();
        (self.beats > 1).then(|| Span::from_micros(charged / (self.beats - 1)))
    }

    /// Says whether the executor said something after the reap that [contradicts](Rule::is_contradicted_by) it, so that it
    /// was probably wrong.
    pub fn was_probably_wrong(&self) -> bool {
        self.contradiction().is_some()
    }

    /// Returns the first word of the executor that contradicts the reap.
    pub fn contradiction(&self) -> Option<Afterwards> {
        let RunEvent::TimedOut { rule, .. } = self.reap.as_ref()?.event else { return None };
        self.afterwards.iter().find(|said| rule.is_contradicted_by(said.signal)).copied()
    }

    /// Returns the shortest window of the rule under which the reap would not have happened before the executor
    /// contradicted it; `None` if it did not, or nothing is known of what the reap rested on.
    pub fn window_needed(&self, listening: &Listening) -> Option<Span> {
        let RunEvent::TimedOut { evidence: Some(evidence), .. } = &self.reap.as_ref()?.event else { return None };
        let spoke = self.contradiction()?;
        Some(listening.charged(evidence.basis.at, spoke.at))
    }

    /// Whether a fact that names an attempt is about the one that is looked back on.
    fn is_about(&self, attempt: u32, before: Option<&Run>) -> bool {
        let current = before.map_or(0, |run| if self.claimed_at.is_some() { run.attempt } else { 0 });
        attempt == self.asked.unwrap_or(current)
    }

    /// Asks the rule how near the run was to being reaped, up to the fact at log time `at`.
    fn measure(&mut self, run: &Run, at: Timestamp, around: Surroundings<'_>) {
        let never_claimed = run.attempt == 0 && run.status == Status::Pending;
        let asked = self.asked.is_none_or(|asked| asked == run.attempt);
        if !(asked && (run.status.is_in_flight() || never_claimed)) {
            return;
        }
        self.until = Some(at);
        let begin = around.policies.partition_point(|(set_at, _)| *set_at <= run.updated_at);
        for (index, (set_at, _)) in around.policies.iter().enumerate().skip(begin).take_while(|(_, (set, _))| *set < at)
        {
            // Just before the change the old policy was in force.
            let old = index.checked_sub(1).map(|before| around.policies[before].1.clone()).unwrap_or_default();
            self.ask(run, &old, *set_at, around);
        }
        self.ask(run, &around.policy(at), at, around);
        let Some(from) = run.last_heartbeat_at().filter(|_| !never_claimed) else { return };
        let charged = around.listening.charged(from, at);
        if self.longest.is_none_or(|longest| longest.charged < charged) {
            self.longest = Some(Silence { from, charged });
        }
    }

    fn ask(&mut self, run: &Run, policy: &LanePolicy, at: Timestamp, around: Surroundings<'_>) {
        let verdict = judge(run, policy, around.listening, at);
        if let Some(nearest) = Nearest::of(&verdict, at) {
            self.nearest = Some(self.nearest.map_or(nearest, |known| known.nearer(nearest)));
        }
        if self.spared_at.is_none() && !verdict.is_lapsed() && *around.listening != Listening::default() {
            let unspared = judge(run, policy, &Listening::default(), at);
            self.spared_at = unspared.lapses_at().filter(|_| unspared.is_lapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DeafCause;
    use crate::ids::Name;
    use crate::listening::DeafSpan;
    use crate::policy::Terms;
    use crate::told::{beat, claimed, completed, stream};

    fn at(seconds: u64) -> Timestamp {
        "2026-05-04T02:00:00Z".parse::<Timestamp>().unwrap().plus(Span::from_seconds(seconds))
    }

    fn seconds(count: u64) -> Span {
        Span::from_seconds(count)
    }

    /// Looks back on a stream that is told as (second, fact), up to a second; `created` at second 0 goes without saying.
    fn life(facts: &[(u64, RunEvent)], end: u64, policies: &[(Timestamp, LanePolicy)], deaf: &[DeafSpan]) -> Life {
        let listening = Listening::as_of(at(end), deaf, &[]);
        let around = Surroundings { policies, listening: &listening };
        let (mut run, mut life): (Option<Run>, Life) = (None, Life::of(None));
        for fact in stream(7, at(0), facts.iter().map(|(second, event)| (at(*second), event.clone()))) {
            life.take_in(run.as_ref(), &fact, around);
            match &mut run {
                None => run = Some(Run::begin(&fact).unwrap()),
                Some(run) => run.evolve(&fact).unwrap(),
            }
        }
        life.end(&run.unwrap(), at(end), around);
        life
    }

    fn reaped() -> RunEvent {
        let message = "silent".to_owned();
        RunEvent::TimedOut { attempt: 1, rule: Rule::HeartbeatSilence, evidence: None, message }
    }

    fn window(window: u64) -> LanePolicy {
        let terms = Terms { heartbeat_window: seconds(window), ..Terms::default() };
        LanePolicy { version: 1, terms }
    }

    #[test]
    fn a_completed_run_tells_how_often_it_was_heard_of_and_how_near_it_came() {
        let facts =
            [(10, claimed(1)), (20, beat(1)), (50, beat(1)), (91, beat(1)), (110, beat(1)), (120, completed(1, false))];
        let life = life(&facts, 9_000, &[], &[]);
        assert_eq!((life.beats, life.every(&Listening::default())), (4, Some(seconds(30))));
        assert_eq!(life.longest, Some(Silence { from: at(50), charged: seconds(41) }));
        let nearest = Nearest { at: at(91), rule: Rule::HeartbeatSilence, left: seconds(139), over: Span::ZERO };
        assert_eq!(life.nearest, Some(nearest), "what comes after its end does not count");
        assert_eq!(life.until, Some(at(120)));
    }

    #[test]
    fn a_policy_that_was_shortened_and_widened_again_counts_while_it_was_in_force() {
        let facts = [(10, claimed(1)), (20, beat(1)), (200, beat(1)), (201, completed(1, false))];
        let policies = [(at(5), window(400)), (at(100), window(90)), (at(105), window(400))];
        let nearest = life(&facts, 300, &policies, &[]).nearest.unwrap();
        assert_eq!((nearest.at, nearest.left), (at(105), seconds(5)));
        // Under the first policy alone it never came so near.
        assert_eq!(life(&facts, 300, &policies[..1], &[]).nearest.unwrap().left, seconds(220));
    }

    #[test]
    fn a_silence_over_the_window_that_nobody_swept_is_told_as_such() {
        let facts = [(10, claimed(1)), (20, beat(1)), (212, beat(1)), (220, completed(1, false))];
        let nearest = life(&facts, 300, &[], &[]).nearest.unwrap();
        assert_eq!((nearest.at, nearest.left, nearest.over), (at(212), Span::ZERO, seconds(12)));
    }

    #[test]
    fn deaf_time_is_no_silence_and_it_is_told_whom_it_spared() {
        let facts = [(10, claimed(1)), (20, beat(1)), (260, beat(1)), (270, completed(1, false))];
        let (from, to, cause) = (at(50), at(250), DeafCause::Gap);
        let deaf = [DeafSpan { from, to, promised_until: at(62), cause, recorded_at: to }];
        let spared = life(&facts, 300, &[], &deaf);
        assert_eq!(spared.longest, Some(Silence { from: at(20), charged: seconds(40) }));
        assert_eq!((spared.nearest.unwrap().left, spared.spared_at), (seconds(140), Some(at(200))));
        assert_eq!(life(&facts, 300, &[], &[]).spared_at, None);
    }

    #[test]
    fn what_was_said_after_a_reap_is_kept_with_its_instant() {
        let late = |signal| RunEvent::LateSignal { attempt: 1, signal, executor: None };
        let facts = [
            (10, claimed(1)),
            (20, beat(1)),
            (201, reaped()),
            (213, late(Signal::Heartbeat)),
            (230, completed(1, true)),
        ];
        let life = life(&facts, 300, &[], &[]);
        let said: Vec<_> = life.afterwards.iter().map(|said| (said.signal, said.at, said.adopted)).collect();
        assert_eq!(said, [(Signal::Heartbeat, at(213), false), (Signal::Completed, at(230), true)]);
        assert!(life.was_probably_wrong());
        assert_eq!(life.window_needed(&Listening::default()), None, "an imported reap has no evidence");
    }

    #[test]
    fn a_heartbeat_contradicts_no_reap_of_a_run_that_was_known_to_beat() {
        let message = "no progress".to_owned();
        let stalled = RunEvent::TimedOut { attempt: 1, rule: Rule::NoProgress, evidence: None, message };
        let late = |signal| RunEvent::LateSignal { attempt: 1, signal, executor: None };
        let facts = [
            (10, claimed(1)),
            (20, beat(1)),
            (201, stalled),
            (213, late(Signal::Heartbeat)),
            (230, late(Signal::Completed)),
        ];
        assert!(!life(&facts[..4], 300, &[], &[]).was_probably_wrong());
        assert_eq!(life(&facts, 300, &[], &[]).contradiction().map(|said| said.at), Some(at(230)));
    }

    #[test]
    fn an_attempt_is_told_apart_from_those_before_and_after_it() {
        let requeued = RunEvent::Requeued { next_attempt: 2, not_before: at(202), by: None, reason: None };
        let late = RunEvent::LateSignal { attempt: 1, signal: Signal::Heartbeat, executor: None };
        let facts = [
            (10, claimed(1)),
            (20, beat(1)),
            (201, reaped()),
            (202, requeued),
            (210, claimed(2)),
            (213, late),
            (220, beat(2)),
            (230, beat(2)),
            (231, completed(2, false)),
        ];
        let last = life(&facts, 300, &[], &[]);
        assert_eq!((last.claimed_at, last.beats, last.was_probably_wrong()), (Some(at(210)), 2, false));
        assert_eq!(last.nearest.unwrap().left, seconds(170));
    }

    #[test]
    fn a_run_that_waited_in_vain_for_another_attempt_is_not_told_of_the_last_one() {
        let requeued = RunEvent::Requeued { next_attempt: 2, not_before: at(202), by: None, reason: None };
        let message = "not claimed".to_owned();
        let unclaimed = RunEvent::TimedOut { attempt: 0, rule: Rule::Unclaimed, evidence: None, message };
        let late = RunEvent::LateSignal { attempt: 1, signal: Signal::Heartbeat, executor: None };
        let facts =
            [(10, claimed(1)), (20, beat(1)), (201, reaped()), (202, requeued), (900, unclaimed.clone()), (901, late)];
        let life = life(&facts, 1_000, &[], &[]);
        assert_eq!(life.reap.as_ref().map(|reap| &reap.event), Some(&unclaimed));
        assert_eq!((life.beats, life.nearest, life.was_probably_wrong()), (0, None, false));
    }

    #[test]
    fn a_completion_that_comes_when_nobody_took_another_attempt_is_told_of_the_last_one() {
        let requeued = RunEvent::Requeued { next_attempt: 2, not_before: at(202), by: None, reason: None };
        let message = "not claimed".to_owned();
        let unclaimed = RunEvent::TimedOut { attempt: 0, rule: Rule::Unclaimed, evidence: None, message };
        let late = RunEvent::LateSignal { attempt: 1, signal: Signal::Heartbeat, executor: None };
        let facts = [
            (10, claimed(1)),
            (20, beat(1)),
            (201, reaped()),
            (202, requeued),
            (900, unclaimed),
            (901, late),
            (910, completed(1, true)),
        ];
        let life = life(&facts, 1_000, &[], &[]);
        assert_eq!(life.reap.as_ref().map(|reap| reap.recorded_at), Some(at(201)));
        let said: Vec<_> = life.afterwards.iter().map(|said| (said.at, said.adopted)).collect();
        assert_eq!(said, [(at(901), false), (at(910), true)]);
        assert_eq!((life.claimed_at, life.beats, life.was_probably_wrong()), (Some(at(10)), 1, true));
    }

    #[test]
    fn a_run_that_nobody_claimed_is_measured_by_its_claim_window() {
        let claim_window = Some(seconds(60));
        let policy = LanePolicy { version: 1, terms: Terms { claim_window, ..Terms::default() } };
        let cancelled = RunEvent::Cancelled { attempt: 0, by: Name::new("ada").unwrap() };
        let life = life(&[(50, cancelled)], 300, &[(at(0), policy)], &[]);
        let nearest = life.nearest.unwrap();
        assert_eq!((nearest.rule, nearest.left, life.longest), (Rule::Unclaimed, seconds(10), None));
    }
}
