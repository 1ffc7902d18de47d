//! Sockets in a container's namespace, opened for the questions that are asked from there.
//!
//! Entering a namespace takes a thread, and up to a millisecond on a busy machine. So it is done beside the thread that serves
//! everybody, and once for all questions that wait for it.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

/// Most sockets that are opened at once.
const AT_ONCE: usize = 32;

/// The way into one namespace.
#[derive(Debug)]
pub(super) struct Doors {
    namespace: Arc<OwnedFd>,
    kinds: [Kind; 4],
}

/// Sockets of one kind.
#[derive(Debug, Default)]
struct Kind {
    /// Questions that want one.
    wanted: Cell<usize>,
    /// Held by the one who enters the namespace for all.
    entering: Mutex<()>,
    open: RefCell<Vec<OwnedFd>>,
}

/// Opens a socket in the namespace of the calling thread.
pub(super) fn open_here(family: AddressFamily, kind: SockType) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, kind, flags, None)?)
}

impl Doors {
    pub(super) fn new(namespace: OwnedFd) -> Self {
        Self { namespace: Arc::new(namespace), kinds: Default::default() }
    }

    /// A socket that nobody else has used.
    pub(super) async fn open(&self, family: AddressFamily, kind: SockType) -> io::Result<OwnedFd> {
        let number = usize::from(family == AddressFamily::Inet6) * 2 + usize::from(kind == SockType::Stream);
        let sockets = &self.kinds[number];
        sockets.wanted.set(sockets.wanted.get() + 1);
        let _wanted = Wanted(&sockets.wanted);
        let _entering = sockets.entering.lock().await;
        if let Some(socket) = sockets.open.borrow_mut().pop() {
            return Ok(socket);
        }
        let (count, namespace) = (sockets.wanted.get().min(AT_ONCE), self.namespace.clone());
        let enter = move || {
            let open = || (0..count).map(|_| open_here(family, kind)).collect::<io::Result<Vec<_>>>();
            sys::netns::within(namespace.as_fd(), open).map_err(|error| error.cause)?
        };
        let mut opened = spawn_blocking(enter).await.map_err(io::Error::other)??;
        let first = opened.pop().ok_or(io::ErrorKind::NotFound)?;
        sockets.open.borrow_mut().append(&mut opened);
        Ok(first)
    }
}

/// Counts one as long as it waits.
struct Wanted<'a>(&'a Cell<usize>);

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
