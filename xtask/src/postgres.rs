//! Finds the PostgreSQL server that the tests start, or installs one.

use std::env;
use std::process::Command;

use crate::installed::{self, FOLDER_VARIABLE, Installed, OLDEST};
use crate::{Failure, apt_get, as_root, can_install, run};

/// Where Debian and Ubuntu look whether a new server is to make a cluster at once, which would run from then on.
const SWITCH: &str = "/etc/postgresql-common/createcluster.d/lastbeat.conf";

/// Makes sure that there is a server which is new enough.
pub(crate) fn setup() -> Result<(), Failure> {
    let missing = match installed::newest() {
        Ok(found) => {
            say_found(&found);
            return Ok(());
        }
        Err(missing) => missing,
    };
    if env::var_os(FOLDER_VARIABLE).is_some() {
        // Another server would not be used.
        return Err(Failure { message: missing, code: 1 });
    }
    let by_hand = format!(
        "no PostgreSQL server, version {OLDEST} or newer, was found in PATH or in /usr/lib/postgresql; install one \
         (a package `postgresql-server` or `postgresql-{OLDEST}` in most places, see \
         https://www.postgresql.org/download/), or name the folder of `initdb` and `postgres` in {FOLDER_VARIABLE}"
    );
    if !can_install() {
        let message = format!("{by_hand} (to do it here would take apt-get, and root or sudo)");
        return Err(Failure { message, code: 1 });
    }
    apt_get(&["update", "--quiet"])?;
    let Some(package) = newest_package() else {
        return Err(Failure { message: format!("{by_hand} (apt-get has none that is new enough)"), code: 1 });
    };
    eprintln!("xtask: installing {package} with apt-get: its programs only, no cluster is made or started");
    install(&package)?;
    let found = installed::newest().map_err(|missing| Failure { message: missing, code: 1 })?;
    say_found(&found);
    Ok(())
}

fn say_found(found: &Installed) {
    eprintln!("xtask: found PostgreSQL {} in {}", found.version, found.folder.display());
}

/// The newest package of a server that apt-get can install, if that is new enough.
fn newest_package() -> Option<String> {
    let output = Command::new("apt-cache").args(["search", "--names-only", "^postgresql-[0-9]+$"]).output().ok()?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let version = |line: &str| line.split_whitespace().next()?.strip_prefix("postgresql-")?.parse::<u32>().ok();
    let newest = listed.lines().filter_map(version).max().filter(|version| *version >= OLDEST)?;
    Some(format!("postgresql-{newest}"))
}

/// Installs the package while a switch keeps it from making a cluster; then the switch is taken away again.
fn install(package: &str) -> Result<(), Failure> {
    let set = "mkdir -p \"${1%/*}\" && echo 'create_main_cluster = false' >\"$1\"";
    run("set create_main_cluster = false", as_root("sh").args(["-c", set, "sh", SWITCH]))?;
    let installed = apt_get(&["install", "--yes", "--quiet", "--no-install-recommends", package]);
    run("take that setting back", as_root("rm").args(["-f", SWITCH]))?;
    installed
}
