//! Commands to events: what may happen next.
//!
//! [`decide`] is asked under the store's locks, with the run as its stream says and `now` as log time, so what it
//! returns can be appended as it stands. A [`Refusal`] says why not, and carries the events that are to be appended
//! all the same: what an executor says after its reap is refused *and* recorded.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::access::{Grant, Role};
use crate::event::{BasisEvidence, Event, Evidence, ReleaseCause, RunEvent, ServiceEvent, Signal};
use crate::explain;
use crate::hold::{self, Census, HoldState, Pace};
use crate::ids::{ClaimId, Name, RunId};
use crate::listening::{self, Beacon, BeaconRole, ClockStep, Listening, Promise};
use crate::policy::{LanePolicy, LateCompletion, Mode, Terms};
use crate::run::{Outcome, Run, Status};
use crate::time::Timestamp;
use crate::token::{TokenSpec, Tokens};
use crate::verdict::{Charge, Rule, judge};

/// The most bytes that `input`, `output`, `progress`, `error` or `reason` may have as JSON.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// The most labels that a run may have.
pub const LABELS_MAX: usize = 32;
/// The most bytes that the value of a label may have.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// The most lanes that a token may be bound to.
pub const TOKEN_LANES_MAX: usize = 64;

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
    /// Take a run that waits, and no other.
    ClaimRun {
        /// The run.
        run: RunId,
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
        /// By when it will be heard of again.
        promise: Promise,
    },
    /// Say that a listening process that stops cleanly will not be heard of again: its last beacon, and its end.
    RemoveBeacon {
        /// The process.
        process: Name,
    },
    /// Let local processes count although a server was there: it will not come back.
    RetireServers {
        /// Who says so.
        by: Name,
    },
    /// Tell how many of a lane's runs are silent; a hold follows from it, or the end of one, or nothing.
    ReviewHold {
        /// The lane.
        lane: Name,
        /// The count.
        census: Census,
    },
    /// Let reaping by silence go on in a lane that is held.
    ReleaseHold {
        /// The lane.
        lane: Name,
        /// Who releases it.
        by: Name,
        /// Why.
        reason: Option<String>,
    },
    /// Carry out a create or a claim at most once: who repeats it with the same key gets the first answer. The store
    /// knows the first answers; what is decided is the command within.
    Idempotent {
        /// What the repetition is known by.
        key: IdempotencyKey,
        /// The command.
        command: Box<Command>,
    },
    /// Make a token.
    IssueToken {
        /// Identifies the token; not its secret.
        token: Name,
        /// What it is.
        spec: Box<TokenSpec>,
        /// Who makes it.
        by: Name,
    },
    /// Let a token admit nobody any more.
    RevokeToken {
        /// Identifies the token.
        token: Name,
        /// Who revokes it.
        by: Name,
    },
    /// Remember how far somebody who follows the log has come. Appends nothing, and a cursor never goes back.
    MoveCursor {
        /// Whose cursor it is.
        name: Name,
        /// How far.
        to: CursorMove,
    },
}

impl Command {
    /// Returns the run that the command names, if it names one.
    pub fn run(&self) -> Option<RunId> {
        match self {
            Command::Create { run, .. }
            | Command::RequestCancel { run, .. }
            | Command::ClaimRun { run, .. }
            | Command::Reap { run, .. }
            | Command::Requeue { run, .. }
            | Command::Rearm { run } => Some(*run),
            Command::Start(report) | Command::AcknowledgeCancel(report) => Some(report.run),
            Command::Heartbeat { report, .. } | Command::Complete { report, .. } | Command::Fail { report, .. } => {
                Some(report.run)
            }
            Command::Idempotent { command, .. } => command.run(),
            _ => None,
        }
    }

    /// Returns the unique key that the command asks for, if it asks for one.
    pub fn unique_key(&self) -> Option<&Name> {
        match self {
            Command::Create { spec, .. } => spec.unique_key.as_ref(),
            Command::Idempotent { command, .. } => command.unique_key(),
            _ => None,
        }
    }

    /// Returns the idempotency key that the command is sent with, if it is.
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        match self {
            Command::Idempotent { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Returns the command that is to be decided: the one within, where it is sent with an idempotency key.
    pub fn inner(&self) -> &Command {
        match self {
            Command::Idempotent { command, .. } => command.inner(),
            command => command,
        }
    }
}

/// Where a cursor is moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CursorMove {
    /// To the end of the log as it is now, if there is no such cursor yet; else it stays where it is.
    Begin,
    /// To a position of the log, if it is behind it.
    To(u64),
}

/// What a repeated create or claim is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey {
    /// Whose key it is: keys of different senders never meet.
    pub scope: Name,
    /// The key, made anew by the sender for each request and kept for its repetitions.
    pub key: Name,
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

/// What the store knows beside the run, read under the same locks.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The policy of the command's lane.
    pub policy: &'a LanePolicy,
    /// The listening record as of `now`.
    pub listening: &'a Listening,
    /// The open run that has the unique key which the command needs, if there is one.
    pub key_holder: Option<RunId>,
    /// Whether the command's lane may reap for silence.
    pub hold: HoldState,
    /// How far a drain of the command's lane has come.
    pub pace: Pace,
    /// All beacons.
    pub beacons: &'a [Beacon],
    /// A step of the clock since this process's last beacon, which is not recorded yet.
    pub clock_step: Option<ClockStep>,
    /// The tokens that were ever issued.
    pub tokens: &'a Tokens,
}

/// What a store knows of tokens in which none was ever issued.
static NO_TOKENS: Tokens = Tokens::none();

