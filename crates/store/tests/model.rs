//! The store and a naive model of it, side by side.
//!
//! The model counts whole seconds and knows neither the rule nor the fold nor `decide`: it is a few dozen lines that
//! say once more, in the simplest way, what the words of the design mean. Windows are half a second off whole seconds,
//! so that the microseconds by which the log's stamps lie apart never decide.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::rc::Rc;
use std::sync::Arc;

use lastbeat_domain::decide::{Command, Report, RunSpec};
use lastbeat_domain::listening::{BeaconRole, Promise};
use lastbeat_domain::policy::LateCompletion;
use lastbeat_domain::{Liveness, Name, RunId, Span, Status, Terms};
use lastbeat_store::compact::{Bounds, compact_all};
use lastbeat_store::{CommandError, Store, ask, check_import};
use lastbeat_testkit::{Backend, Place, claimant, name, report, run_id};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const NOW: &str = "2026-05-04T06:00:00Z";
const RUNS: u128 = 4;
const INTERVAL: u64 = 3;
const BACKOFF: u64 = 10;
/// How long a beacon of the model promises.
const PROMISE: u64 = 3;

/// What happens next, one second or more after the last.
#[derive(Clone, Debug)]
enum Step {
    Create(u128, bool),
    Claim,
    Report(u128, u32, Said),
    Cancel(u128),
    Reap(u128),
    Requeue(u128),
    Policy {
        window: u64,
        max_attempts: u32,
        adopt: bool,
    },
    Pass(u64),
    /// Nobody listens for so long.
    Deaf(u64),
    Reopen,
    Rebuild,
    /// Compact what is older than so many seconds.
    Compact(u64),
    /// Export everything, and import it into another store.
    Move,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Started,
    Beat,
    BeatWithProgress,
    Completed,
    Failed,
    Stopped,
}

impl Said {
    /// Under which name it is recorded when it comes after a reap.
    fn signal(self) -> Option<&'static str> {
        match self {
            Said::Started => Some("started"),
            Said::Beat | Said::BeatWithProgress => Some("heartbeat"),
            Said::Completed => Some("completed"),
            Said::Failed => Some("failed"),
            Said::Stopped => None,
        }
    }
}

#[derive(Clone, Debug)]
struct ModelRun {
    number: u64,
    status: Status,
    attempt: u32,
    due: u64,
    claimed: u64,
    last_beat: Option<u64>,
    beats: u64,
    started: bool,
    cancel: bool,
    reaped: BTreeSet<u32>,
    signals: BTreeSet<(u32, &'static str)>,
    outcome: Option<(Status, u32)>,
    version: u64,
}

impl ModelRun {
    fn in_flight(&self) -> bool {
        matches!(self.status, Status::Claimed | Status::Running)
    }

    fn claim(&mut self, now: u64) {
        (self.status, self.claimed, self.attempt) = (Status::Claimed, now, self.attempt + 1);
        (self.last_beat, self.beats, self.started) = (None, 0, false);
        self.version += 1;
    }

    fn end(&mut self, status: Status, attempt: u32) {
        (self.status, self.outcome) = (status, Some((status, attempt)));
        self.version += 1;
    }
}

#[derive(Clone, Debug)]
struct Model {
    now: u64,
    runs: BTreeMap<u128, ModelRun>,
    window: u64,
    coarse: u64,
    max_attempts: u32,
    adopt: bool,
    deaf: Vec<(u64, u64)>,
    /// What the last step must have answered: the refusal's code, or nothing.
    answer: Option<&'static str>,
}

impl Model {
    /// The seconds that are charged.
    fn charged(&self, since: u64) -> u64 {
        let deaf = |second: &u64| self.deaf.iter().any(|(from, to)| (from..to).contains(&second));
        (since..self.now).filter(|second| !deaf(second)).count() as u64
    }

