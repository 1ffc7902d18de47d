//! Who is called what in which network. Pure: what the resolver answers from.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

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
    /// Whether it was told to complete names of few dots (`ndots`): a name without a dot isn't looked up elsewhere as it is. None
    /// for what the host's file says, which it was given a copy of.
    pub completes: Option<bool>,
    /// What it alone calls others: names in lower case, and what they stand for.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneMember {
    /// The network's id.
    pub network: String,
    /// Its name.
    pub network_name: String,
    /// The container's addresses, of one family or both.
    pub addresses: Vec<IpAddr>,
    /// What others call it, its own name first.
    pub names: Vec<String>,
}

/// A kind of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

impl Version {
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::Four } else { Self::Six }
    }
}

impl Named {
    fn add(&mut self, id: &Rc<str>, ip: IpAddr) {
        self.holders.push((id.clone(), ip));
        let all = &mut self.addresses[Version::of(ip) as usize];
        if !all.contains(&ip) {
            all.push(ip);
        }
    }

    fn remove(&mut self, id: &str) {
        let mut gone = Vec::new();
        self.holders.retain(|(holder, ip)| {
            let stays = **holder != *id;
            if !stays {
                gone.push(*ip);
            }
            stays
        });
        for ip in gone {
            if !self.holders.iter().any(|(_, other)| *other == ip) {
                self.addresses[Version::of(ip) as usize].retain(|other| *other != ip);
            }
        }
    }
}

/// All names of all networks.
#[derive(Debug, Default)]
pub(super) struct Index {
    zones: HashMap<String, Zone>,
    networks: HashMap<String, Network>,
}

#[derive(Debug, Default)]
struct Network {
    /// In lower case.
    names: HashMap<String, Named>,
    /// The containers that an address belongs to, with the name of each: one, or for a moment a former one too.
    owners: HashMap<IpAddr, Vec<(Rc<str>, String)>>,
}

#[derive(Debug, Default)]
struct Named {
    /// Containers and their addresses.
    holders: Vec<(Rc<str>, IpAddr)>,
    /// The addresses of each version, each once.
    addresses: [Vec<IpAddr>; 2],
    /// Where the next answer begins, for each version. Clients ask for both at once: one number for both would always begin the
    /// same way.
    turns: [usize; 2],
}

impl Index {
    /// Notes what is so of a container, in place of what was.
    pub(super) fn put(&mut self, zone: Zone) {
        self.remove(&zone.id);
        let id: Rc<str> = zone.id.as_str().into();
        for member in &zone.members {
            let network = self.networks.entry(member.network.clone()).or_default();
            for ip in &member.addresses {
                for name in &member.names {
                    network.names.entry(name.to_ascii_lowercase()).or_default().add(&id, *ip);
                }
                if let Some(name) = member.names.first() {
                    network.owners.entry(*ip).or_default().push((id.clone(), name.clone()));
                }
            }
        }
        self.zones.insert(zone.id.clone(), zone);
    }

    /// Forgets a container: what it holds, and nothing of another one that has its name or its address by now.
    pub(super) fn remove(&mut self, id: &str) {
        let Some(zone) = self.zones.remove(id) else { return };
        for member in &zone.members {
            let Some(network) = self.networks.get_mut(&member.network) else { continue };
            for name in &member.names {
                let name = name.to_ascii_lowercase();
                if let Some(named) = network.names.get_mut(&name) {
                    named.remove(id);
                    if named.holders.is_empty() {
                        network.names.remove(&name);
                    }
                }
            }
            for ip in &member.addresses {
                if let Some(owners) = network.owners.get_mut(ip) {
                    owners.retain(|(owner, _)| **owner != *id);
                    if owners.is_empty() {
                        network.owners.remove(ip);
                    }
                }
            }
            if network.names.is_empty() && network.owners.is_empty() {
                self.networks.remove(&member.network);
            }
        }
    }

    /// What is known of a container.
    pub(super) fn zone(&self, id: &str) -> Option<&Zone> {
        self.zones.get(id)
    }

    /// Whether a name (in lower case) is one of a container's networks, whatever it has.
    pub(super) fn knows(&self, id: &str, name: &str) -> bool {
        self.zones.get(id).is_some_and(|zone| {
            spellings(zone, name)
                .any(|(network, name)| self.networks.get(network).is_some_and(|n| n.names.contains_key(name)))
        })
    }

