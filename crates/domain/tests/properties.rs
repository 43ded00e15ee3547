//! Promises that hold in every state that commands can reach.
//!
//! A [`Model`] is the smallest store there is: one run, its stream, a log clock, and a policy. Random commands are
//! decided and appended; the promises are checked after each step. A failing seed is printed and kept beside this file.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use lastbeat_domain::decide::{Claimant, Command, Context, Report, RunSpec};
use lastbeat_domain::event::{DeafCause, Event, RunEvent};
use lastbeat_domain::listening::DeafSpan;
use lastbeat_domain::policy::LateCompletion;
use lastbeat_domain::{
    ClaimId, LanePolicy, Listening, Liveness, Name, Recorded, Rule, Run, RunId, Span, Status, Terms, Timestamp,
    Verdict, decide, judge,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

fn config() -> Config {
    let persistence = FileFailurePersistence::WithSource("regressions");
    Config { cases: 256, failure_persistence: Some(Box::new(persistence)), ..Config::default() }
}

/// What somebody does next. Attempts and claims are given relative to the current ones.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create {
        claim: bool,
    },
    Claim,
    Start(Quote),
    /// With the progress, if any: the same as before is none.
    Beat {
        quote: Quote,
        progress: Option<u8>,
    },
    Complete(Quote),
    Fail(Quote),
    Cancel,
    Acknowledge(Quote),
    Reap,
    Requeue,
}

/// Which fencing token a report quotes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Quote {
    Current,
    NoClaim,
    WrongClaim,
    OldAttempt,
}

fn quote() -> impl Strategy<Value = Quote> {
    prop_oneof![
        6 => Just(Quote::Current),
        1 => Just(Quote::NoClaim),
        1 => Just(Quote::WrongClaim),
        1 => Just(Quote::OldAttempt),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => any::<bool>().prop_map(|claim| Step::Create { claim }),
        3 => Just(Step::Claim),
        2 => quote().prop_map(Step::Start),
        8 => (quote(), prop::option::of(0_u8..3)).prop_map(|(quote, progress)| Step::Beat { quote, progress }),
        2 => quote().prop_map(Step::Complete),
        1 => quote().prop_map(Step::Fail),
        1 => Just(Step::Cancel),
        1 => quote().prop_map(Step::Acknowledge),
        4 => Just(Step::Reap),
        2 => Just(Step::Requeue),
    ]
}

/// A pause before a step, from a microsecond to half a day: short ones, and ones about the length of the windows.
fn pause() -> impl Strategy<Value = Span> {
    prop_oneof![
        (1_u64..1_000).prop_map(Span::from_micros),
        (1_u64..400).prop_map(Span::from_seconds),
        (1_u64..40_000).prop_map(Span::from_seconds),
        Just(Span::from_seconds(180)),
        Just(Span::from_seconds(7_200)),
    ]
}

fn history() -> impl Strategy<Value = Vec<(Span, Step)>> {
    prop::collection::vec((pause(), step()), 1..40)
}

fn window() -> impl Strategy<Value = Option<Span>> {
    prop::option::of((1_u64..20_000).prop_map(Span::from_seconds))
}

fn terms() -> impl Strategy<Value = Terms> {
    let windows = (window(), window(), window(), window());
    (windows, 1_u32..4, any::<bool>()).prop_map(|((claim, start, runtime, stall), attempts, adopt)| Terms {
        claim_window: claim,
        start_window: start,
        max_runtime: runtime,
        stall_window: stall,
        max_attempts: attempts,
        late_completion: if adopt { LateCompletion::Adopt } else { LateCompletion::Refuse },
        ..Terms::default()
    })
}

/// Deaf spans anywhere near the history.
fn deaf() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0_u64..100_000, 1_u64..20_000), 0..5)
}

fn origin() -> Timestamp {
    "2026-05-04T00:00:00Z".parse().unwrap()
}

