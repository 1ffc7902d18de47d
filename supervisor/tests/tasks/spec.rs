//! What the containers of these tests are made of.

use proto::typeurl;
use serde_json::json;

/// A container whose process is `sh -c SCRIPT`, in a cgroup below `cgroup`.
pub(crate) fn container(cgroup: &str, id: &str, script: &str) -> Vec<u8> {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "hostname": id,
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{cgroup}/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
        },
    });
    serde_json::to_vec(&spec).expect("spec")
}

/// The process of an exec that runs `sh -c SCRIPT`.
pub(crate) fn process(script: &str) -> prost_types::Any {
    let process = json!({"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"});
    typeurl::pack_json(typeurl::PROCESS, serde_json::to_vec(&process).expect("process"))
}
