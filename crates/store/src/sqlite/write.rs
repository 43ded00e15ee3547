//! Writing what a batch decided, a statement for each row. The connection holds the write lock of the file.

use lastbeat_domain::decide::IdempotencyKey;
use lastbeat_domain::listening::Beacon;
use lastbeat_domain::{Name, Span, Timestamp};
use sqlx::sqlite::SqliteConnection;

use super::rows::{PUT_RUN, bind_run, pack_tail};
use crate::batch::{CursorWrite, Head, LanePace, RunRow, Writes};
use crate::error::StoreError;
use crate::idempotency::{FirstAnswer, REMEMBERED};
use crate::log::{BeatsRow, EventRow, SegmentRow, signed};

/// How many forgotten idempotency keys are cleared away for each new one: more than come in, so none pile up.
const FORGOTTEN_MAX: i64 = 8;

/// Writes it all, and the end of the log after it.
pub(super) async fn apply(connection: &mut SqliteConnection, writes: &Writes, head: &Head) -> Result<(), StoreError> {
    for event in &writes.events {
        insert_event(connection, event).await?;
    }
    for segment in &writes.segments {
        insert_segment(connection, segment).await?;
    }
    if let Some(beats) = &writes.beats {
        insert_beats(connection, beats).await?;
    }
    for row in &writes.runs {
        put_run(connection, row).await?;
    }
    for row in &writes.beaten {
        put_beat(connection, row).await?;
    }
    for (run, check) in &writes.due {
        set_due(connection, *run, *check).await?;
    }
    for lane in &writes.lanes {
        put_lane(connection, lane).await?;
    }
    for (lane, after) in &writes.rearm {
        put_rearm(connection, lane, *after).await?;
    }
    for (lane, pace) in &writes.paces {
        put_pace(connection, lane, pace).await?;
    }
    if let Some(beacons) = &writes.beacons {
        put_beacons(connection, beacons).await?;
    }
    for (name, cursor) in &writes.cursors {
        move_cursor(connection, name, *cursor).await?;
    }
    for (key, answer) in &writes.answers {
        remember(connection, key, answer).await?;
    }
    put_head(connection, head).await
}

