//! What was done, in figures.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of a build, or of all of them.
#[derive(Debug, Default)]
pub struct Counts {
    pub(crate) steps: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) performed: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) fetched: AtomicU64,
    pub(crate) pins: AtomicU64,
    pub(crate) contents: AtomicU64,
    pub(crate) found: AtomicU64,
    pub(crate) stale: AtomicU64,
}

/// What was done until a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Operations in the graphs.
    pub steps: u64,
    /// Those whose result was known.
    pub hits: u64,
    /// Those that were done.
    pub performed: u64,
    /// Those that another build was just doing.
    pub joined: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those whose result was brought from another cache.
    pub fetched: u64,
    /// Sources that were asked for.
    pub pins: u64,
    /// Digests of contents that were made.
    pub contents: u64,
    /// Results that were looked up at the worker.
    pub found: u64,
    /// Records whose result was gone.
    pub stale: u64,
}

impl Counts {
    /// As they are now.
    pub fn now(&self) -> Figures {
        Figures {
            steps: self.steps.load(Relaxed),
            hits: self.hits.load(Relaxed),
            performed: self.performed.load(Relaxed),
            joined: self.joined.load(Relaxed),
            failed: self.failed.load(Relaxed),
            fetched: self.fetched.load(Relaxed),
            pins: self.pins.load(Relaxed),
            contents: self.contents.load(Relaxed),
            found: self.found.load(Relaxed),
            stale: self.stale.load(Relaxed),
        }
    }
}