impl<'a> Context<'a> {
    /// Makes the context of a lane in which nothing is out of the ordinary.
    pub fn plain(policy: &'a LanePolicy, listening: &'a Listening) -> Context<'a> {
        let pace = Pace { next: Timestamp::MIN };
        let (key_holder, hold, clock_step) = (None, HoldState::Free, None);
        Context { policy, listening, key_holder, hold, pace, beacons: &[], clock_step, tokens: &NO_TOKENS }
    }
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
    /// The lane is drained after a hold, and it is not the run's turn yet.
    OverRate,
    /// The lane is not held.
    NotHeld,
    /// The server is still there.
    ServerListens,
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
    /// The idempotency key was sent before, with another request.
    IdempotencyKeyReused,
    /// Another process is at work on the run at this moment.
    Busy,
    /// The lane's policy was changed meanwhile.
    PolicyChanged,
    /// There is no such token.
    UnknownToken,
    /// There is such a token already, or an active one with that name.
    TokenExists,
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
            RefusalCode::OverRate => "over_rate",
            RefusalCode::NotHeld => "not_held",
            RefusalCode::ServerListens => "server_listens",
            RefusalCode::Deaf => "deaf",
            RefusalCode::NotRequeueable => "not_requeueable",
            RefusalCode::UniqueKeyOpen => "unique_key_open",
            RefusalCode::NotCancelRequested => "not_cancel_requested",
            RefusalCode::Quarantined => "quarantined",
            RefusalCode::IdempotencyKeyReused => "idempotency_key_reused",
            RefusalCode::Busy => "busy",
            RefusalCode::PolicyChanged => "policy_changed",
            RefusalCode::UnknownToken => "unknown_token",
            RefusalCode::TokenExists => "token_exists",
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
        Command::ClaimRun { run: id, claimant } => claim(Some(known(run, *id)?), claimant, now),
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
        Command::Beacon { process, role, promise } => {
            let noted = listening::beacon(context.beacons, process, *role, *promise, now);
            let step = context.clock_step.map(ClockStep::event);
            Ok(noted.events(process, now).into_iter().chain(step).map(Event::Service).collect())
        }
        Command::RemoveBeacon { process } => {
            let own = context.beacons.iter().find(|beacon| beacon.process == *process);
            let noted =
                own.map(|own| listening::beacon(context.beacons, process, own.role, Promise::UntilAnother, now));
            Ok(noted.map(|noted| noted.events(process, now)).into_iter().flatten().map(Event::Service).collect())
        }
        Command::RetireServers { by } => retire_servers(by, context, now),
        Command::ReviewHold { lane, census } => {
            let event = hold::review(lane, context.hold, census, &context.policy.terms, now);
            Ok(event.map(Event::Service).into_iter().collect())
        }
        Command::ReleaseHold { lane, by, reason } => release_hold(lane, by, reason.as_ref(), context),
        Command::Idempotent { command, .. } => decide(run, command, context, now),
        Command::IssueToken { token, spec, by } => issue_token(token, spec, by, context, now),
        Command::RevokeToken { token, by } => revoke_token(token, by, context),
        // How far the log goes is known to the store.
        Command::MoveCursor { .. } => Ok(Vec::new()),
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
        input: not_null(spec.input.as_ref()).cloned(),
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
    let progress = not_null(progress).cloned();
    Ok(vec![Event::Run(RunEvent::Heartbeat { attempt: report.attempt, progress })])
}

