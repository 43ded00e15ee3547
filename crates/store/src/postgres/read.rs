//! The statements that read. Most questions are one statement, which is answered from one snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastbeat_domain::listening::Beacon;
use lastbeat_domain::{Name, Run, RunId, Status, Timestamp};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};

use super::rows::{RUN_COLUMNS, read_event, read_name, read_run, read_segment, read_word};
use crate::batch::{Head, RunRow};
use crate::error::StoreError;
use crate::log::{EventRow, signed, unsigned};
use crate::reaps::{PAGE_ROWS, ReapPage, ReapRow};
use crate::record::{SEGMENTS_OF_PAGE, Stored, decode_run_event, feed_entry, put_in_order};
use crate::service::ServiceLog;
use crate::{FeedEntry, Filter, Sample, StreamPage};

/// Reads the service events that were appended since `known`, and the beacons: in one statement, since a gap that is
/// neither recorded yet nor open any more would be charged to executors.
pub(super) async fn refresh_service_log(
    connection: &mut PgConnection,
    known: &Arc<ServiceLog>,
) -> Result<Arc<ServiceLog>, StoreError> {
    let rows = sqlx::query(
        "SELECT position, recorded_at, schema, body, NULL AS process, NULL AS role, NULL::bigint AS promise \
         FROM events WHERE run IS NULL AND position > $1 \
         UNION ALL SELECT NULL, at, NULL, NULL, process, role, promise FROM beacons ORDER BY position, process",
    )
    .bind(known.through)
    .fetch_all(connection)
    .await?;
    let (mut events, mut beacons) = (Vec::new(), Vec::new());
    for row in &rows {
        match row.try_get::<Option<i64>, _>("position")? {
            Some(position) => {
                events.push((position, row.try_get("recorded_at")?, row.try_get("schema")?, row.try_get("body")?));
            }
            None => beacons.push(beacon(row)?),
        }
    }
    // In whatever order the database's collation puts them, ours is that of the bytes.
    beacons.sort_by(|a: &Beacon, b| a.process.cmp(&b.process));
    Ok(ServiceLog::refreshed(known, events, beacons))
}

fn beacon(row: &PgRow) -> Result<Beacon, StoreError> {
    let process = read_name(row, "process")?.ok_or_else(|| StoreError::Corrupt("a beacon of nobody".to_owned()))?;
    let promise = row.try_get::<Option<i64>, _>("promise")?.map(Timestamp::from_micros);
    let at = Timestamp::from_micros(row.try_get("recorded_at")?);
    Ok(Beacon { process, role: read_word(row, "role")?, at, promise })
}

/// The rows of the service events, in the order of their commits.
pub(super) async fn service_rows(connection: &mut PgConnection) -> Result<Vec<EventRow>, StoreError> {
    let select = "SELECT * FROM events WHERE run IS NULL ORDER BY position";
    sqlx::query(select).fetch_all(connection).await?.iter().map(read_event).collect()
}

/// Reads the log's now.
pub(super) async fn now(connection: &mut PgConnection, simulated: Option<i64>) -> Result<Timestamp, StoreError> {
    let micros: i64 = sqlx::query_scalar("SELECT greatest(lastbeat_clock($1), lastbeat_latest_at())")
        .bind(simulated)
        .fetch_one(connection)
        .await?;
    Ok(Timestamp::from_micros(micros))
}

/// Reads the end of the log as one snapshot shows it. What is to be appended begins from the end under the log lock.
pub(super) async fn head(connection: &mut PgConnection) -> Result<Head, StoreError> {
    let row = sqlx::query(
        "SELECT lastbeat_latest_at() AS latest_at, coalesce((SELECT max(position) FROM events), 0) AS position, \
         greatest((SELECT max(position) FROM beats), (SELECT beat_position FROM head)) AS beat_position, \
         greatest((SELECT max(number) FROM runs), (SELECT max(run) FROM events WHERE run IS NOT NULL), 0) AS run",
    )
    .fetch_one(connection)
    .await?;
    Ok(Head {
        latest_at: Timestamp::from_micros(row.try_get("latest_at")?),
        position: row.try_get("position")?,
        beat_position: row.try_get("beat_position")?,
        run: row.try_get("run")?,
    })
}

pub(super) async fn run_row(connection: &mut PgConnection, id: RunId) -> Result<Option<RunRow>, StoreError> {
    let select = format!("SELECT {RUN_COLUMNS} FROM whole_runs WHERE id = $1");
    let query = sqlx::query(AssertSqlSafe(select)).bind(id.as_uuid());
    query.fetch_optional(connection).await?.as_ref().map(read_run).transpose()
}

/// Runs with their numbers after `after`, in the order of their numbers.
pub(super) async fn run_rows(connection: &mut PgConnection, after: i64, limit: i64) -> Result<Vec<RunRow>, StoreError> {
    let select = format!("SELECT {RUN_COLUMNS} FROM whole_runs WHERE number > $1 ORDER BY number LIMIT $2");
    let rows = sqlx::query(AssertSqlSafe(select)).bind(after).bind(limit).fetch_all(connection).await?;
    rows.iter().map(read_run).collect()
}

