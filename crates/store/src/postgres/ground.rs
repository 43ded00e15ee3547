//! Reading what a batch is decided on: the runs, locked, before the log lock is taken; all else after it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use lastbeat_domain::decide::Command;
use lastbeat_domain::hold::HoldState;
use lastbeat_domain::{Name, RunId, Span, Timestamp};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::read::{run_row, stream};
use super::rows::{RUN_COLUMNS, WAITING_COLUMNS, read_name, read_run};
use crate::batch::{Ground, LanePace, RunRow, input_of, is_sweepers, needed_key};
use crate::error::StoreError;
use crate::idempotency::{FirstAnswer, Known, REMEMBERED};
use crate::log::{signed, unsigned};
use crate::record::decode_run_event;
use crate::service::ServiceLog;

/// Locks the runs that the commands name, in the order of their ids, and one for each claim. Whoever comes from a sweeper
/// waits for nobody: another sweeper, or an executor, is at work on that run, and it stays due.
pub(super) async fn lock(
    connection: &mut PgConnection,
    commands: &[Command],
    simulated: Option<i64>,
) -> Result<Ground, StoreError> {
    let mut ground = Ground::default();
    let (swept, named): (Vec<&Command>, Vec<&Command>) = commands.iter().partition(|command| is_sweepers(command));
    lock_runs(connection, &ids(&named), false, &mut ground).await?;
    let swept = ids(&swept);
    lock_runs(connection, &swept, true, &mut ground).await?;
    let missing: Vec<Uuid> = swept.into_iter().filter(|id| !ground.runs.contains_key(&RunId::from_uuid(*id))).collect();
    if !missing.is_empty() {
        let busy: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM runs WHERE id = ANY($1)")
            .bind(missing)
            .fetch_all(&mut *connection)
            .await?;
        ground.busy.extend(busy.into_iter().map(RunId::from_uuid));
    }
    pick(connection, commands, simulated, &mut ground).await?;
    Ok(ground)
}

fn ids(commands: &[&Command]) -> Vec<Uuid> {
    commands.iter().filter_map(|command| command.run()).map(RunId::as_uuid).collect()
}

async fn lock_runs(
    connection: &mut PgConnection,
    ids: &[Uuid],
    skip_locked: bool,
    ground: &mut Ground,
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let select = format!("SELECT {RUN_COLUMNS} FROM lastbeat_lock_runs($1, $2)");
    for row in sqlx::query(AssertSqlSafe(select)).bind(ids).bind(skip_locked).fetch_all(connection).await? {
        let row = read_run(&row)?;
        ground.runs.insert(row.run.id, row);
    }
    Ok(())
}

/// What a claim may be given: runs of these lanes, for this device.
type Wanted<'a> = (&'a [Name], Option<&'a Name>);

