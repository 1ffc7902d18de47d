//! Attaching a container to its networks and detaching it.
//!
//! Attaching, in order: namespace, addresses and host ports (reserved), links, firewall. Whatever fails, what was done is
//! undone by dropping [`Attaching`]. Detaching goes the other way round, every step whatever the others did, and each
//! step takes "gone already" for success. What is done to the networks of a container that lives is in `live`.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::warn;

use super::endpoint::{AttachRequest, Endpoint, EndpointAddress, Member, MemberRequest, NetworkKind};
use super::error::NetworkError;
use super::mac::Mac;
use super::netlink::{self, Batch, NetlinkError, Socket, address, link, route};
use super::netns::Namespace;
use super::ports::PortRequest;
use super::subnet::Subnet;
use super::{HELD, Leases, Networks, locked};

/// The time that the kernel gets to delete the link of a container that is gone.
const DEPARTURE: Duration = Duration::from_secs(2);

/// A member whose address is leased, and what its link needs to know of the bridge.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) member: Member,
    bridge: String,
    index: u32,
    mtu: u32,
    isolated: bool,
}

impl Networks {
    /// Connects a container to bridge networks: a namespace of its own with lo, and for each network a link with an
    /// address; a default route, and its published ports. All of it or nothing.
    pub fn attach(&self, id: &str, request: &AttachRequest) -> Result<Endpoint, NetworkError> {
        if let Err(error) = self.reap(DEPARTURE) {
            warn!(%error, "links of former containers stay");
        }
        let (mut attaching, mut namespace) = Attaching::begin(self, id, NetworkKind::Bridge)?;
        proto::fault!("engine.attach.namespace_made");
        let name = if request.name.is_empty() { id } else { &request.name };
        let planned = self.reserve(id, name, request, &mut attaching.endpoint)?;
        proto::fault!("engine.attach.address_leased");
        let endpoint = &attaching.endpoint;
        self.connect_all(id, name, &planned, !endpoint.ports.is_empty(), namespace.fd.as_fd())?;
        let gateway = endpoint.gateway_member().map(|member| member.address.gateway);
        let first = planned.first().map_or_else(String::new, |planned| planned.bridge.clone());
        configure_inside(&mut namespace.socket, &planned, gateway)
            .and_then(|()| planned.iter().try_for_each(|planned| self.wait_for_link(&planned.member)))
            .map_err(|cause| NetworkError::Connect { endpoint: name.to_owned(), bridge: first, cause })?;
        proto::fault!("engine.attach.connected");
        if let Some(ip) = endpoint.published_at() {
            locked(&self.firewall)
                .publish(ip, &endpoint.ports)
                .map_err(|cause| NetworkError::Publish { endpoint: name.to_owned(), cause })?;
        }
        proto::fault!("engine.attach.published");
        Ok(attaching.finish(namespace.fd))
    }

    /// Gives a container a namespace with lo and nothing else.
    pub fn attach_none(&self, id: &str) -> Result<Endpoint, NetworkError> {
        let (attaching, namespace) = Attaching::begin(self, id, NetworkKind::None)?;
        Ok(attaching.finish(namespace.fd))
    }

    /// Lets a container find the namespace of another one where it would find its own.
    pub fn attach_to(&self, id: &str, namespace: BorrowedFd<'_>) -> Result<Endpoint, NetworkError> {
        let pin = self.pins.path(id)?;
        sys::netns::pin(namespace, &pin)?;
        Ok(empty_endpoint(NetworkKind::Container, pin, random_id()?))
    }

    /// Removes the pin by which a container's first process was to find its namespace: it is in there now. A pin is a mount, and
    /// whoever makes a mount namespace copies all that the host has.
    pub fn unpin(&self, id: &str) -> Result<(), NetworkError> {
        Ok(sys::netns::delete(&self.pins.path(id)?)?)
    }

    /// Takes a container off its networks: names, ports, links, namespace, addresses. Done already, or half, is fine. All
    /// steps are tried; the first failure is returned, the others are logged. When it returns nothing reaches the container any
    /// more; the kernel removes the namespace and its links a moment later, once the last process in it is gone.
    pub fn detach(&self, id: &str, endpoint: &Endpoint) -> Result<(), NetworkError> {
        if endpoint.network == NetworkKind::Host {
            return Ok(());
        }
        let mut failures = Vec::new();
        self.names.forget(id);
        let mut unpublished = true;
        if let Some(ip) = endpoint.published_at() {
            let done = self.unpublish(id, ip, endpoint);
            unpublished = done.is_ok();
            failures.extend(done.err());
            proto::fault!("engine.detach.unpublished");
        }
        for member in endpoint.members() {
            let disconnected = self.disconnect(id, &member);
            // An address that a port still leads to, or a link still has, is nobody else's yet.
            if unpublished && disconnected.is_ok() {
                locked(&self.leases).release(&member, id);
            }
            failures.extend(disconnected.err());
            proto::fault!("engine.detach.disconnected");
        }
        if unpublished {
            let mut leases = locked(&self.leases);
            endpoint.ports.iter().for_each(|port| leases.ports.release(id, port));
        }
        failures.extend(self.unpin(id).err());
        drop(locked(&self.held).remove(id));
        proto::fault!("engine.detach.unpinned");
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        failures.for_each(|error| warn!(id, %error, "container is detached in part"));
        Err(first)
    }

