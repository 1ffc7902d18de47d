//! What a container has used, in the words of runc's `events`: containerd, go-runc and others parse exactly these names.
//!
//! Fields that runc leaves out when they are zero are left out here too. A controller that is not mounted counts as zero.

#![expect(clippy::disallowed_methods, reason = "cgroup trees are the host's")]

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Cgroup, CgroupError, Hierarchy, files, stats_legacy, stats_unified};
use sys::Errno;

/// `data` of an event of type `stats`
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stats {
    pub(super) cpu: Cpu,
    pub(super) cpuset: CpuSet,
    pub(super) memory: Memory,
    pub(super) pids: Pids,
    pub(super) blkio: BlockIo,
    pub(super) hugetlb: BTreeMap<String, HugePages>,
    pub(crate) intel_rdt: serde_json::Map<String, serde_json::Value>,
    /// Interfaces that the runtime made: like runc, it makes none.
    network_interfaces: Option<()>,
}

/// `cpu`
#[derive(Debug, Default, Serialize)]
pub(super) struct Cpu {
    pub(super) usage: CpuUsage,
    pub(super) throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) psi: Option<Pressure>,
}

/// `cpu.usage`, in nanoseconds
#[derive(Debug, Default, Serialize)]
pub(super) struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) percpu_user: Vec<u64>,
    pub(super) kernel: u64,
    pub(super) user: u64,
}

/// `cpu.throttling`
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) throttled_time: u64,
}

/// `cpuset`
#[derive(Debug, Default, Serialize)]
pub(super) struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) cpus: Vec<u16>,
    pub(super) cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mems: Vec<u16>,
    pub(super) mem_hardwall: u64,
    pub(super) mem_exclusive: u64,
    pub(super) memory_migrate: u64,
    pub(super) memory_spread_page: u64,
    pub(super) memory_spread_slab: u64,
    pub(super) memory_pressure: u64,
    pub(super) sched_load_balance: u64,
    pub(super) sched_relax_domain_level: i64,
}

/// `memory`
#[derive(Debug, Default, Serialize)]
pub(super) struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) cache: u64,
    pub(super) usage: MemoryEntry,
    /// Memory and swap together, as v1 counts it.
    pub(super) swap: MemoryEntry,
    pub(super) kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    pub(super) kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) psi: Option<Pressure>,
    pub(super) event_count: MemoryEvents,
}

/// One kind of memory
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct MemoryEntry {
    pub(super) limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) max: u64,
    pub(super) failcnt: u64,
}

/// `memory.event_count`, which only cgroup2 counts
#[derive(Debug, Default, Serialize)]
pub(super) struct MemoryEvents {
    pub(super) low: u64,
    pub(super) high: u64,
    pub(super) max: u64,
    pub(super) oom: u64,
    pub(super) oom_kill: u64,
    pub(super) oom_group_kill: u64,
}

/// `pids`; without a limit it is 0 and left out
#[derive(Debug, Default, Serialize)]
pub(super) struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) limit: u64,
}

/// `blkio`
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) io_queue_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) psi: Option<Pressure>,
}

/// One number about one device
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(super) struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) op: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) value: u64,
}

/// One size of `hugetlb`
#[derive(Debug, Default, Serialize)]
pub(super) struct HugePages {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) max: u64,
    pub(super) failcnt: u64,
}

