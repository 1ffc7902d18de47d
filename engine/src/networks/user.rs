//! Networks of the user: made, found and removed.
//!
//! ```text
//! reserve_network ─▶ (on disk) ─▶ build_network          forget_network ─▶ (off disk) ─▶ raze_network
//! ```
//!
//! The record is the intent. A network that is on record is built by the next engine if this one dies before it has done so
//! ([`Networks::open`]); a bridge of ours without a record is removed ([`Networks::restore`]).

use tracing::{debug, warn};

use super::attach::random_id;
use super::definition::{self, Chosen, Definition, NetworkRequest, Pooled};
use super::error::NetworkError;
use super::netlink::link;
use super::options::{Driver, DriverOptions, GatewayMode};
use super::pools::{self, Pool};
use super::subnet::Subnet;
use super::{Leases, Network, Networks, bridge, locked, parent, sysctl};
use crate::time::Timestamp;

/// A network that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// The link that a network is on.
struct Place {
    name: String,
    /// It is there already, and stays.
    adopted: bool,
}

impl Networks {
    /// Checks what is asked for, chooses what isn't, and takes name, subnets and link for it. Nothing is made yet.
    pub fn reserve_network(&self, request: NetworkRequest, pools: &[Pool]) -> Result<Definition, NetworkError> {
        definition::check_network_name(&request.name)?;
        let request = self.with_configuration(request)?;
        let options = DriverOptions::parse(request.driver, &request.options)?;
        let ipv4 = request.enable_ipv4.or(options.enable.0).unwrap_or(true);
        let ipv6 = request.enable_ipv6.or(options.enable.1).unwrap_or(false);
        let chosen = request.subnets.iter().map(|subnet| subnet.parse()).collect::<Result<Vec<_>, _>>()?;
        let id = random_id()?;
        let internal = request.internal || (request.driver != Driver::Bridge && options.parent.is_none());
        let mut definition = Definition {
            id,
            name: request.name,
            driver: request.driver,
            created: Timestamp::now(),
            ipv4,
            ipv6,
            internal,
            attachable: request.attachable,
            config_only: request.config_only,
            config_from: request.config_from,
            requested: if request.config_only { request.subnets } else { Vec::new() },
            labels: request.labels,
            options: request.options,
            ipam_options: request.ipam_options,
            subnets: Vec::new(),
            bridge: String::new(),
            adopted: false,
        };
        if definition.config_only {
            let mut leases = locked(&self.leases);
            leases.check_name(&definition.name)?;
            leases.networks.insert(definition.id.clone(), Network::of(definition.clone(), self.config.mtu)?);
            return Ok(definition);
        }
        check_families(&definition, &options, &chosen)?;
        let (place, routes) = self.place(&definition, &options)?;
        let mut leases = locked(&self.leases);
        leases.check_name(&definition.name)?;
        leases.check_link(&definition, &place)?;
        (definition.bridge, definition.adopted) = (place.name, place.adopted);
        for (enabled, is_ipv4) in [(ipv4, true), (ipv6, false)] {
            if enabled {
                // The engine's own prefix where the user gave no pool of the family, or none that is free.
                let own = pools::unique_local(&self.config.ids.bridge);
                let all = pools.iter().copied().chain(own);
                let stock: Vec<Pool> = all.filter(|pool| pool.is_ipv4() == is_ipv4).collect();
                definition.subnets.extend(leases.subnets(&chosen, is_ipv4, &stock, &routes)?);
            }
        }
        leases.networks.insert(definition.id.clone(), Network::of(definition.clone(), self.config.mtu)?);
        Ok(definition)
    }

