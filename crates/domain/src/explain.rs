//! A verdict as sentences: why reaped, why not yet, and when it would be.

use crate::event::{Recorded, ReleaseCause, RunEvent, Signal};
use crate::hold::HeldSpan;
use crate::ids::Name;
use crate::life::{Life, Nearest};
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
        Rule::NoProgress => format!(
            "no progress for {charged} (limit {limit}){deaf}: it last changed at {since}, and {executor} has beaten on, \
             attempt {attempt}; its work hangs, or it reports none any more"
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
    if let Some(since) = listening.deaf_since().filter(|_| verdict.liveness != Liveness::Settled) {
        lines.push(format!("Nobody has listened since {since}; until somebody does, nothing is reaped."));
    }
    if let Some(request) = &run.cancel_requested
        && run.status.is_in_flight()
    {
        lines.push(format!("{} asked for it to be cancelled at {}.", request.by, request.at));
    }
    for reaped in &run.reaped {
        if reaped.was_probably_wrong() {
            lines.push(format!(
                "Attempt {} was heard of after its reap at {}: that reap was probably wrong.",
                reaped.attempt, reaped.at
            ));
        }
    }
    lines
}

/// Says in half a sentence how an attempt that ended went: how often it was heard of, and how near it came to being
/// reaped. `None` where nothing can be said.
pub fn looked_back(life: &Life, listening: &Listening) -> Option<String> {
    let longest = life.longest.map(|longest| longest.charged);
    let heard = match (life.claimed_at, life.beats, longest) {
        (Some(_), 0, _) => Some("never sent a heartbeat".to_owned()),
        (Some(_), 1, Some(longest)) => Some(format!("heard of once, longest silence {longest}")),
        (Some(_), _, Some(longest)) => {
            let every = life.every(listening).unwrap_or_default();
            Some(format!("heard of every {every}, longest silence {longest}"))
        }
        _ => None,
    };
    // Of one that was reaped it is known how near it came.
    let near = life.nearest.filter(|_| life.reap.is_none()).map(|Nearest { at, rule, left, over }| {
        if over > Span::ZERO {
            format!("over its limit by {over} at {} ({rule}), and not reaped", at.time_of_day())
        } else {
            format!("never closer than {left} to being reaped")
        }
    });
    let told: Vec<String> = heard.into_iter().chain(near).collect();
    if told.is_empty() { None } else { Some(told.join(", ")) }
}

/// How many spans are named one by one.
const SPANS_NAMED: usize = 5;

/// Says the same at length, a sentence a line: what brought an attempt near to being reaped, and what spared it.
pub fn life_lines(life: &Life, listening: &Listening) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(Nearest { at, rule, left, over }) = life.nearest.filter(|_| life.reap.is_none()) {
        lines.push(if over > Span::ZERO {
            format!("At {at} it was {over} over its limit by {rule}, and was not reaped.")
        } else {
            format!("It was nearest to being reaped at {at}: {left} was left to it by {rule}.")
        });
    }
    if let (Some(from), Some(until)) = (life.claimed_at, life.until) {
        let deaf = listening.spans_between(from, until);
        for (from, to) in deaf.iter().take(SPANS_NAMED) {
            lines.push(format!("Nobody listened from {from} to {to} ({}), which was not charged.", to.since(*from)));
        }
        if deaf.len() > SPANS_NAMED {
            let (more, all) = (deaf.len() - SPANS_NAMED, listening.deaf(from, until));
            lines.push(format!("Nor did anybody in {more} more spans; {all} in all."));
        }
    }
    if let Some(spared_at) = life.spared_at {
        lines.push(format!("Had deaf time been charged, it would have been reaped after {spared_at}."));
    }
    lines
}

/// Says when a lane was held while a silence lasted, a sentence a line.
pub fn held_lines(held: &[HeldSpan]) -> Vec<String> {
    let line = |held: &HeldSpan| match (held.to, held.cause) {
        (Some(to), cause) => {
            let why = match cause {
                Some(ReleaseCause::Recovered) => "enough of its runs were heard of",
                Some(ReleaseCause::Operator) => "an operator released it",
                Some(ReleaseCause::Expired) | None => "it was held for as long as its policy allows",
            };
            format!("Its lane was held from {} to {to}, so nothing was reaped for silence; then {why}.", held.from)
        }
        (None, _) => {
            format!("Its lane has been held since {}: nothing is reaped for silence until it ends.", held.from)
        }
    };
    held.iter().map(line).collect()
}

