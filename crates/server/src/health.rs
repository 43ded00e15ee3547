//! `/livez`, `/readyz` and `/metrics`: whether the process answers, whether it can carry anything out, and its figures.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastbeat_domain::access::Action;
use serde_json::json;

use crate::app::App;
use crate::caller::Caller;
use crate::metrics::CONTENT_TYPE;
use crate::problem::Problem;

/// How long the store may take to say what time it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells the figures of this process, for Prometheus.
pub(crate) async fn metrics(State(app): State<App>, caller: Caller) -> Result<Response, Problem> {
    caller.check(Action::SeeService)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.encode()).into_response())
}

/// Says that the process answers, whatever it can do.
pub(crate) async fn livez() -> Response {
    Json(json!({"status": "live"})).into_response()
}

/// Says whether requests can be carried out, and if not, why.
pub(crate) async fn readyz(State(app): State<App>) -> Response {
    let mut warnings = Vec::new();
    let reason = if app.shutdown.has_begun() {
        Some(("shutting_down", "the server is shutting down".to_owned()))
    } else {
        // In a task of its own: a read of the store is not to be broken off.
        let store = app.store.clone();
        let asked = tokio::spawn(async move { (store.now().await, store.service_log().await) });
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok((Ok(_), Ok(service)))) => {
                if let Some(back) = &service.clock_back {
                    warnings.push(format!("the database's clock was set back, noticed at {}", back.recorded_at));
                }
                None
            }
            Ok(Ok((Err(error), _) | (_, Err(error)))) => Some(("unavailable", error.to_string())),
            Ok(Err(_)) => Some(("internal", "the store could not be asked".to_owned())),
            Err(_) => Some(("unavailable", format!("the database did not answer within {PATIENCE:?}"))),
        }
    };
    match reason {
        None => Json(json!({"status": "ready", "warnings": warnings})).into_response(),
        Some((code, reason)) => {
            let document = json!({"status": "not_ready", "code": code, "reason": reason, "warnings": warnings});
            (StatusCode::SERVICE_UNAVAILABLE, Json(document)).into_response()
        }
    }
}
