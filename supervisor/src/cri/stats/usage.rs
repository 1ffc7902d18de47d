//! What a cgroup uses, as its files say. What a kernel, or a version of cgroups, doesn't count is `None` and never 0.

use std::os::fd::OwnedFd;

use proto::runtime::v1 as cri;

use super::{
    cgroup::Cgroup,
    files::{self, Limit, Reader},
};

/// Ticks of `cpuacct.stat` per second (USER_HZ), which is 100 on every architecture Linux runs containers on.
const NANOS_PER_TICK: u64 = 1_000_000_000 / 100;

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// What is in the messages about stats.
    Stats,
    /// What there is.
    Metrics,
}

/// What a cgroup uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu: Cpu,
    pub(super) memory: Memory,
    pub(super) io_pressure: Option<cri::PsiStats>,
    /// From here on only for metrics. Threads, and how many may be.
    pub(super) threads: Option<u64>,
    pub(super) threads_limit: Option<Limit>,
    pub(super) devices: Vec<Device>,
    pub(super) huge_pages: Vec<HugePages>,
}

/// Times are nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cpu {
    pub(super) usage: Option<u64>,
    pub(super) user: Option<u64>,
    pub(super) system: Option<u64>,
    pub(super) periods: Option<u64>,
    pub(super) throttled_periods: Option<u64>,
    pub(super) throttled: Option<u64>,
    pub(super) pressure: Option<cri::PsiStats>,
}

/// Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Memory {
    pub(super) usage: Option<u64>,
    pub(super) limit: Option<Limit>,
    pub(super) inactive_file: Option<u64>,
    pub(super) rss: Option<u64>,
    pub(super) cache: Option<u64>,
    pub(super) mapped_file: Option<u64>,
    pub(super) kernel: Option<u64>,
    pub(super) peak: Option<u64>,
    /// How often the limit was met.
    pub(super) failures: Option<u64>,
    pub(super) oom_kills: Option<u64>,
    /// Of this cgroup and all below.
    pub(super) page_faults: Option<u64>,
    pub(super) major_page_faults: Option<u64>,
    /// Of this cgroup alone, if that is counted.
    pub(super) own_page_faults: Option<u64>,
    pub(super) own_major_page_faults: Option<u64>,
    pub(super) swap: Option<u64>,
    /// For swap alone.
    pub(super) swap_limit: Option<Limit>,
    pub(super) pressure: Option<cri::PsiStats>,
}

/// What was read from a device and written to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) number: (u64, u64),
    pub(super) read_bytes: Option<u64>,
    pub(super) written_bytes: Option<u64>,
    pub(super) discarded_bytes: Option<u64>,
    pub(super) reads: Option<u64>,
    pub(super) writes: Option<u64>,
}

/// Bytes in pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HugePages {
    /// As the kernel writes it: `2MB`.
    pub(super) size: String,
    pub(super) usage: Option<u64>,
    pub(super) peak: Option<u64>,
}

impl Usage {
    /// What the files say now. `sizes` are those of huge pages.
    pub(super) fn read(reader: &mut Reader, cgroup: &Cgroup, detail: Detail, sizes: &[String]) -> Self {
        match cgroup {
            Cgroup::V2(folder) => files::folder(folder).map(|folder| version_2(reader, &folder, detail, sizes)),
            Cgroup::V1(_, unified) => {
                let mut usage = version_1(reader, cgroup, detail, sizes);
                // Every cgroup of version 2 measures pressure, with no controller at all.
                if let Some(folder) = unified.as_deref().and_then(files::folder) {
                    pressure(reader, &folder, &mut usage);
                }
                Some(usage)
            }
        }
        .unwrap_or_default()
    }

