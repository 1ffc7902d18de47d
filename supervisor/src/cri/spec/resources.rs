//! Limits and cgroups, in the words of the runtime specification.

use ::spec::caps;
use proto::runtime::v1 as cri;
use serde_json::{Map, Value, json};

use super::{Host, SpecError};

/// Cgroups of containers whose pod has none.
const NO_PARENT: [&str; 2] = ["/k8s.io", "system.slice"];
/// In front of the container's id in names of systemd's scopes.
const SCOPE_PREFIX: &str = "cri-berth";

/// `linux.resources` of a new container, without devices.
pub(super) fn of_container(
    config: &cri::ContainerConfig,
    host: &Host,
    warnings: &mut Vec<String>,
) -> Result<Map<String, Value>, SpecError> {
    let wanted = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    if !host.kernel.hugetlb && wanted.hugepage_limits.iter().any(|limit| limit.limit != 0) {
        warnings.push("limits of huge pages are left out: this kernel has no hugetlb controller".to_owned());
    }
    if !host.kernel.swap && wanted.memory_swap_limit_in_bytes != 0 {
        warnings.push("the limit of swap is left out: this kernel doesn't count it".to_owned());
    }
    resources(&wanted, host)
}

/// `linux.resources` as far as they can change: what an update sends to a container.
pub(in crate::cri) fn resources(
    wanted: &cri::LinuxContainerResources,
    host: &Host,
) -> Result<Map<String, Value>, SpecError> {
    let (mut all, mut cpu, mut memory) = (Map::new(), Map::new(), Map::new());
    for (name, key, value, least) in [
        ("cpu_period", "period", wanted.cpu_period, 0),
        // -1 is no limit.
        ("cpu_quota", "quota", wanted.cpu_quota, -1),
        ("cpu_shares", "shares", wanted.cpu_shares, 0),
    ] {
        at_least(name, value, least)?;
        if value != 0 {
            cpu.insert(key.into(), value.into());
        }
    }
    for (name, key, list) in
        [("cpuset_cpus", "cpus", &wanted.cpuset_cpus), ("cpuset_mems", "mems", &wanted.cpuset_mems)]
    {
        if !list.bytes().all(|b| b.is_ascii_digit() || b",-".contains(&b)) {
            return Err(SpecError::invalid(name, list, "is no list of numbers and ranges"));
        }
        if !list.is_empty() {
            cpu.insert(key.into(), list.clone().into());
        }
    }
    let (limit, swap) = (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes);
    at_least("memory_limit_in_bytes", limit, -1)?;
    at_least("memory_swap_limit_in_bytes", swap, -1)?;
    if limit > 0 && swap > 0 && swap < limit {
        return Err(SpecError::invalid(
            "memory_swap_limit_in_bytes",
            swap,
            "is less than the limit of memory, which is part of it",
        ));
    }
    if limit != 0 {
        memory.insert("limit".into(), limit.into());
    }
    // A limit of memory alone is one of memory and swap together: nothing is swapped unless the kubelet says so.
    let swap = if swap == 0 { limit } else { swap };
    if swap != 0 && host.kernel.swap {
        memory.insert("swap".into(), swap.into());
    }
    let mut pages = Vec::new();
    for limit in &wanted.hugepage_limits {
        let size = limit.page_size.as_str();
        let number =
            size.strip_suffix("KB").or(size.strip_suffix("MB")).or(size.strip_suffix("GB")).unwrap_or_default();
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(SpecError::invalid("hugepage_limits.page_size", size, "is not like 64KB, 2MB or 1GB"));
        }
        pages.push(json!({"pageSize": size, "limit": limit.limit}));
    }
    if !host.kernel.hugetlb {
        pages.clear();
    }
    for key in wanted.unified.keys() {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        // Anything else would be a path out of the cgroup.
        if !key.contains('.') || key.starts_with('.') || !key.bytes().all(plain) {
            return Err(SpecError::invalid("unified", key, "is no file of a cgroup"));
        }
    }
    if let Some(key) = wanted.unified.keys().next().filter(|_| !host.kernel.unified) {
        return Err(SpecError::unsupported(format!("unified {key}"), "this node has cgroups of version 1"));
    }
    for (key, part) in [("cpu", cpu), ("memory", memory)] {
        if !part.is_empty() {
            all.insert(key.into(), part.into());
        }
    }
    if !pages.is_empty() {
        all.insert("hugepageLimits".into(), pages.into());
    }
    if !wanted.unified.is_empty() {
        all.insert("unified".into(), json!(wanted.unified));
    }
    Ok(all)
}

fn at_least(name: &str, value: i64, least: i64) -> Result<(), SpecError> {
    if value < least { Err(SpecError::invalid(name, value, "is negative")) } else { Ok(()) }
}

/// `process.oomScoreAdj`, if the request has resources at all.
pub(super) fn oom_score_adj(config: &cri::ContainerConfig, host: &Host) -> Result<Option<i64>, SpecError> {
    let Some(wanted) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else { return Ok(None) };
    let wanted = wanted.oom_score_adj;
    if !(-1000..=1000).contains(&wanted) {
        return Err(SpecError::invalid("oom_score_adj", wanted, "is not from -1000 to 1000"));
    }
    Ok(Some(host.lowest_oom_score_adj.map_or(wanted, |lowest| wanted.max(lowest))))
}

/// Our own oom_score_adj, if we may not give less (proc_pid_oom_score_adj(5)).
pub(super) fn lowest_oom_score_adj() -> Option<i64> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
    if initial && caps::all_of_host().contains("CAP_SYS_RESOURCE") {
        return None;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    Some(own.trim().parse().unwrap_or(0))
}

/// `linux.cgroupsPath`: below the pod's cgroup, in the words of who owns the cgroups.
pub(in crate::cri) fn cgroups_path(parent: &str, driver: cri::CgroupDriver, id: &str) -> Result<String, SpecError> {
    let refused = |why| Err(SpecError::invalid("cgroup_parent", parent, why));
    // Runtimes take a colon for systemd's form.
    if parent.chars().any(|c| c.is_control() || c == ':') || parent.len() > 1024 {
        return refused("is no path");
    }
    if parent.split('/').any(|part| part == "..") {
        return refused("leads elsewhere");
    }
    let parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    match (driver, parts.last()) {
        (cri::CgroupDriver::Cgroupfs, None) => Ok(format!("{}/{id}", NO_PARENT[0])),
        (cri::CgroupDriver::Systemd, None) => Ok(format!("{}:{SCOPE_PREFIX}:{id}", NO_PARENT[1])),
        (cri::CgroupDriver::Cgroupfs, Some(last)) if last.ends_with(".slice") => refused(
            "is a slice of systemd, while this node's cgroup driver is cgroupfs: the kubelet's has to be the same",
        ),
        (cri::CgroupDriver::Cgroupfs, Some(_)) => Ok(format!("/{}/{id}", parts.join("/"))),
        (cri::CgroupDriver::Systemd, Some(slice)) => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-\\@".contains(&b);
            if !slice.ends_with(".slice") || slice.starts_with(['.', '-']) || !slice.bytes().all(plain) {
                return refused(
                    "is no slice, while this node's cgroup driver is systemd: the kubelet's has to be the same",
                );
            }
            Ok(format!("{slice}:{SCOPE_PREFIX}:{id}"))
        }
    }
}
