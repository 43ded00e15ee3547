//! Rows to values and back.

use std::borrow::Cow;

use lastbeat_domain::run::{CancelRequest, Claim, LastBeat, Outcome, ProgressChange, Reaped, Waiting};
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{ClaimId, Name, Run, RunId, Status, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use uuid::Uuid;

use crate::batch::RunRow;
use crate::error::StoreError;
use crate::log::{BeatsRow, EventRow, SegmentRow, signed, unsigned};
use crate::packing;

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments>;

/// All columns of `runs`, for SELECT.
pub(super) const RUN_COLUMNS: &str = "number, id, lane, goal, device, unique_key, labels, status, attempt, claim, \
     executor, claim_device, claimed_at, claimed_version, created_at, not_before, waiting_fact, waiting_version, due_at, \
     started_at, last_beat_at, last_beat_version, beats, progress, cancel_requested, reaped, outcome, version, \
     updated_at, quarantined, tail, progress_changed_at, progress_changed_version";

/// Writes a whole row of `runs`; the number is the first argument, the rest in the order of [`bind_run`].
pub(super) const PUT_RUN: &str = "INSERT INTO runs (number, id, lane, goal, device, unique_key, labels, status, \
     attempt, claim, executor, claim_device, claimed_at, claimed_version, created_at, not_before, waiting_fact, \
     waiting_version, due_at, started_at, last_beat_at, last_beat_version, beats, progress, cancel_requested, reaped, \
     outcome, version, updated_at, quarantined, tail, progress_changed_at, progress_changed_version) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
     ON CONFLICT (number) DO UPDATE SET status = excluded.status, attempt = excluded.attempt, claim = excluded.claim, \
     executor = excluded.executor, claim_device = excluded.claim_device, claimed_at = excluded.claimed_at, \
     claimed_version = excluded.claimed_version, not_before = excluded.not_before, \
     waiting_fact = excluded.waiting_fact, waiting_version = excluded.waiting_version, due_at = excluded.due_at, \
     started_at = excluded.started_at, last_beat_at = excluded.last_beat_at, \
     last_beat_version = excluded.last_beat_version, beats = excluded.beats, progress = excluded.progress, \
     cancel_requested = excluded.cancel_requested, reaped = excluded.reaped, outcome = excluded.outcome, \
     version = excluded.version, updated_at = excluded.updated_at, quarantined = excluded.quarantined, \
     tail = excluded.tail, progress_changed_at = excluded.progress_changed_at, \
     progress_changed_version = excluded.progress_changed_version";

/// Binds a row for [`PUT_RUN`].
pub(super) fn bind_run<'q>(query: Query<'q>, row: &RunRow) -> Query<'q> {
    let run = &row.run;
    let claim = run.claim.as_ref();
    let text = |name: Option<&Name>| name.map(|name| name.as_str().to_owned());
    query
        .bind(row.number)
        .bind(run.id.as_uuid().as_bytes().to_vec())
        .bind(run.lane.as_str().to_owned())
        .bind(text(run.goal.as_ref()))
        .bind(text(run.device.as_ref()))
        .bind(text(run.unique_key.as_ref()))
        .bind(to_json(&run.labels))
        .bind(run.status.as_str())
        .bind(i64::from(run.attempt))
        .bind(claim.and_then(|claim| claim.id.as_ref()).map(ToString::to_string))
        .bind(text(claim.map(|claim| &claim.executor)))
        .bind(text(claim.and_then(|claim| claim.device.as_ref())))
        .bind(claim.map(|claim| claim.at.as_micros()))
        .bind(claim.map(|claim| signed(claim.version)))
        .bind(run.created_at.as_micros())
        .bind(run.not_before.map(Timestamp::as_micros))
        .bind(run.waiting.fact.as_str())
        .bind(signed(run.waiting.version))
        .bind(run.waiting.due_at.as_micros())
        .bind(run.started_at.map(Timestamp::as_micros))
        .bind(run.last_beat.map(|beat| beat.at.as_micros()))
        .bind(run.last_beat.map(|beat| signed(beat.version)))
        .bind(signed(run.beats))
        .bind(run.progress.as_ref().map(to_json))
        .bind(run.cancel_requested.as_ref().map(to_json))
        .bind(to_json(&run.reaped))
        .bind(run.outcome.as_ref().map(to_json))
        .bind(signed(run.version))
        .bind(run.updated_at.as_micros())
        .bind(run.quarantined.clone())
        .bind(pack_tail(row))
        .bind(run.progress_changed.map(|changed| changed.at.as_micros()))
        .bind(run.progress_changed.map(|changed| signed(changed.version)))
}

/// Packs a run's tail for its column. One that could not be unpacked is never written back.
pub(super) fn pack_tail(row: &RunRow) -> Vec<u8> {
    let mut tail = Vec::new();
    row.tail.iter().flatten().for_each(|beat| packing::push_to_tail(&mut tail, *beat));
    tail
}

