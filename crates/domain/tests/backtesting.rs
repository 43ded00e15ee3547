//! A backtest against the honest slow way: a sweeper that looks at every run at every microsecond.
//!
//! As in `judging.rs` a window is a few microseconds long, and the streams are whatever the fold accepts. The slow way
//! keeps everything in memory, folds each run anew for each look, and counts with its fingers.

use std::collections::BTreeMap;

use lastbeat_domain::alternative::{Alternative, Window};
use lastbeat_domain::backtest::{Backtest, BacktestReport, Outcome};
use lastbeat_domain::event::{BasisEvidence, DeafCause, Evidence, RunEvent, Signal};
use lastbeat_domain::listening::{Beacon, BeaconRole, DeafSpan};
use lastbeat_domain::verdict::Charge;
use lastbeat_domain::{LanePolicy, Listening, Name, Recorded, Rule, Run, RunId, Span, Terms, Timestamp, judge};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

/// The record ends here; nothing in it lies later.
const END: u64 = 90;

fn config() -> Config {
    let persistence = FileFailurePersistence::WithSource("regressions");
    Config { failure_persistence: Some(Box::new(persistence)), ..Config::default() }
}

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(1_777_860_000_000_000).plus(Span::from_micros(micros))
}

fn micros(instant: Timestamp) -> u64 {
    instant.since(at(0)).as_micros()
}

fn name() -> Name {
    Name::new("watcher").expect("a name")
}

/// What the log says beside the runs.
#[derive(Clone, Debug)]
struct World {
    policies: Vec<(Timestamp, LanePolicy)>,
    deaf: Vec<DeafSpan>,
    beacons: Vec<Beacon>,
}

impl World {
    fn policy(&self, now: u64) -> LanePolicy {
        let known = self.policies.iter().rev().find(|(since, _)| *since <= at(now));
        known.map(|(_, policy)| policy.clone()).unwrap_or_default()
    }

    fn listening(&self) -> Listening {
        Listening::as_of(at(END), &self.deaf, &self.beacons)
    }

    /// Says whether nobody listened in that microsecond, as is known in the end.
    fn is_deaf(&self, micro: u64) -> bool {
        let in_span = |span: &DeafSpan| span.from <= at(micro) && at(micro) < span.to;
        let in_gap =
            |beacon: &Beacon| beacon.promise.is_some_and(|promise| promise < at(END)) && beacon.at <= at(micro);
        self.deaf.iter().any(in_span) || self.beacons.iter().any(in_gap)
    }

    fn charged(&self, from: u64, to: u64) -> u64 {
        (from..to).filter(|micro| !self.is_deaf(*micro)).count() as u64
    }
}

/// What may come next in a life; what the fold refuses is left out.
#[derive(Clone, Copy, Debug)]
enum Next {
    Claimed,
    Started,
    Heartbeat,
    Completed,
    Failed,
    /// What a sweeper does: only what has lapsed, and with evidence.
    Reaped,
    /// What an import may bring.
    TimedOut,
    Requeued {
        wait: u64,
    },
    CancelRequested,
    Cancelled,
    LateSignal {
        attempt: u32,
        signal: Signal,
    },
}

impl Next {
    fn event(self, run: &Run, now: u64, world: &World) -> Option<RunEvent> {
        let (attempt, by) = (run.attempt, name());
        let timed_out = |charge: Option<&Charge>| {
            let attempt = if run.status.is_in_flight() { attempt } else { 0 };
            let rule = charge.map_or(Rule::CoarseTtl, |charge| charge.rule);
            let evidence = charge.map(|charge| Box::new(evidence(charge, now)));
            RunEvent::TimedOut { attempt, rule, evidence, message: "silent".to_owned() }
        };
        Some(match self {
            Next::Claimed => RunEvent::Claimed { attempt: attempt + 1, claim: None, executor: by, device: None },
            Next::Started => RunEvent::Started { attempt },
            Next::Heartbeat => RunEvent::Heartbeat { attempt, progress: None },
            Next::Completed => RunEvent::Completed { attempt, output: None, late: !run.status.is_in_flight() },
            Next::Failed => RunEvent::Failed { attempt, error: "no disk".to_owned() },
            Next::Reaped => {
                let listening = Listening::as_of(at(now), &world.deaf, &world.beacons);
                let verdict = judge(run, &world.policy(now), &listening, at(now));
                timed_out(Some(&verdict.charge.filter(|_| verdict.is_lapsed())?))
            }
            Next::TimedOut => timed_out(None),
            Next::Requeued { wait } => {
                RunEvent::Requeued { next_attempt: attempt + 1, not_before: at(now + wait), by: None, reason: None }
            }
            Next::CancelRequested => RunEvent::CancelRequested { by, reason: None },
            Next::Cancelled => RunEvent::Cancelled { attempt: if run.status.is_in_flight() { attempt } else { 0 }, by },
            Next::LateSignal { attempt, signal } => RunEvent::LateSignal { attempt, signal, executor: None },
        })
    }
}

