//! A lane's past under other windows: what each would have cost in wrong reaps, and how soon it would have told.

use std::fmt::Write;

use axum::extract::State;
use axum::response::Response;
use lastbeat_domain::{Name, Span, Timestamp};
use lastbeat_wire::backtest::AlternativeDocument;
use lastbeat_wire::{BacktestDocument, BacktestRequest};
use maud::{Markup, html};
use serde::Deserialize;

use super::frame::{Page, Section};
use super::session::Visitor;
use super::words::{encoded, lane_link, many, or_nothing, rough, run_link};
use crate::app::App;
use crate::body::{MaybeJson, Named, Params};
use crate::problem::Problem;

/// The window that is tried, by its name in the document.
const WINDOW: &str = "heartbeat_window_seconds";
/// The size of the drawing, in its own units, and where its ground is.
const WIDTH: f64 = 720.0;
const HEIGHT: u32 = 230;
const GROUND: f64 = 190.0;
const TOP: f64 = 30.0;

/// What is to be tried.
#[derive(Default, Deserialize)]
pub(super) struct BacktestParams {
    /// Heartbeat windows, with commas between them.
    #[serde(default)]
    windows: String,
    /// Only runs that were created then or later.
    #[serde(default)]
    since: String,
}

/// Shows what a lane's past would have been.
pub(super) async fn page(
    State(app): State<App>,
    visitor: Visitor,
    Named(lane): Named<Name>,
    Params(params): Params<BacktestParams>,
) -> Result<Response, Problem> {
    let words = params.windows.split(',').map(str::trim).filter(|word| !word.is_empty());
    let windows: Result<Vec<Span>, _> = words.map(str::parse).collect();
    let heartbeat_window_seconds = windows.map_err(|error| Problem::invalid("windows", error))?;
    let since = Some(params.since.trim()).filter(|text| !text.is_empty()).map(str::parse::<Timestamp>).transpose();
    let since = since.map_err(|error| Problem::invalid("since", error))?;
    let request = BacktestRequest { heartbeat_window_seconds, since, ..BacktestRequest::default() };
    let asked = crate::backtest::backtest(State(app), visitor.caller.clone(), Named(lane.clone()), MaybeJson(request));
    let document = asked.await?.0;
    let points = points(&document);
    let recommended = recommended(&document);
    let content = html! {
        h1 { "Lane " (lane_link(&lane)) ": its past under other windows" }
        form.filter action={ "/lanes/" (encoded(lane.as_str())) "/backtest" } method="get" {
            label { "Heartbeat windows" input name="windows" value=(params.windows) placeholder="60s, 90s, 3m" maxlength="256"; }
            label { "Created since" input name="since" value=(params.since) placeholder="2026-05-04T02:37:00Z" maxlength="40"; }
            div.buttons { button { "Try them" } }
        }
        section aria-labelledby="tried" {
            h2 #tried { "Wrong reaps, and how soon a death is noticed" }
            p { "Judged: " (many(document.attempts, "attempt")) " of " (many(document.runs, "run")) ". The record has " (many(document.reaps, "reap")) ", "
                (document.wrong) " of them wrong." }
            (chart(&points, recommended))
            (table(&points, recommended))
            (advice(&document))
        }
    };
    let title = format!("Lane {lane}: backtest");
    Ok(Page { title: &title, section: Section::Lanes, now: Some(document.at), content }.shown(Some(&visitor)))
}

/// A window that was tried, with what would have come of it. It is itself how long a death goes unnoticed.
struct Point<'a> {
    window: Span,
    is_in_force: bool,
    told: &'a AlternativeDocument,
}

/// The windows that were tried, the shortest first.
fn points(document: &BacktestDocument) -> Vec<Point<'_>> {
    let in_force = document.recommendations.iter().find(|one| WINDOW.starts_with(&one.window));
    let in_force = in_force.and_then(|one| one.in_force_seconds);
    let point = |told| -> Option<Point<'_>> {
        let told: &AlternativeDocument = told;
        let is_in_force = told.windows.is_empty();
        let window = told.windows.get(WINDOW).copied().flatten().or(in_force)?;
        Some(Point { window, is_in_force, told })
    };
    let mut points: Vec<Point<'_>> = document.alternatives.iter().filter_map(point).collect();
    points.sort_by_key(|point| (point.window, !point.is_in_force));
    // What is in force may have been tried as well.
    points.dedup_by_key(|point| point.window);
    points
}

/// A count as a number to draw with.
#[allow(clippy::cast_precision_loss)] // Counts of reaps are far below the 2^53 up to which they are exact.
fn counted(count: u64) -> f64 {
    count as f64
}

/// The shortest of the windows that were tried under which no reap would have been wrong.
fn recommended(document: &BacktestDocument) -> Option<Span> {
    let of = document.recommendations.iter().find(|one| WINDOW.starts_with(&one.window))?;
    of.no_wrong.and_then(|shortest| shortest.tried_seconds)
}

