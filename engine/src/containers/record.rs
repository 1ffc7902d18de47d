//! What the engine remembers of a container: the intent, and the last known state.

use super::health::Health;
use crate::{
    api::{Config, HostConfig},
    networks::Endpoint,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A container as it is kept in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// 64 hex digits.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The image's id (digest of its config).
    pub image_id: String,
    /// Digest of the image's manifest.
    pub image_digest: String,
    /// Name of the image's topmost snapshot; empty for an image without layers.
    #[serde(default)]
    pub chain_id: String,
    /// The snapshotter that holds its root file system: for good, whichever the engine uses for others later.
    #[serde(default = "first_snapshotter")]
    pub snapshotter: String,
    /// The command and its environment, merged with the image's.
    pub config: Config,
    /// How it is tied to the host.
    pub host: HostConfig,
    /// MAC address asked for on the network, if any.
    #[serde(default)]
    pub mac: Option<String>,
    /// IPv4 address asked for.
    #[serde(default)]
    pub ip: Option<String>,
    /// The networks it joins, the one of its mode first. Records of older engines have none: see [`super::networking`].
    #[serde(default)]
    pub networks: Vec<Joining>,
    /// First word of the command line.
    pub path: String,
    /// The other words.
    pub args: Vec<String>,
    /// Mounts that the user or the image asked for.
    pub mounts: Vec<MountPoint>,
    /// Whether the supervisor has a container record of it.
    #[serde(default)]
    pub registered: bool,
    /// Its limits have been changed, and the kernel may not know yet.
    #[serde(default)]
    pub update_pending: bool,
    /// Last known state.
    pub state: State,
}

// The only one that engines used before records had the field.
fn first_snapshotter() -> String {
    "overlayfs".into()
}

/// A network that a container joins, and what it wants there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Joining {
    /// The network's name, or what the user calls it while it doesn't exist.
    pub name: String,
    /// Its id, once it was found.
    pub id: String,
    /// A certain IPv4 address.
    pub ip: Option<String>,
    /// A certain IPv6 address.
    pub ip6: Option<String>,
    /// A certain MAC address.
    pub mac: Option<String>,
    /// Further names in the network.
    pub aliases: Option<Vec<String>>,
    /// `container:alias` pairs: names that only this container uses.
    pub links: Option<Vec<String>>,
    /// Options of the driver.
    pub driver_opts: Option<BTreeMap<String, String>>,
    /// The network with the highest one is the way out.
    pub gateway_priority: i64,
}

/// Where a container is in its life.
///
/// ```text
/// Created ──start──▶ Running ◀──▶ Paused
///    │                │   ▲
///    │              exit  └──start── Restarting (waits for its next start)
///    │                ▼                  ▲
///    │              Exited ──policy──────┘
///    └───remove──▶ Removing ◀──remove── Exited
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Never started.
    Created,
    /// Its process lives.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Ended, and the restart policy will start it again.
    Restarting,
    /// Ended.
    Exited,
    /// Being taken apart.
    Removing,
}

impl Phase {
    /// `State.Status` of the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
        }
    }

    /// Whether a process lives.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Last known state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Where in its life.
    pub phase: Phase,
    /// Pid of the first process, 0 when none lives.
    pub pid: u32,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// Why the last start failed.
    pub error: String,
    /// Whether the kernel killed for want of memory in the last run.
    pub oom_killed: bool,
    /// When the last start was about to happen; on disk before the process can live.
    #[serde(default)]
    pub launched_at: Timestamp,
    /// Last start.
    pub started_at: Timestamp,
    /// Last end.
    pub finished_at: Timestamp,
    /// Restarts by policy since the user last started it.
    pub restart_count: u32,
    /// The user stopped it: policies other than `always` leave it alone.
    pub manually_stopped: bool,
    /// Its place in the network while it runs.
    pub endpoint: Option<Endpoint>,
    /// Its anonymous volumes go with it; said while it is being removed.
    #[serde(default)]
    pub takes_volumes: bool,
    /// A commit has frozen it, and thaws it: the next engine does, should this one die in between.
    #[serde(default)]
    pub frozen_by_commit: bool,
    /// The profile of AppArmor that its processes run under since the last start, or `unconfined`; none where there is no AppArmor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apparmor: Option<String>,
    /// What its health checks say; nothing if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

impl State {
    /// Of a container that never ran.
    pub fn created() -> Self {
        Self {
            phase: Phase::Created,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            launched_at: Timestamp::NEVER,
            started_at: Timestamp::NEVER,
            finished_at: Timestamp::NEVER,
            restart_count: 0,
            manually_stopped: false,
            endpoint: None,
            takes_volumes: false,
            frozen_by_commit: false,
            apparmor: None,
            health: None,
        }
    }
}

/// Something mounted into a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// bind, volume, tmpfs or image.
    pub kind: MountKind,
    /// Name of the volume.
    pub volume: Option<String>,
    /// Who keeps that volume; empty for the local driver.
    #[serde(default)]
    pub driver: String,
    /// On the host.
    pub source: String,
    /// In the container.
    pub destination: String,
    /// The mode as it was written (`ro`, `z`).
    pub mode: String,
    /// Whether it can be written to.
    pub writable: bool,
    /// Mount propagation.
    pub propagation: String,
    /// Without the mounts below the source.
    #[serde(default)]
    pub non_recursive: bool,
    /// The volume has no name of the user's and goes with its container.
    #[serde(default)]
    pub anonymous: bool,
    /// Options of a tmpfs.
    #[serde(default)]
    pub options: Vec<String>,
    /// What is mounted below is read-only too.
    #[serde(default)]
    pub read_only_tree: bool,
    /// Path below the source that is mounted in its place.
    #[serde(default)]
    pub subpath: String,
    /// The snapshot that an image is seen through.
    #[serde(default)]
    pub snapshot: Option<String>,
}

impl MountPoint {
    /// The driver of its volume.
    pub fn volume_driver(&self) -> &str {
        if self.driver.is_empty() { crate::volumes::LOCAL } else { &self.driver }
    }

    /// Whether a plugin keeps the volume.
    pub fn is_driven(&self) -> bool {
        self.volume.is_some() && self.volume_driver() != crate::volumes::LOCAL
    }
}

/// The kinds of mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    #[default]
    Bind,
    /// A volume.
    Volume,
    /// Memory.
    Tmpfs,
    /// The files of an image.
    Image,
}

impl MountKind {
    /// Name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
            Self::Image => "image",
        }
    }
}
