//! Sandboxes: run, stop, remove, and what is said of them.

use std::{collections::HashMap, sync::Arc};

use proto::{kind::chain, nri::pkg::api::v1alpha1::Event, runtime::v1 as cri};
use tracing::{info, warn};

use super::{
    NAMESPACE,
    cni::{Attachment, Pod},
    containers::matches,
    error::CriError,
    place::{self, Kind},
    pods::{Pods, blocking, new_id, now},
    record::{NODE, Phase, SANDBOXES, Sandbox, drop_name, pod_name, take_name},
    spec,
};
use crate::namespaces::touch_in;

/// The key of the node's range of addresses.
const POD_CIDR: &str = "pod-cidr";

impl Pods {
    /// Makes a sandbox, or finds the one that was made of the same request; answers its id.
    pub(super) async fn run_sandbox(self: &Arc<Self>, request: cri::RunPodSandboxRequest) -> Result<String, CriError> {
        self.check(&request)?;
        if (Sandbox { request: request.clone(), ..Default::default() }).ids().is_some() {
            let handler = &request.runtime_handler;
            let had = self.node.user_namespaces(handler).await;
            had.map_err(|why| CriError::NoUserNamespaces { handler: handler.clone(), why })?;
        }
        // Also the record: one that nobody goes on with would stay as it is until our next start.
        self.detached(async move |pods| pods.run_checked(request).await).await
    }

    async fn run_checked(self: &Arc<Self>, request: cri::RunPodSandboxRequest) -> Result<String, CriError> {
        let meta = request.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
        let name = pod_name(&meta);
        loop {
            let id = new_id()?;
            let turn = self.turns.of(&id).await;
            let sandbox = Sandbox {
                phase: Phase::Making.into(),
                created_at: now(),
                request: request.clone(),
                ..Default::default()
            };
            let (pods, key, own) = (self.clone(), name.clone(), id.clone());
            let taken = blocking(move || {
                pods.stores.db.write(|tx| {
                    touch_in(tx, NAMESPACE)?;
                    if let Err(other) = take_name(tx, &key, &own)? {
                        return Ok(Some(other));
                    }
                    SANDBOXES.put(tx, NAMESPACE, &own, &sandbox)?;
                    Ok::<_, CriError>(None)
                })
            });
            let Some(other) = taken.await? else {
                proto::fault!("supervisor.sandbox.recorded");
                return self.make_sandbox(&id).await.map(|()| id);
            };
            drop(turn);
            // Whoever makes it, or takes it away, is waited for: a kubelet whose patience has ended asks again.
            let _turn = self.turns.of(&other).await;
            let Some(there) = self.sandbox(&other)? else { continue };
            if there.phase() == Phase::Ready && there.request == request {
                return Ok(other);
            }
            let name = format!("{}/{} (attempt {})", meta.namespace, meta.name, meta.attempt);
            return Err(CriError::NameTaken { what: "sandbox", name, other });
        }
    }

    fn check(&self, request: &cri::RunPodSandboxRequest) -> Result<(), CriError> {
        let config = request.config.as_ref().ok_or(CriError::Missing("sandbox config"))?;
        let meta = config.metadata.as_ref().ok_or(CriError::Missing("sandbox metadata"))?;
        for (what, value) in
            [("sandbox name", &meta.name), ("sandbox namespace", &meta.namespace), ("sandbox uid", &meta.uid)]
        {
            if value.is_empty() {
                return Err(CriError::Missing(what));
            }
        }
        if config.windows.is_some() {
            return Err(CriError::Invalid("this is no Windows node".into()));
        }
        self.node.check_handler(&request.runtime_handler)?;
        place::check(config)?;
        spec::check_sandbox(config, self.driver, &self.host)
            .map_err(|cause| CriError::Spec { id: meta.name.clone(), cause })
    }

    async fn make_sandbox(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Err(error) = self.build_sandbox(id).await else { return Ok(()) };
        warn!(id, error = %chain(&error), "sandbox not made");
        // What can't be undone now stays recorded, and is undone when the kubelet stops and removes it, or by our next start.
        if let Err(left) = self.undo_sandbox(id).await {
            warn!(id, error = %chain(&left), "half a sandbox stays until it is removed");
        }
        Err(error)
    }

