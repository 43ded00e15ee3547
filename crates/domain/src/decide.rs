//! Commands to events: what may happen next.
//!
//! [`decide`] is asked under the store's locks, with the run as its stream says and `now` as log time, so what it
//! returns can be appended as it stands. A [`Refusal`] says why not, and carries the events that are to be appended
//! all the same: what an executor says after its reap is refused *and* recorded.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::event::{BasisEvidence, DeafCause, Event, Evidence, ReleaseCause, RunEvent, ServiceEvent, Signal};
use crate::explain;
use crate::ids::{ClaimId, Name, RunId};
use crate::listening::{self, Beacon, BeaconRole, Listening};
use crate::policy::{LanePolicy, LateCompletion, Mode, Terms};
use crate::run::{Outcome, Run, Status};
use crate::time::Timestamp;
use crate::verdict::{Charge, Rule, judge};

/// The most bytes that `input`, `output`, `progress`, `error` or `reason` may have as JSON.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// The most labels that a run may have.
pub const LABELS_MAX: usize = 32;
/// The most bytes that the value of a label may have.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;

/// Something that somebody wants to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Make a run, and claim it at once for somebody if asked to.
    Create {
        /// The id of the new run.
        run: RunId,
        /// What the run is.
        spec: Box<RunSpec>,
        /// Who takes it at once.
        claim: Option<Claimant>,
    },
    /// Take the run that waits longest in one of the lanes. The store picks it.
    Claim {
        /// The lanes to take from.
        lanes: Vec<Name>,
        /// Who takes it.
        claimant: Claimant,
    },
    /// Report that work on an attempt began.
    Start(Report),
    /// Report that work on an attempt goes on.
    Heartbeat {
        /// The attempt.
        report: Report,
        /// How far it is.
        progress: Option<Value>,
    },
    /// Report that the work is done.
    Complete {
        /// The attempt.
        report: Report,
        /// What came out.
        output: Option<Value>,
    },
    /// Report that the work failed.
    Fail {
        /// The attempt.
        report: Report,
        /// Why.
        error: String,
    },
    /// Report that the work was stopped as asked.
    AcknowledgeCancel(Report),
    /// Ask the executor to stop; a run that nobody holds is cancelled at once.
    RequestCancel {
        /// The run.
        run: RunId,
        /// Who asks.
        by: Name,
        /// Why.
        reason: Option<String>,
    },
    /// Reap the run, if it has lapsed.
    Reap {
        /// The run.
        run: RunId,
        /// Who reaps: a sweeper, or a person.
        by: Name,
        /// By hand, whatever hold and mode say; with the reason that was given.
        by_hand: Option<ByHand>,
    },
    /// Let an ended run wait for another attempt.
    Requeue {
        /// The run.
        run: RunId,
        /// Who asks.
        by: Name,
        /// Why.
        reason: Option<String>,
    },
    /// Look at the run again and set the instant of the next look. Appends nothing.
    Rearm {
        /// The run.
        run: RunId,
    },
    /// Do the same for the next runs of a lane whose policy was set since they were armed. Appends nothing.
    RearmLane {
        /// The lane.
        lane: Name,
        /// How many runs at the most.
        limit: u32,
    },
    /// Give a lane a new policy.
    SetPolicy {
        /// The lane.
        lane: Name,
        /// The policy.
        terms: Box<Terms>,
        /// The version of the policy that it was made from; refused if the lane has another by now.
        expected_version: Option<u32>,
        /// Who sets it.
        by: Option<Name>,
    },
    /// Say that a listening process is there.
    Beacon {
        /// The process.
        process: Name,
        /// How it listens.
        role: BeaconRole,
        /// By when it will be heard of again, in log time.
        promise: Option<Timestamp>,
        /// A step of the host's clock that it noticed since its last beacon.
        clock_step: Option<ClockStep>,
    },
    /// Stop reaping by silence in a lane.
    Hold {
        /// The lane.
        lane: Name,
        /// How many of its beating runs are lapsed.
        lapsed: u64,
        /// How many of its beating runs are quiet or lapsed.
        silent: u64,
        /// How many of its runs are beating.
        beating: u64,
    },
    /// Let reaping by silence go on in a lane.
    ReleaseHold {
        /// The lane.
        lane: Name,
        /// Why.
        cause: ReleaseCause,
        /// Who releases it by hand.
        by: Option<Name>,
        /// Why it is released by hand.
        reason: Option<String>,
    },
    /// Record that a token was made.
    IssueToken {
        /// Identifies the token.
        token: Name,
        /// Its name.
        name: Name,
        /// What it may do.
        role: Name,
        /// Who made it.
        by: Name,
    },
    /// Record that a token was revoked.
    RevokeToken {
        /// Identifies the token.
        token: Name,
        /// Who revoked it.
        by: Name,
    },
}

