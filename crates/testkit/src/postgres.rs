//! A PostgreSQL server for tests and benchmarks, and databases on it.
//!
//! A test that needs a database asks for one of its own: [`fresh_database`]. A test that breaks the server starts one
//! of its own: [`Cluster`]. Neither leaves anything behind, however the process ends: see [`Cluster`].

mod account;
mod cluster;
mod database;
mod installed;
mod older;
mod session;
mod watcher;

pub use cluster::{Cluster, ClusterOptions};
pub use database::{Database, fresh_database};
pub use older::fourth_schema;
