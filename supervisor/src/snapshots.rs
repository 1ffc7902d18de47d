//! Snapshots: committed layers form a tree, active ones are writable (containerd, `snapshots`).
//!
//! ```text
//! prepare ──▶ active ──commit──▶ committed ──▶ parent of others
//! view ─────▶ view (read-only)                   remove: only while nothing stands on it
//! ```

mod overlay;

use proto::{containerd::types::Mount, kind::ErrorKind};
use serde::{Deserialize, Serialize};

pub(crate) use overlay::{Overlay, SNAPSHOTS};

use crate::{
    failure::Failure,
    filters::FilterError,
    layers::apply::Target,
    store::{Labels, StoreError, Time},
};

/// What a snapshot may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Read-only.
    View,
    /// Writable.
    Active,
    /// Fixed; others may stand on it.
    Committed,
}

/// A snapshot as it is recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Number of its folder.
    pub(crate) id: u64,
    /// What it may be used for.
    pub(crate) kind: Kind,
    /// Key of the snapshot it stands on.
    pub(crate) parent: Option<String>,
    /// Folders of everything below, nearest first.
    pub(crate) chain: Vec<u64>,
    /// How many snapshots stand on it.
    pub(crate) children: u32,
    /// When it was made.
    pub(crate) created_at: Time,
    /// When it was last changed.
    pub(crate) updated_at: Time,
    /// Its labels.
    pub(crate) labels: Labels,
    /// Its size, once committed.
    pub(crate) usage: Usage,
}

/// What a snapshot takes, without what it stands on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Files and directories.
    pub(crate) inodes: u64,
}

/// Why a snapshot could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// No such snapshot.
    #[error("snapshot {0:?}: not found")]
    NotFound(String),
    /// The key is taken.
    #[error("snapshot {0:?}: already exists")]
    Exists(String),
    /// The lease of the request has ended, or never was.
    #[error("lease {0:?}: not found")]
    NoLease(String),
    /// The parent isn't committed.
    #[error("parent snapshot {0:?} is not committed")]
    NotCommitted(String),
    /// Only active snapshots can be committed.
    #[error("snapshot {0:?} is not active")]
    NotActive(String),
    /// Others stand on it.
    #[error("snapshot {key:?} can't be removed: {children} snapshots stand on it")]
    HasChildren {
        /// Its key.
        key: String,
        /// How many.
        children: u32,
    },
    /// A committed snapshot is not for mounting.
    #[error("snapshot {0:?} is committed and has no mounts; prepare or view one on it")]
    NoMounts(String),
    /// The mount's options don't fit into what mount(2) takes.
    #[error("snapshot {key:?} stands on {layers} layers, more than overlayfs can mount from here")]
    TooManyLayers {
        /// Its key.
        key: String,
        /// How many layers.
        layers: usize,
    },
    /// No such driver.
    #[error("snapshotter {0:?} is not loaded: only \"overlayfs\" is")]
    Driver(String),
    /// The request can't be carried out.
    #[error("{0}")]
    Invalid(String),
    /// A filter that can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A folder failed.
    #[error("{what}")]
    Io {
        /// What was tried, on which object.
        what: String,
        /// Why it failed.
        #[source]
        cause: std::io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for SnapshotError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::NoLease(_) => ErrorKind::NotFound,
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::NotActive(_) | Self::HasChildren { .. } | Self::NoMounts(_) | Self::TooManyLayers { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::NotCommitted(_) | Self::Driver(_) | Self::Invalid(_) | Self::Filter(_) => ErrorKind::InvalidArgument,
            Self::Io { cause, .. } => ErrorKind::of_io(cause),
            Self::Store(error) => error.kind(),
        }
    }
}

/// A way to keep layers: overlayfs today; copies, where overlayfs can't be had, may come.
pub(crate) trait Snapshotter: Send + Sync {
    /// Makes a writable snapshot on `parent` (none if empty).
    fn prepare(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, SnapshotError>;
    /// Makes a read-only snapshot on `parent`.
    fn view(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, SnapshotError>;
    /// How to mount a writable or read-only snapshot.
    fn mounts(&self, namespace: &str, key: &str) -> Result<Vec<Mount>, SnapshotError>;
    /// Fixes an active snapshot under its final name.
    fn commit(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<(), SnapshotError>;
    /// Removes a snapshot on which nothing stands.
    fn remove(&self, namespace: &str, key: &str) -> Result<(), SnapshotError>;
    /// What is recorded about a snapshot.
    fn stat(&self, namespace: &str, key: &str) -> Result<Record, SnapshotError>;
    /// Changes labels as the field mask asks; an empty mask replaces all.
    fn update(&self, namespace: &str, key: &str, labels: &Labels, paths: &[String]) -> Result<Record, SnapshotError>;
    /// The snapshots of a namespace that pass the filters.
    fn list(&self, namespace: &str, filters: &[String]) -> Result<Vec<(String, Record)>, SnapshotError>;
    /// What a snapshot takes.
    fn usage(&self, namespace: &str, key: &str) -> Result<Usage, SnapshotError>;
    /// Removes folders that belong to no snapshot.
    fn cleanup(&self) -> Result<(), SnapshotError>;
    /// Where a layer is unpacked for an active snapshot.
    fn target(&self, namespace: &str, key: &str) -> Result<Target, SnapshotError>;
}