    async fn build_sandbox(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Some(sandbox) = self.sandbox(id)? else { return Err(CriError::Panic) };
        let namespaces = sandbox.namespaces();
        let (place, config) = (self.place(id), sandbox.config().clone());
        let shared = namespaces.clone();
        blocking(move || place.make(&config, &shared)).await?;
        let mut attachment = String::new();
        if let Some(pod) = self.network(id, &sandbox) {
            let made = self
                .cni
                .add(&pod)
                .await
                .map_err(|cause| CriError::Network { id: id.to_owned(), cause: Box::new(cause) })?;
            proto::fault!("supervisor.sandbox.network_added");
            attachment = serde_json::to_string(&made).map_err(|_| CriError::Panic)?;
        }
        if self.has_process(&sandbox) {
            let made = attachment.clone();
            self.change(id, move |sandbox| sandbox.attachment = made).await?;
            self.run_pause(id, &sandbox).await?;
        }
        let _held = self.hold_plugins().await;
        let told = Sandbox { attachment: attachment.clone(), ..sandbox };
        self.announce_pod(Event::RunPodSandbox, id, &told).await?;
        self.change(id, move |sandbox| {
            sandbox.attachment.clone_from(&attachment);
            sandbox.set_phase(Phase::Ready);
        })
        .await?;
        proto::fault!("supervisor.sandbox.ready");
        info!(id, "sandbox ready");
        Ok(())
    }

    /// What CNI is asked for; `None` on the node's network.
    fn network(&self, id: &str, sandbox: &Sandbox) -> Option<Pod> {
        let netns = self.place(id).pinned(Kind::Net, &sandbox.namespaces())?;
        let mut pod = Pod::new(id, netns, sandbox.config());
        if let Some(ranges) = self.pod_cidr().unwrap_or_default() {
            pod.ip_ranges = ranges.split(',').map(str::to_owned).collect();
        }
        Some(pod)
    }

    /// What the kubelet has said of its node's range of addresses.
    fn pod_cidr(&self) -> Result<Option<String>, CriError> {
        Ok(self.stores.db.read(|tx| NODE.get(tx, NAMESPACE, POD_CIDR))?)
    }

    /// Keeps what the kubelet says of its node.
    pub(super) fn update_config(&self, config: Option<cri::RuntimeConfig>) -> Result<(), CriError> {
        let network = config.and_then(|config| config.network_config).unwrap_or_default();
        if network.pod_cidr.is_empty() {
            return Ok(());
        }
        self.stores.db.write(|tx| {
            touch_in(tx, NAMESPACE)?;
            Ok(NODE.put(tx, NAMESPACE, POD_CIDR, &network.pod_cidr)?)
        })
    }

