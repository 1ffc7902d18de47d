//! How the host's links, rules and settings differ from what they have to be, in words. Changes nothing.

use std::collections::HashMap;

use super::endpoint::Endpoint;
use super::error::NetworkError;
use super::netlink::{address, link};
use super::options::Driver;
use super::{Networks, firewalld, locked, sysctl};

/// A container that is on networks now.
#[derive(Debug)]
pub struct Attached {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its place in them.
    pub endpoint: Endpoint,
}

impl Networks {
    /// Everything that isn't as it has to be, a line each, with these containers attached. Empty when all is.
    pub fn differences(&self, containers: &[Attached]) -> Result<Vec<String>, NetworkError> {
        let mut lines = sysctl::not_forwarding(locked(&self.leases).networks.values().any(|n| n.has_family(false)));
        self.differences_of_links(containers, &mut lines)?;
        let firewall = {
            let mut firewall = locked(&self.firewall);
            firewall.differences()
        };
        lines.extend(firewall.map_err(|cause| self.firewall_error(cause))?);
        let bridges = self.bridges_for_firewalld()?;
        if !bridges.is_empty() {
            match firewalld::missing(&self.config.bus, &bridges) {
                Ok(missing) => {
                    lines.extend(
                        missing.into_iter().map(|bridge| format!("bridge {bridge} is in no zone of firewalld")),
                    );
                }
                Err(error) => lines.push(format!("firewalld isn't told of bridges: {}", proto::kind::chain(&error))),
            }
        }
        self.differences_of_names(containers, &mut lines);
        Ok(lines)
    }

    /// Whether anything of an engine with this default bridge is on the host.
    pub fn is_anything_there(&self) -> Result<bool, NetworkError> {
        let prefix = self.alias_prefix();
        let links = link::list(&mut locked(&self.route))?;
        let ours = |link: &link::Link| {
            link.name == self.config.name || link.alias.as_ref().is_some_and(|alias| alias.starts_with(&prefix))
        };
        if links.iter().any(ours) {
            return Ok(true);
        }
        locked(&self.firewall).is_there().map_err(|cause| self.firewall_error(cause))
    }

    /// Notes to which containers ports lead, for an engine that doesn't run.
    pub fn assume(&self, containers: &[Attached]) {
        let mut firewall = locked(&self.firewall);
        containers.iter().for_each(|one| firewall.remember(one.endpoint.targets(), &one.endpoint.ports));
    }

    fn differences_of_links(&self, containers: &[Attached], lines: &mut Vec<String>) -> Result<(), NetworkError> {
        let leases = locked(&self.leases);
        let mut route = locked(&self.route);
        let links = link::list(&mut route)?;
        let links: HashMap<&str, &link::Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
        for network in leases.networks.values().filter(|network| !network.link.is_empty()) {
            let (name, of) = (network.link.as_str(), network.name.as_str());
            let Some(found) = links.get(name) else {
                lines.push(format!("link {name} of network {of} is missing"));
                continue;
            };
            if network.driver != Driver::Bridge {
                continue;
            }
            if found.kind.as_deref() != Some("bridge") {
                lines.push(format!("link {name} of network {of} is no bridge"));
                continue;
            }
            let present = address::of_link(&mut route, found.index)?;
            let missing = network.bridge(None).addresses.into_iter().filter(|address| !present.contains(address));
            lines.extend(missing.map(|address| format!("bridge {name} of network {of} lacks its address {address}")));
            lines.extend(sysctl::not_prepared(name));
        }
        for Attached { name: container, endpoint, .. } in containers {
            for member in endpoint.members() {
                let name = member.address.host_link.as_str();
                let Some(network) = leases.networks.get(&member.network_id).filter(|_| !name.is_empty()) else {
                    continue;
                };
                let bridge = links.get(network.link.as_str()).map(|bridge| bridge.index);
                match links.get(name) {
                    None => lines.push(format!("link {name} of container {container} is missing")),
                    Some(found) if network.is_bridge() && (found.master.is_none() || found.master != bridge) => {
                        lines.push(format!("link {name} of container {container} isn't on bridge {}", network.link));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Names are answered on networks of users.
    fn differences_of_names(&self, containers: &[Attached], lines: &mut Vec<String>) {
        let of_user = |id: &String| self.definition(id).is_some();
        let needs = |one: &&Attached| one.endpoint.members().iter().any(|member| of_user(&member.network_id));
        let needing: Vec<_> = containers.iter().filter(needs).collect();
        if needing.is_empty() {
            return;
        }
        let served = self.names.served();
        let unserved = needing.into_iter().filter(|one| !served.contains(&one.id));
        lines.extend(unserved.map(|one| format!("names aren't answered for container {}", one.name)));
    }
}
