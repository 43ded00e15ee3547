//! What the store on PostgreSQL promises beyond the contract: the log is append-only for everybody and for its own role,
//! damage is named, a commit whose answer is lost is looked up, and nobody is told anything while the server is away.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lastbeat_domain::decide::{Claimant, Command, Report, RunSpec};
use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::listening::{BeaconRole, Promise};
use lastbeat_domain::{RefusalCode, RunId, ServiceRecorded, Span};
use lastbeat_store::compact::Bounds;
use lastbeat_store::postgres::{PostgresStore, migrate, role_setup, set_up_role};
use lastbeat_store::{Answer, Clock, CommandError, DamageKind, Store, StoreError, Stored, ask};
use lastbeat_testkit::postgres::{Cluster, fourth_schema, fresh_database};
use lastbeat_testkit::{Backend, Place, SimulatedClock, claimant, exported, name, report, run_id};
use proptest::prelude::*;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const NOW: &str = "2026-05-04T06:00:00Z";

async fn one(store: &dyn Store, command: Command) -> Result<Answer, CommandError> {
    store.execute(vec![command]).await.pop().unwrap()
}

fn create(run: RunId) -> Command {
    let spec = RunSpec { input: Some(serde_json::json!({"n": 1})), ..RunSpec::of_lane(name("watcher")) };
    Command::Create { run, spec: Box::new(spec), claim: Some(claimant("mac-7", "c")) }
}

fn beat(run: RunId) -> Command {
    Command::Heartbeat { report: report(run, 1, "c"), progress: None }
}

/// A store with a run that ended and one that is beating, each with plain heartbeats in a segment, the latter with a
/// tail too.
async fn filled(place: &Place) -> Arc<dyn Store> {
    let store = place.store("a").await;
    for run in [run_id(1), run_id(2)] {
        one(store.as_ref(), create(run)).await.unwrap();
        for _ in 0..40 {
            place.clock.advance(Span::from_seconds(30));
            one(store.as_ref(), beat(run)).await.unwrap();
        }
    }
    let done = Command::Complete { report: report(run_id(1), 1, "c"), output: None };
    one(store.as_ref(), done).await.unwrap();
    store
}

async fn sql(url: &str, statements: &str) -> Result<(), sqlx::Error> {
    let mut shell = PgConnection::connect(url).await?;
    let done = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut shell).await;
    // An error is told before the transaction has let go of its locks; the next answer comes after.
    shell.ping().await?;
    shell.close().await?;
    done.map(|_| ())
}

