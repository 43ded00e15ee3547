//! What `doctor` finds, and the checks that are the same for every backend.

use lastbeat_domain::listening::{BeaconRole, counted, open_gap};
use lastbeat_domain::{Name, Span, Timestamp};
use serde::Serialize;

use crate::service::ServiceLog;

/// How long a run may be due without anybody looking at it, while somebody sweeps.
const OVERDUE_MAX: Span = Span::from_seconds(10);
/// How far log time may be ahead of the clock.
const AHEAD_MAX: Span = Span::from_seconds(2);

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Fine,
    /// Nothing is lost, but somebody should look at it.
    Warning,
    /// It does not work, or may lose something.
    Bad,
}

impl Health {
    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Health::Fine => "fine",
            Health::Warning => "warning",
            Health::Bad => "bad",
        }
    }
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do about it, if it is not fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
}

impl Check {
    pub(crate) fn fine(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, health: Health::Fine, found: found.into(), advice: None }
    }

    pub(crate) fn warning(name: &'static str, found: impl Into<String>, advice: &'static str) -> Check {
        Check { name, health: Health::Warning, found: found.into(), advice: Some(advice) }
    }

    pub(crate) fn bad(name: &'static str, found: impl Into<String>, advice: &'static str) -> Check {
        Check { name, health: Health::Bad, found: found.into(), advice: Some(advice) }
    }
}

pub(crate) fn clock(service: &ServiceLog, host: Timestamp, now: Timestamp) -> Check {
    let ahead = now.since(host);
    if ahead > AHEAD_MAX {
        let found = format!("log time is {ahead} ahead of the clock, so it stands still until the clock is there");
        let advice = "nobody is reaped wrongly, only late; set the clock, and keep it with NTP";
        return Check::warning("clock", found, advice);
    }
    match &service.clock_back {
        Some(back) => Check::fine("clock", format!("well now; it was set back once, noticed at {}", back.recorded_at)),
        None => Check::fine("clock", "log time follows the clock"),
    }
}

pub(crate) fn listening(service: &ServiceLog, now: Timestamp) -> Check {
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

/// How many runs wait for a look, and for how long the first one does.
pub(crate) fn backlog(service: &ServiceLog, waiting: i64, first: Option<i64>, now: Timestamp) -> Check {
    let late = first.map_or(Span::ZERO, |first| now.since(Timestamp::from_micros(first)));
    let found = format!("{waiting} runs to look at now, the first for {late}");
    let sweeps = !service.beacons.is_empty() && open_gap(&service.beacons, now).is_none();
    if late > OVERDUE_MAX && sweeps {
        Check::warning("backlog", found, "sweepers do not keep up: start another one, or look at their log")
    } else if waiting == 0 {
        Check::fine("backlog", "no run is overdue for a look")
    } else {
        Check::fine("backlog", found)
    }
}

pub(crate) fn holds(service: &ServiceLog) -> Check {
    let held: Vec<&str> =
        service.holds().filter(|(_, hold)| hold.state.is_held()).map(|(lane, _)| lane.as_str()).collect();
    if held.is_empty() {
        return Check::fine("holds", "no lane is held");
    }
    let advice = "find out what they have in common; then `lastbeat hold release LANE`, or wait for hold_max";
    Check::warning("holds", format!("held: {}", held.join(", ")), advice)
}

pub(crate) fn rearming(lanes: &[Name]) -> Check {
    if lanes.is_empty() {
        return Check::fine("policies", "in force for every open run");
    }
    let names: Vec<&str> = lanes.iter().map(Name::as_str).collect();
    let found = format!("set lately, and not yet in the index of every open run: {}", names.join(", "));
    Check::warning("policies", found, "the next pass of a sweeper does it; until then detection may be late")
}

pub(crate) fn newer_facts(service: &ServiceLog, runs: i64) -> Check {
    if runs == 0 && service.unknown == 0 {
        return Check::fine("newer facts", "every fact is understood");
    }
    let found = format!("{runs} runs and {} service events hold what a newer program wrote", service.unknown);
    Check::warning("newer facts", found, "use the newer program; those runs are not judged by this one")
}

pub(crate) fn append_only(missing: &[String]) -> Check {
    if missing.is_empty() {
        return Check::fine("append-only", "the database refuses to change the log");
    }
    let advice = "somebody dropped them: run `lastbeat verify`, and restore a backup if it finds more";
    Check::bad("append-only", format!("triggers are missing: {}", missing.join(", ")), advice)
}
