//! Moments, as records keep them.

use std::{
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use prost_types::Timestamp;
use serde::{Deserialize, Serialize};

/// A moment as records keep it: nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub(crate) struct Time(i64);

impl Time {
    /// This moment.
    pub(crate) fn now() -> Self {
        clock().into()
    }

    /// This moment, for the question whether something has expired: the clock's, but not later than it would be if nobody
    /// had set it since this process began. A clock that jumps ahead ends nothing before its time; one that is set right
    /// at last, or jumps back, lets things live longer, until the next start at most.
    pub(crate) fn for_expiry() -> Self {
        static BEGAN: OnceLock<(SystemTime, Instant)> = OnceLock::new();
        let (wall, steady) = *BEGAN.get_or_init(|| (SystemTime::now(), Instant::now()));
        clock().min(wall + steady.elapsed()).into()
    }

    /// How long before `for_expiry` a file was last written to.
    pub(crate) fn since(at: SystemTime) -> std::time::Duration {
        let nanoseconds = Self::for_expiry().0.saturating_sub(Self::from(at).0);
        std::time::Duration::from_nanos(nanoseconds.max(0).unsigned_abs())
    }

    /// The moment as protocol messages carry it.
    pub(crate) fn to_proto(self) -> Timestamp {
        Timestamp { seconds: self.0.div_euclid(1_000_000_000), nanos: self.0.rem_euclid(1_000_000_000) as i32 }
    }

    /// How long ago this was; zero for a moment still to come.
    pub(crate) fn age(self) -> std::time::Duration {
        std::time::Duration::from_nanos(Self::now().0.saturating_sub(self.0).max(0) as u64)
    }
}

#[cfg(not(test))]
fn clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
thread_local! {
    /// How far this thread's clock is set ahead, in seconds; back, if negative.
    pub(crate) static SET: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
fn clock() -> SystemTime {
    let set = std::time::Duration::from_secs(SET.get().unsigned_abs());
    if SET.get() < 0 { SystemTime::now() - set } else { SystemTime::now() + set }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().min(i64::MAX as u128) as i64))
    }
}
