//! A server of one's own, with methods that break it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::account::Account;
use super::installed::{self, Installed};
use super::watcher::Watcher;
use super::{database, session};

/// How long a server may take to start (after a crash it first repairs itself) or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ports that are taken neither by listeners that ask for any free port nor by the near end of a connection: those
/// come from 32768 upwards. So nobody takes the port of a server that is down, least of all the client that tries to
/// reach it, which can happen to connect to itself.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Whether a commit survives a power failure: `fsync`, `synchronous_commit` and `full_page_writes` are on. Without
    /// it a commit still survives the end of every process. The folder lies under `TMPDIR` (`/tmp`), which for a
    /// benchmark should be on a disk.
    pub durable: bool,
    /// Further settings, as in `postgresql.conf`: name and value.
    pub settings: Vec<(String, String)>,
}

/// A PostgreSQL server in a temporary folder, on a port of its own of the loopback interface; whoever can connect is a
/// superuser.
///
/// It is stopped, and its folder removed, when this value is dropped, and also when the process ends without dropping
/// it: in a panic, at exit while the value is in a static, by SIGKILL.
pub struct Cluster {
    installed: Installed,
    account: Account,
    folder: PathBuf,
    port: u16,
    /// The postmaster, while there is one.
    server: Mutex<Option<Child>>,
    // Declared last, so dropped last: it removes the folder.
    watcher: Watcher,
}

impl Cluster {
    /// Starts a server for tests: quick, small, and safe from everything but a power failure.
    ///
    /// # Panics
    ///
    /// If PostgreSQL isn't installed or doesn't start. The message says what to do, or what the server said.
    pub fn start() -> Cluster {
        Cluster::start_with(&ClusterOptions::default())
    }

    /// Starts a server that is set up in a certain way.
    ///
    /// # Panics
    ///
    /// If PostgreSQL isn't installed or doesn't start. The message says what to do, or what the server said.
    pub fn start_with(options: &ClusterOptions) -> Cluster {
        let installed = installed::newest().unwrap_or_else(|missing| panic!("{missing}"));
        let account = Account::choose();
        let folder = account.folder();
        let watcher = Watcher::of(&folder);
        let mut cluster = Cluster { installed, account, folder, port: 0, server: Mutex::new(None), watcher };
        cluster.initialise(options);
        for attempts_left in (0..5).rev() {
            cluster.port = free_port();
            match cluster.launch() {
                Ok(()) => break,
                // Somebody else may have taken the port in the meantime.
                Err(failure) => assert!(attempts_left > 0, "{failure}"),
            }
        }
        cluster
    }

    /// Returns the URL of a database on the server, which need not exist. `postgres` always does.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}:{}/{database}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// Makes an empty database with a name of its own and returns its URL.
    pub fn create_database(&self) -> String {
        self.url(&database::create(&self.url("postgres")))
    }

    /// Returns the folder that holds everything of the server: `data`, and `log`, which it writes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the process id of the postmaster, which must be running.
    pub fn pid(&self) -> u32 {
        self.server().as_ref().expect("the server is not running").id()
    }

