//! What containers and pods use: messages about stats, which kubelets ask for every ten seconds, and metrics for Prometheus.
//!
//! ```text
//! records, tasks' pids ──▶ meter ──▶ cgroup (where) ──▶ usage (numbers) ──▶ ContainerStats, PodSandboxStats
//!                            ├─▶ network, layers (their own clocks)     └──▶ metrics (names and labels)
//!                            └─▶ rate (the last sample)
//! ```
//! Everything is read when it is asked for, from the kernel's files, on a thread where waiting is allowed: no shim is called, and
//! nothing runs while nobody asks. Only what runs is listed. A value that this machine doesn't have is absent, not 0.

mod cgroup;
mod files;
mod filesystem;
mod layers;
mod meter;
mod metrics;
mod network;
mod processes;
mod rate;
mod usage;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{containerd::v1::types::Status as ProcessStatus, runtime::v1 as cri};

use self::{
    cgroup::Cgroup,
    files::Reader,
    filesystem::Filesystem,
    layers::Measured,
    meter::{Meter, Running},
    metrics::Facts,
    usage::{Detail, Usage},
};
use super::{
    NAMESPACE,
    containers::matches,
    error::CriError,
    place::Kind,
    pods::{Pods, blocking, now},
    record::{Phase, Sandbox},
};

/// The first processes of containers that run, by the containers' ids.
type Pids = HashMap<String, u32>;

/// What the pods of this node use.
pub(super) struct Stats {
    pods: Arc<Pods>,
    meter: Meter,
    /// Where containers have their layers.
    layers: PathBuf,
}

impl Stats {
    /// Of these pods, whose containers write to layers below `layers`.
    pub(super) fn new(pods: Arc<Pods>, layers: PathBuf) -> Arc<Self> {
        Arc::new(Self { pods, meter: Meter::new(Path::new(cgroup::ROOT)), layers })
    }

    /// One container, which must run.
    pub(super) async fn container(self: &Arc<Self>, id: String) -> Result<cri::ContainerStats, CriError> {
        self.look(move |stats, pids| {
            let id = stats.pods.container_id(&id)?;
            let container = stats.pods.known(&id)?;
            let pid = *pids.get(&id).ok_or_else(|| {
                let why = format!("it is {}, so that it uses nothing", container.state().as_str_name());
                CriError::State { what: "container", id: id.clone(), why }
            })?;
            Ok(stats.measure(&mut Reader::new(), &Running { id, container, pid }).0)
        })
        .await
    }

    /// The containers that run and pass a filter.
    pub(super) async fn containers(
        self: &Arc<Self>,
        filter: Option<cri::ContainerStatsFilter>,
    ) -> Result<Vec<cri::ContainerStats>, CriError> {
        self.look(move |stats, pids| stats.containers_that(&pids, &filter.unwrap_or_default())).await
    }

    /// One pod, which must be ready.
    pub(super) async fn pod(self: &Arc<Self>, id: String) -> Result<cri::PodSandboxStats, CriError> {
        self.look(move |stats, pids| {
            let id = stats.pods.sandbox_id(&id)?;
            let mut found = stats.pods_that(&pids, |one, _| one == id)?;
            found.pop().ok_or_else(|| {
                let why = "it isn't ready, so that it uses nothing".into();
                CriError::State { what: "sandbox", id, why }
            })
        })
        .await
    }

