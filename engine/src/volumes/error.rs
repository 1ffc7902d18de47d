//! What can be wrong with volumes.

use super::{local::OptionsError, plugins::PluginError, quota::QuotaError};
use crate::http::ApiError;
use proto::kind::chain;
use std::{io, path::PathBuf};

/// Why a volume cannot be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{operation} volume {name}")]
    Io {
        operation: &'static str,
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("get {0}: no such volume{1}")]
    Missing(String, String),
    #[error("remove {name}: volume is in use - [{users}]")]
    InUse { name: String, users: String },
    #[error("create {name}")]
    Options {
        name: String,
        #[source]
        cause: OptionsError,
    },
    #[error("create {name}")]
    Quota {
        name: String,
        #[source]
        cause: QuotaError,
    },
    #[error("error while mounting volume '{at}'")]
    Mount {
        at: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("error while unmounting volume '{at}'")]
    Unmount {
        at: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Another driver has a volume of this name.
    #[error("create {name}: driver '{driver}' already has volume '{name}': volume name must be unique")]
    Taken { name: String, driver: String },
    #[error(
        "create {name}: found references to volume '{name}' in driver '{driver}' but the volume was not found in the driver -- you may need to remove containers referencing this volume or force remove the volume to re-create it: volume name must be unique"
    )]
    Lost { name: String, driver: String },
    #[error("{operation} {name}")]
    Driver {
        operation: &'static str,
        name: String,
        #[source]
        cause: Box<PluginError>,
    },
    #[error("error while mounting volume '{name}'")]
    DriverMount {
        name: String,
        #[source]
        cause: Box<PluginError>,
    },
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        match &error {
            VolumeError::Missing(..) => Self::not_found(error.to_string()),
            VolumeError::InUse { .. } | VolumeError::Taken { .. } | VolumeError::Lost { .. } => {
                Self::conflict(error.to_string())
            }
            VolumeError::Options { .. } | VolumeError::Quota { cause: QuotaError::Unsupported(_), .. } => {
                Self::invalid(chain(&error).to_string())
            }
            VolumeError::Driver { cause, .. }
                if matches!(**cause, PluginError::Missing(_) | PluginError::OtherKind(_)) =>
            {
                Self::not_found(chain(&error).to_string())
            }
            VolumeError::Io { .. }
            | VolumeError::Quota { .. }
            | VolumeError::Mount { .. }
            | VolumeError::Unmount { .. }
            | VolumeError::Driver { .. }
            | VolumeError::DriverMount { .. } => Self::unexpected(&error),
        }
    }
}
