//! A run: the fold of its stream.
//!
//! [`Run::evolve`] checks order, version, status and attempt, and nothing else: neither policy nor `not_before`. What
//! was decided under yesterday's policy stays a fact. A step that it refuses cannot have been written by a correct
//! program, so in a stored stream it is corruption: an error, never a panic, never skipped.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::{Recorded, RunEvent, Signal};
use crate::ids::{ClaimId, Name, RunId};
use crate::time::Timestamp;
use crate::verdict::{BasisFact, Rule};

/// Where a run is in its life, as its facts say. Whether its executor still lives is not a status but a
/// [verdict](crate::verdict).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits to be claimed.
    Pending,
    /// An executor took it.
    Claimed,
    /// The executor was heard of at work.
    Running,
    /// The work is done.
    Completed,
    /// The executor said that the work failed.
    Failed,
    /// It was reaped.
    TimedOut,
    /// It was cancelled.
    Cancelled,
}

impl Status {
    /// All statuses, in the order of a run's life.
    pub const ALL: [Status; 7] = [
        Status::Pending,
        Status::Claimed,
        Status::Running,
        Status::Completed,
        Status::Failed,
        Status::TimedOut,
        Status::Cancelled,
    ];

    /// Says whether an executor holds the run.
    pub const fn is_in_flight(self) -> bool {
        matches!(self, Status::Claimed | Status::Running)
    }

    /// Says whether the run is neither waiting nor held: it ended, though it may be requeued.
    pub const fn is_terminal(self) -> bool {
        !self.is_in_flight() && !matches!(self, Status::Pending)
    }

    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Claimed => "claimed",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::TimedOut => "timed_out",
            Status::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Since when a run waits, and which fact says so: the basis of the rule `unclaimed` and the order of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// `created`, or the latest `requeued`.
    pub fact: BasisFact,
    /// The version of that fact.
    pub version: u64,
    /// The later of that fact and its `not_before`: the log time from which the run may be claimed.
    pub due_at: Timestamp,
}

/// The latest claim of a run. It stays after the attempt ends, until the next claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The random half of the fencing token.
    pub id: Option<ClaimId>,
    /// Who claimed.
    pub executor: Name,
    /// The device that the executor presented.
    pub device: Option<Name>,
    /// The log time of the claim.
    pub at: Timestamp,
    /// The version of the `claimed` fact.
    pub version: u64,
}

/// The latest heartbeat of the current attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastBeat {
    /// Its log time.
    pub at: Timestamp,
    /// Its version.
    pub version: u64,
}

/// The heartbeat of the current attempt that last changed the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressChange {
    /// Its log time.
    pub at: Timestamp,
    /// Its version.
    pub version: u64,
}

/// A request to stop that the executor has not answered yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who asked.
    pub by: Name,
    /// Why.
    pub reason: Option<String>,
    /// When, in log time.
    pub at: Timestamp,
}

/// An attempt that was reaped, kept so that what its executor says afterwards is recognised.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reaped {
    /// The attempt.
    pub attempt: u32,
    /// Its claim id.
    pub claim: Option<ClaimId>,
    /// Its executor.
    pub executor: Name,
    /// When it was reaped, in log time.
    pub at: Timestamp,
    /// The rule; `None` where an older program has kept it, which left it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// The late signals that were recorded, each kind once.
    pub signals: Vec<Signal>,
}

impl Reaped {
    /// Says whether its executor said something afterwards that [contradicts](Rule::is_contradicted_by) the reap; of an
    /// unknown rule, something that contradicts each.
    pub fn was_probably_wrong(&self) -> bool {
        let contradicts = |signal: &Signal| match self.rule {
            Some(rule) => rule.is_contradicted_by(*signal),
            None => Rule::ALL.iter().all(|rule| rule.is_contradicted_by(*signal)),
        };
        self.signals.iter().any(contradicts)
    }
}

/// What an older program has kept is the same without the rule, and no damage.
impl PartialEq for Reaped {
    fn eq(&self, other: &Reaped) -> bool {
        let Reaped { attempt, claim, executor, at, rule, signals } = self;
        let is_same_rule = rule.is_none() || other.rule.is_none() || *rule == other.rule;
        (attempt, claim, executor, at, signals)
            == (&other.attempt, &other.claim, &other.executor, &other.at, &other.signals)
            && is_same_rule
    }
}

/// How an attempt ended: its latest terminal fact. It stays after a requeue, so that a repeated report is recognised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The version of the fact.
    pub version: u64,
    /// Its log time.
    pub at: Timestamp,
    /// `completed`, `failed`, `timed_out` or `cancelled`.
    pub event: RunEvent,
}