    /// The pods that are ready and pass a filter.
    pub(super) async fn pods(
        self: &Arc<Self>,
        filter: Option<cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, CriError> {
        let filter = filter.unwrap_or_default();
        self.look(move |stats, pids| {
            stats.pods_that(&pids, |id, sandbox| {
                id.starts_with(&filter.id) && matches(&sandbox.config().labels, &filter.label_selector)
            })
        })
        .await
    }

    /// The metrics that this machine has.
    pub(super) async fn descriptors(self: &Arc<Self>) -> Result<Vec<cri::MetricDescriptor>, CriError> {
        let stats = self.clone();
        blocking(move || Ok(metrics::descriptors(&stats.meter.hierarchies))).await
    }

    /// The metrics of all pods that are ready, and of their containers that run.
    pub(super) async fn metrics(self: &Arc<Self>) -> Result<Vec<cri::PodSandboxMetrics>, CriError> {
        self.look(|stats, pids| stats.all_metrics(&pids)).await
    }

    /// Reads records and files on a thread where waiting is allowed.
    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, Pids) -> Result<T, CriError> + Send + 'static,
    ) -> Result<T, CriError> {
        let over = [ProcessStatus::Created as i32, ProcessStatus::Stopped as i32];
        let tasks = self.pods.tasks.list(&self.pods.namespace).await;
        let tasks = tasks.into_iter().filter(|process| process.pid != 0 && !over.contains(&process.status));
        let pids: Pids = tasks.map(|process| (process.container_id, process.pid)).collect();
        let stats = self.clone();
        blocking(move || {
            stats.meter.keep_containers(|id| pids.contains_key(id));
            work(&stats, pids)
        })
        .await
    }

    fn running(&self, pids: &Pids) -> Result<Vec<Running>, CriError> {
        let all = self.pods.containers_of(None)?.into_iter();
        let running = all.filter(|(_, container)| container.state() == cri::ContainerState::ContainerRunning);
        Ok(running.filter_map(|(id, container)| Some(Running { pid: *pids.get(&id)?, id, container })).collect())
    }

    fn containers_that(
        &self,
        pids: &Pids,
        filter: &cri::ContainerStatsFilter,
    ) -> Result<Vec<cri::ContainerStats>, CriError> {
        let wanted = |one: &Running| {
            one.id.starts_with(&filter.id)
                && one.container.sandbox.starts_with(&filter.pod_sandbox_id)
                && matches(&one.container.config.labels, &filter.label_selector)
        };
        let (running, reader) = (self.running(pids)?, &mut Reader::new());
        Ok(running.iter().filter(|one| wanted(one)).map(|one| self.measure(reader, one).0).collect())
    }

    fn by_sandbox(&self, pids: &Pids) -> Result<HashMap<String, Vec<Running>>, CriError> {
        let mut inside: HashMap<String, Vec<Running>> = HashMap::new();
        for one in self.running(pids)? {
            inside.entry(one.container.sandbox.clone()).or_default().push(one);
        }
        Ok(inside)
    }

    fn ready(&self) -> Result<Vec<(String, Sandbox)>, CriError> {
        let mut all = self.pods.sandboxes()?;
        all.retain(|(_, sandbox)| sandbox.phase() == Phase::Ready);
        let ids: HashSet<&str> = all.iter().map(|(id, _)| id.as_str()).collect();
        self.meter.keep_pods(|id| ids.contains(id));
        Ok(all)
    }

    fn pods_that(
        &self,
        pids: &Pids,
        wanted: impl Fn(&str, &Sandbox) -> bool,
    ) -> Result<Vec<cri::PodSandboxStats>, CriError> {
        let (mut ready, mut inside) = (self.ready()?, self.by_sandbox(pids)?);
        let shared = shared_parents(&ready);
        ready.retain(|(id, sandbox)| wanted(id, sandbox));
        let networks = self.networks(&ready);
        let reader = &mut Reader::new();
        let stats = ready.into_iter().zip(networks).map(|((id, sandbox), interfaces)| {
            let containers = inside.remove(&id).unwrap_or_default();
            let (containers, mut used): (Vec<_>, Vec<_>) = containers
                .iter()
                .map(|one| self.measure(reader, one))
                .map(|(stats, cgroup, used)| (stats, (cgroup, used)))
                .unzip();
            // The process that a pod has whose containers share theirs: it is no container to the kubelet.
            if let Some(pid) = pids.get(&id) {
                let cgroup = self.meter.cgroup(&id, *pid);
                let usage = self.meter.usage(reader, cgroup.as_ref(), Detail::Stats);
                used.push((cgroup, usage));
            }
            let parent = Some(parent(&sandbox)).filter(|parent| !parent.is_empty() && !shared.contains(*parent));
            let cgroup = parent.and_then(|parent| self.meter.hierarchies.of_pod(parent, self.pods.driver));
            let usage = self.meter.pod(&id, reader, cgroup.as_ref(), &used);
            let config = sandbox.request.config.unwrap_or_default();
            cri::PodSandboxStats {
                attributes: Some(cri::PodSandboxAttributes {
                    id,
                    metadata: config.metadata,
                    labels: config.labels,
                    annotations: config.annotations,
                }),
                linux: Some(cri::LinuxPodSandboxStats {
                    cpu: usage.cpu,
                    memory: usage.memory,
                    network: interfaces.map(|interfaces| network::usage(&interfaces, now())),
                    process: usage.process,
                    containers,
                    io: usage.io,
                }),
                windows: None,
            }
        });
        Ok(stats.collect())
    }

    fn all_metrics(&self, pids: &Pids) -> Result<Vec<cri::PodSandboxMetrics>, CriError> {
        let (ready, mut inside) = (self.ready()?, self.by_sandbox(pids)?);
        let networks = self.networks(&ready);
        let filesystem = Filesystem::of(&self.layers);
        let reader = &mut Reader::new();
        let pods = ready.into_iter().zip(networks).map(|((id, sandbox), interfaces)| {
            let containers = inside.remove(&id).unwrap_or_default();
            let container_metrics = containers.iter().map(|one| cri::ContainerMetrics {
                container_id: one.id.clone(),
                metrics: self.metrics_of(reader, &sandbox, one, filesystem.as_ref()),
            });
            cri::PodSandboxMetrics {
                container_metrics: container_metrics.collect(),
                metrics: metrics::pod(&id, &sandbox, &interfaces.unwrap_or_default()),
                pod_sandbox_id: id,
            }
        });
        Ok(pods.collect())
    }

    fn networks(&self, pods: &[(String, Sandbox)]) -> Vec<Option<Vec<network::Interface>>> {
        let pins = pods.iter().map(|(id, sandbox)| self.pods.place(id).pinned(Kind::Net, &sandbox.namespaces()));
        network::read(&pins.collect::<Vec<_>>())
    }

    fn measure(&self, reader: &mut Reader, one: &Running) -> (cri::ContainerStats, Option<Cgroup>, Usage) {
        let cgroup = self.meter.cgroup(&one.id, one.pid);
        let usage = self.meter.usage(reader, cgroup.as_ref(), Detail::Stats);
        (self.meter.container(one, &usage, self.layer(&one.id), &self.layers), cgroup, usage)
    }

    fn layer(&self, id: &str) -> Option<Measured> {
        let snapshots = &self.pods.stores.snapshots;
        self.meter.layers.usage(id, || snapshots.get_or_default("")?.usage(NAMESPACE, id))
    }

    fn metrics_of(
        &self,
        reader: &mut Reader,
        sandbox: &Sandbox,
        one: &Running,
        filesystem: Option<&Filesystem>,
    ) -> Vec<cri::Metric> {
        let cgroup = self.meter.cgroup(&one.id, one.pid);
        let processes = cgroup.as_ref().and_then(|cgroup| cgroup.processes(reader));
        metrics::container(
            sandbox,
            &Facts {
                id: &one.id,
                container: &one.container,
                usage: &self.meter.usage(reader, cgroup.as_ref(), Detail::Metrics),
                open: processes.as_deref().and_then(processes::open_files),
                processes: processes.map(|all| all.len() as u64),
                open_limit: cgroup.and_then(|_| processes::open_files_limit(one.pid)),
                layer: self.layer(&one.id),
                filesystem,
                now: now(),
            },
        )
    }
}

fn parent(sandbox: &Sandbox) -> &str {
    sandbox.config().linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str())
}

/// What is the cgroup of several pods says nothing of one: a kubelet makes one for each, others may not.
fn shared_parents(pods: &[(String, Sandbox)]) -> HashSet<String> {
    let mut seen = HashSet::new();
    pods.iter().map(|(_, sandbox)| parent(sandbox)).filter(|parent| !seen.insert(*parent)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
