//! The pages of `docs/api` do what they say, against a real server: with curl and jq, in Python, in TypeScript.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Stdio};

use lastbeat_acceptance::{Place, Started, until};

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Runs a command to its end and returns what it printed. One that is not there is no reason to skip anything.
fn printed(command: &mut Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let mend = "`cargo xtask setup` installs what the tours need";
    let output = command.stderr(Stdio::piped()).output().unwrap_or_else(|error| panic!("{program}: {error}; {mend}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {out}{err}; {mend}");
    out.into_owned()
}

/// Takes a tour on a server of its own and looks at what it told.
fn take(executor: &str, tour: impl FnOnce(&str) -> String) {
    let place = Place::default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let _server = Started::new(place.lastbeat(&["serve", "--listen", &address]).stderr(Stdio::null()));
    until("the server listens", || std::net::TcpStream::connect(&address).is_ok());

    let told = tour(&format!("http://{address}"));

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
        "heartbeat silent for 1.5",
    ];
    assert_eq!(lines.len(), beginnings.len(), "{told}");
    for (line, beginning) in lines.iter().zip(beginnings) {
        assert!(line.starts_with(beginning), "{line:?} does not begin with {beginning:?}\n{told}");
    }
    assert!(lines[10].contains(&format!("from {executor}, attempt 1")), "{told}");
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

#[test]
fn the_tour_with_curl() {
    take("curl-1", |server| printed(Command::new("sh").arg(workspace().join("docs/api/tour.sh")).arg(server)));
}

#[test]
fn the_tour_in_python() {
    take("python-1", |server| printed(Command::new("python3").arg(workspace().join("docs/api/tour.py")).arg(server)));
}

#[test]
fn the_tour_in_typescript() {
    let compiler = workspace().join("target/typescript/node_modules/typescript/bin/tsc");
    let out = tempfile::tempdir().unwrap();
    let project = workspace().join("docs/api");
    printed(Command::new("node").arg(compiler).arg("--project").arg(project).arg("--outDir").arg(out.path()));
    take("node-1", |server| printed(Command::new("node").arg(out.path().join("tour.mjs")).arg(server)));
}
