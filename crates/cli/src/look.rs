//! `lastbeat why` and `lastbeat history`: what was recorded, and what follows from it.

use std::time::Duration;

use lastbeat_domain::event::{Evidence, RunEvent};
use lastbeat_domain::run::Outcome;
use lastbeat_domain::{Liveness, Recorded, RunId, Status, explain};
use lastbeat_store::{Judged, Store, Stored, ask};
use serde_json::{Value, json};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;

/// How often new facts are looked for while following.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) async fn why(store: &dyn Store, arguments: &args::Why, form: Output) -> Result<(), Failure> {
    let id = arguments.run;
    let judged = match arguments.at {
        Some(at) => {
            if store.run(id).await?.is_none() {
                return Err(Failure::unknown_run(id));
            }
            ask::run_at(store, id, at).await?.ok_or_else(|| Failure::not_there_yet(id, at))?
        }
        None => ask::run(store, id).await?.ok_or_else(|| Failure::unknown_run(id))?,
    };
    let reap = match arguments.attempt {
        Some(attempt) => Some(reap_of(store, &judged, attempt).await?),
        None => last_reap(&judged),
    };
    let lines = match &reap {
        Some(reap) => explain::reap_lines(reap),
        None => explain::lines(&judged.run, &judged.verdict, &judged.policy, &judged.listening, judged.at),
    };
    if form != Output::Table {
        let document = match &reap {
            Some(reap) => of_reap(&judged, reap),
            None => of_verdict(&judged),
        };
        return output::json_line(&document);
    }
    let run = &judged.run;
    let goal = run.goal.as_ref().map_or_else(String::new, |goal| format!(", goal {goal}"));
    let verdict = output::liveness(if reap.is_some() { Liveness::Settled } else { judged.verdict.liveness });
    output::line(&format!("run {} (lane {}{goal}): {}, {verdict} at {}", run.id, run.lane, run.status, judged.at))?;
    lines.iter().try_for_each(|text| output::line(&format!("  {text}")))
}

/// The reap by which a run ended, if it did.
fn last_reap(judged: &Judged) -> Option<Recorded> {
    let run = &judged.run;
    let Outcome { version, at, event } = run.outcome.clone()?;
    (run.status == Status::TimedOut).then_some(Recorded { run: run.id, version, recorded_at: at, event })
}

async fn reap_of(store: &dyn Store, judged: &Judged, attempt: u32) -> Result<Recorded, Failure> {
    let stream = ask::whole_stream(store, judged.run.id).await?;
    let found = stream.iter().filter_map(Stored::known).find(|recorded| {
        recorded.recorded_at <= judged.at
            && matches!(recorded.event, RunEvent::TimedOut { attempt: reaped, .. } if reaped == attempt)
    });
    found.cloned().ok_or_else(|| {
        let message =
            format!("attempt {attempt} of run {} was not reaped; leave --attempt out to see how it is", judged.run.id);
        Failure::new("not_reaped", message)
    })
}

fn of_verdict(judged: &Judged) -> Value {
    let (run, verdict) = (&judged.run, &judged.verdict);
    let charge = verdict.charge;
    let settled = verdict.liveness == Liveness::Settled;
    json!({
        "run": run.id, "lane": run.lane, "goal": run.goal, "at": judged.at, "status": run.status,
        "attempt": run.attempt, "executor": run.executor(), "verdict": verdict.liveness, "rule": verdict.rule(),
        "basis": charge.map(|charge| json!({
            "fact": charge.basis.fact, "version": charge.basis.version, "at": charge.basis.at,
        })),
        "window_seconds": charge.map(|charge| charge.window), "charged_seconds": charge.map(|charge| charge.charged),
        "deaf_seconds": charge.map(|charge| charge.deaf), "lapses_at": verdict.lapses_at(),
        "policy_version": (!settled).then_some(judged.policy.version), "deaf_since": judged.listening.deaf_since(),
        "changes_at": verdict.changes_at,
        "message": explain::sentence(run, verdict, &judged.policy, judged.at),
    })
}

