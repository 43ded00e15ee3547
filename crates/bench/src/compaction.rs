//! What heartbeats weigh at rest, before and after a compaction, on both kinds of store; and how fast that goes.
//!
//! Time is simulated: 240 heartbeats of a run are two hours of its life. Only the compaction itself is timed.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lastbeat_domain::decide::{Claimant, RunSpec};
use lastbeat_domain::{ClaimId, Command, Name, Span};
use lastbeat_store::compact::{Bounds, compact_all};
use lastbeat_store::postgres::PostgresStore;
use lastbeat_store::sqlite::SqliteStore;
use lastbeat_store::{Clock, Store};
use lastbeat_testkit::SimulatedClock;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use crate::fleet::{Member, members};
use crate::ground::{Database, Ground};
use crate::lastbeat::{heartbeat, lane, tell};
use crate::row::{Bound, Row};
use crate::size::Size;

/// The tables that hold plain heartbeats.
const HEARTBEATS: [&str; 2] = ["beats", "segments"];
/// Heartbeats of a run.
const BEATS: usize = 240;
/// Heartbeats of a commit, as a store carries them with so many in flight.
const COMMIT: usize = 256;
const INTERVAL: Span = Span::from_seconds(30);
/// How far a heartbeat may come from its time, either way.
const JITTER_MICROS: u64 = 100_000;
const START: &str = "2026-05-04T06:00:00Z";

/// The bytes of a heartbeat.
struct Weights {
    before: f64,
    /// With the space that the database keeps for what is to come.
    after: f64,
    packed: f64,
    rate: f64,
}

/// Measures both kinds of store.
pub(crate) async fn measure(ground: &Ground, size: &Size) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let weights = postgres(&ground.database()?, size.compacted).await?;
    rows.extend(rows_of("PostgreSQL", &weights, "plain VACUUM", size.compacted));
    let weights = sqlite(size.compacted).await?;
    rows.extend(rows_of("SQLite", &weights, "the pages in use", size.compacted));
    Ok(rows)
}

fn rows_of(backend: &str, weights: &Weights, loose: &str, runs: usize) -> [Row; 3] {
    let note = format!(
        "tables {} with their indexes; {runs} runs of {BEATS} heartbeats each {INTERVAL}, {} ms early or late at the \
         most, in commits of {COMMIT}",
        HEARTBEATS.join(" and "),
        JITTER_MICROS / 1_000
    );
    let packed = format!("after VACUUM has packed what is left; before that ({loose}) {:.2} B", weights.after);
    [
        Row::new(format!("bytes at rest a heartbeat, {backend}"), "B", &[weights.before])
            .goal(Bound::AtMost(12.0))
            .note(note),
        Row::new(format!("the same, compacted, {backend}"), "B", &[weights.packed])
            .goal(Bound::AtMost(4.0))
            .note(packed),
        Row::new(format!("compaction, {backend}"), "heartbeats/s", &[weights.rate]),
    ]
}

async fn postgres(database: &Database, runs: usize) -> Result<Weights> {
    lastbeat_store::postgres::migrate(&database.url).await?;
    let clock = SimulatedClock::at(START.parse()?);
    let store = PostgresStore::open(&database.url, Some(Arc::<SimulatedClock>::clone(&clock))).await?;
    let heartbeats = live(&store, &clock, runs).await?;
    database.vacuum().await?;
    let before = database.bytes(&HEARTBEATS).await?;
    let rate = compact(&store, heartbeats).await?;
    database.vacuum().await?;
    let after = database.bytes(&HEARTBEATS).await?;
    sqlx::raw_sql("VACUUM FULL beats, segments").execute(&database.pool).await?;
    let packed = database.bytes(&HEARTBEATS).await?;
    store.close().await;
    let each = heartbeats as f64;
    Ok(Weights { before: before / each, after: after / each, packed: packed / each, rate })
}

