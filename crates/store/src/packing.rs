//! How plain heartbeats are packed: they are nearly all of the load, so each costs a few bytes.
//!
//! Three forms, all of (version, instant) pairs in rising order:
//!
//! * the **tail** in a run's projection row: steps of fixed width, so that one can be added without reading the others
//!   (PostgreSQL has a form of its own, in `postgres/tail.rs`, which sets the bounds that every tail keeps to);
//! * a **segment** of a run: the gaps between versions as runs, the instants as zigzag varints of delta-of-delta,
//!   which are small since executors beat regularly;
//! * a **beats** row of a commit, whose heartbeats share one instant: run numbers and versions as varints.
//!
//! The format of what is stored never changes; another one would get another table or a format column.

/// A plain heartbeat: its version, and its instant in microseconds of log time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    /// The version in the run's stream.
    pub(crate) version: u64,
    /// The instant of its commit, in microseconds of log time.
    pub(crate) at: i64,
}

/// How many facts a tail spans before it is written out as a segment: its heartbeats, and what came between and after.
pub(crate) const TAIL_FACTS_MAX: usize = 30;
/// The longest time after a heartbeat of a tail until the run's next fact, in microseconds: 35 min 47 s. A tail is
/// written out before a longer one.
pub(crate) const TAIL_PAUSE_MAX: i64 = i32::MAX as i64;
/// How many heartbeats an imported segment holds at the most.
pub(crate) const SEGMENT_BEATS_MAX: usize = 512;

const STEP_BYTES: usize = 16;

/// Says that packed bytes cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed heartbeats cannot be unpacked")]
pub(crate) struct PackingError;

/// Appends a heartbeat to a tail.
pub(crate) fn push_to_tail(tail: &mut Vec<u8>, beat: Beat) {
    tail.extend_from_slice(&beat.version.to_be_bytes());
    tail.extend_from_slice(&beat.at.to_be_bytes());
}

/// Unpacks a tail.
///
/// # Errors
/// If it ends within a step.
pub(crate) fn unpack_tail(tail: &[u8]) -> Result<Vec<Beat>, PackingError> {
    let steps = tail.chunks_exact(STEP_BYTES);
    if !steps.remainder().is_empty() {
        return Err(PackingError);
    }
    let unpack = |step: &[u8]| {
        let (version, at) = step.split_at(8);
        let version = u64::from_be_bytes(version.try_into().map_err(|_| PackingError)?);
        let at = i64::from_be_bytes(at.try_into().map_err(|_| PackingError)?);
        Ok(Beat { version, at })
    };
    steps.map(unpack).collect()
}

/// Packs a run's heartbeats, which must be in rising order. The first one's version and instant, and their number,
/// stand beside the bytes, not in them.
pub(crate) fn pack_segment(beats: &[Beat]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(beats.len() * 3 + 8);
    let stretches = stretches(beats);
    write_varint(&mut bytes, stretches.len() as u64);
    for (gap, length) in stretches {
        write_varint(&mut bytes, gap);
        write_varint(&mut bytes, length);
    }
    let mut delta_before = 0_i64;
    for pair in beats.windows(2) {
        let delta = pair[1].at.wrapping_sub(pair[0].at);
        write_varint(&mut bytes, zigzag(delta.wrapping_sub(delta_before)));
        delta_before = delta;
    }
    bytes
}

/// Unpacks a segment of `count` heartbeats that begins with `first`.
///
/// # Errors
/// If the bytes do not say so many heartbeats, exactly.
pub(crate) fn unpack_segment(first: Beat, count: usize, bytes: &[u8]) -> Result<Vec<Beat>, PackingError> {
    let mut rest = bytes;
    let mut versions = Vec::with_capacity(count.min(4_096));
    let mut next = first.version;
    for _ in 0..read_varint(&mut rest)? {
        next = next.checked_add(read_varint(&mut rest)?).ok_or(PackingError)?;
        for _ in 0..read_varint(&mut rest)? {
            if versions.len() == count {
                return Err(PackingError);
            }
            versions.push(next);
            next = next.checked_add(1).ok_or(PackingError)?;
        }
    }
    if versions.len() != count {
        return Err(PackingError);
    }
    let (mut at, mut delta) = (first.at, 0_i64);
    let mut beats = Vec::with_capacity(count);
    for (index, version) in versions.into_iter().enumerate() {
        if index > 0 {
            delta = delta.wrapping_add(unzigzag(read_varint(&mut rest)?));
            at = at.wrapping_add(delta);
        }
        beats.push(Beat { version, at });
    }
    if rest.is_empty() { Ok(beats) } else { Err(PackingError) }
}

