//! Lanes in which nothing is reaped for silence.

use std::fmt;

use lastbeat_domain::{Name, Timestamp};
use serde::{Deserialize, Serialize};

/// How a lane stands whose reaping was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HoldKind {
    /// Nothing is reaped for silence.
    Held,
    /// It was released or the hold ran out: its silent runs are reaped a few at a time.
    Draining,
}

impl fmt::Display for HoldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            HoldKind::Held => "held",
            HoldKind::Draining => "draining",
        })
    }
}

/// A lane that is held, or drained after a hold. All instants are those of the log clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HoldDocument {
    /// The lane.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub lane: Name,
    /// How it stands.
    pub state: HoldKind,
    /// Since when it stands so.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub since: Timestamp,
    /// When the hold ends at the latest; null while the lane is drained.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub ends_by: Option<Timestamp>,
    /// When it was held.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub held_at: Timestamp,
    /// How many of its beating runs were silent when it was held.
    pub silent_when_held: u64,
    /// How many of its runs were beating when it was held.
    pub beating_when_held: u64,
    /// How many of its beating runs are lapsed now.
    pub lapsed: u64,
    /// How many of its beating runs are silent now.
    pub silent: u64,
    /// How many of its runs are beating now.
    pub beating: u64,
    /// How many are reaped a second after the hold.
    pub reap_rate: u32,
}

/// All lanes that are held or drained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HoldsPage {
    /// The lanes.
    pub holds: Vec<HoldDocument>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}

/// The answer to a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReleaseDocument {
    /// The lane.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub lane: Name,
    /// How it stands from now on.
    pub state: HoldKind,
    /// How many of its silent runs are reaped a second.
    pub reap_rate: u32,
}
