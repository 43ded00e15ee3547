//! The server on which everything is measured, and what it says of itself.

use anyhow::{Result, ensure};
use lastbeat_testkit::postgres::{Cluster, ClusterOptions};
use sqlx::postgres::{PgPool, PgPoolOptions};

/// The settings in which the server differs from its defaults; they hold for every contestant.
///
/// No checkpoint and no vacuum comes in between by itself: each would hit one contestant and not the other, and after a
/// checkpoint every page is written to the WAL in full when it is next changed. The benchmark does both at fixed points.
/// Compiling the plans of large scans would cost the baselines more than it brings.
const SETTINGS: [(&str, &str); 11] = [
    ("shared_buffers", "2GB"),
    ("max_connections", "100"),
    ("autovacuum", "off"),
    ("checkpoint_timeout", "1h"),
    ("max_wal_size", "16GB"),
    ("min_wal_size", "4GB"),
    ("wal_init_zero", "on"),
    ("wal_recycle", "on"),
    ("jit", "off"),
    // Until it is asked for; without the extension these two mean nothing.
    (STATEMENTS_TRACKED, "none"),
    ("pg_stat_statements.track_planning", "on"),
];

/// The extension that tells how long the server took over statements. It comes with the server in most distributions.
const STATEMENTS: &str = "pg_stat_statements";
const STATEMENTS_TRACKED: &str = "pg_stat_statements.track";

/// How much WAL is written at a time to make it grow.
const GROWTH_BYTES: i64 = 256 << 20;
const SEGMENT_BYTES: i64 = 16 << 20;

/// A throwaway server that keeps what it acknowledged, and keeps nothing when the benchmark ends.
pub(crate) struct Ground {
    cluster: Cluster,
    admin: PgPool,
    /// Whether it can tell how long it took over statements.
    tells_times: bool,
}

impl Ground {
    /// Starts the server. Blocks until it is there.
    pub(crate) fn start() -> Result<Ground> {
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let cluster = Cluster::start_with(&ClusterOptions { durable: true, settings });
        let available = format!("SELECT name FROM pg_available_extensions WHERE name = '{STATEMENTS}'");
        let tells_times = !cluster.sql("postgres", &available).is_empty();
        if tells_times {
            // It has to be there when the server starts.
            cluster.set("shared_preload_libraries", STATEMENTS);
            cluster.stop_immediate();
            cluster.start_again();
            cluster.sql("postgres", &format!("CREATE EXTENSION {STATEMENTS}"));
        }
        let admin = PgPoolOptions::new().max_connections(2).connect_lazy(&cluster.url("postgres"))?;
        Ok(Ground { cluster, admin, tells_times })
    }

    /// Times statements from now on, or no longer, because that costs a little.
    pub(crate) fn time_statements(&self, on: bool) {
        tokio::task::block_in_place(|| self.cluster.set(STATEMENTS_TRACKED, if on { "top" } else { "none" }));
    }

    /// Forgets the times of statements.
    pub(crate) async fn forget_times(&self) -> Result<()> {
        if self.tells_times {
            sqlx::raw_sql("SELECT pg_stat_statements_reset()").execute(&self.admin).await?;
        }
        Ok(())
    }

    /// Returns how many statements were carried out in a database since the times were forgotten, and how many
    /// milliseconds they took to plan and to carry out. None where the server cannot tell.
    pub(crate) async fn statements(&self, database: &Database) -> Result<Option<Statements>> {
        if !self.tells_times {
            return Ok(None);
        }
        let query = "SELECT coalesce(sum(calls), 0)::float8, coalesce(sum(total_plan_time + total_exec_time), 0) \
                     FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = $1";
        let (count, milliseconds) = sqlx::query_as(query).bind(database.name()).fetch_one(&self.admin).await?;
        Ok(Some(Statements { count, milliseconds }))
    }

    /// Makes an empty database.
    pub(crate) fn database(&self) -> Result<Database> {
        let url = tokio::task::block_in_place(|| self.cluster.create_database());
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy(&url)?;
        Ok(Database { url, pool })
    }

