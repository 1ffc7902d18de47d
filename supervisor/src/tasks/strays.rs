//! Shims whose bundles are gone: somebody emptied the run root under running containers. Nobody can reach such a shim any
//! more, so what it minds is ended, and the exit is recorded in a new bundle, from which the task is adopted as one that has
//! lost its shim: whoever asks learns how it ended.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::{
    containerd::{events::TaskExit, services::containers::v1::Container},
    id::{ContainerId, NamespaceName},
    kind::chain,
};
use tracing::{error, warn};

use super::{
    Tasks,
    bundle::{Bundle, CLOSES, Exit, Origin, is_dead},
    bury::{KILLED, cgroup_folders, kill_leftovers, signal},
};

/// A process that minds somebody for us.
#[derive(Debug)]
struct Stray {
    pid: u32,
    namespace: NamespaceName,
    id: ContainerId,
}

impl Tasks {
    /// Ends what is out of reach. To be done before `adopt`, by which its exits are found.
    pub(crate) async fn end_strays(self: &Arc<Self>) {
        let records = match self.containers.everywhere() {
            Ok(records) => records,
            Err(error) => return warn!(error = %chain(&error), "not looked for tasks without bundles"),
        };
        // Looking at every process of the machine is for when something is wrong.
        let lost: BTreeMap<_, _> = records
            .into_iter()
            .filter(|((namespace, id), _)| !Bundle::at(&self.folder, namespace, id).path().exists())
            .collect();
        let suspect = !lost.is_empty() && !self.folder.exists();
        if !suspect && !lost.values().any(runs) {
            return;
        }
        for stray in strays(&self.program.socket) {
            if Bundle::at(&self.folder, &stray.namespace, &stray.id).path().exists() {
                continue;
            }
            let Stray { pid, namespace, id } = stray;
            warn!(%namespace, %id, pid, "shim without bundle: the run root was emptied; its container is ended");
            // Those it minds, before it can't be asked any more. A pod's shim minds several.
            let minded = children(pid);
            signal(pid);
            minded.iter().for_each(|child| signal(*child));
            let key = (namespace, id);
            if let Some(record) = lost.get(&key) {
                kill_leftovers(cgroup(record).as_deref(), None).await;
                self.record_end(&key, record, minded.first().copied().unwrap_or(0));
            }
        }
    }

    /// Removes sockets of shims on which nobody listens any more: one that was killed with us, when its bundle had gone already,
    /// left it where nobody else looks. On a task of its own.
    pub(crate) fn sweep_sockets(&self) {
        let Some(folder) = self.program.socket.parent().map(|root| root.join("s")) else { return };
        tokio::spawn(async move {
            let mut dead = Vec::new();
            for socket in entries(&folder) {
                // One that is dying just now is found at the next start: there may be a thousand that live.
                if is_dead(&socket, Duration::ZERO).await {
                    dead.push(socket);
                }
            }
            if dead.is_empty() {
                return;
            }
            // A shim that begins has its socket a moment before it listens.
            tokio::time::sleep(BEGINS).await;
            for socket in dead {
                if !is_dead(&socket, CLOSES).await {
                    continue;
                }
                if let Err(error) = fs::remove_file(&socket) {
                    warn!(socket = %socket.display(), %error, "socket of a dead shim not removed");
                }
            }
        });
    }

