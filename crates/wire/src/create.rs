//! Making a run.

use std::collections::BTreeMap;

use lastbeat_domain::decide::RunSpec;
use lastbeat_domain::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A new run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Its kind.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub lane: Name,
    /// The goal that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub goal: Option<Name>,
    /// The only device that may claim it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub device: Option<Name>,
    /// The instant of the log clock before which it may not be claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub not_before: Option<Timestamp>,
    /// At most one run with this key is open at a time: if one is, it is the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub unique_key: Option<Name>,
    /// Free labels, 32 at the most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Labels))]
    pub labels: BTreeMap<Name, String>,
    /// What the executor works on, 64 KiB at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Value>))]
    pub input: Option<Value>,
    /// Who claims it in the same breath.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::object::maybe")]
    pub claim: Option<ClaimBy>,
}

/// Who claims a run that is being made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ClaimBy {
    /// The executor.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub executor: Name,
    /// The device that it presents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub device: Option<Name>,
}

impl CreateRequest {
    /// Makes a run of a lane with nothing else said.
    pub fn of_lane(lane: Name) -> CreateRequest {
        RunSpec::of_lane(lane).into()
    }
}

impl From<RunSpec> for CreateRequest {
    fn from(spec: RunSpec) -> CreateRequest {
        let RunSpec { lane, goal, device, not_before, unique_key, labels, input } = spec;
        CreateRequest { lane, goal, device, not_before, unique_key, labels, input, claim: None }
    }
}

impl From<CreateRequest> for (RunSpec, Option<ClaimBy>) {
    fn from(request: CreateRequest) -> (RunSpec, Option<ClaimBy>) {
        let CreateRequest { lane, goal, device, not_before, unique_key, labels, input, claim } = request;
        (RunSpec { lane, goal, device, not_before, unique_key, labels, input }, claim)
    }
}