/// Reads a row of `runs`.
pub(super) fn read_run(row: &SqliteRow) -> Result<RunRow, StoreError> {
    let id = read_id(row, "id")?;
    let claim = match read_name(row, "executor")? {
        None => None,
        Some(executor) => Some(Claim {
            id: row.try_get::<Option<String>, _>("claim")?.map(|text| parse::<ClaimId>("claim", &text)).transpose()?,
            executor,
            device: read_name(row, "claim_device")?,
            at: read_instant(row, "claimed_at")?.ok_or_else(|| missing(id, "claimed_at"))?,
            version: read_count(row, "claimed_version")?.ok_or_else(|| missing(id, "claimed_version"))?,
        }),
    };
    let last_beat = match (read_instant(row, "last_beat_at")?, read_count(row, "last_beat_version")?) {
        (Some(at), Some(version)) => Some(LastBeat { at, version }),
        _ => None,
    };
    let changed = (read_instant(row, "progress_changed_at")?, read_count(row, "progress_changed_version")?);
    let progress_changed = changed.0.zip(changed.1).map(|(at, version)| ProgressChange { at, version });
    let run = Run {
        id,
        lane: read_name(row, "lane")?.ok_or_else(|| missing(id, "lane"))?,
        goal: read_name(row, "goal")?,
        device: read_name(row, "device")?,
        unique_key: read_name(row, "unique_key")?,
        labels: read_json(row, "labels")?.unwrap_or_default(),
        status: read_word::<Status>(row, "status")?,
        attempt: u32::try_from(row.try_get::<i64, _>("attempt")?).map_err(|_| missing(id, "attempt"))?,
        claim,
        created_at: read_instant(row, "created_at")?.ok_or_else(|| missing(id, "created_at"))?,
        not_before: read_instant(row, "not_before")?,
        waiting: Waiting {
            fact: read_word::<BasisFact>(row, "waiting_fact")?,
            version: read_count(row, "waiting_version")?.unwrap_or(1),
            due_at: read_instant(row, "due_at")?.ok_or_else(|| missing(id, "due_at"))?,
        },
        started_at: read_instant(row, "started_at")?,
        last_beat,
        beats: read_count(row, "beats")?.unwrap_or(0),
        progress: read_json(row, "progress")?,
        progress_changed,
        cancel_requested: read_json::<CancelRequest>(row, "cancel_requested")?,
        reaped: read_json::<Vec<Reaped>>(row, "reaped")?.unwrap_or_default(),
        outcome: read_json::<Outcome>(row, "outcome")?,
        version: read_count(row, "version")?.unwrap_or(0),
        updated_at: read_instant(row, "updated_at")?.ok_or_else(|| missing(id, "updated_at"))?,
        quarantined: row.try_get("quarantined")?,
    };
    let tail = packing::unpack_tail(row.try_get("tail")?);
    Ok(RunRow { number: row.try_get("number")?, run, tail })
}

pub(super) fn read_id(row: &SqliteRow, column: &str) -> Result<RunId, StoreError> {
    let bytes: Vec<u8> = row.try_get(column)?;
    let uuid = Uuid::from_slice(&bytes).map_err(|_| StoreError::Corrupt(format!("{column} is not a UUID")))?;
    Ok(RunId::from_uuid(uuid))
}

/// Reads a row of `events`.
pub(super) fn read_event(row: &SqliteRow) -> Result<EventRow, StoreError> {
    Ok(EventRow {
        position: row.try_get("position")?,
        run: row.try_get("run")?,
        version: row.try_get("version")?,
        recorded_at: row.try_get("recorded_at")?,
        type_name: Cow::Owned(row.try_get("type")?),
        schema: row.try_get("schema")?,
        run_id: row.try_get("run_id")?,
        body: row.try_get("body")?,
        digest: row.try_get("digest")?,
    })
}

/// Reads a row of `beats`.
pub(super) fn read_beats(row: &SqliteRow) -> Result<BeatsRow, StoreError> {
    Ok(BeatsRow {
        position: row.try_get("position")?,
        recorded_at: row.try_get("recorded_at")?,
        count: row.try_get("count")?,
        data: row.try_get("data")?,
        digest: row.try_get("digest")?,
    })
}

/// Reads a row of `segments`.
pub(super) fn read_segment(row: &SqliteRow) -> Result<SegmentRow, StoreError> {
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

pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    // None of our values has a map whose keys are not strings, the one thing that JSON cannot hold.
    serde_json::to_string(value).unwrap_or_default()
}

fn read_json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.try_get(column)?;
    let parse = |text: String| {
        serde_json::from_str(&text).map_err(|error| StoreError::Corrupt(format!("{column} cannot be read: {error}")))
    };
    text.map(parse).transpose()
}

/// Reads one of the words of an enumeration, as serde writes them.
pub(super) fn read_word<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    let word: String = row.try_get(column)?;
    serde_json::from_value(serde_json::Value::String(word))
        .map_err(|error| StoreError::Corrupt(format!("{column} cannot be read: {error}")))
}

pub(super) fn read_name(row: &SqliteRow, column: &str) -> Result<Option<Name>, StoreError> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| parse(column, &text)).transpose()
}

fn parse<T: std::str::FromStr>(column: &str, text: &str) -> Result<T, StoreError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| StoreError::Corrupt(format!("{column} cannot be read: {error}")))
}

pub(super) fn read_instant(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_micros))
}

fn read_count(row: &SqliteRow, column: &str) -> Result<Option<u64>, StoreError> {
    row.try_get::<Option<i64>, _>(column)?.map(unsigned).transpose()
}

fn missing(run: RunId, column: &str) -> StoreError {
    StoreError::Corrupt(format!("run {run} of the projection has no {column}"))
}
