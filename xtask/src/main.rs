//! The tasks of this workspace. `cargo xtask test` sets up what the tests need, then runs all of them.
//!
//! Standard library only: on a new machine this is the first thing that is built.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

mod browser;
mod fuzz;
// The tests and their set-up must agree on which server is there; this package can't depend on theirs.
#[path = "../../crates/testkit/src/postgres/installed.rs"]
mod installed;
mod languages;
mod postgres;

const USAGE: &str = "\
usage: cargo xtask <task> [arguments for cargo, for the simulation, the load or the benchmark]

  setup     make sure that a C compiler works (SQLite is compiled by it), and that libfaketime (tests set a process's
            clock with it), a PostgreSQL server, and what runs the tours of the API (curl, jq, python3, node and the
            compiler of TypeScript), and a browser with what drives it (Chromium, playwright-core, axe-core) are there;
            install with apt-get and npm what is missing
  test      setup, build the binaries, then run all tests, those in the documentation too, beside a PostgreSQL server
            that is there only for them, or on that of LASTBEAT_TEST_POSTGRES_URL
  soak      many sweepers and executors on one PostgreSQL server, some of them killed, stopped and slowed at random:
            MINUTES [--seed N]; exits 1 if the log shows that a promise was not kept
  simulate  play schedules of faults on a virtual clock: [--seeds N] [--from SEED], 10,000 from 0 if not said
  bench     measure what must be fast, beside what it replaces, on a throwaway PostgreSQL: [--json FILE] [--quick]
            [--help]; exit code 1 if a row misses what is required of it
  load      put a real server under load, on either backend, with a million runs in flight: [--runs N] [--json FILE]
            [--quick] [--help]; with [--overview] what the open dashboard costs heartbeats, with a hundred thousand, and
            how soon a browser has painted it; exit code 1 if a goal is missed
  fuzz-api  ask a server whatever its OpenAPI document allows, and more, with schemathesis from PyPI: [--minutes N]
            [--seed N]; exit code 1 if it failed, or answered what the document does not say
  screenshots  take pictures of every page of the dashboard, in light, in dark and on a phone's width: [FOLDER]
  doc       build the API documentation; a warning is an error
";

/// What to say about a failed task, and the code to exit with.
struct Failure {
    message: String,
    code: u8,
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let extra: Vec<String> = arguments.collect();

