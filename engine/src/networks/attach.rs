//! Attaching a container to its networks and detaching it.
//!
//! Attaching, in order: namespace, addresses and host ports (reserved), links, firewall. Whatever fails, what was done is
//! undone by dropping [`Attaching`]. Detaching goes the other way round, every step whatever the others did, and each
//! step takes "gone already" for success. What is done to the networks of a container that lives is in `live`.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::warn;

use super::endpoint::{
    AttachRequest, Endpoint, EndpointAddress, FamilyAddress, Member, MemberRequest, NetworkKind, Targets,
};
use super::error::NetworkError;
use super::mac::Mac;
use super::netlink::{self, Batch, NetlinkError, Socket, address, link, qdisc, route};
use super::netns::Namespace;
use super::options::{Driver, GatewayMode, LinkMode};
use super::ports::{LOOPBACK, PortError, PortKey, PortRequest, Protocol, PublishedPort, Wanted};
use super::subnet::Subnet;
use super::{HELD, Leases, Network, Networks, locked, sysctl};

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
    /// How the link shares the one it is on; none for a link to a bridge.
    mode: Option<LinkMode>,
}

/// Where the default routes of a container lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ways {
    v4: Way,
    v6: Way,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    By(IpAddr),
    /// Out of a link of the container's.
    Out(String),
    Nowhere,
}

impl Networks {
    /// Connects a container to bridge networks: a namespace of its own with lo, and for each network a link with an
    /// address; a default route, and its published ports. All of it or nothing.
    pub fn attach(&self, id: &str, request: &AttachRequest) -> Result<Endpoint, NetworkError> {
        if let Err(error) = self.reap(DEPARTURE) {
            warn!(%error, "links of former containers stay");
        }
        let ipv6 = {
            let leases = locked(&self.leases);
            let mut joined = request.members.iter().filter_map(|member| leases.networks.get(&member.network_id));
            joined.any(|network| network.has_family(false))
        };
        let (mut attaching, mut namespace) = Attaching::begin(self, id, NetworkKind::Bridge, ipv6)?;
        proto::fault!("engine.attach.namespace_made");
        let name = if request.name.is_empty() { id } else { &request.name };
        let planned = self.reserve(id, name, request, &mut attaching.endpoint)?;
        proto::fault!("engine.attach.address_leased");
        let endpoint = &attaching.endpoint;
        self.connect_all(id, name, &planned, !endpoint.ports.is_empty(), namespace.fd.as_fd())?;
        let ways = locked(&self.leases).ways(endpoint);
        if planned.iter().any(|planned| planned.differs(ipv6)) {
            prepare_links(&planned, namespace.fd.as_fd())?;
        }
        let first = planned.first().map_or_else(String::new, |planned| planned.bridge.clone());
        configure_inside(&mut namespace.socket, &planned, &ways)
            .and_then(|()| self.limit(&planned))
            .and_then(|()| planned.iter().try_for_each(|planned| self.wait_for_link(&planned.member)))
            .map_err(|cause| NetworkError::Connect { endpoint: name.to_owned(), bridge: first, cause })?;
        proto::fault!("engine.attach.connected");
        locked(&self.firewall)
            .publish(endpoint.targets(), &endpoint.ports)
            .map_err(|cause| NetworkError::Publish { endpoint: name.to_owned(), cause })?;
        proto::fault!("engine.attach.published");
        self.hold_ports(id, endpoint);
        Ok(attaching.finish(namespace.fd))
    }

    /// Gives a container a namespace with lo and nothing else.
    pub fn attach_none(&self, id: &str) -> Result<Endpoint, NetworkError> {
        let (attaching, namespace) = Attaching::begin(self, id, NetworkKind::None, false)?;
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
        let targets = endpoint.targets();
        if !targets.is_empty() {
            let done = self.unpublish(id, targets, &endpoint.ports);
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
            self.release_ports(id, &endpoint.ports);
        }
        failures.extend(self.unpin(id).err());
        drop(locked(&self.held).remove(id));
        proto::fault!("engine.detach.unpinned");
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        failures.for_each(|error| warn!(id, %error, "container is detached in part"));
        Err(first)
    }

