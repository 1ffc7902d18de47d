//! What engine and resolver say to each other: one JSON message per packet of a SOCK_SEQPACKET socket, descriptors beside it,
//! and one answer for each.

use serde::{Deserialize, Serialize};

use super::zone::Zone;

/// Changes when an older resolver would misunderstand; it is then replaced.
pub(super) const VERSION: u32 = 1;
/// Longest message: a container has few networks and few names in each.
pub(super) const LONGEST: usize = 60 * 1024;

/// Most ids in one answer.
pub(super) const PAGE: usize = 500;

/// From the engine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Who are you, and whom do you serve? The ids that follow this one, in order; at most [`PAGE`].
    Hello(String),
    /// Serve a container, by the sockets that come along: UDP, TCP, and the container's namespace.
    Serve(Zone),
    /// Something has changed about a container that is served.
    Change(Zone),
    /// A container is gone.
    Forget(String),
    /// End.
    Quit,
}

/// From the resolver.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    /// Its version.
    pub(super) version: u32,
    /// Ids of the containers that it serves, in answer to `Hello`.
    #[serde(default)]
    pub(super) serves: Vec<String>,
    /// Why it couldn't.
    #[serde(default)]
    pub(super) error: Option<String>,
}
