//! What the store stands on: the server, its settings, the clock, the log, who listens, and what waits.

use lastbeat_domain::{Span, Timestamp};
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::clock::PgClock;
use super::open::{self, SCHEMA_VERSION};
use super::read;
use super::source::Snapshot;
use crate::doctor::{self, Check};
use crate::error::StoreError;
use crate::service::ServiceLog;
use crate::truth::Source;

/// How far the clocks of the server and of this host may be apart.
const CLOCKS_APART_MAX: Span = Span::from_seconds(2);
/// Below so large a share of HOT updates, heartbeats cost index entries.
const HOT_SHARE_MIN: f64 = 0.95;
/// So many updates make the share worth a look.
const HOT_UPDATES_MIN: i64 = 10_000;
/// A table with more dead rows than living ones, and more than so many, is behind with its vacuum.
const DEAD_ROWS_MIN: i64 = 50_000;

/// Looks at everything.
pub(super) async fn doctor(
    connection: &mut PgConnection,
    clock: &PgClock,
    service: &ServiceLog,
) -> Result<Vec<Check>, StoreError> {
    let now = read::now(connection, clock.simulated()).await?;
    let mut checks = server(connection).await?;
    checks.push(schema(connection).await?);
    checks.extend(settings(connection).await?);
    checks.push(clocks(connection, clock).await?);
    checks.push(doctor::append_only(&Snapshot(connection).missing_triggers().await?));
    checks.push(role(connection).await?);
    checks.extend(tables(connection).await?);
    checks.push(oldest_transaction(connection).await?);
    checks.push(doctor::clock(service, now, now));
    checks.push(doctor::listening(service, now));
    let (waiting, first): (i64, Option<i64>) =
        sqlx::query_as("SELECT count(*) FILTER (WHERE check_at <= $1), min(check_at) FROM due")
            .bind(now.as_micros())
            .fetch_one(&mut *connection)
            .await?;
    checks.push(doctor::backlog(service, waiting, first, now));
    checks.push(doctor::holds(service));
    checks.push(doctor::rearming(&read::lanes(connection, true).await?));
    let quarantined: i64 =
        sqlx::query_scalar("SELECT count(*) FROM runs WHERE quarantined").fetch_one(connection).await?;
    checks.push(doctor::newer_facts(service, quarantined));
    Ok(checks)
}

async fn server(connection: &mut PgConnection) -> Result<Vec<Check>, StoreError> {
    let row = sqlx::query(
        "SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby, \
         current_setting('transaction_read_only')::boolean AS read_only, \
         current_setting('max_connections')::bigint AS most, (SELECT count(*) FROM pg_stat_activity \
         WHERE backend_type = 'client backend') AS connections",
    )
    .fetch_one(connection)
    .await?;
    let (standby, read_only): (bool, bool) = (row.try_get("standby")?, row.try_get("read_only")?);
    let (most, connections): (i64, i64) = (row.try_get("most")?, row.try_get("connections")?);
    let found = format!("PostgreSQL {}", row.try_get::<String, _>("version")?);
    let server = if standby {
        Check::bad("server", format!("{found}, a standby"), "name the primary: on a standby nothing can be recorded")
    } else if read_only {
        let advice = "unset default_transaction_read_only for the database and its roles";
        Check::bad("server", format!("{found}, read-only"), advice)
    } else {
        Check::fine("server", found)
    };
    let found = format!("{connections} of {most} in use");
    let connections = if connections * 10 > most * 9 {
        Check::warning("connections", found, "raise max_connections, or put fewer processes on this server")
    } else {
        Check::fine("connections", found)
    };
    Ok(vec![server, connections])
}

async fn schema(connection: &mut PgConnection) -> Result<Check, StoreError> {
    let found = open::schema_version(connection).await?;
    let text = format!("version {found} of {SCHEMA_VERSION}");
    Ok(if found < SCHEMA_VERSION {
        Check::bad("schema", text, "migrations are missing: run `lastbeat migrate`")
    } else {
        Check::fine("schema", text)
    })
}

/// What is acknowledged must be on the disk, and nobody may keep the log locked for long.
async fn settings(connection: &mut PgConnection) -> Result<Vec<Check>, StoreError> {
    let setting = "SELECT current_setting('fsync'), current_setting('full_page_writes'), \
                   current_setting('synchronous_commit'), current_setting('autovacuum')";
    let (fsync, pages, commit, vacuum): (String, String, String, String) =
        sqlx::query_as(setting).fetch_one(connection).await?;
    let found = format!("fsync={fsync}, full_page_writes={pages}, synchronous_commit={commit} (writers set it to on)");
    let durability = if fsync == "on" && pages == "on" {
        Check::fine("durability", found)
    } else {
        Check::bad(
            "durability",
            found,
            "set fsync and full_page_writes to on: a crash of the server's host loses facts",
        )
    };
    let autovacuum = if vacuum == "on" {
        Check::fine("autovacuum", "on")
    } else {
        Check::bad("autovacuum", vacuum, "set autovacuum to on: the projection's dead rows are never cleared away")
    };
    let timeouts = "writers: statement 30 s, lock 10 s, idle in transaction 5 s; readers: statement 60 s";
    Ok(vec![durability, autovacuum, Check::fine("timeouts", timeouts)])
}

