//! Attaching a container to a network and detaching it.
//!
//! Attaching, in order: namespace, address and host ports (reserved), link, firewall. Whatever fails, what was done is
//! undone by dropping [`Attaching`]. Detaching goes the other way round, every step whatever the others did, and each
//! step takes "gone already" for success.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::warn;

use super::endpoint::{Endpoint, EndpointAddress, EndpointRequest, NetworkKind};
use super::error::NetworkError;
use super::mac::Mac;
use super::netlink::{self, Batch, NetlinkError, address, link, route};
use super::netns::Namespace;
use super::subnet::Subnet;
use super::{HELD, Networks, locked};

/// The time that the kernel gets to delete the link of a container that is gone.
const DEPARTURE: Duration = Duration::from_secs(2);

/// Name of a container's link, inside.
const INSIDE_NAME: &str = "eth0";

impl Networks {
    /// Connects a container to the default bridge: a namespace of its own with lo and eth0, its address and default
    /// route, and its published ports. All of it or nothing.
    pub fn attach_bridge(&self, id: &str, request: &EndpointRequest) -> Result<Endpoint, NetworkError> {
        if let Err(error) = self.reap(DEPARTURE) {
            warn!(%error, "links of former containers stay");
        }
        let (mut attaching, mut namespace) = Attaching::begin(self, id, NetworkKind::Bridge)?;
        proto::fault!("engine.attach.namespace_made");
        let endpoint_name = if request.name.is_empty() { id } else { &request.name };
        let (ip, gateway) = {
            let mut leases = locked(&self.leases);
            let ip = match request.ip {
                Some(ip) => leases.ipam.reserve(ip, id).map(|()| ip),
                None => leases.ipam.allocate(id),
            }?;
            attaching.endpoint.address = Some(EndpointAddress {
                ip,
                prefix: self.subnet.prefix(),
                gateway: self.subnet.address(),
                mac: request.mac.unwrap_or_else(|| Mac::of_address(ip)),
                // Not of the container's id: when a container is started again, the kernel may still be taking
                // its former link down.
                host_link: format!("veth{}", &attaching.endpoint.endpoint_id[..11]),
            });
            attaching.endpoint.ports = leases
                .ports
                .acquire(id, &request.ports)
                .map_err(|cause| NetworkError::Port { endpoint: endpoint_name.to_owned(), cause })?;
            (ip, self.subnet.address())
        };
        proto::fault!("engine.attach.address_leased");
        self.connect(id, &attaching.endpoint, &mut namespace)
            .and_then(|()| configure_inside(&mut namespace, ip, self.subnet.prefix(), gateway))
            .and_then(|()| self.wait_for_link(&attaching.endpoint))
            .map_err(|cause| NetworkError::Connect {
                endpoint: endpoint_name.to_owned(),
                bridge: self.config.name.clone(),
                cause,
            })?;
        proto::fault!("engine.attach.connected");
        locked(&self.firewall)
            .publish(ip, &attaching.endpoint.ports)
            .map_err(|cause| NetworkError::Publish { endpoint: endpoint_name.to_owned(), cause })?;
        proto::fault!("engine.attach.published");
        Ok(attaching.finish(namespace.fd))
    }

    /// Gives a container a namespace with lo and nothing else.
    pub fn attach_none(&self, id: &str) -> Result<Endpoint, NetworkError> {
        let (attaching, namespace) = Attaching::begin(self, id, NetworkKind::None)?;
        Ok(attaching.finish(namespace.fd))
    }

    /// Removes the pin by which a container's first process was to find its namespace: it is in there now. A pin is a mount, and
    /// whoever makes a mount namespace copies all that the host has.
    pub fn unpin(&self, id: &str) -> Result<(), NetworkError> {
        Ok(sys::netns::delete(&self.pins.path(id)?)?)
    }

    /// Takes a container off its network: ports, link, namespace, address. Done already, or half, is fine. All steps
    /// are tried; the first failure is returned, the others are logged. When it returns nothing reaches the container any
    /// more; the kernel removes the namespace and its link a moment later, once the last process in it is gone.
    pub fn detach(&self, id: &str, endpoint: &Endpoint) -> Result<(), NetworkError> {
        if endpoint.network == NetworkKind::Host {
            return Ok(());
        }
        let mut failures = Vec::new();
        if let Some(address) = &endpoint.address {
            let unpublished = locked(&self.firewall)
                .unpublish(address.ip, &endpoint.ports)
                .map_err(|cause| NetworkError::Unpublish { id: id.to_owned(), cause });
            proto::fault!("engine.detach.unpublished");
            let disconnected = self.disconnect(id, &address.host_link);
            proto::fault!("engine.detach.disconnected");
            let mut leases = locked(&self.leases);
            if unpublished.is_ok() {
                endpoint.ports.iter().for_each(|port| leases.ports.release(id, port));
            }
            // An address that a port still leads to, or a link still has, is nobody else's yet.
            if unpublished.is_ok() && disconnected.is_ok() {
                leases.ipam.release(address.ip, id);
            }
            failures.extend([unpublished, disconnected].into_iter().filter_map(Result::err));
        }
        failures.extend(self.unpin(id).err());
        drop(locked(&self.held).remove(id));
        proto::fault!("engine.detach.unpinned");
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        failures.for_each(|error| warn!(id, %error, "container is detached in part"));
        Err(first)
    }

