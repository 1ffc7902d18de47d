//! Limits: what cannot be is refused, and what this kernel cannot keep is dropped with a warning, in Docker's words. Pure.

use super::spec;
use crate::{
    api::{HostConfig, host_config::ThrottleDevice, serial::OrNull},
    http::{ApiError, ApiResult},
};
use ::spec::kernel::Kernel;

/// The least memory a container can have, as in Docker.
const MIN_MEMORY: i64 = 6 << 20;

/// Refuses what no kernel could keep.
pub fn check(host: &HostConfig) -> ApiResult<()> {
    let refuse = |text: &str| Err(ApiError::invalid(text));
    check_memory(host)?;
    if host.nano_cpus != 0 && host.cpu_period != 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set.");
    }
    if host.nano_cpus != 0 && host.cpu_quota != 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set.");
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as i64);
    if host.nano_cpus < 0 || host.nano_cpus > cpus * 1_000_000_000 {
        return Err(ApiError::invalid(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )));
    }
    if host.cpu_period != 0 && !(1000..=1_000_000).contains(&host.cpu_period) {
        return refuse("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_shares < 0 {
        return refuse("invalid CPU shares: value must be a positive integer");
    }
    if host.cpu_realtime_period < 0 || host.cpu_realtime_runtime < 0 {
        return refuse("cpu real-time period and runtime must not be negative");
    }
    if host.cpu_realtime_period != 0
        && host.cpu_realtime_runtime != 0
        && host.cpu_realtime_runtime > host.cpu_realtime_period
    {
        return refuse("cpu real-time runtime cannot be higher than cpu real-time period");
    }
    for (what, list) in [("cpus", &host.cpuset_cpus), ("mems", &host.cpuset_mems)] {
        if numbers(list).is_none() {
            return Err(ApiError::invalid(format!("Invalid value {list} for cpuset {what}")));
        }
    }
    if host.blkio_weight != 0 && !(10..=1000).contains(&host.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    for device in &host.blkio_weight_device {
        if !device.path.starts_with('/') || !(10..=1000).contains(&device.weight) {
            return Err(ApiError::invalid(format!(
                "invalid weight {} of block device {:?}: a path and a weight from 10 to 1000 are needed",
                device.weight, device.path
            )));
        }
    }
    for device in throttles(host).into_iter().flatten() {
        if !device.path.starts_with('/') {
            return Err(ApiError::invalid(format!("invalid path of a block device: {:?}", device.path)));
        }
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(ApiError::invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    if host.io_maximum_iops != 0 {
        return refuse("Invalid QoS settings: linux does not support configuration of maximum IOPs");
    }
    if host.io_maximum_bandwidth != 0 {
        return refuse("Invalid QoS settings: linux does not support configuration of maximum bandwidth");
    }
    if host.cpu_count != 0 || host.cpu_percent != 0 {
        // As Docker, which drops them without a word; a word is better.
        tracing::debug!("CpuCount and CpuPercent are for Windows containers");
    }
    for ulimit in &host.ulimits {
        spec::rlimit(ulimit)?;
    }
    Ok(())
}

fn check_memory(host: &HostConfig) -> ApiResult<()> {
    let refuse = |text: &str| Err(ApiError::invalid(text));
    if host.memory != 0 && host.memory < MIN_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return refuse("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if host.memory_swap < -1 || host.memory < 0 || host.memory_reservation < 0 {
        return refuse("memory limits must not be negative");
    }
    if host.memory_reservation > 0 && host.memory_reservation < MIN_MEMORY {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return refuse("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    if host.memory_swappiness.is_some_and(|n| !(-1..=100).contains(&n)) {
        return refuse("Invalid value for memory swappiness: valid range is 0-100");
    }
    if host.kernel_memory > 0 && host.kernel_memory < MIN_MEMORY {
        return refuse("Minimum kernel memory limit allowed is 6MB");
    }
    Ok(())
}

fn throttles(host: &HostConfig) -> [&OrNull<Vec<ThrottleDevice>>; 4] {
    [
        &host.blkio_device_read_bps,
        &host.blkio_device_write_bps,
        &host.blkio_device_read_iops,
        &host.blkio_device_write_iops,
    ]
}

/// Drops the limits that this kernel cannot keep; says which.
pub fn adapt(host: &mut HostConfig, kernel: &Kernel) -> ApiResult<Vec<String>> {
    let mut warnings = Vec::new();
    let mut warn = |text: &str| warnings.push(text.to_owned());
    if host.memory > 0 && !kernel.memory {
        warn(
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
        );
        host.memory = 0;
        host.memory_swap = -1;
    }
    if host.memory > 0 && host.memory_swap != -1 && !kernel.swap {
        warn(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
        );
        host.memory_swap = -1;
    }
    if host.memory_swappiness.is_some_and(|n| n != -1) && !kernel.swappiness {
        warn(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
        );
        host.memory_swappiness = None;
    }
    if host.memory_reservation > 0 && !kernel.reservation {
        warn(
            "Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.",
        );
        host.memory_reservation = 0;
    }
    if host.kernel_memory > 0 {
        warn("Specifying a kernel memory limit is deprecated and will be removed in a future release.");
        if !kernel.kernel_memory {
            warn(
                "Your kernel does not support kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
            );
            host.kernel_memory = 0;
        }
    }
    if host.kernel_memory_tcp > 0 && !kernel.kernel_memory_tcp {
        warn(
            "Your kernel does not support kernel memory TCP limit capabilities or the cgroup is not mounted. Limitation discarded.",
        );
        host.kernel_memory_tcp = 0;
    }
    if host.oom_kill_disable == Some(true) {
        if !kernel.oom_kill_disable {
            warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.");
            host.oom_kill_disable = None;
        } else if host.memory == 0 {
            warn(
                "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.",
            );
        }
    }
    if host.pids_limit.is_some_and(|n| n > 0) && !kernel.pids {
        warn(
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
        );
        host.pids_limit = None;
    }
    if host.nano_cpus > 0 && !kernel.cpu_quota {
        return Err(ApiError::invalid(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
        ));
    }
    if host.cpu_shares > 0 && !kernel.cpu_shares {
        warn("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.");
        host.cpu_shares = 0;
    }
    if (host.cpu_period != 0 || host.cpu_quota != 0) && !kernel.cpu_quota {
        warn("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.");
        (host.cpu_period, host.cpu_quota) = (0, 0);
    }
    if (host.cpu_realtime_period != 0 || host.cpu_realtime_runtime != 0) && !kernel.cpu_realtime {
        return Err(ApiError::invalid("Your kernel does not support CPU real-time scheduler"));
    }
    let chosen = [&host.cpuset_cpus, &host.cpuset_mems].iter().any(|list| !list.is_empty());
    if chosen && !kernel.cpuset {
        warn("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.");
        host.cpuset_cpus.clear();
        host.cpuset_mems.clear();
    }
    check_available(host)?;
    if host.blkio_weight > 0 && !kernel.io_weight {
        warn("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.");
        host.blkio_weight = 0;
    }
    if !host.blkio_weight_device.is_empty() && !kernel.io_weight_device {
        warn(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.",
        );
        host.blkio_weight_device = Vec::new().into();
    }
    for (list, what, dropped) in [
        (&mut host.blkio_device_read_bps, "BPS Block I/O read limit", "Block I/O BPS read limit"),
        (&mut host.blkio_device_write_bps, "BPS Block I/O write limit", "Block I/O BPS write limit"),
        (&mut host.blkio_device_read_iops, "IOPS Block read limit", "Block I/O IOPS read limit"),
        (&mut host.blkio_device_write_iops, "IOPS Block write limit", "Block I/O IOPS write limit"),
    ] {
        if !list.is_empty() && !kernel.io_throttle {
            warn(&format!("Your kernel does not support {what} or the cgroup is not mounted. {dropped} discarded."));
            *list = Vec::new().into();
        }
    }
    Ok(warnings)
}

/// Processors and memory nodes that this machine hasn't.
fn check_available(host: &HostConfig) -> ApiResult<()> {
    for (what, list, file) in [
        ("CPUs", &host.cpuset_cpus, "/sys/devices/system/cpu/online"),
        ("memory nodes", &host.cpuset_mems, "/sys/devices/system/node/online"),
    ] {
        let Ok(online) = std::fs::read_to_string(file) else { continue };
        let (Some(wanted), Some(there)) = (numbers(list), numbers(online.trim())) else { continue };
        let covered = |(first, last): &(u32, u32)| {
            (*first..=*last).all(|n| there.iter().any(|(from, to)| (*from..=*to).contains(&n)))
        };
        if !wanted.iter().all(covered) {
            return Err(ApiError::invalid(format!(
                "Requested {what} are not available - requested {list}, available: {}",
                online.trim()
            )));
        }
    }
    Ok(())
}

/// Reads `0-3,7`.
fn numbers(list: &str) -> Option<Vec<(u32, u32)>> {
    let parts = list.split(',').filter(|_| !list.is_empty());
    parts
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
            (first <= last && last < 65536).then_some((first, last))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(json: &str) -> HostConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (json, word) in [
            (r#"{"Memory":1000}"#, "6MB"),
            (r#"{"KernelMemory":1000}"#, "kernel memory"),
            (r#"{"Memory":10485760,"MemorySwap":1}"#, "memoryswap"),
            (r#"{"MemorySwap":10485760}"#, "always set"),
            (r#"{"MemorySwappiness":101}"#, "swappiness"),
            (r#"{"NanoCpus":1,"CpuQuota":5000}"#, "CPU Quota"),
            (r#"{"NanoCpus":999000000000000}"#, "range of CPUs"),
            (r#"{"CpuPeriod":1}"#, "period"),
            (r#"{"CpuRealtimePeriod":1000,"CpuRealtimeRuntime":2000}"#, "cannot be higher"),
            (r#"{"CpusetCpus":"a"}"#, "cpuset cpus"),
            (r#"{"CpusetMems":"3-1"}"#, "cpuset mems"),
            (r#"{"BlkioWeight":5}"#, "blkio weight"),
            (r#"{"BlkioWeightDevice":[{"Path":"/dev/x","Weight":5}]}"#, "/dev/x"),
            (r#"{"BlkioDeviceWriteIOps":[{"Path":"x","Rate":5}]}"#, "block device"),
            (r#"{"OomScoreAdj":2000}"#, "2000"),
            (r#"{"IOMaximumIOps":1}"#, "maximum IOPs"),
            (r#"{"IOMaximumBandwidth":1}"#, "maximum bandwidth"),
            (r#"{"Ulimits":[{"Name":"nope"}]}"#, "nope"),
        ] {
            let error = check(&host(json)).unwrap_err();
            assert!(error.status.as_u16() == 400 && error.message.contains(word), "{json}: {error}");
        }
        check(&host(r#"{"CpuCount":2,"BlkioWeight":10,"CpusetCpus":"0-1,3"}"#)).unwrap();
    }

    #[test]
    fn what_the_kernel_lacks_is_dropped_with_a_word() {
        let everything = r#"{"Memory":10485760,"MemorySwappiness":5,"MemoryReservation":7340032,"KernelMemory":7340032,
            "KernelMemoryTCP":5,"OomKillDisable":true,"PidsLimit":5,"CpuShares":5,"CpuQuota":5000,"BlkioWeight":10,
            "BlkioWeightDevice":[{"Path":"/dev/x","Weight":50}],"BlkioDeviceReadBps":[{"Path":"/dev/x","Rate":1}],
            "BlkioDeviceWriteBps":[{"Path":"/dev/x","Rate":1}],"BlkioDeviceReadIOps":[{"Path":"/dev/x","Rate":1}],
            "BlkioDeviceWriteIOps":[{"Path":"/dev/x","Rate":1}],"CpusetCpus":"0"}"#;
        let complete = Kernel::COMPLETE;
        let mut kept = host(everything);
        assert_eq!(adapt(&mut kept, &complete).unwrap().len(), 1, "kernel memory is deprecated everywhere");
        assert_eq!(kept, host(everything));
        let none = Kernel {
            memory: false,
            swap: false,
            reservation: false,
            swappiness: false,
            oom_kill_disable: false,
            kernel_memory: false,
            kernel_memory_tcp: false,
            cpu_shares: false,
            cpu_quota: false,
            cpu_realtime: false,
            cpuset: false,
            pids: false,
            io_weight: false,
            io_weight_device: false,
            io_throttle: false,
            ..complete
        };
        let mut dropped = host(everything);
        let warnings = adapt(&mut dropped, &none).unwrap();
        assert_eq!(warnings.len(), 17, "{warnings:#?}");
        let left = HostConfig {
            memory_swap: -1,
            blkio_weight_device: Vec::new().into(),
            blkio_device_read_bps: Vec::new().into(),
            blkio_device_write_bps: Vec::new().into(),
            blkio_device_read_iops: Vec::new().into(),
            blkio_device_write_iops: Vec::new().into(),
            ..HostConfig::default()
        };
        assert_eq!(dropped, left);
        assert!(adapt(&mut host(r#"{"NanoCpus":5}"#), &none).is_err());
        assert!(adapt(&mut host(r#"{"CpuRealtimeRuntime":5}"#), &none).is_err());
        let missing = adapt(&mut host(r#"{"CpusetCpus":"0-4095"}"#), &complete).unwrap_err();
        assert!(missing.message.starts_with("Requested CPUs are not available - requested 0-4095"), "{missing}");
    }
}
