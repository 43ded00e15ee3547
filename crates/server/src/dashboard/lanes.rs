//! Lanes: what each lets pass, in words, and a change that is shown before it is made.

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::Command;
use lastbeat_domain::{Name, RunId, Status, Terms, Timestamp};
use lastbeat_store::ask;
use lastbeat_wire::{LaneDocument, answers};
use maud::{Markup, html};

use super::frame::{Page, Section};
use super::policy::{PolicyForm, fields, hidden_fields, sentences, terms_of};
use super::posted::Posted;
use super::session::Visitor;
use super::start::as_seen;
use super::words::{encoded, instant, lane_link, run_link};
use crate::act::execute;
use crate::app::App;
use crate::body::Named;
use crate::gate::place;
use crate::problem::Problem;

/// How many lanes are listed.
const LANES_MAX: usize = 500;
/// How many runs are named that would lapse.
const NAMED_MAX: usize = 20;
/// How many of the latest policies are told of.
const POLICIES_MAX: usize = 20;

/// Lists the lanes.
pub(super) async fn list(State(app): State<App>, visitor: Visitor) -> Result<Response, Problem> {
    let _place = place(&app.searches).await?;
    let counted = app.metrics.counts(app.store()).await?;
    let (service, now) = (app.store().service_log().await?, app.store().now().await?);
    let seen = |lane: &Name| visitor.caller.check_lane(Action::SeeLane, lane).is_ok();
    let lanes: Vec<_> = counted.lanes.iter().filter(|(lane, _)| seen(lane)).take(LANES_MAX).collect();
    let content = html! {
        h1 #all-lanes { "Lanes" }
        section #live-lanes data-live {
            @if lanes.is_empty() { p.quiet { "No lane" (as_seen(&visitor)) " has a run yet. One is listed from its first run on." } } @else {
                div.scroll tabindex="0" role="region" aria-labelledby="all-lanes" { table {
                    thead { tr {
                        th scope="col" { "Lane" }
                        th scope="col" { "Silence allowed" }
                        th scope="col" { "Never heard of, allowed" }
                        th.number scope="col" { "Attempts" }
                        th scope="col" { "Mode" }
                        @for status in Status::ALL { th.number scope="col" { (status) } }
                    } }
                    tbody { @for (lane, counts) in lanes {
                        @let terms = service.policy(lane, now).terms;
                        tr data-href={ "/lanes/" (encoded(lane.as_str())) } {
                            th scope="row" { (lane_link(lane)) }
                            td { (terms.heartbeat_window) }
                            td { (terms.coarse_ttl) }
                            td.number { (terms.max_attempts) }
                            td { @match terms.mode { lastbeat_domain::policy::Mode::Enforce => "enforce", lastbeat_domain::policy::Mode::Shadow => "shadow" }
                                @if service.hold(lane).is_held() { " " strong { "◐ held" } } }
                            @for status in Status::ALL { td.number { (counts.get(&status).copied().unwrap_or(0)) } }
                        }
                    } }
                } }
            }
        }
    };
    Ok(Page { title: "Lanes", section: Section::Lanes, now: Some(now), content }.shown(Some(&visitor)))
}

/// Shows a lane, which need not have been named before.
pub(super) async fn page(
    State(app): State<App>,
    visitor: Visitor,
    Named(lane): Named<Name>,
) -> Result<Response, Problem> {
    visitor.caller.check_lane(Action::SeeLane, &lane)?;
    let _place = place(&app.searches).await?;
    let document = answers::lane(app.store(), &lane).await?;
    let (service, now) = (app.store().service_log().await?, app.store().now().await?);
    let history: Vec<(Timestamp, u32, Terms)> =
        service.policy_history(&lane).map(|(at, version, terms)| (at, version, terms.clone())).collect();
    let may_set = visitor.caller.check_lane(Action::SetPolicy, &lane).is_ok();
    let content = html! {
        h1 { "Lane " (lane) }
        section aria-labelledby="policy" {
            h2 #policy { "What it lets pass" }
            (in_words(&document.policy.0))
            p.quiet { @if document.policy_version == 0 { "The default; no policy was ever set." } @else { "Policy version " (document.policy_version) "." } }
            (counts(&document))
            @if let Some(rate) = document.false_reaps.rate {
                p { "False reap rate: " (format!("{:.1} %", rate * 100.0)) ", " (document.false_reaps.wrong) " of "
                    (document.false_reaps.reaped) " reaps: the executor was heard of afterwards." }
            }
            @if visitor.caller.check_lane(Action::Backtest, &lane).is_ok() {
                p { a href={ "/lanes/" (encoded(lane.as_str())) "/backtest" } { "Its past under other windows" } }
            }
        }
        @if may_set { (change(&visitor, &document)) }
        (past(&history))
    };
    let title = format!("Lane {lane}");
    Ok(Page { title: &title, section: Section::Lanes, now: Some(now), content }.shown(Some(&visitor)))
}

