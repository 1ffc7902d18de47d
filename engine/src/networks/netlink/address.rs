//! Addresses of links, of both families.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::libc;

use super::super::subnet::Subnet;
use super::message::{self, Batch};
use super::socket::{NetlinkError, Socket};

/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;

/// The number of a family of addresses.
pub(super) fn family(is_ipv4: bool) -> u8 {
    if is_ipv4 { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn ifaddrmsg(family: u8, prefix: u8, index: u32) -> [u8; IFADDRMSG] {
    let mut fixed = [0; IFADDRMSG];
    fixed[0] = family;
    fixed[1] = prefix;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed
}

/// Gives a link an address, in IPv4 with the subnet's broadcast address; there already is fine. One of IPv6 can be used at once: nobody
/// else is asked whether he has it.
pub(crate) fn add(batch: &mut Batch, index: u32, address: Subnet) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    let mut fixed = ifaddrmsg(family(address.is_ipv4()), address.prefix(), index);
    if !address.is_ipv4() {
        fixed[2] = libc::IFA_F_NODAD as u8;
    }
    batch.push(format!("add address {address}"), libc::RTM_NEWADDR, flags, &fixed, |a| {
        a.ip(libc::IFA_LOCAL, address.address()).ip(libc::IFA_ADDRESS, address.address());
        if address.is_ipv4() {
            a.ip(libc::IFA_BROADCAST, address.last());
        }
    });
}

/// Takes an address from a link; gone already is fine.
pub(crate) fn delete(batch: &mut Batch, index: u32, address: Subnet) {
    let fixed = ifaddrmsg(family(address.is_ipv4()), address.prefix(), index);
    batch
        .push(format!("delete address {address}"), libc::RTM_DELADDR, libc::NLM_F_ACK, &fixed, |a| {
            a.ip(libc::IFA_LOCAL, address.address());
        })
        .tolerating(&[Errno::EADDRNOTAVAIL]);
}

/// The addresses of a link, without those that IPv6 forms for the link alone.
pub(crate) fn of_link(socket: &mut Socket, index: u32) -> Result<Vec<Subnet>, NetlinkError> {
    Ok(list(socket)?.into_iter().filter(|(link, _)| *link == index).map(|(_, address)| address).collect())
}

/// All addresses of this host, each with the index of its link; without those that IPv6 forms for a link alone.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<(u32, Subnet)>, NetlinkError> {
    let mut batch = Batch::new();
    let fixed = ifaddrmsg(libc::AF_UNSPEC as u8, 0, 0);
    batch.push("list addresses", libc::RTM_GETADDR, libc::NLM_F_DUMP, &fixed, |_| {});
    Ok(socket.dump(&mut batch)?.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

fn parse(payload: &[u8]) -> Option<(u32, Subnet)> {
    let of = |kind| message::attribute(payload, IFADDRMSG, kind);
    // In IPv6 the address is told by itself unless there is a peer.
    let local = message::ip(of(libc::IFA_LOCAL).or_else(|| of(libc::IFA_ADDRESS))?)?;
    let link_local = matches!(local, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let address = Subnet::new(local, *payload.get(1)?).ok()?;
    (!link_local).then_some((message::u32_at(payload, 4)?, address))
}
