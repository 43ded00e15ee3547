//! How `exec` comes by its run: a new one, or the one that has its unique key.
//!
//! A key stands for work that must not be done twice at once. So who finds it taken looks at the run that has it: one
//! that lapsed is reaped first, one that waits is claimed as its next attempt, and one that is in flight stays alone.

use lastbeat_domain::decide::{Command, Report, RunSpec};
use lastbeat_domain::{Name, RefusalCode, Span, Status};
use lastbeat_store::{Answer, CommandError, Judged, Store};

use crate::failure::Failure;
use crate::run::{claimant, new_run_id};

/// How many times to look again because somebody else was faster.
const TRIES_MAX: u32 = 20;

/// What is wanted.
pub(crate) struct Request {
    pub(crate) lane: Name,
    pub(crate) goal: Option<Name>,
    pub(crate) unique_key: Option<Name>,
}

/// The attempt that was claimed.
pub(crate) struct Obtained {
    pub(crate) report: Report,
    /// How often to beat.
    pub(crate) interval: Span,
}

/// Makes and claims a run, or claims the one that waits with the key.
pub(crate) async fn obtain(store: &dyn Store, request: &Request, executor: &Name) -> Result<Obtained, Failure> {
    for _ in 0..TRIES_MAX {
        let claim = claimant(executor.clone(), None);
        let spec = RunSpec {
            goal: request.goal.clone(),
            unique_key: request.unique_key.clone(),
            ..RunSpec::of_lane(request.lane.clone())
        };
        let create = Command::Create { run: new_run_id(), spec: Box::new(spec), claim: Some(claim.clone()) };
        let Answer { judged: Some(found), existing, .. } = carry_out(store, create).await? else { continue };
        if !existing {
            return Ok(obtained(&found, executor));
        }
        if found.run.lane != request.lane {
            return Err(taken(&found, &format!("in lane {}", found.run.lane)));
        }
        let run = found.run.id;
        let step = if found.verdict.is_lapsed() {
            Command::Reap { run, by: executor.clone(), by_hand: None }
        } else if found.run.status == Status::Pending {
            wait_until_due(&found).await?;
            Command::ClaimRun { run, claimant: claim }
        } else {
            return Err(taken(&found, &format!("{} at attempt {}", found.verdict.liveness, found.run.attempt)));
        };
        let claims = matches!(step, Command::ClaimRun { .. });
        match store.execute(vec![step]).await.pop() {
            Some(Ok(Answer { judged: Some(judged), .. })) if claims => return Ok(obtained(&judged, executor)),
            // Reaped: now the key is free, or the run waits for its next attempt.
            Some(Ok(_)) | None => {}
            Some(Err(CommandError::Refused(refusal)))
                if matches!(refusal.code, RefusalCode::NotLapsed | RefusalCode::NotClaimable)
                    && found.run.device.is_none() => {}
            Some(Err(CommandError::Refused(refusal))) => return Err(taken(&found, &refusal.message)),
            Some(Err(error)) => return Err(error.into()),
        }
    }
    Err(Failure::new("unique_key_open", "others keep taking the runs with this key; the command was not run"))
}

async fn carry_out(store: &dyn Store, command: Command) -> Result<Answer, Failure> {
    crate::run::execute(store, command).await
}

fn obtained(judged: &Judged, executor: &Name) -> Obtained {
    let run = &judged.run;
    let claim = run.claim.as_ref().and_then(|claim| claim.id.clone());
    let report = Report { run: run.id, attempt: run.attempt, claim, executor: Some(executor.clone()) };
    Obtained { report, interval: judged.policy.terms.heartbeat_interval }
}

/// A run that was reaped waits a little before its next attempt; it is waited for. One that is meant for later is not.
async fn wait_until_due(found: &Judged) -> Result<(), Failure> {
    let due_at = found.run.waiting.due_at;
    let wait = due_at.since(found.at);
    if wait > found.policy.terms.retry_backoff_max {
        return Err(taken(found, &format!("not to be claimed before {due_at}")));
    }
    if wait > Span::ZERO {
        eprintln!("lastbeat: run {} may be claimed again in {wait}; waiting", found.run.id);
        tokio::time::sleep(wait.to_std()).await;
    }
    Ok(())
}

fn taken(found: &Judged, how: &str) -> Failure {
    let run = found.run.id;
    let held = found.run.executor().filter(|_| found.run.status.is_in_flight());
    let by = held.map_or_else(String::new, |executor| format!(", held by {executor}"));
    Failure::new(
        "unique_key_open",
        format!("run {run} has the unique key and is {}{by} ({how}); the command was not run", found.run.status),
    )
}