    pub(super) fn unpublish(&self, id: &str, ip: Ipv4Addr, endpoint: &Endpoint) -> Result<(), NetworkError> {
        let unpublished = locked(&self.firewall).unpublish(ip, &endpoint.ports);
        unpublished.map_err(|cause| NetworkError::Unpublish { id: id.to_owned(), cause })
    }

    /// Leases addresses and ports, and notes them in the endpoint as they come: whoever drops it gives them back.
    fn reserve(
        &self,
        id: &str,
        name: &str,
        request: &AttachRequest,
        endpoint: &mut Endpoint,
    ) -> Result<Vec<Planned>, NetworkError> {
        let mut leases = locked(&self.leases);
        let mut planned = Vec::with_capacity(request.members.len());
        for wanted in &request.members {
            let endpoint_id = match planned.is_empty() {
                true => std::mem::take(&mut endpoint.endpoint_id),
                false => random_id()?,
            };
            let plan = leases.plan(id, wanted, endpoint_id, endpoint.free_interface())?;
            endpoint.add(plan.member.clone());
            planned.push(plan);
        }
        endpoint.gateway = leases.way_out(endpoint);
        endpoint.ports = leases.acquire_ports(id, name, endpoint, &request.ports)?;
        Ok(planned)
    }

    /// Makes the links of planned members, each once more if its bridge was deleted behind our back.
    pub(super) fn connect_all(
        &self,
        id: &str,
        name: &str,
        planned: &[Planned],
        hairpin: bool,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetworkError> {
        for plan in planned {
            self.connect(id, plan, hairpin, namespace).map_err(|cause| NetworkError::Connect {
                endpoint: name.to_owned(),
                bridge: plan.bridge.clone(),
                cause,
            })?;
        }
        Ok(())
    }

    fn connect(
        &self,
        id: &str,
        planned: &Planned,
        hairpin: bool,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let Err(error) = self.create_link(id, planned, hairpin, namespace) else { return Ok(()) };
        match self.repair() {
            Ok(_) => {
                let mut again = planned.clone();
                again.index = locked(&self.leases).index_of(&planned.member.network_id);
                if again.index == planned.index { Err(error) } else { self.create_link(id, &again, hairpin, namespace) }
            }
            Err(repairing) => {
                warn!(error = %repairing, bridge = planned.bridge, "bridge can't be repaired");
                Err(error)
            }
        }
    }

    fn create_link(
        &self,
        id: &str,
        planned: &Planned,
        hairpin: bool,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        if planned.index == 0 {
            return Err(NetlinkError::Unanswered { step: format!("look up bridge {}", planned.bridge) });
        }
        let mut batch = Batch::new();
        let address = &planned.member.address;
        link::create_veth(
            &mut batch,
            &link::VethPair {
                host_name: &address.host_link,
                alias: &self.alias(id),
                bridge: planned.index,
                namespace,
                peer_name: &planned.member.interface,
                mac: address.mac,
                mtu: planned.mtu,
                hairpin,
                isolated: planned.isolated,
            },
        );
        proto::fault!("engine.attach.link_planned");
        locked(&self.homes).insert(address.host_link.clone(), planned.member.network_id.clone());
        locked(&self.route).run(&mut batch).map(drop)
    }

    pub(super) fn wait_for_link(&self, member: &Member) -> Result<(), NetlinkError> {
        link::wait_until_operational(&mut locked(&self.route), &member.address.host_link)
    }

    /// Cuts the container's link off the bridge. The kernel deletes it with the namespace, in the background and many at
    /// once; should something hold the namespace, [`Networks::reap`] does.
    fn disconnect(&self, id: &str, member: &Member) -> Result<(), NetworkError> {
        let host_link = &member.address.host_link;
        let cut = link::cut_off(&mut locked(&self.route), host_link);
        locked(&self.homes).remove(host_link);
        locked(&self.departing).push((Instant::now(), host_link.to_owned()));
        let bridge = locked(&self.leases).link_of(&member.network_id);
        cut.map_err(|cause| NetworkError::Disconnect { id: id.to_owned(), bridge, cause })
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

impl Leases {
    /// Takes an address for a member of a network.
    pub(super) fn plan(
        &mut self,
        id: &str,
        wanted: &MemberRequest,
        endpoint_id: String,
        interface: String,
    ) -> Result<Planned, NetworkError> {
        let network = self
            .bridges
            .get_mut(&wanted.network_id)
            .ok_or_else(|| NetworkError::NotFound(wanted.network_id.clone()))?;
        let ip = match wanted.ip {
            Some(ip) => network.ipam.reserve(ip, id).map(|()| ip),
            None => network.ipam.allocate(id),
        }?;
        // Not of the container's id: when a container is started again, the kernel may still be taking its former link down.
        let host_link = format!("veth{}", &endpoint_id[..11.min(endpoint_id.len())]);
        let address = EndpointAddress {
            ip,
            prefix: network.address.prefix(),
            gateway: network.address.address(),
            mac: wanted.mac.unwrap_or_else(|| Mac::of_address(ip)),
            host_link,
            gateway_priority: wanted.gateway_priority,
        };
        let member = Member { network_id: wanted.network_id.clone(), endpoint_id, interface, address };
        Ok(self.planned(member))
    }

    /// What the link of a member needs to know.
    pub(super) fn planned(&self, member: Member) -> Planned {
        let network = self.bridges.get(&member.network_id);
        Planned {
            bridge: network.map_or_else(String::new, |network| network.link.clone()),
            index: network.map_or(0, |network| network.index),
            mtu: network.map_or(1500, |network| network.mtu),
            isolated: network.is_some_and(|network| !network.icc),
            member,
        }
    }

    /// The network by which the default route of a container leads: of the highest priority, then the first by name. Empty
    /// stands for the first network; an internal one is no way out.
    pub(super) fn way_out(&self, endpoint: &Endpoint) -> String {
        let members = endpoint.members();
        let open = members.iter().filter_map(|member| {
            let network = self.bridges.get(&member.network_id).filter(|network| !network.internal)?;
            Some((std::cmp::Reverse(member.address.gateway_priority), network.name.clone(), &member.network_id))
        });
        match open.min() {
            Some((_, _, id)) if endpoint.address.is_some() && *id == endpoint.network_id => String::new(),
            Some((_, _, id)) => id.clone(),
            None => NOWHERE.to_owned(),
        }
    }

    /// Takes host ports for what leads to the way out; nothing where there is none.
    pub(super) fn acquire_ports(
        &mut self,
        id: &str,
        name: &str,
        endpoint: &Endpoint,
        requests: &[PortRequest],
    ) -> Result<Vec<super::PublishedPort>, NetworkError> {
        let Some(gateway) = endpoint.gateway_member() else { return Ok(Vec::new()) };
        let host_ip = self.bridges.get(&gateway.network_id).and_then(|network| network.host_ip);
        let requests: Vec<PortRequest> =
            requests.iter().map(|request| PortRequest { host_ip: request.host_ip.or(host_ip), ..*request }).collect();
        let taken = self.ports.acquire(id, &requests);
        taken.map_err(|cause| NetworkError::Port { endpoint: name.to_owned(), cause })
    }

    /// Gives the address of a member back.
    pub(super) fn release(&mut self, member: &Member, id: &str) {
        if let Some(network) = self.bridges.get_mut(&member.network_id) {
            network.ipam.release(member.address.ip, id);
        }
    }
}

/// In place of a network's id: none leads out.
const NOWHERE: &str = "none";

/// Addresses and default route. The indices are asked for: tunnel devices of some kernels come first.
pub(super) fn configure_inside(
    socket: &mut Socket,
    planned: &[Planned],
    gateway: Option<Ipv4Addr>,
) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    for Planned { member, .. } in planned {
        let name = &member.interface;
        let missing = || NetlinkError::Unanswered { step: format!("look up {name}") };
        let index = link::find(socket, name)?.ok_or_else(missing)?.index;
        let own = Subnet::new(member.address.ip, member.address.prefix).map_err(|_| missing())?;
        address::add(&mut batch, index, own);
        link::bring_up(&mut batch, name, None);
    }
    match gateway {
        Some(gateway) => route::replace_default(&mut batch, gateway),
        None => route::delete_default(&mut batch),
    }
    socket.run(&mut batch).map(drop)
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
        let mut endpoint = empty_endpoint(network, pin, endpoint_id);
        if network == NetworkKind::None {
            endpoint.network_id = networks.network_id(network).to_owned();
        }
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

fn empty_endpoint(network: NetworkKind, netns: std::path::PathBuf, endpoint_id: String) -> Endpoint {
    Endpoint {
        network,
        network_id: String::new(),
        endpoint_id,
        netns,
        address: None,
        ports: Vec::new(),
        further: Vec::new(),
        gateway: String::new(),
        unsettled: false,
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
pub(super) fn random_id() -> Result<String, NetworkError> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).map_err(|cause| NetworkError::Io {
        what: "read",
        path: source.to_owned(),
        cause,
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
