//! The connection to a client: HTTP/2 on a stream that is there already, and how its end is noticed.

use super::{Session, SessionError};
use hyper_util::rt::TokioIo;
use proto::{
    grpc::health::v1::{HealthCheckRequest, health_client::HealthClient},
    moby::buildkit::v1::BytesMessage,
};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};
use tracing::{debug, warn};

/// Contexts are large: a window that holds only what is in a pipe's buffer would be waited for all the time.
const WINDOW: u32 = 4 << 20;
/// How often a client is asked whether it is there, and how long it may take; two failures end the session.
const HEALTH: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15));

/// A channel over `stream`. `gone` becomes true when the stream is no longer used; made true, it ends the stream.
pub(super) fn channel<S>(stream: S, gone: Arc<watch::Sender<bool>>) -> Channel
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut hung_up = gone.subscribe();
    let hung_up = Box::pin(async move { drop(hung_up.wait_for(|gone| *gone).await) });
    let stream = Watched { stream, hung_up, told: Told(gone) };
    let once = Once(Arc::new(Mutex::new(Some(TokioIo::new(stream)))));
    Endpoint::from_static("http://session.local")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 2)
        .connect_with_connector_lazy(once)
}

/// Gives the one stream that there is: a second connection to a client can't be made.
struct Once<S>(Arc<Mutex<Option<TokioIo<Watched<S>>>>>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> tower::Service<Uri> for Once<S> {
    type Response = TokioIo<Watched<S>>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(
            stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "its connection has ended")),
        )
    }
}

/// Tells when it is dropped.
struct Told(Arc<watch::Sender<bool>>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// A stream whose end is told, and which can be ended from outside.
struct Watched<S> {
    stream: S,
    hung_up: Pin<Box<dyn Future<Output = ()> + Send>>,
    told: Told,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !*self.told.0.borrow() && self.hung_up.as_mut().poll(cx).is_pending() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Asks the client now and then whether it is there, which also makes the connection. The channel ends with its last user, and
/// so does the connection: whoever holds a [`Session`] keeps it.
pub(super) async fn watch_health(session: Session) {
    let mut client = HealthClient::new(session.channel.clone());
    let mut failures = 0;
    loop {
        let check = tokio::time::timeout(HEALTH.1, client.check(HealthCheckRequest::default()));
        let answer = tokio::select! {
            answer = check => answer,
            () = session.ended() => return,
        };
        let failure = match answer {
            Ok(Ok(_)) => None,
            // A client without the service is there.
            Ok(Err(status)) if matches!(status.code(), tonic::Code::Unimplemented | tonic::Code::NotFound) => None,
            Ok(Err(status)) => Some(SessionError::of("health", &status).to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        match failure {
            None => failures = 0,
            Some(reason) => {
                failures += 1;
                if failures >= 2 {
                    warn!(session = session.id(), reason, "a client doesn't answer; its session ends");
                    session.hang_up();
                    return;
                }
                debug!(session = session.id(), reason, "a client doesn't answer");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH.0) => {}
            () = session.ended() => return,
        }
    }
}

/// The bytes of a stream of messages as a stream of bytes, and the messages that go back: a session over the method `Session`.
pub fn stream_of_messages(
    mut incoming: Streaming<BytesMessage>,
) -> (DuplexStream, ReceiverStream<Result<BytesMessage, Status>>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (mut read, mut write) = tokio::io::split(theirs);
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok(Some(message)) = incoming.message().await {
            if write.write_all(&message.data).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        loop {
            let mut buffer = Vec::with_capacity(32 << 10);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if sender.send(Ok(BytesMessage { data: buffer })).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    (ours, ReceiverStream::new(receiver))
}
