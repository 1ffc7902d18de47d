//! Where subnets come from that nobody chose.

use std::net::Ipv6Addr;
use std::str::FromStr;

use super::subnet::{Subnet, bits, from_bits};

/// A stock of subnets of equal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    base: Subnet,
    /// The prefix length of each.
    size: u8,
}

/// What is no pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no pool of addresses ({why}); write it like base=10.10.0.0/16,size=24")]
pub struct PoolError {
    text: String,
    why: &'static str,
}

impl Pool {
    /// Puts the two together.
    pub fn new(base: Subnet, size: u8) -> Result<Self, PoolError> {
        let why = match () {
            () if base.address() != base.network() => "the base is not the address of a network",
            () if size < base.prefix() => "the size is shorter than the prefix of the base",
            () if size > base.width().saturating_sub(2) => "networks of that size have no room for containers",
            () => return Ok(Self { base, size }),
        };
        Err(PoolError { text: format!("base={base},size={size}"), why })
    }

    /// Whether its subnets are of IPv4.
    pub fn is_ipv4(self) -> bool {
        self.base.is_ipv4()
    }

    /// Its subnets in order; of IPv6 the first 2^32 of them.
    pub(super) fn subnets(self) -> impl Iterator<Item = Subnet> {
        let count = 1u128 << (self.size - self.base.prefix()).min(32);
        let step = self.base.width() - self.size;
        let first = bits(self.base.network());
        (0..count).filter_map(move |position| {
            let bits = first.checked_add(position.checked_shl(step.into())?)?;
            Subnet::new(from_bits(bits, self.base.is_ipv4()), self.size).ok()
        })
    }
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let bad = |why| PoolError { text: text.to_owned(), why };
        let (mut base, mut size) = (None, None);
        for part in text.split(',') {
            match part.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
                Some(("base", value)) => base = Some(value.parse().map_err(|_| bad("the base is no network"))?),
                Some(("size", value)) => size = Some(value.parse().map_err(|_| bad("the size is no prefix length"))?),
                _ => return Err(bad("it takes base and size")),
            }
        }
        let (Some(base), Some(size)) = (base, size) else { return Err(bad("it takes base and size")) };
        Self::new(base, size).map_err(|error| bad(error.why))
    }
}

/// Many small subnets out of what docker takes, in its order: 172.18.0.0 to 172.31.255.0 and then 192.168.0.0 to
/// 192.168.255.0, each a /24. (docker makes 31 large ones of them, and runs out.)
pub fn default_pools() -> Vec<Pool> {
    [([172, 18, 0, 0], 15), ([172, 20, 0, 0], 14), ([172, 24, 0, 0], 13), ([192, 168, 0, 0], 16)]
        .into_iter()
        .filter_map(|(octets, prefix): ([u8; 4], u8)| Subnet::new(octets.into(), prefix).ok())
        .filter_map(|base| Pool::new(base, 24).ok())
        .collect()
}

/// A /64 for each network out of a prefix that is this engine's alone (RFC 4193: 40 random bits), formed from its id.
pub(super) fn unique_local(id: &str) -> Option<Pool> {
    let global = u64::from_str_radix(id.get(..10)?, 16).ok()?;
    let bits = 0xfd_u128 << 120 | u128::from(global) << 80;
    Pool::new(Subnet::new(Ipv6Addr::from_bits(bits).into(), 48).ok()?, 64).ok()
}

/// The bridge's address in the first of them: for a default bridge of which nothing is said.
pub fn unique_local_bridge(id: &str) -> Option<Subnet> {
    unique_local(id)?.subnets().next()?.first_host().ok()
}

/// The first subnet that overlaps none of the taken ones.
pub(super) fn first_free(pools: &[Pool], taken: &[Subnet]) -> Option<Subnet> {
    pools.iter().flat_map(|pool| pool.subnets()).find(|subnet| !taken.iter().any(|other| other.overlaps(*subnet)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect("subnet")
    }

    #[test]
    fn thousands_by_default_and_none_twice() {
        let all: Vec<_> = default_pools().into_iter().flat_map(Pool::subnets).collect();
        assert_eq!(all.len(), 14 * 256 + 256);
        assert_eq!((all[0].to_string(), all[14 * 256].to_string()), ("172.18.0.0/24".into(), "192.168.0.0/24".into()));
        assert!(all.windows(2).all(|pair| !pair[0].overlaps(pair[1])));
    }

    #[test]
    fn what_is_taken_is_avoided() {
        let pools = ["base=10.1.0.0/22,size=24".parse().expect("pool")];
        let free = |taken: &[&str]| first_free(&pools, &taken.iter().map(|t| subnet(t)).collect::<Vec<_>>());
        assert_eq!(free(&[]), Some(subnet("10.1.0.0/24")));
        assert_eq!(free(&["10.1.0.128/25", "10.1.1.0/24"]), Some(subnet("10.1.2.0/24")));
        assert_eq!(free(&["10.0.0.0/8"]), None);
    }

    #[test]
    fn an_engine_has_its_own_prefix() {
        let pool = unique_local(&"0123456789ab".repeat(6)).expect("pool");
        let firsts: Vec<String> = pool.subnets().take(2).map(|subnet| subnet.to_string()).collect();
        assert_eq!(firsts, ["fd01:2345:6789::/64", "fd01:2345:6789:1::/64"]);
        assert_eq!(pool.subnets().count(), 65_536);
        assert_eq!(unique_local("x"), None);
        let wide: Pool = "base=fd00::/8,size=126".parse().expect("pool");
        assert_eq!(wide.subnets().nth(1), Some(subnet("fd00::4/126")));
    }

    #[test]
    fn texts() {
        for (text, fine) in [
            ("base=10.0.0.0/8,size=24", true),
            ("size=30, base=10.0.0.0/30", true),
            ("base=10.0.0.1/8,size=24", false),
            ("base=10.0.0.0/8,size=7", false),
            ("base=10.0.0.0/8,size=31", false),
            ("base=10.0.0.0/8", false),
            ("10.0.0.0/8", false),
            ("base=fd00::/48,size=64", true),
            ("base=fd00::/48,size=127", false),
        ] {
            assert_eq!(text.parse::<Pool>().is_ok(), fine, "{text}");
        }
    }
}
