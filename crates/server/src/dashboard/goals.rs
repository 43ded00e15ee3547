//! All goals, in the order of their names.

use axum::extract::State;
use axum::response::Response;
use lastbeat_domain::Name;
use maud::html;
use serde::Deserialize;

use super::frame::{Page, Section};
use super::gathered::goal_now;
use super::overview::goal_table;
use super::session::Visitor;
use super::start::as_seen;
use crate::app::App;
use crate::body::Params;
use crate::cursor;
use crate::gate::place;
use crate::goals::seen;
use crate::problem::Problem;

/// How many goals a page shows.
const PAGE_GOALS: usize = 25;

/// Where the page begins.
#[derive(Deserialize)]
pub(super) struct GoalsParams {
    after: Option<String>,
}

/// Lists the goals.
pub(super) async fn page(
    State(app): State<App>,
    visitor: Visitor,
    Params(params): Params<GoalsParams>,
) -> Result<Response, Problem> {
    let _place = place(&app.searches).await?;
    let after: Option<Name> = cursor::read_if(params.after.as_ref())?;
    let (names, next) = seen(&app, &visitor.caller, after, PAGE_GOALS).await?;
    let mut goals = Vec::new();
    for goal in &names {
        goals.push(goal_now(&app, &visitor.caller, goal).await?);
    }
    // What the visitor may see no run of does not exist for it.
    goals.retain(|goal| goal.telling.is_some());
    let content = html! {
        h1 #all-goals { "Goals" }
        section #live-goals data-live {
            @if goals.is_empty() { p.quiet { "No run" (as_seen(&visitor)) " has a goal here. Give one with " code { "--goal" } " when a run is made." } }
            @else { (goal_table(&goals, "all-goals")) }
        }
        nav.pages aria-label="Pages of the list" {
            @if params.after.is_some() { a href="/goals" { "First page" } }
            @if let Some(next) = next { a rel="next" href={ "/goals?after=" (cursor::cursor(next)) } { "Next page" } }
        }
    };
    let now = app.store().now().await?;
    Ok(Page { title: "Goals", section: Section::Goals, now: Some(now), content }.shown(Some(&visitor)))
}
