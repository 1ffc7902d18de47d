//! Log drivers: what `--log-driver` and `--log-opt` mean to the shim that writes the log. Pure.

use super::{
    forward::{Target, fluentd, gelf},
    record::Record,
    validate::not_yet,
};
use crate::{
    api::{Config, LogConfig},
    http::{ApiError, ApiResult},
    ids,
};
use proto::stdio::{Delivery, Journald, LogFile, StdioUri, Syslog, SyslogAddress};
use std::path::{Path, PathBuf};

/// Where output goes, before it is known whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDriver {
    sink: Sink,
    extra: Extra,
}

/// Paths and attributes are filled in for each container.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sink {
    JsonFile(LogFile),
    Local(LogFile),
    Journald(Journald),
    Syslog(Syslog),
    /// The shim writes a file in the local format, which the engine sends on.
    Forward(Target, LogFile),
    None,
}

/// What every message says about its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Extra {
    tag: Option<String>,
    labels: Vec<String>,
    env: Vec<String>,
}

/// Whose log it is.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    id: &'a str,
    name: &'a str,
    image_id: &'a str,
    config: &'a Config,
    kind: &'a str,
}

impl<'a> From<&'a Record> for Subject<'a> {
    fn from(record: &'a Record) -> Self {
        let Record { id, name, image_id, config, host, .. } = record;
        Self { id, name, image_id, config, kind: &host.log_config.kind }
    }
}

/// How a log is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Docker's JSON lines.
    #[default]
    Json,
    /// Docker's binary records.
    Local,
}

impl Format {
    /// The driver that writes it.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Json => "json-file",
            Self::Local => "local",
        }
    }
}

/// Rotation when nobody chose: a log that grows without end fills the disk (moby#27957 and many more).
const MAX_SIZE: u64 = 20 << 20;
const MAX_FILES: u32 = 5;

/// The format of a driver's log; `None` if it can't be read here.
pub fn readable(kind: &str) -> Option<Format> {
    match kind {
        "" | "json-file" => Some(Format::Json),
        "local" | "gelf" | "fluentd" => Some(Format::Local),
        _ => None,
    }
}

/// The newest file of a container's log.
pub fn path(folder: &Path, id: &str, kind: &str) -> PathBuf {
    folder.join(if matches!(kind, "local" | "gelf" | "fluentd") {
        "container.log".to_owned()
    } else {
        format!("{id}-json.log")
    })
}

fn sink_of(kind: &str) -> ApiResult<Sink> {
    let file = |compress| LogFile { max_size: Some(MAX_SIZE), max_files: MAX_FILES, compress, ..LogFile::new("/") };
    Ok(match kind {
        "" | "json-file" => Sink::JsonFile(file(false)),
        // Docker's defaults.
        "local" => Sink::Local(file(true)),
        "journald" => Sink::Journald(Journald::new()),
        "syslog" => Sink::Syslog(Syslog::new()),
        "gelf" => Sink::Forward(Target::Gelf(gelf::Options::default()), file(true)),
        "fluentd" => Sink::Forward(Target::Fluentd(fluentd::Options::default()), file(true)),
        "none" => Sink::None,
        other => return Err(not_yet(&format!("log driver {other}"))),
    })
}

