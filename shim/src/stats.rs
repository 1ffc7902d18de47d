//! Resource use of a container, in the messages that containerd's clients know.

use std::{fs, path::Path};

use prost_types::Any;
use proto::{
    io::containerd::cgroups::{v1, v2},
    typeurl,
};

use crate::cgroup::{Cgroup, number, table, value};

/// What the cgroup says now. What can't be read is left out.
pub(crate) fn read(cgroup: &Cgroup) -> Any {
    match cgroup {
        Cgroup::V1(_) => typeurl::pack(&version_1(cgroup)),
        Cgroup::V2(folder) => typeurl::pack(&version_2(folder)),
    }
}

/// Ticks of `cpuacct.stat` per second (USER_HZ), which is 100 on every architecture Linux runs containers on.
const NANOS_PER_TICK: u64 = 1_000_000_000 / 100;

fn version_1(cgroup: &Cgroup) -> v1::Metrics {
    let mut metrics = v1::Metrics::default();
    if let Some(folder) = cgroup.folder("pids") {
        metrics.pids = number(folder, "pids.current")
            .map(|current| v1::PidsStat { current, limit: number(folder, "pids.max").unwrap_or(0) });
    }
    let mut cpu = v1::CpuStat::default();
    if let Some(folder) = cgroup.folder("cpuacct") {
        let ticks = table(folder, "cpuacct.stat");
        let each = fs::read_to_string(folder.join("cpuacct.usage_percpu")).unwrap_or_default();
        cpu.usage = Some(v1::CpuUsage {
            total: number(folder, "cpuacct.usage").unwrap_or(0),
            kernel: value(&ticks, "system") * NANOS_PER_TICK,
            user: value(&ticks, "user") * NANOS_PER_TICK,
            per_cpu: each.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
        });
    }
    if let Some(folder) = cgroup.folder("cpu") {
        let stat = table(folder, "cpu.stat");
        cpu.throttling = Some(v1::Throttle {
            periods: value(&stat, "nr_periods"),
            throttled_periods: value(&stat, "nr_throttled"),
            throttled_time: value(&stat, "throttled_time"),
        });
    }
    if cpu.usage.is_some() || cpu.throttling.is_some() {
        metrics.cpu = Some(cpu);
    }
    if let Some(folder) = cgroup.folder("memory") {
        metrics.memory = Some(memory_1(folder));
        let oom = table(folder, "memory.oom_control");
        metrics.memory_oom_control = Some(v1::MemoryOomControl {
            oom_kill_disable: value(&oom, "oom_kill_disable"),
            under_oom: value(&oom, "under_oom"),
            oom_kill: value(&oom, "oom_kill"),
        });
    }
    if let Some(folder) = cgroup.folder("blkio") {
        let first = |names: [&str; 2]| -> Vec<v1::BlkIoEntry> {
            let read = names.map(|name| blkio_1(folder, name));
            read.into_iter().find(|entries| !entries.is_empty()).unwrap_or_default()
        };
        // With a name of their own for each scheduler that counts them.
        let counted = |name: &str| {
            let [plain, bfq] = [format!("blkio.{name}_recursive"), format!("blkio.bfq.{name}_recursive")];
            first([plain.as_str(), bfq.as_str()])
        };
        metrics.blkio = Some(v1::BlkIoStat {
            io_queued_recursive: counted("io_queued"),
            io_service_time_recursive: counted("io_service_time"),
            io_wait_time_recursive: counted("io_wait_time"),
            io_merged_recursive: counted("io_merged"),
            io_time_recursive: counted("time"),
            sectors_recursive: counted("sectors"),
            io_service_bytes_recursive: first([
                "blkio.throttle.io_service_bytes_recursive",
                "blkio.throttle.io_service_bytes",
            ]),
            io_serviced_recursive: first(["blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"]),
        });
    }
    if let Some(folder) = cgroup.folder("hugetlb") {
        let entry = |pagesize: String| {
            let file = |what: &str| number(folder, &format!("hugetlb.{pagesize}.{what}")).unwrap_or(0);
            let (usage, max, failcnt) = (file("usage_in_bytes"), file("max_usage_in_bytes"), file("failcnt"));
            v1::HugetlbStat { usage, max, failcnt, pagesize }
        };
        metrics.hugetlb = page_sizes(folder, ".usage_in_bytes").into_iter().map(entry).collect();
    }
    if let Some(folder) = cgroup.folder("rdma") {
        let read = |file| {
            let entry = |(device, hca_handles, hca_objects)| v1::RdmaEntry { device, hca_handles, hca_objects };
            rdma(folder, file).into_iter().map(entry).collect()
        };
        metrics.rdma = Some(v1::RdmaStat { current: read("rdma.current"), limit: read("rdma.max") });
    }
    metrics
}

