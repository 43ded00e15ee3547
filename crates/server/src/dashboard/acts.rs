//! What those may do who may: each act asks for a reason, and is recorded with it and with a name.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::{ByHand, Command};
use lastbeat_domain::{Name, RunId};
use serde::Deserialize;

use super::posted::Posted;
use super::session::Visitor;
use crate::act::execute;
use crate::app::App;
use crate::body::Named;
use crate::caller::permitted_run;
use crate::problem::Problem;

/// Why something is done.
#[derive(Deserialize)]
pub(super) struct Why {
    reason: String,
}

impl Why {
    fn reason(self) -> Result<Option<String>, Problem> {
        let reason = self.reason.trim();
        if reason.is_empty() {
            return Err(Problem::invalid("reason", "say why: it is recorded, for whoever asks later"));
        }
        Ok(Some(reason.to_owned()))
    }
}

/// Cancels, requeues or reaps a run.
pub(super) async fn on_run(
    State(app): State<App>,
    visitor: Visitor,
    Path((id, act)): Path<(RunId, String)>,
    Posted(why): Posted<Why>,
) -> Result<Response, Problem> {
    let (run, by) = (id, visitor.caller.name());
    let action = match act.as_str() {
        "cancel" => Action::Cancel,
        "requeue" => Action::Requeue,
        "reap" => Action::Reap,
        _ => return Err(Problem::not_found("no_such_route", "nothing like that can be done to a run")),
    };
    permitted_run(&app, &visitor.caller, action, id).await?;
    let reason = why.reason()?;
    let command = match action {
        Action::Cancel => Command::RequestCancel { run, by, reason },
        Action::Requeue => Command::Requeue { run, by, reason },
        _ => Command::Reap { run, by, by_hand: Some(ByHand { reason }) },
    };
    execute(&app, command).await?;
    app.gathered.acted();
    Ok(Redirect::to(&format!("/runs/{id}?done={act}")).into_response())
}

/// Lets reaping go on in a lane that is held.
pub(super) async fn release(
    State(app): State<App>,
    visitor: Visitor,
    Named(lane): Named<Name>,
    Posted(why): Posted<Why>,
) -> Result<Response, Problem> {
    visitor.caller.check_lane(Action::ReleaseHold, &lane)?;
    let (by, reason) = (visitor.caller.name(), why.reason()?);
    execute(&app, Command::ReleaseHold { lane, by, reason }).await?;
    app.reread_service().await?;
    app.gathered.acted();
    Ok(Redirect::to("/").into_response())
}
