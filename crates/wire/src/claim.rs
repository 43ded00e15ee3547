//! Taking a run.

use lastbeat_domain::{Name, RunId};
use serde::{Deserialize, Serialize};

/// Asks for a run to work on: the one that waits longest in the lanes, or the one that is named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Who takes it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub executor: Name,
    /// The lanes to take from; may be left out where `run` names one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::schema::Name>))]
    pub lanes: Vec<Name>,
    /// The device that the executor presents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub device: Option<Name>,
    /// How long to wait for a run where none waits, 60 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 60))]
    pub wait_seconds: Option<f64>,
    /// This run and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::RunId>))]
    pub run: Option<RunId>,
}
