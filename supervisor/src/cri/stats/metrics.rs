//! The metrics that kubelets hand to Prometheus in place of cAdvisor's, under its names. Numbers are whole: CRI has no others, so that
//! seconds lose what comes behind the point.

use proto::runtime::v1 as cri;

use super::{
    cgroup::Hierarchies,
    files::{Reader, folder},
    filesystem::{Filesystem, device_name},
    layers::Measured,
    network::Interface,
    processes::Open,
    usage::Usage,
};
use crate::cri::record::{Container, Sandbox};

/// Labels that every metric has, before its own.
const LABELS: [&str; 6] = ["id", "name", "image", "namespace", "pod", "container"];
/// What the label `container` says of a pod itself.
const POD: &str = "POD";
/// All processors together.
const TOTAL: &str = "total";

/// What must be there for something to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// Time of processors, which version 2 counts even without a controller.
    CpuTime,
    Cpu,
    Memory,
    /// The most that was in use.
    Peak,
    /// Memory of the kernel's own.
    Kernel,
    Swap,
    Pids,
    Io,
    HugePages,
    HugePagesPeak,
    Pressure,
}

/// What metrics of one name have in common.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    /// Besides [`LABELS`].
    labels: &'static [&'static str],
    kind: cri::MetricType,
    needs: Needs,
}

/// Declares families, and the list of all.
macro_rules! families {
    ($($family:ident: $kind:ident $needs:ident $name:literal $labels:tt $help:literal;)*) => {
        $(const $family: Family = Family {
            name: $name,
            help: $help,
            labels: &$labels,
            kind: cri::MetricType::$kind,
            needs: Needs::$needs,
        };)*
        const FAMILIES: &[Family] = &[$($family),*];
    };
}

