//! Makes the connection to the supervisor's socket, with patience while it is being restarted.

use hyper_util::rt::TokioIo;
use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::net::UnixStream;
use tonic::transport::Uri;

/// How long a call waits for a supervisor that isn't there, counted from when it was first missed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nobody answers on the socket.
#[derive(Debug, thiserror::Error)]
#[error("{socket}")]
pub(super) struct ConnectError {
    socket: String,
    #[source]
    cause: ConnectCause,
}

// Holds the address as well, so that the deepest cause alone says everything.
#[derive(Debug, thiserror::Error)]
#[error("connect to {socket}: {cause}")]
struct ConnectCause {
    socket: String,
    cause: io::Error,
}

/// Connects to one unix socket.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    socket: Arc<Path>,
    // Shared by all attempts: callers that queue behind a long absence must not wait one after the other.
    missed_since: Arc<Mutex<Option<Instant>>>,
    patience: Duration,
}

impl Connector {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket: socket.into(), missed_since: Arc::default(), patience: PATIENCE }
    }

    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    async fn connect(self) -> Result<TokioIo<UnixStream>, ConnectError> {
        let mut pause = Duration::from_millis(5);
        loop {
            let cause = match UnixStream::connect(&self.socket).await {
                Ok(stream) => {
                    *self.missed_since() = None;
                    return Ok(TokioIo::new(stream));
                }
                Err(cause) => cause,
            };
            let since = *self.missed_since().get_or_insert_with(Instant::now);
            // Absent, or left behind by a process that died: both end with a start. Anything else stays as it is.
            let may_come = matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if !may_come || since.elapsed() >= self.patience {
                let socket = self.socket.display().to_string();
                return Err(ConnectError { socket: socket.clone(), cause: ConnectCause { socket, cause } });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn missed_since(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.missed_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