    /// Runs a statement (or several, with semicolons) as superuser and returns the first column of each row, as text.
    /// [`Cluster::set`] of a read-only default or of a timeout doesn't apply to it.
    ///
    /// It blocks, and works in and outside of asynchronous code.
    pub fn sql(&self, database: &str, statements: &str) -> Vec<String> {
        session::run(&self.url(database), statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// Changes a setting for all, also for those who are connected, and returns once it holds for new connections.
    /// It stays over a restart. Those that only a restart changes wait for one.
    pub fn set(&self, setting: &str, value: &str) {
        let loaded = || self.sql("postgres", "SELECT pg_conf_load_time()");
        let before = loaded();
        self.sql("postgres", &format!("ALTER SYSTEM SET {setting} = '{}'", value.replace('\'', "''")));
        self.sql("postgres", "SELECT pg_reload_conf()");
        // A new connection starts from what the postmaster has read.
        assert!(within_patience(|| loaded() != before), "the server doesn't read its settings again");
    }

    /// Stops the server as `pg_ctl stop -m immediate` does: everybody is thrown out, and the next start repairs what
    /// was not written. Does nothing if it isn't running.
    pub fn stop_immediate(&self) {
        let Some(mut postmaster) = self.server().take() else { return };
        // A server that was stopped by a signal takes this one too, but acts on it only when it goes on.
        for signal in [Signal::QUIT, Signal::CONT] {
            kill_process(Pid::from_child(&postmaster), signal).unwrap();
        }
        if !within_patience(|| postmaster.try_wait().unwrap().is_some()) {
            postmaster.kill().unwrap();
            postmaster.wait().unwrap();
        }
        self.watcher.nothing();
    }

    /// Kills the server with SIGKILL: the postmaster first, so that nobody starts anew, then its children. Returns
    /// when all are gone, so that [`Cluster::start_again`] works. Does nothing if it isn't running.
    pub fn kill(&self) {
        let Some(mut postmaster) = self.server().take() else { return };
        postmaster.kill().unwrap();
        postmaster.wait().unwrap();
        self.watcher.nothing();
        let gone = || {
            let children = self.processes();
            for child in &children {
                // One that is already gone is fine.
                let _ = kill_process(*child, Signal::KILL);
            }
            children.is_empty()
        };
        assert!(within_patience(gone), "the server's processes don't go away");
        self.forget();
    }

    /// Suspends the processes that write to the disk on the server's behalf (WAL writer, background writer, checkpointer,
    /// and who starts autovacuum) until the server is stopped or killed: from then on nothing gets there but what a
    /// commit or a want of memory sends. Sessions go on, since each of those processes is caught at rest, holding no lock.
    pub fn suspend_background(&self) {
        const ALL: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type IN \
                           ('walwriter', 'background writer', 'checkpointer', 'autovacuum launcher')";
        let signal = |pid: &String, signal| {
            let pid = pid.parse().ok().and_then(Pid::from_raw).expect("a process id");
            kill_process(pid, signal).unwrap_or_else(|error| panic!("{signal:?} to {pid:?}: {error}"));
        };
        let processes = self.sql("postgres", ALL);
        let at_rest = || {
            processes.iter().for_each(|pid| signal(pid, Signal::STOP));
            let still = "AND wait_event_type IS DISTINCT FROM 'Activity' OR backend_type = 'autovacuum worker'";
            let busy = self.sql("postgres", &format!("{ALL} {still}"));
            processes.iter().filter(|_| !busy.is_empty()).for_each(|pid| signal(pid, Signal::CONT));
            busy.is_empty()
        };
        assert!(within_patience(at_rest), "the server's processes are never at rest");
    }

    /// Starts the server again on the same port and data, and returns when it accepts connections.
    ///
    /// # Panics
    ///
    /// If it is running, or doesn't start. The message says what the server said.
    pub fn start_again(&self) {
        assert!(self.server().is_none(), "the server is running");
        let mut outcome = Err(String::new());
        // What is left of the one before may be in the way for a moment, a connection on the port for example.
        within_patience(|| {
            outcome = self.launch();
            outcome.is_ok()
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
    }

    /// Makes the files of a new server.
    fn initialise(&self, options: &ClusterOptions) {
        let mut initdb = self.program("initdb");
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]);
        if !options.durable {
            initdb.arg("--no-sync");
        }
        let mut child = initdb.spawn().unwrap_or_else(|error| panic!("initdb doesn't start: {error}"));
        self.watcher.program(&child);
        let status = child.wait().unwrap();
        self.watcher.nothing();
        assert!(status.success(), "initdb of {}: {status}\n{}", self.describe(), self.said());
        let mut file = OpenOptions::new().append(true).open(self.data().join("postgresql.conf")).unwrap();
        file.write_all(configuration(options).as_bytes()).unwrap();
    }

    /// Starts the postmaster and waits until it accepts connections, or says why it doesn't.
    fn launch(&self) -> Result<(), String> {
        let mut server = self.server();
        let mut command = self.program("postgres");
        let mut postmaster = command.arg("-p").arg(self.port.to_string()).spawn().map_err(|error| error.to_string())?;
        self.watcher.server(&postmaster);
        let mut ended = None;
        let settled = within_patience(|| {
            ended = postmaster.try_wait().unwrap();
            ended.is_some() || self.accepts(postmaster.id())
        });
        *server = Some(postmaster);
        drop(server);
        if settled && ended.is_none() {
            return Ok(());
        }
        self.stop_immediate();
        Err(format!("{} doesn't start\n{}", self.describe(), self.said()))
    }

    /// Whether that postmaster says that it accepts connections: in the file that `pg_ctl` looks at too.
    fn accepts(&self, postmaster: u32) -> bool {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&postmaster.to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    /// The processes that work in the data folder, as each of a server's does.
    fn processes(&self) -> Vec<Pid> {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let number = |entry: std::fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
        let data = self.data();
        let ours = |pid: &Pid| {
            let place = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
            let name = std::fs::read_to_string(place.join("comm")).unwrap_or_default();
            name.trim_end() == "postgres" && std::fs::read_link(place.join("cwd")).is_ok_and(|folder| folder == data)
        };
        all.filter_map(number).filter(ours).collect()
    }

    /// Takes away what a server leaves behind that was killed: its shared memory, which outlives it, and the file that
    /// says it runs, with a process id that may soon be another's.
    fn forget(&self) {
        let file = self.data().join("postmaster.pid");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            // Without the program a few bytes stay until the next boot.
            let _ = Command::new("ipcrm").args(["-m", id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_file(file);
    }

    /// A program of the server, on its data. It is in a process group of its own, so that Ctrl-C does not reach it:
    /// tests may have to use the server until they have ended. What it says goes to the log.
    fn program(&self, name: &str) -> Command {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = self.account.command(&self.installed.folder.join(name));
        command.arg("-D").arg(self.data()).current_dir(&self.folder).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        // A panic elsewhere doesn't keep the server from being stopped.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> String {
        format!("PostgreSQL {} of {}", self.installed.version, self.installed.folder.display())
    }

    /// The end of the log.
    fn said(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.server.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.stop_immediate();
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Cluster")
            .field("folder", &self.folder)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// What is added to `postgresql.conf`. Of two lines for one setting the later one holds.
fn configuration(options: &ClusterOptions) -> String {
    let mut settings = vec![("listen_addresses", "127.0.0.1"), ("unix_socket_directories", "")];
    if options.durable {
        settings.extend([("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")]);
    } else {
        // `synchronous_commit` stays on: else a commit could be lost with the process.
        settings.extend([("fsync", "off"), ("full_page_writes", "off"), ("shared_buffers", "32MB")]);
        // Many tests run at once, each with a pool of connections; and what is shared between processes lies in the
        // folder, so that it goes with it.
        settings.extend([("max_connections", "300"), ("dynamic_shared_memory_type", "mmap")]);
    }
    settings.extend(options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let line = |(name, value): &(&str, &str)| format!("{name} = '{}'\n", value.replace('\'', "''"));
    settings.iter().map(line).collect()
}

/// A port on which nobody listens at the moment.
fn free_port() -> u16 {
    loop {
        let port = PORTS.start + u16::try_from(Uuid::new_v4().as_u128() % PORTS.len() as u128).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Waits until a condition holds, but not for ever, and returns whether it does.
fn within_patience(mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
