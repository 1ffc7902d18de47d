//! Staying with a process: its end is waited for, our signals are passed on, its terminal is served.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::notify::Notify;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, tcsetattr};
use nix::unistd::{Pid, read, write};
use sys::Errno;
use sys::process::Exit;

/// Our signals as a file, blocked until read. The child unblocks its own.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Begins to catch all signals that can be caught.
    pub(super) fn catch() -> Result<Self, Errno> {
        let mut set = SigSet::all();
        // These are ours: errors of this very program.
        for own in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
            set.remove(own);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }
}

/// The caller's terminal in raw mode, until dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` when stdin is no terminal.
    fn new() -> Option<Self> {
        sys::pty::make_raw(std::io::stdin()).ok().map(Self)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone by now.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Stays until the process has ended; reaps whatever else becomes ours meanwhile.
pub(super) fn stay(
    signals: &Signals,
    pid: Pid,
    terminal: Option<&OwnedFd>,
    notify: Option<&Notify>,
) -> Result<Exit, Errno> {
    let _raw = terminal.and_then(|_| RawTerminal::new());
    if let Some(terminal) = terminal {
        follow_size(terminal);
    }
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let (mut input_open, mut output_open) = (true, true);
    let mut exit = None;
    loop {
        let terminal = terminal.filter(|_| output_open);
        if let (Some(exit), None) = (exit, terminal) {
            return Ok(exit);
        }
        let mut fds = vec![PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        if let Some(terminal) = terminal {
            fds.push(PollFd::new(terminal.as_fd(), PollFlags::POLLIN));
            if input_open && exit.is_none() {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        let notify_at = fds.len();
        if let Some(notify) = notify {
            fds.push(PollFd::new(notify.as_fd(), PollFlags::POLLIN));
        }
        // Others may hold the terminal open for ever: after the end only what is there already is read.
        let timeout = if exit.is_some() { PollTimeout::from(LAST_OUTPUT_MS) } else { PollTimeout::NONE };
        let count = match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if let (Some(exit), 0) = (exit, count) {
            return Ok(exit);
        }
        let ready = |at: usize| fds.get(at).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        let (signalled, output, input) = (ready(0), ready(1) && notify_at > 1, ready(2) && notify_at > 2);
        if let Some(notify) = notify.filter(|_| ready(notify_at)) {
            // A service manager that is gone is no reason to leave the process alone.
            let _ = notify.pass(Pid::this());
        }
        if signalled && let Some(found) = handle_signals(signals, pid, terminal)? {
            exit = Some(found);
        }
        if let Some(terminal) = terminal {
            if output {
                // EIO: the last process has closed the other end.
                output_open = pass(terminal.as_fd(), stdout.as_fd())?;
            }
            if input {
                input_open = pass(stdin.as_fd(), terminal.as_fd())?;
            }
        }
    }
}

/// How long to wait for more output when the process has ended.
const LAST_OUTPUT_MS: u8 = 100;

/// Copies what is there; false at the end.
fn pass(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut buffer = [0; 16 << 10];
    let count = match read(from, &mut buffer) {
        Ok(0) | Err(Errno::EIO) => return Ok(false),
        Err(Errno::EINTR | Errno::EAGAIN) => return Ok(true),
        other => other?,
    };
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::EINTR) => {}
            // Whoever read our output is gone; the process goes on.
            Err(Errno::EPIPE | Errno::EIO) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn handle_signals(signals: &Signals, pid: Pid, terminal: Option<&OwnedFd>) -> Result<Option<Exit>, Errno> {
    let mut exit = None;
    while let Some(info) = signals.0.read_signal()? {
        let signal = info.ssi_signo as i32;
        if signal == Signal::SIGCHLD as i32 {
            loop {
                match sys::process::reap_any() {
                    Ok(Some((found, how))) if found == pid => exit = Some(how),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(Errno::ECHILD) => break,
                    Err(error) => return Err(error),
                }
            }
        } else if let (true, Some(terminal)) = (signal == Signal::SIGWINCH as i32, terminal) {
            follow_size(terminal);
        } else if signal != Signal::SIGPIPE as i32 && signal != Signal::SIGURG as i32 {
            match sys::process::kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(exit)
}

fn follow_size(terminal: &OwnedFd) {
    // Without a terminal of our own there is no size to follow.
    if let Ok(size) = sys::pty::size(std::io::stdin()) {
        let _ = sys::pty::set_size(terminal, size);
    }
}
