//! Waiting for a condition instead of sleeping.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Tries `probe` until it gives a value; panics naming `what` after 20 seconds.
#[track_caller]
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    eventually_within(Duration::from_secs(20), what, probe)
}

/// Tries `probe` until it gives a value; panics naming `what` after `limit`.
#[track_caller]
pub fn eventually_within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(begun.elapsed() < limit, "waited {limit:?} in vain: {what}");
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
