//! The command line on a server: the same words, the same answers, and `exec` that goes on while no server answers.

#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lastbeat_acceptance::{Place, Started, pause, until};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

/// The heartbeat window of the tests' lane.
const WINDOW: Duration = Duration::from_secs(1);

/// A server of a place, at an address that it keeps.
struct Server {
    url: String,
    process: Option<Started>,
}

impl Server {
    /// Names a server that is down.
    fn down() -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Server { url: format!("http://{}", listener.local_addr().unwrap()), process: None }
    }

    fn up(place: &Place) -> Server {
        let mut server = Server::down();
        server.start(place);
        server
    }

    fn start(&mut self, place: &Place) {
        let address = self.url.trim_start_matches("http://").to_owned();
        let mut command = place.lastbeat(&["serve", "--listen", &address, "--sweep-interval", "100ms"]);
        self.process = Some(Started::new(command.stderr(Stdio::null())));
        until("the server listens", || std::net::TcpStream::connect(&address).is_ok());
    }

    fn kill(&mut self) {
        drop(self.process.take());
    }
}

/// A command line that talks to servers.
fn through(place: &Place, servers: &str, arguments: &[&str]) -> Command {
    let mut command = place.lastbeat(arguments);
    command.env("LASTBEAT_SERVER", servers).env_remove("LASTBEAT_TOKEN");
    command
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn asked(place: &Place, server: &Server, arguments: &[&str]) -> Value {
    json_of(&through(place, &server.url, &[arguments, &["-o", "json"]].concat()).output().unwrap())
}

fn policy(place: &Place) {
    place.json(&["lane", "set", "nightly", "--heartbeat-interval", "300ms", "--heartbeat-window", "1s"]);
}

fn only_run(place: &Place) -> Value {
    place.json(&["run", "list"])["runs"][0].clone()
}

fn types(place: &Place) -> Vec<String> {
    let events = place.json(&["history", only_run(place)["run"].as_str().unwrap()])["events"].clone();
    events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

/// Starts `exec` on servers with a command that writes the pids of itself and of its child, and ends when a file is
/// there.
fn start(place: &Place, servers: &str) -> Child {
    let script = "sleep 600 & echo $! $$ > pids; until [ -e end ]; do sleep 0.05; done; kill $!";
    let mut exec = through(place, servers, &["exec", "--lane", "nightly", "--", "sh", "-c", script]);
    exec.stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until the command runs, and returns the pids.
fn pids(place: &Place) -> Vec<Pid> {
    until("the command runs", || std::fs::read_to_string(place.file("pids")).is_ok_and(|text| text.ends_with('\n')));
    let pids = std::fs::read_to_string(place.file("pids")).unwrap();
    pids.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

fn heard_of(place: &Place) {
    until("it was heard of twice", || only_run(place)["beats"].as_u64() >= Some(2));
}

fn gone(pids: &[Pid]) {
    until("the command and its child are gone", || pids.iter().all(|pid| test_kill_process(*pid).is_err()));
}

/// Takes out what says when the question was put.
fn timeless(mut document: Value) -> Value {
    fn clear(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                let told = fields.contains_key("charged_seconds");
                fields.retain(|name, _| match name.as_str() {
                    "at" | "to" | "charged_seconds" => false,
                    "message" | "explanation" => !told,
                    _ => true,
                });
                fields.values_mut().for_each(clear);
            }
            Value::Array(values) => values.iter_mut().for_each(clear),
            _ => {}
        }
    }
    clear(&mut document);
    document
}

#[test]
fn each_step_and_each_question_has_the_same_answer_as_on_the_store() {
    let place = Place::default();
    let server = Server::up(&place);
    let ask = |arguments: &[&str]| asked(&place, &server, arguments);
    let create = ["run", "create", "--lane", "watcher", "--goal", "g", "--label", "a=b", "--input", "{\"n\":1}"];
    let made = ask(&create);
    assert_eq!((&made["status"], &made["labels"]), (&json!("pending"), &json!({"a": "b"})));
    let claimed = ask(&["run", "claim", "--lane", "watcher", "--executor", "mac-7"]);
    assert_eq!((&claimed["run"], &claimed["input"]), (&made["run"], &json!({"n": 1})));
    let run = made["run"].as_str().unwrap();
    let report = ["--attempt", "1", "--claim", claimed["claim"].as_str().unwrap()];
    assert_eq!(ask(&[&["run", "start", run], &report[..]].concat())["status"], "running");
    let beat = ask(&[&["run", "beat", run, "--progress", "{\"done\":1}"], &report[..]].concat());
    assert_eq!((&beat["directive"], &beat["next_beat_within_seconds"]), (&json!("continue"), &json!(30)));
    let questions: [&[&str]; 11] = [
        &["run", "show", run],
        &["run", "list"],
        &["run", "list", "--goal", "g", "--verdict", "live", "--status", "running"],
        &["why", run],
        &["history", run],
        &["replay", run],
        &["lane", "show", "watcher"],
        &["lane", "show", "never named"],
        &["lane", "list"],
        &["hold", "list"],
        &["backtest", "--lane", "watcher", "--heartbeat-window", "1m,3m", "--claim-window", "off,1h"],
    ];
    for question in questions {
        assert_eq!(timeless(ask(question)), timeless(place.json(question)), "{question:?}");
    }
    // Line by line and for people, the facts are the same to the byte.
    for form in ["jsonl", "table"] {
        let question = ["history", run, "-o", form];
        let here = place.run(&question).stdout;
        assert_eq!(through(&place, &server.url, &question).output().unwrap().stdout, here);
    }
    let policy = ask(&["lane", "set", "watcher", "--max-attempts", "3"]);
    assert_eq!((&policy["policy_version"], &policy["policy"]["max_attempts"]), (&json!(1), &json!(3)));
    assert_eq!(ask(&["run", "cancel", run, "--reason", "enough"])["cancel_requested"]["reason"], "enough");
    assert_eq!(ask(&[&["run", "fail", run, "--error", "e"], &report[..]].concat())["status"], "failed");
    assert_eq!(ask(&["run", "requeue", run])["status"], "pending");
    for _ in 0..3 {
        ask(&["run", "create", "--lane", "other"]);
    }
    let first = ask(&["run", "list", "--limit", "3"]);
    let second = ask(&["run", "list", "--limit", "3", "--after", first["next"].as_str().unwrap()]);
    assert_eq!((first["runs"].as_array().unwrap().len(), &second["runs"][0]["run"]), (3, &made["run"]));
    assert_eq!(second["next"], Value::Null);
}

#[test]
fn refusals_are_the_same_as_on_the_store() {
    let place = Place::default();
    let server = Server::up(&place);
    let run = place.json(&["run", "create", "--lane", "watcher", "--claim", "mac-7"])["run"].clone();
    let run = run.as_str().unwrap();
    let nobody = "01930000-0000-7000-8000-000000000001";
    let refused: [&[&str]; 7] = [
        &["run", "beat", run, "--attempt", "2"],
        &["run", "complete", nobody, "--attempt", "1"],
        &["run", "reap", run],
        &["run", "requeue", run],
        &["run", "claim", "--lane", "none", "--executor", "mac-7"],
        &["run", "create", "--lane", "watcher", "--input", &format!("\"{}\"", "x".repeat(70_000))],
        &["hold", "release", "watcher"],
    ];
    for arguments in refused {
        let here = place.error(arguments);
        let output = through(&place, &server.url, &[arguments, &["-o", "json"]].concat()).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
        let there: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(there["error"]["code"], here["code"], "{here} {there}");
    }
    let verify = through(&place, &server.url, &["verify", "-o", "json"]).output().unwrap();
    let said = String::from_utf8(verify.stderr).unwrap();
    assert!(said.contains("needs_database") && said.contains("--database"), "{said}");
    let replay = through(&place, &server.url, &["replay", "--all", "-o", "json"]).output().unwrap();
    assert!(String::from_utf8(replay.stderr).unwrap().contains("`lastbeat replay --all` works on the database"));
    let both = place.run(&["run", "list", "--server", &server.url, "--database", "sqlite://x.db"]);
    assert_eq!(both.status.code(), Some(2));
    let here = through(&place, "http://127.0.0.1:9", &["run", "list", "--database", "sqlite://lastbeat.db"]);
    assert!({ here }.output().unwrap().status.success(), "the command line goes before the environment");
}

#[test]
fn a_token_is_presented_and_its_name_stands_in_the_log() {
    let place = Place::default();
    let server = Server::up(&place);
    let made = place.json(&["token", "create", "--role", "operator", "--name", "ops"]);
    let mut show = through(&place, &server.url, &["run", "list", "-o", "json"]);
    let refused =
        || String::from_utf8(through(&place, &server.url, &["run", "list"]).output().unwrap().stderr).unwrap();
    until("the server asks for a token", || refused().contains("token"));
    show.env("LASTBEAT_TOKEN", made["token"].as_str().unwrap());
    assert!(show.output().unwrap().status.success());
    let run = place.json(&["run", "create", "--lane", "watcher", "--claim", "mac-7"])["run"].clone();
    let mut cancel = through(&place, &server.url, &["run", "cancel", run.as_str().unwrap(), "-o", "json"]);
    let cancelled = json_of(&cancel.env("LASTBEAT_TOKEN", made["token"].as_str().unwrap()).output().unwrap());
    assert_eq!(cancelled["cancel_requested"]["by"], "ops");
}

#[test]
fn exec_passes_on_what_its_command_says() {
    let place = Place::default();
    let server = Server::up(&place);
    let exec = |script: &str| {
        let arguments = ["exec", "--lane", "nightly", "--", "sh", "-c", script];
        through(&place, &server.url, &arguments).output().unwrap()
    };
    let output = exec("echo $LASTBEAT_RUN $LASTBEAT_ATTEMPT; exit 3");
    let run = only_run(&place);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), told), (Some(3), format!("{} 1\n", run["run"].as_str().unwrap())));
    assert_eq!(run["status"], "failed");
    assert_eq!(exec("kill -9 $$").status.code(), Some(137));
    assert_eq!(exec("true").status.code(), Some(0));
    assert_eq!(only_run(&place)["status"], "completed");
    let none = through(&place, &server.url, &["exec", "--lane", "nightly", "--", "./not-there"]).output().unwrap();
    assert_eq!((none.status.code(), only_run(&place)["status"].clone()), (Some(127), json!("failed")));
}

