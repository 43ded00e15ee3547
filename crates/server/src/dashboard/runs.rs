//! Runs, the newest first, by what is asked for in the address: so a list can be kept, sent and loaded again.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect, Response};
use lastbeat_domain::access::Action;
use lastbeat_domain::{Liveness, Name, RunId, Span, Status, Timestamp};
use lastbeat_store::{Filter, Judged, ask};
use maud::{Markup, html};
use serde::Deserialize;

use super::frame::{Page, Section};
use super::session::Visitor;
use super::start::{self, as_seen};
use super::words::{ago, badge, encoded, executor_link, goal_link, instant, lane_link, or_nothing, run_link, until};
use crate::app::App;
use crate::body::Params;
use crate::cursor;
use crate::gate::place;
use crate::problem::Problem;

/// How many runs a page shows.
const PAGE_RUNS: usize = 50;
/// How many runs are looked at for a page, before it is content with what was found.
const EXAMINED_MAX: usize = 5_000;

/// What is asked for. A field that is left empty asks for nothing.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RunsParams {
    #[serde(default)]
    q: String,
    #[serde(default)]
    lane: String,
    #[serde(default)]
    goal: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    verdict: String,
    #[serde(default)]
    executor: String,
    #[serde(default)]
    device: String,
    #[serde(default)]
    label: String,
    #[serde(default)]
    since: String,
    #[serde(default)]
    until: String,
    after: Option<String>,
}

/// The same, understood.
struct Asked {
    filter: Filter,
    verdict: Option<Liveness>,
    executor: Option<Name>,
    device: Option<Name>,
    label: Option<(Name, Option<String>)>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// Lists runs.
pub(super) async fn page(
    State(app): State<App>,
    visitor: Visitor,
    headers: HeaderMap,
    Params(params): Params<RunsParams>,
) -> Result<Response, Problem> {
    let q = params.q.trim();
    if let Ok(run) = q.parse::<RunId>() {
        return Ok(Redirect::to(&format!("/runs/{run}")).into_response());
    }
    if !q.is_empty() {
        return Ok(Redirect::to(&format!("/runs?goal={}", encoded(q))).into_response());
    }
    let now = app.store().now().await?;
    let asked = params.understood(&visitor, now)?;
    let _place = place(&app.searches).await?;
    let after = cursor::run(&app, params.after.as_ref()).await?;
    let keep = |judged: &Judged| visitor.caller.sees(&judged.run) && asked.keeps(judged);
    let found = ask::list_where(app.store(), &asked.filter, keep, after, PAGE_RUNS, EXAMINED_MAX).await?;
    let is_all = params.query().is_empty() && params.after.is_none();
    let content = if is_all && found.runs.is_empty() && found.next.is_none() {
        html! { div #live-start data-live { (start::first_run(&visitor, &headers)) } }
    } else {
        let mut lanes = app.store().lanes().await?;
        lanes.retain(|lane| visitor.caller.check_lane(Action::SeeLane, lane).is_ok());
        html! {
            h1 { "Runs" }
            (form(&params, &lanes))
            section #live-runs data-live aria-label="The runs" { (table(&found, now, as_seen(&visitor))) (pages(&params, &found)) }
        }
    };
    Ok(Page { title: "Runs", section: Section::Runs, now: Some(now), content }.shown(Some(&visitor)))
}

impl RunsParams {
    fn understood(&self, visitor: &Visitor, now: Timestamp) -> Result<Asked, Problem> {
        let lane = read::<Name>("lane", &self.lane)?;
        // Of one lane only that lane need be looked at.
        let lane = lane.or_else(|| match visitor.caller.lanes() {
            [only] => Some(only.clone()),
            _ => None,
        });
        let statuses = one_of("status", &self.status, &Status::ALL, Status::as_str)?.into_iter().collect();
        let label = match self.label.split_once('=') {
            Some((key, value)) => read::<Name>("label", key)?.map(|key| (key, Some(value.trim().to_owned()))),
            None => read::<Name>("label", &self.label)?.map(|key| (key, None)),
        };
        Ok(Asked {
            filter: Filter { lane, goal: read("goal", &self.goal)?, statuses },
            verdict: one_of("verdict", &self.verdict, &Liveness::ALL, Liveness::as_str)?,
            executor: read("executor", &self.executor)?,
            device: read("device", &self.device)?,
            label,
            since: moment("since", &self.since, now)?,
            until: moment("until", &self.until, now)?,
        })
    }

    /// Everything that is asked for, but for the page, as a query.
    fn query(&self) -> String {
        let fields = [
            ("lane", &self.lane),
            ("goal", &self.goal),
            ("status", &self.status),
            ("verdict", &self.verdict),
            ("executor", &self.executor),
            ("device", &self.device),
            ("label", &self.label),
            ("since", &self.since),
            ("until", &self.until),
        ];
        let said = fields.into_iter().filter(|(_, value)| !value.trim().is_empty());
        said.map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<String>>().join("&")
    }
}

impl Asked {
    fn keeps(&self, judged: &Judged) -> bool {
        let run = &judged.run;
        let has_label = |(key, value): &(Name, Option<String>)| {
            run.labels.get(key).is_some_and(|known| value.as_ref().is_none_or(|value| value == known))
        };
        let used = run.claim.as_ref().and_then(|claim| claim.device.as_ref());
        self.verdict.is_none_or(|verdict| verdict == judged.verdict.liveness)
            && self.executor.as_ref().is_none_or(|executor| run.executor() == Some(executor))
            && self.device.as_ref().is_none_or(|device| run.device.as_ref() == Some(device) || used == Some(device))
            && self.label.as_ref().is_none_or(has_label)
            && self.since.is_none_or(|since| run.created_at >= since)
            && self.until.is_none_or(|until| run.created_at <= until)
    }
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| Problem::invalid(field, error))
}

fn one_of<T: Copy>(field: &str, text: &str, all: &[T], word: fn(T) -> &'static str) -> Result<Option<T>, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let words = || all.iter().map(|one| word(*one)).collect::<Vec<&str>>().join(", ");
    let found = all.iter().copied().find(|one| word(*one) == text);
    found.map(Some).ok_or_else(|| Problem::invalid(field, format!("`{text}` is none of {}", words())))
}

/// An instant, or how long ago it was.
fn moment(field: &str, text: &str, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let text = text.trim();
    if let Ok(span) = text.parse::<Span>() {
        return Ok(Some(now.minus(span)));
    }
    read::<Timestamp>(field, text).map_err(|_| {
        Problem::invalid(
            field,
            format!("`{text}` is neither an instant like 2026-05-04T02:37:00Z nor a time ago like 2h"),
        )
    })
}

fn form(params: &RunsParams, lanes: &[Name]) -> Markup {
    let text = |name: &'static str, label: &'static str, value: &str, placeholder: &'static str| {
        html! { label { (label) input name=(name) value=(value) placeholder=(placeholder) maxlength="256"; } }
    };
    let options = |name: &'static str, label: &'static str, value: &str, words: Vec<&'static str>| {
        html! {
            label { (label) select name=(name) {
                option value="" { "any" }
                @for word in words { option value=(word) selected[word == value] { (word) } }
            } }
        }
    };
    html! {
        form #filter.filter action="/runs" method="get" role="search" aria-label="Which runs" {
            label { "Lane" input name="lane" list="lane-names" value=(params.lane) maxlength="256"; }
            datalist #lane-names { @for lane in lanes.iter().take(200) { option value=(lane) {} } }
            (text("goal", "Goal", &params.goal, ""))
            (options("verdict", "Verdict", &params.verdict, Liveness::ALL.map(Liveness::as_str).to_vec()))
            (options("status", "Status", &params.status, Status::ALL.map(Status::as_str).to_vec()))
            (text("executor", "Executor", &params.executor, ""))
            (text("device", "Device", &params.device, ""))
            (text("label", "Label", &params.label, "key or key=value"))
            (text("since", "Created since", &params.since, "2h, or an instant"))
            (text("until", "Created until", &params.until, "30m, or an instant"))
            div.buttons { button { "Show" } " " a href="/runs" { "Clear" } }
        }
    }
}

