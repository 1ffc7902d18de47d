//! A connection whose client has ended its side and still wants the answer: `nc -N`, socat, `docker system dial-stdio` in a
//! pipe.
//!
//! hyper takes the end of the input for the end of the client, and drops what it was about to answer. Here the end of the
//! input waits while an answer is owed, for a time that any short answer has: net/http, and so dockerd, still writes its answer
//! then, but begins nothing new. A client of this machine that has closed its socket altogether is seen as gone at once.

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::Sleep,
};
use tokio_rustls::server::TlsStream;

/// How long an answer may take after the client's end.
const GRACE: Duration = Duration::from_secs(2);

/// A stream that a socket carries.
pub trait Carried: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket.
    fn socket(&self) -> BorrowedFd<'_>;
}

impl Carried for UnixStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Carried for TcpStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Carried for TlsStream<TcpStream> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.get_ref().0.as_fd()
    }
}

/// Whether an answer is owed on a connection.
#[derive(Debug, Clone, Default)]
pub struct Debts(Arc<AtomicBool>);

impl Debts {
    /// A request has come; its answer is owed until what this gives is dropped.
    pub fn owe(&self) -> Owed {
        self.0.store(true, Ordering::Relaxed);
        Owed(self.0.clone())
    }
}

/// An answer that is owed.
#[derive(Debug)]
pub struct Owed(Arc<AtomicBool>);

impl Owed {
    /// The body with which it will have been given.
    pub fn until_end_of(self, body: Body) -> Owing {
        Owing { body, _owed: self }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The body of an answer that is owed until it is told.
#[derive(Debug)]
pub struct Owing {
    body: Body,
    _owed: Owed,
}

impl hyper::body::Body for Owing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that keeps the end of its input back while an answer is owed on it, for [`GRACE`] at most.
#[derive(Debug)]
pub struct HalfOpen<S> {
    stream: S,
    debts: Debts,
    ended: Option<Pin<Box<Sleep>>>,
}

impl<S> HalfOpen<S> {
    /// `stream`, on which answers are owed as `debts` says.
    pub fn new(stream: S, debts: Debts) -> Self {
        Self { stream, debts, ended: None }
    }

    /// The stream itself.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: Carried> HalfOpen<S> {
    fn waits(&self) -> bool {
        self.debts.0.load(Ordering::Relaxed) && !hung_up(self.stream.socket())
    }
}

/// Whether the peer is gone for reading, too. Only a socket of this machine can tell before something is written to it.
fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
        && fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

impl<S: Carried> AsyncRead for HalfOpen<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.is_none() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            let ended = buffer.filled().len() == before && buffer.remaining() > 0;
            if !ended || !self.waits() {
                return Poll::Ready(Ok(()));
            }
            self.ended = Some(Box::pin(tokio::time::sleep(GRACE)));
        }
        let over = self.ended.as_mut().is_none_or(|grace| grace.as_mut().poll(context).is_ready());
        if over || !self.waits() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl<S: Carried> AsyncWrite for HalfOpen<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }
}