impl Command {
    /// Returns the run that the command names, if it names one.
    pub fn run(&self) -> Option<RunId> {
        match self {
            Command::Create { run, .. }
            | Command::RequestCancel { run, .. }
            | Command::Reap { run, .. }
            | Command::Requeue { run, .. }
            | Command::Rearm { run } => Some(*run),
            Command::Start(report) | Command::AcknowledgeCancel(report) => Some(report.run),
            Command::Heartbeat { report, .. } | Command::Complete { report, .. } | Command::Fail { report, .. } => {
                Some(report.run)
            }
            _ => None,
        }
    }

    /// Returns the unique key that the command asks for, if it asks for one.
    pub fn unique_key(&self) -> Option<&Name> {
        match self {
            Command::Create { spec, .. } => spec.unique_key.as_ref(),
            _ => None,
        }
    }
}

/// What a new run is.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Its kind.
    pub lane: Name,
    /// The goal that it serves.
    pub goal: Option<Name>,
    /// The only device that may claim it.
    pub device: Option<Name>,
    /// The log time before which it may not be claimed.
    pub not_before: Option<Timestamp>,
    /// At most one run with this key is open at a time.
    pub unique_key: Option<Name>,
    /// Free labels.
    pub labels: BTreeMap<Name, String>,
    /// What the executor works on.
    pub input: Option<Value>,
}

impl RunSpec {
    /// Makes a run of a lane with nothing else said.
    pub fn of_lane(lane: Name) -> RunSpec {
        let labels = BTreeMap::new();
        RunSpec { lane, goal: None, device: None, not_before: None, unique_key: None, labels, input: None }
    }
}

/// Who wants to claim, with the fencing token of the claim to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The executor.
    pub executor: Name,
    /// The device that it presents.
    pub device: Option<Name>,
    /// The random half of the fencing token.
    pub claim: ClaimId,
}

/// Which attempt an executor speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The claim id; a report that quotes none is held to the attempt alone.
    pub claim: Option<ClaimId>,
    /// Who speaks, if known.
    pub executor: Option<Name>,
}

/// Marks a reap by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByHand {
    /// Why.
    pub reason: Option<String>,
}

/// A step of the host's clock, in log time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStep {
    /// The clock was set forward over this span.
    Forward {
        /// Its start.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// The clock was set back.
    Back {
        /// What it said before.
        from: Timestamp,
        /// What it said after.
        to: Timestamp,
    },
}

/// What the store knows beside the run, read under the same locks.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The policy of the command's lane.
    pub policy: &'a LanePolicy,
    /// The listening record as of `now`.
    pub listening: &'a Listening,
    /// The open run that has the unique key which the command needs, if there is one.
    pub key_holder: Option<RunId>,
    /// Whether the command's lane is held.
    pub held: bool,
    /// All beacons.
    pub beacons: &'a [Beacon],
}

/// Why a command is refused: a code for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// There is no such run.
    UnknownRun,
    /// There is such a run already.
    RunExists,
    /// The report quotes an attempt or claim that is not the current one.
    StaleAttempt,
    /// The run has ended, and otherwise than the report says.
    Settled,
    /// The run cannot be claimed now, or not by this executor.
    NotClaimable,
    /// No run waits in the lanes.
    NothingToClaim,
    /// The run has not lapsed.
    NotLapsed,
    /// The lane's policy says that lapsed runs are only reported.
    Shadow,
    /// The lane is held.
    Held,
    /// The lane is not held.
    NotHeld,
    /// Nobody listens at the moment, so nobody is reaped.
    Deaf,
    /// The run cannot be requeued from where it is.
    NotRequeueable,
    /// Another open run has the unique key.
    UniqueKeyOpen,
    /// Nobody asked for the run to be cancelled.
    NotCancelRequested,
    /// The run's stream holds a fact that this program does not know.
    Quarantined,
    /// The lane's policy was changed meanwhile.
    PolicyChanged,
    /// A field is over its limit.
    TooLarge,
    /// A field cannot be taken.
    Invalid,
}