/// Runs, newest first, beginning after the run `after`.
pub(super) async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    after: Option<RunId>,
    limit: usize,
) -> Result<Vec<Run>, StoreError> {
    let mut select = sqlx::QueryBuilder::<sqlx::Postgres>::new("SELECT ");
    select.push(RUN_COLUMNS).push(" FROM whole_runs WHERE true");
    if let Some(after) = after {
        select.push(" AND number < (SELECT number FROM runs WHERE id = ").push_bind(after.as_uuid()).push(")");
    }
    if let Some(lane) = &filter.lane {
        select.push(" AND lane = ").push_bind(lane.as_str());
    }
    if let Some(goal) = &filter.goal {
        select.push(" AND goal = ").push_bind(goal.as_str());
    }
    if !filter.statuses.is_empty() {
        let statuses: Vec<&str> = filter.statuses.iter().map(|status| status.as_str()).collect();
        select.push(" AND status = ANY(").push_bind(statuses).push(")");
    }
    select.push(" ORDER BY number DESC LIMIT ").push_bind(signed(limit as u64));
    let rows = select.build().fetch_all(connection).await?;
    rows.iter().map(|row| read_run(row).map(|row| row.run)).collect()
}

/// A page of a run's stream: rows of events, segments and the tail, in the order of their versions. The connection holds
/// a snapshot in which the row was read.
pub(super) async fn stream(
    connection: &mut PgConnection,
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
pub(super) async fn whole_stream(connection: &mut PgConnection, row: &RunRow) -> Result<Vec<Stored>, StoreError> {
    // A bound that no stream reaches, and one more still fits a signed integer.
    const ALL: usize = (i64::MAX / 4) as usize;
    Ok(stream(connection, row, 0, ALL).await?.facts)
}

async fn events(
    connection: &mut PgConnection,
    row: &RunRow,
    after: u64,
    limit: usize,
) -> Result<Vec<Stored>, StoreError> {
    let rows: Vec<(i64, i64, i64, String)> = sqlx::query_as(
        "SELECT version, recorded_at, schema, body FROM events WHERE run = $1 AND version > $2 ORDER BY version LIMIT $3",
    )
    .bind(row.number)
    .bind(signed(after))
    .bind(signed(limit as u64))
    .fetch_all(connection)
    .await?;
    let read = |(version, at, schema, body): (i64, i64, i64, String)| {
        decode_run_event(row.run.id, unsigned(version)?, Timestamp::from_micros(at), schema, &body)
    };
    rows.into_iter().map(read).collect()
}

/// Facts after a position, in the order of their commits. Positions are drawn under the log lock, so none that is smaller
/// than one of these is still to come.
pub(super) async fn feed(
    connection: &mut PgConnection,
    after: u64,
    limit: usize,
) -> Result<Vec<FeedEntry>, StoreError> {
    let rows = sqlx::query(
        "SELECT e.*, r.id AS of FROM (SELECT * FROM events WHERE position > $1 ORDER BY position LIMIT $2) AS e \
         LEFT JOIN runs AS r ON r.number = e.run ORDER BY e.position",
    )
    .bind(signed(after))
    .bind(signed(limit as u64))
    .fetch_all(connection)
    .await?;
    let entry = |row: &PgRow| {
        let run = row.try_get::<Option<uuid::Uuid>, _>("of")?.map(RunId::from_uuid);
        feed_entry(&read_event(row)?, run)
    };
    rows.iter().map(entry).collect()
}

/// The runs that are due by `now`, with the instants for which they were, the longest due first.
pub(super) async fn due(
    connection: &mut PgConnection,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<(Run, Timestamp)>, StoreError> {
    let select = format!(
        "SELECT {RUN_COLUMNS}, check_at FROM (SELECT run, check_at FROM due WHERE check_at <= $1 \
         ORDER BY check_at LIMIT $2) AS d JOIN whole_runs ON number = d.run ORDER BY check_at"
    );
    let query = sqlx::query(AssertSqlSafe(select)).bind(now.as_micros()).bind(signed(limit as u64));
    let read = |row: &PgRow| Ok((read_run(row)?.run, Timestamp::from_micros(row.try_get("check_at")?)));
    query.fetch_all(connection).await?.iter().map(read).collect()
}

/// Running runs of a lane: all of them, or of many a random choice.
pub(super) async fn running(connection: &mut PgConnection, lane: &Name, limit: usize) -> Result<Sample, StoreError> {
    let select = format!(
        "SELECT {RUN_COLUMNS} FROM whole_runs WHERE number IN \
         (SELECT number FROM runs WHERE lane = $1 AND status = 'running' ORDER BY random() LIMIT $2)"
    );
    let query = sqlx::query(AssertSqlSafe(select)).bind(lane.as_str()).bind(signed(limit as u64));
    let rows = query.fetch_all(&mut *connection).await?;
    let runs = rows.iter().map(|row| read_run(row).map(|row| row.run)).collect::<Result<Vec<Run>, StoreError>>()?;
    if runs.len() < limit {
        return Ok(Sample { of: runs.len() as u64, runs });
    }
    let of: i64 = sqlx::query_scalar("SELECT count(*) FROM runs WHERE lane = $1 AND status = 'running'")
        .bind(lane.as_str())
        .fetch_one(connection)
        .await?;
    Ok(Sample { runs, of: unsigned(of)? })
}

/// What the indexes of the reaps hold. A statement that is to use them says it word for word.
const IS_REAP: &str =
    "(e.type IN ('timed_out', 'late_signal') OR (e.type = 'completed' AND strpos(e.body, '\"late\":true') > 0))";

/// Reaps and what was said after them, beyond a position, in the order of their commits.
pub(super) async fn reaps(connection: &mut PgConnection, after: i64) -> Result<ReapPage, StoreError> {
    let select = format!(
        "SELECT e.position, e.run, e.version, e.recorded_at, e.schema, e.body, c.body AS created \
         FROM events AS e JOIN events AS c ON c.run = e.run AND c.version = 1 \
         WHERE e.position > $1 AND {IS_REAP} ORDER BY e.position LIMIT $2"
    );
    let rows = sqlx::query(AssertSqlSafe(select)).bind(after).bind(PAGE_ROWS).fetch_all(&mut *connection).await?;
    let rows = rows.iter().map(read_reap).collect::<Result<Vec<_>, StoreError>>()?;
    let spoken_of = ReapPage::spoken_of(&rows);
    if spoken_of.is_empty() {
        return Ok(ReapPage { rows, around: Vec::new() });
    }
    let select = format!(
        "SELECT e.position, e.run, e.version, e.recorded_at, e.schema, e.body, '' AS created \
         FROM events AS e WHERE e.run = ANY($1) AND {IS_REAP} ORDER BY e.run, e.version"
    );
    let around = sqlx::query(AssertSqlSafe(select)).bind(spoken_of).fetch_all(connection).await?;
    Ok(ReapPage { rows, around: around.iter().map(read_reap).collect::<Result<Vec<_>, StoreError>>()? })
}

fn read_reap(row: &PgRow) -> Result<ReapRow, StoreError> {
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

pub(super) async fn next_due(connection: &mut PgConnection) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = sqlx::query_scalar("SELECT min(check_at) FROM due").fetch_one(connection).await?;
    Ok(micros.map(Timestamp::from_micros))
}

/// How far a cursor has come.
pub(super) async fn cursor(connection: &mut PgConnection, name: &Name) -> Result<Option<u64>, StoreError> {
    let query = sqlx::query_scalar("SELECT position FROM cursors WHERE name = $1").bind(name.as_str());
    let position: Option<i64> = query.fetch_optional(connection).await?;
    position.map(unsigned).transpose()
}

pub(super) async fn lanes(connection: &mut PgConnection, changed_only: bool) -> Result<Vec<Name>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT lane FROM lanes WHERE rearm_after IS NOT NULL OR NOT $1 ORDER BY lane COLLATE \"C\"",
    )
    .bind(changed_only)
    .fetch_all(connection)
    .await?;
    let name = |name: String| Name::new(name).map_err(|error| StoreError::Corrupt(format!("a lane: {error}")));
    names.into_iter().map(name).collect()
}

