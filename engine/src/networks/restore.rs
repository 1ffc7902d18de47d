//! Taking up the work of an engine that is gone: its containers run on, its memory doesn't.

use std::collections::HashSet;

use tracing::{info, warn};

use super::endpoint::{Endpoint, Member, NetworkKind};
use super::error::NetworkError;
use super::netlink::{Batch, LINKS_AT_ONCE, link};
use super::{Networks, locked};

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
        let mut damages = Vec::new();
        let mut known_ids = HashSet::new();
        let mut known_links = HashSet::new();
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
            let gone = |member: &&Member| !there.contains(member.address.host_link.as_str());
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
        }
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
            let Some(network) = leases.bridges.get_mut(&member.network_id) else {
                errors.push(NetworkError::NotFound(member.network_id.clone()));
                continue;
            };
            // Another subnet since, most likely: the container keeps running, but nothing leads to it.
            if let Err(error) = network.ipam.reserve(member.address.ip, id) {
                errors.push(error.into());
                continue;
            }
            usable.push(member.network_id.as_str());
            if network.index != 0 && there.contains(member.address.host_link.as_str()) {
                link::bring_up(&mut batch, &member.address.host_link, Some(network.index));
                locked(&self.homes).insert(member.address.host_link.clone(), member.network_id.clone());
            }
        }
        let gateway = endpoint.gateway_member().filter(|gateway| usable.contains(&gateway.network_id.as_str()));
        if let Some(gateway) = gateway {
            for port in &endpoint.ports {
                let held = leases.ports.restore(id, port);
                errors.extend(held.err().map(|cause| NetworkError::Port { endpoint: id.to_owned(), cause }));
            }
            drop(leases);
            locked(&self.firewall).remember(gateway.address.ip, &endpoint.ports);
        } else {
            drop(leases);
        }
        if let Err(cause) = locked(&self.route).run(&mut batch) {
            let (endpoint, bridge) = (id.to_owned(), self.config.name.clone());
            errors.push(NetworkError::Connect { endpoint, bridge, cause });
        }
        errors
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
            let indices = leases.bridges.values().map(|network| network.index).collect();
            (indices, leases.bridges.keys().map(|id| self.network_alias(id)).collect())
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
            let bridge = link.kind.as_deref() == Some("bridge") && labelled && !networks.contains(alias);
            if end || bridge {
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
