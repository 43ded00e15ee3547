//! The clocks of a store whose log time is drawn from the database's clock.

use std::sync::Arc;

use lastbeat_domain::{Span, Timestamp};

use crate::clock::{Clock, SystemClock};

/// The database's clock, with this host's boottime clock to catch it at jumping; or, in tests, simulated ones.
#[derive(Clone)]
pub(super) struct PgClock(Option<Arc<dyn Clock>>);

impl PgClock {
    pub(super) fn new(simulated: Option<Arc<dyn Clock>>) -> PgClock {
        PgClock(simulated)
    }

    /// What a simulated clock says, in microseconds; `None`: the database is to read its own.
    pub(super) fn simulated(&self) -> Option<i64> {
        self.0.as_ref().map(|clock| clock.now().as_micros())
    }

    pub(super) fn boottime(&self) -> Span {
        self.host().boottime()
    }

    /// Returns this host's clocks: what they say of the time is not log time.
    pub(super) fn host(&self) -> Arc<dyn Clock> {
        self.0.clone().unwrap_or_else(|| Arc::new(SystemClock))
    }

    /// Returns what the host's clock says.
    pub(super) fn now(&self) -> Timestamp {
        self.host().now()
    }
}