/// Says what was heard of an attempt after its reap, a sentence a line.
pub fn afterwards_lines(life: &Life, listening: &Listening, executor: Option<&Name>) -> Vec<String> {
    // A run that nobody had claimed has no executor that could be heard of.
    let of_attempt = |reap: &&Recorded| !matches!(reap.event, RunEvent::TimedOut { attempt: 0, .. });
    let Some(reap) = life.reap.as_ref().filter(of_attempt) else { return Vec::new() };
    let executor = executor.map_or("its executor", Name::as_str);
    let every = life.every(listening).map(|every| format!("Until then it was heard of every {every}."));
    let mut lines: Vec<String> = every.into_iter().collect();
    let Some((first, more)) = life.afterwards.split_first() else {
        lines.push("Nothing was heard of it since.".to_owned());
        return lines;
    };
    let after = first.at.since(reap.recorded_at);
    let said_first = said(first.signal);
    lines.push(format!("{executor} spoke {after} after the reap: {said_first}."));
    lines.extend(more.iter().map(|more| format!("Then it said at {}: {}.", more.at, said(more.signal))));
    let window = life.window_needed(listening);
    let enough = window.map_or_else(String::new, |window| format!("; a limit of {window} would have let it live"));
    lines.push(match life.contradiction() {
        Some(_) => format!("So this reap was probably wrong{enough}."),
        None => "That was known when it was reaped, so it says nothing against it.".to_owned(),
    });
    if let Some(adopted) = life.afterwards.iter().find(|said| said.adopted) {
        lines.push(format!("Its work was taken at {}, so nothing of it was lost.", adopted.at));
    }
    lines
}

