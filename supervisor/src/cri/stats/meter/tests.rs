use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::super::{
    filesystem::Filesystem,
    metrics::{self, Facts},
    network::{Counted, Interface},
    processes,
    usage::tests::{write_1, write_2},
};
use super::*;
use crate::{
    cri::record::{Phase, Sandbox},
    snapshots::Usage as LayerUsage,
};

/// An id as long as real ones.
fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn running(number: usize, pid: u32) -> Running {
    let resources = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 4_000_000,
        memory_swap_limit_in_bytes: -1,
        ..Default::default()
    };
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "web".into(), attempt: 2 }),
        image: Some(cri::ImageSpec {
            image: "sha256:1".into(),
            user_specified_image: "nginx:1".into(),
            ..Default::default()
        }),
        labels: [("app".to_owned(), "shop".to_owned())].into(),
        linux: Some(cri::LinuxContainerConfig { resources: Some(resources), ..Default::default() }),
        ..Default::default()
    };
    let container =
        Container { sandbox: id(1000), config, started_at: 1_700_000_000_500_000_000, ..Default::default() };
    Running { id: id(number), container, pid }
}

fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::default();
    sandbox.set_phase(Phase::Ready);
    let metadata =
        cri::PodSandboxMetadata { name: "shop".into(), namespace: "sales".into(), uid: "u1".into(), attempt: 0 };
    sandbox.request.config = Some(cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() });
    sandbox
}

/// A meter that has found these cgroups.
fn meter(root: &Path, found: Vec<(String, Cgroup)>) -> Meter {
    let meter = Meter { sizes: vec!["2MB".into()], ..Meter::new(root) };
    meter.known().cgroups.extend(found.into_iter().map(|(id, cgroup)| (id, (7, cgroup))));
    meter
}

fn number(value: &Option<cri::UInt64Value>) -> Option<u64> {
    value.as_ref().map(|value| value.value)
}

fn filesystem() -> Filesystem {
    Filesystem { device: "/dev/vda1".into(), bytes: 5000, inodes: Some(50), inodes_free: Some(5) }
}

#[test]
fn what_is_said_of_a_container() {
    let root = tempfile::tempdir().unwrap();
    write_2(&root.path().join("two"));
    let found = vec![(id(1), Cgroup::V2(root.path().join("two"))), (id(2), write_1(root.path(), "c"))];
    let meter = meter(root.path(), found);
    let layer = meter.layers.usage("x", || Ok(LayerUsage { bytes: 4096, inodes: 2 }));
    for (which, has_pressure) in [(1, true), (2, false)] {
        let one = running(which, 7);
        let cgroup = meter.cgroup(&one.id, one.pid);
        let usage = meter.usage(&mut Reader::new(), cgroup.as_ref(), Detail::Stats);
        let stats = meter.container(&one, &usage, layer, Path::new("/layers"));
        let attributes = stats.attributes.unwrap();
        assert_eq!((attributes.id, attributes.metadata.unwrap().attempt, attributes.labels.len()), (id(which), 2, 1));
        let cpu = stats.cpu.unwrap();
        assert_eq!((number(&cpu.usage_core_nano_seconds), number(&cpu.usage_nano_cores)), (Some(1_500_000_000), None));
        assert!(cpu.timestamp > 0 && cpu.psi.is_some() == has_pressure);
        let memory = stats.memory.unwrap();
        assert_eq!((number(&memory.usage_bytes), number(&memory.working_set_bytes)), (Some(1_000_000), Some(600_000)));
        assert_eq!((number(&memory.available_bytes), number(&memory.rss_bytes)), (Some(3_400_000), Some(100)));
        assert_eq!((number(&memory.page_faults), number(&memory.major_page_faults)), (Some(70), Some(7)));
        let swap = stats.swap.unwrap();
        assert_eq!((number(&swap.swap_usage_bytes), number(&swap.swap_available_bytes)), (Some(300), Some(700)));
        assert_eq!(stats.io.is_some(), has_pressure);
        let written = stats.writable_layer.unwrap();
        assert_eq!((number(&written.used_bytes), number(&written.inodes_used)), (Some(4096), Some(2)));
        assert_eq!((written.fs_id.unwrap().mountpoint, written.timestamp), ("/layers".into(), layer.unwrap().at));
    }
    // One whose cgroup nobody knows, as its process is gone.
    let stats = meter.container(&running(3, u32::MAX), &Usage::default(), None, Path::new("/layers"));
    assert_eq!(meter.cgroup(&id(3), u32::MAX), None);
    assert_eq!((stats.cpu, stats.memory, stats.swap, stats.io, stats.writable_layer), (None, None, None, None, None));
    meter.keep_containers(|living| living == id(1));
    let known = meter.known();
    assert_eq!((known.cgroups.len(), known.containers.len()), (1, 1));
}

