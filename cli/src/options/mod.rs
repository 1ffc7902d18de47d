//! What the flags of `run` and `create` mean to the engine. Pure: text in, JSON of the API out.

pub mod create;
pub mod devices;
pub mod envs;
pub mod limits;
pub mod mounts;
pub mod networks;
pub mod ports;
pub mod security;
pub mod subnets;
pub mod volumes;

use std::io;

/// Flags that contradict each other, or values the engine need not see to refuse.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// A file that a flag names.
    #[error("open {path}: {cause}")]
    File {
        /// The file.
        path: String,
        /// What happened.
        cause: Plain,
    },
    /// Two flags that can't stand together.
    #[error("conflicting options: {0}")]
    Conflict(&'static str),
    /// A value that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A port.
    #[error(transparent)]
    Port(#[from] ports::PortError),
}

/// An I/O error without Rust's "(os error 2)", in lower case as other Unix programs have it.
#[derive(Debug)]
pub struct Plain(pub io::Error);

impl std::fmt::Display for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.raw_os_error() {
            Some(code) => f.write_str(&nix::errno::Errno::from_raw(code).desc().to_lowercase()),
            None => self.0.fmt(f),
        }
    }
}

impl OptionError {
    fn file(path: &str, cause: io::Error) -> Self {
        Self::File { path: path.to_owned(), cause: Plain(cause) }
    }
}
