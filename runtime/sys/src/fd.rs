//! Descriptors: passing them over unix sockets, duplicating them, closing what must not be inherited.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::raw::{check, own};

/// Most descriptors that [`recv_fds`] accepts with one message: as many as the kernel passes (SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// Sends `bytes` and, with them, descriptors (SCM_RIGHTS). At least one byte has to go along on a stream socket.
pub fn send_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        let slices = [IoSlice::new(bytes)];
        match sendmsg::<()>(socket.as_fd().as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Sends one byte and a descriptor without allocating anything: for a process whose system calls are filtered.
pub fn send_fd(socket: impl AsFd, byte: u8, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    #[repr(C)]
    struct Rights {
        header: libc::cmsghdr,
        fd: RawFd,
    }
    let mut byte = byte;
    let mut slice = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: a zeroed cmsghdr is a valid value.
    let mut rights = Rights { header: unsafe { std::mem::zeroed() }, fd: fd.as_raw_fd() };
    rights.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<RawFd>()) as _;
    rights.header.cmsg_level = libc::SOL_SOCKET;
    rights.header.cmsg_type = libc::SCM_RIGHTS;
    // SAFETY: a zeroed msghdr is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut rights).cast();
    message.msg_controllen = size_of::<Rights>() as _;
    loop {
        // SAFETY: everything that the message points to lives on this stack until the call returns.
        let result = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match check(result as libc::c_long) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives bytes and the descriptors that came with them, all close-on-exec. Zero bytes mean that the other end is closed.
pub fn recv_fds(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    loop {
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut fds = Vec::new();
        // A truncated control message has had its surplus descriptors closed by the kernel; the rest is whole.
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel just installed these descriptors for us, so nothing else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        return Ok((message.bytes, fds));
    }
}

/// Makes descriptor `number` a copy of `source` that is inherited across execve; what it was before is closed.
pub fn duplicate_onto(source: impl AsFd, number: RawFd) -> Result<(), Errno> {
    let source = source.as_fd().as_raw_fd();
    if source == number {
        // dup2 would leave close-on-exec set.
        // SAFETY: F_SETFD takes an integer.
        return check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })).map(drop);
    }
    // SAFETY: both are plain numbers; whoever owned `number` keeps a valid, if different, descriptor.
    check(libc::c_long::from(unsafe { libc::dup2(source, number) })).map(drop)
}

/// A close-on-exec copy of `source` whose number is `lowest` or above.
pub fn duplicate_above(source: impl AsFd, lowest: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and returns a new descriptor.
    own(libc::c_long::from(unsafe { libc::fcntl(source.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) }))
}

/// Sets or clears close-on-exec on a descriptor given by number, say one that was inherited. `EBADF` if there is none.
pub fn set_cloexec(number: RawFd, on: bool) -> Result<(), Errno> {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: F_SETFD takes an integer.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, flags) })).map(drop)
}

/// Whether a descriptor given by number is close-on-exec. `EBADF` if there is none.
pub fn is_cloexec(number: RawFd) -> Result<bool, Errno> {
    // SAFETY: F_GETFD takes nothing.
    let flags = check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_GETFD) }))?;
    Ok(flags & libc::c_long::from(libc::FD_CLOEXEC) != 0)
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2) with CLOSE_RANGE_CLOEXEC, Linux 5.11).
pub fn cloexec_from(first: RawFd) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: integers only; nothing is closed now, so no owner is surprised.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Takes over an inherited descriptor by its number, for instance a listener that a parent left open for us.
///
/// It gets a new, close-on-exec number and the old one is closed, so that nobody else can hold it by number: only
/// descriptors above stderr can be taken, and only once (`EBADF` after that).
pub fn take_inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    if number <= 2 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and returns a new descriptor, or EBADF.
    let owned = own(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }))?;
    // SAFETY: the caller names a number it inherited at start-up, which no Rust value owns.
    check(libc::c_long::from(unsafe { libc::close(number) }))?;
    Ok(owned)
}

/// Accepts a connection; it is close-on-exec and doesn't block.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let listener = listener.as_fd().as_raw_fd();
    // SAFETY: no address is asked for, so the call takes integers and null pointers; it returns a new descriptor.
    let accepted = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    own(libc::c_long::from(accepted))
}

/// A connected pair of sockets that keep message boundaries, close-on-exec.
pub fn message_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn descriptors_travel() {
        let (here, there) = message_pair().expect("pair");
        let (reader, writer) = std::io::pipe().expect("pipe");
        send_fds(&here, b"x", &[reader.as_fd()]).expect("send");
        drop(reader);
        let mut buffer = [0; 8];
        let (count, mut fds) = recv_fds(&there, &mut buffer).expect("receive");
        assert_eq!((count, fds.len()), (1, 1));
        let mut writer = writer;
        writer.write_all(b"through").expect("write");
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
    }

    #[test]
    fn one_descriptor_travels_without_memory() {
        let (here, there) = message_pair().expect("pair");
        let (reader, writer) = std::io::pipe().expect("pipe");
        send_fd(&here, b'l', writer.as_fd()).expect("send");
        drop(writer);
        let mut buffer = [0; 8];
        let (count, fds) = recv_fds(&there, &mut buffer).expect("receive");
        assert_eq!((count, buffer[0], fds.len()), (1, b'l', 1));
        drop(fds);
        let mut reader = reader;
        assert_eq!(reader.read(&mut buffer).expect("read"), 0, "it was the only writer left");
    }

    #[test]
    fn closed_socket_reads_as_nothing() {
        let (here, there) = message_pair().expect("pair");
        drop(here);
        assert_eq!(recv_fds(&there, &mut [0; 8]).expect("receive").0, 0);
    }

    #[test]
    fn standard_streams_cannot_be_taken() {
        assert_eq!(take_inherited(1).err(), Some(Errno::EINVAL));
        assert_eq!(take_inherited(-1).err(), Some(Errno::EINVAL));
    }
}