impl RefusalCode {
    /// Returns the word for it in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            RefusalCode::UnknownRun => "unknown_run",
            RefusalCode::RunExists => "run_exists",
            RefusalCode::StaleAttempt => "stale_attempt",
            RefusalCode::Settled => "settled",
            RefusalCode::NotClaimable => "not_claimable",
            RefusalCode::NothingToClaim => "nothing_to_claim",
            RefusalCode::NotLapsed => "not_lapsed",
            RefusalCode::Shadow => "shadow",
            RefusalCode::Held => "held",
            RefusalCode::NotHeld => "not_held",
            RefusalCode::Deaf => "deaf",
            RefusalCode::NotRequeueable => "not_requeueable",
            RefusalCode::UniqueKeyOpen => "unique_key_open",
            RefusalCode::NotCancelRequested => "not_cancel_requested",
            RefusalCode::Quarantined => "quarantined",
            RefusalCode::PolicyChanged => "policy_changed",
            RefusalCode::TooLarge => "too_large",
            RefusalCode::Invalid => "invalid",
        }
    }
}

/// A command that is not carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why, for programs.
    pub code: RefusalCode,
    /// Why, for people, and what to do.
    pub message: String,
    /// What is to be appended all the same.
    pub events: Vec<Event>,
    /// The open run that has the unique key, with [`RefusalCode::UniqueKeyOpen`].
    pub key_holder: Option<RunId>,
}

impl Refusal {
    /// Makes a refusal that appends nothing.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), events: Vec::new(), key_holder: None }
    }
}

type Decision = Result<Vec<Event>, Refusal>;

/// Decides a command at log time `now`. `run` is the run that the command names or, for a claim, the one that the
/// store picked; events of a run are meant for its stream, in their order.
///
/// # Errors
/// Refuses with a code, a message, and the events to append all the same. Nothing else is to be appended then.
pub fn decide(run: Option<&Run>, command: &Command, context: &Context<'_>, now: Timestamp) -> Decision {
    match command {
        Command::Create { run: id, spec, claim } => create(run, *id, spec, claim.as_ref(), context, now),
        Command::Claim { claimant, .. } => claim(run, claimant, now),
        Command::Start(report) => start(known(run, report.run)?, report),
        Command::Heartbeat { report, progress } => heartbeat(known(run, report.run)?, report, progress.as_ref()),
        Command::Complete { report, output } => complete(known(run, report.run)?, report, output.as_ref(), context),
        Command::Fail { report, error } => fail(known(run, report.run)?, report, error),
        Command::AcknowledgeCancel(report) => acknowledge_cancel(known(run, report.run)?, report),
        Command::RequestCancel { run: id, by, reason } => request_cancel(known(run, *id)?, by, reason.as_ref()),
        Command::Reap { run: id, by, by_hand } => reap(known(run, *id)?, by, by_hand.as_ref(), context, now),
        Command::Requeue { run: id, by, reason } => requeue(known(run, *id)?, by, reason.as_ref(), context, now),
        Command::Rearm { run: id } => known(run, *id).map(|_| Vec::new()),
        Command::RearmLane { .. } => Ok(Vec::new()),
        Command::SetPolicy { lane, terms, expected_version, by } => {
            set_policy(lane, terms, *expected_version, by.as_ref(), context)
        }
        Command::Beacon { role, clock_step, .. } => Ok(beacon(*role, *clock_step, context, now)),
        Command::Hold { lane, lapsed, silent, beating } => {
            let (lane, lapsed, silent, beating) = (lane.clone(), *lapsed, *silent, *beating);
            let event = ServiceEvent::ReapingHeld { lane, lapsed, silent, beating };
            Ok(if context.held { Vec::new() } else { vec![Event::Service(event)] })
        }
        Command::ReleaseHold { lane, cause, by, reason } => {
            release_hold(lane, *cause, by.as_ref(), reason.as_ref(), context)
        }
        Command::IssueToken { token, name, role, by } => {
            let (token, name, role, by) = (token.clone(), name.clone(), role.clone(), by.clone());
            Ok(vec![Event::Service(ServiceEvent::TokenIssued { token, name, role, by })])
        }
        Command::RevokeToken { token, by } => {
            let (token, by) = (token.clone(), by.clone());
            Ok(vec![Event::Service(ServiceEvent::TokenRevoked { token, by })])
        }
    }
}