#[test]
fn a_command_that_began_without_a_server_is_recorded_when_one_is_there() {
    let place = Place::default();
    policy(&place);
    let mut server = Server::down();
    let mut exec = start(&place, &server.url);
    let pids = pids(&place);
    pause(WINDOW * 2);
    assert!(place.json(&["run", "list"])["runs"].as_array().unwrap().is_empty());
    server.start(&place);
    heard_of(&place);
    assert!(pids.iter().all(|pid| test_kill_process(*pid).is_ok()));
    std::fs::write(place.file("end"), "").unwrap();
    assert_eq!(exec.wait().unwrap().code(), Some(0));
    assert_eq!(only_run(&place)["status"], "completed");
    assert_eq!(place.json(&["run", "list"])["runs"].as_array().unwrap().len(), 1, "one command, one run");
}

#[test]
fn a_command_that_ended_without_a_server_is_recorded_too() {
    let place = Place::default();
    policy(&place);
    let mut server = Server::down();
    let arguments = ["exec", "--lane", "nightly", "--", "sh", "-c", "echo ran > ran; exit 4"];
    let mut exec = through(&place, &server.url, &arguments).stderr(Stdio::null()).spawn().unwrap();
    until("the command ran", || place.file("ran").exists());
    server.start(&place);
    assert_eq!(exec.wait().unwrap().code(), Some(4));
    assert_eq!((only_run(&place)["status"].clone(), types(&place).len() >= 3), (json!("failed"), true));
    // Whoever has no hour to wait says so.
    server.kill();
    let arguments = ["exec", "--lane", "nightly", "--report-for", "300ms", "--", "true"];
    let output = through(&place, &server.url, &arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("could not be recorded"), "{said}");
}

