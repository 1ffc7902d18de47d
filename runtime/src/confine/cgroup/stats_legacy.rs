//! Statistics of v1: each hierarchy adds what its controllers know.

use super::CgroupError;
use super::stats::{BlockIo, BlockIoEntry, Files, MemoryEntry, Stats, number, ranges};

/// `cpuacct.stat` counts in ticks of this many nanoseconds (USER_HZ is 100 everywhere).
const TICK: u64 = 10_000_000;

/// Adds what this hierarchy has.
pub(super) fn read(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    for controller in files.hierarchy.name.split(',') {
        match controller {
            "cpu" => cpu(files, stats)?,
            "cpuacct" => cpuacct(files, stats)?,
            "cpuset" => cpuset(files, stats)?,
            "memory" => memory(files, stats)?,
            "pids" => pids(files, stats)?,
            "blkio" => block_io(files, stats)?,
            "hugetlb" => files.huge_pages(stats, ["usage_in_bytes", "max_usage_in_bytes"], |prefix| {
                files.number(&format!("{prefix}.failcnt"))
            })?,
            _ => {}
        }
    }
    Ok(())
}

fn cpu(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    let found = files.keyed("cpu.stat")?;
    let of = |key: &str| found.get(key).copied().unwrap_or(0);
    let throttling = &mut stats.cpu.throttling;
    throttling.periods = of("nr_periods");
    throttling.throttled_periods = of("nr_throttled");
    throttling.throttled_time = of("throttled_time");
    Ok(())
}

fn cpuacct(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    let found = files.keyed("cpuacct.stat")?;
    let ticks = |key: &str| found.get(key).copied().unwrap_or(0).saturating_mul(TICK);
    let usage = &mut stats.cpu.usage;
    (usage.user, usage.kernel) = (ticks("user"), ticks("system"));
    usage.total = files.number("cpuacct.usage")?;
    usage.percpu = files.text("cpuacct.usage_percpu")?.split_whitespace().map(number).collect();
    // "cpu user system" and then a line for each.
    for line in files.text("cpuacct.usage_all")?.lines().skip(1) {
        let mut columns = line.split(' ').skip(1).map(number);
        usage.percpu_user.extend(columns.next());
        usage.percpu_kernel.extend(columns.next());
    }
    Ok(())
}

fn cpuset(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    let set = &mut stats.cpuset;
    set.cpus = ranges(&files.text("cpuset.cpus")?);
    set.mems = ranges(&files.text("cpuset.mems")?);
    for (field, file) in [
        (&mut set.cpu_exclusive, "cpuset.cpu_exclusive"),
        (&mut set.mem_hardwall, "cpuset.mem_hardwall"),
        (&mut set.mem_exclusive, "cpuset.mem_exclusive"),
        (&mut set.memory_migrate, "cpuset.memory_migrate"),
        (&mut set.memory_spread_page, "cpuset.memory_spread_page"),
        (&mut set.memory_spread_slab, "cpuset.memory_spread_slab"),
        (&mut set.memory_pressure, "cpuset.memory_pressure"),
        (&mut set.sched_load_balance, "cpuset.sched_load_balance"),
    ] {
        *field = files.number(file)?;
    }
    // -1 is its usual value.
    set.sched_relax_domain_level = files.text("cpuset.sched_relax_domain_level")?.trim().parse().unwrap_or(0);
    Ok(())
}

fn memory(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    let entry = |prefix: &str| {
        Ok::<_, CgroupError>(MemoryEntry {
            limit: files.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: files.number(&format!("{prefix}.usage_in_bytes"))?,
            max: files.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failcnt: files.number(&format!("{prefix}.failcnt"))?,
        })
    };
    let memory = &mut stats.memory;
    memory.usage = entry("memory")?;
    memory.swap = entry("memory.memsw")?;
    memory.kernel = entry("memory.kmem")?;
    memory.kernel_tcp = entry("memory.kmem.tcp")?;
    memory.raw = files.keyed("memory.stat")?;
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    Ok(())
}

fn pids(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    stats.pids.current = files.number("pids.current")?;
    stats.pids.limit = Some(files.number("pids.max")?).filter(|limit| *limit != u64::MAX).unwrap_or(0);
    Ok(())
}

/// Which files have numbers depends on the I/O scheduler; the throttle's own come last.
const BLOCK_IO: &[(&str, &[&str])] = &[
    (
        "blkio.bfq.",
        &[
            "sectors_recursive",
            "io_service_time_recursive",
            "io_wait_time_recursive",
            "io_merged_recursive",
            "io_queued_recursive",
            "time_recursive",
            "io_serviced_recursive",
            "io_service_bytes_recursive",
        ],
    ),
    ("blkio.bfq.", &["io_serviced_recursive", "io_service_bytes_recursive"]),
    (
        "blkio.",
        &[
            "sectors_recursive",
            "io_service_bytes_recursive",
            "io_serviced_recursive",
            "io_queued_recursive",
            "io_service_time_recursive",
            "io_wait_time_recursive",
            "io_merged_recursive",
            "time_recursive",
        ],
    ),
    ("blkio.throttle.", &["io_serviced_recursive", "io_service_bytes_recursive"]),
    ("blkio.throttle.", &["io_serviced", "io_service_bytes"]),
];

fn block_io(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    for (prefix, names) in BLOCK_IO {
        for (index, name) in names.iter().enumerate() {
            let entries = entries(&files.text(&format!("{prefix}{name}"))?);
            if entries.is_empty() && index == 0 {
                break;
            }
            if let Some(list) = list(&mut stats.blkio, name) {
                *list = entries;
            }
            if index + 1 == names.len() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn list<'a>(stats: &'a mut BlockIo, name: &str) -> Option<&'a mut Vec<BlockIoEntry>> {
    Some(match name.trim_end_matches("_recursive") {
        "io_service_bytes" => &mut stats.io_service_bytes_recursive,
        "io_serviced" => &mut stats.io_serviced_recursive,
        "io_queued" => &mut stats.io_queue_recursive,
        "io_service_time" => &mut stats.io_service_time_recursive,
        "io_wait_time" => &mut stats.io_wait_time_recursive,
        "io_merged" => &mut stats.io_merged_recursive,
        "time" => &mut stats.io_time_recursive,
        "sectors" => &mut stats.sectors_recursive,
        _ => return None,
    })
}

/// `8:0 Read 4096`, or without the word; the line of the total has no device.
fn entries(text: &str) -> Vec<BlockIoEntry> {
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (device, op, value) = match words.as_slice() {
            [device, value] => (*device, "", *value),
            [device, op, value] => (*device, *op, *value),
            _ => return None,
        };
        let (major, minor) = device.split_once(':')?;
        Some(BlockIoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_no_devices() {
        let found = entries("8:0 Read 4096\n8:0 Total 4096\n253:1 12\nTotal 4096\n");
        let all: Vec<_> =
            found.iter().map(|entry| (entry.major, entry.minor, entry.op.as_str(), entry.value)).collect();
        assert_eq!(all, [(8, 0, "Read", 4096), (8, 0, "Total", 4096), (253, 1, "", 12)]);
    }

    #[test]
    fn every_name_has_its_list() {
        let mut stats = BlockIo::default();
        assert!(BLOCK_IO.iter().flat_map(|(_, names)| *names).all(|name| list(&mut stats, name).is_some()));
    }
}