    /// What is asked for, completed by what a network holds that it is to be made from.
    fn with_configuration(&self, mut request: NetworkRequest) -> Result<NetworkRequest, NetworkError> {
        let Some(from) = request.config_from.clone() else { return Ok(request) };
        if request.config_only {
            return Err(NetworkError::Configuration("it can't be made from another one and hold one itself"));
        }
        let found = self.find_network(&from)?;
        let held = self.definition(&found.id).filter(|held| held.config_only);
        let held = held.ok_or(NetworkError::NotConfiguration(from))?;
        let own = !request.options.is_empty() || !request.subnets.is_empty() || !request.ipam_options.is_empty();
        if own || request.internal || request.enable_ipv6 == Some(true) {
            return Err(NetworkError::Configuration("what it is made of is told by the network it is made from alone"));
        }
        request.config_from = Some(held.name);
        request.options = held.options;
        request.ipam_options = held.ipam_options;
        request.subnets = held.requested;
        request.internal = held.internal;
        (request.enable_ipv4, request.enable_ipv6) = (Some(held.ipv4), Some(held.ipv6));
        request.labels = held.labels.into_iter().chain(request.labels).collect();
        Ok(request)
    }

    /// The link that a network is to be on, and what this host reaches by others.
    fn place(&self, definition: &Definition, options: &DriverOptions) -> Result<(Place, Vec<Subnet>), NetworkError> {
        let mut route = locked(&self.route);
        if definition.driver == Driver::Bridge {
            let name = options.bridge.clone().unwrap_or_else(|| definition::bridge_name(&definition.id));
            definition::check_bridge_name(&name)?;
            let existing = link::find(&mut route, &name)?;
            if let Some(other) = existing.as_ref().filter(|link| link.kind.as_deref() != Some("bridge")) {
                let kind = other.kind.clone().unwrap_or_else(|| "plain link".to_owned());
                return Err(NetworkError::NotABridge { name, kind });
            }
            let index = existing.as_ref().map(|link| link.index);
            let routes = bridge::routes_by_others(&mut route, index)?.into_iter().map(|(to, _)| to).collect();
            return Ok((Place { name, adopted: existing.is_some() }, routes));
        }
        let routes = bridge::routes_by_others(&mut route, None)?.into_iter().map(|(to, _)| to).collect();
        // A network that leads nowhere is on a link to nowhere, whatever was given.
        let Some(name) = options.parent.clone().filter(|_| !definition.internal) else {
            return Ok((Place { name: definition::dummy_name(&definition.id), adopted: false }, routes));
        };
        if name == "lo" {
            return Err(NetworkError::Configuration("lo can't be the parent of a network"));
        }
        let adopted = link::find(&mut route, &name)?.is_some();
        let beneath = parent::vlan(&name).map(|(on, _)| on.to_owned());
        let beneath = beneath.map(|on| link::find(&mut route, &on)).transpose()?.flatten();
        if !adopted && beneath.is_none() {
            return Err(NetworkError::NoParent(name));
        }
        Ok((Place { name, adopted }, routes))
    }

    /// Makes the link of a network that is reserved, and lets the firewall know of it.
    pub fn build_network(&self, id: &str) -> Result<(), NetworkError> {
        let ipv6 = locked(&self.leases).networks.get(id).is_some_and(|network| network.has_family(false));
        if ipv6 {
            sysctl::forward_ipv6_packets()?;
        }
        self.ensure_link(id)?;
        proto::fault!("engine.network.bridge_made");
        self.follow_bridges()?;
        self.tell_firewalld();
        Ok(())
    }

    /// Forgets a network that no container is on. Its link is still there.
    pub fn forget_network(&self, id: &str) -> Result<Definition, NetworkError> {
        let mut leases = locked(&self.leases);
        let network = leases.networks.get(id).ok_or_else(|| NetworkError::NotFound(id.to_owned()))?;
        let Some(definition) = network.definition.clone() else {
            return Err(NetworkError::Predefined(network.name.clone()));
        };
        let made_from = |other: &&Network| {
            other.definition.as_ref().is_some_and(|other| other.config_from.as_ref() == Some(&definition.name))
        };
        if definition.config_only
            && let Some(other) = leases.networks.values().find(made_from)
        {
            return Err(NetworkError::ConfigurationUsed { name: definition.name, by: other.name.clone() });
        }
        if !network.is_unused() {
            return Err(NetworkError::Active { name: definition.name, id: definition.id });
        }
        leases.networks.remove(id);
        Ok(definition)
    }