    fn verdict(&self, run: &ModelRun) -> Liveness {
        match (run.status, run.last_beat) {
            (Status::Pending, _) => Liveness::Waiting,
            _ if !run.in_flight() => Liveness::Settled,
            // The windows are so many seconds and a half.
            (_, Some(beat)) if self.charged(beat) > self.window => Liveness::Lapsed,
            (_, Some(beat)) if 2 * self.charged(beat) > 3 * INTERVAL => Liveness::Quiet,
            (_, Some(_)) => Liveness::Live,
            (_, None) if self.charged(run.claimed) > self.coarse => Liveness::Lapsed,
            (_, None) => Liveness::Presumed,
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), &'static str> {
        self.now += 1;
        let (now, number) = (self.now, self.runs.len() as u64);
        match step {
            Step::Create(id, _) if self.runs.contains_key(id) => Err("run_exists"),
            Step::Create(id, claimed) => {
                let mut run = ModelRun {
                    number,
                    status: Status::Pending,
                    attempt: 0,
                    due: now,
                    claimed: 0,
                    last_beat: None,
                    beats: 0,
                    started: false,
                    cancel: false,
                    reaped: BTreeSet::new(),
                    signals: BTreeSet::new(),
                    outcome: None,
                    version: 1,
                };
                if *claimed {
                    run.claim(now);
                }
                self.runs.insert(*id, run);
                Ok(())
            }
            Step::Claim => {
                let waiting = self.runs.values_mut().filter(|run| run.status == Status::Pending && run.due <= now);
                let first = waiting.min_by_key(|run| (run.due, run.number)).ok_or("nothing_to_claim")?;
                first.claim(now);
                Ok(())
            }
            Step::Report(id, attempt, said) => self.report(*id, *attempt, *said),
            Step::Cancel(id) => {
                let run = self.runs.get_mut(id).ok_or("unknown_run")?;
                match run.status {
                    Status::Cancelled => {}
                    Status::Pending => run.end(Status::Cancelled, 0),
                    _ if !run.in_flight() => return Err("settled"),
                    _ if run.cancel => {}
                    _ => (run.cancel, run.version) = (true, run.version + 1),
                }
                Ok(())
            }
            Step::Reap(id) => self.reap(*id),
            Step::Requeue(id) => {
                let run = self.runs.get_mut(id).ok_or("unknown_run")?;
                if !matches!(run.status, Status::TimedOut | Status::Failed) {
                    return Err("not_requeueable");
                }
                (run.status, run.due, run.cancel, run.version) = (Status::Pending, now, false, run.version + 1);
                Ok(())
            }
            Step::Policy { window, max_attempts, adopt } => {
                (self.window, self.max_attempts, self.adopt) = (*window, *max_attempts, *adopt);
                Ok(())
            }
            Step::Pass(seconds) => {
                self.now += seconds;
                Ok(())
            }
            Step::Deaf(seconds) => {
                self.now += seconds;
                if *seconds > PROMISE {
                    self.deaf.push((now, self.now));
                }
                Ok(())
            }
            Step::Reopen | Step::Rebuild | Step::Compact(_) | Step::Move => Ok(()),
        }
    }

    fn reap(&mut self, id: u128) -> Result<(), &'static str> {
        let (now, max_attempts) = (self.now, self.max_attempts);
        let run = self.runs.get(&id).ok_or("unknown_run")?;
        if self.verdict(run) != Liveness::Lapsed {
            return Err("not_lapsed");
        }
        let run = self.runs.get_mut(&id).unwrap();
        run.reaped.insert(run.attempt);
        run.end(Status::TimedOut, run.attempt);
        if !run.cancel && run.reaped.len() < max_attempts as usize {
            let backoff = BACKOFF << (run.attempt - 1);
            (run.status, run.due, run.version) = (Status::Pending, now + backoff, run.version + 1);
        }
        Ok(())
    }

