//! Bridge networks, the default one and those of users, made directly over netlink and nftables: no helper program, no
//! user-space proxy.
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
//!   hairpin         container ── BRIDGE ── prerouting: 172.17.0.1:8080 -> 172.17.0.3:80
//!                       ── postrouting: source := 172.17.0.1, so that the answer doesn't take the short way ── container
//!   refused         anything to 127.0.0.0/8 that didn't start on this host (guard)
//!                   anything from elsewhere straight to a container's address (forward)
//! ```
//!
//! # Why no proxy
//!
//! A process per published port costs memory and start time, hides the client's address, and dies with the daemon or
//! needs a supervisor of its own. The kernel does all its cases: see "by 127.0.0.1" and "hairpin" above.
//!
//! # While the engine is away
//!
//! Links, addresses, routes, rules and published ports are kernel state, and namespaces are pinned in the run root: traffic
//! flows on in all directions. Only the sockets that *occupy* host ports close with the engine (see `ports`): another
//! program could then bind such a port, without getting any traffic for it as long as it is published. On the next
//! start, [`Networks::restore`] takes them again and reports what is taken.
//!
//! # What is changed on the host
//!
//! The bridges and their links, the table `berth_BRIDGE` (`nft`), `net.ipv4.ip_forward`, and for each bridge alone
//! `route_localnet=1`, `accept_ra=0`, `disable_ipv6=1`. Nothing of other tables, chains, bridges or policies; stacks with
//! different bridge names and subnets don't meet. IPv6 is off on these links; ports are published on IPv4 addresses only.
//!
//! With `ip_forward` the host routes between its other links, too. Who doesn't want that says so in the host's own forward
//! chain, which then has to let the bridge through: an accept here doesn't overrule a drop there.

#[cfg(test)]
mod tests;

mod attach;
mod bridge;
mod config;
mod conntrack;
mod definition;
mod describe;
mod endpoint;
mod error;
mod ipam;
mod live;
mod mac;
pub mod names;
mod netlink;
mod netns;
mod nft;
mod pools;
mod ports;
mod restore;
mod subnet;
mod sysctl;
mod user;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::config::{BridgeConfig, NetworkIds};
pub use self::definition::{Definition, NetworkRequest, SubnetRequest};
pub use self::describe::NetworkDescription;
pub use self::endpoint::{AttachRequest, Endpoint, Member, MemberRequest, NetworkKind};
pub use self::error::NetworkError;
pub use self::mac::Mac;
pub use self::pools::{Pool, PoolError, default_pools};
pub use self::ports::{HostPort, PortRequest, Protocol, PublishedPort};
pub use self::subnet::Subnet;
pub use self::user::Found;

use self::definition::DriverOptions;
use self::ipam::Ipam;
use self::names::Names;
use self::netlink::{Family, NetlinkError, Socket};
use self::netns::Pins;
use self::nft::{BridgeRules, Firewall};
use self::ports::Ports;

/// Most namespaces that are held, for descriptors are few in a shell's usual limits.
const HELD: usize = 256;

/// The networks of one engine. All methods block for a millisecond or a few: call them off the async threads. Several
/// threads may call them at once.
#[derive(Debug)]
pub struct Networks {
    config: BridgeConfig,
    /// The default bridge's address and network.
    subnet: Subnet,
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
}

/// What containers have of things that are counted.
#[derive(Debug)]
struct Leases {
    /// The bridge networks by id, the default one too.
    bridges: BTreeMap<String, Bridged>,
    ports: Ports,
}

/// A bridge network.
#[derive(Debug)]
struct Bridged {
    /// The network's name.
    name: String,
    /// What is on disk; none for the default one.
    definition: Option<Definition>,
    /// The bridge.
    link: String,
    /// Its index; changes when somebody deletes the bridge and we make it again, and is 0 while it can't be made.
    index: u32,
    /// The bridge's address and network.
    address: Subnet,
    mtu: u32,
    icc: bool,
    internal: bool,
    masquerade: bool,
    /// Where ports are published that say nothing.
    host_ip: Option<Ipv4Addr>,
    ipam: Ipam,
}

impl Bridged {
    /// A network of the user whose bridge isn't there yet.
    fn of(definition: Definition, mtu: u32) -> Result<Self, NetworkError> {
        let options = DriverOptions::parse(&definition.options, mtu)?;
        Ok(Self {
            name: definition.name.clone(),
            link: definition.bridge.clone(),
            index: 0,
            address: definition.address,
            mtu: options.mtu,
            icc: options.icc,
            internal: definition.internal,
            masquerade: options.masquerade,
            host_ip: options.host_ip,
            ipam: Ipam::with(definition.address, definition.range, definition.auxiliary.values().copied()),
            definition: Some(definition),
        })
    }
}

impl Leases {
    fn index_of(&self, network_id: &str) -> u32 {
        self.bridges.get(network_id).map_or(0, |network| network.index)
    }

