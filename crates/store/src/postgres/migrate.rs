//! Bringing a database's schema up to date, and making the role under which the program runs.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use uuid::Uuid;

use super::open::{self, MIGRATIONS, Purpose, SCHEMA_VERSION};
use super::write::insert_segments;
use crate::error::StoreError;
use crate::log::{SegmentRow, unsigned};
use crate::packing::Beat;

/// Any number will do, as long as every version of this program takes the same.
const MIGRATION_LOCK: i64 = 0x4c42_5431;
/// The migration since which tails have short steps.
const SHORT_TAILS: i64 = 5;
/// How many tails are written out at a time.
const TAILS_AT_ONCE: i64 = 1_000;

/// Brings the schema of the database at `url` up to date; any number of processes may try at once. Returns the versions
/// before and after.
///
/// # Errors
/// If the database cannot be reached, the server is too old, a newer program has migrated it, or the role may not
/// create tables in it.
pub async fn migrate(url: &str) -> Result<(i64, i64), StoreError> {
    let mut connection = open::connect(&open::options(url, Purpose::Keep)?).await?;
    let result = bring_up_to_date(&mut connection).await;
    let _ = connection.close().await;
    result
}

async fn bring_up_to_date(connection: &mut PgConnection) -> Result<(i64, i64), StoreError> {
    open::check_server(connection).await?;
    // One transaction: a migration is there as a whole or not at all, and the lock goes with it.
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *transaction).await?;
    let found = open::schema_version(&mut transaction).await?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::SchemaTooNew { found, known: SCHEMA_VERSION });
    }
    if found == 0 {
        let table = "CREATE TABLE IF NOT EXISTS lastbeat_schema (\
                     version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())";
        sqlx::query(table).execute(&mut *transaction).await?;
    }
    for (migration, version) in MIGRATIONS.iter().zip(1_i64..).filter(|(_, version)| *version > found) {
        if version == SHORT_TAILS && found > 0 {
            write_out_long_tails(&mut transaction).await?;
        }
        sqlx::raw_sql(*migration).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO lastbeat_schema (version) VALUES ($1)")
            .bind(version)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok((found, SCHEMA_VERSION))
}

/// Writes out the tails of the form that had 12 bytes for a heartbeat, the newest in front: its instant, and the lower half
/// of its version. Thirty of them were written out already. Nobody takes a heartbeat until the transaction is over.
async fn write_out_long_tails(connection: &mut PgConnection) -> Result<(), StoreError> {
    connection.execute("LOCK TABLE beating IN ACCESS EXCLUSIVE MODE").await?;
    let select = "SELECT b.id, b.number, r.attempt, b.version, b.tail FROM beating AS b JOIN runs AS r ON r.id = b.id \
                  WHERE octet_length(b.tail) BETWEEN 1 AND 359 AND b.id >= $1 ORDER BY b.id LIMIT $2";
    let mut from = Uuid::nil();
    loop {
        let rows = sqlx::query(select).bind(from).bind(TAILS_AT_ONCE).fetch_all(&mut *connection).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        let last: Uuid = last.try_get("id")?;
        let mut segments = Vec::with_capacity(rows.len());
        for row in &rows {
            let (id, version): (Uuid, i64) = (row.try_get("id")?, row.try_get("version")?);
            let damaged = || {
                let why =
                    "cannot be read, and nothing was changed; run `lastbeat rebuild` with the older program first";
                StoreError::Corrupt(format!("the tail of run {id} {why}"))
            };
            let beats = unpack_long_tail(row.try_get("tail")?, unsigned(version)?).ok_or_else(damaged)?;
            let attempt = u32::try_from(row.try_get::<i32, _>("attempt")?).map_err(|_| damaged())?;
            segments.push(SegmentRow::pack(row.try_get("number")?, attempt, &beats));
        }
        insert_segments(connection, &segments).await?;
        let Some(next) = last.as_u128().checked_add(1) else { return Ok(()) };
        from = Uuid::from_u128(next);
    }
}

