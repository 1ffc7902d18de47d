//! `features`: what this runtime can do, as the specification wants it told. Read by dockerd, containerd and CRI-O.

use serde_json::json;

use super::{CommandError, Context, print};
use crate::args::{Order, Parsed};
use crate::confine::seccomp;
use crate::plan::task::{MEMORY_FLAGS, MEMORY_MODES};
use crate::spec::VERSION;

pub(super) fn run(_: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    Parsed::parse(&[], Order::Mixed, arguments)?;
    let capabilities: Vec<String> = {
        let mut all: Vec<_> = caps::all().into_iter().collect();
        all.sort_by_key(|capability| capability.index());
        all.iter().map(ToString::to_string).collect()
    };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let names = |words: &[(&'static str, u32)]| words.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": words("prestart createRuntime createContainer startContainer poststart poststop"),
        "mountOptions": crate::plan::mount_words::KNOWN,
        "linux": {
            "namespaces": words("cgroup ipc mount network pid time user uts"),
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": words(
                    "SCMP_ACT_ALLOW SCMP_ACT_ERRNO SCMP_ACT_KILL SCMP_ACT_KILL_PROCESS SCMP_ACT_KILL_THREAD SCMP_ACT_LOG \
                     SCMP_ACT_NOTIFY SCMP_ACT_TRACE SCMP_ACT_TRAP"
                ),
                "operators": words(
                    "SCMP_CMP_EQ SCMP_CMP_GE SCMP_CMP_GT SCMP_CMP_LE SCMP_CMP_LT SCMP_CMP_MASKED_EQ SCMP_CMP_NE"
                ),
                "archs": words(if cfg!(target_arch = "aarch64") {
                    "SCMP_ARCH_AARCH64 SCMP_ARCH_ARM"
                } else {
                    "SCMP_ARCH_X32 SCMP_ARCH_X86 SCMP_ARCH_X86_64"
                }),
                "knownFlags": seccomp::flags(|_| true),
                "supportedFlags": seccomp::flags(sys::seccomp::flag_available),
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": names(MEMORY_MODES), "flags": names(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": {
            "org.berth.runtime.version": env!("CARGO_PKG_VERSION"),
            "org.berth.runtime.checkpoint.enabled": "true",
        },
        // What a config.json of a stranger could reach beyond its container with.
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config", "org.systemd.property."],
    });
    Ok(print(&format!("{features:#}\n")))
}