    /// Changes a sandbox's record.
    pub(super) async fn change(
        self: &Arc<Self>,
        id: &str,
        change: impl FnOnce(&mut Sandbox) + Send + 'static,
    ) -> Result<(), CriError> {
        let (pods, id) = (self.clone(), id.to_owned());
        blocking(move || {
            pods.stores.db.write(|tx| {
                if let Some(mut sandbox) = SANDBOXES.get(tx, NAMESPACE, &id)? {
                    change(&mut sandbox);
                    SANDBOXES.put(tx, NAMESPACE, &id, &sandbox)?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Takes away what was begun. The caller has the turn.
    pub(super) async fn undo_sandbox(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        self.stop_in_turn(id).await?;
        self.remove_in_turn(id).await
    }

    /// Ends all that runs in a sandbox and gives its network back.
    pub(super) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let id = match self.sandbox_id(id) {
            Err(CriError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        self.detached(async move |pods| {
            let _turn = pods.turns.of(&id).await;
            pods.stop_in_turn(&id).await
        })
        .await
    }

    pub(super) async fn stop_in_turn(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Some(sandbox) = self.sandbox(id)? else { return Ok(()) };
        match sandbox.phase() {
            Phase::NotReady => return Ok(()),
            Phase::Making | Phase::Ready => self.change(id, |sandbox| sandbox.set_phase(Phase::Stopping)).await?,
            Phase::Stopping => {}
        }
        proto::fault!("supervisor.sandbox.stopping");
        let containers = self.containers_of(Some(id))?;
        let kills = containers.iter().map(|(container, _)| self.kill_and_wait(container));
        for killed in futures_util::future::join_all(kills).await {
            killed?;
        }
        self.remove_pause(id).await?;
        proto::fault!("supervisor.sandbox.containers_stopped");
        self.announce_pod_end(Event::StopPodSandbox, id, &sandbox).await;
        if let Some(pod) = self.network(id, &sandbox) {
            let attachment: Option<Attachment> = serde_json::from_str(&sandbox.attachment).ok();
            let gone = self.cni.del(&pod, attachment.as_ref()).await;
            gone.map_err(|cause| CriError::Network { id: id.to_owned(), cause: Box::new(cause) })?;
        }
        proto::fault!("supervisor.sandbox.network_deleted");
        let place = self.place(id);
        blocking(move || place.take_down()).await?;
        proto::fault!("supervisor.sandbox.taken_down");
        self.change(id, |sandbox| sandbox.set_phase(Phase::NotReady)).await?;
        info!(id, "sandbox stopped");
        Ok(())
    }

    /// Removes a sandbox with its containers.
    pub(super) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let id = match self.sandbox_id(id) {
            Err(CriError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        self.detached(async move |pods| {
            let _turn = pods.turns.of(&id).await;
            pods.stop_in_turn(&id).await?;
            pods.remove_in_turn(&id).await
        })
        .await
    }

    pub(super) async fn remove_in_turn(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Some(sandbox) = self.sandbox(id)? else { return Ok(()) };
        proto::fault!("supervisor.sandbox.removing");
        for (container, _) in self.containers_of(Some(id))? {
            self.remove_container_in_turn(&container).await?;
        }
        proto::fault!("supervisor.sandbox.containers_removed");
        self.announce_pod_end(Event::RemovePodSandbox, id, &sandbox).await;
        let (pods, own) = (self.clone(), id.to_owned());
        blocking(move || {
            pods.place(&own).remove()?;
            proto::fault!("supervisor.sandbox.folder_removed");
            pods.stores.db.write(|tx| {
                SANDBOXES.remove(tx, NAMESPACE, &own)?;
                Ok(drop_name(tx, &sandbox.name(), &own)?)
            })
        })
        .await?;
        info!(id, "sandbox removed");
        Ok(())
    }

    /// What is said of a sandbox and its containers.
    pub(super) fn sandbox_status(&self, id: &str, verbose: bool) -> Result<cri::PodSandboxStatusResponse, CriError> {
        let id = self.sandbox_id(id)?;
        let not_found = || CriError::NotFound { what: "sandbox", id: id.clone() };
        let sandbox = self.sandbox(&id)?.ok_or_else(not_found)?;
        let mut info = HashMap::new();
        if verbose {
            let place = self.place(&id);
            let namespaces = sandbox.namespaces();
            let made: Option<Attachment> = serde_json::from_str(&sandbox.attachment).ok();
            let network = made.map(
                |made| serde_json::json!({ "name": made.network(), "addresses": made.addresses(), "mac": made.mac() }),
            );
            let text = serde_json::json!({
                "phase": sandbox.phase().word(),
                "runtimeHandler": sandbox.request.runtime_handler,
                "netns": place.pinned(Kind::Net, &namespaces),
                "network": network,
                "overhead": sandbox.resources().0.map(limits),
                "resources": sandbox.resources().1.map(limits),
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(cri::PodSandboxStatusResponse {
            status: Some(status(&id, &sandbox)),
            info,
            containers_statuses: self.statuses_of(&id)?,
            timestamp: now(),
        })
    }

    /// The sandboxes that pass a filter.
    pub(super) fn list_sandboxes(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, CriError> {
        let filter = filter.unwrap_or_default();
        let all = self.stores.db.read(|tx| SANDBOXES.list(tx, NAMESPACE, &filter.id))?;
        let wanted = |sandbox: &Sandbox| {
            filter.state.as_ref().is_none_or(|state| state.state == sandbox.state() as i32)
                && matches(&sandbox.config().labels, &filter.label_selector)
        };
        Ok(all.into_iter().filter(|(_, sandbox)| wanted(sandbox)).map(|(id, sandbox)| listed(id, sandbox)).collect())
    }
}

/// Resources for people to read.
fn limits(all: &cri::LinuxContainerResources) -> serde_json::Value {
    serde_json::json!({
        "cpuPeriod": all.cpu_period,
        "cpuQuota": all.cpu_quota,
        "cpuShares": all.cpu_shares,
        "cpusetCpus": all.cpuset_cpus,
        "cpusetMems": all.cpuset_mems,
        "memoryLimitInBytes": all.memory_limit_in_bytes,
        "memorySwapLimitInBytes": all.memory_swap_limit_in_bytes,
        "unified": all.unified,
    })
}

fn listed(id: String, sandbox: Sandbox) -> cri::PodSandbox {
    let state = sandbox.state().into();
    let config = sandbox.request.config.unwrap_or_default();
    cri::PodSandbox {
        id,
        metadata: config.metadata,
        state,
        created_at: sandbox.created_at,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: sandbox.request.runtime_handler,
    }
}

/// What is said of a sandbox.
pub(super) fn status(id: &str, sandbox: &Sandbox) -> cri::PodSandboxStatus {
    let config = sandbox.config();
    let attachment: Option<Attachment> = serde_json::from_str(&sandbox.attachment).ok();
    let ready = sandbox.phase() == Phase::Ready;
    let mut addresses =
        attachment.filter(|_| ready).map(|made| made.addresses().to_vec()).unwrap_or_default().into_iter();
    let first = addresses.next().map(|ip| ip.to_string()).unwrap_or_default();
    cri::PodSandboxStatus {
        id: id.to_owned(),
        metadata: config.metadata.clone(),
        state: sandbox.state().into(),
        created_at: sandbox.created_at,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: first,
            additional_ips: addresses.map(|ip| cri::PodIp { ip: ip.to_string() }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(sandbox.namespaces()) }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: sandbox.request.runtime_handler.clone(),
    }
}
