//! What became of a commit that was not answered.
//!
//! The number of its transaction does not tell. A server that crashes forgets the numbers of which nothing had reached
//! its disk, and gives them out again; so the transaction that it calls committed may be somebody else's. What was to be
//! appended tells, since no two rows of the log are the same. The number says only whether the transaction is over.

use std::collections::HashSet;

use sqlx::postgres::PgConnection;

use super::rows::read_segment;
use crate::batch::Writes;
use crate::error::StoreError;
use crate::log::{BeatsRow, signed};
use crate::packing::{self, Beat};

/// How many of the latest rows of heartbeats are looked through: more than are committed while an outcome is looked up.
const BEATS_MAX: i64 = 100_000;

/// What is in the log if a transaction was committed.
#[derive(Debug)]
pub(super) enum Mark {
    /// A row of `events`.
    Event { position: i64, digest: Option<i64> },
    /// A row of `beats`, whose position the database draws.
    Beats { at: i64, count: i64, data: Vec<u8> },
    /// Nothing was appended: to do it again does no harm.
    Nothing,
}

impl Mark {
    /// Returns how to tell that decided writes went through.
    pub(super) fn of(writes: &Writes) -> Mark {
        match (writes.events.first(), &writes.beats) {
            (Some(event), _) => Mark::Event { position: event.position, digest: event.digest },
            (None, Some(row)) => Mark::of_row(row),
            (None, None) => Mark::Nothing,
        }
    }

    /// Returns how to tell that the heartbeats of a commit went through.
    pub(super) fn of_row(row: &BeatsRow) -> Mark {
        Mark::Beats { at: row.recorded_at, count: row.count, data: row.data.clone() }
    }

    /// Returns this mark, or the other one if this is none.
    pub(super) fn or(self, other: Mark) -> Mark {
        if matches!(self, Mark::Nothing) { other } else { self }
    }

    async fn is_there(&self, connection: &mut PgConnection) -> Result<bool, StoreError> {
        let found = match self {
            Mark::Event { position, digest } => {
                let select = "SELECT EXISTS (SELECT FROM events WHERE position = $1 AND digest = $2)";
                sqlx::query_scalar(select).bind(*position).bind(*digest).fetch_one(connection).await?
            }
            Mark::Beats { at, count, data } => {
                let select = "SELECT EXISTS (SELECT FROM (SELECT * FROM beats ORDER BY position DESC LIMIT $1) AS latest \
                              WHERE recorded_at = $2 AND count = $3 AND data = $4)";
                let query = sqlx::query_scalar(select).bind(BEATS_MAX).bind(*at).bind(*count).bind(data.as_slice());
                query.fetch_one(&mut *connection).await? || were_compacted(connection, *at, *count, data).await?
            }
            Mark::Nothing => false,
        };
        Ok(found)
    }
}

/// Says whether the heartbeats of a row stand in segments, all of them: then the row was there, and went by a compaction.
async fn were_compacted(connection: &mut PgConnection, at: i64, count: i64, data: &[u8]) -> Result<bool, StoreError> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let beats = packing::unpack_beats(count, data).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let (runs, versions): (Vec<i64>, Vec<i64>) = beats.iter().map(|(run, version)| (*run, signed(*version))).unzip();
    let select = "SELECT s.* FROM unnest($1::bigint[], $2::bigint[]) AS b(run, version) JOIN LATERAL (\
                  SELECT * FROM segments WHERE run = b.run AND first_version <= b.version \
                  ORDER BY first_version DESC LIMIT 1) AS s ON s.last_version >= b.version";
    let rows = sqlx::query(select).bind(runs).bind(versions).fetch_all(connection).await?;
    let mut kept = HashSet::new();
    for row in &rows {
        let segment = read_segment(row)?;
        let of_that_instant = |beat: &Beat| (beat.at == at).then_some((segment.run, beat.version));
        kept.extend(segment.unpack_by_number()?.1.iter().filter_map(of_that_instant));
    }
    Ok(beats.iter().all(|beat| kept.contains(beat)))
}

/// Returns whether a transaction was committed; `None` while it is not over.
pub(super) async fn look_up(
    connection: &mut PgConnection,
    transaction: &str,
    mark: &Mark,
) -> Result<Option<bool>, StoreError> {
    let status = sqlx::query_scalar("SELECT pg_xact_status($1::xid8)").bind(transaction).fetch_one(&mut *connection);
    let status: Result<Option<String>, sqlx::Error> = status.await;
    match status {
        Ok(status) if status.as_deref() == Some("in progress") => return Ok(None),
        Ok(_) => {}
        // A number that the server, back from a crash, has not given out again.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("22023") => {}
        Err(error) => return Err(error.into()),
    }
    mark.is_there(connection).await.map(Some)
}