/// The page sizes that a folder counts, as they stand in the names of its files: `hugetlb.2MB.current`.
fn page_sizes(folder: &Path, file: &str) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let size = |name: std::ffi::OsString| {
        let size = name.to_str()?.strip_prefix("hugetlb.")?.strip_suffix(file)?;
        // Not `rsvd.current`, which counts reservations.
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut sizes: Vec<_> = names.filter_map(size).collect();
    sizes.sort();
    sizes
}

/// Lines `mlx4_0 hca_handle=2 hca_object=max`.
fn rdma(folder: &Path, file: &str) -> Vec<(String, u32, u32)> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (device, mut handles, mut objects) = (words.next()?.to_owned(), 0, 0);
        for word in words {
            let (name, number) = word.split_once('=')?;
            let number = if number == "max" { u32::MAX } else { number.parse().ok()? };
            match name {
                "hca_handle" => handles = number,
                "hca_object" => objects = number,
                _ => {}
            }
        }
        Some((device, handles, objects))
    };
    text.lines().filter_map(line).collect()
}

fn memory_1(folder: &Path) -> v1::MemoryStat {
    let stat = table(folder, "memory.stat");
    let get = |name| value(&stat, name);
    let entry = |kind: &str| {
        let file = |what: &str| number(folder, &format!("memory.{kind}{what}"));
        file("usage_in_bytes").map(|usage| v1::MemoryEntry {
            limit: file("limit_in_bytes").unwrap_or(0),
            usage,
            max: file("max_usage_in_bytes").unwrap_or(0),
            failcnt: file("failcnt").unwrap_or(0),
        })
    };
    v1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
    }
}

/// Lines `8:0 Read 4096`.
fn blkio_1(folder: &Path, file: &str) -> Vec<v1::BlkIoEntry> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (device, op, number) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = device.split_once(':')?;
        Some(v1::BlkIoEntry {
            op: op.to_owned(),
            device: String::new(),
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            value: number.parse().ok()?,
        })
    };
    text.lines().filter_map(line).collect()
}

