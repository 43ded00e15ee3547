//! Black-box tests of the binary `lastbeat`: what they share. The tests themselves are in `tests/`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// Returns the binary, built from the sources as they are.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let tests = std::env::current_exe().unwrap();
        let profile = tests.parent().and_then(Path::parent).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--workspace", "--bins"]);
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

/// A folder of its own with a database in it.
#[derive(Debug)]
pub struct Place {
    folder: tempfile::TempDir,
}

impl Default for Place {
    fn default() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }
}

impl Place {
    /// Returns the path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Begins a command line on the folder's database.
    pub fn lastbeat(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(self.folder.path()).env_remove("LASTBEAT_DATABASE_URL");
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

    /// Imports lines of events.
    pub fn import(&self, lines: &[Value]) -> Output {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let file = self.file("import.jsonl");
        std::fs::write(&file, text).unwrap();
        self.run(&["import", file.to_str().unwrap()])
    }
}
