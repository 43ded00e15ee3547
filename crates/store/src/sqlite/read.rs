//! The statements that read. Each question is answered from one snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastbeat_domain::listening::Beacon;
use lastbeat_domain::{Name, Run, RunId, Status, Timestamp};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row};

use super::rows::{RUN_COLUMNS, read_event, read_id, read_instant, read_name, read_run, read_segment, read_word};
use crate::batch::{Head, RunRow};
use crate::error::StoreError;
use crate::log::{signed, unsigned};
use crate::reaps::{PAGE_ROWS, ReapPage, ReapRow};
use crate::record::{SEGMENTS_OF_PAGE, Stored, decode_run_event, feed_entry, put_in_order};
use crate::service::ServiceLog;
use crate::{FeedEntry, Filter, Sample, StreamPage};

/// Reads the service events that were appended since `known`, and the beacons.
pub(super) async fn refresh_service_log(
    connection: &mut SqliteConnection,
    known: &Arc<ServiceLog>,
) -> Result<Arc<ServiceLog>, StoreError> {
    let rows: Vec<(i64, i64, i64, String)> = sqlx::query_as(
        "SELECT position, recorded_at, schema, body FROM events WHERE run IS NULL AND position > ? ORDER BY position",
    )
    .bind(known.through)
    .fetch_all(&mut *connection)
    .await?;
    let beacons = beacons(connection).await?;
    Ok(ServiceLog::refreshed(known, rows, beacons))
}

pub(super) async fn beacons(connection: &mut SqliteConnection) -> Result<Vec<Beacon>, StoreError> {
    let rows =
        sqlx::query("SELECT process, role, at, promise FROM beacons ORDER BY process").fetch_all(connection).await?;
    let beacon = |row: &sqlx::sqlite::SqliteRow| {
        let process = read_name(row, "process")?.ok_or_else(|| StoreError::Corrupt("a beacon of nobody".to_owned()))?;
        let (at, promise) = (Timestamp::from_micros(row.try_get("at")?), read_instant(row, "promise")?);
        Ok(Beacon { process, role: read_word(row, "role")?, at, promise })
    };
    rows.iter().map(beacon).collect()
}

/// Reads the end of the log.
pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    let row = sqlx::query("SELECT latest_at, position, beat_position, run FROM head").fetch_one(connection).await?;
    Ok(Head {
        latest_at: Timestamp::from_micros(row.try_get("latest_at")?),
        position: row.try_get("position")?,
        beat_position: row.try_get("beat_position")?,
        run: row.try_get("run")?,
    })
}

pub(super) async fn latest_at(connection: &mut SqliteConnection) -> Result<Timestamp, StoreError> {
    let micros: i64 = sqlx::query_scalar("SELECT latest_at FROM head").fetch_one(connection).await?;
    Ok(Timestamp::from_micros(micros))
}

pub(super) async fn run_row(connection: &mut SqliteConnection, id: RunId) -> Result<Option<RunRow>, StoreError> {
    let select = format!("SELECT {RUN_COLUMNS} FROM runs WHERE id = ?");
    let query = sqlx::query(AssertSqlSafe(select)).bind(id.as_uuid().as_bytes().to_vec());
    query.fetch_optional(connection).await?.as_ref().map(read_run).transpose()
}

/// Runs with their numbers after `after`, in the order of their numbers.
pub(super) async fn run_rows(
    connection: &mut SqliteConnection,
    after: i64,
    limit: i64,
) -> Result<Vec<RunRow>, StoreError> {
    let select = format!("SELECT {RUN_COLUMNS} FROM runs WHERE number > ? ORDER BY number LIMIT ?");
    let rows = sqlx::query(AssertSqlSafe(select)).bind(after).bind(limit).fetch_all(connection).await?;
    rows.iter().map(read_run).collect()
}

/// Runs, newest first, beginning after the run `after`.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    filter: &Filter,
    after: Option<RunId>,
    limit: usize,
) -> Result<Vec<Run>, StoreError> {
    let after = match after {
        None => i64::MAX,
        Some(id) => match run_row(connection, id).await? {
            Some(row) => row.number,
            None => return Ok(Vec::new()),
        },
    };
    let statuses: Vec<&str> = filter.statuses.iter().map(|status| status.as_str()).collect();
    let mut select = sqlx::QueryBuilder::<sqlx::Sqlite>::new("SELECT ");
    select.push(RUN_COLUMNS).push(" FROM runs WHERE number < ").push_bind(after);
    if let Some(lane) = &filter.lane {
        select.push(" AND lane = ").push_bind(lane.as_str());
    }
    if let Some(goal) = &filter.goal {
        select.push(" AND goal = ").push_bind(goal.as_str());
    }
    if !statuses.is_empty() {
        select.push(" AND status IN (");
        let mut words = select.separated(", ");
        for status in statuses {
            words.push_bind(status);
        }
        select.push(")");
    }
    select.push(" ORDER BY number DESC LIMIT ").push_bind(signed(limit as u64));
    let rows = select.build().fetch_all(connection).await?;
    rows.iter().map(|row| read_run(row).map(|row| row.run)).collect()
}

