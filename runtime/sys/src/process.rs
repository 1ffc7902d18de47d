//! Processes: forking before threads exist, detaching, subreapers, pidfds, waiting, executing.

use std::ffi::{CString, NulError};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::raw::{check, own};

/// Lets `std::process::Command` start programs in a folder of their own without copying this process.
///
/// std looks for `posix_spawn_file_actions_addchdir_np` by a weak reference, which pulls nothing into a static program; unless
/// somebody names the function, each `Command` with a `current_dir` is a whole `fork`, which costs the more the larger the
/// parent is. To be called once, anywhere on a path that is taken.
pub fn spawn_without_fork() {
    std::hint::black_box(libc::posix_spawn_file_actions_addchdir_np as *const ());
}

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The process that forked, with the pid of its child.
    Parent(Pid),
    /// The new process.
    Child,
}

/// True while this process has exactly one thread.
///
/// `/proc/self/task` has one sub-directory per thread, so its link count is two more than the number of threads.
pub fn is_single_threaded() -> bool {
    match nix::sys::stat::stat("/proc/self/task") {
        Ok(stat) => stat.st_nlink == 3,
        // Without procfs nobody can tell; assume the worst.
        Err(_) => false,
    }
}

/// Forks a process that has no second thread; `EBUSY` when it has.
///
/// That check is what makes this safe to offer: in a single-threaded process no lock can be left held by a thread which the
/// child does not have, so the child may run any code.
pub fn fork() -> Result<Fork, Errno> {
    if !is_single_threaded() {
        return Err(Errno::EBUSY);
    }
    // SAFETY: there is only this thread, see above.
    match check(libc::c_long::from(unsafe { libc::fork() }))? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid as libc::pid_t))),
    }
}

/// Forks a child that leads a session of its own, has `/` as working directory and inherits every descriptor.
///
/// To be called before an async runtime or any other thread starts. The child keeps what it needs (a listener, say), and
/// replaces its standard streams with [`null_stdio`] once it has nothing more to tell its caller.
pub fn fork_detached() -> Result<Fork, Errno> {
    let side = fork()?;
    if side == Fork::Child {
        nix::unistd::setsid()?;
        nix::unistd::chdir("/")?;
    }
    Ok(side)
}

/// Points stdin, stdout and stderr at `/dev/null`, each only when asked for.
pub fn null_stdio(stdin: bool, stdout: bool, stderr: bool) -> Result<(), Errno> {
    use nix::fcntl::{OFlag, open};
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    for (number, wanted) in [(0, stdin), (1, stdout), (2, stderr)] {
        if wanted {
            crate::fd::duplicate_onto(&null, number)?;
        }
    }
    Ok(())
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> Result<libc::c_long, Errno> {
    // SAFETY: the options used here take integers and no pointer.
    check(libc::c_long::from(unsafe { libc::prctl(option, value, 0, 0, 0) }))
}

/// Makes orphaned descendants children of this process (`PR_SET_CHILD_SUBREAPER`).
pub fn set_child_subreaper(on: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, on.into()).map(drop)
}

/// Whether they become this process' children (`PR_GET_CHILD_SUBREAPER`).
pub fn is_child_subreaper() -> Result<bool, Errno> {
    let mut on: libc::c_int = 0;
    // SAFETY: `on` is a valid place for the result.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut on, 0, 0, 0) }))?;
    Ok(on != 0)
}

/// Keeps transparent huge pages away from this process and its children (`PR_SET_THP_DISABLE`).
pub fn set_thp_disable(on: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_THP_DISABLE, on.into()).map(drop)
}

/// Lets this process, and those it forks from now on, share a CPU core's threads with each other only (`PR_SCHED_CORE`, Linux
/// 5.14; `EINVAL` from a kernel built without it).
pub fn set_own_sched_core() -> Result<(), Errno> {
    let (create, own) = (libc::PR_SCHED_CORE_CREATE, 0);
    // SAFETY: all integers; the last is the address for a result that `CREATE` doesn't have.
    check(libc::c_long::from(unsafe {
        libc::prctl(libc::PR_SCHED_CORE, create, own, libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP, 0)
    }))
    .map(drop)
}

/// Whether this process may be traced, dumped and looked into through /proc (`PR_SET_DUMPABLE`).
pub fn set_dumpable(on: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, on.into()).map(drop)
}

/// The signal this process gets when its parent dies; `None` for no signal (`PR_SET_PDEATHSIG`).
pub fn set_parent_death_signal(signal: Option<nix::sys::signal::Signal>) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, signal.map_or(0, |s| s as libc::c_ulong)).map(drop)
}

/// Sets the name `ps` shows for this thread; at most 15 bytes are kept.
pub fn set_name(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_: NulError| Errno::EINVAL)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) })).map(drop)
}

/// Sets how far this process stands back for others: 19 the most, -20 the least (setpriority(2)).
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(libc::c_long::from(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })).map(drop)
}

