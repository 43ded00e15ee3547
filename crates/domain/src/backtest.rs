//! Backtests: what a lane's recorded past would have been under other policies.
//!
//! # Intuition
//!
//! Whoever sets a window guesses how long a silence means death. The log knows better: it has every silence that ever
//! was, and how each of them ended. So before a window is changed, the past can be asked how many runs it would have
//! reaped, how many of them wrongly, and how much sooner the dead would have been noticed.
//!
//! # Approach
//!
//! Facts are taken one at a time, run by run, each run's in order; nothing is kept of them but the run that they fold
//! to and sums. A run is cut into **stints**: one for each time that it waits, and one for each attempt. Each stint is
//! judged on its own, under each [`Alternative`], by a sweeper that is always there: it reaps at the first instant at
//! which [`judge`] calls the run lapsed and somebody listened. No instant and no window is compared in any other way, so
//! whatever rules `judge` has, a backtest has.
//!
//! *The record is judged by hindsight.* All deaf time that is known at the end of the record counts, also that which
//! was only recognised later: while nobody listened nobody swept, so no sweeper could have reaped by what it did not know.
//!
//! *A reap is wrong* if the record has a sign of life of that attempt after it that
//! [contradicts](Rule::is_contradicted_by) its rule: that it started, beat, completed, failed, or stopped as it was asked
//! to; where the run was known to be alive, only that it completed. A reap of a run that waits is wrong if it was claimed
//! after all.
//!
//! *After a reap that never was* the record goes on as it went: what is recorded of that attempt is evidence, and is not
//! judged again. The next attempt is judged as it was recorded, though it would have begun at another time.
//!
//! *After a reap that was*, the executor was told to stop, and all that can be heard of it is its late signals. The
//! first of each kind is recorded, so up to the first of them the silence is real, and an alternative that is more
//! patient is judged in it. What would have come after it nobody knows: such an attempt counts as no longer reaped. What
//! is said later still tells whether the reaps up to then were wrong.
//!
//! *The record compares with the rule, not with the sweeper's clock.* A recorded reap says by its evidence which rule,
//! which fact and which window it rests on. If what was in force leads to the same, the instant is that of the rule; so
//! a pass that came late, a hold, or a reap by hand are no difference. A reap without evidence, as an import may bring it,
//! counts from the instant at which it was recorded.
//!
//! Holds, reap rates and shadow mode are left out: a backtest is about windows.
//!
//! # The shortest window
//!
//! Whether a window is long enough for the past does not have to be tried. At every sign of life it is known how much
//! silence had been charged a moment before; a window that is shorter than the longest of these would have reaped a run
//! that was alive, and that one would not. It is measured with `judge` too, by a policy in which one window is over at
//! once and no other ever is. Only where a reap by that window would have been wrong does it ask for anything: how long an
//! attempt ran that never completed says nothing of the longest runtime.
//!
//! # Rejected alternatives
//!
//! *Judging each instant by what was known then*, as `why --at` does. It would have reaped runs between the last sign of
//! a server that died and the instant at which that was noticed: reaps that nobody was there to make.
//!
//! *Replaying the whole lane with its retries under the alternative.* What an executor would have done instead is not in
//! the record, so every figure would rest on an invention.

use std::collections::BTreeMap;

use crate::alternative::{Alternative, Window};
use crate::event::{Recorded, RunEvent, Signal};
use crate::ids::RunId;
use crate::listening::Listening;
use crate::policy::LanePolicy;
use crate::run::{EvolveError, Run};
use crate::time::{Span, Timestamp};
use crate::verdict::{Charge, Rule, judge};

const MICRO: Span = Span::from_micros(1);

/// A recorded past of a lane while it is judged under alternative policies.
#[derive(Debug)]
pub struct Backtest {
    past: Past,
    life: Option<Life>,
    tally: Tally,
}

impl Backtest {
    /// Begins a backtest.
    ///
    /// `policies` are those that the lane ever had, with the log time from which each was in force; before the first
    /// the default is. `listening` is the record as of `end`, the log time up to which the past is known. The first of
    /// the alternatives is always what was in force. At most `named_max` wrong reaps are named for each.
    pub fn new(
        policies: impl IntoIterator<Item = (Timestamp, LanePolicy)>,
        alternatives: Vec<Alternative>,
        listening: Listening,
        end: Timestamp,
        named_max: usize,
    ) -> Backtest {
        let mut alternatives = alternatives;
        alternatives.retain(|alternative| !alternative.windows().is_empty());
        alternatives.insert(0, Alternative::default());
        let in_force: Vec<(Timestamp, LanePolicy)> =
            [(Timestamp::MIN, LanePolicy::default())].into_iter().chain(policies).collect();
        let over_each =
            |alternative: &Alternative| in_force.iter().map(|(_, policy)| alternative.over(policy)).collect();
        let past = Past {
            since: in_force.iter().map(|(since, _)| *since).collect(),
            policies: alternatives.iter().map(over_each).collect(),
            alone: Window::ALL.map(Window::alone),
            listening,
            end,
        };
        Backtest { past, life: None, tally: Tally::new(alternatives, named_max) }
    }

    /// Takes the next fact of the run whose facts are taken, or the first one of the next run. What was recorded after
    /// the end is passed over.
    ///
    /// # Errors
    /// If it cannot follow on the run's facts.
    pub fn take(&mut self, fact: &Recorded) -> Result<(), EvolveError> {
        if fact.recorded_at > self.past.end {
            return Ok(());
        }
        self.tally.facts += 1;
        match &mut self.life {
            Some(life) if life.run.id == fact.run => life.take(fact, &self.past, &mut self.tally),
            _ => {
                self.end_run();
                self.life = Some(Life::begin(fact, &self.past)?);
                Ok(())
            }
        }
    }

    /// Takes a fact of that run that this program does not know: the run is not judged from here on.
    pub fn take_unknown(&mut self, run: RunId, recorded_at: Timestamp) {
        let Some(life) = self.life.as_mut().filter(|life| life.run.id == run) else { return };
        if recorded_at > self.past.end {
            return;
        }
        self.tally.facts += 1;
        if !life.quarantined {
            life.quarantined = true;
            life.judge_until(recorded_at, &self.past);
            life.leave(&mut self.tally);
        }
    }

    /// Returns what came of it.
    pub fn finish(mut self) -> BacktestReport {
        self.end_run();
        self.tally.report(&self.past)
    }

