//! What the service events and the beacons say: which policy was in force when, when nobody listened, what is held.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::hold::{Census, HeldSpan, HoldState};
use lastbeat_domain::listening::{Beacon, DeafSpan};
use lastbeat_domain::{
    LanePolicy, Listening, Name, ServiceRecorded, Span, Terms, Timestamp, Token, TokenDigest, Tokens,
};
use subtle::ConstantTimeEq;

use crate::record::decode_service_event;

/// A lane that was held, and has not been found well since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneHold {
    /// Whether it is held still, or drained.
    pub state: HoldState,
    /// The log time at which it was held.
    pub held_at: Timestamp,
    /// How much of it was silent then.
    pub census: Census,
}

/// The service events of a store, read up to a position of its log, and its beacons.
#[derive(Clone, Debug, Default)]
pub struct ServiceLog {
    /// The position up to which the log was read.
    pub through: i64,
    /// For each lane its policies with the log time of their record, in that order.
    policies: BTreeMap<Name, Vec<(Timestamp, LanePolicy)>>,
    deaf: Vec<DeafSpan>,
    holds: BTreeMap<Name, LaneHold>,
    /// For each lane when it was held, in that order.
    held: BTreeMap<Name, Vec<HeldSpan>>,
    /// The tokens that were ever issued.
    pub tokens: Tokens,
    /// The beacons as they stand.
    pub beacons: Vec<Beacon>,
    /// The last time that the clock was set back, as it was noticed.
    pub clock_back: Option<ServiceRecorded>,
    /// Service events that this program does not know, which a newer one wrote.
    pub unknown: u64,
}

impl ServiceLog {
    /// Returns what is known after rows were read that followed on `known`, (position, instant, schema, body) each, and
    /// the beacons as they stand.
    pub(crate) fn refreshed(
        known: &Arc<ServiceLog>,
        rows: Vec<(i64, i64, i64, String)>,
        beacons: Vec<Beacon>,
    ) -> Arc<ServiceLog> {
        if rows.is_empty() && beacons == known.beacons {
            return Arc::clone(known);
        }
        let mut log = ServiceLog::clone(known);
        log.beacons = beacons;
        for (position, recorded_at, schema, body) in rows {
            match decode_service_event(Timestamp::from_micros(recorded_at), schema, &body) {
                Some(recorded) => log.push(recorded),
                // A newer program's event; what it means for this one is nothing.
                None => log.unknown += 1,
            }
            log.through = position;
        }
        Arc::new(log)
    }

    /// Takes in the next service event.
    pub fn push(&mut self, recorded: ServiceRecorded) {
        let recorded_at = recorded.recorded_at;
        match &recorded.event {
            ServiceEvent::PolicySet { lane, policy_version, policy, by: _ } => {
                let policies = self.policies.entry(lane.clone()).or_default();
                policies.push((recorded_at, LanePolicy { version: *policy_version, terms: policy.clone() }));
                policies.sort_by_key(|(at, policy)| (*at, policy.version));
            }
            ServiceEvent::Deaf { from, to, promised_until, cause } => {
                let (from, to, promised_until, cause) = (*from, *to, *promised_until, *cause);
                self.deaf.push(DeafSpan { from, to, promised_until, cause, recorded_at });
            }
            ServiceEvent::ReapingHeld { lane, lapsed, silent, beating } => {
                let census = Census { beating: *beating, silent: *silent, lapsed: *lapsed };
                let state = HoldState::Held { since: recorded_at };
                self.holds.insert(lane.clone(), LaneHold { state, held_at: recorded_at, census });
                let held = HeldSpan { from: recorded_at, to: None, cause: None };
                self.held.entry(lane.clone()).or_default().push(held);
            }
            ServiceEvent::ReapingReleased { lane, cause, .. } => {
                // What ends a drain finds the hold over.
                if let Some(held) = self.held.get_mut(lane).and_then(|held| held.last_mut())
                    && held.to.is_none()
                {
                    (held.to, held.cause) = (Some(recorded_at), Some(*cause));
                }
                if let Some(hold) = self.holds.get_mut(lane) {
                    hold.state = hold.state.after(&recorded.event, recorded_at);
                    if hold.state == HoldState::Free {
                        self.holds.remove(lane);
                    }
                }
            }
            ServiceEvent::TokenIssued { .. } | ServiceEvent::TokenRevoked { .. } => {
                self.tokens.push(&recorded.event, recorded_at);
            }
            ServiceEvent::ClockBack { .. } => self.clock_back = Some(recorded),
            _ => {}
        }
    }

    /// Returns the token whose secret has that digest, whether or not it still admits anybody. How long the search
    /// takes tells nothing of any digest but its first bytes.
    pub fn token(&self, digest: &TokenDigest) -> Option<&Token> {
        let is_it = |known: &TokenDigest| bool::from(known.as_bytes().ct_eq(digest.as_bytes()));
        self.tokens.like(digest).find(|token| token.digest.as_ref().is_some_and(is_it))
    }

    /// Returns the policy of a lane at log time `at`: the default until one is set.
    pub fn policy(&self, lane: &Name, at: Timestamp) -> LanePolicy {
        let policies = self.policies.get(lane).map_or(&[][..], Vec::as_slice);
        let known = policies.partition_point(|(recorded_at, _)| *recorded_at <= at);
        known.checked_sub(1).map(|last| policies[last].1.clone()).unwrap_or_default()
    }

    /// Returns the smallest heartbeat window of all policies, the default one among them.
    pub fn smallest_window(&self) -> Span {
        let latest = self.policies.values().filter_map(|policies| policies.last());
        let windows = latest.map(|(_, policy)| policy.terms.heartbeat_window);
        windows.min().map_or(Terms::default().heartbeat_window, |least| least.min(Terms::default().heartbeat_window))
    }

    /// Returns the listening record as of log time `at`.
    pub fn listening(&self, at: Timestamp) -> Listening {
        Listening::as_of(at, &self.deaf, &self.beacons)
    }

    /// Returns whether a lane may reap for silence.
    pub fn hold(&self, lane: &Name) -> HoldState {
        self.holds.get(lane).map_or(HoldState::Free, |hold| hold.state)
    }

    /// Returns the lanes that are held or drained.
    pub fn holds(&self) -> impl Iterator<Item = (&Name, &LaneHold)> {
        self.holds.iter()
    }

    /// Returns when a lane was held after log time `since`, as it was known at log time `at`, oldest first.
    pub fn held_between(&self, lane: &Name, since: Timestamp, at: Timestamp) -> Vec<HeldSpan> {
        let held = self.held.get(lane).map_or(&[][..], Vec::as_slice);
        let known = held.iter().filter_map(|held| held.as_of(at));
        known.filter(|held| held.to.is_none_or(|to| to > since)).collect()
    }

    /// Returns the policies that were ever set in a lane with the log time of their record, oldest first.
    pub fn policies(&self, lane: &Name) -> &[(Timestamp, LanePolicy)] {
        self.policies.get(lane).map_or(&[], Vec::as_slice)
    }

    /// Returns the deaf spans that were recorded, in the order of their record.
    pub fn deaf_spans(&self) -> &[DeafSpan] {
        &self.deaf
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
