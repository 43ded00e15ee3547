//! The timeline of a run, drawn to scale.
//!
//! From top to bottom: the attempts as bands; what the rule said, stretch by stretch; the silences, each rising from its
//! beginning as its charge grew, against the line where its window ends; the heartbeats as ticks; the other facts as
//! marks. Deaf spans are hatched across all of it, and a silence stands still in them. So a reap is seen as what it is:
//! a silence that crossed its line.
//!
//! There may be a hundred thousand heartbeats and there are a thousand columns, so beyond a few silences to a column each
//! column shows the shortest and the longest of its silences, and no heartbeat hides another. Whoever looks closer is
//! drawn a part of the time anew.

use std::fmt::Write;

use lastbeat_domain::{Recorded, RunEvent, RunId, Span, Timestamp};
use lastbeat_store::{Silence, Stored, Timeline};
use lastbeat_wire::StretchDocument;
use maud::{Markup, html};

use super::words::{clock, encoded, rough};

/// How wide it is, in its own units.
const WIDTH: f64 = 1_000.0;
const COLUMNS: usize = 1_000;
const HEIGHT: u32 = 236;
/// Where its rows are.
const BANDS: (u32, u32) = (22, 18);
const VERDICTS: (u32, u32) = (44, 10);
/// Where the silences stand, and where the line is at which a window ends.
const GROUND: f64 = 158.0;
const LINE: f64 = 76.0;
const TOP: f64 = 60.0;
const TICKS: (u32, u32) = (164, 14);
const MARKS: f64 = 196.0;
/// Up to how many silences each is drawn for itself.
const SILENCES_DRAWN: usize = 1_500;
/// How many marks are drawn at the most.
const MARKS_MAX: usize = 400;

/// A part of the time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

impl Frame {
    /// All of a run's time, and a little more; a run that is open goes on until now.
    pub(super) fn whole(past: &Timeline) -> Frame {
        let from = past.judged.run.created_at;
        let last = past.facts.last().map_or(from, Stored::recorded_at);
        let to = if past.judged.run.status.is_terminal() { last } else { past.judged.at };
        let margin = Span::from_micros(to.since(from).as_micros() / 50).max(Span::from_millis(500));
        Frame { from: from.minus(margin), to: to.plus(margin) }
    }

    /// The part that was asked for, if it is one.
    pub(super) fn asked(self, from: Option<Timestamp>, to: Option<Timestamp>) -> Frame {
        match (from, to) {
            (Some(from), Some(to)) if to.since(from) >= Span::from_millis(1) => Frame { from, to },
            _ => self,
        }
    }

    fn length(self) -> Span {
        self.to.since(self.from)
    }

    /// Where an instant is, from 0 to the width; outside the frame at its edges.
    #[allow(clippy::cast_precision_loss)] // A column more or less in a million does not show.
    fn x(self, at: Timestamp) -> f64 {
        let share = at.since(self.from).as_micros() as f64 / self.length().as_micros().max(1) as f64;
        (share * WIDTH).min(WIDTH)
    }

    fn shows(self, from: Timestamp, to: Timestamp) -> bool {
        to >= self.from && from <= self.to
    }

    /// The same length elsewhere, or half or twice of it around the same middle.
    fn moved(self, by: i8) -> Frame {
        let half = Span::from_micros(self.length().as_micros() / 2);
        if by < 0 {
            Frame { from: self.from.minus(half), to: self.to.minus(half) }
        } else {
            Frame { from: self.from.plus(half), to: self.to.plus(half) }
        }
    }

    fn closer(self) -> Frame {
        let quarter = Span::from_micros(self.length().as_micros() / 4);
        Frame { from: self.from.plus(quarter), to: self.to.minus(quarter) }
    }

    fn farther(self) -> Frame {
        let half = Span::from_micros(self.length().as_micros() / 2);
        Frame { from: self.from.minus(half), to: self.to.plus(half) }
    }
}

