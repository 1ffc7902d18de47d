//! One clone3(2) (Linux 5.3) straight into new namespaces and, on cgroup2, into the cgroup.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::process::is_single_threaded;
use crate::raw::check;

/// Which side of the clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The process that cloned: pid and handle of the child.
    Parent {
        /// The pid of the child as its parent sees it.
        pid: Pid,
        /// A stable handle on the child.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// CLONE_INTO_CGROUP; libc's constant does not fit its own type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the child starts with.
#[derive(Debug, Default, Clone, Copy)]
pub struct Options<'a> {
    /// `CLONE_NEW*` flags of the namespaces to make.
    pub namespaces: u64,
    /// The cgroup2 directory to start in (CLONE_INTO_CGROUP, Linux 5.7).
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The child becomes a sibling: a child of our own parent.
    pub sibling: bool,
}

/// Clones this process, which must have a single thread (`EBUSY` otherwise), like fork(2) does: the child runs on with a copy
/// of everything.
pub fn clone(options: &Options<'_>) -> Result<Cloned, Errno> {
    if !is_single_threaded() {
        return Err(Errno::EBUSY);
    }
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    // Nothing but namespaces: CLONE_VM and its like would break what makes this safe.
    if options.namespaces & !(namespaces as u64 | crate::ns::CLONE_NEWTIME) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain old data for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = options.namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    if options.sibling {
        // With CLONE_PARENT the exit signal is that of this process, and must not be given.
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM and no new stack, so this is fork(2) with other flags, and there is only this thread: no lock can be
    // held by a thread that the child lacks. `args` and `pidfd` outlive the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel filled in a new descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: Pid::from_raw(pid as libc::pid_t), pidfd })
}
