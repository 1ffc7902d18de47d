//! Loading of seccomp filters (seccomp(2), Linux 3.17).

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::raw::{check, own};

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
    /// Actions other than "allow" are logged.
    pub const LOG: u64 = 2;
    /// Speculative store bypass stays as it is.
    pub const SPEC_ALLOW: u64 = 4;
    /// The kernel makes a descriptor through which calls are answered (Linux 5.0).
    pub const NEW_LISTENER: u64 = 8;
    /// A call that its listener has seen can be interrupted by fatal signals only (Linux 5.19); needs NEW_LISTENER.
    pub const WAIT_KILLABLE_RECV: u64 = 32;
}

#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const Instruction,
}

const SET_MODE_FILTER: libc::c_uint = 1;

/// Puts a filter on this thread. Without no_new_privs this takes CAP_SYS_ADMIN (`EACCES`). With NEW_LISTENER the listener's
/// descriptor comes back, close-on-exec.
pub fn load(filter: &[Instruction], flags: u64) -> Result<Option<OwnedFd>, Errno> {
    let len = libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::E2BIG)?;
    let program = Program { len, filter: filter.as_ptr() };
    // SAFETY: the program points to `len` instructions that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags as libc::c_uint, &program) };
    if flags & flag::NEW_LISTENER == 0 { check(result).map(|_| None) } else { own(result).map(Some) }
}

/// Whether the kernel knows one of the flags: only then it gets to looking at the program, and there is none.
pub fn flag_available(flag: u64) -> bool {
    let flags = if flag == flag::WAIT_KILLABLE_RECV { flag | flag::NEW_LISTENER } else { flag };
    // SAFETY: the kernel takes the null pointer for a bad address.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags as libc::c_uint, std::ptr::null::<Program>())
    };
    check(result) == Err(Errno::EFAULT)
}

/// Whether the kernel knows an action (a `SECCOMP_RET_*` value).
pub fn action_available(action: u32) -> bool {
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    // SAFETY: the kernel reads one u32.
    unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &action) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_flags_are_available() {
        assert!(flag_available(flag::LOG) && flag_available(flag::SPEC_ALLOW) && !flag_available(1 << 30));
    }
}
