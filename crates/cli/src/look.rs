//! `lastbeat why`, `lastbeat history` and `lastbeat replay`: what was recorded, and what follows from it.

use std::time::Duration;

use lastbeat_domain::{RunId, Timestamp};
use lastbeat_wire::{EventDocument, EventsPage, StretchDocument, WhyDocument};
use serde_json::json;

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::place::Place;

/// How often new facts are looked for while following.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) async fn why(place: &Place, arguments: &args::Why, form: Output) -> Result<(), Failure> {
    let document = place.why(arguments.run, arguments.at, arguments.attempt).await?;
    if form != Output::Table {
        return output::json_line(&document);
    }
    let WhyDocument { run, lane, goal, status, at, explanation, .. } = &document;
    let goal = goal.as_ref().map_or_else(String::new, |goal| format!(", goal {goal}"));
    let verdict = output::liveness(document.verdict);
    output::line(&format!("run {run} (lane {lane}{goal}): {status}, {verdict} at {at}"))?;
    explanation.iter().try_for_each(|text| output::line(&format!("  {text}")))
}

pub(crate) async fn history(place: &Place, arguments: &args::History, form: Output) -> Result<(), Failure> {
    let mut after = arguments.after;
    let events = place.history(arguments.run, &mut after).await?;
    match form {
        Output::Json if !arguments.follow => return output::json_line(&EventsPage { events, next: None }),
        Output::Json | Output::Jsonl => events.iter().try_for_each(output::json_line)?,
        Output::Table => events.iter().try_for_each(|event| output::line(&fact_line(event)))?,
    }
    if !arguments.follow {
        return Ok(());
    }
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
        }
        for event in place.history(arguments.run, &mut after).await? {
            if form == Output::Table { output::line(&fact_line(&event))? } else { output::json_line(&event)? }
        }
    }
}

fn fact_line(event: &EventDocument) -> String {
    let document = serde_json::to_value(event).unwrap_or_default();
    let shown = document.as_object().into_iter().flatten().filter(|(name, value)| {
        !["run", "version", "recorded_at", "type", "evidence"].contains(&name.as_str())
            && !value.is_null()
            && **value != json!({})
    });
    let fields: Vec<String> = shown
        .map(|(name, value)| format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)))
        .collect();
    let (version, at) = (event.version().unwrap_or_default(), event.recorded_at().map(|at| at.to_string()));
    format!("{version:>5}  {}  {:<16}  {}", at.unwrap_or_default(), event.type_name(), fields.join(" "))
        .trim_end()
        .to_owned()
}

pub(crate) async fn replay(place: &Place, run: RunId, at: Option<Timestamp>, form: Output) -> Result<(), Failure> {
    let document = place.replay(run, at).await?;
    match form {
        Output::Json => return output::json_line(&document),
        Output::Jsonl => return document.stretches.iter().try_for_each(output::json_line),
        Output::Table => {}
    }
    let row = |stretch: &StretchDocument| {
        vec![
            stretch.from.to_string(),
            stretch.to.since(stretch.from).to_string(),
            stretch.status.to_string(),
            stretch.attempt.to_string(),
            output::liveness(stretch.verdict),
            stretch.rule.map_or_else(|| "-".to_owned(), |rule| rule.to_string()),
            stretch.because.clone().unwrap_or_else(|| "time passed".to_owned()),
        ]
    };
    let heading = ["FROM", "FOR", "STATUS", "ATTEMPT", "VERDICT", "RULE", "BECAUSE"];
    output::table(&heading, document.stretches.iter().map(row).collect())?;
    let (run, at) = (&document.state, document.at);
    output::line(&format!("at {at}: {} at attempt {}, version {} of its stream", run.status, run.attempt, run.version))
}
