//! Namespaces: which kind a descriptor is, entering those of another process.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;

use crate::raw::check;

/// The time namespace's flag; it shares its bit with the exit signal of clone(2), hence is for clone3, unshare and setns.
pub const CLONE_NEWTIME: u64 = 0x80;

/// What kind of namespace a descriptor is, as its `CLONE_NEW*` flag (NS_GET_NSTYPE, Linux 4.11).
pub fn kind(namespace: impl AsFd) -> Result<u64, Errno> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request has no argument; on something else than a namespace it fails with ENOTTY.
    let flags = check(libc::c_long::from(unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_NSTYPE) }))?;
    Ok(flags as u64)
}

/// Enters a namespace (`flags` its kind), or, given a pidfd, every namespace of that process named in `flags` (Linux 5.8).
///
/// The kernel takes the user namespace first, so that a container's other namespaces may follow in the same call.
pub fn enter(handle: impl AsFd, flags: u64) -> Result<(), Errno> {
    // SAFETY: integers only. Kinds that a process with threads may not change are refused by the kernel.
    check(libc::c_long::from(unsafe { libc::setns(handle.as_fd().as_raw_fd(), flags as libc::c_int) })).map(drop)
}

/// Moves this process into new namespaces (unshare(2)); pid and time namespaces take effect for its children.
pub fn unshare(flags: u64) -> Result<(), Errno> {
    // Only namespace flags: CLONE_FILES and the like would change what other threads see.
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET;
    if flags & !(namespaces.bits() as u64 | CLONE_NEWTIME) != 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: integers only.
    check(libc::c_long::from(unsafe { libc::unshare(flags as libc::c_int) })).map(drop)
}

/// Sets the NIS domain name of this uts namespace.
pub fn set_domain_name(name: &str) -> Result<(), Errno> {
    // SAFETY: the kernel reads `len` bytes from the string.
    check(libc::c_long::from(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })).map(drop)
}
