//! `run`: creates and starts a container in one go, and without `--detach` stays until it ends.

use super::build::{BuildArgs, Built, FLAGS, Starter, build};
use super::{CommandError, Context, foreground, write_pid_file};
use crate::args::{Flag, Order, Parsed, switch};
use crate::launch::handshake::Kind;
use crate::launch::hooks;
use crate::state::Status;

const MORE: &[Flag] = &[
    switch(&["detach", "d"], "do not wait for the process"),
    switch(&["keep"], "do not delete the container when it has ended"),
    switch(&["no-subreaper"], "do not adopt what the process leaves behind"),
];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let flags = [FLAGS, MORE].concat();
    let parsed = Parsed::parse(&flags, Order::Mixed, arguments)?;
    let args = BuildArgs::new("run", &parsed)?;
    let detach = parsed.is_on("detach");
    let system = |stage| move |errno| CommandError::System(stage, errno);
    // Before there is a child whose end could be missed.
    let signals = if detach { None } else { Some(foreground::Signals::catch().map_err(system("catch signals"))?) };
    if !detach && !parsed.is_on("no-subreaper") {
        sys::process::set_child_subreaper(true).map_err(system("become subreaper"))?;
    }
    let mut built = build(context, &args, Starter::Us, detach)?;
    built.entry.save(&built.state)?;
    start(&built)?;
    if let Some(path) = &args.pid_file {
        write_pid_file(path, built.state.pid)?;
    }
    built.launched.release();
    built.cgroup.keep();
    let Built { launched, entry, state, .. } = built;
    let Some(signals) = signals else {
        entry.keep();
        return Ok(0);
    };
    let status = foreground::stay(&signals, launched.pid, launched.terminal.as_ref());
    entry.keep(); // `remove` sees to it, in its order
    if !parsed.is_on("keep") {
        super::delete::remove(context, &state)?;
    }
    Ok(status.map_err(system("wait for the process"))?.status() as u8)
}

/// Lets the process go; its end of the conversation closes by execve.
fn start(built: &Built) -> Result<(), CommandError> {
    let channel = &built.launched.channel;
    let system = |errno| CommandError::System("start the process", errno);
    channel.send(Kind::Start, "").map_err(system)?;
    if let Some(message) = channel.receive().map_err(system)? {
        return Err(CommandError::Child(message.text));
    }
    let state = &built.state;
    Ok(hooks::run("poststart", &state.hooks.poststart, state, state.pid, Status::Running)?)
}