fn version_2(folder: &Path) -> v2::Metrics {
    let cpu = table(folder, "cpu.stat");
    let events = table(folder, "memory.events");
    let stat = table(folder, "memory.stat");
    let get = |name| value(&stat, name);
    let io = fs::read_to_string(folder.join("io.stat")).unwrap_or_default();
    v2::Metrics {
        pids: number(folder, "pids.current")
            .map(|current| v2::PidsStat { current, limit: number(folder, "pids.max").unwrap_or(0) }),
        cpu: Some(v2::CpuStat {
            usage_usec: value(&cpu, "usage_usec"),
            user_usec: value(&cpu, "user_usec"),
            system_usec: value(&cpu, "system_usec"),
            nr_periods: value(&cpu, "nr_periods"),
            nr_throttled: value(&cpu, "nr_throttled"),
            throttled_usec: value(&cpu, "throttled_usec"),
        }),
        memory: number(folder, "memory.current").map(|usage| v2::MemoryStat {
            anon: get("anon"),
            file: get("file"),
            kernel_stack: get("kernel_stack"),
            slab: get("slab"),
            sock: get("sock"),
            shmem: get("shmem"),
            file_mapped: get("file_mapped"),
            file_dirty: get("file_dirty"),
            file_writeback: get("file_writeback"),
            anon_thp: get("anon_thp"),
            inactive_anon: get("inactive_anon"),
            active_anon: get("active_anon"),
            inactive_file: get("inactive_file"),
            active_file: get("active_file"),
            unevictable: get("unevictable"),
            slab_reclaimable: get("slab_reclaimable"),
            slab_unreclaimable: get("slab_unreclaimable"),
            pgfault: get("pgfault"),
            pgmajfault: get("pgmajfault"),
            // Split in two since Linux 5.9.
            workingset_refault: get("workingset_refault")
                .max(get("workingset_refault_anon").saturating_add(get("workingset_refault_file"))),
            workingset_activate: get("workingset_activate")
                .max(get("workingset_activate_anon").saturating_add(get("workingset_activate_file"))),
            workingset_nodereclaim: get("workingset_nodereclaim"),
            pgrefill: get("pgrefill"),
            pgscan: get("pgscan"),
            pgsteal: get("pgsteal"),
            pgactivate: get("pgactivate"),
            pgdeactivate: get("pgdeactivate"),
            pglazyfree: get("pglazyfree"),
            pglazyfreed: get("pglazyfreed"),
            thp_fault_alloc: get("thp_fault_alloc"),
            thp_collapse_alloc: get("thp_collapse_alloc"),
            usage,
            // containerd says "no limit" with the greatest number here, unlike with pids.
            usage_limit: limit(folder, "memory.max"),
            swap_usage: number(folder, "memory.swap.current").unwrap_or(0),
            swap_limit: limit(folder, "memory.swap.max"),
            max_usage: number(folder, "memory.peak").unwrap_or(0),
            swap_max_usage: number(folder, "memory.swap.peak").unwrap_or(0),
        }),
        io: Some(v2::IoStat { usage: io.lines().filter_map(io_entry).collect() }),
        rdma: folder.join("rdma.current").exists().then(|| {
            let read = |file| {
                let entry = |(device, hca_handles, hca_objects)| v2::RdmaEntry { device, hca_handles, hca_objects };
                rdma(folder, file).into_iter().map(entry).collect()
            };
            v2::RdmaStat { current: read("rdma.current"), limit: read("rdma.max") }
        }),
        hugetlb: {
            let entry = |pagesize: String| v2::HugeTlbStat {
                current: number(folder, &format!("hugetlb.{pagesize}.current")).unwrap_or(0),
                max: limit(folder, &format!("hugetlb.{pagesize}.max")),
                pagesize,
            };
            page_sizes(folder, ".current").into_iter().map(entry).collect()
        },
        memory_events: Some(v2::MemoryEvents {
            low: value(&events, "low"),
            high: value(&events, "high"),
            max: value(&events, "max"),
            oom: value(&events, "oom"),
            oom_kill: value(&events, "oom_kill"),
        }),
    }
}

