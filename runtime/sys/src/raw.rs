//! The two conversions every system call here goes through.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::NixPath;
use nix::errno::Errno;

/// Turns the result of a raw call into a `Result`.
pub(crate) fn check(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value < 0 { Err(Errno::last()) } else { Ok(value) }
}

/// Takes ownership of the descriptor a raw call returned.
pub(crate) fn own(value: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = check(value)?;
    // SAFETY: the call just created this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Runs `call` with `path` as a C string; a path with a NUL inside is EINVAL.
pub(crate) fn with_path<P: NixPath + ?Sized, T>(
    path: &P,
    call: impl FnOnce(*const libc::c_char) -> Result<T, Errno>,
) -> Result<T, Errno> {
    path.with_nix_path(|text| call(text.as_ptr()))?
}