/// Reads `LogConfig`.
pub fn parse(config: &LogConfig) -> ApiResult<LogDriver> {
    let mut driver = LogDriver { sink: sink_of(&config.kind)?, extra: Extra::default() };
    let kind = if config.kind.is_empty() { "json-file" } else { config.kind.as_str() };
    let (mut blocking, mut buffer) = (None, None);
    for (key, value) in &config.config {
        let bad = || ApiError::invalid(format!("invalid value {value:?} for log opt {key}"));
        let unknown = || ApiError::invalid(format!("unknown log opt '{key}' for {kind} log driver"));
        let list = || value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        match (key.as_str(), &mut driver.sink) {
            // Docker lets anything pass here: it is a way to switch the log of one container off.
            (_, Sink::None) => {}
            ("mode", _) => {
                blocking = Some(match value.as_str() {
                    "blocking" => true,
                    "non-blocking" => false,
                    _ => return Err(bad()),
                });
            }
            ("max-buffer-size", _) => {
                buffer = Some(parse_size(value).flatten().filter(|n| *n >= 4096).ok_or_else(bad)?)
            }
            ("max-size", Sink::JsonFile(log) | Sink::Local(log)) => log.max_size = parse_size(value).ok_or_else(bad)?,
            ("max-file", Sink::JsonFile(log) | Sink::Local(log)) => {
                log.max_files = value.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
            }
            ("compress", Sink::JsonFile(log) | Sink::Local(log)) => {
                log.compress = value.parse().map_err(|_| bad())?;
            }
            (key, Sink::Forward(target, log)) if !matches!(key, "tag" | "labels" | "env") => {
                match forward_option(target, log, key, value) {
                    Some(true) => {}
                    Some(false) => return Err(bad()),
                    None => return Err(unknown()),
                }
            }
            ("tag" | "labels" | "env", Sink::Local(_)) => return Err(unknown()),
            ("labels" | "env", Sink::Syslog(_)) => return Err(not_yet(&format!("log opt {key} for syslog"))),
            ("tag", _) => driver.extra.tag = Some(checked_tag(value)?),
            ("labels", _) => driver.extra.labels = list(),
            ("env", _) => driver.extra.env = list(),
            ("labels-regex" | "env-regex", Sink::JsonFile(_) | Sink::Journald(_)) => {
                return Err(not_yet(&format!("log opt {key}")));
            }
            ("syslog-address", Sink::Syslog(_)) if value.starts_with("tcp+tls://") => {
                return Err(not_yet("syslog over TLS"));
            }
            ("syslog-address", Sink::Syslog(log)) => {
                // The shim has no resolver, so that a name would be a failure at every start.
                let hint = || ApiError::invalid(format!("log opt {key}: {value:?} needs a path or an IP address"));
                log.address = SyslogAddress::parse(value).ok_or_else(hint)?;
            }
            ("syslog-facility", Sink::Syslog(log)) => log.facility = Syslog::parse_facility(value).ok_or_else(bad)?,
            ("syslog-format", Sink::Syslog(log)) => log.format = Syslog::parse_format(value).ok_or_else(bad)?,
            _ => return Err(unknown()),
        }
    }
    if buffer.is_some() && blocking != Some(false) {
        return Err(ApiError::invalid("log opt max-buffer-size is only for mode=non-blocking"));
    }
    if let Sink::Forward(Target::Gelf(options), _) = &driver.sink
        && options.address.is_empty()
    {
        return Err(ApiError::invalid("gelf-address is a required parameter"));
    }
    let local = matches!(driver.sink, Sink::JsonFile(_) | Sink::Local(_) | Sink::Forward(..));
    let delivery = match blocking.unwrap_or(local) {
        true => Delivery::Blocking,
        false => Delivery::NonBlocking { max_buffer: buffer.unwrap_or(1 << 20) },
    };
    match &mut driver.sink {
        Sink::JsonFile(log) | Sink::Local(log) => {
            if log.compress && config.config.contains_key("compress") && log.max_files < 2 {
                return Err(ApiError::invalid("log opt compress needs max-file of at least 2"));
            }
            log.compress &= log.max_files > 1 && log.max_size.is_some();
            log.delivery = delivery;
        }
        Sink::Forward(_, log) => log.delivery = delivery,
        Sink::Journald(log) => log.delivery = delivery,
        Sink::Syslog(log) => log.delivery = delivery,
        Sink::None => {}
    }
    Ok(driver)
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

/// Fills the places of a tag, `{{.Name}}` and so on (docker, "customize log driver output"); `None` if one is unknown.
fn fill(tag: &str, value_of: impl Fn(&str) -> Option<String>) -> Option<String> {
    let (mut text, mut rest) = (String::new(), tag);
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, behind) = after.split_once("}}")?;
        text.push_str(before);
        text.push_str(&value_of(name.trim())?);
        rest = behind;
    }
    text.push_str(rest);
    Some(text)
}

fn checked_tag(tag: &str) -> ApiResult<String> {
    const PLACES: [&str; 7] = [".ID", ".FullID", ".Name", ".ImageID", ".ImageFullID", ".ImageName", ".DaemonName"];
    let known = |name: &str| PLACES.contains(&name).then(String::new);
    match fill(tag, known) {
        Some(_) => Ok(tag.to_owned()),
        None => Err(ApiError::invalid(format!("log opt tag: {tag:?} has a place other than {}", PLACES.join(" ")))),
    }
}