pub(super) async fn insert_event(connection: &mut SqliteConnection, row: &EventRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO events (position, run, version, recorded_at, type, schema, run_id, body, digest) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.position)
    .bind(row.run)
    .bind(row.version)
    .bind(row.recorded_at)
    .bind(row.type_name.as_ref())
    .bind(row.schema)
    .bind(row.run_id.as_deref())
    .bind(row.body.as_str())
    .bind(row.digest)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_beats(connection: &mut SqliteConnection, row: &BeatsRow) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO beats (position, recorded_at, count, data, digest) VALUES (?, ?, ?, ?, ?)")
        .bind(row.position)
        .bind(row.recorded_at)
        .bind(row.count)
        .bind(row.data.as_slice())
        .bind(row.digest)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn insert_segment(connection: &mut SqliteConnection, row: &SegmentRow) -> Result<(), StoreError> {
    let mut query = sqlx::query(
        "INSERT INTO segments (run, first_version, last_version, attempt, first_at, last_at, count, data, digest) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    );
    for number in row.numbers() {
        query = query.bind(number);
    }
    query.bind(row.data.as_slice()).bind(row.digest).execute(connection).await?;
    Ok(())
}

async fn put_run(connection: &mut SqliteConnection, row: &RunRow) -> Result<(), StoreError> {
    bind_run(sqlx::query(PUT_RUN), row).execute(connection).await?;
    Ok(())
}

/// Writes what a plain heartbeat changes.
async fn put_beat(connection: &mut SqliteConnection, row: &RunRow) -> Result<(), StoreError> {
    let Some(beat) = row.run.last_beat else {
        return put_run(connection, row).await;
    };
    sqlx::query(
        "UPDATE runs SET last_beat_at = ?, last_beat_version = ?, beats = ?, version = ?, updated_at = ?, tail = ? \
         WHERE number = ?",
    )
    .bind(beat.at.as_micros())
    .bind(signed(beat.version))
    .bind(signed(row.run.beats))
    .bind(signed(row.run.version))
    .bind(row.run.updated_at.as_micros())
    .bind(pack_tail(row))
    .bind(row.number)
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets the instant of the next look at a run; none for a run that need not be looked at before its next fact.
pub(super) async fn set_due(
    connection: &mut SqliteConnection,
    number: i64,
    check: Option<(Timestamp, Span)>,
) -> Result<(), StoreError> {
    let query = match check {
        Some((at, delay)) => sqlx::query("INSERT OR REPLACE INTO due (run, check_at, delay) VALUES (?, ?, ?)")
            .bind(number)
            .bind(at.as_micros())
            .bind(signed(delay.as_micros())),
        None => sqlx::query("DELETE FROM due WHERE run = ?").bind(number),
    };
    query.execute(connection).await?;
    Ok(())
}

/// Notes that a lane exists.
async fn put_lane(connection: &mut SqliteConnection, lane: &Name) -> Result<(), StoreError> {
    sqlx::query("INSERT OR IGNORE INTO lanes (lane, rearm_after) VALUES (?, NULL)")
        .bind(lane.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

async fn put_rearm(connection: &mut SqliteConnection, lane: &Name, after: Option<i64>) -> Result<(), StoreError> {
    sqlx::query("UPDATE lanes SET rearm_after = ? WHERE lane = ?")
        .bind(after)
        .bind(lane.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

async fn put_pace(connection: &mut SqliteConnection, lane: &Name, pace: &LanePace) -> Result<(), StoreError> {
    sqlx::query("UPDATE lanes SET reap_at = ?, turn_at = ? WHERE lane = ?")
        .bind(pace.reap_at.map(Timestamp::as_micros))
        .bind(pace.turn_at.map(Timestamp::as_micros))
        .bind(lane.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes the beacons as they now stand; there are a handful.
async fn put_beacons(connection: &mut SqliteConnection, beacons: &[Beacon]) -> Result<(), StoreError> {
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

/// Moves a cursor, never back.
async fn move_cursor(connection: &mut SqliteConnection, name: &Name, cursor: CursorWrite) -> Result<(), StoreError> {
    if let Some(position) = cursor.begin {
        sqlx::query("INSERT INTO cursors (name, position) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
            .bind(name.as_str())
            .bind(position)
            .execute(&mut *connection)
            .await?;
    }
    if let Some(position) = cursor.advance {
        sqlx::query(
            "INSERT INTO cursors (name, position) VALUES (?, ?) \
             ON CONFLICT (name) DO UPDATE SET position = max(position, excluded.position)",
        )
        .bind(name.as_str())
        .bind(position)
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Moves all cursors to the end of the log: what was imported is no news to those who follow it.
pub(super) async fn move_all_cursors(connection: &mut SqliteConnection, end: i64) -> Result<(), StoreError> {
    sqlx::query("UPDATE cursors SET position = max(position, ?)").bind(end).execute(connection).await?;
    Ok(())
}

async fn remember(
    connection: &mut SqliteConnection,
    key: &IdempotencyKey,
    answer: &FirstAnswer,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM idempotency WHERE (scope, key) IN \
         (SELECT scope, key FROM idempotency WHERE answered_at <= ? ORDER BY answered_at LIMIT ?)",
    )
    .bind(answer.at.minus(REMEMBERED).as_micros())
    .bind(FORGOTTEN_MAX)
    .execute(&mut *connection)
    .await?;
    // The key may be there still, though forgotten.
    sqlx::query(
        "INSERT OR REPLACE INTO idempotency (scope, key, fingerprint, run_id, version, existing, answered_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(key.scope.as_str())
    .bind(key.key.as_str())
    .bind(answer.fingerprint.as_str())
    .bind(answer.run.as_uuid().as_bytes().to_vec())
    .bind(signed(answer.version))
    .bind(answer.existing)
    .bind(answer.at.as_micros())
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn put_head(connection: &mut SqliteConnection, head: &Head) -> Result<(), StoreError> {
    sqlx::query("UPDATE head SET latest_at = ?, position = ?, beat_position = ?, run = ?")
        .bind(head.latest_at.as_micros())
        .bind(head.position)
        .bind(head.beat_position)
        .bind(head.run)
        .execute(connection)
        .await?;
    Ok(())
}