    /// The addresses that a name (in lower case) has for a container: those of the first of its networks that has some of the
    /// version; none at all when the name is known without. Several take turns in being the first.
    pub(super) fn addresses(&mut self, id: &str, name: &str, version: Version) -> Option<Vec<IpAddr>> {
        let zone = self.zones.get(id)?;
        let mut known = false;
        for (network, name) in spellings(zone, name) {
            let Some(named) = self.networks.get_mut(network).and_then(|network| network.names.get_mut(name)) else {
                continue;
            };
            known = true;
            let mut found = named.addresses[version as usize].clone();
            if found.len() > 1 {
                let turn = &mut named.turns[version as usize];
                *turn = turn.wrapping_add(1);
                let by = *turn % found.len();
                found.rotate_left(by);
            }
            if !found.is_empty() {
                return Some(found);
            }
        }
        known.then(Vec::new)
    }

    /// The name of an address in the networks of a container: `web.mynet`.
    pub(super) fn name_of(&self, id: &str, ip: IpAddr) -> Option<String> {
        let zone = self.zones.get(id)?;
        zone.members.iter().find_map(|own| {
            // Who got it last has it.
            let (_, name) = self.networks.get(&own.network)?.owners.get(&ip)?.last()?;
            Some(format!("{name}.{}", own.network_name))
        })
    }

    /// The ids of all containers.
    pub(super) fn ids(&self) -> Vec<String> {
        self.zones.keys().cloned().collect()
    }
}