    /// What is in use with this and what others use, as far as that can be added up.
    pub(super) fn plus(mut self, other: &Self) -> Self {
        let add =
            |one: &mut Option<u64>, other: Option<u64>| *one = one.zip(other).map(|(a, b)| a + b).or(*one).or(other);
        let (cpu, memory) = (&mut self.cpu, &mut self.memory);
        add(&mut cpu.usage, other.cpu.usage);
        add(&mut memory.usage, other.memory.usage);
        add(&mut memory.inactive_file, other.memory.inactive_file);
        add(&mut memory.rss, other.memory.rss);
        add(&mut memory.page_faults, other.memory.page_faults);
        add(&mut memory.major_page_faults, other.memory.major_page_faults);
        // Shares of time, and limits of each, don't add up to one of all.
        (cpu.pressure, memory.pressure, self.io_pressure, memory.limit) = (None, None, None, None);
        self
    }
}

impl Memory {
    /// What can't be taken away without somebody noticing, as the kubelet understands it.
    pub(super) fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }
}

fn pressure(reader: &mut Reader, folder: &OwnedFd, usage: &mut Usage) {
    usage.cpu.pressure = reader.pressure(folder, "cpu.pressure");
    usage.memory.pressure = reader.pressure(folder, "memory.pressure");
    usage.io_pressure = reader.pressure(folder, "io.pressure");
}

fn version_2(reader: &mut Reader, folder: &OwnedFd, detail: Detail, sizes: &[String]) -> Usage {
    let mut usage = Usage::default();
    pressure(reader, folder, &mut usage);
    let cpu = &mut usage.cpu;
    reader.table(folder, "cpu.stat", |name, number| {
        let micros = Some(number.saturating_mul(1000));
        match name {
            "usage_usec" => cpu.usage = micros,
            "user_usec" => cpu.user = micros,
            "system_usec" => cpu.system = micros,
            "nr_periods" => cpu.periods = Some(number),
            "nr_throttled" => cpu.throttled_periods = Some(number),
            "throttled_usec" => cpu.throttled = micros,
            _ => {}
        }
    });
    let memory = &mut usage.memory;
    memory.usage = reader.number(folder, "memory.current");
    memory.limit = reader.limit(folder, "memory.max");
    memory.swap = reader.number(folder, "memory.swap.current");
    memory.swap_limit = reader.limit(folder, "memory.swap.max");
    // Before Linux 5.18 nobody added these up.
    let mut parts = None;
    reader.table(folder, "memory.stat", |name, number| match name {
        "anon" => memory.rss = Some(number),
        "file" => memory.cache = Some(number),
        "file_mapped" => memory.mapped_file = Some(number),
        "inactive_file" => memory.inactive_file = Some(number),
        "kernel" => memory.kernel = Some(number),
        "kernel_stack" | "pagetables" | "percpu" | "slab" => parts = Some(parts.unwrap_or(0) + number),
        "pgfault" => memory.page_faults = Some(number),
        "pgmajfault" => memory.major_page_faults = Some(number),
        _ => {}
    });
    memory.kernel = memory.kernel.or(parts);
    if detail == Detail::Stats {
        return usage;
    }
    memory.peak = reader.number(folder, "memory.peak");
    reader.table(folder, "memory.events", |name, number| match name {
        "max" => memory.failures = Some(number),
        "oom_kill" => memory.oom_kills = Some(number),
        _ => {}
    });
    usage.threads = reader.number(folder, "pids.current");
    usage.threads_limit = reader.limit(folder, "pids.max");
    usage.devices = reader.text(folder, "io.stat").unwrap_or_default().lines().filter_map(device).collect();
    let pages = sizes.iter().map(|size| HugePages {
        usage: reader.number(folder, &format!("hugetlb.{size}.current")),
        peak: None,
        size: size.clone(),
    });
    usage.huge_pages = pages.filter(|pages| pages.usage.is_some()).collect();
    usage
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn device(line: &str) -> Option<Device> {
    let mut words = line.split(' ');
    let mut device = Device { number: number(words.next()?)?, ..Device::default() };
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().ok();
        match name {
            "rbytes" => device.read_bytes = value,
            "wbytes" => device.written_bytes = value,
            "dbytes" => device.discarded_bytes = value,
            "rios" => device.reads = value,
            "wios" => device.writes = value,
            _ => {}
        }
    }
    // A device that has forgotten what it counted has a line without numbers.
    (device.read_bytes.is_some() || device.written_bytes.is_some()).then_some(device)
}

