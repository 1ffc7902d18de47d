//! `run`: creates and starts a container in one go, and without `--detach` stays until it ends.

use super::build::{BuildArgs, Built, FLAGS, Starter, build};
use super::notify::{self, Notify};
use super::{CommandError, Context, foreground, write_pid_file};
use crate::args::{Flag, Order, Parsed, switch};
use crate::launch::handshake::Kind;
use crate::launch::hooks;
use crate::launch::listener;
use crate::state::{State, Status};

pub(super) const MORE: &[Flag] = &[
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
    let notify = match start(context, &args, &built) {
        Ok(notify) => notify,
        Err(error) => return Err(built.undo(context, error)),
    };
    context.log.debug(&format!("started, pid {}", built.state.pid));
    built.launched.release();
    built.cgroup.keep();
    let Built { launched, entry, state, .. } = built;
    let Some(signals) = signals else {
        entry.keep();
        if let Some(notify) = notify {
            notify.wait_until_ready(launched.pid).map_err(no_manager)?;
        }
        return Ok(0);
    };
    let status = foreground::stay(&signals, launched.pid, launched.terminal.as_ref(), notify.as_ref());
    entry.keep(); // `remove` sees to it, in its order
    if !parsed.is_on("keep") {
        super::delete::remove(context, &state)?;
    }
    Ok(status.map_err(system("wait for the process"))?.status() as u8)
}

/// Lets the process go; its end of the conversation closes by execve.
fn start(context: &Context, args: &BuildArgs, built: &Built) -> Result<Option<Notify>, CommandError> {
    let (channel, state) = (&built.launched.channel, &built.state);
    built.entry.save(state)?;
    let notify = listen(context, state)?;
    let system = |errno| CommandError::System("start the process", errno);
    channel.send(Kind::Start, "").map_err(system)?;
    let mut answer = channel.receive().map_err(system)?;
    if let Some(message) = answer.as_ref().filter(|message| message.kind == Kind::Listener) {
        let config = context.states.config(&state.id);
        listener::forward(message, &config, state.report(Status::Created), state.pid)?;
        answer = channel.receive().map_err(system)?;
    }
    if let Some(message) = answer {
        return Err(CommandError::Child(message.text));
    }
    hooks::run("poststart", &state.hooks.poststart, state, state.pid, Status::Running)?;
    if let Some(path) = &args.pid_file {
        write_pid_file(path, state.pid)?;
    }
    Ok(notify)
}

/// The socket at which the process says that it is ready, when a service manager wants to know.
pub(super) fn listen(context: &Context, state: &State) -> Result<Option<Notify>, CommandError> {
    let Some(manager) = notify::manager() else { return Ok(None) };
    Notify::open(&context.states.notify_folder(&state.id), &manager).map_err(no_manager)
}

/// The service manager cannot be told.
pub(super) fn no_manager(cause: std::io::Error) -> CommandError {
    CommandError::Io { action: "notify the service manager at", path: notify::manager().unwrap_or_default(), cause }
}
