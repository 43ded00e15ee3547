//! The overview: what is alive now, what is about to lapse, what died lately, and whether we can be trusted.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use lastbeat_domain::access::Action;
use lastbeat_domain::listening::BeaconRole;
use lastbeat_domain::{Liveness, Timestamp};
use lastbeat_store::{Judged, ReapCount};
use lastbeat_wire::{HoldDocument, HoldKind};
use maud::{Markup, html};

use super::frame::{Page, Section};
use super::gathered::{Gathered, GoalNow, LaneNow, SOON_EXAMINED, gather};
use super::session::Visitor;
use super::start::{self, as_seen};
use super::words::{
    ago, badge, clock, encoded, executor_link, goal_link, instant, lane_link, or_nothing, rough, run_link, tag, until,
};
use crate::app::App;
use crate::problem::Problem;

/// How many runs are shown that may lapse next.
const SOON_MAX: usize = 15;

/// Shows the overview.
pub(super) async fn page(State(app): State<App>, visitor: Visitor, headers: HeaderMap) -> Result<Response, Problem> {
    let gathered = gather(&app, &visitor.caller).await?;
    let now = gathered.at;
    let content = if gathered.lanes.is_empty() {
        html! {
            div #live-start data-live { (alarms(&gathered, &visitor)) (start::first_run(&visitor, &headers)) }
        }
    } else {
        html! {
            h1.unseen { "Overview" }
            div #live-alarms data-live { (alarms(&gathered, &visitor)) }
            div.columns {
                div {
                    section #live-lanes data-live aria-labelledby="lanes" { (lanes(&gathered)) }
                    section #live-goals data-live aria-labelledby="goals" { (goals(&gathered.goals, &visitor)) }
                    section #live-reaps data-live aria-labelledby="reaps" { (reaps(&gathered, &visitor)) }
                }
                div {
                    section #live-soon data-live aria-labelledby="soon" { (soon(&gathered, &visitor)) }
                    section #live-service data-live aria-labelledby="service" { (service(&gathered, &visitor)) }
                }
            }
        }
    };
    Ok(Page { title: "Overview", section: Section::Overview, now: Some(now), content }.shown(Some(&visitor)))
}

/// What must be known before anything else here is believed.
fn alarms(gathered: &Gathered, visitor: &Visitor) -> Markup {
    html! {
        @if let Some(since) = gathered.deaf_since {
            p.alarm role="alert" {
                strong { "▲ Deaf." } " Nobody has listened for executors since " (instant(since)) ". Until somebody does, silence is "
                "charged to nobody and nothing is reaped."
            }
        }
        @for hold in &gathered.holds { (held(hold, gathered.at, visitor)) }
    }
}

fn held(hold: &HoldDocument, now: Timestamp, visitor: &Visitor) -> Markup {
    let may_release =
        hold.state == HoldKind::Held && visitor.caller.check_lane(Action::ReleaseHold, &hold.lane).is_ok();
    html! {
        div.alarm.hold role="group" aria-label={ "Hold of lane " (hold.lane) } {
            p {
                @match hold.state {
                    HoldKind::Held => {
                        (tag("held")) " Lane " (lane_link(&hold.lane)) " is held since " (ago(hold.held_at, now)) ": "
                        (hold.silent_when_held) " of " (hold.beating_when_held) " beating runs went silent at once, which is "
                        "more likely our fault than theirs. Nothing of it is reaped for silence. "
                        @if let Some(by) = hold.ends_by { "It ends by itself " (until(by, now)) ". " }
                    }
                    HoldKind::Draining => {
                        (tag("draining")) " Lane " (lane_link(&hold.lane)) " was released " (ago(hold.since, now)) ": its silent "
                        "runs are reaped at " (hold.reap_rate) " a second. "
                    }
                }
                "Silent now: " (hold.silent) " of " (hold.beating) ", lapsed: " (hold.lapsed) "."
            }
            @if may_release {
                form.act action={ "/lanes/" (encoded(hold.lane.as_str())) "/release" } method="post" {
                    (visitor.csrf_field())
                    label { "Why " input name="reason" required maxlength="256" placeholder="the power is really gone"; }
                    button { "Release the hold" }
                }
            }
        }
    }
}

