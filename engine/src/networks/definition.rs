//! A network of the user: what was asked for, checked; and what is kept of it on disk. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::config;
use super::error::NetworkError;
use super::options::Driver;
use super::subnet::{Subnet, bits, from_bits};
use crate::time::Timestamp;

/// Names of the networks that are always there.
pub const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// What is asked for when a network is made.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub driver: Driver,
    /// Whether containers get IPv4 addresses; they do if nothing is said.
    pub enable_ipv4: Option<bool>,
    /// Whether containers get IPv6 addresses.
    pub enable_ipv6: Option<bool>,
    /// Nothing outside can be reached from it.
    pub internal: bool,
    /// Containers outside of services may join; means nothing on one machine, but is shown.
    pub attachable: bool,
    /// It is no network, and holds what others are made with.
    pub config_only: bool,
    /// The name of a network that holds what this one is made with.
    pub config_from: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Options of the address management; shown only.
    pub ipam_options: BTreeMap<String, String>,
    /// The subnets; those of a family that needs one and has none come from the pools.
    pub subnets: Vec<SubnetRequest>,
}

/// A subnet that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pooled {
    /// The gateway's address and its network.
    pub address: Subnet,
    /// The user chose it: only then can containers choose addresses.
    pub chosen: bool,
    /// The gateway was given.
    #[serde(default)]
    pub gateway_chosen: bool,
    /// Where containers get their addresses from, if not from the whole subnet.
    pub range: Option<Subnet>,
    /// Addresses that belong to others.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// A network of the user as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Definition {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub driver: Driver,
    /// When it was made.
    pub created: Timestamp,
    /// Containers get IPv4 addresses.
    pub ipv4: bool,
    /// Containers get IPv6 addresses.
    pub ipv6: bool,
    /// Nothing outside can be reached from it.
    pub internal: bool,
    /// Shown only.
    pub attachable: bool,
    /// It is no network, and holds what others are made with.
    pub config_only: bool,
    /// The name of the network that holds what this one was made with.
    pub config_from: Option<String>,
    /// What such a network was asked to hold.
    pub requested: Vec<SubnetRequest>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as they were given.
    pub options: BTreeMap<String, String>,
    /// Options of the address management.
    pub ipam_options: BTreeMap<String, String>,
    /// Its subnets.
    pub subnets: Vec<Pooled>,
    /// Name of the bridge, or of the link that containers' links are on; empty for one that only holds what others are made with.
    pub bridge: String,
    /// That link was there before and stays.
    pub adopted: bool,
}

/// What is on disk, also of engines that knew bridges with one IPv4 subnet only.
#[derive(Deserialize)]
struct Stored {
    id: String,
    name: String,
    #[serde(default)]
    driver: Driver,
    created: Timestamp,
    #[serde(default = "yes")]
    ipv4: bool,
    #[serde(default)]
    ipv6: bool,
    internal: bool,
    attachable: bool,
    #[serde(default)]
    config_only: bool,
    #[serde(default)]
    config_from: Option<String>,
    #[serde(default)]
    requested: Vec<SubnetRequest>,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    #[serde(default)]
    ipam_options: BTreeMap<String, String>,
    #[serde(default)]
    subnets: Vec<Pooled>,
    #[serde(flatten)]
    only: Option<Pooled>,
    bridge: String,
    #[serde(default)]
    adopted: bool,
}

fn yes() -> bool {
    true
}

impl From<Stored> for Definition {
    fn from(stored: Stored) -> Self {
        Self {
            id: stored.id,
            name: stored.name,
            driver: stored.driver,
            created: stored.created,
            ipv4: stored.ipv4,
            ipv6: stored.ipv6,
            internal: stored.internal,
            attachable: stored.attachable,
            config_only: stored.config_only,
            config_from: stored.config_from,
            requested: stored.requested,
            labels: stored.labels,
            options: stored.options,
            ipam_options: stored.ipam_options,
            subnets: stored.only.into_iter().chain(stored.subnets).collect(),
            bridge: stored.bridge,
            adopted: stored.adopted,
        }
    }
}

