//! The table for people, and the JSON for scripts.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::row::{Row, Standing};

const HEADING: [&str; 6] = ["what", "measured", "beside", "ratio (min..max)", "goal", ""];

/// Prints the table, and below it the notes.
pub(crate) fn print(rows: &[Row], left_out: &[&str]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEADING);
    for row in rows {
        table.add_row(row.cells());
    }
    let mut out = std::io::stdout().lock();
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)?;
    for (name, note) in rows.iter().filter_map(Row::notes) {
        writeln!(out, "{name}: {note}.")?;
    }
    for what in left_out {
        writeln!(out, "Not measured: {what}.")?;
    }
    let of = |standing: Standing| rows.iter().filter(|row| row.standing() == standing).count();
    let (met, missed, fails) = (of(Standing::Met), of(Standing::Missed), of(Standing::Fails));
    writeln!(out, "\n{met} goals met, {} missed, {fails} of them required.", missed + fails)?;
    Ok(())
}

/// Writes the rows to a file, as one JSON list.
pub(crate) fn write_json(rows: &[Row], file: &Path) -> Result<()> {
    let list = Value::Array(rows.iter().map(Row::json).collect());
    let text = serde_json::to_string_pretty(&list)?;
    fs::write(file, text + "\n").with_context(|| format!("failed to write {}", file.display()))
}