/// Draws the timeline with what moves about in it.
pub(super) fn drawn(past: &Timeline, stretches: &[StretchDocument], frame: Frame) -> Markup {
    let run = past.judged.run.id;
    let whole = Frame::whole(past);
    html! {
        div #timeline.timeline data-run=(run) data-from=(frame.from.as_micros()) data-to=(frame.to.as_micros())
            data-whole-from=(whole.from.as_micros()) data-whole-to=(whole.to.as_micros()) {
            (tools(run, frame, whole))
            div.scroll tabindex="0" role="region" aria-label="The timeline, drawn" { (picture(past, stretches, frame)) }
            (legend(past))
        }
    }
}

fn tools(run: RunId, frame: Frame, whole: Frame) -> Markup {
    let to = |frame: Frame| {
        format!("/runs/{run}?from={}&to={}#timeline", encoded(&frame.from.to_string()), encoded(&frame.to.to_string()))
    };
    html! {
        nav.tools aria-label="Part of the time" {
            a data-frame href=(to(frame.closer())) { "Closer" }
            a data-frame href=(to(frame.farther())) { "Farther" }
            a data-frame href=(to(frame.moved(-1))) { "◀ Earlier" }
            a data-frame href=(to(frame.moved(1))) { "Later ▶" }
            @if frame != whole { a data-frame href={ "/runs/" (run) "#timeline" } { "All of it" } }
            span.quiet { (clock(frame.from)) " to " (clock(frame.to)) ", " (rough(frame.length())) }
        }
    }
}

fn picture(past: &Timeline, stretches: &[StretchDocument], frame: Frame) -> Markup {
    html! {
        svg.drawing viewBox={ "0 0 1000 " (HEIGHT) } role="img" aria-labelledby="timeline-title timeline-told" {
            title #timeline-title { "Timeline of the run" }
            desc #timeline-told { (told(past)) }
            defs {
                pattern #hatch width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect.hatch-ground width="6" height="6" {}
                    line.hatch-line x1="0" y1="0" x2="0" y2="6" {}
                }
            }
            (axis(frame))
            (bands(past, frame))
            (verdicts(stretches, frame))
            (silences(past, frame))
            (ticks(past, frame))
            @for (from, to) in past.deaf.iter().filter(|(from, to)| frame.shows(*from, *to)) {
                rect.deaf x=(two(frame.x(*from))) y="18" width=(two(frame.x(*to) - frame.x(*from))) height="190" fill="url(#hatch)" {
                    title { "Nobody listened from " (from) " to " (to) " (" (rough(to.since(*from))) "): not charged" }
                }
            }
            (marks(past, frame))
            line #needle.needle x1="0" x2="0" y1="14" y2="212" visibility="hidden" {}
        }
    }
}

/// The picture in words.
fn told(past: &Timeline) -> String {
    let run = &past.judged.run;
    let longest = past.silences.iter().max_by(|a, b| a.share().total_cmp(&b.share()));
    let silence = longest.map_or_else(String::new, |silence| {
        format!(
            ", the most dangerous silence {} of {} under {}",
            rough(silence.charged),
            rough(silence.window),
            silence.rule
        )
    });
    format!(
        "{} facts in {} attempts from {} on, {} reaps, {} deaf spans{silence}.",
        past.facts.len(),
        run.attempt,
        run.created_at.to_the_second(),
        run.reaped.len(),
        past.deaf.len()
    )
}

/// A number with two decimals, which is finer than any screen.
fn two(number: f64) -> String {
    format!("{number:.2}")
}

