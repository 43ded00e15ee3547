//! Whose claim is whose: what was looked up once, so that the next heartbeat is not held up by a look.
//!
//! An executor's token is for its own runs alone, and a claim id that was overheard must not let one executor speak for
//! another. Whether a claim is the caller's stands in the run. But a heartbeat reads nothing; so what is known of a claim
//! is kept here, from the claim itself or from the first heartbeat that this process hears of it. It never becomes
//! wrong: a claim was given to one executor, once. What is forgotten costs a look.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use lastbeat_domain::{ClaimId, Name, RunId};

/// How many claims are kept before the older half is forgotten.
const GENERATION_MAX: usize = 50_000;

/// The claims that are known to be the caller's.
pub(crate) struct Owners {
    /// Its keys are random, so nobody can make two claims look alike.
    hasher: RandomState,
    generations: Mutex<[HashSet<u64>; 2]>,
}

impl Owners {
    pub(crate) fn new() -> Owners {
        Owners { hasher: RandomState::new(), generations: Mutex::default() }
    }

    /// Notes that a claim is of an executor's run, in a lane that the token is for.
    pub(crate) fn note(&self, token: &Name, run: RunId, claim: &ClaimId) {
        let known = self.hasher.hash_one((token, run, claim));
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [younger, older] = &mut *generations;
        if younger.len() >= GENERATION_MAX {
            std::mem::swap(younger, older);
            younger.clear();
        }
        younger.insert(known);
    }

    /// Says whether that was noted.
    pub(crate) fn knows(&self, token: &Name, run: RunId, claim: &ClaimId) -> bool {
        let known = self.hasher.hash_one((token, run, claim));
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [younger, older] = &mut *generations;
        // What is asked for stays.
        younger.contains(&known) || (older.remove(&known) && younger.insert(known))
    }
}

#[cfg(test)]
mod tests {
    use lastbeat_domain::RunId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_claim_is_known_for_its_token_and_run_while_it_is_used() {
        let owners = Owners::new();
        let (token, other) = (Name::new("t").unwrap(), Name::new("o").unwrap());
        let run = |number: u128| RunId::from_uuid(Uuid::from_u128(number));
        let claim: ClaimId = "c".parse().unwrap();
        owners.note(&token, run(0), &claim);
        owners.note(&token, run(1), &claim);
        assert!(owners.knows(&token, run(0), &claim));
        assert!(!owners.knows(&other, run(0), &claim) && !owners.knows(&token, run(2), &claim));
        for number in 10..120_000 {
            owners.note(&token, run(number), &claim);
            if number % 10_000 == 0 {
                assert!(owners.knows(&token, run(0), &claim));
            }
        }
        assert!(!owners.knows(&token, run(1), &claim));
    }
}
