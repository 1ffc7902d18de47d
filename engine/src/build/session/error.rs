//! Failures of calls to a client's session.

use proto::kind::ErrorKind;
use std::time::Duration;

/// Why a session gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A client announces what can't be a session.
    #[error("{0}")]
    Invalid(String),
    /// The id is taken.
    #[error("session {0} already exists")]
    Exists(String),
    /// Nobody is there under this id.
    #[error("no active session for {0}: the client has gone, or never came")]
    Missing(String),
    /// A build that has none at all.
    #[error("the build has no session: its client can't be asked for {0}")]
    None(&'static str),
    /// The client doesn't serve this.
    #[error("the client does not serve {0}")]
    Unsupported(String),
    /// The client went away in the middle of a call.
    #[error("the client of the build has gone: {0}")]
    Gone(String),
    /// The client said no.
    #[error("{what}: {message}")]
    Refused {
        /// What it was asked.
        what: String,
        /// What its status code stands for.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
    /// The client didn't answer.
    #[error("{what}: the client did not answer within {} s", limit.as_secs())]
    Late {
        /// What it was asked.
        what: String,
        /// How long it had.
        limit: Duration,
    },
    /// The client's answer is beyond what is taken.
    #[error("{what}: {size} bytes are more than the {limit} that are allowed")]
    Large {
        /// What it was asked.
        what: String,
        /// What it sent.
        size: usize,
        /// What it may send.
        limit: usize,
    },
    /// A folder of the client's.
    #[error("{what}")]
    Files {
        /// Which.
        what: String,
        /// What went wrong.
        #[source]
        cause: filesync::receive::ReceiveError,
    },
    /// A folder for the client.
    #[error("{what}")]
    Export {
        /// Which.
        what: String,
        /// What went wrong.
        #[source]
        cause: filesync::send::SendError,
    },
    /// A file of ours, or a socket.
    #[error("{what}")]
    Local {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        cause: std::io::Error,
    },
}

impl SessionError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) | Self::None(_) => ErrorKind::InvalidArgument,
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::Missing(_) => ErrorKind::NotFound,
            Self::Unsupported(_) => ErrorKind::Unimplemented,
            Self::Gone(_) => ErrorKind::Unavailable,
            Self::Refused { kind, .. } => *kind,
            Self::Late { .. } => ErrorKind::DeadlineExceeded,
            Self::Large { .. } => ErrorKind::ResourceExhausted,
            Self::Files { .. } | Self::Export { .. } | Self::Local { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the client is there, but not for this: another session of the build may be.
    pub fn is_not_served(&self) -> bool {
        matches!(self.kind(), ErrorKind::NotFound | ErrorKind::Unimplemented)
    }

    /// What a call's status says. A status that tonic made of a broken connection has a source, one of the client's hasn't.
    pub(super) fn of(what: impl Into<String>, status: &tonic::Status) -> Self {
        let source = std::error::Error::source(status);
        if source.is_some() || (status.code() == tonic::Code::Unknown && status.message().contains("h2 protocol error"))
        {
            return Self::Gone(source.map_or_else(|| status.message().into(), proto::kind::chain));
        }
        let message = match status.message() {
            "" => status.code().description().to_owned(),
            text => text.replace(['\n', '\r'], " "),
        };
        Self::Refused { what: what.into(), kind: ErrorKind::from_grpc(status.code()), message }
    }
}
