//! Attributes of the calling task that have no better home: keyring, personality, scheduling, I/O priority, memory policy.

use std::ffi::CString;

use nix::errno::Errno;

use crate::raw::check;

/// Joins the session keyring of this name, made if need be, so that the one of the caller is out of reach. Returns its id.
pub fn join_session_keyring(name: &str) -> Result<i32, Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    let id = check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(id as i32)
}

/// Sets who may do what with a key or keyring: a byte each for its possessor, owner, group and others.
pub fn set_key_permissions(id: i32, permissions: u32) -> Result<(), Errno> {
    const KEYCTL_SETPERM: libc::c_int = 5;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, id, permissions) }).map(drop)
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
    /// Least utilisation that is assumed, with SCHED_FLAG_UTIL_CLAMP_MIN.
    pub utilisation_min: u32,
    /// Most utilisation that is assumed, with SCHED_FLAG_UTIL_CLAMP_MAX.
    pub utilisation_max: u32,
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

/// Sets the processors that a process may run on, a bit each; `None` is the caller itself.
pub fn set_cpu_affinity(pid: Option<nix::unistd::Pid>, mask: &[u64]) -> Result<(), Errno> {
    let pid = pid.map_or(0, nix::unistd::Pid::as_raw);
    // SAFETY: the kernel reads as many bytes as told, all of them inside the slice.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size_of_val(mask), mask.as_ptr()) }).map(drop)
}

/// The processors that the caller may run on, a bit each.
pub fn cpu_affinity() -> Result<Vec<u64>, Errno> {
    // As many as the kernel can be built for.
    let mut mask = vec![0_u64; 8192 / 64];
    // SAFETY: the kernel writes at most as many bytes as told, all of them inside the vector.
    let bytes =
        check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&*mask), mask.as_mut_ptr()) })?;
    mask.truncate((bytes as usize).div_ceil(8));
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_comes_back_as_it_was_set() {
        let before = cpu_affinity().expect("read");
        assert!(before.iter().any(|word| *word != 0));
        // More processors than there are is no mistake.
        let mut wide = before.clone();
        wide.resize(40, u64::MAX);
        set_cpu_affinity(None, &wide).expect("set");
        assert_eq!(cpu_affinity().expect("read"), before);
        assert_eq!(set_cpu_affinity(None, &[0]), Err(Errno::EINVAL));
    }
}
