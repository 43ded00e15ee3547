//! A writer that is meant to be killed, or to see its database killed: claims ten runs at a time, beats for them,
//! completes them, and writes a line for each fact that was acknowledged. `acknowledge URL NUMBER [BEATS]`: NUMBER keeps
//! the runs of several writers apart, and BEATS is how often it beats for each run. SIGTERM ends it after a batch.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lastbeat_acceptance::opened;
use lastbeat_domain::RunId;
use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_store::Store;
use lastbeat_testkit::{claimant, name, report, run_id};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap();
    let number: u128 = arguments.next().unwrap().parse().unwrap();
    let beats: usize = arguments.next().map_or(2, |text| text.parse().unwrap());
    let (asked_to_end, mut terminate) = (Arc::new(AtomicBool::new(false)), signal(SignalKind::terminate()).unwrap());
    let noted = Arc::clone(&asked_to_end);
    tokio::spawn(async move {
        terminate.recv().await;
        noted.store(true, Ordering::Relaxed);
    });
    let store = opened(&url).await;
    for round in 0_u128.. {
        let runs: Vec<RunId> = (0..10).map(|index| run_id((number << 40) + (round << 8) + index + 1)).collect();
        for step in 0..beats + 2 {
            if asked_to_end.load(Ordering::Relaxed) {
                return store.close().await;
            }
            let batch = runs.iter().map(|run| command(*run, step, beats)).collect();
            if !carried_out(store.as_ref(), batch).await {
                // The database is away. These runs are left alone, so that it is known what became of each other one.
                tokio::time::sleep(Duration::from_millis(200)).await;
                break;
            }
        }
    }
}

/// The step of a run's life: it is created and claimed, beats, every third time with its progress, and completes.
fn command(run: RunId, step: usize, beats: usize) -> Command {
    if step == 0 {
        let spec = Box::new(RunSpec::of_lane(name("writers")));
        return Command::Create { run, spec, claim: Some(claimant("writer", "c")) };
    }
    let report = report(run, 1, "c");
    if step > beats {
        return Command::Complete { report, output: None };
    }
    let progress = step.is_multiple_of(3).then(|| serde_json::json!({"done": step}));
    Command::Heartbeat { report, progress }
}

/// Carries out a batch and writes down what was acknowledged; or what was not, and returns false.
async fn carried_out(store: &dyn Store, batch: Vec<Command>) -> bool {
    let mut all = true;
    let mut out = std::io::stdout();
    let outcomes = store.execute(batch.clone()).await;
    for (command, outcome) in batch.iter().zip(outcomes) {
        match (outcome, command.run()) {
            (Ok(answer), _) => {
                for fact in answer.facts() {
                    writeln!(out, "{} {}", fact.run, fact.version).unwrap();
                }
            }
            (Err(error), run) => {
                all = false;
                writeln!(out, "{} failed: {error}", run.unwrap()).unwrap();
            }
        }
    }
    out.flush().unwrap();
    all
}
