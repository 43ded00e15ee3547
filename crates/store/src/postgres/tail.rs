//! The tail of a run as its row of `beating` holds it: four bytes for each fact since the tail's first heartbeat, the
//! newest in front, so that the statement that takes a heartbeat puts the next one there without reading the others.
//!
//! A step says how many microseconds lie between its fact and the one before. That of a fact which has a row of its own
//! in `events` is the complement, and so negative: the tail only counts it. The newest fact is the run's last, whose
//! version and instant stand in the same row; every other one follows from it, and what the oldest step says is not
//! asked. Hence whoever writes such a row packs its tail anew.
//!
//! * **Invariant:** a tail that spans [`TAIL_FACTS_MAX`] facts stands in a segment too, and the next heartbeat replaces
//!   it. Nobody but that statement makes one, [`NOTHING`] apart, which holds no heartbeat at all.

use lastbeat_domain::Timestamp;

use crate::packing::{Beat, PackingError, TAIL_FACTS_MAX, TAIL_PAUSE_MAX};

const STEP_BYTES: usize = 4;

/// How many bytes a full tail has.
pub(super) const TAIL_BYTES_MAX: usize = TAIL_FACTS_MAX * STEP_BYTES;

/// A tail without a heartbeat, as it is written by whoever packs one: as long as it may become, and replaced by the next
/// heartbeat as any full one is. So the row takes up its room when it is put on its page, and the page keeps more free than
/// the fill factor says. Otherwise, rows growing, it would always be fuller than that, and be pruned whenever anybody looks.
pub(super) const NOTHING: [u8; TAIL_BYTES_MAX] = [0; TAIL_BYTES_MAX];

/// The last fact of a run, from which the heartbeats of its tail follow.
pub(super) fn last_fact(version: u64, updated_at: Timestamp) -> Beat {
    Beat { version, at: updated_at.as_micros() }
}

/// Packs the plain heartbeats of a run that are in no segment, in rising order, given the run's last fact. `None` if
/// they go beyond the bounds of a tail.
pub(super) fn pack_tail(beats: &[Beat], last: Beat) -> Option<Vec<u8>> {
    if beats.is_empty() {
        return Some(NOTHING.to_vec());
    }
    let mut bytes = Vec::new();
    let (mut fact, mut beats) = (last, beats);
    while let Some((newest, older)) = beats.split_last() {
        let is_beat = newest.version == fact.version;
        beats = if is_beat { older } else { beats };
        let before = before(fact, beats.last());
        let pause = i32::try_from(fact.at - before.at).ok().filter(|pause| *pause >= 0)?;
        bytes.extend_from_slice(&if is_beat { pause } else { !pause }.to_be_bytes());
        if (is_beat && *newest != fact) || before.version > fact.version || bytes.len() == TAIL_BYTES_MAX {
            return None;
        }
        fact = before;
    }
    Some(bytes)
}

/// The fact before `fact`, where the newest older heartbeat of the tail is `beat`. Of one that is only counted it does not
/// matter when it came, as long as the pauses stay within their bound.
fn before(fact: Beat, beat: Option<&Beat>) -> Beat {
    match beat {
        None => fact,
        Some(beat) if beat.version + 1 >= fact.version => *beat,
        Some(beat) => Beat { version: fact.version - 1, at: beat.at.max(fact.at - TAIL_PAUSE_MAX) },
    }
}

/// Unpacks a tail, given the run's last fact.
///
/// # Errors
/// If it ends within a step, or spans more facts than the run has.
pub(super) fn unpack_tail(tail: &[u8], last: Beat) -> Result<Vec<Beat>, PackingError> {
    let (steps, rest) = tail.as_chunks::<STEP_BYTES>();
    if !rest.is_empty() {
        return Err(PackingError);
    }
    let (mut beats, mut fact) = (Vec::with_capacity(steps.len()), last);
    for step in steps.iter().map(|step| i32::from_be_bytes(*step)) {
        if step >= 0 {
            beats.push(fact);
        }
        let pause = if step >= 0 { step } else { !step };
        let version = fact.version.checked_sub(1).ok_or(PackingError)?;
        fact = Beat { version, at: fact.at.checked_sub(pause.into()).ok_or(PackingError)? };
    }
    beats.reverse();
    Ok(beats)
}

