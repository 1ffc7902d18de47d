//! Networks, the default bridge and those of users, made directly over netlink and nftables: no helper program, no
//! user-space proxy. IPv4 and IPv6 go the same ways.
//!
//! ```text
//!            container                                   host
//!   ┌──────────────────────────┐        ┌───────────────────────────────────────────┐
//!   │ lo     eth0 172.17.0.2/16│ veth   │  BRIDGE 172.17.0.1/16            eth0     │   other hosts
//!   │ default via 172.17.0.1 ──┼────────┼─── (L2 between containers) ── routing ────┼──────────────
//!   └──────────────────────────┘        └───────────────────────────────────────────┘
//!
//!   out             container ── BRIDGE ── forward: accept ── postrouting: source := the host's ── eth0
//!   in              eth0 ── prerouting: 10.0.0.5:8080 -> 172.17.0.2:80 ── forward: accept ── BRIDGE ── container
//!   from this host  curl 10.0.0.5:8080 ── output: -> 172.17.0.2:80 ── BRIDGE ── container
//!   by 127.0.0.1    curl 127.0.0.1:8080 ── output: -> 172.17.0.2:80 ── postrouting: source := 172.17.0.1 ── container
//!                   (the route is allowed by route_localnet on the bridge)
//!   by ::1          curl [::1]:8080 ── a socket of the resolver's (see `names::held`) ── 172.17.0.2:80
//!   hairpin         container ── BRIDGE ── prerouting: 172.17.0.1:8080 -> 172.17.0.3:80
//!                       ── postrouting: source := 172.17.0.1, so that the answer doesn't take the short way ── container
//!   refused         anything to 127.0.0.0/8 that didn't start on this host (guard)
//!                   anything from elsewhere straight to a container's address (forward)
//! ```
//!
//! # Why no proxy
//!
//! A process per published port costs memory and start time, hides the client's address, and dies with the daemon or
//! needs a supervisor of its own. The kernel does all its cases, see "by 127.0.0.1" and "hairpin" above, but one: it has no
//! `route_localnet` for IPv6. Connections of this host to ::1 are carried on by the resolver, which is there for all ports and containers.
//!
//! # While the engine is away
//!
//! Links, addresses, routes, rules and published ports are kernel state, and namespaces are pinned in the run root: traffic
//! flows on in all directions. The sockets that occupy host ports (see `ports`) are the resolver's, too, so that no other program
//! gets such a port meanwhile; the next engine takes them over from it ([`Networks::restore`]). When both have died, it takes the ports
//! again and reports what somebody has taken.
//!
//! # What is changed on the host
//!
//! The bridges and their links, the table `berth_BRIDGE` (`nft`), `net.ipv4.ip_forward`, and for each bridge alone
//! `route_localnet=1`, `accept_ra=0`, and `disable_ipv6=1` unless the network has IPv6. Once one has it,
//! `net.ipv6.conf.all.forwarding`; links that listened to routers go on doing so (`accept_ra=2`). A rule for each bridge where
//! iptables' chain `FORWARD` drops (`nft::foreign`), and its membership in a zone where firewalld runs (`firewalld`). Nothing else of other
//! tables, chains, bridges or policies; stacks with different bridge names and subnets don't meet.
//!
//! With `ip_forward` the host routes between its other links, too. Who doesn't want that says so in the host's own forward
//! chain, which then has to let the bridge through: an accept here doesn't overrule a drop there.

#[cfg(test)]
mod tests;

mod attach;
mod bridge;
mod compare;
mod config;
mod conntrack;
mod definition;
mod describe;
mod endpoint;
mod error;
mod firewalld;
mod ipam;
mod live;
mod mac;
pub mod names;
mod netlink;
mod netns;
mod nft;
mod options;
mod parent;
mod pools;
mod ports;
mod restore;
mod subnet;
mod sysctl;
mod user;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

pub use self::compare::Attached;
pub use self::config::{BridgeConfig, NetworkIds};
pub use self::definition::{Definition, NetworkRequest, Pooled, SubnetRequest};
pub use self::describe::NetworkDescription;
pub use self::endpoint::{AttachRequest, Endpoint, LinkOptions, MemberRequest, NetworkKind};
pub use self::error::NetworkError;
pub use self::mac::Mac;
pub use self::options::{Driver, check_options};
pub use self::pools::{Pool, PoolError, default_pools, unique_local_bridge};
pub use self::ports::{HostPort, PortRequest, Protocol, PublishedPort};
pub use self::subnet::Subnet;
pub use self::user::Found;
pub use self::watch::Watch;

