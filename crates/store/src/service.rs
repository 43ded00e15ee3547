//! What the service events say: which policy was in force when, and when nobody listened.

use std::collections::BTreeMap;

use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::listening::DeafSpan;
use lastbeat_domain::{LanePolicy, Listening, Name, ServiceRecorded, Terms, Timestamp};

/// The service events of a store, read up to a position of its log.
#[derive(Clone, Debug, Default)]
pub struct ServiceLog {
    /// The position up to which the log was read.
    pub through: i64,
    /// For each lane its policies with the log time of their record, in that order.
    policies: BTreeMap<Name, Vec<(Timestamp, LanePolicy)>>,
    deaf: Vec<DeafSpan>,
    /// Service events that this program does not know, which a newer one wrote.
    pub unknown: u64,
}

impl ServiceLog {
    /// Takes in the next service event.
    pub fn push(&mut self, recorded: ServiceRecorded) {
        let recorded_at = recorded.recorded_at;
        match recorded.event {
            ServiceEvent::PolicySet { lane, policy_version, policy, by: _ } => {
                let policies = self.policies.entry(lane).or_default();
                policies.push((recorded_at, LanePolicy { version: policy_version, terms: policy }));
                policies.sort_by_key(|(at, policy)| (*at, policy.version));
            }
            ServiceEvent::Deaf { from, to, promised_until, cause } => {
                let promised_until = promised_until.unwrap_or(from);
                self.deaf.push(DeafSpan { from, to, promised_until, cause, recorded_at });
            }
            _ => {}
        }
    }

    /// Returns the policy of a lane at log time `at`: the default until one is set.
    pub fn policy(&self, lane: &Name, at: Timestamp) -> LanePolicy {
        let policies = self.policies.get(lane).map_or(&[][..], Vec::as_slice);
        let known = policies.partition_point(|(recorded_at, _)| *recorded_at <= at);
        known.checked_sub(1).map(|last| policies[last].1.clone()).unwrap_or_default()
    }

    /// Returns the listening record as of log time `at`.
    pub fn listening(&self, at: Timestamp) -> Listening {
        Listening::as_of(at, &self.deaf, &[])
    }

    /// Returns the policies that were ever set in a lane, oldest first.
    pub fn policy_history(&self, lane: &Name) -> impl Iterator<Item = (Timestamp, u32, &Terms)> {
        let policies = self.policies.get(lane).map_or(&[][..], Vec::as_slice);
        policies.iter().map(|(at, policy)| (*at, policy.version, &policy.terms))
    }

    /// Returns the lanes that ever had a policy set.
    pub fn lanes(&self) -> impl Iterator<Item = &Name> {
        self.policies.keys()
    }
}
