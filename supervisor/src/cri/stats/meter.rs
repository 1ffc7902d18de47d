//! From containers that run to what CRI says of them. Nobody's shim is asked: a container's cgroup is looked up once, and read when
//! somebody wants to know. Nothing happens in between.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use proto::runtime::v1 as cri;

use super::{
    cgroup::{Cgroup, Hierarchies},
    files::Reader,
    layers::{Layers, Measured},
    rate::Rate,
    usage::{Cpu, Detail, Memory, Usage},
};
use crate::cri::{pods::now, record::Container};

/// Where the kernel tells which sizes of huge pages it has.
const PAGES: &str = "/sys/kernel/mm/hugepages";

/// A container that runs.
pub(super) struct Running {
    pub(super) id: String,
    pub(super) container: Container,
    /// Its first process.
    pub(super) pid: u32,
}

/// Reads cgroups, and remembers what the next answer needs of the last one.
pub(super) struct Meter {
    pub(super) hierarchies: Hierarchies,
    pub(super) layers: Layers,
    sizes: Vec<String>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// With the process by which it was found.
    cgroups: HashMap<String, (u32, Cgroup)>,
    containers: HashMap<String, Rate>,
    pods: HashMap<String, Rate>,
}

/// What a pod uses, besides what its containers do.
pub(super) struct PodUsage {
    pub(super) cpu: Option<cri::CpuUsage>,
    pub(super) memory: Option<cri::MemoryUsage>,
    pub(super) io: Option<cri::IoUsage>,
    pub(super) process: Option<cri::ProcessUsage>,
}

impl Meter {
    /// Over the cgroups below `root`.
    pub(super) fn new(root: &Path) -> Self {
        let sizes = page_sizes(Path::new(PAGES));
        Self { hierarchies: Hierarchies::at(root), layers: Layers::default(), sizes, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all containers but those that live.
    pub(super) fn keep_containers(&self, living: impl Fn(&str) -> bool) {
        let mut known = self.known();
        known.cgroups.retain(|id, _| living(id));
        known.containers.retain(|id, _| living(id));
        drop(known);
        self.layers.keep(living);
    }

    /// Forgets all pods but those that are there.
    pub(super) fn keep_pods(&self, living: impl Fn(&str) -> bool) {
        self.known().pods.retain(|id, _| living(id));
    }

    /// The cgroup of a container whose first process is `pid`; `None` if it has none of its own, or is about to end.
    pub(super) fn cgroup(&self, id: &str, pid: u32) -> Option<Cgroup> {
        if let Some((known, cgroup)) = self.known().cgroups.get(id)
            && *known == pid
        {
            return Some(cgroup.clone());
        }
        let found = self.hierarchies.of_process(pid, id)?;
        self.known().cgroups.insert(id.to_owned(), (pid, found.clone()));
        Some(found)
    }

    /// What a cgroup uses; nothing, if there is none.
    pub(super) fn usage(&self, reader: &mut Reader, cgroup: Option<&Cgroup>, detail: Detail) -> Usage {
        cgroup.map(|cgroup| Usage::read(reader, cgroup, detail, &self.sizes)).unwrap_or_default()
    }

    /// What is said of a container; `layers` is where its own layer is.
    pub(super) fn container(
        &self,
        one: &Running,
        usage: &Usage,
        layer: Option<Measured>,
        layers: &Path,
    ) -> cri::ContainerStats {
        let at = now();
        let rate = |used| self.known().containers.entry(one.id.clone()).or_default().note(Instant::now(), used);
        let config = &one.container.config;
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: one.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            cpu: cpu(&usage.cpu, at, rate),
            memory: memory(&usage.memory, at),
            writable_layer: layer.map(|layer| cri::FilesystemUsage {
                timestamp: layer.at,
                fs_id: Some(cri::FilesystemIdentifier { mountpoint: layers.display().to_string() }),
                used_bytes: value(Some(layer.usage.bytes)),
                inodes_used: value(Some(layer.usage.inodes)),
            }),
            swap: swap(&usage.memory, at),
            io: io(usage, at),
        }
    }

    /// What is said of a pod: what its cgroup, which may be nobody else's, says, or else the sum of its containers.
    pub(super) fn pod(
        &self,
        id: &str,
        reader: &mut Reader,
        cgroup: Option<&Cgroup>,
        containers: &[(Option<Cgroup>, Usage)],
    ) -> PodUsage {
        let mut usage = self.usage(reader, cgroup, Detail::Stats);
        let sum = || containers.iter().fold(Usage::default(), |sum, (_, one)| sum.plus(one));
        if usage.cpu.usage.is_none() {
            usage.cpu = sum().cpu;
        }
        if usage.memory.usage.is_none() {
            usage.memory = sum().memory;
        }
        let processes = cgroup.and_then(|cgroup| Some(cgroup.processes(reader)?.len())).or_else(|| {
            let each = containers.iter().map(|(cgroup, _)| Some(cgroup.as_ref()?.processes(reader)?.len()));
            each.fold(None, |sum, one| sum.zip(one).map(|(a, b)| a + b).or(sum).or(one))
        });
        let at = now();
        let rate = |used| self.known().pods.entry(id.to_owned()).or_default().note(Instant::now(), used);
        PodUsage {
            cpu: cpu(&usage.cpu, at, rate),
            memory: memory(&usage.memory, at),
            io: io(&usage, at),
            process: processes
                .map(|count| cri::ProcessUsage { timestamp: at, process_count: value(Some(count as u64)) }),
        }
    }
}

fn value(value: Option<u64>) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value: value? })
}

fn cpu(cpu: &Cpu, timestamp: i64, rate: impl FnOnce(u64) -> Option<u64>) -> Option<cri::CpuUsage> {
    Some(cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(Some(cpu.usage?)),
        usage_nano_cores: value(cpu.usage.and_then(rate)),
        psi: cpu.pressure,
    })
}

fn memory(memory: &Memory, timestamp: i64) -> Option<cri::MemoryUsage> {
    let (usage, working_set) = (memory.usage?, memory.working_set());
    let limit = memory.limit.and_then(|limit| limit.number());
    Some(cri::MemoryUsage {
        timestamp,
        working_set_bytes: value(working_set),
        available_bytes: value(limit.zip(working_set).map(|(limit, used)| limit.saturating_sub(used))),
        usage_bytes: value(Some(usage)),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: memory.pressure,
    })
}

fn swap(memory: &Memory, timestamp: i64) -> Option<cri::SwapUsage> {
    let (used, limit) = (memory.swap?, memory.swap_limit.and_then(|limit| limit.number()));
    Some(cri::SwapUsage {
        timestamp,
        swap_available_bytes: value(limit.map(|limit| limit.saturating_sub(used))),
        swap_usage_bytes: value(Some(used)),
    })
}

fn io(usage: &Usage, timestamp: i64) -> Option<cri::IoUsage> {
    Some(cri::IoUsage { timestamp, psi: Some(usage.io_pressure?) })
}

/// As cgroups name them: `hugepages-2048kB` is `2MB` there.
fn page_sizes(folder: &Path) -> Vec<String> {
    let names =
        fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()).collect();
    sizes.sort_unstable();
    let name = |kilos: u64| match kilos {
        kilos if kilos % (1024 * 1024) == 0 => format!("{}GB", kilos / 1024 / 1024),
        kilos if kilos % 1024 == 0 => format!("{}MB", kilos / 1024),
        kilos => format!("{kilos}KB"),
    };
    sizes.into_iter().map(name).collect()
}

#[cfg(test)]
pub(super) mod tests;
