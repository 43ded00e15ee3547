//! Runs: made, listed, looked at, explained.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::{Claimant, Command};
use lastbeat_domain::{ClaimId, Liveness, Name, RunId, Status, Timestamp};
use lastbeat_store::{Filter, Judged, ask};
use lastbeat_wire::answers;
use lastbeat_wire::{AnswerDocument, ClaimBy, CreateRequest};
use lastbeat_wire::{ReplayDocument, RunDocument, RunsPage, WhyDocument, schema};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::act::{execute, note_claim, once};
use crate::app::App;
use crate::body::{self, Named, Params};
use crate::caller::{Caller, permitted_run};
use crate::cursor;
use crate::gate::place;
use crate::problem::{Problem, Refused};

/// How many runs a list looks at before it is content with what it found.
const EXAMINED_MAX: usize = 20_000;

/// Makes a run, and claims it at once if asked to.
#[utoipa::path(
    post, path = "/v1/runs", tag = "runs", request_body = CreateRequest,
    params(("Idempotency-Key" = Option<schema::Name>, Header, description = "known by it, the request may be repeated for a day and gets its first answer")),
    responses(
        (status = 201, description = "the new run", body = AnswerDocument),
        (status = 200, description = "the open run that has the unique key", body = AnswerDocument),
        Refused,
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body::Json(request): body::Json<CreateRequest>,
) -> Result<Response, Problem> {
    let (spec, claim) = request.into();
    match &claim {
        Some(ClaimBy { executor, device }) => {
            let device = device.as_ref().or(caller.device());
            caller.check_claim(Action::CreateClaimed, &spec.lane, executor, device)?;
        }
        None => caller.check_lane(Action::Create, &spec.lane)?,
    }
    let claim = claim.map(|by| claimant(&caller, by.executor, by.device));
    let command = Command::Create { run: RunId::from_uuid(Uuid::now_v7()), spec: Box::new(spec), claim };
    let answer = execute(&app, once(&caller, &headers, command)?).await?;
    note_claim(&app, &caller, &answer);
    if let Some(judged) = answer.judged.as_deref().filter(|_| answer.existing) {
        let (see, free) = (Action::SeeRun, Action::FreeKey);
        if caller.check_run(see, &judged.run).is_err() && caller.check_run(free, &judged.run).is_err() {
            let detail = "an open run that this token may not see has the unique key";
            return Err(Problem::new(StatusCode::CONFLICT, "unique_key_open", detail));
        }
    }
    let mut document = AnswerDocument::after(&answer).ok_or_else(Problem::internal)?;
    caller.veil(&mut document.run);
    let place = format!("/v1/runs/{}", document.run.run);
    let status = if answer.existing { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, [(header::LOCATION, place)], Json(document)).into_response())
}

/// A claim with a fencing token of its own. A device that the token is bound to need not be said.
pub(crate) fn claimant(caller: &Caller, executor: Name, device: Option<Name>) -> Claimant {
    let device = device.or_else(|| caller.device().cloned());
    Claimant { executor, device, claim: ClaimId::from_uuid(Uuid::new_v4()) }
}

/// Which runs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// Only runs of this lane.
    #[param(value_type = Option<schema::Name>)]
    lane: Option<Name>,
    /// Only runs of this goal.
    #[param(value_type = Option<schema::Name>)]
    goal: Option<Name>,
    /// Only runs of these statuses, with commas between them.
    status: Option<String>,
    /// Only runs with this verdict.
    #[param(value_type = Option<schema::Liveness>)]
    verdict: Option<Liveness>,
    /// How many at the most.
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
    /// Where to begin: the `next` of the page before.
    #[param(min_length = 1)]
    after: Option<String>,
}

