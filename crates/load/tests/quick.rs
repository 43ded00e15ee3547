//! The small form runs to its end, and says of each backend what it measured.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

#[test]
fn the_small_form_measures_both_backends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("load.json");
    let own = PathBuf::from(env!("CARGO_BIN_EXE_lastbeat-load"));
    let program = own.with_file_name("lastbeat");
    assert!(program.exists(), "{} is not there: run `cargo build`, or `cargo xtask test`", program.display());
    let output =
        Command::new(own).args(["--quick", "--program"]).arg(program).arg("--json").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for backend in ["PostgreSQL", "SQLite"] {
        let of = |name: &str| {
            let found = figures.iter().find(|figure| figure["backend"] == backend && figure["name"] == name);
            found.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("no {name} of {backend}"))
        };
        assert!(of("single heartbeats, 64 connections") > 100.0 && of("heartbeats in batches of 1,000") > 1_000.0);
        let (lag, memory) = (of("detection lag: p99"), of("memory of serve at most"));
        assert!(lag > 0.0 && lag < 10_000.0 && memory > 1.0 && memory < 200.0, "{backend}: {lag} ms, {memory} MiB");
    }
}
