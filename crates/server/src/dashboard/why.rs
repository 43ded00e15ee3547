//! The why panel: the verdict and what it rests on, in sentences first.

use lastbeat_wire::WhyDocument;
use maud::{Markup, html};

use super::words::{badge, executor_link, instant, rough, until};

/// Says why a run is, or was, as it is.
pub(super) fn panel(why: &WhyDocument) -> Markup {
    html! {
        div.why data-at=(why.at) data-message=(why.message) {
            p.verdict { (badge(why.verdict, why.status)) " " span.at { "at " (instant(why.at)) } }
            @for (index, line) in why.explanation.iter().enumerate() {
                p class=[(index == 0).then_some("message")] { (line) }
            }
            (gauge(why))
            (evidence(why))
        }
    }
}

/// How much of the window is used up.
fn gauge(why: &WhyDocument) -> Markup {
    let (Some(charged), Some(window)) = (why.charged_seconds, why.window_seconds) else { return html! {} };
    html! {
        div.gauge {
            label {
                (rough(charged)) " of " (rough(window)) " charged"
                // From half on it is worth a look, and at the end it is bad.
                @let all = window.as_seconds();
                meter min="0" low=(all / 2.0) high=(all * 0.999) optimum="0" max=(all) value=(charged.as_seconds()) { (rough(charged)) " of " (rough(window)) }
            }
            @if let Some(lapses) = why.lapses_at { span { "lapses " (until(lapses, why.at)) } }
        }
    }
}

fn evidence(why: &WhyDocument) -> Markup {
    html! {
        dl.facts {
            @if let Some(rule) = why.rule { dt { "Rule" } dd { code { (rule) } } }
            @if let Some(basis) = why.basis {
                dt { "Charged since" }
                dd { code { (basis.fact.as_str()) } ", version " (basis.version) ", " (instant(basis.at)) }
            }
            @if let Some(deaf) = why.deaf_seconds.filter(|deaf| deaf.as_micros() > 0) { dt { "Deaf, not charged" } dd { (rough(deaf)) } }
            dt { "Attempt" } dd { (why.attempt) @if let Some(executor) = &why.executor { " by " (executor_link(executor)) } }
            @if let Some(version) = why.policy_version { dt { "Policy version" } dd { (version) } }
            @if let (Some(at), Some(sweeper)) = (why.reaped_at, &why.sweeper) { dt { "Reaped" } dd { (instant(at)) " by " (sweeper) } }
        }
    }
}
