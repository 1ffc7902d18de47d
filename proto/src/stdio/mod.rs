//! Where a process's stdin, stdout and stderr go: the URIs in the stdio fields of the task services.
//!
//! containerd knows a bare path (a FIFO), `fifo://`, `file://` and `binary://`. Berth adds, within the same fields,
//! sinks that the shim itself writes, `attach:` (stdin fed by attachments) and the option `reader=optional` of a FIFO.
//! A caller uses the additions only where the shim is Berth's.
//!
//! | URI | sink | options (percent-escaped, `?key=value&…`) |
//! |---|---|---|
//! | `json-file:///PATH` | docker's JSON lines | `max-size` `max-file` `compress` `mode` `max-buffer-size` `attr.KEY` |
//! | `local:///PATH` | docker's binary format | `max-size` `max-file` `compress` `mode` `max-buffer-size` |
//! | `cri:///PATH` | CRI's lines, reopened on request | `mode` `max-buffer-size` |
//! | `journald://[SOCKET]` | the journal | `tag` `name` `image` `mode` `max-buffer-size` `attr.KEY` |
//! | `syslog://` | a syslog daemon | `address` `format` `facility` `tag` `mode` `max-buffer-size` |
//! | `binary:///PATH` | a process | its arguments |
//!
//! Sizes are bytes. `mode` is `blocking` for files unless said otherwise, `non-blocking` for the journal and syslog.

mod options;
mod sinks;

use std::{fmt, path::PathBuf, str::FromStr};

use self::options::{DeliveryOptions, Writer, escape_path, settings, unescape_path};
pub use self::sinks::{Binary, Delivery, JOURNAL_SOCKET, Journald, LogFile, Syslog, SyslogAddress, SyslogFormat};

/// One end of a process's stdio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StdioUri {
    /// Nothing: stdin is empty, output is thrown away.
    Null,
    /// A FIFO that the caller made.
    Fifo {
        /// Its absolute path.
        path: PathBuf,
        /// What happens while nobody reads it.
        reader: FifoReader,
    },
    /// A file that output is appended to.
    File {
        /// Its absolute path.
        path: PathBuf,
    },
    /// A log in docker's json-file format.
    JsonFile(LogFile),
    /// A log in docker's local format.
    Local(LogFile),
    /// A log in CRI's format, rotated by somebody else.
    Cri {
        /// Its absolute path.
        path: PathBuf,
        /// Whether the container waits for it.
        delivery: Delivery,
    },
    /// The journal.
    Journald(Journald),
    /// A syslog daemon.
    Syslog(Syslog),
    /// A process that takes the output.
    Binary(Binary),
    /// Stdin that stays open and gets what attached clients send.
    Attach,
}

/// What a writer does while nobody reads a FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FifoReader {
    /// containerd's way: wait, lose nothing.
    Awaited,
    /// The reader was there before the call; when it is gone, output is discarded and the process goes on.
    Optional,
}

/// Why a text is not a stdio URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StdioError {
    /// A scheme that this side doesn't know.
    #[error("stdio scheme {0:?} is not supported")]
    Scheme(String),
    /// Paths are absolute, without NUL.
    #[error("stdio path in {0:?} is not absolute")]
    Path(String),
    /// An unknown option, or a value that doesn't fit it.
    #[error("stdio option {option:?} in {uri:?} is not understood")]
    Option {
        /// `key=value` as written.
        option: String,
        /// The whole URI.
        uri: String,
    },
}

impl FromStr for StdioUri {
    type Err = StdioError;

    fn from_str(uri: &str) -> Result<Self, StdioError> {
        let bad_path = || StdioError::Path(uri.to_owned());
        if uri.is_empty() {
            return Ok(Self::Null);
        }
        if uri.starts_with('/') {
            // A bare path is taken as it stands: containerd doesn't escape.
            let path = if uri.contains('\0') { return Err(bad_path()) } else { PathBuf::from(uri) };
            return Ok(Self::Fifo { path, reader: FifoReader::Awaited });
        }
        if uri == "attach:" {
            return Ok(Self::Attach);
        }
        let Some((scheme, rest)) = uri.split_once("://") else { return Err(StdioError::Scheme(uri.to_owned())) };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let settings = settings(uri, query)?;
        let path = || unescape_path(place).ok_or_else(bad_path);
        match scheme {
            "fifo" => {
                let mut reader = FifoReader::Awaited;
                for setting in &settings {
                    match (setting.key.as_str(), setting.value.as_str()) {
                        ("reader", "optional") => reader = FifoReader::Optional,
                        _ => return Err(setting.refuse()),
                    }
                }
                Ok(Self::Fifo { path: path()?, reader })
            }
            "file" => match settings.first() {
                Some(setting) => Err(setting.refuse()),
                None => Ok(Self::File { path: path()? }),
            },
            "json-file" => Ok(Self::JsonFile(LogFile::parse(uri, path()?, &settings, true)?)),
            "local" => Ok(Self::Local(LogFile::parse(uri, path()?, &settings, false)?)),
            "cri" => {
                let mut delivery = DeliveryOptions::new(true);
                for setting in &settings {
                    if !delivery.take(setting)? {
                        return Err(setting.refuse());
                    }
                }
                Ok(Self::Cri { path: path()?, delivery: delivery.done(uri)? })
            }
            "journald" => {
                let socket = if place.is_empty() { None } else { Some(path()?) };
                Ok(Self::Journald(Journald::parse(uri, socket, &settings)?))
            }
            "syslog" if place.is_empty() => Ok(Self::Syslog(Syslog::parse(uri, &settings)?)),
            "syslog" => Err(bad_path()),
            "binary" => Ok(Self::Binary(Binary::parse(path()?, settings))),
            _ => Err(StdioError::Scheme(scheme.to_owned())),
        }
    }
}

impl fmt::Display for StdioUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Fifo { path, reader: FifoReader::Awaited } => write!(f, "fifo://{}", escape_path(path)),
            Self::Fifo { path, reader: FifoReader::Optional } => {
                write!(f, "fifo://{}?reader=optional", escape_path(path))
            }
            Self::File { path } => write!(f, "file://{}", escape_path(path)),
            Self::Attach => f.write_str("attach:"),
            Self::JsonFile(log) => f.write_str(&log.write("json-file")),
            Self::Local(log) => f.write_str(&log.write("local")),
            Self::Cri { path, delivery } => {
                let mut writer = Writer::new("cri", path);
                writer.add_delivery(*delivery, true);
                f.write_str(&writer.done())
            }
            Self::Journald(log) => f.write_str(&log.write()),
            Self::Syslog(log) => f.write_str(&log.write()),
            Self::Binary(binary) => f.write_str(&binary.write()),
        }
    }
}

#[cfg(test)]
mod tests;
