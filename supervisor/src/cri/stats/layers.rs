//! What containers have written to their layers. To know it, a snapshotter looks at every file, so that an answer serves for a while:
//! the longer the look took, the longer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use proto::kind::chain;
use tracing::debug;

use crate::snapshots::{SnapshotError, Usage};

/// For how long an answer serves at least.
const FRESH: Duration = Duration::from_secs(10);
/// And how many times longer than it took: no more than one fiftieth of a processor is spent on it, whoever asks how often.
const SPARE: u32 = 50;

/// What a layer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) usage: Usage,
    /// Nanoseconds since the epoch.
    pub(super) at: i64,
    until: Instant,
}

/// What is known of one layer; who measures it holds the lock, so that others wait for that, not do the same.
type Slot = Arc<Mutex<Option<Measured>>>;

/// What is known of layers.
#[derive(Default)]
pub(super) struct Layers(Mutex<HashMap<String, Slot>>);

impl Layers {
    /// What a container's layer takes; `None` if it can't be measured.
    pub(super) fn usage(&self, id: &str, measure: impl FnOnce() -> Result<Usage, SnapshotError>) -> Option<Measured> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default().clone();
        let mut known = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        if known.is_none_or(|known| known.until <= began) {
            *known = match measure() {
                Ok(usage) => {
                    let done = Instant::now();
                    Some(Measured {
                        usage,
                        at: super::super::pods::now(),
                        until: done + FRESH.max((done - began) * SPARE),
                    })
                }
                Err(error) => {
                    debug!(id, error = %chain(&error), "layer not measured");
                    None
                }
            };
        }
        *known
    }

    /// Forgets all but these.
    pub(super) fn keep(&self, living: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| living(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_measured_once_for_many_who_ask() {
        let layers = Layers::default();
        let usage = Usage { bytes: 7, inodes: 1 };
        let count = Mutex::new(0);
        let ask = |id: &str| {
            layers.usage(id, || {
                *count.lock().unwrap() += 1;
                Ok(usage)
            })
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(ask("a").map(|measured| measured.usage), Some(usage)));
            }
        });
        assert_eq!(*count.lock().unwrap(), 1);
        assert!(layers.usage("b", || Err(SnapshotError::NotFound("b".into()))).is_none());
        assert!(ask("b").is_some(), "a failure isn't kept");
        layers.keep(|id| id == "b");
        ask("b");
        ask("a");
        assert_eq!(*count.lock().unwrap(), 3);
    }

    #[test]
    fn what_took_long_serves_long() {
        let layers = Layers::default();
        let before = Instant::now();
        let slow = || {
            std::thread::sleep(Duration::from_millis(300));
            Ok(Usage::default())
        };
        let measured = layers.usage("a", slow).unwrap();
        assert!(measured.until >= before + Duration::from_millis(300) * SPARE);
        assert!(measured.at > 0);
    }
}