    fn end_run(&mut self) {
        let Some(mut life) = self.life.take() else { return };
        // While a gap is open nobody is there to reap.
        let open_gap = self.past.listening.deaf_since().is_some();
        let until = if open_gap { self.past.end } else { self.past.end.next() };
        life.judge_until(until, &self.past);
        life.leave(&mut self.tally);
        self.tally.end_run(&life);
    }
}

/// What is known of the time in which the runs lived.
#[derive(Debug)]
struct Past {
    /// From when each policy of the lane was in force; the first one always was.
    since: Vec<Timestamp>,
    /// These policies under each alternative.
    policies: Vec<Vec<LanePolicy>>,
    /// For each window the policy that tells what is charged against it.
    alone: [LanePolicy; Window::ALL.len()],
    listening: Listening,
    end: Timestamp,
}

/// A reap that a sweeper would have made.
#[derive(Clone, Copy, Debug)]
struct Lapse {
    at: Timestamp,
    charge: Charge,
}

impl Past {
    /// Returns the first reap from `from` up to and with `until`, under policies that are in force one after the other.
    /// The run has no fact in between.
    fn first_lapse(&self, policies: &[LanePolicy], run: &Run, from: Timestamp, until: Timestamp) -> Option<Lapse> {
        let mut now = from;
        while now <= until {
            let next = self.since.partition_point(|since| *since <= now);
            let last = self.since.get(next).map_or(until, |turn| until.min(turn.minus(MICRO)));
            let lapse = policies.get(next - 1).and_then(|policy| self.lapse_under(policy, run, now, last));
            if lapse.is_some() || last == until {
                return lapse;
            }
            now = last.next();
        }
        None
    }

    /// Returns the same under one policy.
    fn lapse_under(&self, policy: &LanePolicy, run: &Run, from: Timestamp, until: Timestamp) -> Option<Lapse> {
        // What has lapsed stays so while nothing new is known: one look at the end says of nearly every stretch that
        // nothing did.
        if !judge(run, policy, &self.listening, until).is_lapsed() {
            return None;
        }
        let mut now = from;
        while now <= until {
            let verdict = judge(run, policy, &self.listening, now);
            now = match verdict.charge.filter(|_| verdict.is_lapsed()) {
                Some(charge) => match self.listening.deaf_span_at(now) {
                    None => return Some(Lapse { at: now, charge }),
                    Some((_, end)) => end,
                },
                None => verdict.changes_at?,
            };
        }
        None
    }

    /// Returns the silences that ended at `at`, when the run gave a sign of life: for each window that applied, what
    /// had been charged against it at the last moment before at which somebody could have reaped it.
    fn silences(&self, run: &Run, at: Timestamp) -> [Option<Silence>; Window::ALL.len()] {
        let moment_before = match self.listening.deaf_span_at(at.minus(MICRO)) {
            Some((deaf_from, _)) => deaf_from.minus(MICRO),
            None => at.minus(MICRO),
        };
        self.alone.each_ref().map(|policy| {
            let charge = judge(run, policy, &self.listening, moment_before).charge?;
            // Where the window does not apply, another one governs, which is never over.
            let applies = charge.window == Span::ZERO;
            let attempt = if run.status.is_in_flight() { run.attempt } else { 0 };
            applies.then_some(Silence {
                run: run.id,
                attempt,
                rule: charge.rule,
                from: charge.basis.at,
                to: at,
                charged: charge.charged,
            })
        })
    }
}

/// A silence that ended with a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The run.
    pub run: RunId,
    /// Its attempt; 0 if it waited.
    pub attempt: u32,
    /// The rule that charges for it.
    pub rule: Rule,
    /// The log time from which it was charged.
    pub from: Timestamp,
    /// The log time at which something was heard.
    pub to: Timestamp,
    /// The listening time between the two, up to the last moment at which somebody could have reaped the run: a window
    /// of this length would not have been over, any shorter one would.
    pub charged: Span,
}

/// What became of a stint under one alternative.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    lapse: Option<Lapse>,
    /// When something was heard after that which contradicts it.
    heard_at: Option<Timestamp>,
}

impl Fate {
    /// Takes what was said at an instant up to which it was judged.
    fn hear(&mut self, at: Timestamp, said: Signal) {
        let contradicted = self.lapse.filter(|lapse| lapse.charge.rule.is_contradicted_by(said));
        self.heard_at = self.heard_at.or(contradicted.map(|_| at));
    }
}

/// A recorded reap.
#[derive(Debug)]
struct Reap {
    at: Timestamp,
    rule: Rule,
    /// The rule, the version of the basis and the window that its evidence names.
    evidence: Option<(Rule, u64, Span)>,
    /// The run as it was before.
    run: Box<Run>,
}

impl Reap {
    /// Returns the instant of the rule: what the policy in force leads to, if that is what the evidence says.
    fn due_at(&self, in_force: &Fate) -> Timestamp {
        let lapse = in_force
            .lapse
            .filter(|Lapse { charge, .. }| self.evidence == Some((charge.rule, charge.basis.version, charge.window)));
        lapse.map_or(self.at, |lapse| lapse.at)
    }
}

/// A time in which a run waits, or an attempt.
#[derive(Debug)]
struct Stint {
    /// 0 if it waits.
    attempt: u32,
    /// Up to when, and without it, it was judged.
    judged_to: Timestamp,
    fates: Vec<Fate>,
    /// The longest silence under each window.
    silences: [Option<Silence>; Window::ALL.len()],
    reap: Option<Reap>,
    /// Whether something was heard after it was reaped: it is not judged any further.
    heard_late: bool,
    /// Whether that contradicts the reap.
    reaped_wrongly: bool,
    /// Whether its work was done.
    is_done: bool,
}

impl Stint {
    fn new(attempt: u32, from: Timestamp, past: &Past) -> Stint {
        let fates = vec![Fate::default(); past.policies.len()];
        let (silences, reap) = ([None; Window::ALL.len()], None);
        let (heard_late, reaped_wrongly, is_done) = (false, false, false);
        Stint { attempt, judged_to: from, fates, silences, reap, heard_late, reaped_wrongly, is_done }
    }

    /// Judges it up to, and without, an instant; `run` is how it is since it was last judged.
    fn judge_until(&mut self, at: Timestamp, run: &Run, past: &Past) {
        let until = at.minus(MICRO);
        for (fate, policies) in self.fates.iter_mut().zip(&past.policies) {
            if fate.lapse.is_none() {
                fate.lapse = past.first_lapse(policies, run, self.judged_to, until);
            }
        }
        self.judged_to = at;
    }

