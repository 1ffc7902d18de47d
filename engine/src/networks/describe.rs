//! Networks as `GET /networks` shows them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::definition::Definition;
use super::endpoint::NetworkKind;
use super::subnet::Subnet;
use super::{Networks, locked};

/// A network, without the containers on it, which the engine knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkDescription {
    /// Its kind.
    pub kind: NetworkKind,
    /// Its id.
    pub id: String,
    /// Its name: `bridge`, `host`, `none`, or the user's.
    pub name: String,
    /// Its driver: `bridge`, `macvlan`, `ipvlan`, `host`, `null`.
    pub driver: &'static str,
    /// Its subnets with the gateways' addresses: `172.17.0.1/16`.
    pub subnets: Vec<Subnet>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// What is on record; none for the predefined ones.
    pub definition: Option<Definition>,
}

impl Networks {
    /// All networks: bridge, host, none, and those of users.
    pub fn describe(&self) -> Vec<NetworkDescription> {
        let mut all: Vec<_> = [NetworkKind::Bridge, NetworkKind::Host, NetworkKind::None]
            .into_iter()
            .map(|kind| self.one(kind))
            .collect();
        let leases = locked(&self.leases);
        all.extend(leases.networks.values().filter_map(|network| network.definition.clone()).map(of_user));
        all
    }

    /// The address of the default bridge, which is the containers' name for the host.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.subnets.first().map(|subnet| subnet.address())
    }

    /// The id of a predefined network.
    pub fn network_id(&self, kind: NetworkKind) -> &str {
        match kind {
            NetworkKind::Bridge => &self.config.ids.bridge,
            NetworkKind::Host => &self.config.ids.host,
            NetworkKind::None => &self.config.ids.none,
            NetworkKind::Container => "",
        }
    }

    fn one(&self, kind: NetworkKind) -> NetworkDescription {
        let bridge = kind == NetworkKind::Bridge;
        let options = [
            ("com.docker.network.bridge.default_bridge", "true".to_owned()),
            ("com.docker.network.bridge.enable_icc", self.config.icc.to_string()),
            ("com.docker.network.bridge.enable_ip_masquerade", self.config.masquerade.to_string()),
            ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0".to_owned()),
            ("com.docker.network.bridge.name", self.config.name.clone()),
            ("com.docker.network.driver.mtu", self.config.mtu.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        NetworkDescription {
            kind,
            id: self.network_id(kind).to_owned(),
            name: kind.name().to_owned(),
            driver: kind.driver(),
            subnets: if bridge { self.subnets.clone() } else { Vec::new() },
            options: if bridge { BTreeMap::from(options) } else { BTreeMap::new() },
            definition: None,
        }
    }
}

fn of_user(definition: Definition) -> NetworkDescription {
    NetworkDescription {
        kind: NetworkKind::Bridge,
        id: definition.id.clone(),
        name: definition.name.clone(),
        // As dockerd: what only holds a configuration is made of nothing.
        driver: if definition.config_only { NetworkKind::None.driver() } else { definition.driver.name() },
        subnets: definition.subnets.iter().map(|pooled| pooled.address).collect(),
        options: definition.options.clone(),
        definition: Some(definition),
    }
}
