//! Finds what runs the tours of the API in other languages, or installs it.

use std::path::PathBuf;
use std::process::Command;

use crate::{Failure, apt_get, can_install, run, version_of, workspace_root};

/// What runs the tours, and the package that it comes in.
const PROGRAMS: [(&str, &str); 5] =
    [("curl", "curl"), ("jq", "jq"), ("python3", "python3"), ("node", "nodejs"), ("npm", "npm")];
/// The compiler that checks the page in TypeScript, and makes of it what Node runs.
const TYPESCRIPT: &str = "typescript@5.9.3";

/// Finds or installs all of it, and says so.
pub(crate) fn setup() -> Result<(), Failure> {
    let missing: Vec<(&str, &str)> = PROGRAMS.into_iter().filter(|(program, _)| !starts(program)).collect();
    if !missing.is_empty() {
        let programs = missing.iter().map(|(program, _)| *program).collect::<Vec<&str>>().join(", ");
        if !can_install() {
            let message =
                format!("{programs}: not found, and to install them here would take apt-get, and root or sudo");
            return Err(Failure { message, code: 1 });
        }
        eprintln!("xtask: {programs}: not found, so installed with apt-get");
        apt_get(&["update", "--quiet"])?;
        let packages = missing.iter().map(|(_, package)| *package);
        let install = ["install", "--yes", "--quiet", "--no-install-recommends"].into_iter().chain(packages);
        apt_get(&install.collect::<Vec<&str>>())?;
    }
    let fetches = Command::new("node").args(["--eval", "process.exit(typeof fetch === 'function' ? 0 : 1)"]).status();
    if !fetches.is_ok_and(|status| status.success()) {
        let message =
            format!("node {} has no `fetch`: install Node 18 or newer, https://nodejs.org", version_of("node"));
        return Err(Failure { message, code: 1 });
    }
    eprintln!("xtask: found curl, jq, python3 and node {}, which run the tours of the API", version_of("node"));
    let folder = workspace_root().join("target/typescript");
    if !compiler(&folder).exists() {
        eprintln!("xtask: {TYPESCRIPT} was not found: installing it from npm into target/typescript");
        let mut install = Command::new("npm");
        install.args(["install", "--silent", "--no-save", "--no-audit", "--no-fund", "--prefix"]).arg(&folder);
        run("npm", install.arg(TYPESCRIPT))?;
    }
    eprintln!("xtask: found {TYPESCRIPT} in target/typescript");
    Ok(())
}

fn compiler(folder: &std::path::Path) -> PathBuf {
    folder.join("node_modules/typescript/bin/tsc")
}

fn starts(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}
