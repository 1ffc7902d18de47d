//! Reckoning with the times that labels and records hold.

use std::time::{Duration, SystemTime};

use crate::store::Time;

impl Time {
    /// The moment that a protocol message or a label names.
    pub(crate) fn from_proto(at: prost_types::Timestamp) -> Self {
        // One before 1970 or behind the end of the clock's range is as good as the beginning.
        Self::from(SystemTime::try_from(at).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// The moment so much later.
    pub(crate) fn after(self, wait: Duration) -> Self {
        let at = SystemTime::try_from(self.to_proto()).unwrap_or(SystemTime::UNIX_EPOCH);
        at.checked_add(wait).map_or(self, Self::from)
    }

    /// How long it is until then; zero for what is past.
    pub(crate) fn until(self) -> Duration {
        // By the clock that expiry is judged by: by another, what is over there and not here would be asked for without end.
        let at = |time: Self| SystemTime::try_from(time.to_proto()).unwrap_or(SystemTime::UNIX_EPOCH);
        at(self).duration_since(at(Self::for_expiry())).unwrap_or_default()
    }
}
