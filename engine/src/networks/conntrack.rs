//! Forgetting UDP flows that began before ports were published or taken back.
//!
//! Where a flow goes is decided by its first packet and then remembered, for as long as packets come. A client that
//! sends all the time (a log sender, a VPN) would never reach a container that was started after it, and would for ever
//! be sent to the address of one that is gone. TCP has no such trouble: its connections end with the container.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::libc;

use super::netlink::{Batch, Family, NetlinkError, Socket, address, attribute, ip};
use super::ports::{Protocol, PublishedPort};
use super::subnet::Subnet;

/// `NFNL_SUBSYS_CTNETLINK`, and its messages to list and delete.
const CTNETLINK: u16 = 1 << 8;
const GET: u16 = CTNETLINK | 1;
const DELETE: u16 = CTNETLINK | 2;
/// Length of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Attributes of an entry: both tuples, its id, and what of a tuple to filter by.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM`.
const BY_PROTOCOL: u32 = 1 << 3;
/// Attributes of a tuple.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const IP_SOURCE_V6: u16 = 3;
const IP_DESTINATION_V6: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION: u16 = 3;
/// Entries to delete in one batch.
const AT_ONCE: usize = 200;

/// A flow as the kernel remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flow {
    /// Where the client sends to.
    to: IpAddr,
    port: u16,
    /// Who answers; another one than `to` if the destination is rewritten.
    answered_by: IpAddr,
    /// The encoded original tuple and the id, by which the entry is deleted.
    original: Vec<u8>,
    id: Vec<u8>,
}

/// Forgets the UDP flows to these ports of this host that go to the host itself: from now on they go to a container.
pub(super) fn forget_flows_to_host(socket: &mut Socket, ports: &[PublishedPort]) -> Result<(), NetlinkError> {
    let on = |port: &PublishedPort| (port.protocol == Protocol::Udp).then_some((port.host_ip, port.host_port));
    let keys: HashSet<(IpAddr, u16)> = ports.iter().filter_map(on).collect();
    // The same port of other hosts (the flows of our resolver, say, when port 53 is published) isn't meant.
    let own: HashSet<IpAddr> =
        address::list(&mut Socket::open(Family::Route)?)?.iter().map(|(_, own)| own.address()).collect();
    forget(socket, |flow| {
        let here = own.contains(&flow.to) || Subnet::LOOPBACK.contains(flow.to);
        let all = if flow.to.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let published = keys.contains(&(flow.to, flow.port)) || keys.contains(&(all, flow.port));
        here && published && flow.answered_by == flow.to
    })
}

/// Forgets the UDP flows that lead to a container which is gone.
pub(super) fn forget_flows_to_container(socket: &mut Socket, container: &[IpAddr]) -> Result<(), NetlinkError> {
    forget(socket, |flow| container.contains(&flow.answered_by))
}

fn forget(socket: &mut Socket, is_meant: impl Fn(&Flow) -> bool) -> Result<(), NetlinkError> {
    [libc::AF_INET, libc::AF_INET6].into_iter().try_for_each(|family| forget_family(socket, family as u8, &is_meant))
}

fn forget_family(socket: &mut Socket, family: u8, is_meant: impl Fn(&Flow) -> bool) -> Result<(), NetlinkError> {
    let header = [family, 0, 0, 0];
    let mut list = Batch::new();
    list.push("list UDP flows", GET, libc::NLM_F_DUMP, &header, |a| {
        // The kernel leaves out other protocols since Linux 5.8; before, they are left out below.
        a.nest(TUPLE_ORIGINAL, |tuple| {
            tuple.nest(TUPLE_PROTOCOL, |protocol| {
                protocol.u8(PROTOCOL_NUMBER, Protocol::Udp.number());
            });
        });
        a.nest(FILTER, |filter| {
            filter.u32(FILTER_ORIGINAL, BY_PROTOCOL);
        });
    });
    let mut meant = Vec::new();
    socket.visit(&mut list, |payload| meant.extend(parse(payload).filter(&is_meant)))?;
    for some in meant.chunks(AT_ONCE) {
        let mut batch = Batch::new();
        for flow in some {
            batch
                .push("forget a UDP flow", DELETE, libc::NLM_F_ACK, &header, |a| {
                    a.bytes(TUPLE_ORIGINAL | libc::NLA_F_NESTED as u16, &flow.original).bytes(ID, &flow.id);
                })
                .tolerating(&[Errno::ENOENT]);
        }
        socket.run(&mut batch)?;
    }
    Ok(())
}

/// Reads an entry; `None` unless it is a UDP flow.
fn parse(payload: &[u8]) -> Option<Flow> {
    let original = attribute(payload, NFGENMSG, TUPLE_ORIGINAL)?;
    let reply = attribute(payload, NFGENMSG, TUPLE_REPLY)?;
    let address = |tuple, which, which_v6| {
        let both = attribute(tuple, 0, TUPLE_IP)?;
        ip(attribute(both, 0, which).or_else(|| attribute(both, 0, which_v6))?)
    };
    let protocol = attribute(original, 0, TUPLE_PROTOCOL)?;
    if attribute(protocol, 0, PROTOCOL_NUMBER)? != [Protocol::Udp.number()] {
        return None;
    }
    let port = attribute(protocol, 0, PROTOCOL_DESTINATION)?;
    Some(Flow {
        to: address(original, IP_DESTINATION, IP_DESTINATION_V6)?,
        port: u16::from_be_bytes(port.try_into().ok()?),
        answered_by: address(reply, IP_SOURCE, IP_SOURCE_V6)?,
        original: original.to_vec(),
        id: attribute(payload, NFGENMSG, ID)?.to_vec(),
    })
}