fn evidence(charge: &Charge, now: u64) -> Evidence {
    let basis = BasisEvidence { fact: charge.basis.fact, version: charge.basis.version, at: charge.basis.at };
    let (rule, window, charged, deaf) = (charge.rule, charge.window, charge.charged, charge.deaf);
    let (judged_at, executor, sweeper) = (at(now), None, name());
    Evidence { rule, basis, window, charged, wall: charged, deaf, judged_at, policy_version: 1, executor, sweeper }
}

fn next() -> impl Strategy<Value = Next> {
    prop_oneof![
        5 => Just(Next::Claimed),
        2 => Just(Next::Started),
        8 => Just(Next::Heartbeat),
        1 => Just(Next::Completed),
        1 => Just(Next::Failed),
        4 => Just(Next::Reaped),
        1 => Just(Next::TimedOut),
        3 => (0_u64..12).prop_map(|wait| Next::Requeued { wait }),
        1 => Just(Next::CancelRequested),
        1 => Just(Next::Cancelled),
        2 => (1_u32..3).prop_map(|attempt| Next::LateSignal { attempt, signal: Signal::Heartbeat }),
        1 => (1_u32..3).prop_map(|attempt| Next::LateSignal { attempt, signal: Signal::Completed }),
    ]
}

/// A stream that the fold accepts.
fn stream(number: u128, wait: Option<u64>, steps: &[(u64, Next)], world: &World) -> Vec<Recorded> {
    let id = RunId::from_uuid(uuid::Uuid::from_u128(number));
    let (not_before, labels) = (wait.map(at), BTreeMap::new());
    let (lane, goal, device, unique_key, input) = (name(), None, None, None, None);
    let created = RunEvent::Created { lane, goal, device, not_before, unique_key, labels, input };
    let mut stream = vec![Recorded { run: id, version: 1, recorded_at: at(0), event: created }];
    let mut run = Run::begin(&stream[0]).expect("a stream begins with `created`");
    let mut now = 0;
    for (pause, next) in steps {
        now += pause;
        let Some(event) = next.event(&run, now, world) else { continue };
        let recorded = Recorded { run: id, version: run.version + 1, recorded_at: at(now), event };
        if run.evolve(&recorded).is_ok() {
            stream.push(recorded);
        }
    }
    stream
}

fn policy() -> impl Strategy<Value = LanePolicy> {
    let optional = || prop::option::weighted(0.3, (1_u64..25).prop_map(Span::from_micros));
    let main = (1_u64..10, 1_u64..14, 1_u64..25).prop_map(|(a, b, c)| [a, b, c].map(Span::from_micros));
    (main, optional(), optional(), optional()).prop_map(|(main, claim_window, start_window, max_runtime)| {
        let [heartbeat_interval, heartbeat_window, coarse_ttl] = main;
        let windows = Terms { heartbeat_interval, heartbeat_window, coarse_ttl, ..Terms::default() };
        LanePolicy { version: 1, terms: Terms { claim_window, start_window, max_runtime, ..windows } }
    })
}