/// The times at the top, at round steps.
fn axis(frame: Frame) -> Markup {
    const STEPS: [u64; 22] = [
        1,
        2,
        5,
        10,
        50,
        100,
        500,
        1_000,
        5_000,
        15_000,
        60_000,
        300_000,
        900_000,
        3_600_000,
        10_800_000,
        43_200_000,
        86_400_000,
        604_800_000,
        2_592_000_000,
        7_776_000_000,
        31_536_000_000,
        315_360_000_000,
    ];
    let length = frame.length().as_micros() / 1_000;
    let step = STEPS.into_iter().find(|step| length / step <= 9).unwrap_or(STEPS[21]) * 1_000;
    let first = frame.from.as_micros().div_euclid(i64::try_from(step).unwrap_or(i64::MAX)) + 1;
    let at =
        |index: i64| Timestamp::from_micros((first + index).saturating_mul(i64::try_from(step).unwrap_or(i64::MAX)));
    let label = |at: Timestamp| match step {
        0..1_000_000 => at.to_string().get(11..23).unwrap_or_default().to_owned(),
        1_000_000..86_400_000_000 => at.time_of_day(),
        _ => at.to_the_second().get(..10).unwrap_or_default().to_owned(),
    };
    html! {
        g.axis aria-hidden="true" {
            @for at in (0..12).map(at).take_while(|at| *at <= frame.to) {
                line x1=(two(frame.x(at))) x2=(two(frame.x(at))) y1="16" y2="208" {}
                @if frame.x(at) < WIDTH - 70.0 { text x=(two(frame.x(at) + 3.0)) y="11" { (label(at)) } }
            }
        }
    }
}

/// An attempt, from its claim to its end.
struct Attempt {
    number: u32,
    executor: String,
    from: Timestamp,
    to: Timestamp,
}

fn attempts(past: &Timeline) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut is_open = false;
    for fact in past.facts.iter().filter_map(Stored::known) {
        let at = fact.recorded_at;
        match &fact.event {
            RunEvent::Claimed { attempt, executor, .. } => {
                attempts.push(Attempt { number: *attempt, executor: executor.to_string(), from: at, to: at });
                is_open = true;
            }
            RunEvent::Completed { .. }
            | RunEvent::Failed { .. }
            | RunEvent::TimedOut { .. }
            | RunEvent::Cancelled { .. } => {
                if let Some(last) = attempts.last_mut().filter(|_| is_open) {
                    last.to = at;
                }
                is_open = false;
            }
            _ => {}
        }
    }
    if let Some(last) = attempts.last_mut().filter(|_| is_open) {
        last.to = past.judged.at;
    }
    attempts
}

fn bands(past: &Timeline, frame: Frame) -> Markup {
    let (y, height) = BANDS;
    html! {
        g.bands {
            @for Attempt { number, executor, from, to } in attempts(past).iter().filter(|band| frame.shows(band.from, band.to)) {
                @let (x, width) = (frame.x(*from), (frame.x(*to) - frame.x(*from)).max(1.0));
                g {
                    title { "Attempt " (number) " by " (executor) ", " (from) " to " (to) }
                    rect x=(two(x)) y=(y) width=(two(width)) height=(height) rx="3" {}
                    @if width > 90.0 { text x=(two(x + 6.0)) y=(y + 13) { (number) " · " (shortened(executor, width)) } }
                }
            }
        }
    }
}

fn shortened(text: &str, width: f64) -> String {
    // A letter takes about seven units; a width is never negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let room = ((width - 36.0) / 7.0).max(1.0) as usize;
    if text.chars().count() <= room {
        text.to_owned()
    } else {
        text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
    }
}

fn verdicts(stretches: &[StretchDocument], frame: Frame) -> Markup {
    let (y, height) = VERDICTS;
    let seen = || stretches.iter().filter(|stretch| frame.shows(stretch.from, stretch.to));
    html! {
        g.verdicts {
            @for stretch in seen().take(COLUMNS * 2) {
                @let (x, width) = (frame.x(stretch.from), frame.x(stretch.to) - frame.x(stretch.from));
                rect class={ "s-" (stretch.verdict) } x=(two(x)) y=(y) width=(two(width.max(0.3))) height=(height) {
                    title { (stretch.verdict) ", " (rough(stretch.to.since(stretch.from))) @if let Some(rule) = stretch.rule { ", " (rule) } }
                }
            }
        }
    }
}

/// How high a share of a window stands.
fn y_of(share: f64) -> f64 {
    (GROUND - share * (GROUND - LINE)).max(TOP)
}

