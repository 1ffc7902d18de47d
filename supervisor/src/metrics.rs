//! What is counted, for Prometheus. Counters are plain atomics that any part of the program adds to; states are asked for
//! when somebody looks. Nothing here runs while nobody does.

mod calls;
mod scrape;
mod text;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

pub(crate) use calls::{Calls, CallsLayer};
pub(crate) use scrape::{Door, MetricsError, Sources, bind, serve};

/// The counters of this process.
pub(crate) static METRICS: Metrics = Metrics::new();

/// Counters of things that happen.
pub(crate) struct Metrics {
    /// Calls of the API.
    pub(crate) calls: Calls,
    pulls: [AtomicU64; 2],
    fetched: AtomicU64,
    collections: [AtomicU64; 2],
    collecting: AtomicU64,
    collected: [AtomicU64; 3],
    events: AtomicU64,
    cut_off: AtomicU64,
}

impl Metrics {
    const fn new() -> Self {
        const fn zeros<const N: usize>() -> [AtomicU64; N] {
            [const { AtomicU64::new(0) }; N]
        }
        Self {
            calls: Calls::new(),
            pulls: zeros(),
            fetched: AtomicU64::new(0),
            collections: zeros(),
            collecting: AtomicU64::new(0),
            collected: zeros(),
            events: AtomicU64::new(0),
            cut_off: AtomicU64::new(0),
        }
    }

    /// A pull has ended.
    pub(crate) fn pulled(&self, well: bool) {
        self.pulls[usize::from(!well)].fetch_add(1, Relaxed);
    }

    /// Bytes have come from a registry.
    pub(crate) fn fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Relaxed);
    }

    /// A garbage collection has ended; what it removed (blobs, snapshots, leases), unless it failed.
    pub(crate) fn collected(&self, took: Duration, removed: Option<[usize; 3]>) {
        self.collections[usize::from(removed.is_none())].fetch_add(1, Relaxed);
        self.collecting.fetch_add(took.as_micros() as u64, Relaxed);
        for (counter, count) in self.collected.iter().zip(removed.unwrap_or_default()) {
            counter.fetch_add(count as u64, Relaxed);
        }
    }

    /// An event was published.
    pub(crate) fn event(&self) {
        self.events.fetch_add(1, Relaxed);
    }

    /// A subscriber was too slow.
    pub(crate) fn cut_off(&self) {
        self.cut_off.fetch_add(1, Relaxed);
    }
}
