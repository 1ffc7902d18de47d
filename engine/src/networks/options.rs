//! Drivers of networks and what their options say. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::config;
use super::error::NetworkError;

/// What a network of the user is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge of the host's, to which each container has a link.
    #[default]
    Bridge,
    /// Links with MAC addresses of their own on a link of the host's.
    Macvlan,
    /// Links with the MAC address of a link of the host's.
    Ipvlan,
}

impl Driver {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }
}

/// Docker's names of options.
mod key {
    pub(super) const NAME: &str = "com.docker.network.bridge.name";
    pub(super) const ICC: &str = "com.docker.network.bridge.enable_icc";
    pub(super) const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
    pub(super) const BIND_V4: &str = "com.docker.network.bridge.host_binding_ipv4";
    pub(super) const BIND_V6: &str = "com.docker.network.bridge.host_binding_ipv6";
    pub(super) const INHIBIT_V4: &str = "com.docker.network.bridge.inhibit_ipv4";
    pub(super) const MODE_V4: &str = "com.docker.network.bridge.gateway_mode_ipv4";
    pub(super) const MODE_V6: &str = "com.docker.network.bridge.gateway_mode_ipv6";
    pub(super) const TRUSTED: &str = "com.docker.network.bridge.trusted_host_interfaces";
    pub(super) const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
    pub(super) const MTU: &str = "com.docker.network.driver.mtu";
    pub(super) const SOURCE_V4: &str = "com.docker.network.host_ipv4";
    pub(super) const SOURCE_V6: &str = "com.docker.network.host_ipv6";
    pub(super) const INTERFACE: &str = "com.docker.network.container_iface_prefix";
    pub(super) const ENABLE_V4: &str = "com.docker.network.enable_ipv4";
    pub(super) const ENABLE_V6: &str = "com.docker.network.enable_ipv6";
    pub(super) const PREFIX: &str = "com.docker.network.";
}

/// How a network of one family is joined to the world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum GatewayMode {
    /// Containers leave with the host's address, and are reached by published ports alone.
    #[default]
    Nat,
    /// The same, and whoever has a route reaches all their ports.
    NatUnprotected,
    /// Their own addresses are known outside: no translation, published ports are those of the containers' addresses.
    Routed,
    /// The bridge has no address: containers reach each other alone.
    Isolated,
}

/// How links share the link that they are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkMode {
    /// `MACVLAN_MODE_*`.
    Macvlan(u32),
    /// `IPVLAN_MODE_*`, and flags.
    Ipvlan(u16, u16),
}

impl LinkMode {
    /// Whether neighbours are found by broadcasts, so that there can be a router among them.
    pub(super) fn is_switched(self) -> bool {
        matches!(self, Self::Macvlan(_) | Self::Ipvlan(0, _))
    }
}

/// What the options of a network say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DriverOptions {
    pub(super) bridge: Option<String>,
    pub(super) icc: bool,
    pub(super) masquerade: bool,
    /// Where ports are published that say nothing; unspecified for all addresses.
    pub(super) host_ip: (Option<IpAddr>, Option<IpAddr>),
    /// The bridge gets no IPv4 address.
    pub(super) inhibit_v4: bool,
    pub(super) mode_v4: GatewayMode,
    pub(super) mode_v6: GatewayMode,
    /// Links of the host by which everything of the network may be reached.
    pub(super) trusted: Vec<String>,
    /// The address that containers leave with, instead of that of the link they leave by.
    pub(super) source: (Option<IpAddr>, Option<IpAddr>),
    /// What links in containers are called, before their number.
    pub(super) interface: String,
    /// None for that of the engine.
    pub(super) mtu: Option<u32>,
    /// Which families the network has, where an option says so.
    pub(super) enable: (Option<bool>, Option<bool>),
    /// The link of the host that links are made on.
    pub(super) parent: Option<String>,
    /// How they share it.
    pub(super) link_mode: Option<LinkMode>,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            bridge: None,
            icc: true,
            masquerade: true,
            host_ip: (None, None),
            inhibit_v4: false,
            mode_v4: GatewayMode::Nat,
            mode_v6: GatewayMode::Nat,
            trusted: Vec::new(),
            source: (None, None),
            interface: "eth".to_owned(),
            mtu: None,
            enable: (None, None),
            parent: None,
            link_mode: None,
        }
    }
}

