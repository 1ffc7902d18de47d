//! Everything that can go wrong with a request, and how gRPC says it.

use std::{io, path::PathBuf};

use proto::{
    id::IdError,
    kind::{ErrorKind, chain},
};

use crate::{io::IoError, mounts::MountError, oci::OciError, rules::Refusal};

/// Why a request about a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// A name that isn't one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No such container here.
    #[error("container {0} not found")]
    NoContainer(String),
    /// No such exec.
    #[error("exec {exec} of container {container} not found")]
    NoExec {
        /// Where it was looked for.
        container: String,
        /// What was looked for.
        exec: String,
    },
    /// The name is taken.
    #[error("{what} {id} already exists")]
    Exists {
        /// Container or exec.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// It doesn't fit the state.
    #[error("{op} {id}: {refusal}")]
    Refused {
        /// What was asked for.
        op: &'static str,
        /// Of whom.
        id: String,
        /// Why not.
        refusal: Refusal,
    },
    /// The OCI runtime failed.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The root filesystem couldn't be (un)mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Stdio couldn't be set up.
    #[error("stdio of {id}")]
    Io {
        /// Whose.
        id: String,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// A signal couldn't be sent.
    #[error("signal {id}: process already finished")]
    Gone {
        /// Whom.
        id: String,
    },
    /// A signal couldn't be sent for another reason.
    #[error("signal {id}")]
    Signal {
        /// Whom.
        id: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A file of the bundle couldn't be read or written.
    #[error("{file}")]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The shim doesn't do this.
    #[error("{0} is not supported by berth-shim")]
    Unsupported(&'static str),
    /// The container has no cgroup of its own.
    #[error("container {0} has no cgroup of its own to read")]
    NoCgroup(String),
    /// Too many events wait.
    #[error(
        "container {0}: {limit} events wait for a supervisor that does not take them; start it, then try again",
        limit = crate::events::LIMIT
    )]
    Backlog(String),
    /// The shim is on its way out.
    #[error("the shim is ending")]
    Ending,
}

impl TaskError {
    /// What kind of failure it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Id(_) | Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::NoContainer(_) | Self::NoExec { .. } | Self::Gone { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::Refused { refusal, .. } => refusal.kind,
            Self::Oci(cause) => cause.kind(),
            Self::Mount(cause) => cause.kind(),
            Self::Io { cause, .. } => cause.kind(),
            Self::Signal { cause, .. } | Self::File { cause, .. } => ErrorKind::of_io(cause),
            Self::Unsupported(_) => ErrorKind::Unimplemented,
            Self::NoCgroup(_) => ErrorKind::FailedPrecondition,
            Self::Backlog(_) => ErrorKind::ResourceExhausted,
            Self::Ending => ErrorKind::Unavailable,
        }
    }
}

impl From<TaskError> for tonic::Status {
    fn from(error: TaskError) -> Self {
        Self::new(error.kind().to_grpc(), chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_with_its_cause() {
        let cause = IoError::Open { stream: "stdout", path: "/x".into(), cause: io::Error::from_raw_os_error(2) };
        let status = tonic::Status::from(TaskError::Io { id: "web".into(), cause });
        assert_eq!(status.code(), tonic::Code::NotFound);
        assert_eq!(status.message(), "stdio of web: open /x for stdout: No such file or directory (os error 2)");
    }
}
