//! The predefined networks as `GET /networks` shows them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::Networks;
use super::endpoint::NetworkKind;
use super::subnet::Subnet;

/// A network, without the containers on it, which the engine knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkDescription {
    /// Which of the predefined ones.
    pub kind: NetworkKind,
    /// Its id.
    pub id: String,
    /// Its name: `bridge`, `host`, `none`.
    pub name: &'static str,
    /// Its driver: `bridge`, `host`, `null`.
    pub driver: &'static str,
    /// Its subnet, where it has one: `172.17.0.0/16`.
    pub subnet: Option<Subnet>,
    /// The address of the bridge, where there is one.
    pub gateway: Option<Ipv4Addr>,
    /// Options of the driver.
    pub options: BTreeMap<&'static str, String>,
}

impl Networks {
    /// The predefined networks: bridge, host, none.
    pub fn describe(&self) -> Vec<NetworkDescription> {
        [NetworkKind::Bridge, NetworkKind::Host, NetworkKind::None].into_iter().map(|kind| self.one(kind)).collect()
    }

    /// The address of the bridge, which is the containers' gateway and their name for the host.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.address()
    }

    /// The id of a predefined network.
    pub fn network_id(&self, kind: NetworkKind) -> &str {
        match kind {
            NetworkKind::Bridge => &self.config.ids.bridge,
            NetworkKind::Host => &self.config.ids.host,
            NetworkKind::None => &self.config.ids.none,
        }
    }

    fn one(&self, kind: NetworkKind) -> NetworkDescription {
        let bridge = kind == NetworkKind::Bridge;
        let options = [
            ("com.docker.network.bridge.default_bridge", "true".to_owned()),
            ("com.docker.network.bridge.enable_icc", "true".to_owned()),
            ("com.docker.network.bridge.enable_ip_masquerade", "true".to_owned()),
            ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0".to_owned()),
            ("com.docker.network.bridge.name", self.config.name.clone()),
            ("com.docker.network.driver.mtu", self.config.mtu.to_string()),
        ];
        NetworkDescription {
            kind,
            id: self.network_id(kind).to_owned(),
            name: kind.name(),
            driver: kind.driver(),
            subnet: bridge.then(|| self.subnet.to_network()),
            gateway: bridge.then(|| self.subnet.address()),
            options: if bridge { BTreeMap::from(options) } else { BTreeMap::new() },
        }
    }
}
