//! Backtests: a lane's recorded past under other policies. Of all questions they read the most, so there is one at a
//! time, and none goes on for longer than an answer may take.

use std::ops::ControlFlow;

use axum::Json;
use axum::extract::State;
use lastbeat_domain::Name;
use lastbeat_domain::access::Action;
use lastbeat_store::StoreError;
use lastbeat_wire::answers::{self, AskError};
use lastbeat_wire::backtest::examples;
use lastbeat_wire::{BacktestDocument, BacktestRequest, schema};
use tokio::time::Instant;

use crate::app::App;
use crate::body::{MaybeJson, Named};
use crate::caller::Caller;
use crate::gate::place;
use crate::problem::{Problem, Refused};

/// Judges a lane's recorded past under other policies: who would have been reaped earlier, later, no longer or newly, how
/// many of them wrongly, and how long the windows would have had to be. One is answered at a time; what takes longer
/// than an answer may take is broken off: ask for less with `since`, or at the database with `lastbeat backtest`.
#[utoipa::path(
    post, path = "/v1/lanes/{lane}/backtest", tag = "lanes",
    request_body(content = Option<BacktestRequest>, example = json!(examples::request())),
    params(("lane" = schema::Name, Path, description = "the lane")),
    responses(
        (status = 200, description = "what would have been", body = BacktestDocument, example = json!(examples::document())),
        Refused,
    )
)]
pub(crate) async fn backtest(
    State(app): State<App>,
    caller: Caller,
    Named(lane): Named<Name>,
    MaybeJson(request): MaybeJson<BacktestRequest>,
) -> Result<Json<BacktestDocument>, Problem> {
    caller.check_lane(Action::Backtest, &lane)?;
    let _place = place(&app.backtests).await?;
    let by = Instant::now() + app.limits.answer_time;
    let watch = |_, _| if Instant::now() < by { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    match answers::backtest(app.store(), lane, &request, &watch).await {
        Ok(document) => Ok(Json(document)),
        Err(AskError::Store(StoreError::Stopped)) => {
            let detail = format!(
                "the backtest did not end within {:?}; ask for less with `since`, or run `lastbeat backtest` on the \
                 database itself",
                app.limits.answer_time
            );
            Err(Problem::unavailable("timeout", detail))
        }
        Err(error) => Err(error.into()),
    }
}
