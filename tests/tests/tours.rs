//! The pages of `docs/api` do what they say, against a real server: with curl and jq, in Python, in TypeScript.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};

use lastbeat_acceptance::{Place, until};

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

const MEND: &str = "`cargo xtask setup` installs what the tours need";

/// Runs a command to its end. One that is not there is no reason to skip anything.
fn ran(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    command.env_remove("LASTBEAT_TOKEN").output().unwrap_or_else(|error| panic!("{program}: {error}; {MEND}"))
}

/// Runs a command that must succeed and returns what it printed.
fn printed(command: &mut Command) -> String {
    let output = ran(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}; {MEND}", command.get_program().display());
    out.into_owned()
}

/// Takes a tour on a server of its own and looks at what it told; then again where it may do nothing.
fn take(executor: &str, mut tour: Command) {
    let place = Place::default();
    let (_server, url) = place.serve();
    let told = printed(tour.arg(&url));
    looked_at(&place, executor, &told);

    place.json(&["token", "create", "--role", "admin", "--name", "ada"]);
    until("the server asks for a token", || {
        let refused = place.lastbeat(&["run", "list", "--server", &url]).env_remove("LASTBEAT_TOKEN").output();
        !refused.unwrap().status.success()
    });
    // It ends, says why, and does not go on with what it was not given.
    let refused = ran(&mut tour);
    let (out, err) = (String::from_utf8_lossy(&refused.stdout), String::from_utf8_lossy(&refused.stderr));
    assert!(!refused.status.success() && out.is_empty() && err.contains("send a token"), "{out}{err}");
}

/// Holds what a tour told against what it is to tell, and against the log.
fn looked_at(place: &Place, executor: &str, told: &str) {
    let lines: Vec<&str> = told.lines().collect();
    let beginnings = [
        "lane tour-",
        "created ",
        &format!("claimed by {executor}, attempt 1"),
        "beat: continue, the next one within 0.5 s",
        "beat: continue, the next one within 0.5 s",
        "beat: continue, the next one within 0.5 s",
        "the goal is running",
        "silent now",
        "the goal is timed_out",
        "refused: 409 settled, directive stop",
        "heartbeat silent for ",
    ];
    assert_eq!(lines.len(), beginnings.len(), "{told}");
    for (line, beginning) in lines.iter().zip(beginnings) {
        assert!(line.starts_with(beginning), "{line:?} does not begin with {beginning:?}\n{told}");
    }
    for evidence in ["(limit 1.5", &format!("from {executor}, attempt 1")] {
        assert!(lines[10].contains(evidence), "{told}");
    }
    // The log says the same: what was said after the reap is a late signal, recorded once.
    let run = lines[1].trim_start_matches("created ");
    let events = place.json(&["history", run])["events"].clone();
    let types: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        types,
        ["created", "claimed", "heartbeat", "heartbeat", "heartbeat", "timed_out", "late_signal"],
        "{told}"
    );
}

/// A page, and the program that reads it.
fn page(program: &str, name: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(workspace().join("docs/api").join(name));
    command
}

#[test]
fn the_tour_with_curl() {
    take("curl-1", page("sh", "tour.sh"));
}

#[test]
fn the_tour_in_python() {
    take("python-1", page("python3", "tour.py"));
}

#[test]
fn the_tour_in_typescript() {
    let compiler = workspace().join("target/typescript/node_modules/typescript/bin/tsc");
    let out = tempfile::tempdir().unwrap();
    printed(
        Command::new("node")
            .arg(compiler)
            .arg("--project")
            .arg(workspace().join("docs/api"))
            .arg("--outDir")
            .arg(out.path()),
    );
    let mut tour = Command::new("node");
    tour.arg(out.path().join("tour.mjs"));
    take("node-1", tour);
}