/// A run, as its stream says up to [`Run::version`].
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The run's id.
    pub id: RunId,
    /// Its kind.
    pub lane: Name,
    /// The goal that it serves.
    pub goal: Option<Name>,
    /// The only device that may claim it.
    pub device: Option<Name>,
    /// At most one run with this key is open at a time.
    pub unique_key: Option<Name>,
    /// Free labels.
    pub labels: BTreeMap<Name, String>,
    /// Where it is in its life.
    pub status: Status,
    /// The last attempt that was claimed; 0 before the first claim.
    pub attempt: u32,
    /// The last claim.
    pub claim: Option<Claim>,
    /// When it was created, in log time.
    pub created_at: Timestamp,
    /// The log time before which it may not be claimed: of its creation, or of its latest requeue.
    pub not_before: Option<Timestamp>,
    /// Since when it waits, or last waited.
    pub waiting: Waiting,
    /// When the current attempt was reported to have started, in log time.
    pub started_at: Option<Timestamp>,
    /// The latest heartbeat of the current attempt.
    pub last_beat: Option<LastBeat>,
    /// How many heartbeats the current attempt has.
    pub beats: u64,
    /// The latest progress that the current attempt reported.
    pub progress: Option<Value>,
    /// The heartbeat that changed it last: the same JSON again is no progress.
    pub progress_changed: Option<ProgressChange>,
    /// The request to stop that is open.
    pub cancel_requested: Option<CancelRequest>,
    /// The attempts that were reaped, oldest first.
    pub reaped: Vec<Reaped>,
    /// How the last attempt that ended did so.
    pub outcome: Option<Outcome>,
    /// The version of its latest fact.
    pub version: u64,
    /// The log time of its latest fact.
    pub updated_at: Timestamp,
    /// Why the run is quarantined: its stream holds a fact that this program does not know. It is never judged further.
    pub quarantined: Option<String>,
}

/// Says why a fact cannot follow on a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvolveError {
    /// The stream does not begin with `created`.
    #[error("a stream begins with `created`, not with `{0}`")]
    NotCreated(&'static str),
    /// The fact belongs to another run.
    #[error("the fact belongs to run {0}")]
    OtherRun(RunId),
    /// The stream has a hole or a version twice.
    #[error("version {found} follows on version {last}; {} is expected", last + 1)]
    Version {
        /// The version of the stream's last fact.
        last: u64,
        /// The version that was found.
        found: u64,
    },
    /// Log time does not increase within the stream.
    #[error("recorded at {found}, not after the fact before it ({last})")]
    Order {
        /// The log time of the stream's last fact.
        last: Timestamp,
        /// The log time that was found.
        found: Timestamp,
    },
    /// The fact is impossible in that status.
    #[error("`{event}` cannot follow while the run is {status}")]
    Status {
        /// The type of the fact.
        event: &'static str,
        /// The status of the run.
        status: Status,
    },
    /// The fact names an attempt that it cannot be about.
    #[error("`{event}` names attempt {found}; the run is at attempt {attempt}")]
    Attempt {
        /// The type of the fact.
        event: &'static str,
        /// The run's attempt.
        attempt: u32,
        /// The attempt that was found.
        found: u32,
    },
}

