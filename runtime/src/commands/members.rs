//! The processes of a container: those in its cgroup, or, where it has none of its own, those in its pid namespace.

use std::path::Path;

use nix::unistd::Pid;

use super::CommandError;
use crate::state::State;

/// All of them, the first one among them if it lives.
pub(super) fn of(state: &State) -> Result<Vec<Pid>, CommandError> {
    if !state.cgroup.is_empty() {
        return Ok(state.cgroup()?.processes()?);
    }
    let Some(init) = state.live_pid() else { return Ok(Vec::new()) };
    if !state.own_pid_namespace {
        // Which of its relatives are the container's, nobody remembers.
        return Ok(vec![init]);
    }
    let namespace = |pid: Pid| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(init);
    let failed = |cause| CommandError::Io { action: "read folder", path: "/proc".into(), cause };
    let entries = std::fs::read_dir(Path::new("/proc")).map_err(failed)?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    let mut pids: Vec<Pid> = pids.filter(|pid| *pid == init || (own.is_some() && namespace(*pid) == own)).collect();
    pids.sort_unstable();
    Ok(pids)
}
