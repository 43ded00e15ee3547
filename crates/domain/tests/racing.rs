//! Two sweepers and two executors race for one run.
//!
//! The sweepers plan on a verdict and carry the plan out later, when it may be stale. The executors remember the
//! fencing token of their last claim and go on reporting under it, whether or not they were reaped meanwhile: they
//! are not told. Commands are decided one after the other on fresh state, as under the store's locks. Windows are a
//! few microseconds long, so that a race is lost all the time.

use std::collections::{BTreeMap, BTreeSet};

use lastbeat_domain::decide::{Claimant, Report};
use lastbeat_domain::policy::LateCompletion;
use lastbeat_domain::{
    ClaimId, Command, Context, Event, LanePolicy, Listening, Name, Recorded, Rule, Run, RunEvent, RunId, Span, Status,
    Terms, Timestamp, decide, judge,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

fn config() -> Config {
    let persistence = FileFailurePersistence::WithSource("regressions");
    Config { failure_persistence: Some(Box::new(persistence)), ..Config::default() }
}

/// Who does what next: sweepers and executors are numbered 0 and 1.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// A sweeper judges the run and remembers whether it is to be reaped.
    Plan(usize),
    /// A sweeper carries out what it planned, without judging again.
    Execute(usize),
    /// An executor claims the run, if it is told that it may.
    Claim(usize),
    /// An executor reports under the token of its last claim.
    Report(usize, Said),
    /// Somebody asks for the run to be cancelled.
    Cancel,
    /// Somebody requeues the run.
    Requeue,
}

#[derive(Clone, Copy, Debug)]
enum Said {
    Started,
    /// With how much is done; the same as before is no progress.
    Heartbeat(u8),
    Completed,
    Failed,
    Stopped,
}

fn moves() -> impl Strategy<Value = Vec<(u64, Move)>> {
    let said = prop_oneof![
        4 => Just(Said::Started),
        16 => (0_u8..3).prop_map(Said::Heartbeat),
        3 => Just(Said::Completed),
        1 => Just(Said::Failed),
        1 => Just(Said::Stopped),
    ];
    let next = prop_oneof![
        8 => (0_usize..2).prop_map(Move::Plan),
        8 => (0_usize..2).prop_map(Move::Execute),
        12 => (0_usize..2).prop_map(Move::Claim),
        24 => (0_usize..2, said).prop_map(|(executor, said)| Move::Report(executor, said)),
        1 => Just(Move::Cancel),
        4 => Just(Move::Requeue),
    ];
    prop::collection::vec((0_u64..10, next), 1..80)
}