/// `8:0`.
fn number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn version_1(reader: &mut Reader, cgroup: &Cgroup, detail: Detail, sizes: &[String]) -> Usage {
    let mut usage = Usage::default();
    let folder = |controller| cgroup.folder(controller).and_then(files::folder);
    if let Some(folder) = folder("cpuacct") {
        usage.cpu.usage = reader.number(&folder, "cpuacct.usage");
        if detail == Detail::Metrics {
            reader.table(&folder, "cpuacct.stat", |name, ticks| match name {
                "user" => usage.cpu.user = Some(ticks.saturating_mul(NANOS_PER_TICK)),
                "system" => usage.cpu.system = Some(ticks.saturating_mul(NANOS_PER_TICK)),
                _ => {}
            });
        }
    }
    if let Some(folder) = folder("memory") {
        memory_1(reader, &folder, detail, &mut usage.memory);
    }
    if detail == Detail::Stats {
        return usage;
    }
    if let Some(folder) = folder("cpu") {
        reader.table(&folder, "cpu.stat", |name, number| match name {
            "nr_periods" => usage.cpu.periods = Some(number),
            "nr_throttled" => usage.cpu.throttled_periods = Some(number),
            "throttled_time" => usage.cpu.throttled = Some(number),
            _ => {}
        });
    }
    if let Some(folder) = folder("pids") {
        usage.threads = reader.number(&folder, "pids.current");
        usage.threads_limit = reader.limit(&folder, "pids.max");
    }
    if let Some(folder) = folder("blkio") {
        usage.devices = devices_1(reader, &folder);
    }
    if let Some(folder) = folder("hugetlb") {
        let pages = sizes.iter().map(|size| HugePages {
            usage: reader.number(&folder, &format!("hugetlb.{size}.usage_in_bytes")),
            peak: reader.number(&folder, &format!("hugetlb.{size}.max_usage_in_bytes")),
            size: size.clone(),
        });
        usage.huge_pages = pages.filter(|pages| pages.usage.is_some()).collect();
    }
    usage
}

fn memory_1(reader: &mut Reader, folder: &OwnedFd, detail: Detail, memory: &mut Memory) {
    memory.usage = reader.number(folder, "memory.usage_in_bytes");
    memory.limit = reader.limit(folder, "memory.limit_in_bytes");
    reader.table(folder, "memory.stat", |name, number| match name {
        "total_rss" => memory.rss = Some(number),
        "total_cache" => memory.cache = Some(number),
        "total_mapped_file" => memory.mapped_file = Some(number),
        "total_inactive_file" => memory.inactive_file = Some(number),
        "total_swap" => memory.swap = Some(number),
        "total_pgfault" => memory.page_faults = Some(number),
        "total_pgmajfault" => memory.major_page_faults = Some(number),
        "pgfault" => memory.own_page_faults = Some(number),
        "pgmajfault" => memory.own_major_page_faults = Some(number),
        _ => {}
    });
    // Here the limit is of memory and swap together.
    memory.swap_limit = match (reader.limit(folder, "memory.memsw.limit_in_bytes"), memory.limit) {
        (Some(Limit::At(both)), Some(Limit::At(alone))) => Some(Limit::At(both.saturating_sub(alone))),
        (both, _) => both.filter(|both| *both == Limit::Never),
    };
    if detail == Detail::Stats {
        return;
    }
    memory.kernel = reader.number(folder, "memory.kmem.usage_in_bytes");
    memory.peak = reader.number(folder, "memory.max_usage_in_bytes");
    memory.failures = reader.number(folder, "memory.failcnt");
    reader.table(folder, "memory.oom_control", |name, number| {
        if name == "oom_kill" {
            memory.oom_kills = Some(number);
        }
    });
}

