//! Who may do and see what: roles, actions, and how the holder of a token stands to what it asks about.
//!
//! Three answers are possible. What a token may not see is *hidden*: it is answered as if it were not there, so that
//! asking tells nobody what there is. What it may see but not do is *forbidden*. Everything else is allowed, and then
//! decided like any other command.
//!
//! | role | may |
//! | --- | --- |
//! | executor | take runs of its lanes and report on them, under its own name; see the runs that it holds or held; free a unique key by reaping the lapsed run that has it |
//! | submitter | make, see, cancel and requeue runs of its lanes |
//! | auditor | see everything but tokens, and do nothing |
//! | operator | what submitter and auditor may, and reap, release holds and set policies |
//! | admin | everything |
//!
//! Rejected: scopes that can be combined at will. Five roles can be explained, and tested in one table.

use std::fmt;
use std::str::FromStr;

use crate::ids::{ClaimId, Name};
use crate::run::Run;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Does the work.
    Executor,
    /// Has work done.
    Submitter,
    /// Looks.
    Auditor,
    /// Keeps the service going.
    Operator,
    /// Decides who may do what.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 5] = [Role::Executor, Role::Submitter, Role::Auditor, Role::Operator, Role::Admin];

    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Executor => "executor",
            Role::Submitter => "submitter",
            Role::Auditor => "auditor",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// Says whether tokens of this role can be for some lanes only.
    const fn has_lanes(self) -> bool {
        matches!(self, Role::Executor | Role::Submitter)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Says that a word is no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is one of executor, submitter, auditor, operator, admin")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Role, UnknownRole> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

/// Something that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Look at a run: as it is, its facts, why.
    SeeRun,
    /// Make a run in a lane.
    Create,
    /// Make a run in a lane and claim it in the same breath.
    CreateClaimed,
    /// Take whatever waits in a lane.
    Claim,
    /// Take a run, and no other.
    ClaimRun,
    /// Start, beat, complete, fail or acknowledge a cancel.
    Report,
    /// Ask for a run to stop.
    Cancel,
    /// Let an ended run wait again.
    Requeue,
    /// Reap a lapsed run by hand.
    Reap,
    /// Reap a lapsed run by hand, to free its unique key.
    FreeKey,
    /// Look at a lane, its policy and its hold.
    SeeLane,
    /// Judge the recorded past of a lane under other policies.
    Backtest,
    /// Set the policy of a lane.
    SetPolicy,
    /// Let reaping go on in a lane that is held.
    ReleaseHold,
    /// Look at what is of no lane: the feed of all facts, who is at work.
    SeeService,
    /// Make, list and revoke tokens.
    ManageTokens,
}

impl Action {
    /// All actions.
    pub const ALL: [Action; 16] = [
        Action::SeeRun,
        Action::Create,
        Action::CreateClaimed,
        Action::Claim,
        Action::ClaimRun,
        Action::Report,
        Action::Cancel,
        Action::Requeue,
        Action::Reap,
        Action::FreeKey,
        Action::SeeLane,
        Action::Backtest,
        Action::SetPolicy,
        Action::ReleaseHold,
        Action::SeeService,
        Action::ManageTokens,
    ];

    /// Returns what a holder must be able to see to be told that it may not do this; `None` where there is nothing to
    /// hide.
    const fn sight(self) -> Option<Action> {
        match self {
            Action::SeeRun
            | Action::ClaimRun
            | Action::Report
            | Action::Cancel
            | Action::Requeue
            | Action::Reap
            | Action::FreeKey => Some(Action::SeeRun),
            Action::SeeLane | Action::Backtest | Action::SetPolicy | Action::ReleaseHold => Some(Action::SeeLane),
            Action::Create | Action::CreateClaimed | Action::Claim | Action::SeeService | Action::ManageTokens => None,
        }
    }
}

/// How the holder of a token stands to the run or lane that it asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// A run of its lanes that it holds or held, or a claim in its own name.
    Own,
    /// Of its lanes, and not its own.
    InLanes,
    /// Of none of its lanes.
    Beyond,
}

impl Relation {
    /// All relations.
    pub const ALL: [Relation; 3] = [Relation::Own, Relation::InLanes, Relation::Beyond];
}

