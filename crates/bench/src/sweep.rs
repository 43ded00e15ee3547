//! Sweeps: one that finds nothing, and one that finds many.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use lastbeat_domain::{Command, Name, Span};
use lastbeat_sweeper::Sweeper;

use crate::fleet::Member;
use crate::ground::{Database, Ground, Statements};
use crate::lastbeat::{Lastbeat, lane, terms};
use crate::mutable;
use crate::row::{Bound, Row};
use crate::size::Size;
use crate::statistics::percentile;

/// How many sweeps make a round, of those that take next to nothing and of those that read the whole table.
const SHORT_SWEEPS: usize = 50;
const LONG_SWEEPS: usize = 2;
/// How many due runs a look asks for, as a sweeper does.
const LOOK_RUNS: usize = 500;
/// How much slower than in a small store the empty sweep may seem, since it is a fraction of a millisecond.
const NOISE: f64 = 1.25;

/// The windows of the baselines' sweep, in seconds, while nobody is to lapse and while many are.
const DAY: f64 = 86_400.0;
const HALF_AN_HOUR: f64 = 1_800.0;
/// By how much runs of the baselines are silenced, in seconds.
const HOUR: f64 = 3_600.0;

/// The silence after which runs of Lastbeat lapse that are to. They were heard of before the empty sweeps.
const WINDOW: Span = Span::from_seconds(4);
/// How many runs are armed anew at a time after a change of policy.
const REARM_RUNS: u32 = 500;

/// The stores and tables that are swept.
pub(crate) struct Contestants<'a> {
    pub(crate) lastbeat: &'a Lastbeat,
    /// The same with few runs.
    pub(crate) few: &'a Lastbeat,
    pub(crate) mutable: &'a Database,
    /// The same with the best pair of partial indexes for the sweep.
    pub(crate) indexed: &'a Database,
}

/// Measures both kinds of sweep. Every run is heard of once before, so the rows are not as the vacuum left them.
pub(crate) async fn measure(
    ground: &Ground,
    contestants: &Contestants<'_>,
    fleet: &Arc<Vec<Member>>,
    size: &Size,
) -> Result<Vec<Row>> {
    let Contestants { lastbeat, few, mutable, indexed } = contestants;
    for database in [&lastbeat.database, &few.database, mutable, indexed] {
        database.vacuum().await?;
    }
    lastbeat.hear_all(size.runs).await?;
    few.hear_all(size.few_runs).await?;
    mutable::hear_all(mutable, fleet).await?;
    mutable::hear_all(indexed, fleet).await?;
    let heard_at = Instant::now();
    ground.settle(size.wal).await?;
    let mut rows = empty(ground, contestants, size).await?;
    tokio::time::sleep(WINDOW.to_std().saturating_sub(heard_at.elapsed())).await;
    rows.push(mass(contestants, fleet, size).await?);
    Ok(rows)
}

/// Empty sweeps, round by round, in milliseconds: of the server's time where nothing else is said.
#[derive(Debug, Default)]
struct Empty {
    pass: Vec<f64>,
    pass_of_few: Vec<f64>,
    mutable: Vec<f64>,
    indexed: Vec<f64>,
    /// Until the client has the answer.
    wall: Vec<f64>,
    wall_of_few: Vec<f64>,
    look: Vec<f64>,
    look_of_few: Vec<f64>,
    /// How many statements a pass is; none where the server cannot tell its time, and the client's stands for it.
    statements: Option<f64>,
}

async fn empty(ground: &Ground, contestants: &Contestants<'_>, size: &Size) -> Result<Vec<Row>> {
    let (mut sweeper, mut sweeper_of_few) = (sweeper(contestants.lastbeat)?, sweeper(contestants.few)?);
    let mut rounds = Empty::default();
    ground.time_statements(true);
    for _ in 0..size.rounds {
        empty_round(ground, contestants, [&mut sweeper, &mut sweeper_of_few], &mut rounds).await?;
    }
    ground.time_statements(false);
    Ok(rows_of(&rounds, size))
}

