//! A network of the user: what was asked for, checked; and what is kept of it on disk. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::config;
use super::error::NetworkError;
use super::subnet::Subnet;
use crate::time::Timestamp;

/// Names of the networks that are always there.
pub const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// Options of the bridge driver that are understood.
mod option {
    pub(super) const NAME: &str = "com.docker.network.bridge.name";
    pub(super) const ICC: &str = "com.docker.network.bridge.enable_icc";
    pub(super) const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
    pub(super) const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
    pub(super) const MTU: &str = "com.docker.network.driver.mtu";
    pub(super) const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
    pub(super) const PREFIX: &str = "com.docker.network.";
}

/// What is asked for when a network is made.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    /// Its name.
    pub name: String,
    /// Nothing outside can be reached from it.
    pub internal: bool,
    /// Containers outside of services may join; means nothing on one machine, but is shown.
    pub attachable: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Options of the address management; shown only.
    pub ipam_options: BTreeMap<String, String>,
    /// The subnet; none for one of the pools.
    pub subnet: Option<SubnetRequest>,
}

/// A subnet that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetRequest {
    /// The network, `10.1.0.0/16`; empty for one of the pools.
    pub subnet: String,
    /// Where containers get their addresses from.
    pub range: String,
    /// The bridge's own address.
    pub gateway: String,
    /// Addresses that belong to others.
    pub auxiliary: BTreeMap<String, String>,
}

/// A network of the user as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Nothing outside can be reached from it.
    pub internal: bool,
    /// Shown only.
    pub attachable: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as they were given.
    pub options: BTreeMap<String, String>,
    /// Options of the address management.
    #[serde(default)]
    pub ipam_options: BTreeMap<String, String>,
    /// The bridge's address and its network.
    pub address: Subnet,
    /// The user chose the subnet: only then can containers choose addresses.
    pub chosen: bool,
    /// The gateway was given.
    #[serde(default)]
    pub gateway_chosen: bool,
    /// Where containers get their addresses from, if not from the whole subnet.
    pub range: Option<Subnet>,
    /// Addresses that belong to others.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, Ipv4Addr>,
    /// Name of the bridge.
    pub bridge: String,
    /// The bridge was there before and stays.
    #[serde(default)]
    pub adopted: bool,
}

/// What the options of the driver say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DriverOptions {
    pub(super) bridge: Option<String>,
    pub(super) icc: bool,
    pub(super) masquerade: bool,
    pub(super) host_ip: Option<Ipv4Addr>,
    pub(super) mtu: u32,
}

impl DriverOptions {
    /// Reads them; `mtu` is the one of networks that say nothing.
    pub(super) fn parse(options: &BTreeMap<String, String>, mtu: u32) -> Result<Self, NetworkError> {
        let mut parsed = Self { bridge: None, icc: true, masquerade: true, host_ip: None, mtu };
        for (key, value) in options {
            let bad = || NetworkError::Option { key: key.clone(), value: value.clone() };
            let flag = || parse_bool(value).ok_or_else(bad);
            match key.as_str() {
                option::NAME => parsed.bridge = (!value.is_empty()).then(|| value.clone()),
                option::ICC => parsed.icc = flag()?,
                option::MASQUERADE => parsed.masquerade = flag()?,
                option::HOST_BINDING => {
                    let ip: Ipv4Addr = value.parse().map_err(|_| bad())?;
                    parsed.host_ip = (!ip.is_unspecified()).then_some(ip);
                }
                option::MTU => {
                    parsed.mtu = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu)).ok_or_else(bad)?;
                }
                // What `docker network inspect bridge` shows and scripts copy.
                option::DEFAULT_BRIDGE if parse_bool(value) == Some(false) => {}
                key if key.starts_with(option::PREFIX) => return Err(NetworkError::UnknownOption(key.to_owned())),
                // dockerd takes options of others without a word, and shows them.
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// Go's idea of a boolean.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Checks the name of a network.
pub(super) fn check_network_name(name: &str) -> Result<(), NetworkError> {
    if PREDEFINED.contains(&name) || name == "default" {
        return Err(NetworkError::Predefined(name.to_owned()));
    }
    if name.trim().is_empty() {
        return Err(NetworkError::NetworkName { name: name.to_owned(), why: "name is empty" });
    }
    let mut bytes = name.bytes();
    let start = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if start && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
        return Ok(());
    }
    // A colon would be read as `container:NAME`, a slash or NUL as something else again.
    if name.contains(['/', ':', '\0', '\n']) || name.len() > 255 {
        let why = "it can't hold '/', ':' or line breaks, nor be longer than 255 bytes";
        return Err(NetworkError::NetworkName { name: name.to_owned(), why });
    }
    Ok(())
}

/// A subnet that was asked for, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// None when one of the pools is to be taken.
    pub(super) subnet: Option<Subnet>,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) range: Option<Subnet>,
    pub(super) auxiliary: BTreeMap<String, Ipv4Addr>,
}

