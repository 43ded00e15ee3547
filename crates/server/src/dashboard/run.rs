//! A run: its timeline, why it is as it is, at any instant, and everything that was recorded of it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lastbeat_domain::access::Action;
use lastbeat_domain::{Run, RunEvent, RunId, Status, Timestamp};
use lastbeat_store::{Judged, Stored, Timeline};
use lastbeat_wire::{EventDocument, RunDocument, WhyDocument, answers};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use super::frame::{Page, Section, sent};
use super::session::Visitor;
use super::timeline::{Frame, drawn};
use super::why::panel;
use super::words::{badge, clock, executor_link, goal_link, instant, lane_link, or_nothing};
use crate::app::App;
use crate::body::{Named, Params};
use crate::caller::{permitted_run, unknown_run};
use crate::gate::place;
use crate::problem::Problem;

/// How many facts a page shows.
const PAGE_FACTS: u64 = 25;
/// Up to how many characters of a fact are shown at first.
const BRIEF_CHARACTERS: usize = 100;
/// Up to how many facts the verdicts are replayed for the picture.
const REPLAYED_FACTS: usize = 20_000;

/// Which part of the time, which instant, and which facts.
#[derive(Deserialize)]
pub(super) struct RunParams {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    at: Option<String>,
    /// After which version the facts are shown.
    facts: Option<u64>,
    /// What was just done.
    done: Option<String>,
}

impl RunParams {
    /// The instant, which may be typed by hand.
    fn at(&self) -> Result<Option<Timestamp>, Problem> {
        let text = self.at.as_deref().map(str::trim).filter(|text| !text.is_empty());
        text.map(str::parse).transpose().map_err(|error| Problem::invalid("at", error))
    }
}

