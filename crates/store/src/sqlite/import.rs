//! Writing checked histories, in one transaction.

use std::sync::Arc;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::read::{self, refresh_service_log};
use super::write;
use crate::clock::Clock;
use crate::error::{ImportError, StoreError};
use crate::import::{CheckedImport, ImportReport};
use crate::service::ServiceLog;

/// Makes checked histories part of the store. Everything becomes visible at once, or nothing does.
pub(super) async fn import(
    connection: &mut SqliteConnection,
    clock: &dyn Clock,
    import: &CheckedImport,
) -> Result<ImportReport, ImportError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::from)?;
    check_empty(&mut transaction, import).await?;
    let head = read::head(&mut transaction).await?;
    let service = refresh_service_log(&mut transaction, &Arc::<ServiceLog>::default()).await?;
    let (writes, head) = import.writes(head, &service, clock.now());
    write::apply(&mut transaction, &writes, &head).await?;
    write::move_all_cursors(&mut transaction, head.position).await?;
    transaction.commit().await.map_err(StoreError::from)?;
    Ok(import.report)
}

async fn check_empty(connection: &mut SqliteConnection, import: &CheckedImport) -> Result<(), ImportError> {
    let exists = async |connection: &mut SqliteConnection, query: &'static str| -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(query).fetch_one(connection).await?)
    };
    if exists(connection, "SELECT EXISTS (SELECT 1 FROM runs) OR EXISTS (SELECT 1 FROM events WHERE run IS NOT NULL)")
        .await?
    {
        return Err(ImportError::NotEmpty);
    }
    match import.first_service_line {
        Some(line) if exists(connection, "SELECT EXISTS (SELECT 1 FROM events)").await? => {
            Err(ImportError::LogNotEmpty { line })
        }
        _ => Ok(()),
    }
}
