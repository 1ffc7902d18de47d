//! When to collect: soon after deletions, once many changes have piled up, when something is due to expire, and shortly
//! after the start. One task waits for the next such moment; an idle supervisor sleeps until the next expiry, if any.
//!
//! The thresholds are those of containerd's scheduler, with the same names.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Collector, lock};
use crate::app::Draining;

/// As good as never, and no overflow.
const FAR: Duration = Duration::from_secs(365 * 86_400);

/// When the collector runs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GcConfig {
    /// From a deletion, or from too many changes, to the collection: deletions come in bursts, and one does for all.
    pub(crate) schedule_delay: Duration,
    /// From the start of service to the first collection.
    pub(crate) startup_delay: Duration,
    /// Deletions that lead to a collection; with 0, as with 1, each does.
    pub(crate) deletion_threshold: u32,
    /// Changes of any kind that lead to a collection; 0: changes alone never do.
    pub(crate) mutation_threshold: u32,
    /// The share of time that collections may take, in percent; a long one delays the next.
    pub(crate) pause_percent: u8,
}

impl Default for GcConfig {
    fn default() -> Self {
        Self {
            schedule_delay: Duration::from_millis(500),
            startup_delay: Duration::from_millis(100),
            deletion_threshold: 0,
            mutation_threshold: 100,
            pause_percent: 2,
        }
    }
}

/// What has happened since the last collection, and what is known about the next.
#[derive(Debug, Default)]
pub(super) struct Pending {
    deletions: u32,
    mutations: u32,
    // When the last collection ended, and how long it took.
    last: Option<(Instant, Duration)>,
    // When something expires.
    due: Option<Instant>,
    // Since when there is a reason to collect.
    wanted: Option<Instant>,
}

impl Pending {
    /// Everything up to now is collected; `due` is when the next thing expires.
    pub(super) fn done(&mut self, took: Duration, due: Option<Duration>) {
        let now = Instant::now();
        // A moment later, so that it has really passed.
        let due = due.map(|wait| now + wait.min(FAR) + Duration::from_millis(10));
        *self = Self { last: Some((now, took)), due, ..Self::default() };
    }

    /// When to collect next.
    fn next(&self, config: &GcConfig) -> Option<Instant> {
        let wanted = self.wanted.map(|since| since + config.schedule_delay);
        let at = [wanted, self.due].into_iter().flatten().min()?;
        let percent = u32::from(config.pause_percent.min(50));
        let rest = self.last.filter(|_| percent > 0).map(|(ended, took)| ended + took * (100 - percent) / percent);
        Some(rest.map_or(at, |rest| at.max(rest)))
    }
}

impl Collector {
    /// Begins to collect by itself, until the end begins. A collection that runs then is ended too.
    pub(crate) fn start(self: &Arc<Self>, config: GcConfig, draining: Draining) {
        lock(&self.pending).due = Some(Instant::now() + config.startup_delay);
        *lock(&self.config) = config;
        let collector = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = collector.keep_collecting() => {}
                () = draining.begun() => collector.cancelled.store(true, Ordering::Release),
            }
        });
    }

    /// Something was deleted: there may be something to collect.
    pub(crate) fn schedule(&self) {
        self.note(true);
    }

    /// Something was made or changed.
    pub(crate) fn changed(&self) {
        self.note(false);
    }

    /// Something expires at `at`, if it does: not later than that, it is looked after.
    pub(crate) fn expires_if(&self, at: Option<crate::store::Time>) {
        let Some(at) = at else { return };
        let at = Instant::now() + at.until().min(FAR) + Duration::from_millis(10);
        let mut pending = lock(&self.pending);
        if pending.due.is_none_or(|due| at < due) {
            pending.due = Some(at);
            self.wake.notify_one();
        }
    }

    fn note(&self, deletion: bool) {
        let config = *lock(&self.config);
        let mut pending = lock(&self.pending);
        pending.mutations = pending.mutations.saturating_add(1);
        pending.deletions = pending.deletions.saturating_add(u32::from(deletion));
        let enough = (deletion && pending.deletions >= config.deletion_threshold.max(1))
            || (config.mutation_threshold > 0 && pending.mutations >= config.mutation_threshold);
        if enough && pending.wanted.is_none() {
            pending.wanted = Some(Instant::now());
            self.wake.notify_one();
        }
    }

    async fn keep_collecting(self: &Arc<Self>) {
        loop {
            let next = lock(&self.pending).next(&lock(&self.config));
            let moment = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = moment => {}
                // The next moment may have become another.
                () = self.wake.notified() => continue,
            }
            let collector = self.clone();
            match tokio::task::spawn_blocking(move || collector.collect()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %proto::kind::chain(&error), "garbage collection failed");
                    // Tried again with the next deletion, and in any case after a while.
                    lock(&self.pending).done(Duration::ZERO, Some(Duration::from_secs(60)));
                }
                Err(error) => {
                    tracing::error!(%error, "garbage collection met a bug");
                    lock(&self.pending).done(Duration::ZERO, Some(Duration::from_secs(600)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_moment() {
        let config = GcConfig::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let next = |pending: Pending| pending.next(&config).map(|at| at.saturating_duration_since(now));
        assert_eq!(next(Pending::default()), None);
        assert_eq!(next(Pending { wanted: Some(now), ..Pending::default() }), Some(config.schedule_delay));
        let both = Pending { wanted: Some(now), due: Some(now + second / 10), ..Pending::default() };
        assert_eq!(next(both), Some(second / 10));
        // One that took a second has 49 seconds of rest after it: two percent of the time.
        let busy = Pending { wanted: Some(now), last: Some((now, second)), ..Pending::default() };
        assert!(next(busy).is_some_and(|wait| wait.abs_diff(49 * second) < second));
        let quick = Pending { wanted: Some(now), last: Some((now, second / 1000)), ..Pending::default() };
        assert_eq!(next(quick), Some(config.schedule_delay));
    }
}