/// Lines `8:0 Read 4096`, in files that the kernel and each scheduler name differently.
fn devices_1(reader: &mut Reader, folder: &OwnedFd) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for what in ["io_service_bytes", "io_serviced"] {
        let names = ["throttle", "bfq"]
            .into_iter()
            .flat_map(|who| [format!("blkio.{who}.{what}_recursive"), format!("blkio.{who}.{what}")]);
        for name in names {
            let mut found = false;
            for line in reader.text(folder, &name).unwrap_or_default().lines() {
                let mut words = line.split(' ');
                let (Some(at), Some(kind), Some(value)) = (words.next().and_then(number), words.next(), words.next())
                else {
                    continue;
                };
                let known = devices.iter().position(|device| device.number == at);
                let known = known.unwrap_or_else(|| {
                    devices.push(Device { number: at, ..Device::default() });
                    devices.len() - 1
                });
                let (device, value) = (&mut devices[known], value.parse().ok());
                match (what, kind) {
                    ("io_service_bytes", "Read") => device.read_bytes = value,
                    ("io_service_bytes", "Write") => device.written_bytes = value,
                    ("io_service_bytes", "Discard") => device.discarded_bytes = value,
                    ("io_serviced", "Read") => device.reads = value,
                    ("io_serviced", "Write") => device.writes = value,
                    _ => {}
                }
                found = true;
            }
            if found {
                break;
            }
        }
    }
    devices
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// A container's folder of version 2.
    pub(in super::super) fn write_2(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in [
            ("cgroup.procs", "11\n12\n"),
            (
                "cpu.stat",
                "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 2000000\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.00 avg60=2.00 avg300=3.00 total=4000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6\n",
            ),
            (
                "io.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=8\n",
            ),
            ("memory.current", "1000000\n"),
            ("memory.max", "4000000\n"),
            ("memory.swap.current", "300\n"),
            ("memory.swap.max", "1000\n"),
            ("memory.peak", "2000000\n"),
            (
                "memory.stat",
                "anon 100\nfile 200\nkernel 50\nkernel_stack 10\nslab 5\nfile_mapped 30\ninactive_file 400000\npgfault 70\npgmajfault 7\n",
            ),
            ("memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\n"),
            ("pids.current", "5\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:1 \n"),
            ("hugetlb.2MB.current", "2097152\n"),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    /// A container's folders of version 1 below `root/CONTROLLER/path`.
    pub(in super::super) fn write_1(root: &Path, path: &str) -> Cgroup {
        let mut folders = Vec::new();
        for (controller, name, text) in [
            ("pids", "cgroup.procs", "11\n12\n"),
            ("pids", "pids.current", "5\n"),
            ("pids", "pids.max", "100\n"),
            ("cpuacct", "cpuacct.usage", "1500000000\n"),
            ("cpuacct", "cpuacct.stat", "user 100\nsystem 50\n"),
            ("cpu", "cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 2000000000\n"),
            ("memory", "memory.usage_in_bytes", "1000000\n"),
            ("memory", "memory.limit_in_bytes", "4000000\n"),
            ("memory", "memory.memsw.limit_in_bytes", "4001000\n"),
            ("memory", "memory.max_usage_in_bytes", "2000000\n"),
            ("memory", "memory.kmem.usage_in_bytes", "50\n"),
            ("memory", "memory.failcnt", "12\n"),
            ("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            (
                "memory",
                "memory.stat",
                "rss 1\npgfault 60\npgmajfault 6\ntotal_cache 200\ntotal_rss 100\ntotal_mapped_file 30\ntotal_swap 300\ntotal_inactive_file 400000\ntotal_pgfault 70\ntotal_pgmajfault 7\n",
            ),
            ("blkio", "blkio.throttle.io_service_bytes_recursive", "Total 0\n"),
            (
                "blkio",
                "blkio.throttle.io_service_bytes",
                "8:0 Read 1\n8:0 Write 2\n8:0 Discard 5\n8:0 Total 3\nTotal 3\n",
            ),
            ("blkio", "blkio.bfq.io_serviced_recursive", "8:0 Read 3\n8:0 Write 4\n"),
            ("hugetlb", "hugetlb.2MB.usage_in_bytes", "2097152\n"),
            ("hugetlb", "hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
        ] {
            let folder = root.join(controller).join(path);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), text).unwrap();
            if !folders.contains(&(controller, folder.clone())) {
                folders.push((controller, folder));
            }
        }
        Cgroup::V1(folders, None)
    }

    fn sizes() -> Vec<String> {
        vec!["2MB".into(), "1GB".into()]
    }

    #[test]
    fn both_versions_say_the_same() {
        let root = tempfile::tempdir().unwrap();
        write_2(&root.path().join("two"));
        let two = Cgroup::V2(root.path().join("two"));
        let Cgroup::V1(folders, _) = write_1(root.path(), "c") else { panic!("version 1") };
        // On a hybrid machine pressure comes from the other hierarchy.
        let one = Cgroup::V1(folders, Some(root.path().join("two")));
        let reader = &mut Reader::new();
        let [one, mut two] = [one, two].map(|cgroup| Usage::read(reader, &cgroup, Detail::Metrics, &sizes()));
        assert_eq!(two.cpu.usage, Some(1_500_000_000));
        assert_eq!((two.cpu.user, two.cpu.system), (Some(1_000_000_000), Some(500_000_000)));
        assert_eq!((two.cpu.periods, two.cpu.throttled_periods), (Some(9), Some(4)));
        assert_eq!(two.cpu.throttled, Some(2_000_000_000));
        assert_eq!(two.cpu.pressure.and_then(|psi| psi.some).map(|some| some.total), Some(4_000_000_000));
        assert_eq!(two.memory.working_set(), Some(600_000));
        assert_eq!((two.memory.failures, two.memory.oom_kills, two.memory.kernel), (Some(12), Some(1), Some(50)));
        assert_eq!((two.memory.swap, two.memory.swap_limit), (Some(300), Some(Limit::At(1000))));
        let device = Device {
            number: (8, 0),
            read_bytes: Some(1),
            written_bytes: Some(2),
            discarded_bytes: Some(5),
            reads: Some(3),
            writes: Some(4),
        };
        assert_eq!(two.devices, [device]);
        assert_eq!((two.threads, two.threads_limit), (Some(5), Some(Limit::Never)));
        // What differs.
        assert_eq!((one.threads_limit, one.huge_pages[0].peak), (Some(Limit::At(100)), Some(4_194_304)));
        assert_eq!((one.memory.own_page_faults, one.memory.own_major_page_faults), (Some(60), Some(6)));
        two.threads_limit = one.threads_limit;
        two.huge_pages[0].peak = one.huge_pages[0].peak;
        (two.memory.own_page_faults, two.memory.own_major_page_faults) = (Some(60), Some(6));
        assert_eq!(one, two);
    }

    #[test]
    fn what_is_not_counted_is_absent() {
        let root = tempfile::tempdir().unwrap();
        let reader = &mut Reader::new();
        let two = Cgroup::V2(root.path().into());
        assert_eq!(Usage::read(reader, &two, Detail::Metrics, &sizes()), Usage::default());
        let one = Cgroup::V1(vec![("memory", root.path().into())], None);
        assert_eq!(Usage::read(reader, &one, Detail::Metrics, &sizes()), Usage::default());
        // Older than Linux 5.18.
        fs::write(root.path().join("memory.stat"), "anon 1\nkernel_stack 10\npagetables 2\nslab 5\n").unwrap();
        let old = Usage::read(reader, &two, Detail::Stats, &[]);
        assert_eq!((old.memory.kernel, old.memory.swap, old.memory.working_set()), (Some(17), None, None));
    }

    #[test]
    fn sums_leave_out_what_does_not_add_up() {
        let root = tempfile::tempdir().unwrap();
        write_2(root.path());
        let one = Usage::read(&mut Reader::new(), &Cgroup::V2(root.path().into()), Detail::Stats, &[]);
        let sum = Usage::default().plus(&one).plus(&one).plus(&Usage::default());
        assert_eq!((sum.cpu.usage, sum.memory.usage), (Some(3_000_000_000), Some(2_000_000)));
        assert_eq!((sum.memory.working_set(), sum.memory.page_faults), (Some(1_200_000), Some(140)));
        assert_eq!((sum.memory.limit, sum.cpu.pressure, sum.io_pressure), (None, None, None));
    }
}