/// Log time is the server's; where it differs from this host's, what users read off their own clocks does not fit.
async fn clocks(connection: &mut PgConnection, clock: &PgClock) -> Result<Check, StoreError> {
    let before = clock.now();
    let server: i64 = sqlx::query_scalar("SELECT lastbeat_clock(NULL)").fetch_one(connection).await?;
    let (server, after) = (Timestamp::from_micros(server), clock.now());
    let apart = server.since(after).max(before.since(server));
    let found = format!("the server's and this host's are {apart} apart");
    Ok(if apart > CLOCKS_APART_MAX {
        let advice = "nobody is judged by this host's clock, but times look odd: keep both with NTP";
        Check::warning("clocks", found, advice)
    } else {
        Check::fine("clocks", found)
    })
}

/// Whether the role that the program runs under could change the log.
async fn role(connection: &mut PgConnection) -> Result<Check, StoreError> {
    let (name, may, owns): (String, bool, bool) = sqlx::query_as(
        "SELECT current_user::text, \
         has_table_privilege('events', 'UPDATE, DELETE, TRUNCATE') OR has_table_privilege('beats', 'UPDATE, DELETE, TRUNCATE') \
         OR has_table_privilege('segments', 'UPDATE, DELETE, TRUNCATE'), \
         pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = 'events'::regclass), 'USAGE')",
    )
    .fetch_one(connection)
    .await?;
    Ok(if may || owns {
        let advice = "run servers under a role that can only append: `lastbeat migrate --role-setup print`";
        Check::warning("role", format!("`{name}` may change the log; only the triggers stand in the way"), advice)
    } else {
        Check::fine("role", format!("`{name}` can append to the log and read it, and no more"))
    })
}

async fn tables(connection: &mut PgConnection) -> Result<Vec<Check>, StoreError> {
    let row = sqlx::query(
        "SELECT pg_total_relation_size('events') + pg_total_relation_size('beats') + pg_total_relation_size('segments') \
         AS log, pg_total_relation_size('runs') + pg_total_relation_size('beating') \
         + pg_total_relation_size('due') AS projection, \
         n_tup_upd AS updates, n_tup_hot_upd AS hot, n_live_tup AS live, n_dead_tup AS dead, \
         coalesce(greatest(last_vacuum, last_autovacuum)::text, 'never') AS vacuumed \
         FROM pg_stat_user_tables WHERE relid = 'beating'::regclass",
    )
    .fetch_one(connection)
    .await?;
    let (log, projection): (i64, i64) = (row.try_get("log")?, row.try_get("projection")?);
    let (updates, hot): (i64, i64) = (row.try_get("updates")?, row.try_get("hot")?);
    let (live, dead): (i64, i64) = (row.try_get("live")?, row.try_get("dead")?);
    let size = Check::fine("size", format!("log {}, projection {}", megabytes(log), megabytes(projection)));
    let share = hot as f64 / (updates.max(1)) as f64;
    let found = format!("{:.1} % of {updates} updates of runs that beat", share * 100.0);
    let hot = if updates >= HOT_UPDATES_MIN && share < HOT_SHARE_MIN {
        let advice =
            "pages of beating are full: `VACUUM FULL beating` once in a quiet hour, and look for old transactions";
        Check::warning("heap-only updates", found, advice)
    } else {
        Check::fine("heap-only updates", found)
    };
    let found =
        format!("{dead} dead rows beside {live} in beating, last vacuumed: {}", row.try_get::<String, _>("vacuumed")?);
    let vacuum = if dead > live && dead > DEAD_ROWS_MIN {
        let advice = "autovacuum does not keep up: lower autovacuum_vacuum_cost_delay, and look for old transactions";
        Check::warning("vacuum", found, advice)
    } else {
        Check::fine("vacuum", found)
    };
    Ok(vec![size, hot, vacuum])
}

/// As long as somebody reads an old snapshot, dead rows stay.
async fn oldest_transaction(connection: &mut PgConnection) -> Result<Check, StoreError> {
    let seconds: Option<f64> = sqlx::query_scalar(
        "SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8 FROM pg_stat_activity \
         WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )
    .fetch_one(connection)
    .await?;
    let seconds = seconds.unwrap_or(0.0);
    let found = format!("the oldest open one began {seconds:.0} s ago");
    Ok(if seconds > 3_600.0 {
        let advice = "end it (pg_stat_activity shows whose it is): no dead row is cleared away before";
        Check::warning("transactions", found, advice)
    } else {
        Check::fine("transactions", found)
    })
}

fn megabytes(bytes: i64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
