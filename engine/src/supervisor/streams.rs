//! Named side channels of the Streaming service: progress, credentials, archives.

use super::{Client, SupervisorError, client::NAMESPACE};
use prost_types::Any;
use proto::{containerd::services::streaming::v1::StreamInit, kind::ErrorKind, typeurl};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// One open side channel. Dropping `sender` closes our direction; dropping both cancels the stream.
pub struct SideChannel {
    /// The name by which other requests refer to it.
    pub id: String,
    /// Messages to the supervisor.
    pub sender: mpsc::Sender<Any>,
    /// Messages from it.
    pub receiver: Streaming<Any>,
}

/// Side channels serve transfers only, so a supervisor without them has no transfers either.
fn explain(error: SupervisorError) -> SupervisorError {
    match error {
        SupervisorError::Refused { kind: ErrorKind::Unimplemented, .. } => SupervisorError::Refused {
            kind: ErrorKind::Unimplemented,
            message: format!(
                "the supervisor has no transfer service (containerd has it since 2.0); put images into it by other \
                 means, as `ctr --namespace {NAMESPACE} images pull` or `import`"
            ),
        },
        other => other,
    }
}

/// Opens a side channel, and returns once the supervisor knows its name.
pub async fn open(client: &Client, purpose: &str) -> Result<SideChannel, SupervisorError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Unique among all engines that may talk to this supervisor, one after the other or at once.
    let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let id = format!("{purpose}-{}-{since_epoch:x}-{count}", std::process::id());

    let (sender, messages) = mpsc::channel(8);
    let hello = typeurl::pack(&StreamInit { id: id.clone() });
    sender.send(hello).await.map_err(|_| SupervisorError::Lost("side channel closed".into()))?;
    let opened = client.streaming().stream(ReceiverStream::new(messages)).await.map_err(SupervisorError::from);
    let mut receiver = opened.map_err(explain)?.into_inner();
    // The first answer is an empty message that says: registered. Without it the next request could come too early.
    match receiver.message().await? {
        Some(_) => Ok(SideChannel { id, sender, receiver }),
        None => Err(SupervisorError::Protocol(format!("side channel {id} closed before it was used"))),
    }
}