/// The versions as stretches without a gap: how many versions lie before each, and how long it is.
fn stretches(beats: &[Beat]) -> Vec<(u64, u64)> {
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    let mut expected = beats.first().map_or(0, |beat| beat.version);
    for beat in beats {
        match stretches.last_mut() {
            Some((_, length)) if beat.version == expected => *length += 1,
            _ => stretches.push((beat.version - expected, 1)),
        }
        expected = beat.version + 1;
    }
    stretches
}

/// Packs the heartbeats of one commit: (run number, version), sorted by run number.
pub(crate) fn pack_beats(beats: &[(i64, u64)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(beats.len() * 4);
    let mut before = 0_i64;
    for (run, version) in beats {
        write_varint(&mut bytes, zigzag(run.wrapping_sub(before)));
        write_varint(&mut bytes, *version);
        before = *run;
    }
    bytes
}

/// Unpacks the heartbeats of one commit.
///
/// # Errors
/// If the bytes do not say so many heartbeats, exactly.
pub(crate) fn unpack_beats(count: usize, bytes: &[u8]) -> Result<Vec<(i64, u64)>, PackingError> {
    let mut rest = bytes;
    let mut beats = Vec::with_capacity(count.min(4_096));
    let mut run = 0_i64;
    for _ in 0..count {
        run = run.wrapping_add(unzigzag(read_varint(&mut rest)?));
        beats.push((run, read_varint(&mut rest)?));
    }
    if rest.is_empty() { Ok(beats) } else { Err(PackingError) }
}

#[allow(clippy::cast_sign_loss)] // The sign moves to the lowest bit: that is the point.
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[allow(clippy::cast_possible_wrap)]
fn unzigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

#[allow(clippy::cast_possible_truncation)] // Seven bits at a time are what is wanted.
fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value as u8) | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(rest: &mut &[u8]) -> Result<u64, PackingError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(PackingError)?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(PackingError);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(PackingError)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rising_beats() -> impl Strategy<Value = Vec<Beat>> {
        let steps = prop::collection::vec((1_u64..4, 1_i64..10_000_000_000), 1..200);
        (1_u64..1_000, -1_000_000_000_000_i64..1_000_000_000_000, steps).prop_map(|(version, at, steps)| {
            let mut beat = Beat { version, at };
            let step = |(versions, micros)| {
                beat = Beat { version: beat.version + versions, at: beat.at + micros };
                beat
            };
            steps.into_iter().map(step).collect()
        })
    }

    proptest! {
        #[test]
        fn segments_and_tails_lose_nothing(beats in rising_beats()) {
            let packed = pack_segment(&beats);
            prop_assert_eq!(unpack_segment(beats[0], beats.len(), &packed), Ok(beats.clone()));
            let mut tail = Vec::new();
            beats.iter().for_each(|beat| push_to_tail(&mut tail, *beat));
            prop_assert_eq!(unpack_tail(&tail), Ok(beats));
        }

        #[test]
        fn beats_rows_lose_nothing(mut beats in prop::collection::vec((any::<i64>(), any::<u64>()), 0..100)) {
            beats.sort_unstable();
            prop_assert_eq!(unpack_beats(beats.len(), &pack_beats(&beats)), Ok(beats));
        }

        #[test]
        fn damaged_bytes_are_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), count in 0_usize..300) {
            let _ = unpack_segment(Beat { version: 1, at: 0 }, count, &bytes);
            let _ = unpack_beats(count, &bytes);
            let _ = unpack_tail(&bytes);
        }
    }

    #[test]
    fn a_regular_heartbeat_costs_few_bytes() {
        let jitter = |n: i64| (n * 7_919) % 2_000;
        let beats: Vec<Beat> =
            (0..240_i64).map(|n| Beat { version: 2 + n.unsigned_abs(), at: n * 30_000_000 + jitter(n) }).collect();
        assert!(pack_segment(&beats).len() < beats.len() * 3);
    }
}
