//! Reading what a batch is decided on. The connection holds the write lock of the file, so nothing of it changes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};

use lastbeat_domain::decide::{Claimant, Command, IdempotencyKey};
use lastbeat_domain::hold::HoldState;
use lastbeat_domain::{Name, RunId, Span, Timestamp};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use super::read::{run_row, stream};
use super::rows::{RUN_COLUMNS, read_id, read_instant, read_run};
use crate::batch::{Ground, LanePace, RunRow, input_of, is_sweepers, needed_key};
use crate::error::StoreError;
use crate::idempotency::{FirstAnswer, Known, REMEMBERED};
use crate::log::{signed, unsigned};
use crate::record::decode_run_event;
use crate::service::ServiceLog;

/// Reads what the commands are decided on at log time `now`.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    service: &ServiceLog,
    commands: &[Command],
    now: Timestamp,
) -> Result<Ground, StoreError> {
    let mut ground = Ground::default();
    for command in commands {
        if let Some(id) = command.run()
            && let Some(row) = run_row(connection, id).await?
        {
            if is_sweepers(command) {
                read_delay(connection, row.number, &mut ground).await?;
            }
            if matches!(command.inner(), Command::ClaimRun { .. })
                && let Some(input) = read_input(connection, &row).await?
            {
                ground.inputs.insert(id, input);
            }
            ground.runs.insert(id, row);
        }
        if let Some(key) = command.idempotency_key()
            && let Some(known) = known(connection, key, now).await?
        {
            ground.answered.insert(key.clone(), known);
        }
        if let Command::RearmLane { lane, limit } = command {
            ground.pages.insert(lane.clone(), next_page(connection, lane, *limit).await?);
        }
    }
    read_key_holders(connection, commands, &mut ground).await?;
    pick(connection, commands, now, &mut ground).await?;
    for (lane, _) in service.holds().filter(|(_, hold)| matches!(hold.state, HoldState::Draining { .. })) {
        read_pace(connection, lane, &mut ground).await?;
    }
    Ok(ground)
}

async fn read_delay(connection: &mut SqliteConnection, number: i64, ground: &mut Ground) -> Result<(), StoreError> {
    let delay: Option<i64> =
        sqlx::query_scalar("SELECT delay FROM due WHERE run = ?").bind(number).fetch_optional(connection).await?;
    if let Some(delay) = delay {
        ground.delays.insert(number, Span::from_micros(unsigned(delay)?));
    }
    Ok(())
}

async fn read_key_holders(
    connection: &mut SqliteConnection,
    commands: &[Command],
    ground: &mut Ground,
) -> Result<(), StoreError> {
    for command in commands {
        let run = command.run().and_then(|id| ground.runs.get(&id)).map(|row| row.run.clone());
        let Some(key) = needed_key(command, run.as_ref()) else { continue };
        let select = format!(
            "SELECT {RUN_COLUMNS} FROM runs WHERE unique_key = ? AND status IN ('pending', 'claimed', 'running')"
        );
        let query = sqlx::query(AssertSqlSafe(select)).bind(key.as_str());
        if let Some(row) = query.fetch_optional(&mut *connection).await?.as_ref().map(read_run).transpose()? {
            ground.key_holders.insert(key.clone(), row.run.id);
            ground.runs.entry(row.run.id).or_insert(row);
        }
    }
    Ok(())
}

/// Picks a run for each claim: of those that the claimant may have the one that is due longest, and that neither the
/// batch names nor another claim of it takes.
async fn pick(
    connection: &mut SqliteConnection,
    commands: &[Command],
    now: Timestamp,
    ground: &mut Ground,
) -> Result<(), StoreError> {
    let named: HashSet<RunId> = commands.iter().filter_map(Command::run).collect();
    let mut taken: HashSet<i64> = named.iter().filter_map(|id| Some(ground.runs.get(id)?.number)).collect();
    let mut waiting: BTreeMap<(&[Name], Option<&Name>), Vec<RunRow>> = BTreeMap::new();
    let claims = commands.iter().filter(|command| matches!(command.inner(), Command::Claim { .. })).count();
    for (index, command) in commands.iter().enumerate() {
        let Command::Claim { lanes, claimant } = command.inner() else { continue };
        let group = (lanes.as_slice(), claimant.device.as_ref());
        if let Entry::Vacant(place) = waiting.entry(group) {
            place.insert(may_be_had(connection, lanes, claimant, now, claims + taken.len()).await?);
        }
        let rows = waiting.get(&group).map_or(&[][..], Vec::as_slice);
        if let Some(row) = rows.iter().find(|row| !taken.contains(&row.number)) {
            taken.insert(row.number);
            if let Some(input) = read_input(connection, row).await? {
                ground.inputs.insert(row.run.id, input);
            }
            ground.picked.insert(index, row.clone());
        }
    }
    Ok(())
}