/// Returns the run if it exists and is understood.
fn known(run: Option<&Run>, id: RunId) -> Result<&Run, Refusal> {
    let Some(run) = run else {
        let message = format!("there is no run {id}; `lastbeat run list` shows what there is");
        return Err(Refusal::new(RefusalCode::UnknownRun, message));
    };
    match &run.quarantined {
        None => Ok(run),
        Some(why) => Err(Refusal::new(
            RefusalCode::Quarantined,
            format!("run {id} is quarantined: {why}; use a newer version of the program"),
        )),
    }
}

fn create(
    existing: Option<&Run>,
    id: RunId,
    spec: &RunSpec,
    claimant: Option<&Claimant>,
    context: &Context<'_>,
    now: Timestamp,
) -> Decision {
    if existing.is_some() {
        return Err(Refusal::new(RefusalCode::RunExists, format!("there is a run {id} already")));
    }
    if let (Some(holder), Some(key)) = (context.key_holder, &spec.unique_key) {
        let message = format!("run {holder} is open and has the unique key `{key}`");
        let refusal = Refusal::new(RefusalCode::UniqueKeyOpen, message);
        return Err(Refusal { key_holder: Some(holder), ..refusal });
    }
    check_labels(&spec.labels)?;
    check_payload("input", spec.input.as_ref())?;
    if let Some(claimant) = claimant {
        check_due(spec.not_before, now)?;
        check_device(spec.device.as_ref(), claimant)?;
    }
    let spec = spec.clone();
    let created = RunEvent::Created {
        lane: spec.lane,
        goal: spec.goal,
        device: spec.device,
        not_before: spec.not_before,
        unique_key: spec.unique_key,
        labels: spec.labels,
        input: spec.input,
    };
    let claimed = claimant.map(|claimant| claimed(1, claimant));
    Ok(std::iter::once(created).chain(claimed).map(Event::Run).collect())
}

fn claim(run: Option<&Run>, claimant: &Claimant, now: Timestamp) -> Decision {
    let Some(run) = run else {
        let message = "no run waits in the lane that this executor may claim now";
        return Err(Refusal::new(RefusalCode::NothingToClaim, message));
    };
    let run = known(Some(run), run.id)?;
    if run.status != Status::Pending {
        let message = format!("run {} is {}, so it cannot be claimed", run.id, run.status);
        return Err(Refusal::new(RefusalCode::NotClaimable, message));
    }
    check_due(run.not_before, now)?;
    check_device(run.device.as_ref(), claimant)?;
    Ok(vec![Event::Run(claimed(run.attempt + 1, claimant))])
}

fn claimed(attempt: u32, claimant: &Claimant) -> RunEvent {
    let Claimant { executor, device, claim } = claimant.clone();
    RunEvent::Claimed { attempt, claim: Some(claim), executor, device }
}

fn check_due(not_before: Option<Timestamp>, now: Timestamp) -> Result<(), Refusal> {
    match not_before {
        Some(not_before) if now < not_before => {
            Err(Refusal::new(RefusalCode::NotClaimable, format!("the run may not be claimed before {not_before}")))
        }
        _ => Ok(()),
    }
}

fn check_device(pin: Option<&Name>, claimant: &Claimant) -> Result<(), Refusal> {
    match pin {
        Some(pin) if claimant.device.as_ref() != Some(pin) => Err(Refusal::new(
            RefusalCode::NotClaimable,
            format!("the run is pinned to device `{pin}`; claim it with that device"),
        )),
        _ => Ok(()),
    }
}

fn start(run: &Run, report: &Report) -> Decision {
    current(run, report, Signal::Started)?;
    if run.started_at.is_some() {
        return Ok(Vec::new());
    }
    Ok(vec![Event::Run(RunEvent::Started { attempt: report.attempt })])
}

fn heartbeat(run: &Run, report: &Report, progress: Option<&Value>) -> Decision {
    current(run, report, Signal::Heartbeat)?;
    check_payload("progress", progress)?;
    Ok(vec![Event::Run(RunEvent::Heartbeat { attempt: report.attempt, progress: progress.cloned() })])
}