async fn empty_round(
    ground: &Ground,
    contestants: &Contestants<'_>,
    [sweeper, sweeper_of_few]: [&mut Sweeper; 2],
    rounds: &mut Empty,
) -> Result<()> {
    let Contestants { lastbeat, few, mutable, indexed } = contestants;
    // With these the beacons have been written that are due, and will not be for a while.
    empty_pass(lastbeat, sweeper).await?;
    empty_pass(few, sweeper_of_few).await?;
    ground.forget_times().await?;
    let (mut wall, mut wall_of_few) = (Vec::new(), Vec::new());
    for _ in 0..SHORT_SWEEPS {
        // Turn by turn, since a fraction of a millisecond is easily disturbed.
        wall.push(empty_pass(lastbeat, sweeper).await?);
        wall_of_few.push(empty_pass(few, sweeper_of_few).await?);
    }
    let [wall, wall_of_few] = [wall, wall_of_few].map(|times| percentile(&times, 0.5));
    let statements = ground.statements(&lastbeat.database).await?;
    rounds.statements = statements.map(|statements| statements.count / SHORT_SWEEPS as f64);
    rounds.pass.push(each(statements, SHORT_SWEEPS).unwrap_or(wall));
    let statements = ground.statements(&few.database).await?;
    rounds.pass_of_few.push(each(statements, SHORT_SWEEPS).unwrap_or(wall_of_few));
    rounds.wall.push(wall);
    rounds.wall_of_few.push(wall_of_few);
    let (mut look, mut look_of_few) = (Vec::new(), Vec::new());
    for _ in 0..SHORT_SWEEPS {
        look.push(empty_look(lastbeat).await?);
        look_of_few.push(empty_look(few).await?);
    }
    rounds.look.push(percentile(&look, 0.5));
    rounds.look_of_few.push(percentile(&look_of_few, 0.5));
    ground.forget_times().await?;
    let wall = median_sweep(mutable, LONG_SWEEPS).await?;
    rounds.mutable.push(each(ground.statements(mutable).await?, LONG_SWEEPS).unwrap_or(wall));
    let wall = median_sweep(indexed, SHORT_SWEEPS).await?;
    rounds.indexed.push(each(ground.statements(indexed).await?, SHORT_SWEEPS).unwrap_or(wall));
    Ok(())
}

/// Returns the server's milliseconds for each of so many sweeps, if it can tell.
fn each(statements: Option<Statements>, sweeps: usize) -> Option<f64> {
    statements.map(|statements| statements.milliseconds / sweeps as f64)
}

fn rows_of(rounds: &Empty, size: &Size) -> Vec<Row> {
    let few = format!("{} runs in flight beside {}", size.runs, size.few_runs);
    let time = match rounds.statements {
        Some(statements) => format!("time of the server, over {statements:.1} statements a pass"),
        None => "time until the client had the answers, because the server cannot tell its own".to_owned(),
    };
    let pass = &rounds.pass;
    vec![
        Row::new("empty sweep, vs M", "ms", pass)
            .beside("M", pass, &rounds.mutable)
            .judged_by_value()
            .goal(Bound::AtMost(1.0))
            .required(Bound::AtMost(1.0))
            .note(time),
        Row::new("empty sweep, vs M with indexes", "ms", pass)
            .beside("M, indexed", pass, &rounds.indexed)
            .note("a pair of partial indexes, which cost M its HOT updates"),
        Row::new("empty sweep, vs few runs", "ms", pass)
            .beside("few runs", pass, &rounds.pass_of_few)
            .goal(Bound::AtMost(NOISE))
            .required(Bound::AtMost(NOISE))
            .note(format!("{few}; a quarter is allowed for noise")),
        Row::new("empty sweep, until it is done, vs few runs", "ms", &rounds.wall)
            .beside("few runs", &rounds.wall, &rounds.wall_of_few)
            .note("on the sweeper's clock, with the ways to the server and back"),
        Row::new("one look for due runs, vs few runs", "ms", &rounds.look)
            .beside("few runs", &rounds.look, &rounds.look_of_few)
            .note("on the sweeper's clock"),
    ]
}

/// Sweeps when nobody has lapsed, and returns how many milliseconds it took.
async fn empty_pass(lastbeat: &Lastbeat, sweeper: &mut Sweeper) -> Result<f64> {
    let started = Instant::now();
    let report = sweeper.pass(&*lastbeat.store).await?;
    ensure!(report.examined == 0, "a sweep that should find nothing found {} runs", report.examined);
    Ok(milliseconds(started))
}