families! {
    CPU_USAGE: Counter CpuTime "container_cpu_usage_seconds_total" ["cpu"] "Time that processors worked for the container.";
    CPU_USER: Counter CpuTime "container_cpu_user_seconds_total" [] "Of that, outside of the kernel.";
    CPU_SYSTEM: Counter CpuTime "container_cpu_system_seconds_total" [] "Of that, in the kernel.";
    CPU_PERIODS: Counter Cpu "container_cpu_cfs_periods_total" [] "Periods in which a quota of processor time was dealt out.";
    CPU_THROTTLED_PERIODS: Counter Cpu "container_cpu_cfs_throttled_periods_total" [] "Periods in which the quota was used up.";
    CPU_THROTTLED: Counter Cpu "container_cpu_cfs_throttled_seconds_total" [] "Time that the container was held up because its quota was used up.";
    MEMORY_USAGE: Gauge Memory "container_memory_usage_bytes" [] "Memory in use, caches included.";
    MEMORY_WORKING_SET: Gauge Memory "container_memory_working_set_bytes" [] "Memory in use without files that nobody has read for a while.";
    MEMORY_PEAK: Gauge Peak "container_memory_max_usage_bytes" [] "The most memory that was in use at once.";
    MEMORY_RSS: Gauge Memory "container_memory_rss" [] "Memory that is no file's.";
    MEMORY_CACHE: Gauge Memory "container_memory_cache" [] "Files in memory.";
    MEMORY_MAPPED: Gauge Memory "container_memory_mapped_file" [] "Files that are mapped into memory.";
    MEMORY_KERNEL: Gauge Kernel "container_memory_kernel_usage" [] "Memory that the kernel holds for the container.";
    MEMORY_SWAP: Gauge Swap "container_memory_swap" [] "Memory that was moved to swap space.";
    MEMORY_FAILCNT: Counter Memory "container_memory_failcnt" [] "How often memory in use met its limit.";
    MEMORY_FAILURES: Counter Memory "container_memory_failures_total" ["failure_type", "scope"] "Page faults, and those that had to wait for a disk.";
    OOM_EVENTS: Counter Memory "container_oom_events_total" [] "Processes that the kernel has killed because memory ran out.";
    RECEIVED_BYTES: Counter Nothing "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    RECEIVED_PACKETS: Counter Nothing "container_network_receive_packets_total" ["interface"] "Packets received.";
    RECEIVED_DROPPED: Counter Nothing "container_network_receive_packets_dropped_total" ["interface"] "Packets that arrived and were dropped.";
    RECEIVED_ERRORS: Counter Nothing "container_network_receive_errors_total" ["interface"] "Errors while receiving.";
    SENT_BYTES: Counter Nothing "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    SENT_PACKETS: Counter Nothing "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    SENT_DROPPED: Counter Nothing "container_network_transmit_packets_dropped_total" ["interface"] "Packets that were dropped instead of sent.";
    SENT_ERRORS: Counter Nothing "container_network_transmit_errors_total" ["interface"] "Errors while sending.";
    FS_USAGE: Gauge Nothing "container_fs_usage_bytes" ["device"] "What the container has written to its own layer and not removed.";
    FS_LIMIT: Gauge Nothing "container_fs_limit_bytes" ["device"] "Size of the file system with the layers of containers.";
    FS_INODES: Gauge Nothing "container_fs_inodes_total" ["device"] "Inodes of that file system.";
    FS_INODES_FREE: Gauge Nothing "container_fs_inodes_free" ["device"] "Those that are free.";
    FS_READ_BYTES: Counter Io "container_fs_reads_bytes_total" ["device"] "Bytes read from a device.";
    FS_READS: Counter Io "container_fs_reads_total" ["device"] "Reads from a device.";
    FS_WRITTEN_BYTES: Counter Io "container_fs_writes_bytes_total" ["device"] "Bytes written to a device.";
    FS_WRITES: Counter Io "container_fs_writes_total" ["device"] "Writes to a device.";
    BLKIO_USAGE: Counter Io "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes moved from and to a device.";
    HUGE_PAGES: Gauge HugePages "container_hugetlb_usage_bytes" ["pagesize"] "Memory in huge pages.";
    HUGE_PAGES_PEAK: Gauge HugePagesPeak "container_hugetlb_max_usage_bytes" ["pagesize"] "The most memory that was in huge pages at once.";
    PROCESSES: Gauge Nothing "container_processes" [] "Processes.";
    THREADS: Gauge Pids "container_threads" [] "Threads of all processes.";
    THREADS_MAX: Gauge Pids "container_threads_max" [] "How many threads there may be; 0 is no limit.";
    FILES: Gauge Nothing "container_file_descriptors" [] "Open files of all processes.";
    SOCKETS: Gauge Nothing "container_sockets" [] "Open sockets of all processes.";
    ULIMITS: Gauge Nothing "container_ulimits_soft" ["ulimit"] "Limits of the first process, where it has one.";
    CPU_STALLED: Counter Pressure "container_pressure_cpu_stalled_seconds_total" [] "Time that all had to wait for a processor.";
    CPU_WAITING: Counter Pressure "container_pressure_cpu_waiting_seconds_total" [] "Time that some had to wait for a processor.";
    MEMORY_STALLED: Counter Pressure "container_pressure_memory_stalled_seconds_total" [] "Time that all had to wait for memory.";
    MEMORY_WAITING: Counter Pressure "container_pressure_memory_waiting_seconds_total" [] "Time that some had to wait for memory.";
    IO_STALLED: Counter Pressure "container_pressure_io_stalled_seconds_total" [] "Time that all had to wait for devices.";
    IO_WAITING: Counter Pressure "container_pressure_io_waiting_seconds_total" [] "Time that some had to wait for devices.";
    SPEC_PERIOD: Gauge Nothing "container_spec_cpu_period" [] "Microseconds for which a quota of processor time is dealt out, if that was asked for.";
    SPEC_QUOTA: Gauge Nothing "container_spec_cpu_quota" [] "Microseconds of processor time in each period, if there is a limit.";
    SPEC_SHARES: Gauge Nothing "container_spec_cpu_shares" [] "Weight among those who compete for processors, if one was asked for.";
    SPEC_MEMORY: Gauge Nothing "container_spec_memory_limit_bytes" [] "Limit of memory; 0 is none.";
    SPEC_RESERVATION: Gauge Nothing "container_spec_memory_reservation_limit_bytes" [] "Memory that is left to the container whoever else needs some (memory.min); 0 is none.";
    SPEC_SWAP: Gauge Nothing "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap space together; 0 is none.";
    START_TIME: Gauge Nothing "container_start_time_seconds" [] "When the container was started, in seconds since 1970.";
    LAST_SEEN: Gauge Nothing "container_last_seen" [] "When it was found running, in seconds since 1970.";
}

