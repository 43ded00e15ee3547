//! Writing answers: JSON for scripts, tables for people.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};
use lastbeat_domain::{Liveness, Status};
use lastbeat_store::{Health, Judged};
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Writes one JSON document on one line.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::new("internal", error.to_string()))?;
    line(&text)
}

/// Writes a line; colours are stripped where they are not wanted.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    writeln!(anstream::stdout(), "{text}")?;
    Ok(())
}

/// Writes a table with a heading.
pub(crate) fn table(heading: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let bold = Style::new().bold();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heading.iter().map(|word| format!("{bold}{word}{bold:#}")));
    for row in rows {
        table.add_row(row);
    }
    for text in table.lines() {
        line(text.trim_end())?;
    }
    Ok(())
}

/// Writes pairs of a name and a value, one a line.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> Result<(), Failure> {
    let dimmed = Style::new().dimmed();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in pairs {
        line(&format!("{dimmed}{name:width$}{dimmed:#}  {value}"))?;
    }
    Ok(())
}

/// A verdict in its colour.
pub(crate) fn liveness(liveness: Liveness) -> String {
    let colour = match liveness {
        Liveness::Live => AnsiColor::Green,
        Liveness::Quiet | Liveness::Presumed => AnsiColor::Yellow,
        Liveness::Lapsed | Liveness::Quarantined => AnsiColor::Red,
        Liveness::Waiting => AnsiColor::Cyan,
        Liveness::Settled => AnsiColor::BrightBlack,
    };
    let style = colour.on_default();
    format!("{style}{liveness}{style:#}")
}

/// How well something is, in its colour.
pub(crate) fn health(health: Health) -> String {
    let style = match health {
        Health::Fine => AnsiColor::Green,
        Health::Warning => AnsiColor::Yellow,
        Health::Bad => AnsiColor::Red,
    }
    .on_default();
    format!("{style}{}{style:#}", health.as_str())
}

/// A run as `run show` gives it.
pub(crate) fn shown(judged: &Judged) -> Value {
    let run = &judged.run;
    let outcome = run.outcome.as_ref().filter(|_| run.status.is_terminal());
    json!({
        "run": run.id, "lane": run.lane, "goal": run.goal, "device": run.device, "unique_key": run.unique_key,
        "labels": run.labels, "status": run.status, "attempt": run.attempt,
        "claim": run.claim.as_ref().and_then(|claim| claim.id.as_ref()), "executor": run.executor(),
        "created_at": run.created_at, "not_before": run.not_before, "claimed_at": run.claimed_at(),
        "started_at": run.started_at, "last_heartbeat_at": run.last_heartbeat_at(), "beats": run.beats,
        "progress": run.progress, "cancel_requested": run.cancel_requested, "version": run.version,
        "outcome": outcome.map(|outcome| &outcome.event), "verdict": judged.verdict.liveness,
        "rule": judged.verdict.rule(), "lapses_at": judged.verdict.lapses_at(), "deaf_since": judged.listening.deaf_since(),
        "at": judged.at,
    })
}

/// A run as a row of `run list`.
pub(crate) fn row(judged: &Judged) -> Vec<String> {
    let run = &judged.run;
    let dash = || "-".to_owned();
    vec![
        run.id.to_string(),
        run.lane.to_string(),
        run.goal.as_ref().map_or_else(dash, ToString::to_string),
        status(run.status),
        liveness(judged.verdict.liveness),
        run.attempt.to_string(),
        run.executor().map_or_else(dash, ToString::to_string),
        run.last_heartbeat_at().map_or_else(dash, |at| format!("{} ago", judged.at.since(at))),
        judged.verdict.lapses_at().map_or_else(dash, lastbeat_domain::Timestamp::to_the_second),
    ]
}

fn status(status: Status) -> String {
    status.to_string()
}

/// The heading of `run list`.
pub(crate) const HEADING: [&str; 9] =
    ["RUN", "LANE", "GOAL", "STATUS", "VERDICT", "ATTEMPT", "EXECUTOR", "LAST HEARD", "LAPSES AT"];
