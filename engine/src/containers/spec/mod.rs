//! The OCI specification of a container, complete: what the runtime is told about namespaces, mounts, limits and the
//! process. Everything it depends on is passed in, so that it can be tested without root.

mod devices;
mod mounts;
mod resources;

pub use devices::parse_device_rule;
pub use resources::{limits, rlimit};

use super::{
    init, merge,
    namespaces::Joined,
    record::Record,
    security::{self, Seccomp},
    validate::words,
};
use crate::{http::ApiResult, networks::NetworkKind};
use ::spec::{caps, cdi, seccomp, users::User};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// What the specification depends on besides the record.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Who the process runs as.
    pub user: &'a User,
    /// Host name.
    pub hostname: &'a str,
    /// Folder with hosts, hostname and resolv.conf.
    pub folder: &'a Path,
    /// Which network.
    pub network: NetworkKind,
    /// The pinned network namespace; none with the host's network.
    pub netns: Option<&'a Path>,
    /// Whether /sys/fs/cgroup is cgroup2.
    pub unified_cgroups: bool,
    /// What `SecurityOpt` says.
    pub security: &'a security::Security,
    /// AppArmor's profile.
    pub apparmor: Option<&'a str>,
    /// The program of process 1, if it isn't the container's own.
    pub init: Option<&'a Path>,
    /// Namespaces of other containers.
    pub joined: &'a Joined,
    /// Sources of mounts that were opened, by the place of the mount in the record.
    pub sources: &'a BTreeMap<usize, String>,
    /// Variables about linked containers.
    pub links: &'a [String],
    /// What requested devices need.
    pub devices: &'a cdi::Edits,
}

/// Paths that show or change the host, replaced by nothing.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Writes the specification.
pub fn build(record: &Record, around: &Surroundings<'_>) -> ApiResult<Value> {
    let host = &record.host;
    let caps = caps::effective(words(&host.cap_add), words(&host.cap_drop), host.privileged)?;
    let security = around.security;
    let mut linux = json!({
        "namespaces": namespaces(record, around),
        "cgroupsPath": cgroups_path(record),
        "resources": resources::resources(host)?,
        "devices": devices::devices(host)?,
        "maskedPaths": masked(record, security),
        "readonlyPaths": read_only(record, security),
    });
    match security.seccomp.as_ref().unwrap_or(&Seccomp::Default) {
        Seccomp::Unconfined => {}
        Seccomp::Default => linux["seccomp"] = seccomp::default_profile(&caps),
        Seccomp::Profile(profile) => linux["seccomp"] = seccomp::resolve_conditions(profile, &caps),
    }
    if let Some(propagation) = mounts::root_propagation(record) {
        linux["rootfsPropagation"] = propagation.into();
    }
    if !host.sysctls.is_empty() {
        linux["sysctl"] = json!(host.sysctls);
    }
    let mut args = Vec::new();
    if around.init.is_some() {
        args.extend([init::IN_CONTAINER.to_owned(), "--".to_owned()]);
    }
    args.push(record.path.clone());
    args.extend(record.args.iter().cloned());
    let env = merge::environment(&record.config, around.hostname, around.links);
    let mut process = process(record, around.user, &caps, args, env, &record.config.working_dir, record.config.tty)?;
    if let Some(profile) = around.apparmor {
        process["apparmorProfile"] = profile.into();
    }
    let [rows, columns] = host.console_size;
    if record.config.tty && rows > 0 && columns > 0 {
        process["consoleSize"] = json!({"height": rows, "width": columns});
    }
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "process": process,
        "root": {"path": "rootfs", "readonly": host.readonly_rootfs},
        "mounts": mounts::mounts(record, around),
        "linux": linux,
    });
    if host.uts_mode != "host" {
        spec["hostname"] = around.hostname.into();
        if !record.config.domainname.is_empty() {
            spec["domainname"] = record.config.domainname.clone().into();
        }
    }
    if !host.annotations.is_empty() {
        spec["annotations"] = json!(host.annotations);
    }
    around.devices.apply(&mut spec, host.privileged)?;
    Ok(spec)
}