/// A page of a run's stream: rows of events, segments and the tail, in the order of their versions.
pub(super) async fn stream(
    connection: &mut SqliteConnection,
    row: &RunRow,
    after: u64,
    limit: usize,
) -> Result<StreamPage, StoreError> {
    let facts = events(connection, row, after, limit + 1).await?;
    let query = sqlx::query(SEGMENTS_OF_PAGE).bind(row.number).bind(signed(after)).bind(signed(limit as u64));
    let segments = query.fetch_all(connection).await?;
    let segments = segments.iter().map(read_segment).collect::<Result<Vec<_>, StoreError>>()?;
    put_in_order(row, facts, &segments, after, limit)
}

/// The whole stream of a run.
pub(super) async fn whole_stream(connection: &mut SqliteConnection, row: &RunRow) -> Result<Vec<Stored>, StoreError> {
    // A bound that no stream reaches, and one more still fits a signed integer.
    const ALL: usize = (i64::MAX / 4) as usize;
    Ok(stream(connection, row, 0, ALL).await?.facts)
}

async fn events(
    connection: &mut SqliteConnection,
    row: &RunRow,
    after: u64,
    limit: usize,
) -> Result<Vec<Stored>, StoreError> {
    let rows = sqlx::query(
        "SELECT version, recorded_at, schema, body FROM events WHERE run = ? AND version > ? ORDER BY version LIMIT ?",
    )
    .bind(row.number)
    .bind(signed(after))
    .bind(signed(limit as u64))
    .fetch_all(connection)
    .await?;
    let read = |event: &sqlx::sqlite::SqliteRow| {
        let version = unsigned(event.try_get("version")?)?;
        let recorded_at = Timestamp::from_micros(event.try_get("recorded_at")?);
        let body: String = event.try_get("body")?;
        decode_run_event(row.run.id, version, recorded_at, event.try_get("schema")?, &body)
    };
    rows.iter().map(read).collect()
}

/// Facts after a position, in the order of their commits.
pub(super) async fn feed(
    connection: &mut SqliteConnection,
    after: u64,
    limit: usize,
) -> Result<Vec<FeedEntry>, StoreError> {
    let rows = sqlx::query(
        "SELECT events.*, runs.id AS of FROM events LEFT JOIN runs ON runs.number = events.run \
         WHERE position > ? ORDER BY position LIMIT ?",
    )
    .bind(signed(after))
    .bind(signed(limit as u64))
    .fetch_all(connection)
    .await?;
    let entry = |row: &sqlx::sqlite::SqliteRow| {
        let event = read_event(row)?;
        let run = event.run.map(|_| read_id(row, "of")).transpose()?;
        feed_entry(&event, run)
    };
    rows.iter().map(entry).collect()
}

/// The runs that are due by `now`, with the instants for which they were, the longest due first.
pub(super) async fn due(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<(Run, Timestamp)>, StoreError> {
    // One statement: each costs a turn to the connection's thread and back.
    let select = format!(
        "SELECT check_at, {RUN_COLUMNS} FROM due JOIN runs ON runs.number = due.run \
         WHERE check_at <= ? ORDER BY check_at LIMIT ?"
    );
    let query = sqlx::query(AssertSqlSafe(select)).bind(now.as_micros()).bind(signed(limit as u64));
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| Ok((read_run(row)?.run, Timestamp::from_micros(row.try_get("check_at")?)))).collect()
}

/// Running runs of a lane: all of them, or of many a random choice.
pub(super) async fn running(
    connection: &mut SqliteConnection,
    lane: &Name,
    limit: usize,
) -> Result<Sample, StoreError> {
    let of: i64 = sqlx::query_scalar("SELECT count(*) FROM runs WHERE lane = ? AND status = 'running'")
        .bind(lane.as_str())
        .fetch_one(&mut *connection)
        .await?;
    let select = format!(
        "SELECT {RUN_COLUMNS} FROM runs WHERE number IN \
         (SELECT number FROM runs WHERE lane = ? AND status = 'running' ORDER BY random() LIMIT ?)"
    );
    let query = sqlx::query(AssertSqlSafe(select)).bind(lane.as_str()).bind(signed(limit as u64));
    let rows = query.fetch_all(connection).await?;
    let runs = rows.iter().map(|row| read_run(row).map(|row| row.run)).collect::<Result<Vec<Run>, StoreError>>()?;
    Ok(Sample { runs, of: unsigned(of)? })
}

/// What the indexes of the reaps hold. A statement that is to use them says it word for word.
const IS_REAP: &str =
    "(e.type IN ('timed_out', 'late_signal') OR (e.type = 'completed' AND instr(e.body, '\"late\":true') > 0))";