/// Opens a stable handle on a process (pidfd_open(2), Linux 5.3). The descriptor is close-on-exec.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and no pointer.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// Sends a signal (any number from 0 to 64) through a handle (pidfd_send_signal(2), Linux 5.1).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed and means "as kill(2) would".
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) }).map(drop)
}

/// Sends a signal by number; unlike nix' it takes real-time signals too.
pub fn kill(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call takes two integers.
    check(libc::c_long::from(unsafe { libc::kill(pid.as_raw(), signal) })).map(drop)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The one number shells use: the status, or 128 and the signal.
    pub fn status(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    fn from_wait(status: libc::c_int) -> Option<Self> {
        if libc::WIFEXITED(status) {
            Some(Self::Code(libc::WEXITSTATUS(status)))
        } else if libc::WIFSIGNALED(status) {
            Some(Self::Signal(libc::WTERMSIG(status)))
        } else {
            None
        }
    }
}

fn wait4(pid: libc::pid_t, flags: libc::c_int) -> Result<Option<(Pid, Exit)>, Errno> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        match check(libc::c_long::from(unsafe { libc::waitpid(pid, &mut status, flags) })) {
            Ok(0) => return Ok(None),
            Ok(pid) => {
                if let Some(exit) = Exit::from_wait(status) {
                    return Ok(Some((Pid::from_raw(pid as libc::pid_t), exit)));
                }
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for one child to end, however it ends (real-time signals included), and reaps it.
pub fn wait(pid: Pid) -> Result<Exit, Errno> {
    wait4(pid.as_raw(), 0)?.map(|(_, exit)| exit).ok_or(Errno::ECHILD)
}

/// Reaps one child that has ended, if there is one. `ECHILD` says that there are no children at all.
pub fn reap_any() -> Result<Option<(Pid, Exit)>, Errno> {
    wait4(-1, libc::WNOHANG)
}

/// Reaps this child if it has ended.
pub fn try_wait(pid: Pid) -> Result<Option<Exit>, Errno> {
    Ok(wait4(pid.as_raw(), libc::WNOHANG)?.map(|(_, exit)| exit))
}

/// What execve(2) is called with, laid out beforehand: with a seccomp filter in force, memory may be out of reach.
#[derive(Debug)]
pub struct Image<'a> {
    path: CString,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    strings: std::marker::PhantomData<&'a CString>,
}

impl<'a> Image<'a> {
    /// Lays out. `EINVAL` for a path with a NUL inside.
    pub fn new(path: &std::path::Path, args: &'a [CString], env: &'a [CString]) -> Result<Self, Errno> {
        use std::os::unix::ffi::OsStrExt;
        let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        Ok(Self { path, args: pointers(args), env: pointers(env), strings: std::marker::PhantomData })
    }

    /// Becomes it; comes back only with the reason why not.
    pub fn execute(&self) -> Errno {
        // SAFETY: the path is NUL-terminated; the arrays are null-terminated and point to strings that `self` borrows.
        unsafe { libc::execve(self.path.as_ptr(), self.args.as_ptr(), self.env.as_ptr()) };
        Errno::last()
    }
}

/// Executes `path`; comes back only with the reason why it could not.
pub fn execve(path: &std::path::Path, args: &[CString], env: &[CString]) -> Errno {
    match Image::new(path, args, env) {
        Ok(image) => image.execute(),
        Err(errno) => errno,
    }
}

/// Executes the file behind a descriptor (execveat(2)); comes back only with the reason why it could not.
pub fn execveat(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<*const libc::c_char>>()
    };
    let (args, env) = (pointers(args), pointers(env));
    let empty = c"".as_ptr();
    // SAFETY: the arrays are null-terminated, their strings NUL-terminated, all alive until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_execveat, file.as_raw_fd(), empty, args.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH)
    };
    check(result).err().unwrap_or(Errno::UnknownErrno)
}

/// Ends this process at once, without destructors or exit handlers: for a cloned child that must not run its parent's.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Gives SIGPIPE back its default action, which the Rust start-up code replaced by "ignore", and unblocks all signals.
pub fn reset_signals() -> Result<(), Errno> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    // SAFETY: SIG_DFL is no handler, so there is nothing that could run in a wrong context.
    let previous = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    if previous == libc::SIG_ERR {
        return Err(Errno::last());
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pidfd_signals_and_waits() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep starts");
        let pid = Pid::from_raw(child.id() as i32);
        let pidfd = pidfd_open(pid).expect("pidfd");
        pidfd_send_signal(std::os::fd::AsFd::as_fd(&pidfd), libc::SIGKILL).expect("signal");
        assert_eq!(wait(pid), Ok(Exit::Signal(libc::SIGKILL)));
        assert!(child.try_wait().is_err() || wait(pid) == Err(Errno::ECHILD));
    }

    #[test]
    fn fork_is_refused_beside_threads() {
        // The test harness runs this in a thread of its own, so there are at least two.
        assert_eq!(fork(), Err(Errno::EBUSY));
    }

    #[test]
    fn statuses_are_the_shells() {
        assert_eq!(Exit::Code(3).status(), 3);
        assert_eq!(Exit::Signal(9).status(), 137);
    }
}
