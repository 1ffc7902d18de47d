//! Who is called what in which network. Pure: what the resolver answers from.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// What the resolver knows of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Its id.
    pub id: String,
    /// Its networks of users, the one by which the default route leads first.
    pub members: Vec<ZoneMember>,
    /// Name servers it was given; none for those of the host.
    pub upstreams: Vec<IpAddr>,
    /// Whether names that no container has are looked up elsewhere: not from internal networks.
    pub forwards: bool,
    /// It was told to complete names of few dots (`ndots`): a name without a dot isn't looked up elsewhere as it is.
    pub completes: bool,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneMember {
    /// The network's id.
    pub network: String,
    /// Its name.
    pub network_name: String,
    /// The container's address.
    pub ip: Ipv4Addr,
    /// What others call it, its own name first.
    pub names: Vec<String>,
}

/// All names of all networks.
#[derive(Debug, Default)]
pub(super) struct Index {
    zones: HashMap<String, Zone>,
    /// By network and name.
    addresses: HashMap<String, HashMap<String, Vec<Ipv4Addr>>>,
    /// Where the next answer with several addresses begins.
    turn: usize,
}

impl Index {
    /// Notes what is so of a container, in place of what was.
    pub(super) fn put(&mut self, zone: Zone) {
        self.remove(&zone.id);
        for member in &zone.members {
            let network = self.addresses.entry(member.network.clone()).or_default();
            for name in &member.names {
                let all = network.entry(name.to_ascii_lowercase()).or_default();
                if !all.contains(&member.ip) {
                    all.push(member.ip);
                }
            }
        }
        self.zones.insert(zone.id.clone(), zone);
    }

    /// Forgets a container.
    pub(super) fn remove(&mut self, id: &str) {
        let Some(zone) = self.zones.remove(id) else { return };
        for member in &zone.members {
            let Some(network) = self.addresses.get_mut(&member.network) else { continue };
            for name in &member.names {
                let name = name.to_ascii_lowercase();
                if let Some(all) = network.get_mut(&name) {
                    all.retain(|ip| *ip != member.ip);
                    if all.is_empty() {
                        network.remove(&name);
                    }
                }
            }
            if network.is_empty() {
                self.addresses.remove(&member.network);
            }
        }
    }

    /// What is known of a container.
    pub(super) fn zone(&self, id: &str) -> Option<&Zone> {
        self.zones.get(id)
    }

    /// The addresses that a name (in lower case) has for a container: those of the first of its networks that knows the name.
    /// Several take turns in being the first.
    pub(super) fn addresses(&mut self, id: &str, name: &str) -> Option<Vec<Ipv4Addr>> {
        let zone = self.zones.get(id)?;
        let known = |network: &str, name: &str| self.addresses.get(network)?.get(name);
        let plain = zone.members.iter().find_map(|member| known(&member.network, name));
        // `web.mynet` is web in mynet.
        let qualified = || {
            zone.members.iter().find_map(|member| {
                let suffix = member.network_name.to_ascii_lowercase();
                known(&member.network, name.strip_suffix(&suffix)?.strip_suffix('.')?)
            })
        };
        let mut found = plain.or_else(qualified)?.clone();
        if found.len() > 1 {
            self.turn = self.turn.wrapping_add(1);
            let by = self.turn % found.len();
            found.rotate_left(by);
        }
        Some(found)
    }

    /// The name of an address in the networks of a container: `web.mynet`.
    pub(super) fn name_of(&self, id: &str, ip: Ipv4Addr) -> Option<String> {
        let zone = self.zones.get(id)?;
        zone.members.iter().find_map(|own| {
            let mut others = self.zones.values().flat_map(|zone| &zone.members);
            let other = others.find(|other| other.network == own.network && other.ip == ip)?;
            Some(format!("{}.{}", other.names.first()?, own.network_name))
        })
    }

    /// The ids of all containers.
    pub(super) fn ids(&self) -> Vec<String> {
        self.zones.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        [10, 0, 0, last].into()
    }

    fn zone(id: &str, networks: &[(&str, u8, &[&str])]) -> Zone {
        let members = networks.iter().map(|(network, last, names)| ZoneMember {
            network: format!("{network}-id"),
            network_name: (*network).to_owned(),
            ip: ip(*last),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        });
        Zone { id: id.to_owned(), members: members.collect(), ..Zone::default() }
    }

    #[test]
    fn names_are_those_of_ones_own_networks() {
        let mut index = Index::default();
        index.put(zone("a", &[("Front", 1, &["web", "a"])]));
        index.put(zone("b", &[("Front", 2, &["DB"]), ("back", 3, &["db"])]));
        index.put(zone("c", &[("back", 4, &["cache"])]));
        assert_eq!(index.addresses("a", "db"), Some(vec![ip(2)]));
        assert_eq!(index.addresses("c", "db"), Some(vec![ip(3)]));
        assert_eq!(index.addresses("a", "cache"), None, "another network");
        assert_eq!(index.addresses("a", "db.front"), Some(vec![ip(2)]));
        assert_eq!(index.addresses("a", "db.back"), None);
        assert_eq!(index.name_of("a", ip(2)), Some("DB.Front".into()));
        assert_eq!(index.name_of("a", ip(4)), None);
        assert_eq!(index.addresses("nobody", "db"), None);
        index.remove("b");
        assert_eq!(index.addresses("a", "db"), None);
        index.remove("a");
        index.remove("c");
        assert!(index.addresses.is_empty() && index.zones.is_empty());
    }

    #[test]
    fn a_shared_name_takes_turns() {
        let mut index = Index::default();
        for (id, last) in [("a", 1), ("b", 2), ("c", 3)] {
            index.put(zone(id, &[("n", last, &["web"])]));
        }
        let firsts: Vec<_> = (0..3).filter_map(|_| Some(index.addresses("a", "web")?[0])).collect();
        assert_eq!(firsts.len(), 3);
        assert!(firsts.contains(&ip(1)) && firsts.contains(&ip(2)) && firsts.contains(&ip(3)), "{firsts:?}");
        index.put(zone("b", &[("n", 9, &["web"])]));
        let mut all = index.addresses("a", "web").expect("known");
        all.sort();
        assert_eq!(all, [ip(1), ip(3), ip(9)]);
    }
}
