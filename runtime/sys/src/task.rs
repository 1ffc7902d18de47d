//! Attributes of the calling task that have no better home: keyring, personality, scheduling, I/O priority, memory policy.

use std::ffi::CString;

use nix::errno::Errno;

use crate::raw::check;

/// Joins a new session keyring of this name, so that the one of the caller is out of reach.
pub fn join_session_keyring(name: &str) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

/// Sets the execution domain (personality(2)).
pub fn set_personality(persona: u64) -> Result<(), Errno> {
    // SAFETY: an integer only.
    check(libc::c_long::from(unsafe { libc::personality(persona) })).map(drop)
}

/// Sets the I/O priority of this process: class (1 real time, 2 best effort, 3 idle) and level.
pub fn set_io_priority(class: u8, level: u8) -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    let priority = (libc::c_int::from(class) << 13) | libc::c_int::from(level);
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) }).map(drop)
}

/// What sched_setattr(2) takes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// Size of the structure; filled in by [`set_scheduling`].
    pub size: u32,
    /// Policy number (SCHED_*).
    pub policy: u32,
    /// Flags (SCHED_FLAG_*).
    pub flags: u64,
    /// Nice value, for the ordinary policies.
    pub nice: i32,
    /// Priority, for the real time policies.
    pub priority: u32,
    /// Runtime of the deadline policy, ns.
    pub runtime: u64,
    /// Deadline of the deadline policy, ns.
    pub deadline: u64,
    /// Period of the deadline policy, ns.
    pub period: u64,
}

/// Sets the scheduling policy of this thread.
pub fn set_scheduling(scheduling: Scheduling) -> Result<(), Errno> {
    let scheduling = Scheduling { size: size_of::<Scheduling>() as u32, ..scheduling };
    // SAFETY: a complete sched_attr that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &scheduling, 0) }).map(drop)
}

/// Sets the memory policy of this thread: mode with flags, and the nodes as a bit mask.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<(), Errno> {
    let bits = nodes.len() * 64 + 1;
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads one bit less than told, all of them inside the slice.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, if nodes.is_empty() { 0 } else { bits }) })
        .map(drop)
}
