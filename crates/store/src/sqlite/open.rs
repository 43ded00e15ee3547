//! Opening a file: is it ours, is it of a schema that we know, and can the linked SQLite be trusted with it?

use std::path::{Path, PathBuf};
use std::time::Duration;

use backon::ExponentialBuilder;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use crate::error::{StoreError, without_password};

/// Says whose file it is, in the file's header: "LBT1". See <https://sqlite.org/pragma.html#pragma_application_id>.
const APPLICATION_ID: i64 = 0x4c42_5431;
/// How long a connection waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Before this version the reset of the write-ahead log could corrupt a database. See <https://sqlite.org/wal.html>.
const SQLITE_MIN: &str = "3.51.3";

/// The migrations, in order; the schema's version is how many have been applied, kept in the header as `user_version`.
const MIGRATIONS: [&str; 7] = [
    include_str!("../../../../migrations/sqlite/0001_log.sql"),
    include_str!("../../../../migrations/sqlite/0002_listening.sql"),
    include_str!("../../../../migrations/sqlite/0003_idempotency.sql"),
    include_str!("../../../../migrations/sqlite/0004_cursors.sql"),
    include_str!("../../../../migrations/sqlite/0005_compaction.sql"),
    include_str!("../../../../migrations/sqlite/0006_reaps.sql"),
    include_str!("../../../../migrations/sqlite/0007_progress.sql"),
];

/// The newest schema that this program knows.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Returns the file that a database URL names.
///
/// # Errors
/// If it is of no known form, or names a database in memory, which no other process could see.
pub(super) fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"));
    match path {
        Some(path) if !path.is_empty() && !path.contains(":memory:") && !path.contains('?') => Ok(PathBuf::from(path)),
        _ => Err(StoreError::BadUrl(without_password(url))),
    }
}

/// How every connection to a file is opened.
pub(super) fn options(path: &Path, create: bool) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .busy_timeout(BUSY_TIMEOUT)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
}

/// Opens the file, makes it if `create` says so, and brings its schema up to date.
pub(super) async fn open_and_migrate(path: &Path, create: bool) -> Result<SqliteConnection, StoreError> {
    if !create && !path.exists() {
        return Err(StoreError::NoDatabase { path: path.display().to_string() });
    }
    let unreadable = |error: &sqlx::Error| {
        let why = match error {
            sqlx::Error::Database(database) if database.code().as_deref() == Some("26") => {
                "it is not an SQLite database".to_owned()
            }
            sqlx::Error::Database(database) => database.message().to_owned(),
            other => other.to_string(),
        };
        StoreError::Unreadable { path: path.display().to_string(), why }
    };
    let mut connection = options(path, create).connect().await.map_err(|error| unreadable(&error))?;
    check_sqlite(&mut connection).await?;
    match migrate(&mut connection, path).await {
        Err(StoreError::Corrupt(why)) => {
            let why = if why.contains("not a database") { "it is not an SQLite database".to_owned() } else { why };
            Err(StoreError::Unreadable { path: path.display().to_string(), why })
        }
        Err(StoreError::Statement(error)) => Err(unreadable(&error)),
        Err(error) => Err(error),
        Ok(()) => Ok(connection),
    }
}

async fn check_sqlite(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let found: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(connection).await?;
    let number = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap_or(0)).collect() };
    if number(&found) < number(SQLITE_MIN) {
        return Err(StoreError::SqliteTooOld { found, needed: SQLITE_MIN });
    }
    Ok(())
}

async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let found = schema_version(connection, path).await?;
    // A file that was copied out of another one is no longer in that mode.
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
    if mode != "wal" {
        enter_wal(connection).await?;
    }
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    // Several processes may come first at once: the one that gets the lock migrates, the others find it done.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let found = schema_version(&mut transaction, path).await?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        sqlx::raw_sql(*migration).execute(&mut *transaction).await?;
    }
    if found < SCHEMA_VERSION {
        let header = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};");
        sqlx::raw_sql(AssertSqlSafe(header)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Switches the file to write-ahead logging, for good. SQLite does not wait for other processes here, so we do.
async fn enter_wal(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_millis(200))
        .with_jitter()
        .with_max_times(100);
    let switch = async |connection: &mut SqliteConnection| -> Result<String, StoreError> {
        Ok(sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(connection).await?)
    };
    let mut delays = backon::BackoffBuilder::build(patience);
    loop {
        match switch(connection).await {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                let why = format!("its journal mode stays `{mode}`; write-ahead logging needs a local file system");
                return Err(StoreError::Unavailable(why));
            }
            Err(error) if error.is_transient() => match delays.next() {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}

/// Returns the schema version of the file, 0 for a new one, once it is sure that the file is ours or new.
async fn schema_version(connection: &mut SqliteConnection, path: &Path) -> Result<i64, StoreError> {
    // One snapshot: another process may be about to make the file what it is.
    let mut snapshot = connection.begin().await?;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *snapshot).await?;
    let application: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *snapshot).await?;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *snapshot).await?;
    snapshot.commit().await?;
    if application != APPLICATION_ID && (application != 0 || version != 0 || tables != 0) {
        let why = "it is the database of another program".to_owned();
        return Err(StoreError::Unreadable { path: path.display().to_string(), why });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::SchemaTooNew { found: version, known: SCHEMA_VERSION });
    }
    Ok(version)
}
