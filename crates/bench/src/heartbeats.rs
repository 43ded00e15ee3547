//! Heartbeats: how many a second, what each costs, and what is kept of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::crowd::{Crowd, Hears};
use crate::fleet::Member;
use crate::ground::{Database, Ground, Updates};
use crate::lastbeat::{LOG, Lastbeat};
use crate::mutable::{Mutable, Writing};
use crate::row::{Bound, Row};
use crate::say;
use crate::size::Size;

/// Connections of M1.
const ONE_EACH_WRITERS: usize = 16;
/// Writer tasks of M2.
const GROUP_WRITERS: usize = 2;
/// After how many heartbeats of a run something new happens at the latest: Lastbeat's tail of them is full.
const LAPS: usize = 32;
/// How long the server may take to count its updates.
const COUNTING: Duration = Duration::from_secs(15);

/// What a contestant did in one turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Heartbeats a second.
    rate: f64,
    /// Bytes of WAL for each heartbeat.
    wal: f64,
    /// Heartbeats in each commit.
    group: f64,
}

/// The turns of each contestant, round by round.
#[derive(Debug, Default)]
struct Rounds {
    lastbeat: Vec<Turn>,
    one_each: Vec<Turn>,
    grouped: Vec<Turn>,
}

/// Measures heartbeats in the store of a fleet, beside M1 and M2 on the table of the same fleet.
pub(crate) async fn measure(
    ground: &Ground,
    lastbeat: &Arc<Lastbeat>,
    mutable: &Database,
    fleet: &Arc<Vec<Member>>,
    size: &Size,
) -> Result<Vec<Row>> {
    let one_each = Arc::new(Mutable::start(mutable, fleet, Writing::OneEach, ONE_EACH_WRITERS).await?);
    let grouped = Arc::new(Mutable::start(mutable, fleet, Writing::Grouped, GROUP_WRITERS).await?);
    let bytes_before = lastbeat.database.bytes(&LOG).await?;
    let (ours_before, theirs_before) = (lastbeat.database.updates().await?, mutable.updates().await?);
    let (mut rows, mut heartbeats) = (Vec::new(), 0);
    for in_flight in size.in_flight {
        let crowd = Crowd { runs: size.beating, in_flight };
        ground.settle(size.wal).await?;
        heartbeats += crowd.warm_up(lastbeat, LAPS).await?;
        crowd.warm_up(&one_each, 1).await?;
        crowd.warm_up(&grouped, LAPS).await?;
        say(&format!("heartbeats, {in_flight} in flight"));
        let mut rounds = Rounds::default();
        for _ in 0..size.rounds {
            let (turn, heard) = take_turn(ground, crowd, lastbeat, size).await?;
            heartbeats += heard;
            rounds.lastbeat.push(turn);
            rounds.one_each.push(take_turn(ground, crowd, &one_each, size).await?.0);
            rounds.grouped.push(take_turn(ground, crowd, &grouped, size).await?.0);
        }
        rows.extend(rows_of(in_flight, &rounds, size));
    }
    let ours = counted(&lastbeat.database, ours_before, heartbeats).await?;
    rows.push(hot_row(ours, counted(mutable, theirs_before, 0).await?));
    let bytes = lastbeat.database.bytes(&LOG).await? - bytes_before;
    rows.push(rest_row(bytes / heartbeats as f64, bytes_of_a_row_each(ground, size).await?, heartbeats));
    Ok(rows)
}

async fn take_turn<H: Hears>(ground: &Ground, crowd: Crowd, hears: &Arc<H>, size: &Size) -> Result<(Turn, u64)> {
    let (wal, transactions) = (ground.wal_written().await?, ground.transactions().await?);
    let heard = crowd.beat_for(hears, size.turn).await?;
    let wal = (ground.wal_written().await? - wal) / heard.heartbeats as f64;
    let group = heard.heartbeats as f64 / (ground.transactions().await? - transactions);
    Ok((Turn { rate: heard.rate(), wal, group }, heard.heartbeats))
}

