//! Claims: the next run to work on, now or as soon as there is one.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::{Claimant, Command};
use lastbeat_domain::{Name, RefusalCode};
use lastbeat_store::{Answer, CommandError};
use lastbeat_wire::{AnswerDocument, ClaimRequest, schema};
use tokio::time::Instant;
use uuid::Uuid;

use crate::act::{note_claim, once};
use crate::app::App;
use crate::body;
use crate::caller::{Caller, permitted_run};
use crate::problem::{Problem, Refused};
use crate::runs::claimant;

/// The longest that a claim waits.
const WAIT_MAX: f64 = 60.0;
/// How many lanes a claim names at the most.
const LANES_MAX: usize = 64;
/// How often a claim that waits looks for what nobody told it of: runs of other processes, and runs that became due.
const LOOK_AGAIN: Duration = Duration::from_millis(750);
/// How much longer that takes for each claim that waits, so that many of them don't keep the store busy.
const LOOK_AGAIN_EACH: Duration = Duration::from_millis(4);

/// Takes the run that has waited longest in the lanes, or the one that is named.
#[utoipa::path(
    post, path = "/v1/claims", tag = "executors", request_body = ClaimRequest,
    params(("Idempotency-Key" = Option<schema::Name>, Header, description = "known by it, the request may be repeated for a day and gets its first answer")),
    responses(
        (status = 200, description = "the run, with its claim and its input", body = AnswerDocument),
        (status = 204, description = "no run waits"),
        Refused,
    )
)]
pub(crate) async fn claim(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body::Json(request): body::Json<ClaimRequest>,
) -> Result<Response, Problem> {
    let wait = wait(request.wait_seconds)?;
    let claimant = claimant(&caller, request.executor, request.device);
    let (lanes, command) = match request.run {
        Some(id) => {
            let run = permitted_run(&app, &caller, Action::ClaimRun, id).await?;
            if !request.lanes.is_empty() && !request.lanes.contains(&run.lane) {
                return Err(Problem::invalid("lanes", format!("run {id} is in lane {}", run.lane)));
            }
            check(&caller, std::slice::from_ref(&run.lane), &claimant)?;
            (Vec::new(), Command::ClaimRun { run: id, claimant })
        }
        None => {
            let lanes = if request.lanes.is_empty() { caller.lanes().to_vec() } else { request.lanes };
            if lanes.is_empty() || lanes.len() > LANES_MAX {
                return Err(Problem::invalid("lanes", format!("name 1 to {LANES_MAX} lanes")));
            }
            check(&caller, &lanes, &claimant)?;
            (lanes.clone(), Command::Claim { lanes, claimant })
        }
    };
    let command = once(&caller, &headers, command)?;
    match obtain(&app, &caller, command, &lanes, wait).await? {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(answer) => {
            note_claim(&app, &caller, &answer);
            let document = AnswerDocument::after(&answer).ok_or_else(Problem::internal)?;
            Ok(Json(document).into_response())
        }
    }
}

fn check(caller: &Caller, lanes: &[Name], claimant: &Claimant) -> Result<(), Problem> {
    let check = |lane| caller.check_claim(Action::Claim, lane, &claimant.executor, claimant.device.as_ref());
    lanes.iter().try_for_each(check)
}

fn wait(seconds: Option<f64>) -> Result<Duration, Problem> {
    match seconds.unwrap_or(0.0) {
        seconds if (0.0..=WAIT_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(Problem::invalid("wait_seconds", format!("from 0 to {WAIT_MAX}"))),
    }
}

/// Claims, and while there is nothing to claim waits for it. Who hangs up meanwhile takes no run that comes later.
/// Nor does a token that was revoked meanwhile.
async fn obtain(
    app: &App,
    caller: &Caller,
    command: Command,
    lanes: &[Name],
    wait: Duration,
) -> Result<Option<Answer>, Problem> {
    let until = Instant::now() + wait;
    loop {
        // In the queue before the look, so that what comes in between is not missed.
        let mut place = app.work.wait_in(lanes);
        match app.store().execute(vec![command.clone()]).await.pop().ok_or_else(Problem::internal)? {
            Ok(answer) => return Ok(Some(answer)),
            Err(CommandError::Refused(refusal)) if refusal.code == RefusalCode::NothingToClaim => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        if now >= until {
            return Ok(None);
        }
        tokio::select! {
            () = place.woken() => {}
            () = tokio::time::sleep_until(until.min(now + pause(app.work.len()))) => {}
            () = app.shutdown.begins() => return Ok(None),
        }
        caller.check_admitted(app)?;
    }
}

/// How long to wait before looking again: from three quarters to five quarters of the time that so many may take.
fn pause(waiting: usize) -> Duration {
    let each = LOOK_AGAIN_EACH.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
    let jitter = f64::from(Uuid::new_v4().as_bytes()[0]) / 510.0;
    LOOK_AGAIN.max(each).mul_f64(0.75 + jitter)
}
