//! Lanes and their policies.

use std::collections::BTreeMap;

use lastbeat_domain::{LanePolicy, Name, Rule, Span, Status, Terms};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

/// A lane: what `lane show` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LaneDocument {
    /// The lane.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub lane: Name,
    /// Which policy of the lane it is; 0 for the default that every lane starts with.
    pub policy_version: u32,
    /// The policy.
    pub policy: PolicyDocument,
    /// How many runs of each status there are.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, u64>))]
    pub runs: BTreeMap<Status, u64>,
    /// How often its reaps were wrong.
    #[serde(default)]
    pub false_reaps: FalseReapsDocument,
}

/// How often reaps of a lane were wrong: of how many the executor was heard afterwards, about the attempt that was
/// reaped. Only reaps of attempts count: a run that nobody had claimed has no executor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FalseReapsDocument {
    /// How many reaps there were, which is what the rate rests on.
    pub reaped: u64,
    /// How many of them were wrong.
    pub wrong: u64,
    /// The share of the wrong ones; null without reaps.
    pub rate: Option<f64>,
    /// The same for each rule and each heartbeat window that was in force at a reap.
    pub by_window: Vec<FalseReapRateDocument>,
}

/// How often the reaps by one rule were wrong while one heartbeat window was in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FalseReapRateDocument {
    /// The rule.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Rule))]
    pub rule: Rule,
    /// The heartbeat window of the policy that was in force.
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub heartbeat_window_seconds: Span,
    /// How many reaps there were.
    pub reaped: u64,
    /// How many of them were wrong.
    pub wrong: u64,
    /// The share of the wrong ones.
    pub rate: Option<f64>,
}

impl LaneDocument {
    /// Shows a lane.
    pub fn of(
        lane: Name,
        policy: LanePolicy,
        runs: BTreeMap<Status, u64>,
        false_reaps: FalseReapsDocument,
    ) -> LaneDocument {
        LaneDocument { lane, policy_version: policy.version, policy: PolicyDocument(policy.terms), runs, false_reaps }
    }
}

/// All lanes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LanesPage {
    /// The lanes.
    pub lanes: Vec<LaneDocument>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}

/// A policy that is told: [`Terms`] with tolerance for terms that a newer server has. One that is to be set is read as
/// [`Terms`], which refuses them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PolicyDocument(pub Terms);

impl<'de> Deserialize<'de> for PolicyDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PolicyDocument, D::Error> {
        let mut told = Map::deserialize(deserializer)?;
        let known = serde_json::to_value(Terms::default()).map_err(de::Error::custom)?;
        told.retain(|term, _| known.get(term).is_some());
        serde_json::from_value(Value::Object(told)).map(PolicyDocument).map_err(de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for PolicyDocument {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        <crate::schema::Policy as utoipa::PartialSchema>::schema()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for PolicyDocument {
    fn name() -> std::borrow::Cow<'static, str> {
        "Policy".into()
    }

    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        <crate::schema::Policy as utoipa::ToSchema>::schemas(schemas);
    }
}
