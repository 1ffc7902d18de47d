//! Points in time as text: RFC 3339 with as many fractional digits as needed, UTC (Go's RFC3339Nano).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A protobuf timestamp.
pub(crate) fn timestamp(at: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(at)
}

/// `2026-11-21T00:56:31.25Z`.
pub(crate) fn rfc3339_nano(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 0000-03-01, counted in eras of 400 years, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if since.subsec_nanos() > 0 {
        let digits = format!(".{:09}", since.subsec_nanos());
        text.push_str(digits.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Reads what [`rfc3339_nano`] wrote; `None` for anything else.
pub(crate) fn parse_rfc3339_nano(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let sane = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sane || hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
        return None;
    }
    let nanos = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse::<u32>().ok()? };
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(UNIX_EPOCH + Duration::new(days * 86_400 + hour * 3_600 + minute * 60 + second, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_instants() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_095_379_198, 750_000_000, "2004-09-16T23:59:58.75Z"),
            (4_107_542_400, 1, "2100-03-01T00:00:00.000000001Z"),
        ] {
            let at = UNIX_EPOCH + Duration::new(seconds, nanos);
            assert_eq!(rfc3339_nano(at), text);
            assert_eq!(parse_rfc3339_nano(text), Some(at));
        }
        for bad in ["", "2000-02-29", "2000-13-01T00:00:00Z", "2000-01-01T00:00:00+01:00", "1-1-1T1:1:1Z"] {
            assert_eq!(parse_rfc3339_nano(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(seconds in 0u64..253_000_000_000, nanos in 0u32..1_000_000_000) {
            let at = UNIX_EPOCH + Duration::new(seconds, nanos);
            prop_assert_eq!(parse_rfc3339_nano(&rfc3339_nano(at)), Some(at));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = parse_rfc3339_nano(&text);
        }
    }
}
