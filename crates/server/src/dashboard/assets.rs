//! The files beside the pages. They are part of the program, and known by what is in them: a browser keeps one for as
//! long as it likes, and asks for another when the program changes.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
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
    let digest: String = Sha256::digest(content).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("/assets/{name}?v={digest}")
}

/// Tells a file.
pub(super) async fn file(Path(name): Path<String>) -> Result<Response, Problem> {
    let (kind, content) = match name.as_str() {
        "dashboard.css" => STYLE,
        "dashboard.js" => SCRIPT,
        "icon.svg" => ICON,
        _ => return Err(Problem::not_found("no_such_route", "there is no such file")),
    };
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    Ok(response)
}