#[tokio::test]
async fn the_database_refuses_to_change_the_log_even_to_its_owner() {
    let place = Place::on(Backend::Postgres, NOW);
    let store = filled(&place).await;
    let url = place.database("a").await;
    for (table, key) in [("events", "position"), ("beats", "position"), ("segments", "run, first_version")] {
        for statement in [
            format!("UPDATE {table} SET digest = 0"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("INSERT INTO {table} SELECT * FROM {table} LIMIT 1 ON CONFLICT ({key}) DO UPDATE SET digest = 0"),
            format!("SET session_replication_role = replica; DELETE FROM {table}"),
        ] {
            let error = sql(&url, &statement).await.unwrap_err().to_string();
            assert!(error.contains("append-only"), "{statement}: {error}");
        }
    }
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test]
async fn the_applications_role_can_do_its_work_and_has_no_right_to_change_the_log() {
    let database = fresh_database().await;
    migrate(&database.url).await.unwrap();
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    set_up_role(&database.url, &role).await.unwrap();
    set_up_role(&database.url, &role).await.unwrap();
    let owner = url_user(&database.url);
    let url = database.url.replacen(&owner, &format!("//{role}@"), 1);
    let store = PostgresStore::open(&url, None).await.unwrap();
    for number in 1..=3 {
        one(&store, create(run_id(number))).await.unwrap();
        for _ in 0..35 {
            one(&store, beat(run_id(number))).await.unwrap();
        }
    }
    one(&store, Command::Complete { report: report(run_id(1), 1, "c"), output: None }).await.unwrap();
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    assert!(store.doctor().await.unwrap().iter().any(|check| check.name == "role" && check.advice.is_none()));
    for statement in ["UPDATE events SET digest = 0", "DELETE FROM beats", "TRUNCATE segments", "DROP TABLE events"] {
        let error = sql(&url, statement).await.unwrap_err().to_string();
        assert!(error.contains("permission denied") || error.contains("must be owner"), "{statement}: {error}");
    }
    store.close().await;
    let clean_up = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sql(&database.url, &clean_up).await.unwrap();
    assert!(role_setup("app; DROP TABLE events").is_err());
}

/// What the role may call is the one door by which rows of the log go, and lets nothing out that stands nowhere else.
#[tokio::test]
async fn the_applications_role_compacts_through_the_door_alone_and_can_lose_nothing_through_it() {
    let database = fresh_database().await;
    migrate(&database.url).await.unwrap();
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    set_up_role(&database.url, &role).await.unwrap();
    let url = database.url.replacen(&url_user(&database.url), &format!("//{role}@"), 1);
    let store = PostgresStore::open(&url, None).await.unwrap();
    one(&store, create(run_id(1))).await.unwrap();
    for _ in 0..71 {
        one(&store, beat(run_id(1))).await.unwrap();
    }
    let before = exported(&store).await;
    let refused = [
        ("DELETE FROM beats WHERE position = 1", "permission denied"),
        ("SELECT * FROM open_doors", "permission denied"),
        ("INSERT INTO open_doors VALUES (pg_current_xact_id(), 'beats')", "permission denied"),
        // Beyond what is there, the last row, and heartbeats that stand in a tail alone.
        ("SELECT lastbeat_compact(71, NULL)", "cannot go"),
        ("SELECT lastbeat_compact(70, NULL)", "cannot go"),
        ("SELECT lastbeat_compact(65, NULL)", "is in no segment"),
        ("SELECT lastbeat_compact(0, NULL)", "cannot go"),
        // Segments that hold what was never said, or too little of what was.
        (
            "SELECT lastbeat_merge_segments(ARRAY[1], ARRAY[4], ARRAY[63], ARRAY[1], ARRAY[1], ARRAY[2], ARRAY[60], \
             ARRAY['\\x01003c'::bytea || decode(repeat('00', 59), 'hex')])",
            "does not hold what those in its place hold",
        ),
        (
            "SELECT lastbeat_merge_segments(ARRAY[run], ARRAY[first_version], ARRAY[63], ARRAY[attempt], ARRAY[first_at], \
             ARRAY[last_at], ARRAY[count], ARRAY[data]) FROM segments WHERE first_version = 4",
            "does not hold what those in its place hold",
        ),
    ];
    for (statement, why) in refused {
        let error = sql(&url, statement).await.unwrap_err().to_string();
        assert!(error.contains(why), "{statement}: {error}");
    }
    // A temporary table of the session does not stand in for the one of the schema.
    let columns = "run bigint, first_version bigint, last_version bigint, first_at bigint, last_at bigint, digest bigint, \
                   attempt bigint, count bigint, data bytea";
    let disguise =
        format!("CREATE TEMPORARY TABLE segments ({columns}); CREATE TEMPORARY TABLE beats (position bigint)");
    let error = sql(&url, &format!("{disguise}; SELECT lastbeat_compact(65, NULL)")).await.unwrap_err().to_string();
    assert!(error.contains("is in no segment"), "{error}");
    // Not even the owner of the tables gets them through a door that is shut.
    let open = "BEGIN; INSERT INTO open_doors VALUES (pg_current_xact_id(), 'segments'); DELETE FROM beats";
    assert!(sql(&database.url, open).await.unwrap_err().to_string().contains("append-only"));
    assert_eq!(exported(&store).await, before);

    let bounds = Bounds::ALL;
    let report = store.compact(bounds).await.unwrap();
    assert_eq!((report.rows, report.beats, report.tails), (69, 69, 1));
    let after: Vec<String> = exported(&store).await.into_iter().filter(|line| !line.contains("compacted")).collect();
    assert_eq!(after, before);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);

    // A role without the right is told how to get it.
    one(&store, beat(run_id(1))).await.unwrap();
    sql(&database.url, &format!("REVOKE EXECUTE ON FUNCTION lastbeat_compact FROM {role}")).await.unwrap();
    let error = store.compact(bounds).await.unwrap_err();
    assert!(error.to_string().contains("--role-setup apply"), "{error}");
    store.close().await;
    sql(&database.url, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn what_was_changed_is_neither_dropped_nor_merged_away() {
    let tables = ["beats", "segments"];
    let switch =
        |state: &str| tables.map(|table| format!("ALTER TABLE {table} {state} TRIGGER {table}_append_only;")).concat();
    for change in [
        "UPDATE beats SET recorded_at = recorded_at + 1 WHERE position = 3",
        "UPDATE segments SET digest = digest + 1 WHERE run = 1 AND first_version = 4",
        "DELETE FROM segments WHERE run = 1 AND first_version = 4",
    ] {
        let place = Place::on(Backend::Postgres, NOW);
        let store = filled(&place).await;
        let url = place.database("a").await;
        sql(&url, &format!("{}{change};{}", switch("DISABLE"), switch("ENABLE ALWAYS"))).await.unwrap();
        let before = store.verify(&|_, _| ()).await.unwrap().damage;
        assert!(!before.is_empty());
        let error = store.compact(Bounds::ALL).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{change}: {error}");
        assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, before, "{change}");
    }
}

/// The part of a URL that names the user, with the slashes before it and the sign after it.
fn url_user(url: &str) -> String {
    let start = url.find("//").unwrap();
    let end = url.find('@').unwrap();
    url[start..=end].to_owned()
}

/// A kind of damage, and the run that it names.
type Named = (DamageKind, Option<RunId>);

#[tokio::test]
async fn each_kind_of_damage_is_found_and_named_and_what_can_be_mended_is() {
    use DamageKind::{AfterEnd, Beats, Changed, Due, Hole, Projection, Tail, Trigger};
    let (ended, beating) = (Some(run_id(1)), Some(run_id(2)));
    let cases: [(&str, &[Named]); 14] = [
        (
            "UPDATE events SET body = replace(body, '\"n\":1', '\"n\":2') WHERE run = 1 AND version = 1",
            &[(Changed, ended)],
        ),
        (
            "UPDATE segments SET first_at = first_at + 1 WHERE run = 1 AND first_version = 4",
            &[(Changed, ended), (Beats, ended)],
        ),
        ("UPDATE beats SET recorded_at = recorded_at + 1 WHERE position = 3", &[(Changed, None), (Beats, ended)]),
        ("DELETE FROM events WHERE run = 2 AND version = 3", &[(Hole, beating)]),
        ("DELETE FROM beats WHERE position = 50", &[(Hole, None)]),
        (
            "INSERT INTO events SELECT position + 1, 1, 44, recorded_at + 1, 1, 0, NULL, 'started', \
             '{\"type\":\"started\",\"attempt\":1}' FROM events ORDER BY position DESC LIMIT 1",
            &[(Changed, ended), (AfterEnd, ended)],
        ),
        ("UPDATE runs SET status = 'running' WHERE number = 1", &[(Projection, ended), (Due, ended)]),
        ("UPDATE beating SET tail = '' WHERE number = 2", &[(Tail, beating)]),
        ("UPDATE beating SET attempt = 2 WHERE number = 2", &[(Tail, beating)]),
        ("DELETE FROM beating WHERE number = 2", &[(Projection, beating)]),
        (
            "INSERT INTO beating SELECT id, number, claimed_at, 1, false, NULL, lane, version, updated_at, '' FROM runs \
          WHERE number = 1",
            &[(Tail, ended)],
        ),
        ("DELETE FROM due WHERE run = 2", &[(Due, beating)]),
        ("DELETE FROM runs WHERE number = 2", &[(Projection, beating)]),
        ("DROP TRIGGER beats_append_only ON beats", &[(Trigger, None)]),
    ];
    for (statement, expected) in cases {
        let place = Place::on(Backend::Postgres, NOW);
        let store = filled(&place).await;
        let url = place.database("a").await;
        let tables = ["events", "beats", "segments"];
        let switch = |state: &str| -> String {
            tables.map(|table| format!("ALTER TABLE {table} {state} TRIGGER {table}_append_only;")).concat()
        };
        let dropped = statement.starts_with("DROP TRIGGER");
        let after = if dropped { String::new() } else { switch("ENABLE ALWAYS") };
        sql(&url, &format!("{}{statement};{after}", if dropped { String::new() } else { switch("DISABLE") }))
            .await
            .unwrap();
        let found = store.verify(&|_, _| ()).await.unwrap().damage;
        for kind in expected {
            assert!(
                found.iter().any(|damage| (damage.kind, damage.run) == *kind),
                "{statement}: {kind:?} in {found:?}"
            );
        }
        if expected.iter().all(|(kind, _)| kind.is_mended_by_rebuild()) {
            store.rebuild(&|_, _| ()).await.unwrap();
            assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, [], "{statement}");
        } else if expected.iter().any(|(kind, run)| run.is_some() && matches!(kind, Hole | AfterEnd | Beats)) {
            let rebuilt = store.rebuild(&|_, _| ()).await;
            assert!(matches!(rebuilt, Err(StoreError::Corrupt(_))), "{statement}: {rebuilt:?}");
        }
    }
}