/// What this machine can measure, by the metrics' names.
pub(super) fn descriptors(here: &Hierarchies) -> Vec<cri::MetricDescriptor> {
    let mut reader = Reader::new();
    let there = FAMILIES.iter().filter(|family| has(here, &mut reader, family.needs));
    there
        .map(|family| cri::MetricDescriptor {
            name: family.name.to_owned(),
            help: family.help.to_owned(),
            label_keys: LABELS.iter().chain(family.labels).map(|&key| key.to_owned()).collect(),
        })
        .collect()
}

fn has(here: &Hierarchies, reader: &mut Reader, needs: Needs) -> bool {
    let mut controller = |two: &str, one: &str| match (here.is_unified(), folder(&here.top(""))) {
        (true, Some(top)) => {
            reader.text(top, "cgroup.controllers").is_some_and(|all| all.split(' ').any(|name| name == two))
        }
        _ => here.has(one),
    };
    match needs {
        Needs::Nothing => true,
        Needs::CpuTime => here.is_unified() || here.has("cpuacct"),
        Needs::Cpu => controller("cpu", "cpu"),
        Needs::Memory => controller("memory", "memory"),
        Needs::Pids => controller("pids", "pids"),
        Needs::Io => controller("io", "blkio"),
        Needs::HugePages => controller("hugetlb", "hugetlb"),
        Needs::HugePagesPeak => !here.is_unified() && here.has("hugetlb"),
        // The root of version 2 has none of these: any other cgroup shows them.
        Needs::Peak if here.is_unified() => here.any_below("memory.peak"),
        Needs::Swap if here.is_unified() => here.any_below("memory.swap.current"),
        Needs::Peak => here.has("memory/memory.max_usage_in_bytes"),
        Needs::Swap => {
            let mut counted = false;
            let top = folder(&here.top("memory"));
            top.is_some_and(|top| reader.table(top, "memory.stat", |name, _| counted |= name == "total_swap"))
                && counted
        }
        Needs::Kernel if here.is_unified() => controller("memory", "memory"),
        Needs::Kernel => here.has("memory/memory.kmem.usage_in_bytes"),
        Needs::Pressure => {
            std::path::Path::new("/proc/pressure/cpu").exists() && (here.is_unified() || here.has("unified"))
        }
    }
}

/// Metrics of one thing.
struct Rows {
    labels: [String; LABELS.len()],
    rows: Vec<cri::Metric>,
}

impl Rows {
    /// Notes a value that was measured just now, if there is one.
    fn add(&mut self, family: &Family, labels: &[&str], value: impl Into<Option<u64>>) {
        self.add_at(family, labels, value.into(), 0);
    }

