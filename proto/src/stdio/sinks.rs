//! Logs that a shim writes: files in three formats, the journal, syslog, and a process of somebody else's.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    StdioError,
    options::{DeliveryOptions, Setting, Writer},
};

/// Whether a container waits for its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It does (docker's `mode=blocking`).
    Blocking,
    /// It doesn't: what a ring of this many bytes can't take is dropped and counted (`mode=non-blocking`).
    NonBlocking {
        /// Docker's `max-buffer-size`.
        max_buffer: u64,
    },
}

/// A log in a file with rotated predecessors (docker, logging drivers `json-file` and `local`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// Absolute path of the newest file; older ones have `.1`, `.2` behind it, and `.gz` if compressed.
    pub path: PathBuf,
    /// Size in bytes at which a new file is begun; `None` never.
    pub max_size: Option<u64>,
    /// How many files are kept, the newest included; at least 1.
    pub max_files: u32,
    /// Whether rotated files are compressed.
    pub compress: bool,
    /// Whether the container waits for it.
    pub delivery: Delivery,
    /// Attributes of every entry (json-file's `attrs`).
    pub attributes: Vec<(String, String)>,
}

impl LogFile {
    /// A single file without end.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_size: None,
            max_files: 1,
            compress: false,
            delivery: Delivery::Blocking,
            attributes: Vec::new(),
        }
    }

    pub(super) fn parse(
        uri: &str,
        path: PathBuf,
        settings: &[Setting<'_>],
        attributes: bool,
    ) -> Result<Self, StdioError> {
        let mut log = Self::new(path);
        let mut delivery = DeliveryOptions::new(true);
        for setting in settings {
            match setting.key.as_str() {
                "max-size" => log.max_size = Some(setting.parse().ok().filter(|n| *n > 0).ok_or(setting.refuse())?),
                "max-file" => log.max_files = setting.parse().ok().filter(|n| *n > 0).ok_or(setting.refuse())?,
                "compress" => log.compress = setting.parse()?,
                _ if delivery.take(setting)? => {}
                _ => {
                    let attribute = setting.attribute().filter(|_| attributes);
                    log.attributes.push(attribute.ok_or_else(|| setting.refuse())?);
                }
            }
        }
        log.delivery = delivery.done(uri)?;
        Ok(log)
    }

    pub(super) fn write(&self, scheme: &str) -> String {
        let mut writer = Writer::new(scheme, &self.path);
        writer.add("max-file", &self.max_files.to_string());
        if let Some(size) = self.max_size {
            writer.add("max-size", &size.to_string());
        }
        if self.compress {
            writer.add("compress", "true");
        }
        writer.add_delivery(self.delivery, true);
        writer.add_attributes(&self.attributes);
        writer.done()
    }
}

/// systemd's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journald {
    /// Its socket.
    pub socket: PathBuf,
    /// Field `CONTAINER_TAG` and `SYSLOG_IDENTIFIER`; empty for the beginning of the container's id.
    pub tag: String,
    /// Field `CONTAINER_NAME`.
    pub name: String,
    /// Field `IMAGE_NAME`.
    pub image: String,
    /// Whether the container waits for it.
    pub delivery: Delivery,
    /// Further fields.
    pub attributes: Vec<(String, String)>,
}

/// Where the journal listens (systemd-journald(8)).
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

impl Journald {
    /// The journal of this machine.
    pub fn new() -> Self {
        Self {
            socket: JOURNAL_SOCKET.into(),
            tag: String::new(),
            name: String::new(),
            image: String::new(),
            delivery: Delivery::NonBlocking { max_buffer: 1 << 20 },
            attributes: Vec::new(),
        }
    }

