//! Rows to values and back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lastbeat_domain::run::{CancelRequest, Claim, LastBeat, Outcome, ProgressChange, Reaped, Waiting};
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{ClaimId, Name, Run, RunId, Status, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::tail::{last_fact, pack_tail, unwritten_tail};
use crate::batch::RunRow;
use crate::error::StoreError;
use crate::log::{BeatsRow, EventRow, SegmentRow, signed, unsigned};
use crate::packing::PackingError;

/// All columns of `whole_runs`, for SELECT.
pub(super) const RUN_COLUMNS: &str = "number, id, claimed_at, due_at, attempt, quarantined, cancel_requested, status, \
     claim, lane, goal, device, unique_key, rest, version, updated_at, beats, last_beat_version, last_beat_at, tail, sound";

/// The same of a run that waits, which `runs` alone tells.
pub(super) const WAITING_COLUMNS: &str = "number, id, claimed_at, due_at, attempt, quarantined, cancel_requested, \
     status, claim, lane, goal, device, unique_key, rest, version, updated_at, beats, last_beat_version, \
     last_beat_at, ''::bytea AS tail, true AS sound";

/// What no statement asks for, kept as JSON in one column.
#[derive(Debug, Serialize, Deserialize)]
struct Rest {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<Name, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    executor: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim_device: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claimed_version: Option<u64>,
    created_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<i64>,
    waiting_fact: BasisFact,
    waiting_version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<Value>,
    /// Instant and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress_changed: Option<(i64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cancel_requested: Option<CancelRequest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reaped: Vec<Reaped>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quarantined: Option<String>,
}

/// Rows of `runs`, column by column, as a statement takes them.
#[derive(Debug, Default)]
pub(super) struct RunColumns {
    pub(super) number: Vec<i64>,
    pub(super) id: Vec<Uuid>,
    pub(super) claimed_at: Vec<Option<i64>>,
    pub(super) due_at: Vec<i64>,
    pub(super) attempt: Vec<i32>,
    pub(super) quarantined: Vec<bool>,
    pub(super) cancel_requested: Vec<bool>,
    pub(super) version: Vec<i64>,
    pub(super) updated_at: Vec<i64>,
    pub(super) beats: Vec<i64>,
    pub(super) last_beat_version: Vec<Option<i64>>,
    pub(super) last_beat_at: Vec<Option<i64>>,
    pub(super) status: Vec<&'static str>,
    pub(super) claim: Vec<Option<String>>,
    pub(super) lane: Vec<String>,
    pub(super) goal: Vec<Option<String>>,
    pub(super) device: Vec<Option<String>>,
    pub(super) unique_key: Vec<Option<String>>,
    pub(super) rest: Vec<String>,
}

/// Rows of `beating`, column by column.
#[derive(Debug, Default)]
pub(super) struct BeatingColumns {
    pub(super) id: Vec<Uuid>,
    pub(super) number: Vec<i64>,
    pub(super) claimed_at: Vec<i64>,
    pub(super) attempt: Vec<i32>,
    pub(super) cancel_requested: Vec<bool>,
    pub(super) claim: Vec<Option<Uuid>>,
    pub(super) lane: Vec<String>,
    pub(super) version: Vec<i64>,
    pub(super) updated_at: Vec<i64>,
    pub(super) tail: Vec<Vec<u8>>,
}

impl RunColumns {
    pub(super) fn push(&mut self, row: &RunRow) {
        let run = &row.run;
        let text = |name: Option<&Name>| name.map(|name| name.as_str().to_owned());
        self.number.push(row.number);
        self.id.push(run.id.as_uuid());
        self.claimed_at.push(run.claim.as_ref().map(|claim| claim.at.as_micros()));
        self.due_at.push(run.waiting.due_at.as_micros());
        self.attempt.push(attempt_of(run));
        self.quarantined.push(run.quarantined.is_some());
        self.cancel_requested.push(run.cancel_requested.is_some());
        self.version.push(signed(run.version));
        self.updated_at.push(run.updated_at.as_micros());
        self.beats.push(signed(run.beats));
        self.last_beat_version.push(run.last_beat.map(|beat| signed(beat.version)));
        self.last_beat_at.push(run.last_beat.map(|beat| beat.at.as_micros()));
        self.status.push(run.status.as_str());
        self.claim.push(claim_of(run));
        self.lane.push(run.lane.as_str().to_owned());
        self.goal.push(text(run.goal.as_ref()));
        self.device.push(text(run.device.as_ref()));
        self.unique_key.push(text(run.unique_key.as_ref()));
        self.rest.push(rest_of(run));
    }
}

impl BeatingColumns {
    /// Adds a run if it beats; says whether it does.
    ///
    /// # Errors
    /// If more heartbeats of it are in no segment than a tail holds: then a segment was lost.
    pub(super) fn push(&mut self, row: &RunRow) -> Result<bool, StoreError> {
        let run = &row.run;
        let (Status::Running, Some(_), Some(claim)) = (run.status, &run.last_beat, &run.claim) else {
            return Ok(false);
        };
        let beats = row.tail.as_deref().unwrap_or_default();
        let tail = pack_tail(beats, last_fact(run.version, run.updated_at)).ok_or_else(|| {
            let (id, beats) = (run.id, beats.len());
            let why = "more than a tail holds; restore the store from a backup";
            StoreError::Corrupt(format!("run {id} has {beats} heartbeats that are in no segment, {why}"))
        })?;
        self.id.push(run.id.as_uuid());
        self.number.push(row.number);
        self.claimed_at.push(claim.at.as_micros());
        self.attempt.push(if run.quarantined.is_some() { 0 } else { attempt_of(run) });
        self.cancel_requested.push(run.cancel_requested.is_some());
        self.claim.push(claim.id.as_ref().and_then(ClaimId::as_uuid));
        self.lane.push(run.lane.as_str().to_owned());
        self.version.push(signed(run.version));
        self.updated_at.push(run.updated_at.as_micros());
        self.tail.push(tail);
        Ok(true)
    }
}

fn attempt_of(run: &Run) -> i32 {
    i32::try_from(run.attempt).unwrap_or(i32::MAX)
}

fn claim_of(run: &Run) -> Option<String> {
    run.claim.as_ref().and_then(|claim| claim.id.as_ref()).map(ClaimId::to_string)
}

fn rest_of(run: &Run) -> String {
    let claim = run.claim.as_ref();
    let rest = Rest {
        labels: run.labels.clone(),
        executor: claim.map(|claim| claim.executor.clone()),
        claim_device: claim.and_then(|claim| claim.device.clone()),
        claimed_version: claim.map(|claim| claim.version),
        created_at: run.created_at.as_micros(),
        not_before: run.not_before.map(Timestamp::as_micros),
        waiting_fact: run.waiting.fact,
        waiting_version: run.waiting.version,
        started_at: run.started_at.map(Timestamp::as_micros),
        progress: run.progress.clone(),
        progress_changed: run.progress_changed.map(|changed| (changed.at.as_micros(), changed.version)),
        cancel_requested: run.cancel_requested.clone(),
        reaped: run.reaped.clone(),
        outcome: run.outcome.clone(),
        quarantined: run.quarantined.clone(),
    };
    // It has no map whose keys are not strings, the one thing that JSON cannot hold.
    serde_json::to_string(&rest).unwrap_or_default()
}

/// Reads from the rest of a run's projection when its progress last changed, and nothing else.
pub(super) fn progress_changed(rest: &str) -> Result<Option<ProgressChange>, StoreError> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        progress_changed: Option<(i64, u64)>,
    }
    let part: Part = serde_json::from_str(rest)
        .map_err(|error| StoreError::Corrupt(format!("the projection of a run cannot be read: {error}")))?;
    let change = |(at, version)| ProgressChange { at: Timestamp::from_micros(at), version };
    Ok(part.progress_changed.map(change))
}

