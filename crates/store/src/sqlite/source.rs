//! One snapshot of a file, as `verify` and `rebuild` read it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use lastbeat_domain::{Name, RunId, Span, Timestamp};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row};

use super::read;
use super::rows::{RUN_COLUMNS, read_beats, read_event, read_id, read_run, read_segment, to_json};
use crate::batch::{Head, RunRow};
use crate::error::StoreError;
use crate::log::{BeatsRow, EventRow, SegmentRow, unsigned};
use crate::past::Wanted;
use crate::truth::{Extent, Source, Table};

/// The triggers that keep the log append-only.
const TRIGGERS: [&str; 13] = [
    "events_no_update",
    "events_no_delete",
    "events_no_replace",
    "beats_no_update",
    "beats_no_delete",
    "beats_no_replace",
    "segments_no_update",
    "segments_no_delete",
    "segments_no_replace",
    "events_compacted_counts",
    "merging_counts",
    "merging_no_update",
    "merging_is_done",
];

/// Says of a row of `runs` whether it was created at the second argument or later, if there is one.
const WANTED: &str = "(?2 IS NULL OR EXISTS \
     (SELECT 1 FROM events WHERE run = runs.number AND version = 1 AND recorded_at >= ?2))";

/// A connection that holds a snapshot, or the write lock.
pub(super) struct Snapshot<'c>(pub(super) &'c mut SqliteConnection);

