//! The side that wants the folder.

use proto::fsutil::types::Packet;
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// Files, folders and links that are in the folder now.
    pub entries: u64,
    /// Of these: files whose content was asked for.
    pub fetched: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// What had been there and isn't any more.
    pub removed: u64,
}

/// How to receive.
#[derive(Debug, Clone, Default)]
pub struct Options {}

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The other side has said so.
    #[error("the sender: {0}")]
    Refused(String),
    /// The other side is gone.
    #[error("the sender has gone")]
    Gone,
    /// The other side breaks the protocol, or tries to get out of the folder.
    #[error("the sender breaks the protocol: {0}")]
    Protocol(String),
    /// A file here.
    #[error("write {path}")]
    Write {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// Makes `folder` what the other side has: what is there already with the same size, mode, owner, link and time of change isn't
/// asked for again. Nothing outside of `folder` is touched, whatever the other side says.
pub async fn receive(
    folder: OwnedFd,
    incoming: mpsc::Receiver<Packet>,
    outgoing: mpsc::Sender<Packet>,
    options: Options,
) -> Result<Received, ReceiveError> {
    let _ = (folder, incoming, outgoing, options);
    Err(ReceiveError::Gone)
}