#[test]
fn a_pod_is_its_cgroup_or_the_sum_of_its_containers() {
    let root = tempfile::tempdir().unwrap();
    for name in ["pod", "pod/a", "pod/b"] {
        write_2(&root.path().join(name));
    }
    let meter = meter(root.path(), Vec::new());
    let reader = &mut Reader::new();
    let containers: Vec<_> = ["pod/a", "pod/b"]
        .map(|name| {
            let cgroup = Cgroup::V2(root.path().join(name));
            let usage = meter.usage(reader, Some(&cgroup), Detail::Stats);
            (Some(cgroup), usage)
        })
        .into();
    let used = |pod: &PodUsage| {
        let cpu = pod.cpu.as_ref().and_then(|cpu| number(&cpu.usage_core_nano_seconds));
        let memory = pod.memory.as_ref().and_then(|memory| number(&memory.working_set_bytes));
        (cpu, memory, pod.process.as_ref().and_then(|process| number(&process.process_count)))
    };
    let own = meter.pod("p", reader, Some(&Cgroup::V2(root.path().join("pod"))), &containers);
    assert_eq!(used(&own), (Some(1_500_000_000), Some(600_000), Some(2)));
    assert!(own.io.is_some() && own.memory.unwrap().available_bytes.is_some());
    for cgroup in [None, Some(Cgroup::V2(root.path().join("none")))] {
        let sum = meter.pod("q", reader, cgroup.as_ref(), &containers);
        assert_eq!(used(&sum), (Some(3_000_000_000), Some(1_200_000), Some(4)));
        assert!(sum.io.is_none() && sum.memory.unwrap().available_bytes.is_none());
    }
    let empty = meter.pod("r", reader, None, &[]);
    assert_eq!(used(&empty), (None, None, None));
    meter.keep_pods(|id| id == "p");
    assert_eq!(meter.known().pods.len(), 1);
}

/// Every metric of a container that `cgroup` is of.
fn all_metrics(meter: &Meter, one: &Running) -> Vec<cri::Metric> {
    let (reader, cgroup) = (&mut Reader::new(), meter.cgroup(&one.id, one.pid));
    let processes = cgroup.as_ref().and_then(|cgroup| cgroup.processes(reader));
    let facts = Facts {
        id: &one.id,
        container: &one.container,
        usage: &meter.usage(reader, cgroup.as_ref(), Detail::Metrics),
        processes: processes.as_ref().map(|all| all.len() as u64),
        open: processes::open_files(&[std::process::id()]),
        open_limit: Some(1024),
        layer: meter.layers.usage(&one.id, || Ok(LayerUsage { bytes: 4096, inodes: 2 })),
        filesystem: Some(&filesystem()),
        now: now(),
    };
    metrics::container(&sandbox(), &facts)
}

fn pod_metrics() -> Vec<cri::Metric> {
    let received = Counted { bytes: 1, packets: 2, errors: 3, dropped: 4 };
    let sent = Counted { bytes: 5, packets: 6, errors: 7, dropped: 8 };
    metrics::pod(&id(1000), &sandbox(), &[Interface { name: "eth0".into(), received, sent }])
}

