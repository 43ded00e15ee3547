//! The documents and requests of the HTTP API, which are also the JSON of the command line.
//!
//! Both sides use these types: the server writes what the client reads, and the command line prints the same document
//! whether it asked a store or a server. So a field is named in one place.
//!
//! A **document** is an answer. It is read with tolerance: a field that this program does not know is passed over, since
//! a newer server may say more. A **request** is read strictly: a field that is not known is refused, since whoever
//! sent it would believe that it was heeded. In a document a field without meaning is null; a request may leave it out.
//!
//! | module | what |
//! | --- | --- |
//! | [`run`] | a run, and lists of runs |
//! | [`create`], [`claim`], [`report`] | what makes a run and takes it through its steps |
//! | [`heartbeat`] | heartbeats, one or many |
//! | [`why`] | the verdict and its evidence |
//! | [`events`] | facts |
//! | [`replay`], [`backtest`] | what the rule said at each instant, and what it would have said |
//! | [`case`](mod@case) | a recorded situation as a regression test |
//! | [`goal`], [`lane`], [`hold`], [`executor`], [`token`] | what there is beside runs |
//! | [`object`] | a request is an object, and no list of its fields |
//! | [`problem`] | what went wrong |
//!
//! With the feature `store`, [`answers`] makes them from a store; with `openapi`, all have a schema.

#[cfg(feature = "store")]
pub mod answers;
pub mod backtest;
pub mod case;
pub mod claim;
pub mod create;
pub mod events;
pub mod executor;
pub mod goal;
pub mod heartbeat;
pub mod hold;
pub mod lane;
pub mod object;
pub mod problem;
pub mod replay;
pub mod report;
pub mod run;
#[cfg(feature = "openapi")]
pub mod schema;
pub mod token;
mod whole;
pub mod why;

pub use backtest::{
    AlternativeDocument, BacktestDocument, BacktestRequest, RecommendationDocument, ShiftDocument, ShortestDocument,
    WrongReapDocument,
};
pub use case::{CaseDocument, ExpectDocument};
pub use claim::ClaimRequest;
pub use create::{ClaimBy, CreateRequest};
pub use events::{EventDocument, EventsPage};
pub use executor::{ExecutorDocument, ExecutorsPage};
pub use goal::{GoalDocument, GoalRun, GoalStatus, GoalSummary, GoalsPage};
pub use heartbeat::{
    Beat, BeatError, BeatResult, BeatsDocument, BeatsRequest, Directive, HeartbeatDocument, HeartbeatRequest,
};
pub use hold::{HoldDocument, HoldKind, HoldsPage, ReleaseDocument};
pub use lane::{FalseReapRateDocument, FalseReapsDocument, LaneDocument, LanesPage, PolicyDocument};
pub use problem::Problem;
pub use replay::{ReplayDocument, StretchDocument};
pub use report::{CompleteRequest, FailRequest, ReasonRequest, ReportRequest};
pub use run::{AnswerDocument, RunDocument, RunsPage, Seen};
pub use token::{IssuedTokenDocument, TokenDocument, TokenRequest, TokensPage};
pub use why::{BasisDocument, Past, WhyDocument};
