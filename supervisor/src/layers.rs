//! Layers: tar archives of changes, plain or compressed, and how they become folders for overlayfs.
//!
//! `tar` reads headers, `decompress` finds out about compression, `tree` makes entries below a folder and never outside of
//! it, `apply` joins them: what an archive says becomes what is on disk. `diff` goes the other way. `place` turns the mounts
//! that clients speak of into open directories; `copy` and `usage` are about whole trees.

pub(crate) mod apply;
pub(crate) mod copy;
pub(crate) mod decompress;
pub(crate) mod diff;
pub(crate) mod place;
pub(crate) mod tar;
pub(crate) mod tree;
pub(crate) mod usage;

use nix::errno::Errno;
use proto::{digest::Digest, kind::ErrorKind};

use crate::failure::Failure;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// Which layer it was.
    #[error("unpack layer {layer}")]
    Layer {
        /// The blob.
        layer: Digest,
        /// What went wrong.
        #[source]
        cause: Box<LayerError>,
    },
    /// The archive ends early, or its compression is damaged.
    #[error("layer is corrupt or truncated")]
    Read(#[source] std::io::Error),
    /// The archive isn't a tar that we understand.
    #[error("layer is corrupt")]
    Tar(#[from] tar::TarError),
    /// Compressed in a way that we don't know.
    #[error("compression {0} is not supported, only gzip, zstd, xz and bzip2")]
    Compression(&'static str),
    /// An entry can't be made.
    #[error("{what} {path:?}")]
    Entry {
        /// What was tried.
        what: &'static str,
        /// The entry's path in the layer.
        path: String,
        /// Why it failed.
        #[source]
        cause: Errno,
    },
    /// An entry that no layer may have.
    #[error("entry {path:?} of the layer is not allowed: {why}")]
    Refused {
        /// The entry's path in the layer.
        path: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The uncompressed layer isn't what the image's configuration promises.
    #[error("uncompressed layer has digest {actual}, the image's configuration says {expected}")]
    WrongDiffId {
        /// What came out.
        actual: Digest,
        /// What was promised.
        expected: Digest,
    },
    /// It links to files of layers below, which were not known while it was unpacked.
    #[error("layer links to files of the layers below it")]
    NeedsBelow,
    /// A thread could not be started, or died.
    #[error("unpacking was cut off: {0}")]
    Thread(&'static str),
}

impl Failure for LayerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Layer { cause, .. } => cause.kind(),
            Self::Read(_) | Self::Tar(_) | Self::WrongDiffId { .. } => ErrorKind::DataLoss,
            Self::Compression(_) => ErrorKind::Unimplemented,
            Self::Entry { cause: Errno::ENOSPC | Errno::EDQUOT, .. } => ErrorKind::ResourceExhausted,
            Self::Entry { cause: Errno::EPERM | Errno::EACCES, .. } => ErrorKind::PermissionDenied,
            Self::Entry { .. } | Self::Thread(_) | Self::NeedsBelow => ErrorKind::Internal,
            Self::Refused { .. } => ErrorKind::InvalidArgument,
        }
    }
}
