//! Process 1 of a container (`docker run --init`): this very program under the name `docker-init`, mounted into the
//! container. It starts the command, reaps whatever ends, passes every signal on to the command, and ends as that does.
//!
//! No thread, no runtime, no heap to speak of: it lives as long as its container.

use std::{
    ffi::{CString, OsString},
    os::unix::ffi::OsStringExt as _,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        signalfd::SignalFd,
    },
    unistd::{Pid, execvp, getpgrp, setpgid, tcgetpgrp, tcsetpgrp},
};
use sys::process::{Exit, Fork, fork, kill, reap_any};

use crate::report::report;

/// What it is called by.
pub(crate) const NAME: &str = "docker-init";

/// What it is called by where it is process 1 of a pod whose containers share their processes (CRI), and has nothing to start.
pub(crate) const PAUSE: &str = "berth-pause";

/// The kernel sends these for the process's own mistakes; blocked, they would come as an endless fault.
const FAULTS: [Signal; 7] =
    [Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT, Signal::SIGTRAP, Signal::SIGSYS];

/// `docker-init [--] COMMAND [ARG...]`
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let mut words = words.into_iter().peekable();
    if words.next_if(|word| word == "--version").is_some() {
        println!("{NAME} version {} (berth)", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    words.next_if(|word| word == "--");
    let command: Result<Vec<CString>, _> = words.map(|word| CString::new(word.into_vec())).collect();
    match command {
        Ok(command) if !command.is_empty() => match run(&command) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                report(format_args!("{NAME}: {error}"));
                ExitCode::FAILURE
            }
        },
        _ => {
            report(format_args!("{NAME}: no command"));
            ExitCode::from(2)
        }
    }
}

/// `berth-pause`: reaps until it is told to end.
pub(crate) fn pause() -> ExitCode {
    let mut wanted = SigSet::empty();
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|signal| wanted.add(signal));
    let waited = || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&wanted), None)?;
        let signals = SignalFd::new(&wanted)?;
        loop {
            // Those who ended before their signals were waited for, too. No child has this pid.
            reap(Pid::from_raw(0))?;
            if signals.read_signal()?.is_some_and(|info| info.ssi_signo as i32 != Signal::SIGCHLD as i32) {
                return Ok::<_, Errno>(());
            }
        }
    };
    match waited() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(format_args!("{PAUSE}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: &[CString]) -> Result<u8, Errno> {
    let mut wanted = SigSet::all();
    for fault in FAULTS {
        wanted.remove(fault);
    }
    let mut before = SigSet::empty();
    // Before the child exists: none of its signals may be lost, not even the one of its end.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&wanted), Some(&mut before))?;
    let signals = SignalFd::new(&wanted)?;
    let child = match fork()? {
        Fork::Parent(child) => child,
        Fork::Child => exec(command, &before),
    };
    // Both sides do it: whoever is first, signals to the group reach it from here on.
    let _ = setpgid(child, child);
    loop {
        let Some(info) = signals.read_signal()? else { continue };
        let signal = info.ssi_signo as i32;
        if signal != Signal::SIGCHLD as i32 {
            // What has just ended needs no signal.
            let _ = kill(child, signal);
            continue;
        }
        if let Some(exit) = reap(child)? {
            // What is left of the container ends with its process 1, by the kernel.
            return Ok(u8::try_from(exit.status()).unwrap_or(u8::MAX));
        }
    }
}

/// Reaps all that have ended: one SIGCHLD may stand for many. Gives the end of the command.
fn reap(child: Pid) -> Result<Option<Exit>, Errno> {
    let mut ended = None;
    loop {
        match reap_any() {
            Ok(Some((pid, exit))) if pid == child => ended = Some(exit),
            Ok(Some(_)) => {}
            Ok(None) | Err(Errno::ECHILD) => return Ok(ended),
            Err(error) => return Err(error),
        }
    }
}

fn exec(command: &[CString], mask: &SigSet) -> ! {
    // The command is a job of its own in the foreground, as if a shell had started it.
    let own = Pid::from_raw(0);
    if setpgid(own, own).is_ok() && tcgetpgrp(std::io::stdin()).is_ok() {
        // SIGTTOU is still blocked, which lets a background process do this.
        let _ = tcsetpgrp(std::io::stdin(), getpgrp());
    }
    // What Rust ignores from its start on, the command would ignore, too.
    let _ = sys::process::reset_signals();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    let Err(error) = execvp(&command[0], command);
    report(format_args!("{NAME}: exec {}: {}", command[0].to_string_lossy(), error.desc()));
    sys::process::exit_now(if error == Errno::ENOENT { 127 } else { 126 })
}