    /// Returns what the server is, and that it does not cheat.
    pub(crate) async fn describe(&self) -> Result<String> {
        let [fsync, commits, pages, version] = ["fsync", "synchronous_commit", "full_page_writes", "server_version"];
        for setting in [fsync, commits, pages] {
            let value = self.setting(setting).await?;
            ensure!(value == "on", "{setting} is {value}: what would be measured is not durable");
        }
        Ok(format!("PostgreSQL {}, fsync on", self.setting(version).await?))
    }

    async fn setting(&self, name: &str) -> Result<String> {
        Ok(sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&self.admin).await?)
    }

    /// Returns how many bytes of WAL have ever been written.
    pub(crate) async fn wal_written(&self) -> Result<f64> {
        let query = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8";
        Ok(sqlx::query_scalar(query).fetch_one(&self.admin).await?)
    }

    /// Returns how many transactions of the cluster have written something.
    pub(crate) async fn transactions(&self) -> Result<f64> {
        let query = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::float8";
        Ok(sqlx::query_scalar(query).fetch_one(&self.admin).await?)
    }

    /// Writes everything out, and makes sure that there are WAL files to write over for so many bytes to come. A commit
    /// that has to make a new file is ten times as slow, and would be whose turn it happens to be.
    pub(crate) async fn settle(&self, wal_to_come: i64) -> Result<()> {
        // Not more often than it takes to write as much as is to be there; the checkpoint decides what it keeps.
        for _ in 0..=wal_to_come / GROWTH_BYTES {
            if self.wal_ahead().await? >= wal_to_come {
                break;
            }
            self.write_wal().await?;
            self.checkpoint().await?;
        }
        self.checkpoint().await
    }

    async fn checkpoint(&self) -> Result<()> {
        sqlx::raw_sql("CHECKPOINT").execute(&self.admin).await?;
        Ok(())
    }

    /// How many bytes of WAL can be written before a new file has to be made.
    async fn wal_ahead(&self) -> Result<i64> {
        let query = "SELECT count(*) FROM pg_ls_waldir() WHERE name > pg_walfile_name(pg_current_wal_insert_lsn())";
        let files: i64 = sqlx::query_scalar(query).fetch_one(&self.admin).await?;
        Ok(files * SEGMENT_BYTES)
    }

    async fn write_wal(&self) -> Result<()> {
        let message = "SELECT pg_logical_emit_message(false, 'ballast', repeat('x', 1 << 20)) \
                       FROM generate_series(1, $1)";
        sqlx::query(message).bind(GROWTH_BYTES >> 20).execute(&self.admin).await?;
        sqlx::raw_sql("SELECT pg_switch_wal()").execute(&self.admin).await?;
        Ok(())
    }
}

/// A database on the server.
#[derive(Clone)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
}

/// Statements, and how long the server took over them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statements {
    pub(crate) count: f64,
    pub(crate) milliseconds: f64,
}

/// How often rows of a table were updated, and how often on their page and without touching an index.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Updates {
    pub(crate) all: i64,
    pub(crate) hot: i64,
}

impl Database {
    fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or_default()
    }

    /// Takes dead rows away, and tells the planner what there is.
    pub(crate) async fn vacuum(&self) -> Result<()> {
        sqlx::raw_sql("VACUUM ANALYZE").execute(&self.pool).await?;
        Ok(())
    }

    /// Returns the bytes of tables, with their indexes and all.
    pub(crate) async fn bytes(&self, tables: &[&str]) -> Result<f64> {
        let query = "SELECT sum(pg_total_relation_size(name::regclass))::float8 FROM unnest($1::text[]) AS t(name)";
        let tables: Vec<String> = tables.iter().map(|&table| table.to_owned()).collect();
        Ok(sqlx::query_scalar(query).bind(tables).fetch_one(&self.pool).await?)
    }

    /// Returns the updates of the projection of runs that have been counted until now.
    pub(crate) async fn updates(&self) -> Result<Updates> {
        let query = "SELECT coalesce(sum(n_tup_upd), 0)::bigint, coalesce(sum(n_tup_hot_upd), 0)::bigint \
                     FROM pg_stat_user_tables WHERE relname IN ('runs', 'beating')";
        let (all, hot) = sqlx::query_as(query).fetch_one(&self.pool).await?;
        Ok(Updates { all, hot })
    }
}