    /// The same of one that was reaped.
    fn judge_reaped_until(&mut self, at: Timestamp, past: &Past) {
        if let Some(reap) = self.reap.take() {
            self.judge_until(at, &reap.run, past);
            self.reap = Some(reap);
        }
    }

    /// Takes a sign of life; `run` is how it was before.
    fn hear(&mut self, at: Timestamp, said: Signal, run: &Run, past: &Past) {
        self.judge_until(at, run, past);
        for (longest, silence) in self.silences.iter_mut().zip(past.silences(run, at)) {
            *longest = longer(*longest, silence);
        }
        self.note(at, said);
    }

    /// The same of one that was reaped. Only up to the first time is its silence known.
    fn hear_late(&mut self, at: Timestamp, said: Signal, past: &Past) {
        let Some(reap) = self.reap.take() else { return };
        if self.heard_late {
            self.note(at, said);
        } else {
            self.hear(at, said, &reap.run, past);
        }
        self.heard_late = true;
        self.reaped_wrongly |= reap.rule.is_contradicted_by(said);
        self.reap = Some(reap);
    }

    fn note(&mut self, at: Timestamp, said: Signal) {
        self.fates.iter_mut().for_each(|fate| fate.hear(at, said));
        self.is_done |= said == Signal::Completed;
    }

    /// Returns the longest silence under each window by which a reap would have been wrong.
    fn harmed(&self) -> [Option<Silence>; Window::ALL.len()] {
        let said = if self.is_done { Signal::Completed } else { Signal::Heartbeat };
        self.silences.map(|silence| silence.filter(|silence| silence.rule.is_contradicted_by(said)))
    }
}

fn longer(one: Option<Silence>, other: Option<Silence>) -> Option<Silence> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.charged > one.charged { other } else { one }),
        (one, other) => one.or(other),
    }
}

/// A run while its facts are taken.
#[derive(Debug)]
struct Life {
    run: Run,
    /// What it is in.
    stint: Option<Stint>,
    /// What was reaped and may be heard of late.
    reaped: Vec<Stint>,
    /// Under which windows a silence was measured.
    measured: [bool; Window::ALL.len()],
    quarantined: bool,
}

impl Life {
    fn begin(fact: &Recorded, past: &Past) -> Result<Life, EvolveError> {
        let run = Run::begin(fact)?;
        let stint = Some(Stint::new(0, fact.recorded_at, past));
        Ok(Life { run, stint, reaped: Vec::new(), measured: [false; Window::ALL.len()], quarantined: false })
    }

    fn take(&mut self, fact: &Recorded, past: &Past, tally: &mut Tally) -> Result<(), EvolveError> {
        if self.quarantined {
            return Ok(());
        }
        let (at, event) = (fact.recorded_at, &fact.event);
        if let Some(stint) = &mut self.stint {
            match sign_of_life(event) {
                Some(said) => stint.hear(at, said, &self.run, past),
                None => stint.judge_until(at, &self.run, past),
            }
        }
        let before = matches!(event, RunEvent::TimedOut { .. }).then(|| Box::new(self.run.clone()));
        self.run.evolve(fact)?;
        match event {
            RunEvent::Created { .. }
            | RunEvent::Started { .. }
            | RunEvent::Heartbeat { .. }
            | RunEvent::CancelRequested { .. } => {}
            RunEvent::Claimed { attempt, .. } => {
                self.end_stint(tally);
                // Whoever waited in vain has found somebody after all.
                self.hear_late(0, at, Signal::Started, past);
                self.stint = Some(Stint::new(*attempt, at, past));
            }
            RunEvent::Completed { attempt, late, .. } => {
                self.end_stint(tally);
                if *late {
                    self.hear_late(*attempt, at, Signal::Completed, past);
                }
            }
            RunEvent::Failed { .. } | RunEvent::Cancelled { .. } => self.end_stint(tally),
            RunEvent::LateSignal { attempt, signal, .. } => self.hear_late(*attempt, at, *signal, past),
            RunEvent::Requeued { .. } => self.stint = Some(Stint::new(0, at, past)),
            RunEvent::TimedOut { rule, evidence, .. } => {
                if let (Some(mut stint), Some(run)) = (self.stint.take(), before) {
                    let evidence = evidence.as_ref().map(|known| (known.rule, known.basis.version, known.window));
                    stint.reap = Some(Reap { at, rule: *rule, evidence, run });
                    self.reaped.push(stint);
                }
            }
        }
        Ok(())
    }

    /// Judges all that is open up to, and without, an instant.
    fn judge_until(&mut self, at: Timestamp, past: &Past) {
        if let Some(stint) = &mut self.stint {
            stint.judge_until(at, &self.run, past);
        }
        for stint in self.reaped.iter_mut().filter(|stint| !stint.heard_late) {
            stint.judge_reaped_until(at, past);
        }
    }

    /// Counts the stint that has ended.
    fn end_stint(&mut self, tally: &mut Tally) {
        if let Some(stint) = self.stint.take() {
            self.count(&stint, true, tally);
        }
    }

    /// Takes a sign of life of an attempt that was reaped, or of a run that was reaped while it waited.
    fn hear_late(&mut self, attempt: u32, at: Timestamp, said: Signal, past: &Past) {
        for stint in self.reaped.iter_mut().filter(|stint| stint.attempt == attempt) {
            stint.hear_late(at, said, past);
        }
    }

    /// Counts what is open where the record of the run ends.
    fn leave(&mut self, tally: &mut Tally) {
        if let Some(stint) = self.stint.take() {
            self.count(&stint, false, tally);
        }
        for stint in std::mem::take(&mut self.reaped) {
            self.count(&stint, true, tally);
        }
    }

    fn count(&mut self, stint: &Stint, has_ended: bool, tally: &mut Tally) {
        for (measured, silence) in self.measured.iter_mut().zip(stint.harmed()) {
            *measured |= silence.is_some();
        }
        tally.count(self.run.id, stint, has_ended);
    }
}

/// Returns what a fact tells of the attempt that it is about, if it tells that somebody works on it, or, of a run that
/// waits, that somebody takes it.
fn sign_of_life(event: &RunEvent) -> Option<Signal> {
    match event {
        RunEvent::Claimed { .. } | RunEvent::Started { .. } => Some(Signal::Started),
        RunEvent::Heartbeat { .. } => Some(Signal::Heartbeat),
        RunEvent::Completed { late: false, .. } => Some(Signal::Completed),
        // Whoever stops as it was asked to leaves its work undone. A run that nobody holds is cancelled by whoever wants
        // it so.
        RunEvent::Failed { .. } | RunEvent::Cancelled { attempt: 1.., .. } => Some(Signal::Failed),
        RunEvent::Created { .. }
        | RunEvent::Completed { late: true, .. }
        | RunEvent::Cancelled { attempt: 0, .. }
        | RunEvent::TimedOut { .. }
        | RunEvent::Requeued { .. }
        | RunEvent::CancelRequested { .. }
        | RunEvent::LateSignal { .. } => None,
    }
}