    /// Leaves a bundle from which the exit can be told.
    fn record_end(&self, (namespace, id): &(NamespaceName, ContainerId), record: &Container, pid: u32) {
        let bundle = Bundle::at(&self.folder, namespace, id);
        let (none, exit) = (String::new(), Exit { pid, status: KILLED, at: SystemTime::now().into() });
        let snapshot = (record.snapshotter.clone(), record.snapshot_key.clone());
        let origin = Origin {
            shim: PathBuf::new(),
            stdin: none.clone(),
            stdout: none.clone(),
            stderr: none,
            terminal: false,
            snapshot: Some(snapshot).filter(|(_, key)| !key.is_empty()),
            images: None,
        };
        let spec = record.spec.as_ref().map_or(&b"{}"[..], |spec| &spec.value);
        // Not announced before it is recorded; and once it is, nobody tells of it a second time.
        if let Err(error) = bundle.make(spec, &origin).and_then(|()| bundle.set_exit(&exit, false)) {
            return error!(%namespace, %id, error = %chain(&error), "exit not recorded");
        }
        let event = TaskExit {
            container_id: id.to_string(),
            id: id.to_string(),
            pid,
            exit_status: KILLED,
            exited_at: Some(exit.at),
        };
        self.events.publish(namespace, "/tasks/exit", &event);
        if let Err(error) = bundle.set_exit(&exit, true) {
            error!(%namespace, %id, error = %chain(&error), "exit not recorded as announced");
        }
    }
}

/// How long a shim may take from its socket to listening on it.
const BEGINS: Duration = Duration::from_millis(500);

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn cgroup(record: &Container) -> Option<String> {
    let spec: serde_json::Value = serde_json::from_slice(&record.spec.as_ref()?.value).ok()?;
    Some(spec.pointer("/linux/cgroupsPath")?.as_str()?.to_owned())
}

/// Whether there are processes where a container's would be.
fn runs(record: &Container) -> bool {
    let folders = cgroup(record).map(|path| cgroup_folders(&path)).unwrap_or_default();
    folders.iter().any(|at| fs::read_to_string(at.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty()))
}

/// The shims that were told of a socket of ours, by their command lines (the contract's flags).
fn strays(socket: &Path) -> Vec<Stray> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> =
            line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
        let stray = parse(pid, &words, socket)?;
        // A container's process may call itself what it likes; it has mounts of its own.
        let mounts = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
        (mounts(&pid.to_string()) == mounts("self")).then_some(stray)
    })
    .collect()
}

fn parse(pid: u32, words: &[&str], socket: &Path) -> Option<Stray> {
    let flag = |name: &str| {
        words
            .windows(2)
            .find_map(|pair| (pair[0].trim_start_matches('-') == name && pair[0].starts_with('-')).then_some(pair[1]))
    };
    let address = Path::new(flag("address")?);
    let is_shim = Path::new(words.first()?).file_name()?.to_str()?.contains("shim");
    // One of several sockets, all in one folder.
    if !is_shim || address.parent() != socket.parent() || words.contains(&"delete") {
        return None;
    }
    Some(Stray {
        pid,
        namespace: NamespaceName::new(flag("namespace")?).ok()?,
        id: ContainerId::new(flag("id")?).ok()?,
    })
}

/// Every process below one, nearest first.
fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut todo = vec![pid];
    while let Some(parent) = todo.pop() {
        let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let new: Vec<u32> = list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
            found.extend(&new);
            todo.extend(new);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_are_known_by_their_command_lines() {
        let socket = Path::new("/r/supervisor.sock");
        let found = |line: &str| {
            parse(7, &line.split(' ').collect::<Vec<_>>(), socket)
                .map(|stray| format!("{}/{}", stray.namespace, stray.id))
        };
        for (line, wanted) in [
            ("/bin/berth-shim -namespace n -address /r/supervisor.sock -id web start", Some("n/web")),
            ("/bin/containerd-shim-runc-v2 -namespace n -id web -address /r/supervisor.sock.ttrpc", Some("n/web")),
            ("/bin/berth-shim -namespace n -address /other/supervisor.sock -id web start", None),
            ("/bin/berth-shim -namespace n -address /r/supervisor.sock -id web delete", None),
            ("/bin/sh -namespace n -address /r/supervisor.sock -id web", None),
            ("/bin/berth-shim -namespace n -address /r/supervisor.sock -id ../x", None),
            ("/bin/berth-shim", None),
        ] {
            assert_eq!(found(line).as_deref(), wanted, "{line}");
        }
    }
}
