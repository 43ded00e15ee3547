//! The boundaries that the architecture names, held against the sources.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The files with that ending under a folder of the workspace, with their text.
fn sources(folder: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no .{ending} under {folder}");
    found
}

/// What stands before the tests of a file.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn the_domain_depends_on_nothing_that_reads_a_clock_or_does_io() {
    let arguments = ["tree", "--package", "lastbeat-domain", "--edges", "normal", "--prefix", "none", "--depth", "1"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = tree.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["chrono", "serde", "serde_json", "thiserror", "uuid"]);
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let features = |name: &str| manifest.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(!features("chrono = ").contains("clock") && features("chrono = ").contains("default-features = false"));
    assert!(!features("uuid = ").contains("\"v7\"") && !features("uuid = ").contains("\"v4\""));
}

#[test]
fn the_domain_calls_nothing_impure() {
    let banned = [
        "::now()",
        "SystemTime",
        "std::time::Instant",
        "std::fs",
        "std::env",
        "std::net",
        "std::io",
        "std::process",
        "std::thread",
        "sqlx",
        "tokio",
        "rand::",
        "println!",
        "RandomState",
        "HashMap",
    ];
    for (path, text) in sources("crates/domain/src", "rs") {
        let code = without_tests(&text);
        for call in banned {
            assert!(!code.contains(call), "{} names `{call}`", path.display());
        }
    }
}

#[test]
fn nobody_but_the_rule_compares_a_time_with_a_window() {
    let windows = ["heartbeat_window", "coarse_ttl", "claim_window", "start_window", "max_runtime", "stall_window"];
    let compares =
        |line: &str| [" > ", " < ", " >= ", " <= ", ".cmp(", ".since("].iter().any(|sign| line.contains(sign));
    let folders = ["store", "sweeper", "wire", "client", "server", "cli"].map(|name| format!("crates/{name}/src"));
    for folder in &folders {
        for (path, text) in sources(folder, "rs") {
            for line in without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
                let names_a_window = windows.iter().any(|window| line.contains(window));
                assert!(!(names_a_window && compares(line)), "{}: {line}", path.display());
                // Nor by way of SQL: no statement compares when a run was heard of or claimed.
                // Whether a stamp comes after the run's last fact is a question of order, and one statement asks it.
                let line = line.replace("r.last_beat_at + r.since_at < $5", "");
                let heard =
                    ["last_beat_at", "claimed_at", "last_heartbeat_at"].iter().any(|column| line.contains(column));
                let sql = ["WHERE", " AND ", "ORDER BY"].iter().any(|word| line.contains(word));
                assert!(!(heard && sql && compares(&line)), "{}: {line}", path.display());
            }
        }
    }
    // In the domain the windows are read where they are defined, judged and explained, and compared only there.
    for (path, text) in sources("crates/domain/src", "rs") {
        let file = path.file_name().unwrap().to_str().unwrap();
        if !["policy.rs", "verdict.rs"].contains(&file) {
            for line in without_tests(&text).lines() {
                assert!(!(windows.iter().any(|window| line.contains(window)) && compares(line)), "{file}: {line}");
            }
        }
    }
}

#[test]
fn no_index_mentions_a_heartbeat_and_no_migration_a_window() {
    for (path, text) in sources("migrations", "sql") {
        for statement in text.split(';') {
            let index = statement.contains("INDEX");
            assert!(!(index && statement.contains("beat_at")), "{}: {statement}", path.display());
            assert!(!statement.contains("_window") && !statement.contains("coarse_ttl"), "{}", path.display());
        }
    }
}
