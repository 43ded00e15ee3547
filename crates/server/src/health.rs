//! `/livez`, `/readyz` and `/metrics`: whether the process answers, whether it can carry anything out, and its figures.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastbeat_domain::access::Action;
use lastbeat_domain::event::ServiceRecorded;
use lastbeat_store::Store;
use serde_json::json;
use tokio::time::Instant;

use crate::app::App;
use crate::caller::Caller;
use crate::metrics::CONTENT_TYPE;
use crate::problem::Problem;

/// How long the store may take to say what time it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the answer to whether it is ready holds.
const FRESH_FOR: Duration = Duration::from_millis(100);

/// Tells the figures of this process, for Prometheus.
pub(crate) async fn metrics(State(app): State<App>, caller: Caller) -> Result<Response, Problem> {
    caller.check(Action::SeeService)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.encode()).into_response())
}

/// Says that the process answers, whatever it can do.
pub(crate) async fn livez() -> Response {
    Json(json!({"status": "live"})).into_response()
}

/// What came of asking the store whether it can carry anything out: warnings, or why not.
pub(crate) type Readiness = Result<Vec<String>, (&'static str, String)>;

/// Says whether requests can be carried out, and if not, why.
pub(crate) async fn readyz(State(app): State<App>) -> Response {
    let readiness = if app.shutdown.has_begun() {
        Err(("shutting_down", "the server is shutting down".to_owned()))
    } else {
        let late = |_| Err(("unavailable", format!("the database did not answer within {PATIENCE:?}")));
        tokio::time::timeout(PATIENCE, readiness(&app)).await.unwrap_or_else(late)
    };
    match readiness {
        Ok(warnings) => Json(json!({"status": "ready", "warnings": warnings})).into_response(),
        Err((code, reason)) => {
            let document = json!({"status": "not_ready", "code": code, "reason": reason, "warnings": []});
            (StatusCode::SERVICE_UNAVAILABLE, Json(document)).into_response()
        }
    }
}

/// Asks the store, unless somebody just did. Anybody may ask for it, so it costs one read at a time however many do.
async fn readiness(app: &App) -> Readiness {
    let mut known = Arc::clone(&app.readiness).lock_owned().await;
    if let Some((at, readiness)) = &*known
        && at.elapsed() < FRESH_FOR
    {
        return readiness.clone();
    }
    // In a task of its own: a read of the store is not to be broken off, and until it ends nobody begins another.
    let store = Arc::clone(&app.store);
    let asked = tokio::spawn(async move {
        let readiness = ask(store.as_ref()).await;
        *known = Some((Instant::now(), readiness.clone()));
        readiness
    });
    asked.await.unwrap_or_else(|_| Err(("internal", "the store could not be asked".to_owned())))
}

async fn ask(store: &dyn Store) -> Readiness {
    let asked = async {
        store.now().await?;
        store.service_log().await
    };
    // What the database says of itself is for the log: nobody was asked who they are.
    let service = asked.await.map_err(|error| {
        let problem = Problem::from(error);
        (problem.code, problem.detail)
    })?;
    let back = |back: &ServiceRecorded| format!("the database's clock was set back, noticed at {}", back.recorded_at);
    Ok(service.clock_back.iter().map(back).collect())
}
