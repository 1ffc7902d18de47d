//! Pipes.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Puts up to `most` bytes that wait in one pipe into another one as well, by reference; they stay to be read from the first
/// (tee(2)). Doesn't wait: EAGAIN if the first is empty or the second is full.
pub fn tee(from: impl AsFd, to: impl AsFd, most: usize) -> Result<usize, Errno> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: the call takes two descriptors that are open for its time, and no pointer.
    let count = unsafe { libc::tee(from, to, most, libc::SPLICE_F_NONBLOCK) };
    Errno::result(count).map(isize::unsigned_abs)
}
