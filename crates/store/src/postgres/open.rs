//! Connecting: is it a server that will do, and does its schema fit this program?

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};

use crate::error::{StoreError, without_password};

/// How long to wait for a connection.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The oldest server that will do, as it numbers its versions: `pg_current_xact_id` and friends came with 13, and
/// nothing older than 15 is tested.
const SERVER_VERSION_MIN: i32 = 150_000;

/// The migrations, in order; the schema's version is how many have been applied.
pub(super) const MIGRATIONS: [&str; 5] = [
    include_str!("../../../../migrations/postgres/0001_store.sql"),
    include_str!("../../../../migrations/postgres/0002_compaction.sql"),
    include_str!("../../../../migrations/postgres/0003_reaps.sql"),
    include_str!("../../../../migrations/postgres/0004_progress.sql"),
    include_str!("../../../../migrations/postgres/0005_short_tails.sql"),
];

/// The newest schema that this program knows.
pub(crate) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// For what a connection is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It writes. A process that is stopped in the middle of a transaction must not keep the log locked for long, and
    /// nobody waits forever.
    Write,
    /// It reads, a question at a time.
    Read,
    /// It compacts, and is in nobody's way: it would rather give up than wait for long.
    Compact,
    /// It reads one snapshot for as long as it takes, or migrates.
    Keep,
}

impl Purpose {
    /// Settings of the session. Times are in milliseconds.
    const fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Purpose::Write => &[
                ("synchronous_commit", "on"),
                ("statement_timeout", "30000"),
                ("lock_timeout", "10000"),
                ("idle_in_transaction_session_timeout", "5000"),
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "3"),
                // The fast path goes through its heartbeats in the order in which they lock.
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                // A plan may be kept that was made while a table was empty, when reading all of it looked cheapest.
                ("enable_seqscan", "off"),
                ("jit", "off"),
            ],
            Purpose::Read => &[
                ("default_transaction_read_only", "on"),
                ("statement_timeout", "60000"),
                ("idle_in_transaction_session_timeout", "10000"),
                ("jit", "off"),
            ],
            Purpose::Compact => &[
                ("synchronous_commit", "on"),
                ("statement_timeout", "60000"),
                ("lock_timeout", "2000"),
                ("idle_in_transaction_session_timeout", "5000"),
                ("enable_seqscan", "off"),
                ("jit", "off"),
            ],
            Purpose::Keep => &[("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")],
        }
    }
}

/// Says whether a database URL names a PostgreSQL server.
pub fn is_url(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// Reads a URL.
///
/// # Errors
/// If it cannot be read, or names no user and the environment does not either: then it would be an arbitrary one.
pub(super) fn options(url: &str, purpose: Purpose) -> Result<PgConnectOptions, StoreError> {
    let bad = || StoreError::BadUrl(without_password(url));
    let options: PgConnectOptions = url.parse().map_err(|_| bad())?;
    let authority = url.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next()).unwrap_or_default();
    if !authority.contains('@') && !url.contains("user=") && std::env::var_os("PGUSER").is_none() {
        return Err(StoreError::NoUser(without_password(url)));
    }
    let local = options.get_socket().is_some() || matches!(options.get_host(), "localhost" | "127.0.0.1" | "::1");
    let options = if local && !url.contains("sslmode") { options.ssl_mode(PgSslMode::Disable) } else { options };
    let name = match purpose {
        Purpose::Write => "lastbeat writer",
        Purpose::Read => "lastbeat reader",
        Purpose::Compact => "lastbeat compaction",
        Purpose::Keep => "lastbeat",
    };
    let options = options.application_name(name).options(purpose.settings().iter().copied());
    Ok(options.disable_statement_logging())
}

/// Connects, within [`CONNECT_MAX`].
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    match tokio::time::timeout(CONNECT_MAX, options.connect()).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {} s", CONNECT_MAX.as_secs()))),
    }
}

/// Checks that the server and its schema are ones that this program can work with.
pub(super) async fn check(options: &PgConnectOptions) -> Result<(), StoreError> {
    let mut connection = connect(options).await?;
    let result = check_schema(&mut connection).await;
    let _ = connection.close().await;
    result
}

async fn check_schema(connection: &mut PgConnection) -> Result<(), StoreError> {
    check_server(connection).await?;
    match schema_version(connection).await? {
        found if found < SCHEMA_VERSION => Err(StoreError::NotMigrated { found, known: SCHEMA_VERSION }),
        found if found > SCHEMA_VERSION => Err(StoreError::SchemaTooNew { found, known: SCHEMA_VERSION }),
        _ => Ok(()),
    }
}

pub(super) async fn check_server(connection: &mut PgConnection) -> Result<(), StoreError> {
    let number: i32 =
        sqlx::query_scalar("SELECT current_setting('server_version_num')::integer").fetch_one(&mut *connection).await?;
    if number < SERVER_VERSION_MIN {
        let found: String =
            sqlx::query_scalar("SELECT current_setting('server_version')").fetch_one(connection).await?;
        return Err(StoreError::ServerTooOld { found });
    }
    Ok(())
}

/// Returns the version of the schema, 0 where there is none.
pub(super) async fn schema_version(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass('lastbeat_schema') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !there {
        return Ok(0);
    }
    let select = "SELECT coalesce(max(version), 0) FROM lastbeat_schema";
    Ok(sqlx::query_scalar(select).fetch_one(connection).await?)
}
