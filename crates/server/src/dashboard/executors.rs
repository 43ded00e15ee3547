//! Who is at work: what each holds, when it was last heard of, and how often it spoke after it had been reaped.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use lastbeat_domain::access::Action;
use lastbeat_domain::{Liveness, Name, Status, Timestamp};
use lastbeat_store::{Filter, Judged, ask};
use maud::{Markup, html};

use super::frame::{Page, Section};
use super::session::Visitor;
use super::words::{ago, executor_link, or_nothing, tag};
use crate::app::App;
use crate::gate::place;
use crate::problem::Problem;

/// How many of the newest runs in flight, and of the newest runs at all, are looked at.
const RUNS_MAX: usize = 2_000;

#[derive(Default)]
struct Executor {
    devices: BTreeSet<Name>,
    holds: BTreeMap<Liveness, usize>,
    heard: Option<Timestamp>,
    reaped: usize,
    late: usize,
}

/// Lists the executors.
pub(super) async fn page(State(app): State<App>, visitor: Visitor) -> Result<Response, Problem> {
    visitor.caller.check(Action::SeeService)?;
    let _place = place(&app.searches).await?;
    let in_flight = Filter { statuses: vec![Status::Claimed, Status::Running], ..Filter::default() };
    let held = ask::newest(app.store(), &in_flight, RUNS_MAX).await?;
    let newest = ask::newest(app.store(), &Filter::default(), RUNS_MAX).await?;
    let now = app.store().now().await?;
    let executors = gathered(&held, &newest);
    let is_all = held.len() < RUNS_MAX && newest.len() < RUNS_MAX;
    let content = html! {
        h1 #executors { "Executors" }
        section #live-executors data-live {
            @if executors.is_empty() { p.quiet { "No run was ever claimed here." } } @else { (table(&executors, now)) }
            @if !is_all { p.quiet { "Told from the " (RUNS_MAX) " newest runs in flight and the " (RUNS_MAX) " newest of all." } }
        }
    };
    Ok(Page { title: "Executors", section: Section::Executors, now: Some(now), content }.shown(Some(&visitor)))
}

fn gathered(held: &[Judged], newest: &[Judged]) -> Vec<(Name, Executor)> {
    let mut executors: BTreeMap<Name, Executor> = BTreeMap::new();
    for judged in held {
        let Some(executor) = judged.run.executor() else { continue };
        let known = executors.entry(executor.clone()).or_default();
        *known.holds.entry(judged.verdict.liveness).or_default() += 1;
    }
    let mut seen = BTreeSet::new();
    for judged in held.iter().chain(newest).filter(|judged| seen.insert(judged.run.id)) {
        if let Some(claim) = &judged.run.claim {
            let known = executors.entry(claim.executor.clone()).or_default();
            known.devices.extend(claim.device.clone());
            known.heard = known.heard.max(judged.run.last_heartbeat_at());
        }
        for reaped in &judged.run.reaped {
            let known = executors.entry(reaped.executor.clone()).or_default();
            known.reaped += 1;
            known.late += reaped.signals.len();
        }
    }
    let mut executors: Vec<(Name, Executor)> = executors.into_iter().collect();
    executors.sort_by_key(|(_, executor)| std::cmp::Reverse(executor.heard));
    executors
}

fn table(executors: &[(Name, Executor)], now: Timestamp) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-labelledby="executors" { table {
            thead { tr {
                th scope="col" { "Executor" }
                th scope="col" { "Last heard" }
                th scope="col" { "In hand" }
                th scope="col" { "Devices" }
                th.number scope="col" { "Reaped" }
                th.number scope="col" { "Late signals" }
            } }
            tbody { @for (name, executor) in executors { tr {
                th scope="row" { (executor_link(name)) }
                td { (or_nothing(executor.heard.map(|at| ago(at, now)))) }
                td {
                    @for (liveness, count) in &executor.holds { span.count { (tag(liveness.as_str())) " " (count) } " " }
                    @if executor.holds.is_empty() { (or_nothing(None)) }
                }
                td { @for device in &executor.devices { (device) " " } @if executor.devices.is_empty() { (or_nothing(None)) } }
                td.number { (executor.reaped) }
                td.number { @if executor.late > 0 { strong { "◆ " (executor.late) } } @else { "0" } }
            } } }
        } }
    }
}
