//! Limits on cgroup2.

use sys::Errno;

use super::files::{read, write, write_if_there, write_in_some_order};
use super::legacy::pids;
use super::{CgroupError, Hierarchy};
use crate::spec::{HugepageLimit, Rdma, Resources};

/// Hands all available controllers down to the cgroup, level by level.
pub(super) fn enable_controllers(hierarchy: &Hierarchy, path: &str) -> Result<(), CgroupError> {
    let available = read(hierarchy, "", "cgroup.controllers")?;
    enable(hierarchy, path, &available.split_whitespace().collect::<Vec<_>>())
}

/// Hands these controllers down to the cgroup.
pub(super) fn enable(hierarchy: &Hierarchy, path: &str, wanted: &[&str]) -> Result<(), CgroupError> {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let missing = |enabled: &str| -> Vec<String> {
        let has = |name: &&&str| !enabled.split_whitespace().any(|enabled| enabled == **name);
        wanted.iter().filter(has).map(|name| format!("+{name}")).collect()
    };
    // Usually the first container under this parent did it all.
    if missing(&read(hierarchy, parent, "cgroup.subtree_control")?).is_empty() {
        return Ok(());
    }
    let levels = std::iter::once("").chain(parent.match_indices('/').map(|(at, _)| &parent[..at]));
    let levels: Vec<&str> = levels.chain((!parent.is_empty()).then_some(parent)).collect();
    for level in levels {
        let missing = missing(&read(hierarchy, level, "cgroup.subtree_control")?);
        if missing.is_empty() {
            continue;
        }
        if write(hierarchy, level, "cgroup.subtree_control", &missing.join(" ")).is_ok() {
            continue;
        }
        // With processes in the way, nothing may be tried one by one: the kernel would hand down cpu, cpuset and pids, and make a
        // threaded domain of the level, in which no container can live (cgroup-v2.rst, "Threads").
        if has_processes(hierarchy, level)? {
            if step_aside(hierarchy, level)? && !has_processes(hierarchy, level)? {
                if write(hierarchy, level, "cgroup.subtree_control", &missing.join(" ")).is_ok() {
                    continue;
                }
            } else {
                continue;
            }
        }
        // One that cannot be handed down (a real-time process in the way of cpu, say) must not take the others with it;
        // a limit that needs it will fail and say so.
        for controller in &missing {
            let done = write(hierarchy, level, "cgroup.subtree_control", controller);
            match done {
                Ok(())
                | Err(CgroupError::Write {
                    cause:
                        Errno::EBUSY
                        | Errno::EINVAL
                        | Errno::ENOENT
                        | Errno::EOPNOTSUPP
                        // A level that was delegated from above: what is handed down there is for others to say.
                        | Errno::EACCES
                        | Errno::EPERM
                        | Errno::EROFS,
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whether processes are in it itself; the root may have some and hand down all the same.
fn has_processes(hierarchy: &Hierarchy, level: &str) -> Result<bool, CgroupError> {
    Ok(!level.is_empty() && !read(hierarchy, level, "cgroup.procs")?.trim().is_empty())
}

/// A cgroup with processes cannot hand controllers down. If it is only ourselves who are in the way, as the one process of a
/// delegated cgroup, we go one level down.
fn step_aside(hierarchy: &Hierarchy, level: &str) -> Result<bool, CgroupError> {
    const ASIDE: &str = "berth-runtime";
    let own = nix::unistd::getpid().to_string();
    let alone = read(hierarchy, level, "cgroup.procs")?.split_whitespace().eq([own.as_str()]);
    if alone {
        let below = if level.is_empty() { ASIDE.to_owned() } else { format!("{level}/{ASIDE}") };
        super::files::make(hierarchy, &below)?;
        write(hierarchy, &below, "cgroup.procs", &own)?;
    }
    Ok(alone)
}

/// Docker's share of 2 to 262144 (default 1024) as a weight of 1 to 10000 (default 100), by the curve that goes through all
/// three points (runc 1.3.2, crun 1.23).
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

/// v1 weights are 10 to 1000, those of cgroup2 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

fn amount(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Spec's swap is memory and swap together; cgroup2 wants swap alone. `None`: leave it.
pub(super) fn swap_alone(limit: Option<i64>, swap: Option<i64>) -> Option<String> {
    match (limit.filter(|limit| *limit != 0), swap.filter(|swap| *swap != 0)?) {
        (_, ..0) => Some("max".to_owned()),
        (Some(limit @ 1..), swap) => Some(swap.saturating_sub(limit).max(0).to_string()),
        // Without a memory limit the sum says nothing about swap.
        _ => None,
    }
}

pub(super) fn rdma_line(device: &str, limit: &Rdma) -> String {
    let mut line = device.to_owned();
    for (name, value) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
        if let Some(value) = value {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    line
}

/// Writes all limits that are asked for.
pub(super) fn limit(
    hierarchy: &Hierarchy,
    path: &str,
    resources: &Resources,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    set(hierarchy, path, resources, warn).map_err(|error| super::check::explain(hierarchy, path, error))
}

fn set(
    hierarchy: &Hierarchy,
    path: &str,
    resources: &Resources,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut add = |file: &str, value: String| lines.push((file.to_owned(), value));
    let memory = &resources.memory;
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        add("memory.max", amount(limit));
    }
    let swap = swap_alone(memory.limit, memory.swap);
    if swap.is_none() && memory.swap.is_some_and(|swap| swap != 0) {
        warn(
            "linux.resources.memory.swap is memory and swap together: without memory.limit it says nothing; ignored"
                .into(),
        );
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        add("memory.low", amount(reservation));
    }
    for (name, set) in [
        ("swappiness", memory.swappiness.is_some()),
        ("disableOOMKiller", memory.disable_oom_killer == Some(true)),
        ("kernel", memory.kernel.is_some_and(|limit| limit != 0)),
        ("kernelTCP", memory.kernel_tcp.is_some_and(|limit| limit != 0)),
    ] {
        if set {
            warn(format!("linux.resources.memory.{name} is not there on cgroup2; ignored"));
        }
    }
    let cpu = &resources.cpu;
    if let Some(weight) = cpu.shares.map(weight_of_shares).filter(|weight| *weight != 0) {
        add("cpu.weight", weight.to_string());
    }
    match (cpu.quota.filter(|quota| *quota != 0), cpu.period.filter(|period| *period != 0)) {
        (None, None) => {}
        (quota, period) => {
            add("cpu.max", format!("{} {}", quota.map_or("max".into(), amount), period.unwrap_or(100_000)))
        }
    }
    if let Some(burst) = cpu.burst {
        add("cpu.max.burst", burst.to_string());
    }
    if let Some(idle) = cpu.idle {
        add("cpu.idle", idle.to_string());
    }
    if cpu.realtime_runtime.is_some_and(|value| value != 0) || cpu.realtime_period.is_some_and(|value| value != 0) {
        warn("linux.resources.cpu: real-time limits are not there on cgroup2; ignored".into());
    }
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            add(file, value.clone());
        }
    }
    if let Some(limit) = resources.pids.limit {
        add("pids.max", pids(limit));
    }
    let block = &resources.block_io;
    for (key, devices) in [
        ("rbps", &block.throttle_read_bps_device),
        ("wbps", &block.throttle_write_bps_device),
        ("riops", &block.throttle_read_iops_device),
        ("wiops", &block.throttle_write_iops_device),
    ] {
        for device in devices {
            // 0 has always taken a limit back.
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            add("io.max", format!("{}:{} {key}={rate}", device.major, device.minor));
        }
    }
    for (device, limit) in &resources.rdma {
        add("rdma.max", rdma_line(device, limit));
    }
    for (file, value) in &resources.unified {
        add(file, value.clone());
    }
    for limit in &resources.hugepage_limits {
        huge_pages(hierarchy, path, limit)?;
    }
    write_in_some_order(hierarchy, path, &lines)?;
    if let Some(swap) = swap
        && !write_if_there(hierarchy, path, "memory.swap.max", &swap)?
    {
        warn("linux.resources.memory.swap: the kernel does not account for swap; ignored".into());
    }
    weights(hierarchy, path, resources, warn)?;
    if resources.network.class_id.is_some_and(|class| class != 0) || !resources.network.priorities.is_empty() {
        warn("linux.resources.network is not there on cgroup2; ignored".into());
    }
    Ok(())
}

/// Shares of block I/O. Which file there is depends on the I/O scheduler; with none there is no weight to keep.
fn weights(
    hierarchy: &Hierarchy,
    path: &str,
    resources: &Resources,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    let block = &resources.block_io;
    let set = |weight: Option<u16>| weight.filter(|weight| *weight != 0);
    let general = set(block.weight).map(|weight| (String::new(), weight));
    let devices = block
        .weight_device
        .iter()
        .filter_map(|device| set(device.weight).map(|weight| (format!("{}:{} ", device.major, device.minor), weight)));
    for (device, weight) in general.into_iter().chain(devices) {
        let bfq = match write_if_there(hierarchy, path, "io.bfq.weight", &format!("{device}{weight}")) {
            // The device has another scheduler than the files are for.
            Err(CgroupError::Write { cause: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) if !device.is_empty() => false,
            done => done?,
        };
        if !bfq && !write_if_there(hierarchy, path, "io.weight", &format!("{device}{}", io_weight(weight)))? {
            let field = if device.is_empty() { "weight" } else { "weightDevice" };
            warn(format!("linux.resources.blockIO.{field}: nothing here keeps weights; ignored"));
        }
    }
    let leaves = block.weight_device.iter().any(|device| set(device.leaf_weight).is_some());
    if leaves || set(block.leaf_weight).is_some() {
        warn("linux.resources.blockIO: there are no leaf weights on cgroup2; ignored".into());
    }
    Ok(())
}

/// Limits use of one size of huge pages, and reservations too where the kernel counts them (Linux 5.7).
pub(super) fn huge_pages(hierarchy: &Hierarchy, path: &str, limit: &HugepageLimit) -> Result<(), CgroupError> {
    let (size, value) = (&limit.page_size, limit.limit.to_string());
    write(hierarchy, path, &format!("hugetlb.{size}.max"), &value)?;
    write_if_there(hierarchy, path, &format!("hugetlb.{size}.rsvd.max"), &value).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_their_three_points() {
        for (shares, weight) in [(0, 0), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000), (512, 59)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn swap_is_the_rest() {
        for (limit, swap, expected) in [
            (Some(100), Some(300), Some("200")),
            (Some(100), Some(100), Some("0")),
            (Some(100), Some(-1), Some("max")),
            (None, Some(300), None),
            (Some(100), None, None),
        ] {
            assert_eq!(swap_alone(limit, swap).as_deref(), expected);
        }
    }

    #[test]
    fn weights_map_end_to_end() {
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }
}