impl SubnetRequest {
    /// Reads it.
    pub(super) fn parse(&self) -> Result<Chosen, NetworkError> {
        let bad =
            |what: &'static str, value: &str, why: String| NetworkError::Ipam { what, value: value.to_owned(), why };
        let prefixed = |what, text: &str| -> Result<Option<Subnet>, NetworkError> {
            if text.is_empty() {
                return Ok(None);
            }
            if text.contains("::") {
                return Err(NetworkError::Ipv6);
            }
            text.parse().map(Some).map_err(|_| bad(what, text, "invalid CIDR block notation".to_owned()))
        };
        let subnet = prefixed("subnet", &self.subnet)?;
        let range = prefixed("ip-range", &self.range)?;
        if let Some(subnet) = subnet {
            if subnet.address() != subnet.network() {
                let why = format!("it should be {}", subnet.to_network());
                return Err(bad("subnet", &self.subnet, why));
            }
            if subnet.prefix() > 30 {
                return Err(bad("subnet", &self.subnet, "it has no room for containers (at most /30)".to_owned()));
            }
            if subnet.prefix() == 0 || subnet.overlaps(Subnet::LOOPBACK) || subnet.network().is_multicast() {
                return Err(bad("subnet", &self.subnet, "containers can't have such addresses".to_owned()));
            }
        }
        let inside = |what, text: &str| -> Result<Ipv4Addr, NetworkError> {
            let ip: Ipv4Addr = text.parse().map_err(|_| bad(what, text, "it is no IPv4 address".to_owned()))?;
            match subnet {
                None => Err(bad(what, text, "it needs a subnet beside it".to_owned())),
                Some(subnet) if !subnet.contains(ip) || ip == subnet.network() || ip == subnet.broadcast() => {
                    Err(bad(what, text, format!("no address of a host in {subnet}")))
                }
                Some(_) => Ok(ip),
            }
        };
        if let (Some(range), text) = (range, &self.range) {
            let within = subnet.is_some_and(|s| s.contains(range.network()) && s.contains(range.broadcast()));
            if !within {
                return Err(bad("ip-range", text, format!("it is not inside of the subnet {:?}", self.subnet)));
            }
        }
        let gateway = (!self.gateway.is_empty()).then(|| inside("gateway address", &self.gateway)).transpose()?;
        let mut auxiliary = BTreeMap::new();
        for (name, text) in &self.auxiliary {
            auxiliary.insert(name.clone(), inside("auxiliary address", text)?);
        }
        Ok(Chosen { subnet, gateway, range: range.map(Subnet::to_network), auxiliary })
    }
}

/// The bridge's address in a subnet: the given one, else the first that is nobody's.
pub(super) fn bridge_address(subnet: Subnet, chosen: &Chosen) -> Result<Subnet, NetworkError> {
    let first = match chosen.range {
        // As docker: the gateway comes out of the range, too.
        Some(range) => range.network().to_bits().max(subnet.network().to_bits() + 1),
        None => subnet.network().to_bits() + 1,
    };
    let free = |ip: &Ipv4Addr| !chosen.auxiliary.values().any(|taken| taken == ip);
    let address = match chosen.gateway {
        Some(gateway) => gateway,
        None => (first..subnet.broadcast().to_bits()).map(Ipv4Addr::from_bits).find(free).unwrap_or(subnet.network()),
    };
    Subnet::new(address, subnet.prefix()).and_then(Subnet::check_bridge_address).map_err(NetworkError::BridgeAddress)
}