/// The runs that a claimant may have, the longest due first.
async fn may_be_had(
    connection: &mut SqliteConnection,
    lanes: &[Name],
    by: &Claimant,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<RunRow>, StoreError> {
    let mut rows = Vec::new();
    for lane in lanes {
        let select = format!(
            "SELECT {RUN_COLUMNS} FROM runs WHERE status = 'pending' AND lane = ? AND due_at <= ? \
             AND (device IS NULL OR device = ?) AND quarantined IS NULL ORDER BY due_at, number LIMIT ?"
        );
        let found = sqlx::query(AssertSqlSafe(select))
            .bind(lane.as_str())
            .bind(now.as_micros())
            .bind(by.device.as_ref().map(Name::as_str))
            .bind(signed(limit as u64))
            .fetch_all(&mut *connection)
            .await?;
        for row in &found {
            rows.push(read_run(row)?);
        }
    }
    rows.sort_by_key(|row| (row.run.waiting.due_at, row.number));
    Ok(rows)
}

async fn read_input(connection: &mut SqliteConnection, row: &RunRow) -> Result<Option<serde_json::Value>, StoreError> {
    let (schema, body): (i64, String) = sqlx::query_as("SELECT schema, body FROM events WHERE run = ? AND version = 1")
        .bind(row.number)
        .fetch_one(connection)
        .await?;
    let created = decode_run_event(row.run.id, 1, row.run.created_at, schema, &body)?;
    Ok(created.known().and_then(|recorded| input_of(&recorded.event)))
}

async fn next_page(connection: &mut SqliteConnection, lane: &Name, limit: u32) -> Result<Vec<RunRow>, StoreError> {
    let select = format!(
        "SELECT {RUN_COLUMNS} FROM runs WHERE lane = ?1 AND status IN ('pending', 'claimed', 'running') \
         AND number > (SELECT rearm_after FROM lanes WHERE lane = ?1) ORDER BY number LIMIT ?2"
    );
    let query = sqlx::query(AssertSqlSafe(select)).bind(lane.as_str()).bind(i64::from(limit));
    query.fetch_all(connection).await?.iter().map(read_run).collect()
}

async fn read_pace(connection: &mut SqliteConnection, lane: &Name, ground: &mut Ground) -> Result<(), StoreError> {
    let row: Option<SqliteRow> = sqlx::query("SELECT reap_at, turn_at FROM lanes WHERE lane = ?")
        .bind(lane.as_str())
        .fetch_optional(connection)
        .await?;
    if let Some(row) = row {
        let (reap_at, turn_at) = (read_instant(&row, "reap_at")?, read_instant(&row, "turn_at")?);
        ground.paces.insert(lane.clone(), LanePace { reap_at, turn_at });
    }
    Ok(())
}

/// The first answer to a key, if it is remembered.
async fn known(
    connection: &mut SqliteConnection,
    key: &IdempotencyKey,
    now: Timestamp,
) -> Result<Option<Known>, StoreError> {
    let row: Option<SqliteRow> = sqlx::query(
        "SELECT fingerprint, run_id, version, existing, answered_at FROM idempotency \
         WHERE scope = ? AND key = ? AND answered_at > ?",
    )
    .bind(key.scope.as_str())
    .bind(key.key.as_str())
    .bind(now.minus(REMEMBERED).as_micros())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (run, version) = (read_id(&row, "run_id")?, unsigned(row.try_get("version")?)?);
    let first = FirstAnswer {
        fingerprint: row.try_get("fingerprint")?,
        run,
        version,
        existing: row.try_get("existing")?,
        at: Timestamp::from_micros(row.try_get("answered_at")?),
    };
    let Some(run) = run_row(connection, run).await? else { return Ok(None) };
    let limit = usize::try_from(version).unwrap_or(usize::MAX);
    let stream = stream(connection, &run, 0, limit).await?.facts;
    Ok(Some(Known { first, stream }))
}