fn unpack_long_tail(tail: &[u8], version: u64) -> Option<Vec<Beat>> {
    let (steps, rest) = tail.as_chunks::<12>();
    let unpack = |step: &[u8; 12]| {
        let (at, low) = step.split_at(8);
        let low = u64::from(u32::from_be_bytes(low.try_into().ok()?));
        // The upper half is that of the run's version, or the one before it.
        let near = version & !u64::from(u32::MAX) | low;
        let version = if near > version { near.checked_sub(1 << 32)? } else { near };
        Some(Beat { version, at: i64::from_be_bytes(at.try_into().ok()?) })
    };
    let beats = rest.is_empty().then(|| steps.iter().rev().map(unpack).collect::<Option<Vec<Beat>>>())?;
    beats.filter(|beats| beats.is_sorted_by(|one, next| one.version < next.version && one.at < next.at))
}

/// Returns the statements that make `role` the application's: it can append to the log and read it, and work on the
/// projection, and that is all. The role that migrates owns the tables and is another one.
///
/// # Errors
/// If the name is no plain identifier.
pub fn role_setup(role: &str) -> Result<String, StoreError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if role.is_empty() || role.len() > 63 || !role.chars().all(plain) || role.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(StoreError::BadRole(role.to_owned()));
    }
    Ok(format!(
        "-- The application's role: it can append to the log and read it, and no more.\n\
         -- Give it a way to sign in of its own: ALTER ROLE {role} LOGIN PASSWORD '…';\n\
         DO $$ BEGIN\n    \
             IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role} LOGIN; END IF;\n\
         END $$;\n\
         GRANT SELECT, INSERT ON events, beats, segments TO {role};\n\
         REVOKE UPDATE, DELETE, TRUNCATE, TRIGGER, REFERENCES ON events, beats, segments FROM {role};\n\
         GRANT SELECT, INSERT, UPDATE, DELETE \
         ON runs, beating, due, lanes, beacons, idempotency, cursors TO {role};\n\
         GRANT SELECT, UPDATE ON head TO {role};\n\
         GRANT SELECT ON whole_runs, lastbeat_schema TO {role};\n\
         -- Compaction: the one door by which rows of the log go. It checks for itself that nothing is lost.\n\
         GRANT EXECUTE ON FUNCTION lastbeat_compact, lastbeat_merge_segments TO {role};\n"
    ))
}

/// Carries out [`role_setup`] on the database at `url`, as the role that migrates.
///
/// # Errors
/// If the name is no plain identifier, or the role may not do it.
pub async fn set_up_role(url: &str, role: &str) -> Result<(), StoreError> {
    let statements = role_setup(role)?;
    let mut connection = open::connect(&open::options(url, Purpose::Keep)?).await?;
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    let _ = connection.close().await;
    Ok(())
}

/// A schema of its own in a database, for trials: migrated, empty, and met by nobody else.
#[derive(Debug)]
pub struct Schema {
    name: String,
    database: String,
    url: String,
}

impl Schema {
    /// Makes a schema in the database at `url` and migrates it.
    ///
    /// # Errors
    /// If the database cannot be reached, or the role may not make schemas in it.
    pub async fn make(url: &str) -> Result<Schema, StoreError> {
        let name = format!("lastbeat_trial_{}", uuid::Uuid::new_v4().simple());
        let joint = if url.contains('?') { '&' } else { '?' };
        let own = format!("{url}{joint}options=-csearch_path%3D{name}");
        let schema = Schema { name, database: url.to_owned(), url: own };
        schema.run(format!("CREATE SCHEMA {}", schema.name)).await?;
        migrate(&schema.url).await?;
        Ok(schema)
    }

    /// Returns the URL of the database with this schema in it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Drops the schema with all that is in it.
    ///
    /// # Errors
    /// If the database cannot be reached; then `DROP SCHEMA … CASCADE` by hand does the same.
    pub async fn drop(self) -> Result<(), StoreError> {
        self.run(format!("DROP SCHEMA {} CASCADE", self.name)).await
    }

    async fn run(&self, statement: String) -> Result<(), StoreError> {
        let mut connection = open::connect(&open::options(&self.database, Purpose::Keep)?).await?;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
        let _ = connection.close().await;
        Ok(())
    }
}
