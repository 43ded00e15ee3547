//! Who runs the server: PostgreSQL refuses to run as root.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The account that runs the server: another one than ours where we are root.
pub(super) struct Account {
    other: Option<(u32, u32)>,
}

impl Account {
    /// Chooses an account: `postgres` if there is one, or else `nobody`, for root; for others their own.
    pub(super) fn choose() -> Account {
        if !rustix::process::geteuid().is_root() {
            return Account { other: None };
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let other = ["postgres", "nobody"].iter().find_map(|name| ids(&users, name));
        assert!(other.is_some(), "PostgreSQL doesn't run as root, and there is no user `postgres` or `nobody`");
        Account { other }
    }

    /// Makes a program that the account runs.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((user, group)) = self.other {
            command.uid(user).gid(group);
        }
        command
    }

    /// Makes an empty folder that belongs to the account, under the folder for temporary files.
    pub(super) fn folder(&self) -> PathBuf {
        let mut parent = std::env::temp_dir();
        if self.other.is_some() && !anyone_passes(&parent) {
            // Root's own folder for temporary files may lie where nobody else gets to.
            parent = "/tmp".into();
        }
        let folder = tempfile::Builder::new().prefix("lastbeat-postgres-").tempdir_in(&parent).unwrap().keep();
        if let Some((user, group)) = self.other {
            chown(&folder, Some(user), Some(group)).unwrap();
        }
        // PostgreSQL's processes are told by the folder they are in, which has no symbolic links in its name.
        folder.canonicalize().unwrap()
    }
}

/// The user's and the group's id in the text of `/etc/passwd`.
fn ids(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// Whether every account may pass through a folder and those above it.
fn anyone_passes(folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    folder.ancestors().all(|folder| folder.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::ids;

    #[test]
    fn ids_are_those_of_the_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/bash\npostgresql:x:7:8::/:\npostgres:x:101:104:,,,:/var:/bin/bash\n";
        assert_eq!(ids(users, "postgres"), Some((101, 104)));
        assert_eq!(ids(users, "nobody"), None);
    }
}
