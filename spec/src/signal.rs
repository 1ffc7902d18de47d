//! Names of signals. Pure.

use nix::sys::signal::Signal;

/// A name that no signal has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid signal: {}", .0.escape_debug())]
pub struct UnknownSignal(String);

/// First and last real-time signal as the C library counts them.
const REAL_TIME: std::ops::RangeInclusive<u32> = 34..=64;

/// Reads `9`, `KILL`, `SIGKILL`, `RTMIN+3`.
pub fn parse(text: &str) -> Result<u32, UnknownSignal> {
    let bad = || UnknownSignal(text.to_owned());
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (1..=*REAL_TIME.end()).contains(n)).ok_or_else(bad);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = bare.strip_prefix("RTM") {
        let (base, rest) = match rest.strip_prefix("IN") {
            Some(rest) => (i64::from(*REAL_TIME.start()), rest),
            None => (i64::from(*REAL_TIME.end()), rest.strip_prefix("AX").ok_or_else(bad)?),
        };
        let offset = if rest.is_empty() { 0 } else { rest.parse::<i64>().map_err(|_| bad())? };
        return u32::try_from(base + offset).ok().filter(|n| REAL_TIME.contains(n)).ok_or_else(bad);
    }
    let name = match bare {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    format!("SIG{name}").parse::<Signal>().map(|signal| signal as u32).map_err(|_| bad())
}

/// `SIGTERM` for 15; real-time signals by their number.
pub fn name(signal: u32) -> String {
    let known = i32::try_from(signal).ok().and_then(|number| Signal::try_from(number).ok());
    known.map_or_else(|| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cases =
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("CLD", 17), ("HUP", 1)];
        for (text, number) in cases {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "SIG", "NOPE", "RTMIN-1", "RTMAX+1", "-9", "RTM"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