fn deaf() -> impl Strategy<Value = Vec<DeafSpan>> {
    let span = (0_u64..60, 0_u64..20, 0_u64..5, any::<bool>()).prop_map(|(from, length, delay, is_gap)| {
        let to = from + length;
        let (cause, promised, recorded) =
            if is_gap { (DeafCause::Gap, to.min(from + delay), to) } else { (DeafCause::ClockStep, from, to + delay) };
        DeafSpan { from: at(from), to: at(to), promised_until: at(promised), cause, recorded_at: at(recorded) }
    });
    prop::collection::vec(span, 0..3)
}

fn beacons() -> impl Strategy<Value = Vec<Beacon>> {
    let beacon = (40_u64..70, 1_u64..40).prop_map(|(last, promise)| Beacon {
        process: name(),
        role: BeaconRole::Local,
        at: at(last),
        promise: Some(at(last + promise)),
    });
    prop::option::weighted(0.3, beacon).prop_map(|beacon| beacon.into_iter().collect())
}

fn world() -> impl Strategy<Value = World> {
    let policies = prop::collection::vec((0_u64..50, policy()), 1..3).prop_map(|mut policies| {
        policies.sort_by_key(|(since, _)| *since);
        policies[0].0 = 0;
        policies.into_iter().map(|(since, policy)| (at(since), policy)).collect()
    });
    (policies, deaf(), beacons()).prop_map(|(policies, deaf, beacons)| World { policies, deaf, beacons })
}

type Plan = (Option<u64>, Vec<(u64, Next)>);

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let steps = prop::collection::vec((1_u64..9, next()), 0..12);
    prop::collection::vec((prop::option::of(0_u64..10), steps), 1..4)
}

fn streams(plans: &[Plan], world: &World) -> Vec<Vec<Recorded>> {
    (1..).zip(plans).map(|(number, (wait, steps))| stream(number, *wait, steps, world)).collect()
}

/// Windows to try, each now and then.
fn alternatives() -> impl Strategy<Value = Vec<Alternative>> {
    let lengths =
        |shortest: u64| prop::collection::vec((shortest..30).prop_map(|length| (length > 0).then_some(length)), 0..3);
    (lengths(1), lengths(1), lengths(0), lengths(0), lengths(0)).prop_map(|(a, b, c, d, e)| {
        let spans =
            |lengths: Vec<Option<u64>>| lengths.into_iter().map(|length| length.map(Span::from_micros)).collect();
        let lists: Vec<_> = Window::ALL.into_iter().zip([a, b, c, d, e].map(spans)).collect();
        // Two of each are 32 at the most.
        Alternative::combinations(&lists).expect("not too many")
    })
}

fn backtest(world: &World, streams: &[Vec<Recorded>], alternatives: Vec<Alternative>) -> BacktestReport {
    let mut backtest = Backtest::new(world.policies.clone(), alternatives, world.listening(), at(END), 1_000);
    streams.iter().flatten().for_each(|fact| backtest.take(fact).expect("the fold accepted it before"));
    backtest.finish()
}

/// A wait or an attempt, read off the stream: its facts are those from `first` up to, and without, `end`.
#[derive(Debug)]
struct Stint<'a> {
    stream: &'a [Recorded],
    attempt: u32,
    first: usize,
    /// Where the stream goes on with what ended it, or the length of the stream.
    end: usize,
}