fn of_reap(judged: &Judged, reap: &Recorded) -> Value {
    let run = &judged.run;
    let RunEvent::TimedOut { attempt, rule, evidence, message } = &reap.event else { return of_verdict(judged) };
    let evidence: Option<&Evidence> = evidence.as_deref();
    json!({
        "run": run.id, "lane": run.lane, "goal": run.goal, "at": judged.at, "status": run.status,
        "attempt": attempt,
        "executor": evidence.and_then(|evidence| evidence.executor.as_ref()).or(run.executor().filter(|_| *attempt == run.attempt)),
        "verdict": Liveness::Settled, "rule": rule, "basis": evidence.map(|evidence| evidence.basis),
        "window_seconds": evidence.map(|evidence| evidence.window),
        "charged_seconds": evidence.map(|evidence| evidence.charged),
        "deaf_seconds": evidence.map(|evidence| evidence.deaf), "lapses_at": null,
        "policy_version": evidence.map(|evidence| evidence.policy_version), "deaf_since": judged.listening.deaf_since(),
        "reaped_at": reap.recorded_at, "sweeper": evidence.map(|evidence| &evidence.sweeper), "message": message,
    })
}

pub(crate) async fn history(store: &dyn Store, arguments: &args::History, form: Output) -> Result<(), Failure> {
    let id = arguments.run;
    if store.run(id).await?.is_none() {
        return Err(Failure::unknown_run(id));
    }
    let mut after = arguments.after;
    let facts = read_after(store, id, &mut after).await?;
    match form {
        Output::Json if !arguments.follow => return output::json_line(&json!({"events": facts, "next": null})),
        Output::Json | Output::Jsonl => facts.iter().try_for_each(output::json_line)?,
        Output::Table => facts.iter().try_for_each(|fact| output::line(&fact_line(fact)))?,
    }
    if !arguments.follow {
        return Ok(());
    }
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
        }
        for fact in read_after(store, id, &mut after).await? {
            if form == Output::Table { output::line(&fact_line(&fact))? } else { output::json_line(&fact)? }
        }
    }
}

async fn read_after(store: &dyn Store, id: RunId, after: &mut u64) -> Result<Vec<Stored>, Failure> {
    let mut facts = Vec::new();
    loop {
        let page = store.stream(id, *after, 10_000).await?;
        *after = page.facts.last().map_or(*after, Stored::version);
        facts.extend(page.facts);
        if page.next.is_none() {
            return Ok(facts);
        }
    }
}

fn fact_line(fact: &Stored) -> String {
    let document = serde_json::to_value(fact).unwrap_or_default();
    let shown = document.as_object().into_iter().flatten().filter(|(name, value)| {
        !["run", "version", "recorded_at", "type", "evidence"].contains(&name.as_str())
            && !value.is_null()
            && **value != json!({})
    });
    let fields: Vec<String> = shown
        .map(|(name, value)| format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)))
        .collect();
    format!("{:>5}  {}  {:<16}  {}", fact.version(), fact.recorded_at(), fact.type_name(), fields.join(" "))
        .trim_end()
        .to_owned()
}

pub(crate) async fn replay(store: &dyn Store, arguments: &args::Replay, form: Output) -> Result<(), Failure> {
    let id = arguments.run;
    if store.run(id).await?.is_none() {
        return Err(Failure::unknown_run(id));
    }
    let until = match arguments.at {
        Some(at) => at,
        None => store.now().await?,
    };
    let replay = lastbeat_store::replay(store, id, until).await?;
    let replay = replay.ok_or_else(|| Failure::not_there_yet(id, until))?;
    match form {
        Output::Json => {
            return output::json_line(&json!({
                "run": id, "at": until, "stretches": replay.stretches, "state": output::shown(&replay.judged),
            }));
        }
        Output::Jsonl => return replay.stretches.iter().try_for_each(output::json_line),
        Output::Table => {}
    }
    let row = |stretch: &lastbeat_store::Stretch| {
        vec![
            stretch.from.to_string(),
            stretch.length().to_string(),
            stretch.status.to_string(),
            stretch.attempt.to_string(),
            output::liveness(stretch.verdict),
            stretch.rule.map_or_else(|| "-".to_owned(), |rule| rule.to_string()),
            stretch.because.clone().unwrap_or_else(|| "time passed".to_owned()),
        ]
    };
    let heading = ["FROM", "FOR", "STATUS", "ATTEMPT", "VERDICT", "RULE", "BECAUSE"];
    output::table(&heading, replay.stretches.iter().map(row).collect())?;
    let run = &replay.judged.run;
    output::line(&format!(
        "at {until}: {} at attempt {}, version {} of its stream",
        run.status, run.attempt, run.version
    ))
}
