//! Hearing of what others do to bridges and rules: `nft flush ruleset`, a firewall's reload, a deleted bridge. Whoever makes rules for a
//! host doesn't know of ours, and without them published ports and isolation end without a word.
//!
//! The kernel tells what was changed and by which socket; our own changes are those of the firewall's.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::NetworkError;
use super::netlink::{Change, Family, Listener, NetlinkError, attribute, text, u32_at};
use super::nft::foreign;
use super::{Networks, locked};

/// `NFNLGRP_NFTABLES`; `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`: a bit each.
const RULES: u32 = 1 << 6;
const LINKS: u32 = 1 << 0 | 1 << 4 | 1 << 8;
/// What nftables' messages are numbered from (`NFNL_SUBSYS_NFTABLES`).
const NFTABLES: u16 = 10 << 8;
/// Length of `struct nfgenmsg`, `struct ifinfomsg`.
const NFGENMSG: usize = 4;
const IFINFOMSG: usize = 16;
/// The attribute that names the table, in messages of nftables about all kinds of objects.
const TABLE: u16 = 1;
/// A change is often one of many.
const QUIET: PollTimeout = PollTimeout::ZERO;
const PAUSE: Duration = Duration::from_millis(50);

/// Hears of changes.
#[derive(Debug)]
pub struct Watch {
    rules: Listener,
    links: Listener,
}

impl Watch {
    /// Listens from now on, in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetworkError> {
        Ok(Self { rules: Listener::open(Family::Netfilter, RULES)?, links: Listener::open(Family::Route, LINKS)? })
    }

    /// Waits until somebody else has changed something that has to be as it was. Blocks.
    pub fn wait(&self, networks: &Networks) -> Result<(), NetworkError> {
        let mut meant = false;
        loop {
            let mut fds = [&self.rules, &self.links].map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            // Once something was meant, until it is quiet.
            match poll(&mut fds, if meant { QUIET } else { PollTimeout::NONE }) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(cause) => return Err(NetlinkError::Socket { step: "wait", cause }.into()),
            }
            meant |= match self.rules.changes()? {
                Some(changes) => {
                    let own = networks.firewall_port()?;
                    changes.iter().any(|change| change.port != own && is_about(change, &networks.table()))
                }
                None => true,
            };
            meant |= match self.links.changes()? {
                Some(changes) => changes.iter().any(|change| networks.is_about_a_bridge(change)),
                None => true,
            };
            if meant {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Whether something of our table was taken away, or something changed in a table that has to let our bridges through.
fn is_about(change: &Change, table: &str) -> bool {
    let Some(name) = attribute(&change.payload, NFGENMSG, TABLE).map(text) else { return false };
    let taken_away = [
        libc::NFT_MSG_DELTABLE,
        libc::NFT_MSG_DELCHAIN,
        libc::NFT_MSG_DELRULE,
        libc::NFT_MSG_DELSET,
        libc::NFT_MSG_DELSETELEM,
    ];
    let of_ours = name == table && taken_away.iter().any(|kind| change.kind == NFTABLES | *kind as u16);
    // firewalld makes its table anew when it starts or reloads, and has forgotten our bridges then.
    let of_firewalld = name == foreign::FIREWALLD && change.kind == NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
    of_ours || of_firewalld || name == foreign::TABLE
}

impl Networks {
    fn firewall_port(&self) -> Result<u32, NetlinkError> {
        locked(&self.firewall).port()
    }

    /// Whether a bridge of ours was deleted, or has lost an address.
    fn is_about_a_bridge(&self, change: &Change) -> bool {
        let leases = locked(&self.leases);
        let is_ours = |index: u32| leases.networks.values().any(|network| network.index == index && index != 0);
        match change.kind {
            libc::RTM_DELLINK => {
                // Bridges tell of the ports that leave them in the same words.
                let of_bridge = change.payload.first() == Some(&(libc::AF_BRIDGE as u8));
                !of_bridge && change.payload.len() >= IFINFOMSG && u32_at(&change.payload, 4).is_some_and(is_ours)
            }
            libc::RTM_DELADDR => u32_at(&change.payload, 4).is_some_and(is_ours),
            _ => false,
        }
    }
}
