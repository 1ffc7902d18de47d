//! Takes over the terminal that a runtime opens inside the container (runc, docs/terminals.md).

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    time::Duration,
};

/// A socket on which a runtime hands over one terminal master. The path is gone when this is.
#[derive(Debug)]
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens at `path`.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let console = Self { listener, path: path.to_owned() };
        console.listener.set_nonblocking(true)?;
        Ok(console)
    }

    /// Where it listens.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The master. The runtime has ended by now, and it doesn't end well before it has sent it; so nothing is waited for.
    pub(super) fn receive(self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let (_, fds) = sys::fd::recv_fds(&stream, &mut [0; 4096])?;
        let master = fds.into_iter().next();
        master.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came with the message"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Nobody else uses the path, and a socket left over is found by its bind in the worst case.
        let _ = fs::remove_file(&self.path);
    }
}
