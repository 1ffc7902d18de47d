//! `GET /containers/{id}/export`: a container's root file system as a tar, written while it is sent.

use super::{
    Container,
    changes::names,
    layers::{Layers, LayersError},
    record::Phase,
    rootfs,
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    patience::Turn,
    tar::{Kind, TarWriter},
};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};
use proto::kind::chain;
use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of one piece of the answer.
const PIECE: usize = 128 << 10;
/// Pieces that wait for the client: few, since many may stall.
pub(super) const AHEAD: usize = 2;
/// Deeper trees than this are refused: a descriptor is open per level.
const DEPTH: usize = 400;

/// Why the tree can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Layers(#[from] LayersError),
    #[error("read {path}")]
    Read {
        path: String,
        #[source]
        cause: io::Error,
    },
    #[error("{0}: folders nested deeper than {DEPTH}")]
    Deep(String),
    /// The client has gone.
    #[error("send")]
    Send(#[source] io::Error),
}

/// The archive. What fails before its first byte is an error status, later it ends in the middle.
pub async fn export(
    app: &Arc<App>,
    container: &Arc<Container>,
) -> ApiResult<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>> {
    let turn = Turn::take().await.map_err(|e| ApiError::unexpected(&e))?;
    let record = container.record();
    if record.state.phase == Phase::Removing {
        return Err(ApiError::conflict(format!("You cannot export container {} which is being removed", record.id)));
    }
    let name = record.name.clone();
    let failed = |error: &dyn std::error::Error| {
        ApiError::internal(format!("export container {}: {}", record.name, chain(error)))
    };
    let mounts = rootfs::mounts(app, container, &record).await.map_err(|e| failed(&e))?;
    // A mount that only this process has, and that goes with its descriptor.
    let opened = tokio::task::spawn_blocking(move || Layers::open(&mounts)?.folder("/")).await;
    let root = opened.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    let root = root.ok_or_else(|| ApiError::internal(format!("export container {name}: it has no root")))?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let work = move || {
        let sink = Sink::new(sender.clone());
        match write_tree(&root, sink) {
            Ok(()) => {}
            Err(ExportError::Send(_)) => tracing::debug!(container = name, "export ended by its client"),
            Err(error) => {
                tracing::warn!(container = name, error = %chain(&error), "export failed");
                // A cut archive must not look whole.
                let _ = sender.blocking_send(Err(io::Error::other(error)));
            }
        }
    };
    turn.run("export", work).map_err(|e| ApiError::internal(format!("export: start a thread: {e}")))?;
    Ok(ReceiverStream::new(receiver))
}

/// Hands pieces to the answer; waits for a client that reads slowly.
pub struct Sink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Sink {
    /// Into this channel.
    pub fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self { sender, buffer: BytesMut::with_capacity(PIECE) }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PIECE)).freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The archive of open roots, each below a folder of its name if it has one; written by a thread of its own as it is read.
pub fn stream(roots: Vec<(Vec<u8>, OwnedFd)>) -> io::Result<ReceiverStream<io::Result<Bytes>>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let write = move |sink: Sink| -> Result<(), ExportError> {
        let mut walk = Walk::new(sink);
        for (name, root) in roots {
            match name.as_slice() {
                b"" => walk.folder(&root, &[], 0)?,
                name => {
                    let path = String::from_utf8_lossy(name).into_owned();
                    let stat = fstat(&root).map_err(|e| ExportError::Read { path, cause: e.into() })?;
                    walk.root(&root, name, &stat)?;
                }
            }
        }
        walk.finish().and_then(|mut sink| sink.flush()).map_err(ExportError::Send)
    };
    let work = move || match write(Sink::new(sender.clone())) {
        Ok(()) | Err(ExportError::Send(_)) => {}
        // A cut archive must not look whole.
        Err(error) => drop(sender.blocking_send(Err(io::Error::other(error)))),
    };
    std::thread::Builder::new().name("export".into()).stack_size(STACK).spawn(work)?;
    Ok(ReceiverStream::new(receiver))
}

/// Room for the deepest tree.
const STACK: usize = 16 << 20;

fn write_tree(root: &OwnedFd, sink: Sink) -> Result<(), ExportError> {
    let mut walk = Walk::new(sink);
    walk.folder(root, &[], 0)?;
    walk.finish().and_then(|mut sink| sink.flush()).map_err(ExportError::Send)
}

/// Writes trees into an archive.
pub(super) struct Walk<W> {
    tar: TarWriter<W>,
    // First names of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Folders, by device and inode, whose content is left out.
    pub(super) skipped: Vec<(u64, u64)>,
}

/// proc, sysfs, cgroup, cgroup2, devpts, mqueue: files there have no content of their own.
const KERNEL: [i64; 6] =
    [sys::path::PROC_MAGIC, 0x6265_6572, 0x0027_e0eb, sys::path::CGROUP2_MAGIC, sys::path::DEVPTS_MAGIC, 0x1980_0202];