#[test]
fn metrics_are_those_that_were_announced() {
    let root = tempfile::tempdir().unwrap();
    let unified = root.path().join("v2");
    write_2(&unified.join("pod"));
    fs::write(unified.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids rdma\n").unwrap();
    let legacy = root.path().join("v1");
    let one = write_1(&legacy, "c");
    for (name, text) in [
        ("memory.stat", "cache 1\ntotal_swap 0\n"),
        ("memory.max_usage_in_bytes", "0"),
        ("memory.kmem.usage_in_bytes", "0"),
    ] {
        fs::write(legacy.join("memory").join(name), text).unwrap();
    }
    // What of the 56 names isn't there: version 2 has no peak of huge pages, version 1 alone no pressure.
    for (at, cgroup, missing) in
        [(&unified, Cgroup::V2(unified.join("pod")), &["hugetlb_max"][..]), (&legacy, one, &["pressure"; 6][..])]
    {
        let meter = meter(at, vec![(id(1), cgroup)]);
        let announced = metrics::descriptors(&meter.hierarchies);
        let pressure = Path::new("/proc/pressure/cpu").exists();
        let names: Vec<&str> = announced.iter().map(|one| one.name.as_str()).collect();
        let absent = if pressure || missing.len() == 6 { missing.len() } else { missing.len() + 6 };
        assert_eq!(names.len(), 56 - absent, "{names:?}");
        assert!(!names.iter().any(|name| name.contains(missing[0])), "{names:?}");
        let metrics = [all_metrics(&meter, &running(1, 7)), pod_metrics()].concat();
        for descriptor in &announced {
            assert!(!descriptor.help.is_empty());
            let of = metrics.iter().filter(|metric| metric.name == descriptor.name);
            let labels: Vec<usize> = of.map(|metric| metric.label_values.len()).collect();
            assert!(!labels.is_empty(), "{} was announced", descriptor.name);
            assert!(labels.iter().all(|count| *count == descriptor.label_keys.len()), "{}", descriptor.name);
        }
        let unknown: Vec<_> = metrics.iter().filter(|metric| !names.contains(&metric.name.as_str())).collect();
        assert!(!pressure || unknown.is_empty(), "{unknown:?}");
        // A line of Prometheus' that is there twice makes all of them useless.
        let mut lines: Vec<_> = metrics.iter().map(|metric| (&metric.name, &metric.label_values)).collect();
        let all = lines.len();
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), all);
    }
}

