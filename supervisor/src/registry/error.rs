//! Why a registry did not give or take something.

use std::time::Duration;

use hyper::StatusCode;
use proto::{digest::Digest, kind::ErrorKind};

use super::{connect::ConnectError, hosts::HostsError};
use crate::{content::ContentError, failure::Failure, images::manifest::ManifestError};

/// Why something could not be had from a registry, or be brought there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// The registry doesn't know the image.
    #[error("manifest for {image} not found{detail}")]
    NoManifest {
        /// The image asked for.
        image: String,
        /// What the registry says.
        detail: String,
    },
    /// The registry doesn't know the repository.
    #[error("repository {image} not found{detail}")]
    NoRepository {
        /// The repository asked for.
        image: String,
        /// What the registry says.
        detail: String,
    },
    /// The registry has the manifest, but not the blob.
    #[error("blob {digest} of {image} not found{detail}")]
    NoBlob {
        /// The image asked for.
        image: String,
        /// The blob.
        digest: Digest,
        /// What the registry says.
        detail: String,
    },
    /// Credentials are missing or wrong.
    #[error("{action} access denied for {image}, repository does not exist or may require login{detail}")]
    Unauthorized {
        /// `pull` or `push`.
        action: &'static str,
        /// The image asked for.
        image: String,
        /// What the registry says.
        detail: String,
    },
    /// Known, and not allowed.
    #[error("{action} access to {image} is forbidden{detail}")]
    Forbidden {
        /// `pull` or `push`.
        action: &'static str,
        /// The image asked for.
        image: String,
        /// What the registry says.
        detail: String,
    },
    /// Credentials that were to be tried are refused; docker's words.
    #[error("{0}")]
    Login(String),
    /// Nobody answers.
    #[error("registry {host} can't be reached")]
    Unreachable {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        cause: Box<ConnectError>,
    },
    /// The connection was cut, too often.
    #[error("transfer {direction} {host} was cut off")]
    Cut {
        /// `from` or `to`.
        direction: &'static str,
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Too many requests.
    #[error(
        "rate limit of {host} reached{limit}{detail}: wait, log in for a higher limit, or name a mirror for {host} in a hosts.toml"
    )]
    RateLimit {
        /// Host and port.
        host: String,
        /// What its headers say about the limit.
        limit: String,
        /// What the registry says.
        detail: String,
        /// How long it wants us to wait.
        wait: Option<Duration>,
    },
    /// An answer that the protocol doesn't know.
    #[error("registry {host} answered {status} for {what}{detail}")]
    Answer {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: StatusCode,
        /// What was asked for.
        what: String,
        /// What the registry says.
        detail: String,
        /// How long it wants us to wait.
        wait: Option<Duration>,
    },
    /// A document beyond what is read into memory.
    #[error("{what} from {host} is larger than {limit} bytes")]
    TooBig {
        /// What was asked for.
        what: String,
        /// Host and port.
        host: String,
        /// What is allowed.
        limit: u64,
    },
    /// The registry sent something else than what was asked for.
    #[error("registry {host} sent {what} with digest {actual}, expected {expected}")]
    WrongDigest {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// What arrived.
        actual: Digest,
        /// What was promised.
        expected: Digest,
    },
    /// More bytes than the manifest promises.
    #[error("registry {host} sent more than the {size} bytes of blob {digest}")]
    TooLong {
        /// Host and port.
        host: String,
        /// The blob.
        digest: Digest,
        /// Its size by the manifest.
        size: u64,
    },
    /// Fewer bytes than the manifest promises, and the registry says that these are all.
    #[error("registry {host} has only {actual} bytes of blob {digest}, the manifest promises {size}")]
    TooShort {
        /// Host and port.
        host: String,
        /// The blob.
        digest: Digest,
        /// Its size by the manifest.
        size: u64,
        /// Its size by the registry.
        actual: u64,
    },
    /// What answers doesn't speak HTTP, or not without encryption.
    #[error("registry {host}: {why}")]
    NotHttp {
        /// Host and port.
        host: String,
        /// What it says.
        why: String,
    },
    /// The registry's answer can't be followed.
    #[error("registry {host}: {why}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// Several hosts were asked; this is what the last one said.
    #[error("{last} (asked before: {before})", last = proto::kind::chain(.last.as_ref()))]
    Everywhere {
        /// The last host's error.
        last: Box<RegistryError>,
        /// What the others said.
        before: String,
    },
    /// No host may be asked for this.
    #[error("no host of {domain} may {action}: the hosts.toml in use gives none of them the capability {action:?}")]
    Incapable {
        /// The registry.
        domain: String,
        /// The capability.
        action: &'static str,
    },
    /// The configuration of hosts can't be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// A document that is none.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The store failed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Waiting for the disk failed.
    #[error("{}", .0.message())]
    Store(tonic::Status),
}

impl Failure for RegistryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoManifest { .. } | Self::NoRepository { .. } | Self::NoBlob { .. } => ErrorKind::NotFound,
            Self::Unauthorized { .. } | Self::Login(_) => ErrorKind::Unauthenticated,
            Self::Forbidden { .. } => ErrorKind::PermissionDenied,
            Self::Unreachable { .. } | Self::Cut { .. } => ErrorKind::Unavailable,
            Self::RateLimit { .. } => ErrorKind::ResourceExhausted,
            Self::Answer { status, .. } if status.is_server_error() => ErrorKind::Unavailable,
            Self::Answer { .. } | Self::Protocol { .. } | Self::NotHttp { .. } => ErrorKind::Internal,
            Self::TooBig { .. } | Self::WrongDigest { .. } | Self::TooLong { .. } | Self::TooShort { .. } => {
                ErrorKind::DataLoss
            }
            Self::Everywhere { last, .. } => last.kind(),
            Self::Incapable { .. } | Self::Hosts(_) => ErrorKind::FailedPrecondition,
            Self::Manifest(error) => error.kind(),
            Self::Content(error) => error.kind(),
            Self::Store(status) => ErrorKind::from_grpc(status.code()),
        }
    }
}

impl RegistryError {
    /// Whether trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { cause, .. } => cause.is_passing(),
            Self::Cut { .. } | Self::RateLimit { .. } => true,
            Self::Answer { status, .. } => status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED,
            _ => false,
        }
    }

    /// Whether it is about this machine, so that another host would not help.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Content(_) | Self::Store(_))
    }

    /// How long the registry wants us to wait before the next try.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            Self::RateLimit { wait, .. } | Self::Answer { wait, .. } => *wait,
            _ => None,
        }
    }
}
