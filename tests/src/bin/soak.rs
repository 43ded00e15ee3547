//! `soak MINUTES [--seed N]`: the soak of the tests for longer, on a server of its own. Prints what was played and what
//! came of it, and exits 1 when a promise was not kept.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use lastbeat_acceptance::soak::{Soak, play};

const USAGE: &str = "usage: soak MINUTES [--seed N]";

fn main() -> ExitCode {
    let Some(soak) = wanted() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Soak { seed, time, sweepers, executors, runs_each } = soak;
    let (seconds, runs) = (time.as_secs(), executors * runs_each);
    println!("seed {seed}: {sweepers} sweepers, {executors} executors with {runs} runs at a time, for {seconds} s");
    let report = play(soak);
    println!("{report}");
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn wanted() -> Option<Soak> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (minutes, seed) = match arguments.as_slice() {
        [minutes] => (minutes, SystemTime::UNIX_EPOCH.elapsed().ok()?.as_secs()),
        [minutes, flag, seed] if flag == "--seed" => (minutes, seed.parse().ok()?),
        _ => return None,
    };
    let minutes: f64 = minutes.parse().ok()?;
    let time = Duration::try_from_secs_f64(minutes * 60.0).ok()?;
    Some(Soak { seed, time, ..Soak::default() })
}
