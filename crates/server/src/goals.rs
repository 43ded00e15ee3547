//! Goals: what runs are for. A goal shows *running* only while one of its runs is believed to be worked on.

use axum::Json;
use axum::extract::State;
use lastbeat_domain::access::Action;
use lastbeat_domain::{Name, Status};
use lastbeat_store::{Filter, Judged, ask};
use lastbeat_wire::{GoalDocument, GoalRun, GoalStatus, GoalSummary, GoalsPage, schema};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::app::App;
use crate::body::{Named, Params};
use crate::caller::Caller;
use crate::cursor;
use crate::gate::place;
use crate::problem::{Problem, Refused};

/// How many runs of a goal are looked at to tell how it stands, or to fill a page.
const EXAMINED_MAX: usize = 20_000;
/// How many goals are looked at for those of a page, where not all may be seen.
const GOALS_EXAMINED_MAX: usize = 2_000;
/// How many of its open runs are looked at at a time.
const PAGE_RUNS: usize = 500;

/// A page of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageParams {
    /// How many at the most.
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
    /// Where to begin: the `next` of the page before.
    #[param(min_length = 1)]
    after: Option<String>,
}

/// Lists the goals, in the order of their names, with how each stands. A page may hold fewer than asked for, and still
/// not be the last.
#[utoipa::path(
    get, path = "/v1/goals", tag = "goals", params(PageParams),
    responses(
        (status = 200, description = "a page of goals", body = GoalsPage),
        Refused,
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<PageParams>,
) -> Result<Json<GoalsPage>, Problem> {
    let limit = cursor::limit(params.limit)?;
    let after: Option<Name> = cursor::read_if(params.after.as_ref())?;
    let _place = place(&app.searches).await?;
    let (names, next) = seen(&app, &caller, after, limit).await?;
    let mut goals = Vec::with_capacity(names.len());
    for goal in names {
        if let Some(status) = status(&app, &caller, &goal).await? {
            goals.push(GoalSummary { goal, status });
        }
    }
    Ok(Json(GoalsPage { goals, next: next.map(cursor::cursor) }))
}

/// Shows a goal: how it stands, and its runs, the latest first.
#[utoipa::path(
    get, path = "/v1/goals/{key}", tag = "goals",
    params(("key" = schema::Name, Path, description = "the goal"), PageParams),
    responses(
        (status = 200, description = "the goal", body = GoalDocument),
        Refused,
    )
)]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Named(goal): Named<Name>,
    Params(params): Params<PageParams>,
) -> Result<Json<GoalDocument>, Problem> {
    let limit = cursor::limit(params.limit)?;
    let _place = place(&app.searches).await?;
    let after = cursor::run(&app, params.after.as_ref()).await?;
    let Some(status) = status(&app, &caller, &goal).await? else {
        return Err(Problem::not_found("unknown_goal", format!("no run has the goal {goal}")));
    };
    let filter = Filter { goal: Some(goal.clone()), ..Filter::default() };
    let page = ask::list_where(app.store(), &filter, sees(&caller), after, limit, EXAMINED_MAX).await?;
    let shown = |judged: &Judged| {
        let verdict = judged.verdict.liveness;
        GoalRun { run: judged.run.id, status: judged.run.status, verdict }
    };
    let runs = page.runs.iter().map(shown).collect();
    Ok(Json(GoalDocument { goal, status, runs, next: page.next.map(cursor::cursor) }))
}

/// Returns at most `limit` goals of which the caller may see a run, in the order of their names, and the last of them if
/// there may be more. Where a page ends its reader learns, so it never ends with a goal that the caller may not see:
/// after too many such goals in a row, the list is over.
pub(crate) async fn seen(
    app: &App,
    caller: &Caller,
    after: Option<Name>,
    limit: usize,
) -> Result<(Vec<Name>, Option<Name>), Problem> {
    let (mut seen, mut after, mut examined) = (Vec::new(), after, 0);
    while examined < GOALS_EXAMINED_MAX {
        let names = app.store().goals(after.as_ref(), limit + 1).await?;
        let is_last = names.len() <= limit;
        examined += names.len();
        after = names.last().cloned().or(after);
        for goal in names {
            if !is_seen(app, caller, &goal).await? {
                continue;
            }
            if seen.len() == limit {
                let last = seen.last().cloned();
                return Ok((seen, last));
            }
            seen.push(goal);
        }
        if is_last {
            return Ok((seen, None));
        }
    }
    let last = seen.last().cloned();
    Ok((seen, last))
}

async fn is_seen(app: &App, caller: &Caller, goal: &Name) -> Result<bool, Problem> {
    if caller.may_always(Action::SeeRun) {
        return Ok(true);
    }
    let all = Filter { goal: Some(goal.clone()), ..seen_by(caller) };
    let found = ask::list_where(app.store(), &all, sees(caller), None, 1, EXAMINED_MAX).await?;
    Ok(!found.runs.is_empty())
}

/// Where to look for what a caller may see: of one lane only that lane need be looked at.
pub(crate) fn seen_by(caller: &Caller) -> Filter {
    let lane = match caller.lanes() {
        [only] => Some(only.clone()),
        _ => None,
    };
    Filter { lane, ..Filter::default() }
}

fn sees(caller: &Caller) -> impl Fn(&Judged) -> bool {
    |judged| caller.sees(&judged.run)
}

/// How a goal stands, by those of its runs that the caller may see; `None` if it may see none.
async fn status(app: &App, caller: &Caller, goal: &Name) -> Result<Option<GoalStatus>, Problem> {
    let all = Filter { goal: Some(goal.clone()), ..seen_by(caller) };
    let open = Filter { statuses: vec![Status::Pending, Status::Claimed, Status::Running], ..all.clone() };
    let (mut verdicts, mut after, mut examined) = (Vec::new(), None, 0);
    loop {
        let page = ask::list_where(app.store(), &open, sees(caller), after, PAGE_RUNS, EXAMINED_MAX).await?;
        examined += page.runs.len();
        for judged in &page.runs {
            let liveness = judged.verdict.liveness;
            if liveness.counts_as_running() {
                return Ok(Some(GoalStatus::Running));
            }
            verdicts.push((judged.run.status, liveness));
        }
        after = page.next;
        if after.is_none() || examined >= EXAMINED_MAX {
            break;
        }
    }
    let latest = ask::list_where(app.store(), &all, sees(caller), None, 1, EXAMINED_MAX).await?;
    verdicts.extend(latest.runs.iter().map(|judged| (judged.run.status, judged.verdict.liveness)));
    Ok((!verdicts.is_empty()).then(|| GoalStatus::of(verdicts)))
}
