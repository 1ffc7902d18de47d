//! Points in time as the Docker API writes them: RFC 3339 with nanoseconds in inspect, unix seconds in lists.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Nanoseconds since 1970 (UTC), or "never" (year 1, as Go writes an unset time).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(Option<i128>);

/// A text that is no point in time.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a timestamp")]
pub struct TimestampError(String);

impl Timestamp {
    /// Never happened: `0001-01-01T00:00:00Z`.
    pub const NEVER: Self = Self(None);

    /// The present moment.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From seconds and nanoseconds since 1970.
    pub fn from_parts(seconds: i64, nanos: i64) -> Self {
        Self(Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)))
    }

    /// Whether it ever happened.
    pub fn is_set(self) -> bool {
        self.0.is_some()
    }

    /// Whole seconds since 1970; for "never" what Go's `Time{}.Unix()` gives.
    pub fn seconds(self) -> i64 {
        self.0.map_or(-62_135_596_800, |n| n.div_euclid(1_000_000_000) as i64)
    }

    /// Nanoseconds within the second.
    pub fn subsec_nanos(self) -> u32 {
        self.0.map_or(0, |n| n.rem_euclid(1_000_000_000) as u32)
    }

    /// Nanoseconds since 1970, 0 for never.
    pub fn nanos(self) -> i64 {
        self.0.unwrap_or(0) as i64
    }

    /// Time gone by since then, zero if it lies ahead or never was.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// `self - earlier`, never negative.
    pub fn since(self, earlier: Self) -> Duration {
        match (self.0, earlier.0) {
            (Some(a), Some(b)) if a > b => Duration::from_nanos((a - b) as u64),
            _ => Duration::ZERO,
        }
    }

    /// With all nine digits of the fraction, as `docker logs --timestamps` prints it.
    pub fn fixed(self) -> String {
        let (y, mo, d, h, mi, s) = self.civil();
        format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{:09}Z", self.subsec_nanos())
    }

    /// Unix seconds with an optional fraction, as `since` and `until` carry them (also RFC 3339).
    pub fn parse_query(text: &str) -> Result<Self, TimestampError> {
        let bad = || TimestampError(text.to_owned());
        if text.contains('T') || text.matches('-').count() >= 2 {
            return text.parse();
        }
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let plain = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || whole.len() > 15 || fraction.len() > 9 || !plain(whole) || !plain(fraction) {
            return Err(bad());
        }
        let seconds: i64 = whole.parse().map_err(|_| bad())?;
        let nanos: i64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
        let sign = if negative { -1 } else { 1 };
        Ok(Self::from_parts(sign * seconds, sign * nanos))
    }

    fn civil(self) -> (i64, u32, u32, u32, u32, u32) {
        let seconds = self.seconds();
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400) as u32;
        let (y, m, d) = civil_of_days(days);
        (y, m, d, of_day / 3600, of_day / 60 % 60, of_day % 60)
    }
}

/// Days since 1970 to year, month, day (proleptic Gregorian; eras of 400 years counted from March).
fn civil_of_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_of_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self(Some(after.as_nanos() as i128)),
            Err(before) => Self(Some(-(before.duration().as_nanos() as i128))),
        }
    }
}

impl From<prost_types::Timestamp> for Timestamp {
    fn from(time: prost_types::Timestamp) -> Self {
        Self::from_parts(time.seconds, i64::from(time.nanos))
    }
}

/// RFC 3339 with as many digits of the fraction as are needed (Go's RFC3339Nano).
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (y, mo, d, h, mi, s) = self.civil();
        write!(f, "{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}")?;
        if self.subsec_nanos() != 0 {
            let digits = format!("{:09}", self.subsec_nanos());
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse_rfc3339(text).ok_or_else(|| TimestampError(text.chars().take(60).collect()))
    }
}

fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    if !text.is_ascii() {
        return None;
    }
    let (date, rest) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00Z"));
    let mut parts = date.split('-');
    let year: i64 = parts.next()?.parse().ok()?;
    let month: u32 = parts.next()?.parse().ok()?;
    let day: u32 = parts.next()?.parse().ok()?;
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(0..=9999).contains(&year) {
        return None;
    }
    let zone_at = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.split(':');
    let hour: i64 = parts.next()?.parse().ok()?;
    let minute: i64 = parts.next()?.parse().ok()?;
    let second: i64 = parts.next().unwrap_or("0").parse().ok()?;
    if !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..61).contains(&second) {
        return None;
    }
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{:0<9}", &fraction[..fraction.len().min(9)]).parse().ok()?;
    let offset = match zone {
        "" | "Z" | "z" => 0,
        _ => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let (h, m) = zone[1..].split_once(':')?;
            sign * (h.parse::<i64>().ok()? * 3600 + m.parse::<i64>().ok()? * 60)
        }
    };
    let seconds = days_of_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    let time = Timestamp::from_parts(seconds, nanos);
    Some(if seconds == Timestamp::NEVER.seconds() && nanos == 0 { Timestamp::NEVER } else { time })
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        assert_eq!(Timestamp::NEVER.to_string(), "0001-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_parts(0, 0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_parts(951_782_400, 120_000_000).to_string(), "2000-02-29T00:00:00.12Z");
        assert_eq!(Timestamp::from_parts(1, 5).fixed(), "1970-01-01T00:00:01.000000005Z");
        assert_eq!("2000-02-29T01:00:00+01:00".parse::<Timestamp>().unwrap().seconds(), 951_782_400);
        assert_eq!("0001-01-01T00:00:00Z".parse::<Timestamp>().unwrap(), Timestamp::NEVER);
    }

    #[test]
    fn query_forms() {
        assert_eq!(Timestamp::parse_query("12.5").unwrap(), Timestamp::from_parts(12, 500_000_000));
        assert_eq!(Timestamp::parse_query("-1").unwrap(), Timestamp::from_parts(-1, 0));
        assert_eq!(Timestamp::parse_query("1970-01-01T00:00:07Z").unwrap(), Timestamp::from_parts(7, 0));
        for bad in ["", "x", "1.x", "1.1234567890", "--1", "é"] {
            assert!(Timestamp::parse_query(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(seconds in -50_000_000_000i64..200_000_000_000, nanos in 0i64..1_000_000_000) {
            let time = Timestamp::from_parts(seconds, nanos);
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
            prop_assert_eq!(time.fixed().parse::<Timestamp>().unwrap(), time);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Timestamp>();
            let _ = Timestamp::parse_query(&text);
        }
    }
}
