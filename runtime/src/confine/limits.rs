//! Resource limits, and the scores and labels that are written to /proc.

#![expect(clippy::disallowed_methods, reason = "the host's procfs, and checked to be that")]

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::resource::{getrlimit, setrlimit};
use sys::Errno;
use sys::path::{Within, open_within};

use crate::plan::process::LimitStep;

/// Sets a limit of this process. Without CAP_SYS_RESOURCE a hard limit cannot be raised: then the limit is as near as may be,
/// and what it came to is returned.
pub(crate) fn set(step: &LimitStep) -> Result<Option<u64>, Errno> {
    match setrlimit(step.resource, step.soft, step.hard) {
        Err(Errno::EPERM) => {
            let (_, hard) = getrlimit(step.resource)?;
            setrlimit(step.resource, step.soft.min(hard), step.hard.min(hard))?;
            Ok(Some(hard))
        }
        other => other.map(|()| None),
    }
}

/// Writes a file of procfs below `proc`, a handle on its root, without following anything that could lead elsewhere
/// (CVE-2025-52881: a mount or link may have been put in the way).
pub(crate) fn write_proc(proc: impl AsFd, path: &str, value: &[u8]) -> Result<(), Errno> {
    let file = open_within(proc, path, OFlag::O_WRONLY, 0, Within::Plain)?;
    let count = nix::unistd::write(&file, value)?;
    if count == value.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// A handle on the host's procfs, checked to be one (its magic number, and its root being inode 1).
pub(crate) fn open_proc() -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let proc = nix::fcntl::open("/proc", flags, nix::sys::stat::Mode::empty())?;
    let is_root = nix::sys::stat::fstat(&proc)?.st_ino == 1;
    if sys::path::filesystem_magic(&proc)? != sys::path::PROC_MAGIC || !is_root {
        return Err(Errno::ENODEV);
    }
    Ok(proc)
}