#[test]
fn without_the_server_that_it_requires_nothing_runs() {
    let place = Place::default();
    let server = Server::down();
    let arguments = ["exec", "--lane", "nightly", "--require-server", "--", "sh", "-c", "echo ran > ran"];
    let output = through(&place, &server.url, &arguments).output().unwrap();
    assert_eq!((output.status.code(), place.file("ran").exists()), (Some(1), false));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&server.url));
}

#[test]
fn an_outage_longer_than_the_window_ends_no_command_and_reaps_no_run() {
    let place = Place::default();
    policy(&place);
    let mut server = Server::up(&place);
    let mut exec = start(&place, &server.url);
    pids(&place);
    heard_of(&place);
    server.kill();
    let down = Instant::now();
    pause(WINDOW * 3);
    server.start(&place);
    let beats = only_run(&place)["beats"].clone();
    until("it is heard of again", || only_run(&place)["beats"] != beats);
    assert!(down.elapsed() > WINDOW);
    server.kill();
    // It ends while the server is down, and its end arrives all the same.
    std::fs::write(place.file("end"), "").unwrap();
    pause(WINDOW * 2);
    assert!(exec.try_wait().unwrap().is_none(), "it waits until its end is recorded");
    server.start(&place);
    assert_eq!(exec.wait().unwrap().code(), Some(0));
    assert_eq!(only_run(&place)["status"], "completed");
    assert!(!types(&place).contains(&"timed_out".to_owned()), "{:?}", types(&place));
}