    fn report(&mut self, id: u128, attempt: u32, said: Said) -> Result<(), &'static str> {
        let (now, adopt) = (self.now, self.adopt);
        let run = self.runs.get_mut(&id).ok_or("unknown_run")?;
        let ended = match said {
            Said::Completed => Some(Status::Completed),
            Said::Failed => Some(Status::Failed),
            Said::Stopped => Some(Status::Cancelled),
            _ => None,
        };
        if attempt == run.attempt && ended.is_some_and(|ended| run.outcome == Some((ended, attempt))) {
            return Ok(());
        }
        let open = matches!(run.status, Status::TimedOut | Status::Pending);
        if said == Said::Completed && adopt && open && attempt == run.attempt && run.reaped.contains(&attempt) {
            run.end(Status::Completed, attempt);
            return Ok(());
        }
        if attempt != run.attempt || !run.in_flight() {
            let late = said.signal().filter(|_| run.reaped.contains(&attempt));
            if late.is_some_and(|signal| run.signals.insert((attempt, signal))) {
                run.version += 1;
            }
            let stale = attempt != run.attempt || run.status == Status::Pending;
            return Err(if stale { "stale_attempt" } else { "settled" });
        }
        match said {
            Said::Started if run.started => {}
            Said::Started => (run.started, run.status, run.version) = (true, Status::Running, run.version + 1),
            Said::Beat | Said::BeatWithProgress => {
                (run.status, run.last_beat, run.beats) = (Status::Running, Some(now), run.beats + 1);
                run.version += 1;
            }
            Said::Completed => run.end(Status::Completed, attempt),
            Said::Failed => run.end(Status::Failed, attempt),
            Said::Stopped if !run.cancel => return Err("not_cancel_requested"),
            Said::Stopped => run.end(Status::Cancelled, attempt),
        }
        Ok(())
    }
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let (runs, deaf, answer) = (BTreeMap::new(), Vec::new(), None);
        Just(Model { now: 0, runs, window: 9, coarse: 60, max_attempts: 2, adopt: true, deaf, answer }).boxed()
    }

    fn transitions(state: &Model) -> BoxedStrategy<Step> {
        let run = || 1..=RUNS;
        // What is said is mostly said by whoever holds the run, and now and then by somebody who held it once.
        let latest: Vec<(u128, u32)> = state.runs.iter().map(|(id, run)| (*id, run.attempt.max(1))).collect();
        let latest = if latest.is_empty() { vec![(1, 1)] } else { latest };
        let said = prop::sample::select(vec![
            Said::Started,
            Said::Beat,
            Said::Beat,
            Said::Beat,
            Said::BeatWithProgress,
            Said::Completed,
            Said::Failed,
            Said::Stopped,
        ]);
        let current = (prop::sample::select(latest), said.clone());
        prop_oneof![
            3 => (run(), any::<bool>()).prop_map(|(id, claimed)| Step::Create(id, claimed)),
            3 => Just(Step::Claim),
            14 => current.prop_map(|((id, attempt), said)| Step::Report(id, attempt, said)),
            3 => (run(), 1_u32..=3, said).prop_map(|(id, attempt, said)| Step::Report(id, attempt, said)),
            1 => run().prop_map(Step::Cancel),
            5 => run().prop_map(Step::Reap),
            2 => run().prop_map(Step::Requeue),
            1 => (prop::sample::select(vec![9_u64, 12, 20]), 1_u32..=3, any::<bool>())
                .prop_map(|(window, max_attempts, adopt)| Step::Policy { window, max_attempts, adopt }),
            5 => prop::sample::select(vec![1_u64, 2, 3, 5, 8, 9, 10, 30, 60]).prop_map(Step::Pass),
            2 => prop::sample::select(vec![1_u64, 3, 4, 10, 100]).prop_map(Step::Deaf),
            1 => Just(Step::Reopen),
            1 => Just(Step::Rebuild),
            2 => prop::sample::select(vec![0_u64, 0, 5, 30]).prop_map(Step::Compact),
            1 => Just(Step::Move),
        ]
        .boxed()
    }

    fn apply(mut state: Model, step: &Step) -> Model {
        state.answer = state.step(step).err();
        state
    }
}

struct Real {
    runtime: Rc<tokio::runtime::Runtime>,
    place: Place,
    store: Arc<dyn Store>,
    file: u32,
}

fn id_of(number: u128) -> RunId {
    run_id(number)
}

