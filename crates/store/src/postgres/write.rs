//! Writing what a batch decided, a statement for each table. The log lock is held.

use lastbeat_domain::decide::IdempotencyKey;
use lastbeat_domain::listening::Beacon;
use lastbeat_domain::{Name, Status, Timestamp};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::rows::{BeatingColumns, RunColumns};
use crate::batch::{CursorWrite, LanePace, RunRow, Writes};
use crate::error::StoreError;
use crate::idempotency::{FirstAnswer, REMEMBERED};
use crate::log::{BeatsRow, EventRow, SegmentRow, signed};

/// How many rows one statement carries at the most; a batch has fewer, an import may have millions.
const ROWS_MAX: usize = 5_000;
/// How many forgotten idempotency keys are cleared away for each new one: more than come in, so none pile up.
const FORGOTTEN_MAX: i64 = 8;

/// Writes it all. `latest_at` is the latest instant that the store holds after it.
pub(super) async fn apply(
    connection: &mut PgConnection,
    writes: &Writes,
    latest_at: Timestamp,
) -> Result<(), StoreError> {
    for events in writes.events.chunks(ROWS_MAX) {
        insert_events(connection, events).await?;
    }
    for segments in writes.segments.chunks(ROWS_MAX) {
        insert_segments(connection, segments).await?;
    }
    if let Some(beats) = &writes.beats {
        insert_beats(connection, beats, latest_at).await?;
    }
    for rows in writes.runs.chunks(ROWS_MAX) {
        put_runs(connection, rows, TABLES).await?;
    }
    if !writes.beaten.is_empty() {
        put_beats(connection, &writes.beaten).await?;
    }
    put_due(connection, writes).await?;
    if !writes.lanes.is_empty() {
        put_lanes(connection, writes.lanes.iter()).await?;
    }
    for (lane, after) in &writes.rearm {
        put_rearm(connection, lane, *after).await?;
    }
    for (lane, pace) in &writes.paces {
        put_pace(connection, lane, pace).await?;
    }
    if let Some(beacons) = &writes.beacons {
        put_beacons(connection, beacons, latest_at).await?;
    }
    for (name, cursor) in &writes.cursors {
        move_cursor(connection, name, *cursor).await?;
    }
    for (key, answer) in &writes.answers {
        remember(connection, key, answer).await?;
    }
    Ok(())
}

async fn insert_events(connection: &mut PgConnection, rows: &[EventRow]) -> Result<(), StoreError> {
    let ids: Vec<Option<Uuid>> =
        rows.iter().map(|row| row.run_id.as_deref().and_then(|bytes| Uuid::from_slice(bytes).ok())).collect();
    sqlx::query(
        "INSERT INTO events (position, run, version, recorded_at, schema, digest, run_id, type, body) \
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
         $7::uuid[], $8::text[], $9::text[])",
    )
    .bind(rows.iter().map(|row| row.position).collect::<Vec<i64>>())
    .bind(rows.iter().map(|row| row.run).collect::<Vec<Option<i64>>>())
    .bind(rows.iter().map(|row| row.version).collect::<Vec<Option<i64>>>())
    .bind(rows.iter().map(|row| row.recorded_at).collect::<Vec<i64>>())
    .bind(rows.iter().map(|row| row.schema).collect::<Vec<i64>>())
    .bind(rows.iter().map(|row| row.digest).collect::<Vec<Option<i64>>>())
    .bind(ids)
    .bind(rows.iter().map(|row| row.type_name.as_ref()).collect::<Vec<&str>>())
    .bind(rows.iter().map(|row| row.body.as_str()).collect::<Vec<&str>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts the heartbeats of a commit. `latest_at` is the latest instant of the log with them.
pub(super) async fn insert_beats(
    connection: &mut PgConnection,
    row: &BeatsRow,
    latest_at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO beats (position, recorded_at, latest_at, count, digest, data) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(row.position)
    .bind(row.recorded_at)
    .bind(latest_at.as_micros().max(row.recorded_at))
    .bind(row.count)
    .bind(row.digest)
    .bind(row.data.as_slice())
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn insert_segments(connection: &mut PgConnection, rows: &[SegmentRow]) -> Result<(), StoreError> {
    let column = |index: usize| rows.iter().map(|row| row.numbers()[index]).collect::<Vec<i64>>();
    let mut query = sqlx::query(
        "INSERT INTO segments (run, first_version, last_version, attempt, first_at, last_at, count, digest, data) \
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
         $7::bigint[], $8::bigint[], $9::bytea[])",
    );
    for index in 0..7 {
        query = query.bind(column(index));
    }
    query
        .bind(rows.iter().map(|row| row.digest).collect::<Vec<Option<i64>>>())
        .bind(rows.iter().map(|row| row.data.as_slice()).collect::<Vec<&[u8]>>())
        .execute(connection)
        .await?;
    Ok(())
}

/// The tables of the projection of runs: the ones that everybody reads, or those that are made beside them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub(super) runs: &'static str,
    pub(super) beating: &'static str,
}