fn silences(past: &Timeline, frame: Frame) -> Markup {
    let first = past.silences.partition_point(|silence| silence.to < frame.from);
    let seen: Vec<&Silence> = past.silences[first..].iter().take_while(|silence| silence.from <= frame.to).collect();
    let shape = if seen.len() <= SILENCES_DRAWN { each(&seen, frame) } else { columns(&seen, frame) };
    let window = seen.last().map(|silence| format!("window {}", rough(silence.window))).unwrap_or_default();
    html! {
        g.silences {
            line.ground x1="0" x2="1000" y1=(two(GROUND)) y2=(two(GROUND)) {}
            (shape)
            line.window x1="0" x2="1000" y1=(two(LINE)) y2=(two(LINE)) {}
            text.window-label x="4" y=(two(LINE - 4.0)) { (window) }
        }
    }
}

/// Each silence for itself, rising as its charge grew.
fn each(silences: &[&Silence], frame: Frame) -> Markup {
    let outline = |silence: &Silence| {
        let mut path = format!("M{:.2} {GROUND:.2}", frame.x(silence.from));
        for (at, charged) in &silence.course {
            // Writing to a string does not fail.
            let _ = write!(path, "L{:.2} {:.2}", frame.x(*at), y_of(silence.share_of(*charged)));
        }
        let _ = write!(path, "L{:.2} {GROUND:.2}Z", frame.x(silence.to));
        path
    };
    html! {
        @for silence in silences {
            path class={ "silence r-" (silence.rule) @if silence.lapsed { " over" } } d=(outline(silence)) {
                title { (rough(silence.charged)) " of " (rough(silence.window)) " under " (silence.rule) ", from " (clock_text(silence.from)) " to " (clock_text(silence.to)) }
            }
        }
    }
}

fn clock_text(at: Timestamp) -> String {
    at.time_of_day()
}

/// For each column the least and the most that was charged of the silences that ended in it.
fn columns(silences: &[&Silence], frame: Frame) -> Markup {
    let mut found: Vec<Option<(f64, f64, bool)>> = vec![None; COLUMNS + 1];
    for silence in silences {
        // An x is from 0 to the width, so it is a column.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let column = frame.x(silence.to) as usize;
        let share = silence.share();
        if let Some(column) = found.get_mut(column) {
            let (least, most, lapsed) = column.unwrap_or((share, share, false));
            *column = Some((least.min(share), most.max(share), lapsed || silence.lapsed));
        }
    }
    let (mut most, mut least, mut over) = (String::new(), String::new(), String::new());
    for (x, found) in found.iter().enumerate() {
        let Some((low, high, lapsed)) = found else { continue };
        let path = if *lapsed { &mut over } else { &mut most };
        let _ = write!(path, "M{x} {GROUND:.1}V{:.1}", y_of(*high));
        let _ = write!(least, "M{x} {GROUND:.1}V{:.1}", y_of(*low));
    }
    html! {
        path.column.most d=(most) { title { "the longest silence of each column" } }
        path.column.over d=(over) { title { "a silence over its window" } }
        path.column.least d=(least) { title { "the shortest silence of each column" } }
    }
}

/// A tick for each heartbeat; of those that would stand on one spot, one.
fn ticks(past: &Timeline, frame: Frame) -> Markup {
    let (y, height) = TICKS;
    let (mut path, mut last, mut count) = (String::new(), f64::MIN, 0_usize);
    let first = past.facts.partition_point(|fact| fact.recorded_at() < frame.from);
    for fact in past.facts[first..].iter().take_while(|fact| fact.recorded_at() <= frame.to) {
        if fact.type_name() != "heartbeat" {
            continue;
        }
        count += 1;
        let x = frame.x(fact.recorded_at());
        if x - last >= 0.5 {
            let _ = write!(path, "M{x:.1} {y}v{height}");
            last = x;
        }
    }
    html! { path.ticks d=(path) { title { (count) " heartbeats" } } }
}

