//! The end of a server, as the parts of it see it come.

use tokio::sync::watch;

/// Says whether the server shuts down.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Makes one, and what begins it: `true` sent, or the sender dropped.
    pub(crate) fn channel() -> (watch::Sender<bool>, Shutdown) {
        let (begin, begun) = watch::channel(false);
        (begin, Shutdown(begun))
    }

    /// Says whether it has begun.
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Completes when it begins.
    pub(crate) async fn begins(&self) {
        let _ = self.0.clone().wait_for(|begun| *begun).await;
    }
}
