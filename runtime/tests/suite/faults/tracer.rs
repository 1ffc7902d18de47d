//! Follows a command and its children with ptrace(2), counts their system calls, and kills one of them right before a given one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    /// The command.
    Runtime,
    /// The process that it has cloned, by that one's own count.
    Child,
    /// Both, by the command's count.
    Both,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// System calls of the command.
    pub(super) runtime: usize,
    /// System calls of its children, up to their execve.
    pub(super) children: usize,
    /// The exit code of the command; `None` when a signal ended it.
    pub(super) code: Option<i32>,
    /// Whether the call was reached.
    pub(super) killed: bool,
    /// All processes there were.
    processes: Vec<(Pid, OwnedFd)>,
}

impl Trace {
    /// The count that goes with a victim.
    pub(super) fn count(&self, victim: Victim) -> usize {
        if victim == Victim::Child { self.children } else { self.runtime }
    }

    /// Processes that still live some seconds later.
    pub(super) fn survivors(&self) -> Vec<Pid> {
        let lives = |pidfd: &OwnedFd| {
            let timeout = PollTimeout::try_from(5000).unwrap_or(PollTimeout::NONE);
            poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) == Ok(0)
        };
        self.processes.iter().filter(|(_, pidfd)| lives(pidfd)).map(|(pid, _)| *pid).collect()
    }
}

struct Tracer {
    trace: Trace,
    main: Pid,
    target: Option<(Victim, usize)>,
    /// Who is traced, and whether it has not been told to run yet.
    tracees: BTreeMap<Pid, bool>,
    begun: bool,
}

#[expect(clippy::zombie_processes, reason = "its end is waited for among the events of those traced")]
/// Runs a command to its end, or to that of its victim; whoever lives then lives on untraced.
pub(super) fn trace(command: &Command, target: Option<(Victim, usize)>) -> Trace {
    // Seized while it waits for a line; counting begins with execve.
    let mut launcher = Command::new("/bin/sh");
    launcher.args(["-c", "read -r line; exec \"$0\" \"$@\" < /dev/null"]);
    launcher.arg(command.get_program()).args(command.get_args());
    let mut launcher =
        launcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
    let main = Pid::from_raw(launcher.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE;
    ptrace::seize(main, options).expect("seize");
    std::io::Write::write_all(&mut launcher.stdin.take().expect("piped"), b"\n").expect("go");
    let mut tracer =
        Tracer { trace: Trace::default(), main, target, tracees: BTreeMap::from([(main, false)]), begun: false };
    tracer.watch(main);
    tracer.follow();
    tracer.let_go();
    tracer.trace
}

// Only what this thread traces: tests run side by side.
fn wait(pid: Option<Pid>) -> Result<WaitStatus, Errno> {
    waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))
}

impl Tracer {
    fn watch(&mut self, pid: Pid) {
        // One that is gone before it could be looked at needs no watching.
        if let Ok(pidfd) = sys::process::pidfd_open(pid) {
            self.trace.processes.push((pid, pidfd));
        }
    }

    fn follow(&mut self) {
        while self.tracees.contains_key(&self.main) {
            match wait(None).expect("wait for those traced") {
                WaitStatus::Exited(pid, code) => {
                    self.tracees.remove(&pid);
                    if pid == self.main {
                        self.trace.code = Some(code);
                    }
                }
                WaitStatus::Signaled(pid, ..) => drop(self.tracees.remove(&pid)),
                WaitStatus::PtraceEvent(pid, _, event) => self.event(pid, event),
                WaitStatus::PtraceSyscall(pid) => self.call(pid),
                WaitStatus::Stopped(pid, signal) => self.resume(pid, Some(signal)),
                _ => {}
            }
        }
    }

    fn event(&mut self, pid: Pid, event: i32) {
        match event {
            libc::PTRACE_EVENT_EXEC if pid == self.main => self.begun = true,
            libc::PTRACE_EVENT_EXEC => {
                // Somebody else's program from here on.
                self.tracees.remove(&pid);
                let _ = ptrace::detach(pid, None);
                return;
            }
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                if let Ok(new) = ptrace::getevent(pid) {
                    self.meet(Pid::from_raw(new as i32));
                }
            }
            libc::PTRACE_EVENT_STOP => self.meet(pid),
            _ => {}
        }
        self.resume(pid, None);
    }

    fn meet(&mut self, pid: Pid) {
        if self.tracees.insert(pid, true).is_none() {
            self.watch(pid);
        }
    }

    fn call(&mut self, pid: Pid) {
        let entry = ptrace::syscall_info(pid).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY);
        if entry && self.begun {
            let is_main = pid == self.main;
            let count = if is_main { &mut self.trace.runtime } else { &mut self.trace.children };
            *count += 1;
            let count = *count;
            let hit = self.target.is_some_and(|(victim, at)| count == at && (victim == Victim::Child) != is_main);
            if hit && !self.trace.killed {
                self.trace.killed = true;
                let everybody = self.target.is_some_and(|(victim, _)| victim == Victim::Both);
                let victims: Vec<Pid> = if everybody { self.tracees.keys().copied().collect() } else { vec![pid] };
                for victim in victims {
                    let _ = kill(victim, Signal::SIGKILL);
                }
                return;
            }
        }
        self.resume(pid, None);
    }

    // A process may be killed at any moment, then it cannot be resumed, and its end is reported next.
    fn resume(&mut self, pid: Pid, signal: Option<Signal>) {
        let counts_calls = match self.target {
            None => true,
            Some((Victim::Child, _)) => pid != self.main && !self.trace.killed,
            Some(_) => pid == self.main && !self.trace.killed,
        };
        let _ = if counts_calls && self.begun { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
    }

    fn let_go(&mut self) {
        for pid in std::mem::take(&mut self.tracees).into_keys() {
            // One that is stopped already takes no second stop, and can be let go at once.
            if ptrace::detach(pid, None).is_err() {
                let _ = ptrace::interrupt(pid);
            }
        }
        // In whatever order they come: one may be waiting for another's end, which is known only once it is reaped here.
        loop {
            match wait(None) {
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    let _ = ptrace::detach(pid, signal);
                }
                Ok(WaitStatus::PtraceEvent(pid, ..) | WaitStatus::PtraceSyscall(pid)) => {
                    if !self.trace.processes.iter().any(|(known, _)| *known == pid) {
                        self.watch(pid);
                    }
                    let _ = ptrace::detach(pid, None);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