/// `psi`: how long work waited (cgroup2 only)
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Pressure {
    some: PressureLine,
    full: PressureLine,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct PressureLine {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Cgroup {
    /// Reads everything.
    pub(crate) fn stats(&self) -> Result<Stats, CgroupError> {
        let mut stats = Stats::default();
        match (&self.unified, self.is_unified()) {
            (Some(hierarchy), true) => stats_unified::read(&Files { hierarchy, path: &self.path }, &mut stats)?,
            _ => {
                for hierarchy in &self.legacy {
                    stats_legacy::read(&Files { hierarchy, path: &self.path }, &mut stats)?;
                }
            }
        }
        Ok(stats)
    }
}

/// The files of one cgroup in one hierarchy.
pub(super) struct Files<'a> {
    pub(super) hierarchy: &'a Hierarchy,
    pub(super) path: &'a str,
}

impl Files<'_> {
    /// A file's text, empty when there is no such file or it does not apply (`EOPNOTSUPP`: pressure that is not counted).
    pub(super) fn text(&self, file: &str) -> Result<String, CgroupError> {
        match files::read(self.hierarchy, self.path, file) {
            Err(CgroupError::Read { cause: Errno::ENOENT | Errno::EOPNOTSUPP, .. }) => Ok(String::new()),
            other => other,
        }
    }

    /// A file with one number.
    pub(super) fn number(&self, file: &str) -> Result<u64, CgroupError> {
        Ok(number(self.text(file)?.trim()))
    }

    /// A file with a name and a number on each line.
    pub(super) fn keyed(&self, file: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
        Ok(keyed(&self.text(file)?))
    }

    /// A file about pressure.
    pub(super) fn pressure(&self, file: &str) -> Result<Option<Pressure>, CgroupError> {
        Ok(pressure(&self.text(file)?))
    }

    /// Huge pages of every size; `parts` are the names of usage, highest usage, and the file that counts failures.
    pub(super) fn huge_pages(
        &self,
        stats: &mut Stats,
        [usage, max]: [&str; 2],
        failures: impl Fn(&str) -> Result<u64, CgroupError>,
    ) -> Result<(), CgroupError> {
        for size in huge_page_sizes() {
            // Reservations are counted since Linux 5.7, and then they are what the limit is for.
            let reserved = format!("hugetlb.{size}.rsvd");
            let prefix = match self.text(&format!("{reserved}.{usage}"))?.is_empty() {
                false => reserved,
                true => format!("hugetlb.{size}"),
            };
            let current = self.text(&format!("{prefix}.{usage}"))?;
            if current.is_empty() {
                continue;
            }
            let entry = HugePages {
                usage: number(current.trim()),
                max: self.number(&format!("{prefix}.{max}"))?,
                failcnt: failures(&prefix)?,
            };
            stats.hugetlb.insert(size, entry);
        }
        Ok(())
    }
}

/// A number; "max" is the largest. Anything else cannot come from the kernel and counts as zero.
pub(super) fn number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), number(value.trim())));
    text.lines().filter_map(pair).collect()
}

/// Numbers and ranges, as in `0-3,7`.
pub(super) fn ranges(text: &str) -> Vec<u16> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let target = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let average = || value.parse().unwrap_or(0.0);
            match key {
                "avg10" => target.avg10 = average(),
                "avg60" => target.avg60 = average(),
                "avg300" => target.avg300 = average(),
                "total" => target.total = number(value),
                _ => {}
            }
        }
    }
    (!text.is_empty()).then_some(pressure)
}

/// The sizes that this kernel has, as cgroup files call them.
fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    entries.flatten().filter_map(|entry| huge_page_size(&entry.file_name().to_string_lossy())).collect()
}

/// `hugepages-2048kB` -> `2MB`
fn huge_page_size(name: &str) -> Option<String> {
    let mut size: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let mut units = ["KB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next()?;
    while size >= 1024 && size.is_multiple_of(1024) {
        (size, unit) = (size / 1024, units.next()?);
    }
    Some(format!("{size}{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_texts_become_numbers() {
        assert_eq!((number("max"), number("17"), number("")), (u64::MAX, 17, 0));
        assert_eq!(keyed("a 1\nb max\nbroken\n"), BTreeMap::from([("a".into(), 1), ("b".into(), u64::MAX)]));
        for (text, expected) in [("0-2,5\n", vec![0, 1, 2, 5]), ("3", vec![3]), ("\n", vec![]), ("x-1", vec![])] {
            assert_eq!(ranges(text), expected, "{text:?}");
        }
        for (name, size) in [("hugepages-2048kB", Some("2MB")), ("hugepages-1048576kB", Some("1GB")), ("x", None)] {
            assert_eq!(huge_page_size(name).as_deref(), size);
        }
    }

    #[test]
    fn pressure_has_two_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let found = pressure(text).expect("pressure");
        assert_eq!((found.some.avg10, found.some.avg60, found.some.total, found.full.total), (1.5, 0.25, 42, 7));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn zeroes_are_left_out_where_runc_leaves_them_out() {
        let value = serde_json::to_value(Stats::default()).expect("json");
        let expected = serde_json::json!({
            "cpu": {"usage": {"kernel": 0, "user": 0}, "throttling": {}},
            "cpuset": {"cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
                "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 0,
                "sched_relax_domain_level": 0},
            "memory": {"usage": {"limit": 0, "failcnt": 0}, "swap": {"limit": 0, "failcnt": 0},
                "kernel": {"limit": 0, "failcnt": 0}, "kernelTCP": {"limit": 0, "failcnt": 0},
                "event_count": {"low": 0, "high": 0, "max": 0, "oom": 0, "oom_kill": 0, "oom_group_kill": 0}},
            "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null,
        });
        assert_eq!(value, expected);
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,60}") {
            let _ = (keyed(&text), pressure(&text), huge_page_size(&text));
        }
    }
}