    pub(super) fn parse(uri: &str, socket: Option<PathBuf>, settings: &[Setting<'_>]) -> Result<Self, StdioError> {
        let mut log = Self::new();
        log.socket = socket.unwrap_or(log.socket);
        let mut delivery = DeliveryOptions::new(false);
        for setting in settings {
            match setting.key.as_str() {
                "tag" => log.tag.clone_from(&setting.value),
                "name" => log.name.clone_from(&setting.value),
                "image" => log.image.clone_from(&setting.value),
                _ if delivery.take(setting)? => {}
                _ => log.attributes.push(setting.attribute().ok_or_else(|| setting.refuse())?),
            }
        }
        log.delivery = delivery.done(uri)?;
        Ok(log)
    }

    pub(super) fn write(&self) -> String {
        let mut writer = Writer::new("journald", &self.socket);
        for (key, value) in [("tag", &self.tag), ("name", &self.name), ("image", &self.image)] {
            if !value.is_empty() {
                writer.add(key, value);
            }
        }
        writer.add_delivery(self.delivery, false);
        writer.add_attributes(&self.attributes);
        writer.done()
    }
}

impl Default for Journald {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a syslog daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogAddress {
    /// On this machine, wherever it is usual.
    Local,
    /// `unix://PATH`.
    Unix(PathBuf),
    /// `unixgram://PATH`.
    Unixgram(PathBuf),
    /// `udp://HOST:PORT`.
    Udp(SocketAddr),
    /// `tcp://HOST:PORT`.
    Tcp(SocketAddr),
}

/// The port of a syslog address that names none.
const SYSLOG_PORT: u16 = 514;

impl SyslogAddress {
    /// Reads docker's form. Hosts are addresses, or `localhost`: a static shim has no resolver.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((scheme, rest)) = text.split_once("://") else { return text.is_empty().then_some(Self::Local) };
        let path = || Some(PathBuf::from(rest)).filter(|path| path.is_absolute() && !rest.contains('\0'));
        let host = || {
            if let Ok(address) = rest.parse::<SocketAddr>() {
                return Some(address);
            }
            if let Ok(ip) = rest.trim_matches(['[', ']']).parse::<IpAddr>() {
                return Some(SocketAddr::new(ip, SYSLOG_PORT));
            }
            let (name, port) = rest.split_once(':').unwrap_or((rest, "514"));
            let port = port.parse().ok().filter(|_| name == "localhost")?;
            Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
        };
        match scheme {
            "unix" => path().map(Self::Unix),
            "unixgram" => path().map(Self::Unixgram),
            "udp" => host().map(Self::Udp),
            "tcp" => host().map(Self::Tcp),
            _ => None,
        }
    }
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => Ok(()),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Unixgram(path) => write!(f, "unixgram://{}", path.display()),
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// How a syslog message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyslogFormat {
    /// What syslog(3) sends on one machine: RFC 3164 without a host name.
    #[default]
    Local,
    /// RFC 3164.
    Rfc3164,
    /// RFC 5424, time in seconds.
    Rfc5424,
    /// RFC 5424, time in microseconds.
    Rfc5424Micro,
}

const FORMATS: [(&str, SyslogFormat); 4] = [
    ("", SyslogFormat::Local),
    ("rfc3164", SyslogFormat::Rfc3164),
    ("rfc5424", SyslogFormat::Rfc5424),
    ("rfc5424micro", SyslogFormat::Rfc5424Micro),
];

/// Facilities by number (RFC 5424, table 1; 12 to 15 have numbers only).
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "12", "13",
    "14", "15", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// A syslog daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syslog {
    /// Where it listens.
    pub address: SyslogAddress,
    /// How messages are written.
    pub format: SyslogFormat,
    /// Facility, 0 to 23.
    pub facility: u8,
    /// Tag of the messages; empty for the beginning of the container's id.
    pub tag: String,
    /// Whether the container waits for it.
    pub delivery: Delivery,
}

impl Syslog {
    /// This machine's daemon, facility daemon.
    pub fn new() -> Self {
        Self {
            address: SyslogAddress::Local,
            format: SyslogFormat::Local,
            facility: 3,
            tag: String::new(),
            delivery: Delivery::NonBlocking { max_buffer: 1 << 20 },
        }
    }

    /// The number of a facility's name or number.
    pub fn parse_facility(text: &str) -> Option<u8> {
        let named = FACILITIES.iter().position(|name| *name == text).and_then(|number| u8::try_from(number).ok());
        named.or_else(|| text.parse().ok().filter(|number| *number < 24))
    }

    /// The format of a name.
    pub fn parse_format(text: &str) -> Option<SyslogFormat> {
        FORMATS.iter().find(|(name, _)| *name == text).map(|(_, format)| *format)
    }

    pub(super) fn parse(uri: &str, settings: &[Setting<'_>]) -> Result<Self, StdioError> {
        let mut log = Self::new();
        let mut delivery = DeliveryOptions::new(false);
        for setting in settings {
            let refuse = || setting.refuse();
            match setting.key.as_str() {
                "address" => log.address = SyslogAddress::parse(&setting.value).ok_or_else(refuse)?,
                "format" => log.format = Self::parse_format(&setting.value).ok_or_else(refuse)?,
                "facility" => log.facility = Self::parse_facility(&setting.value).ok_or_else(refuse)?,
                "tag" => log.tag.clone_from(&setting.value),
                _ if delivery.take(setting)? => {}
                _ => return Err(refuse()),
            }
        }
        log.delivery = delivery.done(uri)?;
        Ok(log)
    }

    pub(super) fn write(&self) -> String {
        let mut writer = Writer::bare("syslog");
        let format = FORMATS.iter().find(|(_, format)| *format == self.format).map_or("", |(name, _)| name);
        let address = self.address.to_string();
        let facility = FACILITIES.get(usize::from(self.facility)).copied().unwrap_or("daemon");
        for (key, value) in [("address", address.as_str()), ("format", format), ("tag", &self.tag)] {
            if !value.is_empty() {
                writer.add(key, value);
            }
        }
        writer.add("facility", facility);
        writer.add_delivery(self.delivery, false);
        writer.done()
    }
}

impl Default for Syslog {
    fn default() -> Self {
        Self::new()
    }
}

/// A process that takes the output (containerd's `binary://`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Its program.
    pub path: PathBuf,
    /// Its arguments: each key and its value follow one another, as containerd has it.
    pub args: Vec<(String, String)>,
}

impl Binary {
    pub(super) fn parse(path: PathBuf, settings: Vec<Setting<'_>>) -> Self {
        let mut args: Vec<(String, String)> = Vec::new();
        for setting in settings {
            // Of a key that comes twice the first counts (Go's url.Values).
            if args.iter().all(|(key, _)| *key != setting.key) {
                args.push((setting.key, setting.value));
            }
        }
        Self { path, args }
    }

    pub(super) fn write(&self) -> String {
        let mut writer = Writer::new("binary", &self.path);
        for (key, value) in &self.args {
            writer.add(key, value);
        }
        writer.done()
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        &self.path
    }
}