/// Whether something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// It may.
    Allowed,
    /// It may not, and is told so.
    Forbidden,
    /// It may not, and is told that there is no such thing.
    Hidden,
}

/// Says whether a holder of that role, standing like that to what it asks about, may do something.
pub const fn access(role: Role, action: Action, relation: Relation) -> Access {
    if may(role, action, relation) {
        return Access::Allowed;
    }
    match action.sight() {
        Some(sight) if !may(role, sight, relation) => Access::Hidden,
        _ => Access::Forbidden,
    }
}

const fn may(role: Role, action: Action, relation: Relation) -> bool {
    let in_lanes = !matches!(relation, Relation::Beyond);
    match role {
        Role::Executor => match action {
            Action::SeeRun | Action::CreateClaimed | Action::Claim | Action::Report => {
                matches!(relation, Relation::Own)
            }
            Action::ClaimRun | Action::FreeKey | Action::SeeLane => in_lanes,
            _ => false,
        },
        Role::Submitter => match action {
            Action::SeeRun | Action::Create | Action::Cancel | Action::Requeue | Action::SeeLane => in_lanes,
            _ => false,
        },
        Role::Auditor => {
            matches!(action, Action::SeeRun | Action::SeeLane | Action::Backtest | Action::SeeService)
        }
        Role::Operator => !matches!(
            action,
            Action::CreateClaimed | Action::Claim | Action::ClaimRun | Action::Report | Action::ManageTokens
        ),
        Role::Admin => true,
    }
}

/// What a token may do, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What it is for.
    pub role: Role,
    /// The executor that it speaks for; an executor's has one, no other has.
    pub executor: Option<Name>,
    /// The lanes that it is for; empty: all.
    pub lanes: Vec<Name>,
    /// The device that its executor presents.
    pub device: Option<Name>,
}

/// Says why a role cannot be bound like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// An executor speaks in its own name.
    #[error("executor: a token of role executor needs the name of its executor")]
    NoExecutor,
    /// Nobody else speaks for an executor.
    #[error("executor, device: only a token of role executor is bound to them, this one is of role {0}")]
    NotAnExecutor(Role),
    /// Whoever sees all lanes is not bound to some.
    #[error("lanes: a token of role {0} is for all lanes, so it cannot be bound to some")]
    AllLanes(Role),
}

impl Grant {
    /// Makes a grant.
    ///
    /// # Errors
    /// If the role lacks what it is bound to, or cannot be bound to what is named: silently giving more than was asked
    /// for would be worse than giving nothing.
    pub fn new(
        role: Role,
        executor: Option<Name>,
        lanes: Vec<Name>,
        device: Option<Name>,
    ) -> Result<Grant, GrantError> {
        match (role, &executor, &device) {
            (Role::Executor, None, _) => return Err(GrantError::NoExecutor),
            (Role::Executor, Some(_), _) | (_, None, None) => {}
            (other, ..) => return Err(GrantError::NotAnExecutor(other)),
        }
        if !lanes.is_empty() && !role.has_lanes() {
            return Err(GrantError::AllLanes(role));
        }
        Ok(Grant { role, executor, lanes, device })
    }

    /// Says whether the token is for a lane.
    pub fn covers(&self, lane: &Name) -> bool {
        self.lanes.is_empty() || self.lanes.contains(lane)
    }

    /// Returns how the holder stands to a run. One that it lost by a reap is still its own: it must be able to ask why.
    pub fn to_run(&self, run: &Run) -> Relation {
        if !self.covers(&run.lane) {
            return Relation::Beyond;
        }
        let is_own = |executor: &Name| self.executor.as_ref() == Some(executor);
        let held = run.claim.as_ref().is_some_and(|claim| is_own(&claim.executor));
        if held || run.reaped.iter().any(|reaped| is_own(&reaped.executor)) { Relation::Own } else { Relation::InLanes }
    }

