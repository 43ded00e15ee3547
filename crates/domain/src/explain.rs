//! A verdict as sentences: why reaped, why not yet, and when it would be.

use crate::event::{Recorded, RunEvent};
use crate::ids::Name;
use crate::listening::Listening;
use crate::policy::{LanePolicy, Mode};
use crate::run::{Outcome, Run, Status};
use crate::time::{Span, Timestamp};
use crate::verdict::{Charge, Liveness, Rule, Verdict};

/// Says in one sentence why a lapsed run is reaped; different for each rule.
pub fn reap_message(run: &Run, charge: &Charge) -> String {
    let (attempt, executor) = (run.attempt, executor(run));
    let (charged, limit, since) = (charge.charged, charge.window, charge.basis.at.time_of_day());
    let deaf = not_charged(charge.deaf);
    match charge.rule {
        Rule::HeartbeatSilence => format!(
            "heartbeat silent for {charged} (limit {limit}){deaf}: last heard {since} from {executor}, \
             attempt {attempt}; the executor crashed or was abandoned"
        ),
        Rule::CoarseTtl => format!(
            "no terminal state {charged} after the claim (limit {limit}){deaf}: {executor} never sent a heartbeat, \
             attempt {attempt}"
        ),
        Rule::Unclaimed => {
            format!("not claimed for {charged} (limit {limit}){deaf}: waiting since {since}, and no executor took it")
        }
        Rule::Unstarted => format!(
            "not started {charged} after the claim (limit {limit}){deaf}: {executor} claimed it at {since} and was \
             not heard of since, attempt {attempt}"
        ),
        Rule::MaxRuntime => format!(
            "ran for {charged} (limit {limit}){deaf}: claimed at {since} by {executor}, attempt {attempt}; the lane \
             allows no longer runtime, beating or not"
        ),
    }
}

/// Says in one sentence how a run is, at log time `now`: why it was reaped, or why not yet.
pub fn sentence(run: &Run, verdict: &Verdict, policy: &LanePolicy, now: Timestamp) -> String {
    match (verdict.liveness, &verdict.charge) {
        (Liveness::Quarantined, _) => {
            let why = run.quarantined.as_deref().unwrap_or("its stream cannot be read");
            format!("quarantined, so neither judged nor reaped: {why}")
        }
        (Liveness::Settled, _) => ending(run),
        (Liveness::Waiting, None) => waiting(run, policy, now),
        (Liveness::Waiting, Some(charge)) => format!(
            "waits to be claimed since {}, {} of {} allowed; it would be reaped as unclaimed after {}",
            charge.basis.at.time_of_day(),
            charge.charged,
            charge.window,
            charge.lapses_at
        ),
        (Liveness::Lapsed, Some(charge)) => {
            let consequence = match policy.terms.mode {
                Mode::Enforce => "the next sweep reaps it",
                Mode::Shadow => "the lane is in shadow mode, so it is only reported",
            };
            format!("{}; {consequence}", reap_message(run, charge))
        }
        (_, Some(charge)) => open(run, verdict.liveness, charge),
        // The rule gives every open run in flight a charge.
        (liveness, None) => liveness.to_string(),
    }
}

/// Says the same at length, a sentence a line, with what the verdict rests on.
pub fn lines(run: &Run, verdict: &Verdict, policy: &LanePolicy, listening: &Listening, now: Timestamp) -> Vec<String> {
    let mut lines = vec![capitalised(&sentence(run, verdict, policy, now))];
    if let Some(charge) = &verdict.charge {
        lines.push(why_this_rule(run, charge));
        lines.push(format!(
            "Charged since version {} (`{}`) at {}: {} of {}.",
            charge.basis.version,
            charge.basis.fact.as_str(),
            charge.basis.at,
            charge.charged,
            charge.window
        ));
        for (from, to) in listening.spans_between(charge.basis.at, now) {
            lines.push(format!("Nobody listened from {from} to {to} ({}), which is not charged.", to.since(from)));
        }
    }
    if let Some(since) = listening.deaf_since() {
        lines.push(format!("Nobody has listened since {since}; until somebody does, nothing is reaped."));
    }
    if let Some(request) = &run.cancel_requested
        && run.status.is_in_flight()
    {
        lines.push(format!("{} asked for it to be cancelled at {}.", request.by, request.at));
    }
    for reaped in &run.reaped {
        if !reaped.signals.is_empty() {
            lines.push(format!(
                "Attempt {} was heard of after its reap at {}: that reap was probably wrong.",
                reaped.attempt, reaped.at
            ));
        }
    }
    lines
}

