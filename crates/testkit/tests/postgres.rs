//! What the throwaway PostgreSQL server promises to those who test with it.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lastbeat_testkit::postgres::{Cluster, ClusterOptions, fresh_database};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use sqlx::{Connection, PgConnection, Row};

/// Waits until a condition holds; a bound on real processes, not a guess at their speed.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

/// Whether a process is there. One that has ended, and for which nobody has waited yet, is not.
fn lives(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    test_kill_process(pid(id)).is_ok() && !stat.contains(") Z ")
}

/// `throwaway-postgres` with a shell that says where the server is and then waits for a line.
struct Helper {
    helper: Child,
    folder: PathBuf,
    postmaster: u32,
    shell: u32,
}

impl Helper {
    fn start(script: &str) -> Helper {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throwaway-postgres"));
        command.args(["--", "sh", "-c", &format!("echo $$ $LASTBEAT_TEST_POSTGRES_URL; {script}")]);
        let mut helper = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(helper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (shell, url) = line.trim().split_once(' ').unwrap();
        let data = PathBuf::from(ask(url, "SHOW data_directory"));
        let lock = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let postmaster = lock.lines().next().unwrap().parse().unwrap();
        Helper { helper, folder: data.parent().unwrap().to_owned(), postmaster, shell: shell.parse().unwrap() }
    }

    fn assert_gone(&self) {
        until("the postmaster is gone", || !lives(self.postmaster));
        until("the folder is gone", || !self.folder.exists());
    }
}

#[tokio::main(flavor = "current_thread")]
async fn ask(url: &str, statement: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query(statement).fetch_one(&mut connection).await.unwrap().get(0)
}

#[test]
fn a_cluster_leaves_nothing_behind_when_it_is_dropped() {
    let cluster = Cluster::start();
    let (folder, postmaster) = (cluster.folder().to_owned(), cluster.pid());
    assert!(lives(postmaster) && folder.exists());
    drop(cluster);
    assert!(!lives(postmaster) && !folder.exists());
}

#[test]
fn a_cluster_leaves_nothing_behind_when_a_test_panics() {
    let (place, was) = std::sync::mpsc::channel();
    let outcome = std::thread::spawn(move || {
        let cluster = Cluster::start();
        place.send((cluster.folder().to_owned(), cluster.pid())).unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(outcome.is_err());
    let (folder, postmaster) = was.recv().unwrap();
    assert!(!lives(postmaster) && !folder.exists());
}

#[test]
fn a_cluster_leaves_nothing_behind_when_its_process_is_killed() {
    let mut started = Helper::start("read line");
    started.helper.kill().unwrap();
    started.helper.wait().unwrap();
    started.assert_gone();
}

#[test]
fn a_stopped_server_doesnt_outlive_its_process_either() {
    let mut started = Helper::start("read line");
    kill_process(pid(started.postmaster), Signal::STOP).unwrap();
    started.helper.kill().unwrap();
    started.helper.wait().unwrap();
    started.assert_gone();
}

#[test]
fn ctrl_c_leaves_the_server_until_the_command_has_ended() {
    let mut started = Helper::start("trap 'kill -s STOP $$; exit 7' INT; read line");
    let stopped = |id: u32| std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap().contains(") T ");
    kill_process_group(pid(started.helper.id()), Signal::INT).unwrap();
    until("the command has seen the signal", || stopped(started.shell));
    assert!(lives(started.postmaster) && started.folder.exists());
    kill_process(pid(started.shell), Signal::CONT).unwrap();
    assert_eq!(started.helper.wait().unwrap().code(), Some(7));
    started.assert_gone();
}

#[test]
fn the_exit_code_is_the_commands_own() {
    let status = |script: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throwaway-postgres"));
        command.args(["--", "sh", "-c", script]).status().unwrap().code()
    };
    assert_eq!(status("exit 0"), Some(0));
    assert_eq!(status("exit 42"), Some(42));
    assert_eq!(status("kill -s TERM $$"), Some(143));
}

#[test]
fn what_was_committed_survives_an_immediate_stop_and_a_kill() {
    let cluster = Cluster::start();
    cluster.sql("postgres", "CREATE TABLE facts (n int)");
    let url = cluster.url("postgres");
    for (fact, end) in [(1, Cluster::stop_immediate as fn(&Cluster)), (2, Cluster::kill), (3, Cluster::kill)] {
        let before = cluster.pid();
        cluster.sql("postgres", &format!("INSERT INTO facts VALUES ({fact})"));
        end(&cluster);
        assert!(!lives(before));
        cluster.start_again();
        assert_ne!(cluster.pid(), before);
        assert_eq!(cluster.url("postgres"), url);
        assert_eq!(cluster.sql("postgres", "SELECT count(*) FROM facts"), [fact.to_string()]);
    }
}

#[test]
fn a_kill_leaves_no_process_even_in_the_midst_of_work() {
    let cluster = Cluster::start();
    let url = cluster.url("postgres");
    let busy = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            // Busy with itself, a server process doesn't look whether the postmaster lives.
            sqlx::query("SELECT count(*) FROM generate_series(1, 100000000000)").execute(&mut connection).await
        })
    });
    // Not this question, which the session that asked it before may still be shown with while it ends.
    let working = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT count(*) FROM generate_series%'";
    let mut backend = Vec::new();
    until("the statement runs", || {
        backend = cluster.sql("postgres", working);
        !backend.is_empty()
    });
    cluster.kill();
    assert!(!lives(backend[0].parse().unwrap()));
    assert!(busy.join().unwrap().is_err());
    cluster.start_again();
}

