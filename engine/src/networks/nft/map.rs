//! The two maps of published ports and their elements.
//!
//! One for ports published on a certain address of the host, one for those published on all of them. Both lead to a
//! container's address and port, so that one rule for each map does for any number of ports.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use nix::libc;

use super::super::ports::{Protocol, PublishedPort};
use super::constants::{data, datatype, set};
use super::transaction::Transaction;

/// Elements in one message; an attribute holds 64 KiB, an element takes about 60 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// The host's side of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    protocol: Protocol,
    /// Unspecified for all addresses of the host.
    ip: Ipv4Addr,
    port: u16,
}

impl Key {
    /// The host's side of `port`.
    pub(super) fn of(port: &PublishedPort) -> Self {
        Self { protocol: port.protocol, ip: port.host_ip, port: port.host_port }
    }

    fn map(&self) -> Map {
        if self.ip.is_unspecified() { Map::OnAllAddresses } else { Map::OnOneAddress }
    }

    /// The key as registers hold it: each part in a word of its own.
    fn encoded(&self) -> Vec<u8> {
        let mut bytes = vec![self.protocol.number(), 0, 0, 0];
        if self.map() == Map::OnOneAddress {
            bytes.extend_from_slice(&self.ip.octets());
        }
        bytes.extend_from_slice(&self.port.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes
    }
}

/// One of the two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    OnOneAddress,
    OnAllAddresses,
}

impl Map {
    pub(super) const BOTH: [Self; 2] = [Self::OnOneAddress, Self::OnAllAddresses];

    /// The map's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OnOneAddress => "published_on_one_address",
            Self::OnAllAddresses => "published_on_all_addresses",
        }
    }

    fn key(self) -> (u32, u32) {
        match self {
            Self::OnOneAddress => (datatype::PROTOCOL_ADDRESS_PORT, 12),
            Self::OnAllAddresses => (datatype::PROTOCOL_PORT, 8),
        }
    }
}

/// Published ports: the host's side and the container's.
pub(super) type Elements = BTreeMap<Key, SocketAddrV4>;

impl Transaction<'_> {
    /// Creates a map unless it is there.
    pub(super) fn add_map(&mut self, map: Map) {
        let (key_type, key_length) = map.key();
        self.message("add", map.name(), libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |a, table| {
            a.text(set::TABLE, table)
                .text(set::NAME, map.name())
                .be32(set::FLAGS, libc::NFT_SET_MAP as u32)
                .be32(set::KEY_TYPE, key_type)
                .be32(set::KEY_LENGTH, key_length)
                .be32(set::DATA_TYPE, datatype::ADDRESS_PORT)
                .be32(set::DATA_LENGTH, 8)
                .be32(set::ID, map as u32 + 1);
        });
    }

    /// Removes all elements of a map.
    pub(super) fn flush_map(&mut self, map: Map) {
        self.message("flush", map.name(), libc::NFT_MSG_DELSETELEM, 0, |a, table| {
            a.text(set::LIST_TABLE, table).text(set::LIST_SET, map.name());
        });
    }

    /// Adds elements, each to its map.
    pub(super) fn publish(&mut self, elements: &Elements) {
        self.change("publish ports in", libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, elements, true);
    }

    /// Removes elements, each from its map.
    pub(super) fn unpublish(&mut self, elements: &Elements) {
        self.change("unpublish ports in", libc::NFT_MSG_DELSETELEM, 0, elements, false);
    }

    fn change(&mut self, verb: &str, kind: i32, flags: i32, elements: &Elements, with_data: bool) {
        for map in Map::BOTH {
            let of_map: Vec<_> = elements.iter().filter(|(key, _)| key.map() == map).collect();
            for some in of_map.chunks(ELEMENTS_PER_MESSAGE) {
                self.message(verb, map.name(), kind, flags, |a, table| {
                    a.text(set::LIST_TABLE, table).text(set::LIST_SET, map.name()).nest(set::LIST_ELEMENTS, |list| {
                        for (key, to) in some {
                            list.nest(data::LIST_ELEMENT, |element| {
                                element.nest(set::ELEMENT_KEY, |value| {
                                    value.bytes(data::VALUE, &key.encoded());
                                });
                                if with_data {
                                    element.nest(set::ELEMENT_DATA, |value| {
                                        value.bytes(data::VALUE, &encoded_target(**to));
                                    });
                                }
                            });
                        }
                    });
                });
            }
        }
    }
}

/// A container's address and port as registers hold them.
fn encoded_target(to: SocketAddrV4) -> [u8; 8] {
    let [a, b, c, d] = to.ip().octets();
    let [high, low] = to.port().to_be_bytes();
    [a, b, c, d, high, low, 0, 0]
}
