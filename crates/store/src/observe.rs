//! What a store tells of its commits while it writes, to whoever keeps figures.
//!
//! It is told after the commit and before the answers, by the task that writes: an observer counts and returns.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lastbeat_domain::event::{ServiceEvent, Signal};
use lastbeat_domain::{Name, Rule};

/// A commit that went through.
#[derive(Debug)]
pub struct Commit<'a> {
    /// How many commands it carried out.
    pub commands: usize,
    /// How long it took, from the beginning of its transaction to its end, repetitions included.
    pub took: Duration,
    /// What it appended that is worth a figure.
    pub noted: &'a [Noted],
}

/// Something that was appended.
#[derive(Clone, Debug, PartialEq)]
pub enum Noted {
    /// A run was reaped, by a sweeper or by hand.
    Reaped {
        /// Its lane.
        lane: Name,
        /// The rule under which it lapsed.
        rule: Rule,
    },
    /// An executor said something after its run was reaped.
    LateSignal {
        /// The lane of the run.
        lane: Name,
        /// What it said.
        signal: Signal,
    },
    /// A fact of the service.
    Service(ServiceEvent),
}

/// Somebody who keeps figures.
pub trait Observer: Send + Sync {
    /// Is told of a commit of this process.
    fn committed(&self, commit: &Commit<'_>);
}

/// The observer of a store, once there is one.
#[derive(Clone, Default)]
pub(crate) struct Observed(Arc<OnceLock<Arc<dyn Observer>>>);

impl Observed {
    /// Lets an observer be told from now on; the first one stays.
    pub(crate) fn by(&self, observer: Arc<dyn Observer>) {
        let _ = self.0.set(observer);
    }

    pub(crate) fn tell(&self, commands: usize, took: Duration, noted: &[Noted]) {
        if let Some(observer) = self.0.get() {
            observer.committed(&Commit { commands, took, noted });
        }
    }
}
