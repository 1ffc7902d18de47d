//! Why a container, or a sandbox, can't be had as it is asked for.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

use ::spec::{
    apparmor::AppArmorError,
    caps::UnknownCapability,
    cdi::CdiError,
    propagation::Need,
    seccomp::ProfileError,
    signal::UnknownSignal,
    users::{ReadError, UserError},
};
use proto::kind::ErrorKind;

use crate::{failure::Failure, layers::place::PlaceError};

/// Why it can't.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// A field has a value that means nothing, or contradicts another.
    #[error("{field} {value}: {why}")]
    Invalid {
        /// Which.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What isn't here.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not.
        why: &'static str,
    },
    /// Neither request nor image say what to run.
    #[error("no command: neither command, args nor the image name one")]
    NoCommand,
    /// The image's configuration is none.
    #[error("image configuration is malformed")]
    Image(#[source] serde_json::Error),
    /// The image's passwd or group file.
    #[error(transparent)]
    Users(#[from] ReadError),
    /// The image's layers.
    #[error("look into the image's layers")]
    Layers(#[from] PlaceError),
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A capability.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// A signal.
    #[error("stop signal of the image")]
    Signal(#[from] UnknownSignal),
    /// A profile can't be read.
    #[error("read seccomp profile {}", path.display())]
    ReadProfile {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A profile is none.
    #[error("seccomp profile {}", path.display())]
    Profile {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: ProfileError,
    },
    /// AppArmor's profile.
    #[error(transparent)]
    AppArmor(#[from] AppArmorError),
    /// A device that isn't one.
    #[error("device {}: neither a device node nor a folder with some", .0.escape_debug())]
    NoDevice(String),
    /// A device of CDI.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// The source of a mount isn't there and can't be made.
    #[error("mount on {at}: {what} {}", plain(source_path))]
    Source {
        /// Where.
        at: String,
        /// What was tried.
        what: &'static str,
        /// The path on the host, or in the image.
        source_path: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// A mount is to be shared that isn't.
    #[error("mount on {at}: {} lies on {}, which is not a {need} mount", plain(source_path), mount.display())]
    NotShared {
        /// Where.
        at: String,
        /// The path on the host.
        source_path: PathBuf,
        /// The mount that it lies on.
        mount: PathBuf,
        /// What that would have to be.
        need: Need,
    },
    /// The mount table can't be read.
    #[error("read the mount table")]
    MountTable(#[source] io::Error),
    /// The container isn't there whose processes are to be seen.
    #[error("container {0:?}, whose pid namespace is to be joined, is not running")]
    NoTarget(String),
    /// The caller has forgotten something.
    #[error("{0}")]
    Missing(String),
}

impl SpecError {
    /// A value that can't be.
    pub(super) fn invalid(field: impl Into<String>, value: impl Display, why: &'static str) -> Self {
        // Of what is long, the beginning tells enough.
        let value: String = value.to_string().chars().take(200).collect();
        Self::Invalid { field: field.into().escape_debug().to_string(), value: value.escape_debug().to_string(), why }
    }

    /// What isn't here.
    pub(super) fn unsupported(what: impl Into<String>, why: &'static str) -> Self {
        Self::Unsupported { what: what.into(), why }
    }
}

/// A path on one line, whatever somebody has put into it.
fn plain(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

impl Failure for SpecError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. }
            | Self::NoCommand
            | Self::User(_)
            | Self::Capability(_)
            | Self::Signal(_)
            | Self::Profile { .. }
            | Self::NoDevice(_) => ErrorKind::InvalidArgument,
            Self::Unsupported { .. } => ErrorKind::Unimplemented,
            Self::Image(_) => ErrorKind::DataLoss,
            Self::Users(ReadError::Read { cause, .. })
            | Self::ReadProfile { cause, .. }
            | Self::Source { cause, .. }
            | Self::MountTable(cause) => ErrorKind::of_io(cause),
            Self::Users(_) => ErrorKind::InvalidArgument,
            Self::Layers(error) => error.kind(),
            Self::AppArmor(AppArmorError::NotLoaded(_)) | Self::Cdi(_) | Self::NotShared { .. } | Self::NoTarget(_) => {
                ErrorKind::FailedPrecondition
            }
            Self::AppArmor(AppArmorError::Load { .. }) | Self::Missing(_) => ErrorKind::Internal,
        }
    }
}