fn terms() -> impl Strategy<Value = Terms> {
    let windows = (1_u64..12, 1_u64..25, prop::option::of(1_u64..25));
    (windows, 1_u32..5, any::<bool>()).prop_map(|((window, coarse, stall), max_attempts, adopt)| Terms {
        heartbeat_interval: Span::from_micros(2),
        heartbeat_window: Span::from_micros(window),
        coarse_ttl: Span::from_micros(coarse),
        stall_window: stall.map(Span::from_micros),
        retry_backoff_base: Span::from_micros(1),
        retry_backoff_max: Span::from_micros(8),
        max_attempts,
        late_completion: if adopt { LateCompletion::Adopt } else { LateCompletion::Refuse },
        ..Terms::default()
    })
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// One command, and what came of it.
struct Turn {
    command: Command,
    before: Run,
    appended: Vec<RunEvent>,
    after: Run,
    at: Timestamp,
}

/// A run between its racers.
struct Race {
    policy: LanePolicy,
    now: Timestamp,
    stream: Vec<Recorded>,
    run: Run,
    tokens: [Option<Report>; 2],
    plans: [bool; 2],
    claims: u128,
    turns: Vec<Turn>,
}

impl Race {
    fn of(terms: Terms, moves: &[(u64, Move)]) -> Race {
        let (lane, labels, id) = (name("watcher"), BTreeMap::new(), RunId::from_uuid(uuid::Uuid::from_u128(1)));
        let event = RunEvent::Created {
            lane,
            goal: None,
            device: None,
            not_before: None,
            unique_key: None,
            labels,
            input: None,
        };
        let now = Timestamp::from_micros(1_777_860_000_000_000);
        let created = Recorded { run: id, version: 1, recorded_at: now, event };
        let run = Run::begin(&created).expect("a stream begins with `created`");
        let policy = LanePolicy { version: 1, terms };
        let (stream, turns) = (vec![created], Vec::new());
        let mut race = Race { policy, now, stream, run, tokens: [None, None], plans: [false; 2], claims: 0, turns };
        for (pause, next) in moves {
            race.now = race.now.next().plus(Span::from_micros(*pause));
            race.play(*next);
        }
        race
    }

    fn play(&mut self, next: Move) {
        let run = self.run.id;
        match next {
            Move::Plan(sweeper) => {
                self.plans[sweeper] = judge(&self.run, &self.policy, &Listening::default(), self.now).is_lapsed();
            }
            Move::Execute(sweeper) if self.plans[sweeper] => {
                self.plans[sweeper] = false;
                self.decide(Command::Reap { run, by: name("sweeper"), by_hand: None });
            }
            Move::Execute(_) => {}
            Move::Claim(executor) => self.claim(executor),
            Move::Report(executor, said) => {
                if let Some(report) = self.tokens[executor].clone() {
                    self.decide(said.under(report));
                }
            }
            Move::Cancel => self.decide(Command::RequestCancel { run, by: name("ada"), reason: None }),
            Move::Requeue => self.decide(Command::Requeue { run, by: name("ada"), reason: None }),
        }
    }

    fn claim(&mut self, executor: usize) {
        self.claims += 1;
        let (claim, by) = (ClaimId::from_uuid(uuid::Uuid::from_u128(self.claims)), name(["mac-7", "mac-8"][executor]));
        let claimant = Claimant { executor: by.clone(), device: None, claim: claim.clone() };
        self.decide(Command::Claim { lanes: vec![name("watcher")], claimant });
        if self.run.claim.as_ref().is_some_and(|held| held.id.as_ref() == Some(&claim)) {
            let (run, attempt) = (self.run.id, self.run.attempt);
            self.tokens[executor] = Some(Report { run, attempt, claim: Some(claim), executor: Some(by) });
        }
    }

    /// When a heartbeat of a run's attempt last told of other progress than the one before it: found in the stream.
    fn last_change(&self, run: &Run) -> Timestamp {
        let (mut known, mut changed) = (None, Timestamp::MIN);
        for recorded in self.stream.iter().take_while(|recorded| recorded.version <= run.version) {
            match &recorded.event {
                RunEvent::Claimed { .. } => known = None,
                RunEvent::Heartbeat { progress, .. } if *progress != known => {
                    (known, changed) = (progress.clone(), recorded.recorded_at);
                }
                _ => {}
            }
        }
        changed
    }

    /// Decides a command on the state as it is now, and appends what comes of it, refused or not.
    fn decide(&mut self, command: Command) {
        let (policy, listening, at, before) = (&self.policy, Listening::default(), self.now, self.run.clone());
        let context = Context::plain(policy, &listening);
        let events = decide(Some(&self.run), &command, &context, at).unwrap_or_else(|refusal| refusal.events);
        let mut appended = Vec::new();
        for event in events {
            let Event::Run(event) = event else { continue };
            appended.push(event.clone());
            let recorded = Recorded { run: self.run.id, version: self.run.version + 1, recorded_at: self.now, event };
            self.run.evolve(&recorded).expect("what is decided can follow");
            self.stream.push(recorded);
            self.now = self.now.next();
        }
        self.turns.push(Turn { command, before, appended, after: self.run.clone(), at });
    }
}

impl Said {
    fn under(self, report: Report) -> Command {
        match self {
            Said::Started => Command::Start(report),
            Said::Heartbeat(done) => Command::Heartbeat { report, progress: Some(serde_json::json!({ "done": done })) },
            Said::Completed => Command::Complete { report, output: None },
            Said::Failed => Command::Fail { report, error: "no disk".to_owned() },
            Said::Stopped => Command::AcknowledgeCancel(report),
        }
    }
}

/// Returns the report that a command makes.
fn report_of(command: &Command) -> Option<&Report> {
    match command {
        Command::Start(report) | Command::AcknowledgeCancel(report) => Some(report),
        Command::Heartbeat { report, .. } | Command::Complete { report, .. } | Command::Fail { report, .. } => {
            Some(report)
        }
        _ => None,
    }
}

/// Returns the run as it is when versions and recorded late signals are left aside.
fn without_late_signals(run: &Run) -> Run {
    let mut run = Run { version: 0, updated_at: Timestamp::MIN, ..run.clone() };
    run.reaped.iter_mut().for_each(|reaped| reaped.signals.clear());
    run
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn an_attempt_ends_once_a_late_completion_aside(terms in terms(), moves in moves()) {
        let race = Race::of(terms, &moves);
        let (mut claimed, mut ended, mut reaped) = (0, BTreeSet::new(), BTreeSet::new());
        for recorded in &race.stream {
            match recorded.event {
                RunEvent::Claimed { attempt, .. } => {
                    prop_assert_eq!(attempt, claimed + 1);
                    claimed = attempt;
                }
                RunEvent::Completed { attempt, late: true, .. } => {
                    prop_assert!(attempt == claimed && reaped.remove(&attempt), "{:?}", recorded);
                }
                RunEvent::TimedOut { attempt, .. } => {
                    prop_assert!(ended.insert(attempt) && reaped.insert(attempt), "{:?}", recorded);
                }
                RunEvent::Completed { attempt, .. } | RunEvent::Failed { attempt, .. } => {
                    prop_assert!(ended.insert(attempt), "{:?}", recorded);
                }
                RunEvent::Cancelled { attempt: attempt @ 1.., .. } => prop_assert!(ended.insert(attempt)),
                _ => {}
            }
        }
    }

    #[test]
    fn a_stale_plan_reaps_nobody_who_was_heard_of_in_time(terms in terms(), moves in moves()) {
        let race = Race::of(terms, &moves);
        let windows = &race.policy.terms;
        for Turn { before, appended, at, .. } in &race.turns {
            let reaped = appended.iter().find_map(|event| match event {
                RunEvent::TimedOut { rule, .. } => Some(*rule),
                _ => None,
            });
            let (Some(claim), Some(rule)) = (&before.claim, reaped) else { continue };
            prop_assert!(before.status.is_in_flight());
            match (rule, before.last_beat) {
                (Rule::HeartbeatSilence, Some(beat)) => prop_assert!(at.since(beat.at) > windows.heartbeat_window),
                (Rule::CoarseTtl, None) => prop_assert!(at.since(claim.at) > windows.coarse_ttl),
                (Rule::NoProgress, Some(beat)) => {
                    let changed = race.last_change(before);
                    prop_assert!(changed <= beat.at && Some(at.since(changed)) > windows.stall_window);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn who_was_fenced_changes_nothing_but_may_leave_a_late_signal(terms in terms(), moves in moves()) {
        let race = Race::of(terms, &moves);
        for Turn { command, before, appended, after, .. } in &race.turns {
            let Some(report) = report_of(command) else { continue };
            let held = before.claim.as_ref().and_then(|claim| claim.id.as_ref());
            if report.attempt == before.attempt && report.claim.as_ref() == held && before.status != Status::Pending {
                continue;
            }
            // A reaped attempt that waits to be retried is fenced, all but its completion.
            let is_adopted = matches!(appended.as_slice(), [RunEvent::Completed { late: true, .. }]);
            if is_adopted {
                prop_assert!(report.attempt == before.attempt && report.claim.as_ref() == held);
                continue;
            }
            prop_assert_eq!(without_late_signals(before), without_late_signals(after), "{:?}", command);
            let only_signals = appended.iter().all(|event| matches!(event, RunEvent::LateSignal { .. }));
            prop_assert!(only_signals, "{:?}", appended);
        }
    }

    #[test]
    fn a_late_signal_is_of_a_reaped_attempt_and_recorded_once_of_each_kind(terms in terms(), moves in moves()) {
        let race = Race::of(terms, &moves);
        let (mut reaped, mut signals) = (BTreeSet::new(), BTreeSet::new());
        for recorded in &race.stream {
            match recorded.event {
                RunEvent::TimedOut { attempt, .. } => drop(reaped.insert(attempt)),
                RunEvent::LateSignal { attempt, signal, .. } => {
                    prop_assert!(reaped.contains(&attempt) && signals.insert((attempt, signal)), "{:?}", recorded);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_run_is_retried_until_it_was_reaped_as_often_as_its_lane_allows(terms in terms(), moves in moves()) {
        let race = Race::of(terms, &moves);
        let mut reaps = 0;
        for Turn { command, before, appended, .. } in &race.turns {
            let Some(RunEvent::TimedOut { .. }) = appended.first() else { continue };
            reaps += 1;
            let wanted = reaps < race.policy.terms.max_attempts && before.cancel_requested.is_none();
            let retried = matches!(appended.as_slice(), [_, RunEvent::Requeued { by: None, .. }]);
            prop_assert_eq!((retried, appended.len()), (wanted, 1 + usize::from(wanted)), "{:?}", command);
        }
    }
}
