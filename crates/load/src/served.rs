//! A real server on a store that is full of runs.

use std::fs;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lastbeat_domain::{Span, Timestamp};
use lastbeat_store::check_import;
use lastbeat_testkit::postgres::{Cluster, ClusterOptions};
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

/// A run in flight, at its first attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) run: Uuid,
    pub(crate) claim: Uuid,
}

/// The lane of the runs that only beat, in whose windows nobody lapses.
const LANE: &str = "load";
/// The lane of the runs that die.
pub(crate) const DYING: &str = "dying";
/// How often runs beat that may die, and for how long they may be silent.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);
pub(crate) const WINDOW: Duration = Duration::from_secs(2);
/// How long the server may take to listen.
const START_MAX: Duration = Duration::from_secs(60);

/// A server, the store that it is on, and the runs that are in flight there.
pub(crate) struct Served {
    process: Child,
    pub(crate) address: String,
    pub(crate) fleet: Arc<Vec<Member>>,
    _cluster: Option<Cluster>,
    _folder: TempDir,
}

/// Where a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Sqlite => "SQLite",
            Backend::Postgres => "PostgreSQL",
        }
    }
}

impl Served {
    /// Fills a new store with runs in flight and starts a server on it.
    pub(crate) async fn start(backend: Backend, runs: usize, program: &Path) -> Result<Served> {
        let folder = tempfile::tempdir()?;
        let (cluster, url) = match backend {
            Backend::Sqlite => (None, format!("sqlite://{}", folder.path().join("load.db").display())),
            Backend::Postgres => {
                let cluster = tokio::task::block_in_place(|| {
                    Cluster::start_with(&ClusterOptions { durable: true, settings: Vec::new() })
                });
                let url = tokio::task::block_in_place(|| cluster.create_database());
                lastbeat_store::postgres::migrate(&url).await?;
                (Some(cluster), url)
            }
        };
        let fleet: Vec<Member> = (0..runs).map(|_| Member { run: Uuid::now_v7(), claim: Uuid::new_v4() }).collect();
        let fleet = Arc::new(fleet);
        fill(&url, &fleet).await?;
        // What the import and the store before it left to be written is no load of the server's.
        let synced = tokio::process::Command::new("sync").status().await?;
        ensure!(synced.success(), "sync failed: {synced}");
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        drop(listener);
        let log = fs::File::create(folder.path().join("serve.log"))?;
        let process = Command::new(program)
            .args(["--database", &url, "serve", "--listen", &address, "--limit", "rate=1e6", "--limit", "burst=1e6"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {}", program.display()))?;
        let mut served = Served { process, address, fleet, _cluster: cluster, _folder: folder };
        served.wait()?;
        Ok(served)
    }

    fn wait(&mut self) -> Result<()> {
        let started = Instant::now();
        while std::net::TcpStream::connect(&self.address).is_err() {
            if self.process.try_wait()?.is_some() || started.elapsed() > START_MAX {
                bail!("the server does not listen on {}", self.address);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns the memory of the server: what it holds, and the most that it has ever held, in MiB.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            let kibibytes: f64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
            Ok(kibibytes / 1024.0)
        };
        Ok((field("VmRSS")?, field("VmHWM")?))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Imports the runs: each was claimed when it was created, and has beaten once.
async fn fill(url: &str, fleet: &Arc<Vec<Member>>) -> Result<()> {
    let started = Instant::now();
    let store = lastbeat_store::open(url, true).await?;
    let now = store.now().await?;
    let members = Arc::clone(fleet);
    let checked = tokio::task::spawn_blocking(move || {
        let lines = Lines { fleet: members, next: 0, at: now.minus(Span::from_seconds(60)), rest: policies(now) };
        check_import(BufReader::with_capacity(1 << 20, lines), now)
    })
    .await??;
    let report = store.import(checked).await?;
    store.close().await;
    eprintln!("load: {} runs in flight, imported in {:.1} s", report.runs, started.elapsed().as_secs_f64());
    Ok(())
}

fn policies(now: Timestamp) -> Vec<u8> {
    let at = now.minus(Span::from_seconds(61));
    let line = |lane: &str, version: u32, policy: serde_json::Value| {
        let at = at.plus(Span::from_millis(u64::from(version)));
        let line =
            json!({"recorded_at": at, "type": "policy_set", "lane": lane, "policy_version": 1, "policy": policy});
        format!("{line}\n")
    };
    let (interval, window) = (INTERVAL.as_secs_f64(), WINDOW.as_secs_f64());
    let long = json!({"heartbeat_interval_seconds": 3600, "heartbeat_window_seconds": 86400});
    let short = json!({"heartbeat_interval_seconds": interval, "heartbeat_window_seconds": window});
    (line(LANE, 1, long) + &line(DYING, 2, short)).into_bytes()
}

/// The lines of the import, made as they are read: a million histories need not lie in memory as text.
struct Lines {
    fleet: Arc<Vec<Member>>,
    next: usize,
    at: Timestamp,
    rest: Vec<u8>,
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.is_empty()
            && let Some(Member { run, claim }) = self.fleet.get(self.next)
        {
            let [created, claimed, beaten] = [0, 1, 2].map(|millis| self.at.plus(Span::from_millis(millis)));
            self.next += 1;
            self.rest = format!(
                r#"{{"run":"{run}","version":1,"recorded_at":"{created}","type":"created","lane":"{LANE}"}}
{{"run":"{run}","version":2,"recorded_at":"{claimed}","type":"claimed","attempt":1,"claim":"{claim}","executor":"load"}}
{{"run":"{run}","version":3,"recorded_at":"{beaten}","type":"heartbeat","attempt":1}}
"#
            )
            .into_bytes();
        }
        let read = self.rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&self.rest[..read]);
        self.rest.drain(..read);
        Ok(read)
    }
}
