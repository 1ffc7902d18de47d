//! An IPv4 address with the length of its network's prefix: `172.17.0.1/16`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text or a pair of numbers is no usable subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not of the form address/length.
    #[error("{0:?} is not an IPv4 address with a prefix length, like 172.17.0.1/16")]
    Syntax(String),
    /// The prefix is longer than an address.
    #[error("prefix length {0} is larger than 32")]
    Prefix(u8),
    /// The address can't be the bridge's own.
    #[error("{0} is not the address of a host; give the bridge's own address, like 172.17.0.1/16")]
    NotAHost(Subnet),
    /// Nothing is left for containers.
    #[error("{0} has no room for containers; use a prefix of at most /30")]
    TooSmall(Subnet),
}

/// An address and its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The network of loopback addresses.
    pub(crate) const LOOPBACK: Self = Self { address: Ipv4Addr::new(127, 0, 0, 0), prefix: 8 };

    /// Puts the two together.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, SubnetError> {
        if prefix > 32 { Err(SubnetError::Prefix(prefix)) } else { Ok(Self { address, prefix }) }
    }

    /// Checks that this can be a bridge's address (docker's `--bip`): a host's, with room for others beside it.
    pub fn check_bridge_address(self) -> Result<Self, SubnetError> {
        let special = self.address.is_loopback() || self.address.is_multicast() || self.address.is_unspecified();
        if self.prefix > 30 {
            Err(SubnetError::TooSmall(self))
        } else if special || self.address == self.network() || self.address == self.broadcast() {
            Err(SubnetError::NotAHost(self))
        } else {
            Ok(self)
        }
    }

    /// The address itself.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The length of the prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The prefix as a mask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    /// The first address of the network.
    pub fn network(self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// The last address of the network.
    pub fn broadcast(self) -> Ipv4Addr {
        self.address | !self.mask()
    }

    /// The network as docker's API writes it: `172.17.0.0/16`.
    pub fn to_network(self) -> Self {
        Self { address: self.network(), ..self }
    }

    /// Whether an address belongs to the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network()
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
        Self::new(address.parse().map_err(|_| syntax())?, prefix.parse().map_err(|_| syntax())?)
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
        for (text, network, broadcast) in [
            ("172.17.0.1/16", "172.17.0.0", "172.17.255.255"),
            ("10.1.2.3/30", "10.1.2.0", "10.1.2.3"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/0", "0.0.0.0", "255.255.255.255"),
        ] {
            let subnet = subnet(text);
            assert_eq!(subnet.network().to_string(), network, "{text}");
            assert_eq!(subnet.broadcast().to_string(), broadcast, "{text}");
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
        ] {
            assert_eq!(subnet(text).check_bridge_address().is_ok(), fine, "{text}");
        }
        for text in ["", "1.2.3.4", "1.2.3.4/", "1.2.3.4/33", "1.2.3/8", "1.2.3.4/-1", "::1/64"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlaps() {
        for (one, other, expected) in [
            ("172.17.0.1/16", "172.17.5.0/24", true),
            ("172.17.5.1/24", "172.17.0.0/16", true),
            ("172.17.0.1/16", "172.18.0.0/16", false),
        ] {
            assert_eq!(subnet(one).overlaps(subnet(other)), expected, "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(bits in any::<u32>(), prefix in 0u8..=32) {
            let subnet = Subnet::new(Ipv4Addr::from_bits(bits), prefix).expect("valid");
            prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
            prop_assert!(subnet.contains(subnet.address()) && subnet.overlaps(subnet));
        }
    }
}
