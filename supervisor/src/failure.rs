//! How the errors of the supervisor's modules become gRPC answers: each has a kind, and one function makes the status.

use proto::{
    id::NamespaceName,
    kind::{ErrorKind, chain},
};
use tonic::{Code, Request, Status};

/// Metadata key that carries the namespace (containerd, `namespaces`).
pub(crate) const NAMESPACE_HEADER: &str = "containerd-namespace";
/// Metadata key that carries the lease under which resources are made (containerd, `leases`).
pub(crate) const LEASE_HEADER: &str = "containerd-lease";

/// An error that knows what kind of failure it is.
pub(crate) trait Failure: std::error::Error {
    /// The kind, from which each edge takes its code.
    fn kind(&self) -> ErrorKind;
}

/// Most bytes that the message of a status has. It travels in a header, percent-encoded, and clients end the connection over headers
/// of more than 16 KiB.
const LONGEST_MESSAGE: usize = 4000;

/// The gRPC status of an error, with the whole chain of causes on one line.
pub(crate) fn status(error: impl Failure) -> Status {
    Status::new(error.kind().to_grpc(), brief(chain(&error)))
}

/// The beginning of a message that is too long.
pub(crate) fn brief(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        message.push('…');
    }
    message
}

/// The namespace of a request; without one nothing can be looked up.
pub(crate) fn namespace<T>(request: &Request<T>) -> Result<NamespaceName, Status> {
    let value = request.metadata().get(NAMESPACE_HEADER).ok_or_else(|| {
        Status::new(Code::FailedPrecondition, "namespace is required: the containerd-namespace header is missing")
    })?;
    let text = value.to_str().map_err(|_| Status::invalid_argument("namespace header is not text"))?;
    NamespaceName::new(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The lease under which a request is made, if it names one.
pub(crate) fn lease<T>(request: &Request<T>) -> Option<String> {
    request.metadata().get(LEASE_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Runs work that touches the disk on a thread where waiting is allowed.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, Status>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Status> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(Status::internal("the request met a bug and was abandoned")),
        Err(_) => Err(Status::unavailable("the supervisor is stopping")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_an_end() {
        assert_eq!(brief("short".into()), "short");
        let long = brief("é".repeat(5000));
        assert!(long.len() < 4096 && long.ends_with("é…"), "{}", long.len());
    }
}
