//! `pause` and `resume`: freezes and thaws a container by its cgroup.

use super::{CommandError, Context, only_id};
use crate::state::Status;

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    change(context, "pause", arguments, &[Status::Created, Status::Running], true)
}

pub(super) fn resume(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    change(context, "resume", arguments, &[Status::Paused], false)
}

fn change(
    context: &Context,
    verb: &'static str,
    arguments: &[String],
    from: &[Status],
    freeze: bool,
) -> Result<u8, CommandError> {
    let state = context.states.load(&only_id(verb, arguments)?)?;
    let status = context.states.status(&state)?;
    if !from.contains(&status) {
        return Err(match (freeze, status) {
            (true, Status::Stopped | Status::Creating) => CommandError::NotRunning,
            (true, status) => CommandError::NotRunningBut(status),
            (false, status) => CommandError::NotPaused(status),
        });
    }
    state.cgroup()?.own()?.freeze(freeze)?;
    Ok(0)
}
