//! Where callers come in: a socket of our own making, or one that the service manager listens on already.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{getsockopt, sockopt},
    stat::{Mode, umask},
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tracing::warn;

use super::roots::{RootError, make_folder};

/// The name that a passed socket has (`FileDescriptorName=`), unless it is the only one.
pub(super) const NAME: &str = "supervisor";

/// Why nobody can come in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    /// The socket can't be made.
    #[error("listen on {at}")]
    Listen {
        /// The socket.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Something that isn't a socket lies where ours should be.
    #[error("listen on {at}: a file that is not a socket is there; move it away")]
    NotASocket {
        /// The path.
        at: PathBuf,
    },
    /// What was passed isn't what we serve on.
    #[error("socket {name:?} passed by the service manager is no listening unix socket with a path")]
    Passed {
        /// Its name.
        name: String,
    },
    /// Several sockets, none of them ours.
    #[error("{count} sockets were passed by the service manager, but none is named {NAME:?} (FileDescriptorName=)")]
    Unnamed {
        /// How many.
        count: usize,
    },
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] RootError),
}

/// A socket, and whose it is.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    /// Whether it is ours to remove.
    pub(super) ours: bool,
}

impl Door {
    /// Takes the socket that was passed; without one, makes ours at `path`.
    pub(super) fn open(path: &Path, mut passed: Vec<(String, OwnedFd)>) -> Result<Self, DoorError> {
        let at = match passed.len() {
            0 => return Ok(Self { listener: bind(path)?, path: path.to_owned(), ours: true }),
            1 => 0,
            count => passed.iter().position(|(name, _)| name == NAME).ok_or(DoorError::Unnamed { count })?,
        };
        let (name, socket) = passed.swap_remove(at);
        let (listener, path) = take(socket).ok_or(DoorError::Passed { name })?;
        Ok(Self { listener, path, ours: false })
    }
}

fn take(socket: OwnedFd) -> Option<(UnixListener, PathBuf)> {
    if getsockopt(&socket.as_fd(), sockopt::AcceptConn) != Ok(true) {
        return None;
    }
    let listener = std::os::unix::net::UnixListener::from(socket);
    let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
    listener.set_nonblocking(true).ok()?;
    Some((UnixListener::from_std(listener).ok()?, path))
}

fn bind(at: &Path) -> Result<UnixListener, DoorError> {
    let failed = |cause| DoorError::Listen { at: at.to_owned(), cause };
    if let Some(folder) = at.parent() {
        make_folder(folder, 0o711)?;
    }
    match std::fs::symlink_metadata(at) {
        // We hold the lock, so a socket there belongs to nobody who lives.
        Ok(old) if old.file_type().is_socket() => std::fs::remove_file(at).map_err(failed)?,
        Ok(_) => return Err(DoorError::NotASocket { at: at.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // The socket is the owner's alone from its first moment; a chmod afterwards would leave a gap.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(at);
    umask(before);
    bound.map_err(failed)
}

/// How long nobody is let in once descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// How long nothing more is said about it.
const SILENCE: Duration = Duration::from_secs(10);

/// Callers as they come in. A failure to let one in is no reason to end, nor to try without pause: out of descriptors, the
/// caller stays in the queue, and the next try is worth something only once somebody has left.
#[derive(Debug)]
pub(super) struct Callers {
    listener: UnixListener,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    told: Option<Instant>,
}

impl Callers {
    pub(super) fn of(listener: UnixListener) -> Self {
        Self { listener, pause: None, told: None }
    }
}

impl Stream for Callers {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            match std::task::ready!(this.listener.poll_accept(cx)) {
                Ok((stream, _)) => return Poll::Ready(Some(Ok(stream))),
                Err(error) => {
                    if this.told.is_none_or(|told| told.elapsed() > SILENCE) {
                        this.told = Some(Instant::now());
                        warn!(%error, "connection not accepted; it waits (raise LimitNOFILE if descriptors ran out)");
                    }
                    this.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }
}