/// Picks a run for each claim: of those that the claimant may have and nobody else is taking, the one that is due
/// longest, and that the batch neither names nor picked already.
async fn pick(
    connection: &mut PgConnection,
    commands: &[Command],
    simulated: Option<i64>,
    ground: &mut Ground,
) -> Result<(), StoreError> {
    // Claims that could be given for one another, in the order of the first of each.
    let mut groups: Vec<(Wanted<'_>, Vec<usize>)> = Vec::new();
    for (index, command) in commands.iter().enumerate() {
        let Command::Claim { lanes, claimant } = command.inner() else { continue };
        let group = (lanes.as_slice(), claimant.device.as_ref());
        match groups.iter_mut().find(|(other, _)| *other == group) {
            Some((_, claims)) => claims.push(index),
            None => groups.push((group, vec![index])),
        }
    }
    let mut taken: HashSet<Uuid> = commands.iter().filter_map(Command::run).map(RunId::as_uuid).collect();
    for ((lanes, device), claims) in groups {
        let mut rows = Vec::new();
        for lane in lanes {
            rows.extend(waiting(connection, lane, device, &taken, claims.len(), simulated).await?);
        }
        rows.sort_by_key(|row| (row.run.waiting.due_at, row.number));
        for (index, row) in claims.into_iter().zip(rows) {
            taken.insert(row.run.id.as_uuid());
            ground.picked.insert(index, row);
        }
    }
    Ok(())
}

/// Locks runs of a lane that may be had, the longest due first.
async fn waiting(
    connection: &mut PgConnection,
    lane: &Name,
    device: Option<&Name>,
    taken: &HashSet<Uuid>,
    limit: usize,
    simulated: Option<i64>,
) -> Result<Vec<RunRow>, StoreError> {
    let select = format!(
        "SELECT {WAITING_COLUMNS} FROM runs WHERE status = 'pending' AND lane = $1 \
         AND due_at <= (SELECT greatest(lastbeat_clock($5), lastbeat_latest_at())) \
         AND (device IS NULL OR device = $2) AND NOT quarantined AND id <> ALL($3) \
         ORDER BY due_at, number LIMIT $4 FOR UPDATE SKIP LOCKED"
    );
    let rows = sqlx::query(AssertSqlSafe(select))
        .bind(lane.as_str())
        .bind(device.map(Name::as_str))
        .bind(taken.iter().copied().collect::<Vec<Uuid>>())
        .bind(signed(limit as u64))
        .bind(simulated)
        .fetch_all(connection)
        .await?;
    rows.iter().map(read_run).collect()
}

/// Reads all else, under the log lock: nobody else decides anything until the commit.
pub(super) async fn read(
    connection: &mut PgConnection,
    service: &ServiceLog,
    commands: &[Command],
    now: Timestamp,
    ground: &mut Ground,
) -> Result<(), StoreError> {
    read_new(connection, commands, ground).await?;
    read_key_holders(connection, commands, ground).await?;
    read_delays(connection, commands, ground).await?;
    read_paces(connection, service, ground).await?;
    read_inputs(connection, commands, ground).await?;
    for command in commands {
        if let Command::RearmLane { lane, limit } = command {
            ground.pages.insert(lane.clone(), next_page(connection, lane, *limit).await?);
        }
    }
    read_answers(connection, commands, now, ground).await
}

/// Somebody may have made a run of the same id while the log lock was waited for.
async fn read_new(connection: &mut PgConnection, commands: &[Command], ground: &mut Ground) -> Result<(), StoreError> {
    let new = commands.iter().filter(|command| matches!(command.inner(), Command::Create { .. }));
    let ids: Vec<Uuid> =
        new.filter_map(Command::run).filter(|id| !ground.runs.contains_key(id)).map(RunId::as_uuid).collect();
    if !ids.is_empty() {
        read_runs(connection, "id = ANY($1)", ids, ground).await?;
    }
    Ok(())
}

async fn read_runs<'q, T>(
    connection: &mut PgConnection,
    which: &str,
    bound: T,
    ground: &mut Ground,
) -> Result<Vec<RunRow>, StoreError>
where
    T: sqlx::Encode<'q, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + 'q,
{
    let select = format!("SELECT {RUN_COLUMNS} FROM whole_runs WHERE {which}");
    let rows = sqlx::query(AssertSqlSafe(select)).bind(bound).fetch_all(connection).await?;
    let rows = rows.iter().map(read_run).collect::<Result<Vec<RunRow>, StoreError>>()?;
    for row in &rows {
        ground.runs.entry(row.run.id).or_insert_with(|| row.clone());
    }
    Ok(rows)
}

async fn read_key_holders(
    connection: &mut PgConnection,
    commands: &[Command],
    ground: &mut Ground,
) -> Result<(), StoreError> {
    let run_of = |command: &Command| command.run().and_then(|id| ground.runs.get(&id)).map(|row| &row.run);
    let keys: Vec<String> = commands
        .iter()
        .filter_map(|command| needed_key(command, run_of(command)))
        .map(|key| key.as_str().to_owned())
        .collect();
    if keys.is_empty() {
        return Ok(());
    }
    let which = "unique_key = ANY($1) AND status IN ('pending', 'claimed', 'running')";
    for row in read_runs(connection, which, keys, ground).await? {
        if let Some(key) = row.run.unique_key {
            ground.key_holders.insert(key, row.run.id);
        }
    }
    Ok(())
}

async fn read_delays(
    connection: &mut PgConnection,
    commands: &[Command],
    ground: &mut Ground,
) -> Result<(), StoreError> {
    let swept = commands.iter().filter(|command| is_sweepers(command)).filter_map(Command::run);
    let numbers: Vec<i64> = swept.filter_map(|id| Some(ground.runs.get(&id)?.number)).collect();
    if numbers.is_empty() {
        return Ok(());
    }
    let rows: Vec<(i64, i64)> = sqlx::query_as("SELECT run, delay FROM due WHERE run = ANY($1) AND delay > 0")
        .bind(numbers)
        .fetch_all(connection)
        .await?;
    for (run, delay) in rows {
        ground.delays.insert(run, Span::from_micros(unsigned(delay)?));
    }
    Ok(())
}

