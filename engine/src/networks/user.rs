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
use super::bridge;
use super::definition::{self, Chosen, Definition, DriverOptions, NetworkRequest};
use super::error::NetworkError;
use super::netlink::link;
use super::pools::{self, Pool};
use super::subnet::Subnet;
use super::{Bridged, Networks, locked};
use crate::time::Timestamp;

/// A network that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

impl Networks {
    /// Checks what is asked for, chooses what isn't, and takes name, subnet and bridge for it. Nothing is made yet.
    pub fn reserve_network(&self, request: NetworkRequest, pools: &[Pool]) -> Result<Definition, NetworkError> {
        definition::check_network_name(&request.name)?;
        let options = DriverOptions::parse(&request.options, self.config.mtu)?;
        if let Some(bridge) = &options.bridge {
            definition::check_bridge_name(bridge)?;
        }
        let chosen = request.subnet.as_ref().map(|subnet| subnet.parse()).transpose()?;
        let chosen =
            chosen.unwrap_or(Chosen { subnet: None, gateway: None, range: None, auxiliary: Default::default() });
        let id = random_id()?;
        let bridge = options.bridge.unwrap_or_else(|| definition::bridge_name(&id));
        let (routes, existing) = {
            let mut route = locked(&self.route);
            let existing = link::find(&mut route, &bridge)?;
            let index = existing.as_ref().map(|link| link.index);
            (bridge::routes_by_others(&mut route, index)?, existing)
        };
        if let Some(other) = existing.as_ref().filter(|link| link.kind.as_deref() != Some("bridge")) {
            let kind = other.kind.clone().unwrap_or_else(|| "plain link".to_owned());
            return Err(NetworkError::NotABridge { name: bridge, kind });
        }
        let mut leases = locked(&self.leases);
        if leases.bridges.values().any(|network| network.name == request.name) {
            return Err(NetworkError::NameTaken(request.name));
        }
        if let Some(other) = leases.bridges.values().find(|network| network.link == bridge) {
            return Err(NetworkError::BridgeTaken { bridge, network: other.name.clone() });
        }
        let subnet = match chosen.subnet {
            Some(subnet) => {
                if let Some(other) = leases.bridges.values().find(|network| network.address.overlaps(subnet)) {
                    let (other, network) = (other.address.to_network(), other.name.clone());
                    return Err(NetworkError::SubnetTaken { subnet, other, network });
                }
                subnet
            }
            None => {
                let own = leases.bridges.values().map(|network| network.address);
                let taken: Vec<Subnet> = routes.iter().map(|(to, _)| *to).chain(own).collect();
                pools::first_free(pools, &taken).ok_or(NetworkError::PoolsExhausted)?
            }
        };
        let definition = Definition {
            address: definition::bridge_address(subnet, &chosen)?,
            name: request.name,
            created: Timestamp::now(),
            internal: request.internal,
            attachable: request.attachable,
            labels: request.labels,
            options: request.options,
            ipam_options: request.ipam_options,
            chosen: chosen.subnet.is_some(),
            gateway_chosen: chosen.gateway.is_some(),
            range: chosen.range,
            auxiliary: chosen.auxiliary,
            adopted: existing.is_some(),
            bridge,
            id: id.clone(),
        };
        leases.bridges.insert(id, Bridged::of(definition.clone(), self.config.mtu)?);
        Ok(definition)
    }

    /// Makes the bridge of a network that is reserved, and lets the firewall know of it.
    pub fn build_network(&self, id: &str) -> Result<(), NetworkError> {
        self.ensure_bridge(id)?;
        proto::fault!("engine.network.bridge_made");
        self.follow_bridges()
    }

    /// Forgets a network that no container is on. Its bridge is still there.
    pub fn forget_network(&self, id: &str) -> Result<Definition, NetworkError> {
        let mut leases = locked(&self.leases);
        let network = leases.bridges.get(id).ok_or_else(|| NetworkError::NotFound(id.to_owned()))?;
        let Some(definition) = network.definition.clone() else {
            return Err(NetworkError::Predefined(network.name.clone()));
        };
        if !network.ipam.is_unused() {
            return Err(NetworkError::Active { name: definition.name, id: definition.id });
        }
        leases.bridges.remove(id);
        Ok(definition)
    }

    /// Takes a network back that was forgotten and is to stay.
    pub fn remember_network(&self, definition: Definition) {
        let id = definition.id.clone();
        match Bridged::of(definition, self.config.mtu) {
            Ok(network) => drop(locked(&self.leases).bridges.insert(id.clone(), network)),
            Err(error) => warn!(id, %error, "network can't be taken back"),
        }
        if let Err(error) = self.ensure_bridge(&id) {
            warn!(id, %error, "bridge can't be made again");
        }
    }

    /// Removes the bridge of a network that is forgotten.
    pub fn raze_network(&self, definition: &Definition) -> Result<(), NetworkError> {
        self.follow_bridges()?;
        proto::fault!("engine.network.rules_removed");
        if definition.adopted { Ok(()) } else { bridge::delete(&mut locked(&self.route), &definition.bridge) }
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
        locked(&self.leases).bridges.get(id).and_then(|network| network.definition.clone())
    }

    /// Makes the bridges of all networks of the user. Returns whether one of them is another than before.
    pub(super) fn ensure_bridges_of_users(&self) -> bool {
        let ids: Vec<String> = {
            let leases = locked(&self.leases);
            leases
                .bridges
                .iter()
                .filter(|(_, network)| network.definition.is_some())
                .map(|(id, _)| id.clone())
                .collect()
        };
        let mut changed = false;
        for id in ids {
            let before = locked(&self.leases).index_of(&id);
            if let Err(error) = self.ensure_bridge(&id) {
                warn!(network = id, error = %proto::kind::chain(&error), "bridge of a network can't be made");
            }
            changed |= before != 0 && before != locked(&self.leases).index_of(&id);
        }
        changed
    }

    fn ensure_bridge(&self, id: &str) -> Result<(), NetworkError> {
        let (name, address, mtu) = {
            let leases = locked(&self.leases);
            let network = leases.bridges.get(id).ok_or_else(|| NetworkError::NotFound(id.to_owned()))?;
            (network.link.clone(), network.address, network.mtu)
        };
        let alias = self.network_alias(id);
        let wanted = bridge::Wanted { name: &name, address: Some(address), mtu, alias: Some(&alias) };
        let made = bridge::ensure(&mut locked(&self.route), &wanted)?;
        debug!(id, name, index = made.index, "bridge of a network");
        if let Some(network) = locked(&self.leases).bridges.get_mut(id) {
            network.index = made.index;
        }
        Ok(())
    }

    /// Makes the firewall's rules those of the bridges that there are.
    fn follow_bridges(&self) -> Result<(), NetworkError> {
        // The lock of the firewall is taken first, so that the last change of the bridges is also the last of the rules.
        let mut firewall = locked(&self.firewall);
        let rules = locked(&self.leases).rules();
        firewall.set_bridges(rules).map_err(|cause| self.firewall_error(cause))
    }

    /// The note on the bridge of a network: found when nothing else is known of it.
    pub(super) fn network_alias(&self, id: &str) -> String {
        format!("{}network {id}", self.alias_prefix())
    }
}
