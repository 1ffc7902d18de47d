//! Taking up the work of an engine that is gone: its containers run on, its memory doesn't.

use std::collections::HashSet;

use tracing::{info, warn};

use super::endpoint::{Endpoint, NetworkKind};
use super::error::NetworkError;
use super::netlink::{Batch, link};
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
        let is_there = |name: &str| links.iter().any(|link| link.name == name);
        for (id, endpoint) in records {
            if endpoint.network == NetworkKind::Host {
                continue;
            }
            let mut damage = |error| damages.push(Damage { id: id.to_owned(), error });
            known_ids.insert(id);
            if let Some(address) = &endpoint.address {
                if !is_there(&address.host_link) {
                    damage(NetworkError::LinkGone(address.host_link.clone()));
                    continue;
                }
                known_links.insert(address.host_link.as_str());
                self.restore_endpoint(id, endpoint).into_iter().for_each(&mut damage);
            }
        }
        locked(&self.firewall).assert_all().map_err(|cause| self.firewall_error(cause))?;
        self.sweep(links, &known_ids, &known_links)?;
        Ok(damages)
    }

    fn restore_endpoint(&self, id: &str, endpoint: &Endpoint) -> Vec<NetworkError> {
        let mut errors = Vec::new();
        let Some(address) = &endpoint.address else { return errors };
        let mut leases = locked(&self.leases);
        if let Err(error) = leases.ipam.reserve(address.ip, id) {
            // Another subnet since, most likely: the container keeps running, but nothing leads to it.
            return vec![error.into()];
        }
        for port in &endpoint.ports {
            let held = leases.ports.restore(id, port);
            errors.extend(held.err().map(|cause| NetworkError::Port { endpoint: id.to_owned(), cause }));
        }
        drop(leases);
        locked(&self.firewall).remember(address.ip, &endpoint.ports);
        let mut batch = Batch::new();
        link::bring_up(&mut batch, &address.host_link, Some(self.bridge_index()));
        if let Err(cause) = locked(&self.route).run(&mut batch) {
            let (endpoint, bridge) = (id.to_owned(), self.config.name.clone());
            errors.push(NetworkError::Connect { endpoint, bridge, cause });
        }
        errors
    }

    /// Removes what an engine left behind that died between two steps.
    fn sweep(
        &self,
        links: Vec<link::Link>,
        known_ids: &HashSet<&str>,
        known_links: &HashSet<&str>,
    ) -> Result<(), NetworkError> {
        let prefix = self.alias_prefix();
        let bridge = self.bridge_index();
        let mut batch = Batch::new();
        for link in links {
            let labelled = link.alias.as_ref().is_some_and(|alias| alias.starts_with(&prefix));
            // Killed between creating and labelling: on our bridge, and named as we name links.
            let unlabelled = link.alias.is_none() && link.master == Some(bridge) && is_host_link_name(&link.name);
            let ours = link.kind.as_deref() == Some("veth") && (labelled || unlabelled);
            if ours && !known_links.contains(link.name.as_str()) {
                info!(link = link.name, alias = link.alias, "left-over link is removed");
                link::delete(&mut batch, &link.name);
            }
        }
        locked(&self.route).run(&mut batch)?;
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
