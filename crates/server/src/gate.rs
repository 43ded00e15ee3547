//! What a request passes before a handler sees it: who asks, how often, and how many are asking already.
//!
//! There are three lanes. Heartbeats have one of their own, wide, and without a rate: a token that asked too much
//! elsewhere, or a crowd of slow questions, never costs a run its life. Claims may wait, so they are counted apart.
//! Everything else shares a number of places.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::app::App;
use crate::body::discard;
use crate::caller::Caller;
use crate::problem::Problem;

/// How long a request waits for a place before it is turned away.
const PLACE_WAIT: Duration = Duration::from_secs(5);

/// How long the body of a request is read that is refused whatever it says.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Lets in who may ask.
pub(crate) async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match Caller::of(&app, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => refuse(&app, request, problem).await,
    }
}

/// Lets through as many requests as there are places, each token not too often.
pub(crate) async fn share(State(app): State<App>, request: Request, next: Next) -> Response {
    if let Err(problem) = pace(&app, &request) {
        return refuse(&app, request, problem).await;
    }
    let running = app.clone();
    // In a task of its own: what it asks of the store is not to be broken off because somebody hangs up.
    let task = tokio::spawn(async move {
        let _place = match place(&running.requests).await {
            Ok(place) => place,
            Err(problem) => return refuse(&running, request, problem).await,
        };
        next.run(request).await
    });
    match timeout(app.limits.answer_time + PLACE_WAIT, task).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::error!(%error, "a handler did not end as it should");
            Problem::internal().into_response()
        }
        Err(_) => {
            let detail = format!("there was no answer within {:?}; ask for less, or later", app.limits.answer_time);
            Problem::unavailable("timeout", detail).into_response()
        }
    }
}

/// Lets claims through, as many as may wait at once.
pub(crate) async fn queue(State(app): State<App>, request: Request, next: Next) -> Response {
    if let Err(problem) = pace(&app, &request) {
        return refuse(&app, request, problem).await;
    }
    let Ok(_place) = app.claims.try_acquire() else {
        return refuse(&app, request, overloaded("too many claims wait for work")).await;
    };
    next.run(request).await
}

/// Lets heartbeats through. One that is turned away is noted: a server that does that must not charge for silence.
pub(crate) async fn beat(State(app): State<App>, request: Request, next: Next) -> Response {
    let Ok(_place) = app.beats.try_acquire() else {
        app.note_shed(1);
        return refuse(&app, request, overloaded("too many heartbeats at once")).await;
    };
    let response = next.run(request).await;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        app.note_shed(1);
    }
    response
}

/// Waits for a place among few.
pub(crate) async fn place(places: &Semaphore) -> Result<tokio::sync::SemaphorePermit<'_>, Problem> {
    match timeout(PLACE_WAIT, places.acquire()).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => Err(overloaded("too many requests are being answered")),
    }
}

fn pace(app: &App, request: &Request) -> Result<(), Problem> {
    let Some(token) = request.extensions().get::<Caller>().and_then(Caller::token) else { return Ok(()) };
    app.rates.take(token, Instant::now()).map_err(|wait| {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let detail = format!("this token asks too often; try again in {seconds} s (heartbeats are not counted)");
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).after(seconds)
    })
}

fn overloaded(what: &str) -> Problem {
    Problem::unavailable("overloaded", format!("{what}; try again"))
}

/// Turns a request away. Its body is read all the same, so that the answer is not lost to whoever still sends.
async fn refuse(app: &App, request: Request, problem: Problem) -> Response {
    discard(request.into_body(), app.limits.body_time.min(DISCARD_TIME)).await;
    problem.into_response()
}