/// Lists runs, the newest first, judged now. A page may hold fewer than asked for, and still not be the last.
#[utoipa::path(
    get, path = "/v1/runs", tag = "runs", params(ListParams),
    responses(
        (status = 200, description = "a page of runs", body = RunsPage),
        Refused,
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<ListParams>,
) -> Result<Json<RunsPage>, Problem> {
    let limit = cursor::limit(params.limit)?;
    let statuses = statuses(params.status.as_deref())?;
    // Of one lane only that lane need be looked at.
    let lane = params.lane.or_else(|| match caller.lanes() {
        [only] => Some(only.clone()),
        _ => None,
    });
    let filter = Filter { lane, goal: params.goal, statuses };
    let _place = place(&app.searches).await?;
    let after = cursor::run(&app, params.after.as_ref()).await?;
    let keep = |judged: &Judged| {
        params.verdict.is_none_or(|verdict| judged.verdict.liveness == verdict) && caller.sees(&judged.run)
    };
    let page = ask::list_where(app.store(), &filter, keep, after, limit, EXAMINED_MAX).await?;
    let mut runs: Vec<RunDocument> = page.runs.iter().map(RunDocument::from).collect();
    runs.iter_mut().for_each(|run| caller.veil(run));
    Ok(Json(RunsPage { runs, next: page.next.map(cursor::cursor) }))
}

fn statuses(words: Option<&str>) -> Result<Vec<Status>, Problem> {
    let words = words.into_iter().flat_map(|words| words.split(',')).filter(|word| !word.is_empty());
    let status = |word: &str| {
        let read: Result<Status, serde::de::value::Error> = Status::deserialize(word.into_deserializer());
        read.map_err(|error| Problem::invalid("status", error))
    };
    words.map(status).collect()
}

/// Shows a run, judged now.
#[utoipa::path(
    get, path = "/v1/runs/{id}", tag = "runs", params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the run", body = RunDocument),
        Refused,
    )
)]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
) -> Result<Json<RunDocument>, Problem> {
    permitted_run(&app, &caller, Action::SeeRun, id).await?;
    let mut run = answers::run(app.store(), id).await?;
    caller.veil(&mut run);
    Ok(Json(run))
}

/// Of which instant a question is.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhyParams {
    /// As it was, or will be if nothing more is heard, at this instant of the log clock.
    #[param(value_type = Option<schema::Timestamp>)]
    at: Option<Timestamp>,
    /// Why this attempt was reaped.
    attempt: Option<u32>,
}

/// Says why a run was reaped, or why not yet, and when it would be.
#[utoipa::path(
    get, path = "/v1/runs/{id}/why", tag = "runs",
    params(("id" = schema::RunId, Path, description = "the run"), WhyParams),
    responses(
        (status = 200, description = "the verdict and its evidence", body = WhyDocument),
        Refused,
    )
)]
pub(crate) async fn why(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    Params(params): Params<WhyParams>,
) -> Result<Json<WhyDocument>, Problem> {
    let run = permitted_run(&app, &caller, Action::SeeRun, id).await?;
    // Then its stream is read.
    let reads_much = params.at.is_some() || params.attempt.is_some() || run.status.is_terminal();
    let _place = if reads_much { Some(place(&app.searches).await?) } else { None };
    Ok(Json(answers::why(app.store(), id, params.at, params.attempt).await?))
}

/// Up to which instant to replay.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayParams {
    /// Up to this instant of the log clock; left out: up to now.
    #[param(value_type = Option<schema::Timestamp>)]
    at: Option<Timestamp>,
}

/// Replays a run from its log alone: what the rule said of it at each instant.
#[utoipa::path(
    get, path = "/v1/runs/{id}/replay", tag = "runs",
    params(("id" = schema::RunId, Path, description = "the run"), ReplayParams),
    responses(
        (status = 200, description = "the verdicts, one after the other", body = ReplayDocument),
        Refused,
    )
)]
pub(crate) async fn replay(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    Params(params): Params<ReplayParams>,
) -> Result<Json<ReplayDocument>, Problem> {
    permitted_run(&app, &caller, Action::SeeRun, id).await?;
    let _place = place(&app.searches).await?;
    let mut replay = answers::replay(app.store(), id, params.at).await?;
    caller.veil(&mut replay.state);
    Ok(Json(replay))
}
