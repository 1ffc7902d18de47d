//! Why a plugin's wish isn't done, and why a plugin isn't one of ours.

use std::{io, path::PathBuf, time::Duration};

use proto::kind::ErrorKind;
use tonic::Status;

use super::super::error::CriError;
use crate::failure::Failure;

/// A plugin keeps a call of the kubelet's from being done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NriError {
    /// Two want one thing.
    #[error("NRI plugins {first} and {second} both set {what}")]
    Conflict {
        /// Who was first.
        first: String,
        /// Who came later.
        second: String,
        /// What it is about.
        what: String,
    },
    /// It answered with an error.
    #[error("NRI plugin {plugin} refused {event}")]
    Refused {
        /// Its name.
        plugin: String,
        /// What it was told.
        event: &'static str,
        /// Its words.
        #[source]
        cause: Box<Status>,
    },
    /// It is there to judge what others have done, and has.
    #[error("NRI plugin {plugin} rejected what plugins have made of the container: {reason}")]
    Rejected {
        /// Its name.
        plugin: String,
        /// Its words.
        reason: String,
    },
    /// It is there to judge, and didn't.
    #[error("NRI plugin {0} didn't say whether what plugins have made of the container is right")]
    Unjudged(String),
    /// Nobody can do what it wants.
    #[error("NRI plugin {plugin}: {what}")]
    Wish {
        /// Its name.
        plugin: String,
        /// What it wants, and what is wrong with that.
        what: String,
    },
    /// A device that nobody describes.
    #[error("devices that NRI plugins have asked for")]
    Devices(#[source] spec::cdi::CdiError),
    /// Another container wasn't changed as a plugin wished.
    #[error("update of container {id}, which an NRI plugin asked for")]
    Update {
        /// The other container.
        id: String,
        /// Why not.
        #[source]
        cause: Box<CriError>,
    },
}

impl Failure for NriError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Devices(_) => ErrorKind::NotFound,
            Self::Update { cause, .. } => cause.kind(),
            Self::Unjudged(_) => ErrorKind::Unavailable,
            _ => ErrorKind::FailedPrecondition,
        }
    }
}

/// Somebody isn't taken as a plugin, or isn't one any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum PluginError {
    /// It said nothing.
    #[error("it hasn't registered within {} ms", .0.as_millis())]
    Silent(Duration),
    /// It went.
    #[error("the connection has ended")]
    Gone,
    /// A name that can't be one.
    #[error("{name:?} with index {index:?} is no name of a plugin: an index has two digits, a name letters without /")]
    Name {
        /// What it calls itself.
        name: String,
        /// Where it wants to stand.
        index: String,
    },
    /// A call failed.
    #[error("{call}")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        cause: Box<Status>,
    },
    /// What it answered can't be read.
    #[error("its answer to {call}")]
    Garbage {
        /// The call.
        call: &'static str,
        /// Why not.
        #[source]
        cause: prost::DecodeError,
    },
    /// It wants to hear of what we don't know.
    #[error("it subscribes to events that don't exist ({0:#x})")]
    Events(i32),
    /// There is more to tell than one message holds.
    #[error("it doesn't take the state of this node in several messages")]
    Parts,
    /// Our own records.
    #[error("state of this node")]
    State(#[source] Box<CriError>),
    /// Its program.
    #[error("{what} {}", .at.display())]
    Program {
        /// What was tried.
        what: &'static str,
        /// The file.
        at: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}