fn complete(run: &Run, report: &Report, output: Option<&Value>, context: &Context<'_>) -> Decision {
    let attempt = report.attempt;
    if let Some(Outcome { event: RunEvent::Completed { attempt: ended, output: before, .. }, .. }) = &run.outcome
        && *ended == attempt
        && claim_matches(run, report)
        && before.as_ref() == output
    {
        return Ok(Vec::new());
    }
    check_payload("output", output)?;
    let may_adopt = run.may_adopt_completion() && attempt == run.attempt && claim_matches(run, report);
    let late = may_adopt && context.policy.terms.late_completion == LateCompletion::Adopt;
    if !late {
        current(run, report, Signal::Completed)?;
    }
    Ok(vec![Event::Run(RunEvent::Completed { attempt, output: output.cloned(), late })])
}

fn fail(run: &Run, report: &Report, error: &str) -> Decision {
    let attempt = report.attempt;
    if let Some(Outcome { event: RunEvent::Failed { attempt: ended, error: before }, .. }) = &run.outcome
        && *ended == attempt
        && claim_matches(run, report)
        && before == error
    {
        return Ok(Vec::new());
    }
    current(run, report, Signal::Failed)?;
    check_text("error", Some(error))?;
    Ok(vec![Event::Run(RunEvent::Failed { attempt, error: error.to_owned() })])
}

fn acknowledge_cancel(run: &Run, report: &Report) -> Decision {
    let attempt = report.attempt;
    if let Some(Outcome { event: RunEvent::Cancelled { attempt: ended, .. }, .. }) = &run.outcome
        && *ended == attempt
        && claim_matches(run, report)
    {
        return Ok(Vec::new());
    }
    // That the executor stopped is no sign of life that a reap contradicts, so it is no late signal.
    check_current(run, report)?;
    if run.cancel_requested.is_none() {
        let message = format!("nobody asked for run {} to be cancelled; report a failure instead", run.id);
        return Err(Refusal::new(RefusalCode::NotCancelRequested, message));
    }
    let by = report.executor.clone().or_else(|| run.executor().cloned());
    let Some(by) = by else {
        return Err(stale(run, attempt));
    };
    Ok(vec![Event::Run(RunEvent::Cancelled { attempt, by })])
}

fn request_cancel(run: &Run, by: &Name, reason: Option<&String>) -> Decision {
    check_text("reason", reason.map(String::as_str))?;
    let requested = RunEvent::CancelRequested { by: by.clone(), reason: reason.cloned() };
    match run.status {
        Status::Cancelled => Ok(Vec::new()),
        Status::Pending => {
            let cancelled = RunEvent::Cancelled { attempt: 0, by: by.clone() };
            // `cancelled` has no room for a reason, so a reason gets a fact of its own.
            let requested = reason.map(|_| requested);
            Ok(requested.into_iter().chain([cancelled]).map(Event::Run).collect())
        }
        Status::Claimed | Status::Running if run.cancel_requested.is_some() => Ok(Vec::new()),
        Status::Claimed | Status::Running => Ok(vec![Event::Run(requested)]),
        Status::Completed | Status::Failed | Status::TimedOut => Err(settled(run)),
    }
}

fn reap(run: &Run, by: &Name, by_hand: Option<&ByHand>, context: &Context<'_>, now: Timestamp) -> Decision {
    let verdict = judge(run, context.policy, context.listening, now);
    let charge = match verdict.charge {
        Some(charge) if verdict.is_lapsed() => charge,
        _ => {
            let message =
                format!("run {} has not lapsed: it is {}; `lastbeat why` says more", run.id, verdict.liveness);
            return Err(Refusal::new(RefusalCode::NotLapsed, message));
        }
    };
    if let Some(since) = context.listening.deaf_since() {
        let message = format!("nobody has listened since {since}, so nobody is reaped until somebody does again");
        return Err(Refusal::new(RefusalCode::Deaf, message));
    }
    match by_hand {
        Some(by_hand) => check_text("reason", by_hand.reason.as_deref())?,
        None if context.policy.terms.mode == Mode::Shadow => {
            let message = format!("lane `{}` is in shadow mode: lapsed runs are reported, not reaped", run.lane);
            return Err(Refusal::new(RefusalCode::Shadow, message));
        }
        None if context.held && charge.rule == Rule::HeartbeatSilence => {
            let message = format!("lane `{}` is held: too many of its runs went silent at once", run.lane);
            return Err(Refusal::new(RefusalCode::Held, message));
        }
        None => {}
    }
    let mut events = vec![Event::Run(timed_out(run, &charge, by, context.policy, now))];
    if let Some(requeued) = retry(run, context.policy, now) {
        events.push(Event::Run(requeued));
    }
    if let Some(ByHand { reason }) = by_hand {
        let (target, by, reason) = (run.id, by.clone(), reason.clone());
        events.push(Event::Service(ServiceEvent::ReapForced { target, by, reason }));
    }
    Ok(events)
}

