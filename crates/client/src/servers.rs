//! The servers, and which of them is asked: the last that answered.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Url;

#[derive(Debug)]
pub(crate) struct Servers {
    all: Vec<Url>,
    preferred: AtomicUsize,
}

impl Servers {
    pub(crate) fn new(all: Vec<Url>) -> Servers {
        Servers { all, preferred: AtomicUsize::new(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the number of the server that is asked first.
    pub(crate) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self, number: usize) -> &Url {
        &self.all[number % self.all.len()]
    }

    /// Prefers the next server from now on, unless somebody else has moved on from `failed` already.
    pub(crate) fn move_on(&self, failed: usize) {
        let next = (failed + 1) % self.all.len();
        let _ = self.preferred.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Names them all.
    pub(crate) fn addresses(&self) -> String {
        let addresses: Vec<&str> = self.all.iter().map(|url| url.as_str().trim_end_matches('/')).collect();
        addresses.join(", ")
    }
}