    /// Gives the resolver what occupies the ports of a container, and tells where they lead: it holds them when the engine is gone.
    pub fn hold_ports(&self, id: &str, endpoint: &Endpoint) {
        let held = locked(&self.leases).ports.held(id, &endpoint.ports, endpoint.targets());
        if held.is_empty() {
            return;
        }
        if let Err(error) = self.names.hold(&held) {
            warn!(id, error = %proto::kind::chain(&error), "host ports are held by the engine alone, and not reached by ::1");
        }
        // The container may have ended meanwhile, and given its ports back before they came to be held.
        let kept = locked(&self.leases).ports.keys(id, &endpoint.ports);
        let gone: Vec<PortKey> = held.iter().map(|(port, _)| port.key).filter(|key| !kept.contains(key)).collect();
        self.names.let_go(&gone);
    }

    /// Gives ports of a container back. The resolver first: until it has let them go, nobody else can have them.
    pub(super) fn release_ports(&self, id: &str, ports: &[PublishedPort]) {
        let keys = locked(&self.leases).ports.keys(id, ports);
        self.names.let_go(&keys);
        let mut leases = locked(&self.leases);
        ports.iter().for_each(|port| leases.ports.release(id, port));
    }

    pub(super) fn unpublish(&self, id: &str, from: Targets, ports: &[PublishedPort]) -> Result<(), NetworkError> {
        let unpublished = locked(&self.firewall).unpublish(from, ports);
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
            let plan = leases.plan(id, wanted, endpoint_id, endpoint)?;
            endpoint.add(plan.member.clone());
            planned.push(plan);
        }
        leases.find_ways_out(endpoint);
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
        proto::fault!("engine.attach.link_planned");
        let mut batch = Batch::new();
        let address = &planned.member.address;
        if let Some(mode) = planned.mode {
            let parented = link::Parented {
                parent: planned.index,
                mode,
                namespace,
                name: &planned.member.interface,
                mac: address.mac,
                mtu: None,
            };
            link::create_parented(&mut batch, &parented);
            return locked(&self.route).run(&mut batch).map(drop);
        }
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
        locked(&self.homes).insert(address.host_link.clone(), planned.member.network_id.clone());
        locked(&self.route).run(&mut batch).map(drop)
    }

    /// Limits what goes to containers by links that are there. The container's end has a limit of its own.
    pub(super) fn limit(&self, planned: &[Planned]) -> Result<(), NetlinkError> {
        for Planned { member, .. } in planned {
            let Some(rate) = member.address.link.ingress else { continue };
            let host_link = &member.address.host_link;
            let mut route = locked(&self.route);
            let missing = || NetlinkError::Unanswered { step: format!("look up {host_link}") };
            let index = link::find(&mut route, host_link)?.ok_or_else(missing)?.index;
            let mut batch = Batch::new();
            qdisc::limit(&mut batch, index, rate);
            route.run(&mut batch)?;
        }
        Ok(())
    }

    pub(super) fn wait_for_link(&self, member: &Member) -> Result<(), NetlinkError> {
        match member.address.host_link.as_str() {
            "" => Ok(()),
            host_link => link::wait_until_operational(&mut locked(&self.route), host_link),
        }
    }

    /// Cuts the container's link off the bridge. The kernel deletes it with the namespace, in the background and many at
    /// once; should something hold the namespace, [`Networks::reap`] does.
    fn disconnect(&self, id: &str, member: &Member) -> Result<(), NetworkError> {
        let host_link = &member.address.host_link;
        if host_link.is_empty() {
            // Its link is in the container alone.
            return Ok(());
        }
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
        super::alias_prefix(&self.config.name)
    }
}