/// What came of a backtest.
#[derive(Clone, Debug, PartialEq)]
pub struct BacktestReport {
    /// The log time up to which the past was known.
    pub end: Timestamp,
    /// How many runs were judged.
    pub runs: u64,
    /// How many facts they have.
    pub facts: u64,
    /// How many attempts were judged.
    pub attempts: u64,
    /// How many of the attempts were still under way at the end.
    pub open: u64,
    /// How many runs hold a fact that this program does not know; they were judged up to it.
    pub quarantined: u64,
    /// How many reaps the record has.
    pub reaps: u64,
    /// How many of them were wrong: something was heard afterwards that contradicts them.
    pub wrong: u64,
    /// What would have been: first under what was in force, then under each alternative.
    pub outcomes: Vec<Outcome>,
    /// What the silences say of each window.
    pub windows: Vec<WindowReport>,
}

/// What would have been under one alternative. Every stint is counted in one of the first seven.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The alternative.
    pub alternative: Alternative,
    /// Reaped at the same instant as in the record, by the rule.
    pub same: u64,
    /// Reaped earlier.
    pub earlier: u64,
    /// Reaped later.
    pub later: u64,
    /// Reaped though the record has no reap.
    pub newly: u64,
    /// Reaped in the record, and not: something was heard before it would have been.
    pub no_longer: u64,
    /// Reaped in the record, and not by the end of it.
    pub not_yet: u64,
    /// Not reaped, as in the record.
    pub untouched: u64,
    /// Of those reaped: something was heard afterwards that contradicts the rule.
    pub wrong: u64,
    /// Of the wrong ones: not wrong in the record as well.
    pub newly_wrong: u64,
    /// Of those reaped: nothing of the kind was heard afterwards.
    pub right: u64,
    /// Of those reaped: the record ends before it is known.
    pub undecided: u64,
    /// By how much the right ones of those reaped earlier were so.
    pub sooner: Shift,
    /// By how much the right ones of those reaped later were so.
    pub later_by: Shift,
    /// The wrong reaps of each rule, and how many of them are newly wrong.
    pub wrong_by_rule: BTreeMap<Rule, (u64, u64)>,
    /// Some of the wrong reaps, newly wrong ones before others.
    pub wrong_reaps: Vec<WrongReap>,
}

impl Outcome {
    /// Returns how many are reaped.
    pub fn reaps(&self) -> u64 {
        self.same + self.earlier + self.later + self.newly
    }
}

/// A reap after which something was heard that contradicts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongReap {
    /// The run.
    pub run: RunId,
    /// Its attempt; 0 if it waited.
    pub attempt: u32,
    /// The rule.
    pub rule: Rule,
    /// The log time at which it would have been reaped.
    pub at: Timestamp,
    /// The log time at which something was heard.
    pub heard_at: Timestamp,
    /// Whether the record has no such wrong reap.
    pub is_new: bool,
}

/// By how much reaps were moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// How many.
    pub reaps: u64,
    /// By how much in all, in microseconds.
    total_micros: u128,
    /// By how much at the most.
    pub longest: Span,
}

impl Shift {
    fn add(&mut self, by: Span) {
        self.reaps += 1;
        self.total_micros += u128::from(by.as_micros());
        self.longest = self.longest.max(by);
    }

    /// Returns by how much on average; `None` if there was none.
    pub fn mean(&self) -> Option<Span> {
        let mean = self.total_micros.checked_div(u128::from(self.reaps))?;
        Some(Span::from_micros(u64::try_from(mean).unwrap_or(u64::MAX)))
    }
}

/// What the silences of the past say of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowReport {
    /// The window.
    pub window: Window,
    /// How long it was at the end; `None`: off.
    pub in_force: Option<Span>,
    /// How many runs had a silence that would have been charged against it and ended with a sign of life, so that a reap
    /// would have been wrong.
    pub runs: u64,
    /// The shortest window with no wrong reap; `None` if no such silence was seen.
    pub no_wrong: Option<Shortest>,
    /// The shortest window with no wrong reap that is not one in the record already.
    pub no_newly_wrong: Option<Shortest>,
}

/// A window that would have been long enough for the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortest {
    /// The silence that asks for it. It is as long as the window must be, to the microsecond.
    pub silence: Silence,
    /// The shortest of the alternatives that is long enough.
    pub asked: Option<Span>,
    /// By how much that is longer.
    pub margin: Option<Span>,
}

/// Sums, while facts are taken.
#[derive(Debug)]
struct Tally {
    runs: u64,
    facts: u64,
    attempts: u64,
    open: u64,
    quarantined: u64,
    reaps: u64,
    wrong: u64,
    outcomes: Vec<Outcome>,
    named_max: usize,
    measured: [u64; Window::ALL.len()],
    longest: [Option<Silence>; Window::ALL.len()],
    /// The same without the attempts that were reaped wrongly in the record.
    longest_of_others: [Option<Silence>; Window::ALL.len()],
}

impl Tally {
    fn new(alternatives: Vec<Alternative>, named_max: usize) -> Tally {
        let outcome = |alternative| Outcome { alternative, ..Outcome::default() };
        Tally {
            runs: 0,
            facts: 0,
            attempts: 0,
            open: 0,
            quarantined: 0,
            reaps: 0,
            wrong: 0,
            outcomes: alternatives.into_iter().map(outcome).collect(),
            named_max,
            measured: [0; Window::ALL.len()],
            longest: [None; Window::ALL.len()],
            longest_of_others: [None; Window::ALL.len()],
        }
    }

    fn end_run(&mut self, life: &Life) {
        self.runs += 1;
        self.quarantined += u64::from(life.quarantined);
        for (runs, measured) in self.measured.iter_mut().zip(life.measured) {
            *runs += u64::from(measured);
        }
    }

