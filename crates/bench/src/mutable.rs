//! The baselines: one mutable row for each run, with the instant of its latest heartbeat.
//!
//! M1 is the design that Lastbeat replaces: each heartbeat is an UPDATE of its own. M2 is its best possible form: the
//! heartbeats that wait are committed together, by one UPDATE. Both hold a heartbeat to its fencing token, and answer
//! once it is durable. Neither keeps a history.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::crowd::Hears;
use crate::fleet::Member;
use crate::ground::Database;

/// The table. There is no index on the heartbeat, and room on each page for new versions of its rows, so that nearly
/// every heartbeat stays on its page and touches no index.
const TABLE: &str = "
CREATE TABLE runs (
    id                uuid        PRIMARY KEY,
    lane              text        NOT NULL,
    status            text        NOT NULL,
    attempt           integer     NOT NULL,
    claim             uuid,
    executor          text,
    created_at        timestamptz NOT NULL,
    claimed_at        timestamptz,
    last_heartbeat_at timestamptz
) WITH (fillfactor = 70)";

/// The best pair of partial indexes for the sweep: one for each of its two rules.
const INDEXES: &str = "
CREATE INDEX runs_beating ON runs (last_heartbeat_at)
    WHERE status = 'running' AND last_heartbeat_at IS NOT NULL;
CREATE INDEX runs_silent ON runs (claimed_at)
    WHERE status IN ('claimed', 'running') AND last_heartbeat_at IS NULL";

const SEED: &str = "
INSERT INTO runs (id, lane, status, attempt, claim, executor, created_at, claimed_at, last_heartbeat_at)
SELECT id, 'bench', 'running', 1, claim, 'bench-executor', clock_timestamp(), clock_timestamp(), clock_timestamp()
FROM unnest($1::uuid[], $2::uuid[]) AS member (id, claim)";

const HEARTBEAT: &str = "
UPDATE runs SET last_heartbeat_at = clock_timestamp()
WHERE id = $1 AND attempt = $2 AND claim = $3 AND status = 'running'";

const HEARTBEATS: &str = "
UPDATE runs SET last_heartbeat_at = clock_timestamp()
FROM unnest($1::uuid[], $2::integer[], $3::uuid[]) AS heard (id, attempt, claim)
WHERE runs.id = heard.id AND runs.attempt = heard.attempt AND runs.claim = heard.claim AND runs.status = 'running'";

/// The sweep: both rules in one statement. The windows are in seconds.
const SWEEP: &str = "
UPDATE runs SET status = 'timed_out'
WHERE (status = 'running' AND last_heartbeat_at IS NOT NULL
       AND last_heartbeat_at < now() - make_interval(secs => $1))
   OR (status IN ('claimed', 'running') AND last_heartbeat_at IS NULL
       AND claimed_at < now() - make_interval(secs => $2))";

const SILENCE: &str = "
UPDATE runs SET last_heartbeat_at = last_heartbeat_at - make_interval(secs => $2) WHERE id = ANY($1)";

/// How many rows are written at a time where it is not measured.
const BATCH_ROWS: usize = 20_000;
/// How many heartbeats M2 commits together at the most.
const GROUP_MAX: usize = 1_000;
/// How many heartbeats may wait for one of the writers.
const QUEUE: usize = 4_096;

/// Makes the table and fills it with runs that have been heard of just now.
pub(crate) async fn seed(database: &Database, fleet: &[Member], indexed: bool) -> Result<()> {
    database.pool.execute(TABLE).await?;
    for batch in fleet.chunks(BATCH_ROWS) {
        let (ids, claims): (Vec<Uuid>, Vec<Uuid>) = batch.iter().map(|member| (member.id, member.claim)).unzip();
        sqlx::query(SEED).bind(ids).bind(claims).execute(&database.pool).await?;
    }
    if indexed {
        sqlx::raw_sql(INDEXES).execute(&database.pool).await?;
    }
    database.vacuum().await
}

/// Lets every run be heard of once.
pub(crate) async fn hear_all(database: &Database, fleet: &[Member]) -> Result<()> {
    let mut connection = connect(database).await?;
    for batch in fleet.chunks(GROUP_MAX) {
        hear(&mut connection, batch.iter().copied()).await?;
    }
    connection.close().await?;
    Ok(())
}