    /// Makes the veth pair, once more if the bridge was deleted behind our back.
    fn connect(&self, id: &str, endpoint: &Endpoint, namespace: &mut Namespace) -> Result<(), NetlinkError> {
        let Err(error) = self.create_link(id, endpoint, namespace) else { return Ok(()) };
        match self.repair() {
            Ok(true) => self.create_link(id, endpoint, namespace),
            Ok(false) => Err(error),
            Err(repairing) => {
                warn!(error = %repairing, bridge = self.config.name, "bridge can't be repaired");
                Err(error)
            }
        }
    }

    fn create_link(&self, id: &str, endpoint: &Endpoint, namespace: &Namespace) -> Result<(), NetlinkError> {
        let Some(address) = &endpoint.address else { return Ok(()) };
        let mut batch = Batch::new();
        link::create_veth(
            &mut batch,
            &link::VethPair {
                host_name: &address.host_link,
                alias: &self.alias(id),
                bridge: self.bridge_index(),
                namespace: namespace.fd.as_fd(),
                peer_name: INSIDE_NAME,
                mac: address.mac,
                mtu: self.config.mtu,
                hairpin: !endpoint.ports.is_empty(),
            },
        );
        proto::fault!("engine.attach.link_planned");
        locked(&self.route).run(&mut batch).map(drop)
    }

    fn wait_for_link(&self, endpoint: &Endpoint) -> Result<(), NetlinkError> {
        let Some(address) = &endpoint.address else { return Ok(()) };
        link::wait_until_operational(&mut locked(&self.route), &address.host_link)
    }

    /// Cuts the container's link off the bridge. The kernel deletes it with the namespace, in the background and many at
    /// once; should something hold the namespace, [`Networks::reap`] does.
    fn disconnect(&self, id: &str, host_link: &str) -> Result<(), NetworkError> {
        let cut = link::cut_off(&mut locked(&self.route), host_link);
        locked(&self.departing).push((Instant::now(), host_link.to_owned()));
        cut.map_err(|cause| NetworkError::Disconnect { id: id.to_owned(), bridge: self.config.name.clone(), cause })
    }

    /// Deletes links that were cut off longer ago than `rest` and that the kernel hasn't deleted by itself: a process in
    /// the namespace, or one that holds it open, outlived the container.
    pub(super) fn reap(&self, rest: Duration) -> Result<(), NetlinkError> {
        let mut departing = locked(&self.departing);
        let due: Vec<String> = departing.extract_if(.., |(since, _)| since.elapsed() >= rest).map(|(_, l)| l).collect();
        drop(departing);
        if due.is_empty() {
            return Ok(());
        }
        for some in due.chunks(netlink::LINKS_AT_ONCE) {
            let mut batch = Batch::new();
            some.iter().for_each(|name| link::delete(&mut batch, name));
            locked(&self.route).run(&mut batch)?;
        }
        Ok(())
    }

    /// The note on links of ours: found even when the bridge is gone.
    pub(super) fn alias(&self, id: &str) -> String {
        format!("{}{id}", self.alias_prefix())
    }

    pub(super) fn alias_prefix(&self) -> String {
        format!("berth {} ", self.config.name)
    }
}

/// Address and default route of eth0. The index is asked for: tunnel devices of some kernels come first.
fn configure_inside(
    namespace: &mut Namespace,
    ip: Ipv4Addr,
    prefix: u8,
    gateway: Ipv4Addr,
) -> Result<(), NetlinkError> {
    let missing = || NetlinkError::Unanswered { step: format!("look up {INSIDE_NAME}") };
    let index = link::find(&mut namespace.socket, INSIDE_NAME)?.ok_or_else(missing)?.index;
    let own = Subnet::new(ip, prefix).map_err(|_| missing())?;
    let mut batch = Batch::new();
    address::add(&mut batch, index, own);
    link::bring_up(&mut batch, INSIDE_NAME, None);
    route::add_default(&mut batch, gateway);
    namespace.socket.run(&mut batch).map(drop)
}

/// An endpoint in the making; undone when dropped before it is finished.
struct Attaching<'a> {
    networks: &'a Networks,
    id: &'a str,
    endpoint: Endpoint,
    finished: bool,
}

impl<'a> Attaching<'a> {
    /// Makes the namespace. A container that has one is refused here, before anything of it is touched.
    fn begin(networks: &'a Networks, id: &'a str, network: NetworkKind) -> Result<(Self, Namespace), NetworkError> {
        let pin = networks.pins.path(id)?;
        let endpoint_id = random_id()?;
        let namespace = networks.pins.create(&pin)?;
        let network_id = networks.network_id(network).to_owned();
        let endpoint = Endpoint { network, network_id, endpoint_id, netns: pin, address: None, ports: Vec::new() };
        Ok((Self { networks, id, endpoint, finished: false }, namespace))
    }

    fn finish(mut self, namespace: OwnedFd) -> Endpoint {
        self.finished = true;
        let mut held = locked(&self.networks.held);
        if held.len() < HELD {
            held.insert(self.id.to_owned(), namespace);
        }
        drop(held);
        self.endpoint.clone()
    }
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.networks.detach(self.id, &self.endpoint)
        {
            warn!(id = self.id, %error, "failed attachment is undone in part");
        }
    }
}

/// 64 hex digits.
fn random_id() -> Result<String, NetworkError> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).map_err(|cause| NetworkError::Io {
        what: "read",
        path: source.to_owned(),
        cause,
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
