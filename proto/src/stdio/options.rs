//! The text form of stdio URIs: percent-escapes (RFC 3986, 2.1), `key=value` options, and what all sinks share.

use std::path::{Path, PathBuf};

use super::{Delivery, StdioError};

/// Ring of a sink that must not slow its container, when nobody chose a size (docker's `max-buffer-size`).
const DEFAULT_BUFFER: u64 = 1 << 20;
/// A ring smaller than a few lines would drop everything.
const LEAST_BUFFER: u64 = 4 << 10;

pub(super) fn escape_bytes(bytes: &[u8], also: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_graphic() && !b"%?#&".contains(&byte) && !also.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

// Only what would end the path, or be unprintable, is escaped.
pub(super) fn escape_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    escape_bytes(path.as_os_str().as_bytes(), b"")
}

fn unescape_bytes(text: &str) -> Option<Vec<u8>> {
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
    Some(bytes)
}

pub(super) fn unescape_path(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let bytes = unescape_bytes(text).filter(|bytes| !bytes.contains(&0))?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    path.is_absolute().then_some(path)
}

/// One option of a URI.
pub(super) struct Setting<'a> {
    uri: &'a str,
    raw: &'a str,
    /// Its name.
    pub(super) key: String,
    /// Its value; empty if there is none.
    pub(super) value: String,
}

impl Setting<'_> {
    /// The complaint about it.
    pub(super) fn refuse(&self) -> StdioError {
        StdioError::Option { option: self.raw.to_owned(), uri: self.uri.to_owned() }
    }

    /// The value as something that is written in plain text.
    pub(super) fn parse<T: std::str::FromStr>(&self) -> Result<T, StdioError> {
        self.value.parse().map_err(|_| self.refuse())
    }

    /// An attribute, `attr.KEY=VALUE`.
    pub(super) fn attribute(&self) -> Option<(String, String)> {
        let key = self.key.strip_prefix("attr.").filter(|key| !key.is_empty())?;
        Some((key.to_owned(), self.value.clone()))
    }
}

/// All options of a URI, in their order.
pub(super) fn settings<'a>(uri: &'a str, query: &'a str) -> Result<Vec<Setting<'a>>, StdioError> {
    let setting = |raw: &'a str| {
        let (key, value) = raw.split_once('=').unwrap_or((raw, ""));
        let text = |text| unescape_bytes(text).and_then(|bytes| String::from_utf8(bytes).ok());
        match (text(key), text(value)) {
            (Some(key), Some(value)) if !key.contains('\0') && !value.contains('\0') => {
                Ok(Setting { uri, raw, key, value })
            }
            _ => Err(StdioError::Option { option: raw.to_owned(), uri: uri.to_owned() }),
        }
    };
    query.split('&').filter(|raw| !raw.is_empty()).map(setting).collect()
}

/// Collects `mode` and `max-buffer-size`, which may come in any order.
pub(super) struct DeliveryOptions {
    blocking: bool,
    buffer: Option<u64>,
}

impl DeliveryOptions {
    /// What holds if neither is there: local files are written at once, everything else passes through a ring.
    pub(super) fn new(local: bool) -> Self {
        Self { blocking: local, buffer: None }
    }

    /// True if the option is one of the two.
    pub(super) fn take(&mut self, setting: &Setting<'_>) -> Result<bool, StdioError> {
        match (setting.key.as_str(), setting.value.as_str()) {
            ("mode", "blocking") => self.blocking = true,
            ("mode", "non-blocking") => self.blocking = false,
            ("max-buffer-size", _) => {
                let size: u64 = setting.parse()?;
                if size < LEAST_BUFFER {
                    return Err(setting.refuse());
                }
                self.buffer = Some(size);
            }
            ("mode", _) => return Err(setting.refuse()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn done(&self, uri: &str) -> Result<Delivery, StdioError> {
        match (self.blocking, self.buffer) {
            (true, None) => Ok(Delivery::Blocking),
            // As docker: the size of a buffer that there isn't is a mistake.
            (true, Some(size)) => {
                Err(StdioError::Option { option: format!("max-buffer-size={size}"), uri: uri.to_owned() })
            }
            (false, size) => Ok(Delivery::NonBlocking { max_buffer: size.unwrap_or(DEFAULT_BUFFER) }),
        }
    }
}

/// Puts a URI together.
pub(super) struct Writer {
    text: String,
    separator: char,
}

impl Writer {
    pub(super) fn new(scheme: &str, path: &Path) -> Self {
        Self { text: format!("{scheme}://{}", escape_path(path)), separator: '?' }
    }

    pub(super) fn bare(scheme: &str) -> Self {
        Self { text: format!("{scheme}://"), separator: '?' }
    }

    pub(super) fn add(&mut self, key: &str, value: &str) {
        self.text.push(self.separator);
        self.separator = '&';
        self.text.push_str(&escape_bytes(key.as_bytes(), b"="));
        self.text.push('=');
        self.text.push_str(&escape_bytes(value.as_bytes(), b""));
    }

    pub(super) fn add_attributes(&mut self, attributes: &[(String, String)]) {
        for (key, value) in attributes {
            self.add(&format!("attr.{key}"), value);
        }
    }

    /// `mode` and `max-buffer-size`, as far as they aren't what holds anyway.
    pub(super) fn add_delivery(&mut self, delivery: Delivery, local: bool) {
        match delivery {
            Delivery::Blocking if local => {}
            Delivery::Blocking => self.add("mode", "blocking"),
            Delivery::NonBlocking { max_buffer } => {
                if local {
                    self.add("mode", "non-blocking");
                }
                if max_buffer != DEFAULT_BUFFER {
                    self.add("max-buffer-size", &max_buffer.to_string());
                }
            }
        }
    }

    pub(super) fn done(self) -> String {
        self.text
    }
}
