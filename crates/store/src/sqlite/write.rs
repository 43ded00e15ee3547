//! The statements that write, one function each.

use lastbeat_domain::listening::Beacon;
use lastbeat_domain::{Name, Recorded, ServiceRecorded, Timestamp};
use sqlx::sqlite::SqliteConnection;

use super::rows::{PUT_RUN, RunRow, bind_run, signed};
use crate::digest;
use crate::error::StoreError;
use crate::packing::{self, Beat};
use crate::record::{self, schema_of};

/// A row of `segments`, packed.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    attempt: u32,
    first: Beat,
    last: Beat,
    count: usize,
    data: Vec<u8>,
}

impl Segment {
    /// Packs a run's plain heartbeats of one attempt: at least one, in rising order.
    pub(crate) fn pack(attempt: u32, beats: &[Beat]) -> Segment {
        let none = Beat { version: 0, at: 0 };
        let (first, last) = (beats.first().copied().unwrap_or(none), beats.last().copied().unwrap_or(none));
        Segment { attempt, first, last, count: beats.len(), data: packing::pack_segment(beats) }
    }
}

pub(super) async fn insert_event(
    connection: &mut SqliteConnection,
    position: i64,
    number: i64,
    recorded: &Recorded,
    body: &str,
) -> Result<(), StoreError> {
    let run_id = (recorded.version == 1).then(|| recorded.run.as_uuid().as_bytes().to_vec());
    let (type_name, at, version) =
        (recorded.event.type_name(), recorded.recorded_at.as_micros(), signed(recorded.version));
    let schema = schema_of(type_name);
    let digest =
        digest::of_event(position, Some(number), Some(version), at, type_name, schema, run_id.as_deref(), body);
    sqlx::query(
        "INSERT INTO events (position, run, version, recorded_at, type, schema, run_id, body, digest) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(position)
    .bind(number)
    .bind(version)
    .bind(at)
    .bind(type_name)
    .bind(schema)
    .bind(run_id)
    .bind(body)
    .bind(digest)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn insert_service(
    connection: &mut SqliteConnection,
    position: i64,
    recorded: &ServiceRecorded,
) -> Result<(), StoreError> {
    let body = record::encode_service_event(&recorded.event);
    let (type_name, at) = (recorded.event.type_name(), recorded.recorded_at.as_micros());
    let schema = schema_of(type_name);
    let digest = digest::of_event(position, None, None, at, type_name, schema, None, &body);
    sqlx::query("INSERT INTO events (position, recorded_at, type, schema, body, digest) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(position)
        .bind(at)
        .bind(type_name)
        .bind(schema)
        .bind(body)
        .bind(digest)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn insert_beats(
    connection: &mut SqliteConnection,
    position: i64,
    at: Timestamp,
    beats: &[(i64, u64)],
) -> Result<(), StoreError> {
    let (count, data) = (signed(beats.len() as u64), packing::pack_beats(beats));
    let digest = digest::of_beats(position, at.as_micros(), count, &data);
    sqlx::query("INSERT INTO beats (position, recorded_at, count, data, digest) VALUES (?, ?, ?, ?, ?)")
        .bind(position)
        .bind(at.as_micros())
        .bind(count)
        .bind(data)
        .bind(digest)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn insert_segment(
    connection: &mut SqliteConnection,
    number: i64,
    segment: &Segment,
) -> Result<(), StoreError> {
    let (first, last, count) = (segment.first, segment.last, signed(segment.count as u64));
    let (first_version, last_version, attempt) =
        (signed(first.version), signed(last.version), i64::from(segment.attempt));
    let numbers = [number, first_version, last_version, attempt, first.at, last.at, count];
    let mut query = sqlx::query(
        "INSERT INTO segments (run, first_version, last_version, attempt, first_at, last_at, count, data, digest) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    );
    for number in numbers {
        query = query.bind(number);
    }
    let digest = digest::of_segment(numbers, &segment.data);
    query.bind(segment.data.as_slice()).bind(digest).execute(connection).await?;
    Ok(())
}

/// Writes the beacons as they now stand; there are a handful.
pub(super) async fn put_beacons(connection: &mut SqliteConnection, beacons: &[Beacon]) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM beacons").execute(&mut *connection).await?;
    for beacon in beacons {
        sqlx::query("INSERT INTO beacons (process, role, at, promise) VALUES (?, ?, ?, ?)")
            .bind(beacon.process.as_str())
            .bind(beacon.role.as_str())
            .bind(beacon.at.as_micros())
            .bind(beacon.promise.map(Timestamp::as_micros))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

pub(super) async fn put_run(connection: &mut SqliteConnection, row: &RunRow) -> Result<(), StoreError> {
    bind_run(sqlx::query(PUT_RUN), row).execute(connection).await?;
    Ok(())
}

/// Notes that a lane exists.
pub(super) async fn put_lane(connection: &mut SqliteConnection, lane: &Name) -> Result<(), StoreError> {
    sqlx::query("INSERT OR IGNORE INTO lanes (lane, rearm_after) VALUES (?, NULL)")
        .bind(lane.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Sets the instant of the next look at a run; none for a run that need not be looked at before its next fact.
pub(super) async fn set_due(
    connection: &mut SqliteConnection,
    number: i64,
    check_at: Option<Timestamp>,
) -> Result<(), StoreError> {
    let query = match check_at {
        Some(check_at) => sqlx::query("INSERT OR REPLACE INTO due (run, check_at, delay) VALUES (?, ?, 0)")
            .bind(number)
            .bind(check_at.as_micros()),
        None => sqlx::query("DELETE FROM due WHERE run = ?").bind(number),
    };
    query.execute(connection).await?;
    Ok(())
}
