//! Statements of the tests' own, on a connection of their own.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, ValueRef};

/// Settings that a test may give a server to disturb those who use it. They don't disturb the test itself.
const UNDISTURBED: [(&str, &str); 3] =
    [("default_transaction_read_only", "off"), ("statement_timeout", "0"), ("lock_timeout", "0")];

/// Runs a statement (or several, with semicolons) and returns the first column of each row as PostgreSQL writes it,
/// with an empty text for a null.
///
/// It blocks, and works in and outside of asynchronous code: it runs on a thread of its own.
pub(super) fn run(url: &str, statements: &str) -> Result<Vec<String>, sqlx::Error> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(converse(url, statements))
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

async fn converse(url: &str, statements: &str) -> Result<Vec<String>, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?.options(UNDISTURBED);
    let mut connection: PgConnection = options.connect().await?;
    let rows = sqlx::raw_sql(AssertSqlSafe(statements)).fetch_all(&mut connection).await?;
    connection.close().await?;
    let first = |row: &sqlx::postgres::PgRow| {
        let value = row.try_get_raw(0)?;
        if value.is_null() {
            return Ok(String::new());
        }
        value.as_str().map(str::to_owned).map_err(sqlx::Error::Decode)
    };
    rows.iter().map(first).collect()
}

/// Returns the URL of another database on the server of `url`.
pub(super) fn with_database(url: &str, database: &str) -> String {
    let (address, parameters) = url.split_at(url.find('?').unwrap_or(url.len()));
    let host = address.find("://").map_or(0, |scheme| scheme + 3);
    let end = address[host..].find('/').map_or(address.len(), |slash| host + slash);
    format!("{}/{database}{parameters}", &address[..end])
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_is_the_path_and_nothing_else_changes() {
        for (url, other) in [
            (
                "postgres://me:secret@[::1]:5433/postgres?sslmode=require",
                "postgres://me:secret@[::1]:5433/x?sslmode=require",
            ),
            ("postgres://me@host", "postgres://me@host/x"),
            ("postgres://me@host/", "postgres://me@host/x"),
            ("postgresql://me@host?options=-c%20a/b", "postgresql://me@host/x?options=-c%20a/b"),
        ] {
            assert_eq!(with_database(url, "x"), other);
        }
    }
}