use self::ipam::Ipam;
use self::names::Names;
use self::netlink::{Family, NetlinkError, Socket};
use self::netns::Pins;
use self::nft::{BridgeRules, Firewall, SubnetRules};
use self::options::{DriverOptions, GatewayMode};
use self::ports::Ports;

/// Most namespaces that are held, for descriptors are few in a shell's usual limits.
const HELD: usize = 256;

/// The networks of one engine. All methods block for a millisecond or a few: call them off the async threads. Several
/// threads may call them at once.
#[derive(Debug)]
pub struct Networks {
    config: BridgeConfig,
    /// The default bridge's addresses and networks.
    subnets: Vec<Subnet>,
    pins: Pins,
    // Where several are locked at once, then in this order.
    firewall: Mutex<Firewall>,
    leases: Mutex<Leases>,
    route: Mutex<Socket>,
    /// Links of containers on the host, and the networks they belong to.
    homes: Mutex<HashMap<String, String>>,
    /// Links that were cut off, and when.
    departing: Mutex<Vec<(Instant, String)>>,
    /// The namespaces of containers that this engine has attached: the kernel takes a long time to take one down, and holds the lock
    /// of all links meanwhile, so that is left for when the container is detached. At most [`HELD`].
    held: Mutex<HashMap<String, OwnedFd>>,
    /// The resolver of names in networks of users.
    names: Names,
    /// Nothing of it is to be made again.
    ended: AtomicBool,
}

/// What containers have of things that are counted.
#[derive(Debug)]
struct Leases {
    /// The networks by id, the default one too.
    networks: BTreeMap<String, Network>,
    ports: Ports,
}

/// A network that containers join.
#[derive(Debug)]
struct Network {
    /// The network's name.
    name: String,
    /// What is on disk; none for the default one.
    definition: Option<Definition>,
    driver: Driver,
    /// The bridge, or the link that containers' links are on.
    link: String,
    /// Its index; changes when somebody deletes it and we make it again, and is 0 while it can't be made.
    index: u32,
    mtu: u32,
    internal: bool,
    options: DriverOptions,
    /// Its subnets, with the gateways' addresses, and who has which address.
    pools: Vec<Ipam>,
}

impl Network {
    /// A network of the user whose link isn't there yet.
    fn of(definition: Definition, mtu: u32) -> Result<Self, NetworkError> {
        let options = DriverOptions::parse(definition.driver, &definition.options)?;
        let pool = |pooled: &Pooled| Ipam::with(pooled.address, pooled.range, pooled.auxiliary.values().copied());
        Ok(Self {
            name: definition.name.clone(),
            driver: definition.driver,
            link: definition.bridge.clone(),
            index: 0,
            mtu: options.mtu.unwrap_or(mtu),
            internal: definition.internal,
            pools: definition.subnets.iter().map(pool).collect(),
            options,
            definition: Some(definition),
        })
    }

    /// Whether it has a bridge.
    fn is_bridge(&self) -> bool {
        self.driver == Driver::Bridge && !self.link.is_empty()
    }

    /// Its networks of a family, with the gateways' addresses.
    fn subnets(&self, is_ipv4: bool) -> impl Iterator<Item = Subnet> {
        self.pools.iter().map(Ipam::subnet).filter(move |subnet| subnet.is_ipv4() == is_ipv4)
    }

    fn has_family(&self, is_ipv4: bool) -> bool {
        self.subnets(is_ipv4).next().is_some()
    }

    fn is_unused(&self) -> bool {
        self.pools.iter().all(Ipam::is_unused)
    }

    /// What its bridge has to be.
    fn bridge<'a>(&'a self, alias: Option<&'a str>) -> bridge::Wanted<'a> {
        let (addresses, silent) = self
            .pools
            .iter()
            .map(Ipam::subnet)
            .partition(|subnet: &Subnet| self.options.bridge_has_address(subnet.is_ipv4()));
        bridge::Wanted {
            name: &self.link,
            addresses,
            silent,
            ipv6: self.has_family(false),
            mtu: self.mtu,
            alias,
            adopted: self.definition.as_ref().is_some_and(|definition| definition.adopted),
        }
    }

