//! IPv4 routes: the default route of a container, and the host's routes that a new subnet must not overlap.

use std::net::Ipv4Addr;

use nix::errno::Errno;
use nix::libc;

use super::message::{self, Batch};
use super::socket::{NetlinkError, Socket};

/// Length of `struct rtmsg`.
const RTMSG: usize = 12;

/// A route of the host to some network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The network's address.
    pub(crate) to: Ipv4Addr,
    /// Its prefix length; 0 is the default route.
    pub(crate) prefix: u8,
    /// Index of the link it leaves by; none for routes that lead nowhere.
    pub(crate) link: Option<u32>,
}

fn rtmsg(table: u8, protocol: u8, kind: u8) -> [u8; RTMSG] {
    let mut fixed = [0; RTMSG];
    fixed[0] = libc::AF_INET as u8;
    fixed[4] = table;
    fixed[5] = protocol;
    fixed[6] = libc::RT_SCOPE_UNIVERSE;
    fixed[7] = kind;
    fixed
}

/// Makes the default route lead by this gateway, whatever it was.
pub(crate) fn replace_default(batch: &mut Batch, gateway: Ipv4Addr) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    let fixed = rtmsg(libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RTN_UNICAST);
    batch.push(format!("set default route to {gateway}"), libc::RTM_NEWROUTE, flags, &fixed, |a| {
        a.ipv4(libc::RTA_GATEWAY, gateway);
    });
}

/// Removes the default route; none there is fine.
pub(crate) fn delete_default(batch: &mut Batch) {
    let mut fixed = rtmsg(libc::RT_TABLE_MAIN, 0, 0);
    // Any scope.
    fixed[6] = libc::RT_SCOPE_NOWHERE;
    batch
        .push("delete default route", libc::RTM_DELROUTE, libc::NLM_F_ACK, &fixed, |_| {})
        .tolerating(&[Errno::ESRCH, Errno::ENETUNREACH]);
}

/// The routes of the main table.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    let mut batch = Batch::new();
    batch.push("list routes", libc::RTM_GETROUTE, libc::NLM_F_DUMP, &rtmsg(0, 0, 0), |_| {});
    let answers = socket.dump(&mut batch)?;
    Ok(answers.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

/// Reads a route; `None` unless it is of the main table.
fn parse(payload: &[u8]) -> Option<Route> {
    let mut table = u32::from(*payload.get(4)?);
    let mut route = Route { to: Ipv4Addr::UNSPECIFIED, prefix: *payload.get(1)?, link: None };
    for (kind, value) in message::attributes(payload, RTMSG) {
        match kind {
            libc::RTA_DST => route.to = message::ipv4(value)?,
            libc::RTA_OIF => route.link = message::u32_at(value, 0),
            libc::RTA_TABLE => table = message::u32_at(value, 0)?,
            _ => {}
        }
    }
    (table == u32::from(libc::RT_TABLE_MAIN)).then_some(route)
}