/// Reads a row of `whole_runs`.
pub(super) fn read_run(row: &PgRow) -> Result<RunRow, StoreError> {
    let id = RunId::from_uuid(row.try_get("id")?);
    let missing = |column: &str| StoreError::Corrupt(format!("run {id} of the projection has no {column}"));
    let rest: Rest = serde_json::from_str(row.try_get("rest")?)
        .map_err(|error| StoreError::Corrupt(format!("the projection of run {id} cannot be read: {error}")))?;
    let instant = Timestamp::from_micros;
    let claim = match rest.executor {
        None => None,
        Some(executor) => Some(Claim {
            id: row.try_get::<Option<&str>, _>("claim")?.map(|text| parse::<ClaimId>("claim", text)).transpose()?,
            executor,
            device: rest.claim_device,
            at: row.try_get::<Option<i64>, _>("claimed_at")?.map(instant).ok_or_else(|| missing("claimed_at"))?,
            version: rest.claimed_version.ok_or_else(|| missing("claimed_version"))?,
        }),
    };
    let version = unsigned(row.try_get("version")?)?;
    let last_at: Option<i64> = row.try_get("last_beat_at")?;
    let last_version: Option<i64> = row.try_get("last_beat_version")?;
    let last_beat = match (last_at, last_version) {
        (Some(at), Some(version)) => Some(LastBeat { at: instant(at), version: unsigned(version)? }),
        _ => None,
    };
    let run = Run {
        id,
        lane: read_name(row, "lane")?.ok_or_else(|| missing("lane"))?,
        goal: read_name(row, "goal")?,
        device: read_name(row, "device")?,
        unique_key: read_name(row, "unique_key")?,
        labels: rest.labels,
        status: read_word::<Status>(row, "status")?,
        attempt: u32::try_from(row.try_get::<i32, _>("attempt")?).map_err(|_| missing("attempt"))?,
        claim,
        created_at: instant(rest.created_at),
        not_before: rest.not_before.map(instant),
        waiting: Waiting {
            fact: rest.waiting_fact,
            version: rest.waiting_version,
            due_at: instant(row.try_get("due_at")?),
        },
        started_at: rest.started_at.map(instant),
        last_beat,
        beats: unsigned(row.try_get("beats")?)?,
        progress: rest.progress,
        progress_changed: rest.progress_changed.map(|(at, version)| ProgressChange { at: instant(at), version }),
        cancel_requested: rest.cancel_requested,
        reaped: rest.reaped,
        outcome: rest.outcome,
        version,
        updated_at: instant(row.try_get("updated_at")?),
        quarantined: rest.quarantined,
    };
    // Where the two tables disagree, no heartbeat of it can be relied on.
    let last = last_fact(version, run.updated_at);
    let tail = if row.try_get("sound")? { unwritten_tail(row.try_get("tail")?, last) } else { Err(PackingError) };
    Ok(RunRow { number: row.try_get("number")?, run, tail })
}