impl Extra {
    fn tag_of(&self, of: Subject<'_>) -> Option<String> {
        let value = |name: &str| {
            let image = of.image_id.trim_start_matches("sha256:");
            Some(match name {
                ".ID" => ids::short(of.id).to_owned(),
                ".FullID" => of.id.to_owned(),
                ".Name" => of.name.to_owned(),
                ".ImageID" => ids::short(image).to_owned(),
                ".ImageFullID" => of.image_id.to_owned(),
                ".ImageName" => of.config.image.clone(),
                ".DaemonName" => "berth".to_owned(),
                _ => return None,
            })
        };
        self.tag.as_deref().and_then(|tag| fill(tag, value))
    }

    fn attributes_of(&self, of: Subject<'_>) -> Vec<(String, String)> {
        let label = |name: &String| Some((name.clone(), of.config.labels.get(name)?.clone()));
        let env = |name: &String| {
            let found = of.config.env.iter().rev().filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == name);
            found.map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        self.labels.iter().filter_map(label).chain(self.env.iter().filter_map(env)).collect()
    }
}

/// An option of a driver that sends: false for a value that makes no sense, `None` for an option that there isn't. How much
/// is kept for a receiver that is away is a matter of the file's size.
fn forward_option(target: &mut Target, log: &mut LogFile, key: &str, value: &str) -> Option<bool> {
    let truth = |value: &str| value.parse::<bool>().ok();
    Some(match (key, target) {
        ("max-size", _) => parse_size(value).map(|size| log.max_size = size).is_some(),
        ("max-file", _) => value.parse().ok().filter(|n| *n > 0).map(|count| log.max_files = count).is_some(),
        ("gelf-address", Target::Gelf(options)) => options.set_address(value).is_some(),
        ("gelf-compression-type", Target::Gelf(options)) => match value {
            "gzip" => set(&mut options.packing, gelf::Packing::Gzip),
            "zlib" => set(&mut options.packing, gelf::Packing::Zlib),
            "none" => set(&mut options.packing, gelf::Packing::None),
            _ => false,
        },
        ("gelf-compression-level", Target::Gelf(options)) => {
            value.parse().ok().filter(|level| *level <= 9).map(|level| options.level = level).is_some()
        }
        ("fluentd-address", Target::Fluentd(options)) => options.set_address(value).is_some(),
        ("fluentd-sub-second-precision", Target::Fluentd(options)) => {
            truth(value).map(|on| options.precise = on).is_some()
        }
        ("fluentd-request-ack", Target::Fluentd(options)) => truth(value).map(|on| options.acknowledged = on).is_some(),
        // It never is otherwise: a start doesn't wait for a receiver.
        ("fluentd-async" | "fluentd-async-connect", Target::Fluentd(_)) => truth(value) == Some(true),
        _ => return None,
    })
}

fn set<T>(place: &mut T, value: T) -> bool {
    *place = value;
    true
}

impl LogDriver {
    /// Where the engine sends the log, if it does.
    pub fn target(&self) -> Option<&Target> {
        match &self.sink {
            Sink::Forward(target, _) => Some(target),
            _ => None,
        }
    }

    /// Tag and attributes of every message.
    pub fn facts(&self, of: Subject<'_>) -> (Option<String>, Vec<(String, String)>) {
        (self.extra.tag_of(of), self.extra.attributes_of(of))
    }

    /// The stdio URI that makes Berth's shim write the log of this container, whose folder is given.
    pub fn uri(&self, folder: &Path, of: Subject<'_>) -> String {
        let (tag, attributes) = (self.extra.tag_of(of), self.extra.attributes_of(of));
        let path = path(folder, of.id, of.kind);
        match self.sink.clone() {
            Sink::None => StdioUri::Null,
            Sink::Local(log) | Sink::Forward(_, log) => StdioUri::Local(LogFile { path, ..log }),
            Sink::JsonFile(log) => {
                let mut all: Vec<_> = tag.map(|tag| ("tag".to_owned(), tag)).into_iter().collect();
                all.extend(attributes);
                StdioUri::JsonFile(LogFile { path, attributes: all, ..log })
            }
            Sink::Journald(log) => StdioUri::Journald(Journald {
                tag: tag.unwrap_or_default(),
                name: of.name.to_owned(),
                image: of.config.image.clone(),
                attributes,
                ..log
            }),
            Sink::Syslog(log) => StdioUri::Syslog(Syslog { tag: tag.unwrap_or_default(), ..log }),
        }
        .to_string()
    }

