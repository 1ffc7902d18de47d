//! Statistics of cgroup2, under the names that v1 made usual.

use super::CgroupError;
use super::stats::{BlockIoEntry, Files, MemoryEntry, MemoryEvents, Stats, number};

/// Reads everything.
pub(super) fn read(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    cpu(files, stats)?;
    memory(files, stats)?;
    stats.pids.current = files.number("pids.current")?;
    stats.pids.limit = Some(files.number("pids.max")?).filter(|limit| *limit != u64::MAX).unwrap_or(0);
    for line in files.text("io.stat")?.lines() {
        for (is_bytes, entry) in device(line) {
            let list = match is_bytes {
                true => &mut stats.blkio.io_service_bytes_recursive,
                false => &mut stats.blkio.io_serviced_recursive,
            };
            list.push(entry);
        }
    }
    stats.blkio.psi = files.pressure("io.pressure")?;
    files.huge_pages(stats, ["current", "peak"], |prefix| {
        Ok(files.keyed(&format!("{prefix}.events"))?.get("max").copied().unwrap_or(0))
    })
}

fn cpu(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    let found = files.keyed("cpu.stat")?;
    let of = |key: &str| found.get(key).copied().unwrap_or(0);
    let nanoseconds = |key: &str| of(key).saturating_mul(1000);
    let usage = &mut stats.cpu.usage;
    usage.total = nanoseconds("usage_usec");
    (usage.user, usage.kernel) = (nanoseconds("user_usec"), nanoseconds("system_usec"));
    let throttling = &mut stats.cpu.throttling;
    throttling.periods = of("nr_periods");
    throttling.throttled_periods = of("nr_throttled");
    throttling.throttled_time = nanoseconds("throttled_usec");
    stats.cpu.psi = files.pressure("cpu.pressure")?;
    Ok(())
}

fn memory(files: &Files<'_>, stats: &mut Stats) -> Result<(), CgroupError> {
    let entry = |prefix: &str| {
        Ok::<_, CgroupError>(MemoryEntry {
            limit: files.number(&format!("{prefix}.max"))?,
            usage: files.number(&format!("{prefix}.current"))?,
            max: files.number(&format!("{prefix}.peak"))?,
            failcnt: 0,
        })
    };
    let memory = &mut stats.memory;
    memory.usage = entry("memory")?;
    memory.swap = with_memory(entry("memory.swap")?, memory.usage);
    memory.raw = files.keyed("memory.stat")?;
    memory.cache = memory.raw.get("file").copied().unwrap_or(0);
    memory.psi = files.pressure("memory.pressure")?;
    let found = files.keyed("memory.events")?;
    let of = |key: &str| found.get(key).copied().unwrap_or(0);
    memory.event_count = MemoryEvents {
        low: of("low"),
        high: of("high"),
        max: of("max"),
        oom: of("oom"),
        oom_kill: of("oom_kill"),
        oom_group_kill: of("oom_group_kill"),
    };
    Ok(())
}

/// v1 counts memory and swap together.
fn with_memory(swap: MemoryEntry, memory: MemoryEntry) -> MemoryEntry {
    let limit = match swap.limit {
        u64::MAX => u64::MAX,
        limit => limit.saturating_add(memory.limit),
    };
    MemoryEntry { limit, usage: swap.usage.saturating_add(memory.usage), ..swap }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0` -> whether it is bytes, and the number.
fn device(line: &str) -> Vec<(bool, BlockIoEntry)> {
    let mut words = line.split_whitespace();
    let numbers = words.next().and_then(|device| device.split_once(':'));
    let Some((Ok(major), Ok(minor))) = numbers.map(|(major, minor)| (major.parse::<u64>(), minor.parse::<u64>()))
    else {
        return Vec::new();
    };
    let entry = |word: &str| {
        let (key, value) = word.split_once('=')?;
        let (is_bytes, op) = match key {
            "rbytes" => (true, "Read"),
            "wbytes" => (true, "Write"),
            "rios" => (false, "Read"),
            "wios" => (false, "Write"),
            _ => return None,
        };
        Some((is_bytes, BlockIoEntry { major, minor, op: op.to_owned(), value: number(value) }))
    };
    words.filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_split_into_bytes_and_operations() {
        let found = device("254:16 rbytes=4096 wbytes=0 rios=1 wios=2 dbytes=9 dios=9");
        let all: Vec<_> = found.iter().map(|(bytes, entry)| (*bytes, entry.op.as_str(), entry.value)).collect();
        assert_eq!(all, [(true, "Read", 4096), (true, "Write", 0), (false, "Read", 1), (false, "Write", 2)]);
        assert!(found.iter().all(|(_, entry)| (entry.major, entry.minor) == (254, 16)));
        assert!(device("").is_empty() && device("nonsense a=b").is_empty());
    }

    #[test]
    fn swap_counts_memory_too() {
        let entry = |limit, usage| MemoryEntry { limit, usage, max: 0, failcnt: 0 };
        assert_eq!(with_memory(entry(10, 1), entry(100, 7)), entry(110, 8));
        assert_eq!(with_memory(entry(u64::MAX, 0), entry(100, 7)), entry(u64::MAX, 7));
    }
}
