//! `spec`: writes a config.json to begin with.

#![expect(clippy::disallowed_methods, reason = "config.json is written to a folder of the caller")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{CommandError, Context};
use crate::args::{Flag, Order, Parsed, switch, value};

pub(super) const FLAGS: &[Flag] = &[
    value(&["bundle", "b"], "folder to write to (default: here)"),
    switch(&["rootless"], "for a user that is not root"),
];

pub(super) fn run(_: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::Mixed, arguments)?;
    let path = parsed.path("bundle").unwrap_or_else(PathBuf::new).join("config.json");
    let mut config = default();
    if parsed.is_on("rootless") {
        make_rootless(&mut config, nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    }
    let failed = |cause| CommandError::Io { action: "write", path: path.clone(), cause };
    // Whatever is there may be somebody's work.
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    file.write_all(format!("{config:#}\n").as_bytes()).map_err(failed)?;
    Ok(0)
}

fn default() -> Value {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind}));
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!({
        "ociVersion": crate::spec::VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            // Never inheritable ones: see CVE-2022-29162.
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "berth",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// A user namespace in which the caller is root, nothing of the host's network, and no limits, which take rights of their own.
fn make_rootless(config: &mut Value, uid: u32, gid: u32) {
    let namespaces = ["pid", "ipc", "uts", "mount", "cgroup", "user"].map(|kind| json!({"type": kind}));
    config["linux"]["namespaces"] = namespaces.to_vec().into();
    config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("resources");
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        for mount in mounts {
            if mount["destination"] == "/sys" {
                // sysfs belongs to the host's network namespace, so it cannot be mounted anew.
                // Read-only throughout: a cgroup tree is mounted below, and part of it may be the user's (CVE-2023-25809).
                *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                    "options": ["rbind", "nosuid", "noexec", "nodev", "ro", "rro"]});
            } else if let Some(options) = mount["options"].as_array_mut() {
                // gid 5 has no meaning in a namespace with one id.
                options.retain(|option| option != "gid=5");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Options, Plan};

    #[test]
    fn what_is_written_is_accepted() {
        let mut config = default();
        for rootless in [false, true] {
            if rootless {
                make_rootless(&mut config, 1000, 1000);
            }
            let spec: crate::spec::Spec = serde_json::from_value(config.clone()).expect("parses");
            let plan = Plan::new(&spec, std::path::Path::new("/b"), Options::default()).expect("plan");
            assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
            assert_eq!(plan.process.caps.inheritable, 0);
        }
    }
}