fn chart(points: &[Point<'_>], recommended: Option<Span>) -> Markup {
    let most = points.iter().map(|point| counted(point.told.wrong)).fold(1.0, f64::max);
    let longest = points.iter().map(|point| point.window.as_seconds()).fold(1e-6, f64::max);
    let step = WIDTH / counted(points.len().max(1) as u64);
    let y = |share: f64| GROUND - share * (GROUND - TOP);
    let (mut line, mut x) = (String::new(), step / 2.0);
    for point in points {
        let to = if line.is_empty() { 'M' } else { 'L' };
        // Writing to a string does not fail.
        let _ = write!(line, "{to}{x:.1} {:.1}", y(point.window.as_seconds() / longest));
        x += step;
    }
    html! {
        div.scroll tabindex="0" role="region" aria-label="The windows, drawn" {
            svg.chart viewBox={ "0 0 720 " (HEIGHT) } role="img" aria-labelledby="chart-title" {
                title #chart-title { "For each window its wrong reaps, as bars, and how long a death goes unnoticed, as a line; the table says the same" }
                line.ground x1="0" x2="720" y1=(GROUND) y2=(GROUND) {}
                @for (index, point) in points.iter().enumerate() {
                    @let middle = step * (counted(index as u64) + 0.5);
                    @let top = y(counted(point.told.wrong) / most);
                    @if Some(point.window) == recommended {
                        rect.advised x=(format!("{:.1}", middle - step * 0.45)) y="4" width=(format!("{:.1}", step * 0.9)) height="206" rx="4" {}
                        text x=(format!("{middle:.1}")) y="18" text-anchor="middle" { "recommended" }
                    }
                    rect.wrong-bar x=(format!("{:.1}", middle - step * 0.2)) y=(format!("{top:.1}")) width=(format!("{:.1}", step * 0.4)) height=(format!("{:.1}", GROUND - top)) {
                        title { (many(point.told.wrong, "wrong reap")) }
                    }
                    @if point.told.wrong > 0 { text x=(format!("{middle:.1}")) y=(format!("{:.1}", top - 4.0)) text-anchor="middle" { (point.told.wrong) } }
                    circle.delay cx=(format!("{middle:.1}")) cy=(format!("{:.1}", y(point.window.as_seconds() / longest))) r="3.5" {}
                    text x=(format!("{middle:.1}")) y="205" text-anchor="middle" { (point.window) }
                    @if point.is_in_force { text x=(format!("{middle:.1}")) y="220" text-anchor="middle" { "in force" } }
                }
                path.delay-line d=(line) {}
            }
        }
        p.legend { span.key { span.swatch.w-wrong aria-hidden="true" {} "wrong reaps" } span.key { span.swatch.w-delay aria-hidden="true" {} "how long a death goes unnoticed" } }
    }
}

fn table(points: &[Point<'_>], recommended: Option<Span>) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-labelledby="tried" { table {
            thead { tr {
                th scope="col" { "Window" }
                th.number scope="col" { "Reaps" } th.number scope="col" { "Wrong" } th.number scope="col" { "Newly wrong" }
                th.number scope="col" { "Right" } th.number scope="col" { "Undecided" } th.number scope="col" { "No longer" }
                th.number scope="col" { "Right ones sooner by" } th.number scope="col" { "Later by" }
            } }
            tbody { @for point in points { tr {
                th scope="row" { (point.window)
                    @if point.is_in_force { " (in force)" }
                    @if Some(point.window) == recommended { " " strong { "✓ recommended" } } }
                td.number { (point.told.reaps) } td.number { (point.told.wrong) } td.number { (point.told.newly_wrong) }
                td.number { (point.told.right) } td.number { (point.told.undecided) } td.number { (point.told.no_longer) }
                td.number { (or_nothing(point.told.sooner.mean_seconds.map(|mean| html! { (rough(mean)) }))) }
                td.number { (or_nothing(point.told.later_by.mean_seconds.map(|mean| html! { (rough(mean)) }))) }
            } } }
        } }
    }
}

fn advice(document: &BacktestDocument) -> Markup {
    let of = document.recommendations.iter().find(|one| WINDOW.starts_with(&one.window));
    let shortest = of.and_then(|one| one.no_wrong);
    html! {
        @if let (Some(of), Some(shortest)) = (of, shortest) {
            p { "Of " (many(of.runs, "run")) " silent and heard of again, the longest silence was " (rough(shortest.seconds)) ", of "
                (run_link(shortest.run)) ". The shortest window that was tried and is long enough: "
                (or_nothing(shortest.tried_seconds.map(|tried| html! { strong { (tried) } })))
                @if let Some(margin) = shortest.margin_seconds { ", with a margin of " (rough(margin)) } "." }
        } @else {
            p.quiet { "No silence in this past ended with a sign of life, so it recommends nothing." }
        }
    }
}
