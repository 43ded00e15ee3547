//! `lastbeat lane …`: policies.

use lastbeat_domain::decide::Command;
use lastbeat_domain::{Name, Span, Terms};
use lastbeat_store::{Store, ask};
use serde_json::{Value, json};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::run::{execute, person};

/// How many runs are named when a policy is refused.
const NAMED_MAX: usize = 5;

pub(crate) async fn lane(store: &dyn Store, command: args::Lane, form: Output) -> Result<(), Failure> {
    match command {
        args::Lane::List => list(store, form).await,
        args::Lane::Show { lane } => show(store, &lane, form).await,
        args::Lane::Set(arguments) => set(store, *arguments, form).await,
    }
}

async fn document(store: &dyn Store, lane: &Name) -> Result<Value, Failure> {
    let policy = store.service_log().await?.policy(lane, store.now().await?);
    let runs = store.count(lane).await?;
    let runs: serde_json::Map<String, Value> =
        runs.into_iter().map(|(status, count)| (status.as_str().to_owned(), count.into())).collect();
    Ok(json!({"lane": lane, "policy_version": policy.version, "policy": policy.terms, "runs": runs}))
}

async fn list(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let lanes = store.lanes().await?;
    let mut documents = Vec::with_capacity(lanes.len());
    for lane in &lanes {
        documents.push(document(store, lane).await?);
    }
    match form {
        Output::Json => output::json_line(&json!({"lanes": documents, "next": null})),
        Output::Jsonl => documents.iter().try_for_each(output::json_line),
        Output::Table => {
            let service = store.service_log().await?;
            let now = store.now().await?;
            let row = |lane: &Name, document: &Value| {
                let policy = service.policy(lane, now);
                vec![
                    lane.to_string(),
                    policy.version.to_string(),
                    policy.terms.heartbeat_window.to_string(),
                    policy.terms.coarse_ttl.to_string(),
                    document["runs"].to_string(),
                ]
            };
            let rows = lanes.iter().zip(&documents).map(|(lane, document)| row(lane, document)).collect();
            output::table(&["LANE", "POLICY", "HEARTBEAT WINDOW", "COARSE TTL", "RUNS"], rows)
        }
    }
}

async fn show(store: &dyn Store, lane: &Name, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(&document(store, lane).await?);
    }
    let policy = store.service_log().await?.policy(lane, store.now().await?);
    let terms = &policy.terms;
    let off = |window: Option<Span>| window.map_or_else(|| "off".to_owned(), |window| window.to_string());
    output::pairs(&[
        ("lane", lane.to_string()),
        ("policy version", policy.version.to_string()),
        ("heartbeat interval", terms.heartbeat_interval.to_string()),
        ("heartbeat window", format!("{} (a run that beats may be silent so long)", terms.heartbeat_window)),
        ("coarse ttl", format!("{} (a run that never beats is believed so long)", terms.coarse_ttl)),
        ("claim window", off(terms.claim_window)),
        ("start window", off(terms.start_window)),
        ("max runtime", off(terms.max_runtime)),
        ("max attempts", terms.max_attempts.to_string()),
        ("retry backoff", format!("{} to {}", terms.retry_backoff_base, terms.retry_backoff_max)),
        ("hold", hold_in_words(terms)),
        ("late completion", word(&terms.late_completion)),
        ("mode", word(&terms.mode)),
    ])
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

async fn set(store: &dyn Store, arguments: args::SetLane, form: Output) -> Result<(), Failure> {
    let before = store.service_log().await?.policy(&arguments.lane, store.now().await?);
    let terms = changed(before.terms, &arguments);
    terms.validate().map_err(|error| Failure::new("invalid", error.to_string()))?;
    let lapsing = ask::would_lapse(store, &arguments.lane, &terms).await?;
    if !lapsing.is_empty() && !arguments.force {
        let named: Vec<String> = lapsing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let more = lapsing.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!(
            "under this policy {} open runs would lapse at once: {}{more}; give --force to set it all the same",
            lapsing.len(),
            named.join(", ")
        );
        return Err(Failure::new("would_lapse", message));
    }
    let lane = arguments.lane.clone();
    let (terms, expected_version, by) = (Box::new(terms), Some(before.version), Some(person()?));
    execute(store, Command::SetPolicy { lane, terms, expected_version, by }).await?;
    show(store, &arguments.lane, form).await
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
