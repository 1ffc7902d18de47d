//! Limits: cgroup resources and rlimits.

use super::devices::cgroup_rules;
use crate::{
    api::{HostConfig, Ulimit},
    http::{ApiError, ApiResult},
};
use serde_json::{Map, Value, json};

const LIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

pub(super) fn resources(host: &HostConfig) -> ApiResult<Value> {
    let mut resources = limits(host);
    resources.insert("devices".into(), cgroup_rules(host)?.into());
    // For its error: of a device that is not there nothing would be limited.
    block_io(host)?;
    Ok(resources.into())
}

/// `linux.resources` without devices; also the body of an update.
pub fn limits(host: &HostConfig) -> Map<String, Value> {
    let mut resources = Map::new();
    let mut memory = Map::new();
    if host.memory > 0 {
        memory.insert("limit".into(), host.memory.into());
        // As much swap again, which is Docker's reading of "not set".
        let swap = if host.memory_swap == 0 { host.memory.saturating_mul(2) } else { host.memory_swap };
        memory.insert("swap".into(), swap.into());
    } else if host.memory_swap == -1 {
        memory.insert("swap".into(), (-1).into());
    }
    if host.memory_reservation > 0 {
        memory.insert("reservation".into(), host.memory_reservation.into());
    }
    if let Some(swappiness) = host.memory_swappiness.filter(|n| *n >= 0) {
        memory.insert("swappiness".into(), swappiness.into());
    }
    for (key, value) in [("kernel", host.kernel_memory), ("kernelTCP", host.kernel_memory_tcp)] {
        if value > 0 {
            memory.insert(key.into(), value.into());
        }
    }
    if host.oom_kill_disable == Some(true) {
        memory.insert("disableOOMKiller".into(), true.into());
    }
    let mut cpu = Map::new();
    if host.nano_cpus > 0 {
        const PERIOD: i64 = 100_000;
        cpu.insert("period".into(), PERIOD.into());
        cpu.insert("quota".into(), (host.nano_cpus / 1000 * PERIOD / 1_000_000).into());
    }
    for (key, value) in [
        ("shares", host.cpu_shares),
        ("period", host.cpu_period),
        ("quota", host.cpu_quota),
        ("realtimePeriod", host.cpu_realtime_period),
        ("realtimeRuntime", host.cpu_realtime_runtime),
    ] {
        if value != 0 {
            cpu.insert(key.into(), value.into());
        }
    }
    for (key, value) in [("cpus", &host.cpuset_cpus), ("mems", &host.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(key.into(), value.clone().into());
        }
    }
    if let Some(limit) = host.pids_limit.filter(|n| *n > 0) {
        resources.insert("pids".into(), json!({ "limit": limit }));
    }
    let block = block_io(host).unwrap_or_default();
    for (key, group) in [("memory", memory), ("cpu", cpu), ("blockIO", block)] {
        if !group.is_empty() {
            resources.insert(key.into(), group.into());
        }
    }
    resources
}

/// `linux.resources.blockIO`; devices are named by their numbers there.
pub fn block_io(host: &HostConfig) -> ApiResult<Map<String, Value>> {
    let mut block = Map::new();
    if host.blkio_weight > 0 {
        block.insert("weight".into(), host.blkio_weight.into());
    }
    let mut weights = Vec::new();
    for device in &host.blkio_weight_device {
        let (major, minor) = numbers(&device.path)?;
        weights.push(json!({"major": major, "minor": minor, "weight": device.weight}));
    }
    if !weights.is_empty() {
        block.insert("weightDevice".into(), weights.into());
    }
    for (key, devices) in [
        ("throttleReadBpsDevice", &host.blkio_device_read_bps),
        ("throttleWriteBpsDevice", &host.blkio_device_write_bps),
        ("throttleReadIOPSDevice", &host.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", &host.blkio_device_write_iops),
    ] {
        let mut limits = Vec::new();
        for device in devices {
            let (major, minor) = numbers(&device.path)?;
            limits.push(json!({"major": major, "minor": minor, "rate": device.rate}));
        }
        if !limits.is_empty() {
            block.insert(key.into(), limits.into());
        }
    }
    Ok(block)
}

fn numbers(path: &str) -> ApiResult<(u64, u64)> {
    let found = nix::sys::stat::stat(path)
        .map_err(|error| ApiError::invalid(format!("block device {path}: {}", error.desc().to_lowercase())))?;
    Ok((nix::sys::stat::major(found.st_rdev), nix::sys::stat::minor(found.st_rdev)))
}

/// An rlimit by Docker's name (`nofile`); -1 is unlimited.
pub fn rlimit(ulimit: &Ulimit) -> ApiResult<Value> {
    if !LIMITS.contains(&ulimit.name.as_str()) {
        return Err(ApiError::invalid(format!("invalid ulimit type: {}", ulimit.name)));
    }
    let value = |n: i64| if n < 0 { u64::MAX } else { n as u64 };
    let (soft, hard) = (value(ulimit.soft), value(ulimit.hard));
    if soft > hard {
        return Err(ApiError::invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            ulimit.soft, ulimit.hard
        )));
    }
    let kind = format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase());
    Ok(json!({"type": kind, "soft": soft, "hard": hard}))
}
