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
    if host.oom_kill_disable == Some(true) {
        memory.insert("disableOOMKiller".into(), true.into());
    }
    let mut cpu = Map::new();
    if host.nano_cpus > 0 {
        const PERIOD: i64 = 100_000;
        cpu.insert("period".into(), PERIOD.into());
        cpu.insert("quota".into(), (host.nano_cpus / 1000 * PERIOD / 1_000_000).into());
    }
    for (key, value) in [("shares", host.cpu_shares), ("period", host.cpu_period), ("quota", host.cpu_quota)] {
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
    for (key, group) in [("memory", memory), ("cpu", cpu)] {
        if !group.is_empty() {
            resources.insert(key.into(), group.into());
        }
    }
    resources
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