impl<W: Write> Walk<W> {
    pub(super) fn new(output: W) -> Self {
        Self { tar: TarWriter::new(output), linked: HashMap::new(), skipped: Vec::new() }
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.tar.finish()
    }

    /// A folder under a name of its own, and all below it.
    pub(super) fn root(&mut self, folder: &OwnedFd, name: &[u8], stat: &FileStat) -> Result<(), ExportError> {
        self.tar.entry(name, Kind::Folder, stat, &[], &mut io::empty()).map_err(ExportError::Send)?;
        self.folder(folder, name, 0)
    }

    fn folder(&mut self, folder: &OwnedFd, path: &[u8], depth: usize) -> Result<(), ExportError> {
        let text = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
        if depth > DEPTH {
            return Err(ExportError::Deep(text(path)));
        }
        let stat = fstat(folder).map_err(|e| ExportError::Read { path: text(path), cause: e.into() })?;
        let kernel = sys::path::filesystem_magic(folder).is_ok_and(|magic| KERNEL.contains(&magic));
        if kernel || self.skipped.contains(&(stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let listed = names(folder).map_err(|e| ExportError::Read { path: text(path), cause: e.into() })?;
        for name in listed {
            let mut child = path.to_vec();
            if !child.is_empty() && !child.ends_with(b"/") {
                child.push(b'/');
            }
            child.extend_from_slice(name.to_bytes());
            let stat = match fstatat(folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Gone since it was listed: the container may run.
                Err(Errno::ENOENT) => continue,
                Err(e) => return Err(ExportError::Read { path: text(&child), cause: e.into() }),
            };
            match self.entry(folder, &name, &child, &stat, depth) {
                Err(ExportError::Read { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    pub(super) fn entry(
        &mut self,
        folder: &OwnedFd,
        name: &CStr,
        path: &[u8],
        stat: &FileStat,
        depth: usize,
    ) -> Result<(), ExportError> {
        let read = |cause: io::Error| ExportError::Read { path: format!("/{}", String::from_utf8_lossy(path)), cause };
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let sent = |cause: io::Error| match cause.kind() {
            io::ErrorKind::BrokenPipe => ExportError::Send(cause),
            _ => read(cause),
        };
        let none = &mut io::empty();
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                return self.tar.entry(path, Kind::HardLink(first), stat, &[], none).map_err(sent);
            }
            self.linked.insert(key, path.to_vec());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match kind {
            SFlag::S_IFDIR => {
                let below = openat(folder, name, flags | OFlag::O_DIRECTORY, Mode::empty());
                let below = below.map_err(|e| read(e.into()))?;
                self.tar.entry(path, Kind::Folder, stat, &xattrs(folder, name), none).map_err(sent)?;
                self.folder(&below, path, depth + 1)
            }
            SFlag::S_IFREG => {
                // What was a file may be a FIFO or a device by now, which to open alone does something.
                let held = openat(folder, name, OFlag::O_PATH | flags, Mode::empty()).map_err(|e| read(e.into()))?;
                let stat = &fstat(&held).map_err(|e| read(e.into()))?;
                if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
                    return Ok(());
                }
                let mut file = File::open(format!("/proc/self/fd/{}", held.as_raw_fd())).map_err(read)?;
                let size = stat.st_size.max(0) as u64;
                let xattrs = xattrs(folder, name);
                self.tar.entry(path, Kind::File(size), stat, &xattrs, &mut file).map_err(sent)
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(folder, name).map_err(|e| read(e.into()))?;
                let kind = Kind::Symlink(target.as_bytes());
                self.tar.entry(path, kind, stat, &[], none).map_err(sent)
            }
            SFlag::S_IFCHR => self.tar.entry(path, Kind::CharDevice, stat, &[], none).map_err(sent),
            SFlag::S_IFBLK => self.tar.entry(path, Kind::BlockDevice, stat, &[], none).map_err(sent),
            SFlag::S_IFIFO => self.tar.entry(path, Kind::Fifo, stat, &[], none).map_err(sent),
            // Sockets mean nothing without who listens; tar has no word for them.
            _ => Ok(()),
        }
    }
}

/// File capabilities and attributes of users; not what this machine's security module or overlay notes.
fn xattrs(folder: &OwnedFd, name: &CStr) -> Vec<(Vec<u8>, Vec<u8>)> {
    let path = [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let Ok(path) = CString::new(path) else { return Vec::new() };
    let keys = sys::xattr::llist(&path).unwrap_or_default();
    keys.into_iter()
        .filter(|key| key.starts_with(b"user.") || key == b"security.capability")
        .filter_map(|key| {
            let value = sys::xattr::lget(&path, &CString::new(key.clone()).ok()?).ok().flatten()?;
            Some((key, value))
        })
        .collect()
}
