//! One connection to a shim, gRPC or ttrpc, and the notice of its end.
//!
//! The former is made with hyper directly rather than with tonic's channel: that one reconnects by itself and hides the loss, which is
//! exactly what we must see, since the end of the connection is how a shim's death shows.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::{
    berth::streams::v1::streams_client::StreamsClient, containerd::task::v3::task_client::TaskClient,
    id::NamespaceName, ttrpc,
};
use tokio::{net::UnixStream, sync::watch};
use tonic::{
    Request,
    body::Body,
    codegen::{Service, http},
};

use super::{bridge, shims::Bootstrap};
use crate::{api::MESSAGE_LIMIT, failure::NAMESPACE_HEADER};

/// A shim can't be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody listens.
    #[error("connect")]
    Socket(#[from] std::io::Error),
    /// Somebody listens who doesn't speak HTTP/2.
    #[error("speak HTTP/2")]
    Handshake(#[from] hyper::Error),
}

/// A connection; clones share it.
#[derive(Clone)]
pub(crate) enum Connection {
    /// To a shim that speaks gRPC.
    Grpc {
        /// Where requests go in.
        sender: http2::SendRequest<Body>,
        /// Becomes true.
        lost: watch::Receiver<bool>,
    },
    /// To a shim that speaks ttrpc.
    Ttrpc {
        /// Where requests go in.
        client: ttrpc::Client,
        /// Version of the task service.
        version: i32,
    },
}

impl Connection {
    /// Connects to a shim as it said that it wants to be spoken to.
    pub(crate) async fn open(shim: &Bootstrap) -> Result<Self, ConnectError> {
        let stream = UnixStream::connect(&shim.address).await?;
        if shim.is_ttrpc() {
            return Ok(Self::Ttrpc { client: ttrpc::Client::over(stream), version: shim.version });
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.max_send_buf_size(64 * 1024).handshake(TokioIo::new(stream)).await?;
        let (tell, lost) = watch::channel(false);
        tokio::spawn(async move {
            // Its end is the news, whatever the reason: a shim that closes orderly and one that was killed look alike.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "shim connection broke");
            }
            tell.send_replace(true);
        });
        Ok(Self::Grpc { sender, lost })
    }

    /// Whether the connection has ended.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Grpc { lost, .. } => *lost.borrow(),
            Self::Ttrpc { client, .. } => client.is_closed(),
        }
    }

    /// Returns when the connection has ended.
    pub(crate) async fn lost(&self) {
        match self {
            // An error means that the task above was dropped, with the connection in it.
            Self::Grpc { lost, .. } => drop(lost.clone().wait_for(|lost| *lost).await),
            Self::Ttrpc { client, .. } => client.closed().await,
        }
    }

    /// A client of the shim's task service.
    pub(crate) fn tasks(&self) -> TaskClient<Self> {
        TaskClient::with_origin(self.clone(), origin())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// A client of the shim's attach service.
    pub(crate) fn streams(&self) -> StreamsClient<Self> {
        StreamsClient::with_origin(self.clone(), origin())
    }
}

/// A request as shims expect it.
pub(crate) fn request<T>(namespace: &NamespaceName, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // A namespace is ASCII by its rule, so this can't fail.
    if let Ok(value) = namespace.as_str().parse() {
        request.metadata_mut().insert(NAMESPACE_HEADER, value);
    }
    request
}

// HTTP/2 wants a host; a unix socket has none.
fn origin() -> http::Uri {
    http::Uri::from_static("http://shim")
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = tonic::codegen::StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Self::Grpc { sender, .. } => sender.poll_ready(cx).map_err(Into::into),
            Self::Ttrpc { .. } => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self {
            Self::Grpc { sender, .. } => {
                let answer = sender.send_request(request);
                Box::pin(async move { Ok(answer.await?.map(Body::new)) })
            }
            Self::Ttrpc { client, version } => {
                let (client, version) = (client.clone(), *version);
                Box::pin(async move { bridge::call(&client, version, request).await })
            }
        }
    }
}
