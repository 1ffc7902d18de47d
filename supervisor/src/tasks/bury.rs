//! After the death of a shim: whatever is left of its container is ended and cleared away, and the exit is recorded and
//! announced. The task stays, as an orphan, until somebody deletes it: how it ended must not be lost with the shim.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::{
    containerd::events::{TaskExit, TaskOom},
    kind::chain,
};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{
    Tasks,
    adopt::CONNECT_LIMIT,
    bundle::Exit,
    connection::Connection,
    task::{Phase, Task},
};

/// The exit code of what was killed: 128 and SIGKILL.
pub(super) const KILLED: u32 = 137;

impl Tasks {
    /// Notices the end of the connection to a shim, unless it left because its task was deleted.
    pub(super) fn watch(self: &Arc<Self>, task: &Arc<Task>, connection: Connection) {
        let (tasks, task) = (self.clone(), task.clone());
        tokio::spawn(async move {
            connection.lost().await;
            let _turn = task.turn().await;
            if task.phase() == Phase::Live {
                tasks.reconnect(&task).await;
            }
        });
    }

    /// Finds out whether a shim died or only the connection to it: nobody's container ends because of the latter. A socket
    /// without its process refuses at once.
    async fn reconnect(self: &Arc<Self>, task: &Arc<Task>) {
        if let Some(bootstrap) = task.bundle.bootstrap()
            && let Ok(Ok(connection)) = timeout(CONNECT_LIMIT, Connection::open(&bootstrap)).await
        {
            warn!(namespace = %task.namespace, id = %task.id, "connection to the shim was lost, made again");
            self.take_over(task, connection).await;
        } else {
            self.bury(task).await;
        }
    }

    /// Ends and clears away what a dead shim left. The caller holds the turn. The order matters: the exit is recorded
    /// before the address of the shim goes, so that whoever is killed here finds the work half done, and does it again.
    /// What fails is left to the task's deletion, which tries again and reports it.
    pub(super) async fn bury(&self, task: &Arc<Task>) {
        warn!(namespace = %task.namespace, id = %task.id, "shim is gone, cleaning up after it");
        let bundle = &task.bundle;
        let (mut reported, mut cleaned) = (None, false);
        if let Some(program) = task.program(&self.program) {
            match program.delete(&task.namespace, &task.id, bundle.path()).await {
                Ok(exit) => (reported, cleaned) = (exit, true),
                Err(error) => {
                    warn!(namespace = %task.namespace, id = %task.id, error = %chain(&error), "shim's own clean-up failed");
                }
            }
        }
        proto::fault!("supervisor.bury.shim_cleaned");
        let pid = match task.facts.borrow().pid {
            0 => bundle.recorded_pid().unwrap_or(0),
            pid => pid,
        };
        // Most often the program above has done it; nothing may survive because it could not.
        kill_leftovers(bundle.cgroup().as_deref(), (!cleaned).then_some(pid)).await;
        proto::fault!("supervisor.bury.processes_killed");
        if let Err(error) = bundle.unmount() {
            warn!(namespace = %task.namespace, id = %task.id, error = %chain(&error), "mount left until the task's deletion");
        }
        proto::fault!("supervisor.bury.unmounted");
        let now = || Exit { pid, status: KILLED, at: SystemTime::now().into() };
        let exit = bundle.exit().or_else(|| task.facts.borrow().exit.clone()).or(reported).unwrap_or_else(now);
        // A program that doesn't know the pid says nothing about it.
        let exit = if exit.pid == 0 { Exit { pid, ..exit } } else { exit };
        let record = |announced: bool| {
            if let Err(error) = bundle.set_exit(&exit, announced) {
                error!(namespace = %task.namespace, id = %task.id, error = %chain(&error), "exit not recorded");
            }
        };
        record(bundle.is_announced(None));
        proto::fault!("supervisor.bury.exit_recorded");
        self.tell_undelivered(task);
        self.announce(task, exit.clone());
        proto::fault!("supervisor.bury.announced");
        record(true);
        bundle.remove_dead_socket(true).await;
        for file in ["bootstrap.json", "config.json"] {
            if let Err(error) = fs::remove_file(bundle.path().join(file))
                && error.kind() != std::io::ErrorKind::NotFound
            {
                warn!(id = %task.id, %error, file, "file of an ended task not removed");
            }
        }
        proto::fault!("supervisor.bury.address_removed");
        let deleted = task.facts.borrow().told_life.1;
        task.facts.send_modify(|facts| {
            facts.connection = None;
            facts.phase = Phase::Orphan;
        });
        if deleted {
            // The shim had deleted it and told so: there is nothing to keep for anybody.
            match bundle.unmount().and_then(|()| bundle.remove()) {
                Ok(()) => self.forget(task),
                Err(error) => warn!(id = %task.id, error = %chain(&error), "bundle left until the task's deletion"),
            }
        }
    }

