//! Bodies of requests: read whole, within limits of size and time, and understood or refused by name.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use lastbeat_wire::object::Object;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::problem::Problem;

/// How much more than the limit of a body is read and thrown away, so that the client hears why it is refused.
const DISCARDED_BYTES_MAX: usize = 64 << 20;

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

/// A JSON body that may be left out.
pub(crate) struct MaybeJson<T>(pub(crate) T);

/// The body of a batch, which has a limit of its own.
pub(crate) struct Batch<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Json<T>, Problem> {
        let bytes = json_bytes(request, app.limits.body_bytes, app.limits.body_time).await?;
        parse::<Object<T>>(&bytes).map(|object| Json(object.0))
    }
}

impl<T: DeserializeOwned + Default> FromRequest<App> for MaybeJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<MaybeJson<T>, Problem> {
        let is_json = is_json(request.headers());
        let bytes = read(request.into_body(), app.limits.body_bytes, app.limits.body_time).await?;
        match bytes.is_empty() {
            true => Ok(MaybeJson(T::default())),
            false if !is_json => Err(unsupported()),
            // Null is nothing, too.
            false => parse::<Option<Object<T>>>(&bytes).map(|read| MaybeJson(read.unwrap_or_default().0)),
        }
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Batch<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Batch<T>, Problem> {
        let bytes = json_bytes(request, app.limits.batch_bytes, app.limits.body_time).await?;
        parse::<Object<T>>(&bytes).map(|object| Batch(object.0))
    }
}

/// The body of a form, as it came.
pub(crate) struct FormBytes(pub(crate) Bytes);

impl FromRequest<App> for FormBytes {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<FormBytes, Problem> {
        let is_form = media_type(request.headers()) == "application/x-www-form-urlencoded";
        let bytes = read(request.into_body(), app.limits.body_bytes, app.limits.body_time).await?;
        let detail = "the body must be a form: send `content-type: application/x-www-form-urlencoded`";
        let unsupported = || Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
        if is_form { Ok(FormBytes(bytes)) } else { Err(unsupported()) }
    }
}

async fn json_bytes(request: Request, limit: usize, time: Duration) -> Result<Bytes, Problem> {
    let is_json = is_json(request.headers());
    let bytes = read(request.into_body(), limit, time).await?;
    if is_json { Ok(bytes) } else { Err(unsupported()) }
}

fn unsupported() -> Problem {
    let detail = "the body must be JSON: send `content-type: application/json`";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

fn media_type(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = media_type(headers);
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Reads a body to its end. One over the limit is read too, but not kept: a client that is answered while it still
/// sends may never see the answer.
async fn read(body: Body, limit: usize, time: Duration) -> Result<Bytes, Problem> {
    match tokio::time::timeout(time, collect(body, limit)).await {
        Ok(read) => read,
        Err(_) => {
            let detail = format!("the body did not arrive within {time:?}");
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail))
        }
    }
}

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let (mut kept, mut bytes) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "broken_body", format!("the body cannot be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        bytes = bytes.saturating_add(data.len());
        if bytes <= limit {
            kept.extend_from_slice(&data);
        } else if bytes > limit.saturating_add(DISCARDED_BYTES_MAX) {
            break;
        }
    }
    if bytes <= limit {
        return Ok(kept.into());
    }
    let detail = format!("the body has over {limit} bytes, which is the most that is taken; store it elsewhere");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail))
}

/// Reads what is left of a body, within limits, so that the client hears the answer.
pub(crate) async fn discard(body: Body, time: Duration) {
    let _ = tokio::time::timeout(time, collect(body, 0)).await;
}

/// Understands a body, or names the field that is wrong.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => {
                let why = without_place(&inner.to_string());
                let path = if path == "." { named_in(&why).unwrap_or("body").to_owned() } else { path };
                Problem::invalid(&path, why)
            }
            _ => broken(&inner),
        }
    })?;
    deserializer.end().map_err(|error| broken(&error))?;
    Ok(parsed)
}

fn broken(error: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "broken_json", format!("the body is not JSON: {error}"))
}

/// Leaves out line and column: the field says where it is.
fn without_place(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(what, _)| what).to_owned()
}

/// The field that is missing or unknown stands in the message.
fn named_in(message: &str) -> Option<&str> {
    let mut parts = message.split('`');
    parts.next().filter(|start| start.contains("field"))?;
    parts.next()
}

/// The parameters of a query.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Params<T>, Problem> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(params)) => Ok(Params(params)),
            Err(rejection) => {
                let text = rejection.body_text();
                let why = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, why)| why);
                match why.split_once(": ") {
                    Some((field, why)) if !field.contains(' ') => Err(Problem::invalid(field, why)),
                    _ => Err(Problem::invalid(named_in(why).unwrap_or("query"), why)),
                }
            }
        }
    }
}

/// The parts of the path that are named in a route.
pub(crate) struct Named<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Named<T>, Problem> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(named)) => Ok(Named(named)),
            // What cannot be an id or a name is the id or name of nothing.
            Err(rejection) => Err(Problem::not_found("not_found", rejection.body_text())),
        }
    }
}