#[test]
fn values_of_metrics() {
    let root = tempfile::tempdir().unwrap();
    let meter = meter(root.path(), vec![(id(1), write_1(root.path(), "c"))]);
    let metrics = all_metrics(&meter, &running(1, 7));
    let value = |name: &str, labels: &[&str]| {
        let name = format!("container_{name}");
        let found: Vec<_> =
            metrics.iter().filter(|metric| metric.name == name && metric.label_values[6..] == *labels).collect();
        assert!(found.len() < 2, "{found:?}");
        number(&found.first()?.value)
    };
    for (name, labels, wanted) in [
        ("cpu_usage_seconds_total", &["total"][..], Some(1)),
        ("cpu_cfs_throttled_seconds_total", &[], Some(2)),
        ("memory_working_set_bytes", &[], Some(600_000)),
        ("memory_failures_total", &["pgfault", "container"], Some(60)),
        ("memory_failures_total", &["pgfault", "hierarchy"], Some(70)),
        ("oom_events_total", &[], Some(1)),
        ("threads", &[], Some(5)),
        ("threads_max", &[], Some(100)),
        ("processes", &[], Some(2)),
        ("hugetlb_usage_bytes", &["2MB"], Some(2_097_152)),
        ("fs_usage_bytes", &["/dev/vda1"], Some(4096)),
        ("fs_inodes_free", &["/dev/vda1"], Some(5)),
        ("spec_cpu_quota", &[], Some(20_000)),
        ("spec_memory_limit_bytes", &[], Some(4_000_000)),
        ("spec_memory_swap_limit_bytes", &[], Some(0)),
        ("start_time_seconds", &[], Some(1_700_000_000)),
        ("ulimits_soft", &["max_open_files"], Some(1024)),
        ("pressure_cpu_waiting_seconds_total", &[], None),
    ] {
        assert_eq!(value(name, labels), wanted, "{name} {labels:?}");
    }
    let labels = &metrics[0].label_values[..6];
    assert_eq!(labels, [id(1).as_str(), "k8s_web_shop_sales_u1_2", "nginx:1", "sales", "shop", "web"]);
    let layer = metrics.iter().find(|metric| metric.name == "container_fs_usage_bytes").unwrap();
    assert!(layer.timestamp > 0 && metrics[0].timestamp == 0, "only what is kept has a time of its own");
    let pod = pod_metrics();
    assert_eq!(pod[0].label_values, [id(1000).as_str(), "k8s_POD_shop_sales_u1_0", "", "sales", "shop", "POD", "eth0"]);
    let values: Vec<_> = pod.iter().map(|metric| number(&metric.value).unwrap()).collect();
    assert_eq!(values, [1, 2, 4, 3, 5, 6, 8, 7]);
}

#[test]
fn sizes_of_huge_pages() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB", "other"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    assert_eq!(page_sizes(folder.path()), ["64KB", "2MB", "1GB"]);
}