#[async_trait]
impl Source for Snapshot<'_> {
    async fn head(&mut self) -> Result<Head, StoreError> {
        read::head(self.0).await
    }

    async fn missing_triggers(&mut self) -> Result<Vec<String>, StoreError> {
        let found: Vec<String> =
            sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetch_all(&mut *self.0).await?;
        Ok(TRIGGERS.iter().map(|name| (*name).to_owned()).filter(|trigger| !found.contains(trigger)).collect())
    }

    async fn size(&mut self) -> Result<(i64, i64), StoreError> {
        let last: i64 = sqlx::query_scalar(
            "SELECT max(coalesce((SELECT max(run) FROM events), 0), coalesce((SELECT max(run) FROM segments), 0), \
             coalesce((SELECT max(number) FROM runs), 0))",
        )
        .fetch_one(&mut *self.0)
        .await?;
        let beats = sqlx::query_scalar("SELECT coalesce(sum(count), 0) FROM beats").fetch_one(&mut *self.0).await?;
        Ok((last, beats))
    }

    async fn service_rows(&mut self) -> Result<Vec<EventRow>, StoreError> {
        let select = "SELECT * FROM events WHERE run IS NULL ORDER BY position";
        sqlx::query(select).fetch_all(&mut *self.0).await?.iter().map(read_event).collect()
    }

    async fn extent(&mut self, table: Table) -> Result<Extent, StoreError> {
        let name = table.name();
        let select = format!(
            "SELECT count(*) AS rows, min(position) AS first, max(position) AS last, max(recorded_at) AS latest \
             FROM {name}"
        );
        let row = sqlx::query(AssertSqlSafe(select)).fetch_one(&mut *self.0).await?;
        let (first, last) = (row.try_get("first")?, row.try_get("last")?);
        Ok(Extent { rows: row.try_get("rows")?, first, last, latest_at: row.try_get("latest")? })
    }

    async fn holes(&mut self, table: Table, after: i64, end: i64, limit: i64) -> Result<Vec<(i64, i64)>, StoreError> {
        let table = table.name();
        let select = format!(
            "SELECT here.position + 1 AS first, \
             coalesce((SELECT min(position) FROM {table} WHERE position > here.position), ?2 + 1) - 1 AS last \
             FROM (SELECT position FROM {table} UNION SELECT ?1) AS here \
             WHERE here.position >= ?1 AND here.position < ?2 \
             AND NOT EXISTS (SELECT 1 FROM {table} WHERE position = here.position + 1) ORDER BY 1 LIMIT ?3"
        );
        let query = sqlx::query_as(AssertSqlSafe(select)).bind(after).bind(end).bind(limit);
        Ok(query.fetch_all(&mut *self.0).await?)
    }

    async fn beats_after(&mut self, position: i64, limit: i64) -> Result<Vec<BeatsRow>, StoreError> {
        let select = "SELECT * FROM beats WHERE position > ? ORDER BY position LIMIT ?";
        let query = sqlx::query(select).bind(position).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_beats).collect()
    }

    async fn events_of(&mut self, from: i64, to: i64) -> Result<Vec<EventRow>, StoreError> {
        let select = "SELECT * FROM events WHERE run >= ? AND run < ? ORDER BY run, version";
        sqlx::query(select).bind(from).bind(to).fetch_all(&mut *self.0).await?.iter().map(read_event).collect()
    }

    async fn segments_of(&mut self, from: i64, to: i64) -> Result<Vec<SegmentRow>, StoreError> {
        let select = "SELECT * FROM segments WHERE run >= ? AND run < ? ORDER BY run, first_version";
        sqlx::query(select).bind(from).bind(to).fetch_all(&mut *self.0).await?.iter().map(read_segment).collect()
    }

    async fn rows_of(&mut self, from: i64, to: i64) -> Result<Vec<RunRow>, StoreError> {
        let select = format!("SELECT {RUN_COLUMNS} FROM runs WHERE number >= ? AND number < ? ORDER BY number");
        let query = sqlx::query(AssertSqlSafe(select)).bind(from).bind(to);
        query.fetch_all(&mut *self.0).await?.iter().map(read_run).collect()
    }

    async fn due_of(&mut self, from: i64, to: i64) -> Result<BTreeMap<i64, (Timestamp, Span)>, StoreError> {
        let select = "SELECT run, check_at, delay FROM due WHERE run >= ? AND run < ?";
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(select).bind(from).bind(to).fetch_all(&mut *self.0).await?;
        let due = |(run, check_at, delay): (i64, i64, i64)| {
            Ok((run, (Timestamp::from_micros(check_at), Span::from_micros(unsigned(delay)?))))
        };
        rows.into_iter().map(due).collect()
    }

    /// One without was put there by somebody else. A log that was begun before there were digests is let be, since a
    /// program of that time may have gone on writing to it.
    async fn unsealed(&mut self, limit: i64) -> Result<Vec<(String, Option<RunId>)>, StoreError> {
        let first: Option<Option<i64>> = sqlx::query_scalar("SELECT digest FROM events ORDER BY position LIMIT 1")
            .fetch_optional(&mut *self.0)
            .await?;
        if first.flatten().is_none() {
            return Ok(Vec::new());
        }
        let run_id = "(SELECT run_id FROM events WHERE run = bare.run AND version = 1)";
        let events = format!("SELECT position AS row, {run_id} AS id FROM events AS bare WHERE digest IS NULL LIMIT ?");
        let segments =
            format!("SELECT first_version AS row, {run_id} AS id FROM segments AS bare WHERE digest IS NULL LIMIT ?");
        let beats = "SELECT position AS row, NULL AS id FROM beats WHERE digest IS NULL LIMIT ?".to_owned();
        let mut unsealed = Vec::new();
        for (what, select) in [("events row", events), ("beats row", beats), ("segment from version", segments)] {
            for row in sqlx::query(AssertSqlSafe(select)).bind(limit).fetch_all(&mut *self.0).await? {
                let number: i64 = row.try_get("row")?;
                let id = row.try_get::<Option<Vec<u8>>, _>("id")?.map(|_| read_id(&row, "id")).transpose()?;
                unsealed.push((format!("{what} {number}"), id));
            }
        }
        Ok(unsealed)
    }

    async fn count_of_lane(&mut self, wanted: &Wanted) -> Result<u64, StoreError> {
        let select = format!("SELECT count(*) FROM runs WHERE lane = ?1 AND {WANTED}");
        let query = sqlx::query_scalar(AssertSqlSafe(select)).bind(wanted.lane.as_str());
        unsigned(query.bind(wanted.since.map(Timestamp::as_micros)).fetch_one(&mut *self.0).await?)
    }

    async fn runs_of_lane(&mut self, wanted: &Wanted, after: i64, limit: i64) -> Result<Vec<RunRow>, StoreError> {
        let select = format!(
            "SELECT {RUN_COLUMNS} FROM runs WHERE lane = ?1 AND {WANTED} AND number > ?3 ORDER BY number LIMIT ?4"
        );
        let query = sqlx::query(AssertSqlSafe(select)).bind(wanted.lane.as_str());
        let query = query.bind(wanted.since.map(Timestamp::as_micros)).bind(after).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_run).collect()
    }

    async fn events_of_runs(&mut self, runs: &[i64]) -> Result<Vec<EventRow>, StoreError> {
        let select = "SELECT * FROM events WHERE run IN (SELECT value FROM json_each(?)) ORDER BY run, version";
        sqlx::query(select).bind(to_json(&runs)).fetch_all(&mut *self.0).await?.iter().map(read_event).collect()
    }

    async fn segments_of_runs(&mut self, runs: &[i64]) -> Result<Vec<SegmentRow>, StoreError> {
        let select = "SELECT * FROM segments WHERE run IN (SELECT value FROM json_each(?)) ORDER BY run, first_version";
        sqlx::query(select).bind(to_json(&runs)).fetch_all(&mut *self.0).await?.iter().map(read_segment).collect()
    }

    async fn events_after(&mut self, run: i64, version: i64, limit: i64) -> Result<Vec<EventRow>, StoreError> {
        let select = "SELECT * FROM events WHERE run = ? AND version > ? ORDER BY version LIMIT ?";
        let query = sqlx::query(select).bind(run).bind(version).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_event).collect()
    }

    async fn segments_after(&mut self, run: i64, version: i64, limit: i64) -> Result<Vec<SegmentRow>, StoreError> {
        let select = "SELECT * FROM segments WHERE run = ? AND first_version > ? ORDER BY first_version LIMIT ?";
        let query = sqlx::query(select).bind(run).bind(version).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_segment).collect()
    }

    async fn rearming(&mut self) -> Result<BTreeSet<Name>, StoreError> {
        Ok(read::lanes(self.0, true).await?.into_iter().collect())
    }
}