#[test]
fn an_exec_that_was_stopped_for_longer_than_the_window_is_fenced() {
    let place = Place::default();
    policy(&place);
    let server = Server::up(&place);
    let mut exec = start(&place, &server.url);
    let pids = pids(&place);
    heard_of(&place);
    kill_process(Pid::from_child(&exec), Signal::STOP).unwrap();
    until("it is reaped", || only_run(&place)["status"] == "timed_out");
    kill_process(Pid::from_child(&exec), Signal::CONT).unwrap();
    assert_eq!(exec.wait().unwrap().code(), Some(75));
    gone(&pids);
    assert!(types(&place).ends_with(&["timed_out".to_owned(), "late_signal".to_owned()]), "{:?}", types(&place));
}

#[test]
fn a_cancelled_exec_ends_its_command() {
    let place = Place::default();
    policy(&place);
    let server = Server::up(&place);
    let mut exec = start(&place, &server.url);
    let pids = pids(&place);
    heard_of(&place);
    asked(&place, &server, &["run", "cancel", only_run(&place)["run"].as_str().unwrap()]);
    assert_eq!(exec.wait().unwrap().code(), Some(75));
    gone(&pids);
    assert_eq!(only_run(&place)["status"], "cancelled");
}

#[test]
fn the_death_of_one_server_of_two_reaps_nobody() {
    let place = Place::default();
    policy(&place);
    let (mut first, second) = (Server::up(&place), Server::up(&place));
    let mut exec = start(&place, &format!("{},{}", first.url, second.url));
    pids(&place);
    heard_of(&place);
    first.kill();
    let beats = only_run(&place)["beats"].as_u64().unwrap();
    until("the other one hears it", || only_run(&place)["beats"].as_u64() >= Some(beats + 5));
    std::fs::write(place.file("end"), "").unwrap();
    assert_eq!(exec.wait().unwrap().code(), Some(0));
    assert!(!types(&place).contains(&"timed_out".to_owned()), "{:?}", types(&place));
}

