//! The log that callers read: text or one JSON object per line, in a file or on stderr.

#![expect(clippy::disallowed_methods, reason = "log files are the caller's, on the host")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// `time="…" level=… msg="…"`
    #[default]
    Text,
    /// `{"level":…,"msg":…,"time":…}`, of which containerd and conmon show the last error.
    Json,
}

/// The log file could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open log file {path}")]
pub(crate) struct OpenError {
    path: PathBuf,
    #[source]
    cause: std::io::Error,
}

/// Where messages go.
#[derive(Debug, Default)]
pub(crate) struct Log {
    file: Option<File>,
    format: Format,
    debug: bool,
}

impl Log {
    /// Opens the log; without a path it is stderr.
    pub(crate) fn open(path: Option<&Path>, format: Format, debug: bool) -> Result<Self, OpenError> {
        let file = match path.filter(|path| !path.as_os_str().is_empty()) {
            None => None,
            Some(path) => {
                let mut options = std::fs::OpenOptions::new();
                let file = options.append(true).create(true).mode(0o644).open(path);
                Some(file.map_err(|cause| OpenError { path: path.to_owned(), cause })?)
            }
        };
        Ok(Self { file, format, debug })
    }

    /// The log file's descriptor.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Something went wrong and we coped.
    pub(crate) fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    /// A decision, shown with `--debug`.
    pub(crate) fn debug(&self, message: &str) {
        if self.debug {
            self.line("debug", message);
        }
    }

    /// The reason why the command failed; it goes to stderr too, for callers that have no log file.
    pub(crate) fn error(&self, message: &str) {
        if self.file.is_some() || self.format == Format::Json {
            self.line("error", message);
        }
        if self.file.is_some() || self.format == Format::Text {
            // Nobody is left to tell if stderr is closed.
            let _ = writeln!(std::io::stderr(), "berth-runtime: {message}");
        }
    }

    fn line(&self, level: &str, message: &str) {
        let time = rfc3339(SystemTime::now());
        let line = match self.format {
            Format::Json => format!("{}\n", serde_json::json!({"level": level, "msg": message, "time": time})),
            Format::Text => format!("time=\"{time}\" level={level} msg={}\n", serde_json::json!(message)),
        };
        // One write per line, so that lines of several processes do not mix. A full disk must not fail the container.
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// A point in time as RFC 3339 in UTC with nanoseconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = ((since.as_secs() / 86400) as i64, since.as_secs() % 86400);
    // Days to a civil date, counted in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000005Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000005Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, 5)), text);
        }
    }

    #[test]
    fn json_lines_have_the_three_fields() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log.json");
        let log = Log::open(Some(&path), Format::Json, false).expect("opens");
        log.warn("a \"quoted\"\nline");
        log.debug("not shown");
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!((&value["level"], &value["msg"]), (&"warning".into(), &"a \"quoted\"\nline".into()));
        assert!(value["time"].is_string());
    }
}
