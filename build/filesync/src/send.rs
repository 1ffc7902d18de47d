//! The side that has the folder.

use crate::{
    mode,
    walk::{Filtered, WalkError, open_below, open_folder_at, walk},
};
use bytes::{Bytes, BytesMut};
use nix::fcntl::OFlag;
use proto::{
    fsutil::types::{Packet, Stat, packet::PacketType},
    kind::chain,
};
use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};

/// Content goes in parts of this size at most.
const PART: usize = 64 << 10;
/// These many files are read at once.
const AT_ONCE: usize = 4;

/// What of a folder is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only these, if there are any, and the folders that lead to them.
    pub include: Vec<String>,
    /// Not these; `!` takes back.
    pub exclude: Vec<String>,
    /// Symbolic links at these paths are followed: what they lead to goes along.
    pub follow: Vec<String>,
    /// Whether everything belongs to 0:0 on the other side: a context, whose owners mean nothing there.
    pub owned_by_root: bool,
}

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The other side has said so.
    #[error("the receiver: {0}")]
    Refused(String),
    /// The other side is gone.
    #[error("the receiver has gone")]
    Gone,
    /// The other side breaks the protocol.
    #[error("the receiver breaks the protocol: {0}")]
    Protocol(String),
    /// A file here.
    #[error("read {path}")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file that somebody writes to.
    #[error("{path} changed while it was sent: {sent} bytes of the {size} that it had")]
    Changed {
        /// Its path.
        path: String,
        /// What there was of it.
        sent: u64,
        /// What there was to be.
        size: u64,
    },
    /// The folder.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// A thread of ours broke down.
    #[error("a thread that sends files broke down")]
    Thread(#[source] JoinError),
}

