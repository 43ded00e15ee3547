//! What an executor says of its attempt, and acts by hand.

use lastbeat_domain::ClaimId;
use lastbeat_domain::decide::Report;
use lastbeat_domain::{Name, RunId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The attempt that is spoken of: its start, or that it stopped because it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// The attempt.
    #[serde(deserialize_with = "crate::whole::attempt")]
    pub attempt: u32,
    /// Its claim id; a report that quotes none is held to the attempt alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub claim: Option<ClaimId>,
}

/// The attempt is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CompleteRequest {
    /// The attempt.
    #[serde(deserialize_with = "crate::whole::attempt")]
    pub attempt: u32,
    /// Its claim id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub claim: Option<ClaimId>,
    /// What came out, 64 KiB at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Value>))]
    pub output: Option<Value>,
}

/// The attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FailRequest {
    /// The attempt.
    #[serde(deserialize_with = "crate::whole::attempt")]
    pub attempt: u32,
    /// Its claim id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub claim: Option<ClaimId>,
    /// Why.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Text))]
    pub error: String,
}

/// An act by hand: cancel, requeue, reap, release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReasonRequest {
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Text>))]
    pub reason: Option<String>,
}

impl ReportRequest {
    /// Says it as the domain does. `executor` is who speaks, if known.
    pub fn about(self, run: RunId, executor: Option<Name>) -> Report {
        Report { run, attempt: self.attempt, claim: self.claim, executor }
    }
}

impl From<&Report> for ReportRequest {
    fn from(report: &Report) -> ReportRequest {
        ReportRequest { attempt: report.attempt, claim: report.claim.clone() }
    }
}

impl CompleteRequest {
    /// Says it as the domain does, with the output.
    pub fn about(self, run: RunId, executor: Option<Name>) -> (Report, Option<Value>) {
        (Report { run, attempt: self.attempt, claim: self.claim, executor }, self.output)
    }
}

impl FailRequest {
    /// Says it as the domain does, with the error.
    pub fn about(self, run: RunId, executor: Option<Name>) -> (Report, String) {
        (Report { run, attempt: self.attempt, claim: self.claim, executor }, self.error)
    }
}
