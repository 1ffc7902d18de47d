//! `kill`: sends a signal to a container's process, or to all of them.

use std::os::fd::AsFd;
use std::str::FromStr;

use nix::sys::signal::Signal;
use sys::Errno;

use super::{CommandError, Context, members};
use crate::args::{ArgsError, Flag, Order, Parsed, switch};
use crate::state::{ContainerId, State, Status};

pub(super) const FLAGS: &[Flag] = &[switch(&["all", "a"], "every process of the container")];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::Mixed, arguments)?;
    let (id, signal) = match parsed.words.as_slice() {
        [id] => (id, nix::libc::SIGTERM),
        [id, signal] => (id, parse_signal(signal)?),
        words => {
            return Err(ArgsError::Count { command: "kill", expected: "an id and a signal", found: words.len() }.into());
        }
    };
    let state = context.states.load(&ContainerId::parse(id)?)?;
    let status = context.states.status(&state)?;
    let everything = parsed.is_on("all");
    match status {
        Status::Created | Status::Running | Status::Paused => {}
        // Processes may outlive the first one when they share somebody else's pid namespace.
        Status::Stopped if everything => {}
        Status::Creating | Status::Stopped => return Err(CommandError::NotRunning),
    }
    let kill = signal == nix::libc::SIGKILL;
    if kill && (everything || !state.own_pid_namespace) {
        kill_all(&state)?;
    } else if everything {
        for pid in members::of(&state)? {
            match sys::process::kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(CommandError::System("signal a process of the container", errno)),
            }
        }
    } else {
        signal_init(&state, signal)?;
    }
    if kill && status == Status::Paused {
        // A frozen process of v1 dies only when it thaws.
        state.cgroup()?.thaw()?;
    }
    Ok(0)
}

/// Signals the first process, by a handle: between look and signal its pid cannot become somebody else's.
pub(super) fn signal_init(state: &State, signal: i32) -> Result<(), CommandError> {
    let pid = state.live_pid().ok_or(CommandError::NotRunning)?;
    let system = |errno| match errno {
        Errno::ESRCH => CommandError::NotRunning,
        errno => CommandError::System("signal the container's process", errno),
    };
    let pidfd = sys::process::pidfd_open(pid).map_err(system)?;
    if state.live_pid().is_none() {
        return Err(CommandError::NotRunning);
    }
    sys::process::pidfd_send_signal(pidfd.as_fd(), signal).map_err(system)
}

/// Kills everything in the container's cgroup, and its first process wherever that is.
pub(super) fn kill_all(state: &State) -> Result<(), CommandError> {
    let killed = state.cgroup()?.kill_all();
    match signal_init(state, nix::libc::SIGKILL) {
        Ok(()) | Err(CommandError::NotRunning) => {}
        Err(error) => return Err(error),
    }
    Ok(killed?)
}

/// A signal by number or name, with or without SIG, real-time ones included.
fn parse_signal(text: &str) -> Result<i32, CommandError> {
    let unknown = || CommandError::UnknownSignal(text.to_owned());
    const MAX: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=MAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The first two are libc's own.
    let (first, last) = (34, MAX);
    for (base, start, sign) in [("RTMIN", first, 1), ("RTMAX", last, -1)] {
        if let Some(rest) = name.strip_prefix(base) {
            let offset = match rest.strip_prefix(if sign == 1 { '+' } else { '-' }) {
                Some(offset) => offset.parse::<i32>().map_err(|_| unknown())?,
                None if rest.is_empty() => 0,
                None => return Err(unknown()),
            };
            let number = offset.checked_mul(sign).and_then(|offset| start.checked_add(offset)).ok_or_else(unknown)?;
            return if (first..=last).contains(&number) { Ok(number) } else { Err(unknown()) };
        }
    }
    match name {
        "CLD" => Ok(nix::libc::SIGCHLD),
        "POLL" => Ok(nix::libc::SIGIO),
        "IOT" => Ok(nix::libc::SIGABRT),
        name => Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_in_any_spelling() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("0", 0),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("POLL", 29),
        ] {
            assert_eq!(parse_signal(text).expect(text), number, "{text}");
        }
        for text in ["", "65", "-1", "SIG", "MOON", "RTMIN+31", "RTMAX+1", "RTMIN-1", "RTMIN+99999999999"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