/// Says what was recorded of a reap, at length.
pub fn reap_lines(reap: &Recorded) -> Vec<String> {
    let RunEvent::TimedOut { evidence, message, .. } = &reap.event else {
        return Vec::new();
    };
    let mut lines = vec![capitalised(message)];
    let Some(evidence) = evidence else {
        lines.push("The reap was imported without evidence.".to_owned());
        return lines;
    };
    let basis = evidence.basis;
    lines.push(format!(
        "Charged since version {} (`{}`) at {}: {} of {} allowed by {} (policy version {}).",
        basis.version,
        basis.fact.as_str(),
        basis.at,
        evidence.charged,
        evidence.window,
        evidence.rule,
        evidence.policy_version
    ));
    if evidence.deaf > Span::ZERO {
        let (deaf, wall) = (evidence.deaf, evidence.wall);
        lines.push(format!("Of {wall} of wall time nobody listened for {deaf}, which is not charged."));
    }
    lines.push(format!("Reaped by {} at {}.", evidence.sweeper, evidence.judged_at));
    lines
}

fn open(run: &Run, liveness: Liveness, charge: &Charge) -> String {
    let (executor, attempt, deaf) = (executor(run), run.attempt, not_charged(charge.deaf));
    let (charged, limit, lapses) = (charge.charged, charge.window, charge.lapses_at);
    let claimed = run.claimed_at().map(Timestamp::time_of_day).unwrap_or_default();
    let heard = run.last_heartbeat_at().map(Timestamp::time_of_day).unwrap_or_default();
    match charge.rule {
        Rule::HeartbeatSilence => {
            let state = if liveness == Liveness::Quiet { "missed a heartbeat, but not lapsed" } else { "alive" };
            format!(
                "{state}: last heard {heard} from {executor}, attempt {attempt}, {charged} of {limit} silent{deaf}; \
                 it would be reaped after {lapses}"
            )
        }
        Rule::CoarseTtl => format!(
            "presumed alive: {executor} claimed it at {claimed} and never sent a heartbeat, attempt {attempt}, so \
             nobody can know; {charged} of {limit} since the claim{deaf}; it would be reaped after {lapses}"
        ),
        Rule::Unstarted => format!(
            "claimed by {executor} at {claimed} and not started yet, attempt {attempt}, {charged} of {limit}{deaf}; \
             it would be reaped after {lapses}"
        ),
        Rule::MaxRuntime | Rule::Unclaimed => format!(
            "{liveness}: last heard {heard} from {executor}, attempt {attempt}; it has run for {charged} of \
             {limit} allowed{deaf} and would be reaped after {lapses}, beating or not"
        ),
    }
}

/// Says why it is this rule and no other that governs.
fn why_this_rule(run: &Run, charge: &Charge) -> String {
    let rule = charge.rule;
    match rule {
        Rule::HeartbeatSilence => {
            let beats = if run.beats == 1 { "once".to_owned() } else { format!("{} times", run.beats) };
            format!(
                "{rule} governs: attempt {} has beaten {beats} since its claim, so its silence means something.",
                run.attempt
            )
        }
        Rule::CoarseTtl => {
            format!(
                "{rule} governs: attempt {} has not beaten since its claim, so its silence means nothing.",
                run.attempt
            )
        }
        Rule::Unclaimed => format!("{rule} governs: the run is due, and its lane has a claim window."),
        Rule::Unstarted => {
            format!("{rule} governs: claimed and never heard of, and its lane's start window ends first.")
        }
        Rule::MaxRuntime => format!("{rule} governs: of the rules that apply it is the one that ends first."),
    }
}

fn waiting(run: &Run, policy: &LanePolicy, now: Timestamp) -> String {
    let due_at = run.waiting.due_at;
    if now < due_at {
        return format!("waits: it may not be claimed before {due_at}");
    }
    match policy.terms.claim_window {
        None => format!(
            "waits to be claimed since {} ({}); nobody has died, and the lane has no claim window, so it may wait on",
            due_at.time_of_day(),
            now.since(due_at)
        ),
        Some(window) => format!("waits to be claimed since {} (limit {window})", due_at.time_of_day()),
    }
}

fn ending(run: &Run) -> String {
    let Some(Outcome { at, event, .. }) = &run.outcome else {
        return run.status.to_string();
    };
    let by = executor(run);
    match event {
        RunEvent::TimedOut { message, .. } if run.status == Status::TimedOut => message.clone(),
        RunEvent::Completed { attempt, late: true, .. } => {
            format!("completed at {at} by {by}, attempt {attempt}, after it had been reaped; the work was adopted")
        }
        RunEvent::Completed { attempt, .. } => format!("completed at {at} by {by}, attempt {attempt}"),
        RunEvent::Failed { attempt, error } => {
            format!("failed at {at}, as {by} said, attempt {attempt}: {error}")
        }
        RunEvent::Cancelled { by, .. } => format!("cancelled at {at} by {by}"),
        _ => format!("{} at {at}", run.status),
    }
}

fn executor(run: &Run) -> &str {
    run.executor().map_or("nobody", Name::as_str)
}

fn not_charged(deaf: Span) -> String {
    if deaf == Span::ZERO { String::new() } else { format!(", {deaf} of deaf time not charged") }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", characters.as_str())
}
