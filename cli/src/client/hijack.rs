//! A connection that has become a stream in both directions (attach, exec).

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{ReadHalf, WriteHalf};

/// The two directions; shutting down the writer is end-of-file for the container and leaves the reader open.
#[derive(Debug)]
pub struct Hijacked {
    /// From the container.
    pub reader: ReadHalf<TokioIo<Upgraded>>,
    /// To the container.
    pub writer: WriteHalf<TokioIo<Upgraded>>,
}

impl Hijacked {
    pub(super) fn new(upgraded: Upgraded) -> Self {
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        Self { reader, writer }
    }
}
