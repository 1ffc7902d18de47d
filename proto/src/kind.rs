//! What kind of failure an error is, and how each edge says it. One table, so that no edge invents its own.

/// The kinds of failure that cross a process boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong, whatever the state.
    InvalidArgument,
    /// The object named does not exist.
    NotFound,
    /// The name or id is taken.
    AlreadyExists,
    /// The object is in the wrong state for this.
    FailedPrecondition,
    /// Refused: credentials or permissions are missing.
    PermissionDenied,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// Disk, memory, descriptors or another quota is used up.
    ResourceExhausted,
    /// The other side isn't there at the moment; trying again may help.
    Unavailable,
    /// It took too long.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// Data is corrupt: a digest, a record, an archive.
    DataLoss,
    /// Berth doesn't do this (yet).
    Unimplemented,
    /// Everything unexpected.
    Internal,
}

impl ErrorKind {
    /// Every kind, for tables in tests.
    pub const ALL: [Self; 13] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::PermissionDenied,
        Self::Unauthenticated,
        Self::ResourceExhausted,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::DataLoss,
        Self::Unimplemented,
        Self::Internal,
    ];

    /// The gRPC status code for this kind (gRPC, `statuscodes.md`).
    pub fn to_grpc(self) -> tonic::Code {
        match self {
            Self::InvalidArgument => tonic::Code::InvalidArgument,
            Self::NotFound => tonic::Code::NotFound,
            Self::AlreadyExists => tonic::Code::AlreadyExists,
            Self::FailedPrecondition => tonic::Code::FailedPrecondition,
            Self::PermissionDenied => tonic::Code::PermissionDenied,
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::ResourceExhausted => tonic::Code::ResourceExhausted,
            Self::Unavailable => tonic::Code::Unavailable,
            Self::DeadlineExceeded => tonic::Code::DeadlineExceeded,
            Self::Cancelled => tonic::Code::Cancelled,
            Self::DataLoss => tonic::Code::DataLoss,
            Self::Unimplemented => tonic::Code::Unimplemented,
            Self::Internal => tonic::Code::Internal,
        }
    }

    /// The kind that a gRPC status code stands for; codes that say nothing more are `Internal`.
    pub fn from_grpc(code: tonic::Code) -> Self {
        match code {
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Self::InvalidArgument,
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::AlreadyExists => Self::AlreadyExists,
            tonic::Code::FailedPrecondition | tonic::Code::Aborted => Self::FailedPrecondition,
            tonic::Code::PermissionDenied => Self::PermissionDenied,
            tonic::Code::Unauthenticated => Self::Unauthenticated,
            tonic::Code::ResourceExhausted => Self::ResourceExhausted,
            tonic::Code::Unavailable => Self::Unavailable,
            tonic::Code::DeadlineExceeded => Self::DeadlineExceeded,
            tonic::Code::Cancelled => Self::Cancelled,
            tonic::Code::DataLoss => Self::DataLoss,
            tonic::Code::Unimplemented => Self::Unimplemented,
            tonic::Code::Ok | tonic::Code::Unknown | tonic::Code::Internal => Self::Internal,
        }
    }

    /// The kind that fits a failed system call.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::AlreadyExists => Self::AlreadyExists,
            Io::PermissionDenied => Self::PermissionDenied,
            Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory => Self::ResourceExhausted,
            Io::TimedOut => Self::DeadlineExceeded,
            Io::ConnectionRefused | Io::NotConnected | Io::BrokenPipe | Io::ConnectionReset => Self::Unavailable,
            Io::InvalidInput => Self::InvalidArgument,
            Io::InvalidData | Io::UnexpectedEof => Self::DataLoss,
            _ => Self::Internal,
        }
    }
}

/// Writes an error and everything that caused it on one line: `create web: mount proc on /proc: EPERM`.
///
/// Newlines inside messages become spaces, so that one error stays one line in logs and answers.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // A wrapper that repeats its cause in its own text adds nothing.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = inner.source();
    }
    line.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_grpc() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_grpc(kind.to_grpc()), kind);
        }
    }

    #[test]
    fn chain_is_one_line_and_does_not_repeat() {
        #[derive(Debug, thiserror::Error)]
        #[error("read\nfile")]
        struct Inner;
        #[derive(Debug, thiserror::Error)]
        #[error("load web")]
        struct Outer(#[source] Inner);
        assert_eq!(chain(&Outer(Inner)), "load web: read file");
    }
}