    /// Tells of the exits that the shim didn't live to tell: further processes first, as shims do.
    fn announce(&self, task: &Task, exit: Exit) {
        let mut events = Vec::new();
        let mut oom = false;
        let event = |id: String, exit: &Exit| TaskExit {
            container_id: task.id.to_string(),
            id,
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.at),
        };
        task.facts.send_modify(|facts| {
            // Also those that only an earlier supervisor saw begin.
            for (exec, pid) in task.bundle.started_execs() {
                facts.execs.entry(exec).or_default().pid = pid;
            }
            for (exec, facts) in facts.execs.iter_mut().filter(|(_, facts)| facts.pid != 0) {
                let killed = || Exit { pid: facts.pid, status: KILLED, at: exit.at };
                let end = facts.exit.clone().or_else(|| task.bundle.exec_exit(exec)).unwrap_or_else(killed);
                let told = std::mem::replace(&mut facts.told, true) || task.bundle.is_announced(Some(exec));
                if !told {
                    events.push(event(exec.to_string(), &end));
                }
                facts.exit = Some(end);
            }
            if task.bundle.saw_oom() && !std::mem::replace(&mut facts.oom, true) {
                oom = true;
            }
            let told = std::mem::replace(&mut facts.told, true) || task.bundle.is_announced(None);
            if !told {
                events.push(event(task.id.to_string(), &exit));
            }
            facts.pid = exit.pid;
            facts.set_exit(exit.clone());
        });
        info!(namespace = %task.namespace, id = %task.id, pid = exit.pid, exit_status = exit.status, "task exited");
        if oom {
            let event = TaskOom { container_id: task.id.to_string() };
            self.events.publish(&task.namespace, "/tasks/oom", &event);
        }
        for event in events {
            self.events.publish(&task.namespace, "/tasks/exit", &event);
        }
    }
}

/// Kills every process in the container's cgroups and removes them; and the init process, with which the kernel takes the
/// rest of its pid namespace, for containers without a cgroup.
pub(super) async fn kill_leftovers(cgroup: Option<&str>, init: Option<u32>) {
    if let Some(pid) = init.filter(|pid| is_contained(*pid)) {
        signal(pid);
    }
    let folders: Vec<PathBuf> = cgroup.map(cgroup_folders).unwrap_or_default();
    for _ in 0..50 {
        let mut left = 0;
        for folder in &folders {
            left += kill_in(folder);
        }
        if left == 0 {
            break;
        }
        // Killed processes leave their cgroup when they are reaped; new ones may have been forked meanwhile.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for folder in &folders {
        remove_tree(folder);
    }
}

/// Whether a pid is that of a container's process. It is an old note of ours, and the kernel may have given the number to
/// somebody else; containers have a mount namespace of their own.
fn is_contained(pid: u32) -> bool {
    let mounts = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
    let theirs = mounts(&pid.to_string());
    pid > 1 && theirs.is_some() && theirs != mounts("self")
}

/// Where a cgroup path from a spec lies, in every hierarchy that is mounted; empty if it isn't there. Paths of systemd's
/// form (`slice:prefix:name`) are the shim's to resolve.
pub(super) fn cgroup_folders(path: &str) -> Vec<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    // The root of a hierarchy holds everybody: never that.
    if path.contains(':') || relative.as_os_str().is_empty() || !plain {
        return Vec::new();
    }
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    // Several names can be links to one hierarchy (cpu, cpuacct): links are left out.
    let hierarchies = hierarchies.filter(|at| at.is_dir() && !at.is_symlink());
    std::iter::once(top.to_owned()).chain(hierarchies).map(|at| at.join(relative)).filter(|at| at.is_dir()).collect()
}

fn kill_in(folder: &Path) -> usize {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|at| at.is_dir());
    let mut count: usize = below.map(|child| kill_in(&child)).sum();
    let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        signal(pid);
        count += 1;
    }
    count
}

pub(super) fn signal(pid: u32) {
    if let Ok(raw) = i32::try_from(pid)
        && let Err(errno) = kill(Pid::from_raw(raw), Signal::SIGKILL)
        && errno != nix::errno::Errno::ESRCH
    {
        warn!(pid, %errno, "process of a dead shim not killed");
    }
}

fn remove_tree(folder: &Path) {
    for child in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|at| at.is_dir())
    {
        remove_tree(&child);
    }
    if let Err(error) = fs::remove_dir(folder) {
        warn!(%error, cgroup = %folder.display(), "cgroup not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_path_never_means_a_whole_hierarchy() {
        for path in ["", "/", "//", "..", "/a/../..", "./", "system.slice:berth:web"] {
            assert!(cgroup_folders(path).is_empty(), "{path:?}");
        }
    }
}