/// Reads a row of `events`.
pub(super) fn read_event(row: &PgRow) -> Result<EventRow, StoreError> {
    Ok(EventRow {
        position: row.try_get("position")?,
        run: row.try_get("run")?,
        version: row.try_get("version")?,
        recorded_at: row.try_get("recorded_at")?,
        type_name: Cow::Owned(row.try_get("type")?),
        schema: row.try_get("schema")?,
        run_id: row.try_get::<Option<Uuid>, _>("run_id")?.map(|id| id.as_bytes().to_vec()),
        body: row.try_get("body")?,
        digest: row.try_get("digest")?,
    })
}

/// Reads a row of `beats`.
pub(super) fn read_beats(row: &PgRow) -> Result<BeatsRow, StoreError> {
    Ok(BeatsRow {
        position: row.try_get("position")?,
        recorded_at: row.try_get("recorded_at")?,
        count: row.try_get("count")?,
        data: row.try_get("data")?,
        digest: row.try_get("digest")?,
    })
}

/// Reads a row of `segments`.
pub(super) fn read_segment(row: &PgRow) -> Result<SegmentRow, StoreError> {
    Ok(SegmentRow {
        run: row.try_get("run")?,
        first_version: row.try_get("first_version")?,
        last_version: row.try_get("last_version")?,
        attempt: row.try_get("attempt")?,
        first_at: row.try_get("first_at")?,
        last_at: row.try_get("last_at")?,
        count: row.try_get("count")?,
        data: row.try_get("data")?,
        digest: row.try_get("digest")?,
    })
}

/// Reads one of the words of an enumeration, as serde writes them.
pub(super) fn read_word<T: DeserializeOwned>(row: &PgRow, column: &str) -> Result<T, StoreError> {
    let word: String = row.try_get(column)?;
    serde_json::from_value(Value::String(word))
        .map_err(|error| StoreError::Corrupt(format!("{column} cannot be read: {error}")))
}

pub(super) fn read_name(row: &PgRow, column: &str) -> Result<Option<Name>, StoreError> {
    row.try_get::<Option<&str>, _>(column)?.map(|text| parse(column, text)).transpose()
}

fn parse<T: std::str::FromStr>(column: &str, text: &str) -> Result<T, StoreError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| StoreError::Corrupt(format!("{column} cannot be read: {error}")))
}