/// Asks for due runs when there are none, and returns how many milliseconds it took.
async fn empty_look(lastbeat: &Lastbeat) -> Result<f64> {
    let now = lastbeat.store.now().await?;
    let started = Instant::now();
    let due = lastbeat.store.due(now, LOOK_RUNS).await?;
    ensure!(due.is_empty(), "{} runs are due where none should be", due.len());
    Ok(milliseconds(started))
}

async fn median_sweep(database: &Database, sweeps: usize) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..sweeps {
        let (swept, took) = mutable::sweep(database, DAY, DAY).await?;
        ensure!(swept == 0, "a sweep of a baseline that should find nothing found {swept} runs");
        times.push(took);
    }
    Ok(percentile(&times, 0.5))
}

async fn mass(contestants: &Contestants<'_>, fleet: &Arc<Vec<Member>>, size: &Size) -> Result<Row> {
    let Contestants { lastbeat, mutable, indexed, .. } = contestants;
    let mut sweeper = sweeper(lastbeat)?;
    let (mut ours, mut plain, mut with_indexes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds {
        let lapsing = &fleet[size.lapsing_in(round)];
        ours.push(mass_reap(lastbeat, &mut sweeper, round, lapsing.len()).await?);
        plain.push(mass_update(mutable, lapsing).await?);
        with_indexes.push(mass_update(indexed, lapsing).await?);
    }
    let row = Row::new(format!("reap of {} that lapsed of {}", size.lapsing, size.runs), "ms", &ours);
    let [plain_median, indexed_median] = [&plain, &with_indexes].map(|times| percentile(times, 0.5));
    // Beside whichever form of the baseline is the faster one.
    let row = if plain_median < indexed_median {
        row.beside("M", &ours, &plain).note(format!("M with partial indexes: {indexed_median:.0} ms"))
    } else {
        row.beside("M, indexed", &ours, &with_indexes).note(format!("M without indexes: {plain_median:.0} ms"))
    };
    Ok(row.goal(Bound::AtMost(4.0)))
}

/// Lets the runs of a lane lapse and measures the pass that reaps them, in milliseconds.
async fn mass_reap(lastbeat: &Lastbeat, sweeper: &mut Sweeper, round: usize, lapsing: usize) -> Result<f64> {
    let lane = lane(Some(round))?;
    let terms = Box::new(terms(WINDOW));
    let command = Command::SetPolicy { lane: lane.clone(), terms, expected_version: None, by: None };
    lastbeat.tell(vec![command]).await?;
    // What is measured is the reaping, not that the policy of a lane was changed.
    rearm(lastbeat, &lane).await?;
    let started = Instant::now();
    let report = sweeper.pass(&*lastbeat.store).await?;
    let took = milliseconds(started);
    ensure!(report.reaped.len() == lapsing, "{} of {lapsing} lapsed runs were reaped", report.reaped.len());
    Ok(took)
}

async fn rearm(lastbeat: &Lastbeat, lane: &Name) -> Result<()> {
    loop {
        let command = Command::RearmLane { lane: lane.clone(), limit: REARM_RUNS };
        let answers = lastbeat.tell(vec![command]).await?;
        if answers.iter().map(|answer| answer.rearmed).sum::<u64>() < u64::from(REARM_RUNS) {
            return Ok(());
        }
    }
}

/// Lets the same runs lapse for a baseline and measures its sweep, in milliseconds.
async fn mass_update(database: &Database, lapsing: &[Member]) -> Result<f64> {
    mutable::silence(database, lapsing, HOUR).await?;
    let (swept, took) = mutable::sweep(database, HALF_AN_HOUR, DAY).await?;
    ensure!(swept == lapsing.len() as u64, "a baseline timed out {swept} of {} runs", lapsing.len());
    Ok(took)
}

/// Makes a sweeper that promises to be back much later, so that the time between two sweeps is not taken for a gap.
fn sweeper(lastbeat: &Lastbeat) -> Result<Sweeper> {
    let hour = Span::from_seconds(3_600);
    Ok(Sweeper::once(Name::new("bench-sweeper")?, lastbeat.store.clock(), Some(hour)))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
