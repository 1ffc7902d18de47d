//! Where the calls of the kubelet meet plugins. Without any, each of these returns at once.

use std::sync::Arc;

use ::spec::cdi::Registry;
use proto::{
    kind::chain,
    nri::pkg::api::v1alpha1::{self as nri, Event},
    runtime::v1 as cri,
};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::{Gate, Nri, NriError, convert, resources::overrule};
use crate::cri::{
    NAMESPACE,
    cni::Attachment,
    error::CriError,
    place::Kind,
    pods::Pods,
    process::Written,
    record::{CONTAINERS, Container, Phase, Sandbox},
};

/// How long a container that a plugin evicts may take to end by itself.
const GRACE: i64 = 10;

/// What a plugin is told first.
pub(super) struct State {
    /// All pods that are ready.
    pub(super) pods: Vec<nri::PodSandbox>,
    /// Their containers that haven't ended.
    pub(super) containers: Vec<nri::Container>,
    /// Those that have.
    pub(super) ended: Vec<String>,
}

/// A container that plugins have been told of, and which is to be recorded while this is there.
pub(in crate::cri) struct Adjusted {
    _gate: Option<Gate>,
    unrecorded: Option<(Arc<Nri>, nri::PodSandbox, nri::Container)>,
}

impl Adjusted {
    /// It is recorded.
    pub(in crate::cri) fn recorded(mut self) {
        self.unrecorded = None;
    }
}

impl Drop for Adjusted {
    fn drop(&mut self) {
        let Some((nri, pod, container)) = self.unrecorded.take() else { return };
        tokio::spawn(async move { nri.forget(&pod, &container).await });
    }
}

impl Nri {
    /// Tells that a container that was announced won't be.
    async fn forget(&self, pod: &nri::PodSandbox, container: &nri::Container) {
        let mut told = self.turn.lock().await;
        let updates = self.end(&mut told, pod, container).await;
        if let Err(error) = self.tell(Event::RemoveContainer, pod, Some(container)).await {
            warn!(id = container.id, error = %chain(&error), "NRI plugins not told of a removal");
        }
        told.remove(&container.id);
        drop(told);
        self.changes(updates, Vec::new()).await;
    }

    /// Does what plugins want of other containers; fails for what they insist on.
    async fn settle(
        &self,
        updates: Vec<nri::ContainerUpdate>,
        evictions: Vec<nri::ContainerEviction>,
    ) -> Result<(), NriError> {
        let Some(pods) = self.pods() else { return Ok(()) };
        for update in updates {
            match pods.change_as_wished(&update).await {
                Err(error) if update.ignore_failure => {
                    warn!(id = update.container_id, error = %chain(&error), "container not changed as an NRI plugin wished");
                }
                Err(cause) => return Err(NriError::Update { id: update.container_id, cause: Box::new(cause) }),
                Ok(()) => {}
            }
        }
        for eviction in evictions {
            pods.evict(eviction);
        }
        Ok(())
    }
}

impl Pods {
    /// Plugins, if there are any.
    fn listeners(&self) -> Option<&Arc<Nri>> {
        self.nri.as_ref().filter(|nri| !nri.is_idle())
    }

    /// Lets go of plugins, when all calls are answered.
    pub(crate) async fn dismiss_plugins(&self) {
        if let Some(nri) = &self.nri {
            nri.dismiss().await;
        }
    }

    /// Keeps plugins from coming in between what is told and what is recorded.
    pub(in crate::cri) async fn hold_plugins(&self) -> Option<Gate> {
        match &self.nri {
            Some(nri) => Some(nri.gate.clone().read_owned().await),
            None => None,
        }
    }

    /// Tells of a pod, and fails if a plugin does.
    pub(in crate::cri) async fn announce_pod(&self, event: Event, id: &str, sandbox: &Sandbox) -> Result<(), CriError> {
        let Some(nri) = self.listeners() else { return Ok(()) };
        let _turn = nri.turn.lock().await;
        let told = nri.tell(event, &self.pod_message(id, sandbox), None).await;
        told.map_err(|cause| CriError::Nri { id: id.to_owned(), cause: Box::new(cause) })
    }

    /// Tells of a pod's end, and before that of the ends of its containers.
    pub(in crate::cri) async fn announce_pod_end(&self, event: Event, id: &str, sandbox: &Sandbox) {
        if self.listeners().is_none() {
            return;
        }
        for (container, _) in self.containers_of(Some(id)).unwrap_or_default() {
            self.announce_end(&container).await;
        }
        self.announce_pod_done(event, id, sandbox).await;
    }

    /// Tells of a pod what was done already.
    pub(in crate::cri) async fn announce_pod_done(&self, event: Event, id: &str, sandbox: &Sandbox) {
        if let Err(error) = self.announce_pod(event, id, sandbox).await {
            warn!(id, error = %chain(&error), "an NRI plugin disagrees with what was done");
        }
    }

