//! Writing checked histories, in one transaction.

use std::sync::Arc;

use lastbeat_domain::judge;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::read::refresh_service_log;
use super::rows::RunRow;
use super::transaction::Head;
use super::write::{Segment, insert_event, insert_segment, insert_service, put_lane, put_run, set_due};
use crate::clock::Clock;
use crate::error::{ImportError, StoreError};
use crate::import::{CheckedImport, ImportReport, ImportedFact};
use crate::record;
use crate::service::ServiceLog;

/// Makes checked histories part of the store. Everything becomes visible at once, or nothing does.
pub(super) async fn import(
    connection: &mut SqliteConnection,
    clock: &dyn Clock,
    import: &CheckedImport,
) -> Result<ImportReport, ImportError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::from)?;
    check_empty(&mut transaction, import).await?;
    let mut head = Head::read(&mut transaction).await?;
    let first_number = head.run + 1;
    for fact in &import.facts {
        head.position += 1;
        match fact {
            ImportedFact::Run { index, recorded } => {
                let number = first_number + *index as i64;
                let body = record::encode_run_event(&recorded.event);
                insert_event(&mut transaction, head.position, number, recorded, &body).await?;
                head.latest_at = head.latest_at.max(recorded.recorded_at);
            }
            ImportedFact::Service(recorded) => {
                insert_service(&mut transaction, head.position, recorded).await?;
                head.latest_at = head.latest_at.max(recorded.recorded_at);
            }
        }
    }
    let service = refresh_service_log(&mut transaction, &Arc::<ServiceLog>::default()).await?;
    let now = clock.now().max(head.latest_at);
    let listening = service.listening(now);
    for (imported, number) in import.runs.iter().zip(first_number..) {
        for (attempt, beats) in &imported.segments {
            insert_segment(&mut transaction, number, &Segment::pack(*attempt, beats)).await?;
        }
        let row = RunRow { number, run: imported.run.clone(), tail: Vec::new() };
        put_run(&mut transaction, &row).await?;
        put_lane(&mut transaction, &row.run.lane).await?;
        let policy = service.policy(&row.run.lane, now);
        set_due(&mut transaction, number, judge(&row.run, &policy, &listening, now).check_at()).await?;
        head.latest_at = head.latest_at.max(row.run.updated_at);
        head.run = number;
    }
    for lane in service.lanes() {
        put_lane(&mut transaction, lane).await?;
    }
    head.write(&mut transaction).await?;
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
