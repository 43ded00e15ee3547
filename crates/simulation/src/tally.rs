//! What was simulated, in numbers.

use std::collections::BTreeMap;

use lastbeat_domain::{Rule, Span};

/// What was simulated.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many seeds.
    pub seeds: u64,
    /// How much virtual time.
    pub simulated: Span,
    /// How many commands were decided.
    pub commands: u64,
    /// How many passes were made.
    pub passes: u64,
    /// How many runs a pass wanted to reap that were heard of just in time.
    pub lost_races: u64,
    /// How many runs were reaped, by rule.
    pub reaps: BTreeMap<Rule, u64>,
    /// How many completions were adopted after a reap.
    pub late_completions: u64,
    /// How many late signals were recorded.
    pub late_signals: u64,
    /// What went wrong, and how often.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Counts a fault.
    pub(crate) fn count(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        self.simulated = self.simulated.plus(other.simulated);
        self.commands += other.commands;
        self.passes += other.passes;
        self.lost_races += other.lost_races;
        self.late_completions += other.late_completions;
        self.late_signals += other.late_signals;
        for (rule, count) in &other.reaps {
            *self.reaps.entry(*rule).or_default() += count;
        }
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }

    /// Returns how many runs were reaped.
    pub fn reaped(&self) -> u64 {
        self.reaps.values().sum()
    }
}
