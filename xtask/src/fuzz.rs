//! Asks a real server everything that its own OpenAPI document allows, and much that it does not.
//!
//! schemathesis makes the requests up. Whatever comes, the server may refuse, but it must not fail (5xx), and what it
//! answers must be what the document says.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Failure, cargo, run, workspace_root};

/// The version that is installed from PyPI.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance";
/// How long it goes on if nothing is said.
const MINUTES: u64 = 5;
/// How many runs are there from the start, half of them claimed.
const RUNS: usize = 200;
/// How long the server may take to listen.
const START_MAX: Duration = Duration::from_secs(10);

/// Fuzzes for `--minutes N`; everything else in `extra` goes to schemathesis, as `--seed N` does.
pub(crate) fn fuzz(extra: &[String]) -> Result<(), Failure> {
    let (minutes, extra) = minutes_of(extra)?;
    run("build", &mut cargo(&["build", "--release", "--package", "lastbeat-cli"]))?;
    let schemathesis = installed()?;
    let folder = workspace_root().join("target/fuzz-api");
    let fresh = std::fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    fresh.and_then(|()| std::fs::create_dir_all(&folder)).map_err(failed)?;
    let server = Server::start(&folder)?;
    let mut fuzz = Command::new(schemathesis);
    fuzz.args(["--config-file", "schemathesis.toml", "run", &format!("http://{}/openapi.json", server.address)])
        .args(["--header", &format!("Authorization: Bearer {}", server.token), "--checks", CHECKS])
        // What is made up may wait for work for a minute. No phase may follow links to revoke the token that it uses.
        .args(["--request-timeout", "75", "--phases", "examples,coverage,fuzzing", "--continue-on-failure"])
        .args(["--max-time", &(60 * minutes).to_string(), "--max-examples", "100000", "--generation-database", "none"])
        .args(extra)
        .current_dir(&folder);
    eprintln!("xtask: fuzzing http://{} for {minutes} min; the seed is printed at the end", server.address);
    run("fuzz-api", &mut fuzz)
}

fn minutes_of(extra: &[String]) -> Result<(u64, Vec<&String>), Failure> {
    let Some(at) = extra.iter().position(|argument| argument == "--minutes") else {
        return Ok((MINUTES, extra.iter().collect()));
    };
    let minutes = extra.get(at + 1).and_then(|text| text.parse().ok());
    let usage = || Failure { message: "--minutes takes a number".to_owned(), code: 2 };
    let rest = extra.iter().enumerate().filter(|(index, _)| *index != at && *index != at + 1);
    Ok((minutes.ok_or_else(usage)?, rest.map(|(_, argument)| argument).collect()))
}

/// Finds schemathesis, or installs it into an environment of its own.
fn installed() -> Result<PathBuf, Failure> {
    let folder = workspace_root().join("target/schemathesis");
    let program = folder.join("bin/st");
    if !program.exists() {
        eprintln!("xtask: {SCHEMATHESIS} was not found: installing it from PyPI into target/schemathesis");
        run("venv", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut pip = Command::new(folder.join("bin/pip"));
        run("pip", pip.args(["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS]))?;
    }
    eprintln!("xtask: found {SCHEMATHESIS} in target/schemathesis");
    program.canonicalize().map_err(failed)
}

/// A server on an embedded store in a folder, with the token of an admin.
struct Server {
    process: Child,
    address: SocketAddr,
    token: String,
}

/// Makes runs, and has schemathesis ask for these, rather than for none that is there.
fn make_runs(program: &Path, folder: &Path) -> Result<(), Failure> {
    let mut ids = Vec::new();
    for number in 0..RUNS {
        let mut create = Command::new(program);
        create.args(["run", "create", "--lane", "fuzz", "--goal", "goal", "-o", "json"]).current_dir(folder);
        if number % 2 == 1 {
            create.args(["--claim", "fuzz"]);
        }
        let output = create.stderr(Stdio::inherit()).output().map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let id = text.split('"').nth(3).filter(|_| text.starts_with("{\"run\":\""));
        ids.push(format!("\"{}\"", id.ok_or_else(|| Failure { message: format!("no run in {text:?}"), code: 1 })?));
    }
    let config =
        format!("[parameters]\nid = [{}]\nkey = [\"goal\", \"none\"]\nlane = [\"fuzz\", \"none\"]\n", ids.join(", "));
    std::fs::write(folder.join("schemathesis.toml"), config).map_err(failed)
}

impl Server {
    fn start(folder: &Path) -> Result<Server, Failure> {
        let program = workspace_root().join("target/release/lastbeat").canonicalize().map_err(failed)?;
        make_runs(&program, folder)?;
        let mut create = Command::new(&program);
        let create = create.args(["token", "create", "--role", "admin", "--name", "fuzz"]).current_dir(folder);
        let output = create.stderr(Stdio::inherit()).output().map_err(failed)?;
        // It is printed once, as the word that begins like every secret does.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let token = text.split_whitespace().find(|word| word.starts_with("lb_"));
        let token = token.ok_or_else(|| Failure { message: format!("no token in {text:?}"), code: 1 })?.to_owned();
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(failed)?;
        let log = std::fs::File::create(folder.join("serve.log")).map_err(failed)?;
        let process = Command::new(program)
            .args(["serve", "--listen", &address.to_string(), "--limit", "rate=1e6", "--limit", "burst=1e6"])
            .current_dir(folder)
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let server = Server { process, address, token };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            if started.elapsed() > START_MAX {
                let message = format!("the server does not listen on {address}; see target/fuzz-api/serve.log");
                return Err(Failure { message, code: 1 });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[allow(clippy::needless_pass_by_value)] // It stands where a function from an error is wanted.
fn failed(error: std::io::Error) -> Failure {
    Failure { message: error.to_string(), code: 1 }
}