impl Run {
    /// Folds a whole stream.
    ///
    /// # Errors
    /// If a fact cannot follow on the ones before it; `None` for an empty stream.
    pub fn fold<'a>(stream: impl IntoIterator<Item = &'a Recorded>) -> Result<Option<Run>, EvolveError> {
        let mut run: Option<Run> = None;
        for recorded in stream {
            match &mut run {
                None => run = Some(Run::begin(recorded)?),
                Some(run) => run.evolve(recorded)?,
            }
        }
        Ok(run)
    }

    /// Makes the run from the first fact of its stream.
    ///
    /// # Errors
    /// If the fact is not `created` with version 1.
    pub fn begin(recorded: &Recorded) -> Result<Run, EvolveError> {
        let RunEvent::Created { lane, goal, device, not_before, unique_key, labels, input: _ } = &recorded.event else {
            return Err(EvolveError::NotCreated(recorded.event.type_name()));
        };
        if recorded.version != 1 {
            return Err(EvolveError::Version { last: 0, found: recorded.version });
        }
        let created_at = recorded.recorded_at;
        let due_at = not_before.map_or(created_at, |not_before| not_before.max(created_at));
        Ok(Run {
            id: recorded.run,
            lane: lane.clone(),
            goal: goal.clone(),
            device: device.clone(),
            unique_key: unique_key.clone(),
            labels: labels.clone(),
            status: Status::Pending,
            attempt: 0,
            claim: None,
            created_at,
            not_before: *not_before,
            waiting: Waiting { fact: BasisFact::Created, version: 1, due_at },
            started_at: None,
            last_beat: None,
            beats: 0,
            progress: None,
            progress_changed: None,
            cancel_requested: None,
            reaped: Vec::new(),
            outcome: None,
            version: 1,
            updated_at: created_at,
            quarantined: None,
        })
    }

    /// Takes in the next fact of the stream. On an error the run is as it was.
    ///
    /// # Errors
    /// If the fact cannot follow.
    pub fn evolve(&mut self, recorded: &Recorded) -> Result<(), EvolveError> {
        self.check_place(recorded)?;
        if self.quarantined.is_none() {
            self.check_step(&recorded.event)?;
            self.apply(recorded);
        }
        self.version = recorded.version;
        self.updated_at = recorded.recorded_at;
        Ok(())
    }

    /// Takes in a fact of a type that this program does not know: from here on the run is quarantined.
    pub fn quarantine(&mut self, version: u64, recorded_at: Timestamp, why: String) {
        self.version = version;
        self.updated_at = recorded_at;
        self.quarantined.get_or_insert(why);
    }

    fn check_place(&self, recorded: &Recorded) -> Result<(), EvolveError> {
        if recorded.run != self.id {
            return Err(EvolveError::OtherRun(recorded.run));
        }
        if recorded.version != self.version + 1 {
            return Err(EvolveError::Version { last: self.version, found: recorded.version });
        }
        if recorded.recorded_at <= self.updated_at {
            return Err(EvolveError::Order { last: self.updated_at, found: recorded.recorded_at });
        }
        Ok(())
    }

    /// Checks that status and attempt allow the fact.
    fn check_step(&self, event: &RunEvent) -> Result<(), EvolveError> {
        let pending = self.status == Status::Pending;
        let in_flight = self.status.is_in_flight();
        // An ending of a pending run is about no attempt.
        let current = if pending { 0 } else { self.attempt };
        let (allowed, named, expected) = match *event {
            RunEvent::Created { .. } => (false, 0, 0),
            RunEvent::Claimed { attempt, .. } => (pending, attempt, self.attempt + 1),
            RunEvent::Started { attempt } => (in_flight && self.started_at.is_none(), attempt, self.attempt),
            RunEvent::Heartbeat { attempt, .. }
            | RunEvent::Completed { attempt, late: false, .. }
            | RunEvent::Failed { attempt, .. } => (in_flight, attempt, self.attempt),
            RunEvent::Completed { attempt, late: true, .. } => (self.may_adopt_completion(), attempt, self.attempt),
            RunEvent::TimedOut { attempt, .. } | RunEvent::Cancelled { attempt, .. } => {
                (pending || in_flight, attempt, current)
            }
            RunEvent::Requeued { next_attempt, .. } => {
                (matches!(self.status, Status::TimedOut | Status::Failed), next_attempt, self.attempt + 1)
            }
            RunEvent::CancelRequested { .. } => (pending || in_flight, 0, 0),
            RunEvent::LateSignal { attempt, .. } => (self.reaped_attempt(attempt).is_some(), attempt, attempt),
        };
        let event = event.type_name();
        if !allowed {
            return Err(EvolveError::Status { event, status: self.status });
        }
        if named != expected {
            return Err(EvolveError::Attempt { event, attempt: self.attempt, found: named });
        }
        Ok(())
    }

    /// Applies a fact that has been checked.
    fn apply(&mut self, recorded: &Recorded) {
        let (at, version) = (recorded.recorded_at, recorded.version);
        match &recorded.event {
            RunEvent::Created { .. } => {}
            RunEvent::Claimed { attempt, claim, executor, device } => {
                self.status = Status::Claimed;
                self.attempt = *attempt;
                let (id, executor, device) = (claim.clone(), executor.clone(), device.clone());
                self.claim = Some(Claim { id, executor, device, at, version });
                self.started_at = None;
                self.last_beat = None;
                self.beats = 0;
                self.progress = None;
                self.progress_changed = None;
            }
            RunEvent::Started { .. } => {
                self.status = Status::Running;
                self.started_at = Some(at);
            }
            RunEvent::Heartbeat { progress, .. } => {
                self.status = Status::Running;
                self.last_beat = Some(LastBeat { at, version });
                self.beats += 1;
                if progress.is_some() && *progress != self.progress {
                    self.progress.clone_from(progress);
                    self.progress_changed = Some(ProgressChange { at, version });
                }
            }
            RunEvent::Requeued { not_before, .. } => {
                self.status = Status::Pending;
                self.not_before = Some(*not_before);
                self.waiting = Waiting { fact: BasisFact::Requeued, version, due_at: at.max(*not_before) };
                self.cancel_requested = None;
            }
            RunEvent::CancelRequested { by, reason } => {
                self.cancel_requested = Some(CancelRequest { by: by.clone(), reason: reason.clone(), at });
            }
            RunEvent::LateSignal { attempt, signal, .. } => {
                if let Some(reaped) = self.reaped.iter_mut().find(|reaped| reaped.attempt == *attempt)
                    && !reaped.signals.contains(signal)
                {
                    reaped.signals.push(*signal);
                }
            }
            RunEvent::Completed { .. } => self.end(Status::Completed, recorded),
            RunEvent::Failed { .. } => self.end(Status::Failed, recorded),
            RunEvent::Cancelled { .. } => self.end(Status::Cancelled, recorded),
            RunEvent::TimedOut { attempt, rule, .. } => {
                if let (1.., Some(claim)) = (*attempt, &self.claim) {
                    let (claim, executor) = (claim.id.clone(), claim.executor.clone());
                    let (attempt, rule, signals) = (*attempt, Some(*rule), Vec::new());
                    self.reaped.push(Reaped { attempt, claim, executor, at, rule, signals });
                }
                self.end(Status::TimedOut, recorded);
            }
        }
    }

    fn end(&mut self, status: Status, recorded: &Recorded) {
        self.status = status;
        let (version, at, event) = (recorded.version, recorded.recorded_at, recorded.event.clone());
        self.outcome = Some(Outcome { version, at, event });
    }

    /// Says whether a heartbeat of the current attempt was recorded since its claim, on a run in flight.
    ///
    /// This is `last_heartbeat_at > claimed_at`: the stream's clock is strictly increasing, so a heartbeat of the
    /// attempt, which follows its claim in the stream, is later than it; and without one the two are the same instant.
    pub fn is_beating(&self) -> bool {
        self.status.is_in_flight() && self.last_heartbeat_at() > self.claimed_at()
    }

    /// Returns the log time of the last claim.
    pub fn claimed_at(&self) -> Option<Timestamp> {
        self.claim.as_ref().map(|claim| claim.at)
    }

    /// Returns the log time of the current attempt's latest heartbeat, or of its claim until the first.
    pub fn last_heartbeat_at(&self) -> Option<Timestamp> {
        self.last_beat.map(|beat| beat.at).or(self.claimed_at())
    }

    /// Returns who holds or last held the run.
    pub fn executor(&self) -> Option<&Name> {
        self.claim.as_ref().map(|claim| &claim.executor)
    }

    /// Returns the record of a reaped attempt.
    pub fn reaped_attempt(&self, attempt: u32) -> Option<&Reaped> {
        self.reaped.iter().find(|reaped| reaped.attempt == attempt)
    }

    /// Says whether the last attempt was reaped and nobody has claimed another: its completion may still be adopted.
    pub fn may_adopt_completion(&self) -> bool {
        matches!(self.status, Status::TimedOut | Status::Pending) && self.reaped_attempt(self.attempt).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(version: u64, event: RunEvent) -> Recorded {
        let recorded_at = Timestamp::from_micros(i64::try_from(version).unwrap() * 1_000_000);
        Recorded { run: RunId::from_uuid(uuid::Uuid::from_u128(7)), version, recorded_at, event }
    }

    fn stream(events: Vec<RunEvent>) -> Vec<Recorded> {
        events.into_iter().zip(1..).map(|(event, version)| recorded(version, event)).collect()
    }

    fn created() -> RunEvent {
        let lane = Name::new("watcher").unwrap();
        let labels = BTreeMap::new();
        RunEvent::Created { lane, goal: None, device: None, not_before: None, unique_key: None, labels, input: None }
    }

    fn claimed(attempt: u32) -> RunEvent {
        RunEvent::Claimed { attempt, claim: None, executor: Name::new("mac-7").unwrap(), device: None }
    }

    fn beat(attempt: u32) -> RunEvent {
        RunEvent::Heartbeat { attempt, progress: None }
    }

    fn timed_out(attempt: u32) -> RunEvent {
        let message = "silent".to_owned();
        RunEvent::TimedOut { attempt, rule: Rule::HeartbeatSilence, evidence: None, message }
    }

    fn requeued(next_attempt: u32) -> RunEvent {
        RunEvent::Requeued { next_attempt, not_before: Timestamp::from_micros(0), by: None, reason: None }
    }

    fn completed(attempt: u32, late: bool) -> RunEvent {
        RunEvent::Completed { attempt, output: None, late }
    }

    fn fold(events: Vec<RunEvent>) -> Result<Run, EvolveError> {
        Run::fold(&stream(events)).map(Option::unwrap)
    }

    #[test]
    fn a_life_from_creation_to_completion() {
        let run = fold(vec![created(), claimed(1), RunEvent::Started { attempt: 1 }, beat(1), completed(1, false)]);
        let run = run.unwrap();
        assert_eq!((run.status, run.attempt, run.beats, run.version), (Status::Completed, 1, 1, 5));
        assert!(!run.is_beating());
    }

    #[test]
    fn a_claim_forgets_the_beats_of_the_attempt_before() {
        let events = vec![created(), claimed(1), beat(1), timed_out(1), requeued(2), claimed(2)];
        let run = fold(events).unwrap();
        assert_eq!((run.beats, run.last_beat), (0, None));
        assert_eq!(run.last_heartbeat_at(), run.claimed_at());
        assert!(!run.is_beating());
    }

    #[test]
    fn a_late_completion_ends_a_reaped_attempt_until_the_next_claim() {
        let reaped = vec![created(), claimed(1), beat(1), timed_out(1)];
        let with = |more: Vec<RunEvent>| fold([reaped.clone(), more].concat());
        assert_eq!(with(vec![completed(1, true)]).unwrap().status, Status::Completed);
        assert_eq!(with(vec![requeued(2), completed(1, true)]).unwrap().status, Status::Completed);
        assert!(with(vec![requeued(2), claimed(2), completed(1, true)]).is_err());
        assert!(with(vec![completed(1, false)]).is_err());
        assert!(fold(vec![created(), claimed(1), completed(1, true)]).is_err());
    }

    #[test]
    fn a_reap_that_was_kept_without_its_rule_is_the_same_and_contradicted_by_a_completion_only() {
        let late = |signal| RunEvent::LateSignal { attempt: 1, signal, executor: None };
        let with = |signal| fold(vec![created(), claimed(1), timed_out(1), late(signal)]).unwrap();
        for (signal, by_any) in [(Signal::Heartbeat, false), (Signal::Completed, true)] {
            let known = with(signal).reaped.remove(0);
            let mut kept = serde_json::to_value(&known).unwrap();
            assert_eq!(kept.as_object_mut().unwrap().remove("rule"), Some("heartbeat_silence".into()));
            let kept: Reaped = serde_json::from_value(kept).unwrap();
            assert_eq!((&kept, kept.rule), (&known, None));
            assert_eq!((known.was_probably_wrong(), kept.was_probably_wrong()), (true, by_any));
        }
        let other = with(Signal::Failed).reaped.remove(0);
        assert_ne!(other, Reaped { rule: Some(Rule::NoProgress), ..other.clone() });
    }

    #[test]
    fn impossible_steps_are_refused() {
        assert_eq!(fold(vec![claimed(1)]).unwrap_err(), EvolveError::NotCreated("claimed"));
        for impossible in [
            vec![created(), created()],
            vec![created(), claimed(2)],
            vec![created(), beat(0)],
            vec![created(), claimed(1), beat(2)],
            vec![created(), claimed(1), claimed(2)],
            vec![created(), claimed(1), completed(1, false), completed(1, false)],
            vec![created(), claimed(1), completed(1, false), requeued(2)],
            vec![created(), claimed(1), timed_out(0)],
            vec![created(), timed_out(1)],
            vec![created(), requeued(1)],
            vec![created(), RunEvent::LateSignal { attempt: 1, signal: Signal::Heartbeat, executor: None }],
        ] {
            assert!(fold(impossible.clone()).is_err(), "{impossible:?}");
        }
    }

    #[test]
    fn a_hole_and_a_stamp_that_stands_still_are_refused() {
        let mut run = Run::begin(&recorded(1, created())).unwrap();
        assert_eq!(run.evolve(&recorded(3, claimed(1))), Err(EvolveError::Version { last: 1, found: 3 }));
        let mut still = recorded(2, claimed(1));
        still.recorded_at = run.updated_at;
        assert!(matches!(run.evolve(&still), Err(EvolveError::Order { .. })));
        assert_eq!(run.version, 1);
    }

    #[test]
    fn a_quarantined_run_follows_its_stream_without_understanding_it() {
        let mut run = Run::begin(&recorded(1, created())).unwrap();
        run.quarantine(2, Timestamp::from_micros(2_000_000), "paused".to_owned());
        run.evolve(&recorded(3, beat(9))).unwrap();
        assert_eq!((run.version, run.status), (3, Status::Pending));
        assert!(run.quarantined.is_some());
    }
}
