//! One snapshot of a database, as `verify` and `rebuild` read it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use lastbeat_domain::{Name, RunId, Span, Timestamp};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::read;
use super::rows::{RUN_COLUMNS, read_beats, read_event, read_run, read_segment};
use crate::batch::{Head, RunRow};
use crate::error::StoreError;
use crate::log::{BeatsRow, EventRow, SegmentRow, unsigned};
use crate::past::Wanted;
use crate::truth::{Extent, Source, Table};

/// The triggers that keep the log append-only.
const TRIGGERS: [&str; 3] = ["events_append_only", "beats_append_only", "segments_append_only"];

/// Says of the run `whole` whether it was created at the second argument or later, if there is one.
const WANTED: &str = "($2::bigint IS NULL OR EXISTS \
     (SELECT 1 FROM events WHERE run = whole.number AND version = 1 AND recorded_at >= $2))";

/// A connection that holds a snapshot, or the log lock.
pub(super) struct Snapshot<'c>(pub(super) &'c mut PgConnection);

#[async_trait]
impl Source for Snapshot<'_> {
    async fn head(&mut self) -> Result<Head, StoreError> {
        read::head(self.0).await
    }

    async fn missing_triggers(&mut self) -> Result<Vec<String>, StoreError> {
        // One that is disabled is as good as missing.
        let found: Vec<String> = sqlx::query_scalar(
            "SELECT tgname::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid \
             WHERE relnamespace = current_schema()::regnamespace AND tgenabled = 'A'",
        )
        .fetch_all(&mut *self.0)
        .await?;
        Ok(TRIGGERS.iter().map(|name| (*name).to_owned()).filter(|trigger| !found.contains(trigger)).collect())
    }

    async fn size(&mut self) -> Result<(i64, i64), StoreError> {
        let size = "SELECT greatest((SELECT max(run) FROM events WHERE run IS NOT NULL), \
                    (SELECT max(run) FROM segments), (SELECT max(number) FROM runs), 0), \
                    (SELECT coalesce(sum(count), 0)::bigint FROM beats)";
        Ok(sqlx::query_as(size).fetch_one(&mut *self.0).await?)
    }

    async fn service_rows(&mut self) -> Result<Vec<EventRow>, StoreError> {
        read::service_rows(self.0).await
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
            "SELECT before + 1, position - 1 FROM (\
             SELECT position, lag(position, 1, $1) OVER (ORDER BY position) AS before FROM (\
             SELECT position FROM {table} WHERE position > $1 AND position <= $2 UNION ALL SELECT $2 + 1) AS ends) \
             AS steps WHERE position > before + 1 ORDER BY 1 LIMIT $3"
        );
        let query = sqlx::query_as(AssertSqlSafe(select)).bind(after).bind(end).bind(limit);
        Ok(query.fetch_all(&mut *self.0).await?)
    }

    async fn beats_after(&mut self, position: i64, limit: i64) -> Result<Vec<BeatsRow>, StoreError> {
        let select = "SELECT position, recorded_at, count, digest, data FROM beats WHERE position > $1 \
                      ORDER BY position LIMIT $2";
        let query = sqlx::query(select).bind(position).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_beats).collect()
    }

    async fn events_of(&mut self, from: i64, to: i64) -> Result<Vec<EventRow>, StoreError> {
        let select = "SELECT * FROM events WHERE run >= $1 AND run < $2 ORDER BY run, version";
        sqlx::query(select).bind(from).bind(to).fetch_all(&mut *self.0).await?.iter().map(read_event).collect()
    }

    async fn segments_of(&mut self, from: i64, to: i64) -> Result<Vec<SegmentRow>, StoreError> {
        let select = "SELECT * FROM segments WHERE run >= $1 AND run < $2 ORDER BY run, first_version";
        sqlx::query(select).bind(from).bind(to).fetch_all(&mut *self.0).await?.iter().map(read_segment).collect()
    }

    async fn rows_of(&mut self, from: i64, to: i64) -> Result<Vec<RunRow>, StoreError> {
        let select = format!("SELECT {RUN_COLUMNS} FROM whole_runs WHERE number >= $1 AND number < $2 ORDER BY number");
        let query = sqlx::query(AssertSqlSafe(select)).bind(from).bind(to);
        query.fetch_all(&mut *self.0).await?.iter().map(read_run).collect()
    }

    async fn due_of(&mut self, from: i64, to: i64) -> Result<BTreeMap<i64, (Timestamp, Span)>, StoreError> {
        let select = "SELECT run, check_at, delay FROM due WHERE run >= $1 AND run < $2";
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(select).bind(from).bind(to).fetch_all(&mut *self.0).await?;
        let due = |(run, check_at, delay): (i64, i64, i64)| {
            Ok((run, (Timestamp::from_micros(check_at), Span::from_micros(unsigned(delay)?))))
        };
        rows.into_iter().map(due).collect()
    }

    async fn unsealed(&mut self, _: i64) -> Result<Vec<(String, Option<RunId>)>, StoreError> {
        // The database itself demands one.
        Ok(Vec::new())
    }

    async fn count_of_lane(&mut self, wanted: &Wanted) -> Result<u64, StoreError> {
        let select = format!("SELECT count(*) FROM runs AS whole WHERE lane = $1 AND {WANTED}");
        let query = sqlx::query_scalar(AssertSqlSafe(select)).bind(wanted.lane.as_str());
        unsigned(query.bind(wanted.since.map(Timestamp::as_micros)).fetch_one(&mut *self.0).await?)
    }

    async fn runs_of_lane(&mut self, wanted: &Wanted, after: i64, limit: i64) -> Result<Vec<RunRow>, StoreError> {
        let select = format!(
            "SELECT {RUN_COLUMNS} FROM whole_runs AS whole WHERE lane = $1 AND {WANTED} AND number > $3 \
             ORDER BY number LIMIT $4"
        );
        let query = sqlx::query(AssertSqlSafe(select)).bind(wanted.lane.as_str());
        let query = query.bind(wanted.since.map(Timestamp::as_micros)).bind(after).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_run).collect()
    }

    async fn events_of_runs(&mut self, runs: &[i64]) -> Result<Vec<EventRow>, StoreError> {
        let select = "SELECT * FROM events WHERE run = ANY($1) ORDER BY run, version";
        sqlx::query(select).bind(runs).fetch_all(&mut *self.0).await?.iter().map(read_event).collect()
    }

    async fn segments_of_runs(&mut self, runs: &[i64]) -> Result<Vec<SegmentRow>, StoreError> {
        let select = "SELECT * FROM segments WHERE run = ANY($1) ORDER BY run, first_version";
        sqlx::query(select).bind(runs).fetch_all(&mut *self.0).await?.iter().map(read_segment).collect()
    }

    async fn events_after(&mut self, run: i64, version: i64, limit: i64) -> Result<Vec<EventRow>, StoreError> {
        let select = "SELECT * FROM events WHERE run = $1 AND version > $2 ORDER BY version LIMIT $3";
        let query = sqlx::query(select).bind(run).bind(version).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_event).collect()
    }

    async fn segments_after(&mut self, run: i64, version: i64, limit: i64) -> Result<Vec<SegmentRow>, StoreError> {
        let select = "SELECT * FROM segments WHERE run = $1 AND first_version > $2 ORDER BY first_version LIMIT $3";
        let query = sqlx::query(select).bind(run).bind(version).bind(limit);
        query.fetch_all(&mut *self.0).await?.iter().map(read_segment).collect()
    }

    async fn rearming(&mut self) -> Result<BTreeSet<Name>, StoreError> {
        Ok(read::lanes(self.0, true).await?.into_iter().collect())
    }
}