    fn rules(&self) -> BridgeRules {
        let subnets = self.pools.iter().map(Ipam::subnet).map(|subnet| {
            let mode = self.options.mode(subnet.is_ipv4());
            let translated = matches!(mode, GatewayMode::Nat | GatewayMode::NatUnprotected);
            SubnetRules {
                subnet: subnet.to_network(),
                mode,
                masquerade: self.options.masquerade && translated,
                source: if subnet.is_ipv4() { self.options.source.0 } else { self.options.source.1 },
            }
        });
        BridgeRules {
            link: self.link.clone(),
            internal: self.internal,
            trusted: self.options.trusted.clone(),
            subnets: subnets.collect(),
        }
    }
}

impl Leases {
    fn index_of(&self, network_id: &str) -> u32 {
        self.networks.get(network_id).map_or(0, |network| network.index)
    }

    fn link_of(&self, network_id: &str) -> String {
        self.networks.get(network_id).map_or_else(|| "gone".to_owned(), |network| network.link.clone())
    }

    /// What the firewall has to know of all bridges.
    fn rules(&self) -> Vec<BridgeRules> {
        self.networks.values().filter(|network| network.is_bridge()).map(Network::rules).collect()
    }
}

impl Networks {
    /// Makes or repairs bridges, kernel settings and the firewall's rules. Ports that an engine before this one
    /// published stay published; [`Networks::restore`] then takes over what is alive. A network of the user whose bridge can't be
    /// made doesn't stop the others.
    ///
    /// The calling thread has to be in the host's network namespace.
    pub fn open(config: BridgeConfig, run_root: &Path, definitions: Vec<Definition>) -> Result<Self, NetworkError> {
        let networks = Self::on_record(config, run_root, definitions)?;
        networks.ensure_default_bridge()?;
        sysctl::forward_packets()?;
        if locked(&networks.leases).networks.values().any(|network| network.has_family(false)) {
            sysctl::forward_ipv6_packets()?;
        }
        networks.ensure_links_of_users();
        locked(&networks.firewall).assert_rules().map_err(|cause| networks.firewall_error(cause))?;
        networks.tell_firewalld();
        Ok(networks)
    }

    /// The same, and nothing is made of it: for looking.
    pub fn on_record(
        config: BridgeConfig,
        run_root: &Path,
        definitions: Vec<Definition>,
    ) -> Result<Self, NetworkError> {
        let mut route = Socket::open(Family::Route)?;
        let pins = Pins::open(run_root)?;
        let mut subnets = vec![match config.address {
            Some(address) => address,
            None => bridge::default_address(&mut route, &config.name)?,
        }];
        subnets.extend(config.address_v6);
        let range_of =
            |subnet: &Subnet| config.ranges.iter().find(|range| range.is_ipv4() == subnet.is_ipv4()).copied();
        let default = Network {
            name: NetworkKind::Bridge.name().to_owned(),
            definition: None,
            driver: Driver::Bridge,
            link: config.name.clone(),
            index: 0,
            mtu: config.mtu,
            internal: false,
            options: DriverOptions { icc: config.icc, masquerade: config.masquerade, ..DriverOptions::default() },
            pools: subnets.iter().map(|subnet| Ipam::with(*subnet, range_of(subnet), [])).collect(),
        };
        let mut all = BTreeMap::from([(config.ids.bridge.clone(), default)]);
        for definition in definitions {
            let (id, name) = (definition.id.clone(), definition.name.clone());
            match Network::of(definition, config.mtu) {
                Ok(network) => drop(all.insert(id, network)),
                Err(error) => tracing::warn!(network = name, %error, "network can't be used"),
            }
        }
        let leases = Leases { networks: all, ports: Ports::new() };
        let firewall = Firewall::open(&config.name, leases.rules())?;
        Ok(Self {
            subnets,
            names: Names::new(run_root),
            pins,
            leases: Mutex::new(leases),
            firewall: Mutex::new(firewall),
            route: Mutex::new(route),
            homes: Mutex::new(HashMap::new()),
            departing: Mutex::new(Vec::new()),
            held: Mutex::new(HashMap::new()),
            ended: AtomicBool::new(false),
            config,
        })
    }

    /// Makes or repairs the default bridge. Returns whether it is another than before.
    fn ensure_default_bridge(&self) -> Result<bool, NetworkError> {
        let mut leases = locked(&self.leases);
        let Some(network) = leases.networks.get_mut(&self.config.ids.bridge) else { return Ok(false) };
        let index = bridge::ensure(&mut locked(&self.route), &network.bridge(None))?;
        Ok(std::mem::replace(&mut network.index, index) != index)
    }

