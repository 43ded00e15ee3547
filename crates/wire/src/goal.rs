//! Goals: what runs serve.

use lastbeat_domain::{Liveness, Name, RunId, Status};
use serde::{Deserialize, Serialize};

/// How a goal stands, by the verdicts on its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum GoalStatus {
    /// One of its runs is believed to be worked on.
    Running,
    /// None is, and one waits.
    Waiting,
    /// None is, none waits, and one lapsed.
    Lapsed,
    /// Nothing is open; the latest run completed.
    Completed,
    /// Nothing is open; the latest run failed.
    Failed,
    /// Nothing is open; the latest run was reaped.
    TimedOut,
    /// Nothing is open; the latest run was cancelled.
    Cancelled,
    /// Nothing can be said: its only runs hold facts that this program does not know.
    Quarantined,
}

impl GoalStatus {
    /// Tells how a goal stands from its runs, the latest first.
    pub fn of(runs: impl IntoIterator<Item = (Status, Liveness)>) -> GoalStatus {
        let (mut waiting, mut lapsed, mut ended) = (false, false, None);
        for (status, liveness) in runs {
            match liveness {
                Liveness::Live | Liveness::Quiet | Liveness::Presumed => return GoalStatus::Running,
                Liveness::Waiting => waiting = true,
                Liveness::Lapsed => lapsed = true,
                Liveness::Settled => ended = ended.or(GoalStatus::of_ended(status)),
                Liveness::Quarantined => {}
            }
        }
        match (waiting, lapsed) {
            (true, _) => GoalStatus::Waiting,
            (false, true) => GoalStatus::Lapsed,
            (false, false) => ended.unwrap_or(GoalStatus::Quarantined),
        }
    }

    const fn of_ended(status: Status) -> Option<GoalStatus> {
        match status {
            Status::Completed => Some(GoalStatus::Completed),
            Status::Failed => Some(GoalStatus::Failed),
            Status::TimedOut => Some(GoalStatus::TimedOut),
            Status::Cancelled => Some(GoalStatus::Cancelled),
            Status::Pending | Status::Claimed | Status::Running => None,
        }
    }
}

/// A goal with its runs, the latest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GoalDocument {
    /// The goal.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub goal: Name,
    /// How it stands.
    pub status: GoalStatus,
    /// A page of its runs.
    pub runs: Vec<GoalRun>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}

/// A run of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GoalRun {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// The status that its facts say.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Status))]
    pub status: Status,
    /// What the rule says of it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Liveness))]
    pub verdict: Liveness,
}

/// A goal in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GoalSummary {
    /// The goal.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub goal: Name,
    /// How it stands.
    pub status: GoalStatus,
}

/// A page of goals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GoalsPage {
    /// The goals.
    pub goals: Vec<GoalSummary>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_runs_only_while_one_of_its_runs_is_believed() {
        let of = |runs: &[(Status, Liveness)]| GoalStatus::of(runs.iter().copied());
        let dead = (Status::Running, Liveness::Lapsed);
        let reaped = (Status::TimedOut, Liveness::Settled);
        let done = (Status::Completed, Liveness::Settled);
        assert_eq!(of(&[dead, (Status::Claimed, Liveness::Presumed)]), GoalStatus::Running);
        assert_eq!(of(&[dead, (Status::Running, Liveness::Quiet)]), GoalStatus::Running);
        assert_eq!(of(&[dead, done]), GoalStatus::Lapsed);
        assert_eq!(of(&[dead, (Status::Pending, Liveness::Waiting)]), GoalStatus::Waiting);
        assert_eq!(of(&[reaped, done]), GoalStatus::TimedOut);
        assert_eq!(of(&[done, reaped]), GoalStatus::Completed);
        assert_eq!(of(&[(Status::Running, Liveness::Quarantined)]), GoalStatus::Quarantined);
    }
}
