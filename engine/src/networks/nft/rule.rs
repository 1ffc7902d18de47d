//! A rule, built expression by expression: what it matches, then what it does.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use nix::libc;

use super::super::netlink::Attributes;
use super::super::ports::Protocol;
use super::super::subnet::{Subnet, octets};
use super::constants::{self as c, data, expression as x, register};
use super::links::padded;
use super::map::{Kind, Map};

/// Where in the IPv4 header the source address is.
const SOURCE_ADDRESS: u32 = 12;
/// Where in the IPv4 header the destination address is.
const DESTINATION_ADDRESS: u32 = 16;
/// The same in the IPv6 header.
const SOURCE_ADDRESS_V6: u32 = 8;
const DESTINATION_ADDRESS_V6: u32 = 24;
/// Where in the header of TCP, UDP and SCTP the ports are.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
/// Where in the headers of TCP and UDP the checksum is.
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;

/// Whether a comparison is for equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    /// Equal.
    Exactly,
    /// Not equal.
    Not,
}

/// lo is the first link of every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;

fn destination_of(is_ipv4: bool) -> u32 {
    if is_ipv4 { DESTINATION_ADDRESS } else { DESTINATION_ADDRESS_V6 }
}

fn nat_family(is_ipv4: bool) -> u32 {
    (if is_ipv4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 }) as u32
}

/// A rule in the making.
#[derive(Debug)]
pub(super) struct Rule {
    comment: Cow<'static, str>,
    expressions: Vec<u8>,
}

impl Rule {
    /// A rule that matches everything and does nothing yet; the comment is shown by `nft list ruleset`.
    pub(super) fn new(comment: &'static str) -> Self {
        Self { comment: comment.into(), expressions: Vec::new() }
    }

    /// The same with a comment that isn't known beforehand; at most 127 bytes of it.
    pub(super) fn commented(comment: String) -> Self {
        Self { comment: comment.into(), expressions: Vec::new() }
    }

    /// The encoded expressions.
    pub(super) fn expressions(&self) -> &[u8] {
        &self.expressions
    }

    /// The comment as nft encodes it.
    pub(super) fn userdata(&self) -> Vec<u8> {
        let mut encoded = vec![c::rule::COMMENT, self.comment.len() as u8 + 1];
        encoded.extend_from_slice(self.comment.as_bytes());
        encoded.push(0);
        encoded
    }

    /// The link the packet came by.
    pub(super) fn came_by(self, is: Is, link: &str) -> Self {
        self.meta(libc::NFT_META_IIFNAME as u32, register::FIRST).compare(is, &padded(link))
    }

    /// The link the packet leaves by.
    pub(super) fn leaves_by(self, is: Is, link: &str) -> Self {
        self.meta(libc::NFT_META_OIFNAME as u32, register::FIRST).compare(is, &padded(link))
    }

    /// The packet goes to another link than lo, whose number is 1 in each namespace: cheaper to look at than a name.
    pub(super) fn leaves_by_another_link_than_lo(self) -> Self {
        self.meta(libc::NFT_META_OIF as u32, register::FIRST).compare(Is::Not, &LOOPBACK_INDEX.to_ne_bytes())
    }

    /// The link the packet came by is one of the set.
    pub(super) fn came_by_one_of(self, is: Is, set: &str) -> Self {
        self.meta(libc::NFT_META_IIFNAME as u32, register::FIRST).member_of(is, set)
    }

    /// The link the packet leaves by is one of the set.
    pub(super) fn leaves_by_one_of(self, set: &str) -> Self {
        self.meta(libc::NFT_META_OIFNAME as u32, register::FIRST).member_of(Is::Exactly, set)
    }

    /// The links the packet came by and leaves by are a pair of the set.
    pub(super) fn passes_by_pair_of(self, set: &str) -> Self {
        self.meta(libc::NFT_META_IIFNAME as u32, register::FIRST)
            .meta(libc::NFT_META_OIFNAME as u32, register::SECOND)
            .member_of(Is::Exactly, set)
    }

    fn member_of(self, is: Is, set: &str) -> Self {
        self.expression("lookup", |a| {
            a.text(x::LOOKUP_SET, set).be32(x::LOOKUP_SOURCE, register::FIRST);
            if is == Is::Not {
                a.be32(x::LOOKUP_FLAGS, c::LOOKUP_INVERTED);
            }
        })
    }

    /// The packet is of this protocol and goes to this address and port.
    pub(super) fn for_socket(self, protocol: Protocol, address: Ipv4Addr, port: u16) -> Self {
        self.of_protocol(protocol).socket(DESTINATION_ADDRESS, address, DESTINATION_PORT, port)
    }

    /// The packet is of this protocol and comes from this address and port.
    pub(super) fn of_socket(self, protocol: Protocol, address: Ipv4Addr, port: u16) -> Self {
        self.of_protocol(protocol).socket(SOURCE_ADDRESS, address, SOURCE_PORT, port)
    }

