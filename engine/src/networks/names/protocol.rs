//! What engine and resolver say to each other: one JSON message per packet of a SOCK_SEQPACKET socket, descriptors beside it,
//! and one answer for each.

use serde::{Deserialize, Serialize};

use super::super::ports::{HeldPort, PortKey};
use super::zone::Zone;

/// Changes when an older resolver would misunderstand; it is then replaced.
pub(super) const VERSION: u32 = 3;
/// Longest message: a container has few networks and few names in each.
pub(super) const LONGEST: usize = 60 * 1024;

/// Most ids in one answer.
pub(super) const PAGE: usize = 500;
/// Most ports in one message: their descriptors come along, of which the kernel takes 253 (SCM_MAX_FD).
pub(super) const PORTS: usize = 250;

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
    /// Hold these ports by the sockets that come along; at most [`PORTS`].
    Hold(Vec<HeldPort>),
    /// Let these ports go.
    LetGo(Vec<PortKey>),
    /// Which ports do you hold? Those that follow this one, in order, and their sockets; at most [`PORTS`].
    Held(Option<PortKey>),
    /// What have you done so far?
    Count,
    /// End.
    Quit,
}

impl Request {
    /// What is asked for, as an error names it.
    pub(super) fn task(&self) -> &'static str {
        match self {
            Self::Hello(_) => "say whom it serves",
            Self::Serve(_) => "serve a container",
            Self::Change(_) => "take a container's new names",
            Self::Forget(_) => "forget a container",
            Self::Hold(_) => "hold host ports",
            Self::LetGo(_) => "let go of host ports",
            Self::Held(_) => "say which host ports it holds",
            Self::Count => "say what it has done",
            Self::Quit => "end",
        }
    }
}

/// What a resolver has done since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Questions answered from what is known of containers.
    pub answered: u64,
    /// Questions that a name server elsewhere was asked for, with an answer.
    pub forwarded: u64,
    /// Questions about what a name server elsewhere had answered before, or was just being asked for another.
    pub cached: u64,
    /// Questions whose asker was told of a failure: nobody has answered, or nobody may be asked.
    pub failed: u64,
    /// Messages and connections that got no answer: what is no question, answers that its asker had no room for, and clients
    /// beyond the limit.
    pub dropped: u64,
}

/// From the resolver.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Reply {
    /// Its version.
    pub(super) version: u32,
    /// Ids of the containers that it serves, in answer to `Hello`.
    #[serde(default)]
    pub(super) serves: Vec<String>,
    /// In answer to `Held`; the sockets come along.
    #[serde(default)]
    pub(super) holds: Vec<HeldPort>,
    /// In answer to `Count`.
    #[serde(default)]
    pub(super) counters: Counters,
    /// Why it couldn't.
    #[serde(default)]
    pub(super) error: Option<String>,
}
