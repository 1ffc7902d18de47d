//! Failures of calls to the supervisor.

use proto::kind::ErrorKind;
use std::error::Error as _;

/// Why a call to the supervisor gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SupervisorError {
    /// The supervisor answered with an error; the text is its own.
    #[error("{message}")]
    Refused {
        /// What the status code stands for.
        kind: ErrorKind,
        /// The supervisor's words.
        message: String,
    },
    /// Nobody listens on the socket; nothing was sent.
    #[error("supervisor unreachable: {0}")]
    Away(String),
    /// The connection broke while the call was under way: it may or may not have taken effect.
    #[error("connection to the supervisor lost: {0}")]
    Lost(String),
    /// The supervisor sent something that this version doesn't understand.
    #[error("unexpected answer from the supervisor: {0}")]
    Protocol(String),
}

impl SupervisorError {
    /// What kind of failure this is. `Unimplemented` if the peer doesn't have the service or method, as a containerd lacks
    /// Berth's own.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Away(_) | Self::Lost(_) => ErrorKind::Unavailable,
            Self::Protocol(_) => ErrorKind::Internal,
        }
    }

    /// Whether the object named in the call doesn't exist.
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }

    /// Whether the supervisor was away, or went away before it answered.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Lost(_))
    }
}

impl From<tonic::Status> for SupervisorError {
    fn from(status: tonic::Status) -> Self {
        // A status that came over the wire has no source; one that tonic made of a transport failure has.
        let Some(source) = status.source() else {
            let message = status.message().replace(['\n', '\r'], " ");
            // tonic reports a stream that ended without trailers this way; servers say Unavailable themselves, but
            // then with a message of theirs.
            return match status.code() {
                tonic::Code::Unknown | tonic::Code::Internal if broken_stream(&message) => Self::Lost(message),
                // What a server without the service or method answers.
                tonic::Code::Unimplemented if message.is_empty() => Self::Refused {
                    kind: ErrorKind::Unimplemented,
                    message: "the supervisor does not have this service".into(),
                },
                code if message.is_empty() => {
                    Self::Refused { kind: ErrorKind::from_grpc(code), message: code.description().into() }
                }
                code => Self::Refused { kind: ErrorKind::from_grpc(code), message },
            };
        };
        let (mut deepest, mut connecting) = (source, false);
        loop {
            connecting |= deepest.is::<super::connect::ConnectError>();
            match deepest.source() {
                Some(inner) => deepest = inner,
                None => break,
            }
        }
        if connecting { Self::Away(deepest.to_string()) } else { Self::Lost(deepest.to_string()) }
    }
}

fn broken_stream(message: &str) -> bool {
    message.starts_with("h2 protocol error") || message.contains("transport error")
}
