//! Credentials of the calling thread: ids, groups, capability sets, no_new_privs.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::raw::check;

/// Sets real, effective and saved group id of this thread (no broadcast to other threads, as libc would do).
pub fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Sets real, effective and saved user id of this thread.
pub fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Replaces the supplementary groups of this thread.
pub fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `len` ids from the slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Supplementary groups of the process that connected a unix stream socket, as they were then (SO_PEERGROUPS, Linux 4.13).
pub fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    const NAME: libc::c_int = 59;
    let mut groups = vec![0u32; 64];
    loop {
        let mut length = libc::socklen_t::try_from(groups.len() * size_of::<u32>()).map_err(|_| Errno::EOVERFLOW)?;
        let asked = socket.as_raw_fd();
        // SAFETY: the kernel writes at most `length` bytes into the vector, and how many it has into `length`.
        let result =
            unsafe { libc::getsockopt(asked, libc::SOL_SOCKET, NAME, groups.as_mut_ptr().cast(), &raw mut length) };
        let count = length as usize / size_of::<u32>();
        match Errno::result(result) {
            // It tells how many there are; not more than 65536 (setgroups(2)).
            Err(Errno::ERANGE) if count > groups.len() && count <= 1 << 16 => groups.resize(count, 0),
            Err(errno) => return Err(errno),
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
        }
    }
}

/// The three sets that capset(2) knows, a bit per capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapSets {
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// May pass an execve.
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets effective, permitted and inheritable capabilities of this thread.
pub fn set_caps(sets: CapSets) -> Result<(), Errno> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the header goes with two data structs.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) }).map(drop)
}

/// The effective, permitted and inheritable capabilities of this thread.
pub fn caps() -> Result<CapSets, Errno> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 of the header goes with two data structs, which the kernel fills.
    check(unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapSets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

fn prctl(option: libc::c_int, second: libc::c_ulong, third: libc::c_ulong) -> Result<libc::c_long, Errno> {
    // SAFETY: the options used here take integers and no pointer.
    check(libc::c_long::from(unsafe { libc::prctl(option, second, third, 0, 0) }))
}

/// Whether a capability is in the bounding set; `EINVAL` says that the kernel does not know it.
pub fn in_bounding_set(capability: u8) -> Result<bool, Errno> {
    Ok(prctl(libc::PR_CAPBSET_READ, capability.into(), 0)? == 1)
}

/// Takes a capability out of the bounding set for good.
pub fn drop_bounding(capability: u8) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Adds a capability, permitted and inheritable already, to the ambient set.
pub fn raise_ambient(capability: u8) -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, capability.into()).map(drop)
}

/// Empties the ambient set.
pub fn clear_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0).map(drop)
}

/// Whether permitted capabilities stay when the user id changes from 0.
pub fn set_keep_caps(on: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, on.into(), 0).map(drop)
}

/// No execve gives more privileges from now on; cannot be undone.
pub fn set_no_new_privs() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}