impl Leases {
    /// Takes addresses for a member of a network.
    pub(super) fn plan(
        &mut self,
        id: &str,
        wanted: &MemberRequest,
        endpoint_id: String,
        endpoint: &Endpoint,
    ) -> Result<Planned, NetworkError> {
        let network = self
            .networks
            .get_mut(&wanted.network_id)
            .ok_or_else(|| NetworkError::NotFound(wanted.network_id.clone()))?;
        if network.definition.as_ref().is_some_and(|definition| definition.config_only) {
            return Err(NetworkError::ConfigurationOnly(network.name.clone()));
        }
        if wanted.link.ingress.is_some() && network.driver != Driver::Bridge {
            return Err(NetworkError::Configuration("what a container gets can be limited on bridges only"));
        }
        let v4 = network.lease(id, wanted, true)?;
        let v6 = network.lease(id, wanted, false).inspect_err(|_| {
            if let Some(v4) = &v4 {
                network.release(v4.ip, id);
            }
        })?;
        let main = v4.or(v6).map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip);
        // Not of the container's id: when a container is started again, the kernel may still be taking its former link down.
        let host_link = match network.driver {
            Driver::Bridge => format!("veth{}", &endpoint_id[..11.min(endpoint_id.len())]),
            Driver::Macvlan | Driver::Ipvlan => String::new(),
        };
        let address = EndpointAddress {
            v4,
            v6,
            mac: wanted.mac.unwrap_or_else(|| Mac::of_address(main)),
            host_link,
            gateway_priority: wanted.gateway_priority,
            link: wanted.link.clone(),
        };
        let interface = match &wanted.interface {
            Some(name) => name.clone(),
            None => endpoint.free_interface(&network.options.interface),
        };
        let member = Member { network_id: wanted.network_id.clone(), endpoint_id, interface, address };
        Ok(self.planned(member))
    }

    /// What the link of a member needs to know.
    pub(super) fn planned(&self, member: Member) -> Planned {
        let network = self.networks.get(&member.network_id);
        Planned {
            bridge: network.map_or_else(String::new, |network| network.link.clone()),
            index: network.map_or(0, |network| network.index),
            mtu: network.map_or(1500, |network| network.mtu),
            isolated: network.is_some_and(|network| !network.options.icc),
            mode: network.and_then(|network| network.options.link_mode),
            member,
        }
    }

    /// Notes the networks by which the default routes of a container lead.
    pub(super) fn find_ways_out(&self, endpoint: &mut Endpoint) {
        endpoint.gateway = self.way_out(endpoint, true);
        endpoint.gateway_v6 = self.way_out(endpoint, false);
    }

    /// The network by which the default route of a family leads: of the highest priority, then the first by name. Empty
    /// stands for the first network; an internal one is no way out.
    fn way_out(&self, endpoint: &Endpoint, is_ipv4: bool) -> String {
        let members = endpoint.members();
        let open = members.iter().filter(|member| member.address.of(is_ipv4).is_some()).filter_map(|member| {
            let network = self.networks.get(&member.network_id).filter(|network| network.leads_out(is_ipv4))?;
            Some((std::cmp::Reverse(member.address.gateway_priority), network.name.clone(), &member.network_id))
        });
        match open.min() {
            Some((_, _, id)) if endpoint.address.is_some() && *id == endpoint.network_id => String::new(),
            Some((_, _, id)) => id.clone(),
            None => NOWHERE.to_owned(),
        }
    }

    /// Where the default routes of a container lead.
    pub(super) fn ways(&self, endpoint: &Endpoint) -> Ways {
        let way = |is_ipv4| {
            let Some(member) = endpoint.gateway_member(is_ipv4) else { return Way::Nowhere };
            let network = self.networks.get(&member.network_id);
            match member.address.of(is_ipv4).and_then(|address| address.gateway) {
                Some(gateway) => Way::By(gateway),
                None if network.is_some_and(|network| network.driver != Driver::Bridge) => Way::Out(member.interface),
                None => Way::Nowhere,
            }
        };
        Ways { v4: way(true), v6: way(false) }
    }

    /// Takes host ports for what leads to the ways out; nothing where there is none.
    pub(super) fn acquire_ports(
        &mut self,
        id: &str,
        name: &str,
        endpoint: &Endpoint,
        requests: &[PortRequest],
    ) -> Result<Vec<PublishedPort>, NetworkError> {
        let failed = |cause| NetworkError::Port { endpoint: name.to_owned(), cause };
        let published_by = |is_ipv4| {
            let member = endpoint.gateway_member(is_ipv4)?;
            // What is on a link of the host's is reached by its own address.
            self.networks.get(&member.network_id).filter(|network| network.is_bridge())
        };
        let (v4, v6) = (published_by(true), published_by(false));
        if v4.is_none() && v6.is_none() {
            return Ok(Vec::new());
        }
        let is_routed = |is_ipv4: bool| {
            let network = if is_ipv4 { v4 } else { v6 };
            network.is_some_and(|network| network.options.mode(is_ipv4) == GatewayMode::Routed)
        };
        let mut wanted = Vec::with_capacity(requests.len());
        let mut routed = Vec::new();
        for request in requests {
            let (mut ips, container_port) = (Vec::new(), request.container_port);
            match request.host_ip {
                Some(ip) if ip.is_ipv4() && v4.is_some() || ip.is_ipv6() && v6.is_some() => ips.push(ip),
                // Clients ask for all addresses of both families, whatever the container has.
                Some(ip) if ip.is_unspecified() => {}
                Some(ip) => return Err(failed(PortError::Family { ip, container_port })),
                None => ips.extend(bindings(v4, v6)),
            }
            if request.protocol != Protocol::Tcp && ips.contains(&LOOPBACK) {
                let protocol = request.protocol.name();
                return Err(failed(PortError::Loopback { protocol, container_port }));
            }
            let (known, translated) = ips.into_iter().partition(|ip: &IpAddr| is_routed(ip.is_ipv4()));
            let port = |host_ip| PublishedPort { protocol: request.protocol, container_port, host_ip, host_port: 0 };
            routed.extend(Vec::into_iter(known).map(port));
            wanted.push(Wanted { request: *request, ips: translated });
        }
        let mut ports = self.ports.acquire(id, &wanted).map_err(failed)?;
        ports.extend(routed);
        Ok(ports)
    }

    /// Gives the addresses of a member back.
    pub(super) fn release(&mut self, member: &Member, id: &str) {
        if let Some(network) = self.networks.get_mut(&member.network_id) {
            member.address.all().for_each(|address| network.release(address.ip, id));
        }
    }
}

