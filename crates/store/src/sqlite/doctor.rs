//! What the embedded store stands on: the file, SQLite, the clock, who listens, and what waits.

use std::path::Path;

use lastbeat_domain::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::open::SCHEMA_VERSION;
use super::read::{lanes, latest_at};
use super::source::Snapshot;
use crate::doctor::{self, Check};
use crate::error::StoreError;
use crate::service::ServiceLog;
use crate::truth::Source;

/// Below so much free space the disk is called nearly full.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;
/// Above so much the write-ahead log is called large: something keeps it from being written back.
const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Looks at everything. The connection holds a snapshot.
pub(super) async fn doctor(
    connection: &mut SqliteConnection,
    path: &Path,
    service: &ServiceLog,
    clock: Timestamp,
) -> Result<Vec<Check>, StoreError> {
    let now = clock.max(latest_at(connection).await?);
    let mut checks = vec![file(path), disk(path), file_system(path)];
    checks.extend(sqlite(connection).await?);
    checks.push(doctor::append_only(&Snapshot(connection).missing_triggers().await?));
    checks.push(write_ahead_log(path));
    checks.push(doctor::clock(service, clock, now));
    checks.push(doctor::listening(service, now));
    let (waiting, first): (i64, Option<i64>) =
        sqlx::query_as("SELECT count(*) FILTER (WHERE check_at <= ?), min(check_at) FROM due")
            .bind(now.as_micros())
            .fetch_one(&mut *connection)
            .await?;
    checks.push(doctor::backlog(service, waiting, first, now));
    checks.push(doctor::holds(service));
    checks.push(doctor::rearming(&lanes(connection, true).await?));
    let quarantined: i64 =
        sqlx::query_scalar("SELECT count(*) FROM runs WHERE quarantined IS NOT NULL").fetch_one(connection).await?;
    checks.push(doctor::newer_facts(service, quarantined));
    Ok(checks)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn file(path: &Path) -> Check {
    match std::fs::metadata(path) {
        Ok(data) if data.permissions().readonly() => Check::bad(
            "file",
            format!("{} is read-only", path.display()),
            "let this user write the file and its folder",
        ),
        Ok(data) => Check::fine("file", format!("{}, {}", path.display(), megabytes(data.len()))),
        Err(error) => Check::bad("file", format!("{}: {error}", path.display()), "name the file with --database"),
    }
}

fn disk(path: &Path) -> Check {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match rustix::fs::statvfs(folder) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let found = format!("{} free", megabytes(free));
            if free < FREE_BYTES_MIN {
                return Check::warning("disk", found, "make room: when the disk is full no heartbeat can be recorded");
            }
            Check::fine("disk", found)
        }
        Err(error) => Check::warning("disk", format!("{}: {error}", folder.display()), "look at the folder by hand"),
    }
}

/// Write-ahead logging shares memory between processes, which network file systems do not.
/// See <https://sqlite.org/wal.html>.
#[cfg(target_os = "linux")]
fn file_system(path: &Path) -> Check {
    // The magic numbers of statfs(2).
    const NETWORK: [(u64, &str); 5] =
        [(0x6969, "nfs"), (0xff53_4d42, "cifs"), (0xfe53_4d42, "smb2"), (0x0102_1997, "9p"), (0x6573_5546, "fuse")];
    match rustix::fs::statfs(path) {
        Ok(system) => {
            // The width and sign of the field differ between architectures.
            #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
            let magic = system.f_type as u64 & 0xffff_ffff;
            match NETWORK.iter().find(|(number, _)| *number == magic) {
                Some((_, name)) => Check::warning(
                    "file system",
                    format!("it is on {name}"),
                    "keep the file on a local disk: processes on a network file system can corrupt it",
                ),
                None => Check::fine("file system", "local"),
            }
        }
        Err(error) => Check::warning("file system", error.to_string(), "look at the folder by hand"),
    }
}

#[cfg(not(target_os = "linux"))]
fn file_system(_: &Path) -> Check {
    Check::fine("file system", "not looked at on this system; keep the file on a local disk")
}

async fn sqlite(connection: &mut SqliteConnection) -> Result<Vec<Check>, StoreError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut *connection).await?;
    let schema: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await?;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *connection).await?;
    let sound: Vec<String> = sqlx::query_scalar("PRAGMA quick_check(5)").fetch_all(connection).await?;
    let durable = mode == "wal" && synchronous == 2;
    Ok(vec![
        Check::fine("sqlite", format!("{version}, built in")),
        Check::fine("schema", format!("version {schema} of {SCHEMA_VERSION}")),
        if durable {
            Check::fine("durability", "write-ahead log, synchronous=FULL: what is acknowledged is on the disk")
        } else {
            let found = format!("journal mode {mode}, synchronous={synchronous}");
            Check::bad("durability", found, "open the file with this program only; it sets both")
        },
        if sound == ["ok"] {
            Check::fine("pages", "sound")
        } else {
            Check::bad("pages", sound.join("; "), "stop all writers and restore the last backup")
        },
    ])
}

fn write_ahead_log(path: &Path) -> Check {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    let bytes = std::fs::metadata(&name).map_or(0, |data| data.len());
    let found = megabytes(bytes);
    if bytes > WAL_BYTES_MAX {
        return Check::warning(
            "write-ahead log",
            found,
            "look for a process that reads for very long, such as an export",
        );
    }
    Check::fine("write-ahead log", found)
}
