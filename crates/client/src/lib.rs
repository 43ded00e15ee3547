//! What executors embed: claim runs, say that they are alive, and report how they ended.
//!
//! ```no_run
//! use lastbeat_client::{Api, Heart, Lease, Options};
//! use lastbeat_wire::ClaimRequest;
//!
//! # async fn work() {}
//! # async fn example() -> Result<(), lastbeat_client::ClientError> {
//! let api = Api::new(Options::new("http://10.0.0.1:7171,http://10.0.0.2:7171")?.token("lb_…"))?;
//! let request = ClaimRequest {
//!     executor: "mac-7".parse().expect("a name"),
//!     lanes: vec!["watcher".parse().expect("a name")],
//!     device: None,
//!     wait_seconds: Some(30.0),
//!     run: None,
//! };
//! if let Some(answer) = api.claim(&request).await? {
//!     let lease = Lease::of(&answer).expect("a claim gives a lease");
//!     let heart = Heart::start(&api, lease.clone())?;
//!     tokio::select! {
//!         () = work() => {
//!             api.complete(&lease, None).await?;
//!         }
//!         stop = heart.stopped() => eprintln!("stopped working: {stop}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | module | concept |
//! | --- | --- |
//! | [`options`] | where the servers are, and how patient to be |
//! | [`api`] | a call for each route |
//! | [`lease`] | the attempt that is worked on: what every report quotes |
//! | [`heart`] | beats in the background, on a thread of its own |
//! | [`error`] | what can go wrong |
//!
//! # Losing answers
//!
//! A request whose answer was lost may have been carried out. So only what may be said twice is said again: questions;
//! reports, since the same report of the same attempt has the same answer; and creations and claims, which carry an
//! idempotency key made for each of them. An act by hand that says nothing new the second time (a requeue, a reap) is
//! not repeated: the caller is told that its outcome is not known.

pub mod api;
mod backoff;
pub mod error;
pub mod heart;
pub mod lease;
pub mod options;
mod send;
mod servers;

pub use api::{Api, RunsQuery};
pub use error::ClientError;
pub use heart::{Heart, Stop};
pub use lease::Lease;
pub use options::Options;
