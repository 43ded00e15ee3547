//! Who waits for work, and who is told that there is some.
//!
//! A claim that found nothing waits here. A run that this process makes or requeues wakes the claim that has waited
//! longest in its lane, and no other: a thousand of them would race for one run. What other processes make, and what
//! becomes due, is found by looking again from time to time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lastbeat_domain::Name;
use tokio::sync::oneshot;

/// The claims that wait.
#[derive(Default)]
pub(crate) struct Work(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    lanes: Vec<Name>,
    wake: oneshot::Sender<()>,
}

/// A place in the queue; it is left when this is dropped.
pub(crate) struct Place<'a> {
    work: &'a Work,
    number: u64,
    woken: oneshot::Receiver<()>,
}

impl Work {
    /// Takes a place behind all others.
    pub(crate) fn wait_in(&self, lanes: &[Name]) -> Place<'_> {
        let (wake, woken) = oneshot::channel();
        let mut queue = self.lock();
        queue.next += 1;
        let number = queue.next;
        queue.waiting.insert(number, Waiting { lanes: lanes.to_vec(), wake });
        Place { work: self, number, woken }
    }

    /// Says that a run waits in a lane.
    pub(crate) fn arrived(&self, lane: &Name) {
        let mut queue = self.lock();
        let first = queue.waiting.iter().find(|(_, waiting)| waiting.lanes.contains(lane)).map(|(number, _)| *number);
        if let Some(waiting) = first.and_then(|number| queue.waiting.remove(&number)) {
            let _ = waiting.wake.send(());
        }
    }

    /// Returns how many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Completes when there is work.
    pub(crate) async fn woken(&mut self) {
        if (&mut self.woken).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.work.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[tokio::test]
    async fn work_wakes_the_first_that_waits_in_its_lane_and_no_other() {
        let work = Work::default();
        let mut elsewhere = work.wait_in(&[name("sync")]);
        let mut first = work.wait_in(&[name("other"), name("watcher")]);
        let mut second = work.wait_in(&[name("watcher")]);
        work.arrived(&name("watcher"));
        first.woken().await;
        assert!(elsewhere.woken.try_recv().is_err() && second.woken.try_recv().is_err());
        work.arrived(&name("watcher"));
        second.woken().await;
        drop(elsewhere);
        assert_eq!(work.len(), 0);
    }
}
