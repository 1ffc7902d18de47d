//! `start`: lets the process of a created container go, and waits until it runs its own program.

#![expect(clippy::disallowed_methods, reason = "the state folder is the runtime's own")]

use nix::unistd::Pid;

use super::{CommandError, Context, only_id};
use crate::launch::gate;
use crate::launch::handshake::Kind;
use crate::launch::hooks;
use crate::launch::listener;
use crate::state::Status;

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let id = only_id("start", arguments)?;
    let state = context.states.load(&id)?;
    let path = context.states.gate(&id);
    let not_waiting = || {
        let status = context.states.status(&state)?;
        Err(CommandError::WrongStatus { verb: "start", status })
    };
    let Ok(channel) = gate::connect(&path) else { return not_waiting() };
    let system = |errno| CommandError::System("wait for the process", errno);
    let notify = super::run::listen(context, &state)?;
    if !gate::start(&channel).map_err(system)? {
        return not_waiting();
    }
    // The connection closes by execve, or by the end of the process.
    let mut answer = channel.receive().map_err(system)?;
    if let Some(message) = answer.as_ref().filter(|message| message.kind == Kind::Listener) {
        let config = context.states.config(&id);
        if let Err(error) = listener::forward(message, &config, state.report(Status::Created), state.pid) {
            // Its calls would wait for ever.
            super::kill::kill_all(&state)?;
            return Err(error.into());
        }
        answer = channel.receive().map_err(system)?;
    }
    // Nobody will come here again. A leftover does no harm.
    let _ = std::fs::remove_file(&path);
    if let Some(message) = answer {
        return Err(CommandError::Child(message.text));
    }
    let started = hooks::run("poststart", &state.hooks.poststart, &state, state.pid, Status::Running);
    if let Err(error) = started {
        // Since 1.3 of the specification: the container is stopped, and the caller goes on to delete it.
        super::kill::kill_all(&state)?;
        return Err(error.into());
    }
    context.log.debug(&format!("started, pid {}", state.pid));
    if let Some(notify) = notify {
        notify.wait_until_ready(Pid::from_raw(state.pid)).map_err(super::run::no_manager)?;
    }
    Ok(0)
}
