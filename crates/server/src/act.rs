//! Carrying out commands, and what follows from them in this process.

use axum::http::HeaderMap;
use lastbeat_domain::decide::Command;
use lastbeat_domain::{Name, Status};
use lastbeat_store::Answer;
use lastbeat_wire::AnswerDocument;

use crate::app::App;
use crate::caller::Caller;
use crate::problem::Problem;

/// The header by which a create or a claim is known when it is sent again.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Carries out one command. A run that waits afterwards is told to whoever waits for work.
///
/// # Errors
/// If it is refused, or the store fails.
pub(crate) async fn execute(app: &App, command: Command) -> Result<Answer, Problem> {
    let answer = app.store().execute(vec![command]).await.pop().ok_or_else(Problem::internal)??;
    if let Some(judged) = answer.judged.as_deref().filter(|judged| judged.run.status == Status::Pending) {
        app.work.arrived(&judged.run.lane);
    }
    Ok(answer)
}

/// Notes the claim in an answer as its caller's, so that the first heartbeat need not ask.
pub(crate) fn note_claim(app: &App, caller: &Caller, answer: &Answer) {
    let Some(run) = answer.judged.as_deref().map(|judged| &judged.run).filter(|_| !answer.existing) else { return };
    let claim = run.claim.as_ref().filter(|held| Some(&held.executor) == caller.executor());
    if let (Some(token), Some(claim)) = (caller.token(), claim.and_then(|held| held.id.as_ref())) {
        app.owners.note(token, run.id, claim);
    }
}

/// Carries out one command about a run and shows the run after it.
///
/// # Errors
/// If it is refused, or the store fails.
pub(crate) async fn answered(app: &App, caller: &Caller, command: Command) -> Result<AnswerDocument, Problem> {
    let answer = execute(app, command).await?;
    let mut document = AnswerDocument::after(&answer).ok_or_else(Problem::internal)?;
    caller.veil(&mut document.run);
    Ok(document)
}

/// Makes a command one that is carried out at most once, if it is sent with a key.
///
/// # Errors
/// If the key cannot be one.
pub(crate) fn once(caller: &Caller, headers: &HeaderMap, command: Command) -> Result<Command, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(command) };
    let key = key.to_str().map_err(|error| Problem::invalid("Idempotency-Key", error))?;
    let key = Name::new(key).map_err(|error| Problem::invalid("Idempotency-Key", error))?;
    Ok(Command::Idempotent { key: caller.idempotency_key(key), command: Box::new(command) })
}
