//! The clock from which log time is drawn.

use std::time::{SystemTime, UNIX_EPOCH};

use lastbeat_domain::Timestamp;

/// A clock that says what time it is on the store's host. It may jump and run backwards; log time does not.
pub trait Clock: Send + Sync {
    /// Reads the clock.
    fn now(&self) -> Timestamp;
}

/// The host's clock.
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
}
