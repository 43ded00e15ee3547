//! What the tests share: a simulated clock and throwaway stores.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use lastbeat_domain::decide::{Claimant, Report};
use lastbeat_domain::{ClaimId, Name, RunId, Span, Timestamp};
use lastbeat_store::Clock;
use lastbeat_store::sqlite::SqliteStore;
use uuid::Uuid;

/// A clock that stands still until it is moved, in either direction.
#[derive(Debug)]
pub struct SimulatedClock(AtomicI64);

impl SimulatedClock {
    /// Makes a clock that says `now`.
    pub fn at(now: Timestamp) -> Arc<SimulatedClock> {
        Arc::new(SimulatedClock(AtomicI64::new(now.as_micros())))
    }

    /// Moves the clock forward.
    pub fn advance(&self, span: Span) {
        self.set(self.now().plus(span));
    }

    /// Sets the clock.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.as_micros(), Ordering::SeqCst);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
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

    /// Returns the URL of a database in the folder.
    pub fn url(&self, name: &str) -> String {
        format!("sqlite://{}", self.folder.path().join(name).display())
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
