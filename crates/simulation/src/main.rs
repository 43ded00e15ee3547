//! Plays schedules: `lastbeat-simulation --seeds N [--from SEED]`.

#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lastbeat_simulation::{Failure, Tally, play, runtime, stay_on_one_core};

const USAGE: &str = "usage: cargo xtask simulate [--seeds N] [--from SEED]";
/// How many schedules are played at the same time.
const THREADS: usize = 2;
/// How often it is said how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

struct Arguments {
    seeds: u64,
    from: u64,
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let started = Instant::now();
    let (tally, failure) = simulate(&arguments, started);
    if let Some(failure) = failure {
        complain(&failure);
        return ExitCode::FAILURE;
    }
    summarize(&tally, started.elapsed());
    ExitCode::SUCCESS
}

fn parse(mut given: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut arguments = Arguments { seeds: 10_000, from: 0 };
    while let Some(option) = given.next() {
        let number = given.next()?.parse().ok()?;
        match option.as_str() {
            "--seeds" => arguments.seeds = number,
            "--from" => arguments.from = number,
            _ => return None,
        }
    }
    Some(arguments)
}

/// Plays the seeds until all are played or one fails; of several that fail, the smallest is told.
fn simulate(arguments: &Arguments, started: Instant) -> (Tally, Option<Box<Failure>>) {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let shared: Mutex<(Tally, Option<Box<Failure>>, Instant)> = Mutex::new((Tally::default(), None, started));
    let work = &|| {
        let runtime = runtime();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= arguments.seeds {
                break;
            }
            let outcome = runtime.block_on(play(arguments.from.wrapping_add(index)));
            let mut shared = shared.lock().unwrap();
            match outcome {
                Ok(played) => shared.0.add(&played.tally),
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    if shared.1.as_ref().is_none_or(|known| failure.seed < known.seed) {
                        shared.1 = Some(failure);
                    }
                }
            }
            if shared.2.elapsed() >= PROGRESS_INTERVAL {
                shared.2 = Instant::now();
                let (done, took) = (shared.0.seeds, started.elapsed().as_secs());
                eprintln!("{done} of {} seeds in {took} s, {} commands", arguments.seeds, shared.0.commands);
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                stay_on_one_core(thread);
                work();
            });
        }
    });
    let (tally, failure, _) = shared.into_inner().unwrap();
    (tally, failure)
}

fn complain(failure: &Failure) {
    for line in &failure.history {
        println!("{line}");
    }
    println!("seed {}: {:?} is broken", failure.seed, failure.broken.promise);
    if let Some(run) = failure.broken.run {
        println!("run {run}");
    }
    println!("{}", failure.broken.what);
    println!("to see it again: cargo xtask simulate --seeds 1 --from {}", failure.seed);
}

fn summarize(tally: &Tally, took: Duration) {
    let hours = tally.simulated.as_seconds() / 3_600.0;
    println!("{} seeds, {hours:.1} hours simulated in {:.1} s, every promise kept", tally.seeds, took.as_secs_f64());
    println!("  {} commands decided, {} passes", tally.commands, tally.passes);
    let rules: Vec<String> = tally.reaps.iter().map(|(rule, count)| format!("{count} {rule}")).collect();
    println!("  {} runs reaped ({}), {} races lost", tally.reaped(), rules.join(", "), tally.lost_races);
    println!("  {} late completions, {} late signals", tally.late_completions, tally.late_signals);
    for (kind, count) in &tally.faults {
        println!("  {count:>8} {kind}");
    }
}