/// Where ports are published that say nothing.
fn bindings(v4: Option<&Network>, v6: Option<&Network>) -> Vec<IpAddr> {
    let default_v4 = v4.map(|network| network.options.host_ip.0.unwrap_or(UNSPECIFIED_V4));
    let default_v6 = v6.and_then(|network| match network.options.host_ip {
        (_, Some(ip)) => Some(ip),
        // Who names an address of IPv4 doesn't mean all those of IPv6.
        (Some(v4), None) if !v4.is_unspecified() => None,
        _ => Some(UNSPECIFIED_V6),
    });
    default_v4.into_iter().chain(default_v6).collect()
}

const UNSPECIFIED_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const UNSPECIFIED_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

impl Network {
    /// Takes an address of a family: the one that is wanted, or the next free one of any of its subnets.
    fn lease(
        &mut self,
        id: &str,
        wanted: &MemberRequest,
        is_ipv4: bool,
    ) -> Result<Option<FamilyAddress>, NetworkError> {
        let chosen = wanted.ips.iter().find(|ip| ip.is_ipv4() == is_ipv4).copied();
        let mut refused = None;
        let mut leased = None;
        for pool in self.pools.iter_mut().filter(|pool| pool.subnet().is_ipv4() == is_ipv4) {
            let got = match chosen {
                Some(ip) => pool.reserve(ip, id).map(|()| ip),
                None => pool.allocate(id),
            };
            match got {
                Ok(ip) => {
                    leased = Some((ip, pool.subnet()));
                    break;
                }
                // What somebody has says more than what isn't there.
                Err(error) => {
                    let keep = matches!(refused, Some(super::ipam::IpamError::InUse { .. }));
                    refused = if keep { refused } else { Some(error) };
                }
            }
        }
        let Some((ip, subnet)) = leased else {
            return match refused {
                Some(error) => Err(error.into()),
                None => Ok(None),
            };
        };
        Ok(Some(FamilyAddress { ip, prefix: subnet.prefix(), gateway: self.gateway(subnet) }))
    }