impl Stint<'_> {
    fn all(stream: &[Recorded]) -> Vec<Stint<'_>> {
        let mut stints: Vec<Stint<'_>> = Vec::new();
        for (index, fact) in stream.iter().enumerate() {
            let (begins, ends) = match &fact.event {
                RunEvent::Created { .. } | RunEvent::Requeued { .. } => (Some(0), false),
                RunEvent::Claimed { attempt, .. } => (Some(*attempt), true),
                RunEvent::Completed { .. }
                | RunEvent::Failed { .. }
                | RunEvent::TimedOut { .. }
                | RunEvent::Cancelled { .. } => (None, true),
                _ => (None, false),
            };
            if let Some(last) = stints.last_mut().filter(|last| ends && last.end == stream.len()) {
                last.end = index;
            }
            stints.extend(begins.map(|attempt| Stint { stream, attempt, first: index, end: stream.len() }));
        }
        stints
    }

    fn ending(&self) -> Option<&Recorded> {
        self.stream.get(self.end)
    }

    fn reap(&self) -> Option<(u64, Rule, Option<&Evidence>)> {
        let ending = self.ending()?;
        match &ending.event {
            RunEvent::TimedOut { rule, evidence, .. } => Some((micros(ending.recorded_at), *rule, evidence.as_deref())),
            _ => None,
        }
    }

    /// When something was heard of it while it lasted, or as it ended, and whether that was that its work is done.
    fn signs(&self) -> Vec<(u64, bool)> {
        let own = self.stream[self.first + 1..].iter().take(self.end - self.first);
        let is_sign = |fact: &&Recorded| match &fact.event {
            RunEvent::Started { .. }
            | RunEvent::Heartbeat { .. }
            | RunEvent::Failed { .. }
            | RunEvent::Claimed { .. } => true,
            RunEvent::Completed { late, .. } => !late,
            RunEvent::Cancelled { attempt, .. } => *attempt > 0,
            _ => false,
        };
        let is_done = |fact: &Recorded| matches!(fact.event, RunEvent::Completed { .. });
        own.filter(is_sign).map(|fact| (micros(fact.recorded_at), is_done(fact))).collect()
    }

    /// The same after it was reaped.
    fn late_signs(&self) -> Vec<(u64, bool)> {
        if self.reap().is_none() {
            return Vec::new();
        }
        let later = self.stream[self.end + 1..].iter();
        let said = later.filter_map(|fact| {
            let is_done = match &fact.event {
                RunEvent::LateSignal { attempt, signal, .. } if *attempt == self.attempt => {
                    *signal == Signal::Completed
                }
                RunEvent::Completed { attempt, late: true, .. } if *attempt == self.attempt => true,
                RunEvent::Claimed { .. } if self.attempt == 0 => false,
                _ => return None,
            };
            Some((micros(fact.recorded_at), is_done))
        });
        said.collect()
    }

    /// When something was heard of it first after it was reaped.
    fn late_sign(&self) -> Option<u64> {
        self.late_signs().first().map(|(sign, _)| *sign)
    }

    /// Whether the record shows that its reap was wrong.
    fn is_wrongly_reaped(&self) -> bool {
        let Some((_, rule, _)) = self.reap() else { return false };
        self.late_signs().into_iter().any(|(_, is_done)| is_done || rule != Rule::MaxRuntime)
    }

    /// The run as it was at an instant, or, of one that was reaped by then, as it was before that.
    fn run(&self, now: u64) -> Run {
        let known = self.stream[..self.end].iter().filter(|fact| fact.recorded_at <= at(now));
        Run::fold(known).expect("the fold accepted it before").expect("it was created")
    }

    /// The first instant, looked for one after the other, at which a sweeper would have reaped it.
    fn reaped_at(&self, world: &World, alternative: &Alternative) -> Option<(u64, Charge)> {
        let from = micros(self.stream[self.first].recorded_at);
        let until = match (self.ending(), self.reap(), self.late_sign()) {
            (_, Some(_), Some(heard)) => heard,
            (Some(ending), None, _) => micros(ending.recorded_at),
            // A sweeper that looks at the very end finds everything as it is, unless nobody is there to look.
            _ => END + u64::from(world.listening().deaf_since().is_none()),
        };
        (from..until).filter(|now| !world.is_deaf(*now)).find_map(|now| {
            let policy = alternative.over(&world.policy(now));
            let verdict = judge(&self.run(now), &policy, &world.listening(), at(now));
            verdict.charge.filter(|_| verdict.is_lapsed()).map(|charge| (now, charge))
        })
    }
}

