//! Facts, in the JSON form in which they are imported and exported.

use lastbeat_domain::event::Line;
use lastbeat_domain::{Recorded, RunId, ServiceRecorded, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// A fact of a run or of the service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EventDocument {
    /// A fact of a run.
    Run(Recorded),
    /// A fact of the service.
    Service(ServiceRecorded),
    /// A fact that a newer program wrote, as it stands.
    Unknown(Value),
}

impl EventDocument {
    /// Returns its type.
    pub fn type_name(&self) -> &str {
        match self {
            EventDocument::Run(recorded) => recorded.event.type_name(),
            EventDocument::Service(recorded) => recorded.event.type_name(),
            EventDocument::Unknown(body) => body.get("type").and_then(Value::as_str).unwrap_or("unknown"),
        }
    }

    /// Returns the run that it is about, if it is about one.
    pub fn run(&self) -> Option<RunId> {
        match self {
            EventDocument::Run(recorded) => Some(recorded.run),
            EventDocument::Service(_) => None,
            EventDocument::Unknown(body) => read(body, "run"),
        }
    }

    /// Returns its place in the stream of its run.
    pub fn version(&self) -> Option<u64> {
        match self {
            EventDocument::Run(recorded) => Some(recorded.version),
            EventDocument::Service(_) => None,
            EventDocument::Unknown(body) => read(body, "version"),
        }
    }

    /// Returns the log time of its append.
    pub fn recorded_at(&self) -> Option<Timestamp> {
        match self {
            EventDocument::Run(recorded) => Some(recorded.recorded_at),
            EventDocument::Service(recorded) => Some(recorded.recorded_at),
            EventDocument::Unknown(body) => read(body, "recorded_at"),
        }
    }

    /// Reads a fact. One that this program does not know, in whole or in part, is kept as it stands.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn parse(text: &str) -> Result<EventDocument, serde_json::Error> {
        match Line::parse(text) {
            Ok(Line::Run { run, version: Some(version), recorded_at, event }) => {
                Ok(EventDocument::Run(Recorded { run, version, recorded_at, event }))
            }
            Ok(Line::Service(recorded)) => Ok(EventDocument::Service(recorded)),
            Ok(Line::Run { version: None, .. } | Line::Beacon(_)) | Err(_) => {
                let body: Value = serde_json::from_str(text)?;
                if body.is_object() {
                    Ok(EventDocument::Unknown(body))
                } else {
                    Err(de::Error::custom("a fact is a JSON object"))
                }
            }
        }
    }
}

fn read<T: de::DeserializeOwned>(body: &Value, field: &str) -> Option<T> {
    body.get(field).and_then(|value| T::deserialize(value).ok())
}

impl<'de> Deserialize<'de> for EventDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EventDocument, D::Error> {
        let body = Value::deserialize(deserializer)?;
        EventDocument::parse(&body.to_string()).map_err(de::Error::custom)
    }
}

impl From<Recorded> for EventDocument {
    fn from(recorded: Recorded) -> EventDocument {
        EventDocument::Run(recorded)
    }
}

impl From<ServiceRecorded> for EventDocument {
    fn from(recorded: ServiceRecorded) -> EventDocument {
        EventDocument::Service(recorded)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for EventDocument {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        <crate::schema::Event as utoipa::PartialSchema>::schema()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for EventDocument {
    fn name() -> std::borrow::Cow<'static, str> {
        "Event".into()
    }

    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        <crate::schema::Event as utoipa::ToSchema>::schemas(schemas);
    }
}

/// A page of facts, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventsPage {
    /// The facts.
    pub events: Vec<EventDocument>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}
/// A fact of the feed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FeedEvent {
    /// Its place in the order of commits. Whoever has seen one never misses a smaller one.
    pub position: u64,
    /// The fact.
    #[serde(flatten)]
    pub event: EventDocument,
}

/// A page of the feed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FeedPage {
    /// The facts, in the order of their commits.
    pub events: Vec<FeedEvent>,
    /// Where the next page begins; null at the end, for now: `after` takes the last position, too.
    pub next: Option<String>,
}
