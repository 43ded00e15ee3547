//! Problems: what a request is told that was not carried out, as RFC 9457 has it, with a code for programs.
//!
//! A handler returns a [`Problem`]. It is written out in one place, [`answer`](crate::answer), where the request's id is
//! known, and so are those that the framework gives: a path that is not there, a method that is not allowed.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastbeat_domain::decide::{Refusal, RefusalCode};
use lastbeat_store::{CommandError, StoreError};
use lastbeat_wire::answers::AskError;
use lastbeat_wire::problem::PROBLEM_JSON;
use lastbeat_wire::{Directive, Problem as ProblemDocument};
use serde_json::{Map, Value};

/// How many seconds a client is asked to wait while the database is away.
const RETRY_AFTER_SECONDS: u64 = 1;

/// How many runs are named that would lapse under a policy.
const NAMED_MAX: usize = 100;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The status of the response.
    pub status: StatusCode,
    /// Why, for programs.
    pub code: &'static str,
    /// Why, for people, and what to do.
    pub detail: String,
    /// After how many seconds the same may succeed.
    pub retry_after: Option<u64>,
    /// What else is to be said.
    pub more: Map<String, Value>,
}

/// In the description of the API: what any request may be told instead of its answer.
#[derive(utoipa::IntoResponses)]
#[response(status = "default", description = "a problem", content_type = "application/problem+json")]
#[allow(dead_code)] // It describes, and is never made.
pub(crate) struct Refused(ProblemDocument);

impl Problem {
    /// Makes a problem.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), retry_after: None, more: Map::new() }
    }

    /// Makes the problem of a field that cannot be taken.
    pub fn invalid(field: &str, why: impl std::fmt::Display) -> Problem {
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", format!("{field}: {why}"));
        problem.with("field", field.into())
    }

    /// Makes the problem of something that is not there, or that the caller may not see.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// Makes the problem of something that the caller may see, but not do.
    pub fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// Makes the problem of a server that cannot answer at the moment.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).after(RETRY_AFTER_SECONDS)
    }

    /// Makes the problem of a fault of this program; what it is stands in the log.
    pub(crate) fn internal() -> Problem {
        let detail = "the server could not carry this out; its log says why, under this request's id";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Problem {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// Says after how many seconds the same may succeed.
    #[must_use]
    pub fn after(mut self, seconds: u64) -> Problem {
        self.retry_after = Some(seconds);
        self
    }

    /// Writes the problem out for the request `request_id` of the path `instance`.
    pub(crate) fn written(&self, request_id: &str, instance: &str) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Problem");
        let document = ProblemDocument {
            instance: Some(instance.to_owned()),
            request_id: Some(request_id.to_owned()),
            extensions: self.more.clone(),
            ..ProblemDocument::new(self.status.as_u16(), title, self.code, self.detail.clone())
        };
        let body = serde_json::to_string(&document).unwrap_or_default();
        let content_type = (header::CONTENT_TYPE, PROBLEM_JSON);
        let mut response = (self.status, [content_type], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Says whether a report was refused because the run is no longer the executor's.
pub(crate) fn is_fenced(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::StaleAttempt | RefusalCode::Settled)
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Problem {
        let detail = error.to_string();
        let code = error.code().unwrap_or("internal");
        match error {
            AskError::Store(error) => error.into(),
            AskError::UnknownRun(_) | AskError::NotThereYet { .. } | AskError::NotReaped { .. } => {
                Problem::not_found(code, detail)
            }
            AskError::Alternative(error) => {
                let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
                match error.window() {
                    Some(window) => problem.with("field", format!("{window}_seconds").into()),
                    None => problem,
                }
            }
            AskError::TooManyExamples(_) => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail).with("field", "examples".into())
            }
            AskError::WouldLapse(runs) => {
                let named: Vec<Value> = runs.iter().take(NAMED_MAX).map(|run| run.to_string().into()).collect();
                let problem = Problem::new(StatusCode::CONFLICT, code, detail);
                problem.with("runs", named.into()).with("count", runs.len().into())
            }
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match refusal.code {
            RefusalCode::UnknownRun | RefusalCode::UnknownToken => StatusCode::NOT_FOUND,
            // The limits of fields name the field; a body over its limit never gets so far.
            RefusalCode::TooLarge | RefusalCode::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            RefusalCode::Busy | RefusalCode::Deaf => StatusCode::SERVICE_UNAVAILABLE,
            RefusalCode::PolicyChanged => StatusCode::PRECONDITION_FAILED,
            _ => StatusCode::CONFLICT,
        };
        let code = refusal.code.as_str();
        let mut problem = Problem::new(status, code, refusal.message);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            problem.retry_after = Some(RETRY_AFTER_SECONDS);
        }
        if status == StatusCode::UNPROCESSABLE_ENTITY
            && let Some((field, _)) = problem.detail.split_once(": ")
            && !field.contains(' ')
        {
            let field = field.to_owned();
            problem = problem.with("field", field.into());
        }
        if is_fenced(refusal.code) {
            problem = problem.with("directive", Directive::Stop.as_str().into());
        }
        match refusal.key_holder {
            Some(run) => problem.with("run", run.to_string().into()),
            None => problem,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match &error {
            StoreError::Unavailable(_) | StoreError::Closed => {
                tracing::warn!(%error, "the database is away");
                Problem::unavailable("unavailable", "the database is away at the moment; try again")
            }
            _ => {
                tracing::error!(%error, "the store failed");
                Problem::internal()
            }
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Problem {
        match error {
            CommandError::Refused(refusal) => refusal.into(),
            CommandError::Failed(error) => error.into(),
        }
    }
}
