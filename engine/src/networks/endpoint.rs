//! What is asked of a network for a container, and what it got.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mac::Mac;
use super::ports::{PortRequest, PublishedPort};

/// What a container wants of the default bridge network.
#[derive(Debug, Clone, Default)]
pub struct EndpointRequest {
    /// The container's name, for error texts.
    pub name: String,
    /// A MAC address of its own; normally it follows from the IP address.
    pub mac: Option<Mac>,
    /// A certain IP address; normally the next free one.
    pub ip: Option<Ipv4Addr>,
    /// The ports to publish.
    pub ports: Vec<PortRequest>,
}

/// The kind of network a container is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    /// The default bridge.
    Bridge,
    /// The host's own network namespace.
    Host,
    /// A namespace with lo alone.
    None,
}

impl NetworkKind {
    /// The network's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
        }
    }

    /// The network's driver in the API.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "null",
        }
    }
}

/// A container's place in a network: part of the engine's record of the container, and all that `detach` and
/// `restore` need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which network.
    pub network: NetworkKind,
    /// Its id.
    pub network_id: String,
    /// The endpoint's own id: 64 hex digits.
    pub endpoint_id: String,
    /// Where the namespace is pinned until the container's first process is in it.
    pub netns: PathBuf,
    /// The address; none on network `none`.
    pub address: Option<EndpointAddress>,
    /// The ports as they were published: every host port is known.
    pub ports: Vec<PublishedPort>,
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
}
