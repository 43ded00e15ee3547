//! Executors that hold runs.

use lastbeat_domain::{Name, Timestamp};
use serde::{Deserialize, Serialize};

/// An executor that holds runs at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecutorDocument {
    /// The executor.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub executor: Name,
    /// How many runs it holds.
    pub runs: u64,
    /// The log time at which it was last heard of in any of them, claims included.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub last_heartbeat_at: Option<Timestamp>,
}

/// A page of executors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecutorsPage {
    /// The executors.
    pub executors: Vec<ExecutorDocument>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}