/// Reaps and what was said after them, beyond a position, in the order of their commits.
pub(super) async fn reaps(connection: &mut SqliteConnection, after: i64) -> Result<ReapPage, StoreError> {
    let select = format!(
        "SELECT e.position, e.run, e.version, e.recorded_at, e.schema, e.body, c.body AS created \
         FROM events AS e INDEXED BY events_reaps JOIN events AS c ON c.run = e.run AND c.version = 1 \
         WHERE e.position > ? AND {IS_REAP} ORDER BY e.position LIMIT ?"
    );
    let rows = sqlx::query(AssertSqlSafe(select)).bind(after).bind(PAGE_ROWS).fetch_all(&mut *connection).await?;
    let rows = rows.iter().map(read_reap).collect::<Result<Vec<_>, StoreError>>()?;
    let select = format!(
        "SELECT e.position, e.run, e.version, e.recorded_at, e.schema, e.body, '' AS created \
         FROM events AS e INDEXED BY events_reaps_of WHERE e.run = ? AND {IS_REAP} ORDER BY e.version"
    );
    let mut around = Vec::new();
    for run in ReapPage::spoken_of(&rows) {
        let found = sqlx::query(AssertSqlSafe(select.clone())).bind(run).fetch_all(&mut *connection).await?;
        for row in &found {
            around.push(read_reap(row)?);
        }
    }
    Ok(ReapPage { rows, around })
}

fn read_reap(row: &sqlx::sqlite::SqliteRow) -> Result<ReapRow, StoreError> {
    Ok(ReapRow {
        position: row.try_get("position")?,
        run: row.try_get("run")?,
        version: row.try_get("version")?,
        recorded_at: row.try_get("recorded_at")?,
        schema: row.try_get("schema")?,
        body: row.try_get("body")?,
        created: row.try_get("created")?,
    })
}

pub(super) async fn next_due(connection: &mut SqliteConnection) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = sqlx::query_scalar("SELECT min(check_at) FROM due").fetch_one(connection).await?;
    Ok(micros.map(Timestamp::from_micros))
}

/// How far a cursor has come.
pub(super) async fn cursor(connection: &mut SqliteConnection, name: &Name) -> Result<Option<u64>, StoreError> {
    let query = sqlx::query_scalar("SELECT position FROM cursors WHERE name = ?").bind(name.as_str());
    let position: Option<i64> = query.fetch_optional(connection).await?;
    position.map(unsigned).transpose()
}

pub(super) async fn lanes(connection: &mut SqliteConnection, changed_only: bool) -> Result<Vec<Name>, StoreError> {
    let names: Vec<String> =
        sqlx::query_scalar("SELECT lane FROM lanes WHERE rearm_after IS NOT NULL OR NOT ? ORDER BY lane")
            .bind(changed_only)
            .fetch_all(connection)
            .await?;
    let name = |name: String| Name::new(name).map_err(|error| StoreError::Corrupt(format!("a lane: {error}")));
    names.into_iter().map(name).collect()
}

pub(super) async fn log_end(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let end: Option<i64> = sqlx::query_scalar("SELECT max(position) FROM events").fetch_one(connection).await?;
    unsigned(end.unwrap_or(0))
}

/// The goals, each found by a step in the index of the one before.
pub(super) async fn goals(
    connection: &mut SqliteConnection,
    after: Option<&Name>,
    limit: usize,
) -> Result<Vec<Name>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "WITH RECURSIVE found (goal) AS (SELECT min(goal) FROM runs WHERE goal > ? UNION ALL \
         SELECT (SELECT min(goal) FROM runs WHERE goal > found.goal) FROM found WHERE found.goal IS NOT NULL) \
         SELECT goal FROM found WHERE goal IS NOT NULL LIMIT ?",
    )
    .bind(after.map_or("", Name::as_str))
    .bind(signed(limit as u64))
    .fetch_all(connection)
    .await?;
    let name = |name: String| Name::new(name).map_err(|error| StoreError::Corrupt(format!("a goal: {error}")));
    names.into_iter().map(name).collect()
}

pub(super) async fn count(connection: &mut SqliteConnection, lane: &Name) -> Result<BTreeMap<Status, u64>, StoreError> {
    let mut counts = BTreeMap::new();
    let rows = sqlx::query("SELECT status, count(*) AS runs FROM runs WHERE lane = ? GROUP BY status")
        .bind(lane.as_str())
        .fetch_all(connection)
        .await?;
    for row in rows {
        let word: String = row.try_get("status")?;
        let status = Status::ALL.into_iter().find(|status| status.as_str() == word);
        let status = status.ok_or_else(|| StoreError::Corrupt(format!("`{word}` is no status")))?;
        counts.insert(status, unsigned(row.try_get("runs")?)?);
    }
    Ok(counts)
}
