//! Where a process's stdin, stdout and stderr go: the URIs in the stdio fields of the task services.
//!
//! containerd knows a bare path (a FIFO), `fifo://`, `file://` and `binary://`. Berth adds, within the same fields,
//! `json-file://` (docker's log format, written by the shim), `attach:` (stdin fed by attachments) and the option
//! `reader=optional` of a FIFO. A caller uses the additions only where the shim is Berth's.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

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
    /// A log in docker's json-file format, rotated by the shim.
    JsonFile(JsonFile),
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

/// Place and rotation of a json-file log (docker, logging driver `json-file`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonFile {
    /// Absolute path of the newest file; older ones have `.1`, `.2` behind it.
    pub path: PathBuf,
    /// Size in bytes at which a new file is begun; `None` never.
    pub max_size: Option<u64>,
    /// How many files are kept, the newest included; at least 1.
    pub max_files: u32,
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

// Only what would end the path, or be unprintable, is escaped (RFC 3986, 2.1).
fn escape(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_graphic() && !b"%?#".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn unescape(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let pair = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    (path.is_absolute() && !text.contains("%00") && !text.contains('\0')).then_some(path)
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
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let options = query.split('&').filter(|o| !o.is_empty());
        let refuse = |option: &str| StdioError::Option { option: option.to_owned(), uri: uri.to_owned() };
        let path = || unescape(path).ok_or_else(bad_path);
        match scheme {
            "fifo" => {
                let mut reader = FifoReader::Awaited;
                for option in options {
                    reader =
                        if option == "reader=optional" { FifoReader::Optional } else { return Err(refuse(option)) };
                }
                Ok(Self::Fifo { path: path()?, reader })
            }
            "file" => match options.into_iter().next() {
                Some(option) => Err(refuse(option)),
                None => Ok(Self::File { path: path()? }),
            },
            "json-file" => {
                let mut log = JsonFile { path: path()?, max_size: None, max_files: 1 };
                for option in options {
                    match option.split_once('=') {
                        Some(("max-size", n)) => log.max_size = Some(n.parse().map_err(|_| refuse(option))?),
                        Some(("max-file", n)) => {
                            log.max_files = n.parse().ok().filter(|n| *n > 0).ok_or_else(|| refuse(option))?;
                        }
                        _ => return Err(refuse(option)),
                    }
                }
                Ok(Self::JsonFile(log))
            }
            _ => Err(StdioError::Scheme(scheme.to_owned())),
        }
    }
}

impl fmt::Display for StdioUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Fifo { path, reader: FifoReader::Awaited } => write!(f, "fifo://{}", escape(path)),
            Self::Fifo { path, reader: FifoReader::Optional } => write!(f, "fifo://{}?reader=optional", escape(path)),
            Self::File { path } => write!(f, "file://{}", escape(path)),
            Self::Attach => f.write_str("attach:"),
            Self::JsonFile(log) => {
                write!(f, "json-file://{}?max-file={}", escape(&log.path), log.max_files)?;
                log.max_size.map_or(Ok(()), |size| write!(f, "&max-size={size}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        let fifo = |p: &str, reader| StdioUri::Fifo { path: p.into(), reader };
        let log = |max_size, max_files| StdioUri::JsonFile(JsonFile { path: "/l".into(), max_size, max_files });
        let cases = [
            ("", StdioUri::Null),
            ("attach:", StdioUri::Attach),
            ("/run/a b%", fifo("/run/a b%", FifoReader::Awaited)),
            ("fifo:///a%20b", fifo("/a b", FifoReader::Awaited)),
            ("fifo:///a?reader=optional", fifo("/a", FifoReader::Optional)),
            ("file:///x", StdioUri::File { path: "/x".into() }),
            ("json-file:///l", log(None, 1)),
            ("json-file:///l?max-size=10&max-file=3", log(Some(10), 3)),
        ];
        for (text, uri) in cases {
            assert_eq!(text.parse::<StdioUri>(), Ok(uri), "{text}");
        }
        for bad in [
            "x",
            "file://rel",
            "file:///a?b=c",
            "json-file:///l?max-file=0",
            "json-file:///l?max-size=x",
            "fifo:///a%00b",
            "fifo:///a%zz",
        ] {
            assert!(bad.parse::<StdioUri>().is_err(), "{bad}");
        }
        assert_eq!("binary:///x".parse::<StdioUri>(), Err(StdioError::Scheme("binary".into())));
    }

    proptest! {
        #[test]
        fn written_form_reads_back(path in "/[^\0]{0,40}", size: Option<u64>, files in 1u32..9, which in 0..4) {
            let path = PathBuf::from(path);
            let uri = match which {
                0 => StdioUri::Fifo { path, reader: FifoReader::Optional },
                1 => StdioUri::Fifo { path, reader: FifoReader::Awaited },
                2 => StdioUri::File { path },
                _ => StdioUri::JsonFile(JsonFile { path, max_size: size, max_files: files }),
            };
            prop_assert_eq!(uri.to_string().parse::<StdioUri>().unwrap(), uri);
        }
    }
}
