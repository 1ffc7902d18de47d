//! Connections taken over for raw streams: `101 UPGRADED` for a client that asked for it. One that did not gets the
//! output as the body of a plain answer; it cannot send input.

use super::{ApiError, ApiResult, ApiVersion, websocket};
use crate::{
    containers::streams::{ClientStream, Framing},
    listen::HalfOpen,
};
use axum::{
    body::{Body, Bytes},
    http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, header},
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
                    if let Some(client) = taken_over(upgrade).await {
                        serve(client).await;
                    }
                });
                upgraded(kind)
            }
            None => plain(kind, serve),
        }
    }

    /// Has `take` called with the connection; the answer, a 101, is the caller's.
    pub fn hand_over(self, take: impl FnOnce(ClientStream) + Send + 'static) -> Result<(), ApiError> {
        let Some(upgrade) = self.upgrade.filter(|_| self.wanted) else {
            return Err(ApiError::invalid("this connection can't be taken over"));
        };
        tokio::spawn(async move {
            if let Some(client) = taken_over(upgrade).await {
                take(client);
            }
        });
        Ok(())
    }

    /// The same over a websocket (RFC 6455, section 4.2).
    pub fn answer_websocket(self, headers: &HeaderMap, serve: Serve) -> ApiResult {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let key = text(header::SEC_WEBSOCKET_KEY);
        let asked = text(header::UPGRADE).eq_ignore_ascii_case("websocket") && !key.is_empty();
        let Some(upgrade) = self.upgrade.filter(|_| asked) else {
            return Err(ApiError::invalid("this endpoint speaks the websocket protocol only"));
        };
        if text(header::SEC_WEBSOCKET_VERSION) != "13" {
            return Err(ApiError::invalid("websocket version 13 is the only one that is spoken here"));
        }
        let accept = websocket::accept(key);
        tokio::spawn(async move {
            let Some(client) = taken_over(upgrade).await else { return };
            match websocket::bridge(client) {
                Ok(client) => serve(client).await,
                Err(error) => debug!(%error, "no socket for a websocket"),
            }
        });
        let mut response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        // x/net/websocket, which dockerd uses, gives the first protocol back.
        if let Some(protocol) =
            text(header::SEC_WEBSOCKET_PROTOCOL).split(',').next().map(str::trim).filter(|p| !p.is_empty())
        {
            response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        response
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept)
            .body(Body::empty())
            .map_err(|e| ApiError::unexpected(&e))
    }
}

async fn taken_over(upgrade: OnUpgrade) -> Option<ClientStream> {
    match upgrade.await.map(|upgraded| upgraded.downcast::<TokioIo<HalfOpen<UnixStream>>>()) {
        Ok(Ok(parts)) => Some(ClientStream { stream: parts.io.into_inner().into_inner(), early: parts.read_buf }),
        Ok(Err(other)) => relayed(other),
        Err(error) => {
            debug!(%error, "client left before the upgrade");
            None
        }
    }
}

/// A client over TCP: its bytes go through a pair of sockets of this machine, so that all streams are served the same. An end in
/// one direction is passed on in that direction alone.
fn relayed(client: hyper::upgrade::Upgraded) -> Option<ClientStream> {
    let (ours, mut theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => {
            tracing::warn!(%error, "no sockets for a client's stream");
            return None;
        }
    };
    let mut client = TokioIo::new(client);
    tokio::spawn(async move {
        // `theirs` goes with it: whichever end is gone, the other is to see it.
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut theirs).await {
            debug!(%error, "client left in the middle of a stream");
        }
    });
    Some(ClientStream { stream: ours, early: Bytes::new() })
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