    /// The router of a subnet, as its containers see it.
    fn gateway(&self, subnet: Subnet) -> Option<IpAddr> {
        let is_ipv4 = subnet.is_ipv4();
        let pooled = self.definition.iter().flat_map(|definition| &definition.subnets);
        let mut own = pooled.filter(|pooled| pooled.address == subnet);
        // Docker's way of naming another router than the bridge.
        let name = if is_ipv4 { "DefaultGatewayIPv4" } else { "DefaultGatewayIPv6" };
        let other = own.find_map(|pooled| pooled.auxiliary.get(name)).copied();
        let here = match self.options.link_mode {
            None => self.options.bridge_has_address(is_ipv4),
            Some(mode) => mode.is_switched(),
        };
        other.or(here.then_some(subnet.address()))
    }

    fn leads_out(&self, is_ipv4: bool) -> bool {
        !self.internal && self.options.mode(is_ipv4) != GatewayMode::Isolated
    }

    fn release(&mut self, ip: IpAddr, id: &str) {
        self.pools.iter_mut().for_each(|pool| pool.release(ip, id));
    }
}

impl Planned {
    /// Whether its link isn't as links in the namespace are by default.
    fn differs(&self, ipv6: bool) -> bool {
        let address = &self.member.address;
        address.v6.is_some() != ipv6 || !address.link.sysctls.is_empty() || (ipv6 && self.mode.is_some())
    }
}

/// In place of a network's id: none leads out.
const NOWHERE: &str = "none";

/// Settings of links that are to be made before they are up.
pub(super) fn prepare_links(planned: &[Planned], namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
    sys::netns::within(namespace, || {
        for Planned { member, mode, .. } in planned {
            sysctl::of_link(&member.interface, member.address.v6.is_some(), mode.is_some())?;
            for (path, value) in &member.address.link.sysctls {
                sysctl::set_by_user(&path.replace("IFNAME", &member.interface), value)?;
            }
        }
        Ok(())
    })?
}

/// Addresses and default routes. The indices are asked for: tunnel devices of some kernels come first.
pub(super) fn configure_inside(socket: &mut Socket, planned: &[Planned], ways: &Ways) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    let missing = |name: &str| NetlinkError::Unanswered { step: format!("look up {name}") };
    for Planned { member, .. } in planned {
        let name = &member.interface;
        let index = link::find(socket, name)?.ok_or_else(|| missing(name))?.index;
        for own in member.address.all() {
            let own = Subnet::new(own.ip, own.prefix).map_err(|_| missing(name))?;
            address::add(&mut batch, index, own);
        }
        link::bring_up(&mut batch, name, None);
        if let Some(rate) = member.address.link.egress {
            qdisc::limit(&mut batch, index, rate);
        }
    }
    for (is_ipv4, way) in [(true, &ways.v4), (false, &ways.v6)] {
        let way = match way {
            Way::By(gateway) => route::Way::By(*gateway),
            Way::Out(name) => route::Way::Out(link::find(socket, name)?.ok_or_else(|| missing(name))?.index),
            Way::Nowhere => route::Way::Nowhere,
        };
        route::set_default(&mut batch, is_ipv4, way);
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
    fn begin(
        networks: &'a Networks,
        id: &'a str,
        network: NetworkKind,
        ipv6: bool,
    ) -> Result<(Self, Namespace), NetworkError> {
        let pin = networks.pins.path(id)?;
        let endpoint_id = random_id()?;
        let namespace = networks.pins.create(&pin, ipv6)?;
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
        interface: "eth0".to_owned(),
        ports: Vec::new(),
        further: Vec::new(),
        gateway: String::new(),
        gateway_v6: String::new(),
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
