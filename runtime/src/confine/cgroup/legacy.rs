//! Limits on cgroup v1.

use sys::Errno;

use super::files::{read, write, write_if_there, write_in_some_order};
use super::{CgroupError, Hierarchy, devices};
use crate::spec::{DeviceRule, Resources};

/// A new cpuset allows nothing; it takes over what its parent has, from the top down where that is empty as well.
pub(super) fn inherit_cpuset(hierarchy: &Hierarchy, path: &str) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fill(hierarchy, path, file)?;
    }
    Ok(())
}

fn fill(hierarchy: &Hierarchy, path: &str, file: &str) -> Result<String, CgroupError> {
    let own = read(hierarchy, path, file)?;
    if !own.trim().is_empty() || path.is_empty() {
        return Ok(own);
    }
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let value = fill(hierarchy, parent, file)?;
    write(hierarchy, path, file, value.trim())?;
    Ok(value)
}

/// Denies all devices, then applies the rules and allows what every container needs.
pub(super) fn limit_devices(hierarchy: &Hierarchy, path: &str, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    for (file, line) in devices::legacy_lines(rules) {
        write(hierarchy, path, file, &line)?;
    }
    Ok(())
}

/// All other limits. A controller is looked for only when something is asked of it.
pub(super) fn limit(
    hierarchies: &[Hierarchy],
    unified: Option<&Hierarchy>,
    path: &str,
    resources: &Resources,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    let find = |controller: &'static str, field: &'static str| {
        let found = hierarchies.iter().find(|hierarchy| hierarchy.controls(controller));
        found.ok_or(CgroupError::NoController { field, controller })
    };
    memory(&find, path, resources, warn)?;
    let cpu = &resources.cpu;
    let values = [
        ("cpu.cfs_period_us", cpu.period.filter(|period| *period != 0).map(|value| value.to_string())),
        ("cpu.cfs_quota_us", cpu.quota.filter(|quota| *quota != 0).map(|value| value.to_string())),
        ("cpu.cfs_burst_us", cpu.burst.map(|value| value.to_string())),
        ("cpu.rt_period_us", cpu.realtime_period.filter(|period| *period != 0).map(|value| value.to_string())),
        ("cpu.rt_runtime_us", cpu.realtime_runtime.filter(|runtime| *runtime != 0).map(|value| value.to_string())),
        ("cpu.shares", cpu.shares.filter(|shares| *shares != 0).map(|value| value.to_string())),
        ("cpu.idle", cpu.idle.map(|value| value.to_string())),
    ];
    let values: Vec<(String, String)> =
        values.into_iter().filter_map(|(file, value)| Some((file.to_owned(), value?))).collect();
    if !values.is_empty() {
        write_in_some_order(find("cpu", "linux.resources.cpu")?, path, &values)?;
    }
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            write(find("cpuset", "linux.resources.cpu.cpus")?, path, file, value)?;
        }
    }
    if let Some(limit) = resources.pids.limit {
        write(find("pids", "linux.resources.pids")?, path, "pids.max", &pids(limit))?;
    }
    block_io(&find, path, resources, warn)?;
    for limit in &resources.hugepage_limits {
        let (size, value) = (&limit.page_size, limit.limit.to_string());
        match (find("hugetlb", "linux.resources.hugepageLimits"), unified) {
            (Ok(hierarchy), _) => {
                write(hierarchy, path, &format!("hugetlb.{size}.limit_in_bytes"), &value)?;
                // The limit is for reservations too where the kernel counts them (Linux 5.7).
                write_if_there(hierarchy, path, &format!("hugetlb.{size}.rsvd.limit_in_bytes"), &value)?;
            }
            // On a hybrid host the controller may be with cgroup2.
            (Err(_), Some(hierarchy)) => {
                super::unified::enable(hierarchy, path, &["hugetlb"])?;
                super::unified::huge_pages(hierarchy, path, limit)?;
            }
            (Err(error), None) => return Err(error),
        }
    }
    if let Some(class) = resources.network.class_id.filter(|class| *class != 0) {
        write(find("net_cls", "linux.resources.network.classID")?, path, "net_cls.classid", &class.to_string())?;
    }
    for entry in &resources.network.priorities {
        let line = format!("{} {}", entry.name, entry.priority);
        write(find("net_prio", "linux.resources.network.priorities")?, path, "net_prio.ifpriomap", &line)?;
    }
    for (device, limit) in &resources.rdma {
        let line = super::unified::rdma_line(device, limit);
        match (find("rdma", "linux.resources.rdma"), unified) {
            (Ok(hierarchy), _) => write(hierarchy, path, "rdma.max", &line)?,
            (Err(_), Some(hierarchy)) => beside(hierarchy, path, "rdma.max", &line)?,
            (Err(error), None) => return Err(error),
        }
    }
    for (file, value) in &resources.unified {
        let missing = CgroupError::NoController { field: "linux.resources.unified", controller: "cgroup2" };
        beside(unified.ok_or(missing)?, path, file, value)?;
    }
    Ok(())
}