/// What a proxy does to the next connection that commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It cuts it once the server has answered, so that it is committed and the client never hears of it.
    Answer,
    /// It keeps the COMMIT to itself, and cuts the connection when it is told to go on.
    Commit,
}

/// Stands between a store and its server, and cuts the connection when told to.
struct Proxy {
    port: u16,
    state: Arc<ProxyState>,
}

#[derive(Default)]
struct ProxyState {
    armed: Mutex<Option<Cut>>,
    cuts: AtomicUsize,
    keeps_one: Notify,
    go_on: Notify,
    /// Whether it lets nobody in.
    closed: AtomicBool,
}

impl Proxy {
    async fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(ProxyState::default());
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.closed.load(Ordering::SeqCst) {
                    continue;
                }
                // One that is away is no reason to stop.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                    tokio::spawn(pass_on(client, server, Arc::clone(&shared)));
                }
            }
        });
        Proxy { port, state }
    }

    fn arm(&self, cut: Cut) {
        *self.state.armed.lock().unwrap() = Some(cut);
    }

    /// Returns the URL of a database by way of the proxy.
    fn url(&self, url: &str) -> String {
        url.replacen(&format!(":{}/", port_of(url)), &format!(":{}/", self.port), 1)
    }
}

fn port_of(url: &str) -> u16 {
    let authority = url.split("//").nth(1).unwrap().split('/').next().unwrap();
    authority.rsplit(':').next().unwrap().parse().unwrap()
}

