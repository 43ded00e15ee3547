//! Backtests: a lane's recorded past under other policies. Of all questions they read the most, so there is one at a
//! time, and none goes on for longer than an answer may take.

use std::ops::ControlFlow;

use axum::Json;
use axum::extract::State;
use lastbeat_domain::Name;
use lastbeat_domain::access::Action;
use lastbeat_store::StoreError;
use lastbeat_wire::answers::{self, AskError};
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
    request_body(content = Option<BacktestRequest>, example = json!({"heartbeat_window_seconds": [60, 180], "examples": 1})),
    params(("lane" = schema::Name, Path, description = "the lane")),
    responses(
        (status = 200, description = "what would have been", body = BacktestDocument, example = json!({
            "lane": "watcher", "at": "2026-05-04T06:00:00.000000Z", "since": null,
            "runs": 2, "events": 14, "attempts": 2, "open": 0, "quarantined": 0, "reaps": 1, "wrong": 0,
            "alternatives": [
                {
                    "windows": {}, "reaps": 1, "same": 1, "earlier": 0, "later": 0, "newly": 0, "no_longer": 0,
                    "not_yet": 0, "untouched": 3, "wrong": 0, "newly_wrong": 0, "right": 1, "undecided": 0,
                    "sooner": {"reaps": 0, "mean_seconds": null, "longest_seconds": null},
                    "later_by": {"reaps": 0, "mean_seconds": null, "longest_seconds": null},
                    "wrong_reaps": []
                },
                {
                    "windows": {"heartbeat_window_seconds": 60}, "reaps": 2, "same": 0, "earlier": 1, "later": 0,
                    "newly": 1, "no_longer": 0, "not_yet": 0, "untouched": 2, "wrong": 1, "newly_wrong": 1, "right": 1,
                    "undecided": 0,
                    "sooner": {"reaps": 1, "mean_seconds": 120, "longest_seconds": 120},
                    "later_by": {"reaps": 0, "mean_seconds": null, "longest_seconds": null},
                    "wrong_reaps": [{
                        "run": "019df0d6-47b4-79ae-b1c9-71331f50717c", "attempt": 1, "rule": "heartbeat_silence",
                        "at": "2026-05-04T02:01:20.000001Z", "heard_at": "2026-05-04T02:01:50.000000Z",
                        "newly_wrong": true
                    }]
                }
            ],
            "recommendations": [{
                "window": "heartbeat_window", "in_force_seconds": 180, "runs": 2,
                "no_wrong": {
                    "seconds": 89.999999, "tried_seconds": 180, "margin_seconds": 90.000001,
                    "run": "019df0d6-47b4-79ae-b1c9-71331f50717c", "attempt": 1,
                    "from": "2026-05-04T02:00:20.000000Z", "to": "2026-05-04T02:01:50.000000Z"
                },
                "no_newly_wrong": {
                    "seconds": 89.999999, "tried_seconds": 180, "margin_seconds": 90.000001,
                    "run": "019df0d6-47b4-79ae-b1c9-71331f50717c", "attempt": 1,
                    "from": "2026-05-04T02:00:20.000000Z", "to": "2026-05-04T02:01:50.000000Z"
                }
            }]
        })),
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