/// The ones that everybody reads.
pub(super) const TABLES: Tables = Tables { runs: "runs", beating: "beating" };

/// Writes whole projections.
pub(super) async fn put_runs(connection: &mut PgConnection, rows: &[RunRow], tables: Tables) -> Result<(), StoreError> {
    let mut columns = RunColumns::default();
    rows.iter().for_each(|row| columns.push(row));
    let insert = format!(
        "INSERT INTO {} (number, id, claimed_at, due_at, attempt, quarantined, cancel_requested, version, updated_at, \
         beats, last_beat_version, last_beat_at, status, claim, lane, goal, device, unique_key, rest) \
         SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::integer[], $6::boolean[], \
         $7::boolean[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], \
         $14::text[], $15::text[], $16::text[], $17::text[], $18::text[], $19::text[]) \
         ON CONFLICT (number) DO UPDATE SET claimed_at = excluded.claimed_at, due_at = excluded.due_at, \
         attempt = excluded.attempt, quarantined = excluded.quarantined, \
         cancel_requested = excluded.cancel_requested, version = excluded.version, updated_at = excluded.updated_at, \
         beats = excluded.beats, last_beat_version = excluded.last_beat_version, \
         last_beat_at = excluded.last_beat_at, status = excluded.status, claim = excluded.claim, rest = excluded.rest",
        tables.runs
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(columns.number)
        .bind(columns.id)
        .bind(columns.claimed_at)
        .bind(columns.due_at)
        .bind(columns.attempt)
        .bind(columns.quarantined)
        .bind(columns.cancel_requested)
        .bind(columns.version)
        .bind(columns.updated_at)
        .bind(columns.beats)
        .bind(columns.last_beat_version)
        .bind(columns.last_beat_at)
        .bind(columns.status)
        .bind(columns.claim)
        .bind(columns.lane)
        .bind(columns.goal)
        .bind(columns.device)
        .bind(columns.unique_key)
        .bind(columns.rest)
        .execute(&mut *connection)
        .await?;
    put_beating(connection, rows, tables.beating).await
}

/// Writes the other half of whole projections: of those that beat; and takes out those that beat no more.
async fn put_beating(connection: &mut PgConnection, rows: &[RunRow], table: &str) -> Result<(), StoreError> {
    let (mut beating, mut silent) = (BeatingColumns::default(), Vec::new());
    for row in rows {
        // A run that was never claimed, or has just been, cannot have been beating.
        if !beating.push(row)? && row.run.attempt > 0 && row.run.status != Status::Claimed {
            silent.push(row.run.id.as_uuid());
        }
    }
    if !silent.is_empty() {
        let delete = format!("DELETE FROM {table} WHERE id = ANY($1)");
        sqlx::query(AssertSqlSafe(delete)).bind(silent).execute(&mut *connection).await?;
    }
    if beating.id.is_empty() {
        return Ok(());
    }
    let insert = format!(
        "INSERT INTO {table} (id, number, claimed_at, attempt, cancel_requested, claim, lane, version, updated_at, \
         tail) SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::integer[], $5::boolean[], $6::uuid[], \
         $7::text[], $8::bigint[], $9::bigint[], $10::bytea[]) \
         ON CONFLICT (id) DO UPDATE SET claimed_at = excluded.claimed_at, attempt = excluded.attempt, \
         cancel_requested = excluded.cancel_requested, claim = excluded.claim, version = excluded.version, \
         updated_at = excluded.updated_at, tail = excluded.tail"
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(beating.id)
        .bind(beating.number)
        .bind(beating.claimed_at)
        .bind(beating.attempt)
        .bind(beating.cancel_requested)
        .bind(beating.claim)
        .bind(beating.lane)
        .bind(beating.version)
        .bind(beating.updated_at)
        .bind(beating.tail)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes what plain heartbeats change.
async fn put_beats(connection: &mut PgConnection, rows: &[RunRow]) -> Result<(), StoreError> {
    let mut beating = BeatingColumns::default();
    for row in rows {
        beating.push(row)?;
    }
    sqlx::query(
        "UPDATE beating AS r SET version = b.version, updated_at = b.updated_at, tail = b.tail \
         FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bytea[]) AS b(id, version, updated_at, tail) \
         WHERE r.id = b.id",
    )
    .bind(beating.id)
    .bind(beating.version)
    .bind(beating.updated_at)
    .bind(beating.tail)
    .execute(connection)
    .await?;
    Ok(())
}

async fn put_due(connection: &mut PgConnection, writes: &Writes) -> Result<(), StoreError> {
    let gone: Vec<i64> = writes.due.iter().filter(|(_, check)| check.is_none()).map(|(run, _)| *run).collect();
    if !gone.is_empty() {
        sqlx::query("DELETE FROM due WHERE run = ANY($1)").bind(gone).execute(&mut *connection).await?;
    }
    let due: Vec<(i64, i64, i64)> = writes
        .due
        .iter()
        .filter_map(|(run, check)| check.map(|(at, delay)| (*run, at.as_micros(), signed(delay.as_micros()))))
        .collect();
    for due in due.chunks(ROWS_MAX) {
        sqlx::query(
            "INSERT INTO due (run, check_at, delay) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) \
             ON CONFLICT (run) DO UPDATE SET check_at = excluded.check_at, delay = excluded.delay \
             WHERE (due.check_at, due.delay) IS DISTINCT FROM (excluded.check_at, excluded.delay)",
        )
        .bind(due.iter().map(|due| due.0).collect::<Vec<i64>>())
        .bind(due.iter().map(|due| due.1).collect::<Vec<i64>>())
        .bind(due.iter().map(|due| due.2).collect::<Vec<i64>>())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Notes that lanes exist.
pub(super) async fn put_lanes(
    connection: &mut PgConnection,
    lanes: impl Iterator<Item = &Name>,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO lanes (lane) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING")
        .bind(lanes.map(Name::as_str).collect::<Vec<&str>>())
        .execute(connection)
        .await?;
    Ok(())
}

async fn put_rearm(connection: &mut PgConnection, lane: &Name, after: Option<i64>) -> Result<(), StoreError> {
    sqlx::query("UPDATE lanes SET rearm_after = $1 WHERE lane = $2")
        .bind(after)
        .bind(lane.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

async fn put_pace(connection: &mut PgConnection, lane: &Name, pace: &LanePace) -> Result<(), StoreError> {
    sqlx::query("UPDATE lanes SET reap_at = $1, turn_at = $2 WHERE lane = $3")
        .bind(pace.reap_at.map(Timestamp::as_micros))
        .bind(pace.turn_at.map(Timestamp::as_micros))
        .bind(lane.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes the beacons as they now stand; there are a handful. One that goes may have been the latest instant that the
/// store held, so that is written down: log time must not fall behind it.
async fn put_beacons(
    connection: &mut PgConnection,
    beacons: &[Beacon],
    latest_at: Timestamp,
) -> Result<(), StoreError> {
    let processes: Vec<&str> = beacons.iter().map(|beacon| beacon.process.as_str()).collect();
    let gone = sqlx::query("DELETE FROM beacons WHERE process <> ALL($1)")
        .bind(processes.clone())
        .execute(&mut *connection)
        .await?;
    if gone.rows_affected() > 0 {
        raise_head(connection, latest_at, 0).await?;
    }
    sqlx::query(
        "INSERT INTO beacons (process, role, at, promise) \
         SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) \
         ON CONFLICT (process) DO UPDATE SET role = excluded.role, at = excluded.at, promise = excluded.promise \
         WHERE (beacons.role, beacons.at, beacons.promise) IS DISTINCT FROM \
         (excluded.role, excluded.at, excluded.promise)",
    )
    .bind(processes)
    .bind(beacons.iter().map(|beacon| beacon.role.as_str()).collect::<Vec<&str>>())
    .bind(beacons.iter().map(|beacon| beacon.at.as_micros()).collect::<Vec<i64>>())
    .bind(beacons.iter().map(|beacon| beacon.promise.map(Timestamp::as_micros)).collect::<Vec<Option<i64>>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes down the latest instant that the store holds, and the last position of heartbeats that was given out, where no
/// row of the log shows them.
pub(super) async fn raise_head(
    connection: &mut PgConnection,
    latest_at: Timestamp,
    beat_position: i64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE head SET latest_at = greatest(latest_at, $1), beat_position = greatest(beat_position, $2)")
        .bind(latest_at.as_micros())
        .bind(beat_position)
        .execute(connection)
        .await?;
    Ok(())
}

/// Moves a cursor, never back.
async fn move_cursor(connection: &mut PgConnection, name: &Name, cursor: CursorWrite) -> Result<(), StoreError> {
    if let Some(position) = cursor.begin {
        sqlx::query("INSERT INTO cursors (name, position) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(name.as_str())
            .bind(position)
            .execute(&mut *connection)
            .await?;
    }
    if let Some(position) = cursor.advance {
        sqlx::query(
            "INSERT INTO cursors (name, position) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET position = greatest(cursors.position, excluded.position)",
        )
        .bind(name.as_str())
        .bind(position)
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Moves all cursors to the end of the log: what was imported is no news to those who follow it.
pub(super) async fn move_all_cursors(connection: &mut PgConnection, end: i64) -> Result<(), StoreError> {
    sqlx::query("UPDATE cursors SET position = greatest(position, $1)").bind(end).execute(connection).await?;
    Ok(())
}

async fn remember(connection: &mut PgConnection, key: &IdempotencyKey, answer: &FirstAnswer) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM idempotency WHERE (scope, key) IN \
         (SELECT scope, key FROM idempotency WHERE answered_at <= $1 ORDER BY answered_at LIMIT $2)",
    )
    .bind(answer.at.minus(REMEMBERED).as_micros())
    .bind(FORGOTTEN_MAX)
    .execute(&mut *connection)
    .await?;
    // The key may be there still, though forgotten.
    sqlx::query(
        "INSERT INTO idempotency (scope, key, fingerprint, run_id, version, existing, answered_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (scope, key) DO UPDATE SET \
         fingerprint = excluded.fingerprint, run_id = excluded.run_id, version = excluded.version, \
         existing = excluded.existing, answered_at = excluded.answered_at",
    )
    .bind(key.scope.as_str())
    .bind(key.key.as_str())
    .bind(answer.fingerprint.as_str())
    .bind(answer.run.as_uuid())
    .bind(signed(answer.version))
    .bind(answer.existing)
    .bind(answer.at.as_micros())
    .execute(connection)
    .await?;
    Ok(())
}
