//! Why a call about sandboxes or containers fails.

use std::{io, path::PathBuf, time::Duration};

use proto::{id::IdError, kind::ErrorKind};

use super::{
    checkpoint::CheckpointError, cni::CniError, images::ImagesError, nri::NriError, relays::RelayError,
    spec::SpecError, status::UnknownHandler, streaming::StreamingError,
};
use crate::{
    containers::ContainerError,
    failure::Failure,
    leases::LeaseError,
    snapshots::SnapshotError,
    store::StoreError,
    tasks::{RuntimeError, TaskError},
};

/// Why a call about sandboxes or containers fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CriError {
    /// A field that must be there.
    #[error("{0} is required")]
    Missing(&'static str),
    /// A field that can't be what it is.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{what} {id:?}: not found")]
    NotFound {
        /// Sandbox, container, image.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// Several ids begin so.
    #[error("{what} {id:?} is ambiguous: several ids begin so")]
    Ambiguous {
        /// Sandbox or container.
        what: &'static str,
        /// What was given.
        id: String,
    },
    /// The name is another's.
    #[error("{what} {name}: the name is taken by {other}, which is another one")]
    NameTaken {
        /// Sandbox or container.
        what: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        other: String,
    },
    /// Not in this state.
    #[error("{what} {id}: {why}")]
    State {
        /// Sandbox or container.
        what: &'static str,
        /// Its id.
        id: String,
        /// What forbids it.
        why: String,
    },
    /// The pod can't have users of its own.
    #[error("no user namespace can be had under handler {handler:?}: {why}")]
    NoUserNamespaces {
        /// The handler.
        handler: String,
        /// What it lacks, or the kernel.
        why: String,
    },
    /// A file or namespace of a sandbox.
    #[error("sandbox {id}: {what} {}", .at.display())]
    Io {
        /// Its id.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Where.
        at: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// It goes on and on.
    #[error("container {id}: still there {} s after SIGKILL", .limit.as_secs())]
    Immortal {
        /// The container.
        id: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The handler.
    #[error(transparent)]
    Handler(#[from] UnknownHandler),
    /// The network.
    #[error("sandbox {id}")]
    Network {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: Box<CniError>,
    },
    /// A plugin.
    #[error("{id}")]
    Nri {
        /// Its id, or that of the sandbox.
        id: String,
        /// Why.
        #[source]
        cause: Box<NriError>,
    },
    /// The specification.
    #[error("container {id}")]
    Spec {
        /// Its id, or that of the sandbox.
        id: String,
        /// Why.
        #[source]
        cause: SpecError,
    },
    /// A further process, or the way to it.
    #[error(transparent)]
    Streaming(#[from] StreamingError),
    /// The image.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// containerd's record.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The process.
    #[error("container {id}")]
    Task {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: Box<TaskError>,
    },
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The relay of a container under somebody else's shim.
    #[error("container {id}")]
    Relay {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: RelayError,
    },
    /// Our own shim.
    #[error("{0}")]
    Runtime(&'static str, #[source] RuntimeError),
    /// A bug ended it.
    #[error("the request met a bug and was abandoned")]
    Panic,
}

impl CriError {
    /// A failure of a container's task.
    pub(super) fn task(id: &str) -> impl Fn(TaskError) -> Self + use<> {
        let id = id.to_owned();
        move |cause| Self::Task { id: id.clone(), cause: Box::new(cause) }
    }
}

impl Failure for CriError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing(_) | Self::Invalid(_) | Self::Ambiguous { .. } | Self::Id(_) => ErrorKind::InvalidArgument,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::NameTaken { .. } => ErrorKind::AlreadyExists,
            Self::State { .. } | Self::NoUserNamespaces { .. } => ErrorKind::FailedPrecondition,
            Self::Io { cause, .. } => ErrorKind::of_io(cause),
            Self::Immortal { .. } => ErrorKind::DeadlineExceeded,
            Self::Handler(error) => error.kind(),
            Self::Network { cause, .. } => cause.kind(),
            Self::Nri { cause, .. } => cause.kind(),
            Self::Spec { cause, .. } => cause.kind(),
            Self::Streaming(error) => error.kind(),
            Self::Images(error) => error.kind(),
            Self::Container(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Lease(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Task { cause, .. } => cause.kind(),
            Self::Checkpoint(error) => error.kind(),
            Self::Relay { cause, .. } => cause.kind(),
            Self::Runtime(_, cause) => cause.kind(),
            Self::Panic => ErrorKind::Internal,
        }
    }
}
