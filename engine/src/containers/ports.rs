//! Exposed and published ports: from Docker's words to requests for the network.

use crate::{
    api::{HostConfig, PortBinding, serial::Set},
    http::ApiError,
    networks::{HostPort, PortRequest, Protocol},
};
use std::net::IpAddr;

/// Reads `80`, `80/tcp` or `80-90/udp`.
pub fn parse_port(text: &str) -> Result<(u16, u16, Protocol), ApiError> {
    let bad = |why: &str| ApiError::invalid(format!("invalid port specification: \"{text}\": {why}"));
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(bad("invalid proto")),
    };
    let (first, last) = parse_range(range).ok_or_else(|| bad("invalid port number"))?;
    if first == 0 {
        return Err(bad("port 0 is not a port"));
    }
    Ok((first, last, protocol))
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u16>().ok() } else { None };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// `80/tcp` in the form the API uses as a key.
pub fn port_key(port: u16, protocol: Protocol) -> String {
    format!("{port}/{}", protocol.name())
}

/// What is to be published: the bindings, and all exposed ports if asked for.
pub fn requests(host: &HostConfig, exposed: &Set) -> Result<Vec<PortRequest>, ApiError> {
    let mut requests = Vec::new();
    for (key, bindings) in &host.port_bindings {
        let (first, last, protocol) = parse_port(key)?;
        let unbound = [PortBinding::default()];
        let bindings = match bindings.as_deref() {
            None | Some([]) => &unbound[..],
            Some(bindings) => bindings,
        };
        for container_port in first..=last {
            for binding in bindings {
                requests.push(request(container_port, protocol, binding, u32::from(container_port - first))?);
            }
        }
    }
    if host.publish_all_ports {
        for key in &exposed.0 {
            let (first, last, protocol) = parse_port(key)?;
            for container_port in first..=last {
                if !requests.iter().any(|r| r.container_port == container_port && r.protocol == protocol) {
                    requests.push(PortRequest {
                        protocol,
                        container_port,
                        host_ip: None,
                        host_port: HostPort::Ephemeral,
                    });
                }
            }
        }
    }
    Ok(requests)
}

fn request(
    container_port: u16,
    protocol: Protocol,
    binding: &PortBinding,
    offset: u32,
) -> Result<PortRequest, ApiError> {
    let host_ip = match binding.host_ip.trim_matches(['[', ']']) {
        "" => None,
        text => {
            let wrong = || ApiError::invalid(format!("invalid IP address {text:?} to publish a port on"));
            Some(text.parse::<IpAddr>().map_err(|_| wrong())?)
        }
    };
    let bad = || ApiError::invalid(format!("invalid port specification: \"{}\"", binding.host_port));
    let host_port = match binding.host_port.split('/').next().unwrap_or("") {
        "" | "0" => HostPort::Ephemeral,
        text => match parse_range(text).ok_or_else(bad)? {
            (first, last) if first == last => {
                let port = u16::try_from(u32::from(first) + offset).map_err(|_| bad())?;
                HostPort::Exact(port)
            }
            (first, last) => HostPort::Range { first, last },
        },
    };
    Ok(PortRequest { protocol, container_port, host_ip, host_port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(json: &str) -> HostConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn bindings() {
        let wanted = host(
            r#"{"PortBindings":{"80/tcp":[{"HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],"53/udp":null,
                "90":[{"HostIp":"127.0.0.1","HostPort":"9000-9010"}]}}"#,
        );
        let requests = requests(&wanted, &Set::default()).unwrap();
        let seen: Vec<_> = requests.iter().map(|r| (r.container_port, r.protocol, r.host_port, r.host_ip)).collect();
        assert_eq!(
            seen,
            [
                (53, Protocol::Udp, HostPort::Ephemeral, None),
                (80, Protocol::Tcp, HostPort::Exact(8080), None),
                (80, Protocol::Tcp, HostPort::Exact(8080), Some(std::net::Ipv6Addr::UNSPECIFIED.into())),
                (90, Protocol::Tcp, HostPort::Range { first: 9000, last: 9010 }, Some([127, 0, 0, 1].into())),
            ]
        );
    }

    #[test]
    fn all_exposed_ports_that_are_not_bound() {
        let wanted = host(r#"{"PublishAllPorts":true,"PortBindings":{"80/tcp":[{"HostPort":"1"}]}}"#);
        let exposed = Set(["80/tcp".to_owned(), "81/tcp".to_owned()].into());
        assert_eq!(requests(&wanted, &exposed).unwrap().len(), 2);
    }

    #[test]
    fn refuses() {
        for text in ["", "x", "0", "70000", "80/x", "9-8", "+1", "1-"] {
            assert!(parse_port(text).is_err(), "{text}");
        }
        for json in
            [r#"{"PortBindings":{"80":[{"HostPort":"x"}]}}"#, r#"{"PortBindings":{"80":[{"HostIp":"nowhere"}]}}"#]
        {
            assert!(requests(&host(json), &Set::default()).is_err(), "{json}");
        }
    }
}