fn table(found: &ask::Page, now: Timestamp, as_seen: &str) -> Markup {
    let runs = &found.runs;
    html! {
        @if runs.is_empty() {
            p.quiet role="status" {
                @if found.next.is_none() { "No run" (as_seen) " is like that." }
                @else { "None" (as_seen) " among the " (EXAMINED_MAX) " that were looked at; go on with the older ones." }
            }
        }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Runs" { table.runs {
                thead { tr {
                    th scope="col" { "Run" }
                    th scope="col" { "Verdict" }
                    th scope="col" { "Lane" }
                    th scope="col" { "Goal" }
                    th scope="col" { "Executor" }
                    th.number scope="col" { "Attempt" }
                    th scope="col" { "Last heard" }
                    th.number scope="col" { "Lapses" }
                    th scope="col" { "Created" }
                } }
                tbody { @for judged in runs { (row(judged, now)) } }
            } }
        }
    }
}

fn row(judged: &Judged, now: Timestamp) -> Markup {
    let run = &judged.run;
    html! {
        tr data-href={ "/runs/" (run.id) } {
            th scope="row" { (run_link(run.id)) }
            td { (badge(judged.verdict.liveness, run.status)) }
            td { (lane_link(&run.lane)) }
            td { (or_nothing(run.goal.as_ref().map(goal_link))) }
            td { (or_nothing(run.executor().map(executor_link))) }
            td.number { (run.attempt) }
            td { (or_nothing(run.last_heartbeat_at().map(|at| ago(at, now)))) }
            td.number { (or_nothing(judged.verdict.lapses_at().map(|at| until(at, now)))) }
            td { (instant(run.created_at)) }
        }
    }
}

fn pages(params: &RunsParams, found: &ask::Page) -> Markup {
    let query = params.query();
    let and = if query.is_empty() { "" } else { "&" };
    html! {
        nav.pages aria-label="Pages of the list" {
            @if params.after.is_some() { a href={ "/runs?" (query) } { "Newest" } }
            @if let Some(next) = found.next {
                a rel="next" href={ "/runs?" (query) (and) "after=" (cursor::cursor(next)) } { "Older" }
                @if found.runs.len() < PAGE_RUNS {
                    span.quiet { "Of so many runs only " (EXAMINED_MAX) " were looked at for this page; there may be more." }
                }
            }
        }
    }
}