#[test]
fn two_hundred_containers_are_read_in_a_moment() {
    let root = tempfile::tempdir().unwrap();
    let all: Vec<_> = (0..200).map(|number| running(number, 7)).collect();
    let found = all.iter().map(|one| {
        let folder = root.path().join("kubepods").join(&one.id);
        write_2(&folder);
        (one.id.clone(), Cgroup::V2(folder))
    });
    let meter = meter(root.path(), found.collect());
    let layer = meter.layers.usage("x", || Ok(LayerUsage::default()));
    let (began, reader) = (Instant::now(), &mut Reader::new());
    for one in &all {
        let usage = meter.usage(reader, meter.cgroup(&one.id, one.pid).as_ref(), Detail::Stats);
        assert!(meter.container(one, &usage, layer, Path::new("/layers")).cpu.is_some());
    }
    let took = began.elapsed();
    println!("stats of 200 containers: {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Cgroups of a test's own, with a process in them; all of it goes with this.
pub(in super::super) struct Live {
    folders: Vec<PathBuf>,
    child: Child,
    pub(in super::super) id: String,
}

impl Live {
    /// Below the cgroup of this process in every hierarchy that can be written to.
    pub(in super::super) fn new(name: &str) -> Option<Self> {
        let (hierarchies, id) =
            (Hierarchies::at(Path::new(super::super::cgroup::ROOT)), id(std::process::id() as usize));
        let mut folders = Vec::new();
        for controller in ["cpuacct", "cpu", "memory", "pids", "blkio", "unified"] {
            let top = hierarchies.top(controller);
            if top.join("cgroup.procs").exists() && !folders.iter().any(|folder: &PathBuf| folder.starts_with(&top)) {
                let folder = top.join(format!("berth-stats-{name}-{}", std::process::id())).join(&id);
                if fs::create_dir_all(&folder).is_err() {
                    println!("skipped: cgroups can't be made here");
                    return None;
                }
                folders.push(folder);
            }
        }
        // It waits for its orders, and says when it has them.
        let mut child = Command::new("sh");
        child.args(["-c", "while read word; do i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; done"]);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start sh");
        let live = Self { folders, child, id };
        for folder in &live.folders {
            fs::write(folder.join("cgroup.procs"), live.child.id().to_string()).expect("enter the cgroup");
        }
        Some(live)
    }

    /// Its process.
    pub(in super::super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes it busy for a moment.
    fn work(&mut self) {
        writeln!(self.child.stdin.as_ref().expect("a pipe"), "work").expect("write to sh");
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("read from sh");
        assert_eq!(line, "done\n");
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for folder in &self.folders {
            let _ = fs::remove_dir(folder);
            let _ = folder.parent().map(fs::remove_dir);
        }
    }
}

#[test]
fn a_process_in_a_cgroup_of_this_machine() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let Some(mut live) = Live::new("meter") else { return };
    let meter = Meter::new(Path::new(super::super::cgroup::ROOT));
    let one = Running { id: live.id.clone(), ..running(1, live.child.id()) };
    let cgroup = meter.cgroup(&one.id, one.pid).expect("found by its process");
    assert_eq!(meter.cgroup(&id(1), live.child.id()), None, "another's process");
    let reader = &mut Reader::new();
    assert_eq!(cgroup.processes(reader), Some(vec![live.child.id()]));
    let mut sample = || {
        live.work();
        let usage = meter.usage(reader, Some(&cgroup), Detail::Metrics);
        let stats = meter.container(&one, &usage, None, Path::new("/layers"));
        (stats, usage)
    };
    let (before, usage) = sample();
    // The kernel needs a while between two samples to make a rate of.
    std::thread::sleep(Duration::from_millis(600));
    let (after, _) = sample();
    let used = |stats: &cri::ContainerStats| number(&stats.cpu.as_ref().unwrap().usage_core_nano_seconds).unwrap();
    assert!(used(&after) > used(&before) && used(&before) > 0);
    let busy = number(&after.cpu.as_ref().unwrap().usage_nano_cores).expect("a rate, at the second time");
    assert!(busy > 0 && busy < 4_000_000_000, "{busy}");
    assert_eq!(after.cpu.as_ref().unwrap().psi.is_some(), Path::new("/proc/pressure/cpu").exists());
    if let Some(folder) = cgroup.folder("memory").filter(|folder| !folder.join("memory.current").exists()) {
        assert_eq!(after.memory.is_some(), folder.join("memory.usage_in_bytes").exists());
    } else {
        assert!(number(&after.memory.unwrap().usage_bytes).unwrap() > 0);
    }
    assert!(usage.cpu.user.is_some(), "{usage:?}");
    for detail in [Detail::Stats, Detail::Metrics] {
        let began = Instant::now();
        (0..200).for_each(|_| drop(meter.usage(reader, Some(&cgroup), detail)));
        println!("200 times a cgroup, {detail:?}: {:?}", began.elapsed());
    }
    let began = Instant::now();
    (0..200).for_each(|_| assert!(processes::open_files(&cgroup.processes(reader).expect("there")).is_some()));
    println!("200 times a process: {:?}", began.elapsed());
    // What was announced is there, but for devices that nothing was read from. With version 2 the test has no controllers.
    if !meter.hierarchies.is_unified() {
        let metrics = [all_metrics(&meter, &one), pod_metrics()].concat();
        let unused = ["container_fs_reads", "container_fs_writes", "container_blkio", "container_hugetlb"];
        for name in metrics::descriptors(&meter.hierarchies).into_iter().map(|descriptor| descriptor.name) {
            let found = metrics.iter().any(|metric| metric.name == name);
            assert!(found || unused.iter().any(|unused| name.starts_with(unused)), "{name}");
        }
    }
    // Below a cgroup with another in it.
    let parent = live.folders[0].parent().unwrap().to_owned();
    let controller = if meter.hierarchies.is_unified() { "pids" } else { "cpuacct" };
    let pod = match meter.hierarchies.is_unified() {
        true => Cgroup::V2(parent),
        false => Cgroup::V1(vec![(controller, parent)], None),
    };
    assert_eq!(pod.processes(reader), Some(vec![live.child.id()]));
}
