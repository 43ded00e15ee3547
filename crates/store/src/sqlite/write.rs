//! The statements that write, one function each.

use lastbeat_domain::{Name, Recorded, ServiceRecorded, Timestamp};
use sqlx::sqlite::SqliteConnection;

use super::rows::{PUT_RUN, RunRow, bind_run, signed};
use crate::error::StoreError;
use crate::packing::{self, Beat};
use crate::record::{self, SCHEMA};

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
    sqlx::query(
        "INSERT INTO events (position, run, version, recorded_at, type, schema, run_id, body) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(position)
    .bind(number)
    .bind(signed(recorded.version))
    .bind(recorded.recorded_at.as_micros())
    .bind(recorded.event.type_name())
    .bind(SCHEMA)
    .bind(run_id)
    .bind(body)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn insert_service(
    connection: &mut SqliteConnection,
    position: i64,
    recorded: &ServiceRecorded,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO events (position, recorded_at, type, schema, body) VALUES (?, ?, ?, ?, ?)")
        .bind(position)
        .bind(recorded.recorded_at.as_micros())
        .bind(recorded.event.type_name())
        .bind(SCHEMA)
        .bind(record::encode_service_event(&recorded.event))
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn insert_segment(
    connection: &mut SqliteConnection,
    number: i64,
    segment: &Segment,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO segments (run, first_version, last_version, attempt, first_at, last_at, count, data) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(number)
    .bind(signed(segment.first.version))
    .bind(signed(segment.last.version))
    .bind(i64::from(segment.attempt))
    .bind(segment.first.at)
    .bind(segment.last.at)
    .bind(signed(segment.count as u64))
    .bind(segment.data.as_slice())
    .execute(connection)
    .await?;
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
