//! Snapshots: committed layers form a tree, active ones are writable (containerd, `snapshots`).
//!
//! ```text
//! prepare ──▶ active ──commit──▶ committed ──▶ parent of others
//! view ─────▶ view (read-only)                   remove: only while nothing stands on it
//! ```

//!
//! `driver` is how layers are kept (`overlay`, `native`, `btrfs`), `snapshotter` what all of them have in common: records,
//! names, who stands on whom; `stack` is the layers of an image at once. `set` is the snapshotters of this supervisor.

mod btrfs;
mod driver;
mod folders;
mod ids;
mod native;
mod overlay;
mod records;
mod set;
mod snapshotter;
mod stack;
#[cfg(test)]
mod tests;

use proto::kind::ErrorKind;
use serde::{Deserialize, Serialize};

pub(crate) use ids::{GID_MAP, UID_MAP};
pub(crate) use records::{SNAPSHOTS, full, remove_in, split};
pub(crate) use set::{DRIVERS, SnapshotConfig, Snapshotters, State};
pub(crate) use snapshotter::Snapshotter;
pub(crate) use stack::{Apart, LAYER, Layered};

use crate::{
    failure::Failure,
    filters::FilterError,
    layers::{copy::CopyError, place::PlaceError},
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
    /// Its folder is not complete yet: nobody can use it, and the next start removes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) making: bool,
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
    /// It is being made by another request.
    #[error("snapshot {0:?} is still being made; try again")]
    Making(String),
    /// No such snapshotter.
    #[error("snapshotter {0:?} is not known: there are overlayfs, native and btrfs")]
    Unknown(String),
    /// It can't be used here.
    #[error("snapshotter {name:?} is not loaded: {reason}")]
    Skipped {
        /// Its name.
        name: &'static str,
        /// Why, and what can be done.
        reason: String,
    },
    /// The one that the configuration wants can't be used.
    #[error("snapshotter {name:?}, the default by the configuration, can't be used: {reason}")]
    Default {
        /// Its name.
        name: &'static str,
        /// Why, and what can be done.
        reason: String,
    },
    /// The request names none.
    #[error("snapshotter argument missing")]
    NoName,
    /// Copying what it stands on failed.
    #[error("copy the parent of snapshot {key:?}")]
    Copy {
        /// Its key.
        key: String,
        /// What went wrong.
        #[source]
        cause: CopyError,
    },
    /// Its mounts can't be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
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
            Self::NotActive(_)
            | Self::HasChildren { .. }
            | Self::NoMounts(_)
            | Self::TooManyLayers { .. }
            | Self::Default { .. } => ErrorKind::FailedPrecondition,
            Self::NotCommitted(_)
            | Self::Unknown(_)
            | Self::Skipped { .. }
            | Self::NoName
            | Self::Invalid(_)
            | Self::Filter(_) => ErrorKind::InvalidArgument,
            Self::Making(_) => ErrorKind::Unavailable,
            Self::Copy { cause, .. } => ErrorKind::of_io(&cause.cause.into()),
            Self::Place(error) => error.kind(),
            Self::Io { cause, .. } => ErrorKind::of_io(cause),
            Self::Store(error) => error.kind(),
        }
    }
}
