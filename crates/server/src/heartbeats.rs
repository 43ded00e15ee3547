//! Heartbeats: the load. One is one small write, and a thousand from one host are one too.
//!
//! Nothing is read on the way. Whether a claim is the caller's is looked up once, where the claim was not made through
//! this process, and [kept](crate::owners). What the decision refuses is looked up too, to see what the caller may be
//! told. A heartbeat without a claim, from a token that is not for every run, costs a read each time.

use axum::Json;
use axum::extract::State;
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::Command;
use lastbeat_domain::{ClaimId, Name, RefusalCode, RunId};
use lastbeat_store::{CommandError, Outcome};
use lastbeat_wire::{Beat, BeatResult, BeatsDocument, BeatsRequest, HeartbeatDocument, HeartbeatRequest};
use lastbeat_wire::{Problem as ProblemDocument, schema};

use crate::app::App;
use crate::body::{self, Batch, Named};
use crate::caller::Caller;
use crate::problem::{Problem, Refused, is_fenced};
use crate::reports::check;

/// How many heartbeats a batch has at the most.
const BATCH_MAX: usize = 1_000;

/// Says that work on an attempt goes on. The answer says what to do next.
#[utoipa::path(
    post, path = "/v1/runs/{id}/heartbeat", tag = "executors", request_body = HeartbeatRequest,
    params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "it was heard", body = HeartbeatDocument),
        (status = 409, description = "fenced: the run is no longer this executor's, `directive` is `stop`", body = ProblemDocument, content_type = "application/problem+json"),
        Refused,
    )
)]
pub(crate) async fn one(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    body::Json(request): body::Json<HeartbeatRequest>,
) -> Result<Json<HeartbeatDocument>, Problem> {
    let (attempt, claim) = (request.attempt, request.claim.clone());
    if !goes_straight(&app, &caller, id, claim.as_ref()) {
        check(&app, &caller, id, attempt, claim.as_ref()).await?;
    }
    let (report, progress) = request.about(id, caller.executor().cloned());
    let command = Command::Heartbeat { report, progress };
    let outcome = app.store().execute(vec![command]).await.pop().ok_or_else(Problem::internal)?;
    app.metrics.heard(&outcome);
    match outcome {
        Ok(answer) => Ok(Json(answer.heard.as_ref().map(HeartbeatDocument::from).ok_or_else(Problem::internal)?)),
        Err(error) => {
            if matches!(error, CommandError::Refused(_)) {
                check(&app, &caller, id, attempt, claim.as_ref()).await?;
            }
            Err(error.into())
        }
    }
}

/// Plain heartbeats of many runs at once. Each is answered for itself, in the order of the request.
#[utoipa::path(
    post, path = "/v1/heartbeats", tag = "executors", request_body = BeatsRequest,
    responses(
        (status = 200, description = "what became of each", body = BeatsDocument),
        Refused,
    )
)]
pub(crate) async fn many(
    State(app): State<App>,
    caller: Caller,
    Batch(request): Batch<BeatsRequest>,
) -> Result<Json<BeatsDocument>, Problem> {
    let beats = request.beats;
    if beats.len() > BATCH_MAX {
        let why = format!("{} of them, at most {BATCH_MAX} are taken at once", beats.len());
        return Err(Problem::invalid("beats", why));
    }
    if caller.executor().is_none() {
        caller.check(Action::Report)?;
    }
    let mut results: Vec<Option<BeatResult>> = vec![None; beats.len()];
    let (mut commands, mut sent) = (Vec::with_capacity(beats.len()), Vec::with_capacity(beats.len()));
    for (index, beat) in beats.into_iter().enumerate() {
        if !goes_straight(&app, &caller, beat.run, beat.claim.as_ref())
            && let Err(problem) = check(&app, &caller, beat.run, beat.attempt, beat.claim.as_ref()).await
        {
            results[index] = Some(BeatResult::failed(beat.run, problem.code, problem.detail));
            continue;
        }
        sent.push((index, beat.clone()));
        commands.push(Command::Heartbeat { report: beat.report(caller.executor().cloned()), progress: None });
    }
    let (outcomes, mut lost) = (app.store().execute(commands).await, 0);
    for ((index, beat), outcome) in sent.into_iter().zip(outcomes) {
        app.metrics.heard(&outcome);
        lost += u64::from(matches!(outcome, Err(CommandError::Failed(_))));
        results[index] = Some(result(&app, &caller, &beat, outcome).await);
    }
    if lost > 0 {
        app.note_shed(lost);
    }
    Ok(Json(BeatsDocument { results: results.into_iter().flatten().collect() }))
}

/// Says whether a heartbeat may be decided without looking whose run it is.
fn goes_straight(app: &App, caller: &Caller, run: RunId, claim: Option<&ClaimId>) -> bool {
    let is_known = |token: &Name| claim.is_some_and(|claim| app.owners.knows(token, run, claim));
    caller.may_always(Action::Report) || caller.token().is_some_and(is_known)
}

async fn result(app: &App, caller: &Caller, beat: &Beat, outcome: Outcome) -> BeatResult {
    let (run, attempt, claim) = (beat.run, beat.attempt, beat.claim.as_ref());
    let failed = |problem: Problem| BeatResult::failed(run, problem.code, problem.detail);
    match outcome {
        Ok(answer) => match &answer.heard {
            Some(heard) => BeatResult::taken(&heard.into()),
            None => failed(Problem::internal()),
        },
        Err(CommandError::Refused(refusal)) => {
            let is_unknown = refusal.code == RefusalCode::UnknownRun;
            match if is_unknown { Ok(()) } else { check(app, caller, run, attempt, claim).await } {
                Err(hidden) => failed(hidden),
                Ok(()) if is_fenced(refusal.code) => BeatResult::fenced(run),
                Ok(()) => failed(refusal.into()),
            }
        }
        Err(error) => failed(error.into()),
    }
}
