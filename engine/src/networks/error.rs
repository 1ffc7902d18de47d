//! What can go wrong with networks.

use std::io;
use std::path::PathBuf;

use proto::kind::ErrorKind;

use super::ipam::IpamError;
use super::netlink::NetlinkError;
use super::ports::PortError;
use super::subnet::{Subnet, SubnetError};
use super::sysctl::SysctlError;

/// An operation on networks that failed. Nothing of it is left behind, unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The bridge's name can't be that of a link.
    #[error("{0:?} can't be the name of a bridge: 1 to 15 letters, digits, '-', '_' or '.'")]
    BridgeName(String),
    /// The bridge's address can't be one.
    #[error("bridge address")]
    BridgeAddress(#[source] SubnetError),
    /// The link is there, and something else.
    #[error("link {name} exists and is a {kind}, not a bridge; choose another name for the bridge")]
    NotABridge {
        /// The link.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// The host can reach a part of the subnet already, by another link.
    #[error(
        "subnet {subnet} of bridge {bridge} overlaps {route}, which this host reaches by {link}; choose another subnet (--subnet of a network, --bip of the default bridge)"
    )]
    Overlap {
        /// The bridge.
        bridge: String,
        /// The subnet asked for.
        subnet: Subnet,
        /// The route that is there.
        route: Subnet,
        /// The link of that route.
        link: String,
    },
    /// Every subnet that we would choose is in use.
    #[error(
        "no free subnet for bridge {bridge}: each of the default ones overlaps a route of this host; choose one (--bip)"
    )]
    NoSubnet {
        /// The bridge.
        bridge: String,
    },
    /// The bridge couldn't be made or repaired.
    #[error("set up bridge {name}")]
    Bridge {
        /// The bridge.
        name: String,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// firewalld couldn't be told of bridges.
    #[error(transparent)]
    Firewalld(#[from] super::firewalld::FirewalldError),
    /// A kernel setting couldn't be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The firewall couldn't be set up.
    #[error("set up the firewall of bridge {name}")]
    Firewall {
        /// The bridge.
        name: String,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// A namespace couldn't be made or removed.
    #[error(transparent)]
    Namespace(#[from] sys::netns::NetnsError),
    /// The link of a container isn't there any more.
    #[error("link {0} is gone, as it is when all processes of a container have ended")]
    LinkGone(String),
    /// The container's id can't be the name of a file.
    #[error("{0:?} can't be the id of a container")]
    Id(String),
    /// No address for the container.
    #[error(transparent)]
    Address(#[from] IpamError),
    /// The container's link couldn't be made.
    #[error("connect {endpoint} to bridge {bridge}")]
    Connect {
        /// The endpoint.
        endpoint: String,
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// A host port couldn't be had.
    #[error("driver failed programming external connectivity on endpoint {endpoint}")]
    Port {
        /// The endpoint.
        endpoint: String,
        /// Why.
        #[source]
        cause: PortError,
    },
    /// The firewall didn't take the published ports.
    #[error("driver failed programming external connectivity on endpoint {endpoint}")]
    Publish {
        /// The endpoint.
        endpoint: String,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// The published ports couldn't be taken back; they and the address stay reserved.
    #[error("unpublish the ports of {id}")]
    Unpublish {
        /// The container.
        id: String,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// The container's link couldn't be removed; its address stays reserved.
    #[error("disconnect {id} from bridge {bridge}")]
    Disconnect {
        /// The container.
        id: String,
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// No network goes by that name or id.
    #[error("network {0} not found")]
    NotFound(String),
    /// The same for what a user typed, with the name that may have been meant.
    #[error("network {text} not found{near}")]
    Unknown {
        /// What was typed.
        text: String,
        /// `; did you mean …?`, or nothing.
        near: String,
    },
    /// The beginning of an id that several have.
    #[error("network {text} is ambiguous ({count} matches found on ID prefix)")]
    Ambiguous {
        /// What was given.
        text: String,
        /// How many fit.
        count: usize,
    },
    /// The network is one of those that are always there.
    #[error("{0} is a pre-defined network")]
    Predefined(String),
    /// The name can't be that of a network.
    #[error("invalid network name {name:?}: {why}")]
    NetworkName {
        /// The name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Another network has the name.
    #[error("network with name {0} already exists")]
    NameTaken(String),
    /// Another network has the bridge.
    #[error("bridge {bridge} belongs to network {network}; choose another com.docker.network.bridge.name")]
    BridgeTaken {
        /// The bridge.
        bridge: String,
        /// Whose it is.
        network: String,
    },
    /// Another network has addresses of the subnet.
    #[error(
        "Pool overlaps with other one on this address space: {subnet} shares addresses with {other} of network {network}"
    )]
    SubnetTaken {
        /// The subnet asked for.
        subnet: Subnet,
        /// The other's.
        other: Subnet,
        /// The other network.
        network: String,
    },
    /// Every subnet of the pools is in use.
    #[error(
        "all predefined address pools have been fully subnetted: each subnet of them overlaps another network or a route of this host; give a subnet, or the engine more pools (default-address-pools)"
    )]
    PoolsExhausted,
    /// What is asked of the address management can't be.
    #[error("invalid {what} {value}: {why}")]
    Ipam {
        /// Which part.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is wrong.
        why: String,
    },
    /// A bridge has one subnet of each family.
    #[error("bridge driver doesn't support multiple subnets ({0})")]
    SeveralSubnets(&'static str),
    /// What is asked for can't go together.
    #[error("invalid network configuration: {0}")]
    Configuration(&'static str),
    /// The network holds what others are made with, and nothing else.
    #[error("network {0} is configuration only and cannot be connected to")]
    ConfigurationOnly(String),
    /// The network doesn't hold what others are made with.
    #[error("{0} is not a configuration network")]
    NotConfiguration(String),
    /// Others were made with what the network holds.
    #[error("configuration network {name:?} is in use by network {by}")]
    ConfigurationUsed {
        /// The network.
        name: String,
        /// One that was made with it.
        by: String,
    },
    /// The host has no such link.
    #[error("invalid parent interface {0:?}: this host has no such link")]
    NoParent(String),
    /// Another network is on the link.
    #[error("network {network} is already using parent interface {parent}")]
    ParentTaken {
        /// The link.
        parent: String,
        /// The other network.
        network: String,
    },
    /// The link that others are to be on couldn't be made.
    #[error("set up parent interface {name}")]
    Parent {
        /// The link.
        name: String,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// An option of the driver has a value that it can't have.
    #[error("invalid value {value:?} for option {key}")]
    Option {
        /// The option.
        key: String,
        /// Its value.
        value: String,
    },
    /// An option in docker's own space that the driver doesn't have.
    #[error("option {0} is not implemented in berth")]
    UnknownOption(String),
    /// Containers are on the network.
    #[error("error while removing network: network {name} id {id} has active endpoints")]
    Active {
        /// The network.
        name: String,
        /// Its id.
        id: String,
    },
    /// The resolver of names couldn't be reached or started.
    #[error("resolver of names: {what}")]
    Names {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A netlink socket couldn't be used.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A file or folder couldn't be used.
    #[error("{what} {}", path.display())]
    Io {
        /// The verb.
        what: &'static str,
        /// The object.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl NetworkError {
    /// The kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BridgeName(_)
            | Self::BridgeAddress(_)
            | Self::Id(_)
            | Self::Ambiguous { .. }
            | Self::NetworkName { .. }
            | Self::Ipam { .. }
            | Self::Configuration(_)
            | Self::NotConfiguration(_)
            | Self::NoParent(_)
            | Self::Option { .. } => ErrorKind::InvalidArgument,
            Self::NotFound(_) | Self::Unknown { .. } => ErrorKind::NotFound,
            Self::NameTaken(_) => ErrorKind::AlreadyExists,
            // docker answers 403 for all of these.
            Self::Predefined(_)
            | Self::SubnetTaken { .. }
            | Self::BridgeTaken { .. }
            | Self::ParentTaken { .. }
            | Self::SeveralSubnets(_)
            | Self::ConfigurationOnly(_)
            | Self::ConfigurationUsed { .. }
            | Self::Active { .. }
            | Self::Address(IpamError::InUse { .. }) => ErrorKind::PermissionDenied,
            Self::UnknownOption(_) => ErrorKind::Unimplemented,
            Self::NotABridge { .. } | Self::Overlap { .. } | Self::LinkGone(_) => ErrorKind::FailedPrecondition,
            Self::PoolsExhausted | Self::NoSubnet { .. } | Self::Address(IpamError::Exhausted { .. }) => {
                ErrorKind::ResourceExhausted
            }
            Self::Address(IpamError::OutOfRange { .. } | IpamError::Foreign { .. }) => ErrorKind::InvalidArgument,
            // docker answers 500 when a port is taken, and clients look at the text; so it isn't AlreadyExists.
            Self::Port { .. }
            | Self::Publish { .. }
            | Self::Bridge { .. }
            | Self::Parent { .. }
            | Self::Sysctl(_)
            | Self::Firewall { .. }
            | Self::Firewalld(_)
            | Self::Namespace(_)
            | Self::Connect { .. }
            | Self::Unpublish { .. }
            | Self::Disconnect { .. }
            | Self::Names { .. }
            | Self::Netlink(_)
            | Self::Io { .. } => ErrorKind::Internal,
        }
    }
}