#[test]
fn nothing_of_a_killed_server_outlives_its_cluster() {
    let segments = || std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let cluster = Cluster::start();
    let lock = std::fs::read_to_string(cluster.folder().join("data/postmaster.pid")).unwrap();
    let id = lock.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let there = |id: &str| segments().lines().any(|line| line.split_whitespace().nth(1) == Some(id));
    assert!(there(&id));
    cluster.kill();
    assert!(!there(&id));
    let folder = cluster.folder().to_owned();
    drop(cluster);
    assert!(!folder.exists());
}

#[test]
fn a_setting_holds_for_those_who_connect_afterwards() {
    let cluster = Cluster::start();
    let url = cluster.create_database();
    assert_eq!(ask(&url, "SHOW default_transaction_read_only"), "off");
    cluster.set("default_transaction_read_only", "on");
    assert_eq!(ask(&url, "SHOW default_transaction_read_only"), "on");
    // The test itself still writes.
    cluster.create_database();
    cluster.set("default_transaction_read_only", "off");
    assert_eq!(ask(&url, "SHOW default_transaction_read_only"), "off");
    cluster.set("application_name", "it's");
    assert_eq!(cluster.sql("postgres", "SHOW application_name"), ["it's"]);
}

#[test]
fn a_durable_cluster_is_durable_and_further_settings_hold() {
    let settings = vec![("shared_buffers".to_owned(), "48MB".to_owned())];
    let cluster = Cluster::start_with(&ClusterOptions { durable: true, settings });
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        assert_eq!(cluster.sql("postgres", &format!("SHOW {setting}")), ["on"], "{setting}");
    }
    assert_eq!(cluster.sql("postgres", "SHOW shared_buffers"), ["48MB"]);
}

#[test]
fn clusters_and_databases_are_each_ones_own() {
    let (one, other) = (Cluster::start(), Cluster::start());
    assert_ne!(one.url("postgres"), other.url("postgres"));
    let databases = [one.create_database(), one.create_database()];
    assert_ne!(databases[0], databases[1]);
    assert_eq!(ask(&databases[0], "SHOW server_encoding"), "UTF8");
}

#[tokio::test]
async fn a_fresh_database_is_dropped_although_somebody_is_connected() {
    let (one, other) = (fresh_database().await, fresh_database().await);
    assert_ne!(one.url, other.url);
    one.sql("CREATE TABLE facts (n int)");
    let mut connection = PgConnection::connect(&one.url).await.unwrap();
    let name: String = sqlx::query("SELECT current_database()").fetch_one(&mut connection).await.unwrap().get(0);
    let there = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    assert_eq!(other.sql(&there), ["1"]);
    drop(one);
    assert_eq!(other.sql(&there), ["0"]);
}

#[test]
fn without_a_server_the_message_says_what_to_do() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throwaway-postgres"));
    let nowhere = Path::new("/nowhere");
    let output = command.args(["--", "true"]).env("LASTBEAT_TEST_POSTGRES_BIN", nowhere).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("LASTBEAT_TEST_POSTGRES_BIN is /nowhere"), "{said}");
}
