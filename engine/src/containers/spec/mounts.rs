//! Mounts of the specification: the kernel's file systems, the engine's three files, then the user's.

use super::Surroundings;
use crate::containers::{
    init,
    record::{MountKind, MountPoint, Record},
};
use serde_json::{Value, json};
use std::path::Path;

/// Size of /dev/shm unless chosen.
pub const DEFAULT_SHM: i64 = 64 << 20;

pub(super) fn mounts(record: &Record, around: &Surroundings<'_>) -> Vec<Value> {
    let host = &record.host;
    let access = if host.privileged { "rw" } else { "ro" };
    let cgroups = if around.security.writable_cgroups.unwrap_or(host.privileged) { "rw" } else { "ro" };
    let shm = if host.shm_size > 0 { host.shm_size } else { DEFAULT_SHM };
    let kernel = |kind: &str, at: &str, source: &str, options: &[&str]| json!({"type": kind, "destination": at, "source": source, "options": options});
    let mut list = vec![
        kernel("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"]),
        kernel("tmpfs", "/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        kernel(
            "devpts",
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        kernel("sysfs", "/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        kernel("cgroup", "/sys/fs/cgroup", "cgroup", &[cgroups, "nosuid", "noexec", "nodev"]),
    ];
    // Shows the queues of whichever ipc namespace the container is in.
    list.push(kernel("mqueue", "/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    if host.ipc_mode == "host" && Path::new("/dev/shm").is_dir() {
        list.push(kernel("bind", "/dev/shm", "/dev/shm", &["rbind", "nosuid", "noexec", "nodev"]));
    } else {
        if let Some(shm) = &around.joined.shm {
            list.push(kernel("bind", "/dev/shm", &shm.display().to_string(), &["rbind", "nosuid", "noexec", "nodev"]));
        } else if host.ipc_mode != "none" {
            let size = format!("size={shm}");
            list.push(kernel("tmpfs", "/dev/shm", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
        }
    }
    let covered = |destination: &str| record.mounts.iter().any(|mount| mount.destination == destination);
    for name in ["resolv.conf", "hostname", "hosts"] {
        let destination = format!("/etc/{name}");
        if !covered(&destination) {
            let source = around.folder.join(name).display().to_string();
            let access = if host.readonly_rootfs { "ro" } else { "rw" };
            list.push(kernel("bind", &destination, &source, &["rbind", "rprivate", access]));
        }
    }
    // What the user mounts over one of the kernel's replaces it.
    list.retain(|mount| !covered(mount["destination"].as_str().unwrap_or("")));
    list.extend(record.mounts.iter().enumerate().map(|(at, mount)| user_mount(mount, around.sources.get(&at))));
    if let Some(init) = around.init {
        list.push(kernel("bind", init::IN_CONTAINER, &init.display().to_string(), &["bind", "ro"]));
    }
    list
}

fn user_mount(mount: &MountPoint, opened: Option<&String>) -> Value {
    let access = match (mount.writable, mount.read_only_tree) {
        // What is read-only on the host stays so: "rw" would say otherwise.
        (true, _) => None,
        (false, true) => Some("rro"),
        (false, false) => Some("ro"),
    };
    let source = opened.unwrap_or(&mount.source);
    match mount.kind {
        MountKind::Tmpfs => {
            let mut options: Vec<&str> = vec!["noexec", "nosuid", "nodev"];
            // Docker's defaults, each of which the opposite word switches off.
            for (word, opposite) in [("exec", "noexec"), ("suid", "nosuid"), ("dev", "nodev")] {
                if mount.options.iter().any(|o| o == word) {
                    options.retain(|o| *o != opposite);
                }
            }
            options
                .extend(mount.options.iter().map(String::as_str).filter(|o| !options.contains(o)).collect::<Vec<_>>());
            json!({"type": "tmpfs", "destination": mount.destination, "source": "tmpfs", "options": options})
        }
        MountKind::Image => {
            json!({"type": "bind", "destination": mount.destination, "source": source,
                   "options": ["rbind", "rprivate", "ro"]})
        }
        MountKind::Bind | MountKind::Volume => {
            let bind = if mount.non_recursive { "bind" } else { "rbind" };
            let propagation = if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation };
            let options: Vec<&str> = [bind, propagation].into_iter().chain(access).collect();
            json!({"type": "bind", "destination": mount.destination, "source": source, "options": options})
        }
    }
}

/// A shared or slave mount works only below a root that is one.
pub(super) fn root_propagation(record: &Record) -> Option<&'static str> {
    let has = |kinds: [&str; 2]| record.mounts.iter().any(|mount| kinds.contains(&mount.propagation.as_str()));
    if has(["shared", "rshared"]) {
        Some("shared")
    } else if has(["slave", "rslave"]) {
        Some("slave")
    } else {
        None
    }
}
