//! What the tests share: a simulated clock, throwaway stores and a throwaway PostgreSQL server.

#![allow(clippy::unwrap_used)]

pub mod postgres;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lastbeat_domain::decide::{Claimant, Report};
use lastbeat_domain::{ClaimId, Name, RunId, Span, Timestamp};
use lastbeat_store::postgres::PostgresStore;
use lastbeat_store::sqlite::SqliteStore;
use lastbeat_store::{Clock, Store};
use uuid::Uuid;

use crate::postgres::{Database, fresh_database};

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

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// One file.
    Sqlite,
    /// A database on a PostgreSQL server.
    Postgres,
}

/// Stores in a place of their own, on a simulated clock.
pub struct Place {
    backend: Backend,
    folder: tempfile::TempDir,
    databases: Mutex<BTreeMap<String, Database>>,
    /// The clock from which the stores draw log time.
    pub clock: Arc<SimulatedClock>,
}

impl Place {
    /// Makes a place for files; its clock says `now`.
    pub fn at(now: &str) -> Place {
        Place::on(Backend::Sqlite, now)
    }

    /// Makes a place for stores of a kind; its clock says `now`.
    pub fn on(backend: Backend, now: &str) -> Place {
        let (folder, databases) = (tempfile::tempdir().unwrap(), Mutex::default());
        Place { backend, folder, databases, clock: SimulatedClock::at(now.parse().unwrap()) }
    }

    /// Returns what kind of stores these are.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Returns the path of a file in the folder.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the URL of a file in the folder.
    pub fn url(&self, name: &str) -> String {
        format!("sqlite://{}", self.file(name).display())
    }

    /// Opens a file in the folder, made if it is missing.
    pub async fn open(&self, name: &str) -> SqliteStore {
        SqliteStore::open(&self.url(name), true, self.clock()).await.unwrap()
    }

    /// Opens a store of the place's kind, made if it is missing.
    pub async fn store(&self, name: &str) -> Arc<dyn Store> {
        match self.backend {
            Backend::Sqlite => Arc::new(self.open(&format!("{name}.db")).await),
            Backend::Postgres => {
                Arc::new(PostgresStore::open(&self.database(name).await, Some(self.clock())).await.unwrap())
            }
        }
    }

    /// Returns the URL of a PostgreSQL database of the place, made and migrated if it is missing.
    pub async fn database(&self, name: &str) -> String {
        if let Some(database) = self.databases.lock().unwrap().get(name) {
            return database.url.clone();
        }
        let database = fresh_database().await;
        lastbeat_store::postgres::migrate(&database.url).await.unwrap();
        let url = database.url.clone();
        self.databases.lock().unwrap().insert(name.to_owned(), database);
        url
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::<SimulatedClock>::clone(&self.clock)
    }
}

/// Makes tests of functions that take a [`Place`]: each once for each kind of store, by the name of both.
#[macro_export]
macro_rules! on_each_backend {
    ($now:expr; $($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::Place::on($crate::Backend::Sqlite, $now)).await;
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::Place::on($crate::Backend::Postgres, $now)).await;
            })+
        }
    };
}

/// Returns the lines of a store's export.
pub async fn exported(store: &dyn Store) -> Vec<String> {
    let mut lines = Vec::new();
    let mut sink = |line: &str| {
        lines.push(line.to_owned());
        Ok(())
    };
    store.export(&mut sink).await.unwrap();
    lines
}

/// Makes a name.
pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Returns the run id with that number.
pub fn run_id(number: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(number))
}

/// Makes the claim id of a name: a UUID, as the program makes them, and always the same one; or the UUID that the name is.
pub fn claim_id(name: &str) -> ClaimId {
    let hash = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let made = || Uuid::from_u128(name.bytes().fold(0xcbf2_9ce4_8422_2325, hash));
    ClaimId::from_uuid(Uuid::try_parse(name).unwrap_or_else(|_| made()))
}

/// Makes a claimant whose claim id is that of the name `claim`.
pub fn claimant(executor: &str, claim: &str) -> Claimant {
    Claimant { executor: name(executor), device: None, claim: claim_id(claim) }
}

/// Makes a report that quotes an attempt and the claim id of a name.
pub fn report(run: RunId, attempt: u32, claim: &str) -> Report {
    Report { run, attempt, claim: Some(claim_id(claim)), executor: None }
}