    /// Returns how the holder stands to a run of which it reports under a claim. The claim id is random and told to its
    /// executor alone: a report that quotes one which this executor was given is its own, even after others claimed.
    pub fn to_report(&self, run: &Run, claim: Option<&ClaimId>) -> Relation {
        let relation = self.to_run(run);
        let quoted = |known: &Option<ClaimId>| claim.is_none() || known.as_ref() == claim;
        let current = run.claim.as_ref().filter(|held| quoted(&held.id)).map(|held| &held.executor);
        let reaped = run.reaped.iter().filter(|reaped| quoted(&reaped.claim)).map(|reaped| &reaped.executor);
        let mut executors = current.into_iter().chain(reaped);
        match relation {
            Relation::Own if !executors.any(|executor| self.executor.as_ref() == Some(executor)) => Relation::InLanes,
            relation => relation,
        }
    }

    /// Returns how the holder stands to a lane.
    pub fn to_lane(&self, lane: &Name) -> Relation {
        if self.covers(lane) { Relation::InLanes } else { Relation::Beyond }
    }

    /// Returns how the holder stands to a claim in a lane, in the name of an executor with a device.
    pub fn to_claim(&self, lane: &Name, executor: &Name, device: Option<&Name>) -> Relation {
        let bound = self.executor.as_ref().is_none_or(|own| own == executor)
            && self.device.as_ref().is_none_or(|own| Some(own) == device);
        match self.to_lane(lane) {
            Relation::InLanes if bound => Relation::Own,
            relation => relation,
        }
    }

