//! Routes of both families: the default route of a container, and the host's routes that a new subnet must not overlap.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::libc;

use super::address::family;
use super::message::{self, Batch};
use super::socket::{NetlinkError, Socket};

/// Length of `struct rtmsg`.
const RTMSG: usize = 12;

/// A route of the host to some network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The network's address.
    pub(crate) to: IpAddr,
    /// Its prefix length; 0 is the default route.
    pub(crate) prefix: u8,
    /// Index of the link it leaves by; none for routes that lead nowhere.
    pub(crate) link: Option<u32>,
}

fn rtmsg(family: u8, table: u8, protocol: u8, kind: u8) -> [u8; RTMSG] {
    let mut fixed = [0; RTMSG];
    fixed[0] = family;
    fixed[4] = table;
    fixed[5] = protocol;
    fixed[6] = libc::RT_SCOPE_UNIVERSE;
    fixed[7] = kind;
    fixed
}

/// Where the default route of a family leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By this router.
    By(IpAddr),
    /// Out of this link, to whoever is there (by its index).
    Out(u32),
    /// Nowhere.
    Nowhere,
}

/// Makes the default route of a family this one, whatever it was.
pub(crate) fn set_default(batch: &mut Batch, is_ipv4: bool, way: Way) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    let mut fixed = rtmsg(family(is_ipv4), libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RTN_UNICAST);
    match way {
        Way::By(gateway) => {
            batch.push(format!("set default route to {gateway}"), libc::RTM_NEWROUTE, flags, &fixed, |a| {
                a.ip(libc::RTA_GATEWAY, gateway);
            });
        }
        Way::Out(link) => {
            fixed[6] = libc::RT_SCOPE_LINK;
            batch.push("set default route to a link", libc::RTM_NEWROUTE, flags, &fixed, |a| {
                a.u32(libc::RTA_OIF, link);
            });
        }
        Way::Nowhere => delete_default(batch, is_ipv4),
    }
}

/// Removes the default route; none there is fine.
fn delete_default(batch: &mut Batch, is_ipv4: bool) {
    let mut fixed = rtmsg(family(is_ipv4), libc::RT_TABLE_MAIN, 0, 0);
    // Any scope.
    fixed[6] = libc::RT_SCOPE_NOWHERE;
    batch
        .push("delete default route", libc::RTM_DELROUTE, libc::NLM_F_ACK, &fixed, |_| {})
        // A kernel without IPv6 doesn't know the family.
        .tolerating(&[Errno::ESRCH, Errno::ENOENT, Errno::ENETUNREACH, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]);
}

/// The routes of the main table.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    let mut batch = Batch::new();
    let fixed = rtmsg(libc::AF_UNSPEC as u8, 0, 0, 0);
    batch.push("list routes", libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed, |_| {});
    let answers = socket.dump(&mut batch)?;
    Ok(answers.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

/// Reads a route; `None` unless it is of the main table, and of a family that we know.
fn parse(payload: &[u8]) -> Option<Route> {
    let mut table = u32::from(*payload.get(4)?);
    let to = match i32::from(*payload.first()?) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route { to, prefix: *payload.get(1)?, link: None };
    for (kind, value) in message::attributes(payload, RTMSG) {
        match kind {
            libc::RTA_DST => route.to = message::ip(value)?,
            libc::RTA_OIF => route.link = message::u32_at(value, 0),
            libc::RTA_TABLE => table = message::u32_at(value, 0)?,
            _ => {}
        }
    }
    (table == u32::from(libc::RT_TABLE_MAIN)).then_some(route)
}
