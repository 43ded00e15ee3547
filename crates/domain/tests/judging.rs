//! The rule against a reading of its table that nobody could call clever.
//!
//! Here a window is a few microseconds long, so that edges are hit all the time, and the naive reading can count:
//! every instant is looked at, and a microsecond is charged unless some deaf span covers it. The streams are not what
//! commands make, but whatever the fold accepts, as an import may bring it.

use std::collections::BTreeMap;

use lastbeat_domain::event::{DeafCause, RunEvent};
use lastbeat_domain::listening::DeafSpan;
use lastbeat_domain::{
    LanePolicy, Listening, Liveness, Name, Recorded, Rule, Run, RunId, Span, Terms, Timestamp, Verdict, judge,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

/// Nothing in a life, no span and no window reaches beyond this many microseconds.
const END: u64 = 120;

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

/// What may come next in a life; what the fold refuses is left out.
#[derive(Clone, Copy, Debug)]
enum Next {
    Claimed,
    Started,
    Heartbeat { progress: Option<u8> },
    Completed,
    Failed,
    TimedOut,
    Requeued { wait: u64 },
    CancelRequested,
    Cancelled,
}

impl Next {
    fn event(self, run: &Run, now: u64) -> RunEvent {
        let (attempt, by) = (run.attempt, name());
        match self {
            Next::Claimed => RunEvent::Claimed { attempt: attempt + 1, claim: None, executor: by, device: None },
            Next::Started => RunEvent::Started { attempt },
            Next::Heartbeat { progress } => RunEvent::Heartbeat { attempt, progress: progress.map(Into::into) },
            Next::Completed => RunEvent::Completed { attempt, output: None, late: !run.status.is_in_flight() },
            Next::Failed => RunEvent::Failed { attempt, error: "no disk".to_owned() },
            Next::TimedOut => {
                let attempt = if run.status.is_in_flight() { attempt } else { 0 };
                RunEvent::TimedOut { attempt, rule: Rule::CoarseTtl, evidence: None, message: "silent".to_owned() }
            }
            Next::Requeued { wait } => {
                RunEvent::Requeued { next_attempt: attempt + 1, not_before: at(now + wait), by: None, reason: None }
            }
            Next::CancelRequested => RunEvent::CancelRequested { by, reason: None },
            Next::Cancelled => RunEvent::Cancelled { attempt, by },
        }
    }
}

fn name() -> Name {
    Name::new("watcher").expect("a name")
}

fn next() -> impl Strategy<Value = Next> {
    prop_oneof![
        5 => Just(Next::Claimed),
        2 => Just(Next::Started),
        8 => prop::option::of(0_u8..2).prop_map(|progress| Next::Heartbeat { progress }),
        1 => Just(Next::Completed),
        1 => Just(Next::Failed),
        2 => Just(Next::TimedOut),
        3 => (0_u64..12).prop_map(|wait| Next::Requeued { wait }),
        1 => Just(Next::CancelRequested),
        1 => Just(Next::Cancelled),
    ]
}

/// A stream that the fold accepts.
fn life() -> impl Strategy<Value = Vec<Recorded>> {
    let steps = prop::collection::vec((1_u64..8, next()), 0..10);
    (prop::option::of(0_u64..10), steps).prop_map(|(wait, steps)| {
        let id = RunId::from_uuid(uuid::Uuid::from_u128(1));
        let (not_before, labels) = (wait.map(at), BTreeMap::new());
        let (lane, goal, device, unique_key, input) = (name(), None, None, None, None);
        let created = RunEvent::Created { lane, goal, device, not_before, unique_key, labels, input };
        let mut stream = vec![Recorded { run: id, version: 1, recorded_at: at(0), event: created }];
        let mut run = Run::begin(&stream[0]).expect("a stream begins with `created`");
        let mut now = 0;
        for (pause, next) in steps {
            now += pause;
            let event = next.event(&run, now);
            let recorded = Recorded { run: id, version: run.version + 1, recorded_at: at(now), event };
            if run.evolve(&recorded).is_ok() {
                stream.push(recorded);
            }
        }
        stream
    })
}

fn policy() -> impl Strategy<Value = LanePolicy> {
    let optional = || prop::option::of((0_u64..25).prop_map(Span::from_micros));
    let main = (0_u64..10, 0_u64..20, 0_u64..25).prop_map(|(a, b, c)| [a, b, c].map(Span::from_micros));
    (main, optional(), optional(), optional(), optional()).prop_map(
        |(main, claim_window, start_window, max_runtime, stall_window)| {
            let [heartbeat_interval, heartbeat_window, coarse_ttl] = main;
            let windows = Terms { heartbeat_interval, heartbeat_window, coarse_ttl, ..Terms::default() };
            LanePolicy { version: 1, terms: Terms { claim_window, start_window, max_runtime, stall_window, ..windows } }
        },
    )
}

/// Deaf spans of both causes, that overlap, touch, and are recorded late.
fn deaf() -> impl Strategy<Value = Vec<DeafSpan>> {
    let span = (0_u64..60, 0_u64..20, 0_u64..5, any::<bool>()).prop_map(|(from, length, delay, is_gap)| {
        let to = from + length;
        if is_gap {
            let promised_until = at(to.min(from + delay));
            DeafSpan { from: at(from), to: at(to), promised_until, cause: DeafCause::Gap, recorded_at: at(to) }
        } else {
            let (promised_until, recorded_at) = (at(from), at(to + delay));
            DeafSpan { from: at(from), to: at(to), promised_until, cause: DeafCause::ClockStep, recorded_at }
        }
    });
    prop::collection::vec(span, 0..4)
}

/// Says of each microsecond whether it is charged, as is known at `now`.
struct Hearing(Vec<bool>);

impl Hearing {
    fn as_of(now: u64, spans: &[DeafSpan]) -> Hearing {
        let deaf = |micro: u64| {
            spans.iter().any(|span| {
                let covers = micros(span.from) <= micro && micro < micros(span.to);
                covers
                    && match span.cause {
                        DeafCause::Gap => micros(span.promised_until) < now && micro < now,
                        DeafCause::ClockStep => micros(span.recorded_at) <= now,
                    }
            })
        };
        Hearing((0..END).map(|micro| !deaf(micro)).collect())
    }

    fn charged(&self, from: u64, to: u64) -> u64 {
        (from..to).filter(|micro| self.0[usize::try_from(*micro).expect("a small number")]).count() as u64
    }

    fn reaches(&self, from: u64, window: u64) -> u64 {
        (from..END).find(|to| self.charged(from, *to) >= window).expect("the end is far away")
    }
}

/// What the table says of a run.
#[derive(Debug, PartialEq)]
struct Reading {
    liveness: Liveness,
    rule: Option<Rule>,
    /// Basis, window, charged, deaf and the instant of the lapse.
    charge: Option<[u64; 5]>,
}

impl Reading {
    fn of_verdict(verdict: &Verdict) -> Reading {
        let charge = verdict.charge.map(|charge| {
            let (basis, lapses_at) = (micros(charge.basis.at), micros(charge.lapses_at));
            [basis, charge.window.as_micros(), charge.charged.as_micros(), charge.deaf.as_micros(), lapses_at]
        });
        Reading { liveness: verdict.liveness, rule: verdict.rule(), charge }
    }
}

/// What a stream says, read without the fold.
#[derive(Default)]
struct Facts {
    due: Option<u64>,
    claimed: Option<u64>,
    started: bool,
    heard: Option<u64>,
    /// The progress, and when it was told of first.
    progress: Option<(serde_json::Value, u64)>,
}

impl Facts {
    fn read(stream: &[Recorded]) -> Facts {
        let mut facts = Facts::default();
        for recorded in stream {
            let now = micros(recorded.recorded_at);
            match &recorded.event {
                RunEvent::Created { not_before, .. } => facts.due = Some(not_before.map_or(now, micros).max(now)),
                RunEvent::Requeued { not_before, .. } => {
                    facts = Facts { due: Some(micros(*not_before).max(now)), ..Facts::default() };
                }
                RunEvent::Claimed { .. } => facts = Facts { claimed: Some(now), ..Facts::default() },
                RunEvent::Started { .. } => facts.started = true,
                RunEvent::Heartbeat { progress, .. } => {
                    facts.heard = Some(now);
                    let known = facts.progress.as_ref().map(|(known, _)| known);
                    if let Some(told) = progress.as_ref().filter(|told| known != Some(told)) {
                        facts.progress = Some((told.clone(), now));
                    }
                }
                RunEvent::CancelRequested { .. } | RunEvent::LateSignal { .. } => {}
                RunEvent::Completed { .. }
                | RunEvent::Failed { .. }
                | RunEvent::TimedOut { .. }
                | RunEvent::Cancelled { .. } => facts = Facts::default(),
            }
        }
        facts
    }

    /// The rules that apply, in the order of the table, with basis and window.
    fn applicable(&self, terms: &Terms, now: u64) -> Vec<(Rule, u64, u64)> {
        let mut rules = Vec::new();
        let mut add = |rule, basis, window: Option<Span>| {
            rules.extend(window.map(|window| (rule, basis, window.as_micros())));
        };
        match (self.claimed, self.heard) {
            (Some(_), Some(heard)) => add(Rule::HeartbeatSilence, heard, Some(terms.heartbeat_window)),
            (Some(claimed), None) => add(Rule::CoarseTtl, claimed, Some(terms.coarse_ttl)),
            (None, _) => {}
        }
        if let Some(due) = self.due.filter(|due| *due <= now) {
            add(Rule::Unclaimed, due, terms.claim_window);
        }
        if let Some(claimed) = self.claimed {
            if !self.started && self.heard.is_none() {
                add(Rule::Unstarted, claimed, terms.start_window);
            }
            add(Rule::MaxRuntime, claimed, terms.max_runtime);
            if let Some((_, changed)) = &self.progress {
                add(Rule::NoProgress, *changed, terms.stall_window);
            }
        }
        rules
    }

    fn judge(&self, terms: &Terms, hearing: &Hearing, now: u64) -> Reading {
        let rules = self.applicable(terms, now);
        let lapsed = rules.iter().any(|(_, basis, window)| hearing.charged(*basis, now) > *window);
        let silent = self.heard.map(|heard| hearing.charged(heard, now));
        let liveness = match (self.due, self.claimed, silent) {
            (None, None, _) => Liveness::Settled,
            _ if lapsed => Liveness::Lapsed,
            (Some(_), _, _) => Liveness::Waiting,
            (None, Some(_), None) => Liveness::Presumed,
            (None, Some(_), Some(silent)) if 2 * silent > 3 * terms.heartbeat_interval.as_micros() => Liveness::Quiet,
            (None, Some(_), Some(_)) => Liveness::Live,
        };
        // The first of those that lapse first: `min_by_key` keeps the earlier of two that are equal.
        let governing = rules.iter().min_by_key(|(_, basis, window)| hearing.reaches(*basis, *window));
        let charge = governing.map(|&(_, basis, window)| {
            let charged = hearing.charged(basis, now);
            [basis, window, charged, now.saturating_sub(basis) - charged, hearing.reaches(basis, window)]
        });
        Reading { liveness, rule: governing.map(|(rule, ..)| *rule), charge }
    }
}

fn fold(stream: &[Recorded]) -> Run {
    Run::fold(stream).expect("the fold accepted it before").expect("it is not empty")
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_rule_says_at_every_instant_what_the_table_says(life in life(), policy in policy(), deaf in deaf()) {
        let (run, facts) = (fold(&life), Facts::read(&life));
        for now in 0..70 {
            let verdict = judge(&run, &policy, &Listening::as_of(at(now), &deaf, &[]), at(now));
            let expected = facts.judge(&policy.terms, &Hearing::as_of(now, &deaf), now);
            prop_assert_eq!(Reading::of_verdict(&verdict), expected, "at {} µs", now);
        }
    }

    #[test]
    fn a_verdict_changes_by_itself_exactly_at_changes_at(life in life(), policy in policy(), deaf in deaf()) {
        let (run, listening) = (fold(&life), Listening::as_of(at(END), &deaf, &[]));
        let verdict = |now| judge(&run, &policy, &listening, at(now));
        let says = |now| (verdict(now).liveness, verdict(now).rule());
        for now in (0..70).step_by(3) {
            let changes = (now..END).find(|later| says(*later) != says(now));
            prop_assert_eq!(verdict(now).changes_at.map(micros), changes, "at {} µs", now);
        }
    }

    #[test]
    fn the_charge_reaches_the_window_at_lapses_at_and_the_next_heard_instant_is_over_it(
        life in life(), policy in policy(), deaf in deaf(),
    ) {
        let (run, listening) = (fold(&life), Listening::as_of(at(END), &deaf, &[]));
        let hearing = Hearing::as_of(END, &deaf);
        let Some(charge) = judge(&run, &policy, &listening, at(60)).charge else { return Ok(()) };
        let lapses_at = micros(charge.lapses_at);
        prop_assert_eq!(listening.charged(charge.basis.at, charge.lapses_at), charge.window);
        let first_heard = (lapses_at..END).find(|micro| hearing.charged(*micro, micro + 1) == 1);
        let first_over = first_heard.expect("the end is far away") + 1;
        prop_assert!(!judge(&run, &policy, &listening, at(first_over - 1)).is_lapsed());
        prop_assert!(judge(&run, &policy, &listening, at(first_over)).is_lapsed());
    }

    #[test]
    fn what_has_lapsed_stays_so_as_long_as_nothing_new_is_known(life in life(), policy in policy(), deaf in deaf()) {
        let run = fold(&life);
        for before in (0..70).step_by(5) {
            // Spans that count already, and ones that begin later. One that is recognised afterwards is news.
            let (counts_at, mut known) = (at(before), deaf.clone());
            known.retain(|span| span.from >= counts_at || match span.cause {
                DeafCause::Gap => span.promised_until < counts_at,
                DeafCause::ClockStep => span.recorded_at <= counts_at,
            });
            let is_lapsed = |now| judge(&run, &policy, &Listening::as_of(at(now), &known, &[]), at(now)).is_lapsed();
            if is_lapsed(before) {
                prop_assert!((before..END).all(is_lapsed), "lapsed at {} µs, and later not", before);
            }
        }
    }

    #[test]
    fn a_sweeper_that_looks_at_check_at_is_never_late(life in life(), policy in policy(), deaf in deaf()) {
        let run = fold(&life);
        for now in 0..70 {
            let verdict = |now| judge(&run, &policy, &Listening::as_of(at(now), &deaf, &[]), at(now));
            let lapsed = (now..END).find(|later| verdict(*later).is_lapsed());
            let Some(lapsed) = lapsed else { continue };
            let check_at = verdict(now).check_at().map(micros);
            prop_assert!(check_at.is_some_and(|check_at| check_at < lapsed), "at {now} µs: {check_at:?}, {lapsed}");
        }
    }
}