/// The name of a bridge that nobody named.
pub(super) fn bridge_name(id: &str) -> String {
    format!("br-{}", &id[..12.min(id.len())])
}

/// Checks the name of a bridge that the user gives.
pub(super) fn check_bridge_name(name: &str) -> Result<(), NetworkError> {
    config::check_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn request(subnet: &str, range: &str, gateway: &str, auxiliary: &[(&str, &str)]) -> SubnetRequest {
        SubnetRequest { subnet: subnet.into(), range: range.into(), gateway: gateway.into(), auxiliary: map(auxiliary) }
    }

    #[test]
    fn subnets_are_checked() {
        for (subnet, range, gateway, auxiliary, fine) in [
            ("10.1.0.0/16", "", "", "", true),
            ("10.1.0.0/16", "10.1.4.0/24", "10.1.0.9", "10.1.0.7", true),
            ("10.1.0.1/16", "", "", "", false),
            ("10.1.0.0", "", "", "", false),
            ("10.1.0.0/31", "", "", "", false),
            ("127.0.0.0/24", "", "", "", false),
            ("0.0.0.0/0", "", "", "", false),
            ("fd00::/64", "", "", "", false),
            ("10.1.0.0/16", "10.2.0.0/24", "", "", false),
            ("10.1.0.0/16", "", "10.2.0.1", "", false),
            ("10.1.0.0/16", "", "10.1.255.255", "", false),
            ("10.1.0.0/16", "", "", "10.2.0.1", false),
            ("", "", "10.1.0.1", "", false),
            ("", "10.1.0.0/24", "", "", false),
            ("", "", "", "", true),
        ] {
            let aux: &[(&str, &str)] = if auxiliary.is_empty() { &[] } else { &[("x", auxiliary)] };
            let parsed = request(subnet, range, gateway, aux).parse();
            assert_eq!(parsed.is_ok(), fine, "{subnet} {range} {gateway} {auxiliary}: {parsed:?}");
        }
    }

    #[test]
    fn the_bridge_takes_the_first_free_address() {
        let address = |request: SubnetRequest| {
            let chosen = request.parse().expect("parse");
            bridge_address(chosen.subnet.expect("subnet"), &chosen).map(|subnet| subnet.to_string()).ok()
        };
        assert_eq!(address(request("10.1.0.0/16", "", "", &[])), Some("10.1.0.1/16".into()));
        assert_eq!(address(request("10.1.0.0/16", "", "", &[("a", "10.1.0.1")])), Some("10.1.0.2/16".into()));
        assert_eq!(address(request("10.1.0.0/16", "", "10.1.0.9", &[])), Some("10.1.0.9/16".into()));
        assert_eq!(address(request("10.1.0.0/16", "10.1.4.0/24", "", &[])), Some("10.1.4.0/16".into()));
    }

    #[test]
    fn names_and_options() {
        for (name, fine) in [
            ("web", true),
            ("my_net-1.x", true),
            ("with space", true),
            ("", false),
            (" ", false),
            ("a/b", false),
            ("container:x", false),
            ("host", false),
            ("bridge", false),
            ("none", false),
        ] {
            assert_eq!(check_network_name(name).is_ok(), fine, "{name:?}");
        }
        let options =
            map(&[(option::ICC, "false"), (option::MTU, "1400"), (option::HOST_BINDING, "127.0.0.1"), ("x", "y")]);
        let parsed = DriverOptions::parse(&options, 1500).expect("options");
        assert_eq!((parsed.icc, parsed.mtu, parsed.host_ip), (false, 1400, Some(Ipv4Addr::LOCALHOST)));
        for (key, value) in [(option::ICC, "maybe"), (option::MTU, "9"), ("com.docker.network.nonsense", "1")] {
            let error = DriverOptions::parse(&map(&[(key, value)]), 1500).expect_err(key);
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