/// Unpacks what of a tail is in no segment yet. A full one has been written out, or holds nothing.
pub(super) fn unwritten_tail(tail: &[u8], last: Beat) -> Result<Vec<Beat>, PackingError> {
    if tail.len() == TAIL_BYTES_MAX { Ok(Vec::new()) } else { unpack_tail(tail, last) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stream's facts since some heartbeat, each plain or not, with pauses up to the longest.
    fn facts() -> impl Strategy<Value = Vec<(Beat, bool)>> {
        let pause = prop_oneof![1_i64..60_000_000, Just(TAIL_PAUSE_MAX), 1..=TAIL_PAUSE_MAX];
        let steps = prop::collection::vec((pause, prop::bool::weighted(0.7)), 0..TAIL_FACTS_MAX - 2);
        (4_u64..1 << 40, -(1_i64 << 50)..1 << 50, steps).prop_map(|(version, at, steps)| {
            let first = (Beat { version, at }, true);
            let next = |(before, _): &mut (Beat, bool), (pause, plain): (i64, bool)| {
                let fact = Beat { version: before.version + 1, at: before.at + pause };
                *before = fact;
                Some((fact, plain))
            };
            std::iter::once(first).chain(steps.into_iter().scan(first, next)).collect()
        })
    }

    proptest! {
        /// Whoever puts the next heartbeat in front, however often the tail is packed anew in between, and whatever comes
        /// between its heartbeats, as long as what has gone beyond the bounds was written out, as the store does.
        #[test]
        fn a_tail_comes_back_with_every_heartbeat(facts in facts()) {
            let (mut beats, mut tail, mut before): (Vec<Beat>, Vec<u8>, Option<Beat>) = (Vec::new(), Vec::new(), None);
            for (fact, plain) in facts {
                if plain {
                    // As the statement does that takes heartbeats.
                    let pause = before.map_or(0, |before| fact.at - before.at);
                    let kept = if tail.len() < TAIL_BYTES_MAX { tail.as_slice() } else { &[] };
                    tail = [&i32::try_from(pause).unwrap().to_be_bytes(), kept].concat();
                    beats.push(fact);
                    prop_assert_eq!(unwritten_tail(&tail, fact), Ok(beats.clone()));
                } else if beats.last().is_some_and(|last| fact.at - last.at > TAIL_PAUSE_MAX) {
                    beats.clear();
                }
                let packed = pack_tail(&beats, fact).unwrap();
                prop_assert_eq!(unwritten_tail(&packed, fact), Ok(beats.clone()));
                if !plain {
                    tail = packed;
                }
                before = Some(fact);
            }
        }

        #[test]
        fn damaged_bytes_are_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), version in 0_u64..20, at: i64) {
            let _ = unpack_tail(&bytes, Beat { version, at });
        }
    }

    #[test]
    fn what_goes_beyond_the_bounds_is_not_packed() {
        let beat = |version: u64| Beat { version, at: 1_000_000 * version.cast_signed() };
        let full: Vec<Beat> = (4..4 + TAIL_FACTS_MAX as u64).map(beat).collect();
        assert!(pack_tail(&full[1..], beat(33)).is_some());
        assert_eq!(pack_tail(&full, beat(33)), None, "a full one is in a segment, or it would be lost from sight");
        assert_eq!(pack_tail(&[beat(4)], beat(33)), None);
        let late = Beat { version: 5, at: beat(4).at + TAIL_PAUSE_MAX + 1 };
        assert_eq!(pack_tail(&[beat(4), late], late), None);
        assert_eq!(pack_tail(&[beat(5)], beat(4)), None, "no tail reaches beyond its run");
    }

    #[test]
    fn an_empty_tail_is_as_long_as_a_full_one_and_holds_nothing() {
        let last = Beat { version: 3, at: 1 };
        let empty = pack_tail(&[], last).unwrap();
        assert_eq!((empty.len(), unwritten_tail(&empty, last)), (TAIL_BYTES_MAX, Ok(Vec::new())));
    }
}
