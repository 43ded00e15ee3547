//! What the embedded store stands on: the file, SQLite, the clock, who listens, and what waits.

use std::path::Path;

use lastbeat_domain::listening::{BeaconRole, counted, open_gap};
use lastbeat_domain::{Span, Timestamp};
use sqlx::sqlite::SqliteConnection;

use super::open::SCHEMA_VERSION;
use super::read::{lanes, latest_at};
use super::verify::missing_triggers;
use crate::doctor::Check;
use crate::error::StoreError;
use crate::service::ServiceLog;

/// Below so much free space the disk is called nearly full.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;
/// Above so much the write-ahead log is called large: something keeps it from being written back.
const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long a run may be due without anybody looking at it, while somebody sweeps.
const OVERDUE_MAX: Span = Span::from_seconds(10);
/// How far log time may be ahead of the clock.
const AHEAD_MAX: Span = Span::from_seconds(2);

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
    checks.push(append_only(connection).await?);
    checks.push(write_ahead_log(path));
    checks.push(clock_check(service, clock, now));
    checks.push(listening(service, now));
    checks.push(due(connection, service, now).await?);
    checks.push(holds(service));
    checks.push(rearming(connection).await?);
    checks.push(quarantine(connection, service).await?);
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

async fn append_only(connection: &mut SqliteConnection) -> Result<Check, StoreError> {
    let missing = missing_triggers(connection).await?;
    if missing.is_empty() {
        return Ok(Check::fine("append-only", "the database refuses to change the log"));
    }
    let advice = "somebody dropped them: run `lastbeat verify`, and restore a backup if it finds more";
    Ok(Check::bad("append-only", format!("triggers are missing: {}", missing.join(", ")), advice))
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

fn clock_check(service: &ServiceLog, clock: Timestamp, now: Timestamp) -> Check {
    let ahead = now.since(clock);
    if ahead > AHEAD_MAX {
        let found =
            format!("log time is {ahead} ahead of the host's clock, so it stands still until the clock is there");
        let advice = "nobody is reaped wrongly, only late; set the clock, and keep it with NTP";
        return Check::warning("clock", found, advice);
    }
    match &service.clock_back {
        Some(back) => Check::fine("clock", format!("well now; it was set back once, noticed at {}", back.recorded_at)),
        None => Check::fine("clock", "log time follows the host's clock"),
    }
}

fn listening(service: &ServiceLog, now: Timestamp) -> Check {
    let servers = service.beacons.iter().any(|beacon| beacon.role == BeaconRole::Serve);
    let heard: Vec<String> =
        counted(&service.beacons).map(|beacon| format!("{} ({} ago)", beacon.process, now.since(beacon.at))).collect();
    if let Some(gap) = open_gap(&service.beacons, now) {
        let found = format!("nobody has listened since {}; last heard: {}", gap.since, heard.join(", "));
        let advice = if servers {
            "start the server again; if it is gone for good, run `lastbeat sweep --local`"
        } else {
            "start `lastbeat sweep` again; until then nobody is reaped, and the time is charged to nobody"
        };
        return Check::warning("listening", found, advice);
    }
    if heard.is_empty() {
        let advice = "run `lastbeat sweep`, or `lastbeat sweep --once --every 1m` from cron";
        return Check::warning("listening", "nobody sweeps: lapsed runs are shown as lapsed, and not reaped", advice);
    }
    Check::fine("listening", heard.join(", "))
}

async fn due(connection: &mut SqliteConnection, service: &ServiceLog, now: Timestamp) -> Result<Check, StoreError> {
    let first: Option<i64> = sqlx::query_scalar("SELECT min(check_at) FROM due").fetch_one(&mut *connection).await?;
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM due WHERE check_at <= ?")
        .bind(now.as_micros())
        .fetch_one(connection)
        .await?;
    let late = first.map_or(Span::ZERO, |first| now.since(Timestamp::from_micros(first)));
    let found = format!("{waiting} runs to look at now, the first for {late}");
    let sweeps = !service.beacons.is_empty() && open_gap(&service.beacons, now).is_none();
    Ok(if late > OVERDUE_MAX && sweeps {
        Check::warning("backlog", found, "sweepers do not keep up: start another one, or look at their log")
    } else if waiting == 0 {
        Check::fine("backlog", "no run is overdue for a look")
    } else {
        Check::fine("backlog", found)
    })
}

fn holds(service: &ServiceLog) -> Check {
    let held: Vec<&str> =
        service.holds().filter(|(_, hold)| hold.state.is_held()).map(|(lane, _)| lane.as_str()).collect();
    if held.is_empty() {
        return Check::fine("holds", "no lane is held");
    }
    let advice = "find out what they have in common; then `lastbeat hold release LANE`, or wait for hold_max";
    Check::warning("holds", format!("held: {}", held.join(", ")), advice)
}

async fn rearming(connection: &mut SqliteConnection) -> Result<Check, StoreError> {
    let lanes = lanes(connection, true).await?;
    if lanes.is_empty() {
        return Ok(Check::fine("policies", "in force for every open run"));
    }
    let names: Vec<&str> = lanes.iter().map(lastbeat_domain::Name::as_str).collect();
    let found = format!("set lately, and not yet in the index of every open run: {}", names.join(", "));
    Ok(Check::warning("policies", found, "the next pass of a sweeper does it; until then detection may be late"))
}

async fn quarantine(connection: &mut SqliteConnection, service: &ServiceLog) -> Result<Check, StoreError> {
    let runs: i64 =
        sqlx::query_scalar("SELECT count(*) FROM runs WHERE quarantined IS NOT NULL").fetch_one(connection).await?;
    if runs == 0 && service.unknown == 0 {
        return Ok(Check::fine("newer facts", "every fact is understood"));
    }
    let found = format!("{runs} runs and {} service events hold what a newer program wrote", service.unknown);
    Ok(Check::warning("newer facts", found, "use the newer program; those runs are not judged by this one"))
}
