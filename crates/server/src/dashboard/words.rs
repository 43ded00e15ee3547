//! How instants, spans, verdicts and links appear on every page.

use std::fmt::Write;

use lastbeat_domain::{Liveness, Name, RunId, Span, Status, Timestamp};
use maud::{Markup, html};

/// Writes a text so that it can be a part of a path or of a query, whatever is in it.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// So many of something: `1 run`, `2 runs`.
pub(super) fn many(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// A span to the whole second from ten seconds on: what people read at a glance.
pub(super) fn rough(span: Span) -> String {
    const SECOND: u64 = 1_000_000;
    let micros = span.as_micros();
    match micros {
        0..10_000_000 => Span::from_millis(micros / 100_000 * 100).to_string(),
        _ => Span::from_seconds(micros / SECOND).to_string(),
    }
}

/// An instant of the log clock, in full.
pub(super) fn instant(at: Timestamp) -> Markup {
    html! { time datetime=(at) title=(at) { (at.to_the_second()) } }
}

/// An instant of the log clock, as a time of day.
pub(super) fn clock(at: Timestamp) -> Markup {
    html! { time datetime=(at) title=(at) { (at.time_of_day()) } }
}

/// How long ago an instant was at `now`; the script lets it grow.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> Markup {
    html! { time datetime=(at) title=(at) data-since=(at.as_micros()) { (rough(now.since(at))) " ago" } }
}

/// How far off an instant is at `now`; the script counts it down.
pub(super) fn until(at: Timestamp, now: Timestamp) -> Markup {
    let words =
        if at >= now { format!("in {}", rough(at.since(now))) } else { format!("{} ago", rough(now.since(at))) };
    html! { time.count datetime=(at) title=(at) data-until=(at.as_micros()) { (words) } }
}

/// How a run is: its verdict, or how it ended. A shape and a word, so that nobody depends on the colour.
pub(super) fn badge(liveness: Liveness, status: Status) -> Markup {
    let word = match liveness {
        Liveness::Settled => status.as_str(),
        other => other.as_str(),
    };
    tag(word)
}

/// A word for how something is, with the shape and the colour that belong to it.
pub(super) fn tag(word: &str) -> Markup {
    let shape = match word {
        "live" | "running" => "●",
        "quiet" | "held" => "◐",
        "presumed" => "○",
        "lapsed" => "▲",
        "waiting" | "pending" | "draining" => "◌",
        "completed" => "✓",
        "failed" => "✗",
        "timed_out" => "⊗",
        "cancelled" => "⊖",
        _ => "?",
    };
    html! { span class={ "tag t-" (word) } { span.shape aria-hidden="true" { (shape) } " " (word) } }
}

/// A link to a run, by the two ends of its id: the middle tells nobody anything.
pub(super) fn run_link(run: RunId) -> Markup {
    let id = run.to_string();
    let (head, tail) = (id.get(..8).unwrap_or(&id), id.get(32..).unwrap_or_default());
    html! { a.run href={ "/runs/" (id) } title=(id) { (head) "…" (tail) } }
}

/// A link to a lane.
pub(super) fn lane_link(lane: &Name) -> Markup {
    html! { a.name href={ "/lanes/" (encoded(lane.as_str())) } { (lane) } }
}

/// A link to the runs of a goal.
pub(super) fn goal_link(goal: &Name) -> Markup {
    html! { a.name href={ "/runs?goal=" (encoded(goal.as_str())) } { (goal) } }
}

/// A link to the runs of an executor.
pub(super) fn executor_link(executor: &Name) -> Markup {
    html! { a.name href={ "/runs?executor=" (encoded(executor.as_str())) } { (executor) } }
}

/// What stands where there is nothing to say.
pub(super) fn nothing() -> Markup {
    html! { span.none aria-label="none" { "–" } }
}

/// A value, or what stands where there is none.
pub(super) fn or_nothing(shown: Option<Markup>) -> Markup {
    shown.unwrap_or_else(nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_a_name_it_is_one_part_of_an_address() {
        assert_eq!(encoded("a b/c?d&e=f#g<h>\"ü"), "a%20b%2Fc%3Fd%26e%3Df%23g%3Ch%3E%22%C3%BC");
        let lane = Name::new("<script>alert(1)</script>").unwrap();
        let shown = lane_link(&lane).into_string();
        assert!(!shown.contains("<script>") && shown.contains("&lt;script&gt;"), "{shown}");
    }

    #[test]
    fn spans_are_told_to_what_matters() {
        let told = [123_456, 1_234_567, 12_345_678, 7_384_000_000].map(|micros| rough(Span::from_micros(micros)));
        assert_eq!(told, ["0.1s", "1.2s", "12s", "2h 3m 4s"]);
    }
}
