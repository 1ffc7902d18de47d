//! Periods of time as the configuration writes them: a number and a unit.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A span of time: `500ms`, `10s`, `5m`, `24h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

/// Unit and its length in milliseconds, longest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Longest period: what is longer is a slip of the pen.
const LONGEST: u64 = 10 * 365 * 24 * 3_600_000;

impl Period {
    /// A period of seconds.
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let length = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length);
        let milliseconds = length.zip(number.parse().ok()).and_then(|(length, n)| length.checked_mul(n));
        match milliseconds.filter(|ms| *ms <= LONGEST) {
            Some(ms) => Ok(Self(Duration::from_millis(ms))),
            None => Err(format!("{text:?} is not a period of at most ten years, such as 500ms, 10s, 5m or 24h")),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis() as u64;
        let (name, length) = UNITS.into_iter().find(|(_, length)| ms.is_multiple_of(*length)).unwrap_or(("ms", 1));
        // Nothing is divisible by everything, yet nobody writes "0h".
        if ms == 0 { f.write_str("0s") } else { write!(f, "{}{name}", ms / length) }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_and_written_alike() {
        for (text, ms) in
            [("0s", 0), ("1ms", 1), ("1500ms", 1500), ("90s", 90_000), ("5m", 300_000), ("24h", 86_400_000)]
        {
            let period: Period = text.parse().unwrap();
            assert_eq!((period.0.as_millis(), period.to_string().as_str()), (ms, text));
        }
        for text in ["", "5", "s", "-1s", "1.5s", "1 s", "1d", "99999999h", "99999999999999999999s"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }
}
