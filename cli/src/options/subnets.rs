//! Subnets, ranges, gateways and taken addresses of `network create`, put together to pools.

use super::OptionError;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// An address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subnet {
    bits: u128,
    /// Bits of the prefix, counted in 128; that of an IPv4 address begins at bit 96.
    prefix: u32,
    v6: bool,
}

impl Subnet {
    fn of(address: IpAddr, prefix: Option<u32>) -> Option<Self> {
        let (bits, length, v6) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32, false),
            IpAddr::V6(address) => (address.to_bits(), 128, true),
        };
        let prefix = prefix.unwrap_or(length);
        (prefix <= length).then_some(Self { bits, prefix, v6 })
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        Self::of(address.parse().ok()?, Some(prefix.parse().ok()?))
    }

    /// The other one lies in it, as far as its first address goes.
    fn holds(self, other: Self) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0);
        self.v6 == other.v6 && self.bits & mask == other.bits & mask
    }
}

fn invalid(text: impl Into<String>) -> OptionError {
    OptionError::Invalid(text.into())
}

/// `IPAM.Config`. A subnet that can't be read is left for the engine to name.
pub fn pools(
    subnets: &[String],
    ranges: &[String],
    gateways: &[String],
    taken: &[String],
) -> Result<Vec<Value>, OptionError> {
    if subnets.len() < ranges.len() || subnets.len() < gateways.len() {
        return Err(invalid("every ip-range or gateway must have a corresponding subnet"));
    }
    let parsed: Vec<Option<Subnet>> = subnets.iter().map(|text| Subnet::parse(text)).collect();
    for (at, one) in parsed.iter().enumerate() {
        let overlaps =
            |other: &Option<Subnet>| matches!((one, other), (Some(a), Some(b)) if a.holds(*b) || b.holds(*a));
        if parsed[..at].iter().any(overlaps) {
            return Err(invalid("multiple overlapping subnet configuration is not supported"));
        }
    }
    let mut pools: Vec<Map<String, Value>> =
        subnets.iter().map(|text| Map::from_iter([("Subnet".to_owned(), json!(text))])).collect();
    let find = |part: Option<Subnet>| parsed.iter().position(|s| matches!((s, part), (Some(s), Some(p)) if s.holds(p)));
    for range in ranges {
        let at = find(Subnet::parse(range)).ok_or_else(|| invalid(format!("no matching subnet for range {range}")))?;
        if let Some(old) = pools[at].get("IPRange").and_then(Value::as_str) {
            let text =
                format!("cannot configure multiple ranges ({range}, {old}) on the same subnet ({})", subnets[at]);
            return Err(invalid(text));
        }
        pools[at].insert("IPRange".to_owned(), json!(range));
    }
    let address = |text: &str| text.parse::<IpAddr>().ok().and_then(|address| Subnet::of(address, None));
    for gateway in gateways {
        let none = || invalid(format!("no matching subnet for gateway {gateway}"));
        let at = find(address(gateway)).ok_or_else(none)?;
        if let Some(old) = pools[at].get("Gateway").and_then(Value::as_str) {
            let text =
                format!("cannot configure multiple gateways ({gateway}, {old}) for the same subnet ({})", subnets[at]);
            return Err(invalid(text));
        }
        pools[at].insert("Gateway".to_owned(), json!(gateway));
    }
    for text in taken {
        let (name, ip) = text.split_once('=').unwrap_or((text, ""));
        let at = find(address(ip)).ok_or_else(|| invalid(format!("no matching subnet for aux-address {ip}")))?;
        let all = pools[at].entry("AuxiliaryAddresses").or_insert_with(|| json!({}));
        if let Value::Object(all) = all {
            all.insert(name.to_owned(), json!(ip));
        }
    }
    Ok(pools.into_iter().map(Value::Object).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(subnets: &[&str], ranges: &[&str], gateways: &[&str], taken: &[&str]) -> Result<Value, String> {
        let own = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let pools = pools(&own(subnets), &own(ranges), &own(gateways), &own(taken));
        pools.map(|pools| json!(pools)).map_err(|error| error.to_string())
    }

    #[test]
    fn parts_find_their_subnet() {
        let want = json!([
            {"Subnet":"10.1.0.0/16","IPRange":"10.1.2.0/24","Gateway":"10.1.0.1","AuxiliaryAddresses":{"r":"10.1.0.2"}},
            {"Subnet":"fd00::/64","Gateway":"fd00::1"}]);
        let pools =
            of(&["10.1.0.0/16", "fd00::/64"], &["10.1.2.0/24"], &["fd00::1", "10.1.0.1"], &["r=10.1.0.2"]).unwrap();
        assert_eq!(pools, want);
        assert_eq!(of(&[], &[], &[], &[]).unwrap(), json!([]));
        assert_eq!(of(&["10.1.0.0"], &[], &[], &[]).unwrap(), json!([{"Subnet":"10.1.0.0"}]));
    }

    #[test]
    fn refused() {
        for (subnets, ranges, gateways, taken, text) in [
            (&[][..], &[][..], &["1.2.3.4"][..], &[][..], "every ip-range or gateway must have a corresponding subnet"),
            (
                &["10.1.0.0/16", "10.1.2.0/24"],
                &[],
                &[],
                &[],
                "multiple overlapping subnet configuration is not supported",
            ),
            (&["10.1.0.0/16"], &[], &["1.2.3.4"], &[], "no matching subnet for gateway 1.2.3.4"),
            (&["10.1.0.0/16"], &["10.2.0.0/24"], &[], &[], "no matching subnet for range 10.2.0.0/24"),
            (&["10.1.0.0/16"], &[], &[], &["a=10.2.0.1"], "no matching subnet for aux-address 10.2.0.1"),
            (
                &["10.1.0.0/16", "10.2.0.0/16"],
                &["10.1.1.0/24", "10.1.2.0/24"],
                &[],
                &[],
                "cannot configure multiple ranges (10.1.2.0/24, 10.1.1.0/24) on the same subnet (10.1.0.0/16)",
            ),
        ] {
            assert_eq!(of(subnets, ranges, gateways, taken).unwrap_err(), text);
        }
    }
}