async fn read_paces(
    connection: &mut PgConnection,
    service: &ServiceLog,
    ground: &mut Ground,
) -> Result<(), StoreError> {
    let draining = service.holds().filter(|(_, hold)| matches!(hold.state, HoldState::Draining { .. }));
    let lanes: Vec<&str> = draining.map(|(lane, _)| lane.as_str()).collect();
    if lanes.is_empty() {
        return Ok(());
    }
    let select = "SELECT lane, reap_at, turn_at FROM lanes WHERE lane = ANY($1)";
    for row in sqlx::query(select).bind(lanes).fetch_all(connection).await? {
        let instant = |column| Ok::<_, StoreError>(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_micros));
        let pace = LanePace { reap_at: instant("reap_at")?, turn_at: instant("turn_at")? };
        if let Some(lane) = read_name(&row, "lane")? {
            ground.paces.insert(lane, pace);
        }
    }
    Ok(())
}

/// Reads what those are to work on who claim a run, picked or named.
async fn read_inputs(
    connection: &mut PgConnection,
    commands: &[Command],
    ground: &mut Ground,
) -> Result<(), StoreError> {
    let claims = commands.iter().filter(|command| matches!(command.inner(), Command::ClaimRun { .. }));
    let named = claims.filter_map(|command| ground.runs.get(&command.run()?));
    let rows = ground.picked.values().chain(named);
    let by_number: BTreeMap<i64, (RunId, Timestamp)> =
        rows.map(|row| (row.number, (row.run.id, row.run.created_at))).collect();
    if by_number.is_empty() {
        return Ok(());
    }
    let rows: Vec<(i64, i64, String)> =
        sqlx::query_as("SELECT run, schema, body FROM events WHERE run = ANY($1) AND version = 1")
            .bind(by_number.keys().copied().collect::<Vec<i64>>())
            .fetch_all(connection)
            .await?;
    for (number, schema, body) in rows {
        let Some((id, at)) = by_number.get(&number) else { continue };
        let created = decode_run_event(*id, 1, *at, schema, &body)?;
        if let Some(input) = created.known().and_then(|recorded| input_of(&recorded.event)) {
            ground.inputs.insert(*id, input);
        }
    }
    Ok(())
}

/// They need not be locked: nobody else decides anything meanwhile, and a heartbeat only makes them lapse later.
async fn next_page(connection: &mut PgConnection, lane: &Name, limit: u32) -> Result<Vec<RunRow>, StoreError> {
    let select = format!(
        "SELECT {RUN_COLUMNS} FROM whole_runs WHERE lane = $1 AND status IN ('pending', 'claimed', 'running') \
         AND number > (SELECT rearm_after FROM lanes WHERE lane = $1) ORDER BY number LIMIT $2"
    );
    let query = sqlx::query(AssertSqlSafe(select)).bind(lane.as_str()).bind(i64::from(limit));
    query.fetch_all(connection).await?.iter().map(read_run).collect()
}

/// The first answers to the keys that are remembered.
async fn read_answers(
    connection: &mut PgConnection,
    commands: &[Command],
    now: Timestamp,
    ground: &mut Ground,
) -> Result<(), StoreError> {
    let keys: BTreeSet<_> = commands.iter().filter_map(Command::idempotency_key).collect();
    for key in keys {
        let row: Option<PgRow> = sqlx::query(
            "SELECT fingerprint, run_id, version, existing, answered_at FROM idempotency \
             WHERE scope = $1 AND key = $2 AND answered_at > $3",
        )
        .bind(key.scope.as_str())
        .bind(key.key.as_str())
        .bind(now.minus(REMEMBERED).as_micros())
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { continue };
        let first = FirstAnswer {
            fingerprint: row.try_get("fingerprint")?,
            run: RunId::from_uuid(row.try_get("run_id")?),
            version: unsigned(row.try_get("version")?)?,
            existing: row.try_get("existing")?,
            at: Timestamp::from_micros(row.try_get("answered_at")?),
        };
        let Some(run) = run_row(connection, first.run).await? else { continue };
        let limit = usize::try_from(first.version).unwrap_or(usize::MAX);
        let stream = stream(connection, &run, 0, limit).await?.facts;
        ground.answered.insert(key.clone(), Known { first, stream });
    }
    Ok(())
}