fn said(signal: Signal) -> &'static str {
    match signal {
        Signal::Heartbeat => "it still works",
        Signal::Started => "it began",
        Signal::Completed => "it is done",
        Signal::Failed => "it failed",
    }
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
    let over = evidence.charged.minus(evidence.window);
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
    lines.push(format!("Reaped by {} at {}, {over} over the limit.", evidence.sweeper, evidence.judged_at));
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
        Rule::NoProgress => format!(
            "{liveness}: last heard {heard} from {executor}, attempt {attempt}, and its progress last changed at {}, \
             {charged} of {limit} ago{deaf}; it would be reaped after {lapses}, beating or not",
            charge.basis.at.time_of_day()
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
        Rule::NoProgress => {
            format!(
                "{rule} governs: it beats, but its progress is the same as at that heartbeat, and its lane's stall \
                     window ends first."
            )
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{DeafCause, Signal};
    use crate::listening::DeafSpan;
    use crate::policy::Terms;
    use crate::told::{self, stream};
    use crate::verdict::judge;

    /// An instant of 2026-05-04, so many seconds after 02:00.
    fn at(seconds: u64) -> Timestamp {
        "2026-05-04T02:00:00Z".parse::<Timestamp>().unwrap().plus(Span::from_seconds(seconds))
    }

    /// Folds a stream that is told as (second, fact); `created` at second 0 goes without saying.
    fn run(facts: &[(u64, RunEvent)]) -> Run {
        let facts = facts.iter().map(|(second, event)| (at(*second), event.clone()));
        Run::fold(&stream(7, at(0), facts)).unwrap().unwrap()
    }

    fn claimed() -> RunEvent {
        told::claimed(1)
    }

    fn beat() -> RunEvent {
        told::beat(1)
    }

    fn progress(done: u64) -> RunEvent {
        RunEvent::Heartbeat { attempt: 1, progress: Some(serde_json::json!({"done": done})) }
    }

    fn reaped(message: &str) -> RunEvent {
        let (rule, message) = (Rule::HeartbeatSilence, message.to_owned());
        RunEvent::TimedOut { attempt: 1, rule, evidence: None, message }
    }

    fn policy(change: impl FnOnce(&mut Terms)) -> LanePolicy {
        let mut terms = Terms::default();
        change(&mut terms);
        LanePolicy { version: 1, terms }
    }

    /// Judges at a second, while everybody listens, and says why the run is reaped.
    fn reap_message_at(second: u64, facts: &[(u64, RunEvent)], policy: &LanePolicy) -> String {
        let run = run(facts);
        let verdict = judge(&run, policy, &Listening::default(), at(second));
        assert!(verdict.is_lapsed());
        reap_message(&run, &verdict.charge.unwrap())
    }

    /// Judges at a second, while everybody listens, and says how the run is.
    fn sentence_at(second: u64, run: &Run, policy: &LanePolicy) -> String {
        let verdict = judge(run, policy, &Listening::default(), at(second));
        sentence(run, &verdict, policy, at(second))
    }

    #[test]
    fn a_reap_for_silence_says_who_was_last_heard_when() {
        // Heard at 02:41:03, reaped 3 min 12 s later.
        let message = reap_message_at(2_655, &[(2_220, claimed()), (2_463, beat())], &LanePolicy::default());
        assert_eq!(
            message,
            "heartbeat silent for 3m 12s (limit 3m): last heard 02:41:03Z from mac-7, attempt 1; the executor crashed \
             or was abandoned"
        );
    }

    #[test]
    fn a_reap_under_the_coarse_window_says_that_nothing_was_ever_heard() {
        let message = reap_message_at(7_215, &[(10, claimed())], &LanePolicy::default());
        assert_eq!(
            message,
            "no terminal state 2h 0m 5s after the claim (limit 2h): mac-7 never sent a heartbeat, attempt 1"
        );
    }

    #[test]
    fn each_rule_has_a_message_of_its_own_with_charge_and_limit() {
        let minute = Some(Span::from_seconds(60));
        let defaults = LanePolicy::default();
        let messages = [
            reap_message_at(8_000, &[(10, claimed()), (20, beat())], &defaults),
            reap_message_at(8_000, &[(10, claimed())], &defaults),
            reap_message_at(65, &[], &policy(|terms| terms.claim_window = minute)),
            reap_message_at(75, &[(10, claimed())], &policy(|terms| terms.start_window = minute)),
            reap_message_at(75, &[(10, claimed()), (70, beat())], &policy(|terms| terms.max_runtime = minute)),
            reap_message_at(
                75,
                &[(5, claimed()), (10, progress(1)), (70, progress(1))],
                &policy(|terms| terms.stall_window = minute),
            ),
        ];
        let beginnings =
            ["heartbeat silent", "no terminal state", "not claimed", "not started", "ran for", "no progress for"];
        for (message, beginning) in messages.iter().zip(beginnings) {
            assert!(message.starts_with(beginning), "{message}");
            assert!(!message.ends_with('.') && !message.contains('\n'), "one sentence: {message}");
        }
        for message in &messages[2..] {
            assert!(message.contains("1m 5s") && message.contains("(limit 1m)"), "{message}");
        }
    }

    #[test]
    fn deaf_time_is_mentioned_where_there_was_some() {
        let run = run(&[(10, claimed()), (20, beat())]);
        let (promised_until, cause, recorded_at) = (at(112), DeafCause::Gap, at(400));
        let gap = DeafSpan { from: at(100), to: at(400), promised_until, cause, recorded_at };
        let listening = Listening::as_of(at(1_000), &[gap], &[]);
        let verdict = judge(&run, &LanePolicy::default(), &listening, at(1_000));
        assert!(reap_message(&run, &verdict.charge.unwrap()).contains("(limit 3m), 5m of deaf time not charged:"));
        let lines = lines(&run, &verdict, &LanePolicy::default(), &listening, at(1_000));
        assert!(lines.iter().any(|line| line.contains("from 2026-05-04T02:01:40.000000Z")), "{lines:?}");
    }

    #[test]
    fn why_not_yet_says_when_it_would_be() {
        let defaults = LanePolicy::default();
        let heard = run(&[(10, claimed()), (20, beat())]);
        let mute = run(&[(10, claimed())]);
        for (second, run, beginning, lapses_at) in [
            (30, &heard, "alive: last heard 02:00:20Z from mac-7", "2026-05-04T02:03:20.000000Z"),
            (90, &heard, "missed a heartbeat, but not lapsed", "2026-05-04T02:03:20.000000Z"),
            (90, &mute, "presumed alive: mac-7 claimed it at 02:00:10Z", "2026-05-04T04:00:10.000000Z"),
        ] {
            let text = sentence_at(second, run, &defaults);
            assert!(text.starts_with(beginning) && text.contains(lapses_at), "{text}");
        }
    }

    #[test]
    fn a_run_that_beats_without_progress_says_since_when() {
        let stalled = run(&[(10, claimed()), (20, progress(1)), (80, progress(1)), (100, beat())]);
        let hour = policy(|terms| terms.stall_window = Some(Span::from_seconds(120)));
        let text = sentence_at(110, &stalled, &hour);
        assert!(text.starts_with("live: last heard 02:01:40Z from mac-7"), "{text}");
        assert!(text.contains("progress last changed at 02:00:20Z, 1m 30s of 2m ago"), "{text}");
        assert!(sentence_at(110, &stalled, &LanePolicy::default()).starts_with("alive"), "off by default");
    }

    #[test]
    fn a_waiting_run_says_what_it_waits_for() {
        let defaults = LanePolicy::default();
        let limited = policy(|terms| terms.claim_window = Some(Span::from_seconds(60)));
        let requeued = RunEvent::Requeued { next_attempt: 2, not_before: at(500), by: None, reason: None };
        let later = run(&[(10, claimed()), (400, reaped("silent")), (401, requeued)]);
        assert!(sentence_at(450, &later, &defaults).contains("not be claimed before 2026-05-04T02:08:20"));
        assert!(sentence_at(90, &run(&[]), &defaults).contains("the lane has no claim window"));
        assert!(sentence_at(30, &run(&[]), &limited).contains("reaped as unclaimed after 2026-05-04T02:01:00"));
    }

    #[test]
    fn a_lapsed_run_says_what_comes_next() {
        let run = run(&[(10, claimed()), (20, beat())]);
        assert!(sentence_at(300, &run, &LanePolicy::default()).ends_with("; the next sweep reaps it"));
        let shadow = policy(|terms| terms.mode = Mode::Shadow);
        assert!(sentence_at(300, &run, &shadow).contains("shadow mode"));
    }

    #[test]
    fn an_ended_run_says_how_it_ended() {
        let by = Name::new("ada").unwrap();
        let completed = |late| RunEvent::Completed { attempt: 1, output: None, late };
        let ending = |facts: &[(u64, RunEvent)]| {
            let facts = [&[(10, claimed()), (20, beat())], facts].concat();
            sentence_at(900, &run(&facts), &LanePolicy::default())
        };
        let failed = RunEvent::Failed { attempt: 1, error: "disk full".to_owned() };
        assert_eq!(ending(&[(300, reaped("silent for long"))]), "silent for long");
        assert!(ending(&[(30, completed(false))]).starts_with("completed at 2026-05-04T02:00:30.000000Z by mac-7"));
        assert!(ending(&[(300, reaped("silent")), (310, completed(true))]).contains("the work was adopted"));
        assert!(ending(&[(30, failed)]).ends_with("attempt 1: disk full"));
        assert!(ending(&[(30, RunEvent::Cancelled { attempt: 1, by })]).ends_with("by ada"));
    }

    #[test]
    fn a_quarantined_run_says_what_was_not_understood() {
        let mut run = run(&[(10, claimed())]);
        run.quarantine(3, at(20), "unknown event type `paused`".to_owned());
        assert!(sentence_at(9_000, &run, &LanePolicy::default()).contains("unknown event type `paused`"));
    }

    /// Looks back on the last attempt at a second, while everybody listens.
    fn looked_back_at(second: u64, facts: &[(u64, RunEvent)]) -> Life {
        let run = run(&[]);
        let listening = Listening::default();
        let around = crate::life::Surroundings { policies: &[], listening: &listening };
        let (mut run, mut life) = (run, Life::of(None));
        for (version, (second, event)) in (2..).zip(facts.to_vec()) {
            let fact = Recorded { run: run.id, version, recorded_at: at(second), event };
            life.take_in(Some(&run), &fact, around);
            run.evolve(&fact).unwrap();
        }
        life.end(&run, at(second), around);
        life
    }

    #[test]
    fn a_run_that_ended_well_says_how_near_it_came_to_being_reaped() {
        let listening = Listening::default();
        let completed = RunEvent::Completed { attempt: 1, output: None, late: false };
        let life = looked_back_at(900, &[(10, claimed()), (20, beat()), (61, beat()), (80, beat()), (90, completed)]);
        let told = looked_back(&life, &listening).unwrap();
        assert_eq!(told, "heard of every 30s, longest silence 41s, never closer than 2m 19s to being reaped");
        let lines = life_lines(&life, &listening);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("2026-05-04T02:01:01.000000Z: 2m 19s was left to it by heartbeat_silence"),
            "{lines:?}"
        );
        let failed = RunEvent::Failed { attempt: 1, error: "disk full".to_owned() };
        let mute = looked_back_at(900, &[(10, claimed()), (70, failed)]);
        assert_eq!(
            looked_back(&mute, &listening).unwrap(),
            "never sent a heartbeat, never closer than 1h 59m to being reaped"
        );
    }

    #[test]
    fn a_run_that_was_reaped_and_completed_all_the_same_is_not_said_to_have_been_spared() {
        let listening = Listening::default();
        let silent = [(10, claimed()), (20, beat()), (50, beat())];
        let then = |facts: &[(u64, RunEvent)]| looked_back_at(900, &[&silent, facts].concat());
        let completed = |late| RunEvent::Completed { attempt: 1, output: None, late };
        let adopted = then(&[(231, reaped("silent")), (243, completed(true))]);
        assert_eq!(looked_back(&adopted, &listening).unwrap(), "heard of every 30s, longest silence 3m 1s");
        assert_eq!(life_lines(&adopted, &listening), Vec::<String>::new());
        // Nobody swept, or was to reap.
        let overlooked = then(&[(231, completed(false))]);
        let told = looked_back(&overlooked, &listening).unwrap();
        assert!(told.ends_with("over its limit by 1s at 02:03:51Z (heartbeat_silence), and not reaped"), "{told}");
        let line = "At 2026-05-04T02:03:51.000000Z it was 1s over its limit by heartbeat_silence, and was not reaped.";
        assert_eq!(life_lines(&overlooked, &listening), [line]);
    }

    #[test]
    fn what_was_heard_after_a_reap_is_told_with_its_delay() {
        let late = |signal| RunEvent::LateSignal { attempt: 1, signal, executor: None };
        let facts =
            [(10, claimed()), (20, beat()), (50, beat()), (231, reaped("silent")), (243, late(Signal::Heartbeat))];
        let listening = Listening::default();
        let mac = Name::new("mac-7").unwrap();
        let regular = "Until then it was heard of every 30s.";
        let silent = afterwards_lines(&looked_back_at(235, &facts[..4]), &listening, Some(&mac));
        assert_eq!(silent, [regular, "Nothing was heard of it since."]);
        let spoke = afterwards_lines(&looked_back_at(400, &facts), &listening, Some(&mac));
        let told = ["mac-7 spoke 12s after the reap: it still works.", "So this reap was probably wrong."];
        assert_eq!(spoke, [regular, told[0], told[1]]);
    }

    #[test]
    fn a_hold_is_named_with_its_end() {
        let recovered = HeldSpan { from: at(10), to: Some(at(40)), cause: Some(ReleaseCause::Recovered) };
        let lasting = HeldSpan { from: at(60), to: None, cause: None };
        let lines = held_lines(&[recovered, lasting]);
        assert!(lines[0].contains("from 2026-05-04T02:00:10.000000Z to 2026-05-04T02:00:40.000000Z"), "{lines:?}");
        assert!(lines[0].ends_with("enough of its runs were heard of."), "{lines:?}");
        assert!(lines[1].contains("has been held since 2026-05-04T02:01:00"), "{lines:?}");
    }

    #[test]
    fn a_reaped_attempt_that_was_heard_of_again_is_owned_up_to() {
        let late = RunEvent::LateSignal { attempt: 1, signal: Signal::Heartbeat, executor: None };
        let run = run(&[(10, claimed()), (300, reaped("silent")), (310, late)]);
        let (policy, listening) = (LanePolicy::default(), Listening::default());
        let verdict = judge(&run, &policy, &listening, at(400));
        let lines = lines(&run, &verdict, &policy, &listening, at(400));
        assert_eq!(lines[0], "Silent.");
        assert!(lines[1].contains("probably wrong"), "{lines:?}");
    }

    #[test]
    fn an_attempt_that_only_beat_on_after_a_reap_for_want_of_progress_was_not_reaped_wrongly() {
        let told = |rule, signal| {
            let message = "too long".to_owned();
            let stalled = RunEvent::TimedOut { attempt: 1, rule, evidence: None, message };
            let late = RunEvent::LateSignal { attempt: 1, signal, executor: None };
            let requeued = RunEvent::Requeued { next_attempt: 2, not_before: at(311), by: None, reason: None };
            let again =
                RunEvent::Claimed { attempt: 2, claim: None, executor: Name::new("mac-8").unwrap(), device: None };
            let completed = RunEvent::Completed { attempt: 2, output: None, late: false };
            let facts = [(300, stalled), (310, late), (311, requeued), (320, again), (330, completed)];
            let run = run(&[&[(10, claimed()), (20, progress(1))], &facts[..]].concat());
            let (policy, listening) = (LanePolicy::default(), Listening::default());
            let verdict = judge(&run, &policy, &listening, at(400));
            let lines = lines(&run, &verdict, &policy, &listening, at(400));
            lines.iter().any(|line| line.contains("Attempt 1") && line.contains("probably wrong"))
        };
        for rule in [Rule::NoProgress, Rule::MaxRuntime] {
            assert!(!told(rule, Signal::Heartbeat) && told(rule, Signal::Completed), "{rule}");
        }
        assert!(told(Rule::HeartbeatSilence, Signal::Heartbeat));
    }
}
