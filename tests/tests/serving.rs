//! How a server is told what to be, and what it tells: settings, logs, reaps that are posted.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use lastbeat_acceptance::{Place, Started};
use serde_json::Value;

/// What `serve --print-config` says.
fn printed(place: &Place, environment: &[(&str, &str)], flags: &[&str]) -> String {
    let mut command = place.lastbeat(&[&["serve", "--print-config"][..], flags].concat());
    let output = command.envs(environment.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn flags_hide_the_environment_which_hides_the_file() {
    let place = Place::default();
    let file = "database = \"postgres://ada:secret1@db/beat\"\nlisten = \"127.0.0.1:1\"\nlog = \"debug\"\n\
                sweep_interval = \"9s\"\non_reap = \"http://127.0.0.1:9/\"\non_reap_secret = \"secret2\"\n\
                [limits]\nrate = 5.0\nburst = 6.0\n";
    std::fs::write(place.file("lastbeat.toml"), file).unwrap();
    let environment = [("LASTBEAT_LISTEN", "127.0.0.1:2"), ("LASTBEAT_SWEEP_INTERVAL", "off")];
    let printed =
        printed(&place, &environment, &["--listen", "127.0.0.1:3", "--limit", "burst=7", "--log-format", "json"]);
    for line in [
        "database = \"postgres://ada:********@db/beat\"",
        "listen = \"127.0.0.1:3\"",
        "sweep_interval = \"off\"",
        "log = \"debug\"",
        "log_format = \"json\"",
        "on_reap_secret = \"********\"",
        "rate = 5.0",
        "burst = 7.0",
    ] {
        assert!(printed.lines().any(|found| found == line), "no {line} in\n{printed}");
    }
    assert!(!printed.contains("secret1") && !printed.contains("secret2"), "{printed}");
    // What was printed is a file that says the same.
    std::fs::write(place.file("again.toml"), &printed).unwrap();
    assert_eq!(self::printed(&place, &[], &["--config", "again.toml"]), printed);
}

#[test]
fn a_key_that_nobody_knows_is_refused_with_its_line() {
    let place = Place::default();
    std::fs::write(place.file("lastbeat.toml"), "\nlisen = \"127.0.0.1:1\"\n").unwrap();
    let error = place.error(&["serve", "--print-config"]);
    assert_eq!(error["code"], "bad_config");
    assert!(error["message"].as_str().unwrap().starts_with("lastbeat.toml, line 2: unknown field `lisen`"), "{error}");
    std::fs::remove_file(place.file("lastbeat.toml")).unwrap();
    assert_eq!(place.error(&["serve", "--config", "nowhere.toml"])["code"], "bad_config");
    assert_eq!(place.error(&["serve", "--on-reap", "http://127.0.0.1:9/"])["code"], "bad_config");
}

#[test]
fn a_reap_is_posted_and_logged_as_json() {
    let place = Place::default();
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/reaped", receiver.local_addr().unwrap());
    std::fs::write(place.file("secret"), "hush\n").unwrap();
    place.json(&["lane", "set", "watcher", "--heartbeat-interval", "1s", "--heartbeat-window", "3s"]);
    let flags =
        ["--listen", "127.0.0.1:0", "--log-format", "json", "--on-reap", &url, "--on-reap-secret-file", "secret"];
    let mut command = place.lastbeat(&[&["serve"][..], &flags].concat());
    let mut server = Started::new(command.stderr(Stdio::piped()));
    let mut logs = BufReader::new(server.0.stderr.take().unwrap()).lines().map(|line| {
        let line = line.unwrap();
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    let starts = |event: &Value, text: &str| event["message"].as_str().is_some_and(|said| said.starts_with(text));
    assert!(logs.any(|event| starts(&event, "listening on http://127.0.0.1:")));

    let made = place.json(&["run", "create", "--lane", "watcher", "--claim", "mac-7"]);
    let (run, claim) = (made["run"].as_str().unwrap(), made["claim"].as_str().unwrap());
    place.json(&["run", "beat", run, "--attempt", "1", "--claim", claim]);
    let (mut stream, _) = receiver.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut signature, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("lastbeat-signature", value)) => signature = value.to_owned(),
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None if line.is_empty() => break,
            None => assert_eq!(line, "post /reaped http/1.1"),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&event["type"], &event["run"], &event["rule"]),
        (&"timed_out".into(), &run.into(), &"heartbeat_silence".into())
    );
    assert!(signature.starts_with("t=") && signature.contains(",v1="), "{signature}");
    assert!(logs.any(|event| starts(&event, "reaped: ") && event["run"] == run));
    server.terminate();
}
