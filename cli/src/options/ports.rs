//! `--publish` and `--expose`.

use super::OptionError;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Why a port was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Nothing where a container port should be.
    #[error("no port specified: {0}<empty>")]
    Missing(String),
    /// Not an address.
    #[error("invalid IP address: {0}")]
    Address(String),
    /// Not a container port or range.
    #[error("invalid containerPort: {0}")]
    Container(String),
    /// Not a host port or range.
    #[error("invalid hostPort: {0}")]
    Host(String),
    /// Ranges of different length.
    #[error("invalid ranges specified for container and host Ports: {0} and {1}")]
    Ranges(String, String),
    /// Neither tcp nor udp nor sctp.
    #[error("invalid proto: {0}")]
    Protocol(String),
    /// An unknown key in the long form.
    #[error("invalid field key {0:?}")]
    Key(String),
    /// A field of the long form without "=".
    #[error("invalid field: {0}")]
    Field(String),
}

/// Ports of one container.
#[derive(Debug, Default, PartialEq)]
pub struct Ports {
    /// `Config.ExposedPorts`
    pub exposed: Map<String, Value>,
    /// `HostConfig.PortBindings`
    pub bindings: Map<String, Value>,
}

impl Ports {
    /// Adds one `--publish`.
    pub fn publish(&mut self, text: &str) -> Result<(), PortError> {
        let short;
        let spec = if text.contains('=') {
            short = long_form(text)?;
            &short
        } else {
            text
        };
        let (address, host, container) = split(spec)?;
        let (container, protocol) = container.rsplit_once('/').unwrap_or((container, "tcp"));
        if container.is_empty() {
            return Err(PortError::Missing(spec.to_owned()));
        }
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(PortError::Protocol(protocol));
        }
        let inner = range(container).ok_or_else(|| PortError::Container(container.to_owned()))?;
        let outer = match host {
            "" => None,
            host => Some(range(host).ok_or_else(|| PortError::Host(host.to_owned()))?),
        };
        let same = outer.is_none_or(|(from, to)| to - from == inner.1 - inner.0);
        // One container port on a range of the host: the engine takes a free one of the range.
        let any_of = !same && inner.0 == inner.1;
        if !same && !any_of {
            return Err(PortError::Ranges(container.to_owned(), host.to_owned()));
        }
        for port in inner.0..=inner.1 {
            let host_port = match outer {
                None => String::new(),
                Some(_) if any_of => host.to_owned(),
                Some((from, _)) => (from + (port - inner.0)).to_string(),
            };
            let key = format!("{port}/{protocol}");
            self.exposed.insert(key.clone(), json!({}));
            let binding = json!({"HostIp": address, "HostPort": host_port});
            match self.bindings.entry(key).or_insert_with(|| json!([])) {
                Value::Array(all) => all.push(binding),
                other => *other = json!([binding]),
            }
        }
        Ok(())
    }

    /// Adds one `--expose`.
    pub fn expose(&mut self, text: &str) -> Result<(), OptionError> {
        let bad =
            |cause: &str| OptionError::Invalid(format!("invalid range format for --expose: {text}, error: {cause}"));
        if text.contains(':') {
            return Err(OptionError::Invalid(format!("invalid port format for --expose: {text}")));
        }
        let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let (from, to) = range(ports).ok_or_else(|| bad(&number_fault(ports)))?;
        for port in from..=to {
            self.exposed.insert(format!("{port}/{}", protocol.to_ascii_lowercase()), json!({}));
        }
        Ok(())
    }
}

/// "from-to" or one port.
fn range(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let number = |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u16>().ok() } else { None };
    let (from, to) = (number(from)?, number(to)?);
    (from <= to).then_some((from, to))
}

/// Address, host port, container port with protocol.
fn split(spec: &str) -> Result<(String, &str, &str), PortError> {
    let (rest, container) = match spec.rsplit_once(':') {
        None => return Ok((String::new(), "", spec)),
        Some(parts) => parts,
    };
    let Some((address, host)) = rest.rsplit_once(':') else { return Ok((String::new(), rest, container)) };
    let plain = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if plain.is_empty() {
        return Ok((String::new(), host, container));
    }
    match plain.parse::<IpAddr>() {
        Ok(_) => Ok((plain.to_owned(), host, container)),
        Err(_) => Err(PortError::Address(plain.to_owned())),
    }
}

