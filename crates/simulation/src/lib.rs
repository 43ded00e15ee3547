//! Seeded schedules of faults, run through the real store and the real sweeper on a virtual clock.
//!
//! A seed makes lanes, executors, sweepers, and what goes wrong: executors crash, stand still and come back, report
//! late, twice or under a claim that is not theirs; sweepers crash and stop; nobody reaches the store for a while; the
//! clock is set. Then the [promises](Promise) are held against every answer and every pass. The same seed gives the
//! same log, to the byte.
//!
//! What is real: the file, its transactions, the projection, the index of what is due, decisions, rule, listening
//! record, sweeper. What is not: time, the network between an executor and the store, and the sleep between two passes.

#![allow(clippy::unwrap_used)]

mod between;
mod ledger;
mod random;
mod schedule;
mod tally;
mod world;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lastbeat_store::Store;
use lastbeat_store::sqlite::SqliteStore;
use lastbeat_testkit::SimulatedClock;

pub use ledger::{Broken, Promise};
pub use tally::Tally;

use world::World;

/// What came of a seed whose promises were kept.
#[derive(Clone, Debug)]
pub struct Played {
    /// What was simulated.
    pub tally: Tally,
    /// The exported log.
    pub lines: Vec<String>,
}

/// A seed with which a promise was not kept.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The promise.
    pub broken: Broken,
    /// The history of the run that it was about, with the facts of the service.
    pub history: Vec<String>,
}

/// Plays the schedule of a seed in a database of its own.
///
/// # Errors
/// If a promise was not kept.
pub async fn play(seed: u64) -> Result<Played, Box<Failure>> {
    let folder = tempfile::tempdir_in(scratch()).unwrap();
    let path = folder.path().join("log.db");
    std::fs::write(&path, empty_database().await).unwrap();
    let mut world = World::new(seed, &path).await.unwrap();
    let outcome = world.play().await;
    let lines = world.exported().await.unwrap_or_default();
    world.close().await;
    let mut tally = std::mem::take(&mut world.tally);
    tally.seeds = 1;
    tally.reaps.clone_from(&world.ledger.reaps);
    (tally.late_completions, tally.late_signals) = (world.ledger.late_completions, world.ledger.late_signals);
    match outcome {
        Ok(()) => Ok(Played { tally, lines }),
        Err(broken) => {
            let history = broken.run.map(|run| world.ledger.history(run)).unwrap_or_default();
            Err(Box::new(Failure { seed, broken, history }))
        }
    }
}

/// Makes what runs the schedules of one thread.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Keeps a thread, and those that it starts, on one core. A store hands each statement to a thread of its own and waits
/// for it, and to wake somebody on another core takes several times as long as the statement.
pub fn stay_on_one_core(thread: usize) {
    #[cfg(target_os = "linux")]
    {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut one = rustix::thread::CpuSet::new();
        one.set(thread % cores);
        // It is only faster that way.
        let _ = rustix::thread::sched_setaffinity(None, &one);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = thread;
}

/// A folder in memory, where there is one: the store syncs each commit, and nobody wants these files back.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// The file of an empty store, which is made once: to migrate one takes as long as to play a schedule for a minute.
async fn empty_database() -> &'static [u8] {
    static EMPTY: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(empty) = EMPTY.get() {
        return empty;
    }
    let folder = tempfile::tempdir_in(scratch()).unwrap();
    let path = folder.path().join("empty.db");
    let clock: Arc<SimulatedClock> = SimulatedClock::at("2026-05-04T00:00:00Z".parse().unwrap());
    let store = SqliteStore::open(&format!("sqlite://{}", path.display()), true, clock).await.unwrap();
    store.close().await;
    let made = std::fs::read(&path).unwrap();
    EMPTY.get_or_init(|| made)
}
