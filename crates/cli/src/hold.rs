//! `lastbeat hold …`: lanes in which nothing is reaped for silence, and letting it go on.

use lastbeat_domain::Name;
use lastbeat_domain::decide::Command;
use lastbeat_domain::hold::HoldState;
use lastbeat_store::{Store, ask};
use serde_json::{Value, json};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::run::{execute, person};

pub(crate) async fn hold(store: &dyn Store, command: args::Hold, form: Output) -> Result<(), Failure> {
    match command {
        args::Hold::List => list(store, form).await,
        args::Hold::Release { lane, reason } => release(store, lane, reason, form).await,
    }
}

async fn documents(store: &dyn Store) -> Result<Vec<Value>, Failure> {
    let (service, now) = (store.service_log().await?, store.now().await?);
    let mut documents = Vec::new();
    for (lane, hold) in service.holds() {
        let terms = service.policy(lane, now).terms;
        let census = ask::census(store, lane).await?;
        let (state, since, ends_by) = match hold.state {
            HoldState::Held { since } => ("held", since, Some(since.plus(terms.hold_max))),
            HoldState::Draining { since } => ("draining", since, None),
            HoldState::Free => continue,
        };
        documents.push(json!({
            "lane": lane, "state": state, "since": since, "ends_by": ends_by, "held_at": hold.held_at,
            "silent_when_held": hold.census.silent, "beating_when_held": hold.census.beating,
            "lapsed": census.lapsed, "silent": census.silent, "beating": census.beating, "reap_rate": terms.reap_rate,
        }));
    }
    Ok(documents)
}

async fn list(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let documents = documents(store).await?;
    match form {
        Output::Json => output::json_line(&json!({"holds": documents, "next": null})),
        Output::Jsonl => documents.iter().try_for_each(output::json_line),
        Output::Table if documents.is_empty() => output::line("no lane is held"),
        Output::Table => {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            let row = |document: &Value| {
                let of = |count: &str, all: &str| format!("{} of {}", document[count], document[all]);
                let then = match document["ends_by"].as_str() {
                    Some(by) => format!("held until {by} at the latest, then {} reaps a second", document["reap_rate"]),
                    None => format!("reaped at {} a second", document["reap_rate"]),
                };
                vec![
                    text(&document["lane"]),
                    text(&document["state"]),
                    text(&document["since"]),
                    of("silent_when_held", "beating_when_held"),
                    of("silent", "beating"),
                    text(&document["lapsed"]),
                    then,
                ]
            };
            let heading = ["LANE", "STATE", "SINCE", "SILENT WHEN HELD", "SILENT NOW", "LAPSED NOW", "WHAT NEXT"];
            output::table(&heading, documents.iter().map(row).collect())?;
            output::line("`lastbeat hold release LANE --reason …` lets reaping by silence go on in a lane that is held")
        }
    }
}

async fn release(store: &dyn Store, lane: Name, reason: Option<String>, form: Output) -> Result<(), Failure> {
    let command = Command::ReleaseHold { lane: lane.clone(), by: person()?, reason };
    execute(store, command).await?;
    let rate = store.service_log().await?.policy(&lane, store.now().await?).terms.reap_rate;
    match form {
        Output::Table => {
            output::line(&format!("lane {lane} is released; its silent runs are reaped at {rate} a second"))
        }
        Output::Json | Output::Jsonl => {
            output::json_line(&json!({"lane": lane, "state": "draining", "reap_rate": rate}))
        }
    }
}
