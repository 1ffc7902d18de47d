//! Reads a `hosts.toml` as containerd does.

use std::{path::Path, time::Duration};

use hyper::{HeaderMap, header};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Capabilities, Entry, HUB, HostsError, Layout, own_authority};
use crate::registry::{
    http::Target,
    tls::{Pair, Trust},
};

/// A faulty value of the file that is read.
struct Reader<'a> {
    file: &'a Path,
}

/// Reads the text of a file.
pub(super) fn parse(text: &str, file: &Path) -> Result<Layout, HostsError> {
    let reader = Reader { file };
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        reader.wrong(&format!("line {line}"), error.message().replace('\n', " "))
    })?;
    let table = table.get_ref();
    let server = match table.get("server").map(Spanned::get_ref) {
        None => None,
        Some(value) => match reader.string("server", value)? {
            "" => None,
            text => Some(text.to_owned()),
        },
    };
    let mut hosts = Vec::new();
    match table.get("host").map(Spanned::get_ref) {
        None => {}
        Some(DeValue::Table(table)) => {
            // In the file's order, which is that of the trials.
            let mut entries: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = table.iter().collect();
            entries.sort_by_key(|(key, _)| key.span().start);
            for (key, value) in entries {
                let (address, name): (&str, _) = (key.get_ref(), format!("host.{:?}", key.get_ref()));
                let DeValue::Table(values) = value.get_ref() else {
                    return Err(reader.wrong(&name, "is not a table".into()));
                };
                hosts.push(reader.entry(&format!("{name}."), Some(address), values)?);
            }
        }
        Some(_) => return Err(reader.wrong("host", "is not a table".into())),
    }
    let server = reader.entry("", server.as_deref(), table)?;
    Ok(Layout { file: file.to_owned(), hosts, server })
}