    fn link_of(&self, network_id: &str) -> String {
        self.bridges.get(network_id).map_or_else(|| "gone".to_owned(), |network| network.link.clone())
    }

    /// What the firewall has to know of all bridges.
    fn rules(&self) -> Vec<BridgeRules> {
        let rule = |network: &Bridged| BridgeRules {
            link: network.link.clone(),
            subnet: network.address.to_network(),
            internal: network.internal,
            masquerade: network.masquerade,
        };
        self.bridges.values().map(rule).collect()
    }
}

impl Networks {
    /// Makes or repairs bridges, kernel settings and the firewall's rules. Ports that an engine before this one
    /// published stay published; [`Networks::restore`] then takes over what is alive. A network of the user whose bridge can't be
    /// made doesn't stop the others.
    ///
    /// The calling thread has to be in the host's network namespace.
    pub fn open(config: BridgeConfig, run_root: &Path, definitions: Vec<Definition>) -> Result<Self, NetworkError> {
        let mut route = Socket::open(Family::Route)?;
        let pins = Pins::open(run_root)?;
        let wanted = bridge::Wanted { name: &config.name, address: config.address, mtu: config.mtu, alias: None };
        let bridge = bridge::ensure(&mut route, &wanted)?;
        sysctl::forward_packets()?;
        let default = Bridged {
            name: NetworkKind::Bridge.name().to_owned(),
            definition: None,
            link: config.name.clone(),
            index: bridge.index,
            address: bridge.address,
            mtu: config.mtu,
            icc: true,
            internal: false,
            masquerade: true,
            host_ip: None,
            ipam: Ipam::new(bridge.address),
        };
        let mut bridges = BTreeMap::from([(config.ids.bridge.clone(), default)]);
        for definition in definitions {
            let (id, name) = (definition.id.clone(), definition.name.clone());
            match Bridged::of(definition, config.mtu) {
                Ok(network) => drop(bridges.insert(id, network)),
                Err(error) => tracing::warn!(network = name, %error, "network can't be used"),
            }
        }
        let leases = Leases { bridges, ports: Ports::new() };
        let firewall = Firewall::open(&config.name, leases.rules())?;
        let networks = Self {
            subnet: bridge.address,
            names: Names::new(run_root),
            pins,
            leases: Mutex::new(leases),
            firewall: Mutex::new(firewall),
            route: Mutex::new(route),
            homes: Mutex::new(HashMap::new()),
            departing: Mutex::new(Vec::new()),
            held: Mutex::new(HashMap::new()),
            config,
        };
        networks.ensure_bridges_of_users();
        locked(&networks.firewall).assert_rules().map_err(|cause| networks.firewall_error(cause))?;
        Ok(networks)
    }

    /// Makes bridges and firewall what they should be, after somebody changed them: `nft flush ruleset`, a firewall's
    /// reload, a deleted bridge. Returns whether a bridge had to be made again.
    pub fn repair(&self) -> Result<bool, NetworkError> {
        let default =
            bridge::Wanted { name: &self.config.name, address: Some(self.subnet), mtu: self.config.mtu, alias: None };
        let bridge = bridge::ensure(&mut locked(&self.route), &default)?;
        let before = {
            let mut leases = locked(&self.leases);
            let network = leases.bridges.get_mut(&self.config.ids.bridge);
            network.map_or(0, |network| std::mem::replace(&mut network.index, bridge.index))
        };
        let others = self.ensure_bridges_of_users();
        locked(&self.firewall).assert_all().map_err(|cause| self.firewall_error(cause))?;
        let made_again = before != bridge.index || others;
        if made_again {
            self.put_links_back()?;
        }
        Ok(made_again)
    }

    /// Leaves the host as it was found, if no container is attached: for an engine that ends in an orderly way. Returns
    /// whether it did. With containers attached everything stays, for their traffic and for the next engine.
    pub fn remove_if_unused(&self) -> Result<bool, NetworkError> {
        let idle = locked(&self.leases).bridges.values().all(|network| network.ipam.is_unused());
        let unused = idle && self.pins.list()?.is_empty();
        if unused {
            self.destroy()?;
        }
        Ok(unused)
    }

    /// Deletes the bridges, the firewall table and the folder of pins; the networks stay on record. Containers have to be
    /// detached before.
    pub fn destroy(&self) -> Result<(), NetworkError> {
        self.names.end();
        self.reap(Duration::ZERO)?;
        locked(&self.firewall).delete().map_err(|cause| self.firewall_error(cause))?;
        let ours: Vec<String> = {
            let leases = locked(&self.leases);
            let own = |network: &&Bridged| network.definition.as_ref().is_none_or(|definition| !definition.adopted);
            leases.bridges.values().filter(own).map(|network| network.link.clone()).collect()
        };
        ours.iter().try_for_each(|name| bridge::delete(&mut locked(&self.route), name))?;
        self.pins.remove();
        Ok(())
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

/// Locks a mutex. A panic while it was held leaves at worst a reservation too many, which is no reason to stop.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