fn timed_out(run: &Run, charge: &Charge, sweeper: &Name, policy: &LanePolicy, now: Timestamp) -> RunEvent {
    let basis = charge.basis;
    let held = run.status.is_in_flight();
    let evidence = Evidence {
        rule: charge.rule,
        basis: BasisEvidence { fact: basis.fact, version: basis.version, at: basis.at },
        window: charge.window,
        charged: charge.charged,
        wall: now.since(basis.at),
        deaf: charge.deaf,
        judged_at: now,
        policy_version: policy.version,
        executor: run.executor().filter(|_| held).cloned(),
        sweeper: sweeper.clone(),
    };
    RunEvent::TimedOut {
        attempt: if held { run.attempt } else { 0 },
        rule: charge.rule,
        evidence: Some(Box::new(evidence)),
        message: explain::reap_message(run, charge),
    }
}

/// The `requeued` that follows a reap: only of a claimed attempt, below the policy's attempts, that nobody wants cancelled.
fn retry(run: &Run, policy: &LanePolicy, now: Timestamp) -> Option<RunEvent> {
    let reaps = u32::try_from(run.reaped.len()).unwrap_or(u32::MAX).saturating_add(1);
    let wanted = run.status.is_in_flight() && run.cancel_requested.is_none() && reaps < policy.terms.max_attempts;
    wanted.then(|| RunEvent::Requeued {
        next_attempt: run.attempt + 1,
        not_before: now.plus(policy.terms.retry_backoff(run.attempt)),
        by: None,
        reason: None,
    })
}

fn requeue(run: &Run, by: &Name, reason: Option<&String>, context: &Context<'_>, now: Timestamp) -> Decision {
    check_text("reason", reason.map(String::as_str))?;
    if !matches!(run.status, Status::TimedOut | Status::Failed) {
        let message = format!("run {} is {}; only a failed or timed-out run can be requeued", run.id, run.status);
        return Err(Refusal::new(RefusalCode::NotRequeueable, message));
    }
    if let Some(holder) = context.key_holder {
        let message = format!("run {holder} is open and has the unique key of run {}", run.id);
        let refusal = Refusal::new(RefusalCode::UniqueKeyOpen, message);
        return Err(Refusal { key_holder: Some(holder), ..refusal });
    }
    let (by, reason) = (Some(by.clone()), reason.cloned());
    let requeued = RunEvent::Requeued { next_attempt: run.attempt + 1, not_before: now, by, reason };
    Ok(vec![Event::Run(requeued)])
}

fn set_policy(lane: &Name, terms: &Terms, expected: Option<u32>, by: Option<&Name>, context: &Context<'_>) -> Decision {
    let version = context.policy.version;
    if expected.is_some_and(|expected| expected != version) {
        let message =
            format!("the policy of lane `{lane}` was changed meanwhile (it is at version {version}); look again");
        return Err(Refusal::new(RefusalCode::PolicyChanged, message));
    }
    terms.validate().map_err(|error| Refusal::new(RefusalCode::Invalid, error.to_string()))?;
    let (lane, policy, by) = (lane.clone(), terms.clone(), by.cloned());
    Ok(vec![Event::Service(ServiceEvent::PolicySet { lane, policy_version: version + 1, policy, by })])
}

/// Records what a beacon shows: a gap that nobody has recorded yet, and a step of the clock.
fn beacon(role: BeaconRole, step: Option<ClockStep>, context: &Context<'_>, now: Timestamp) -> Vec<Event> {
    let mut events = Vec::new();
    let serves = context.beacons.iter().any(|beacon| beacon.role == BeaconRole::Serve);
    let counts = role == BeaconRole::Serve || !serves;
    // The one who beacons is counted itself, and so ends the gap that it records.
    if let Some(gap) = listening::open_gap(context.beacons, now).filter(|_| counts) {
        let (from, promised_until) = (gap.since, Some(gap.promised_until));
        events.push(ServiceEvent::Deaf { from, to: now, promised_until, cause: DeafCause::Gap });
    }
    events.extend(step.map(|step| match step {
        ClockStep::Forward { from, to } => {
            ServiceEvent::Deaf { from, to, promised_until: None, cause: DeafCause::ClockStep }
        }
        ClockStep::Back { from, to } => ServiceEvent::ClockBack { from, to },
    }));
    events.into_iter().map(Event::Service).collect()
}

