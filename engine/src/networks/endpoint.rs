//! What is asked of a network for a container, and what it got.

use std::net::Ipv4Addr;
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
    /// A certain IP address; normally the next free one.
    pub ip: Option<Ipv4Addr>,
    /// The network with the highest one is the way out of the container.
    pub gateway_priority: i64,
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
    /// The address in the first network; none on network `none`. Its link is eth0.
    pub address: Option<EndpointAddress>,
    /// The ports as they were published: every host port is known.
    pub ports: Vec<PublishedPort>,
    /// Further networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<Member>,
    /// The id of the network by which the default route leads, and to which ports lead; empty for the first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
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

/// The link of a container in its first network.
pub(super) const FIRST_INTERFACE: &str = "eth0";

impl Endpoint {
    /// The places in bridge networks, the first network's first.
    pub fn members(&self) -> Vec<Member> {
        let first = self.address.as_ref().map(|address| Member {
            network_id: self.network_id.clone(),
            endpoint_id: self.endpoint_id.clone(),
            interface: FIRST_INTERFACE.to_owned(),
            address: address.clone(),
        });
        first.into_iter().chain(self.further.iter().cloned()).collect()
    }

    /// The place in a certain network.
    pub fn member(&self, network_id: &str) -> Option<Member> {
        self.members().into_iter().find(|member| member.network_id == network_id)
    }

    /// The place by which the default route leads.
    pub fn gateway_member(&self) -> Option<Member> {
        match self.gateway.as_str() {
            "" => self.address.is_some().then(|| self.members().into_iter().next()).flatten(),
            id => self.member(id),
        }
    }

    /// The address that ports lead to.
    pub fn published_at(&self) -> Option<Ipv4Addr> {
        self.gateway_member().map(|member| member.address.ip)
    }

    /// Adds a place.
    pub(super) fn add(&mut self, member: Member) {
        if self.address.is_none() && self.further.is_empty() && member.interface == FIRST_INTERFACE {
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

    /// A name for one more link.
    pub(super) fn free_interface(&self) -> String {
        let used: Vec<String> = self.members().into_iter().map(|member| member.interface).collect();
        (0..).map(|n| format!("eth{n}")).find(|name| !used.contains(name)).unwrap_or_default()
    }
}

/// The address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAddress {
    /// The container's address.
    pub ip: Ipv4Addr,
    /// The length of the subnet's prefix.
    pub prefix: u8,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// The container's MAC address.
    pub mac: Mac,
    /// Name of the link on the host.
    pub host_link: String,
    /// What it was asked to count when the way out is chosen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gateway_priority: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}