/// The networks in which a name may be found, and by what: as it is in each of them, then `web.mynet` as web in mynet. A link's name
/// stands for another one.
fn spellings<'a>(zone: &'a Zone, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let name = zone.links.get(name).map_or(name, String::as_str);
    let plain = zone.members.iter().map(move |member| (member.network.as_str(), name));
    let qualified = zone.members.iter().filter_map(move |member| {
        let (first, rest) = name.split_at_checked(name.len().checked_sub(member.network_name.len())?)?;
        rest.eq_ignore_ascii_case(&member.network_name).then_some((member.network.as_str(), first.strip_suffix('.')?))
    });
    plain.chain(qualified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn six(last: u8) -> IpAddr {
        [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into()
    }

    fn with_addresses(id: &str, networks: &[(&str, Vec<IpAddr>, &[&str])]) -> Zone {
        let members = networks.iter().map(|(network, addresses, names)| ZoneMember {
            network: format!("{network}-id"),
            network_name: (*network).to_owned(),
            addresses: addresses.clone(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        });
        Zone { id: id.to_owned(), members: members.collect(), ..Zone::default() }
    }

    fn zone(id: &str, networks: &[(&str, u8, &[&str])]) -> Zone {
        let networks: Vec<_> = networks.iter().map(|(name, last, names)| (*name, vec![ip(*last)], *names)).collect();
        with_addresses(id, &networks)
    }

    fn four(index: &mut Index, id: &str, name: &str) -> Option<Vec<IpAddr>> {
        index.addresses(id, name, Version::Four)
    }

    #[test]
    fn links_are_names_for_one_alone() {
        let mut index = Index::default();
        let links = [("store".to_owned(), "db".to_owned())].into();
        index.put(Zone { links, ..zone("a", &[("n", 1, &["a"])]) });
        index.put(zone("b", &[("n", 2, &["db"])]));
        assert_eq!(index.addresses("a", "store", Version::Four), Some(vec![ip(2)]));
        assert_eq!(index.addresses("b", "store", Version::Four), None);
    }

    #[test]
    fn names_are_those_of_ones_own_networks() {
        let mut index = Index::default();
        index.put(zone("a", &[("Front", 1, &["web", "a"])]));
        index.put(zone("b", &[("Front", 2, &["DB"]), ("back", 3, &["db"])]));
        index.put(zone("c", &[("back", 4, &["cache"])]));
        assert_eq!(four(&mut index, "a", "db"), Some(vec![ip(2)]));
        assert_eq!(four(&mut index, "c", "db"), Some(vec![ip(3)]));
        assert_eq!(four(&mut index, "a", "cache"), None, "another network");
        assert_eq!(four(&mut index, "a", "db.front"), Some(vec![ip(2)]));
        for name in ["db.back", "dbfront", ".front", "front", "x.db.front"] {
            assert_eq!(four(&mut index, "a", name), None, "{name}");
            assert!(!index.knows("a", name), "{name}");
        }
        assert!(index.knows("a", "db") && index.knows("a", "db.front") && !index.knows("nobody", "db"));
        assert_eq!(index.name_of("a", ip(2)), Some("DB.Front".into()));
        assert_eq!(index.name_of("a", ip(4)), None);
        assert_eq!(four(&mut index, "nobody", "db"), None);
        index.remove("b");
        assert_eq!(four(&mut index, "a", "db"), None);
        assert_eq!(index.name_of("a", ip(2)), None);
        index.remove("a");
        index.remove("c");
        assert!(index.networks.is_empty() && index.zones.is_empty());
    }

    #[test]
    fn a_name_has_addresses_of_each_version_or_none_of_one() {
        let mut index = Index::default();
        index.put(with_addresses("a", &[("n", vec![ip(1), six(1)], &["web"]), ("m", vec![ip(1)], &["web"])]));
        index.put(with_addresses("b", &[("n", vec![six(2)], &["db"]), ("m", vec![ip(9), six(9)], &["db"])]));
        index.put(with_addresses("c", &[("n", vec![ip(3)], &["old"])]));
        let mut both = |name: &str| [Version::Four, Version::Six].map(|version| index.addresses("a", name, version));
        assert_eq!(both("web"), [Some(vec![ip(1)]), Some(vec![six(1)])]);
        assert_eq!(both("db"), [Some(vec![ip(9)]), Some(vec![six(2)])], "the first network that has some");
        assert_eq!(both("old"), [Some(vec![ip(3)]), Some(vec![])]);
        assert_eq!(both("new"), [None, None]);
        assert_eq!(index.name_of("a", six(2)), Some("db.n".into()));
        assert_eq!(index.name_of("c", six(9)), None, "not on m");
    }

    #[test]
    fn a_shared_name_takes_turns() {
        let mut index = Index::default();
        for (id, last) in [("a", 1), ("b", 2), ("c", 3)] {
            index.put(with_addresses(id, &[("n", vec![ip(last), six(last)], &["web"])]));
        }
        // As clients ask: for both at once, of which each has its own turns.
        let mut firsts = [Vec::new(), Vec::new()];
        for _ in 0..6 {
            for (version, firsts) in [Version::Four, Version::Six].into_iter().zip(&mut firsts) {
                firsts.push(index.addresses("a", "web", version).expect("known")[0]);
            }
        }
        for (firsts, make) in firsts.iter().zip([ip as fn(u8) -> IpAddr, six]) {
            for last in 1..4 {
                assert_eq!(firsts.iter().filter(|first| **first == make(last)).count(), 2, "{firsts:?}");
            }
        }
        index.put(zone("b", &[("n", 9, &["web"])]));
        let mut all = four(&mut index, "a", "web").expect("known");
        all.sort();
        assert_eq!(all, [ip(1), ip(3), ip(9)]);
    }

    #[test]
    fn what_a_successor_has_stays_when_the_one_before_is_forgotten() {
        let mut index = Index::default();
        index.put(zone("old", &[("n", 1, &["web"])]));
        index.put(zone("new", &[("n", 1, &["web"])]));
        assert_eq!(four(&mut index, "new", "web"), Some(vec![ip(1)]), "once");
        index.remove("old");
        assert_eq!(four(&mut index, "new", "web"), Some(vec![ip(1)]));
        assert_eq!(index.name_of("new", ip(1)), Some("web.n".into()));
    }

    proptest! {
        /// Whatever is put and removed: names lead to just those that have them, and nothing is left at the end.
        #[test]
        fn names_lead_to_those_that_have_them(
            steps in proptest::collection::vec((0..4usize, 0..3usize, proptest::collection::vec((0..2usize, 1..4u8, 0..3usize), 0..3)), 1..30)
        ) {
            const IDS: [&str; 4] = ["a", "b", "c", "d"];
            const NETWORKS: [&str; 2] = ["m", "n"];
            const NAMES: [&str; 3] = ["web", "db", "x"];
            let mut index = Index::default();
            let mut model: HashMap<&str, Zone> = HashMap::new();
            for (id, action, places) in steps {
                let id = IDS[id];
                if action == 0 {
                    index.remove(id);
                    model.remove(id);
                } else {
                    let mut places = places;
                    places.sort_unstable();
                    places.dedup_by_key(|(network, ..)| *network);
                    let members: Vec<(&str, u8, &[&str])> =
                        places.iter().map(|(network, last, name)| (NETWORKS[*network], *last, &NAMES[*name..])).collect();
                    let zone = zone(id, &members);
                    index.put(zone.clone());
                    model.insert(id, zone);
                }
                for zone in model.values() {
                    for member in &zone.members {
                        for name in NAMES {
                            let mut found = four(&mut index, &zone.id, &format!("{name}.{}", member.network_name)).unwrap_or_default();
                            let others = model.values().flat_map(|zone| &zone.members);
                            let same = others.filter(|other| other.network == member.network && other.names.iter().any(|n| n == name));
                            let mut expected: Vec<IpAddr> = same.flat_map(|other| other.addresses.clone()).collect();
                            expected.sort();
                            expected.dedup();
                            found.sort();
                            prop_assert_eq!(found, expected);
                        }
                    }
                }
            }
            IDS.iter().for_each(|id| index.remove(id));
            prop_assert!(index.networks.is_empty() && index.zones.is_empty());
        }
    }
}