fn release_hold(
    lane: &Name,
    cause: ReleaseCause,
    by: Option<&Name>,
    reason: Option<&String>,
    context: &Context<'_>,
) -> Decision {
    check_text("reason", reason.map(String::as_str))?;
    if !context.held {
        return Err(Refusal::new(RefusalCode::NotHeld, format!("lane `{lane}` is not held")));
    }
    let (lane, by, reason) = (lane.clone(), by.cloned(), reason.cloned());
    Ok(vec![Event::Service(ServiceEvent::ReapingReleased { lane, cause, by, reason })])
}

/// Checks the fencing token: the report must be about the attempt and claim that hold the run now.
fn check_current(run: &Run, report: &Report) -> Result<(), Refusal> {
    if report.attempt != run.attempt || !claim_matches(run, report) || run.status == Status::Pending {
        return Err(stale(run, report.attempt));
    }
    if run.status.is_terminal() { Err(settled(run)) } else { Ok(()) }
}

/// The same, and what is refused after a reap is recorded: the first of each kind for each attempt.
fn current(run: &Run, report: &Report, signal: Signal) -> Result<(), Refusal> {
    let Err(mut refusal) = check_current(run, report) else {
        return Ok(());
    };
    let reaped = run.reaped_attempt(report.attempt);
    // Without the claim id of that attempt it was not its executor who spoke.
    let spoke = reaped.filter(|reaped| report.claim.is_none() || report.claim == reaped.claim);
    if let Some(reaped) = spoke.filter(|reaped| !reaped.signals.contains(&signal)) {
        let executor = report.executor.clone().or_else(|| Some(reaped.executor.clone()));
        refusal.events.push(Event::Run(RunEvent::LateSignal { attempt: report.attempt, signal, executor }));
    }
    Err(refusal)
}

fn claim_matches(run: &Run, report: &Report) -> bool {
    let held = run.claim.as_ref().and_then(|claim| claim.id.as_ref());
    report.claim.is_none() || report.claim.as_ref() == held
}

fn stale(run: &Run, attempt: u32) -> Refusal {
    let state = match run.status {
        Status::Pending => format!("it waits for attempt {}", run.attempt + 1),
        status => format!("it is {status} at attempt {}", run.attempt),
    };
    let message =
        format!("attempt {attempt} of run {} is fenced: {state}, under another claim; stop working on it", run.id);
    Refusal::new(RefusalCode::StaleAttempt, message)
}

fn settled(run: &Run) -> Refusal {
    let ending = match &run.outcome {
        Some(outcome) => format!("{} at {}", run.status, outcome.at),
        None => run.status.to_string(),
    };
    Refusal::new(RefusalCode::Settled, format!("run {} has ended: {ending}", run.id))
}

fn check_labels(labels: &BTreeMap<Name, String>) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        let message = format!("labels: there are {}, at most {LABELS_MAX} are allowed", labels.len());
        return Err(Refusal::new(RefusalCode::TooLarge, message));
    }
    for (key, value) in labels {
        if value.len() > LABEL_VALUE_BYTES_MAX {
            let message = format!("labels.{key}: {} bytes, at most {LABEL_VALUE_BYTES_MAX} are allowed", value.len());
            return Err(Refusal::new(RefusalCode::TooLarge, message));
        }
        if value.chars().any(char::is_control) {
            return Err(Refusal::new(RefusalCode::Invalid, format!("labels.{key}: must be printable")));
        }
    }
    Ok(())
}

fn check_payload(field: &str, value: Option<&Value>) -> Result<(), Refusal> {
    let bytes = value.map_or(0, |value| value.to_string().len());
    check_bytes(field, bytes)
}

fn check_text(field: &str, text: Option<&str>) -> Result<(), Refusal> {
    if text.is_some_and(|text| text.contains('\0')) {
        return Err(Refusal::new(RefusalCode::Invalid, format!("{field}: must not hold a NUL")));
    }
    check_bytes(field, text.map_or(0, str::len))
}

fn check_bytes(field: &str, bytes: usize) -> Result<(), Refusal> {
    if bytes <= PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("{field}: {bytes} bytes, at most {PAYLOAD_BYTES_MAX} are allowed; store it elsewhere and name it here");
    Err(Refusal::new(RefusalCode::TooLarge, message))
}
