//! Facts as they stand in the store, and the fold over them.
//!
//! A stored fact carries the number of the schema that it was written with, which is counted for each type on its own:
//! so a change of one type is no news to a program that only reads the others. A newer program reads every older fact,
//! since `upcast` brings it to the latest form before it is read; what is stored stays as it was. A fact of a type or a
//! schema that this program does not know is kept as it is and quarantines its run, and nothing else.

use lastbeat_domain::event::{complete_deaf, is_known_run_event, is_known_service_event};
use lastbeat_domain::run::EvolveError;
use lastbeat_domain::{Recorded, Run, RunEvent, RunId, ServiceEvent, ServiceRecorded, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::batch::RunRow;
use crate::error::StoreError;
use crate::log::{EventRow, SegmentRow, unsigned};
use crate::packing::Beat;
use crate::{FeedEntry, FeedFact, StreamPage};

/// Returns the schema with which this program writes facts of a type, which is the newest that it can read.
pub(crate) fn schema_of(type_name: &str) -> i64 {
    match type_name {
        // Schema 1 of `token_issued` had neither a digest nor what the token is bound to.
        "deaf" | "token_issued" => 2,
        _ => 1,
    }
}

/// Brings the fields of a fact that an older program wrote to the form of today.
fn upcast(type_name: &str, schema: i64, fields: &mut Map<String, Value>) {
    // In schema 1 a deaf span could leave its promise out.
    if (type_name, schema) == ("deaf", 1) {
        complete_deaf(fields);
    }
}

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
        take_in(&mut run, stored)?;
    }
    Ok(run)
}

/// Takes the next fact into a run, or begins it.
///
/// # Errors
/// If it cannot follow; the run is as it was.
pub fn take_in(run: &mut Option<Run>, stored: &Stored) -> Result<(), EvolveError> {
    match (run, stored) {
        (run @ None, Stored::Known(recorded)) => *run = Some(Run::begin(recorded)?),
        (None, Stored::Unknown(_)) => return Err(EvolveError::NotCreated("unknown")),
        (Some(run), Stored::Known(recorded)) => run.evolve(recorded)?,
        (Some(run), Stored::Unknown(unknown)) => {
            if unknown.version != run.version + 1 {
                return Err(EvolveError::Version { last: run.version, found: unknown.version });
            }
            run.quarantine(unknown.version, unknown.recorded_at, unknown.why.clone());
        }
    }
    Ok(())
}

/// The segments of a run, by number, that hold its first plain heartbeats after a version: so many that they hold one
/// more than a limit. They do not overlap, so none before the last that begins by the version holds any. Nobody knows
/// how many of the first one's heartbeats come after the version, so it is counted for nothing.
pub(crate) const SEGMENTS_OF_PAGE: &str = "SELECT * FROM segments WHERE run = $1 AND first_version IN (SELECT \
     first_version FROM (SELECT first_version, sum(count) OVER version - first_value(count) OVER version - count \
     AS before FROM (SELECT first_version, count FROM segments WHERE run = $1 AND last_version > $2 \
     AND first_version >= coalesce((SELECT max(first_version) FROM segments WHERE run = $1 AND first_version <= $2), 0) \
     ORDER BY first_version LIMIT $3 + 1) AS next WINDOW version AS (ORDER BY first_version)) AS summed \
     WHERE before <= $3) ORDER BY first_version";

