//! Idempotency keys: who repeats a create or a claim after a lost response gets the first answer.
//!
//! Kept is not the answer but where in the log it stands, so it is made again from the stream as it was then.

use std::sync::Arc;

use lastbeat_domain::decide::{Claimant, Command, IdempotencyKey, Refusal, RefusalCode};
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::{Name, Recorded, RunId, Span, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::batch::input_of;
use crate::error::StoreError;
use crate::record::{Stored, fold};
use crate::service::ServiceLog;
use crate::{Answer, Judged, Outcome};

/// How long a key is remembered, in log time.
pub(crate) const REMEMBERED: Span = Span::from_seconds(24 * 3_600);

/// Where the first answer to a key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FirstAnswer {
    /// Tells the request from another one that is sent with the same key.
    pub(crate) fingerprint: String,
    pub(crate) run: RunId,
    /// The run's version after it.
    pub(crate) version: u64,
    /// Whether the run was open already, with the unique key of the request.
    pub(crate) existing: bool,
    /// The log time of its verdict.
    pub(crate) at: Timestamp,
}

/// A first answer and the run's stream up to it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) first: FirstAnswer,
    pub(crate) stream: Vec<Stored>,
}

impl Known {
    /// Gives the first answer again.
    pub(crate) fn repeat(
        self,
        key: &IdempotencyKey,
        command: &Command,
        service: &ServiceLog,
    ) -> Result<Outcome, StoreError> {
        let FirstAnswer { fingerprint: first, run: id, version, existing, at } = self.first;
        if first != fingerprint(command) {
            let message =
                format!("the idempotency key `{}` was sent before, with another request; make a new one", key.key);
            return Ok(Err(Refusal::new(RefusalCode::IdempotencyKeyReused, message).into()));
        }
        let run = fold(&self.stream).map_err(|source| StoreError::CorruptStream { run: id, source })?;
        let Some(run) = run.filter(|run| run.version == version) else {
            return Err(StoreError::Corrupt(format!("run {id} ends before version {version}, which was answered")));
        };
        let facts: Vec<Recorded> = self.stream.iter().filter_map(Stored::known).cloned().collect();
        let input = facts.first().and_then(|created| input_of(&created.event));
        let claimed = matches!(facts.last().map(|last| &last.event), Some(RunEvent::Claimed { .. }));
        // A create made the run; a claim added one fact to it.
        let before = if matches!(command, Command::Claim { .. } | Command::ClaimRun { .. }) {
            facts.len().saturating_sub(1)
        } else {
            0
        };
        let appended: Vec<Recorded> = if existing { Vec::new() } else { facts.into_iter().skip(before).collect() };
        let (policy, listening) = (service.policy(&run.lane, at), Arc::new(service.listening(at)));
        let judged = Some(Box::new(Judged::new(run, policy, listening, at)));
        Ok(Ok(Answer {
            judged,
            appended,
            existing,
            input: input.filter(|_| claimed && !existing),
            ..Answer::default()
        }))
    }
}

/// Returns what a request asks for, in short: all of it but the ids that are made anew for each try.
pub(crate) fn fingerprint(command: &Command) -> String {
    let claimant = |claimant: &Claimant| json!({"executor": claimant.executor, "device": claimant.device});
    let request: Value = match command {
        Command::Create { spec, claim, .. } => json!({
            "lane": spec.lane, "goal": spec.goal, "device": spec.device, "not_before": spec.not_before,
            "unique_key": spec.unique_key, "labels": spec.labels, "input": spec.input,
            "claim": claim.as_ref().map(claimant),
        }),
        Command::Claim { lanes, claimant: by } => json!({"lanes": lanes, "claimant": claimant(by)}),
        Command::ClaimRun { run, claimant: by } => json!({"run": run, "claimant": claimant(by)}),
        other => json!({"run": other.run(), "lanes": Vec::<Name>::new()}),
    };
    let hash = Sha256::digest(request.to_string());
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
