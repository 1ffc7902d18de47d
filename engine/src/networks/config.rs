//! What the engine tells about the default bridge network.

use super::error::NetworkError;
use super::subnet::Subnet;

/// The default bridge network, as configured.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// Name of the bridge; it also names the firewall table. Stacks side by side need different ones.
    pub name: String,
    /// The bridge's own address and its network (`--bip`). `None`: what the bridge has if it exists, else the first
    /// of docker's default subnets that the host has no route to.
    pub address: Option<Subnet>,
    /// The bridge's IPv6 address and its network; none for a network without IPv6.
    pub address_v6: Option<Subnet>,
    /// Where containers on it get their addresses from, at most one range of each family; else the whole networks.
    pub ranges: Vec<Subnet>,
    /// Containers on it reach each other.
    pub icc: bool,
    /// What leaves the host gets the host's address.
    pub masquerade: bool,
    /// MTU of the bridge and its links.
    pub mtu: u32,
    /// Ids of the networks.
    pub ids: NetworkIds,
    /// Sockets of the system's message bus, where firewalld is asked.
    pub bus: Vec<String>,
}

/// Ids of the predefined networks: 64 hex digits each, the same for the life of a data root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkIds {
    /// Of network `bridge`.
    pub bridge: String,
    /// Of network `host`.
    pub host: String,
    /// Of network `none`.
    pub none: String,
}

/// Checks the name of a bridge: a link's (dev_valid_name in the kernel), and one that needs no quoting anywhere.
pub(super) fn check_name(name: &str) -> Result<(), NetworkError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=15).contains(&name.len()) && name.bytes().all(fine) && !matches!(name, "." | ".." | "all" | "default") {
        Ok(())
    } else {
        Err(NetworkError::BridgeName(name.to_owned()))
    }
}

/// The subnets to choose from when none is given, in docker's order: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/20
/// to 192.168.240.0/20.
pub(super) fn default_subnets() -> impl Iterator<Item = Subnet> {
    let large = (17..=31).map(|second| ([172, second, 0, 1], 16));
    let small = (0..=240).step_by(16).map(|third| ([192, 168, third, 1], 20));
    large.chain(small).filter_map(|(octets, prefix)| Subnet::new(octets.into(), prefix).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, fine) in [
            ("berth0", true),
            ("br-1_x.2", true),
            ("", false),
            ("sixteen-letters-", false),
            ("a/b", false),
            ("..", false),
            ("all", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(check_name(name).is_ok(), fine, "{name}");
        }
    }

    #[test]
    fn default_subnets_can_be_bridges_and_do_not_overlap() {
        let all: Vec<_> = default_subnets().collect();
        assert_eq!(all.len(), 15 + 16);
        assert_eq!(all[0].to_string(), "172.17.0.1/16");
        for (position, subnet) in all.iter().enumerate() {
            assert!(subnet.check_bridge_address().is_ok());
            assert!(all[position + 1..].iter().all(|other| !subnet.overlaps(*other)), "{subnet}");
        }
    }
}
