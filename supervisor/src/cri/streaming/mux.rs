//! What both protocols make of a connection: byte streams in both directions, and a way to say goodbye.
//!
//! ```text
//! socket ──▶ reader ──▶ Feed ──▶ Inbox ──▶ session       one reader and one writer task for a connection
//! socket ◀── writer ◀────────── Outlet ◀── session
//! ```
//! Neither protocol, as Kubernetes speaks it, has flow control: a reader that finds an inbox full waits, and with it the whole
//! connection, until TCP makes the client wait. So memory is bounded by [`PIECES`] for a stream and [`BUFFERED`] for a connection.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::debug;

/// Most bytes that are passed on at once.
pub(super) const PIECE: usize = 32 << 10;
/// Pieces that wait for one stream's reader.
const PIECES: usize = 16;
/// Bytes that wait for all readers of a connection.
const BUFFERED: usize = 4 << 20;
/// Messages that wait for the socket; each holds a piece at most.
const OUTGOING: usize = 16;
/// How often a client that isn't read from is looked at: nothing else tells that it has left.
const LEFT_CHECK: Duration = Duration::from_millis(500);
/// One in so many times, it is sent something.
const LEFT_PINGS: u32 = 20;

/// The client, or its stream, is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub(super) struct Gone;

/// What a session sends; each protocol writes it in its own way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Out {
    /// Bytes of a stream.
    Data(u32, Bytes),
    /// The stream has ended in our direction.
    End(u32),
    /// A stream that the client opened is taken.
    Reply(u32),
    /// A stream is given up in both directions, for a reason of the protocol's.
    Reset(u32, u32),
    /// A sign of life is asked for; nobody waits for the answer.
    Ping,
    /// The answer to one.
    Pong(Bytes),
    /// There will be no more; the protocol's code says why.
    Bye(u32),
}

struct Waiting {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// What a client sends on one stream.
pub(super) struct Inbox {
    pieces: mpsc::Receiver<Waiting>,
    reset: Arc<AtomicBool>,
}

impl Inbox {
    /// What comes next; none once the client has ended the stream, or is gone.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.recv().await?;
        if self.was_reset() { None } else { Some(piece.bytes) }
    }

    /// Whether the client has given the stream up, and not only ended its input.
    pub(super) fn was_reset(&self) -> bool {
        self.reset.load(Relaxed)
    }
}

/// The way to a client on one stream.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    stream: u32,
    to: mpsc::Sender<Out>,
    reset: Arc<AtomicBool>,
}

