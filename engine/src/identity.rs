//! Who this engine is: ids that stay the same for the life of a data root.

use crate::ids::random_id;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Ids, made when the data root is first used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The engine's own.
    pub id: String,
    /// Of network bridge.
    pub bridge: String,
    /// Of network host.
    pub host: String,
    /// Of network none.
    pub none: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("read or write {path}")]
    Io {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path} does not hold an identity: remove it to get a new one")]
    Parse {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
}

impl Identity {
    /// Reads the file; makes it if there is none.
    pub fn load_or_make(path: &Path) -> Result<Self, IdentityError> {
        let failed = |cause| IdentityError::Io { path: path.to_owned(), cause };
        match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|cause| IdentityError::Parse { path: path.to_owned(), cause })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = || random_id().map_err(failed);
                let identity = Self { id: id()?, bridge: id()?, host: id()?, none: id()? };
                let text = serde_json::to_vec(&identity).map_err(|e| failed(e.into()))?;
                // Whole or not at all: half a file would stop every later start.
                let draft = path.with_extension("new");
                std::fs::write(&draft, text).map_err(failed)?;
                std::fs::rename(&draft, path).map_err(failed)?;
                Ok(identity)
            }
            Err(error) => Err(failed(error)),
        }
    }
}