fn limit(folder: &Path, file: &str) -> u64 {
    match fs::read_to_string(folder.join(file)) {
        Ok(text) => text.trim().parse().unwrap_or(u64::MAX),
        Err(_) => 0,
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io_entry(line: &str) -> Option<v2::IoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = v2::IoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..v2::IoEntry::default() };
    for word in words {
        let (name, number) = word.split_once('=')?;
        let number = number.parse().ok()?;
        match name {
            "rbytes" => entry.rbytes = number,
            "wbytes" => entry.wbytes = number,
            "rios" => entry.rios = number,
            "wios" => entry.wios = number,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_files() {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 10\nuser_usec 7\nsystem_usec 3\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            (
                "memory.stat",
                "anon 1\ninactive_file 2\nworkingset_refault_anon 3\nworkingset_refault_file 4\npgscan 5\nthp_collapse_alloc 6\n",
            ),
            ("memory.swap.peak", "7\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=20\n"),
            ("rdma.max", "mlx4_0 hca_handle=3 hca_object=max\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
        ] {
            fs::write(folder.path().join(name), text).expect("write");
        }
        let any = read(&Cgroup::V2(folder.path().into()));
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics: v2::Metrics = typeurl::unpack(&any).expect("type").expect("message");
        assert_eq!(metrics.pids, Some(v2::PidsStat { current: 3, limit: 0 }));
        assert_eq!(metrics.cpu.map(|cpu| (cpu.usage_usec, cpu.user_usec, cpu.system_usec)), Some((10, 7, 3)));
        let memory = metrics.memory.expect("memory");
        assert_eq!((memory.usage, memory.usage_limit, memory.anon, memory.inactive_file), (4096, u64::MAX, 1, 2));
        assert_eq!((memory.workingset_refault, memory.pgscan, memory.thp_collapse_alloc), (7, 5, 6));
        assert_eq!(memory.swap_max_usage, 7);
        let huge = v2::HugeTlbStat { current: 2_097_152, max: u64::MAX, pagesize: "2MB".into() };
        assert_eq!(metrics.hugetlb, [huge]);
        let rdma = |hca_handles, hca_objects| vec![v2::RdmaEntry { device: "mlx4_0".into(), hca_handles, hca_objects }];
        assert_eq!(metrics.rdma, Some(v2::RdmaStat { current: rdma(2, 20), limit: rdma(3, u32::MAX) }));
        assert_eq!(metrics.memory_events.map(|events| events.oom_kill), Some(2));
        let io = v2::IoEntry { major: 8, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
        assert_eq!(metrics.io.map(|io| io.usage), Some(vec![io]));
    }

    #[test]
    fn version_1_files() {
        let folder = tempfile::tempdir().expect("folder");
        let mut folders = Vec::new();
        for (controller, name, text) in [
            ("pids", "pids.current", "3\n"),
            ("pids", "pids.max", "100\n"),
            ("cpuacct", "cpuacct.usage", "12345\n"),
            ("cpuacct", "cpuacct.usage_percpu", "12000 345\n"),
            ("cpuacct", "cpuacct.stat", "user 2\nsystem 1\n"),
            ("memory", "memory.usage_in_bytes", "8192\n"),
            ("memory", "memory.limit_in_bytes", "1000000\n"),
            ("memory", "memory.stat", "cache 5\ntotal_rss 6\n"),
            ("cpu", "cpu.stat", "nr_periods 4\nnr_throttled 3\nthrottled_time 2000\n"),
            ("memory", "memory.kmem.tcp.usage_in_bytes", "9\n"),
            ("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("blkio", "blkio.throttle.io_service_bytes", "8:0 Read 10\nTotal 10\n"),
            ("blkio", "blkio.bfq.io_service_time_recursive", "8:0 Read 11\n8:0 Write 12\n"),
            ("hugetlb", "hugetlb.2MB.usage_in_bytes", "1\n"),
            ("hugetlb", "hugetlb.2MB.max_usage_in_bytes", "2\n"),
            ("hugetlb", "hugetlb.2MB.failcnt", "3\n"),
            ("rdma", "rdma.current", "mlx4_0 hca_handle=2 hca_object=20\n"),
        ] {
            let path = folder.path().join(controller);
            fs::create_dir_all(&path).expect("folder");
            fs::write(path.join(name), text).expect("write");
            folders.push((controller.to_owned(), path));
        }
        let metrics = version_1(&Cgroup::V1(folders));
        assert_eq!(metrics.pids, Some(v1::PidsStat { current: 3, limit: 100 }));
        let usage = metrics.cpu.clone().and_then(|cpu| cpu.usage).expect("cpu");
        let throttling = metrics.cpu.as_ref().and_then(|cpu| cpu.throttling).expect("throttling");
        assert_eq!((throttling.periods, throttling.throttled_periods, throttling.throttled_time), (4, 3, 2000));
        assert_eq!((usage.total, usage.user, usage.kernel), (12345, 20_000_000, 10_000_000));
        assert_eq!(usage.per_cpu, [12000, 345]);
        let memory = metrics.memory.expect("memory");
        assert_eq!((memory.cache, memory.total_rss), (5, 6));
        assert_eq!(memory.usage.map(|entry| (entry.usage, entry.limit)), Some((8192, 1_000_000)));
        assert_eq!(memory.kernel_tcp.map(|entry| entry.usage), Some(9));
        assert_eq!(metrics.memory_oom_control.map(|control| control.oom_kill), Some(2));
        let blkio = metrics.blkio.expect("blkio");
        assert_eq!((blkio.io_service_bytes_recursive.len(), blkio.io_service_time_recursive.len()), (1, 2));
        let huge = v1::HugetlbStat { usage: 1, max: 2, failcnt: 3, pagesize: "2MB".into() };
        assert_eq!(metrics.hugetlb, [huge]);
        assert_eq!(metrics.rdma.map(|rdma| rdma.current[0].hca_objects), Some(20));
    }
}
