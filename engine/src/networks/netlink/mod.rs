//! A small synchronous netlink client: what networks need of rtnetlink(7), and the socket and
//! message layer that nftables (`super::nft`) shares.
//!
//! Functions of `link`, `address` and `route` append a message to a [`Batch`]; whoever composes the batch sends it
//! with one system call. Only questions (`find`, `list`) take the socket themselves.

pub(crate) mod address;
pub(crate) mod link;
mod message;
pub(crate) mod qdisc;
pub(crate) mod route;
mod socket;

/// So many changes of links go into one batch: their answers have to fit into a socket's receive buffer as it is by default.
pub(crate) const LINKS_AT_ONCE: usize = 64;

pub(crate) use message::{Attributes, Batch, attribute, attributes, ip, text, u32_at};
pub use socket::NetlinkError;
pub(crate) use socket::{Change, Family, Listener, Socket};