async fn pass_on(mut client: TcpStream, mut server: TcpStream, state: Arc<ProxyState>) {
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                let commits = up[..read].windows(6).any(|bytes| bytes == b"COMMIT");
                let cut = if commits { state.armed.lock().unwrap().take() } else { None };
                if cut == Some(Cut::Commit) {
                    state.keeps_one.notify_one();
                    state.go_on.notified().await;
                    return;
                }
                server.write_all(&up[..read]).await.unwrap();
                if cut == Some(Cut::Answer) {
                    let _ = server.read(&mut down).await;
                    state.cuts.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_looked_up_and_done_once() {
    let database = fresh_database().await;
    migrate(&database.url).await.unwrap();
    let proxy = Proxy::start(port_of(&database.url)).await;
    let store = PostgresStore::open(&proxy.url(&database.url), None).await.unwrap();
    let mut versions = Vec::new();
    let commands = [create(run_id(1)), beat(run_id(1)), beat(run_id(1)), beat(run_id(1))];
    for (number, command) in commands.into_iter().enumerate() {
        proxy.arm(Cut::Answer);
        let answer = one(&store, command).await.unwrap();
        assert_eq!(proxy.state.cuts.load(Ordering::SeqCst), number + 1);
        versions.push(answer.facts().last().unwrap().version);
    }
    assert_eq!(versions, [2, 3, 4, 5]);
    assert_eq!(store.run(run_id(1)).await.unwrap().unwrap().version, 5);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_found_though_its_row_was_compacted_meanwhile() {
    let database = fresh_database().await;
    migrate(&database.url).await.unwrap();
    let proxy = Proxy::start(port_of(&database.url)).await;
    let store = Arc::new(PostgresStore::open(&proxy.url(&database.url), None).await.unwrap());
    let other = PostgresStore::open(&database.url, None).await.unwrap();
    for run in [run_id(1), run_id(2)] {
        one(store.as_ref(), create(run)).await.unwrap();
        one(store.as_ref(), beat(run)).await.unwrap();
    }
    proxy.state.closed.store(true, Ordering::SeqCst);
    proxy.arm(Cut::Answer);
    let told = Arc::clone(&store);
    let told = tokio::spawn(async move { one(told.as_ref(), beat(run_id(1))).await });
    while proxy.state.cuts.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // It is committed, and whoever said it can ask nobody yet. A later row, and it can go.
    one(&other, beat(run_id(2))).await.unwrap();
    let report = other.compact(Bounds::ALL).await.unwrap();
    assert_eq!((report.rows, report.beats), (1, 1));
    proxy.state.closed.store(false, Ordering::SeqCst);
    assert_eq!(told.await.unwrap().unwrap().facts()[0].version, 4);
    assert_eq!(other.run(run_id(1)).await.unwrap().unwrap().version, 4, "it was not said twice");
    assert_eq!(other.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_outcome_cannot_be_found_out_is_neither_repeated_nor_called_a_failure() {
    let database = fresh_database().await;
    migrate(&database.url).await.unwrap();
    let proxy = Proxy::start(port_of(&database.url)).await;
    let store = Arc::new(PostgresStore::open(&proxy.url(&database.url), None).await.unwrap());
    one(store.as_ref(), create(run_id(1))).await.unwrap();
    one(store.as_ref(), beat(run_id(1))).await.unwrap();
    proxy.state.closed.store(true, Ordering::SeqCst);
    proxy.arm(Cut::Answer);
    let told = Arc::clone(&store);
    let told = tokio::spawn(async move { one(told.as_ref(), beat(run_id(1))).await });
    while proxy.state.cuts.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // It is committed, but what would tell so cannot be read.
    sql(&database.url, "ALTER TABLE beats RENAME COLUMN data TO moved").await.unwrap();
    proxy.state.closed.store(false, Ordering::SeqCst);
    let told = told.await.unwrap();
    let is_doubtful = |why: &str| why.contains("not known whether") && why.contains("look before you repeat it");
    assert!(matches!(&told, Err(CommandError::Failed(StoreError::Unavailable(why))) if is_doubtful(why)), "{told:?}");
    sql(&database.url, "ALTER TABLE beats RENAME COLUMN moved TO data").await.unwrap();
    assert_eq!(store.run(run_id(1)).await.unwrap().unwrap().version, 4);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test]
async fn a_command_that_the_database_refuses_fails_no_other_of_its_batch() {
    let place = Place::on(Backend::Postgres, NOW);
    let store = place.store("a").await;
    let runs: Vec<RunId> = (1..=24).map(run_id).collect();
    for run in &runs {
        one(store.as_ref(), create(*run)).await.unwrap();
        one(store.as_ref(), beat(*run)).await.unwrap();
    }
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$; \
                  CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.body LIKE '%poison%') \
                  EXECUTE FUNCTION refuse()";
    sql(&place.database("a").await, refuse).await.unwrap();
    place.clock.advance(Span::from_seconds(1));
    let of = |nth: usize, run: RunId| match nth {
        17 => Command::Heartbeat { report: report(run, 1, "c"), progress: Some("poison".into()) },
        _ if nth.is_multiple_of(3) => Command::Heartbeat { report: report(run, 1, "c"), progress: Some(nth.into()) },
        _ => beat(run),
    };
    let batch = runs.iter().enumerate().map(|(nth, run)| of(nth, *run)).collect();
    for (nth, (run, outcome)) in runs.iter().zip(store.execute(batch).await).enumerate() {
        let version = store.run(*run).await.unwrap().unwrap().version;
        match outcome {
            Err(CommandError::Failed(StoreError::Statement(_))) => assert_eq!((nth, version), (17, 3)),
            outcome => {
                let heard = outcome.unwrap().heard.unwrap();
                assert_eq!((heard.run, heard.version, version), (*run, 4, 4));
                assert_ne!(nth, 17);
            }
        }
    }
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_the_clock_is_recorded_though_the_first_commit_that_says_so_is_lost() {
    let place = Place::on(Backend::Postgres, NOW);
    let direct = place.database("a").await;
    let proxy = Proxy::start(port_of(&direct)).await;
    let clock: Arc<dyn Clock> = Arc::<SimulatedClock>::clone(&place.clock);
    let store = PostgresStore::open(&proxy.url(&direct), Some(clock)).await.unwrap();
    let beacon = || {
        let promise = Promise::Within(Span::from_seconds(7_200));
        Command::Beacon { process: name("p"), role: BeaconRole::Local, promise }
    };
    one(&store, beacon()).await.unwrap();
    place.clock.set(place.clock.now().plus(Span::from_seconds(3_600)));
    proxy.arm(Cut::Commit);
    let state = Arc::clone(&proxy.state);
    tokio::spawn(async move {
        state.keeps_one.notified().await;
        state.go_on.notify_one();
    });
    let recorded = one(&store, beacon()).await.unwrap().service;
    assert!(matches!(&recorded[..], [ServiceRecorded { event: ServiceEvent::Deaf { .. }, .. }]), "{recorded:?}");
    assert_eq!(store.service_log().await.unwrap().deaf_spans().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_lost_is_done_again_though_its_number_was_given_to_another() {
    let cluster = Cluster::start();
    let url = cluster.create_database();
    let database = url.rsplit('/').next().unwrap();
    migrate(&url).await.unwrap();
    let proxy = Proxy::start(port_of(&url)).await;
    let store = Arc::new(PostgresStore::open(&proxy.url(&url), None).await.unwrap());
    let mut versions = Vec::new();
    for command in [create(run_id(1)), beat(run_id(1)), beat(run_id(1)), beat(run_id(1))] {
        // Nothing but a commit writes to the disk. A long delay of the WAL writer would not do: it is woken by whatever
        // leaves a page of the log full behind it, be it a session that only reads.
        cluster.suspend_background();
        proxy.arm(Cut::Commit);
        let told = Arc::clone(&store);
        let told = tokio::spawn(async move { one(told.as_ref(), command).await });
        proxy.state.keeps_one.notified().await;
        let number = "SELECT backend_xid FROM pg_stat_activity WHERE backend_xid IS NOT NULL";
        let lost: u64 = cluster.sql(database, number)[0].parse().unwrap();
        cluster.kill();
        cluster.start_again();
        let next = || cluster.sql(database, "SELECT pg_current_xact_id()")[0].parse::<u64>().unwrap();
        let mut given = next();
        assert!(given <= lost, "{lost} reached the disk, so nothing is tried");
        while given < lost {
            given = next();
        }
        proxy.state.go_on.notify_one();
        versions.push(told.await.unwrap().unwrap().facts().last().unwrap().version);
    }
    assert_eq!(versions, [2, 3, 4, 5]);
    assert_eq!(store.run(run_id(1)).await.unwrap().unwrap().version, 5);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_nobody_is_judged_and_afterwards_all_goes_on() {
    let cluster = Cluster::start();
    let url = cluster.create_database();
    migrate(&url).await.unwrap();
    let store = PostgresStore::open(&url, None).await.unwrap();
    one(&store, create(run_id(1))).await.unwrap();
    cluster.stop_immediate();
    let transient = |error: CommandError| matches!(error, CommandError::Failed(error) if error.is_transient());
    let started = Instant::now();
    assert!(transient(one(&store, beat(run_id(1))).await.unwrap_err()));
    assert!(started.elapsed() < Duration::from_secs(30), "the wait is bounded");
    assert!(ask::run(&store, run_id(1)).await.unwrap_err().is_transient());
    // Who asks again is told at once.
    let started = Instant::now();
    assert!(transient(one(&store, beat(run_id(1))).await.unwrap_err()));
    assert!(started.elapsed() < Duration::from_secs(8));
    cluster.start_again();
    one(&store, beat(run_id(1))).await.unwrap();
    assert_eq!(store.run(run_id(1)).await.unwrap().unwrap().version, 3);

    // One that is only restarted meanwhile is waited for.
    let store = Arc::new(store);
    cluster.stop_immediate();
    let waiting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { one(store.as_ref(), beat(run_id(1))).await.map(|answer| answer.heard.unwrap().version) }
    });
    cluster.start_again();
    assert_eq!(waiting.await.unwrap().unwrap(), 4);

    cluster.set("default_transaction_read_only", "on");
    assert!(transient(one(store.as_ref(), beat(run_id(1))).await.unwrap_err()));
    cluster.set("default_transaction_read_only", "off");
    one(store.as_ref(), beat(run_id(1))).await.unwrap();
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test]
async fn a_database_that_is_not_ready_says_what_to_do() {
    let database = fresh_database().await;
    let say = async |url: &str| PostgresStore::open(url, None).await.err().unwrap().to_string();
    assert!(say(&database.url).await.contains("lastbeat migrate"));
    let (from, newest) = migrate(&database.url).await.unwrap();
    assert!(from == 0 && newest >= 1);
    assert_eq!(migrate(&database.url).await.unwrap(), (newest, newest));
    sql(&database.url, "INSERT INTO lastbeat_schema (version) VALUES (999)").await.unwrap();
    assert!(say(&database.url).await.contains("999"));
    let gone = database.url.replacen("/lastbeat_", "/no_such_", 1);
    assert!(say(&gone).await.contains("does not exist"));
    let secret =
        database.url.replacen(&url_user(&database.url), "//somebody:secret@", 1).replace("127.0.0.1", "bad host");
    assert!(!say(&secret).await.contains("secret"));
}

/// What happens in one step: a command, by number, about one of three runs.
type Step = (u8, u128);

fn command((kind, number): Step) -> Command {
    let (run, by, reason) = (run_id(number), name("somebody"), None);
    let report = |attempt, claim| report(run, attempt, claim);
    match kind {
        0 => create(run),
        1 => Command::Complete { report: report(1, "c"), output: None },
        2 => Command::RequestCancel { run, by, reason },
        3 => Command::Reap { run, by, by_hand: None },
        4 => Command::Requeue { run, by, reason },
        5 => Command::ClaimRun { run, claimant: claimant("mac-8", "d") },
        6 => Command::Heartbeat { report: report(1, "c"), progress: Some(serde_json::json!(1)) },
        7 => Command::Heartbeat { report: report(2, "d"), progress: None },
        8 => Command::Heartbeat { report: report(1, "wrong"), progress: None },
        9 => Command::Heartbeat {
            report: lastbeat_domain::decide::Report { claim: None, ..report(1, "c") },
            progress: None,
        },
        10 => Command::Start(report(1, "c")),
        _ => beat(run),
    }
}

/// What a caller is told, in short.
fn told(outcome: &Result<Answer, CommandError>) -> String {
    match outcome {
        Ok(answer) => format!("{:?} {:?}", answer.facts(), answer.heard),
        Err(CommandError::Refused(refusal)) => format!("{:?}", refusal.code),
        Err(CommandError::Failed(error)) => panic!("{error}"),
    }
}

/// The embedded store decides every heartbeat; this one takes most of them by the guarded UPDATE. They must say the same.
async fn the_fast_path_takes_what_would_be_decided(batches: Vec<Vec<Step>>) {
    let (postgres, sqlite) = (Place::on(Backend::Postgres, NOW), Place::on(Backend::Sqlite, NOW));
    let (fast, slow) = (postgres.store("a").await, sqlite.store("a").await);
    for batch in batches {
        for place in [&postgres, &sqlite] {
            place.clock.advance(Span::from_seconds(37));
        }
        // One command a run, so that nothing depends on the order within the batch.
        let mut runs = std::collections::BTreeSet::new();
        let commands: Vec<Command> = batch.into_iter().filter(|step| runs.insert(step.1)).map(command).collect();
        for command in commands {
            let here = fast.execute(vec![command.clone()]).await;
            let there = slow.execute(vec![command.clone()]).await;
            assert_eq!(told(&here[0]), told(&there[0]), "{command:?}");
            for place in [&postgres, &sqlite] {
                place.clock.advance(Span::from_seconds(1));
            }
        }
    }
    assert_eq!(exported(fast.as_ref()).await, exported(slow.as_ref()).await);
    assert_eq!(fast.verify(&|_, _| ()).await.unwrap().damage, []);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn heartbeats_get_the_same_answers_and_facts_as_if_each_were_decided(
        batches in prop::collection::vec(prop::collection::vec((0_u8..40, 0_u128..3), 1..4), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(the_fast_path_takes_what_would_be_decided(batches));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_locks_the_same_runs_in_whatever_order_is_served() {
    let place = Place::on(Backend::Postgres, NOW);
    let stores = [place.store("a").await, place.store("a").await, place.store("a").await];
    let made = (1..=64).map(|number| create(run_id(number))).collect();
    assert!(stores[0].execute(made).await.iter().all(Result::is_ok));
    let work = |worker: usize| {
        let store = Arc::clone(&stores[worker]);
        tokio::spawn(async move {
            for round in 0..30_u128 {
                let order = |number: u128| if worker == 0 { number } else { 65 - number };
                let commands = (1..=64).map(|number| match (worker, (number + round) % 5) {
                    (2, _) => Command::Reap { run: run_id(number), by: name("sweeper"), by_hand: None },
                    (_, 0) => Command::Heartbeat {
                        report: report(run_id(order(number)), 1, "c"),
                        progress: Some(serde_json::json!(1)),
                    },
                    _ => beat(run_id(order(number))),
                });
                for outcome in store.execute(commands.collect()).await {
                    match outcome {
                        Ok(_) | Err(CommandError::Refused(_)) => {}
                        Err(CommandError::Failed(error)) => panic!("{error}"),
                    }
                }
            }
        })
    };
    for task in (0..3).map(work).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let report = stores[0].verify(&|_, _| ()).await.unwrap();
    assert_eq!((report.damage, report.events), (Vec::new(), 64 * (2 + 2 * 30)));
}

/// A heartbeat in a tail is recoverable since the row of its commit was written in the same transaction: also if that
/// transaction was begun by the commit before it, as under load; and whichever of the writers took it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_changes_its_run_in_the_transaction_that_writes_it_down() {
    const RUNS: u128 = 1_000;
    let place = Place::on(Backend::Postgres, NOW);
    let store = place.store("a").await;
    let mut shell = PgConnection::connect(&place.database("a").await).await.unwrap();
    let made = store.execute((1..=RUNS).map(|run| create(run_id(run))).collect()).await;
    assert!(made.iter().all(Result::is_ok));
    let apart = "SELECT count(*) FROM beating AS r WHERE NOT EXISTS (SELECT FROM beats AS b WHERE b.xmin = r.xmin)";
    // All their first heartbeats, which are no plain ones. Then one at a time; then all at once, each by itself, again and
    // again; then one at a time.
    let alone = |run: u128| vec![beat(run_id(run))];
    let at_once = |store: &Arc<dyn Store>| {
        let mut beats = tokio::task::JoinSet::new();
        for run in 1..=RUNS {
            let (store, beats_of) = (Arc::clone(store), alone(run));
            beats.spawn(async move { store.execute(beats_of).await.pop().unwrap().unwrap() });
        }
        beats.join_all()
    };
    place.clock.advance(Span::from_seconds(1));
    at_once(&store).await;
    for round in 0..4 {
        for run in 1..=3 {
            place.clock.advance(Span::from_seconds(1));
            store.execute(alone(run)).await.pop().unwrap().unwrap();
        }
        place.clock.advance(Span::from_seconds(1));
        assert_eq!(at_once(&store).await.len() as u128, RUNS);
        let apart: i64 = sqlx::query_scalar(apart).fetch_one(&mut shell).await.unwrap();
        assert_eq!(apart, 0, "runs whose last heartbeat was committed apart from its row, in round {round}");
    }
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

/// What the tails of an older schema hold is kept, whatever lay between its heartbeats.
#[tokio::test]
async fn a_database_of_an_older_schema_is_brought_up_to_date_with_every_heartbeat() {
    let place = Place::on(Backend::Postgres, NOW);
    let store = place.store("a").await;
    // Any UUID is a run's, the least too.
    let least = RunId::from_uuid(uuid::Uuid::nil());
    let other = Claimant { claim: "b1f0".parse().unwrap(), ..claimant("mac-8", "c") };
    let spec = Box::new(RunSpec::of_lane(name("watcher")));
    one(store.as_ref(), create(run_id(1))).await.unwrap();
    one(store.as_ref(), Command::Create { run: least, spec, claim: Some(other.clone()) }).await.unwrap();
    let of_other = Report { claim: Some(other.claim.clone()), ..report(least, 1, "c") };
    for seconds in [30, 30, 7_200, 30, 30] {
        place.clock.advance(Span::from_seconds(seconds));
        one(store.as_ref(), beat(run_id(1))).await.unwrap();
        let heartbeat = Command::Heartbeat { report: of_other.clone(), progress: None };
        one(store.as_ref(), heartbeat).await.unwrap();
    }
    let mut streams = Vec::new();
    for run in [run_id(1), least] {
        streams.push(ask::whole_stream(store.as_ref(), run).await.unwrap());
    }
    let url = place.database("a").await;
    store.close().await;
    let tail = |stream: &[Stored]| {
        let plain = stream.iter().skip(3);
        plain.map(|fact| (fact.version(), fact.recorded_at().as_micros())).collect::<Vec<_>>()
    };
    // A pause that a step cannot say had cut the tail of the newer form, whose older half is in a segment.
    sql(&url, "ALTER TABLE segments DISABLE TRIGGER ALL; DELETE FROM segments; ALTER TABLE segments ENABLE ALWAYS TRIGGER segments_append_only")
        .await
        .unwrap();
    let hex = |stream: &[Stored]| {
        let step = |(version, at): (u64, i64)| format!("{at:016x}{version:08x}");
        tail(stream).into_iter().rev().map(step).collect::<String>()
    };
    let tails = streams
        .iter()
        .zip(1..)
        .map(|(stream, number)| format!("UPDATE beating SET tail = '\\x{}' WHERE number = {number};", hex(stream)));
    let older = fourth_schema() + &tails.collect::<String>() + "UPDATE beating SET claim = 'b1f0' WHERE number = 2";
    sql(&url, &older).await.unwrap();
    assert_eq!(migrate(&url).await.unwrap().0, 4);
    let store = place.store("a").await;
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    for (run, stream) in [run_id(1), least].into_iter().zip(&streams) {
        assert_eq!(ask::whole_stream(store.as_ref(), run).await.unwrap(), *stream);
    }
    place.clock.advance(Span::from_seconds(30));
    assert_eq!(one(store.as_ref(), beat(run_id(1))).await.unwrap().heard.unwrap().version, 8);
    let heartbeat = Command::Heartbeat { report: of_other, progress: None };
    assert_eq!(one(store.as_ref(), heartbeat).await.unwrap().heard.unwrap().version, 8);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

/// A heartbeat that is on its way when somebody decides is not overlooked: who must decide waits for it, and a sweeper
/// leaves its run alone.
#[tokio::test]
async fn whoever_decides_does_not_overlook_a_heartbeat_that_is_on_its_way() {
    let place = Place::on(Backend::Postgres, NOW);
    let store = filled(&place).await;
    place.clock.advance(Span::from_seconds(3_600));
    let (run, url) = (run_id(2), place.database("a").await);
    let before = store.run(run).await.unwrap().unwrap().version;
    let mut heartbeat = PgConnection::connect(&url).await.unwrap();
    let taken = format!(
        "BEGIN; UPDATE beating SET version = version + 1, updated_at = updated_at + 1, \
         tail = int4send(1) || tail WHERE id = '{run}'"
    );
    sqlx::raw_sql(AssertSqlSafe(taken)).execute(&mut heartbeat).await.unwrap();
    let reap = Command::Reap { run, by: name("sweeper"), by_hand: None };
    let Err(CommandError::Refused(refused)) = one(store.as_ref(), reap).await else { panic!("it was reaped") };
    assert_eq!(refused.code, RefusalCode::Busy);
    let deciding = Arc::clone(&store);
    let cancel = Command::RequestCancel { run, by: name("me"), reason: None };
    let cancel = tokio::spawn(async move { one(deciding.as_ref(), cancel).await });
    let mut shell = PgConnection::connect(&url).await.unwrap();
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND datname = current_database())";
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut shell).await.unwrap() {
        tokio::task::yield_now().await;
    }
    sqlx::raw_sql("COMMIT").execute(&mut heartbeat).await.unwrap();
    let facts = cancel.await.unwrap().unwrap().facts();
    assert_eq!(facts.iter().map(|fact| fact.version).collect::<Vec<_>>(), [before + 2]);
}