    /// Says whether the holder may do something to what it stands to like that.
    pub const fn access(&self, action: Action, relation: Relation) -> Access {
        access(self.role, action, relation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Recorded, RunEvent};
    use crate::ids::RunId;
    use crate::time::Timestamp;
    use crate::verdict::Rule;

    /// Each action with what comes of it for each role, in the order of [`Role::ALL`]: for a run or claim of its own, one of
    /// its lanes, and one beyond them. `+` allowed, `-` forbidden, `.` hidden.
    const TABLE: [(Action, [&str; 5]); 16] = [
        //                       executor submitter auditor operator admin
        (Action::SeeRun, ["+..", "++.", "+++", "+++", "+++"]),
        (Action::Create, ["---", "++-", "---", "+++", "+++"]),
        (Action::CreateClaimed, ["+--", "---", "---", "---", "+++"]),
        (Action::Claim, ["+--", "---", "---", "---", "+++"]),
        (Action::ClaimRun, ["++.", "--.", "---", "---", "+++"]),
        (Action::Report, ["+..", "--.", "---", "---", "+++"]),
        (Action::Cancel, ["-..", "++.", "---", "+++", "+++"]),
        (Action::Requeue, ["-..", "++.", "---", "+++", "+++"]),
        (Action::Reap, ["-..", "--.", "---", "+++", "+++"]),
        (Action::FreeKey, ["++.", "--.", "---", "+++", "+++"]),
        (Action::SeeLane, ["++.", "++.", "+++", "+++", "+++"]),
        (Action::Backtest, ["--.", "--.", "+++", "+++", "+++"]),
        (Action::SetPolicy, ["--.", "--.", "---", "+++", "+++"]),
        (Action::ReleaseHold, ["--.", "--.", "---", "+++", "+++"]),
        (Action::SeeService, ["---", "---", "+++", "+++", "+++"]),
        (Action::ManageTokens, ["---", "---", "---", "---", "+++"]),
    ];

    #[test]
    fn every_role_may_do_what_the_table_says_and_nothing_else() {
        assert_eq!(TABLE.map(|(action, _)| action), Action::ALL);
        for (action, columns) in TABLE {
            for (role, column) in Role::ALL.into_iter().zip(columns) {
                let answers: String = Relation::ALL
                    .into_iter()
                    .map(|relation| match access(role, action, relation) {
                        Access::Allowed => '+',
                        Access::Forbidden => '-',
                        Access::Hidden => '.',
                    })
                    .collect();
                assert_eq!(answers, column, "{role} {action:?}");
            }
        }
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn executor(lanes: &[&str], device: Option<&str>) -> Grant {
        let lanes = lanes.iter().map(|lane| name(lane)).collect();
        Grant::new(Role::Executor, Some(name("mac-7")), lanes, device.map(name)).unwrap()
    }

    #[test]
    fn a_role_is_bound_to_what_it_can_be_bound_to() {
        let lanes = vec![name("watcher")];
        assert_eq!(Grant::new(Role::Executor, None, Vec::new(), None), Err(GrantError::NoExecutor));
        for role in [Role::Submitter, Role::Auditor, Role::Operator, Role::Admin] {
            let with_executor = Grant::new(role, Some(name("mac-7")), Vec::new(), None);
            assert_eq!(with_executor, Err(GrantError::NotAnExecutor(role)));
            let with_device = Grant::new(role, None, Vec::new(), Some(name("air")));
            assert_eq!(with_device, Err(GrantError::NotAnExecutor(role)));
        }
        assert!(Grant::new(Role::Submitter, None, lanes.clone(), None).is_ok());
        assert_eq!(Grant::new(Role::Auditor, None, lanes, None), Err(GrantError::AllLanes(Role::Auditor)));
    }

    #[test]
    fn a_claim_is_its_own_only_in_its_name_with_its_device_in_its_lanes() {
        let grant = executor(&["watcher"], Some("air"));
        let stands = |lane, by, device: Option<&str>| grant.to_claim(&name(lane), &name(by), device.map(name).as_ref());
        assert_eq!(stands("watcher", "mac-7", Some("air")), Relation::Own);
        assert_eq!(stands("watcher", "mac-8", Some("air")), Relation::InLanes);
        assert_eq!(stands("watcher", "mac-7", None), Relation::InLanes);
        assert_eq!(stands("sync", "mac-7", Some("air")), Relation::Beyond);
        assert_eq!(executor(&[], None).to_claim(&name("sync"), &name("mac-7"), Some(&name("x"))), Relation::Own);
    }

    /// A run of `watcher` that was claimed by `mac-7`, reaped, and claimed by `mac-8`.
    fn lost() -> Run {
        let id = RunId::from_uuid(uuid::Uuid::from_u128(7));
        let claimed = |attempt, executor, claim: &str| {
            let claim = Some(claim.parse().unwrap());
            RunEvent::Claimed { attempt, claim, executor: name(executor), device: None }
        };
        let timed_out =
            RunEvent::TimedOut { attempt: 1, rule: Rule::CoarseTtl, evidence: None, message: "gone".to_owned() };
        let (lane, labels) = (name("watcher"), std::collections::BTreeMap::new());
        let (goal, device, not_before, unique_key, input) = (None, None, None, None, None);
        let events = [
            RunEvent::Created { lane, goal, device, not_before, unique_key, labels, input },
            claimed(1, "mac-7", "c1"),
            timed_out,
            RunEvent::Requeued { next_attempt: 2, not_before: Timestamp::from_micros(3), by: None, reason: None },
            claimed(2, "mac-8", "c2"),
        ];
        let mut run = None;
        for ((version, micros), event) in (1..).zip(1..).zip(events) {
            let recorded = Recorded { run: id, version, recorded_at: Timestamp::from_micros(micros), event };
            match &mut run {
                None => run = Some(Run::begin(&recorded).unwrap()),
                Some(run) => run.evolve(&recorded).unwrap(),
            }
        }
        run.unwrap()
    }

    #[test]
    fn who_lost_a_run_may_ask_why_and_who_never_had_it_may_not() {
        let (run, all) = (lost(), Vec::new());
        let of = |executor| Grant::new(Role::Executor, Some(name(executor)), all.clone(), None).unwrap();
        assert_eq!(of("mac-7").to_run(&run), Relation::Own);
        assert_eq!(of("mac-8").to_run(&run), Relation::Own);
        assert_eq!(of("mac-9").to_run(&run), Relation::InLanes);
        assert_eq!(executor(&["sync"], None).to_run(&run), Relation::Beyond);
    }

    #[test]
    fn a_report_is_its_own_under_a_claim_that_it_was_given() {
        let run = lost();
        let stands = |executor: &str, claim: Option<&str>| {
            let grant = Grant::new(Role::Executor, Some(name(executor)), Vec::new(), None).unwrap();
            grant.to_report(&run, claim.map(|claim| claim.parse().unwrap()).as_ref())
        };
        assert_eq!(stands("mac-7", Some("c1")), Relation::Own);
        assert_eq!(stands("mac-7", None), Relation::Own);
        assert_eq!(stands("mac-7", Some("c2")), Relation::InLanes);
        assert_eq!(stands("mac-8", Some("c2")), Relation::Own);
        assert_eq!(stands("mac-9", Some("c2")), Relation::InLanes);
    }
}