    fn add_at(&mut self, family: &Family, labels: &[&str], value: Option<u64>, timestamp: i64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let Some(value) = value else { return };
        self.rows.push(cri::Metric {
            name: family.name.to_owned(),
            timestamp,
            metric_type: family.kind.into(),
            label_values: self.labels.iter().cloned().chain(labels.iter().map(|&label| label.to_owned())).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }
}

/// Everything that is known of a container that runs.
pub(super) struct Facts<'a> {
    pub(super) id: &'a str,
    pub(super) container: &'a Container,
    pub(super) usage: &'a Usage,
    pub(super) processes: Option<u64>,
    pub(super) open: Option<Open>,
    pub(super) open_limit: Option<u64>,
    pub(super) layer: Option<Measured>,
    pub(super) filesystem: Option<&'a Filesystem>,
    /// Nanoseconds since the epoch.
    pub(super) now: i64,
}

/// The metrics of a container.
pub(super) fn container(sandbox: &Sandbox, facts: &Facts<'_>) -> Vec<cri::Metric> {
    let pod = sandbox.config().metadata.clone().unwrap_or_default();
    let config = &facts.container.config;
    let meta = config.metadata.clone().unwrap_or_default();
    let image = config.image.clone().unwrap_or_default();
    let image = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    let name = format!("k8s_{}_{}_{}_{}_{}", meta.name, pod.name, pod.namespace, pod.uid, meta.attempt);
    let labels = [facts.id.to_owned(), name, image, pod.namespace, pod.name, meta.name];
    let rows = &mut Rows { labels, rows: Vec::with_capacity(FAMILIES.len()) };
    cpu_and_memory(rows, facts.usage);
    devices(rows, facts.usage);
    filesystem(rows, facts);
    processes(rows, facts);
    spec(rows, facts);
    std::mem::take(&mut rows.rows)
}

fn seconds(nanoseconds: Option<u64>) -> Option<u64> {
    Some(nanoseconds? / 1_000_000_000)
}

fn cpu_and_memory(rows: &mut Rows, usage: &Usage) {
    let (cpu, memory) = (&usage.cpu, &usage.memory);
    rows.add(&CPU_USAGE, &[TOTAL], seconds(cpu.usage));
    rows.add(&CPU_USER, &[], seconds(cpu.user));
    rows.add(&CPU_SYSTEM, &[], seconds(cpu.system));
    rows.add(&CPU_PERIODS, &[], cpu.periods);
    rows.add(&CPU_THROTTLED_PERIODS, &[], cpu.throttled_periods);
    rows.add(&CPU_THROTTLED, &[], seconds(cpu.throttled));
    rows.add(&MEMORY_USAGE, &[], memory.usage);
    rows.add(&MEMORY_WORKING_SET, &[], memory.working_set());
    rows.add(&MEMORY_PEAK, &[], memory.peak);
    rows.add(&MEMORY_RSS, &[], memory.rss);
    rows.add(&MEMORY_CACHE, &[], memory.cache);
    rows.add(&MEMORY_MAPPED, &[], memory.mapped_file);
    rows.add(&MEMORY_KERNEL, &[], memory.kernel);
    rows.add(&MEMORY_SWAP, &[], memory.swap);
    rows.add(&MEMORY_FAILCNT, &[], memory.failures);
    for (kind, own, all) in [
        ("pgfault", memory.own_page_faults, memory.page_faults),
        ("pgmajfault", memory.own_major_page_faults, memory.major_page_faults),
    ] {
        // Version 2 doesn't tell a cgroup from those below, which few containers have.
        rows.add(&MEMORY_FAILURES, &[kind, "container"], own.or(all));
        rows.add(&MEMORY_FAILURES, &[kind, "hierarchy"], all);
    }
    rows.add(&OOM_EVENTS, &[], memory.oom_kills);
    for (stalled, waiting, pressure) in [
        (&CPU_STALLED, &CPU_WAITING, &cpu.pressure),
        (&MEMORY_STALLED, &MEMORY_WAITING, &memory.pressure),
        (&IO_STALLED, &IO_WAITING, &usage.io_pressure),
    ] {
        let total = |data: &Option<cri::PsiData>| seconds(data.as_ref().map(|data| data.total));
        rows.add(stalled, &[], pressure.as_ref().and_then(|pressure| total(&pressure.full)));
        rows.add(waiting, &[], pressure.as_ref().and_then(|pressure| total(&pressure.some)));
    }
    for pages in &usage.huge_pages {
        rows.add(&HUGE_PAGES, &[&pages.size], pages.usage);
        rows.add(&HUGE_PAGES_PEAK, &[&pages.size], pages.peak);
    }
}

fn devices(rows: &mut Rows, usage: &Usage) {
    for device in &usage.devices {
        let (name, (major, minor)) = (device_name(device.number), device.number);
        rows.add(&FS_READ_BYTES, &[&name], device.read_bytes);
        rows.add(&FS_READS, &[&name], device.reads);
        rows.add(&FS_WRITTEN_BYTES, &[&name], device.written_bytes);
        rows.add(&FS_WRITES, &[&name], device.writes);
        let (major, minor) = (major.to_string(), minor.to_string());
        for (operation, bytes) in
            [("read", device.read_bytes), ("write", device.written_bytes), ("discard", device.discarded_bytes)]
        {
            rows.add(&BLKIO_USAGE, &[&name, &major, &minor, operation], bytes);
        }
    }
}

fn filesystem(rows: &mut Rows, facts: &Facts<'_>) {
    let Some(filesystem) = facts.filesystem else { return };
    let device = [filesystem.device.as_str()];
    if let Some(layer) = facts.layer {
        rows.add_at(&FS_USAGE, &device, Some(layer.usage.bytes), layer.at);
    }
    rows.add(&FS_LIMIT, &device, filesystem.bytes);
    rows.add(&FS_INODES, &device, filesystem.inodes);
    rows.add(&FS_INODES_FREE, &device, filesystem.inodes_free);
}

fn processes(rows: &mut Rows, facts: &Facts<'_>) {
    rows.add(&PROCESSES, &[], facts.processes);
    rows.add(&THREADS, &[], facts.usage.threads);
    rows.add(&THREADS_MAX, &[], facts.usage.threads_limit.map(|limit| limit.number().unwrap_or(0)));
    rows.add(&FILES, &[], facts.open.map(|open| open.files));
    rows.add(&SOCKETS, &[], facts.open.and_then(|open| open.sockets));
    rows.add(&ULIMITS, &["max_open_files"], facts.open_limit);
}

/// What was asked for.
fn spec(rows: &mut Rows, facts: &Facts<'_>) {
    let linux = facts.container.config.linux.as_ref();
    let resources = linux.and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let asked = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    rows.add(&SPEC_PERIOD, &[], asked(resources.cpu_period));
    rows.add(&SPEC_QUOTA, &[], asked(resources.cpu_quota));
    rows.add(&SPEC_SHARES, &[], asked(resources.cpu_shares));
    rows.add(&SPEC_MEMORY, &[], asked(resources.memory_limit_in_bytes).unwrap_or(0));
    // CRI has no field for it.
    let reserved = resources.unified.get("memory.min").and_then(|text| text.parse().ok());
    rows.add(&SPEC_RESERVATION, &[], reserved.unwrap_or(0));
    rows.add(&SPEC_SWAP, &[], asked(resources.memory_swap_limit_in_bytes).unwrap_or(0));
    rows.add(&START_TIME, &[], asked(facts.container.started_at / 1_000_000_000));
    rows.add(&LAST_SEEN, &[], asked(facts.now / 1_000_000_000));
}

/// The metrics of a pod itself: its containers share one network.
pub(super) fn pod(id: &str, sandbox: &Sandbox, interfaces: &[Interface]) -> Vec<cri::Metric> {
    let meta = sandbox.config().metadata.clone().unwrap_or_default();
    let name = format!("k8s_{POD}_{}_{}_{}_{}", meta.name, meta.namespace, meta.uid, meta.attempt);
    let labels = [id.to_owned(), name, String::new(), meta.namespace, meta.name, POD.to_owned()];
    let mut rows = Rows { labels, rows: Vec::new() };
    for interface in interfaces {
        let (name, received, sent) = ([interface.name.as_str()], interface.received, interface.sent);
        rows.add(&RECEIVED_BYTES, &name, received.bytes);
        rows.add(&RECEIVED_PACKETS, &name, received.packets);
        rows.add(&RECEIVED_DROPPED, &name, received.dropped);
        rows.add(&RECEIVED_ERRORS, &name, received.errors);
        rows.add(&SENT_BYTES, &name, sent.bytes);
        rows.add(&SENT_PACKETS, &name, sent.packets);
        rows.add(&SENT_DROPPED, &name, sent.dropped);
        rows.add(&SENT_ERRORS, &name, sent.errors);
    }
    rows.rows
}
