//! Asks a real server everything that its own OpenAPI document allows, and much that it does not.
//!
//! schemathesis makes the requests up. Whatever comes, the server may refuse, but it must not fail (5xx), and what it
//! answers must be what the document says. It must refuse what the document forbids, and take what it allows.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::{Failure, cargo, run, workspace_root};

/// The version that is installed from PyPI.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// What is checked of each answer; the last two are whether the server and the document agree on what may be asked.
const CHECKS: [&str; 7] = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
];
/// Where the document allows more than the server takes, because no schema can say it: a cursor is one that the server
/// gave, the windows of a policy agree with one another, a token's lanes go with its role, a claim names lanes where
/// its token does not, and lists of windows combine. There alone a refusal of what the document allows is no finding.
const SAYS_TOO_LITTLE: [&str; 9] = [
    "GET /v1/events",
    "GET /v1/goals",
    "GET /v1/goals/{key}",
    "GET /v1/runs",
    "GET /v1/runs/{id}/events",
    "POST /v1/claims",
    "POST /v1/lanes/{lane}/backtest",
    "POST /v1/tokens",
    "PUT /v1/lanes/{lane}",
];
/// How long it goes on if nothing is said.
const MINUTES: u64 = 5;
/// How long it may go on beyond that, to end what it began; and once more, to say what it found.
const OVERTIME_MAX: Duration = Duration::from_secs(90);
/// How many runs are there from the start, half of them claimed.
const RUNS: usize = 200;
/// How long the server may take to listen.
const START_MAX: Duration = Duration::from_secs(10);

/// Fuzzes for `--minutes N`; everything else in `extra` goes to schemathesis, as `--seed N` does.
pub(crate) fn fuzz(extra: &[String]) -> Result<(), Failure> {
    let (minutes, extra) = option(extra.to_vec(), "--minutes")?;
    let (seed, extra) = option(extra, "--seed")?;
    let (minutes, seed) = (minutes.unwrap_or(MINUTES), seed.unwrap_or_else(any_seed));
    run("build", &mut cargo(&["build", "--release", "--package", "lastbeat-cli"]))?;
    let schemathesis = installed()?;
    let folder = workspace_root().join("target/fuzz-api");
    let fresh = std::fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    fresh.and_then(|()| std::fs::create_dir_all(&folder)).map_err(failed)?;
    std::fs::write(folder.join("seed"), format!("{seed}\n")).map_err(failed)?;
    let server = Server::start(&folder)?;
    let mut fuzz = Command::new(schemathesis);
    fuzz.args(["--config-file", "schemathesis.toml", "run", &format!("http://{}/openapi.json", server.address)])
        .args(["--header", &format!("Authorization: Bearer {}", server.token)])
        // What is made up may wait for work for a minute. No phase may follow links to revoke the token that it uses.
        .args(["--request-timeout", "75", "--phases", "examples,coverage,fuzzing", "--continue-on-failure"])
        .args(["--max-time", &(60 * minutes).to_string(), "--max-examples", "100000", "--generation-database", "none"])
        .args(["--seed", &seed.to_string()])
        .args(extra)
        .current_dir(&folder);
    eprintln!("xtask: fuzzing http://{} for {minutes} min with --seed {seed}", server.address);
    let longest = Duration::from_secs(60 * minutes) + OVERTIME_MAX;
    let process = fuzz.spawn().map_err(|error| Failure { message: format!("fuzz-api: {error}"), code: 1 })?;
    ends_within(process, longest)
}

/// Waits for schemathesis. It looks at its time between two requests alone, so making one up may keep it beyond: then it
/// is told to stop, and says what it found until then, which is no success.
fn ends_within(mut process: Child, longest: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    let mut told = false;
    loop {
        let took = started.elapsed();
        match process.try_wait().map_err(failed)? {
            Some(status) if status.success() && !told => {
                eprintln!("xtask: fuzz-api done in {:.1} s", took.as_secs_f64());
                return Ok(());
            }
            Some(status) => {
                let why = if told { "it did not end by itself" } else { "it found something" };
                let message = format!("fuzz-api failed after {:.1} s ({status}): {why}", took.as_secs_f64());
                return Err(Failure { message, code: 1 });
            }
            None if took > longest + OVERTIME_MAX => process.kill().map_err(failed)?,
            None if took > longest && !told => {
                told = true;
                run("interrupt", Command::new("kill").args(["-INT", &process.id().to_string()]))?;
            }
            None => {}
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Takes an option with a number out of the arguments.
fn option(mut extra: Vec<String>, name: &str) -> Result<(Option<u64>, Vec<String>), Failure> {
    let Some(at) = extra.iter().position(|argument| argument == name) else { return Ok((None, extra)) };
    let number = extra.get(at + 1).and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| Failure { message: format!("{name} takes a number"), code: 2 })?;
    extra.drain(at..=at + 1);
    Ok((Some(number), extra))
}

/// A seed that differs from one run to the next.
fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos())
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
    // A list as the value of a parameter would be sent as it stands; values to choose from are a dictionary. Now and
    // then something is made up all the same.
    let mut config = format!("[dictionaries]\nruns = {{ values = [{}] }}\n", ids.join(", "));
    config += "goals = { values = [\"goal\", \"none\"] }\nlanes = { values = [\"fuzz\", \"none\"] }\n[parameters]\n";
    for (parameter, dictionary) in [("id", "runs"), ("key", "goals"), ("lane", "lanes")] {
        config += &format!("\"path.{parameter}\" = {{ dictionary = \"{dictionary}\", probability = 0.9 }}\n");
    }
    // Not on the command line, whose word would stand above that for a single operation.
    config += "[checks]\nenabled = false\n";
    for check in CHECKS {
        config += &format!("{check} = {{ enabled = true }}\n");
    }
    for operation in SAYS_TOO_LITTLE {
        config += &format!("[[operations]]\ninclude-name = \"{operation}\"\n");
        config += "[operations.checks.positive_data_acceptance]\nenabled = false\n";
    }
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