fn watcher() -> Name {
    name("watcher")
}

fn terms(window: u64, max_attempts: u32, adopt: bool) -> Terms {
    let half = |seconds: u64| Span::from_millis(seconds * 1_000 + 500);
    Terms {
        heartbeat_interval: Span::from_seconds(INTERVAL),
        heartbeat_window: half(window),
        coarse_ttl: half(60),
        max_attempts,
        late_completion: if adopt { LateCompletion::Adopt } else { LateCompletion::Refuse },
        ..Terms::default()
    }
}

async fn told(store: &dyn Store, command: Command) -> Option<String> {
    match store.execute(vec![command]).await.pop().unwrap() {
        Ok(_) => None,
        Err(CommandError::Refused(refusal)) => Some(refusal.code.as_str().to_owned()),
        Err(CommandError::Failed(error)) => panic!("{error}"),
    }
}

fn set_policy(window: u64, max_attempts: u32, adopt: bool) -> Command {
    let terms = Box::new(terms(window, max_attempts, adopt));
    Command::SetPolicy { lane: watcher(), terms, expected_version: None, by: None }
}

fn said(id: u128, attempt: u32, said: Said) -> Command {
    let report = report(id_of(id), attempt, &format!("c{attempt}"));
    match said {
        Said::Started => Command::Start(report),
        Said::Beat => Command::Heartbeat { report, progress: None },
        Said::BeatWithProgress => Command::Heartbeat { report, progress: Some(serde_json::json!({"done": 1})) },
        Said::Completed => Command::Complete { report, output: None },
        Said::Failed => Command::Fail { report, error: "no disk".to_owned() },
        Said::Stopped => Command::AcknowledgeCancel(Report { executor: Some(name("mac-7")), ..report }),
    }
}

impl Real {
    fn seconds(&self, seconds: u64) {
        self.place.clock.advance(Span::from_seconds(seconds));
    }

    /// Carries out a step and returns the code of the refusal.
    async fn step(&mut self, step: &Step, claims: u32) -> Option<String> {
        self.seconds(1);
        let (by, reason) = (name("somebody"), None);
        let claim = |attempt: u32| claimant("mac-7", &format!("c{attempt}"));
        let command = match step {
            Step::Create(id, claimed) => {
                let spec = Box::new(RunSpec::of_lane(watcher()));
                Command::Create { run: id_of(*id), spec, claim: claimed.then(|| claim(1)) }
            }
            Step::Claim => Command::Claim { lanes: vec![watcher()], claimant: claim(claims) },
            Step::Report(id, attempt, what) => said(*id, *attempt, *what),
            Step::Cancel(id) => Command::RequestCancel { run: id_of(*id), by, reason },
            Step::Reap(id) => Command::Reap { run: id_of(*id), by, by_hand: None },
            Step::Requeue(id) => Command::Requeue { run: id_of(*id), by, reason },
            Step::Policy { window, max_attempts, adopt } => set_policy(*window, *max_attempts, *adopt),
            Step::Pass(seconds) => {
                self.seconds(*seconds);
                return None;
            }
            Step::Deaf(seconds) => return self.deaf(*seconds).await,
            Step::Reopen => {
                self.store.close().await;
                self.store = self.place.store(&self.file.to_string()).await;
                return None;
            }
            Step::Rebuild => {
                assert_eq!(self.store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
                return None;
            }
            Step::Compact(seconds) => {
                let age = Span::from_seconds(*seconds);
                let bounds = Bounds::older_than(self.store.as_ref(), age, 0).await.unwrap();
                compact_all(self.store.as_ref(), bounds, |_| true).await.unwrap();
                return None;
            }
            Step::Move => return self.move_on().await,
        };
        told(self.store.as_ref(), command).await
    }

    /// A process listens, is silent for so long, listens again, and stops.
    async fn deaf(&self, seconds: u64) -> Option<String> {
        let beacon = || {
            let promise = Promise::Within(Span::from_seconds(PROMISE));
            Command::Beacon { process: name("p"), role: BeaconRole::Local, promise }
        };
        assert_eq!(told(self.store.as_ref(), beacon()).await, None);
        self.seconds(seconds);
        assert_eq!(told(self.store.as_ref(), beacon()).await, None);
        told(self.store.as_ref(), Command::RemoveBeacon { process: name("p") }).await
    }

    async fn move_on(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut sink = |line: &str| {
            text.push_str(line);
            text.push('\n');
            Ok(())
        };
        self.store.export(&mut sink).await.unwrap();
        self.file += 1;
        let next = self.place.store(&self.file.to_string()).await;
        // Beacons bring log time a little ahead of the clock.
        let now = next.now().await.unwrap().plus(Span::from_millis(1));
        next.import(check_import(Cursor::new(text), now).unwrap()).await.unwrap();
        self.store.close().await;
        self.store = next;
        None
    }

    async fn check(&self, model: &Model) {
        for (id, expected) in &model.runs {
            let judged = ask::run(self.store.as_ref(), id_of(*id)).await.unwrap().unwrap();
            let run = &judged.run;
            let found = (run.status, run.attempt, run.version, run.beats, judged.verdict.liveness);
            let verdict = model.verdict(expected);
            assert_eq!(
                found,
                (expected.status, expected.attempt, expected.version, expected.beats, verdict),
                "run {id}"
            );
            let checked =
                judged.verdict.lapses_at().is_none_or(|lapses_at| judged.verdict.check_at() <= Some(lapses_at));
            assert!(checked);
        }
        assert_eq!(self.store.count(&watcher()).await.unwrap().values().sum::<u64>(), model.runs.len() as u64);
    }
}

impl Real {
    fn begin(backend: Backend, model: &Model) -> (Real, u32) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let place = Place::on(backend, NOW);
        let store = runtime.block_on(async {
            let store = place.store("0").await;
            let policy = set_policy(model.window, model.max_attempts, model.adopt);
            assert_eq!(told(store.as_ref(), policy).await, None);
            store
        });
        (Real { runtime: Rc::new(runtime), place, store, file: 0 }, 0)
    }

