//! Cursors: where a page ended, in a form that nobody takes apart.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastbeat_domain::RunId;

use crate::app::App;
use crate::problem::Problem;

/// How many things a page holds if nothing else is asked for.
const LIMIT_DEFAULT: u32 = 50;
/// How many it holds at the most.
const LIMIT_MAX: u32 = 500;

/// Writes a cursor.
pub(crate) fn cursor(of: impl std::fmt::Display) -> String {
    URL_SAFE_NO_PAD.encode(of.to_string())
}

/// Reads a cursor.
///
/// # Errors
/// If it is none that this API gave.
pub(crate) fn read<T: FromStr>(cursor: &str) -> Result<T, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(bad)
}

/// Reads a cursor that may be left out.
///
/// # Errors
/// If it is none that this API gave.
pub(crate) fn read_if<T: FromStr>(cursor: Option<&String>) -> Result<Option<T>, Problem> {
    cursor.map(|cursor| read(cursor)).transpose()
}

/// Reads the cursor of a list of runs.
///
/// # Errors
/// If it is none that this API gave for this store, or the store fails.
pub(crate) async fn run(app: &App, cursor: Option<&String>) -> Result<Option<RunId>, Problem> {
    let Some(run) = read_if::<RunId>(cursor)? else { return Ok(None) };
    if app.store().run(run).await?.is_none() {
        return Err(bad());
    }
    Ok(Some(run))
}

/// Reads a place in an order of numbers: a cursor, or the number itself, which events carry.
///
/// # Errors
/// If it is neither.
pub(crate) fn number(text: Option<&String>) -> Result<u64, Problem> {
    match text {
        None => Ok(0),
        Some(text) => text.parse().or_else(|_| read(text)),
    }
}

/// Checks how many things a page is to hold.
///
/// # Errors
/// If it is none, or too many.
pub(crate) fn limit(asked: Option<u32>) -> Result<usize, Problem> {
    match asked.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit as usize),
        other => Err(Problem::invalid("limit", format!("a page holds 1 to {LIMIT_MAX}, not {other}"))),
    }
}

fn bad() -> Problem {
    Problem::invalid("after", "this is no cursor that `next` gave")
}
