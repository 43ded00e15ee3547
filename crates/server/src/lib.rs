//! The HTTP API of Lastbeat: any executor in any language, and nobody else; and the dashboard, for people.
//!
//! [`serve`] takes a store and answers for it: runs, claims, heartbeats, verdicts. Nothing is decided here. Writes go
//! through [`Store::execute`](lastbeat_store::Store::execute), answers about runs through
//! [`ask`](lastbeat_store::ask), so over HTTP a run is judged as it is on the command line. Every replica is like every
//! other and may die at any moment; what it knows of its own is a cache.
//!
//! **Invariant:** no handler compares a time with a window.
//!
//! **Invariant:** a heartbeat reads nothing: it is one call of `execute`, and no other request's limit holds it up.

mod act;
mod answer;
mod app;
mod backtest;
mod beacons;
mod body;
mod caller;
mod claims;
mod compaction;
pub mod config;
mod connections;
mod cursor;
mod dashboard;
mod events;
mod executors;
mod gate;
mod goals;
mod health;
mod heartbeats;
pub mod hook;
mod lanes;
mod limits;
pub mod metrics;
mod openapi;
mod owners;
mod problem;
mod rate;
mod reports;
mod request_id;
mod router;
mod runs;
mod serve;
mod shutdown;
mod tokens;
mod work;

pub use compaction::Compaction;
pub use limits::Limits;
pub use openapi::openapi_json;
pub use problem::Problem;
pub use serve::{Options, ServeError, Server, serve};
