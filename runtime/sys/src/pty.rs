//! Pseudo terminals: opening them, their size, and making one the controlling terminal.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::raw::{check, own};

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Number of lines.
    pub rows: u16,
    /// Number of characters in a line.
    pub columns: u16,
}

/// Both ends of a new pseudo terminal.
#[derive(Debug)]
pub struct Pty {
    /// The end a terminal emulator, or an attached client, holds.
    pub master: OwnedFd,
    /// The end the process has as stdin, stdout and stderr.
    pub peer: OwnedFd,
}

const MASTER_FLAGS: OFlag = OFlag::O_RDWR.union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Opens a pseudo terminal of the host's devpts.
pub fn open_pty() -> Result<Pty, Errno> {
    pair(open(Path::new("/dev/ptmx"), MASTER_FLAGS, Mode::empty())?)
}

/// Opens a pseudo terminal of the devpts instance whose root directory is `devpts`.
///
/// The caller has made sure that the directory is one (`fstatfs`); `ptmx` inside it is then the kernel's own.
pub fn open_pty_at(devpts: impl AsFd) -> Result<Pty, Errno> {
    pair(openat(devpts, "ptmx", MASTER_FLAGS | OFlag::O_NOFOLLOW, Mode::empty())?)
}

/// Unlocks the master and opens its peer through the master itself (TIOCGPTPEER, Linux 4.13).
///
/// Never by the name `/dev/pts/N`: a container may have replaced that (CVE-2025-52565).
fn pair(master: OwnedFd) -> Result<Pty, Errno> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which lives until the call returns.
    check(libc::c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked) }))?;
    let flags = MASTER_FLAGS.bits();
    // SAFETY: TIOCGPTPEER takes the open flags by value and returns a new descriptor.
    let peer = own(libc::c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }))?;
    Ok(Pty { master, peer })
}

/// Sets the size of the terminal (TIOCSWINSZ); its foreground processes get SIGWINCH.
pub fn set_size(terminal: impl AsFd, size: Size) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the call returns.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) })).map(drop)
}

/// Reads the size of the terminal (TIOCGWINSZ).
pub fn size(terminal: impl AsFd) -> Result<Size, Errno> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills one winsize, a valid place for it.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) }))?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Makes the terminal the controlling one of this session leader (TIOCSCTTY).
pub fn make_controlling(terminal: impl AsFd) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer by value.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) })).map(drop)
}

/// Turns off all processing of input and output, so that bytes pass as they are. Returns the former settings.
pub fn make_raw(terminal: impl AsFd) -> Result<nix::sys::termios::Termios, Errno> {
    use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
    let former = tcgetattr(terminal.as_fd())?;
    let mut raw = former.clone();
    cfmakeraw(&mut raw);
    tcsetattr(terminal.as_fd(), SetArg::TCSANOW, &raw)?;
    Ok(former)
}

/// Connects to a console socket by path, as a runtime does. Paths beyond the 108 bytes of an address are EINVAL.
pub fn connect_console(path: &Path) -> Result<OwnedFd, Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Opens the other end of the terminal that `master` belongs to (TIOCGPTPEER), without a name that could lead elsewhere.
pub fn open_peer(master: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = MASTER_FLAGS.bits();
    // SAFETY: TIOCGPTPEER takes the open flags by value and returns a new descriptor.
    own(libc::c_long::from(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{read, write};

    #[test]
    fn bytes_and_size_pass() {
        let pty = open_pty().expect("a pty");
        make_raw(&pty.peer).expect("raw mode");
        write(&pty.peer, b"hello").expect("write");
        let mut buffer = [0; 16];
        let count = read(&pty.master, &mut buffer).expect("read");
        assert_eq!(&buffer[..count], b"hello");
        set_size(&pty.master, Size { rows: 33, columns: 77 }).expect("resize");
        assert_eq!(size(&pty.peer), Ok(Size { rows: 33, columns: 77 }));
    }
}