    /// Takes a network back that was forgotten and is to stay.
    pub fn remember_network(&self, definition: Definition) {
        let id = definition.id.clone();
        match Network::of(definition, self.config.mtu) {
            Ok(network) => drop(locked(&self.leases).networks.insert(id.clone(), network)),
            Err(error) => warn!(id, %error, "network can't be taken back"),
        }
        if let Err(error) = self.ensure_link(&id) {
            warn!(id, %error, "link of a network can't be made again");
        }
    }

    /// Removes the link of a network that is forgotten.
    pub fn raze_network(&self, definition: &Definition) -> Result<(), NetworkError> {
        self.follow_bridges()?;
        proto::fault!("engine.network.rules_removed");
        let shared = locked(&self.leases).networks.values().any(|network| network.link == definition.bridge);
        if definition.adopted || shared || definition.bridge.is_empty() {
            return Ok(());
        }
        bridge::delete(&mut locked(&self.route), &definition.bridge)?;
        if definition.driver == Driver::Bridge {
            self.tell_firewalld_of_gone(std::slice::from_ref(&definition.bridge));
        }
        Ok(())
    }

    /// The network with this id or name, or the only one whose id begins like this.
    pub fn find_network(&self, text: &str) -> Result<Found, NetworkError> {
        let all: Vec<Found> =
            self.describe().into_iter().map(|network| Found { id: network.id, name: network.name }).collect();
        let exactly = |fits: &dyn Fn(&Found) -> bool| all.iter().find(|network| fits(network)).cloned();
        if let Some(found) = exactly(&|network| network.id == text).or_else(|| exactly(&|network| network.name == text))
        {
            return Ok(found);
        }
        let fitting: Vec<&Found> =
            all.iter().filter(|network| !text.is_empty() && network.id.starts_with(text)).collect();
        match fitting.as_slice() {
            [] => {
                let near = crate::http::suggest::suffix(text, all.iter().map(|network| network.name.as_str()));
                Err(NetworkError::Unknown { text: text.to_owned(), near })
            }
            [one] => Ok((*one).clone()),
            more => Err(NetworkError::Ambiguous { text: text.to_owned(), count: more.len() }),
        }
    }

    /// What is on record of a network of the user.
    pub fn definition(&self, id: &str) -> Option<Definition> {
        locked(&self.leases).networks.get(id).and_then(|network| network.definition.clone())
    }

    /// Makes the links of all networks of the user. Returns whether one of them is another than before.
    pub(super) fn ensure_links_of_users(&self) -> bool {
        let ids: Vec<String> = {
            let leases = locked(&self.leases);
            let of_users = leases.networks.iter().filter(|(_, network)| network.definition.is_some());
            of_users.map(|(id, _)| id.clone()).collect()
        };
        let mut changed = false;
        for id in ids {
            let before = locked(&self.leases).index_of(&id);
            if let Err(error) = self.ensure_link(&id) {
                warn!(network = id, error = %proto::kind::chain(&error), "link of a network can't be made");
            }
            changed |= before != 0 && before != locked(&self.leases).index_of(&id);
        }
        changed
    }

    fn ensure_link(&self, id: &str) -> Result<(), NetworkError> {
        let alias = self.network_alias(id);
        let mut leases = locked(&self.leases);
        let network = leases.networks.get_mut(id).ok_or_else(|| NetworkError::NotFound(id.to_owned()))?;
        if network.link.is_empty() {
            return Ok(());
        }
        network.index = match network.driver {
            Driver::Bridge => bridge::ensure(&mut locked(&self.route), &network.bridge(Some(&alias)))?,
            Driver::Macvlan | Driver::Ipvlan => {
                let dummy = network.internal || network.options.parent.is_none();
                parent::ensure(&mut locked(&self.route), &network.link, dummy, &alias)?
            }
        };
        debug!(id, name = network.link, index = network.index, "link of a network");
        Ok(())
    }

    /// Makes the firewall's rules those of the bridges that there are.
    fn follow_bridges(&self) -> Result<(), NetworkError> {
        // The lock of the firewall is taken first, so that the last change of the bridges is also the last of the rules.
        let mut firewall = locked(&self.firewall);
        let rules = locked(&self.leases).rules();
        firewall.set_bridges(rules).map_err(|cause| self.firewall_error(cause))
    }