fn lanes(gathered: &Gathered) -> Markup {
    html! {
        h2 #lanes { "Lanes" }
        div.scroll tabindex="0" role="region" aria-labelledby="lanes" { table {
            thead { tr {
                th scope="col" { "Lane" }
                th.number scope="col" { "In flight" }
                th scope="col" { "Of which" }
                th.number scope="col" { "Waiting" }
                th.number scope="col" { "Reaps" }
                th.number scope="col" { "Wrongly" }
            } }
            tbody { @for lane in &gathered.lanes { (lane_row(lane)) } }
        } }
        @if gathered.more_lanes > 0 { p { a href="/lanes" { (gathered.more_lanes) " more lanes" } } }
    }
}

fn lane_row(lane: &LaneNow) -> Markup {
    let about = if lane.is_estimate { "≈ " } else { "" };
    let path = encoded(lane.lane.as_str());
    html! {
        tr {
            th scope="row" { (lane_link(&lane.lane)) }
            td.number title=[lane.is_estimate.then_some("told from a sample")] { (about) (lane.in_flight) }
            td {
                @for (liveness, count) in &lane.verdicts {
                    a.count href={ "/runs?lane=" (path) "&verdict=" (liveness) } title=[lane.is_estimate.then_some("told from a sample")] {
                        (tag(liveness.as_str())) " " (about) (count)
                    }
                    " "
                }
                @if lane.verdicts.is_empty() { (or_nothing(None)) }
            }
            td.number { (lane.waiting) }
            td.number {
                @if lane.reaped > 0 { a href={ "/runs?lane=" (path) "&status=timed_out" } { (lane.rate.reaped.max(lane.reaped)) } }
                @else { (lane.rate.reaped) }
            }
            td.number { (wrongly(lane)) }
        }
    }
}

/// The false reap rate of a lane, with what it rests on.
fn wrongly(lane: &LaneNow) -> Markup {
    html! {
        @match lane.rate.rate() {
            Some(rate) => span title={ (lane.rate.wrong) " of " (lane.rate.reaped) " reaps: the executor was heard of afterwards" } {
                (format!("{:.1} %", rate * 100.0))
            }
            None => (or_nothing(None)),
        }
    }
}

fn goals(goals: &[GoalNow], visitor: &Visitor) -> Markup {
    html! {
        h2 #goals { "Goals of late" }
        @if goals.is_empty() {
            p.quiet { "None of the latest runs" (as_seen(visitor)) " has a goal." }
        } @else {
            (goal_table(goals, "goals"))
        }
        p { a href="/goals" { "All goals" } }
    }
}

/// Goals with how each stands and which run says so.
pub(super) fn goal_table(goals: &[GoalNow], heading: &str) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-labelledby=(heading) { table {
            thead { tr {
                th scope="col" { "Goal" }
                th scope="col" { "Stands" }
                th scope="col" { "Because" }
                th scope="col" { "Open runs" }
            } }
            tbody { @for goal in goals { tr {
                th scope="row" { (goal_link(&goal.goal)) }
                td {
                    (goal_stands(goal))
                    @if goal.cut_off { " " span.quiet title="It has more open runs than are looked at, and one of them may say otherwise." { "by its newest runs" } }
                }
                td { @if let Some(judged) = &goal.telling { (run_link(judged.run.id)) " is " (badge(judged.verdict.liveness, judged.run.status)) } }
                td {
                    @for (liveness, count) in &goal.open { span.count { (tag(liveness.as_str())) " " (count) } " " }
                    @if goal.more { "or more" }
                }
            } } }
        } }
    }
}

fn goal_stands(goal: &GoalNow) -> Markup {
    let Some(judged) = &goal.telling else { return or_nothing(None) };
    let word = match judged.verdict.liveness {
        liveness if liveness.counts_as_running() => "running",
        Liveness::Settled => judged.run.status.as_str(),
        other => other.as_str(),
    };
    tag(word)
}

