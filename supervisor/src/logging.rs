//! Where log lines go (stderr, or a file) and how they look: text or JSON, marked with levels for the journal.
//!
//! Fields say the same everywhere: `namespace`, `id` (the container), `operation` (the call), `ms` or `seconds` (how long).
//! Credentials are never among them; a test looks for some in a log of everything.

use std::{
    cell::Cell,
    fs::File,
    io::{self, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use tracing::{Level, Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

/// Why logging can't begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// The level isn't a level, nor a list of `target=level`.
    #[error("log-level {level:?} is none")]
    Level {
        /// What was given.
        level: String,
    },
    /// The file can't be written.
    #[error("open log file {at}")]
    File {
        /// The file.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Something installed a logger before.
    #[error("start logging")]
    Init(#[source] tracing_subscriber::util::TryInitError),
}

/// What passes, by a level or a list of `target=level`. A word that is no level would be taken for a target, hence the check.
pub(crate) fn filter(level: &str) -> Option<Targets> {
    let plain = |part: &str| !part.trim().is_empty() && part.trim().parse::<LevelFilter>().is_ok();
    let known = level.split(',').all(|part| plain(part) || part.split_once('=').is_some_and(|(_, level)| plain(level)));
    if known { level.parse().ok() } else { None }
}

/// The file that lines go to, for `reopen`.
static FILE: OnceLock<LogFile> = OnceLock::new();

struct LogFile {
    at: PathBuf,
    open: Mutex<File>,
}

impl LogFile {
    fn open(at: &Path) -> io::Result<File> {
        File::options().append(true).create(true).mode(0o640).open(at)
    }
}

/// Opens the log file anew, after somebody moved it away.
pub(crate) fn reopen() {
    let Some(file) = FILE.get() else { return };
    match LogFile::open(&file.at) {
        Ok(new) => *file.open.lock().unwrap_or_else(PoisonError::into_inner) = new,
        Err(error) => tracing::error!(%error, at = %file.at.display(), "log file not opened anew; the old one goes on"),
    }
}

/// Starts logging, and makes panics lines of it.
pub(crate) fn init(config: &LogConfig) -> Result<(), LoggingError> {
    let filter = filter(&config.level).ok_or_else(|| LoggingError::Level { level: config.level.clone() })?;
    if let Some(at) = &config.file {
        let open = LogFile::open(at).map_err(|cause| LoggingError::File { at: at.clone(), cause })?;
        let _ = FILE.set(LogFile { at: at.clone(), open: Mutex::new(open) });
    }
    let journal = config.file.is_none() && is_journal();
    let lines =
        tracing_subscriber::fmt::layer().with_writer(Sink { journal }).with_target(false).log_internal_errors(false);
    let ansi = config.file.is_none() && io::stderr().is_terminal();
    let lines = match (config.format, journal) {
        // The journal keeps the time itself.
        (LogFormat::Text, true) => lines.with_ansi(false).without_time().boxed(),
        (LogFormat::Text, false) => lines.with_ansi(ansi).boxed(),
        (LogFormat::Json, _) => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().map_err(LoggingError::Init)?;
    std::panic::set_hook(Box::new(|panic| {
        if !QUIET.get() {
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(at, what = panic.payload_as_str().unwrap_or_default(), "a bug: this request is abandoned");
        }
    }));
    Ok(())
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs work that may panic on data from outside; what it panicked with is the error.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("unknown").lines().next().unwrap_or_default().to_owned()
    })
}

/// Whether stderr is the journal's (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    nix::sys::stat::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

struct Sink {
    journal: bool,
}

/// One line on its way.
pub(crate) struct Line(&'static [u8]);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(b"")
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line(match *meta.level() {
            _ if !self.journal => b"",
            Level::ERROR => b"<3>",
            Level::WARN => b"<4>",
            Level::INFO => b"<6>",
            _ => b"<7>",
        })
    }
}

impl Write for Line {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // One write each: lines of several threads, and of a process that still has the file, don't mix.
        let whole = [std::mem::take(&mut self.0), buffer].concat();
        match FILE.get() {
            Some(file) => file.open.lock().unwrap_or_else(PoisonError::into_inner).write_all(&whole)?,
            None => io::stderr().write_all(&whole)?,
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists() {
        for level in ["info", "DEBUG", "off", "warn,berth_supervisor::gc=debug", "h2=off,info"] {
            assert!(filter(level).is_some(), "{level}");
        }
        for level in ["", "loud", "info,loud", "x=loud", "=", "a=b=c"] {
            assert!(filter(level).is_none(), "{level}");
        }
    }

    #[test]
    fn a_panic_is_an_error_like_others() {
        assert_eq!(caught(|| 1), Ok(1));
        assert_eq!(caught(|| panic!("page {} is odd\nmore", 7)), Err::<(), _>("page 7 is odd".to_owned()));
    }
}