/// Shows a run.
pub(super) async fn page(
    State(app): State<App>,
    visitor: Visitor,
    Named(id): Named<RunId>,
    Params(params): Params<RunParams>,
) -> Result<Response, Problem> {
    permitted_run(&app, &visitor.caller, Action::SeeRun, id).await?;
    let asked_at = params.at()?;
    let _place = place(&app.searches).await?;
    let (past, stretches) = read(&app, id).await?;
    let why = told(&app, id, asked_at).await?;
    let frame = Frame::whole(&past).asked(params.from, params.to);
    let judged = &past.judged;
    let live = !judged.run.status.is_terminal();
    let content = html! {
        (done(params.done.as_deref(), &judged.run))
        div #live-head data-live { (head(judged)) }
        div.columns.wide {
            section aria-labelledby="time" {
                h2 #time { "Timeline" }
                div #live-timeline data-live[live] { (drawn(&past, &stretches, frame)) }
                (scrubber(id, frame, asked_at, judged.at))
            }
            div.beside {
                section.why-box aria-labelledby="why" {
                    h2 #why { "Why" }
                    div #live-why data-live[asked_at.is_none()] { (why) }
                    p.copy { button #copy.quiet type="button" data-document={ "/runs/" (id) "/document" } hidden { "Copy as JSON" } " " a href={ "/runs/" (id) "/document" } { "JSON" } " " a href={ "/runs/" (id) "/bundle" } download { "Incident bundle" } " " span #copied role="status" {} }
                }
                section #live-acts data-live aria-label="Actions" { (acts(&visitor, judged)) }
                section #live-about data-live aria-labelledby="about" { (about(&visitor, &past)) }
            }
            section #live-facts data-live aria-labelledby="facts" { (facts(&visitor, &past, params.facts)) }
        }
    };
    let title = format!("Run {id}");
    Ok(Page { title: &title, section: Section::Runs, now: Some(judged.at), content }.shown(Some(&visitor)))
}

/// What a timeline is drawn from.
async fn read(app: &App, id: RunId) -> Result<(Timeline, Vec<lastbeat_wire::StretchDocument>), Problem> {
    let past = lastbeat_store::timeline(app.store(), id).await?.ok_or_else(|| unknown_run(id))?;
    let stretches = if past.facts.len() <= REPLAYED_FACTS {
        answers::replay(app.store(), id, Some(past.judged.at)).await?.stretches
    } else {
        Vec::new()
    };
    Ok((past, stretches))
}

/// Draws a part of the timeline anew.
pub(super) async fn timeline(
    State(app): State<App>,
    visitor: Visitor,
    Named(id): Named<RunId>,
    Params(params): Params<RunParams>,
) -> Result<Response, Problem> {
    permitted_run(&app, &visitor.caller, Action::SeeRun, id).await?;
    let _place = place(&app.searches).await?;
    let (past, stretches) = read(&app, id).await?;
    let frame = Frame::whole(&past).asked(params.from, params.to);
    Ok(sent(StatusCode::OK, drawn(&past, &stretches, frame)))
}

/// Says why the run was as it was at an instant.
pub(super) async fn why(
    State(app): State<App>,
    visitor: Visitor,
    Named(id): Named<RunId>,
    Params(params): Params<RunParams>,
) -> Result<Response, Problem> {
    permitted_run(&app, &visitor.caller, Action::SeeRun, id).await?;
    let at = params.at()?;
    let _place = place(&app.searches).await?;
    Ok(sent(StatusCode::OK, told(&app, id, at).await?))
}

/// Why the run was as it was. The scrubber goes back to before it was made, too.
async fn told(app: &App, id: RunId, at: Option<Timestamp>) -> Result<Markup, Problem> {
    match answers::why(app.store(), id, at, None).await {
        Ok(why) => Ok(panel(&why)),
        Err(answers::AskError::NotThereYet { at, .. }) => Ok(html! {
            div.why data-at=(at) data-message="" { p.verdict { "At " (instant(at)) " there was no such run yet." } }
        }),
        Err(error) => Err(error.into()),
    }
}

/// Tells all that is known of a run, its facts aside, for programs and for whoever writes about it.
pub(super) async fn document(
    State(app): State<App>,
    visitor: Visitor,
    Named(id): Named<RunId>,
    Params(params): Params<RunParams>,
) -> Result<Response, Problem> {
    permitted_run(&app, &visitor.caller, Action::SeeRun, id).await?;
    let at = params.at()?;
    let _place = place(&app.searches).await?;
    let mut run: RunDocument = answers::run(app.store(), id).await?;
    visitor.caller.veil(&mut run);
    let why: WhyDocument = answers::why(app.store(), id, at, None).await?;
    Ok(Json(json!({"run": run, "why": why})).into_response())
}

/// Gives the run as a bundle, which another database can import, to take along or to keep.
pub(super) async fn bundle(
    State(app): State<App>,
    visitor: Visitor,
    Named(id): Named<RunId>,
) -> Result<Response, Problem> {
    crate::events::bundle(State(app), visitor.caller, Named(id)).await
}

/// Says what was just done, as far as the run bears it out: anybody can write such an address.
fn done(what: Option<&str>, run: &Run) -> Markup {
    let is_reaped = run.reaped.last().is_some_and(|reaped| reaped.attempt == run.attempt);
    let said = match (what, run.status) {
        (Some("cancel"), Status::Cancelled) => "The run was cancelled.",
        (Some("cancel"), Status::Claimed | Status::Running) if run.cancel_requested.is_some() => {
            "The run is to be cancelled. Its executor is told with its next heartbeat."
        }
        (Some("requeue"), Status::Pending) if run.attempt > 0 || run.outcome.is_some() => {
            "The run waits for another attempt."
        }
        (Some("reap"), Status::TimedOut) => "The run was reaped.",
        (Some("reap"), Status::Pending) if is_reaped => "The run was reaped, and waits for another attempt.",
        _ => return html! {},
    };
    html! { p.done role="status" { "✓ " (said) } }
}

fn head(judged: &Judged) -> Markup {
    let run = &judged.run;
    html! {
        header.run-head {
            h1 { "Run " code { (run.id) } }
            p {
                (badge(judged.verdict.liveness, run.status))
                @if !run.status.is_terminal() { " " span.quiet { "(its facts say " (run.status) ")" } }
                " · lane " (lane_link(&run.lane))
                @if let Some(goal) = &run.goal { " · goal " (goal_link(goal)) }
                @if let Some(executor) = run.executor() { " · attempt " (run.attempt) " by " (executor_link(executor)) }
            }
            @if let Some(request) = &run.cancel_requested {
                p { "⊖ " (request.by) " asked for it to be cancelled at " (clock(request.at))
                    @if let Some(reason) = &request.reason { ": " (reason) } }
            }
        }
    }
}

fn scrubber(id: RunId, frame: Frame, at: Option<Timestamp>, now: Timestamp) -> Markup {
    let shown = at.unwrap_or(now).min(frame.to).max(frame.from);
    html! {
        form.scrubber action={ "/runs/" (id) } method="get" {
            label #scrub-label for="scrub" hidden { "Drag to an instant: what was known then?" }
            input #scrub type="range" min=(frame.from.as_micros()) max=(frame.to.as_micros()) step="1000" value=(shown.as_micros()) hidden;
            label { "At " input #at name="at" value=[at] placeholder="2026-05-04T02:37:00Z" maxlength="40"; }
            button { "What was known then?" }
            a #scrub-now href={ "/runs/" (id) } { "Now" }
        }
    }
}

fn acts(visitor: &Visitor, judged: &Judged) -> Markup {
    let run = &judged.run;
    let may = |action: Action| visitor.caller.check_run(action, run).is_ok();
    let offered = [
        (Action::Cancel, "cancel", "Cancel", !run.status.is_terminal() && run.cancel_requested.is_none()),
        (Action::Requeue, "requeue", "Requeue", matches!(run.status, Status::Failed | Status::TimedOut)),
        (Action::Reap, "reap", "Reap now", judged.verdict.is_lapsed()),
    ];
    let offered: Vec<_> = offered.into_iter().filter(|(action, _, _, fits)| *fits && may(*action)).collect();
    html! {
        @if !offered.is_empty() {
            h2 { "Do something about it" }
            @for (_, act, name, _) in offered {
                form.act action={ "/runs/" (run.id) "/" (act) } method="post" {
                    (visitor.csrf_field())
                    label { "Why " input name="reason" required maxlength="256" aria-label={ "Why " (act) }; }
                    button { (name) }
                }
            }
        }
    }
}

fn about(visitor: &Visitor, past: &Timeline) -> Markup {
    let judged = &past.judged;
    let run = &judged.run;
    let input = past.facts.first().and_then(Stored::known).and_then(|fact| match &fact.event {
        RunEvent::Created { input, .. } => input.as_ref(),
        _ => None,
    });
    let output = run.outcome.as_ref().filter(|_| run.status.is_terminal()).and_then(|outcome| match &outcome.event {
        RunEvent::Completed { output, .. } => output.clone(),
        RunEvent::Failed { error, .. } => Some(Value::String(error.clone())),
        _ => None,
    });
    let mut shown = RunDocument::from(judged);
    visitor.caller.veil(&mut shown);
    html! {
        h2 #about { "About it" }
        dl.facts {
            dt { "Created" } dd { (instant(run.created_at)) }
            dt { "Claimed" } dd { (or_nothing(run.claimed_at().map(instant))) }
            dt { "Last heard" } dd { (or_nothing(run.last_heartbeat_at().map(instant))) ", " (run.beats) " heartbeats in this attempt" }
            dt { "Device" } dd { (or_nothing(run.device.as_ref().map(|device| html! { "only " (device) }))) }
            dt { "Unique key" } dd { (or_nothing(run.unique_key.as_ref().map(|key| html! { (key) }))) }
            dt { "Labels" } dd {
                @for (key, value) in &run.labels { span.label { (key) "=" (value) } " " }
                @if run.labels.is_empty() { (or_nothing(None)) }
            }
            dt { "Claim" } dd { (or_nothing(shown.claim.as_ref().map(|claim| html! { code { (claim) } }))) }
        }
        @if let Some(progress) = &run.progress { h3 { "Progress" } pre tabindex="0" aria-label="Progress" { code { (pretty(progress)) } } }
        (folded("Input", input))
        (folded("Output", output.as_ref()))
    }
}

fn folded(name: &str, value: Option<&Value>) -> Markup {
    html! {
        @if let Some(value) = value {
            details { summary { (name) } pre tabindex="0" aria-label=(name) { code { (pretty(value)) } } }
        }
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn facts(visitor: &Visitor, past: &Timeline, after: Option<u64>) -> Markup {
    let run = &past.judged.run;
    let last = run.version.saturating_sub(PAGE_FACTS);
    let after = after.unwrap_or(last).min(run.version);
    let first = past.facts.partition_point(|fact| fact.version() <= after);
    let limit = usize::try_from(PAGE_FACTS).unwrap_or(usize::MAX);
    let shown: Vec<&Stored> = past.facts[first..].iter().take(limit).collect();
    let to = |after: u64| format!("/runs/{}?facts={after}#facts", run.id);
    html! {
        h2 #facts { "Facts" }
        div.scroll tabindex="0" role="region" aria-labelledby="facts" { table.facts-table {
            thead { tr { th.number scope="col" { "Version" } th scope="col" { "Recorded" } th scope="col" { "Fact" } th scope="col" { "Says" } } }
            tbody { @for fact in &shown { tr {
                td.number { (fact.version()) }
                td { time datetime=(fact.recorded_at()) { (fact.recorded_at()) } }
                td { (fact.type_name()) }
                td.raw { (says(visitor, fact)) }
            } } }
        } }
        nav.pages aria-label="Pages of the facts" {
            @if after > 0 { a href=(to(0)) { "First" } a rel="prev" href=(to(after.saturating_sub(PAGE_FACTS))) { "Earlier" } }
            @if after + PAGE_FACTS < run.version { a rel="next" href=(to(after + PAGE_FACTS)) { "Later" } a href={ "/runs/" (run.id) "#facts" } { "Last" } }
            span.quiet { "of " (run.version) }
        }
    }
}

/// What a fact says: all of it, folded up where it is long.
fn says(visitor: &Visitor, fact: &Stored) -> Markup {
    let raw = raw(visitor, fact);
    let brief = match fact.known().map(|known| &known.event) {
        Some(RunEvent::TimedOut { message, .. }) => message.clone(),
        _ => format!("{}…", raw.chars().take(BRIEF_CHARACTERS).collect::<String>()),
    };
    html! {
        @if raw.chars().count() <= BRIEF_CHARACTERS { code { (raw) } }
        @else { details { summary { (brief) } code { (raw) } } }
    }
}

/// What a fact says beside its envelope, as it stands in the log.
fn raw(visitor: &Visitor, fact: &Stored) -> String {
    let mut document = EventDocument::from(fact.clone());
    visitor.caller.veil_fact(&mut document);
    let mut value = serde_json::to_value(&document).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        for envelope in ["run", "version", "recorded_at", "type"] {
            fields.remove(envelope);
        }
    }
    value.to_string()
}
