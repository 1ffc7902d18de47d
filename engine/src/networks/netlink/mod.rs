//! A small synchronous netlink client: what the default bridge network needs of rtnetlink(7), and the socket and
//! message layer that nftables (`super::nft`) shares.
//!
//! Functions of `link`, `address` and `route` append a message to a [`Batch`]; whoever composes the batch sends it
//! with one system call. Only questions (`find`, `list`) take the socket themselves.

pub(crate) mod address;
pub(crate) mod link;
mod message;
pub(crate) mod route;
mod socket;

pub(crate) use message::{Attributes, Batch, attribute, ipv4};
pub use socket::NetlinkError;
pub(crate) use socket::{Family, Socket};