fn in_words(terms: &Terms) -> Markup {
    html! { ul.policy { @for sentence in sentences(terms) { li { (sentence) } } } }
}

fn counts(document: &LaneDocument) -> Markup {
    let path = encoded(document.lane.as_str());
    html! {
        p { "Runs: "
            @for (status, count) in &document.runs { a.count href={ "/runs?lane=" (path) "&status=" (status) } { (status) " " (count) } " " }
            @if document.runs.is_empty() { "none yet" }
        }
    }
}

fn change(visitor: &Visitor, document: &LaneDocument) -> Markup {
    html! {
        section aria-labelledby="change" {
            h2 #change { "Change it" }
            form.policy-form action={ "/lanes/" (encoded(document.lane.as_str())) } method="post" {
                (visitor.csrf_field())
                input type="hidden" name="version" value=(document.policy_version);
                div.fields { (fields(&terms_of(&document.policy.0))) }
                button name="do" value="preview" { "See what it would do" }
                p.quiet { "Spans like 30s, 3m, 2h or 1h30m; " code { "off" } " ends an optional window. Nothing is changed yet." }
            }
        }
    }
}

fn past(history: &[(Timestamp, u32, Terms)]) -> Markup {
    html! {
        @if !history.is_empty() {
            section aria-labelledby="past" {
                h2 #past { "How it changed" }
                ol.history {
                    @for (index, (at, version, terms)) in history.iter().enumerate().rev().take(POLICIES_MAX) { li value=(version) {
                        (instant(*at)) ", version " (version) ": "
                        (difference(index.checked_sub(1).map_or(&Terms::default(), |before| &history[before].2), terms))
                    } }
                }
            }
        }
    }
}

fn difference(before: &Terms, after: &Terms) -> Markup {
    let changed: Vec<_> =
        terms_of(before).into_iter().zip(terms_of(after)).filter(|(old, new)| old.value != new.value).collect();
    html! {
        @if changed.is_empty() { "nothing changed" }
        @for (old, new) in changed { span.change { (new.label) " " del { (old.value) } " " ins { (new.value) } } " " }
    }
}

/// Shows what a policy would do, or sets it.
pub(super) async fn set(
    State(app): State<App>,
    visitor: Visitor,
    Named(lane): Named<Name>,
    Posted(form): Posted<PolicyForm>,
) -> Result<Response, Problem> {
    visitor.caller.check_lane(Action::SetPolicy, &lane)?;
    let terms = form.terms()?;
    let _place = place(&app.searches).await?;
    let lapsing = ask::would_lapse(app.store(), &lane, &terms).await?;
    if form.act == "set" && (lapsing.is_empty() || form.force.is_some()) {
        let (terms, by) = (Box::new(terms), Some(visitor.caller.name()));
        let command = Command::SetPolicy { lane: lane.clone(), terms, expected_version: Some(form.version), by };
        execute(&app, command).await?;
        app.reread_service().await?;
        app.gathered.acted();
        return Ok(Redirect::to(&format!("/lanes/{}", encoded(lane.as_str()))).into_response());
    }
    let document = answers::lane(app.store(), &lane).await?;
    let now = app.store().now().await?;
    let content = preview(&visitor, &document, &terms, form.version, &lapsing);
    let title = format!("Lane {lane}: a change");
    Ok(Page { title: &title, section: Section::Lanes, now: Some(now), content }.shown(Some(&visitor)))
}

fn preview(visitor: &Visitor, document: &LaneDocument, terms: &Terms, version: u32, lapsing: &[RunId]) -> Markup {
    let lane = &document.lane;
    html! {
        h1 { "Lane " (lane) ": before it is changed" }
        section aria-labelledby="would" {
            h2 #would { "What would be different" }
            p { (difference(&document.policy.0, terms)) }
            (in_words(terms))
        }
        section aria-labelledby="now" {
            h2 #now { "What would happen now" }
            @match lapsing.len() {
                0 => p #lapsing { "Under this policy no open run would lapse now." }
                count => {
                    p #lapsing.alarm role="alert" { "▲ Under this policy " strong { (count) @if count == 1 { " run" } @else { " runs" } } " would lapse now:" }
                    ul.plain { @for run in lapsing.iter().take(NAMED_MAX) { li { (run_link(*run)) } } }
                    @if count > NAMED_MAX { p { "and " (count - NAMED_MAX) " more." } }
                }
            }
        }
        form.policy-form action={ "/lanes/" (encoded(lane.as_str())) } method="post" {
            (visitor.csrf_field())
            input type="hidden" name="version" value=(version);
            (hidden_fields(&terms_of(terms)))
            @if !lapsing.is_empty() { label.check { input type="checkbox" name="force" value="yes" required; " Set it all the same; they are to lapse." } }
            button name="do" value="set" { "Set this policy" }
            " " a href={ "/lanes/" (encoded(lane.as_str())) } { "Leave it as it is" }
        }
    }
}
