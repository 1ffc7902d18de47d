//! Pipes, FIFOs and terminals as the async runtime sees them: non-blocking, no buffer of their own.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl, open},
    sys::stat::{Mode, SFlag, fstat},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Something to read from or write to that may have to be waited for.
#[derive(Debug)]
pub(super) struct Pipe(AsyncFd<OwnedFd>);

/// Registers a descriptor with the async runtime.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe for types that could lie about their descriptor; OwnedFd doesn't"
)]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Pipe {
    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self(watch(fd, interest)?))
    }

    /// An end to read from.
    pub(super) fn reader(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// An end to write to.
    pub(super) fn writer(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::WRITABLE)
    }

    /// A terminal, or a FIFO opened both ways.
    pub(super) fn both(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE | Interest::WRITABLE)
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    /// Waits until there may be something to read, or the end.
    pub(super) async fn readable(&self) -> io::Result<()> {
        // Readiness is kept until a read finds nothing.
        self.0.readable().await?.retain_ready();
        Ok(())
    }

    /// Reads what is there; `None` if there is nothing at the moment, `Some(0)` at the end.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.0.try_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last user has gone.
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => return Ok(Some(0)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads as [`Pipe::try_read`] does, but asks the kernel even if no readiness has been reported.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match nix::unistd::read(self.fd(), buffer) {
            Ok(count) => Ok(Some(count)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(nix::errno::Errno::EIO) => Ok(Some(0)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes what there is room for, asking the kernel; `None` if there is no room at the moment.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        loop {
            match nix::unistd::write(self.fd(), bytes) {
                Ok(count) => return Ok(Some(count)),
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for room and writes some of it.
    pub(super) async fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await
    }

    /// Waits for room and writes what `make` makes of that moment.
    pub(super) async fn write_made(&self, make: impl Fn() -> Vec<u8>) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, &make())?)).await
    }

    /// Writes all of it, however long the reader takes; EPIPE when there is none any more.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await;
            match written {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn open_fifo(path: &Path, access: OFlag) -> io::Result<OwnedFd> {
    let fd = open(path, access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())?;
    if SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFIFO {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a FIFO"));
    }
    Ok(fd)
}

/// Opens a FIFO to read; doesn't wait for a writer.
pub(super) fn open_reader(path: &Path) -> io::Result<OwnedFd> {
    open_fifo(path, OFlag::O_RDONLY)
}

/// Opens a FIFO to write; ENXIO if nobody has it open to read.
pub(super) fn open_writer(path: &Path) -> io::Result<OwnedFd> {
    open_fifo(path, OFlag::O_WRONLY)
}

/// Opens a FIFO both ways (fifo(7)): there is always a reader, so writing never fails.
pub(super) fn open_both(path: &Path) -> io::Result<OwnedFd> {
    open_fifo(path, OFlag::O_RDWR)
}

/// Lets a pipe hold 1 MiB, where the limits allow it.
pub(super) fn enlarge(pipe: impl AsFd) {
    // Smaller works too, with more turns.
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(1 << 20));
}
