//! Which addresses of a subnet are whose. Pure: what survives a restart are the engine's records, from which it is
//! filled again.
//!
//! Addresses are handed out one after the other and start over at the end of the subnet, so that an address rests as
//! long as possible before somebody else gets it: a peer with an old entry in a cache or a connection table then
//! finds nobody rather than the wrong one.

use std::collections::HashMap;
use std::net::IpAddr;

use super::subnet::{Subnet, bits, from_bits};

/// Why an address can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address of the subnet is taken.
    #[error("no available {} addresses on subnet {subnet}", if subnet.is_ipv4() { "IPv4" } else { "IPv6" })]
    Exhausted {
        /// The subnet.
        subnet: Subnet,
    },
    /// Somebody has it.
    #[error("address {address} is already in use by {owner}")]
    InUse {
        /// The address asked for.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// No subnet of the network has it.
    #[error("no subnet of the network has address {address}")]
    Foreign {
        /// The address.
        address: IpAddr,
    },
    /// Not an address a container can have.
    #[error("address {address} is not one for containers in subnet {subnet}")]
    OutOfRange {
        /// The address asked for.
        address: IpAddr,
        /// The subnet.
        subnet: Subnet,
    },
}

/// The owner of the gateway address in error texts.
const BRIDGE: &str = "the bridge";
/// The owner of auxiliary addresses.
const AUXILIARY: &str = "an auxiliary address";

/// The addresses of one subnet.
#[derive(Debug)]
pub(crate) struct Ipam {
    subnet: Subnet,
    owners: HashMap<IpAddr, String>,
    /// So many of them belong to no container.
    fixed: usize,
    /// First and last of the addresses that are handed out; others can be reserved.
    handed_out: (u128, u128),
    /// Where the search for the next address begins.
    next: u128,
}

impl Ipam {
    /// A subnet of which the bridge has its address. Addresses of the range are handed out only, where there is one, and none of the
    /// auxiliary ones.
    pub(crate) fn with(bridge: Subnet, range: Option<Subnet>, auxiliary: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut owners = HashMap::from([(bridge.address(), BRIDGE.to_owned())]);
        owners.extend(auxiliary.into_iter().map(|address| (address, AUXILIARY.to_owned())));
        let (first, last) = bridge.hosts();
        let handed_out =
            range.map_or((first, last), |range| (bits(range.network()).max(first), bits(range.last()).min(last)));
        Self { subnet: bridge, fixed: owners.len(), owners, handed_out, next: handed_out.0 }
    }

    /// Takes the next free address for `owner`.
    pub(crate) fn allocate(&mut self, owner: &str) -> Result<IpAddr, IpamError> {
        let (first, last) = self.handed_out;
        let is_ipv4 = self.subnet.is_ipv4();
        let free = (self.next..=last)
            .chain(first..self.next)
            .map(|bits| from_bits(bits, is_ipv4))
            .find(|address| !self.owners.contains_key(address))
            .ok_or(IpamError::Exhausted { subnet: self.subnet.to_network() })?;
        self.take(free, owner);
        Ok(free)
    }

    /// Takes this very address for `owner`; taking one's own again is fine.
    pub(crate) fn reserve(&mut self, address: IpAddr, owner: &str) -> Result<(), IpamError> {
        if !self.subnet.is_host(address) {
            return Err(IpamError::OutOfRange { address, subnet: self.subnet.to_network() });
        }
        match self.owners.get(&address) {
            Some(taken) if taken != owner => Err(IpamError::InUse { address, owner: taken.clone() }),
            _ => {
                self.take(address, owner);
                Ok(())
            }
        }
    }

    /// Gives an address back, if it is `owner`'s.
    pub(crate) fn release(&mut self, address: IpAddr, owner: &str) {
        if self.owners.get(&address).is_some_and(|taken| taken == owner) {
            self.owners.remove(&address);
        }
    }

    /// The network, and in it the gateway's address.
    pub(crate) fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Whether nobody but the bridge has an address.
    pub(crate) fn is_unused(&self) -> bool {
        self.owners.len() == self.fixed
    }

