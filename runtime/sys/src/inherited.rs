//! Descriptors a process was started with and doesn't want.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::raw::check;

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: integers only. That nothing else uses these descriptors is what the caller of `close_all_but` states.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Closes every descriptor above stderr except `keep` (close_range(2), Linux 5.9).
///
/// For a freshly forked child, before it opens anything of its own: a Rust value that owned one of the closed
/// descriptors would be left with a dead number.
pub fn close_all_but(keep: BorrowedFd<'_>) -> Result<(), Errno> {
    let keep = keep.as_raw_fd().unsigned_abs();
    close_range(3, keep.saturating_sub(1))?;
    close_range(keep + 1, libc::c_uint::MAX)
}