/// Writes a file of the cgroup2 tree beside the v1 hierarchies, which has the controllers that v1 leaves.
fn beside(hierarchy: &Hierarchy, path: &str, file: &str, value: &str) -> Result<(), CgroupError> {
    let controller = file.split('.').next().unwrap_or_default();
    if controller != "cgroup" {
        super::unified::enable(hierarchy, path, &[controller])?;
    }
    write(hierarchy, path, file, value).map_err(|error| super::check::explain(hierarchy, path, error))
}

type Find<'a> = dyn Fn(&'static str, &'static str) -> Result<&'a Hierarchy, CgroupError> + 'a;

fn memory<'a>(
    find: &Find<'a>,
    path: &str,
    resources: &Resources,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    let memory = &resources.memory;
    let limit = memory.limit.filter(|limit| *limit != 0).map(|limit| limit.to_string());
    let swap = memory.swap.filter(|swap| *swap != 0).map(|swap| swap.to_string());
    let hierarchy = || find("memory", "linux.resources.memory");
    let (limit_file, swap_file) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    let mut swap_done = false;
    if let Some(limit) = &limit {
        match (write(hierarchy()?, path, limit_file, limit), &swap) {
            // Memory may not exceed memory plus swap: when both grow, the sum has to grow first.
            (Err(CgroupError::Write { cause: Errno::EINVAL, .. }), Some(swap)) => {
                write(hierarchy()?, path, swap_file, swap)?;
                write(hierarchy()?, path, limit_file, limit)?;
                swap_done = true;
            }
            (done, _) => done?,
        }
    }
    if let Some(swap) = swap.filter(|_| !swap_done)
        && !write_if_there(hierarchy()?, path, swap_file, &swap)?
    {
        warn("linux.resources.memory.swap: the kernel does not account for swap; ignored".into());
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        write(hierarchy()?, path, "memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    for (field, limit) in [("kernel", memory.kernel), ("kernelTCP", memory.kernel_tcp)] {
        if limit.is_some_and(|limit| limit != 0) {
            warn(format!("linux.resources.memory.{field} is obsolete; ignored"));
        }
    }
    if memory.disable_oom_killer == Some(true) {
        write(hierarchy()?, path, "memory.oom_control", "1")?;
    }
    if let Some(swappiness) = memory.swappiness {
        write(hierarchy()?, path, "memory.swappiness", &swappiness.to_string())?;
    }
    Ok(())
}

/// The value of pids.max. A limit of 0 is one process: the first is there already when it would count.
pub(super) fn pids(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        0 => "1".to_owned(),
        limit => limit.to_string(),
    }
}

/// Which file there is depends on the I/O scheduler (leaves: CFQ, gone with Linux 5.0); with none there is no weight to keep.
fn keep_weight(
    hierarchy: &Hierarchy,
    path: &str,
    files: &[&str],
    line: &str,
    field: &str,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    for file in files {
        if write_if_there(hierarchy, path, file, line)? {
            return Ok(());
        }
    }
    warn(format!("linux.resources.blockIO.{field}: no I/O scheduler here keeps weights of this kind; ignored"));
    Ok(())
}

fn block_io<'a>(
    find: &Find<'a>,
    path: &str,
    resources: &Resources,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    let block = &resources.block_io;
    let hierarchy = || find("blkio", "linux.resources.blockIO");
    for (field, weight, files) in [
        ("weight", block.weight, &["blkio.weight", "blkio.bfq.weight"][..]),
        ("leafWeight", block.leaf_weight, &["blkio.leaf_weight"]),
    ] {
        if let Some(weight) = weight.filter(|weight| *weight != 0) {
            keep_weight(hierarchy()?, path, files, &weight.to_string(), field, warn)?;
        }
    }
    for device in &block.weight_device {
        let (major, minor) = (device.major, device.minor);
        for (field, weight, files) in [
            ("weightDevice.weight", device.weight, &["blkio.weight_device", "blkio.bfq.weight_device"][..]),
            ("weightDevice.leafWeight", device.leaf_weight, &["blkio.leaf_weight_device"]),
        ] {
            if let Some(weight) = weight.filter(|weight| *weight != 0) {
                keep_weight(hierarchy()?, path, files, &format!("{major}:{minor} {weight}"), field, warn)?;
            }
        }
    }
    for (file, devices) in [
        ("blkio.throttle.read_bps_device", &block.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &block.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &block.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &block.throttle_write_iops_device),
    ] {
        for device in devices {
            write(hierarchy()?, path, file, &format!("{}:{} {}", device.major, device.minor, device.rate))?;
        }
    }
    Ok(())
}