    fn of_protocol(self, protocol: Protocol) -> Self {
        self.meta(libc::NFT_META_L4PROTO as u32, register::FIRST).compare(Is::Exactly, &[protocol.number()])
    }

    fn socket(self, address_at: u32, address: Ipv4Addr, port_at: u32, port: u16) -> Self {
        self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER as u32, address_at, 4, register::FIRST)
            .compare(Is::Exactly, &address.octets())
            .payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32, port_at, 2, register::FIRST)
            .compare(Is::Exactly, &port.to_be_bytes())
    }

    /// Writes another destination port into the packet.
    pub(super) fn set_destination_port(self, protocol: Protocol, port: u16) -> Self {
        self.set_port(protocol, DESTINATION_PORT, port)
    }

    /// Writes another source port into the packet.
    pub(super) fn set_source_port(self, protocol: Protocol, port: u16) -> Self {
        self.set_port(protocol, SOURCE_PORT, port)
    }

    fn set_port(self, protocol: Protocol, offset: u32, port: u16) -> Self {
        let checksum = if protocol == Protocol::Udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
        self.expression("immediate", |a| {
            a.be32(x::IMMEDIATE_DESTINATION, register::FIRST).nest(x::IMMEDIATE_DATA, |value| {
                value.bytes(data::VALUE, &port.to_be_bytes());
            });
        })
        .expression("payload", |a| {
            a.be32(x::PAYLOAD_SOURCE, register::FIRST)
                .be32(x::PAYLOAD_BASE, libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32)
                .be32(x::PAYLOAD_OFFSET, offset)
                .be32(x::PAYLOAD_LENGTH, 2)
                .be32(x::PAYLOAD_CHECKSUM_TYPE, c::CHECKSUM_INET)
                .be32(x::PAYLOAD_CHECKSUM_OFFSET, checksum);
        })
    }

    /// The source address is in this network.
    pub(super) fn from(self, network: Subnet) -> Self {
        let at = if network.is_ipv4() { SOURCE_ADDRESS } else { SOURCE_ADDRESS_V6 };
        self.address_in(at, network)
    }

    /// The destination address is in this network.
    pub(super) fn to(self, network: Subnet) -> Self {
        self.address_in(destination_of(network.is_ipv4()), network)
    }

    /// The packet is of this family.
    pub(super) fn of_family(self, is_ipv4: bool) -> Self {
        let number = if is_ipv4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
        self.meta(libc::NFT_META_NFPROTO as u32, register::FIRST).compare(Is::Exactly, &[number as u8])
    }

    /// The packet is of the protocol by which hosts of this family tell each other of errors, and whether they are there.
    pub(super) fn of_control(self, is_ipv4: bool) -> Self {
        let number = if is_ipv4 { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        self.meta(libc::NFT_META_L4PROTO as u32, register::FIRST).compare(Is::Exactly, &[number as u8])
    }

    /// Protocol, destination address and destination port are an element of the set.
    pub(super) fn for_port_of(self, set: Map) -> Self {
        self.of_family(set.is_ipv4).port_key(set).member_of(Is::Exactly, set.name())
    }

    /// The destination address is one of this host's own.
    pub(super) fn for_this_host(self) -> Self {
        self.expression("fib", |a| {
            a.be32(x::FIB_FLAGS, c::FIB_DESTINATION_ADDRESS)
                .be32(x::FIB_RESULT, c::FIB_ADDRESS_TYPE)
                .be32(x::FIB_DESTINATION, register::FIRST);
        })
        .compare(Is::Exactly, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// The packet belongs to a connection that was let through before, or to one that such a connection opened.
    pub(super) fn of_known_connection(self) -> Self {
        self.any_bit_of(libc::NFT_CT_STATE as u32, c::CT_ESTABLISHED_OR_RELATED)
    }

    /// The packet belongs to a connection whose destination was rewritten.
    pub(super) fn of_published_port(self) -> Self {
        self.any_bit_of(libc::NFT_CT_STATUS as u32, c::CT_STATUS_DNAT)
    }

    /// Counts the packets that get here, as iptables' rules do.
    pub(super) fn counted(self) -> Self {
        self.expression("counter", |_| {})
    }

    /// Ends the matter for this table: the packet may pass.
    pub(super) fn accept(self) -> Self {
        self.verdict(c::ACCEPT, None)
    }

    /// The packet is gone.
    pub(super) fn drop(self) -> Self {
        self.verdict(c::DROP, None)
    }

    /// Goes on in another chain, and comes back if that decides nothing.
    pub(super) fn jump(self, chain: &str) -> Self {
        self.verdict(libc::NFT_JUMP as u32, Some(chain))
    }

    /// Goes on in another chain and doesn't come back.
    pub(super) fn goto(self, chain: &str) -> Self {
        self.verdict(libc::NFT_GOTO as u32, Some(chain))
    }

    /// Gives the packet the source address of the link it leaves by.
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", |_| {})
    }

    /// Gives the packet this source address.
    pub(super) fn set_source(self, address: IpAddr) -> Self {
        self.expression("immediate", |a| {
            a.be32(x::IMMEDIATE_DESTINATION, register::FIRST).nest(x::IMMEDIATE_DATA, |value| {
                value.bytes(data::VALUE, &octets(address));
            });
        })
        .expression("nat", |a| {
            a.be32(x::NAT_TYPE, libc::NFT_NAT_SNAT as u32)
                .be32(x::NAT_FAMILY, nat_family(address.is_ipv4()))
                .be32(x::NAT_ADDRESS, register::FIRST);
        })
    }

    /// Rewrites the destination to what `map` has for the protocol, the destination address where it is about one, and
    /// the destination port; does nothing when the map hasn't.
    pub(super) fn redirect_by(self, map: Map) -> Self {
        let rule = self.of_family(map.is_ipv4).port_key(map);
        rule.expression("lookup", |a| {
            a.text(x::LOOKUP_SET, map.name())
                .be32(x::LOOKUP_SOURCE, register::FIRST)
                .be32(x::LOOKUP_DESTINATION, register::FIRST);
        })
        .expression("nat", |a| {
            a.be32(x::NAT_TYPE, libc::NFT_NAT_DNAT as u32)
                .be32(x::NAT_FAMILY, nat_family(map.is_ipv4))
                .be32(x::NAT_ADDRESS, register::FIRST)
                .be32(x::NAT_PORT, register::after(map.address_length()));
        })
    }

    /// Loads what the keys of a map consist of.
    fn port_key(self, map: Map) -> Self {
        let network = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
        let transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
        let rule = self.meta(libc::NFT_META_L4PROTO as u32, register::FIRST);
        if map.kind == Kind::OnAllAddresses {
            return rule.payload(transport, DESTINATION_PORT, 2, register::SECOND_WORD);
        }
        let length = map.address_length();
        rule.payload(network, destination_of(map.is_ipv4), length, register::SECOND_WORD).payload(
            transport,
            DESTINATION_PORT,
            2,
            register::after(4 + length),
        )
    }

    fn address_in(self, offset: u32, network: Subnet) -> Self {
        let address = octets(network.network());
        let rule = self.of_family(network.is_ipv4()).payload(
            libc::NFT_PAYLOAD_NETWORK_HEADER as u32,
            offset,
            address.len() as u32,
            register::FIRST,
        );
        rule.mask(&network.mask()).compare(Is::Exactly, &address)
    }

    fn any_bit_of(self, key: u32, bits: u32) -> Self {
        self.expression("ct", |a| {
            a.be32(x::CT_KEY, key).be32(x::CT_DESTINATION, register::FIRST);
        })
        .mask(&bits.to_ne_bytes())
        .compare(Is::Not, &[0; 4])
    }

    fn meta(self, key: u32, into: u32) -> Self {
        self.expression("meta", |a| {
            a.be32(x::META_KEY, key).be32(x::META_DESTINATION, into);
        })
    }

    fn payload(self, base: u32, offset: u32, length: u32, into: u32) -> Self {
        self.expression("payload", |a| {
            a.be32(x::PAYLOAD_DESTINATION, into)
                .be32(x::PAYLOAD_BASE, base)
                .be32(x::PAYLOAD_OFFSET, offset)
                .be32(x::PAYLOAD_LENGTH, length);
        })
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.expression("bitwise", |a| {
            a.be32(x::BITWISE_SOURCE, register::FIRST)
                .be32(x::BITWISE_DESTINATION, register::FIRST)
                .be32(x::BITWISE_LENGTH, mask.len() as u32)
                .nest(x::BITWISE_MASK, |value| {
                    value.bytes(data::VALUE, mask);
                })
                .nest(x::BITWISE_XOR, |value| {
                    value.bytes(data::VALUE, &vec![0; mask.len()]);
                });
        })
    }

    fn compare(self, is: Is, with: &[u8]) -> Self {
        let operation = match is {
            Is::Exactly => libc::NFT_CMP_EQ,
            Is::Not => libc::NFT_CMP_NEQ,
        };
        self.expression("cmp", |a| {
            a.be32(x::CMP_SOURCE, register::FIRST).be32(x::CMP_OPERATION, operation as u32).nest(
                x::CMP_DATA,
                |value| {
                    value.bytes(data::VALUE, with);
                },
            );
        })
    }

    fn verdict(self, code: u32, chain: Option<&str>) -> Self {
        self.expression("immediate", |a| {
            a.be32(x::IMMEDIATE_DESTINATION, register::VERDICT).nest(x::IMMEDIATE_DATA, |value| {
                value.nest(data::VERDICT, |verdict| {
                    verdict.be32(data::VERDICT_CODE, code);
                    if let Some(chain) = chain {
                        verdict.text(data::VERDICT_CHAIN, chain);
                    }
                });
            });
        })
    }

    fn expression(mut self, name: &str, attributes: impl FnOnce(&mut Attributes<'_>)) -> Self {
        Attributes::append_to(&mut self.expressions).nest(data::LIST_ELEMENT, |element| {
            element.text(x::NAME, name).nest(x::DATA, attributes);
        });
        self
    }
}