/// A process of the container: its first one, or an exec.
pub fn process(
    record: &Record,
    user: &User,
    caps: &caps::Set,
    args: Vec<String>,
    mut env: Vec<String>,
    cwd: &str,
    terminal: bool,
) -> ApiResult<Value> {
    if !env.iter().any(|word| word.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    let security = security::parse(&record.host)?;
    let rlimits: Vec<Value> = record.host.ulimits.iter().map(rlimit).collect::<ApiResult<_>>()?;
    let groups: Vec<u32> = user.groups.clone();
    let mut process = json!({
        "terminal": terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": groups},
        "args": args,
        "env": env,
        "cwd": if cwd.is_empty() { "/" } else { cwd },
        // Nothing inheritable, nothing ambient (CVE-2022-24769).
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": []},
        "noNewPrivileges": security.no_new_privileges.unwrap_or(false),
        "rlimits": rlimits,
    });
    if record.host.oom_score_adj != 0 {
        process["oomScoreAdj"] = record.host.oom_score_adj.into();
    }
    Ok(process)
}

/// Capabilities of a process run in the container later.
pub fn exec_caps(record: &Record, privileged: bool) -> ApiResult<caps::Set> {
    let host = &record.host;
    Ok(caps::effective(words(&host.cap_add), words(&host.cap_drop), host.privileged || privileged)?)
}

fn namespaces(record: &Record, around: &Surroundings<'_>) -> Vec<Value> {
    let host = &record.host;
    let mut list = vec![json!({"type": "mount"})];
    match (around.network, around.netns) {
        (NetworkKind::Host, _) => {}
        (_, Some(path)) => list.push(json!({"type": "network", "path": path})),
        (_, None) => list.push(json!({"type": "network"})),
    }
    let joined = around.joined;
    for (kind, mode, donor) in
        [("uts", &host.uts_mode, &None), ("pid", &host.pid_mode, &joined.pid), ("ipc", &host.ipc_mode, &joined.ipc)]
    {
        match donor {
            Some(donor) => list.push(json!({"type": kind, "path": donor.namespace(kind)})),
            None if mode != "host" => list.push(json!({"type": kind})),
            None => {}
        }
    }
    if own_cgroup_namespace(record, around) {
        list.push(json!({"type": "cgroup"}));
    }
    list
}

/// Docker's default: private on cgroup2, the host's on v1.
fn own_cgroup_namespace(record: &Record, around: &Surroundings<'_>) -> bool {
    match record.host.cgroupns_mode.as_str() {
        "private" => true,
        "host" => false,
        _ => around.unified_cgroups && !record.host.privileged,
    }
}

fn cgroups_path(record: &Record) -> String {
    match record.host.cgroup_parent.trim_end_matches('/') {
        "" => format!("/berth/{}", record.id),
        parent if parent.starts_with('/') => format!("{parent}/{}", record.id),
        parent => format!("/{parent}/{}", record.id),
    }
}

fn masked(record: &Record, security: &security::Security) -> Vec<String> {
    match &record.host.masked_paths {
        Some(paths) => paths.clone(),
        None if record.host.privileged || security.system_paths_unconfined => Vec::new(),
        None => default_masked(),
    }
}

/// What is masked unless the user says otherwise.
pub fn default_masked() -> Vec<String> {
    MASKED.iter().map(|&p| p.to_owned()).chain(thermal_throttle()).collect()
}

/// What is read-only unless the user says otherwise.
pub fn default_read_only() -> Vec<String> {
    READ_ONLY.map(str::to_owned).to_vec()
}

/// Counters of each processor that tell about its neighbours (GHSA-6fw5-f8r9-fgfm).
fn thermal_throttle() -> impl Iterator<Item = String> {
    let online = std::thread::available_parallelism().map_or(1, |n| n.get());
    (0..online)
        .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"))
        .filter(|path| Path::new(path).exists())
}

fn read_only(record: &Record, security: &security::Security) -> Vec<String> {
    match &record.host.readonly_paths {
        Some(paths) => paths.clone(),
        None if record.host.privileged || security.system_paths_unconfined => Vec::new(),
        None => default_read_only(),
    }
}

#[cfg(test)]
mod tests;