    fn go_on((mut real, _): (Real, u32), model: &Model, step: &Step) -> (Real, u32) {
        // The claim id says which attempt it is of, which a claim must know beforehand: that of the run that it gets.
        let attempt =
            model.runs.values().filter(|run| run.claimed == model.now).map(|run| run.attempt).max().unwrap_or(1);
        let runtime = Rc::clone(&real.runtime);
        let answer = runtime.block_on(real.step(step, attempt));
        assert_eq!(answer.as_deref(), model.answer, "{step:?}");
        runtime.block_on(real.check(model));
        (real, attempt)
    }

    fn end((real, _): (Real, u32), model: &Model) {
        real.runtime.block_on(async {
            let report = real.store.verify(&|_, _| ()).await.unwrap();
            assert_eq!((report.damage, report.runs), (Vec::new(), model.runs.len() as u64));
            real.store.close().await;
        });
    }
}

/// The same test for each kind of store.
macro_rules! on_backend {
    ($name:ident, $test:ident, $backend:expr, $cases:expr) => {
        struct $name;

        impl StateMachineTest for $name {
            type SystemUnderTest = (Real, u32);
            type Reference = Model;

            fn init_test(model: &Model) -> (Real, u32) {
                Real::begin($backend, model)
            }

            fn apply(real: (Real, u32), model: &Model, step: Step) -> (Real, u32) {
                Real::go_on(real, model, &step)
            }

            fn teardown(real: (Real, u32), model: Model) {
                Real::end(real, &model);
            }
        }

        prop_state_machine! {
            #![proptest_config(Config {
                cases: $cases,
                failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
                ..Config::default()
            })]

            #[test]
            fn $test(sequential 1..60 => $name);
        }
    };
}

on_backend!(OnSqlite, sqlite_does_what_the_naive_model_does, Backend::Sqlite, 64);
on_backend!(OnPostgres, postgres_does_what_the_naive_model_does, Backend::Postgres, 32);