impl Outlet {
    /// Sends bytes; returns once they are on their way.
    pub(super) async fn write(&self, mut bytes: Bytes) -> Result<(), Gone> {
        loop {
            if self.reset.load(Relaxed) {
                return Err(Gone);
            }
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.to.send(Out::Data(self.stream, piece)).await.map_err(|_| Gone)?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// There will be no more bytes.
    pub(super) async fn end(&self) {
        // Somebody who has gone needs no end.
        let _ = self.to.send(Out::End(self.stream)).await;
    }

    /// Gives the stream up, for a reason of the protocol's.
    pub(super) async fn reset(&self, reason: u32) {
        let _ = self.to.send(Out::Reset(self.stream, reason)).await;
    }
}

struct Entry {
    feed: Option<mpsc::Sender<Waiting>>,
    reset: Arc<AtomicBool>,
    ended: bool,
}

/// The open streams of a connection; its reader and its writer both close them.
#[derive(Default)]
pub(super) struct Streams(Mutex<HashMap<u32, Entry>>);

impl Streams {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Opens one.
    pub(super) fn open(&self, stream: u32, to: mpsc::Sender<Out>) -> (Inbox, Outlet) {
        let (feed, pieces) = mpsc::channel(PIECES);
        let reset = Arc::new(AtomicBool::new(false));
        self.lock().insert(stream, Entry { feed: Some(feed), reset: reset.clone(), ended: false });
        (Inbox { pieces, reset: reset.clone() }, Outlet { stream, to, reset })
    }

    fn feed(&self, stream: u32) -> Option<mpsc::Sender<Waiting>> {
        self.lock().get(&stream).and_then(|entry| entry.feed.clone())
    }

    /// The client has ended its direction.
    pub(super) fn end_input(&self, stream: u32) {
        let mut streams = self.lock();
        if let Some(entry) = streams.get_mut(&stream) {
            entry.feed = None;
            if entry.ended {
                streams.remove(&stream);
            }
        }
    }

    /// We have ended ours. False if there is no such stream, or it has ended already.
    pub(super) fn end_output(&self, stream: u32) -> bool {
        let mut streams = self.lock();
        match streams.get_mut(&stream) {
            Some(entry) if !entry.ended => {
                entry.ended = true;
                if entry.feed.is_none() {
                    streams.remove(&stream);
                }
                true
            }
            _ => false,
        }
    }

    /// Whether bytes may still be sent on it.
    pub(super) fn takes_output(&self, stream: u32) -> bool {
        self.lock().get(&stream).is_some_and(|entry| !entry.ended)
    }

    /// One of the sides has given it up. False if there is no such stream.
    pub(super) fn reset(&self, stream: u32) -> bool {
        let removed = self.lock().remove(&stream);
        if let Some(entry) = &removed {
            entry.reset.store(true, Relaxed);
        }
        removed.is_some()
    }

    // Readers see the end of their streams.
    fn clear(&self) {
        self.lock().clear();
    }
}

/// When something last went over a connection.
pub(super) struct Activity {
    begun: Instant,
    // Milliseconds since then.
    last: std::sync::atomic::AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { begun: Instant::now(), last: std::sync::atomic::AtomicU64::new(0) }
    }

    fn note(&self) {
        self.last.store(self.begun.elapsed().as_millis() as u64, Relaxed);
    }

    async fn idle(&self, limit: Duration) {
        loop {
            let until = self.begun + Duration::from_millis(self.last.load(Relaxed)) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// The reading half of a socket, with what was read ahead.
pub(super) struct Wire {
    half: OwnedReadHalf,
    buffer: BytesMut,
    activity: Arc<Activity>,
    room: Arc<Semaphore>,
}

impl Wire {
    /// Reads on until so many bytes are there; false if the socket ends before the first of them.
    pub(super) async fn fill(&mut self, count: usize) -> io::Result<bool> {
        while self.buffer.len() < count {
            self.buffer.reserve(PIECE.max(count - self.buffer.len()));
            let begun = !self.buffer.is_empty();
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return if begun { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(false) };
            }
            self.activity.note();
        }
        Ok(true)
    }

    /// One of the bytes that `fill` has seen to.
    pub(super) fn peek(&self, at: usize) -> u8 {
        self.buffer.get(at).copied().unwrap_or_default()
    }

    /// So many bytes; few enough to be held at once.
    pub(super) async fn take(&mut self, count: usize) -> io::Result<BytesMut> {
        if count > 0 && !self.fill(count).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.buffer.split_to(count))
    }

    /// Some of the next `most` bytes: what is there, a piece at most.
    pub(super) async fn some(&mut self, most: usize) -> io::Result<BytesMut> {
        if most > 0 && !self.fill(1).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = self.buffer.len().min(most).min(PIECE);
        Ok(self.buffer.split_to(count))
    }

    /// Gives bytes to a stream's reader, if there is one; waits for its room as long as the client is there.
    pub(super) async fn deliver(&self, shared: &Shared, stream: u32, bytes: &[u8]) -> io::Result<()> {
        for bytes in bytes.chunks(PIECE) {
            let Some(feed) = shared.streams.feed(stream) else { return Ok(()) };
            let sending = async {
                // Nobody closes it.
                if let Ok(room) = self.room.clone().acquire_many_owned(bytes.len() as u32).await {
                    // A copy of just these bytes: a slice would hold all that was read with them. If nobody listens any more,
                    // they are nobody's.
                    let _ = feed.send(Waiting { bytes: Bytes::copy_from_slice(bytes), _room: room }).await;
                }
            };
            tokio::select! {
                biased;
                () = sending => {}
                () = self.left(shared) => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        Ok(())
    }

    /// Returns when the client has closed the connection, though there is still something to read from it. What it has sent may
    /// be more than this side takes, and its end behind that: so it is sent something, which a socket that is closed refuses.
    async fn left(&self, shared: &Shared) {
        let stream: &TcpStream = self.half.as_ref();
        for round in 0_u32.. {
            tokio::time::sleep(LEFT_CHECK).await;
            if round % LEFT_PINGS == 0 {
                // A writer that is busy finds out by itself.
                let _ = shared.to.try_send(Out::Ping);
            }
            // The flag has no name in `nix`; those of a hang-up and an error are always looked for.
            let closed = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
            if poll(&mut [PollFd::new(stream.as_fd(), closed)], PollTimeout::ZERO).is_ok_and(|count| count > 0) {
                return;
            }
        }
    }
}

/// The writing half of a socket, and what is to be written.
struct Pen {
    half: OwnedWriteHalf,
    activity: Arc<Activity>,
    outgoing: mpsc::Receiver<Out>,
}

/// Written in one call, if there is so much.
const BATCH: usize = 128 << 10;

impl Pen {
    /// Writes all that is sent, as `encode` says it, up to the goodbye.
    async fn write(&mut self, mut encode: impl FnMut(Out, &mut Vec<u8>)) -> io::Result<()> {
        let mut said = false;
        while !said && let Some(out) = self.outgoing.recv().await {
            // Anew each time: an idle terminal costs no buffer.
            let mut batch = Vec::new();
            said = matches!(out, Out::Bye(_));
            encode(out, &mut batch);
            while !said
                && batch.len() < BATCH
                && let Ok(out) = self.outgoing.try_recv()
            {
                said = matches!(out, Out::Bye(_));
                encode(out, &mut batch);
            }
            self.half.write_all(&batch).await?;
            self.activity.note();
        }
        Ok(())
    }
}

/// What both tasks of a connection share.
#[derive(Clone)]
pub(super) struct Shared {
    /// Its streams.
    pub(super) streams: Arc<Streams>,
    /// The way to its writer.
    pub(super) to: mpsc::Sender<Out>,
}

/// A connection with its two tasks; they end with it.
pub(super) struct Connection {
    /// What its tasks share.
    pub(super) shared: Shared,
    gone: watch::Receiver<bool>,
    said: watch::Receiver<bool>,
    activity: Arc<Activity>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.streams.clear();
    }
}

impl Connection {
    /// Takes a socket over, with what was read from it before. `read` is the protocol's loop, and the client is gone when it ends;
    /// `encoder` makes what writes messages as the protocol does.
    pub(super) fn new<R, E>(
        (socket, early): (TcpStream, Bytes),
        read: impl FnOnce(Wire, Shared) -> R,
        encoder: impl FnOnce(Arc<Streams>) -> E,
    ) -> Self
    where
        R: Future<Output = io::Result<()>> + Send + 'static,
        E: FnMut(Out, &mut Vec<u8>) + Send + 'static,
    {
        let (reader, writer) = socket.into_split();
        let (to, outgoing) = mpsc::channel(OUTGOING);
        let activity = Arc::new(Activity::new());
        let shared = Shared { streams: Arc::default(), to };
        let room = Arc::new(Semaphore::new(BUFFERED));
        let wire = Wire { half: reader, buffer: BytesMut::from(&early[..]), activity: activity.clone(), room };
        let mut pen = Pen { half: writer, activity: activity.clone(), outgoing };
        let (leave, gone) = watch::channel(false);
        let (say, said) = watch::channel(false);
        let (reading, encode) = (read(wire, shared.clone()), encoder(shared.streams.clone()));
        let streams = shared.streams.clone();
        let left = leave.clone();
        let reader = tokio::spawn(async move {
            if let Err(error) = reading.await {
                debug!(%error, "client of a stream left");
            }
            streams.clear();
            left.send_replace(true);
        });
        let writer = tokio::spawn(async move {
            if let Err(error) = pen.write(encode).await {
                debug!(%error, "client of a stream takes nothing");
                leave.send_replace(true);
            }
            say.send_replace(true);
            // Held open: see `farewell`.
            std::future::pending::<()>().await;
        });
        Self { shared, gone, said, activity, tasks: [reader, writer] }
    }

    /// Returns when the client has gone, or nothing went either way for so long.
    pub(super) async fn over(&self, idle: Duration) {
        tokio::select! {
            () = self.left() => {}
            () = self.activity.idle(idle) => debug!("nothing streamed for too long"),
        }
    }

    async fn left(&self) {
        // The tasks hold the other end: its loss is an end, too.
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }

    /// Says goodbye and lets the client close: were we the first to, Go's clients might drop what they have not read yet.
    pub(super) async fn farewell(self, patience: Duration) {
        let farewell = async {
            // A reader that met a fault has said so already.
            let _ = self.shared.to.send(Out::Bye(0)).await;
            let _ = self.said.clone().wait_for(|said| *said).await;
            self.left().await;
        };
        let _ = tokio::time::timeout(patience, farewell).await;
    }
}