fn rows_of(in_flight: usize, rounds: &Rounds, size: &Size) -> [Row; 3] {
    let rates = |turns: &[Turn]| turns.iter().map(|turn| turn.rate).collect::<Vec<f64>>();
    let wal = |turns: &[Turn]| turns.iter().map(|turn| turn.wal).collect::<Vec<f64>>();
    let ours = rates(&rounds.lastbeat);
    let row = |other| Row::new(format!("heartbeats, {in_flight} in flight, vs {other}"), "/s", &ours);
    let (our_wal, their_wal) = (wal(&rounds.lastbeat), wal(&rounds.grouped));
    let group = |turns: &[Turn]| turns.iter().map(|turn| turn.group).sum::<f64>() / turns.len() as f64;
    let groups = format!(
        "{:.0} heartbeats in a commit on average; of M2 {:.0}",
        group(&rounds.lastbeat),
        group(&rounds.grouped)
    );
    [
        row("M1")
            .beside("M1", &ours, &rates(&rounds.one_each))
            .goal(Bound::AtLeast(8.0))
            .required(Bound::AtLeast(4.0))
            .note(format!("{} of {} runs beat; {} turns of {:?}", size.beating, size.runs, size.rounds, size.turn)),
        row("M2")
            .beside("M2", &ours, &rates(&rounds.grouped))
            .goal(Bound::AtLeast(0.7))
            .required(Bound::AtLeast(0.5))
            .note(groups),
        Row::new(format!("WAL a heartbeat, {in_flight} in flight"), "B", &our_wal)
            .beside("M2", &our_wal, &their_wal)
            .goal(Bound::AtMost(1.6)),
    ]
}

fn hot_row(ours: Updates, theirs: Updates) -> Row {
    let share = |updates: Updates| vec![100.0 * updates.hot as f64 / updates.all as f64];
    Row::new("HOT share of the projection's updates", "%", &share(ours))
        .beside("M1 and M2", &share(ours), &share(theirs))
        .judged_by_value()
        .goal(Bound::AtLeast(99.0))
        .required(Bound::AtLeast(99.0))
        .note(format!("of {} updates", ours.all))
}

fn rest_row(ours: f64, theirs: f64, heartbeats: u64) -> Row {
    Row::new("bytes at rest a heartbeat", "B", &[ours])
        .beside("a row each", &[ours], &[theirs])
        .judged_by_value()
        .goal(Bound::AtMost(12.0))
        .note(format!(
            "growth of {} with their indexes over {heartbeats} heartbeats; intervals are as short as the benchmark \
             makes them",
            LOG.join(", ")
        ))
}

/// Returns the updates since `before`, once the server has counted at least so many. Its processes tell of what they
/// did only now and then.
async fn counted(database: &Database, before: Updates, at_least: u64) -> Result<Updates> {
    let started = Instant::now();
    loop {
        let now = database.updates().await?;
        let since = Updates { all: now.all - before.all, hot: now.hot - before.hot };
        if since.all as u64 >= at_least || started.elapsed() > COUNTING {
            return Ok(since);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The form that keeps a history with a row for each heartbeat, as small as it can be: runs have a number, and the only
/// indexes are those that keep versions unique and find the position.
const ROW_EACH: &str = "
CREATE TABLE heartbeats (
    position    bigint      PRIMARY KEY,
    run         bigint      NOT NULL,
    version     bigint      NOT NULL,
    recorded_at timestamptz NOT NULL,
    attempt     integer     NOT NULL,
    UNIQUE (run, version)
)";

const ROWS_EACH: &str = "
INSERT INTO heartbeats (position, run, version, recorded_at, attempt)
SELECT position, position % $3, 4 + position / $3, clock_timestamp(), 1 FROM generate_series($1, $2 - 1) AS position";

/// How many rows of that form are inserted at a time.
const ROWS_AT_A_TIME: i64 = 1_000;

async fn bytes_of_a_row_each(ground: &Ground, size: &Size) -> Result<f64> {
    let database = ground.database()?;
    sqlx::raw_sql(ROW_EACH).execute(&database.pool).await?;
    let (rows, runs) = (size.rows as i64, size.beating as i64);
    for first in (0..rows).step_by(ROWS_AT_A_TIME as usize) {
        let last = (first + ROWS_AT_A_TIME).min(rows);
        sqlx::query(ROWS_EACH).bind(first).bind(last).bind(runs).execute(&database.pool).await?;
    }
    Ok(database.bytes(&["heartbeats"]).await? / rows as f64)
}
