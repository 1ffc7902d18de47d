//! Times: docker's spellings of them, and what --since and --until accept.

use jiff::{Timestamp, Zoned, civil::DateTime, fmt::strtime, tz::TimeZone};

/// A time that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value for {name:?}: failed to parse value as time or duration: {text:?}")]
pub struct TimeError {
    name: &'static str,
    text: String,
}

/// "2026-11-21 00:51:07 +0000 UTC", as Go prints a time.
pub fn go_time(seconds: i64) -> String {
    match local(seconds) {
        Some(time) => strtime::format("%Y-%m-%d %H:%M:%S %z %Z", &time).unwrap_or_default(),
        None => seconds.to_string(),
    }
}

/// The same with its fraction of a second, from RFC 3339; other text stays as it is.
pub fn go_time_of(text: &str) -> String {
    let Ok(time) = text.parse::<Timestamp>() else { return text.to_owned() };
    strtime::format("%Y-%m-%d %H:%M:%S%.f %z %Z", &time.to_zoned(TimeZone::UTC)).unwrap_or_default()
}

/// RFC 3339, local zone.
pub fn rfc3339(seconds: i64) -> String {
    let Some(time) = local(seconds) else { return seconds.to_string() };
    let offset = strtime::format("%:z", &time).unwrap_or_default();
    let zone = if offset == "+00:00" { "Z" } else { &offset };
    format!("{}{zone}", strtime::format("%Y-%m-%dT%H:%M:%S", &time).unwrap_or_default())
}

/// RFC 3339 with nine digits of nanoseconds, local zone.
pub fn nanos(total: i128) -> String {
    let Ok(time) = Timestamp::from_nanosecond(total) else { return total.to_string() };
    let time = time.to_zoned(TimeZone::system());
    let offset = strtime::format("%:z", &time).unwrap_or_default();
    let zone = if offset == "+00:00" { "Z" } else { &offset };
    format!("{}{zone}", strtime::format("%Y-%m-%dT%H:%M:%S.%9f", &time).unwrap_or_default())
}

/// "Thu May  7 21:09:36 2026", from RFC 3339; other text stays as it is.
pub fn ansi(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(time) => strtime::format("%a %b %e %H:%M:%S %Y", &time.to_zoned(TimeZone::system())).unwrap_or_default(),
        Err(_) => text.to_owned(),
    }
}

/// Seconds since the epoch, from RFC 3339.
pub fn seconds_of(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// Now, in seconds since the epoch.
pub fn now() -> i64 {
    Timestamp::now().as_second()
}

/// A point in time as the API wants it: "seconds.nanoseconds".
pub fn point(name: &'static str, text: &str) -> Result<String, TimeError> {
    point_at(name, text, Timestamp::now())
}

fn point_at(name: &'static str, text: &str, now: Timestamp) -> Result<String, TimeError> {
    let bad = || TimeError { name, text: text.to_owned() };
    // "0" is the beginning of time, as in docker, and not "no time ago".
    if let Ok(ago) = crate::args::values::duration(text)
        && text != "0"
    {
        return stamp(now.as_nanosecond() - i128::from(ago.0)).ok_or_else(bad);
    }
    // Seconds since the epoch go to the engine as they are.
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |t: &str| !t.is_empty() && t.len() <= 19 && t.bytes().all(|b| b.is_ascii_digit());
    if digits(seconds.strip_prefix('-').unwrap_or(seconds)) && digits(fraction) && seconds.len() != 4 {
        return Ok(text.to_owned());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return stamp(time.as_nanosecond()).ok_or_else(bad);
    }
    let complete = match text.len() {
        4 => format!("{text}-01-01"),
        7 => format!("{text}-01"),
        13 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    let time = complete.parse::<DateTime>().map_err(|_| bad())?;
    let time = time.to_zoned(TimeZone::system()).map_err(|_| bad())?;
    stamp(time.timestamp().as_nanosecond()).ok_or_else(bad)
}

fn stamp(nanos: i128) -> Option<String> {
    (nanos >= 0).then(|| format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000))
}

fn local(seconds: i64) -> Option<Zoned> {
    Timestamp::from_second(seconds).ok().map(|t| t.to_zoned(TimeZone::system()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (text, point) in [
            ("10m", "999400.000000000"),
            ("0", "0"),
            ("1700000000", "1700000000"),
            ("1700000000.5", "1700000000.5"),
            ("2013-01-02T13:23:37Z", "1357133017.000000000"),
            ("2013-01-02T13:23:37.25+01:00", "1357129417.250000000"),
        ] {
            assert_eq!(point_at("since", text, now).as_deref(), Ok(point), "{text}");
        }
        for text in ["", "yesterday", "2013-13-01"] {
            assert!(point_at("since", text, now).is_err(), "{text}");
        }
        // Without a zone it is local time, so that only the length is known here.
        assert!(point_at("since", "2013-01-02", now).is_ok() && point_at("since", "2013-01-02T10:00", now).is_ok());
    }
}
