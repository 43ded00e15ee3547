//! What executors say of an attempt, and what is done to a run by hand.

use axum::Json;
use axum::extract::State;
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::{ByHand, Command};
use lastbeat_domain::{ClaimId, RunId};
use lastbeat_wire::{AnswerDocument, CompleteRequest, FailRequest};
use lastbeat_wire::{ReasonRequest, ReportRequest, schema};

use crate::act::answered;
use crate::app::App;
use crate::body::{self, MaybeJson, Named};
use crate::caller::{Caller, permitted_run, unknown_run};
use crate::problem::{Problem, Refused};

/// Checks that the caller may report on a run under a claim. Who may report on every run is not held up by a read.
pub(crate) async fn check(
    app: &App,
    caller: &Caller,
    id: RunId,
    attempt: u32,
    claim: Option<&ClaimId>,
) -> Result<(), Problem> {
    if caller.may_always(Action::Report) {
        return Ok(());
    }
    let run = app.store().run(id).await?.ok_or_else(|| unknown_run(id))?;
    caller.check_report(&run, attempt, claim)?;
    if let (Some(token), Some(claim)) = (caller.token(), claim)
        && caller.holds(&run, claim)
    {
        app.owners.note(token, id, claim);
    }
    Ok(())
}

/// Says that work on an attempt began.
#[utoipa::path(
    post, path = "/v1/runs/{id}/start", tag = "executors", request_body = ReportRequest,
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run after it", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn start(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    body::Json(request): body::Json<ReportRequest>,
) -> Result<Json<AnswerDocument>, Problem> {
    check(&app, &caller, id, request.attempt, request.claim.as_ref()).await?;
    let report = request.about(id, caller.executor().cloned());
    answered(&app, &caller, Command::Start(report)).await.map(Json)
}

/// Says that the work is done.
#[utoipa::path(
    post, path = "/v1/runs/{id}/complete", tag = "executors", request_body = CompleteRequest,
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run after it", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn complete(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    body::Json(request): body::Json<CompleteRequest>,
) -> Result<Json<AnswerDocument>, Problem> {
    check(&app, &caller, id, request.attempt, request.claim.as_ref()).await?;
    let (report, output) = request.about(id, caller.executor().cloned());
    answered(&app, &caller, Command::Complete { report, output }).await.map(Json)
}

/// Says that the work failed.
#[utoipa::path(
    post, path = "/v1/runs/{id}/fail", tag = "executors", request_body = FailRequest,
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run after it", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn fail(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    body::Json(request): body::Json<FailRequest>,
) -> Result<Json<AnswerDocument>, Problem> {
    check(&app, &caller, id, request.attempt, request.claim.as_ref()).await?;
    let (report, error) = request.about(id, caller.executor().cloned());
    answered(&app, &caller, Command::Fail { report, error }).await.map(Json)
}

/// Says that the work was stopped, as it was asked to be.
#[utoipa::path(
    post, path = "/v1/runs/{id}/cancelled", tag = "executors", request_body = ReportRequest,
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run after it", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn cancelled(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    body::Json(request): body::Json<ReportRequest>,
) -> Result<Json<AnswerDocument>, Problem> {
    check(&app, &caller, id, request.attempt, request.claim.as_ref()).await?;
    let report = request.about(id, caller.executor().cloned());
    answered(&app, &caller, Command::AcknowledgeCancel(report)).await.map(Json)
}

/// Asks for a run to be cancelled; one that nobody holds is cancelled at once.
#[utoipa::path(
    post, path = "/v1/runs/{id}/cancel", tag = "runs", request_body(content = Option<ReasonRequest>),
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run after it", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    MaybeJson(request): MaybeJson<ReasonRequest>,
) -> Result<Json<AnswerDocument>, Problem> {
    permitted_run(&app, &caller, Action::Cancel, id).await?;
    answered(&app, &caller, Command::RequestCancel { run: id, by: caller.name(), reason: request.reason })
        .await
        .map(Json)
}

/// Lets a run that failed or timed out wait for another attempt.
#[utoipa::path(
    post, path = "/v1/runs/{id}/requeue", tag = "runs", request_body(content = Option<ReasonRequest>),
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run after it", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn requeue(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    MaybeJson(request): MaybeJson<ReasonRequest>,
) -> Result<Json<AnswerDocument>, Problem> {
    permitted_run(&app, &caller, Action::Requeue, id).await?;
    answered(&app, &caller, Command::Requeue { run: id, by: caller.name(), reason: request.reason }).await.map(Json)
}

/// Reaps a run that has lapsed, whatever hold and mode say. An executor may do it to free a unique key, as a sweeper
/// would: hold and mode are heeded then.
#[utoipa::path(
    post, path = "/v1/runs/{id}/reap", tag = "runs", request_body(content = Option<ReasonRequest>),
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run after it", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn reap(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    MaybeJson(request): MaybeJson<ReasonRequest>,
) -> Result<Json<AnswerDocument>, Problem> {
    let run = app.store().run(id).await?.ok_or_else(|| unknown_run(id))?;
    let by_hand = match caller.check_run(Action::Reap, &run) {
        Ok(()) => Some(ByHand { reason: request.reason }),
        Err(_) if run.unique_key.is_some() && caller.check_run(Action::FreeKey, &run).is_ok() => None,
        Err(problem) => return Err(problem),
    };
    answered(&app, &caller, Command::Reap { run: id, by: caller.name(), by_hand }).await.map(Json)
}
