//! What is asked of a network for a container, and what it got.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mac::Mac;
use super::ports::{PortRequest, PublishedPort};

/// What a container wants of networks when it starts.
#[derive(Debug, Clone, Default)]
pub struct AttachRequest {
    /// The container's name, for error texts.
    pub name: String,
    /// The ports to publish.
    pub ports: Vec<PortRequest>,
    /// The bridge networks to join, in the order of their links in the container: eth0, eth1, ...
    pub members: Vec<MemberRequest>,
}

/// What a container wants of one bridge network.
#[derive(Debug, Clone, Default)]
pub struct MemberRequest {
    /// The network's id.
    pub network_id: String,
    /// A MAC address of its own; normally it follows from the IP address.
    pub mac: Option<Mac>,
    /// Certain addresses, at most one of each family; normally the next free ones.
    pub ips: Vec<IpAddr>,
    /// The network with the highest one is the way out of the container.
    pub gateway_priority: i64,
    /// What the link in the container is to be called; normally `eth` and a number.
    pub interface: Option<String>,
    /// What is asked of the link.
    pub link: LinkOptions,
}

/// What is asked of the link of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkOptions {
    /// Settings of the container's end by their path below /proc/sys, `IFNAME` in place of its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Most bytes per second that the container gets by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<u64>,
    /// Most bytes per second that it sends by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<u64>,
}

/// The kind of network a container is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    /// Bridge networks: the default one, or those of the user.
    Bridge,
    /// The host's own network namespace.
    Host,
    /// A namespace with lo alone.
    None,
    /// The namespace of another container.
    Container,
}

impl NetworkKind {
    /// The network's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
            Self::Container => "container",
        }
    }

    /// The network's driver in the API.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None | Self::Container => "null",
        }
    }
}

/// A container's place in its networks: part of the engine's record of the container, and all that `detach` and
/// `restore` need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which kind of network.
    pub network: NetworkKind,
    /// The id of the first network; empty once the container has left it.
    pub network_id: String,
    /// The id of the endpoint in it: 64 hex digits.
    pub endpoint_id: String,
    /// Where the namespace is pinned until the container's first process is in it.
    pub netns: PathBuf,
    /// The address in the first network; none on network `none`.
    pub address: Option<EndpointAddress>,
    /// Name of the link in the container to the first network.
    #[serde(default = "first_interface", skip_serializing_if = "is_first_interface")]
    pub interface: String,
    /// The ports as they were published: every host port is known.
    pub ports: Vec<PublishedPort>,
    /// Further networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<Member>,
    /// The id of the network by which the default route of IPv4 leads, and to which ports lead; empty for the first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway_v6: String,
    /// A change of a living container's networks is on record and perhaps not made yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsettled: bool,
}

/// A container's place in one bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The network's id.
    pub network_id: String,
    /// The endpoint's id.
    pub endpoint_id: String,
    /// Name of the link in the container.
    pub interface: String,
    /// Its address.
    pub address: EndpointAddress,
}

/// Addresses that published ports lead to, one of each family where there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Targets {
    /// Of IPv4.
    pub v4: Option<IpAddr>,
    /// Of IPv6.
    pub v6: Option<IpAddr>,
}

impl Targets {
    /// That of a family.
    pub fn of(&self, is_ipv4: bool) -> Option<IpAddr> {
        if is_ipv4 { self.v4 } else { self.v6 }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.into_iter().chain(self.v6)
    }
}

/// What the link of a container to its first network is called, unless somebody wants it otherwise.
fn first_interface() -> String {
    "eth0".to_owned()
}

fn is_first_interface(name: &str) -> bool {
    name == "eth0"
}

impl Endpoint {
    /// The places in bridge networks, the first network's first.
    pub fn members(&self) -> Vec<Member> {
        let first = self.address.as_ref().map(|address| Member {
            network_id: self.network_id.clone(),
            endpoint_id: self.endpoint_id.clone(),
            interface: self.interface.clone(),
            address: address.clone(),
        });
        first.into_iter().chain(self.further.iter().cloned()).collect()
    }

    /// The place in a certain network.
    pub fn member(&self, network_id: &str) -> Option<Member> {
        self.members().into_iter().find(|member| member.network_id == network_id)
    }

