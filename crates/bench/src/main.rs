//! What Lastbeat must be fast at, measured beside the designs that it replaces: `cargo xtask bench`.
//!
//! Everything runs on one throwaway PostgreSQL with fsync on, through the same client library, and the contestants take
//! turns. So the ratios mean something on any machine; the seconds do not.

mod compaction;
mod crowd;
mod fleet;
mod fold;
mod ground;
mod heartbeats;
mod lag;
mod lastbeat;
mod mutable;
mod replay;
mod report;
mod row;
mod size;
mod statistics;
mod sweep;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use ground::Ground;
use lastbeat::Lastbeat;
use row::{Row, Standing};
use size::Size;
use sweep::Contestants;

/// Measure what Lastbeat must be fast at, beside the designs that it replaces, on a throwaway PostgreSQL with fsync on.
/// The exit code is 1 if a row misses what is required of it, or if something could not be measured.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Write the rows to a file too, as one JSON list.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A small form that shows that the benchmark works. Its figures say little, so a row that misses what is required
    /// doesn't fail it.
    #[arg(long)]
    quick: bool,
    /// How many runs are in flight.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, conflicts_with = "quick")]
    runs: usize,
    /// How often the contestants take turns.
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with = "quick")]
    rounds: usize,
    /// How long a contestant beats in each round, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, conflicts_with = "quick")]
    turn: f64,
    /// Measure only this; may be given several times.
    #[arg(long, value_name = "WHAT")]
    only: Vec<Part>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Fold,
    Heartbeats,
    Sweep,
    Lag,
    Replay,
    Compaction,
}

/// What is part of the contract and is measured elsewhere.
const LEFT_OUT: [&str; 1] =
    ["memory of `serve` (≤ 64 MiB with 1,000,000 runs in flight): `cargo xtask load` measures it"];

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let size = arguments.size()?;
    let rows = measure(&arguments, &size).await?;
    report::print(&rows, &LEFT_OUT)?;
    if let Some(file) = &arguments.json {
        report::write_json(&rows, file)?;
    }
    let fails = !arguments.quick && rows.iter().any(|row| row.standing() == Standing::Fails);
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Arguments {
    fn size(&self) -> Result<Size> {
        if self.quick {
            return Ok(Size::quick());
        }
        ensure!(self.rounds > 0 && self.turn > 0.0, "there must be a round, and time to beat in it");
        let size = Size::full(self.runs, self.rounds, Duration::from_secs_f64(self.turn));
        let runs_min = size.runs_min();
        ensure!(size.runs >= runs_min, "--runs {} is too few: give {runs_min} or more", size.runs);
        Ok(size)
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

async fn measure(arguments: &Arguments, size: &Size) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if arguments.wants(Part::Fold) {
        say("folding");
        rows.push(fold::measure(size.rounds, size.turn.as_secs_f64() / 3.0)?);
    }
    if arguments.only == [Part::Fold] {
        return Ok(rows);
    }
    let ground = tokio::task::block_in_place(Ground::start)?;
    say(&ground.describe().await?);
    if arguments.wants(Part::Compaction) {
        say("compaction");
        rows.extend(compaction::measure(&ground, size).await?);
    }
    if arguments.only == [Part::Compaction] {
        return Ok(rows);
    }
    let fleet = Arc::new(fleet::members(size.runs));
    say(&format!("{} runs, for each contestant", size.runs));
    let lastbeat = Arc::new(Lastbeat::seed(ground.database()?, &fleet, size.runs, size).await?);
    let mutable = ground.database()?;
    mutable::seed(&mutable, &fleet, false).await?;
    if arguments.wants(Part::Heartbeats) {
        say("heartbeats");
        rows.extend(heartbeats::measure(&ground, &lastbeat, &mutable, &fleet, size).await?);
    }
    if arguments.wants(Part::Sweep) {
        say("sweeps");
        let few = Lastbeat::seed(ground.database()?, &fleet, size.few_runs, size).await?;
        let indexed = ground.database()?;
        mutable::seed(&indexed, &fleet, true).await?;
        let contestants = Contestants { lastbeat: &lastbeat, few: &few, mutable: &mutable, indexed: &indexed };
        rows.extend(sweep::measure(&ground, &contestants, &fleet, size).await?);
        few.store.close().await;
    }
    if arguments.wants(Part::Lag) {
        say("detection lag");
        rows.push(lag::measure(&lastbeat, size).await?);
    }
    if arguments.wants(Part::Replay) {
        say("replay");
        rows.push(replay::measure(&*lastbeat.store).await?);
    }
    lastbeat.store.close().await;
    Ok(rows)
}

/// Says on stderr what is under way.
pub(crate) fn say(what: &str) {
    eprintln!("bench: {what}");
}
