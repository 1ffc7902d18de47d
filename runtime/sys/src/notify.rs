//! The far side of seccomp filters: answering calls that a filter leaves to its listener (seccomp_unotify(2), Linux 5.0), and
//! reading the filters of a process (PTRACE_SECCOMP_GET_FILTER). The runtime itself does neither; its tests do.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::raw::check;
use crate::seccomp::Instruction;

/// A call that waits for an answer.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Notification {
    /// Names the call in the answer.
    pub id: u64,
    /// Who makes it, as the receiver's pid namespace has it.
    pub pid: u32,
    flags: u32,
    /// Number of the call.
    pub number: i32,
    /// Architecture, as filters see it.
    pub arch: u32,
    instruction_pointer: u64,
    /// What it is called with.
    pub arguments: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// It fails.
    Error(Errno),
    /// The kernel goes on with it.
    Continue,
}

/// Waits for the next call.
pub fn receive(listener: impl AsFd) -> Result<Notification, Errno> {
    const RECEIVE: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl; // SECCOMP_IOCTL_NOTIF_RECV
    let mut notification = Notification::default();
    // SAFETY: the kernel fills a struct seccomp_notif, which has this layout and has to be zero before.
    check(libc::c_long::from(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), RECEIVE, &mut notification) }))?;
    Ok(notification)
}

/// Answers a call.
pub fn respond(listener: impl AsFd, id: u64, answer: Answer) -> Result<(), Errno> {
    const SEND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl; // SECCOMP_IOCTL_NOTIF_SEND
    let (error, flags) = match answer {
        Answer::Error(errno) => (-(errno as i32), 0),
        Answer::Continue => (0, 1),
    };
    let mut response = Response { id, value: 0, error, flags };
    // SAFETY: the kernel reads a struct seccomp_notif_resp, which has this layout.
    check(libc::c_long::from(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), SEND, &mut response) })).map(drop)
}

/// The filter that a process loaded last. Takes CAP_SYS_ADMIN and a caller without filters; the process stops for a moment.
pub fn filter_of(pid: Pid) -> Result<Vec<Instruction>, Errno> {
    const GET_FILTER: libc::c_uint = 0x420c;
    let trace = |request: libc::c_uint, data: *mut Instruction| {
        // SAFETY: `data` is null, or has room for the filter as an earlier call gave its length.
        check(unsafe { libc::ptrace(request as _, pid.as_raw(), 0_usize, data) })
    };
    let none = std::ptr::null_mut();
    trace(libc::PTRACE_SEIZE as _, none)?;
    trace(libc::PTRACE_INTERRUPT as _, none)?;
    let mut status = 0;
    // SAFETY: the kernel writes one integer.
    check(libc::c_long::from(unsafe { libc::waitpid(pid.as_raw(), &mut status, libc::__WALL) }))?;
    let filter = trace(GET_FILTER, none).and_then(|length| {
        let mut filter = vec![Instruction { code: 0, jt: 0, jf: 0, k: 0 }; length as usize];
        trace(GET_FILTER, filter.as_mut_ptr()).map(|_| filter)
    });
    trace(libc::PTRACE_DETACH as _, none)?;
    filter
}
