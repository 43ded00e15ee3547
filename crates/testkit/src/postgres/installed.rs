//! Finds the PostgreSQL server that is installed.
//!
//! `xtask` compiles this file too, so it needs the standard library only.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable that names the folder of `initdb` and `postgres`.
pub(crate) const FOLDER_VARIABLE: &str = "LASTBEAT_TEST_POSTGRES_BIN";

/// The oldest major version that Lastbeat works with.
pub(crate) const OLDEST: u32 = 15;

/// The programs of a PostgreSQL server.
pub(crate) struct Installed {
    /// The folder that holds `initdb` and `postgres`.
    pub(crate) folder: PathBuf,
    /// The version as PostgreSQL writes it, `15.4` for example.
    pub(crate) version: String,
}

/// Returns the newest server that is installed, or the one that the environment names; or else says what to do.
///
/// Distributions keep the server's programs out of `PATH`, and several versions side by side.
pub(crate) fn newest() -> Result<Installed, String> {
    if let Some(folder) = env::var_os(FOLDER_VARIABLE) {
        let folder = PathBuf::from(folder);
        return server_in(&folder).map(|(_, installed)| installed).ok_or_else(|| {
            format!(
                "{FOLDER_VARIABLE} is {}, where there are no `initdb` and `postgres` of PostgreSQL {OLDEST} or newer",
                folder.display()
            )
        });
    }
    let servers = candidates().into_iter().filter_map(|folder| server_in(&folder));
    servers.max_by_key(|(major, _)| *major).map(|(_, installed)| installed).ok_or_else(|| {
        format!(
            "no PostgreSQL server, version {OLDEST} or newer, was found in PATH or in /usr/lib/postgresql: \
             `cargo xtask setup` installs one, and {FOLDER_VARIABLE} can name the folder of one that is elsewhere"
        )
    })
}

/// The folders in which a server may be.
fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    // Last, because of two equal versions the last one is taken; those in `PATH` may be links to these.
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    folders.extend(versions.map(|version| version.path().join("bin")));
    folders
}

/// The server in a folder and its major version, if there is one that is new enough.
fn server_in(folder: &Path) -> Option<(u32, Installed)> {
    let server = folder.join("postgres");
    if !server.is_file() || !folder.join("initdb").is_file() {
        return None;
    }
    let output = Command::new(server).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said.split_whitespace().nth(2)?.to_owned();
    // Of `15.4`, and of `19devel`.
    let digits = version.split(|letter: char| !letter.is_ascii_digit()).next()?;
    let major = digits.parse().ok().filter(|major| *major >= OLDEST)?;
    Some((major, Installed { folder: folder.to_owned(), version }))
}
