//! The streams that clients opened with the Streaming service, until a transfer takes them by their name.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prost_types::Any;
use proto::{
    containerd::types::transfer::{Data, WindowUpdate},
    kind::ErrorKind,
    typeurl,
};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use crate::failure::Failure;

/// A client may call the transfer a moment before its stream has arrived here.
const PATIENCE: Duration = Duration::from_secs(3);
/// What a sender may send ahead of the reader.
const WINDOW: i32 = 4 << 20;
/// Bytes per message to a client.
const CHUNK: usize = 256 << 10;

/// Why a stream could not be had or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// Nobody opened a stream of this name.
    #[error("stream {0:?}: not found")]
    NotFound(String),
    /// The name is in use.
    #[error("stream {0:?}: already exists")]
    Exists(String),
}

impl Failure for StreamError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Exists(_) => ErrorKind::AlreadyExists,
        }
    }
}

/// One message of a stream, or how it broke.
pub(crate) type Message = Result<Any, Status>;

/// Our end of a client's stream.
pub(crate) struct Stream {
    /// What the client sends; an error if it went away, the end if it is through.
    pub(crate) inbound: mpsc::Receiver<Message>,
    /// What the client gets. The stream ends when this is dropped.
    pub(crate) outbound: mpsc::Sender<Message>,
}

/// Streams that wait for a transfer.
#[derive(Default)]
pub(crate) struct Streams {
    waiting: Mutex<HashMap<(String, String), Stream>>,
    arrived: Notify,
}

impl Streams {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Stream>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a stream where a transfer finds it.
    pub(crate) fn register(&self, namespace: &str, id: &str, stream: Stream) -> Result<(), StreamError> {
        let mut waiting = self.lock();
        // Those whose client is gone would stay for ever.
        waiting.retain(|_, stream| !stream.outbound.is_closed());
        let key = (namespace.to_owned(), id.to_owned());
        if waiting.contains_key(&key) {
            return Err(StreamError::Exists(id.to_owned()));
        }
        waiting.insert(key, stream);
        drop(waiting);
        self.arrived.notify_waiters();
        Ok(())
    }

    /// Takes a stream; waits a moment for it.
    pub(crate) async fn take(&self, namespace: &str, id: &str) -> Result<Stream, StreamError> {
        let key = (namespace.to_owned(), id.to_owned());
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let arrived = self.arrived.notified();
                if let Some(stream) = self.lock().remove(&key) {
                    return stream;
                }
                arrived.await;
            }
        });
        found.await.map_err(|_| StreamError::NotFound(id.to_owned()))
    }
}

/// Reads the bytes that a client sends; for a thread that may wait.
pub(crate) struct StreamReader {
    stream: Stream,
    piece: Vec<u8>,
    at: usize,
    // What the client may still send.
    window: i32,
}

impl StreamReader {
    /// A reader that gives the client its first window.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, piece: Vec::new(), at: 0, window: 0 }
    }

    fn open_window(&mut self) {
        if self.window < WINDOW / 2 {
            let update = WindowUpdate { update: WINDOW - self.window };
            // A client that doesn't listen (any more) doesn't need it.
            let _ = self.stream.outbound.blocking_send(Ok(typeurl::pack(&update)));
            self.window = WINDOW;
        }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            self.open_window();
            let any = match self.stream.inbound.blocking_recv() {
                None => return Ok(0),
                Some(Err(status)) => {
                    let text = format!("the client's stream broke: {}", status.message());
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, text));
                }
                Some(Ok(any)) => any,
            };
            match typeurl::unpack::<Data>(&any) {
                Some(Ok(data)) => {
                    self.window = self.window.saturating_sub(data.data.len().min(i32::MAX as usize) as i32);
                    (self.piece, self.at) = (data.data, 0);
                }
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {}", any.type_url))),
            }
        }
        let n = buffer.len().min(self.piece.len() - self.at);
        buffer[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Sends bytes to a client as its windows allow; for a thread that may wait.
pub(crate) struct StreamWriter {
    stream: Stream,
    buffer: Vec<u8>,
    window: i64,
}

impl StreamWriter {
    /// A writer that waits for the client's first window.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::with_capacity(CHUNK), window: 0 }
    }

    fn send(&mut self) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the client has closed its stream");
        let mut rest = std::mem::take(&mut self.buffer);
        while !rest.is_empty() {
            while self.window <= 0 {
                let any = match self.stream.inbound.blocking_recv() {
                    Some(Ok(any)) => any,
                    Some(Err(_)) | None => return Err(gone()),
                };
                if let Some(Ok(update)) = typeurl::unpack::<WindowUpdate>(&any) {
                    self.window += i64::from(update.update.max(0));
                }
            }
            let n = rest.len().min(usize::try_from(self.window).unwrap_or(CHUNK));
            let tail = rest.split_off(n);
            self.window -= n as i64;
            self.stream.outbound.blocking_send(Ok(typeurl::pack(&Data { data: rest }))).map_err(|_| gone())?;
            rest = tail;
        }
        self.buffer.reserve(CHUNK);
        Ok(())
    }
}

impl StreamWriter {
    /// Sends `size` bytes of `source`: read straight into the messages.
    pub(crate) fn copy(&mut self, source: &mut impl Read, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let room = (CHUNK - self.buffer.len().min(CHUNK)) as u64;
            let got = source.by_ref().take(room.min(left)).read_to_end(&mut self.buffer)? as u64;
            if got == 0 && room > 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than recorded"));
            }
            left -= got;
            if self.buffer.len() >= CHUNK {
                self.send()?;
            }
        }
        Ok(())
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(CHUNK - self.buffer.len().min(CHUNK));
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() >= CHUNK {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// An end for us and one for the client's side.
pub(crate) fn pair() -> (Stream, mpsc::Sender<Message>, mpsc::Receiver<Message>) {
    let (to_us, inbound) = mpsc::channel(16);
    let (outbound, to_client) = mpsc::channel(super::progress::QUEUE);
    (Stream { inbound, outbound }, to_us, to_client)
}
