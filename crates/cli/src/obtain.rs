//! How `exec` comes by its run: a new one, or the one that has its unique key.
//!
//! A key stands for work that must not be done twice at once. So who finds it taken looks at the run that has it: one
//! that lapsed is reaped first, one that waits is claimed as its next attempt, and one that is in flight stays alone.

use lastbeat_client::Lease;
use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::{Liveness, Name, Span, Status, Terms};
use lastbeat_wire::{AnswerDocument, ClaimBy, ClaimRequest, CreateRequest, RunDocument};
use uuid::Uuid;

use crate::failure::Failure;
use crate::place::{Done, Place};
use crate::run::{claimant, new_run_id};

/// How many times to look again because somebody else was faster.
const TRIES_MAX: u32 = 20;

/// What is wanted, and by whom.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) lane: Name,
    pub(crate) goal: Option<Name>,
    pub(crate) unique_key: Option<Name>,
    pub(crate) executor: Name,
    /// What the creation is known by until it is answered: whoever asks again after a lost answer makes no second run.
    idempotency_key: String,
}

impl Request {
    pub(crate) fn new(lane: Name, goal: Option<Name>, unique_key: Option<Name>, executor: Name) -> Request {
        Request { lane, goal, unique_key, executor, idempotency_key: new_key() }
    }

    fn spec(&self) -> RunSpec {
        let (goal, unique_key) = (self.goal.clone(), self.unique_key.clone());
        RunSpec { goal, unique_key, ..RunSpec::of_lane(self.lane.clone()) }
    }
}

fn new_key() -> String {
    Uuid::new_v4().to_string()
}

/// Makes and claims a run, or claims the one that waits with the key. After a failure that may pass it may be called
/// again.
pub(crate) async fn obtain(place: &Place, request: &mut Request) -> Result<Lease, Failure> {
    for _ in 0..TRIES_MAX {
        let found = create(place, request).await?;
        request.idempotency_key = new_key();
        if !found.existing {
            return lease(&found);
        }
        let found = &found.run;
        if found.lane != request.lane {
            return Err(taken(found, &format!("in lane {}", found.lane)));
        }
        let step = if found.verdict == Liveness::Lapsed {
            reap(place, request, found).await.map(|()| None)
        } else if found.status == Status::Pending {
            wait_until_due(place, found).await?;
            claim(place, request, found).await
        } else {
            return Err(taken(found, &format!("{} at attempt {}", found.verdict, found.attempt)));
        };
        match step {
            Ok(Some(claimed)) => return lease(&claimed),
            // Reaped: now the key is free, or the run waits for its next attempt.
            Ok(None) => {}
            Err(failure) if matches!(&*failure.code, "not_lapsed" | "not_claimable") && found.device.is_none() => {}
            Err(failure) if failure.transient => return Err(failure),
            Err(failure) => return Err(taken(found, &failure.message)),
        }
    }
    Err(Failure::new("unique_key_open", "others keep taking the runs with this key; the command was not run"))
}

async fn create(place: &Place, request: &Request) -> Result<AnswerDocument, Failure> {
    if let Place::Server(api) = place {
        let claim = Some(ClaimBy { executor: request.executor.clone(), device: None });
        let create = CreateRequest { claim, ..request.spec().into() };
        return Ok(api.create_as(&create, &request.idempotency_key).await?);
    }
    let claim = Some(claimant(request.executor.clone(), None));
    let create = Command::Create { run: new_run_id(), spec: Box::new(request.spec()), claim };
    match place.execute(create).await? {
        Done::Run(found) => Ok(*found),
        Done::Heard(_) | Done::Nothing => Err(Failure::new("internal", "the creation was not answered")),
    }
}

async fn reap(place: &Place, request: &Request, found: &RunDocument) -> Result<(), Failure> {
    match place {
        Place::Server(api) => {
            api.reap(found.run, Some("its unique key is wanted".to_owned())).await?;
        }
        Place::Store(_) => {
            let by = request.executor.clone();
            place.execute(Command::Reap { run: found.run, by, by_hand: None }).await?;
        }
    }
    Ok(())
}

async fn claim(place: &Place, request: &Request, found: &RunDocument) -> Result<Option<AnswerDocument>, Failure> {
    let executor = request.executor.clone();
    if let Place::Server(api) = place {
        let run = Some(found.run);
        let claim = ClaimRequest { executor, lanes: Vec::new(), device: None, wait_seconds: None, run };
        return Ok(api.claim(&claim).await?);
    }
    let claim = Command::ClaimRun { run: found.run, claimant: claimant(executor, None) };
    match place.execute(claim).await? {
        Done::Run(claimed) => Ok(Some(*claimed)),
        Done::Heard(_) | Done::Nothing => Ok(None),
    }
}

fn lease(answer: &AnswerDocument) -> Result<Lease, Failure> {
    Lease::of(answer).ok_or_else(|| {
        let message = format!("run {} was claimed and is {} already", answer.run.run, answer.run.status);
        Failure::new("not_claimable", message)
    })
}

/// A run that was reaped waits a little before its next attempt; it is waited for. One that is meant for later is not.
async fn wait_until_due(place: &Place, found: &RunDocument) -> Result<(), Failure> {
    let Some(due_at) = found.due_at else { return Ok(()) };
    let wait = due_at.since(found.at);
    if wait == Span::ZERO {
        return Ok(());
    }
    // A token may be good for the runs of a lane without being good for its policy.
    let terms = place.lane(&found.lane).await.map_or_else(|_| Terms::default(), |lane| lane.policy.0);
    if wait > terms.retry_backoff_max {
        return Err(taken(found, &format!("not to be claimed before {due_at}")));
    }
    eprintln!("lastbeat: run {} may be claimed again in {wait}; waiting", found.run);
    tokio::time::sleep(wait.to_std()).await;
    Ok(())
}

fn taken(found: &RunDocument, how: &str) -> Failure {
    let run = found.run;
    let held = found.executor.as_ref().filter(|_| found.status.is_in_flight());
    let by = held.map_or_else(String::new, |executor| format!(", held by {executor}"));
    Failure::new(
        "unique_key_open",
        format!("run {run} has the unique key and is {}{by} ({how}); the command was not run", found.status),
    )
}
