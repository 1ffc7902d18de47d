//! The side that has the folder.

use proto::fsutil::types::Packet;
use std::path::Path;
use tokio::sync::mpsc;

/// What of a folder is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only these, if there are any, and the folders that lead to them.
    pub include: Vec<String>,
    /// Not these; `!` takes back.
    pub exclude: Vec<String>,
    /// Symbolic links at these paths are followed: what they lead to goes along.
    pub follow: Vec<String>,
    /// Whether everything belongs to 0:0 on the other side: a context, whose owners mean nothing there.
    pub owned_by_root: bool,
}

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The other side has said so.
    #[error("the receiver: {0}")]
    Refused(String),
    /// The other side is gone.
    #[error("the receiver has gone")]
    Gone,
    /// A file here.
    #[error("read {path}")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// Sends what `filter` leaves of `folder`: packets of the other side come in by `incoming`, ours go out by `outgoing`.
pub async fn send(
    folder: &Path,
    filter: &Filter,
    incoming: mpsc::Receiver<Packet>,
    outgoing: mpsc::Sender<Packet>,
) -> Result<(), SendError> {
    let _ = (folder, filter, incoming, outgoing);
    Err(SendError::Gone)
}
