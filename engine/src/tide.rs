//! Memory after a rush of clients. What many connections at once needed is free when they have gone, but lies in pieces between
//! what is in use, where malloc keeps it for good: it is given back to the kernel when most have gone.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Fewer connections than these at once are no rush.
const RUSH: u64 = 64;
/// What the tasks behind a connection hold goes a little later than the connection.
const LATER: Duration = Duration::from_secs(1);

/// How many connections there were at once since memory was given back.
#[derive(Debug, Default)]
pub struct Tide {
    highest: AtomicU64,
    ebbing: AtomicBool,
}

impl Tide {
    /// There are so many connections, one of them new.
    pub fn rises(&self, connections: u64) {
        self.highest.fetch_max(connections, Relaxed);
    }

    /// There are so many left. Whether a rush is over with that, which is told once.
    pub fn falls(&self, connections: u64) -> bool {
        let highest = self.highest.load(Relaxed);
        let over = highest >= RUSH && connections <= highest / 4;
        over && !self.ebbing.swap(true, Relaxed)
    }

    /// Gives free memory back, once those who have gone really have.
    pub async fn ebb(&self, connections: &AtomicU64) {
        tokio::time::sleep(LATER).await;
        self.settle(connections.load(Relaxed));
        // It takes the locks of the heaps for milliseconds.
        let _ = tokio::task::spawn_blocking(sys::memory::trim_heap).await;
    }

    fn settle(&self, connections: u64) {
        self.highest.store(connections, Relaxed);
        self.ebbing.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rush_is_over_once_and_can_come_again() {
        let tide = Tide::default();
        tide.rises(63);
        assert!(!tide.falls(0), "63 are no rush");
        for _ in 0..2 {
            tide.rises(100);
            assert!(!tide.falls(26), "a quarter is 25");
            assert!(tide.falls(25));
            assert!(!tide.falls(24), "told once");
            tide.settle(0);
            assert!(!tide.falls(0), "that was the last rush");
        }
    }
}