/// Puts a page of a run's stream together: rows of events, at most one more than `limit`, segments and the tail, in the
/// order of their versions.
///
/// # Errors
/// If packed heartbeats cannot be unpacked.
pub(crate) fn put_in_order(
    row: &RunRow,
    events: Vec<Stored>,
    segments: &[SegmentRow],
    after: u64,
    limit: usize,
) -> Result<StreamPage, StoreError> {
    let run = row.run.id;
    let plain = |beat: &Beat, attempt: u32| {
        let event = RunEvent::Heartbeat { attempt, progress: None };
        let recorded_at = Timestamp::from_micros(beat.at);
        Stored::Known(Recorded { run, version: beat.version, recorded_at, event })
    };
    let mut facts = events;
    // One more than the page holds says that there is more. What comes after that is not unpacked.
    let mut room = limit.saturating_add(1);
    for segment in segments {
        if room == 0 {
            break;
        }
        let (attempt, beats) = segment.unpack(run)?;
        let before = facts.len();
        facts.extend(beats.iter().filter(|beat| beat.version > after).take(room).map(|beat| plain(beat, attempt)));
        room -= facts.len() - before;
    }
    let tail = row.tail.as_ref().map_err(|error| StoreError::Corrupt(format!("the tail of run {run}: {error}")))?;
    let tail = tail.iter().filter(|beat| beat.version > after);
    facts.extend(tail.map(|beat| plain(beat, row.run.attempt)));
    facts.sort_by_key(Stored::version);
    let more = facts.len() > limit;
    facts.truncate(limit);
    let next = if more { facts.last().map(Stored::version) } else { None };
    Ok(StreamPage { facts, next })
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

/// Reads a row of `events` as an entry of the feed. `run` is whose fact it is.
///
/// # Errors
/// If its body is no JSON object, which no program writes, or nobody knows its run.
pub(crate) fn feed_entry(row: &EventRow, run: Option<RunId>) -> Result<FeedEntry, StoreError> {
    let (position, at) = (unsigned(row.position)?, Timestamp::from_micros(row.recorded_at));
    let fact = match (row.version, run) {
        (None, _) => FeedFact::Service(service_line(at, row.schema, &row.body)?),
        (Some(version), Some(run)) => {
            FeedFact::Run(decode_run_event(run, unsigned(version)?, at, row.schema, &row.body)?)
        }
        (Some(_), None) => return Err(StoreError::Corrupt(format!("nobody knows the run of position {position}"))),
    };
    Ok(FeedEntry { position, fact })
}

/// Writes a fact of a run as a line of an export.
pub(crate) fn line(fact: &Stored) -> String {
    encode(fact)
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
    let body: Map<String, Value> = serde_json::from_str(body)
        .map_err(|error| StoreError::Corrupt(format!("version {version} of run {run} is no JSON object: {error}")))?;
    match understand(is_known_run_event, schema, &body) {
        Ok(event) => Ok(Stored::Known(Recorded { run, version, recorded_at, event })),
        Err(why) => {
            let (why, body) = (format!("version {version} {why}"), Value::Object(body));
            Ok(Stored::Unknown(UnknownFact { run, version, recorded_at, why, body }))
        }
    }
}

/// Reads the body of a service fact's row; `None` for one that a newer program wrote.
pub(crate) fn decode_service_event(recorded_at: Timestamp, schema: i64, body: &str) -> Option<ServiceRecorded> {
    let body: Map<String, Value> = serde_json::from_str(body).ok()?;
    let event: ServiceEvent = understand(is_known_service_event, schema, &body).ok()?;
    Some(ServiceRecorded { recorded_at, event })
}

/// Writes a service fact as a line of an export: in the form of today, or as it is if a newer program wrote it.
///
/// # Errors
/// If its body is no JSON object, which no program writes.
pub(crate) fn service_line(recorded_at: Timestamp, schema: i64, body: &str) -> Result<String, StoreError> {
    if let Some(recorded) = decode_service_event(recorded_at, schema, body) {
        return Ok(encode(&recorded));
    }
    let mut fields: Map<String, Value> = serde_json::from_str(body)
        .map_err(|error| StoreError::Corrupt(format!("a service event is no JSON object: {error}")))?;
    fields.insert("recorded_at".to_owned(), recorded_at.to_string().into());
    Ok(encode(&fields))
}

/// Reads a fact in the form of today, or says why it cannot be.
fn understand<T: serde::de::DeserializeOwned>(
    is_known: impl Fn(&str) -> bool,
    schema: i64,
    body: &Map<String, Value>,
) -> Result<T, String> {
    let type_name = body.get("type").and_then(Value::as_str).unwrap_or_default();
    if !is_known(type_name) {
        return Err(format!("is of the unknown type `{type_name}`"));
    }
    let known = schema_of(type_name);
    if schema > known {
        return Err(format!("was written with schema {schema} of `{type_name}`, and this program knows up to {known}"));
    }
    let mut fields = body.clone();
    upcast(type_name, schema, &mut fields);
    serde_json::from_value(Value::Object(fields)).map_err(|error| format!("cannot be read: {error}"))
}