/// published=,target=,protocol=,mode=,host_ip= as the short form.
fn long_form(text: &str) -> Result<String, PortError> {
    let (mut target, mut published, mut protocol) = ("", "", "tcp");
    for field in text.split(',') {
        let (key, value) = field.split_once('=').ok_or_else(|| PortError::Field(field.to_owned()))?;
        match key.to_ascii_lowercase().as_str() {
            "target" => target = value,
            "published" => published = value,
            "protocol" => protocol = value,
            // Ingress is swarm's; for one container both modes are the same.
            "mode" => {}
            _ => return Err(PortError::Key(key.to_owned())),
        }
    }
    if target.is_empty() {
        return Err(PortError::Missing(text.to_owned()));
    }
    let colon = if published.is_empty() { "" } else { ":" };
    Ok(format!("{published}{colon}{target}/{protocol}"))
}

/// What docker says of a range that is none: which of its numbers it could not read.
fn number_fault(range: &str) -> String {
    let parts = range.split('-');
    let bad = parts.clone().find(|part| part.parse::<u16>().is_err());
    match bad {
        Some(part) if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) => {
            format!("strconv.ParseUint: parsing {part:?}: value out of range")
        }
        Some(part) => format!("strconv.ParseUint: parsing {part:?}: invalid syntax"),
        None => format!("invalid range specified for port: {range}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bindings(text: &str) -> Result<String, PortError> {
        let mut ports = Ports::default();
        ports.publish(text)?;
        assert!(ports.bindings.keys().all(|key| ports.exposed.contains_key(key)));
        Ok(Value::Object(ports.bindings).to_string().replace('"', ""))
    }

    #[test]
    fn published_ports() {
        for (text, want) in [
            ("80", "{80/tcp:[{HostIp:,HostPort:}]}"),
            ("8080:80", "{80/tcp:[{HostIp:,HostPort:8080}]}"),
            ("8080:80/UDP", "{80/udp:[{HostIp:,HostPort:8080}]}"),
            ("127.0.0.1:8080:80", "{80/tcp:[{HostIp:127.0.0.1,HostPort:8080}]}"),
            ("127.0.0.1::80", "{80/tcp:[{HostIp:127.0.0.1,HostPort:}]}"),
            ("[::1]:8080:80", "{80/tcp:[{HostIp:::1,HostPort:8080}]}"),
            ("8000-8001:80-81", "{80/tcp:[{HostIp:,HostPort:8000}],81/tcp:[{HostIp:,HostPort:8001}]}"),
            ("8000-8010:80", "{80/tcp:[{HostIp:,HostPort:8000-8010}]}"),
            ("published=8080,target=80,protocol=sctp,mode=host", "{80/sctp:[{HostIp:,HostPort:8080}]}"),
            ("target=80", "{80/tcp:[{HostIp:,HostPort:}]}"),
        ] {
            assert_eq!(bindings(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn refused_ports() {
        for (text, message) in [
            ("a", "invalid containerPort: a"),
            ("99999:80", "invalid hostPort: 99999"),
            ("80:", "no port specified: 80:<empty>"),
            ("x:1:2", "invalid IP address: x"),
            ("1-2:1-3", "invalid ranges specified for container and host Ports: 1-3 and 1-2"),
            ("80/icmp", "invalid proto: icmp"),
            ("target=80,what=1", "invalid field key \"what\""),
            ("2-1", "invalid containerPort: 2-1"),
        ] {
            assert_eq!(bindings(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn exposed_ports() {
        let mut ports = Ports::default();
        ports.expose("80-81/udp").unwrap();
        ports.expose("90").unwrap();
        assert_eq!(ports.exposed.keys().collect::<Vec<_>>(), ["80/udp", "81/udp", "90/tcp"]);
        assert!(ports.expose("x").is_err() && ports.expose("1:2").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9a-z:/.,=\\[\\]-]{0,24}") {
            let mut ports = Ports::default();
            let _ = ports.publish(&text);
            let _ = ports.expose(&text);
        }
    }
}
