//! Log drivers: `json-file` with rotation, and `none`. Pure.

use super::validate::not_yet;
use crate::{
    api::LogConfig,
    http::{ApiError, ApiResult},
};
use proto::stdio::{LogFile, StdioUri};
use std::path::Path;

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogDriver {
    /// Docker's JSON lines.
    JsonFile {
        /// Bytes after which a new file begins.
        max_size: Option<u64>,
        /// Files kept.
        max_files: u32,
    },
    /// Nowhere.
    None,
}

/// Rotation when nobody chose: a log that grows without end fills the disk (moby#27957 and many more).
const DEFAULT: LogDriver = LogDriver::JsonFile { max_size: Some(20 << 20), max_files: 5 };

/// Reads `LogConfig`.
pub fn parse(config: &LogConfig) -> ApiResult<LogDriver> {
    match config.kind.as_str() {
        "" | "json-file" => {}
        "none" => return Ok(LogDriver::None),
        other => return Err(not_yet(&format!("log driver {other}"))),
    }
    let LogDriver::JsonFile { mut max_size, mut max_files } = DEFAULT else { return Ok(DEFAULT) };
    for (key, value) in &config.config {
        let bad = || ApiError::invalid(format!("invalid value {value:?} for log opt {key}"));
        match key.as_str() {
            "max-size" => max_size = parse_size(value).ok_or_else(bad)?,
            "max-file" => max_files = value.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?,
            "mode" if value == "blocking" => {}
            "compress" if value == "false" => {}
            "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "mode" | "max-buffer-size" | "compress" => {
                return Err(not_yet(&format!("log opt {key}")));
            }
            _ => return Err(ApiError::invalid(format!("unknown log opt '{key}' for json-file log driver"))),
        }
    }
    Ok(LogDriver::JsonFile { max_size, max_files })
}

/// `-1` is unlimited; else a number with an optional unit of 1024s.
fn parse_size(text: &str) -> Option<Option<u64>> {
    if text == "-1" {
        return Some(None);
    }
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match lower.char_indices().last()? {
        (at, 'k') => (&lower[..at], 10),
        (at, 'm') => (&lower[..at], 20),
        (at, 'g') => (&lower[..at], 30),
        _ => (lower, 0),
    };
    let number: u64 = digits.trim().parse().ok()?;
    let bytes = number.checked_mul(1 << shift)?;
    (bytes > 0).then_some(Some(bytes))
}

impl LogDriver {
    /// The stdio URI that makes the shim write this log to `path`.
    pub fn uri(&self, path: &Path) -> String {
        match self {
            Self::None => String::new(),
            Self::JsonFile { max_size, max_files } => {
                StdioUri::JsonFile(LogFile { max_size: *max_size, max_files: *max_files, ..LogFile::new(path) })
                    .to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(kind: &str, options: &[(&str, &str)]) -> ApiResult<LogDriver> {
        let config = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse(&LogConfig { kind: kind.into(), config })
    }

    #[test]
    fn options() {
        assert_eq!(parsed("", &[]).unwrap(), DEFAULT);
        assert_eq!(parsed("none", &[]).unwrap(), LogDriver::None);
        let own = parsed("json-file", &[("max-size", "10m"), ("max-file", "3")]).unwrap();
        assert_eq!(own, LogDriver::JsonFile { max_size: Some(10 << 20), max_files: 3 });
        assert_eq!(own.uri(Path::new("/l")), "json-file:///l?max-file=3&max-size=10485760");
        for (text, bytes) in [("1", 1), ("1k", 1024), ("2MB", 2 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_size(text), Some(Some(bytes)), "{text}");
        }
        for (kind, key, value) in [
            ("syslog", "", ""),
            ("json-file", "max-size", "x"),
            ("json-file", "max-size", "0"),
            ("json-file", "max-file", "0"),
            ("json-file", "what", "x"),
            ("json-file", "tag", "x"),
        ] {
            assert!(parsed(kind, &[(key, value)]).is_err(), "{kind} {key} {value}");
        }
    }
}