impl Reader<'_> {
    fn wrong(&self, key: &str, why: String) -> HostsError {
        HostsError::Key { file: self.file.to_owned(), key: key.to_owned(), why }
    }

    fn entry(&self, above: &str, address: Option<&str>, table: &DeTable<'_>) -> Result<Entry, HostsError> {
        let mut entry = Entry {
            address: None,
            can: Capabilities::ALL,
            trust: Trust::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
        };
        let mut override_path = false;
        for (name, value) in table.iter() {
            let (name, value): (&str, _) = (name.get_ref(), value.get_ref());
            let key = format!("{above}{name}");
            match name {
                "capabilities" => entry.can = self.capabilities(&key, value)?,
                "ca" => {
                    entry.trust.ca = self.strings(&key, value)?.iter().map(|path| self.path(path)).collect();
                }
                "client" => entry.trust.client = vec![self.client(&key, value)?],
                "skip_verify" => entry.trust.skip_verify = self.truth(&key, value)?,
                "override_path" => override_path = self.truth(&key, value)?,
                "header" => entry.headers = self.headers(&key, value)?,
                "dial_timeout" => {
                    let text = self.string(&key, value)?;
                    let wrong = || self.wrong(&key, format!("{text:?} is not a duration such as 500ms, 5s or 1m30s"));
                    entry.dial_timeout = Some(duration(text).ok_or_else(wrong)?);
                }
                "server" | "host" if above.is_empty() => {}
                // Later versions of containerd may know more than we do.
                _ => tracing::warn!(file = %self.file.display(), key, "unknown key of a hosts file, ignored"),
            }
        }
        if let Some(text) = address {
            let name = if above.is_empty() { "server" } else { above.trim_end_matches('.') };
            entry.address = Some(address_of(text, override_path).map_err(|why| self.wrong(name, why))?);
        }
        Ok(entry)
    }

    fn string<'a>(&self, key: &str, value: &'a DeValue<'_>) -> Result<&'a str, HostsError> {
        match value {
            DeValue::String(text) => Ok(text),
            other => Err(self.wrong(key, format!("is {}, not a text", article(other)))),
        }
    }

    fn truth(&self, key: &str, value: &DeValue<'_>) -> Result<bool, HostsError> {
        match value {
            DeValue::Boolean(truth) => Ok(*truth),
            other => Err(self.wrong(key, format!("is {}, not true or false", article(other)))),
        }
    }

    // One text, or a list of them.
    fn strings(&self, key: &str, value: &DeValue<'_>) -> Result<Vec<String>, HostsError> {
        match value {
            DeValue::String(text) => Ok(vec![text.clone().into_owned()]),
            DeValue::Array(values) => {
                values.iter().map(|value| self.string(key, value.get_ref()).map(str::to_owned)).collect()
            }
            other => Err(self.wrong(key, format!("is {}, not a text or a list of texts", article(other)))),
        }
    }

    fn capabilities(&self, key: &str, value: &DeValue<'_>) -> Result<Capabilities, HostsError> {
        let names = self.strings(key, value)?;
        if names.is_empty() {
            return Ok(Capabilities::ALL);
        }
        let mut can = Capabilities { pull: false, resolve: false, push: false };
        for name in names {
            match name.to_ascii_lowercase().as_str() {
                "pull" => can.pull = true,
                "resolve" => can.resolve = true,
                "push" => can.push = true,
                _ => return Err(self.wrong(key, format!("unknown capability {name:?} (known: pull, resolve, push)"))),
            }
        }
        Ok(can)
    }

    // "both.pem", ["both.pem"], [["client.cert", "client.key"]], [["both.pem", ""]]; a flat pair means two files that hold
    // certificate and key each.
    fn client(&self, key: &str, value: &DeValue<'_>) -> Result<Pair, HostsError> {
        let several = || self.wrong(key, "more than one client certificate for a host is not supported".into());
        let both = |text: &str| Pair { certificate: self.path(text), key: self.path(text) };
        let DeValue::Array(values) = value else { return Ok(both(self.string(key, value)?)) };
        match &values[..] {
            [one] => match one.get_ref() {
                DeValue::Array(_) => match self.strings(key, one.get_ref())?.as_slice() {
                    [certificate] => Ok(both(certificate)),
                    [certificate, other] if other.is_empty() => Ok(both(certificate)),
                    [certificate, other] => Ok(Pair { certificate: self.path(certificate), key: self.path(other) }),
                    _ => Err(self.wrong(key, "a pair is a certificate and its key".into())),
                },
                one => Ok(both(self.string(key, one)?)),
            },
            [] => Err(self.wrong(key, "is an empty list".into())),
            _ => Err(several()),
        }
    }

    fn headers(&self, key: &str, value: &DeValue<'_>) -> Result<HeaderMap, HostsError> {
        let DeValue::Table(table) = value else {
            return Err(self.wrong(key, format!("is {}, not a table", article(value))));
        };
        let mut headers = HeaderMap::new();
        for (name, value) in table.iter() {
            let key = format!("{key}.{}", name.get_ref());
            let texts = self.strings(&key, value.get_ref())?;
            let name = header::HeaderName::try_from(name.get_ref().as_ref())
                .map_err(|_| self.wrong(&key, "is not the name of a header".into()))?;
            for text in texts {
                let mut value = header::HeaderValue::try_from(text)
                    .map_err(|_| self.wrong(&key, "is not the value of a header".into()))?;
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
        Ok(headers)
    }

    // Relative to the file's folder.
    fn path(&self, path: &str) -> std::path::PathBuf {
        self.file.parent().map_or_else(|| path.into(), |folder| folder.join(path))
    }
}

fn article(value: &DeValue<'_>) -> String {
    format!("a value of type {}", value.type_str())
}

fn address_of(text: &str, override_path: bool) -> Result<Target, String> {
    let text = text.trim_end_matches('/');
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    // The name of the hub is not the host that it is served on.
    let text = match rest.strip_prefix(HUB) {
        Some(path) if path.is_empty() || path.starts_with('/') => format!("{scheme}://{}{path}", own_authority(HUB)),
        _ => text,
    };
    let path = text.splitn(4, '/').nth(3).unwrap_or_default();
    let complete = override_path || path == "v2" || path.ends_with("/v2") || format!("/{path}").contains("/v2/");
    Target::parse(&if complete { text } else { format!("{text}/v2") })
}

// As Go writes durations: 300ms, 5s, 1m30s.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, 0_f64);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..end].parse().ok()?;
        let tail = &rest[end..];
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let unit = match &tail[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum += number * unit;
        rest = &tail[end..];
    }
    Duration::try_from_secs_f64(sum).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn everything_that_a_file_can_say() {
        let text = r#"
            server = "docker.io"
            ca = "/abs/ca.pem"
            [host."https://mirror.example:8443/path"]
            capabilities = ["pull", "Resolve"]
            ca = ["one.pem", "/two.pem"]
            client = [["c.cert", "c.key"]]
            dial_timeout = "1m0.5s"
            [host."https://mirror.example:8443/path".header]
            x-one = "1"
            x-two = ["2", "3"]
            [host."http://a.example/custom/v2"]
            [host."b.example/x"]
            override_path = true
            skip_verify = true
            client = "both.pem"
        "#;
        let layout = parse(text, Path::new("/etc/certs.d/docker.io/hosts.toml")).unwrap();
        let [first, second, third] = &layout.hosts[..] else { panic!("{layout:?}") };
        assert_eq!(first.address.as_ref().unwrap().to_string(), "https://mirror.example:8443/path/v2");
        assert_eq!(first.can, Capabilities { pull: true, resolve: true, push: false });
        assert_eq!(first.trust.ca, [Path::new("/etc/certs.d/docker.io/one.pem"), Path::new("/two.pem")]);
        assert_eq!(first.trust.client[0].key, Path::new("/etc/certs.d/docker.io/c.key"));
        assert_eq!(first.dial_timeout, Some(Duration::from_millis(60_500)));
        assert_eq!((first.headers["x-one"].to_str().unwrap(), first.headers.get_all("x-two").iter().count()), ("1", 2));
        assert_eq!(second.address.as_ref().unwrap().to_string(), "http://a.example/custom/v2");
        assert_eq!(third.address.as_ref().unwrap().to_string(), "https://b.example/x");
        assert_eq!(third.trust.client[0].key, third.trust.client[0].certificate);
        assert!(third.trust.skip_verify && layout.server.trust.ca.len() == 1);
        assert_eq!(layout.server.address.as_ref().unwrap().to_string(), "https://registry-1.docker.io/v2");
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_key() {
        for (text, wanted) in [
            ("server = 1", "registry hosts file /d/hosts.toml: server: is a value of type integer, not a text"),
            ("[host.'ftp://x']", "host.\"ftp://x\": \"ftp://x/v2\" is not an http or https URL"),
            (
                "[host.'https://x']\ncapabilities = ['eat']",
                "host.\"https://x\".capabilities: unknown capability \"eat\"",
            ),
            ("skip_verify = 'yes'", "skip_verify: is a value of type string, not true or false"),
            ("[host.'https://x']\nclient = ['a', 'b']", "more than one client certificate"),
            ("dial_timeout = 'soon'", "dial_timeout: \"soon\" is not a duration"),
            ("[header]\n\"a b\" = 'x'", "header.a b: is not the name of a header"),
            ("ca = 1", "ca: is a value of type integer, not a text or a list of texts"),
            ("host = 1", "host: is not a table"),
            ("\n\nserver = ", "line 3: "),
        ] {
            let error = parse(text, Path::new("/d/hosts.toml")).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("/d/hosts.toml"), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(server|host|ca|client|\\[host\\.\"[a-z:/]{0,12}\"\\]|=|\"[ -~é]{0,9}\"|\\[|\\]|\n| ){0,20}") {
            let _ = parse(&text, Path::new("/x/hosts.toml"));
        }
    }
}