#[test]
fn a_unique_key_is_heeded_through_a_server() {
    let place = Place::default();
    policy(&place);
    place.json(&["lane", "set", "nightly", "--max-attempts", "2", "--retry-backoff-base", "300ms"]);
    let server = Server::up(&place);
    let keyed = |script: &str| {
        let arguments = ["exec", "--lane", "nightly", "--unique-key", "k", "--", "sh", "-c", script];
        let mut exec = through(&place, &server.url, &arguments);
        exec.stdin(Stdio::null());
        exec
    };
    let mut first = keyed("sleep 600").stderr(Stdio::null()).spawn().unwrap();
    until("the first was heard of", || {
        place.run(&["run", "list"]).status.success() && only_run(&place)["beats"].as_u64() >= Some(2)
    });
    let run = only_run(&place)["run"].as_str().unwrap().to_owned();
    let second = keyed("echo ran").output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!((second.status.code(), second.stdout.len()), (Some(1), 0));
    assert!(said.contains(&run) && said.contains("is running"), "{said}");
    kill_process(Pid::from_child(&first), Signal::KILL).unwrap();
    first.wait().unwrap();
    until("it is reaped and waits", || only_run(&place)["status"] == "pending");
    let third = keyed("echo $LASTBEAT_RUN $LASTBEAT_ATTEMPT").output().unwrap();
    assert_eq!(String::from_utf8(third.stdout).unwrap(), format!("{run} 2\n"));
}

#[test]
fn a_client_whose_runtime_is_blocked_for_ten_windows_keeps_beating() {
    let place = Place::default();
    policy(&place);
    let server = Server::up(&place);
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "lastbeat-client", "--examples"]);
    assert!(build.status().unwrap().success());
    let busy = lastbeat_acceptance::helper("examples").join("busy");
    let output = Command::new(busy).args([&server.url, "nightly", "10"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = only_run(&place);
    assert_eq!(run["status"], "completed");
    assert!(run["beats"].as_u64() >= Some(30), "{run}");
    assert!(!types(&place).contains(&"timed_out".to_owned()), "{:?}", types(&place));
}

#[test]
fn tokens_are_made_listed_and_revoked_through_a_server_as_on_the_store() {
    let place = Place::default();
    let server = Server::up(&place);
    let admin = place.json(&["token", "create", "--role", "admin", "--name", "ada"]);
    let through = |arguments: &[&str]| {
        let mut command = through(&place, &server.url, arguments);
        command.env("LASTBEAT_TOKEN", admin["token"].as_str().unwrap()).output().unwrap()
    };
    let ask = |arguments: &[&str]| json_of(&through(&[arguments, &["-o", "json"]].concat()));
    let bound = ["--executor", "mac-7", "--lane", "watcher", "--device", "d1", "--expires", "90d"];
    let create = |name| [&["token", "create", "--role", "executor", "--name", name][..], &bound].concat();
    until("the server knows its first token", || through(&["token", "list"]).status.success());
    let made = ask(&create("there"));
    let on_store = place.json(&create("here"));
    let fields = |document: &Value| document.as_object().unwrap().keys().cloned().collect::<Vec<String>>();
    assert_eq!(fields(&made), fields(&on_store));
    assert!(made["token"].as_str().unwrap().starts_with("lb_"));
    assert_eq!(
        (&made["executor"], &made["device"], &made["created_by"]),
        (&json!("mac-7"), &json!("d1"), &json!("ada"))
    );
    assert!(made["expires_at"].is_string(), "{made}");

    // What is refused is refused in the same words; a name means the same token.
    for refused in [&create("there")[..], &["token", "create", "--role", "auditor", "--name", "eye", "--lane", "a"]] {
        let error = |output: Output| String::from_utf8(output.stderr).unwrap();
        assert_eq!(error(through(refused)), error(place.run(refused)));
    }
    let unknown = String::from_utf8(through(&["token", "revoke", "nobody", "-o", "json"]).stderr).unwrap();
    assert!(unknown.contains("unknown_token"), "{unknown}");
    let revoked = ask(&["token", "revoke", "there"]);
    assert_eq!((&revoked["id"], &revoked["state"]), (&made["id"], &json!("revoked")));
    assert_eq!(revoked["revoked_by"], "ada");
    for form in ["table", "json", "jsonl"] {
        let list = ["token", "list", "-o", form];
        assert_eq!(through(&list).stdout, place.run(&list).stdout, "{form}");
    }
}
