//! `delete`: removes what is left of a container, or all of it with `--force`.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{CommandError, Context};
use crate::args::{Flag, Order, Parsed, switch};
use crate::confine::cgroup::place::default_path;
use crate::confine::cgroup::systemd::names;
use crate::confine::cgroup::{Cgroup, CgroupError};
use crate::launch::hooks;
use crate::plan;
use crate::spec::{Spec, load_json};
use crate::state::{Claim, ContainerId, State, StateError, Status};

pub(super) const FLAGS: &[Flag] =
    &[switch(&["force", "f"], "kill it if it runs; a container that is not there is fine")];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::Mixed, arguments)?;
    let id = ContainerId::parse(parsed.one_word("delete", "the container's id")?)?;
    let force = parsed.is_on("force");
    let state = match context.states.load(&id) {
        Err(StateError::Missing(_)) if force => {
            // A create that was killed before it could write anything leaves a folder at most.
            if context.states.exists(&id) {
                context.states.remove(&id)?;
            }
            return Ok(0);
        }
        // Whatever state.json has become: what config.json says about the container's place is enough to clear it.
        Err(error @ (StateError::Parse { .. } | StateError::Foreign { .. } | StateError::Io { .. })) if force => {
            context
                .log
                .warn(&format!("{}; its cgroup is taken from config.json", crate::launch::handshake::chain(&error)));
            let spec: Option<Spec> = load_json(&context.states.config(&id)).ok();
            let given = spec.and_then(|spec| spec.linux).map(|linux| linux.cgroups_path).unwrap_or_default();
            let given = if plan::is_cgroup_path(&given) { given } else { String::new() };
            guess(context, &id, &given)?
        }
        other => other?,
    };
    // A forced one need not ask how things stand.
    if !force {
        match context.states.status(&state)? {
            Status::Stopped | Status::Created => {}
            status => return Err(CommandError::WrongStatus { verb: "delete", status }),
        }
    }
    remove(context, &state)?;
    Ok(0)
}

/// What a container would be whose config.json says this about its cgroup.
fn guess(context: &Context, id: &ContainerId, cgroups_path: &str) -> Result<State, CommandError> {
    if !context.driver.systemd {
        return Ok(State::guess(id, &default_path(cgroups_path, id.as_str())));
    }
    let unit = context.driver.unit(&names::parse(cgroups_path).unwrap_or_default(), id.as_str());
    let path = unit.path().map_err(CgroupError::from)?;
    Ok(State { unit: Some(unit), ..State::guess(id, &path) })
}

/// Kills what still lives, removes cgroup and folder, runs the poststop hooks. Can be repeated after any failure.
pub(super) fn remove(context: &Context, state: &State) -> Result<(), CommandError> {
    if state.pid != 0 {
        return remove_own(context, state);
    }
    // Its creator was killed, or is still at it.
    match context.states.settle(&state.id)? {
        Claim::Own { pid, start_time } => remove_own(context, &State { pid, start_time, ..state.clone() }),
        Claim::Nothing => {
            if let Some(path) = state.cgroup()?.discard()? {
                context.log.warn(&format!("cgroup {} is left alone: somebody else is in it", path.display()));
            }
            forget(context, state)
        }
    }
}

/// The same for a container to which the cgroup belongs.
fn remove_own(context: &Context, state: &State) -> Result<(), CommandError> {
    let cgroup = state.cgroup()?;
    end(state, &cgroup)?;
    match cgroup.destroy() {
        // A restore that is still at it may have made its process after everything was killed.
        Err(CgroupError::Remove { .. }) if state.pid == 0 => {
            cgroup.kill_all()?;
            cgroup.destroy()?;
        }
        done => done?,
    }
    forget(context, state)
}

fn forget(context: &Context, state: &State) -> Result<(), CommandError> {
    if let Some(group) = &state.rdt {
        group.remove()?;
    }
    context.states.remove(&state.id)?;
    poststop(context, state);
    Ok(())
}

/// Runs the poststop hooks of a container that is gone.
pub(super) fn poststop(context: &Context, state: &State) {
    for hook in &state.hooks.poststop {
        // The specification wants a failing poststop hook logged, and the rest to go on.
        if let Err(error) = hooks::run("poststop", std::slice::from_ref(hook), state, 0, Status::Stopped) {
            context.log.warn(&crate::launch::handshake::chain(&error));
        }
    }
}

/// How long a killed process may take to go; one that hangs in the kernel takes longer, and then somebody has to look.
const PATIENCE: Duration = Duration::from_secs(10);

fn end(state: &State, cgroup: &Cgroup) -> Result<(), CommandError> {
    let system = |stage| move |errno| CommandError::System(stage, errno);
    let Some(pid) = state.live_pid() else {
        // The first process is gone, or was never known: others may be left, unless they went with it.
        if !state.own_pid_namespace || state.pid == 0 {
            cgroup.kill_all()?;
        }
        return Ok(());
    };
    let Ok(pidfd) = sys::process::pidfd_open(pid) else { return Ok(()) };
    if state.live_pid().is_none() {
        return Ok(());
    }
    if state.own_pid_namespace {
        // Takes all others with it.
        match sys::process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL) {
            Ok(()) | Err(sys::Errno::ESRCH) => {}
            Err(errno) => return Err(CommandError::System("kill the container's process", errno)),
        }
        if cgroup.is_frozen()? {
            cgroup.thaw()?;
        }
    } else {
        super::kill::kill_all(state)?;
    }
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout).map_err(system("wait for the container's process"))? {
        0 => Err(CommandError::System("wait for the killed process to go", sys::Errno::ETIMEDOUT)),
        _ => Ok(()),
    }
}