/// What came of an alternative, counted the slow way, and by how much right reaps came sooner and later.
fn slow(world: &World, streams: &[Vec<Recorded>], alternative: &Alternative) -> (Outcome, [Vec<u64>; 2]) {
    let (mut sooner, mut later_by) = (Vec::new(), Vec::new());
    let mut outcome = Outcome { alternative: alternative.clone(), ..Outcome::default() };
    for stint in streams.iter().flat_map(|stream| Stint::all(stream)) {
        let in_force = stint.reaped_at(world, &Alternative::default());
        let due_at = stint.reap().map(|(recorded, _, evidence)| match (in_force, evidence) {
            (Some((by_rule, charge)), Some(evidence))
                if (evidence.rule, evidence.basis.version, evidence.window)
                    == (charge.rule, charge.basis.version, charge.window) =>
            {
                by_rule
            }
            _ => recorded,
        });
        let heard_late = stint.late_sign();
        let Some((reaped_at, charge)) = stint.reaped_at(world, alternative) else {
            match (due_at, heard_late) {
                (None, _) => outcome.untouched += 1,
                (Some(_), None) => outcome.not_yet += 1,
                (Some(_), Some(_)) => outcome.no_longer += 1,
            }
            continue;
        };
        match due_at {
            None => outcome.newly += 1,
            Some(due_at) if reaped_at < due_at => outcome.earlier += 1,
            Some(due_at) if reaped_at > due_at => outcome.later += 1,
            Some(_) => outcome.same += 1,
        }
        // Whoever ran for too long was known to be alive: only that it got its work done shows that it was wrong.
        let contradicts = |is_done: bool| is_done || charge.rule != Rule::MaxRuntime;
        let mut signs = stint.signs().into_iter().chain(stint.late_signs());
        if signs.any(|(sign, is_done)| sign > reaped_at && contradicts(is_done)) {
            let is_new = u64::from(!stint.is_wrongly_reaped());
            outcome.wrong += 1;
            outcome.newly_wrong += is_new;
            let of_rule = outcome.wrong_by_rule.entry(charge.rule).or_default();
            *of_rule = (of_rule.0 + 1, of_rule.1 + is_new);
        } else if stint.ending().is_some() {
            outcome.right += 1;
            sooner.extend(due_at.and_then(|due_at| due_at.checked_sub(reaped_at)).filter(|by| *by > 0));
            later_by.extend(due_at.and_then(|due_at| reaped_at.checked_sub(due_at)).filter(|by| *by > 0));
        } else {
            outcome.undecided += 1;
        }
    }
    (outcome, [sooner, later_by])
}

/// The longest silences of a window, of all attempts and of those that were not wrongly reaped, counted the slow way.
fn longest(window: Window, world: &World, streams: &[Vec<Recorded>]) -> [Option<u64>; 2] {
    let mut longest = [None, None];
    for stint in streams.iter().flat_map(|stream| Stint::all(stream)) {
        let is_done = stint.signs().into_iter().chain(stint.late_signs()).any(|(_, is_done)| is_done);
        if window == Window::MaxRuntime && !is_done {
            continue;
        }
        let signs = stint.signs().into_iter().map(|(sign, _)| sign);
        for sign in signs.chain(stint.late_sign()) {
            // The last look that a sweeper could have taken.
            let look = (0..sign).rev().find(|micro| !world.is_deaf(*micro));
            let run = stint.run(sign - 1);
            let (is_held, is_beating) = (run.status.is_in_flight(), run.last_beat.is_some());
            let claimed = run.claimed_at().map(micros);
            let basis = match window {
                Window::HeartbeatWindow if is_held && is_beating => run.last_beat.map(|beat| micros(beat.at)),
                Window::CoarseTtl if is_held && !is_beating => claimed,
                Window::ClaimWindow if !is_held && look.is_some_and(|look| micros(run.waiting.due_at) <= look) => {
                    Some(micros(run.waiting.due_at))
                }
                Window::StartWindow if is_held && !is_beating && run.started_at.is_none() => claimed,
                Window::MaxRuntime if is_held => claimed,
                _ => None,
            };
            let silence = basis.map(|basis| world.charged(basis, look.unwrap_or(0)));
            longest[0] = longest[0].max(silence);
            if !stint.is_wrongly_reaped() {
                longest[1] = longest[1].max(silence);
            }
        }
    }
    longest
}

