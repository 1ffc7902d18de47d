//! Taking up the work of an engine that is gone: its containers run on, its memory doesn't.

use std::collections::HashSet;

use tracing::{info, warn};

use super::endpoint::{Endpoint, Member, NetworkKind};
use super::error::NetworkError;
use super::ipam::IpamError;
use super::netlink::{Batch, LINKS_AT_ONCE, link};
use super::ports::PublishedPort;
use super::{Network, Networks, locked};

/// What couldn't be restored for a container.
#[derive(Debug)]
pub struct Damage {
    /// The container.
    pub id: String,
    /// What is wrong.
    pub error: NetworkError,
}

impl Networks {
    /// Takes up the endpoints of containers that are alive: their addresses and host ports are reserved again, their links
    /// are put back on the bridge if somebody took them off, and the firewall publishes exactly their ports. Pins and links of this
    /// stack that belong to no record are removed. To be called once, before anything is attached.
    ///
    /// What is wrong with single containers is returned and stops nothing.
    pub fn restore<'a>(
        &self,
        records: impl IntoIterator<Item = (&'a str, &'a Endpoint)>,
    ) -> Result<Vec<Damage>, NetworkError> {
        let held = self.names.held();
        let alone = held.is_empty();
        locked(&self.leases).ports.adopt(held);
        let mut damages = Vec::new();
        let mut known_ids = HashSet::new();
        let mut known_links = HashSet::new();
        let mut restored = Vec::new();
        let links = link::list(&mut locked(&self.route))?;
        let there: HashSet<&str> = links.iter().map(|link| link.name.as_str()).collect();
        for (id, endpoint) in records {
            if endpoint.network == NetworkKind::Host {
                continue;
            }
            let mut damage = |error| damages.push(Damage { id: id.to_owned(), error });
            known_ids.insert(id);
            let members = endpoint.members();
            // Links go all at once, with the namespace; one alone is missing when a change of a living container's networks was
            // cut short.
            // What is in the container alone isn't seen from here.
            let gone = |member: &&Member| {
                let host_link = member.address.host_link.as_str();
                !host_link.is_empty() && !there.contains(host_link)
            };
            if let Some(missing) = members.iter().find(gone)
                && !endpoint.unsettled
            {
                damage(NetworkError::LinkGone(missing.address.host_link.clone()));
                if members.iter().all(|member| gone(&member)) {
                    continue;
                }
            }
            known_links.extend(members.iter().map(|member| member.address.host_link.clone()));
            self.restore_endpoint(id, endpoint, &members, &there).into_iter().for_each(&mut damage);
            restored.push((id, endpoint));
        }
        self.take_up_ports(&restored, alone);
        locked(&self.firewall).assert_all().map_err(|cause| self.firewall_error(cause))?;
        self.sweep(&links, &known_ids, &known_links)?;
        Ok(damages)
    }

    fn restore_endpoint(
        &self,
        id: &str,
        endpoint: &Endpoint,
        members: &[Member],
        there: &HashSet<&str>,
    ) -> Vec<NetworkError> {
        let mut errors = Vec::new();
        let mut leases = locked(&self.leases);
        let mut batch = Batch::new();
        let mut usable = Vec::new();
        for member in members {
            let Some(network) = leases.networks.get_mut(&member.network_id) else {
                errors.push(NetworkError::NotFound(member.network_id.clone()));
                continue;
            };
            // Another subnet since, most likely: the container keeps running, but nothing leads to it.
            if let Err(error) = network.take_back(member, id) {
                errors.push(error.into());
                continue;
            }
            usable.push(member.network_id.as_str());
            if network.is_bridge() && network.index != 0 && there.contains(member.address.host_link.as_str()) {
                link::bring_up(&mut batch, &member.address.host_link, Some(network.index));
                locked(&self.homes).insert(member.address.host_link.clone(), member.network_id.clone());
            }
        }
        let leads = |is_ipv4| {
            let gateway = endpoint.gateway_member(is_ipv4);
            gateway.is_some_and(|gateway| usable.contains(&gateway.network_id.as_str()))
        };
        let led: Vec<PublishedPort> =
            endpoint.ports.iter().filter(|port| leads(port.host_ip.is_ipv4())).copied().collect();
        for port in led.iter().filter(|port| port.host_port != 0) {
            let held = leases.ports.restore(id, port);
            errors.extend(held.err().map(|cause| NetworkError::Port { endpoint: id.to_owned(), cause }));
        }
        drop(leases);
        locked(&self.firewall).remember(endpoint.targets(), &led);
        if let Err(cause) = locked(&self.route).run(&mut batch) {
            let (endpoint, bridge) = (id.to_owned(), self.config.name.clone());
            errors.push(NetworkError::Connect { endpoint, bridge, cause });
        }
        errors
    }

    /// Takes up what is beside ports, and makes the resolver let go of what belongs to no record. `alone`: it had died, too, and with it
    /// what was beside ports. What it has to hold it is told with the names, or by [`Networks::hold_ports`].
    fn take_up_ports(&self, restored: &[(&str, &Endpoint)], alone: bool) {
        let nobodys = {
            let mut leases = locked(&self.leases);
            for (id, endpoint) in restored.iter().filter(|_| alone) {
                endpoint.ports.iter().for_each(|port| leases.ports.take_beside(id, port));
            }
            leases.ports.adopted()
        };
        self.names.let_go(&nobodys);
    }

    /// Removes what an engine left behind that died between two steps.
    fn sweep(
        &self,
        links: &[link::Link],
        known_ids: &HashSet<&str>,
        known_links: &HashSet<String>,
    ) -> Result<(), NetworkError> {
        let prefix = self.alias_prefix();
        let (bridges, networks): (HashSet<u32>, HashSet<String>) = {
            let leases = locked(&self.leases);
            let bridges = leases.networks.values().filter(|network| network.is_bridge());
            let indices = bridges.map(|network| network.index).collect();
            (indices, leases.networks.keys().map(|id| self.network_alias(id)).collect())
        };
        let mut left = Vec::new();
        for link in links {
            let alias = link.alias.as_deref().unwrap_or_default();
            let labelled = alias.starts_with(&prefix);
            // Killed between creating and labelling: on our bridge, and named as we name links.
            let on_ours = link.master.is_some_and(|master| bridges.contains(&master));
            let unlabelled = link.alias.is_none() && on_ours && is_host_link_name(&link.name);
            let end = link.kind.as_deref() == Some("veth")
                && (labelled || unlabelled)
                && !known_links.contains(link.name.as_str());
            // A bridge, or what took the place of a link of the host's.
            let made = matches!(link.kind.as_deref(), Some("bridge" | "dummy" | "vlan"));
            if end || (made && labelled && !networks.contains(alias)) {
                info!(link = link.name, alias = link.alias, "left-over link is removed");
                left.push(link.name.as_str());
            }
        }
        for some in left.chunks(LINKS_AT_ONCE) {
            let mut batch = Batch::new();
            some.iter().for_each(|name| link::delete(&mut batch, name));
            locked(&self.route).run(&mut batch)?;
        }
        for id in self.pins.list()? {
            if !known_ids.contains(id.as_str()) {
                info!(id, "left-over network namespace is removed");
                if let Err(error) = self.unpin(&id) {
                    warn!(id, %error, "network namespace stays");
                }
            }
        }
        Ok(())
    }
}

impl Network {
    /// Takes the addresses of a member again: all or none.
    fn take_back(&mut self, member: &Member, id: &str) -> Result<(), IpamError> {
        let mut taken = Vec::new();
        for own in member.address.all() {
            let fits = |pool: &&mut super::Ipam| pool.subnet().contains(own.ip);
            let result = match self.pools.iter_mut().find(fits) {
                Some(pool) => pool.reserve(own.ip, id),
                None => Err(IpamError::Foreign { address: own.ip }),
            };
            if let Err(error) = result {
                taken.into_iter().for_each(|ip| self.pools.iter_mut().for_each(|pool| pool.release(ip, id)));
                return Err(error);
            }
            taken.push(own.ip);
        }
        Ok(())
    }
}

/// Whether a name has the form that `attach` gives to links on the host.
fn is_host_link_name(name: &str) -> bool {
    name.strip_prefix("veth").is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_our_links() {
        for (name, ours) in
            [("veth0123456789a", true), ("veth0", false), ("veth0123456789g", false), ("xeth0123456789a", false)]
        {
            assert_eq!(is_host_link_name(name), ours, "{name}");
        }
    }
}
