//! `lastbeat lane …`: policies.

use lastbeat_domain::{Span, Terms};
use lastbeat_wire::{FalseReapsDocument, LaneDocument};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::place::Place;

pub(crate) async fn lane(place: &Place, command: args::Lane, form: Output) -> Result<(), Failure> {
    match command {
        args::Lane::List => list(place, form).await,
        args::Lane::Show { lane } => show(&place.lane(&lane).await?, form),
        args::Lane::Set(arguments) => set(place, *arguments, form).await,
    }
}

async fn list(place: &Place, form: Output) -> Result<(), Failure> {
    let page = place.lanes().await?;
    match form {
        Output::Json => output::json_line(&page),
        Output::Jsonl => page.lanes.iter().try_for_each(output::json_line),
        Output::Table => {
            let heading = ["LANE", "POLICY", "HEARTBEAT WINDOW", "COARSE TTL", "RUNS"];
            output::table(&heading, page.lanes.iter().map(row).collect())
        }
    }
}

fn row(document: &LaneDocument) -> Vec<String> {
    let terms = &document.policy.0;
    let runs: Vec<String> = document.runs.iter().map(|(status, count)| format!("{count} {status}")).collect();
    vec![
        document.lane.to_string(),
        document.policy_version.to_string(),
        terms.heartbeat_window.to_string(),
        terms.coarse_ttl.to_string(),
        if runs.is_empty() { "-".to_owned() } else { runs.join(", ") },
    ]
}

fn show(document: &LaneDocument, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(document);
    }
    let terms = &document.policy.0;
    let off = |window: Option<Span>| window.map_or_else(|| "off".to_owned(), |window| window.to_string());
    output::pairs(&[
        ("lane", document.lane.to_string()),
        ("policy version", document.policy_version.to_string()),
        ("heartbeat interval", terms.heartbeat_interval.to_string()),
        ("heartbeat window", format!("{} (a run that beats may be silent so long)", terms.heartbeat_window)),
        ("coarse ttl", format!("{} (a run that never beats is believed so long)", terms.coarse_ttl)),
        ("claim window", off(terms.claim_window)),
        ("start window", off(terms.start_window)),
        ("max runtime", off(terms.max_runtime)),
        ("stall window", off(terms.stall_window)),
        ("max attempts", terms.max_attempts.to_string()),
        ("retry backoff", format!("{} to {}", terms.retry_backoff_base, terms.retry_backoff_max)),
        ("hold", hold_in_words(terms)),
        ("late completion", word(&terms.late_completion)),
        ("mode", word(&terms.mode)),
        ("wrong reaps", wrong_reaps(&document.false_reaps)),
    ])?;
    let of_several = Some(&document.false_reaps.by_window).filter(|kinds| kinds.len() > 1);
    of_several.into_iter().flatten().try_for_each(|kind| {
        let (rule, window) = (kind.rule, kind.heartbeat_window_seconds);
        let share = share(kind.wrong, kind.reaped, kind.rate);
        output::line(&format!("  {share} by {rule} under a heartbeat window of {window}"))
    })
}

fn wrong_reaps(reaps: &FalseReapsDocument) -> String {
    match reaps.reaped {
        0 => "no run was reaped yet".to_owned(),
        _ => format!("{} (the executor was heard of afterwards)", share(reaps.wrong, reaps.reaped, reaps.rate)),
    }
}

fn share(wrong: u64, reaped: u64, rate: Option<f64>) -> String {
    format!("{wrong} of {reaped}, {:.1}%", rate.unwrap_or_default() * 100.0)
}

fn hold_in_words(terms: &Terms) -> String {
    match terms.hold_min {
        None => "off".to_owned(),
        Some(least) => format!(
            "when {least} runs or more, and over {}% of those that beat, are silent at once; for {} at the most, then \
             {} reaps a second",
            terms.hold_share * 100.0,
            terms.hold_max,
            terms.reap_rate
        ),
    }
}

fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(ToOwned::to_owned)).unwrap_or_default()
}

async fn set(place: &Place, arguments: args::SetLane, form: Output) -> Result<(), Failure> {
    let before = place.lane(&arguments.lane).await?;
    let terms = changed(before.policy.0, &arguments);
    terms.validate().map_err(|error| Failure::new("invalid", error.to_string()))?;
    let document = place.set_policy(&arguments.lane, terms, before.policy_version, arguments.force).await?;
    show(&document, form)
}

fn changed(mut terms: Terms, arguments: &args::SetLane) -> Terms {
    fn take<T: Clone>(term: &mut T, named: Option<&T>) {
        if let Some(named) = named {
            term.clone_from(named);
        }
    }
    take(&mut terms.heartbeat_interval, arguments.heartbeat_interval.as_ref());
    take(&mut terms.heartbeat_window, arguments.heartbeat_window.as_ref());
    take(&mut terms.coarse_ttl, arguments.coarse_ttl.as_ref());
    take(&mut terms.claim_window, arguments.claim_window.map(|window| window.0).as_ref());
    take(&mut terms.start_window, arguments.start_window.map(|window| window.0).as_ref());
    take(&mut terms.max_runtime, arguments.max_runtime.map(|window| window.0).as_ref());
    take(&mut terms.stall_window, arguments.stall_window.map(|window| window.0).as_ref());
    take(&mut terms.max_attempts, arguments.max_attempts.as_ref());
    take(&mut terms.retry_backoff_base, arguments.retry_backoff_base.as_ref());
    take(&mut terms.retry_backoff_max, arguments.retry_backoff_max.as_ref());
    take(&mut terms.late_completion, arguments.late_completion.as_ref());
    take(&mut terms.mode, arguments.mode.as_ref());
    take(&mut terms.hold_min, arguments.hold_min.map(|least| least.0).as_ref());
    take(&mut terms.hold_share, arguments.hold_share.as_ref());
    take(&mut terms.hold_max, arguments.hold_max.as_ref());
    take(&mut terms.reap_rate, arguments.reap_rate.as_ref());
    terms
}