fn complete(run: &Run, report: &Report, output: Option<&Value>, context: &Context<'_>) -> Decision {
    let (attempt, output) = (report.attempt, not_null(output));
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
    if let Some(ClockStep::Forward { from, to }) = context.clock_step {
        let message = format!("the clock was set forward by {}, which is not recorded yet; try again", to.since(from));
        return Err(Refusal::new(RefusalCode::Deaf, message));
    }
    match by_hand {
        Some(by_hand) => check_text("reason", by_hand.reason.as_deref())?,
        None if context.policy.terms.mode == Mode::Shadow => {
            let message = format!("lane `{}` is in shadow mode: lapsed runs are reported, not reaped", run.lane);
            return Err(Refusal::new(RefusalCode::Shadow, message));
        }
        None if charge.rule == Rule::HeartbeatSilence => check_hold(&run.lane, context, now)?,
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

fn check_hold(lane: &Name, context: &Context<'_>, now: Timestamp) -> Result<(), Refusal> {
    match context.hold {
        HoldState::Held { .. } => {
            let message = format!(
                "lane `{lane}` is held: too many of its runs went silent at once; `lastbeat hold release {lane}` lets \
                 reaping go on"
            );
            Err(Refusal::new(RefusalCode::Held, message))
        }
        HoldState::Draining { .. } if !context.pace.allows(now) => {
            let rate = context.policy.terms.reap_rate;
            let message = format!("lane `{lane}` is drained after a hold at {rate} runs a second; its turn will come");
            Err(Refusal::new(RefusalCode::OverRate, message))
        }
        _ => Ok(()),
    }
}

fn retire_servers(by: &Name, context: &Context<'_>, now: Timestamp) -> Decision {
    match listening::retire_servers(context.beacons, now) {
        Ok(noted) => Ok(noted.events(by, now).into_iter().map(Event::Service).collect()),
        Err(alive) => {
            let message = format!(
                "server {} was heard of {} ago and is still counted on; stop it first, or sweep without --local",
                alive.process,
                now.since(alive.at)
            );
            Err(Refusal::new(RefusalCode::ServerListens, message))
        }
    }
}

fn release_hold(lane: &Name, by: &Name, reason: Option<&String>, context: &Context<'_>) -> Decision {
    check_text("reason", reason.map(String::as_str))?;
    if !context.hold.is_held() {
        let state = match context.hold {
            HoldState::Draining { since } => format!("; it was released at {since}, and is drained at its reap_rate"),
            _ => String::new(),
        };
        return Err(Refusal::new(RefusalCode::NotHeld, format!("lane `{lane}` is not held{state}")));
    }
    let (lane, by, reason) = (lane.clone(), Some(by.clone()), reason.cloned());
    let cause = ReleaseCause::Operator;
    Ok(vec![Event::Service(ServiceEvent::ReapingReleased { lane, cause, by, reason })])
}

fn issue_token(token: &Name, spec: &TokenSpec, by: &Name, context: &Context<'_>, now: Timestamp) -> Decision {
    if context.tokens.of_id(token).is_some() {
        return Err(Refusal::new(RefusalCode::TokenExists, format!("there is a token {token} already")));
    }
    let TokenSpec { name, role, executor, lanes, device, expires_at, digest } = spec.clone();
    if context.tokens.active(&name, now).is_some() {
        let message = format!("there is an active token with the name `{name}`; revoke it first, or take another name");
        return Err(Refusal::new(RefusalCode::TokenExists, message));
    }
    let invalid = |why: String| Refusal::new(RefusalCode::Invalid, why);
    let known: Role = role.as_str().parse().map_err(|error| invalid(format!("role: {error}, not `{role}`")))?;
    if lanes.len() > TOKEN_LANES_MAX {
        let message = format!("lanes: there are {}, at most {TOKEN_LANES_MAX} are allowed", lanes.len());
        return Err(Refusal::new(RefusalCode::TooLarge, message));
    }
    if let Some(expires_at) = expires_at.filter(|expires_at| *expires_at <= now) {
        return Err(invalid(format!("expires_at: {expires_at} is over; it is {now}")));
    }
    Grant::new(known, executor.clone(), lanes.clone(), device.clone()).map_err(|error| invalid(error.to_string()))?;
    let (token, by, digest) = (token.clone(), by.clone(), Some(digest));
    let issued = ServiceEvent::TokenIssued { token, name, role, executor, lanes, device, expires_at, digest, by };
    Ok(vec![Event::Service(issued)])
}

fn revoke_token(token: &Name, by: &Name, context: &Context<'_>) -> Decision {
    match context.tokens.of_id(token) {
        None => {
            let message = format!("there is no token {token}; `lastbeat token list` shows what there is");
            Err(Refusal::new(RefusalCode::UnknownToken, message))
        }
        Some(known) if known.revoked.is_some() => Ok(Vec::new()),
        Some(_) => {
            let (token, by) = (token.clone(), by.clone());
            Ok(vec![Event::Service(ServiceEvent::TokenRevoked { token, by })])
        }
    }
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

/// Takes JSON's null for nothing: in a line of the log the two read alike, so a fact must not tell them apart.
fn not_null(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::{DeafCause, Recorded};
    use crate::listening::DeafSpan;
    use crate::time::Span;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn id() -> RunId {
        RunId::from_uuid(uuid::Uuid::from_u128(7))
    }

    fn claim_id(number: u32) -> ClaimId {
        format!("claim-{number}").parse().unwrap()
    }

    /// A run, and what the store knows beside it. Commands are given with the second at which they are decided.
    struct Story {
        stream: Vec<Recorded>,
        run: Option<Run>,
        policy: LanePolicy,
        deaf: Vec<DeafSpan>,
        beacons: Vec<Beacon>,
        key_holder: Option<RunId>,
        hold: HoldState,
        pace: Pace,
        clock_step: Option<ClockStep>,
        tokens: Tokens,
    }

    impl Story {
        fn empty() -> Story {
            let (stream, deaf, beacons) = (Vec::new(), Vec::new(), Vec::new());
            let policy = LanePolicy::default();
            let (hold, pace) = (HoldState::Free, Pace { next: at(0) });
            let (key_holder, clock_step, tokens) = (None, None, Tokens::none());
            Story { stream, run: None, policy, deaf, beacons, key_holder, hold, pace, clock_step, tokens }
        }

        /// A run that was created at second 0.
        fn pending() -> Story {
            Story::empty().when(0, &create(|_| ()))
        }

        /// The same run, claimed at second 10 with the first claim id.
        fn claimed() -> Story {
            Story::pending().when(10, &claim(1))
        }

        /// The same run, heard of at second 20.
        fn beating() -> Story {
            Story::claimed().when(20, &beat(report(1)))
        }

        /// The same run, reaped at second 300.
        fn reaped() -> Story {
            Story::beating().when(300, &reap())
        }

        fn under(mut self, change: impl FnOnce(&mut Terms)) -> Story {
            change(&mut self.policy.terms);
            self
        }

        fn decide(&self, second: i64, command: &Command) -> Decision {
            let listening = Listening::as_of(at(second), &self.deaf, &self.beacons);
            let context = Context {
                policy: &self.policy,
                listening: &listening,
                key_holder: self.key_holder,
                hold: self.hold,
                pace: self.pace,
                beacons: &self.beacons,
                clock_step: self.clock_step,
                tokens: &self.tokens,
            };
            decide(self.run.as_ref(), command, &context, at(second))
        }

        fn append(&mut self, second: i64, events: Vec<Event>) {
            for event in events {
                let Event::Run(event) = event else { continue };
                let last = self.stream.last().map(|recorded| recorded.recorded_at.next());
                let recorded_at = last.map_or(at(second), |next| next.max(at(second)));
                self.stream.push(Recorded { run: id(), version: self.stream.len() as u64 + 1, recorded_at, event });
            }
            self.run = Run::fold(&self.stream).unwrap();
        }

        /// Carries out a command that must be taken.
        fn when(mut self, second: i64, command: &Command) -> Story {
            let events = self.decide(second, command).unwrap();
            self.append(second, events);
            self
        }

        /// Says why a command is refused, and records what is to be recorded all the same.
        fn refuses(&mut self, second: i64, command: &Command) -> RefusalCode {
            let refusal = self.decide(second, command).unwrap_err();
            self.append(second, refusal.events);
            refusal.code
        }

        fn status(&self) -> Status {
            self.run.as_ref().unwrap().status
        }

        /// Returns the types of the facts since a version.
        fn facts_after(&self, version: usize) -> Vec<&'static str> {
            self.stream[version..].iter().map(|recorded| recorded.event.type_name()).collect()
        }
    }

    fn create(change: impl FnOnce(&mut RunSpec)) -> Command {
        let mut spec = RunSpec::of_lane(name("watcher"));
        change(&mut spec);
        Command::Create { run: id(), spec: Box::new(spec), claim: None }
    }

    fn claimant(number: u32) -> Claimant {
        Claimant { executor: name("mac-7"), device: None, claim: claim_id(number) }
    }

    fn create_claimed(change: impl FnOnce(&mut RunSpec), claimant: Claimant) -> Command {
        let Command::Create { run, spec, .. } = create(change) else { unreachable!() };
        Command::Create { run, spec, claim: Some(claimant) }
    }

    fn claim(number: u32) -> Command {
        Command::Claim { lanes: vec![name("watcher")], claimant: claimant(number) }
    }

    /// A report on an attempt under the claim id of the same number.
    fn report(attempt: u32) -> Report {
        Report { run: id(), attempt, claim: Some(claim_id(attempt)), executor: Some(name("mac-7")) }
    }

    fn beat(report: Report) -> Command {
        Command::Heartbeat { report, progress: None }
    }

    fn complete(report: Report, output: Option<Value>) -> Command {
        Command::Complete { report, output }
    }

    fn fail(report: Report, error: &str) -> Command {
        Command::Fail { report, error: error.to_owned() }
    }

    fn cancel(reason: Option<&str>) -> Command {
        Command::RequestCancel { run: id(), by: name("ada"), reason: reason.map(str::to_owned) }
    }

    fn reap() -> Command {
        Command::Reap { run: id(), by: name("sweeper-1"), by_hand: None }
    }

    fn reap_by_hand() -> Command {
        Command::Reap { run: id(), by: name("ada"), by_hand: Some(ByHand::default()) }
    }

    fn requeue() -> Command {
        Command::Requeue { run: id(), by: name("ada"), reason: None }
    }

    fn every_report(report: &Report) -> [Command; 5] {
        [
            Command::Start(report.clone()),
            beat(report.clone()),
            complete(report.clone(), None),
            fail(report.clone(), "disk full"),
            Command::AcknowledgeCancel(report.clone()),
        ]
    }

    fn gap(from: i64, to: i64) -> DeafSpan {
        let (promised_until, cause, recorded_at) = (at(from + 12), DeafCause::Gap, at(to));
        DeafSpan { from: at(from), to: at(to), promised_until, cause, recorded_at }
    }

    fn beacon(role: BeaconRole) -> Command {
        Command::Beacon { process: name("p"), role, promise: Promise::UntilAnother }
    }

    mod creating {
        use super::*;

        #[test]
        fn a_run_is_created_once() {
            let mut story = Story::pending();
            assert_eq!(story.status(), Status::Pending);
            assert_eq!(story.refuses(1, &create(|_| ())), RefusalCode::RunExists);
        }

        #[test]
        fn a_run_may_be_created_and_claimed_in_one_append() {
            let story = Story::empty().when(0, &create_claimed(|_| (), claimant(1)));
            assert_eq!(story.facts_after(0), ["created", "claimed"]);
            assert_eq!(story.run.unwrap().claim.unwrap().id, Some(claim_id(1)));
        }

        #[test]
        fn a_claim_at_creation_respects_the_pin_and_not_before() {
            let pinned = |spec: &mut RunSpec| spec.device = Some(name("macbook-air"));
            let later = |spec: &mut RunSpec| spec.not_before = Some(at(60));
            let mut story = Story::empty();
            assert_eq!(story.refuses(0, &create_claimed(pinned, claimant(1))), RefusalCode::NotClaimable);
            assert_eq!(story.refuses(0, &create_claimed(later, claimant(1))), RefusalCode::NotClaimable);
            assert!(story.stream.is_empty());
        }

        #[test]
        fn a_second_run_with_an_open_unique_key_is_refused_naming_the_holder() {
            let holder = RunId::from_uuid(uuid::Uuid::from_u128(9));
            let mut story = Story::empty();
            story.key_holder = Some(holder);
            let refusal = story.decide(0, &create(|spec| spec.unique_key = Some(name("nightly")))).unwrap_err();
            assert_eq!((refusal.code, refusal.key_holder), (RefusalCode::UniqueKeyOpen, Some(holder)));
            // Without a key of its own a run is in nobody's way.
            assert!(story.decide(0, &create(|_| ())).is_ok());
        }

        #[test]
        fn what_is_over_a_limit_is_refused_naming_the_field() {
            let large = Value::String("x".repeat(PAYLOAD_BYTES_MAX));
            let text = "x".repeat(PAYLOAD_BYTES_MAX + 1);
            let labels = |count: usize| (0..count).map(|n| (name(&format!("l{n}")), String::new())).collect();
            let labelled = |value: &str| create(|spec| drop(spec.labels.insert(name("env"), value.to_owned())));
            let (new, running) = (Story::empty(), Story::beating());
            let progress = Command::Heartbeat { report: report(1), progress: Some(large.clone()) };
            let reap =
                Command::Reap { run: id(), by: name("ada"), by_hand: Some(ByHand { reason: Some(text.clone()) }) };
            for (story, command, field, code) in [
                (&new, create(|spec| spec.input = Some(large.clone())), "input:", RefusalCode::TooLarge),
                (&new, create(|spec| spec.labels = labels(33)), "labels:", RefusalCode::TooLarge),
                (&new, labelled(&"x".repeat(257)), "labels.env:", RefusalCode::TooLarge),
                (&new, labelled("a\nb"), "labels.env:", RefusalCode::Invalid),
                (&running, progress, "progress:", RefusalCode::TooLarge),
                (&running, complete(report(1), Some(large.clone())), "output:", RefusalCode::TooLarge),
                (&running, fail(report(1), &text), "error:", RefusalCode::TooLarge),
                (&running, fail(report(1), "a\0b"), "error:", RefusalCode::Invalid),
                (&running, cancel(Some(&text)), "reason:", RefusalCode::TooLarge),
                (&running, reap, "reason:", RefusalCode::TooLarge),
            ] {
                let refusal = story.decide(400, &command).unwrap_err();
                assert_eq!(refusal.code, code, "{}", refusal.message);
                assert!(refusal.message.starts_with(field), "{}", refusal.message);
                assert!(refusal.events.is_empty());
            }
        }

        #[test]
        fn what_is_just_within_a_limit_is_taken() {
            let largest = Value::String("x".repeat(PAYLOAD_BYTES_MAX - 2));
            let labels = (0..32).map(|n| (name(&format!("l{n}")), "x".repeat(256))).collect();
            let full = create(|spec| (spec.input, spec.labels) = (Some(largest), labels));
            assert!(Story::empty().decide(0, &full).is_ok());
        }
    }

    mod claiming {
        use super::*;

        #[test]
        fn each_claim_is_a_new_attempt_under_its_own_claim_id() {
            let story = Story::reaped().when(301, &requeue()).when(302, &claim(2));
            let run = story.run.unwrap();
            assert_eq!((run.attempt, run.claim.unwrap().id), (2, Some(claim_id(2))));
        }

        #[test]
        fn only_a_pending_run_can_be_claimed() {
            assert_eq!(Story::claimed().refuses(11, &claim(2)), RefusalCode::NotClaimable);
            assert_eq!(Story::reaped().refuses(301, &claim(2)), RefusalCode::NotClaimable);
            assert_eq!(Story::empty().refuses(0, &claim(1)), RefusalCode::NothingToClaim);
        }

        #[test]
        fn a_pinned_run_goes_to_its_device_alone() {
            let pinned = create(|spec| spec.device = Some(name("macbook-air")));
            let from = |device: Option<&str>| {
                let claimant = Claimant { device: device.map(name), ..claimant(1) };
                Command::Claim { lanes: vec![name("watcher")], claimant }
            };
            let mut story = Story::empty().when(0, &pinned);
            assert_eq!(story.refuses(1, &from(None)), RefusalCode::NotClaimable);
            assert_eq!(story.refuses(1, &from(Some("macbook-pro"))), RefusalCode::NotClaimable);
            assert_eq!(story.when(1, &from(Some("macbook-air"))).status(), Status::Claimed);
        }

        #[test]
        fn a_run_cannot_be_claimed_before_it_is_due() {
            let mut story = Story::empty().when(0, &create(|spec| spec.not_before = Some(at(60))));
            assert_eq!(story.refuses(59, &claim(1)), RefusalCode::NotClaimable);
            assert_eq!(story.when(60, &claim(1)).status(), Status::Claimed);
        }

        #[test]
        fn a_requeue_sets_a_new_not_before() {
            let created = create(|spec| spec.not_before = Some(at(5)));
            let twice = |terms: &mut Terms| terms.max_attempts = 2;
            let mut story = Story::empty().under(twice).when(0, &created).when(10, &claim(1)).when(8_000, &reap());
            assert_eq!(story.refuses(8_009, &claim(2)), RefusalCode::NotClaimable);
            assert_eq!(story.when(8_010, &claim(2)).status(), Status::Claimed);
        }
    }

    mod reporting {
        use super::*;

        #[test]
        fn reports_under_the_current_token_are_taken() {
            let story = Story::claimed().when(11, &Command::Start(report(1))).when(12, &beat(report(1)));
            let story = story.when(13, &complete(report(1), Some(json!({ "ok": true }))));
            assert_eq!(story.facts_after(2), ["started", "heartbeat", "completed"]);
        }

        #[test]
        fn a_report_without_a_claim_id_is_held_to_the_attempt_alone() {
            let anonymous = |attempt| Report { claim: None, executor: None, ..report(attempt) };
            let mut story = Story::beating();
            assert_eq!(story.refuses(30, &beat(anonymous(2))), RefusalCode::StaleAttempt);
            assert_eq!(story.when(30, &complete(anonymous(1), None)).status(), Status::Completed);
        }

        #[test]
        fn a_stale_attempt_or_a_wrong_claim_id_changes_nothing() {
            let wrong_claim = Report { claim: Some(claim_id(9)), ..report(1) };
            for stale in [report(0), report(2), wrong_claim] {
                for command in every_report(&stale) {
                    let mut story = Story::beating();
                    let before = story.run.clone();
                    assert_eq!(story.refuses(30, &command), RefusalCode::StaleAttempt, "{command:?}");
                    assert_eq!(story.run, before);
                }
            }
        }

        #[test]
        fn a_run_that_waits_takes_no_reports() {
            let requeued = Story::claimed().when(20, &fail(report(1), "disk full")).when(30, &requeue());
            for command in [Command::Start(report(1)), beat(report(1)), complete(report(1), None)] {
                let decided = requeued.decide(40, &command).unwrap_err();
                assert_eq!((decided.code, decided.events), (RefusalCode::StaleAttempt, Vec::new()), "{command:?}");
            }
        }

        #[test]
        fn saying_the_same_twice_gets_the_same_answer_and_no_second_fact() {
            let output = Some(json!({ "rows": 7 }));
            let cancelled = Story::beating().when(30, &cancel(None));
            for (story, command) in [
                (Story::claimed(), Command::Start(report(1))),
                (Story::beating(), complete(report(1), output.clone())),
                (Story::beating(), fail(report(1), "disk full")),
                (Story::beating(), cancel(None)),
                (Story::pending(), cancel(None)),
                (cancelled, Command::AcknowledgeCancel(report(1))),
            ] {
                let story = story.when(40, &command);
                assert_eq!(story.decide(50, &command), Ok(Vec::new()), "{command:?}");
            }
        }

        #[test]
        fn a_repeated_failure_is_recognised_after_the_requeue() {
            let story = Story::beating().when(30, &fail(report(1), "disk full")).when(40, &requeue());
            assert_eq!(story.decide(50, &fail(report(1), "disk full")), Ok(Vec::new()));
        }

        #[test]
        fn saying_something_else_about_an_ended_run_is_refused_as_settled() {
            let completed = Story::beating().when(30, &complete(report(1), Some(json!(1))));
            let failed = Story::beating().when(30, &fail(report(1), "disk full"));
            for (mut story, command) in [
                (completed, complete(report(1), Some(json!(2)))),
                (failed, fail(report(1), "disk on fire")),
                (Story::beating().when(30, &complete(report(1), None)), fail(report(1), "disk full")),
                (Story::beating().when(30, &complete(report(1), None)), beat(report(1))),
                (Story::beating().when(30, &complete(report(1), None)), cancel(None)),
            ] {
                assert_eq!(story.refuses(40, &command), RefusalCode::Settled, "{command:?}");
                assert_eq!(story.facts_after(4), [""; 0]);
            }
        }

        #[test]
        fn null_is_the_same_as_nothing() {
            let null = Some(Value::Null);
            let heard = Story::claimed().when(20, &Command::Heartbeat { report: report(1), progress: null.clone() });
            assert!(matches!(heard.stream[2].event, RunEvent::Heartbeat { progress: None, .. }));
            let done = heard.when(30, &complete(report(1), null.clone()));
            assert!(matches!(done.stream[3].event, RunEvent::Completed { output: None, .. }));
            assert_eq!(done.decide(40, &complete(report(1), null.clone())), Ok(Vec::new()));
            let created = Story::empty().when(0, &create(|spec| spec.input = null));
            assert!(matches!(created.stream[0].event, RunEvent::Created { input: None, .. }));
        }
    }

    mod cancelling {
        use super::*;

        #[test]
        fn a_pending_run_is_cancelled_at_once_about_no_attempt() {
            let story = Story::pending().when(5, &cancel(None));
            assert_eq!(story.status(), Status::Cancelled);
            assert!(matches!(story.stream[1].event, RunEvent::Cancelled { attempt: 0, .. }));
        }

        #[test]
        fn the_reason_for_cancelling_a_pending_run_is_kept() {
            let story = Story::pending().when(5, &cancel(Some("no longer needed")));
            assert_eq!(story.facts_after(1), ["cancel_requested", "cancelled"]);
        }

        #[test]
        fn an_executor_is_asked_and_answers() {
            let story = Story::beating().when(30, &cancel(Some("too slow")));
            assert_eq!(story.status(), Status::Running);
            let story = story.when(40, &Command::AcknowledgeCancel(report(1)));
            assert_eq!(story.status(), Status::Cancelled);
            assert!(matches!(&story.stream[4].event, RunEvent::Cancelled { attempt: 1, by } if by.as_str() == "mac-7"));
        }

        #[test]
        fn nobody_stops_unasked() {
            let stopped = Command::AcknowledgeCancel(report(1));
            assert_eq!(Story::beating().refuses(30, &stopped), RefusalCode::NotCancelRequested);
        }
    }

    mod reaping {
        use super::*;

        #[test]
        fn a_lapsed_run_is_reaped_with_its_evidence() {
            let story = Story::reaped();
            let RunEvent::TimedOut { attempt: 1, rule, evidence: Some(evidence), .. } = &story.stream[3].event else {
                panic!("not a reap: {:?}", story.stream[3])
            };
            let basis = BasisEvidence { fact: crate::verdict::BasisFact::Heartbeat, version: 3, at: at(20) };
            assert_eq!((*rule, evidence.rule, evidence.basis), (Rule::HeartbeatSilence, Rule::HeartbeatSilence, basis));
            assert_eq!((evidence.window, evidence.charged), (Span::from_seconds(180), Span::from_seconds(280)));
            assert_eq!((evidence.wall, evidence.deaf), (Span::from_seconds(280), Span::ZERO));
            assert_eq!((evidence.judged_at, evidence.policy_version), (at(300), 0));
            assert_eq!((evidence.executor.clone(), evidence.sweeper.clone()), (Some(name("mac-7")), name("sweeper-1")));
        }

        #[test]
        fn a_run_that_was_heard_of_meanwhile_is_not_reaped() {
            let story = Story::beating().when(299, &beat(report(1)));
            let refusal = story.decide(300, &reap()).unwrap_err();
            assert_eq!((refusal.code, refusal.events), (RefusalCode::NotLapsed, Vec::new()));
            assert_eq!(Story::beating().refuses(200, &reap()), RefusalCode::NotLapsed);
        }

        #[test]
        fn a_second_reap_finds_nothing_to_do() {
            assert_eq!(Story::reaped().refuses(301, &reap()), RefusalCode::NotLapsed);
        }

        #[test]
        fn nothing_is_reaped_while_nobody_listens_not_even_by_hand() {
            let mut story = Story::beating();
            story.deaf = vec![gap(250, 1_000)];
            assert_eq!(story.refuses(300, &reap()), RefusalCode::Deaf);
            assert_eq!(story.refuses(300, &reap_by_hand()), RefusalCode::Deaf);
            assert_eq!(story.when(1_000, &reap()).status(), Status::TimedOut);
        }

        #[test]
        fn an_open_gap_that_hides_the_lapse_leaves_nothing_to_reap() {
            let mut story = Story::beating();
            let (process, role) = (name("p"), BeaconRole::Serve);
            story.beacons = vec![Beacon { process, role, at: at(100), promise: Some(at(112)) }];
            assert_eq!(story.refuses(5_000, &reap()), RefusalCode::NotLapsed);
        }

        #[test]
        fn a_lane_in_shadow_mode_reaps_only_by_hand() {
            let mut story = Story::beating().under(|terms| terms.mode = Mode::Shadow);
            assert_eq!(story.refuses(300, &reap()), RefusalCode::Shadow);
            assert_eq!(story.when(300, &reap_by_hand()).status(), Status::TimedOut);
        }

        #[test]
        fn a_drained_lane_reaps_for_silence_at_its_pace() {
            let mut silent = Story::beating();
            silent.hold = HoldState::Draining { since: at(250) };
            silent.pace = Pace { next: at(301) };
            assert_eq!(silent.refuses(300, &reap()), RefusalCode::OverRate);
            assert_eq!(silent.when(301, &reap()).status(), Status::TimedOut);
        }

        #[test]
        fn nothing_is_reaped_on_a_clock_that_was_just_set_forward() {
            let mut story = Story::beating();
            story.clock_step = Some(ClockStep::Forward { from: at(200), to: at(300) });
            assert_eq!(story.refuses(300, &reap()), RefusalCode::Deaf);
            assert_eq!(story.refuses(300, &reap_by_hand()), RefusalCode::Deaf);
        }

        #[test]
        fn a_held_lane_reaps_nobody_for_silence_but_by_hand() {
            let mut silent = Story::beating();
            silent.hold = HoldState::Held { since: at(200) };
            assert_eq!(silent.refuses(300, &reap()), RefusalCode::Held);
            assert_eq!(silent.when(300, &reap_by_hand()).status(), Status::TimedOut);
            let mut mute = Story::claimed();
            mute.hold = HoldState::Held { since: at(200) };
            assert_eq!(mute.when(8_000, &reap()).status(), Status::TimedOut);
        }

        #[test]
        fn a_reap_by_hand_leaves_a_name_and_still_needs_a_lapse() {
            let events = Story::beating().decide(300, &reap_by_hand()).unwrap();
            let forced = ServiceEvent::ReapForced { target: id(), by: name("ada"), reason: None };
            assert_eq!(events.last(), Some(&Event::Service(forced)));
            assert_eq!(Story::beating().refuses(100, &reap_by_hand()), RefusalCode::NotLapsed);
        }

        #[test]
        fn a_pending_run_is_reaped_about_no_attempt_and_not_retried() {
            let generous =
                |terms: &mut Terms| (terms.claim_window, terms.max_attempts) = (Some(Span::from_seconds(60)), 9);
            let story = Story::pending().under(generous).when(61, &reap());
            assert_eq!(story.facts_after(1), ["timed_out"]);
            let RunEvent::TimedOut { attempt: 0, evidence: Some(evidence), .. } = &story.stream[1].event else {
                panic!("not a reap of a pending run")
            };
            assert_eq!(evidence.executor, None);
        }

        #[test]
        fn a_reaped_attempt_is_retried_in_the_same_append_after_a_growing_wait() {
            let mut story = Story::pending().under(|terms| terms.max_attempts = 4);
            for (attempt, wait) in [(1, 10), (2, 20), (3, 40)] {
                let start = i64::from(attempt) * 10_000;
                story = story.when(start, &claim(attempt)).when(start + 8_000, &reap());
                let [.., reap, retry] = story.stream.as_slice() else { panic!("a short stream") };
                assert_eq!((reap.event.type_name(), retry.recorded_at), ("timed_out", reap.recorded_at.next()));
                let RunEvent::Requeued { next_attempt, not_before, by: None, .. } = retry.event else {
                    panic!("not a retry: {retry:?}")
                };
                assert_eq!((next_attempt, not_before), (attempt + 1, at(start + 8_000 + wait)));
            }
            let story = story.when(40_000, &claim(4)).when(48_000, &reap());
            assert_eq!(story.status(), Status::TimedOut, "the fourth reap is the last");
        }

        #[test]
        fn max_attempts_counts_reaps_not_claims() {
            let twice = |terms: &mut Terms| terms.max_attempts = 2;
            let story = Story::claimed().under(twice).when(20, &fail(report(1), "disk full")).when(30, &requeue());
            let events = story.when(40, &claim(2)).decide(8_000, &reap()).unwrap();
            assert_eq!(events.len(), 2, "its first reap is followed by a retry: {events:?}");
        }

        #[test]
        fn a_run_that_was_asked_to_stop_is_not_retried() {
            let story = Story::beating().under(|terms| terms.max_attempts = 3).when(30, &cancel(None));
            assert_eq!(story.when(300, &reap()).facts_after(4), ["timed_out"]);
        }
    }

    mod after_a_reap {
        use super::*;

        fn retried() -> Story {
            Story::beating().under(|terms| terms.max_attempts = 3).when(300, &reap())
        }

        #[test]
        fn each_kind_of_late_signal_is_recorded_once_for_an_attempt() {
            let mut story = Story::reaped().under(|terms| terms.late_completion = LateCompletion::Refuse);
            for command in every_report(&report(1)).iter().chain(&every_report(&report(1))) {
                assert_eq!(story.refuses(310, command), RefusalCode::Settled);
            }
            let signals = story.stream[4..].iter().map(|recorded| match recorded.event {
                RunEvent::LateSignal { attempt: 1, signal, .. } => signal,
                ref other => panic!("not a late signal: {other:?}"),
            });
            let said: Vec<_> = signals.collect();
            assert_eq!(said, [Signal::Started, Signal::Heartbeat, Signal::Completed, Signal::Failed]);
        }

        #[test]
        fn a_late_signal_is_recorded_while_the_next_attempt_is_under_way() {
            let mut story = retried().when(400, &claim(2)).when(410, &beat(report(2)));
            let before = story.run.clone().unwrap();
            assert_eq!(story.refuses(420, &beat(report(1))), RefusalCode::StaleAttempt);
            assert_eq!(story.refuses(421, &beat(report(1))), RefusalCode::StaleAttempt);
            assert_eq!(story.facts_after(7), ["late_signal"]);
            let after = story.run.unwrap();
            assert_eq!((after.status, after.attempt, after.beats), (before.status, before.attempt, before.beats));
            assert_eq!(after.last_beat, before.last_beat);
        }

        #[test]
        fn who_quotes_another_claim_id_was_not_the_reaped_executor() {
            let stranger = Report { claim: Some(claim_id(9)), ..report(1) };
            let mut story = Story::reaped();
            assert_eq!(story.refuses(310, &beat(stranger)), RefusalCode::StaleAttempt);
            assert_eq!(story.facts_after(4), [""; 0]);
        }

        #[test]
        fn work_that_comes_late_is_adopted_until_the_next_claim() {
            let late = complete(report(1), Some(json!("result")));
            for story in [Story::reaped(), retried()] {
                let story = story.when(310, &late);
                assert_eq!(story.status(), Status::Completed);
                let last = &story.stream.last().unwrap().event;
                assert!(matches!(last, RunEvent::Completed { attempt: 1, late: true, .. }));
                assert_eq!(story.decide(320, &late), Ok(Vec::new()));
            }
            let mut claimed_again = retried().when(400, &claim(2));
            assert_eq!(claimed_again.refuses(410, &late), RefusalCode::StaleAttempt);
            assert_eq!(claimed_again.status(), Status::Claimed);
        }

        #[test]
        fn a_lane_may_refuse_late_work() {
            let mut story = retried().under(|terms| terms.late_completion = LateCompletion::Refuse);
            assert_eq!(story.refuses(310, &complete(report(1), None)), RefusalCode::StaleAttempt);
            assert_eq!((story.status(), story.facts_after(5)), (Status::Pending, vec!["late_signal"]));
        }

        #[test]
        fn late_work_needs_the_claim_id_of_its_attempt() {
            let stranger = Report { claim: Some(claim_id(9)), ..report(1) };
            assert_eq!(Story::reaped().refuses(310, &complete(stranger, None)), RefusalCode::StaleAttempt);
        }

        #[test]
        fn late_work_is_not_adopted_by_a_run_that_was_cancelled_meanwhile() {
            let mut story = retried().when(310, &cancel(None));
            assert_eq!(story.refuses(320, &complete(report(1), None)), RefusalCode::Settled);
            assert_eq!(story.status(), Status::Cancelled);
        }
    }

    mod requeueing {
        use super::*;

        #[test]
        fn a_failed_or_reaped_run_is_requeued_at_once_and_forgets_the_request_to_stop() {
            let failed = Story::beating().when(30, &cancel(None)).when(40, &fail(report(1), "disk full"));
            for story in [Story::reaped(), failed] {
                let story = story.when(400, &requeue());
                let run = story.run.as_ref().unwrap();
                assert_eq!((run.status, run.attempt, run.waiting.due_at), (Status::Pending, 1, at(400)));
                assert_eq!(run.cancel_requested, None);
                assert_eq!(story.when(401, &claim(2)).run.unwrap().attempt, 2);
            }
        }

        #[test]
        fn other_runs_cannot_be_requeued() {
            let completed = Story::beating().when(30, &complete(report(1), None));
            let cancelled = Story::pending().when(30, &cancel(None));
            for mut story in [Story::pending(), Story::claimed(), Story::beating(), completed, cancelled] {
                assert_eq!(story.refuses(40, &requeue()), RefusalCode::NotRequeueable);
            }
        }

        #[test]
        fn a_run_whose_unique_key_is_open_elsewhere_stays_ended() {
            let keyed = create(|spec| spec.unique_key = Some(name("nightly")));
            let mut story = Story::empty().when(0, &keyed).when(10, &claim(1)).when(20, &fail(report(1), "disk full"));
            let holder = RunId::from_uuid(uuid::Uuid::from_u128(9));
            story.key_holder = Some(holder);
            let refusal = story.decide(30, &requeue()).unwrap_err();
            assert_eq!((refusal.code, refusal.key_holder), (RefusalCode::UniqueKeyOpen, Some(holder)));
            story.key_holder = None;
            assert_eq!(story.when(30, &requeue()).status(), Status::Pending);
        }
    }

    mod not_judging {
        use super::*;

        #[test]
        fn a_run_that_does_not_exist_is_unknown_to_every_command() {
            let commands = [cancel(None), reap(), requeue(), Command::Rearm { run: id() }];
            for command in every_report(&report(1)).iter().chain(&commands) {
                assert_eq!(Story::empty().refuses(0, command), RefusalCode::UnknownRun, "{command:?}");
            }
        }

        #[test]
        fn a_quarantined_run_is_left_alone() {
            let mut story = Story::beating();
            let run = story.run.as_mut().unwrap();
            run.quarantine(4, at(30), "unknown event type `paused`".to_owned());
            let commands = [cancel(None), reap(), reap_by_hand(), requeue(), claim(2)];
            for command in every_report(&report(1)).iter().chain(&commands) {
                let refusal = story.decide(8_000, command).unwrap_err();
                assert_eq!((refusal.code, refusal.events), (RefusalCode::Quarantined, Vec::new()), "{command:?}");
            }
        }

        #[test]
        fn looking_again_appends_nothing() {
            assert_eq!(Story::beating().decide(300, &Command::Rearm { run: id() }), Ok(Vec::new()));
        }
    }

    mod serving {
        use super::*;

        fn set_policy(window: u64, expected_version: Option<u32>) -> Command {
            let terms = Terms { heartbeat_window: Span::from_seconds(window), ..Terms::default() };
            Command::SetPolicy { lane: name("watcher"), terms: Box::new(terms), expected_version, by: None }
        }

        #[test]
        fn a_policy_gets_the_next_version_and_is_recorded_whole() {
            let mut story = Story::empty();
            story.policy.version = 4;
            let events = story.decide(0, &set_policy(90, Some(4))).unwrap();
            let [Event::Service(ServiceEvent::PolicySet { policy_version: 5, policy, .. })] = events.as_slice() else {
                panic!("not a policy: {events:?}")
            };
            assert_eq!(policy.heartbeat_window, Span::from_seconds(90));
        }

        #[test]
        fn a_window_under_three_intervals_is_refused_naming_the_field() {
            let refusal = Story::empty().decide(0, &set_policy(89, None)).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Invalid);
            assert!(refusal.message.starts_with("heartbeat_window:"), "{}", refusal.message);
        }

        #[test]
        fn a_policy_made_from_an_older_one_is_refused() {
            let mut story = Story::empty();
            story.policy.version = 4;
            assert_eq!(story.refuses(0, &set_policy(90, Some(3))), RefusalCode::PolicyChanged);
            assert!(story.decide(0, &set_policy(90, None)).is_ok());
        }

        #[test]
        fn the_first_counted_beacon_after_a_gap_records_it_and_the_second_does_not() {
            let mut story = Story::empty();
            let of = |second, role| Beacon { process: name("p"), role, at: at(second), promise: Some(at(second + 12)) };
            story.beacons = vec![of(90, BeaconRole::Serve), of(100, BeaconRole::Serve), of(400, BeaconRole::Local)];
            let deaf =
                ServiceEvent::Deaf { from: at(100), to: at(500), promised_until: at(112), cause: DeafCause::Gap };
            assert_eq!(story.decide(112, &beacon(BeaconRole::Serve)), Ok(Vec::new()));
            assert_eq!(story.decide(500, &beacon(BeaconRole::Local)), Ok(Vec::new()));
            assert_eq!(story.decide(500, &beacon(BeaconRole::Serve)), Ok(vec![Event::Service(deaf)]));
            story.beacons[0] = of(500, BeaconRole::Serve);
            assert_eq!(story.decide(501, &beacon(BeaconRole::Serve)), Ok(Vec::new()));
        }

        #[test]
        fn a_step_of_the_clock_is_recorded() {
            let step = |clock_step| {
                let mut story = Story::empty();
                story.clock_step = Some(clock_step);
                story.decide(5_000, &beacon(BeaconRole::Serve)).unwrap()
            };
            let (from, to) = (at(100), at(3_700));
            let (promised_until, cause) = (from, DeafCause::ClockStep);
            let deaf = ServiceEvent::Deaf { from, to, promised_until, cause };
            assert_eq!(step(ClockStep::Forward { from, to }), [Event::Service(deaf)]);
            let back = ServiceEvent::ClockBack { from: to, to: from };
            assert_eq!(step(ClockStep::Back { from: to, to: from }), [Event::Service(back)]);
        }

        #[test]
        fn a_lane_is_held_once_and_released_once() {
            let census = Census { lapsed: 18, silent: 30, beating: 40 };
            let hold = Command::ReviewHold { lane: name("watcher"), census };
            let release = Command::ReleaseHold { lane: name("watcher"), by: name("ada"), reason: None };
            let mut story = Story::empty();
            assert_eq!(story.decide(0, &hold).unwrap().len(), 1);
            assert_eq!(story.refuses(0, &release), RefusalCode::NotHeld);
            story.hold = HoldState::Held { since: at(0) };
            assert_eq!(story.decide(1, &hold), Ok(Vec::new()));
            assert_eq!(story.decide(1, &release).unwrap().len(), 1);
            story.hold = HoldState::Draining { since: at(1) };
            assert_eq!(story.refuses(2, &release), RefusalCode::NotHeld);
        }

        fn issue(token: &str, called: &str, change: impl FnOnce(&mut TokenSpec)) -> Command {
            let (digest, role) = (crate::TokenDigest::from_bytes([7; 32]), name("submitter"));
            let (executor, lanes, device, expires_at) = (None, Vec::new(), None, None);
            let mut spec = TokenSpec { name: name(called), role, executor, lanes, device, expires_at, digest };
            change(&mut spec);
            Command::IssueToken { token: name(token), spec: Box::new(spec), by: name("ada") }
        }

        /// A store in which these were carried out, one each second.
        fn tokens(commands: &[Command]) -> Story {
            let mut story = Story::empty();
            for (second, command) in (1..).zip(commands) {
                for event in story.decide(second, command).unwrap() {
                    let Event::Service(event) = event else { panic!("no fact of the service") };
                    story.tokens.push(&event, at(second));
                }
            }
            story
        }

        fn revoke(token: &str) -> Command {
            Command::RevokeToken { token: name(token), by: name("ada") }
        }

        #[test]
        fn a_token_is_issued_once_and_a_name_is_active_once() {
            let mut story = tokens(&[issue("t1", "ci", |spec| spec.expires_at = Some(at(100)))]);
            assert_eq!(story.refuses(50, &issue("t1", "other", |_| ())), RefusalCode::TokenExists);
            assert_eq!(story.refuses(99, &issue("t2", "ci", |_| ())), RefusalCode::TokenExists);
            assert!(story.decide(100, &issue("t2", "ci", |_| ())).is_ok());
            let story = tokens(&[issue("t1", "ci", |_| ()), revoke("t1")]);
            assert!(story.decide(50, &issue("t2", "ci", |_| ())).is_ok());
        }

        #[test]
        fn a_token_that_could_admit_nobody_or_more_than_it_says_is_refused() {
            let mut story = Story::empty();
            let mut refuses = |change: fn(&mut TokenSpec)| story.refuses(50, &issue("t1", "ci", change));
            assert_eq!(refuses(|spec| spec.role = name("emperor")), RefusalCode::Invalid);
            assert_eq!(refuses(|spec| spec.role = name("executor")), RefusalCode::Invalid);
            assert_eq!(refuses(|spec| spec.executor = Some(name("mac-7"))), RefusalCode::Invalid);
            assert_eq!(refuses(|spec| spec.expires_at = Some(at(50))), RefusalCode::Invalid);
            assert_eq!(refuses(|spec| spec.lanes = vec![name("l"); TOKEN_LANES_MAX + 1]), RefusalCode::TooLarge);
        }

        #[test]
        fn a_token_is_revoked_once_and_said_to_be_so_again() {
            assert_eq!(Story::empty().refuses(1, &revoke("t1")), RefusalCode::UnknownToken);
            let story = tokens(&[issue("t1", "ci", |_| ())]);
            assert_eq!(story.decide(2, &revoke("t1")).unwrap().len(), 1);
            assert_eq!(tokens(&[issue("t1", "ci", |_| ()), revoke("t1")]).decide(3, &revoke("t1")), Ok(Vec::new()));
        }
    }
}