struct Model {
    id: RunId,
    run: Option<Run>,
    stream: Vec<Recorded>,
    now: Timestamp,
    policy: LanePolicy,
    spans: Vec<DeafSpan>,
    claims: u32,
}

impl Model {
    fn new(terms: Terms, deaf: &[(u64, u64)]) -> Model {
        let span = |&(from, length): &(u64, u64)| {
            let from = origin().plus(Span::from_seconds(from));
            let to = from.plus(Span::from_seconds(length));
            DeafSpan { from, to, promised_until: from, cause: DeafCause::Gap, recorded_at: to }
        };
        let spans = deaf.iter().map(span).collect();
        let (id, policy) = (RunId::from_uuid(uuid::Uuid::from_u128(1)), LanePolicy { version: 1, terms });
        Model { id, run: None, stream: Vec::new(), now: origin(), policy, spans, claims: 0 }
    }

    fn listening(&self, at: Timestamp) -> Listening {
        Listening::as_of(at, &self.spans, &[])
    }

    fn verdict(&self, at: Timestamp) -> Option<Verdict> {
        self.run.as_ref().map(|run| judge(run, &self.policy, &self.listening(at), at))
    }

    fn claimant(&mut self) -> Claimant {
        self.claims += 1;
        let claim = format!("claim-{}", self.claims).parse().unwrap();
        Claimant { executor: Name::new("mac-7").unwrap(), device: None, claim }
    }

    fn report(&self, quote: Quote) -> Report {
        let attempt = self.run.as_ref().map_or(1, |run| run.attempt);
        let current = self.run.as_ref().and_then(|run| run.claim.as_ref()?.id.clone());
        let wrong: ClaimId = "somebody-else".parse().unwrap();
        let (attempt, claim) = match quote {
            Quote::Current => (attempt, current),
            Quote::NoClaim => (attempt, None),
            Quote::WrongClaim => (attempt, Some(wrong)),
            Quote::OldAttempt => (attempt.saturating_sub(1), None),
        };
        Report { run: self.id, attempt, claim, executor: None }
    }

    fn command(&mut self, step: Step) -> Command {
        let (run, by) = (self.id, Name::new("somebody").unwrap());
        match step {
            Step::Create { claim } => {
                let claim = claim.then(|| self.claimant());
                Command::Create { run, spec: Box::new(RunSpec::of_lane(Name::new("watcher").unwrap())), claim }
            }
            Step::Claim => Command::Claim { lanes: Vec::new(), claimant: self.claimant() },
            Step::Start(quote) => Command::Start(self.report(quote)),
            Step::Beat { quote, progress } => Command::Heartbeat {
                report: self.report(quote),
                progress: progress.map(|done| serde_json::json!({"done": done})),
            },
            Step::Complete(quote) => Command::Complete { report: self.report(quote), output: None },
            Step::Fail(quote) => Command::Fail { report: self.report(quote), error: "no disk".to_owned() },
            Step::Cancel => Command::RequestCancel { run, by, reason: None },
            Step::Acknowledge(quote) => Command::AcknowledgeCancel(self.report(quote)),
            Step::Reap => Command::Reap { run, by, by_hand: None },
            Step::Requeue => Command::Requeue { run, by, reason: None },
        }
    }

    /// Decides a command and appends what comes of it; says whether it was accepted.
    fn apply(&mut self, command: &Command) -> bool {
        let listening = self.listening(self.now);
        let policy = &self.policy;
        let context = Context::plain(policy, &listening);
        let (accepted, events) = match decide(self.run.as_ref(), command, &context, self.now) {
            Ok(events) => (true, events),
            Err(refusal) => (false, refusal.events),
        };
        for event in events {
            let Event::Run(event) = event else { continue };
            let version = self.stream.len() as u64 + 1;
            let recorded = Recorded { run: self.id, version, recorded_at: self.now, event };
            match &mut self.run {
                None => self.run = Some(Run::begin(&recorded).unwrap()),
                Some(run) => run.evolve(&recorded).expect("what is decided can follow"),
            }
            self.now = self.now.next();
            self.stream.push(recorded);
        }
        accepted
    }

