//! Connections taken over for raw streams: `101 UPGRADED` for a client that asked for it. One that did not gets the
//! output as the body of a plain answer; it cannot send input.

use super::{ApiError, ApiResult, ApiVersion};
use crate::containers::streams::{ClientStream, Framing};
use axum::{
    body::{Body, Bytes},
    http::{Extensions, HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use hyper::{ext::ReasonPhrase, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use std::{future::Future, pin::Pin};
use tokio::net::UnixStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Serves a client on its own connection.
pub type Serve = Box<dyn FnOnce(ClientStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The content type of a stream: clients before 1.42 know only one.
pub fn content_type(framing: Framing, version: ApiVersion) -> HeaderValue {
    let multiplexed = framing == Framing::Multiplexed && version.at_least(42);
    HeaderValue::from_static(if multiplexed { MULTIPLEXED } else { RAW })
}

/// What a request needs to be taken over; gathered before its body is read.
#[derive(Debug)]
pub struct Takeover {
    upgrade: Option<OnUpgrade>,
    wanted: bool,
}

impl Takeover {
    /// From the parts of a request.
    pub fn new(headers: &HeaderMap, extensions: &mut Extensions) -> Self {
        Self { wanted: headers.contains_key(header::UPGRADE), upgrade: extensions.remove::<OnUpgrade>() }
    }

    /// Answers, and has `serve` called with the connection.
    pub fn answer(self, framing: Framing, version: ApiVersion, serve: Serve) -> ApiResult {
        let kind = content_type(framing, version);
        match self.upgrade.filter(|_| self.wanted) {
            Some(upgrade) => {
                tokio::spawn(async move {
                    match upgrade.await.map(|upgraded| upgraded.downcast::<TokioIo<UnixStream>>()) {
                        Ok(Ok(parts)) => {
                            serve(ClientStream { stream: parts.io.into_inner(), early: parts.read_buf }).await;
                        }
                        Ok(Err(_)) => debug!("upgraded connection is no unix socket"),
                        Err(error) => debug!(%error, "client left before the upgrade"),
                    }
                });
                upgraded(kind)
            }
            None => plain(kind, serve),
        }
    }
}

fn upgraded(kind: HeaderValue) -> ApiResult {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .extension(ReasonPhrase::from_static(b"UPGRADED"))
        .header(header::CONTENT_TYPE, kind)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "tcp")
        .body(Body::empty())
        .map_err(|e| ApiError::unexpected(&e))
}

fn plain(kind: HeaderValue, serve: Serve) -> ApiResult {
    let (ours, theirs) = UnixStream::pair().map_err(|e| ApiError::unexpected(&e))?;
    tokio::spawn(serve(ClientStream { stream: ours, early: Bytes::new() }));
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    tokio::spawn(async move {
        let mut theirs = theirs;
        loop {
            let mut buffer = Vec::with_capacity(64 << 10);
            match tokio::io::AsyncReadExt::read_buf(&mut theirs, &mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if sender.send(Ok(buffer.into())).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    Response::builder()
        .header(header::CONTENT_TYPE, kind)
        .body(Body::from_stream(ReceiverStream::new(receiver)))
        .map_err(|e| ApiError::unexpected(&e))
}