/// Sweeps, and returns how many runs were timed out and how many milliseconds it took.
pub(crate) async fn sweep(database: &Database, window_seconds: f64, coarse_seconds: f64) -> Result<(u64, f64)> {
    let mut connection = database.pool.acquire().await?;
    let started = Instant::now();
    let done = sqlx::query(SWEEP).bind(window_seconds).bind(coarse_seconds).execute(&mut *connection).await?;
    Ok((done.rows_affected(), started.elapsed().as_secs_f64() * 1e3))
}

/// Makes it so that these runs were last heard of some seconds earlier.
pub(crate) async fn silence(database: &Database, members: &[Member], seconds: f64) -> Result<()> {
    let ids: Vec<Uuid> = members.iter().map(|member| member.id).collect();
    sqlx::query(SILENCE).bind(ids).bind(seconds).execute(&database.pool).await?;
    Ok(())
}

/// How heartbeats are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Writing {
    /// Each by an UPDATE of its own: M1.
    OneEach,
    /// Those that wait by one UPDATE: M2.
    Grouped,
}

/// The writers of one of the baselines, each with a connection and a queue of its own, and its share of the runs: so
/// they never wait for each other's locks.
pub(crate) struct Mutable {
    queues: Vec<mpsc::Sender<Waiting>>,
}

/// A heartbeat that waits for its commit.
struct Waiting {
    place: usize,
    done: oneshot::Sender<Result<()>>,
}

impl Mutable {
    /// Connects the writers.
    pub(crate) async fn start(
        database: &Database,
        fleet: &Arc<Vec<Member>>,
        writing: Writing,
        writers: usize,
    ) -> Result<Mutable> {
        let mut queues = Vec::new();
        for _ in 0..writers {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let (connection, fleet) = (connect(database).await?, Arc::clone(fleet));
            match writing {
                Writing::OneEach => tokio::spawn(write_each(connection, receiver, fleet)),
                Writing::Grouped => tokio::spawn(write_groups(connection, receiver, fleet)),
            };
            queues.push(sender);
        }
        Ok(Mutable { queues })
    }
}

impl Hears for Mutable {
    async fn heartbeat(&self, place: usize) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let gone = || anyhow!("the writer of a baseline has ended");
        self.queues[place % self.queues.len()].send(Waiting { place, done }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn connect(database: &Database) -> Result<PgConnection> {
    let mut connection = PgConnection::connect(&database.url).await?;
    // The planner doesn't know how few rows a batch is, and must not read the whole table for it.
    connection.execute("SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off").await?;
    Ok(connection)
}

async fn write_each(mut connection: PgConnection, mut queue: mpsc::Receiver<Waiting>, fleet: Arc<Vec<Member>>) {
    while let Some(waiting) = queue.recv().await {
        let Member { id, claim } = fleet[waiting.place];
        let outcome = sqlx::query(HEARTBEAT).bind(id).bind(1_i32).bind(claim).execute(&mut connection).await;
        let outcome =
            outcome.context("a heartbeat of M1 failed").and_then(|done| all_accepted(1, done.rows_affected()));
        // Nobody waits for the answer any more when another heartbeat has failed.
        let _ = waiting.done.send(outcome);
    }
}

async fn write_groups(mut connection: PgConnection, mut queue: mpsc::Receiver<Waiting>, fleet: Arc<Vec<Member>>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
        // In the order of the table, which is kind to the caches.
        group.sort_unstable_by_key(|waiting: &Waiting| waiting.place);
        let outcome = hear(&mut connection, group.iter().map(|waiting| fleet[waiting.place])).await;
        for waiting in group.drain(..) {
            let outcome = outcome.as_ref().map_err(|error| anyhow!("{error:#}"));
            let _ = waiting.done.send(outcome.copied());
        }
    }
}

/// Writes the heartbeats of a group.
async fn hear(connection: &mut PgConnection, group: impl Iterator<Item = Member>) -> Result<()> {
    let (ids, claims): (Vec<Uuid>, Vec<Uuid>) = group.map(|member| (member.id, member.claim)).unzip();
    let expected = ids.len();
    let attempts = vec![1_i32; expected];
    let done = sqlx::query(HEARTBEATS).bind(ids).bind(attempts).bind(claims).execute(connection).await;
    all_accepted(expected, done.context("heartbeats of M2 failed")?.rows_affected())
}

/// The benchmark's heartbeats are all of the current attempt, so the baselines need not find out which ones were
/// fenced: it is only checked that none was.
fn all_accepted(expected: usize, accepted: u64) -> Result<()> {
    ensure!(accepted == expected as u64, "of {expected} heartbeats of a baseline {accepted} were accepted");
    Ok(())
}