    /// Plays a history and calls `check` after each step.
    fn play(&mut self, history: &[(Span, Step)], mut check: impl FnMut(&Model)) {
        for (pause, step) in history {
            self.now = self.now.plus(*pause).next();
            let command = self.command(*step);
            self.apply(&command);
            check(self);
        }
    }
}

/// The listening time between two instants by counting: wall time, less the seconds that some span covers. Spans here
/// begin and end at whole seconds of the history, so the borders are all that must be looked at.
fn charged_the_slow_way(spans: &[DeafSpan], from: Timestamp, to: Timestamp) -> Span {
    let mut borders: Vec<Timestamp> = spans.iter().flat_map(|span| [span.from, span.to]).collect();
    borders.extend([from, to]);
    borders.retain(|border| *border >= from && *border <= to);
    borders.sort_unstable();
    let heard = borders.windows(2).filter(|pair| {
        !spans.iter().any(|span| span.promised_until < to && span.from <= pair[0] && pair[1] <= span.to)
    });
    heard.fold(Span::ZERO, |sum, pair| sum.plus(pair[1].since(pair[0])))
}

/// When a heartbeat of the attempt last told of other progress than the one before it did.
fn last_change(run: &Run, stream: &[Recorded]) -> Option<Timestamp> {
    let told = stream.iter().filter_map(|recorded| match &recorded.event {
        RunEvent::Heartbeat { attempt, progress: Some(progress) } if *attempt == run.attempt => {
            Some((recorded.recorded_at, progress))
        }
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let mut changes =
        (0..told.len()).filter(|index| index.checked_sub(1).is_none_or(|before| told[before].1 != told[*index].1));
    changes.next_back().map(|index| told[index].0)
}

/// The rules that apply to a run, with the instants from which they charge: the table, read literally.
fn applicable(run: &Run, stream: &[Recorded], terms: &Terms, now: Timestamp) -> Vec<(Rule, Timestamp, Span)> {
    let last_beat = stream
        .iter()
        .rfind(|recorded| matches!(recorded.event, RunEvent::Heartbeat { attempt, .. } if attempt == run.attempt));
    let last_beat = last_beat.map(|recorded| recorded.recorded_at);
    let mut rules = Vec::new();
    if run.status == Status::Pending && now >= run.waiting.due_at {
        rules.extend(terms.claim_window.map(|window| (Rule::Unclaimed, run.waiting.due_at, window)));
    }
    if !run.status.is_in_flight() {
        return rules;
    }
    let claimed = run.claimed_at().unwrap();
    match last_beat {
        Some(beat) => rules.push((Rule::HeartbeatSilence, beat, terms.heartbeat_window)),
        None => rules.push((Rule::CoarseTtl, claimed, terms.coarse_ttl)),
    }
    if run.status == Status::Claimed && last_beat.is_none() {
        rules.extend(terms.start_window.map(|window| (Rule::Unstarted, claimed, window)));
    }
    rules.extend(terms.max_runtime.map(|window| (Rule::MaxRuntime, claimed, window)));
    rules.extend(terms.stall_window.zip(last_change(run, stream)).map(|(window, at)| (Rule::NoProgress, at, window)));
    rules
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_gate_holds_in_every_reachable_state(history in history(), deaf in deaf(), later in pause()) {
        let mut model = Model::new(Terms { max_attempts: 3, ..Terms::default() }, &deaf);
        model.play(&history, |model| {
            let Some(run) = &model.run else { return };
            let beat_of_attempt = model.stream.iter().any(|recorded| {
                matches!(recorded.event, RunEvent::Heartbeat { attempt, .. } if attempt == run.attempt)
            });
            let in_flight = run.status.is_in_flight();
            assert_eq!(run.is_beating(), in_flight && beat_of_attempt);
            assert_eq!(run.is_beating(), in_flight && run.last_heartbeat_at() > run.claimed_at());
            for at in [model.now, model.now.plus(later)] {
                let rule = model.verdict(at).unwrap().rule();
                // With the optional windows off exactly one rule governs a run in flight, and none any other.
                let expected = match (in_flight, run.is_beating()) {
                    (false, _) => None,
                    (true, true) => Some(Rule::HeartbeatSilence),
                    (true, false) => Some(Rule::CoarseTtl),
                };
                assert_eq!(rule, expected);
            }
        });
    }

    #[test]
    fn the_rule_agrees_with_its_table_read_literally(history in history(), terms in terms(), deaf in deaf(), later in pause()) {
        let mut model = Model::new(terms, &deaf);
        model.play(&history, |model| {
            let Some(run) = &model.run else { return };
            let at = model.now.plus(later);
            let verdict = model.verdict(at).unwrap();
            let rules = applicable(run, &model.stream, &model.policy.terms, at);
            let over = rules.iter().any(|(_, basis, window)| charged_the_slow_way(&model.spans, *basis, at) > *window);
            assert_eq!(verdict.is_lapsed(), over, "{rules:?}");
            assert_eq!(verdict.charge.is_some(), !rules.is_empty());
            let Some(charge) = verdict.charge else { return };
            let listening = model.listening(at);
            let first = rules.iter().map(|(rule, basis, window)| (listening.reaches(*basis, *window), *rule)).min();
            assert_eq!(Some((charge.lapses_at, charge.rule)), first);
            assert_eq!(charge.charged, charged_the_slow_way(&model.spans, charge.basis.at, at));
            assert_eq!(charge.charged.plus(charge.deaf), at.since(charge.basis.at));
            assert!(verdict.check_at().unwrap() <= charge.lapses_at);
        });
    }

    #[test]
    fn lapses_at_and_changes_at_are_exact(history in history(), terms in terms(), deaf in deaf(), share in 0.0_f64..1.0) {
        let mut model = Model::new(terms, &deaf);
        model.play(&history, |model| {
            let Some(run) = &model.run else { return };
            // One record for all instants, so that nothing but time changes.
            let listening = model.listening(Timestamp::MAX);
            let verdict = judge(run, &model.policy, &listening, model.now);
            let at = |at: Timestamp| judge(run, &model.policy, &listening, at);
            if let Some(charge) = verdict.charge {
                assert!(!at(charge.lapses_at).is_lapsed());
                assert!(listening.charged(charge.basis.at, charge.lapses_at) >= charge.window);
            }
            let Some(changes_at) = verdict.changes_at else { return };
            assert!(changes_at > model.now);
            let until = changes_at.since(model.now).as_micros() - 1;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let between = model.now.plus(Span::from_micros((until as f64 * share) as u64));
            assert_eq!(at(between).liveness, verdict.liveness);
            assert_eq!(at(between).rule(), verdict.rule());
            let changed = at(changes_at);
            assert_ne!((changed.liveness, changed.rule()), (verdict.liveness, verdict.rule()));
        });
    }

    #[test]
    fn once_lapsed_always_lapsed_until_something_new(history in history(), terms in terms(), deaf in deaf(), later in pause()) {
        let mut model = Model::new(terms, &deaf);
        model.play(&history, |model| {
            let (before, after) = (model.now, model.now.plus(later));
            let listening = model.listening(Timestamp::MAX);
            let Some(run) = &model.run else { return };
            if judge(run, &model.policy, &listening, before).is_lapsed() {
                assert!(judge(run, &model.policy, &listening, after).is_lapsed());
            }
        });
    }

    #[test]
    fn what_is_decided_can_follow_and_folds_to_the_same(history in history(), terms in terms(), deaf in deaf()) {
        let mut model = Model::new(terms, &deaf);
        model.play(&history, |_| {});
        prop_assert_eq!(Run::fold(&model.stream).unwrap(), model.run);
        for recorded in &model.stream {
            let line = serde_json::to_string(recorded).unwrap();
            let Ok(lastbeat_domain::Line::Run { run, version, recorded_at, event }) = lastbeat_domain::Line::parse(&line)
            else { panic!("{line}") };
            prop_assert_eq!(&Recorded { run, version: version.unwrap(), recorded_at, event }, recorded);
        }
    }

    #[test]
    fn an_old_attempt_or_a_wrong_claim_changes_nothing(history in history(), terms in terms(), wrong in any::<bool>()) {
        let mut model = Model::new(terms, &[]);
        model.play(&history, |_| {});
        let Some(before) = model.run.clone() else { return Ok(()) };
        let quote = if wrong { Quote::WrongClaim } else { Quote::OldAttempt };
        for step in [Step::Start(quote), Step::Beat { quote, progress: Some(1) }, Step::Complete(quote), Step::Fail(quote), Step::Acknowledge(quote)] {
            let command = model.command(step);
            // The same report again may be answered as before; nothing may come of it.
            model.apply(&command);
            let after = model.run.clone().unwrap();
            prop_assert_eq!((after.status, after.attempt, &after.claim, &after.last_beat, after.beats, &after.progress, &after.outcome),
                (before.status, before.attempt, &before.claim, &before.last_beat, before.beats, &before.progress, &before.outcome));
        }
    }

    #[test]
    fn two_sweepers_and_an_executor_end_an_attempt_once(
        history in prop::collection::vec((pause(), prop_oneof![
            3 => step().prop_map(Some),
            2 => Just(None),
        ]), 1..40),
        terms in terms(),
    ) {
        let mut model = Model::new(terms, &[]);
        // What the two sweepers planned on a verdict that is stale by now.
        let mut planned = 0_u32;
        for (pause, step) in history {
            model.now = model.now.plus(pause).next();
            match step {
                Some(step) => {
                    let command = model.command(step);
                    model.apply(&command);
                    planned = if model.verdict(model.now).is_some_and(|verdict| verdict.is_lapsed()) { 2 } else { planned };
                }
                None => for _ in 0..planned {
                    let command = model.command(Step::Reap);
                    model.apply(&command);
                },
            }
        }
        let mut endings: BTreeMap<u32, u32> = BTreeMap::new();
        for recorded in &model.stream {
            match recorded.event {
                RunEvent::Completed { attempt, late: false, .. } | RunEvent::Failed { attempt, .. }
                | RunEvent::TimedOut { attempt: attempt @ 1.., .. } | RunEvent::Cancelled { attempt: attempt @ 1.., .. } => {
                    *endings.entry(attempt).or_default() += 1;
                }
                _ => {}
            }
        }
        prop_assert!(endings.values().all(|count| *count == 1), "{endings:?}");
    }

    #[test]
    fn every_reap_can_be_judged_again_from_what_was_known(history in history(), terms in terms(), deaf in deaf()) {
        let mut model = Model::new(terms, &deaf);
        model.play(&history, |_| {});
        for (index, recorded) in model.stream.iter().enumerate() {
            let RunEvent::TimedOut { evidence: Some(evidence), rule, .. } = &recorded.event else { continue };
            let before = Run::fold(&model.stream[..index]).unwrap().unwrap();
            let at = evidence.judged_at;
            let verdict = judge(&before, &model.policy, &model.listening(at), at);
            prop_assert_eq!(verdict.liveness, Liveness::Lapsed);
            let charge = verdict.charge.unwrap();
            prop_assert_eq!((charge.rule, charge.charged, charge.deaf), (*rule, evidence.charged, evidence.deaf));
            prop_assert!(evidence.charged > evidence.window);
            prop_assert_eq!(evidence.charged.plus(evidence.deaf), evidence.wall);
        }
    }
}