    /// Asks plugins what they want of a new container, and writes it into its specification. On a thread where waiting is allowed.
    pub(in crate::cri) fn adjust(
        &self,
        id: &str,
        (sandbox_id, sandbox): (&str, &Sandbox),
        config: &cri::ContainerConfig,
        made: &mut Written,
    ) -> Result<Adjusted, CriError> {
        let adjusting = async {
            let gate = self.hold_plugins().await;
            let Some(nri) = self.listeners() else { return Ok(Adjusted { _gate: gate, unrecorded: None }) };
            let pod = self.pod_message(sandbox_id, sandbox);
            let describe = |spec: &Value| convert::unborn(id, sandbox_id, config, spec);
            // Whatever becomes of it: some of them may know of it from now on.
            let pristine = describe(&made.spec);
            let adjusted = Adjusted { _gate: gate, unrecorded: Some((nri.clone(), pod.clone(), pristine)) };
            let turn = nri.turn.lock().await;
            let wanted = nri.create(&pod, &mut made.spec, describe).await;
            drop(turn);
            let (wanted, evictions) = wanted?;
            let names: Vec<_> = wanted.adjust.cdi_devices.iter().map(|device| device.name.clone()).collect();
            if !names.is_empty() {
                let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
                let privileged = context.is_some_and(|context| context.privileged);
                let edits = Registry::read(&self.cdi).edits(&names);
                edits.and_then(|edits| edits.apply(&mut made.spec, privileged)).map_err(NriError::Devices)?;
            }
            nri.settle(wanted.updates, evictions).await?;
            Ok(adjusted)
        };
        // Without the feature there is nothing to wait for, and no lock.
        if self.nri.is_none() {
            return Ok(Adjusted { _gate: None, unrecorded: None });
        }
        Handle::current()
            .block_on(adjusting)
            .map_err(|cause| CriError::Nri { id: id.to_owned(), cause: Box::new(cause) })
    }

    /// Tells of a container that is on record, and fails if a plugin does.
    pub(in crate::cri) async fn announce(&self, event: Event, id: &str) -> Result<(), CriError> {
        let Some(nri) = self.listeners() else { return Ok(()) };
        let Some((pod, container)) = self.messages(id).await? else { return Ok(()) };
        let _turn = nri.turn.lock().await;
        let told = nri.tell(event, &pod, Some(&container)).await;
        told.map_err(|cause| CriError::Nri { id: id.to_owned(), cause: Box::new(cause) })
    }

    /// Tells of what was done already: whoever disagrees is too late.
    pub(in crate::cri) async fn announce_done(&self, event: Event, id: &str) {
        if let Err(error) = self.announce(event, id).await {
            warn!(id, error = %chain(&error), "an NRI plugin disagrees with what was done");
        }
    }

    /// Asks plugins for resources in place of those that a container is to have from now on.
    pub(in crate::cri) async fn wished_resources(
        &self,
        id: &str,
        limits: Map<String, Value>,
        wanted: cri::LinuxContainerResources,
    ) -> Result<(Map<String, Value>, cri::LinuxContainerResources), CriError> {
        let Some(nri) = self.listeners() else { return Ok((limits, wanted)) };
        let Some((pod, container)) = self.messages(id).await? else { return Ok((limits, wanted)) };
        let failed = |cause| CriError::Nri { id: id.to_owned(), cause: Box::new(cause) };
        let asked = convert::from_oci(&Value::from(limits.clone()));
        let mut resources = asked.clone();
        let turn = nri.turn.lock().await;
        let others = nri.update(&pod, &container, &mut resources).await;
        drop(turn);
        let (updates, evictions) = others.map_err(failed)?;
        nri.settle(updates, evictions).await.map_err(failed)?;
        if resources == asked {
            return Ok((limits, wanted));
        }
        overrule(&resources)
            .map_err(|what| CriError::Invalid(format!("container {id}: {what}, as an NRI plugin wants")))?;
        let said = cri::LinuxContainerResources { oom_score_adj: wanted.oom_score_adj, ..convert::to_cri(&resources) };
        Ok((convert::to_oci(&resources), said))
    }

    /// Tells of a container's end, if that hasn't been told.
    pub(in crate::cri) async fn announce_end(&self, id: &str) {
        let Some(nri) = self.listeners() else { return };
        let (pod, container) = match self.messages(id).await {
            Ok(Some(both)) => both,
            Ok(None) => return,
            Err(error) => return warn!(id, error = %chain(&error), "NRI plugins not told of an end"),
        };
        let mut told = nri.turn.lock().await;
        let updates = nri.end(&mut told, &pod, &container).await;
        drop(told);
        nri.changes(updates, Vec::new()).await;
    }

