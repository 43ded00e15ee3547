//! Black-box tests of the binary `lastbeat`: what they share. The tests themselves are in `tests/`.

#![allow(clippy::unwrap_used)]

pub mod audit;
pub mod soak;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lastbeat_store::Store;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::audit::Audit;

/// Returns the binary, built from the sources as they are.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let folder = own.parent().unwrap();
        // Tests lie in a folder below that of the binaries.
        let profile = if folder.ends_with("deps") { folder.parent().unwrap() } else { folder };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--workspace", "--bins"]);
        // What cargo tells the programs that it runs, a build script of a dependency takes for news, and half of the
        // dependencies would be built anew each time.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|told| name.to_string_lossy().starts_with(told)) {
                build.env_remove(name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(
            build.status().unwrap().success(),
            "the binary cannot be built; `cargo xtask test` says what is missing"
        );
        profile.join("lastbeat")
    })
}

/// A folder of its own with a database in it, or for a database on a server.
#[derive(Debug)]
pub struct Place {
    folder: tempfile::TempDir,
    server: Option<String>,
}

impl Default for Place {
    fn default() -> Place {
        Place { folder: tempfile::tempdir().unwrap(), server: None }
    }
}

impl Place {
    /// Makes a folder whose command lines work on the PostgreSQL database that `url` names, which is made ready.
    pub fn on(url: &str) -> Place {
        let place = Place { server: Some(url.to_owned()), ..Place::default() };
        place.json(&["migrate"]);
        place
    }

    /// Returns the path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Begins a command line on the place's database.
    pub fn lastbeat(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(self.folder.path()).env_remove("LASTBEAT_DATABASE_URL");
        if let Some(url) = &self.server {
            command.env("LASTBEAT_DATABASE_URL", url);
        }
        command
    }

    /// Runs a command line to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.lastbeat(arguments).output().unwrap()
    }

    /// Runs a command line that must succeed and returns the JSON document that it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command line that must fail with exit code 1 and returns the error.
    pub fn error(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        serde_json::from_slice::<Value>(&output.stderr).unwrap()["error"].clone()
    }

    /// Starts a server on the place's database and returns it with its URL.
    pub fn serve(&self) -> (Started, String) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let server = Started::new(self.lastbeat(&["serve", "--listen", &address]).stderr(Stdio::null()));
        until("the server listens", || std::net::TcpStream::connect(&address).is_ok());
        (server, format!("http://{address}"))
    }

    /// Returns everything that is in the log, read and looked at.
    pub fn audit(&self) -> Audit {
        let output = self.run(&["export"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Audit::of(&String::from_utf8(output.stdout).unwrap())
    }

    /// Holds the projection against the log, and returns the report.
    pub fn verified(&self) -> Value {
        let report = self.json(&["verify"]);
        assert_eq!(report["damage"], Value::Array(Vec::new()));
        report
    }

    /// Imports lines of events.
    pub fn import(&self, lines: &[Value]) -> Output {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let file = self.file("import.jsonl");
        std::fs::write(&file, text).unwrap();
        self.run(&["import", file.to_str().unwrap()])
    }
}

/// Returns another binary that the tests bring along, built with the first.
pub fn helper(name: &str) -> PathBuf {
    binary().with_file_name(name)
}

/// Opens a database for a helper, which waits while it is away.
pub async fn opened(url: &str) -> Arc<dyn Store> {
    let started = Instant::now();
    loop {
        match lastbeat_store::open(url, true).await {
            Ok(store) => return store,
            Err(error) => assert!(error.is_transient() && started.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How long is waited for a real process.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds; a bound on real processes, not a guess at their speed.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        pause(Duration::from_millis(20));
    }
}

/// Lets real time pass, for real processes.
pub fn pause(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// A process that does not outlive its test.
#[derive(Debug)]
pub struct Started(pub Child);

impl Started {
    /// Starts a command.
    pub fn new(command: &mut Command) -> Started {
        Started(command.spawn().unwrap())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Ends the process as a service manager would, and returns what it wrote to standard error, if that is a pipe.
    pub fn terminate(mut self) -> String {
        self.signal(Signal::TERM);
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut said).unwrap();
        }
        assert!(self.0.wait().unwrap().success(), "{said}");
        said
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Numbers that look random and are the same each time: splitmix64, by Sebastiano Vigna.
#[derive(Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// Returns the next one below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// How long, or how often, a test goes on: more than usual if the environment variable says so.
pub fn extent(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}