/// What the threads share.
struct Shared {
    root: OwnedFd,
    /// Files that may be asked for, each once.
    files: Mutex<HashMap<u32, (String, u64)>>,
    queue: Mutex<Queue>,
    outgoing: mpsc::Sender<Packet>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Queue {
    wanted: VecDeque<(u32, String, u64)>,
    running: usize,
}

/// Ends the threads when the one they work for is gone.
struct Stop(Arc<Shared>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
        lock(&self.0.queue).wanted.clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends what `filter` leaves of `folder`: packets of the other side come in by `incoming`, ours go out by `outgoing`.
pub async fn send(
    folder: &Path,
    filter: &Filter,
    incoming: mpsc::Receiver<Packet>,
    outgoing: mpsc::Sender<Packet>,
) -> Result<(), SendError> {
    match open_folder_at(folder) {
        Ok(root) => send_folder(root, filter, incoming, outgoing).await,
        Err(cause) => {
            let error = SendError::Read { path: folder.display().to_string(), cause: cause.into() };
            tell_failure(&outgoing, &error).await;
            Err(error)
        }
    }
}

/// The same for a folder that is open.
pub async fn send_folder(
    folder: OwnedFd,
    filter: &Filter,
    incoming: mpsc::Receiver<Packet>,
    outgoing: mpsc::Sender<Packet>,
) -> Result<(), SendError> {
    let told = outgoing.clone();
    let result = exchange(folder, filter, incoming, outgoing).await;
    if let Err(error) = &result
        && !matches!(error, SendError::Refused(_) | SendError::Gone)
    {
        tell_failure(&told, error).await;
    }
    result
}

/// Without it the other side would only see us go.
async fn tell_failure(outgoing: &mpsc::Sender<Packet>, error: &SendError) {
    let data = Bytes::from(chain(error));
    let _ = outgoing.send(Packet { r#type: PacketType::PacketErr.into(), data, ..Packet::default() }).await;
}

async fn exchange(
    root: OwnedFd,
    filter: &Filter,
    mut incoming: mpsc::Receiver<Packet>,
    outgoing: mpsc::Sender<Packet>,
) -> Result<(), SendError> {
    let (files, queue, stopped) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
    let shared = Arc::new(Shared { root, files, queue, outgoing, stopped });
    let _stop = Stop(shared.clone());
    let mut threads = JoinSet::new();
    {
        let (shared, filter) = (shared.clone(), filter.clone());
        threads.spawn_blocking(move || tell(&shared, &filter));
    }
    loop {
        let packet = tokio::select! {
            packet = incoming.recv() => packet.ok_or(SendError::Gone)?,
            Some(ended) = threads.join_next() => {
                ended.map_err(SendError::Thread)??;
                continue;
            }
        };
        match packet.r#type() {
            PacketType::PacketReq => {
                let asked = lock(&shared.files).remove(&packet.id);
                let Some((path, size)) = asked else {
                    return Err(SendError::Protocol(format!("invalid file id {}", packet.id)));
                };
                let mut queue = lock(&shared.queue);
                queue.wanted.push_back((packet.id, path, size));
                if queue.running < AT_ONCE {
                    queue.running += 1;
                    let shared = shared.clone();
                    threads.spawn_blocking(move || send_files(&shared));
                }
            }
            PacketType::PacketFin => {
                // A failure that is on its way is one.
                while let Some(ended) = threads.join_next().await {
                    ended.map_err(SendError::Thread)??;
                }
                return send_packet(&shared, Packet { r#type: PacketType::PacketFin.into(), ..Packet::default() })
                    .await;
            }
            PacketType::PacketErr => {
                return Err(SendError::Refused(String::from_utf8_lossy(&packet.data).into_owned()));
            }
            PacketType::PacketStat | PacketType::PacketData => {
                return Err(SendError::Protocol("it sends files".into()));
            }
        }
    }
}

async fn send_packet(shared: &Shared, packet: Packet) -> Result<(), SendError> {
    shared.outgoing.send(packet).await.map_err(|_| SendError::Gone)
}

fn send_now(shared: &Shared, packet: Packet) -> Result<(), SendError> {
    shared.outgoing.blocking_send(packet).map_err(|_| SendError::Gone)
}

/// Tells of all that there is.
fn tell(shared: &Shared, filter: &Filter) -> Result<(), SendError> {
    let filtered = Filtered::new(shared.root.as_fd(), filter)?;
    let mut count: u32 = 0;
    walk(shared.root.as_fd(), &filtered, &mut |stat: Stat| {
        if shared.stopped.load(Ordering::Relaxed) {
            return Err(SendError::Gone);
        }
        if mode::is_file(stat.mode) {
            let size = u64::try_from(stat.size).unwrap_or_default();
            lock(&shared.files).insert(count, (stat.path.clone(), size));
        }
        let full = || SendError::Protocol("there are more files than it has numbers for".into());
        count = count.checked_add(1).ok_or_else(full)?;
        let packet = Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() };
        send_now(shared, packet)
    })?;
    send_now(shared, Packet { r#type: PacketType::PacketStat.into(), ..Packet::default() })
}

fn send_files(shared: &Shared) -> Result<(), SendError> {
    let mut buffer = BytesMut::new();
    loop {
        let next = {
            let mut queue = lock(&shared.queue);
            let next = queue.wanted.pop_front();
            if next.is_none() {
                queue.running -= 1;
            }
            next
        };
        let Some((id, path, size)) = next else { return Ok(()) };
        send_file(shared, &mut buffer, id, path, size)?;
    }
}

fn send_file(shared: &Shared, buffer: &mut BytesMut, id: u32, path: String, size: u64) -> Result<(), SendError> {
    let failed = |cause: io::Error| SendError::Read { path: path.clone(), cause };
    // What became a pipe meanwhile must not be waited for.
    let opened = open_below(shared.root.as_fd(), &path, OFlag::O_RDONLY | OFlag::O_NONBLOCK);
    let mut file = File::from(opened.map_err(|errno| failed(errno.into()))?);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no longer a file")));
    }
    let mut sent = 0;
    loop {
        if shared.stopped.load(Ordering::Relaxed) {
            return Err(SendError::Gone);
        }
        let space = PART.min(usize::try_from(size.saturating_sub(sent)).unwrap_or(PART).max(512));
        buffer.resize(space, 0);
        let count = match file.read(buffer) {
            Ok(count) => count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(failed(cause)),
        };
        if count == 0 {
            break;
        }
        sent += count as u64;
        let data = buffer.split_to(count).freeze();
        send_now(shared, Packet { r#type: PacketType::PacketData.into(), id, data, ..Packet::default() })?;
    }
    if sent < size {
        return Err(SendError::Changed { path, sent, size });
    }
    send_now(shared, Packet { r#type: PacketType::PacketData.into(), id, ..Packet::default() })
}
