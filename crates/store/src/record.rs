//! Facts as they stand in the store, and the fold over them.
//!
//! A stored fact carries the number of the schema that it was written with. A newer program reads every older one;
//! a fact of a type that this program does not know is kept as it is and quarantines its run, and nothing else.

use lastbeat_domain::event::is_known_run_event;
use lastbeat_domain::run::EvolveError;
use lastbeat_domain::{Recorded, Run, RunEvent, RunId, ServiceEvent, Timestamp};
use serde::Serialize;
use serde_json::Value;

use crate::error::StoreError;

/// The schema with which this program writes facts.
pub(crate) const SCHEMA: i64 = 1;

/// A fact of a run as it was read from the store.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Stored {
    /// A fact that this program understands.
    Known(Recorded),
    /// A fact that a newer program wrote.
    Unknown(UnknownFact),
}

/// A fact of a type that this program does not know.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnknownFact {
    /// The run.
    pub run: RunId,
    /// Its place in the run's stream.
    pub version: u64,
    /// The log time of its append.
    pub recorded_at: Timestamp,
    /// Why it is not understood.
    #[serde(skip)]
    pub why: String,
    /// The fields as they were stored, `type` among them.
    #[serde(flatten)]
    pub body: Value,
}

impl Stored {
    /// Returns the version in the run's stream.
    pub fn version(&self) -> u64 {
        match self {
            Stored::Known(recorded) => recorded.version,
            Stored::Unknown(unknown) => unknown.version,
        }
    }

    /// Returns the log time of the append.
    pub fn recorded_at(&self) -> Timestamp {
        match self {
            Stored::Known(recorded) => recorded.recorded_at,
            Stored::Unknown(unknown) => unknown.recorded_at,
        }
    }

    /// Returns the fact if it is understood.
    pub fn known(&self) -> Option<&Recorded> {
        match self {
            Stored::Known(recorded) => Some(recorded),
            Stored::Unknown(_) => None,
        }
    }

    /// Returns the value of `type`.
    pub fn type_name(&self) -> &str {
        match self {
            Stored::Known(recorded) => recorded.event.type_name(),
            Stored::Unknown(unknown) => unknown.body.get("type").and_then(Value::as_str).unwrap_or("unknown"),
        }
    }
}

/// Folds a stream as it was read from the store.
///
/// # Errors
/// If a fact cannot follow on the ones before it; `None` for an empty stream.
pub fn fold<'a>(stream: impl IntoIterator<Item = &'a Stored>) -> Result<Option<Run>, EvolveError> {
    let mut run: Option<Run> = None;
    for stored in stream {
        match (&mut run, stored) {
            (None, Stored::Known(recorded)) => run = Some(Run::begin(recorded)?),
            (None, Stored::Unknown(_)) => return Err(EvolveError::NotCreated("unknown")),
            (Some(run), Stored::Known(recorded)) => run.evolve(recorded)?,
            (Some(run), Stored::Unknown(unknown)) => {
                if unknown.version != run.version + 1 {
                    return Err(EvolveError::Version { last: run.version, found: unknown.version });
                }
                run.quarantine(unknown.version, unknown.recorded_at, unknown.why.clone());
            }
        }
    }
    Ok(run)
}

/// Writes a fact as the body of its row.
pub(crate) fn encode_run_event(event: &RunEvent) -> String {
    encode(event)
}

/// Writes a service fact as the body of its row.
pub(crate) fn encode_service_event(event: &ServiceEvent) -> String {
    encode(event)
}

fn encode<T: Serialize>(event: &T) -> String {
    // Events hold nothing that JSON cannot: no maps with keys that are no strings.
    serde_json::to_string(event).unwrap_or_default()
}

/// Reads the body of a run's row.
///
/// # Errors
/// If it is no JSON at all, which no program writes.
pub(crate) fn decode_run_event(
    run: RunId,
    version: u64,
    recorded_at: Timestamp,
    schema: i64,
    body: &str,
) -> Result<Stored, StoreError> {
    let body: Value = serde_json::from_str(body)
        .map_err(|error| StoreError::Corrupt(format!("version {version} of run {run} is not JSON: {error}")))?;
    let type_name = body.get("type").and_then(Value::as_str).unwrap_or_default();
    let why = if !is_known_run_event(type_name) {
        format!("version {version} is of the unknown type `{type_name}`")
    } else if schema > SCHEMA {
        format!("version {version} was written with schema {schema}, and this program knows up to {SCHEMA}")
    } else {
        match serde_json::from_value::<RunEvent>(body.clone()) {
            Ok(event) => {
                return Ok(Stored::Known(Recorded { run, version, recorded_at, event }));
            }
            Err(error) => format!("version {version} cannot be read: {error}"),
        }
    };
    Ok(Stored::Unknown(UnknownFact { run, version, recorded_at, why, body }))
}
