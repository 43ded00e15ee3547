//! Writing answers: JSON for scripts, tables for people.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};
use lastbeat_domain::{Liveness, Timestamp};
use lastbeat_store::Health;
use lastbeat_wire::RunDocument;
use serde::Serialize;

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

/// A run as a row of `run list`.
pub(crate) fn row(run: &RunDocument) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        run.run.to_string(),
        run.lane.to_string(),
        run.goal.as_ref().map_or_else(dash, ToString::to_string),
        run.status.to_string(),
        liveness(run.verdict),
        run.attempt.to_string(),
        run.executor.as_ref().map_or_else(dash, ToString::to_string),
        run.last_heartbeat_at.map_or_else(dash, |at| format!("{} ago", run.at.since(at))),
        run.lapses_at.map_or_else(dash, Timestamp::to_the_second),
    ]
}

/// The heading of `run list`.
pub(crate) const HEADING: [&str; 9] =
    ["RUN", "LANE", "GOAL", "STATUS", "VERDICT", "ATTEMPT", "EXECUTOR", "LAST HEARD", "LAPSES AT"];