    let outcome = match task.as_str() {
        "setup" => setup(),
        "test" => test(&extra),
        "soak" => soak(&extra),
        "simulate" => simulate(&extra),
        "bench" => bench(&extra),
        "load" => load(&extra),
        "fuzz-api" => fuzz::fuzz(&extra),
        "screenshots" => browser::screenshots(&extra),
        "doc" => doc(&extra),
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        "" => Err(Failure { message: format!("no task was named\n\n{USAGE}"), code: 2 }),
        other => Err(Failure { message: format!("there is no task '{other}'\n\n{USAGE}"), code: 2 }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Installs what is missing, then says what is there.
fn setup() -> Result<(), Failure> {
    run("setup", &mut Command::new(workspace_root().join(".ci/setup")))?;
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    eprintln!("xtask: found {}", version_of("rustc"));
    eprintln!("xtask: found {}, which compiles the SQLite that is built in", version_of(&compiler));
    libfaketime()?;
    languages::setup()?;
    browser::setup()?;
    postgres::setup()
}

/// Where distributions put the library with which the tests show a process another clock.
const LIBFAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

fn libfaketime() -> Result<(), Failure> {
    let find = || LIBFAKETIME.iter().find(|path| Path::new(path).exists());
    if find().is_none() {
        eprintln!("xtask: libfaketime was not found: installing it with apt-get");
        apt_get(&["update", "--quiet"])?;
        apt_get(&["install", "--yes", "--quiet", "--no-install-recommends", "libfaketime"])?;
    }
    match find() {
        Some(path) => {
            eprintln!("xtask: found {path}");
            Ok(())
        }
        None => {
            let message = format!("libfaketime is in none of {}", LIBFAKETIME.join(", "));
            Err(Failure { message, code: 1 })
        }
    }
}

/// Runs `apt-get`, with sudo for others than root.
fn apt_get(arguments: &[&str]) -> Result<(), Failure> {
    run("apt-get", as_root("env").args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments))
}

/// A program that root runs: with sudo for others.
fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Whether there is a way to install packages.
fn can_install() -> bool {
    let starts = |program: &str| Command::new(program).arg("--version").output().is_ok();
    starts("apt-get") && (is_root() || starts("sudo"))
}

/// The environment variable with the URL of the server on which tests make their databases. See the testkit.
const SERVER_VARIABLE: &str = "LASTBEAT_TEST_POSTGRES_URL";

/// Runs all tests of the workspace; `extra` goes to `cargo test`.
///
/// The binaries come first: the acceptance tests start them, and are a package of their own, for which cargo doesn't
/// build the binaries of another.
fn test(extra: &[String]) -> Result<(), Failure> {
    setup()?;
    let mut build = cargo(&["build", "--workspace", "--bins"]);
    if extra.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--locked") {
        build.arg("--locked");
    }
    run("build", &mut build)?;
    // Not `--all-targets`: that would leave out the tests in the documentation.
    let mut tests = cargo_beside_a_server(&["test", "--workspace"])?;
    if let Some(chromium) = browser::found() {
        tests.env(browser::VARIABLE, chromium);
    }
    run("test", tests.args(extra))
}

/// A cargo whose tests find a PostgreSQL server: the one that the environment names, or else one that is started for
/// them and ends with them. Otherwise each process of the tests would start one.
fn cargo_beside_a_server(arguments: &[&str]) -> Result<Command, Failure> {
    let cargo = cargo(arguments);
    if env::var_os(SERVER_VARIABLE).is_some_and(|url| !url.is_empty()) {
        eprintln!("xtask: the tests make their databases on the server of {SERVER_VARIABLE}");
        return Ok(cargo);
    }
    let own = env::current_exe().map_err(|error| Failure { message: error.to_string(), code: 1 })?;
    eprintln!("xtask: the tests make their databases on a server of their own; {SERVER_VARIABLE} can name another");
    let mut command = Command::new(own.with_file_name("throwaway-postgres"));
    command.arg("--").arg(cargo.get_program()).args(cargo.get_args()).current_dir(workspace_root());
    for (name, _) in cargo.get_envs().filter(|(_, value)| value.is_none()) {
        command.env_remove(name);
    }
    Ok(command)
}

/// Plays the soak of the acceptance tests for longer; `extra` says for how many minutes.
fn soak(extra: &[String]) -> Result<(), Failure> {
    setup()?;
    // All of them, as it would build them itself: for one package alone the dependencies would be built otherwise.
    run("build", &mut cargo(&["build", "--release", "--workspace", "--bins"]))?;
    let own = env::current_exe().map_err(|error| Failure { message: error.to_string(), code: 1 })?;
    let profiles = own.parent().and_then(Path::parent).unwrap_or(Path::new("target"));
    run("soak", Command::new(profiles.join("release/soak")).args(extra).current_dir(workspace_root()))
}

/// Plays schedules of faults; `extra` says how many, and from which seed on.
fn simulate(extra: &[String]) -> Result<(), Failure> {
    let arguments = ["run", "--release", "--quiet", "--package", "lastbeat-simulation", "--"];
    run("simulate", cargo(&arguments).args(extra))
}

/// Runs the benchmark; `extra` is for it. Its own exit code becomes ours.
fn bench(extra: &[String]) -> Result<(), Failure> {
    let arguments = ["run", "--release", "--quiet", "--package", "lastbeat-bench", "--"];
    run("bench", cargo(&arguments).args(extra))
}

/// Loads a server; `extra` is for the program that does.
fn load(extra: &[String]) -> Result<(), Failure> {
    setup()?;
    run("build", &mut cargo(&["build", "--release", "--package", "lastbeat-cli", "--package", "lastbeat-load"]))?;
    let mut program = Command::new(workspace_root().join("target/release/lastbeat-load"));
    program.current_dir(workspace_root());
    // The task has the browser; the program only needs to know how to have it look.
    if let Some(place) = extra.iter().position(|argument| argument == "--overview") {
        program.args(&extra[..place]).args(&extra[place + 1..]).arg("--overview").args(browser::paint());
    } else {
        program.args(extra);
    }
    run("load", &mut program)
}

/// Builds the API documentation of the workspace; `extra` goes to `cargo doc`.
fn doc(extra: &[String]) -> Result<(), Failure> {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    run("doc", doc.args(extra).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The cargo that runs this, in the workspace's root.
fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(workspace_root());
    // What cargo tells this program about itself, a build script of a dependency takes for news, and half of the
    // dependencies would be built anew when cargo was run by hand before.
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|told| name.to_string_lossy().starts_with(told)) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The folder above this package's, as cargo names it at run time; where cargo doesn't run this, the current one.
fn workspace_root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    package.as_deref().and_then(|folder| folder.parent()).map_or_else(|| ".".into(), PathBuf::from)
}

/// Runs a command to its end and prints how long it took. A failure carries the command's own exit code.
fn run(step: &str, command: &mut Command) -> Result<(), Failure> {
    let started = Instant::now();
    let status = command.status().map_err(|error| Failure {
        message: format!("{step}: failed to start {}: {error}", command.get_program().display()),
        code: 1,
    })?;
    let took = started.elapsed().as_secs_f64();
    if status.success() {
        eprintln!("xtask: {step} done in {took:.1} s");
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Err(Failure { message: format!("{step} failed after {took:.1} s ({status})"), code })
}

/// The first line of what `PROGRAM --version` prints. `program` may hold flags, as `$CC` does.
fn version_of(program: &str) -> String {
    let mut words = program.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default()).args(words).arg("--version").output();
    match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or(program).to_owned(),
        Err(_) => format!("{program} (it doesn't tell its version)"),
    }
}