    /// Tells of a container's removal, and of its end if that hasn't been told. It is still on record.
    pub(in crate::cri) async fn announce_removal(&self, id: &str) {
        if self.listeners().is_none() {
            return;
        }
        self.announce_end(id).await;
        self.announce_done(Event::RemoveContainer, id).await;
        if let Some(nri) = &self.nri {
            nri.turn.lock().await.remove(id);
        }
    }

    /// What UpdatePodSandboxResources says is told before it is recorded.
    pub(in crate::cri) async fn announce_pod_resources(
        &self,
        id: &str,
        sandbox: &Sandbox,
        request: &cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), CriError> {
        let Some(nri) = self.listeners() else { return Ok(()) };
        let message = nri::UpdatePodSandboxRequest {
            pod: Some(self.pod_message(id, sandbox)),
            overhead_linux_resources: request.overhead.as_ref().map(convert::from_cri),
            linux_resources: request.resources.as_ref().map(convert::from_cri),
        };
        let _turn = nri.turn.lock().await;
        let told = nri.update_pod(&message).await;
        told.map_err(|cause| CriError::Nri { id: id.to_owned(), cause: Box::new(cause) })
    }

    /// Ends a container as a plugin wants.
    pub(super) fn evict(self: &Arc<Self>, eviction: nri::ContainerEviction) {
        let pods = self.clone();
        tokio::spawn(async move {
            let nri::ContainerEviction { container_id: id, reason } = eviction;
            info!(id, reason, "an NRI plugin evicts a container");
            if let Err(error) = pods.stop_container(&id, GRACE).await {
                warn!(id, error = %chain(&error), "container not evicted");
            }
        });
    }

    /// What a plugin is told first.
    pub(super) async fn state_of_node(&self) -> Result<State, CriError> {
        let mut state = State { pods: Vec::new(), containers: Vec::new(), ended: Vec::new() };
        let pids: std::collections::HashMap<_, _> =
            self.tasks.list(&self.namespace).await.into_iter().map(|task| (task.container_id, task.pid)).collect();
        let ready = self.sandboxes()?.into_iter().filter(|(_, sandbox)| sandbox.phase() == Phase::Ready);
        let mut known = std::collections::HashSet::new();
        for (id, sandbox) in ready {
            state.pods.push(self.pod_message(&id, &sandbox));
            known.insert(id);
        }
        for (id, container) in self.containers_of(None)? {
            if container.end.is_some() {
                state.ended.push(id);
            } else if known.contains(&container.sandbox) {
                let pid = pids.get(&id).copied().unwrap_or_default();
                state.containers.push(convert::container(&id, &container, &self.specification_of(&id), pid));
            }
        }
        Ok(state)
    }

    fn specification_of(&self, id: &str) -> Value {
        let record = self.containers.get(&self.namespace, id).ok().and_then(|record| record.spec);
        record.and_then(|spec| serde_json::from_slice(&spec.value).ok()).unwrap_or_default()
    }

    /// A container on record and its pod.
    async fn messages(&self, id: &str) -> Result<Option<(nri::PodSandbox, nri::Container)>, CriError> {
        let Some(container) = self.stores.db.read(|tx| CONTAINERS.get(tx, NAMESPACE, id))? else { return Ok(None) };
        let Some(sandbox) = self.sandbox(&container.sandbox)? else { return Ok(None) };
        let running = |container: &Container| container.state() == cri::ContainerState::ContainerRunning;
        let task = match running(&container) {
            true => self.tasks.get(&self.namespace, id, "").await.ok(),
            false => None,
        };
        let pid = task.map_or(0, |task| task.pid);
        let pod = self.pod_message(&container.sandbox, &sandbox);
        Ok(Some((pod, convert::container(id, &container, &self.specification_of(id), pid))))
    }

    fn pod_message(&self, id: &str, sandbox: &Sandbox) -> nri::PodSandbox {
        let (place, shared) = (self.place(id), sandbox.namespaces());
        let kinds = [(Kind::Net, "network"), (Kind::Ipc, "ipc"), (Kind::Uts, "uts"), (Kind::Pid, "pid")];
        let namespaces = kinds.into_iter().filter_map(|(kind, name)| {
            let path = place.pinned(kind, &shared)?.display().to_string();
            Some(nri::LinuxNamespace { r#type: name.to_owned(), path })
        });
        let network: Option<Attachment> = serde_json::from_str(&sandbox.attachment).ok();
        let ips = network.map(|network| network.addresses().iter().map(ToString::to_string).collect());
        convert::pod(id, sandbox, ips.unwrap_or_default(), namespaces.collect())
    }
}
