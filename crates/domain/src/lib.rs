//! The pure core of Lastbeat: facts, the state that they fold to, and the one rule that decides who is alive.
//!
//! Everything here is a function of its arguments. Nothing reads a clock, draws a random number, does I/O or knows
//! a database: time comes in as a [`Timestamp`], stamped by the store's log clock. That is what makes a verdict
//! reproducible a year later from the log alone.
//!
//! | module | concept |
//! | --- | --- |
//! | [`time`] | instants of the log clock and spans, both in whole microseconds |
//! | [`ids`] | run and claim identifiers, and names |
//! | [`event`] | the facts, and their JSON lines |
//! | [`run`] | the fold of one run's stream |
//! | [`policy`] | a lane's windows |
//! | [`listening`] | when anybody could have heard a heartbeat |
//! | [`hold`] | when too much goes silent at once to blame the executors |
//! | [`verdict`] | **the rule** |
//! | [`life`] | an attempt looked back on: how near it came to being reaped, and what was heard of it after a reap |
//! | [`token`] | who may speak to a server |
//! | [`access`](mod@access) | who may do and see what |
//! | [`decide`](mod@decide) | commands to events, or a refusal |
//! | [`explain`](mod@explain) | a verdict as sentences |
//! | [`alternative`], [`backtest`] | what the recorded past would have been under other policies |

pub mod access;
pub mod alternative;
pub mod backtest;
pub mod decide;
pub mod event;
pub mod explain;
pub mod hold;
pub mod ids;
pub mod life;
pub mod listening;
pub mod policy;
pub mod run;
pub mod time;
pub mod token;
#[cfg(test)]
mod told;
pub mod verdict;

pub use access::{Access, Action, Grant, Relation, Role};
pub use alternative::{Alternative, Window};
pub use backtest::Backtest;
pub use decide::{Command, Context, Refusal, RefusalCode, decide};
pub use event::{Event, Line, Recorded, RunEvent, ServiceEvent, ServiceRecorded};
pub use ids::{ClaimId, Name, RunId};
pub use life::Life;
pub use listening::Listening;
pub use policy::{LanePolicy, Terms};
pub use run::{Run, Status};
pub use time::{Span, Timestamp};
pub use token::{Token, TokenDigest, Tokens};
pub use verdict::{Liveness, Rule, Verdict, judge};
