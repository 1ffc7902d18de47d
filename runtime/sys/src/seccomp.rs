//! Loading of seccomp filters (seccomp(2), Linux 3.17).

use nix::errno::Errno;

use crate::raw::check;

/// One instruction of classic BPF, laid out as the kernel wants it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a condition holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Flags of [`load`], as the kernel numbers them.
pub mod flag {
    /// All threads of the process get the filter.
    pub const TSYNC: u64 = 1;
    /// Actions other than "allow" are logged.
    pub const LOG: u64 = 2;
    /// Speculative store bypass stays as it is.
    pub const SPEC_ALLOW: u64 = 4;
}

#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const Instruction,
}

/// Puts a filter on this thread. Without no_new_privs this takes CAP_SYS_ADMIN (`EACCES`).
pub fn load(filter: &[Instruction], flags: u64) -> Result<(), Errno> {
    let len = libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::E2BIG)?;
    let program = Program { len, filter: filter.as_ptr() };
    const SET_MODE_FILTER: libc::c_uint = 1;
    // SAFETY: the program points to `len` instructions that outlive the call.
    let result = check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags as libc::c_uint, &program) })?;
    // With TSYNC a positive result is the id of a thread that could not follow.
    if result == 0 { Ok(()) } else { Err(Errno::ESRCH) }
}

/// Whether the kernel knows an action (a `SECCOMP_RET_*` value).
pub fn action_available(action: u32) -> bool {
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    // SAFETY: the kernel reads one u32.
    unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &action) == 0 }
}