/// The facts that are no heartbeats.
fn marks(past: &Timeline, frame: Frame) -> Markup {
    let first = past.facts.partition_point(|fact| fact.recorded_at() < frame.from);
    let seen = past.facts[first..].iter().take_while(|fact| fact.recorded_at() <= frame.to);
    let marks = seen.filter_map(Stored::known).filter(|fact| !matches!(fact.event, RunEvent::Heartbeat { .. }));
    html! { g.marks { @for fact in marks.take(MARKS_MAX) { (mark(fact, frame.x(fact.recorded_at))) } } }
}

fn mark(fact: &Recorded, x: f64) -> Markup {
    let y = MARKS;
    let shape = match &fact.event {
        RunEvent::TimedOut { .. } => format!("M{:.1} {:.1}l8 8m0 -8l-8 8", x - 4.0, y - 4.0),
        RunEvent::LateSignal { .. } => format!("M{x:.1} {:.1}l5 5l-5 5l-5 -5z", y - 5.0),
        RunEvent::Completed { .. } => format!("M{:.1} {y:.1}l3 4l6 -8", x - 5.0),
        RunEvent::Failed { .. } | RunEvent::Cancelled { .. } => format!("M{:.1} {:.1}h8v8h-8z", x - 4.0, y - 4.0),
        RunEvent::Claimed { .. } => format!("M{:.1} {:.1}l7 4.5l-7 4.5z", x - 3.0, y - 4.5),
        _ => format!("M{:.1} {y:.1}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0", x - 3.0),
    };
    let label = match &fact.event {
        RunEvent::TimedOut { rule, .. } => Some(format!("reaped: {rule}")),
        RunEvent::LateSignal { signal, .. } => Some(format!(
            "late {}",
            serde_json::to_value(signal).ok().as_ref().and_then(|word| word.as_str()).unwrap_or("signal")
        )),
        _ => None,
    };
    let anchor = if x > 800.0 { "end" } else { "start" };
    html! {
        g class={ "mark m-" (fact.event.type_name()) } {
            title { (fact.event.type_name()) ", version " (fact.version) ", " (fact.recorded_at) }
            path d=(shape) {}
            @if let Some(label) = label {
                line.drop x1=(two(x)) x2=(two(x)) y1="18" y2=(two(y - 8.0)) {}
                text x=(two(x)) y=(two(y + 18.0 + if label.starts_with("late") { 12.0 } else { 0.0 })) text-anchor=(anchor) { (label) }
            }
        }
    }
}

fn legend(past: &Timeline) -> Markup {
    html! {
        p.legend {
            span.key { span.swatch.w-tick aria-hidden="true" {} "heartbeat" }
            span.key { span.swatch.w-silence aria-hidden="true" {} "silence, as it is charged" }
            span.key { span.swatch.w-line aria-hidden="true" {} "where its window ends" }
            @if !past.deaf.is_empty() { span.key { span.swatch.w-deaf aria-hidden="true" {} "nobody listened" } }
            span.key { "▷ claimed" } span.key { "✕ reaped" } span.key { "◇ late signal" } span.key { "✓ completed" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn an_instant_is_where_it_belongs_and_never_outside() {
        let frame = Frame { from: at(100), to: at(200) };
        let places = [50, 100, 125, 200, 300].map(|second| frame.x(at(second)));
        assert_eq!(places, [0.0, 0.0, 250.0, 1_000.0, 1_000.0]);
    }

    #[test]
    fn a_window_ends_at_its_line_and_what_is_over_stands_above() {
        assert!((y_of(1.0) - LINE).abs() < 1e-9 && (y_of(0.0) - GROUND).abs() < 1e-9);
        assert!(y_of(1.1) < LINE && (y_of(50.0) - TOP).abs() < 1e-9);
    }

    #[test]
    fn looking_closer_and_farther_ends_where_it_began() {
        let frame = Frame { from: at(100), to: at(200) };
        assert_eq!(frame.closer().farther(), frame);
        assert_eq!(frame.moved(-1).moved(1), frame);
        assert_eq!(frame.asked(Some(at(5)), Some(at(5))), frame);
    }
}
