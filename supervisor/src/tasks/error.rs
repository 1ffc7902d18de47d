//! What can go wrong with a task, in one list for all commands.

use std::{io, path::PathBuf, time::Duration};

use proto::{
    id::{ContainerId, ExecId, IdError},
    kind::ErrorKind,
};

use super::{
    bundle::BundleError, checkpoint::CheckpointError, rules::Refusal, runtimes::RuntimeError, shims::ShimError,
};
use crate::{containers::ContainerError, failure::Failure, filters::FilterError};

/// Why a task can't be had or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// An id isn't one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No such task.
    #[error("task {0}: not found")]
    NotFound(String),
    /// No such process in a task whose shim is gone.
    #[error("task {id}: process {exec}: not found")]
    ProcessNotFound {
        /// The container.
        id: ContainerId,
        /// The process.
        exec: ExecId,
    },
    /// The container has a task already.
    #[error("task {0}: already exists")]
    Exists(ContainerId),
    /// The state forbids it.
    #[error("task {id}: {refusal}")]
    Refused {
        /// The container.
        id: ContainerId,
        /// Which rule.
        refusal: Refusal,
    },
    /// The container record.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A filter that can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The record's spec isn't an OCI spec in JSON.
    #[error("container {id}: spec of type {type_url:?} is not an OCI runtime spec in JSON")]
    Spec {
        /// The container.
        id: ContainerId,
        /// What it is.
        type_url: String,
    },
    /// Which shim serves the runtime.
    #[error("container {id}")]
    Runtime {
        /// The container.
        id: ContainerId,
        /// Why.
        #[source]
        cause: RuntimeError,
    },
    /// The bundle's folder.
    #[error("task {id}")]
    Bundle {
        /// The container.
        id: ContainerId,
        /// Why.
        #[source]
        cause: BundleError,
    },
    /// The shim doesn't start, or can't be reached.
    #[error("task {id}")]
    Shim {
        /// The container.
        id: ContainerId,
        /// Why.
        #[source]
        cause: ShimError,
    },
    /// A checkpoint can't be kept or used.
    #[error("task {id}")]
    Checkpoint {
        /// The container.
        id: ContainerId,
        /// Why.
        #[source]
        cause: CheckpointError,
    },
    /// The shim refused; its words and its code are passed on.
    #[error("{}", .0.message())]
    Answer(Box<tonic::Status>),
    /// The shim went away during the call.
    #[error("task {id}: its shim went away during {call}")]
    ShimGone {
        /// The container.
        id: ContainerId,
        /// The call.
        call: &'static str,
    },
    /// The shim doesn't answer.
    #[error("task {id}: its shim did not answer {call} within {} s; it is stopped or stuck, and killing it ends the container", .limit.as_secs())]
    ShimSilent {
        /// The container.
        id: ContainerId,
        /// The call.
        call: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// We end.
    #[error("supervisor is shutting down")]
    Draining,
    /// Folders of tasks can't be listed.
    #[error("read tasks in {at}")]
    Scan {
        /// The folder.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A bug ended the request.
    #[error("task {id}: the request met a bug and was abandoned")]
    Panic {
        /// The container.
        id: ContainerId,
    },
}

impl Failure for TaskError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Id(_) | Self::Filter(_) | Self::Spec { .. } => ErrorKind::InvalidArgument,
            Self::NotFound(_) | Self::ProcessNotFound { .. } => ErrorKind::NotFound,
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::Refused { refusal, .. } => refusal.kind(),
            Self::Container(error) => error.kind(),
            Self::Runtime { cause, .. } => cause.kind(),
            Self::Bundle { cause, .. } => cause.kind(),
            Self::Shim { cause, .. } => cause.kind(),
            Self::Checkpoint { cause, .. } => cause.kind(),
            Self::Answer(status) => ErrorKind::from_grpc(status.code()),
            Self::ShimGone { .. } | Self::Draining => ErrorKind::Unavailable,
            Self::ShimSilent { .. } => ErrorKind::DeadlineExceeded,
            Self::Scan { cause, .. } => ErrorKind::of_io(cause),
            Self::Panic { .. } => ErrorKind::Internal,
        }
    }
}