    /// The place by which the default route of a family leads.
    pub fn gateway_member(&self, is_ipv4: bool) -> Option<Member> {
        let gateway = if is_ipv4 { &self.gateway } else { &self.gateway_v6 };
        let found = match gateway.as_str() {
            "" => self.address.is_some().then(|| self.members().into_iter().next()).flatten(),
            id => self.member(id),
        };
        found.filter(|member| member.address.of(is_ipv4).is_some())
    }

    /// The network by which most leads out: of IPv4 where there is one.
    pub fn main_network(&self) -> Option<String> {
        self.gateway_member(true).or_else(|| self.gateway_member(false)).map(|member| member.network_id)
    }

    /// The addresses that ports lead to.
    pub fn targets(&self) -> Targets {
        let of = |is_ipv4| self.gateway_member(is_ipv4).and_then(|member| member.address.of(is_ipv4).map(|a| a.ip));
        Targets { v4: of(true), v6: of(false) }
    }

    /// Adds a place.
    pub(super) fn add(&mut self, member: Member) {
        if self.address.is_none() && self.further.is_empty() {
            self.interface = member.interface;
            self.network_id = member.network_id;
            self.endpoint_id = member.endpoint_id;
            self.address = Some(member.address);
        } else {
            self.further.push(member);
        }
    }

    /// Takes a place away.
    pub(super) fn remove(&mut self, network_id: &str) {
        if self.address.is_some() && self.network_id == network_id {
            self.address = None;
            self.network_id.clear();
            self.endpoint_id.clear();
        }
        self.further.retain(|member| member.network_id != network_id);
    }

    /// A name for one more link: this word and a number.
    pub(super) fn free_interface(&self, word: &str) -> String {
        let used: Vec<String> = self.members().into_iter().map(|member| member.interface).collect();
        (0..).map(|n| format!("{word}{n}")).find(|name| !used.contains(name)).unwrap_or_default()
    }
}

/// The addresses of an endpoint, and its link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAddress {
    /// The IPv4 address, in the fields in which there once was none else.
    #[serde(flatten)]
    pub v4: Option<FamilyAddress>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<FamilyAddress>,
    /// The container's MAC address.
    pub mac: Mac,
    /// Name of the link on the host; empty where there is none: links on a link of the host's are in the container alone.
    pub host_link: String,
    /// What it was asked to count when the way out is chosen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gateway_priority: i64,
    /// What is asked of the link.
    #[serde(default, skip_serializing_if = "is_default")]
    pub link: LinkOptions,
}

impl EndpointAddress {
    /// The address of a family.
    pub fn of(&self, is_ipv4: bool) -> Option<&FamilyAddress> {
        if is_ipv4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// The addresses, that of IPv4 first.
    pub fn all(&self) -> impl Iterator<Item = &FamilyAddress> {
        self.v4.iter().chain(&self.v6)
    }
}

/// An address of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyAddress {
    /// The container's address.
    pub ip: IpAddr,
    /// The length of the subnet's prefix.
    pub prefix: u8,
    /// The router's address, mostly the bridge's; none where there is none.
    pub gateway: Option<IpAddr>,
}

fn is_default(link: &LinkOptions) -> bool {
    *link == LinkOptions::default()
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_engine_wrote() {
        let text = r#"{"network":"bridge","network_id":"n","endpoint_id":"e","netns":"/run/x","address":{"ip":"172.17.0.2",
            "prefix":16,"gateway":"172.17.0.1","mac":"02:42:ac:11:00:02","host_link":"veth0"},"ports":
            [{"protocol":"tcp","container_port":80,"host_ip":"0.0.0.0","host_port":8080}]}"#;
        let endpoint: Endpoint = serde_json::from_str(text).expect("endpoint");
        assert_eq!(endpoint.targets(), Targets { v4: Some([172, 17, 0, 2].into()), v6: None });
        assert_eq!(endpoint.interface, "eth0");
        let again: Endpoint = serde_json::from_str(&serde_json::to_string(&endpoint).expect("text")).expect("endpoint");
        assert_eq!(again, endpoint);
    }

    #[test]
    fn an_address_of_ipv6_alone() {
        let six = FamilyAddress { ip: "fd00::2".parse().expect("ip"), prefix: 64, gateway: None };
        let address = EndpointAddress {
            v4: None,
            v6: Some(six),
            mac: "02:42:ac:11:00:02".parse().expect("mac"),
            host_link: String::new(),
            gateway_priority: 0,
            link: LinkOptions::default(),
        };
        let text = serde_json::to_string(&address).expect("text");
        assert_eq!(serde_json::from_str::<EndpointAddress>(&text).expect("address"), address);
    }
}
