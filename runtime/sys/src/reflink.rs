//! Files that share their blocks until one of them is written to (ioctl_ficlone(2)).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use crate::raw::check;

const FICLONE: libc::c_ulong = nix::request_code_write!(0x94, 9, size_of::<libc::c_int>());

/// Makes the content of `to` that of `from`, by sharing its blocks. `EOPNOTSUPP`, `ENOTTY`, `EXDEV` or `EINVAL` where the file
/// systems can't.
pub fn clone(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the request takes a descriptor by value.
    check(unsafe { libc::ioctl(to.as_fd().as_raw_fd(), FICLONE, from.as_fd().as_raw_fd()) }.into()).map(drop)
}
