//! The maps of published ports, the sets of routed ones, and their elements.
//!
//! For each family a map of ports published on a certain address of the host, and one of those published on all of them. Both lead to a
//! container's address and port, so that one rule for each map does for any number of ports. Where containers' own addresses are known
//! outside, a port that is published is an element of a set instead: nothing is rewritten, it is only let through.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use nix::libc;

use super::super::endpoint::Targets;
use super::super::ports::{Protocol, PublishedPort};
use super::super::subnet::octets;
use super::constants::{data, datatype, set};
use super::transaction::Transaction;

/// Elements in one message; an attribute holds 64 KiB, an element takes at most about 90 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// A map or set of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Map {
    pub(super) kind: Kind,
    pub(super) is_ipv4: bool,
}

/// What a map or set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Ports of one address of the host.
    OnOneAddress,
    /// Ports of all of them.
    OnAllAddresses,
    /// Ports of a container's own address.
    Routed,
}

/// The host's side of a published port; the container's of one that is routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    map: Map,
    protocol: Protocol,
    ip: IpAddr,
    port: u16,
}

/// Published ports: the host's side and the container's.
pub(super) type Elements = BTreeMap<Key, SocketAddr>;

/// What ports of a container are in maps and sets. One of a family of which the container has no address isn't there.
pub(super) fn elements(container: Targets, ports: &[PublishedPort]) -> Elements {
    let element = |port: &PublishedPort| {
        let is_ipv4 = port.host_ip.is_ipv4();
        let target = SocketAddr::new(container.of(is_ipv4)?, port.container_port);
        let (kind, ip, at) = match port.host_port {
            0 => (Kind::Routed, target.ip(), port.container_port),
            at if port.host_ip.is_unspecified() => (Kind::OnAllAddresses, port.host_ip, at),
            at => (Kind::OnOneAddress, port.host_ip, at),
        };
        Some((Key { map: Map { kind, is_ipv4 }, protocol: port.protocol, ip, port: at }, target))
    };
    ports.iter().filter_map(element).collect()
}

impl Key {
    /// The key as registers hold it: each part in words of its own.
    fn encoded(&self) -> Vec<u8> {
        let mut bytes = vec![self.protocol.number(), 0, 0, 0];
        if self.map.kind != Kind::OnAllAddresses {
            bytes.extend(octets(self.ip));
        }
        bytes.extend_from_slice(&self.port.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes
    }
}

impl Map {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let kinds = [Kind::OnOneAddress, Kind::OnAllAddresses, Kind::Routed];
        [true, false].into_iter().flat_map(move |is_ipv4| kinds.into_iter().map(move |kind| Self { kind, is_ipv4 }))
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match (self.kind, self.is_ipv4) {
            (Kind::OnOneAddress, true) => "published_on_one_address",
            (Kind::OnAllAddresses, true) => "published_on_all_addresses",
            (Kind::Routed, true) => "routed",
            (Kind::OnOneAddress, false) => "published_on_one_address_v6",
            (Kind::OnAllAddresses, false) => "published_on_all_addresses_v6",
            (Kind::Routed, false) => "routed_v6",
        }
    }

    /// The bytes of an address of the family.
    pub(super) fn address_length(self) -> u32 {
        if self.is_ipv4 { 4 } else { 16 }
    }

    fn key(self) -> (u32, u32) {
        match self.kind {
            Kind::OnAllAddresses => (datatype::PROTOCOL_PORT, 8),
            Kind::OnOneAddress | Kind::Routed => {
                (datatype::protocol_address_port(self.is_ipv4), 8 + self.address_length())
            }
        }
    }

    fn id(self) -> u32 {
        1 + self.kind as u32 + if self.is_ipv4 { 0 } else { 3 }
    }
}

impl Transaction<'_> {
    /// Creates a map or set unless it is there.
    pub(super) fn add_map(&mut self, map: Map) {
        let (key_type, key_length) = map.key();
        self.message("add", map.name(), libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |a, table| {
            let flags = if map.kind == Kind::Routed { 0 } else { libc::NFT_SET_MAP as u32 };
            a.text(set::TABLE, table)
                .text(set::NAME, map.name())
                .be32(set::FLAGS, flags)
                .be32(set::KEY_TYPE, key_type)
                .be32(set::KEY_LENGTH, key_length)
                .be32(set::ID, map.id());
            if map.kind != Kind::Routed {
                a.be32(set::DATA_TYPE, datatype::address_port(map.is_ipv4))
                    .be32(set::DATA_LENGTH, 4 + map.address_length());
            }
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
        for map in Map::all() {
            let of_map: Vec<_> = elements.iter().filter(|(key, _)| key.map == map).collect();
            for some in of_map.chunks(ELEMENTS_PER_MESSAGE) {
                self.message(verb, map.name(), kind, flags, |a, table| {
                    a.text(set::LIST_TABLE, table).text(set::LIST_SET, map.name()).nest(set::LIST_ELEMENTS, |list| {
                        for (key, to) in some {
                            list.nest(data::LIST_ELEMENT, |element| {
                                element.nest(set::ELEMENT_KEY, |value| {
                                    value.bytes(data::VALUE, &key.encoded());
                                });
                                if with_data && map.kind != Kind::Routed {
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
fn encoded_target(to: SocketAddr) -> Vec<u8> {
    let mut bytes = octets(to.ip());
    bytes.extend_from_slice(&to.port().to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes
}
