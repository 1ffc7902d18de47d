//! How busy something is just now, from what it had used when somebody asked last.

use std::time::{Duration, Instant};

/// What is used in less than this says little: the kernel counts a running thread from tick to tick.
const SHORTEST: Duration = Duration::from_millis(500);

/// The last sample of something that uses processors.
#[derive(Debug, Default)]
pub(super) struct Rate {
    last: Option<(Instant, u64)>,
    nano_cores: Option<u64>,
}

impl Rate {
    /// Takes a sample of nanoseconds, and tells nanoseconds per second since the one before; `None` for the first one.
    pub(super) fn note(&mut self, at: Instant, usage: u64) -> Option<u64> {
        let Some((then, before)) = self.last else {
            self.last = Some((at, usage));
            return None;
        };
        let elapsed = at.saturating_duration_since(then);
        // Of several who ask at once the first one's answer is everybody's.
        if elapsed < SHORTEST {
            return self.nano_cores;
        }
        self.last = Some((at, usage));
        // A sum goes backwards when what was in it ends.
        let used = usage.checked_sub(before).map(|used| u128::from(used) * 1_000_000_000 / elapsed.as_nanos());
        self.nano_cores = used.and_then(|used| u64::try_from(used).ok());
        self.nano_cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        let mut note = |millis, usage| rate.note(start + Duration::from_millis(millis), usage);
        assert_eq!(note(0, 1_000), None);
        assert_eq!(note(100, 1_000_000), None, "too early to tell");
        assert_eq!(note(2000, 3_000_001_000), Some(1_500_000_000), "one and a half processors");
        assert_eq!(note(2100, 3_000_002_000), Some(1_500_000_000), "just told");
        assert_eq!(note(4000, 3_000_001_000), Some(0));
        assert_eq!(note(5000, 1_000), None, "what it was of has ended");
        assert_eq!(note(6000, 500_001_000), Some(500_000_000));
    }
}
