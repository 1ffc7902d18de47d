//! IPv4 addresses of links.

use nix::errno::Errno;
use nix::libc;

use super::super::subnet::Subnet;
use super::message::{self, Batch};
use super::socket::{NetlinkError, Socket};

/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;

fn ifaddrmsg(prefix: u8, index: u32) -> [u8; IFADDRMSG] {
    let mut fixed = [0; IFADDRMSG];
    fixed[0] = libc::AF_INET as u8;
    fixed[1] = prefix;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed
}

/// Gives a link an address, with the subnet's broadcast address; there already is fine.
pub(crate) fn add(batch: &mut Batch, index: u32, address: Subnet) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    let fixed = ifaddrmsg(address.prefix(), index);
    batch.push(format!("add address {address}"), libc::RTM_NEWADDR, flags, &fixed, |a| {
        a.ipv4(libc::IFA_LOCAL, address.address())
            .ipv4(libc::IFA_ADDRESS, address.address())
            .ipv4(libc::IFA_BROADCAST, address.broadcast());
    });
}

/// Takes an address from a link; gone already is fine.
pub(crate) fn delete(batch: &mut Batch, index: u32, address: Subnet) {
    let fixed = ifaddrmsg(address.prefix(), index);
    batch
        .push(format!("delete address {address}"), libc::RTM_DELADDR, libc::NLM_F_ACK, &fixed, |a| {
            a.ipv4(libc::IFA_LOCAL, address.address());
        })
        .tolerating(&[Errno::EADDRNOTAVAIL]);
}

/// The IPv4 addresses of a link.
pub(crate) fn of_link(socket: &mut Socket, index: u32) -> Result<Vec<Subnet>, NetlinkError> {
    Ok(list(socket)?.into_iter().filter(|(link, _)| *link == index).map(|(_, address)| address).collect())
}

/// All IPv4 addresses of this host, each with the index of its link.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<(u32, Subnet)>, NetlinkError> {
    let mut batch = Batch::new();
    batch.push("list addresses", libc::RTM_GETADDR, libc::NLM_F_DUMP, &ifaddrmsg(0, 0), |_| {});
    Ok(socket.dump(&mut batch)?.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

fn parse(payload: &[u8]) -> Option<(u32, Subnet)> {
    let local = message::ipv4(message::attribute(payload, IFADDRMSG, libc::IFA_LOCAL)?)?;
    Some((message::u32_at(payload, 4)?, Subnet::new(local, *payload.get(1)?).ok()?))
}
