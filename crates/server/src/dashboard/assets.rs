//! The files beside the pages. They are part of the program, and known by what is in them: a browser keeps one for as
//! long as it likes, and asks for another when the program changes. While two versions of the program serve side by side,
//! a page of one may ask the other for its file: that one comes as it is, and is not kept.

use std::sync::LazyLock;

use axum::extract::{Path, Query};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::problem::Problem;

const STYLE: (&str, &str) = ("text/css; charset=utf-8", include_str!("assets/dashboard.css"));
const SCRIPT: (&str, &str) = ("text/javascript; charset=utf-8", include_str!("assets/dashboard.js"));
const ICON: (&str, &str) = ("image/svg+xml", include_str!("assets/icon.svg"));

/// The address of the style sheet.
pub(super) static STYLE_URL: LazyLock<String> = LazyLock::new(|| url("dashboard.css", STYLE.1));
/// The address of the script.
pub(super) static SCRIPT_URL: LazyLock<String> = LazyLock::new(|| url("dashboard.js", SCRIPT.1));
/// The address of the icon.
pub(super) static ICON_URL: LazyLock<String> = LazyLock::new(|| url("icon.svg", ICON.1));

fn url(name: &str, content: &str) -> String {
    format!("/assets/{name}?v={}", digest(content))
}

fn digest(content: &str) -> String {
    Sha256::digest(content).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Which content of a file is wanted.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    v: Option<String>,
}

/// Tells a file.
pub(super) async fn file(Path(name): Path<String>, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let (kind, content) = match name.as_str() {
        "dashboard.css" => STYLE,
        "dashboard.js" => SCRIPT,
        "icon.svg" => ICON,
        _ => return Err(Problem::not_found("no_such_route", "there is no such file")),
    };
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let is_it = wanted.v.is_some_and(|v| v == digest(content));
    let keep = if is_it { "public, max-age=31536000, immutable" } else { "no-store" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    Ok(response)
}
