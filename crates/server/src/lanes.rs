//! Lanes, their policies, and holds.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::Command;
use lastbeat_domain::{Name, Terms};
use lastbeat_wire::answers;
use lastbeat_wire::{HoldsPage, LaneDocument, LanesPage, PolicyDocument};
use lastbeat_wire::{ReasonRequest, ReleaseDocument, schema};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::act::execute;
use crate::app::App;
use crate::body::{self, MaybeJson, Named, Params};
use crate::caller::Caller;
use crate::gate::place;
use crate::problem::{Problem, Refused};

/// Lists the lanes, each with its policy and how many runs it has.
#[utoipa::path(
    get, path = "/v1/lanes", tag = "lanes",
    responses(
        (status = 200, description = "the lanes", body = LanesPage),
        Refused,
    )
)]
pub(crate) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<LanesPage>, Problem> {
    let _place = place(&app.searches).await?;
    let mut page = answers::lanes(app.store()).await?;
    page.lanes.retain(|lane| caller.check_lane(Action::SeeLane, &lane.lane).is_ok());
    Ok(Json(page))
}

/// Shows a lane, which need not have been named before.
#[utoipa::path(
    get, path = "/v1/lanes/{lane}", tag = "lanes", params(("lane" = schema::Name, Path, description = "the lane")),
    responses(
        (status = 200, description = "the lane", body = LaneDocument),
        Refused,
    )
)]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Named(lane): Named<Name>,
) -> Result<Json<LaneDocument>, Problem> {
    caller.check_lane(Action::SeeLane, &lane)?;
    let _place = place(&app.searches).await?;
    Ok(Json(answers::lane(app.store(), &lane).await?))
}

/// How to set a policy.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetParams {
    /// Set it although open runs would lapse at once.
    #[serde(default)]
    #[param(required = false)]
    force: bool,
}

/// Gives a lane a new policy. Terms that are left out take the default. Refused if open runs would lapse at once under
/// it, unless forced.
#[utoipa::path(
    put, path = "/v1/lanes/{lane}", tag = "lanes", request_body = PolicyDocument,
    params(
        ("lane" = schema::Name, Path, description = "the lane"), SetParams,
        ("If-Match" = Option<String>, Header, description = "the version of the policy that it was made from, quoted; refused with 412 if the lane has another by now"),
    ),
    responses(
        (status = 200, description = "the lane with its new policy", body = LaneDocument),
        Refused,
    )
)]
pub(crate) async fn set(
    State(app): State<App>,
    caller: Caller,
    Named(lane): Named<Name>,
    Params(params): Params<SetParams>,
    headers: HeaderMap,
    body::Json(terms): body::Json<Terms>,
) -> Result<Json<LaneDocument>, Problem> {
    caller.check_lane(Action::SetPolicy, &lane)?;
    let expected_version = expected_version(&headers)?;
    terms.validate().map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", error.to_string()))?;
    let _place = place(&app.searches).await?;
    if !params.force {
        answers::nothing_would_lapse(app.store(), &lane, &terms).await?;
    }
    let (terms, by) = (Box::new(terms), Some(caller.name()));
    execute(&app, Command::SetPolicy { lane: lane.clone(), terms, expected_version, by }).await?;
    app.reread_service().await?;
    Ok(Json(answers::lane(app.store(), &lane).await?))
}

fn expected_version(headers: &HeaderMap) -> Result<Option<u32>, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let tag = tag.to_str().unwrap_or_default().trim();
    if tag == "*" {
        return Ok(None);
    }
    let version = tag.trim_matches('"').parse().map(Some);
    version.map_err(|_| Problem::invalid("If-Match", "the version of a policy, for example \"3\""))
}

/// Lists the lanes that are held, or drained after a hold.
#[utoipa::path(
    get, path = "/v1/holds", tag = "lanes",
    responses(
        (status = 200, description = "the lanes", body = HoldsPage),
        Refused,
    )
)]
pub(crate) async fn holds(State(app): State<App>, caller: Caller) -> Result<Json<HoldsPage>, Problem> {
    let _place = place(&app.searches).await?;
    let mut page = answers::holds(app.store()).await?;
    page.holds.retain(|hold| caller.check_lane(Action::SeeLane, &hold.lane).is_ok());
    Ok(Json(page))
}

/// Lets reaping by silence go on in a lane that is held, at its reap rate.
#[utoipa::path(
    post, path = "/v1/holds/{lane}/release", tag = "lanes", request_body(content = Option<ReasonRequest>),
    params(("lane" = schema::Name, Path, description = "the lane")),
    responses(
        (status = 200, description = "how the lane stands from now on", body = ReleaseDocument),
        Refused,
    )
)]
pub(crate) async fn release(
    State(app): State<App>,
    caller: Caller,
    Named(lane): Named<Name>,
    MaybeJson(request): MaybeJson<ReasonRequest>,
) -> Result<Json<ReleaseDocument>, Problem> {
    caller.check_lane(Action::ReleaseHold, &lane)?;
    let command = Command::ReleaseHold { lane: lane.clone(), by: caller.name(), reason: request.reason };
    execute(&app, command).await?;
    app.reread_service().await?;
    Ok(Json(answers::released(app.store(), lane).await?))
}