    /// The note on the link of a network: found when nothing else is known of it.
    pub(super) fn network_alias(&self, id: &str) -> String {
        format!("{}network {id}", self.alias_prefix())
    }
}

/// Refuses subnets of families that the network hasn't, and more of them than the driver can have.
fn check_families(definition: &Definition, options: &DriverOptions, chosen: &[Chosen]) -> Result<(), NetworkError> {
    if !definition.ipv4 && !definition.ipv6 {
        return Err(NetworkError::Configuration("IPv4 or IPv6 must be enabled"));
    }
    if definition.ipv6 && !sysctl::has_ipv6() {
        return Err(NetworkError::Configuration("this host's kernel has no IPv6"));
    }
    for (enabled, is_ipv4, family) in [(definition.ipv4, true, "IPv4"), (definition.ipv6, false, "IPv6")] {
        let mut of_family = chosen.iter().filter_map(|chosen| chosen.subnet).filter(|s| s.is_ipv4() == is_ipv4);
        if let Some(subnet) = of_family.next() {
            if !enabled {
                let why = format!("{family} is not enabled for the network");
                return Err(NetworkError::Ipam { what: "subnet", value: subnet.to_string(), why });
            }
            if definition.driver == Driver::Bridge && of_family.next().is_some() {
                return Err(NetworkError::SeveralSubnets(family));
            }
        }
        if enabled && options.mode(is_ipv4) == GatewayMode::Isolated && !definition.internal {
            return Err(NetworkError::Configuration("gateway mode isolated is for internal networks only"));
        }
    }
    Ok(())
}

impl Leases {
    fn check_name(&self, name: &str) -> Result<(), NetworkError> {
        if self.networks.values().any(|network| network.name == name) {
            return Err(NetworkError::NameTaken(name.to_owned()));
        }
        Ok(())
    }

    /// Refuses a link that another network is on.
    fn check_link(&self, definition: &Definition, place: &Place) -> Result<(), NetworkError> {
        let Some(other) = self.networks.values().find(|network| network.link == place.name) else { return Ok(()) };
        let (link, network) = (place.name.clone(), other.name.clone());
        Err(match definition.driver {
            Driver::Bridge => NetworkError::BridgeTaken { bridge: link, network },
            Driver::Macvlan | Driver::Ipvlan => NetworkError::ParentTaken { parent: link, network },
        })
    }

    /// The subnets of a family: those that are asked for, or one of the pools.
    fn subnets(
        &self,
        chosen: &[Chosen],
        is_ipv4: bool,
        pools: &[Pool],
        routes: &[Subnet],
    ) -> Result<Vec<Pooled>, NetworkError> {
        let mut pooled: Vec<Pooled> = Vec::new();
        for wanted in chosen {
            let Some(subnet) = wanted.subnet.filter(|subnet| subnet.is_ipv4() == is_ipv4) else { continue };
            for network in self.networks.values() {
                if let Some(other) = network.subnets(is_ipv4).find(|other| other.overlaps(subnet)) {
                    let (other, network) = (other.to_network(), network.name.clone());
                    return Err(NetworkError::SubnetTaken { subnet, other, network });
                }
            }
            if let Some(other) = pooled.iter().map(|own| own.address).find(|own| own.overlaps(subnet)) {
                let (other, network) = (other.to_network(), "this network".to_owned());
                return Err(NetworkError::SubnetTaken { subnet, other, network });
            }
            pooled.push(Pooled {
                address: definition::gateway_address(subnet, wanted)?,
                chosen: true,
                gateway_chosen: wanted.gateway.is_some(),
                range: wanted.range,
                auxiliary: wanted.auxiliary.clone(),
            });
        }
        if pooled.is_empty() {
            let own = self.networks.values().flat_map(|network| network.subnets(is_ipv4));
            let taken: Vec<Subnet> = routes.iter().copied().chain(own).collect();
            let subnet = pools::first_free(pools, &taken).ok_or(NetworkError::PoolsExhausted)?;
            pooled.push(Pooled {
                address: definition::gateway_address(subnet, &Chosen::default())?,
                chosen: false,
                gateway_chosen: false,
                range: None,
                auxiliary: Default::default(),
            });
        }
        Ok(pooled)
    }
}
