//! Lanes and their policies.

use std::collections::BTreeMap;

use lastbeat_domain::{LanePolicy, Name, Status, Terms};
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
}

impl LaneDocument {
    /// Shows a lane.
    pub fn of(lane: Name, policy: LanePolicy, runs: BTreeMap<Status, u64>) -> LaneDocument {
        LaneDocument { lane, policy_version: policy.version, policy: PolicyDocument(policy.terms), runs }
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