pub(super) async fn log_end(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let end: Option<i64> = sqlx::query_scalar("SELECT max(position) FROM events").fetch_one(connection).await?;
    unsigned(end.unwrap_or(0))
}

/// The goals, each found by a step in the index of the one before.
pub(super) async fn goals(
    connection: &mut PgConnection,
    after: Option<&Name>,
    limit: usize,
) -> Result<Vec<Name>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "WITH RECURSIVE found (goal) AS (SELECT min(goal) FROM runs WHERE goal > $1 UNION ALL \
         SELECT (SELECT min(goal) FROM runs WHERE goal > found.goal) FROM found WHERE found.goal IS NOT NULL) \
         SELECT goal FROM found WHERE goal IS NOT NULL LIMIT $2",
    )
    .bind(after.map_or("", Name::as_str))
    .bind(signed(limit as u64))
    .fetch_all(connection)
    .await?;
    let name = |name: String| Name::new(name).map_err(|error| StoreError::Corrupt(format!("a goal: {error}")));
    names.into_iter().map(name).collect()
}

pub(super) async fn count(connection: &mut PgConnection, lane: &Name) -> Result<BTreeMap<Status, u64>, StoreError> {
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT status, count(*) FROM runs WHERE lane = $1 GROUP BY status")
        .bind(lane.as_str())
        .fetch_all(connection)
        .await?;
    let mut counts = BTreeMap::new();
    for (word, runs) in rows {
        let status = Status::ALL.into_iter().find(|status| status.as_str() == word);
        let status = status.ok_or_else(|| StoreError::Corrupt(format!("`{word}` is no status")))?;
        counts.insert(status, unsigned(runs)?);
    }
    Ok(counts)
}
