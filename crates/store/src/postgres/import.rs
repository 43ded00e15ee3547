//! Writing checked histories, in one transaction.

use std::sync::Arc;

use sqlx::Executor;
use sqlx::postgres::PgConnection;

use super::clock::PgClock;
use super::outcome::Mark;
use super::read::refresh_service_log;
use super::write;
use super::writer::{End, Link, lock_log};
use crate::error::{ImportError, StoreError};
use crate::import::CheckedImport;
use crate::service::ServiceLog;

/// Writes checked histories up to the commit, which the caller makes. Returns the number of the transaction, and how to
/// tell that it was committed.
pub(super) async fn import(
    link: &mut Link,
    clock: &PgClock,
    import: &CheckedImport,
) -> Result<(String, Mark), ImportError> {
    let transaction = link.begin(clock.simulated()).await?.transaction;
    let connection = &mut link.connection;
    // It takes as long as it takes.
    let patient = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
    connection.execute(patient).await.map_err(StoreError::from)?;
    let End { head, clocks } = lock_log(connection, clock).await?;
    check_empty(connection, import).await?;
    let service = refresh_service_log(connection, &Arc::<ServiceLog>::default()).await?;
    let (writes, head) = import.writes(head, &service, clocks.1);
    write::apply(connection, &writes, head.latest_at).await?;
    // Its heartbeats stand in segments, where the end of the log is not looked for; nor is a watermark.
    write::raise_head(connection, head.latest_at, head.beat_position).await?;
    write::move_all_cursors(connection, head.position).await?;
    Ok((transaction, Mark::of(&writes)))
}

async fn check_empty(connection: &mut PgConnection, import: &CheckedImport) -> Result<(), ImportError> {
    let (runs, events): (bool, bool) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM runs) OR EXISTS (SELECT FROM events WHERE run IS NOT NULL), \
         EXISTS (SELECT FROM events)",
    )
    .fetch_one(connection)
    .await
    .map_err(StoreError::from)?;
    if runs {
        return Err(ImportError::NotEmpty);
    }
    match import.first_service_line {
        Some(line) if events => Err(ImportError::LogNotEmpty { line }),
        _ => Ok(()),
    }
}