/// The parts of an outcome that the slow way counts.
fn counts(outcome: &Outcome) -> Outcome {
    Outcome { sooner: Default::default(), later_by: Default::default(), wrong_reaps: Vec::new(), ..outcome.clone() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_backtest_says_what_a_sweeper_that_looks_all_the_time_does(
        world in world(), plans in plans(), alternatives in alternatives(),
    ) {
        let streams = streams(&plans, &world);
        let report = backtest(&world, &streams, alternatives);
        for outcome in &report.outcomes {
            let (expected, shifts) = slow(&world, &streams, &outcome.alternative);
            prop_assert_eq!(counts(outcome), expected, "{}", outcome.alternative);
            for (shift, by) in [outcome.sooner, outcome.later_by].into_iter().zip(shifts) {
                let (count, sum, longest) = (by.len() as u64, by.iter().sum::<u64>(), by.iter().max().copied());
                prop_assert_eq!((shift.reaps, shift.longest.as_micros()), (count, longest.unwrap_or(0)));
                prop_assert_eq!(shift.mean().map(Span::as_micros), sum.checked_div(count));
            }
        }
    }

    #[test]
    fn every_stint_is_counted_once_and_every_wrong_reap_is_followed_by_a_sign_of_life(
        world in world(), plans in plans(), alternatives in alternatives(),
    ) {
        let streams = streams(&plans, &world);
        let stints = streams.iter().map(|stream| Stint::all(stream).len()).sum::<usize>() as u64;
        let report = backtest(&world, &streams, alternatives);
        prop_assert_eq!(report.facts, streams.iter().map(Vec::len).sum::<usize>() as u64);
        for outcome in &report.outcomes {
            let others = outcome.no_longer + outcome.not_yet + outcome.untouched;
            prop_assert_eq!(outcome.reaps() + others, stints);
            prop_assert_eq!(outcome.wrong + outcome.right + outcome.undecided, outcome.reaps());
            prop_assert_eq!(outcome.same + outcome.earlier + outcome.later + outcome.no_longer + outcome.not_yet, report.reaps);
            prop_assert_eq!(outcome.wrong_reaps.len() as u64, outcome.wrong);
            for reap in &outcome.wrong_reaps {
                let stream = streams.iter().find(|stream| stream[0].run == reap.run).expect("it names a run");
                prop_assert!(reap.at < reap.heard_at);
                prop_assert!(stream.iter().any(|fact| fact.recorded_at == reap.heard_at));
            }
        }
    }

    #[test]
    fn the_silences_are_those_that_fingers_count(world in world(), plans in plans()) {
        let streams = streams(&plans, &world);
        for found in backtest(&world, &streams, Vec::new()).windows {
            let counted = [found.no_wrong, found.no_newly_wrong]
                .map(|shortest| shortest.map(|shortest| shortest.silence.charged.as_micros()));
            prop_assert_eq!(counted, longest(found.window, &world, &streams), "{}", found.window);
        }
    }

    /// With nothing but one window at work, a length is without a wrong reap if and only if it is at least the longest
    /// silence.
    #[test]
    fn the_shortest_window_is_long_enough_and_no_shorter_one_is(
        world in world(), plans in plans(), of_runtime in any::<bool>(),
    ) {
        let streams = streams(&plans, &world);
        let tried = if of_runtime { Window::MaxRuntime } else { Window::HeartbeatWindow };
        let length_of = |window| match window {
            window if window == tried => (1..60).map(|length| Some(Span::from_micros(length))).collect(),
            Window::HeartbeatWindow | Window::CoarseTtl => vec![Some(Span::from_seconds(1))],
            _ => vec![None],
        };
        let lists = Window::ALL.map(|window| (window, length_of(window)));
        let report = backtest(&world, &streams, Alternative::combinations(&lists).expect("not too many"));
        let found = report.windows.iter().find(|found| found.window == tried).expect("there are windows");
        let needed = found.no_wrong.map_or(Span::ZERO, |shortest| shortest.silence.charged);
        for outcome in &report.outcomes[1..] {
            let length = outcome.alternative.window(tried).flatten().expect("it is listed");
            prop_assert_eq!(outcome.wrong == 0, length >= needed, "{} {}", outcome.alternative, needed);
        }
        if let Some(shortest) = found.no_wrong.filter(|shortest| (1..60).contains(&shortest.silence.charged.as_micros())) {
            prop_assert_eq!((shortest.asked, shortest.margin), (Some(needed), Some(Span::ZERO)));
        }
    }
}
