//! `lastbeat backtest`: a lane's recorded past under other policies.

use lastbeat_domain::Span;
use lastbeat_wire::{AlternativeDocument, BacktestDocument, BacktestRequest, RecommendationDocument, ShortestDocument};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::place::Place;

pub(crate) async fn backtest(place: &Place, arguments: args::Backtest, form: Output) -> Result<(), Failure> {
    let lane = arguments.lane.clone();
    let request = BacktestRequest {
        heartbeat_window_seconds: arguments.heartbeat_window,
        coarse_ttl_seconds: arguments.coarse_ttl,
        claim_window_seconds: arguments.claim_window.into_iter().map(|window| window.0).collect(),
        start_window_seconds: arguments.start_window.into_iter().map(|window| window.0).collect(),
        max_runtime_seconds: arguments.max_runtime.into_iter().map(|window| window.0).collect(),
        since: arguments.since,
        examples: Some(arguments.examples),
    };
    let document = place.backtest(&lane, &request).await?;
    match form {
        Output::Json => output::json_line(&document),
        Output::Jsonl => document.alternatives.iter().try_for_each(output::json_line),
        Output::Table => table(&document),
    }
}

fn table(document: &BacktestDocument) -> Result<(), Failure> {
    let BacktestDocument { lane, at, runs, attempts, open, reaps, wrong, .. } = document;
    let since = document.since.map_or_else(String::new, |since| format!(" created since {since}"));
    output::line(&format!(
        "lane {lane}: {runs} runs{since} with {attempts} attempts, {open} of them under way, up to {at}"
    ))?;
    if document.quarantined > 0 {
        let quarantined = document.quarantined;
        output::line(&format!("{quarantined} runs hold facts of a newer program and are judged up to those"))?;
    }
    output::line(&format!(
        "the record has {reaps} reaps, {wrong} of them wrong: something was heard afterwards that contradicts them\n"
    ))?;
    let heading = [
        "POLICY",
        "REAPS",
        "SAME",
        "EARLIER",
        "LATER",
        "NEWLY",
        "NO LONGER",
        "NOT YET",
        "WRONG",
        "NEWLY WRONG",
        "UNDECIDED",
        "SOONER BY",
        "LATER BY",
    ];
    output::table(&heading, document.alternatives.iter().map(row).collect())?;
    output::line("")?;
    let named = |recommendation: &&RecommendationDocument| {
        let term = format!("{}_seconds", recommendation.window);
        let tried = document.alternatives.iter().any(|alternative| alternative.windows.contains_key(&term));
        tried || recommendation.in_force_seconds.is_some()
    };
    document.recommendations.iter().filter(named).try_for_each(recommend)
}

fn row(alternative: &AlternativeDocument) -> Vec<String> {
    let named = alternative.windows.iter().map(|(term, length)| {
        let length = length.map_or_else(|| "off".to_owned(), |length| length.to_string());
        format!("{} {length}", term.trim_end_matches("_seconds"))
    });
    let policy = named.collect::<Vec<_>>().join(", ");
    let by = |mean: Option<Span>| mean.map_or_else(|| "-".to_owned(), |mean| mean.to_string());
    vec![
        if policy.is_empty() { "as it was".to_owned() } else { policy },
        alternative.reaps.to_string(),
        alternative.same.to_string(),
        alternative.earlier.to_string(),
        alternative.later.to_string(),
        alternative.newly.to_string(),
        alternative.no_longer.to_string(),
        alternative.not_yet.to_string(),
        alternative.wrong.to_string(),
        alternative.newly_wrong.to_string(),
        alternative.undecided.to_string(),
        by(alternative.sooner.mean_seconds),
        by(alternative.later_by.mean_seconds),
    ]
}

/// Says how long a window would have had to be.
fn recommend(recommendation: &RecommendationDocument) -> Result<(), Failure> {
    let RecommendationDocument { window, in_force_seconds, runs, no_wrong, no_newly_wrong } = recommendation;
    let now = in_force_seconds.map_or_else(|| "off".to_owned(), |length| length.to_string());
    let Some(no_wrong) = no_wrong else {
        return output::line(&format!("{window} ({now} now): no run tells how long it should be"));
    };
    output::line(&format!("{window} ({now} now), by the silences of {runs} runs:"))?;
    output::line(&format!("  no reap would have been wrong with {}", long_enough(no_wrong)))?;
    match no_newly_wrong {
        Some(same) if same.seconds == no_wrong.seconds => Ok(()),
        Some(shorter) => {
            output::line(&format!("  none that is not wrong in the record already, with {}", long_enough(shorter)))
        }
        None => output::line("  none that is not wrong in the record already, with any"),
    }
}

fn long_enough(shortest: &ShortestDocument) -> String {
    let ShortestDocument { seconds, run, attempt, to, .. } = shortest;
    let tried = match (shortest.tried_seconds, shortest.margin_seconds) {
        (Some(tried), Some(margin)) => format!("; the shortest tried is {tried}, with {margin} to spare"),
        _ => String::new(),
    };
    let of = if *attempt == 0 { "while it waited".to_owned() } else { format!("in attempt {attempt}") };
    let (needed, to) = (whole_seconds(*seconds), to.to_the_second());
    format!("{needed} or more{tried}\n    (nearly so long was {run} silent {of}, until {to})")
}

/// Rounds up: whoever takes the number for a window takes one that is long enough.
fn whole_seconds(span: Span) -> Span {
    Span::from_seconds(span.as_micros().div_ceil(1_000_000))
}
