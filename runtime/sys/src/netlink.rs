//! Options of netlink sockets that `nix` has no name for.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Asks the kernel for error texts (`NETLINK_EXT_ACK`, Linux 4.12) and for acknowledgements that don't repeat the
/// request (`NETLINK_CAP_ACK`, Linux 4.3).
pub fn extend_acknowledgements(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    switch_on(socket, libc::NETLINK_EXT_ACK)?;
    switch_on(socket, libc::NETLINK_CAP_ACK)
}

fn switch_on(socket: BorrowedFd<'_>, option: libc::c_int) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to a live c_int and the length given is its size; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}
