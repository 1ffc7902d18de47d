//! The default bridge, and what other networks get that say nothing.

use super::Settings;
use crate::networks::{Driver, Pool, PoolError, Subnet, check_options, default_pools};
use std::collections::BTreeMap;

/// The default bridge.
#[derive(Debug, Clone)]
pub struct DefaultBridge {
    /// Its name.
    pub name: String,
    /// Its address with prefix length, if one was chosen.
    pub address: Option<Subnet>,
    /// It has IPv6, too.
    pub ipv6: bool,
    /// Its IPv6 address, if one was chosen.
    pub address_v6: Option<Subnet>,
    /// Where its containers get their addresses from, at most one range of each family.
    pub ranges: Vec<Subnet>,
    /// Its containers reach each other.
    pub icc: bool,
    /// What leaves it gets the host's address.
    pub masquerade: bool,
}

impl DefaultBridge {
    /// Reads what is said of it; pure.
    pub fn read(settings: &Settings) -> Result<Self, String> {
        let subnet = |key: &str, text: &Option<String>, is_ipv4: bool| -> Result<Option<Subnet>, String> {
            let Some(text) = text.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
            let read: Subnet = text.parse().map_err(|error| format!("{key}: {error}"))?;
            let family = if is_ipv4 { "IPv4" } else { "IPv6" };
            if read.is_ipv4() == is_ipv4 { Ok(Some(read)) } else { Err(format!("{key}: {text} is not of {family}")) }
        };
        let address = subnet("bip", &settings.bip, true)?;
        let mut address_v6 = subnet("bip6", &settings.bip6, false)?;
        let range = subnet("fixed-cidr", &settings.fixed_cidr, true)?;
        let range_v6 = subnet("fixed-cidr-v6", &settings.fixed_cidr_v6, false)?;
        let ipv6 = settings.ipv6.unwrap_or(false);
        if !ipv6 && (address_v6.is_some() || range_v6.is_some()) {
            return Err("bip6 and fixed-cidr-v6 need ipv6".into());
        }
        if let Some(range) = range {
            let Some(address) = address else { return Err("fixed-cidr: it needs bip beside it".into()) };
            if !(address.contains(range.network()) && address.contains(range.last())) {
                return Err(format!("fixed-cidr: {range} is not inside of {}", address.to_network()));
            }
        }
        let mut ranges: Vec<Subnet> = range.into_iter().collect();
        // As dockerd: without an address, the range is the network.
        match (address_v6, range_v6) {
            (Some(address), Some(range)) => {
                if !(address.contains(range.network()) && address.contains(range.last())) {
                    return Err(format!("fixed-cidr-v6: {range} is not inside of {}", address.to_network()));
                }
                ranges.push(range);
            }
            (None, Some(range)) => {
                address_v6 = Some(range.first_host().map_err(|error| format!("fixed-cidr-v6: {error}"))?)
            }
            (_, None) => {}
        }
        Ok(Self {
            name: settings.bridge.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "berth0".to_owned()),
            address,
            ipv6,
            address_v6,
            ranges,
            icc: settings.icc.unwrap_or(true),
            masquerade: settings.ip_masq.unwrap_or(true),
        })
    }
}

/// Where subnets of networks come from that say nothing.
pub fn pools(settings: &Settings) -> Result<Vec<Pool>, String> {
    let mut pools: Vec<Pool> = Vec::new();
    for pool in &settings.default_address_pools {
        let text = format!("base={},size={}", pool.base, pool.size);
        pools.push(text.parse().map_err(|error: PoolError| format!("default-address-pools: {error}"))?);
    }
    if !pools.iter().any(|pool| pool.is_ipv4()) {
        pools.extend(default_pools());
    }
    Ok(pools)
}

/// Options of new networks that say nothing about them, by driver.
pub fn options(settings: &Settings) -> Result<BTreeMap<String, BTreeMap<String, String>>, String> {
    for (name, options) in &settings.default_network_opts {
        let driver = [Driver::Bridge, Driver::Macvlan, Driver::Ipvlan].into_iter().find(|driver| driver.name() == name);
        let driver = driver.ok_or_else(|| format!("default-network-opts: there is no driver {name}"))?;
        check_options(driver, options).map_err(|error| format!("default-network-opts: {error}"))?;
    }
    Ok(settings.default_network_opts.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<DefaultBridge, String> {
        DefaultBridge::read(&Settings::read(value.as_object().cloned().unwrap_or_default())?)
    }

    #[test]
    fn addresses_and_ranges() {
        let both = read(
            json!({"bip": "10.1.0.1/16", "fixed-cidr": "10.1.4.0/24", "ipv6": true, "fixed-cidr-v6": "fd00:7::/64"}),
        );
        let both = both.unwrap();
        assert_eq!(both.address_v6.unwrap().to_string(), "fd00:7::1/64");
        assert_eq!(both.ranges.len(), 1);
        assert!(!read(json!({"icc": false})).unwrap().icc);
        for (value, words) in [
            (json!({"bip": "fd00::1/64"}), "bip: fd00::1/64 is not of IPv4"),
            (json!({"fixed-cidr": "10.1.0.0/24"}), "needs bip"),
            (json!({"bip": "10.1.0.1/24", "fixed-cidr": "10.2.0.0/24"}), "is not inside of 10.1.0.0/24"),
            (json!({"bip6": "fd00::1/64"}), "need ipv6"),
            (json!({"ipv6": true, "bip6": "10.1.0.1/24"}), "is not of IPv6"),
            (json!({"bip": "x"}), "bip:"),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert!(error.contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn defaults_of_networks() {
        let read = |value: serde_json::Value| Settings::read(value.as_object().cloned().unwrap()).unwrap();
        let good = json!({"default-network-opts": {"bridge": {"com.docker.network.enable_ipv6": "true"}}});
        assert_eq!(options(&read(good)).unwrap().len(), 1);
        for bad in [json!({"bridge": {"com.docker.network.nonsense": "1"}}), json!({"overlay": {}})] {
            assert!(options(&read(json!({ "default-network-opts": bad }))).is_err());
        }
        let six = read(json!({"default-address-pools": [{"base": "fd00:9::/48", "size": 64}]}));
        assert_eq!(pools(&six).unwrap().len(), 1 + default_pools().len());
    }
}
