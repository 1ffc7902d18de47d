//! Starting another program with exactly the environment, streams and descriptors it is given.
//!
//! std's `Command` sorts and rewrites the environment, opens `/dev/null` by name (inside a container that is the image's file) and
//! lets descriptors through that are meant for somebody else.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::Pid;

use crate::raw::check;

/// A program to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its file.
    pub path: &'a CStr,
    /// All of its arguments, its own name first.
    pub args: &'a [CString],
    /// Its environment, as it is.
    pub env: &'a [CString],
    /// What becomes its stdin, stdout and stderr.
    pub stdio: [BorrowedFd<'a>; 3],
    /// What becomes its descriptors from 3 on. It gets nothing else.
    pub further: &'a [BorrowedFd<'a>],
    /// Whether it is killed when the thread that starts it ends (PR_SET_PDEATHSIG).
    pub dies_with_parent: bool,
}

/// What the child needs, laid out beforehand: it shares our memory, and may not touch the allocator.
struct Start<'a> {
    path: &'a CStr,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    /// What becomes descriptors 0, 1, 2, …: none of them has one of these numbers, unless it is its own.
    descriptors: Vec<libc::c_int>,
    /// The parent, if the child is to die with it.
    parent: Option<libc::pid_t>,
    error: Errno,
}

const STACK: usize = 64 << 10;

/// Starts a program in a session of its own; what keeps it from starting is told at once.
///
/// As posix_spawn(3) does it, which has no way to set the signal for a parent's death.
pub fn spawn(program: &Program<'_>) -> Result<Pid, Errno> {
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
    // Out of the way of the numbers that are given out, one after the other.
    let lowest = i32::try_from(3 + program.further.len()).map_err(|_| Errno::EMFILE)?;
    let further: Vec<OwnedFd> =
        program.further.iter().map(|fd| crate::fd::duplicate_above(fd, lowest)).collect::<Result<_, _>>()?;
    let stdio = program.stdio.iter().map(AsRawFd::as_raw_fd);
    let mut start = Start {
        path: program.path,
        args: pointers(program.args),
        env: pointers(program.env),
        descriptors: stdio.chain(further.iter().map(AsRawFd::as_raw_fd)).collect(),
        parent: program.dies_with_parent.then(|| nix::unistd::getpid().as_raw()),
        error: Errno::UnknownErrno,
    };
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    // A handler of ours would run in the child, in our memory.
    let former = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's alone, aligned to 16, and its top is one past the end of the vector; `start` and the stack
    // live until the child has executed its program or ended, for that is when CLONE_VFORK lets this thread go on.
    let cloned = check(libc::c_long::from(unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast();
        libc::clone(begin, top, flags, (&raw mut start).cast())
    }));
    let restored = former.thread_set_mask();
    let pid = Pid::from_raw(cloned? as libc::pid_t);
    if start.error != Errno::UnknownErrno {
        // It is not there any more; the reason is what counts.
        let _ = crate::process::wait(pid);
        return Err(start.error);
    }
    restored.map(|()| pid)
}

/// The child: system calls alone, until execve.
extern "C" fn begin(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent's `Start`, which it does not touch while this runs.
    let start = unsafe { &mut *argument.cast::<Start<'_>>() };
    // SAFETY: this is that child.
    start.error = unsafe { become_program(start) };
    const NOT_STARTED: libc::c_int = 127;
    NOT_STARTED
}

/// Comes back only with the reason why not.
///
/// # Safety
/// For a child that shares memory with its waiting parent, all signals blocked.
unsafe fn become_program(start: &Start<'_>) -> Errno {
    // SAFETY: every pointer is to a live value of the right kind, or null where that is allowed; the arrays are null-terminated and
    // their strings NUL-terminated. Nothing here allocates, or takes a lock.
    unsafe {
        if let Some(parent) = start.parent {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            if libc::getppid() != parent {
                return Errno::ESRCH; // it was gone before
            }
        }
        // SIGPIPE as programs expect it; what is handled must not be once signals are let in.
        for signal in 1..=libc::SIGRTMAX() {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, std::ptr::null(), &mut action) == 0;
            let left = matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) && signal != libc::SIGPIPE;
            if known && !left {
                action = std::mem::zeroed();
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
        libc::setsid();
        let mut next = 0;
        for &stream in &start.descriptors {
            let number = next;
            next += 1;
            // Onto itself changes nothing, so that it would close by execve.
            let done =
                if stream == number { libc::fcntl(stream, libc::F_SETFD, 0) } else { libc::dup2(stream, number) };
            if done < 0 {
                return Errno::last();
            }
        }
        if libc::syscall(libc::SYS_close_range, next, libc::c_uint::MAX, 0) < 0 {
            return Errno::last();
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::execve(start.path.as_ptr(), start.args.as_ptr(), start.env.as_ptr());
    }
    Errno::last()
}

/// Kills everything in the session of a process that [`spawn`] started, as far as it stayed in its process group.
pub fn kill_group(leader: Pid) -> Result<(), Errno> {
    crate::process::kill(Pid::from_raw(-leader.as_raw()), libc::SIGKILL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    #[test]
    fn environment_and_descriptors_are_exact() {
        let null = std::fs::File::open("/dev/null").expect("open");
        let output = nix::sys::memfd::memfd_create("out", nix::sys::memfd::MFdFlags::empty()).expect("memfd");
        let mut output = std::fs::File::from(output);
        let text = |text: &str| CString::new(text).expect("no NUL");
        let args = [text("sh"), text("-c"), text("tr '\\0' '\\n' < /proc/self/environ; ls /proc/self/fd | wc -l")];
        let env = [text("Z=1"), text("A=2"), text("PATH=/usr/bin:/bin"), text("A=3")];
        let stdio = [null.as_fd(), output.as_fd(), null.as_fd()];
        let pid =
            spawn(&Program { path: c"/bin/sh", args: &args, env: &env, stdio, further: &[], dies_with_parent: false })
                .expect("starts");
        assert_eq!(crate::process::wait(pid).expect("wait").status(), 0);
        let missing =
            spawn(&Program { path: c"/no/such", args: &args, env: &env, stdio, further: &[], dies_with_parent: false });
        assert_eq!(missing, Err(Errno::ENOENT));
        let mut found = String::new();
        output.rewind().and_then(|()| output.read_to_string(&mut found)).expect("read");
        // The shell's own child has the list's folder open; `tr` had its input from the shell, whose environment is ours.
        assert!(found.contains("Z=1\n") && found.ends_with("4\n"), "{found}");
    }
    #[test]
    fn it_dies_with_who_started_it() {
        let null = std::fs::File::open("/dev/null").expect("open");
        let args = [c"sleep", c"1000"].map(CString::from);
        let stdio = [null.as_fd(); 3];
        let start = |dies_with_parent| {
            spawn(&Program { path: c"/bin/sleep", args: &args, env: &[], stdio, further: &[], dies_with_parent })
                .expect("starts")
        };
        let (with, without) =
            std::thread::scope(|scope| scope.spawn(|| (start(true), start(false))).join().expect("a thread that ends"));
        assert_eq!(crate::process::wait(with), Ok(crate::process::Exit::Signal(libc::SIGKILL)));
        assert_eq!(crate::process::try_wait(without), Ok(None));
        kill_group(without).expect("kill");
        crate::process::wait(without).expect("wait");
    }
}
