//! `POST /session`: the connection of a client becomes its session.

use super::{Announced, SessionError, Sessions};
use crate::http::{ApiError, ApiResult, hijack::Takeover};
use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{StatusCode, header},
    response::Response,
};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

/// Answers 101 and takes the connection up.
pub fn take_over(sessions: &Sessions, mut request: Request) -> ApiResult {
    let protocol = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    match protocol.as_str() {
        "h2c" => {}
        "" => return Err(ApiError::invalid("no upgrade proto in request")),
        other => return Err(ApiError::invalid(format!("protocol {other} not supported"))),
    }
    let announced = Announced::from_headers(request.headers()).map_err(refused)?;
    if sessions.now(&announced.id).is_some() {
        return Err(refused(SessionError::Exists(announced.id)));
    }
    let headers = request.headers().clone();
    let takeover = Takeover::new(&headers, request.extensions_mut());
    let sessions = sessions.clone();
    takeover.hand_over(move |client| {
        let id = announced.id.clone();
        if let Err(error) = sessions.attach(announced, Early { early: client.early, stream: client.stream }) {
            tracing::warn!(session = id, error = %proto::kind::chain(&error), "session of a client refused");
        }
    })?;
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol)
        .body(Body::empty())
        .map_err(|e| ApiError::unexpected(&e))
}

fn refused(error: SessionError) -> ApiError {
    ApiError::of(error.kind(), &error)
}

/// A socket of which something was read already.
struct Early {
    early: Bytes,
    stream: UnixStream,
}

impl AsyncRead for Early {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Early {
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