    /// Makes bridges and firewall what they should be, after somebody changed them: `nft flush ruleset`, a firewall's
    /// reload, a deleted bridge. Returns whether a bridge had to be made again.
    pub fn repair(&self) -> Result<bool, NetworkError> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(false);
        }
        let another = self.ensure_default_bridge()?;
        let others = self.ensure_links_of_users();
        locked(&self.firewall).assert_all().map_err(|cause| self.firewall_error(cause))?;
        self.tell_firewalld();
        let made_again = another || others;
        if made_again {
            self.put_links_back()?;
        }
        Ok(made_again)
    }

    /// Leaves the host as it was found, if no container is attached: for an engine that ends in an orderly way. Returns
    /// whether it did. With containers attached everything stays, for their traffic and for the next engine.
    pub fn remove_if_unused(&self) -> Result<bool, NetworkError> {
        let idle = locked(&self.leases).networks.values().all(Network::is_unused);
        let unused = idle && self.pins.list()?.is_empty();
        if unused {
            self.destroy()?;
        }
        Ok(unused)
    }

    /// Deletes the bridges, the firewall table and the folder of pins; the networks stay on record. Containers have to be
    /// detached before.
    pub fn destroy(&self) -> Result<(), NetworkError> {
        self.ended.store(true, Ordering::Release);
        self.names.end();
        self.reap(Duration::ZERO)?;
        locked(&self.firewall).delete().map(drop).map_err(|cause| self.firewall_error(cause))?;
        let ours: Vec<String> = {
            let leases = locked(&self.leases);
            let own = |network: &&Network| network.definition.as_ref().is_none_or(|definition| !definition.adopted);
            let made = leases.networks.values().filter(own).map(|network| network.link.clone());
            made.filter(|link| !link.is_empty()).collect()
        };
        ours.iter().try_for_each(|name| bridge::delete(&mut locked(&self.route), name))?;
        self.tell_firewalld_of_gone(&ours);
        self.pins.remove();
        Ok(())
    }

    /// Removes all that engines with this default bridge have made on the host, whether it is on record or not: links, bridges, rules, pins,
    /// the resolver. No engine may be running. What is removed is told.
    pub fn remove_all(bridge: &str, run_root: &Path, bus: &[String]) -> Result<Vec<String>, NetworkError> {
        Names::new(run_root).end();
        let mut removed = Vec::new();
        let mut route = Socket::open(Family::Route)?;
        let prefix = alias_prefix(bridge);
        let links = netlink::link::list(&mut route)?;
        let ours = |link: &&netlink::link::Link| {
            let labelled = link.alias.as_ref().is_some_and(|alias| alias.starts_with(&prefix));
            labelled || (link.name == bridge && link.kind.as_deref() == Some("bridge"))
        };
        let ours: Vec<String> = links.iter().filter(ours).map(|link| link.name.clone()).collect();
        for some in ours.chunks(netlink::LINKS_AT_ONCE) {
            let mut batch = netlink::Batch::new();
            some.iter().for_each(|name| netlink::link::delete(&mut batch, name));
            route.run(&mut batch)?;
        }
        removed.extend(ours.iter().map(|name| format!("link {name}")));
        let mut firewall = Firewall::open(bridge, Vec::new())?;
        let deleted = firewall.delete().map_err(|cause| NetworkError::Firewall { name: bridge.to_owned(), cause })?;
        removed.extend(deleted.then(|| format!("firewall table {}", firewall.table())));
        let failed = |cause| NetworkError::Firewall { name: bridge.to_owned(), cause };
        if firewall.has_firewalld().map_err(failed)? && firewalld::remove(bus, &ours)? {
            removed.push("zone and policy of firewalld".to_owned());
        }
        let pins = Pins::open(run_root)?;
        for id in pins.list()? {
            sys::netns::delete(&pins.path(&id)?)?;
            removed.push(format!("network namespace of {id}"));
        }
        pins.remove();
        Ok(removed)
    }

    /// Tells firewalld of all bridges, where it runs. Without, the host's owner has to.
    fn tell_firewalld(&self) {
        let told = self.bridges_for_firewalld().and_then(|bridges| match bridges.as_slice() {
            [] => Ok(()),
            bridges => Ok(firewalld::join(&self.config.bus, bridges)?),
        });
        if let Err(error) = told {
            warn!(
                error = %proto::kind::chain(&error),
                "firewalld isn't told of bridges and rejects what containers send: firewall-cmd --zone=trusted --add-interface=BRIDGE"
            );
        }
    }

    /// Tells firewalld of bridges that are no more.
    fn tell_firewalld_of_gone(&self, bridges: &[String]) {
        let told = match self.has_firewalld() {
            Ok(true) => firewalld::leave(&self.config.bus, bridges).map_err(NetworkError::from),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            warn!(error = %proto::kind::chain(&error), ?bridges, "firewalld isn't told that bridges are gone");
        }
    }

    fn has_firewalld(&self) -> Result<bool, NetworkError> {
        locked(&self.firewall).has_firewalld().map_err(|cause| self.firewall_error(cause))
    }

    /// The bridges that firewalld has to know; none where it isn't.
    fn bridges_for_firewalld(&self) -> Result<Vec<String>, NetworkError> {
        if !self.has_firewalld()? {
            return Ok(Vec::new());
        }
        Ok(locked(&self.leases).rules().into_iter().map(|bridge| bridge.link).collect())
    }

    /// The firewall that keeps this host's own ports closed unless it is told otherwise, if there is one that can be seen: published ports
    /// are open all the same.
    pub fn closed_by(&self) -> Result<Option<String>, NetworkError> {
        locked(&self.firewall).closed_by().map_err(|cause| self.firewall_error(cause))
    }

    /// The firewall's table.
    pub fn table(&self) -> String {
        locked(&self.firewall).table().to_owned()
    }

    /// Puts all links of this stack back on their bridges, of which some are new.
    fn put_links_back(&self) -> Result<(), NetworkError> {
        let prefix = self.alias_prefix();
        let homes: HashMap<String, u32> = {
            let leases = locked(&self.leases);
            let homes = locked(&self.homes);
            homes.iter().map(|(link, network)| (link.clone(), leases.index_of(network))).collect()
        };
        let mut route = locked(&self.route);
        let mut ours = netlink::link::list(&mut route)?;
        ours.retain(|link| link.alias.as_ref().is_some_and(|alias| alias.starts_with(&prefix)));
        let homeless =
            ours.iter().filter_map(|link| Some((link, *homes.get(&link.name).filter(|index| **index != 0)?)));
        let homeless: Vec<_> = homeless.filter(|(link, index)| link.master != Some(*index)).collect();
        for some in homeless.chunks(netlink::LINKS_AT_ONCE) {
            let mut batch = netlink::Batch::new();
            some.iter().for_each(|(link, index)| netlink::link::bring_up(&mut batch, &link.name, Some(*index)));
            route.run(&mut batch)?;
        }
        Ok(())
    }

    /// Answers the names of a container from now on. Its namespace is the one it was attached with, or that of its process.
    pub fn serve_names(&self, zone: &names::Zone, namespace: Option<BorrowedFd<'_>>) -> Result<(), NetworkError> {
        if let Some(namespace) = namespace {
            return self.names.serve(zone, namespace);
        }
        let held = locked(&self.held).get(&zone.id).map(OwnedFd::try_clone).transpose();
        let held =
            held.map_err(|cause| NetworkError::Io { what: "copy namespace of", path: zone.id.clone().into(), cause })?;
        let namespace = match held {
            Some(held) => Some(held),
            None => sys::netns::open(&self.pins.path(&zone.id)?)?,
        };
        match namespace {
            Some(namespace) => self.names.serve(zone, namespace.as_fd()),
            None => Err(NetworkError::Names {
                what: "find the container's namespace",
                cause: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }

    /// The namespace that a container was attached with, while this engine holds it.
    pub fn held_namespace(&self, id: &str) -> Option<OwnedFd> {
        locked(&self.held).get(id).and_then(|held| held.try_clone().ok())
    }

    /// The resolver of names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    fn firewall_error(&self, cause: NetlinkError) -> NetworkError {
        NetworkError::Firewall { name: self.config.name.clone(), cause }
    }
}

/// What begins the notes on all links of an engine.
fn alias_prefix(bridge: &str) -> String {
    format!("berth {bridge} ")
}

/// Locks a mutex. A panic while it was held leaves at worst a reservation too many, which is no reason to stop.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