    fn take(&mut self, address: IpAddr, owner: &str) {
        let (first, last) = self.handed_out;
        let bits = bits(address);
        if (first..=last).contains(&bits) {
            self.next = if bits >= last { first } else { bits + 1 };
        }
        self.owners.insert(address, owner.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn last_octet(address: IpAddr) -> u8 {
        bits(address) as u8
    }

    fn ipam(bridge: &str) -> Ipam {
        Ipam::with(bridge.parse().expect("subnet"), None, [])
    }

    #[test]
    fn a_range_is_handed_out_and_the_rest_can_be_asked_for() {
        let range = "10.0.0.64/30".parse().expect("subnet");
        let taken = IpAddr::from([10, 0, 0, 65]);
        let mut ipam = Ipam::with("10.0.0.1/24".parse().expect("subnet"), Some(range), [taken]);
        let take = |ipam: &mut Ipam| ipam.allocate("c").map(last_octet).ok();
        assert_eq!([take(&mut ipam), take(&mut ipam)], [Some(64), Some(66)]);
        assert_eq!(ipam.reserve([10, 0, 0, 9].into(), "d"), Ok(()));
        assert_eq!([take(&mut ipam), take(&mut ipam)], [Some(67), None]);
        let error = ipam.reserve(taken, "d").expect_err("taken");
        assert!(error.to_string().contains("auxiliary"), "{error}");
        assert!(!ipam.is_unused());
    }

    #[test]
    fn addresses_come_in_order_and_rest_before_reuse() {
        let mut ipam = ipam("10.0.0.1/29");
        let take = |ipam: &mut Ipam| ipam.allocate("c").map(last_octet);
        assert_eq!(take(&mut ipam), Ok(2));
        assert_eq!(take(&mut ipam), Ok(3));
        ipam.release([10, 0, 0, 2].into(), "c");
        assert_eq!([take(&mut ipam), take(&mut ipam), take(&mut ipam)], [Ok(4), Ok(5), Ok(6)]);
        assert_eq!(take(&mut ipam), Ok(2), "the end of the subnet starts over");
        assert_eq!(take(&mut ipam), Err(IpamError::Exhausted { subnet: "10.0.0.0/29".parse().expect("subnet") }));
    }

    #[test]
    fn a_gateway_in_the_middle_is_left_out() {
        let mut ipam = ipam("10.0.0.3/29");
        let all: Vec<_> = std::iter::from_fn(|| ipam.allocate("c").ok()).map(last_octet).collect();
        assert_eq!(all, [1, 2, 4, 5, 6]);
    }

    #[test]
    fn of_the_other_family() {
        let mut ipam = Ipam::with("fd00::1/64".parse().expect("subnet"), None, []);
        assert_eq!(ipam.allocate("c"), Ok("fd00::2".parse().expect("ip")));
        let last = "fd00::ffff:ffff:ffff:ffff".parse().expect("ip");
        assert_eq!(ipam.reserve(last, "c"), Ok(()));
        assert_eq!(ipam.allocate("c"), Ok("fd00::3".parse().expect("ip")), "the end of the subnet starts over");
        let foreign = IpAddr::from([10, 0, 0, 2]);
        assert!(matches!(ipam.reserve(foreign, "c"), Err(IpamError::OutOfRange { .. })));
        let mut small = Ipam::with("fd00::1/126".parse().expect("subnet"), None, []);
        assert_eq!(
            [small.allocate("a").is_ok(), small.allocate("b").is_ok(), small.allocate("c").is_ok()],
            [true, true, false]
        );
    }

    #[test]
    fn reserving() {
        let mut ipam = ipam("10.0.0.1/24");
        let at = |last| IpAddr::from([10, 0, 0, last]);
        assert_eq!(ipam.reserve(at(9), "a"), Ok(()));
        assert_eq!(ipam.reserve(at(9), "a"), Ok(()), "one's own");
        assert_eq!(ipam.reserve(at(9), "b"), Err(IpamError::InUse { address: at(9), owner: "a".into() }));
        assert!(matches!(ipam.reserve(at(1), "b"), Err(IpamError::InUse { .. })), "the gateway");
        for outside in [at(0), at(255), [10, 0, 1, 5].into()] {
            assert!(matches!(ipam.reserve(outside, "b"), Err(IpamError::OutOfRange { .. })), "{outside}");
        }
        ipam.release(at(9), "b");
        assert!(ipam.reserve(at(9), "b").is_err(), "only the owner gives back");
        ipam.release(at(9), "a");
        assert_eq!(ipam.reserve(at(9), "b"), Ok(()));
    }

    #[derive(Debug, Clone)]
    enum Action {
        Allocate,
        Reserve(u8),
        Release(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            Just(Action::Allocate),
            any::<u8>().prop_map(Action::Reserve),
            any::<usize>().prop_map(Action::Release)
        ]
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_none_is_lost(
            prefix in 26u8..=30,
            gateway in 1u8..=2,
            actions in proptest::collection::vec(action(), 0..200),
        ) {
            let bridge = Subnet::new([10, 9, 8, gateway].into(), prefix).expect("subnet");
            let mut ipam = Ipam::with(bridge, None, []);
            let mut held: Vec<IpAddr> = Vec::new();
            let room = (1usize << (32 - prefix)) - 3;
            for (turn, action) in actions.into_iter().enumerate() {
                let owner = format!("c{turn}");
                match action {
                    Action::Allocate => match ipam.allocate("c") {
                        Ok(address) => {
                            prop_assert!(!held.contains(&address) && address != bridge.address());
                            prop_assert!(bridge.contains(address));
                            prop_assert!(address != bridge.network() && address != bridge.last());
                            held.push(address);
                        }
                        Err(_) => prop_assert_eq!(held.len(), room, "only a full subnet refuses"),
                    },
                    Action::Reserve(last) => {
                        let address = IpAddr::from([10, 9, 8, last]);
                        if ipam.reserve(address, &owner).is_ok() {
                            prop_assert!(!held.contains(&address));
                            ipam.release(address, &owner);
                        }
                    }
                    Action::Release(which) if !held.is_empty() => {
                        let address = held.swap_remove(which % held.len());
                        ipam.release(address, "c");
                    }
                    Action::Release(_) => {}
                }
                prop_assert_eq!(ipam.owners.len(), held.len() + 1);
            }
        }
    }
}
