//! The clocks: one from which log time is drawn, and one that never jumps, to catch the first at it.

use std::time::{SystemTime, UNIX_EPOCH};

use lastbeat_domain::{Span, Timestamp};

/// The clocks of the store's host.
pub trait Clock: Send + Sync {
    /// Reads the clock that says what time it is. It may jump and run backwards; log time does not.
    fn now(&self) -> Timestamp;

    /// Reads the boottime clock: how long the host has been up, sleep included. It only goes forward, steadily.
    fn boottime(&self) -> Span;
}

/// The host's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Timestamp::from_micros(micros)
    }

    fn boottime(&self) -> Span {
        // Other systems than Linux have no such clock by this name; theirs stands still while the host sleeps, which a
        // gap covers.
        #[cfg(target_os = "linux")]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = rustix::time::ClockId::Monotonic;
        let time = rustix::time::clock_gettime(clock);
        let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
        Span::from_micros(seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000))
    }
}
