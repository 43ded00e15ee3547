//! What the handlers share.

use std::ops::Deref;
use std::sync::Arc;

use lastbeat_store::Store;

use crate::limits::Limits;
use crate::shutdown::Shutdown;

/// What the handlers share; cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

/// The parts of an [`App`].
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    /// Once it begins, streams end, and nobody waits for work any longer.
    pub(crate) shutdown: Shutdown,
}

impl App {
    pub(crate) fn new(shared: Shared) -> App {
        App(Arc::new(shared))
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> &dyn Store {
        self.0.store.as_ref()
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