fn soon(gathered: &Gathered, visitor: &Visitor) -> Markup {
    let shown: Vec<&Judged> = gathered.soon.runs.iter().take(SOON_MAX).collect();
    let now = gathered.at;
    html! {
        h2 #soon { "Lapses next" }
        @if shown.is_empty() {
            p.quiet {
                @if gathered.soon.through.is_none() { "No open run" (as_seen(visitor)) " can lapse." }
                @else { "None" (as_seen(visitor)) " among the " (SOON_EXAMINED) " runs that were looked at." }
            }
        } @else {
            div.scroll tabindex="0" role="region" aria-labelledby="soon" { table {
                thead { tr {
                    th scope="col" { "Run" }
                    th scope="col" { "Verdict" }
                    th scope="col" { "Unless heard of" }
                    th scope="col" { "Executor" }
                    th scope="col" { "Last heard" }
                } }
                tbody { @for judged in shown { tr data-href={ "/runs/" (judged.run.id) } {
                    th scope="row" { (run_link(judged.run.id)) }
                    td { (badge(judged.verdict.liveness, judged.run.status)) }
                    td.number { @if let Some(at) = judged.verdict.lapses_at() { (until(at, now)) } }
                    td { (or_nothing(judged.run.executor().map(executor_link))) }
                    td { (or_nothing(judged.run.last_heartbeat_at().map(|at| ago(at, now)))) }
                } } }
            } }
        }
        @if let Some(through) = gathered.soon.through {
            p.quiet { "Whatever lapses before " (clock(through)) " is among these and those that follow." }
        }
    }
}

fn reaps(gathered: &Gathered, visitor: &Visitor) -> Markup {
    html! {
        h2 #reaps { "Reaped lately" }
        @if gathered.reaps.is_empty() {
            p.quiet { "No reap" (as_seen(visitor)) " among the latest facts. " a href="/runs?status=timed_out" { "All that timed out" } }
        } @else {
            ul.reaps {
                @for reap in &gathered.reaps { li {
                    div { (ago(reap.at, gathered.at)) " " (run_link(reap.run)) " " span.rule { (reap.rule) }
                        @if reap.spoke_since { " " strong.late { "◆ heard of since: probably wrong" } }
                    }
                    p { (reap.message) }
                } }
            }
        }
    }
}

fn service(gathered: &Gathered, visitor: &Visitor) -> Markup {
    let now = gathered.at;
    html! {
        h2 #service { "Can we be trusted?" }
        dl.facts {
            dt { "Listening" }
            dd {
                @if visitor.caller.may_always(Action::SeeService) {
                    @if gathered.beacons.is_empty() { "Nobody has promised to listen, so nothing counts as deaf." }
                    ul.plain { @for beacon in &gathered.beacons { li {
                        (beacon.process) " "
                        span.quiet { @match beacon.role { BeaconRole::Serve => "serves", BeaconRole::Local => "sweeps" } }
                        " · heard " (ago(beacon.at, now))
                        @if let Some(promise) = beacon.promise { @if promise < now { " " strong { "▲ overdue" } } }
                    } } }
                } @else { "Told to those who see the whole service." }
            }
            dt { "Sweeper here" }
            dd { @match gathered.last_sweep { Some(at) => { "last pass " (ago(at, now)) } None => { "This server has made no pass yet." } } }
            dt { "Deaf spans" }
            dd {
                @if gathered.deaf.is_empty() { "None was ever recorded." }
                ul.plain { @for span in &gathered.deaf { li {
                    (instant(span.from)) " for " (rough(span.to.since(span.from))) " " span.quiet { "(" (cause(span.cause)) ")" }
                } } }
            }
            @let all = gathered.lanes.iter().fold(ReapCount::default(), |sum, lane| sum.plus(lane.rate));
            @if let Some(rate) = all.rate() {
                dt { "False reap rate" }
                dd { (format!("{:.1} %", rate * 100.0)) ": of " (all.reaped) " reaps, " (all.wrong) " turned out wrong" }
            }
            @if let Some(at) = gathered.clock_back {
                dt { "Clock" }
                dd { "The clock was set back, noticed at " (instant(at)) "; log time stood still meanwhile." }
            }
        }
    }
}

fn cause(cause: lastbeat_domain::event::DeafCause) -> &'static str {
    match cause {
        lastbeat_domain::event::DeafCause::Gap => "nobody was there",
        lastbeat_domain::event::DeafCause::ClockStep => "the clock was set forward",
    }
}
