//! Who is at work: the executors that hold runs, and when each was last heard of.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use lastbeat_domain::access::Action;
use lastbeat_domain::{Name, Status, Timestamp};
use lastbeat_store::Filter;
use lastbeat_wire::{ExecutorDocument, ExecutorsPage};

use crate::app::App;
use crate::caller::Caller;
use crate::gate::place;
use crate::problem::{Problem, Refused};

/// How many runs are read at a time.
const PAGE_RUNS: usize = 1_000;

/// Lists the executors that hold runs, in the order of their names.
#[utoipa::path(
    get, path = "/v1/executors", tag = "executors",
    responses(
        (status = 200, description = "the executors", body = ExecutorsPage),
        Refused,
    )
)]
pub(crate) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<ExecutorsPage>, Problem> {
    caller.check(Action::SeeService)?;
    let _place = place(&app.searches).await?;
    let filter = Filter { statuses: vec![Status::Claimed, Status::Running], ..Filter::default() };
    let mut known: BTreeMap<Name, (u64, Option<Timestamp>)> = BTreeMap::new();
    let mut after = None;
    loop {
        let runs = app.store().list(&filter, after, PAGE_RUNS).await?;
        for run in &runs {
            let Some(executor) = run.executor() else { continue };
            let (held, heard) = known.entry(executor.clone()).or_default();
            *held += 1;
            *heard = (*heard).max(run.last_heartbeat_at());
        }
        after = runs.last().map(|run| run.id);
        if runs.len() < PAGE_RUNS {
            break;
        }
    }
    let shown = |(executor, (runs, last_heartbeat_at))| ExecutorDocument { executor, runs, last_heartbeat_at };
    Ok(Json(ExecutorsPage { executors: known.into_iter().map(shown).collect(), next: None }))
}