impl Definition {
    /// The subnets of a family.
    pub fn of_family(&self, is_ipv4: bool) -> impl Iterator<Item = &Pooled> {
        self.subnets.iter().filter(move |pooled| pooled.address.is_ipv4() == is_ipv4)
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// None when one of the pools is to be taken.
    pub(super) subnet: Option<Subnet>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) range: Option<Subnet>,
    pub(super) auxiliary: BTreeMap<String, IpAddr>,
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
            text.parse().map(Some).map_err(|_| bad(what, text, "invalid CIDR block notation".to_owned()))
        };
        let subnet = prefixed("subnet", &self.subnet)?;
        let range = prefixed("ip-range", &self.range)?;
        if let Some(subnet) = subnet {
            if subnet.address() != subnet.network() {
                let why = format!("it should be {}", subnet.to_network());
                return Err(bad("subnet", &self.subnet, why));
            }
            let most = subnet.width() - 2;
            if subnet.prefix() > most {
                let why = format!("it has no room for containers (at most /{most})");
                return Err(bad("subnet", &self.subnet, why));
            }
            let network = subnet.network();
            let link_local = matches!(network, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let special = network.is_loopback() || network.is_multicast() || link_local;
            if subnet.prefix() == 0 || subnet.overlaps(Subnet::LOOPBACK) || special {
                return Err(bad("subnet", &self.subnet, "containers can't have such addresses".to_owned()));
            }
        }
        let inside = |what, text: &str| -> Result<IpAddr, NetworkError> {
            let ip: IpAddr = text.parse().map_err(|_| bad(what, text, "it is no IP address".to_owned()))?;
            match subnet {
                None => Err(bad(what, text, "it needs a subnet beside it".to_owned())),
                Some(subnet) if !subnet.is_host(ip) => {
                    Err(bad(what, text, format!("no address of a host in {subnet}")))
                }
                Some(_) => Ok(ip),
            }
        };
        if let (Some(range), text) = (range, &self.range) {
            let within = subnet.is_some_and(|s| s.contains(range.network()) && s.contains(range.last()));
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

/// The gateway's address in a subnet: the given one, else the first that is nobody's.
pub(super) fn gateway_address(subnet: Subnet, chosen: &Chosen) -> Result<Subnet, NetworkError> {
    let (lowest, last) = subnet.hosts();
    // As docker: the gateway comes out of the range, too.
    let first = chosen.range.map_or(lowest, |range| bits(range.network()).max(lowest));
    let free = |ip: &IpAddr| !chosen.auxiliary.values().any(|taken| taken == ip);
    let address = match chosen.gateway {
        Some(gateway) => gateway,
        None => {
            let mut all = (first..=last).map(|bits| from_bits(bits, subnet.is_ipv4()));
            all.find(free).unwrap_or(subnet.network())
        }
    };
    Subnet::new(address, subnet.prefix()).and_then(Subnet::check_bridge_address).map_err(NetworkError::BridgeAddress)
}

/// The name of a bridge that nobody named.
pub(super) fn bridge_name(id: &str) -> String {
    format!("br-{}", &id[..12.min(id.len())])
}

/// The name of a link that takes the place of one of the host's where none was given.
pub(super) fn dummy_name(id: &str) -> String {
    format!("dm-{}", &id[..12.min(id.len())])
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
            ("10.1.0.0/16", "10.2.0.0/24", "", "", false),
            ("10.1.0.0/16", "", "10.2.0.1", "", false),
            ("10.1.0.0/16", "", "10.1.255.255", "", false),
            ("10.1.0.0/16", "", "", "10.2.0.1", false),
            ("10.1.0.0/16", "", "fd00::1", "", false),
            ("", "", "10.1.0.1", "", false),
            ("", "10.1.0.0/24", "", "", false),
            ("", "", "", "", true),
            ("fd00::/64", "", "", "", true),
            ("fd00::/64", "fd00::1:0/112", "fd00::9", "fd00::7", true),
            ("fd00::1/64", "", "", "", false),
            ("fd00::/127", "", "", "", false),
            ("fe80::/64", "", "", "", false),
            ("ff00::/64", "", "", "", false),
            ("::/0", "", "", "", false),
            ("fd00::/64", "10.1.0.0/24", "", "", false),
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
            gateway_address(chosen.subnet.expect("subnet"), &chosen).map(|subnet| subnet.to_string()).ok()
        };
        assert_eq!(address(request("10.1.0.0/16", "", "", &[])), Some("10.1.0.1/16".into()));
        assert_eq!(address(request("10.1.0.0/16", "", "", &[("a", "10.1.0.1")])), Some("10.1.0.2/16".into()));
        assert_eq!(address(request("10.1.0.0/16", "", "10.1.0.9", &[])), Some("10.1.0.9/16".into()));
        assert_eq!(address(request("10.1.0.0/16", "10.1.4.0/24", "", &[])), Some("10.1.4.0/16".into()));
        assert_eq!(address(request("fd00:5::/64", "", "", &[])), Some("fd00:5::1/64".into()));
    }

    #[test]
    fn names() {
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
    }

    #[test]
    fn what_an_older_engine_wrote() {
        let text = r#"{"id":"ab","name":"n","created":"2026-01-02T03:04:05Z","internal":false,"attachable":false,"labels":{},
            "options":{},"ipam_options":{},"address":"10.1.0.1/24","chosen":true,"gateway_chosen":false,"range":null,
            "auxiliary":{"a":"10.1.0.9"},"bridge":"br-ab","adopted":false}"#;
        let old: Definition = serde_json::from_str(text).expect("definition");
        assert_eq!((old.driver, old.ipv4, old.ipv6, old.subnets.len()), (Driver::Bridge, true, false, 1));
        assert_eq!(old.subnets[0].address.to_string(), "10.1.0.1/24");
        assert_eq!(old.subnets[0].auxiliary.len(), 1);
        let again: Definition = serde_json::from_str(&serde_json::to_string(&old).expect("text")).expect("definition");
        assert_eq!(again, old);
    }
}