    /// Size and number of files, for a log that the engine writes itself because the shim can't; `None` for no log, an error
    /// for what only Berth's shim does.
    pub fn simple_file(&self) -> ApiResult<Option<(Option<u64>, u32)>> {
        match &self.sink {
            Sink::None => Ok(None),
            Sink::JsonFile(log)
                if !log.compress && log.delivery == Delivery::Blocking && self.extra == Extra::default() =>
            {
                Ok(Some((log.max_size, log.max_files)))
            }
            _ => Err(ApiError::not_implemented(
                "with a shim other than Berth's the log driver is none, or json-file with max-size and max-file alone",
            )),
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

    fn config() -> Config {
        Config {
            image: "img:1".into(),
            labels: [("team".to_owned(), "a b".to_owned())].into(),
            env: vec!["A=1".into(), "B=2".into()],
            ..Config::default()
        }
    }

    #[test]
    fn options() {
        for (kind, options, uri) in [
            ("", &[][..], "json-file:///d/0123456789abcdef-json.log?max-file=5&max-size=20971520"),
            ("none", &[("max-size", "1")], ""),
            (
                "json-file",
                &[("max-size", "10m"), ("max-file", "3"), ("compress", "true")],
                "json-file:///d/0123456789abcdef-json.log?max-file=3&max-size=10485760&compress=true",
            ),
            (
                "json-file",
                &[("labels", "team,none"), ("env", "B"), ("tag", "{{.Name}}/{{ .ID }}"), ("max-size", "-1")],
                "json-file:///d/0123456789abcdef-json.log?max-file=5&attr.tag=web/0123456789ab&attr.team=a%20b&attr.B=2",
            ),
            ("local", &[], "local:///d/container.log?max-file=5&max-size=20971520&compress=true"),
            (
                "local",
                &[("mode", "non-blocking"), ("max-buffer-size", "8k"), ("max-file", "1")],
                "local:///d/container.log?max-file=1&max-size=20971520&mode=non-blocking&max-buffer-size=8192",
            ),
            (
                "journald",
                &[("tag", "{{.ImageName}}"), ("labels", "team")],
                "journald:///run/systemd/journal/socket?tag=img:1&name=web&image=img:1&attr.team=a%20b",
            ),
            (
                "syslog",
                &[("syslog-address", "udp://127.0.0.1:5140"), ("syslog-facility", "local1"), ("mode", "blocking")],
                "syslog://?address=udp://127.0.0.1:5140&facility=local1&mode=blocking",
            ),
        ] {
            let driver = parsed(kind, options).unwrap_or_else(|error| panic!("{kind} {options:?}: {error:?}"));
            let config = config();
            let (id, image_id) = ("0123456789abcdef", "sha256:fedcba9876543210");
            let subject = Subject { id, name: "web", image_id, config: &config, kind };
            assert_eq!(driver.uri(Path::new("/d"), subject), uri, "{kind} {options:?}");
            assert!(uri.parse::<StdioUri>().is_ok(), "{uri}");
        }
        for (text, bytes) in [("1", 1), ("1k", 1024), ("2MB", 2 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_size(text), Some(Some(bytes)), "{text}");
        }
        for (kind, key, value) in [
            ("gelf", "gelf-address", "http://x:1"),
            ("gelf", "tag", "no address"),
            ("fluentd", "fluentd-async", "false"),
            ("fluentd", "fluentd-max-retries", "3"),
            ("splunk", "", ""),
            ("json-file", "max-size", "x"),
            ("json-file", "max-size", "0"),
            ("json-file", "max-file", "0"),
            ("json-file", "what", "x"),
            ("json-file", "tag", "{{.Nme}}"),
            ("json-file", "max-buffer-size", "1m"),
            ("json-file", "mode", "fast"),
            ("json-file", "syslog-address", "udp://127.0.0.1"),
            ("local", "tag", "x"),
            ("journald", "max-size", "1m"),
            ("syslog", "syslog-address", "tcp+tls://127.0.0.1:1"),
            ("syslog", "syslog-address", "udp://log.example"),
            ("syslog", "syslog-format", "rfc1"),
        ] {
            assert!(parsed(kind, &[(key, value)]).is_err(), "{kind} {key} {value}");
        }
    }

    #[test]
    fn only_plain_files_are_written_by_the_engine() {
        assert_eq!(parsed("", &[]).unwrap().simple_file().unwrap(), Some((Some(20 << 20), 5)));
        assert_eq!(parsed("none", &[]).unwrap().simple_file().unwrap(), None);
        for (kind, options) in [("local", &[][..]), ("json-file", &[("compress", "true")]), ("journald", &[])] {
            assert!(parsed(kind, options).unwrap().simple_file().is_err(), "{kind}");
        }
    }
}
