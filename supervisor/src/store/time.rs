//! Moments, as records keep them.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use serde::{Deserialize, Serialize};

/// A moment as records keep it: nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub(crate) struct Time(i64);

impl Time {
    /// This moment.
    pub(crate) fn now() -> Self {
        SystemTime::now().into()
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

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().min(i64::MAX as u128) as i64))
    }
}
