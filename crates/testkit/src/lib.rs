//! What the tests share: a simulated clock, throwaway stores and a throwaway PostgreSQL server.

#![allow(clippy::unwrap_used)]

pub mod postgres;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use lastbeat_domain::decide::{Claimant, Report};
use lastbeat_domain::{ClaimId, Name, RunId, Span, Timestamp};
use lastbeat_store::Clock;
use lastbeat_store::sqlite::SqliteStore;
use uuid::Uuid;

/// Clocks that stand still until they are moved. The one that tells the time can be set, in either direction; the
/// other one only ever advances.
#[derive(Debug)]
pub struct SimulatedClock {
    now: AtomicI64,
    boottime: AtomicU64,
}

impl SimulatedClock {
    /// Makes clocks of which one says `now`.
    pub fn at(now: Timestamp) -> Arc<SimulatedClock> {
        Arc::new(SimulatedClock { now: AtomicI64::new(now.as_micros()), boottime: AtomicU64::new(1_000_000) })
    }

    /// Lets time pass.
    pub fn advance(&self, span: Span) {
        self.set(self.now().plus(span));
        self.boottime.fetch_add(span.as_micros(), Ordering::SeqCst);
    }

    /// Sets the clock, while no time passes.
    pub fn set(&self, now: Timestamp) {
        self.now.store(now.as_micros(), Ordering::SeqCst);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now.load(Ordering::SeqCst))
    }

    fn boottime(&self) -> Span {
        Span::from_micros(self.boottime.load(Ordering::SeqCst))
    }
}

/// A store in a folder of its own, on a simulated clock.
pub struct Place {
    folder: tempfile::TempDir,
    /// The clock from which the store draws log time.
    pub clock: Arc<SimulatedClock>,
}

impl Place {
    /// Makes a folder whose clock says `now`.
    pub fn at(now: &str) -> Place {
        Place { folder: tempfile::tempdir().unwrap(), clock: SimulatedClock::at(now.parse().unwrap()) }
    }

    /// Returns the path of a file in the folder.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the URL of a database in the folder.
    pub fn url(&self, name: &str) -> String {
        format!("sqlite://{}", self.file(name).display())
    }

    /// Opens a database in the folder, made if it is missing.
    pub async fn open(&self, name: &str) -> SqliteStore {
        let clock: Arc<dyn Clock> = Arc::<SimulatedClock>::clone(&self.clock);
        SqliteStore::open(&self.url(name), true, clock).await.unwrap()
    }
}

/// Makes a name.
pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Returns the run id with that number.
pub fn run_id(number: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(number))
}

/// Makes a claimant whose claim id is `claim`.
pub fn claimant(executor: &str, claim: &str) -> Claimant {
    Claimant { executor: name(executor), device: None, claim: claim.parse().unwrap() }
}

/// Makes a report that quotes an attempt and its claim id.
pub fn report(run: RunId, attempt: u32, claim: &str) -> Report {
    let claim: ClaimId = claim.parse().unwrap();
    Report { run, attempt, claim: Some(claim), executor: None }
}
