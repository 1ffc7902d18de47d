//! Child processes that outlive their parent's session.

use std::{io, os::unix::process::CommandExt, process::Command};

/// Makes the child leader of a session of its own (setsid(2)): signals to the parent's terminal or process group
/// don't reach it.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure only makes the async-signal-safe system call setsid.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) }
}