    fn count(&mut self, run: RunId, stint: &Stint, has_ended: bool) {
        let is_attempt = stint.attempt > 0;
        self.attempts += u64::from(is_attempt);
        self.open += u64::from(is_attempt && !has_ended);
        self.reaps += u64::from(stint.reap.is_some());
        self.wrong += u64::from(stint.reaped_wrongly);
        for (window, silence) in stint.harmed().into_iter().enumerate() {
            self.longest[window] = longer(self.longest[window], silence);
            if !stint.reaped_wrongly {
                self.longest_of_others[window] = longer(self.longest_of_others[window], silence);
            }
        }
        let in_force = stint.fates.first().copied().unwrap_or_default();
        let due_at = stint.reap.as_ref().map(|reap| reap.due_at(&in_force));
        for (outcome, fate) in self.outcomes.iter_mut().zip(&stint.fates) {
            outcome.count(run, stint, fate, due_at, has_ended, self.named_max);
        }
    }

    fn report(self, past: &Past) -> BacktestReport {
        let in_force = past.policies.first().and_then(|policies| policies.last());
        let windows = Window::ALL.into_iter().enumerate().map(|(index, window)| WindowReport {
            window,
            in_force: in_force.and_then(|policy| window.of(&policy.terms)),
            runs: self.measured[index],
            no_wrong: self.longest[index].map(|silence| self.shortest(window, silence, |wrong| wrong.0)),
            no_newly_wrong: self.longest_of_others[index]
                .map(|silence| self.shortest(window, silence, |wrong| wrong.1)),
        });
        BacktestReport {
            end: past.end,
            runs: self.runs,
            facts: self.facts,
            attempts: self.attempts,
            open: self.open,
            quarantined: self.quarantined,
            reaps: self.reaps,
            wrong: self.wrong,
            windows: windows.collect(),
            outcomes: self.outcomes,
        }
    }

    /// Finds the shortest length that was asked for, that is long enough, and under which no reap by the window's rule is
    /// wrong. Where another rule reaps first, the second does not follow from the first.
    fn shortest(&self, window: Window, silence: Silence, wrong: impl Fn((u64, u64)) -> u64) -> Shortest {
        let asked = self.outcomes.iter().filter_map(|outcome| Some((outcome.alternative.window(window)??, outcome)));
        let mut lengths: BTreeMap<Span, u64> = BTreeMap::new();
        for (length, outcome) in asked {
            let of_rule = outcome.wrong_by_rule.get(&silence.rule).copied().unwrap_or_default();
            *lengths.entry(length).or_default() += wrong(of_rule);
        }
        let asked = lengths.into_iter().find(|(length, wrong)| *length >= silence.charged && *wrong == 0);
        let asked = asked.map(|(length, _)| length);
        Shortest { silence, asked, margin: asked.map(|length| length.minus(silence.charged)) }
    }
}

impl Outcome {
    fn count(
        &mut self,
        run: RunId,
        stint: &Stint,
        fate: &Fate,
        due_at: Option<Timestamp>,
        has_ended: bool,
        named_max: usize,
    ) {
        let Some(lapse) = fate.lapse else {
            match due_at {
                None => self.untouched += 1,
                Some(_) if stint.heard_late => self.no_longer += 1,
                Some(_) => self.not_yet += 1,
            }
            return;
        };
        let is_right = fate.heard_at.is_none() && has_ended;
        match due_at {
            None => self.newly += 1,
            Some(due_at) if lapse.at < due_at => {
                self.earlier += 1;
                if is_right {
                    self.sooner.add(due_at.since(lapse.at));
                }
            }
            Some(due_at) if lapse.at > due_at => {
                self.later += 1;
                if is_right {
                    self.later_by.add(lapse.at.since(due_at));
                }
            }
            Some(_) => self.same += 1,
        }
        match fate.heard_at {
            Some(heard_at) => {
                let (at, rule, attempt, is_new) = (lapse.at, lapse.charge.rule, stint.attempt, !stint.reaped_wrongly);
                self.wrong += 1;
                self.newly_wrong += u64::from(is_new);
                let of_rule = self.wrong_by_rule.entry(rule).or_default();
                of_rule.0 += 1;
                of_rule.1 += u64::from(is_new);
                self.name(WrongReap { run, attempt, rule, at, heard_at, is_new }, named_max);
            }
            None if has_ended => self.right += 1,
            None => self.undecided += 1,
        }
    }