async fn sqlite(runs: usize) -> Result<Weights> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("lastbeat.db");
    let clock = SimulatedClock::at(START.parse()?);
    let url = format!("sqlite://{}", path.display());
    let store = SqliteStore::open(&url, true, Arc::<SimulatedClock>::clone(&clock) as Arc<dyn Clock>).await?;
    let heartbeats = live(&store, &clock, runs).await?;
    let mut shell = SqliteConnectOptions::new().filename(&path).connect().await?;
    let before = pages(&mut shell).await?;
    let rate = compact(&store, heartbeats).await?;
    let after = pages(&mut shell).await?;
    store.close().await;
    sqlx::raw_sql("VACUUM").execute(&mut shell).await?;
    let packed = pages(&mut shell).await?;
    shell.close().await?;
    let each = heartbeats as f64;
    Ok(Weights { before: before / each, after: after / each, packed: packed / each, rate })
}

/// The bytes of the pages that hold heartbeats.
async fn pages(shell: &mut SqliteConnection) -> Result<f64> {
    let query = "SELECT CAST(sum(pgsize) AS REAL) FROM dbstat WHERE name IN (\
                 SELECT name FROM sqlite_schema WHERE tbl_name IN ('beats', 'segments'))";
    Ok(sqlx::query_scalar(query).fetch_one(shell).await?)
}

/// Lets runs live from their claim to their end. Returns how many plain heartbeats they sent.
async fn live(store: &dyn Store, clock: &SimulatedClock, runs: usize) -> Result<u64> {
    let fleet = members(runs);
    let lane = lane(None)?;
    for fleet in fleet.chunks(COMMIT) {
        tell(store, fleet.iter().map(|member| create(*member, &lane)).collect()).await?;
        tell(store, fleet.iter().map(|member| heartbeat(*member)).collect()).await?;
    }
    let (mut random, start) = (1_u64, clock.now());
    for round in 1..=BEATS as u64 {
        // They come as they are due, each in its own place of the interval, and not quite on time.
        let due = |place: usize| INTERVAL.as_micros() * place as u64 / runs as u64;
        let mut arrivals: Vec<(u64, Member)> = Vec::with_capacity(runs);
        for (place, member) in fleet.iter().enumerate() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            arrivals.push((due(place) + (random >> 33) % (2 * JITTER_MICROS), *member));
        }
        arrivals.sort_unstable_by_key(|(at, _)| *at);
        for commit in arrivals.chunks(COMMIT) {
            let at = commit.last().map_or(0, |(at, _)| *at);
            clock.set(start.plus(INTERVAL.times(round)).plus(Span::from_micros(at)));
            tell(store, commit.iter().map(|(_, member)| heartbeat(*member)).collect()).await?;
        }
    }
    for fleet in fleet.chunks(COMMIT) {
        let done = |member: &Member| Command::Complete { report: member.report(), output: None };
        tell(store, fleet.iter().map(done).collect()).await?;
    }
    Ok((runs * BEATS) as u64)
}

fn create(member: Member, lane: &Name) -> Command {
    let executor = lane.clone();
    let claimant = Claimant { executor, device: None, claim: ClaimId::from_uuid(member.claim) };
    Command::Create { run: member.run(), spec: Box::new(RunSpec::of_lane(lane.clone())), claim: Some(claimant) }
}

/// Compacts everything but the last row, which stays. Returns how many heartbeats a second that was.
async fn compact(store: &dyn Store, heartbeats: u64) -> Result<f64> {
    let started = Instant::now();
    let bounds = Bounds::ALL;
    let report = compact_all(store, bounds, |_| true).await.context("the compaction failed")?;
    let took = started.elapsed().as_secs_f64();
    ensure!(report.left == 1 && report.beats + COMMIT as u64 >= heartbeats, "it left too much: {report:?}");
    ensure!(store.verify(&|_, _| {}).await?.damage.is_empty(), "the compaction did damage");
    Ok(report.beats as f64 / took)
}
