//! What surrounds every request: its id, its log line, and the problem document where something went wrong.

use std::any::Any;
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use crate::app::App;
use crate::problem::Problem;
use crate::request_id::{self, RequestId};

/// Gives the request an id, has it answered, and writes down what came of it.
pub(crate) async fn answer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id = id.as_str());
    request.extensions_mut().insert(id.clone());
    let head_bytes = head_bytes(&request);
    let mut response = if head_bytes > app.limits.head_bytes {
        let detail = format!("the head has {head_bytes} bytes, at most {} are taken", app.limits.head_bytes);
        Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail).into_response()
    } else {
        next.run(request).instrument(span.clone()).await
    };
    if let Some(problem) = problem_of(&response, &method, &path) {
        let kept = response.headers().get(header::ALLOW).cloned();
        response = problem.written(id.as_str(), &path);
        if let Some(allow) = kept {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    let headers = response.headers_mut();
    if let Some(id) = id.header() {
        headers.insert(request_id::HEADER, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let (status, took) = (response.status().as_u16(), started.elapsed());
    span.in_scope(|| {
        if status >= 500 {
            tracing::warn!(%method, path, status, ?took, "answered");
        } else {
            tracing::debug!(%method, path, status, ?took, "answered");
        }
    });
    response
}

/// The problem that a response is to become: the handler's, or the one that stands for what the framework says.
fn problem_of(response: &Response, method: &Method, path: &str) -> Option<Problem> {
    if let Some(problem) = response.extensions().get::<Problem>() {
        return Some(problem.clone());
    }
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return None;
    }
    // A document or a page of our own says it better; what has another body comes from the framework.
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_ours = kind == "application/json" || kind.starts_with("text/html");
    if is_ours && response.body().size_hint().lower() > 0 {
        return None;
    }
    Some(match status {
        StatusCode::NOT_FOUND => Problem::not_found(
            "no_such_route",
            format!("there is nothing at {path}; /openapi.json lists what there is"),
        ),
        StatusCode::METHOD_NOT_ALLOWED => Problem::new(
            status,
            "method_not_allowed",
            format!("{method} is not for {path}; the header Allow says what is"),
        ),
        _ if status.is_server_error() => Problem::internal(),
        _ => Problem::new(status, "bad_request", status.canonical_reason().unwrap_or("the request cannot be taken")),
    })
}

/// Turns a panic, which is a fault of this program, into a problem; the message stays in the log.
#[allow(clippy::needless_pass_by_value, reason = "the layer hands the panic over like this")]
pub(crate) fn panicked(panic: Box<dyn Any + Send + 'static>) -> axum::http::Response<Body> {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(message, "a handler panicked");
    Problem::internal().into_response()
}

/// How long the head is, about: the request line and the headers.
fn head_bytes(request: &Request) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    headers.sum::<usize>() + target + 16
}

/// Says that a path leads nowhere.
pub(crate) async fn unknown_path(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}; /openapi.json lists what there is", uri.path());
    Problem::not_found("no_such_route", detail)
}