    /// Keeps a wrong reap, the first ones of each kind; newly wrong ones go before those that the record has as well.
    fn name(&mut self, reap: WrongReap, named_max: usize) {
        let place = self.wrong_reaps.partition_point(|kept| kept.is_new || kept.is_new == reap.is_new);
        self.wrong_reaps.insert(place, reap);
        self.wrong_reaps.truncate(named_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{BasisEvidence, DeafCause, Evidence, Signal};
    use crate::ids::Name;
    use crate::listening::DeafSpan;
    use crate::policy::Terms;
    use crate::told::{self, beat, claimed, completed};
    use crate::verdict::BasisFact;

    const END: u64 = 100_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(0).plus(Span::from_seconds(seconds))
    }

    fn seconds(count: u64) -> Span {
        Span::from_seconds(count)
    }

    /// The stream of the run with that number, told as (second, fact); `created` at second 0 goes without saying.
    fn stream(run: u128, facts: Vec<(u64, RunEvent)>) -> Vec<Recorded> {
        told::stream(run, at(0), facts.into_iter().map(|(second, event)| (at(second), event)))
    }

    /// A reap for silence since the version that beat, after three minutes.
    fn reaped(attempt: u32, version: u64) -> RunEvent {
        let (rule, window) = (Rule::HeartbeatSilence, seconds(180));
        let evidence = Evidence {
            rule,
            basis: BasisEvidence { fact: BasisFact::Heartbeat, version, at: at(0) },
            window,
            charged: window,
            wall: window,
            deaf: Span::ZERO,
            judged_at: at(0),
            policy_version: 0,
            executor: None,
            sweeper: Name::new("sweeper").unwrap(),
        };
        RunEvent::TimedOut { attempt, rule, evidence: Some(Box::new(evidence)), message: "silent".to_owned() }
    }

    fn requeued(next_attempt: u32, not_before: u64) -> RunEvent {
        RunEvent::Requeued { next_attempt, not_before: at(not_before), by: None, reason: None }
    }

    fn late(attempt: u32) -> RunEvent {
        RunEvent::LateSignal { attempt, signal: Signal::Heartbeat, executor: None }
    }

    fn listed(window: Window, lengths: &[u64]) -> Vec<Alternative> {
        let lengths = lengths.iter().map(|length| Some(seconds(*length))).collect();
        Alternative::combinations(&[(window, lengths)]).unwrap()
    }

    fn windows(lengths: &[u64]) -> Vec<Alternative> {
        listed(Window::HeartbeatWindow, lengths)
    }

    fn tested(alternatives: Vec<Alternative>, streams: &[Vec<Recorded>]) -> BacktestReport {
        let mut backtest = Backtest::new([], alternatives, Listening::default(), at(END), 10);
        streams.iter().flatten().for_each(|fact| backtest.take(fact).unwrap());
        backtest.finish()
    }

    /// What became of the only stint that is an attempt; what waits is never touched here.
    fn fate(outcome: &Outcome) -> (&'static str, &'static str) {
        let fates = [
            (outcome.same, "same"),
            (outcome.earlier, "earlier"),
            (outcome.later, "later"),
            (outcome.newly, "newly"),
            (outcome.no_longer, "no longer"),
            (outcome.not_yet, "not yet"),
        ];
        let kinds = [(outcome.wrong, "wrong"), (outcome.right, "right"), (outcome.undecided, "undecided")];
        let only = |counts: &[(u64, &'static str)], nothing: &'static str| {
            assert!(counts.iter().map(|(count, _)| count).sum::<u64>() <= 1, "{outcome:?}");
            counts.iter().find(|(count, _)| *count == 1).map_or(nothing, |(_, word)| *word)
        };
        (only(&fates, "untouched"), only(&kinds, "-"))
    }

    fn fates(report: &BacktestReport) -> Vec<(&'static str, &'static str)> {
        report.outcomes.iter().map(fate).collect()
    }

    #[test]
    fn who_was_only_slow_would_have_been_reaped_wrongly_by_a_shorter_window() {
        let slow = stream(1, vec![(10, claimed(1)), (20, beat(1)), (110, beat(1)), (120, completed(1, false))]);
        let report = tested(windows(&[60, 89, 90]), &[slow]);
        let wrong = ("newly", "wrong");
        assert_eq!(fates(&report), [("untouched", "-"), wrong, wrong, ("untouched", "-")]);
        let reap = report.outcomes[1].wrong_reaps[0];
        assert_eq!((reap.at, reap.heard_at, reap.attempt), (at(80).next(), at(110), 1));
        assert_eq!((report.runs, report.attempts, report.facts, report.open), (1, 1, 5, 0));
    }

    #[test]
    fn the_shortest_window_is_the_longest_silence_that_ended_with_a_sign_of_life() {
        let slow = stream(1, vec![(10, claimed(1)), (20, beat(1)), (110, beat(1)), (120, completed(1, false))]);
        let quick = stream(2, vec![(10, claimed(1)), (20, beat(1)), (50, beat(1)), (300, reaped(1, 4))]);
        let report = tested(windows(&[60, 120, 100]), &[slow, quick]);
        let heartbeat = &report.windows[0];
        assert_eq!((heartbeat.window, heartbeat.runs), (Window::HeartbeatWindow, 2));
        let shortest = heartbeat.no_wrong.unwrap();
        assert_eq!(shortest.silence.charged, seconds(90).minus(MICRO));
        assert_eq!((shortest.silence.from, shortest.silence.to), (at(20), at(110)));
        assert_eq!((shortest.asked, shortest.margin), (Some(seconds(100)), Some(seconds(10).plus(MICRO))));
        assert_eq!(heartbeat.no_newly_wrong, heartbeat.no_wrong);
        assert_eq!(heartbeat.in_force, Some(seconds(180)));
        // Nobody worked for long without a beat, and of the claim window nothing is known but how soon a run was taken.
        assert_eq!(report.windows[1].no_wrong.unwrap().silence.charged, seconds(10).minus(MICRO));
        assert_eq!(report.windows[2].no_wrong.unwrap().silence.rule, Rule::Unclaimed);
        assert_eq!(report.windows[4].no_wrong.unwrap().silence.charged, seconds(110).minus(MICRO));
        // To the microsecond: that window leaves the run alone, and one that is shorter does not.
        for (length, wrong) in [(shortest.silence.charged, 0), (shortest.silence.charged.minus(MICRO), 1)] {
            let list = [(Window::HeartbeatWindow, vec![Some(length)])];
            let facts = stream(1, vec![(10, claimed(1)), (20, beat(1)), (110, beat(1)), (120, completed(1, false))]);
            let report = tested(Alternative::combinations(&list).unwrap(), &[facts]);
            assert_eq!(report.outcomes[1].wrong, wrong);
        }
    }

    #[test]
    fn a_window_under_which_another_rule_was_quicker_is_not_long_enough_for_that() {
        let slow = stream(1, vec![(10, claimed(1)), (20, beat(1)), (110, beat(1)), (120, completed(1, false))]);
        let with = |lengths: &[u64]| {
            let lengths = lengths.iter().map(|length| Some(seconds(*length))).collect();
            let lists = [(Window::HeartbeatWindow, lengths), (Window::MaxRuntime, vec![Some(seconds(50))])];
            let report = tested(Alternative::combinations(&lists).unwrap(), std::slice::from_ref(&slow));
            report.windows[0].no_wrong.unwrap()
        };
        assert_eq!((with(&[60]).asked, with(&[60]).margin), (None, None));
        assert_eq!(with(&[60, 100]).asked, Some(seconds(100)));
    }

    #[test]
    fn who_died_would_have_been_reaped_sooner_or_later_than_by_the_rule_of_the_record() {
        // The pass that reaped came five seconds late, which is no difference between windows.
        let dead = stream(1, vec![(10, claimed(1)), (20, beat(1)), (205, reaped(1, 3))]);
        let report = tested(windows(&[60, 180, 300, 200_000]), &[dead]);
        let expected =
            [("same", "right"), ("earlier", "right"), ("same", "right"), ("later", "right"), ("not yet", "-")];
        assert_eq!(fates(&report), expected);
        assert_eq!(
            (report.outcomes[1].sooner.mean(), report.outcomes[1].sooner.longest),
            (Some(seconds(120)), seconds(120))
        );
        assert_eq!((report.outcomes[3].later_by.mean(), report.outcomes[3].sooner.mean()), (Some(seconds(120)), None));
        assert_eq!((report.reaps, report.wrong), (1, 0));
    }

    #[test]
    fn a_reap_without_evidence_counts_from_its_record() {
        let timed_out = |evidence| {
            let (rule, message) = (Rule::HeartbeatSilence, "silent".to_owned());
            RunEvent::TimedOut { attempt: 1, rule, evidence, message }
        };
        let dead = stream(1, vec![(10, claimed(1)), (20, beat(1)), (7_220, timed_out(None))]);
        let report = tested(windows(&[60]), &[dead]);
        assert_eq!(fates(&report), [("earlier", "right"), ("earlier", "right")]);
        assert_eq!(report.outcomes[1].sooner.longest, seconds(7_140).minus(MICRO));
    }

    #[test]
    fn who_spoke_after_the_reap_was_reaped_wrongly_and_a_longer_window_would_have_waited() {
        let asleep = stream(1, vec![(10, claimed(1)), (20, beat(1)), (201, reaped(1, 3)), (500, late(1))]);
        let report = tested(windows(&[60, 300, 480]), &[asleep]);
        let expected = [("same", "wrong"), ("earlier", "wrong"), ("later", "wrong"), ("no longer", "-")];
        assert_eq!(fates(&report), expected);
        assert_eq!((report.reaps, report.wrong), (1, 1));
        let newly_wrong: Vec<u64> = report.outcomes.iter().map(|outcome| outcome.newly_wrong).collect();
        assert_eq!(newly_wrong, [0; 4], "the record has this wrong reap already");
        let heartbeat = &report.windows[0];
        assert_eq!(heartbeat.no_wrong.unwrap().silence.charged, seconds(480).minus(MICRO));
        assert_eq!((heartbeat.no_wrong.unwrap().asked, heartbeat.no_newly_wrong), (Some(seconds(480)), None));
    }

    #[test]
    fn a_late_completion_is_a_sign_of_life() {
        for rest in [vec![(400, completed(1, true))], vec![(202, requeued(2, 210)), (400, completed(1, true))]] {
            let facts = [vec![(10, claimed(1)), (20, beat(1)), (201, reaped(1, 3))], rest].concat();
            let report = tested(windows(&[300, 900]), &[stream(1, facts)]);
            assert_eq!(fates(&report), [("same", "wrong"), ("later", "wrong"), ("no longer", "-")]);
        }
    }

    #[test]
    fn a_heartbeat_contradicts_no_reap_of_a_run_that_was_known_to_beat() {
        let reap = |rule| {
            let message = "too long".to_owned();
            RunEvent::TimedOut { attempt: 1, rule, evidence: None, message }
        };
        for rule in [Rule::NoProgress, Rule::MaxRuntime] {
            let facts = vec![(10, claimed(1)), (20, beat(1)), (100, beat(1)), (190, reap(rule)), (200, late(1))];
            let report = tested(windows(&[90, 300]), &[stream(1, facts.clone())]);
            assert_eq!((report.reaps, report.wrong), (1, 0), "{rule}");
            // That silence contradicts a shorter heartbeat window all the same.
            assert_eq!(fates(&report), [("no longer", "-"), ("later", "wrong"), ("no longer", "-")]);
            assert_eq!(report.outcomes[1].newly_wrong, 1);
            assert_eq!(report.windows[0].no_newly_wrong.unwrap().silence.charged, seconds(100).minus(MICRO));
            // That the work was done contradicts the reap, also if something else was heard before.
            let done = [facts, vec![(210, completed(1, true))]].concat();
            let report = tested(windows(&[300]), &[stream(1, done)]);
            assert_eq!((report.reaps, report.wrong, fates(&report)[1]), (1, 1, ("no longer", "-")));
            assert_eq!(report.windows[0].no_newly_wrong, None);
        }
    }

    #[test]
    fn the_longest_runtime_harms_only_who_would_have_completed() {
        let with = |end| stream(1, vec![(10, claimed(1)), (20, beat(1)), (110, beat(1)), (120, end)]);
        let failed = with(RunEvent::Failed { attempt: 1, error: "no disk".to_owned() });
        let tried = |facts: Vec<Recorded>| tested(listed(Window::MaxRuntime, &[60]), &[facts]);
        let (failed, done) = (tried(failed), tried(with(completed(1, false))));
        assert_eq!((fates(&failed)[1], fates(&done)[1]), (("newly", "right"), ("newly", "wrong")));
        assert_eq!(done.outcomes[1].wrong_reaps[0].heard_at, at(120));
        assert_eq!((failed.windows[4].no_wrong, failed.windows[4].runs), (None, 0));
        assert_eq!(done.windows[4].no_wrong.unwrap().silence.charged, seconds(110).minus(MICRO));
    }

    #[test]
    fn what_is_still_open_at_the_end_is_not_decided() {
        let open = stream(1, vec![(10, claimed(1)), (20, beat(1))]);
        let mut backtest = Backtest::new([], windows(&[60]), Listening::default(), at(90), 10);
        open.iter().for_each(|fact| backtest.take(fact).unwrap());
        let report = backtest.finish();
        assert_eq!(fates(&report), [("untouched", "-"), ("newly", "undecided")]);
        assert_eq!((report.open, report.attempts), (1, 1));
    }

    #[test]
    fn what_was_recorded_after_the_end_is_not_known() {
        let dead = stream(1, vec![(10, claimed(1)), (20, beat(1)), (201, reaped(1, 3))]);
        let mut backtest = Backtest::new([], windows(&[60]), Listening::default(), at(90), 10);
        dead.iter().for_each(|fact| backtest.take(fact).unwrap());
        let report = backtest.finish();
        assert_eq!((report.reaps, report.facts, fates(&report)[1]), (0, 3, ("newly", "undecided")));
    }

    #[test]
    fn an_attempt_is_judged_once_and_the_next_one_again() {
        let facts = vec![
            (10, claimed(1)),
            (20, beat(1)),
            // Twice over a minute: reaped at the first, and what follows is evidence.
            (100, beat(1)),
            (200, beat(1)),
            (381, reaped(1, 5)),
            (382, requeued(2, 400)),
            (410, claimed(2)),
            (420, beat(2)),
            (430, completed(2, false)),
        ];
        let report = tested(windows(&[60]), &[stream(1, facts)]);
        let outcome = &report.outcomes[1];
        assert_eq!((outcome.earlier, outcome.wrong, outcome.newly_wrong, outcome.reaps()), (1, 1, 1, 1));
        assert_eq!((outcome.untouched, report.attempts), (3, 2), "it waited twice, and attempt 2 was well");
        assert_eq!(outcome.wrong_reaps[0].heard_at, at(100));
        assert_eq!(fate(&Outcome { untouched: 0, ..report.outcomes[0].clone() }), ("same", "right"));
    }

    #[test]
    fn a_run_that_never_beats_is_tried_under_other_coarse_windows() {
        let old = stream(1, vec![(10, claimed(1)), (4_000, completed(1, false))]);
        let report = tested(listed(Window::CoarseTtl, &[3_600, 5_000]), std::slice::from_ref(&old));
        assert_eq!(fates(&report), [("untouched", "-"), ("newly", "wrong"), ("untouched", "-")]);
        assert_eq!(report.windows[1].no_wrong.unwrap().asked, Some(seconds(5_000)));
        assert_eq!(report.windows[0].no_wrong, None, "it was never beating");
        assert_eq!(fates(&tested(windows(&[60]), &[old]))[1], ("untouched", "-"));
    }

    #[test]
    fn a_run_that_waits_would_have_been_reaped_wrongly_if_it_was_claimed_after_all() {
        let claimed_late = stream(1, vec![(100, claimed(1)), (110, completed(1, false))]);
        let cancelled = stream(2, vec![(100, RunEvent::Cancelled { attempt: 0, by: Name::new("ada").unwrap() })]);
        let tried = |facts: &Vec<Recorded>| tested(listed(Window::ClaimWindow, &[60]), std::slice::from_ref(facts));
        assert_eq!(fates(&tried(&claimed_late))[1], ("newly", "wrong"));
        assert_eq!(fates(&tried(&cancelled))[1], ("newly", "right"));
        assert_eq!(tried(&claimed_late).outcomes[1].wrong_reaps[0].attempt, 0);
    }

    #[test]
    fn an_executor_that_stopped_as_it_was_asked_to_was_alive() {
        let by = || Name::new("mac-7").unwrap();
        let asked = RunEvent::CancelRequested { by: by(), reason: None };
        let stopped = RunEvent::Cancelled { attempt: 1, by: by() };
        let report =
            tested(windows(&[60]), &[stream(1, vec![(10, claimed(1)), (20, beat(1)), (70, asked), (100, stopped)])]);
        assert_eq!((fates(&report)[1], report.outcomes[1].wrong_reaps[0].at), (("newly", "wrong"), at(80).next()));
    }

    #[test]
    fn deaf_time_is_charged_to_nobody_and_nobody_reaps_in_it() {
        let facts = stream(1, vec![(10, claimed(1)), (20, beat(1)), (500, beat(1)), (510, completed(1, false))]);
        let (cause, recorded_at) = (DeafCause::Gap, at(430));
        let gap = DeafSpan { from: at(70), to: at(430), promised_until: at(90), cause, recorded_at };
        let listening = Listening::as_of(at(END), &[gap], &[]);
        // By what was known at second 85 a minute was over. Nobody was there to reap.
        let mut backtest = Backtest::new([], windows(&[60, 120]), listening, at(END), 10);
        facts.iter().for_each(|fact| backtest.take(fact).unwrap());
        let report = backtest.finish();
        assert_eq!(fates(&report)[1..], [("newly", "wrong"), ("untouched", "-")]);
        assert_eq!(report.outcomes[1].wrong_reaps[0].at, at(440).next());
        assert_eq!(report.windows[0].no_wrong.unwrap().silence.charged, seconds(120).minus(MICRO));
    }

    #[test]
    fn an_alternative_is_laid_over_each_policy_of_its_time() {
        let policy = |version, window| {
            let terms =
                Terms { heartbeat_window: seconds(window), start_window: Some(seconds(40)), ..Terms::default() };
            LanePolicy { version, terms }
        };
        let facts = stream(1, vec![(10, claimed(1)), (20, beat(1)), (400, beat(1)), (410, completed(1, false))]);
        let policies = [(at(0), policy(1, 1_000)), (at(300), policy(2, 100))];
        let mut alternatives = listed(Window::StartWindow, &[5]);
        alternatives.extend(windows(&[500]));
        let mut backtest = Backtest::new(policies, alternatives, Listening::default(), at(END), 10);
        facts.iter().for_each(|fact| backtest.take(fact).unwrap());
        let report = backtest.finish();
        // The shorter policy reaps at once; where the start window is shorter, that comes first; where only the
        // heartbeat window is another one, both policies have it.
        assert_eq!(fates(&report), [("newly", "wrong"), ("newly", "wrong"), ("untouched", "-")]);
        let when: Vec<_> = report.outcomes[..2].iter().map(|outcome| outcome.wrong_reaps[0]).collect();
        assert_eq!((when[0].at, when[0].rule), (at(300), Rule::HeartbeatSilence));
        assert_eq!((when[1].at, when[1].rule), (at(15).next(), Rule::Unstarted));
        assert_eq!(report.windows[0].in_force, Some(seconds(100)));
    }

    #[test]
    fn a_run_with_an_unknown_fact_is_judged_up_to_it() {
        let facts = stream(1, vec![(10, claimed(1)), (20, beat(1)), (70, beat(1)), (1_000, beat(1))]);
        let mut backtest = Backtest::new([], windows(&[60, 40]), Listening::default(), at(END), 10);
        facts[..4].iter().for_each(|fact| backtest.take(fact).unwrap());
        backtest.take_unknown(facts[0].run, at(100));
        backtest.take(&facts[4]).unwrap();
        let report = backtest.finish();
        assert_eq!((report.quarantined, report.runs, report.facts), (1, 1, 6));
        assert_eq!(fates(&report), [("untouched", "-"), ("untouched", "-"), ("newly", "wrong")]);
    }

    #[test]
    fn some_wrong_reaps_are_named_and_new_ones_before_others() {
        let known = |run| stream(run, vec![(10, claimed(1)), (20, beat(1)), (201, reaped(1, 3)), (500, late(1))]);
        let new = |run| stream(run, vec![(10, claimed(1)), (20, beat(1)), (110, beat(1)), (120, completed(1, false))]);
        let mut backtest = Backtest::new([], windows(&[60]), Listening::default(), at(END), 3);
        [known(1), new(2), known(3), new(4)].iter().flatten().for_each(|fact| backtest.take(fact).unwrap());
        let outcome = &backtest.finish().outcomes[1];
        let named: Vec<u128> = outcome.wrong_reaps.iter().map(|reap| reap.run.as_uuid().as_u128()).collect();
        assert_eq!((named, outcome.wrong, outcome.newly_wrong), (vec![2, 4, 1], 4, 2));
    }

    #[test]
    fn an_impossible_step_is_an_error() {
        let mut facts = stream(1, vec![(10, claimed(1)), (20, beat(2))]);
        let mut backtest = Backtest::new([], Vec::new(), Listening::default(), at(END), 10);
        facts.drain(..2).for_each(|fact| backtest.take(&fact).unwrap());
        assert!(backtest.take(&facts[0]).is_err());
    }
}