impl DriverOptions {
    /// Reads them. One in docker's own space that the driver doesn't have is refused, others are taken without a word, as dockerd does.
    pub(super) fn parse(driver: Driver, options: &BTreeMap<String, String>) -> Result<Self, NetworkError> {
        let mut parsed = Self::default();
        for (name, value) in options {
            let bad = || NetworkError::Option { key: name.clone(), value: value.clone() };
            let understood = parsed.take(name, value).ok_or_else(bad)?
                || match driver {
                    Driver::Bridge => parsed.take_of_bridge(name, value).ok_or_else(bad)?,
                    Driver::Macvlan | Driver::Ipvlan => parsed.take_of_parented(driver, name, value).ok_or_else(bad)?,
                };
            if !understood && name.starts_with(key::PREFIX) {
                return Err(NetworkError::UnknownOption(name.clone()));
            }
        }
        if driver != Driver::Bridge && parsed.link_mode.is_none() {
            parsed.link_mode = Some(match driver {
                Driver::Ipvlan => LinkMode::Ipvlan(0, 0),
                Driver::Macvlan | Driver::Bridge => LinkMode::Macvlan(MACVLAN_BRIDGE),
            });
        }
        Ok(parsed)
    }

    /// Options of all drivers. Whether it is one; none for a value that it can't have.
    fn take(&mut self, name: &str, value: &str) -> Option<bool> {
        match name {
            key::MTU => self.mtu = Some(value.parse().ok().filter(|mtu| (68..=65535).contains(mtu))?),
            key::INTERFACE => {
                let fine = value.len() <= 10 && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                self.interface = (fine && !value.is_empty()).then(|| value.to_owned())?;
            }
            key::ENABLE_V4 => self.enable.0 = Some(parse_bool(value)?),
            key::ENABLE_V6 => self.enable.1 = Some(parse_bool(value)?),
            _ => return Some(false),
        }
        Some(true)
    }

    fn take_of_bridge(&mut self, name: &str, value: &str) -> Option<bool> {
        match name {
            key::NAME => self.bridge = (!value.is_empty()).then(|| value.to_owned()),
            key::ICC => self.icc = parse_bool(value)?,
            key::MASQUERADE => self.masquerade = parse_bool(value)?,
            key::BIND_V4 => self.host_ip.0 = Some(value.parse::<Ipv4Addr>().ok()?.into()),
            key::BIND_V6 => self.host_ip.1 = Some(value.parse::<Ipv6Addr>().ok()?.into()),
            key::INHIBIT_V4 => self.inhibit_v4 = parse_bool(value)?,
            key::MODE_V4 => self.mode_v4 = parse_mode(value)?,
            key::MODE_V6 => self.mode_v6 = parse_mode(value)?,
            key::TRUSTED => {
                self.trusted = value.split(':').filter(|name| !name.is_empty()).map(str::to_owned).collect();
                self.trusted.iter().all(|name| config::check_name(name).is_ok()).then_some(())?;
            }
            key::SOURCE_V4 => self.source.0 = Some(value.parse::<Ipv4Addr>().ok()?.into()),
            key::SOURCE_V6 => self.source.1 = Some(value.parse::<Ipv6Addr>().ok()?.into()),
            // What `docker network inspect bridge` shows and scripts copy.
            key::DEFAULT_BRIDGE if parse_bool(value) == Some(false) => {}
            _ => return Some(false),
        }
        Some(true)
    }

    fn take_of_parented(&mut self, driver: Driver, name: &str, value: &str) -> Option<bool> {
        let flags = |mode: &Option<LinkMode>| if let Some(LinkMode::Ipvlan(_, flags)) = mode { *flags } else { 0 };
        match (driver, name) {
            (_, "parent") => {
                config::check_name(value).ok()?;
                self.parent = Some(value.to_owned());
            }
            (Driver::Macvlan, "macvlan_mode") => {
                self.link_mode = Some(LinkMode::Macvlan(match value {
                    "private" => 1,
                    "vepa" => 2,
                    "bridge" => MACVLAN_BRIDGE,
                    "passthru" => 8,
                    _ => return None,
                }));
            }
            (Driver::Ipvlan, "ipvlan_mode") => {
                let mode = match value {
                    "l2" => 0,
                    "l3" => 1,
                    "l3s" => 2,
                    _ => return None,
                };
                self.link_mode = Some(LinkMode::Ipvlan(mode, flags(&self.link_mode)));
            }
            (Driver::Ipvlan, "ipvlan_flag") => {
                let set = match value {
                    "bridge" => 0,
                    "private" => 1,
                    "vepa" => 2,
                    _ => return None,
                };
                let mode = if let Some(LinkMode::Ipvlan(mode, _)) = self.link_mode { mode } else { 0 };
                self.link_mode = Some(LinkMode::Ipvlan(mode, set));
            }
            _ => return Some(false),
        }
        Some(true)
    }

