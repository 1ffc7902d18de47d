//! An address with the length of its network's prefix, of either family: `172.17.0.1/16`, `fd00:1::1/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text or a pair of numbers is no usable subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not of the form address/length.
    #[error("{0:?} is not an address with a prefix length, like 172.17.0.1/16 or fd00:1::1/64")]
    Syntax(String),
    /// The prefix is longer than an address.
    #[error("prefix length {length} is larger than {most}")]
    Prefix {
        /// What was given.
        length: u8,
        /// What an address of that family has.
        most: u8,
    },
    /// The address can't be the bridge's own.
    #[error("{0} is not the address of a host; give the bridge's own address, like 172.17.0.1/16")]
    NotAHost(Subnet),
    /// Nothing is left for containers.
    #[error("{subnet} has no room for containers; use a prefix of at most /{most}")]
    TooSmall {
        /// What was given.
        subnet: Subnet,
        /// The longest prefix that does.
        most: u8,
    },
}

/// An address and its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

/// The bits of an address: the last 32 or all 128.
pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The bytes of an address as packets hold them.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address of a family that has these bits.
pub(super) fn from_bits(bits: u128, is_ipv4: bool) -> IpAddr {
    if is_ipv4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
}

impl Subnet {
    /// The network of IPv4's loopback addresses.
    pub(crate) const LOOPBACK: Self = Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 };

    /// Puts the two together.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, SubnetError> {
        let subnet = Self { address, prefix };
        let most = subnet.width();
        if prefix > most { Err(SubnetError::Prefix { length: prefix, most }) } else { Ok(subnet) }
    }

    /// The network of one address.
    pub(super) fn host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The first address of a host in the network.
    pub fn first_host(self) -> Result<Self, SubnetError> {
        Self { address: from_bits(self.hosts().0, self.is_ipv4()), ..self }.check_bridge_address()
    }

    /// Checks that this can be a bridge's address (docker's `--bip`): a host's, with room for others beside it.
    pub fn check_bridge_address(self) -> Result<Self, SubnetError> {
        let special = self.address.is_loopback() || self.address.is_multicast() || self.address.is_unspecified();
        let most = self.width() - 2;
        if self.prefix > most {
            Err(SubnetError::TooSmall { subnet: self, most })
        } else if special || !self.is_host(self.address) {
            Err(SubnetError::NotAHost(self))
        } else {
            Ok(self)
        }
    }

    /// Whether it is of IPv4.
    pub fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// The address itself.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The length of the prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bits of an address of the family.
    pub(super) fn width(self) -> u8 {
        if self.is_ipv4() { 32 } else { 128 }
    }

    fn host_bits(self) -> u128 {
        // Of both families: the bits that the prefix leaves.
        u128::MAX.checked_shr(128 - u32::from(self.width() - self.prefix)).unwrap_or(0)
    }

    /// The prefix as a mask, in the bytes of an address.
    pub(super) fn mask(self) -> Vec<u8> {
        octets(from_bits(!self.host_bits(), self.is_ipv4()))
    }

    /// The first address of the network.
    pub fn network(self) -> IpAddr {
        from_bits(bits(self.address) & !self.host_bits(), self.is_ipv4())
    }

    /// The last address of the network: in IPv4 that for all hosts.
    pub fn last(self) -> IpAddr {
        from_bits(bits(self.address) | self.host_bits(), self.is_ipv4())
    }

    /// First and last of the addresses that hosts have, as bits: not that of the network itself, nor in IPv4 that for all.
    pub(super) fn hosts(self) -> (u128, u128) {
        let (first, last) = (bits(self.network()), bits(self.last()));
        (first.saturating_add(1), if self.is_ipv4() { last.saturating_sub(1) } else { last })
    }

    /// Whether a host in the network can have this address.
    pub(super) fn is_host(self, address: IpAddr) -> bool {
        let (first, last) = self.hosts();
        self.contains(address) && (first..=last).contains(&bits(address))
    }

    /// The network as docker's API writes it: `172.17.0.0/16`.
    pub fn to_network(self) -> Self {
        Self { address: self.network(), ..self }
    }

    /// Whether an address belongs to the network.
    pub fn contains(self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && bits(address) & !self.host_bits() == bits(self.network())
    }

    /// Whether the two networks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let syntax = || SubnetError::Syntax(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        Self::new(address, prefix.parse().map_err(|_| syntax())?)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect("subnet")
    }

    #[test]
    fn the_parts_of_a_network() {
        for (text, network, last, mask) in [
            ("172.17.0.1/16", "172.17.0.0", "172.17.255.255", "255.255.0.0"),
            ("10.1.2.3/30", "10.1.2.0", "10.1.2.3", "255.255.255.252"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.3", "255.255.255.255"),
            ("10.1.2.3/0", "0.0.0.0", "255.255.255.255", "0.0.0.0"),
            ("fd00:1::5/64", "fd00:1::", "fd00:1::ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff::"),
            ("fd00:1::5/128", "fd00:1::5", "fd00:1::5", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fd00:1::5/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::"),
        ] {
            let subnet = subnet(text);
            assert_eq!(subnet.network().to_string(), network, "{text}");
            assert_eq!(subnet.last().to_string(), last, "{text}");
            assert_eq!(subnet.mask(), octets(mask.parse().expect("mask")), "{text}");
            assert_eq!(subnet.to_string(), text);
        }
    }

    #[test]
    fn what_can_be_a_bridge_address() {
        for (text, fine) in [
            ("172.17.0.1/16", true),
            ("10.0.0.254/24", true),
            ("10.0.0.1/30", true),
            ("10.0.0.1/31", false),
            ("172.17.0.0/16", false),
            ("172.17.255.255/16", false),
            ("127.0.0.1/8", false),
            ("224.0.0.1/24", false),
            ("0.0.0.0/0", false),
            ("fd00::1/64", true),
            ("fd00::ffff/112", true),
            ("fd00::/64", false),
            ("fd00::1/127", false),
            ("::1/64", false),
            ("ff02::1/64", false),
        ] {
            assert_eq!(subnet(text).check_bridge_address().is_ok(), fine, "{text}");
        }
        for text in ["", "1.2.3.4", "1.2.3.4/", "1.2.3.4/33", "1.2.3/8", "1.2.3.4/-1", "::1/129", "fe80::1%lo/64"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlaps() {
        for (one, other, expected) in [
            ("172.17.0.1/16", "172.17.5.0/24", true),
            ("172.17.5.1/24", "172.17.0.0/16", true),
            ("172.17.0.1/16", "172.18.0.0/16", false),
            ("fd00::/48", "fd00:0:0:7::/64", true),
            ("fd00::/64", "fd00:0:0:1::/64", false),
            ("0.0.0.0/0", "::/0", false),
        ] {
            assert_eq!(subnet(one).overlaps(subnet(other)), expected, "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(bits in any::<u128>(), prefix in 0u8..=128, v4 in any::<bool>()) {
            let prefix = if v4 { prefix / 4 } else { prefix };
            let subnet = Subnet::new(from_bits(bits, v4), prefix).expect("valid");
            prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
            prop_assert!(subnet.contains(subnet.address()) && subnet.overlaps(subnet));
            prop_assert!(subnet.contains(subnet.network()) && subnet.contains(subnet.last()));
        }
    }
}
