//! An executor that works on several runs at once, to be killed, stopped and slowed.
//!
//! `executor URL NAME LANE RUNS INTERVAL_MS WORK_MS SEED`: it makes RUNS runs, claims as many of the lane, whoever made
//! them, and beats for all of them each INTERVAL_MS; each is worked on for up to WORK_MS, or for ever if that is 0, and
//! then another one is claimed. For each fact that was acknowledged it writes a line with run and version. SIGUSR1 makes
//! it dawdle for up to two windows of six intervals; SIGTERM makes it finish what it has and end.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::time::{Duration, Instant};

use lastbeat_acceptance::{Numbers, opened};
use lastbeat_domain::decide::{Command, Report, RunSpec};
use lastbeat_domain::{Name, RefusalCode, RunEvent};
use lastbeat_store::{Answer, CommandError, Outcome, Store};
use lastbeat_testkit::{claimant, name, report, run_id};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// How many intervals make a window here.
const WINDOW: u64 = 6;

struct Executor {
    name: Name,
    lane: Name,
    slots: usize,
    interval: Duration,
    work_max: u64,
    seed: u64,
    numbers: Numbers,
    /// How many ids were made.
    made: u64,
    held: Vec<Held>,
    /// How many claims found nothing, so that it makes runs of its own.
    wanted: usize,
}

/// A run that it holds.
struct Held {
    report: Report,
    until: Option<Instant>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, own, lane, slots, interval, work, seed] = arguments.as_slice() else { panic!("wrong arguments") };
    let (mut terminate, mut dawdle) =
        (signal(SignalKind::terminate()).unwrap(), signal(SignalKind::user_defined1()).unwrap());
    let seed: u64 = seed.parse().unwrap();
    let mut executor = Executor {
        name: name(own),
        lane: name(lane),
        slots: slots.parse().unwrap(),
        interval: Duration::from_millis(interval.parse().unwrap()),
        work_max: work.parse().unwrap(),
        seed,
        numbers: Numbers(seed),
        made: 0,
        held: Vec::new(),
        wanted: 0,
    };
    let store = opened(url).await;
    let new = (0..executor.slots).map(|_| executor.create()).collect();
    executor.tell(store.as_ref(), new).await;
    let mut ticks = tokio::time::interval(executor.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => executor.turn(store.as_ref()).await,
            _ = dawdle.recv() => {
                let longest = u64::try_from(executor.interval.as_millis()).unwrap() * WINDOW * 2;
                tokio::time::sleep(Duration::from_millis(executor.numbers.below(longest))).await;
            }
            _ = terminate.recv() => break,
        }
    }
    executor.finish(store.as_ref()).await;
    store.close().await;
}

impl Executor {
    fn create(&mut self) -> Command {
        self.made += 1;
        let run = run_id((u128::from(self.seed) << 64) + u128::from(self.made));
        Command::Create { run, spec: Box::new(RunSpec::of_lane(self.lane.clone())), claim: None }
    }

    fn claim(&mut self) -> Command {
        self.made += 1;
        let claimant = claimant(self.name.as_str(), &format!("{}-{}", self.seed, self.made));
        Command::Claim { lanes: vec![self.lane.clone()], claimant }
    }

    /// Beats for what it holds, ends what is done, and claims what it has room for: all at once, so that no heartbeat
    /// waits for anything else.
    async fn turn(&mut self, store: &dyn Store) {
        let now = Instant::now();
        let mut commands = Vec::new();
        for held in &self.held {
            let report = held.report.clone();
            commands.push(match held.until {
                Some(until) if until <= now => match self.numbers.below(10) {
                    0 => Command::Fail { report, error: "it did not work".to_owned() },
                    _ => Command::Complete { report, output: None },
                },
                _ => {
                    let progress = self.numbers.below(16) == 0;
                    Command::Heartbeat { report, progress: progress.then(|| serde_json::json!({"done": 1})) }
                }
            });
        }
        for _ in 0..std::mem::take(&mut self.wanted) {
            commands.push(self.create());
        }
        for _ in self.held.len()..self.slots {
            commands.push(self.claim());
        }
        self.tell(store, commands).await;
    }

    /// Has commands carried out and takes in what became of them.
    async fn tell(&mut self, store: &dyn Store, commands: Vec<Command>) {
        let outcomes = store.execute(commands.clone()).await;
        let mut out = std::io::stdout().lock();
        for (command, outcome) in commands.iter().zip(outcomes) {
            match outcome {
                Ok(answer) => {
                    for fact in answer.facts() {
                        writeln!(out, "{} {}", fact.run, fact.version).unwrap();
                    }
                    self.take_in(command, &answer);
                }
                Err(CommandError::Refused(refusal)) if refusal.code == RefusalCode::NothingToClaim => {
                    self.wanted += 1;
                }
                outcome => self.lose(command, &outcome),
            }
        }
        out.flush().unwrap();
    }

    fn take_in(&mut self, command: &Command, answer: &Answer) {
        for fact in &answer.appended {
            match &fact.event {
                RunEvent::Claimed { attempt, claim: Some(claim), .. } => {
                    let report = report(fact.run, *attempt, &claim.to_string());
                    let work =
                        (self.work_max > 0).then(|| Duration::from_millis(1 + self.numbers.below(self.work_max)));
                    self.held.push(Held { report, until: work.map(|work| Instant::now() + work) });
                }
                RunEvent::Completed { .. } | RunEvent::Failed { .. } => self.let_go(command),
                _ => {}
            }
        }
    }

    /// The database is away: it tries again. Anything else is a refusal: the run is somebody else's, or nobody's.
    fn lose(&mut self, command: &Command, outcome: &Outcome) {
        match outcome {
            Err(CommandError::Failed(error)) if error.is_transient() => eprintln!("{}: {error}", self.name),
            Err(CommandError::Failed(error)) => panic!("{}: {error}", self.name),
            _ => self.let_go(command),
        }
    }

    fn let_go(&mut self, command: &Command) {
        self.held.retain(|held| Some(held.report.run) != command.run());
    }

    /// Completes all that it holds.
    async fn finish(&mut self, store: &dyn Store) {
        for _ in 0..60 {
            let complete = |held: &Held| Command::Complete { report: held.report.clone(), output: None };
            let commands: Vec<Command> = self.held.iter().map(complete).collect();
            self.tell(store, commands).await;
            if self.held.is_empty() {
                return;
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}