    /// How the network of a family is joined to the world.
    pub(super) fn mode(&self, is_ipv4: bool) -> GatewayMode {
        if is_ipv4 { self.mode_v4 } else { self.mode_v6 }
    }

    /// Whether the bridge itself has an address of a family.
    pub(super) fn bridge_has_address(&self, is_ipv4: bool) -> bool {
        self.mode(is_ipv4) != GatewayMode::Isolated && !(is_ipv4 && self.inhibit_v4)
    }
}

/// Checks options of a driver.
pub fn check_options(driver: Driver, options: &BTreeMap<String, String>) -> Result<(), NetworkError> {
    DriverOptions::parse(driver, options).map(drop)
}

/// `MACVLAN_MODE_BRIDGE`.
const MACVLAN_BRIDGE: u32 = 4;

fn parse_mode(text: &str) -> Option<GatewayMode> {
    Some(match text {
        "" | "nat" => GatewayMode::Nat,
        "nat-unprotected" => GatewayMode::NatUnprotected,
        "routed" => GatewayMode::Routed,
        "isolated" => GatewayMode::Isolated,
        _ => return None,
    })
}

/// Go's idea of a boolean.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(driver: Driver, pairs: &[(&str, &str)]) -> Result<DriverOptions, String> {
        let map = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        DriverOptions::parse(driver, &map).map_err(|error| error.to_string())
    }

    #[test]
    fn of_bridges() {
        let options = [
            (key::ICC, "false"),
            (key::MTU, "1400"),
            (key::BIND_V4, "127.0.0.1"),
            (key::MODE_V6, "routed"),
            (key::TRUSTED, "eth0:wg0"),
            ("x", "y"),
        ];
        let parsed = parse(Driver::Bridge, &options).expect("options");
        assert_eq!((parsed.icc, parsed.mtu, parsed.host_ip.0), (false, Some(1400), Some([127, 0, 0, 1].into())));
        assert_eq!((parsed.mode(true), parsed.mode(false)), (GatewayMode::Nat, GatewayMode::Routed));
        assert_eq!(parsed.trusted, ["eth0", "wg0"]);
        for (name, value) in [
            (key::ICC, "maybe"),
            (key::MTU, "9"),
            (key::MODE_V4, "bridge"),
            (key::BIND_V4, "::1"),
            (key::TRUSTED, "a/b"),
            (key::INTERFACE, "a-b"),
            ("com.docker.network.nonsense", "1"),
        ] {
            let error = parse(Driver::Bridge, &[(name, value)]).expect_err(name);
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn of_links_on_links() {
        let parsed = parse(Driver::Macvlan, &[("parent", "eth0.50")]).expect("options");
        assert_eq!((parsed.parent.as_deref(), parsed.link_mode), (Some("eth0.50"), Some(LinkMode::Macvlan(4))));
        let parsed = parse(Driver::Ipvlan, &[("ipvlan_flag", "vepa"), ("ipvlan_mode", "l3")]).expect("options");
        assert_eq!(parsed.link_mode, Some(LinkMode::Ipvlan(1, 2)));
        assert!(!parsed.link_mode.is_some_and(LinkMode::is_switched));
        for (driver, name, value) in [
            (Driver::Macvlan, "macvlan_mode", "l2"),
            (Driver::Ipvlan, "ipvlan_mode", "bridge"),
            (Driver::Ipvlan, "parent", "no such/link"),
            (Driver::Macvlan, key::ICC, "true"),
        ] {
            assert!(parse(driver, &[(name, value)]).is_err(), "{name}={value}");
        }
    }
}
