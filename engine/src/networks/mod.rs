//! The default bridge network, made directly over netlink and nftables: no helper program, no user-space proxy.
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
//! The bridge and its links, the table `berth_BRIDGE` (`nft`), `net.ipv4.ip_forward`, and for the bridge alone
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
mod describe;
mod endpoint;
mod error;
mod ipam;
mod mac;
mod netlink;
mod netns;
mod nft;
mod ports;
mod restore;
mod subnet;
mod sysctl;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::config::{BridgeConfig, NetworkIds};
pub use self::describe::NetworkDescription;
pub use self::endpoint::{Endpoint, EndpointRequest, NetworkKind};
pub use self::error::NetworkError;
pub use self::mac::Mac;
pub use self::ports::{HostPort, PortRequest, Protocol, PublishedPort};
pub use self::subnet::Subnet;

use self::ipam::Ipam;
use self::netlink::{Family, NetlinkError, Socket};
use self::netns::Pins;
use self::nft::Firewall;
use self::ports::Ports;

/// Most namespaces that are held, for descriptors are few in a shell's usual limits.
const HELD: usize = 256;

/// The predefined networks of one engine. All methods block for a millisecond or a few: call them off the async
/// threads. Several threads may call them at once.
#[derive(Debug)]
pub struct Networks {
    config: BridgeConfig,
    /// The bridge's address and network.
    subnet: Subnet,
    /// Changes when somebody deletes the bridge and we make it again.
    bridge_index: AtomicU32,
    pins: Pins,
    // Where several are locked at once, then in this order.
    leases: Mutex<Leases>,
    firewall: Mutex<Firewall>,
    route: Mutex<Socket>,
    /// Links that were cut off, and when.
    departing: Mutex<Vec<(Instant, String)>>,
    /// The namespaces of containers that this engine has attached: the kernel takes a long time to take one down, and holds the lock
    /// of all links meanwhile, so that is left for when the container is detached. At most [`HELD`].
    held: Mutex<HashMap<String, OwnedFd>>,
}

/// What containers have of things that are counted.
#[derive(Debug)]
struct Leases {
    ipam: Ipam,
    ports: Ports,
}

impl Networks {
    /// Makes or repairs the bridge, kernel settings and the firewall's rules. Ports that an engine before this one
    /// published stay published; [`Networks::restore`] then takes over what is alive.
    ///
    /// The calling thread has to be in the host's network namespace.
    pub fn open(config: BridgeConfig, run_root: &Path) -> Result<Self, NetworkError> {
        let mut route = Socket::open(Family::Route)?;
        let pins = Pins::open(run_root)?;
        let bridge = bridge::ensure(&mut route, &config)?;
        sysctl::forward_packets()?;
        let firewall = Firewall::open(&config.name, bridge.address)?;
        let networks = Self {
            subnet: bridge.address,
            bridge_index: AtomicU32::new(bridge.index),
            pins,
            leases: Mutex::new(Leases { ipam: Ipam::new(bridge.address), ports: Ports::new() }),
            firewall: Mutex::new(firewall),
            route: Mutex::new(route),
            departing: Mutex::new(Vec::new()),
            held: Mutex::new(HashMap::new()),
            config,
        };
        locked(&networks.firewall).assert_rules().map_err(|cause| networks.firewall_error(cause))?;
        Ok(networks)
    }

    /// Makes bridge and firewall what they should be, after somebody changed them: `nft flush ruleset`, a firewall's
    /// reload, a deleted bridge. Returns whether the bridge had to be made again.
    pub fn repair(&self) -> Result<bool, NetworkError> {
        let config = BridgeConfig { address: Some(self.subnet), ..self.config.clone() };
        let bridge = bridge::ensure(&mut locked(&self.route), &config)?;
        let before = self.bridge_index.swap(bridge.index, Ordering::Relaxed);
        locked(&self.firewall).assert_all().map_err(|cause| self.firewall_error(cause))?;
        if before != bridge.index {
            self.put_links_back()?;
        }
        Ok(before != bridge.index)
    }

    /// Leaves the host as it was found, if no container is attached: for an engine that ends in an orderly way. Returns
    /// whether it did. With containers attached everything stays, for their traffic and for the next engine.
    pub fn remove_if_unused(&self) -> Result<bool, NetworkError> {
        let unused = locked(&self.leases).ipam.is_unused() && self.pins.list()?.is_empty();
        if unused {
            self.destroy()?;
        }
        Ok(unused)
    }

    /// Deletes the bridge, the firewall table and the folder of pins. Containers have to be detached before.
    pub fn destroy(&self) -> Result<(), NetworkError> {
        self.reap(Duration::ZERO)?;
        locked(&self.firewall).delete().map_err(|cause| self.firewall_error(cause))?;
        bridge::delete(&mut locked(&self.route), &self.config.name)?;
        self.pins.remove();
        Ok(())
    }

    /// Puts all links of this stack on the bridge, which is a new one.
    fn put_links_back(&self) -> Result<(), NetworkError> {
        let prefix = self.alias_prefix();
        let mut route = locked(&self.route);
        let mut ours = netlink::link::list(&mut route)?;
        ours.retain(|link| link.alias.as_ref().is_some_and(|alias| alias.starts_with(&prefix)));
        for some in ours.chunks(netlink::LINKS_AT_ONCE) {
            let mut batch = netlink::Batch::new();
            some.iter().for_each(|link| netlink::link::bring_up(&mut batch, &link.name, Some(self.bridge_index())));
            route.run(&mut batch)?;
        }
        Ok(())
    }

    fn bridge_index(&self) -> u32 {
        self.bridge_index.load(Ordering::Relaxed)
    }

    fn firewall_error(&self, cause: NetlinkError) -> NetworkError {
        NetworkError::Firewall { name: self.config.name.clone(), cause }
    }
}

/// Locks a mutex. A panic while it was held leaves at worst a reservation too many, which is no reason to stop.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
