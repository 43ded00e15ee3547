//! How long to wait before trying again: ever longer, and never for the same time as the others.

use std::time::Duration;

use uuid::Uuid;

/// The pauses between tries: doubled each time up to a limit, each shortened at random by up to a half, so that clients
/// that lost the same server do not come back in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { next: first.min(max), max }
    }

    /// Returns the next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        shortened(pause, 0.5)
    }
}

/// Returns a time that is at random shorter, by at most `share` of it.
pub(crate) fn shortened(time: Duration, share: f64) -> Duration {
    time.mul_f64(1.0 - share * random())
}

/// Draws a number from 0 to 1. Ids need good random numbers anyway, so there is no other source.
fn random() -> f64 {
    let (_, bits) = Uuid::new_v4().as_u64_pair();
    // The topmost two bits of the lower half are fixed.
    #[allow(clippy::cast_precision_loss)]
    let scaled = (bits & 0xffff_ffff) as f64 / f64::from(u32::MAX);
    scaled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_limit_and_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<Duration> = (0..8).map(|_| backoff.pause()).collect();
        for (pause, most) in pauses.iter().zip([100, 200, 400, 800, 1_000, 1_000, 1_000, 1_000]) {
            let most = Duration::from_millis(most);
            assert!(*pause <= most && *pause >= most / 2, "{pauses:?}");
        }
        assert!(pauses[4..].iter().any(|pause| *pause != pauses[4]), "{pauses:?}");
    }
}
