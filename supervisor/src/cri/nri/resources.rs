//! Resources of containers that are there already, as plugins wish and as the kubelet tells.

use std::sync::Arc;

use proto::{
    nri::pkg::api::v1alpha1::{self as nri, Event},
    runtime::v1 as cri,
    typeurl,
};
use serde_json::{Map, Value};
use tracing::info;

use super::{collect::merge_resources, convert};
use crate::{
    containers,
    cri::{
        NAMESPACE,
        error::CriError,
        pods::{Pods, blocking},
        process::{merge, overlay},
        record::Phase,
    },
    tasks::TaskError,
};

/// Refuses what can't be changed later, or not at all.
pub(super) fn overrule(wanted: &nri::LinuxResources) -> Result<(), String> {
    for (what, class) in [("block I/O", &wanted.blockio_class), ("RDT", &wanted.rdt_class)] {
        if let Some(class) = class {
            return Err(format!("class {:?} of {what}: a container that is there can't be given one", class.value));
        }
    }
    Ok(())
}

impl Pods {
    /// Changes a container that is there as a plugin wishes. It is not the sandbox's turn: see the module.
    pub(super) async fn change_as_wished(self: &Arc<Self>, update: &nri::ContainerUpdate) -> Result<(), CriError> {
        let id = update.container_id.clone();
        self.known(&id)?;
        let Some(wanted) = update.linux.as_ref().and_then(|linux| linux.resources.clone()) else { return Ok(()) };
        overrule(&wanted).map_err(|what| CriError::Invalid(format!("container {id}: {what}")))?;
        let record = self.containers.get(&self.namespace, &id)?;
        let spec: Value = record.spec.and_then(|spec| serde_json::from_slice(&spec.value).ok()).unwrap_or_default();
        // With what it has: a limit may take another along.
        let mut all = convert::from_oci(&spec["linux"]["resources"]);
        merge_resources(&mut all, &wanted);
        let mut limits = convert::to_oci(&wanted);
        if let (Some(memory), Some(swap)) = (limits.get_mut("memory"), all.memory.and_then(|memory| memory.swap)) {
            memory["swap"] = swap.value.into();
        }
        if self.known(&id)?.state() == cri::ContainerState::ContainerExited {
            return Ok(());
        }
        // The record first: a start that is under way reads it after this, or is seen here.
        let new = Value::from(limits.clone());
        self.change_limits(&id, move |old| merge(old, &new)).await?;
        if self.known(&id)?.state() == cri::ContainerState::ContainerRunning
            && let Err(error) = self.limit_now(&id, &limits).await
        {
            let old = spec["linux"]["resources"].clone();
            self.change_limits(&id, move |limits| *limits = old).await?;
            return Err(error);
        }
        self.change_container(&id, move |container| {
            let linux = container.config.linux.get_or_insert_default();
            overlay(linux.resources.get_or_insert_default(), convert::to_cri(&wanted));
        })
        .await
    }

    async fn change_limits(
        self: &Arc<Self>,
        id: &str,
        change: impl FnOnce(&mut Value) + Send + 'static,
    ) -> Result<(), CriError> {
        let (pods, id) = (self.clone(), id.to_owned());
        blocking(move || {
            pods.stores
                .db
                .write(|tx| containers::change_spec(tx, NAMESPACE, &id, |spec| change(&mut spec["linux"]["resources"])))
        })
        .await
    }

    async fn limit_now(&self, id: &str, limits: &Map<String, Value>) -> Result<(), CriError> {
        let packed = typeurl::pack_json(typeurl::RESOURCES, Value::from(limits.clone()).to_string().into_bytes());
        match self.tasks.update(&self.namespace, id, Some(packed), Default::default()).await {
            // It is about to be made, of the record; or it has ended.
            Ok(()) | Err(TaskError::NotFound(_)) => Ok(()),
            Err(error) => Err(CriError::task(id)(error)),
        }
    }

    /// Keeps what the kubelet says of a pod's resources, and tells plugins.
    ///
    /// The pod's cgroup is the kubelet's: it has written these limits there before it calls, and goes on if we fail. So nothing is set
    /// here, as in containerd; what is told is seen in `PodSandboxStatus` (verbose) and by plugins.
    pub(in crate::cri) async fn update_pod_resources(
        self: &Arc<Self>,
        request: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), CriError> {
        let id = self.sandbox_id(&request.pod_sandbox_id)?;
        self.detached(async move |pods| {
            let _turn = pods.turns.of(&id).await;
            let not_found = || CriError::NotFound { what: "sandbox", id: id.clone() };
            let sandbox = pods.sandbox(&id)?.ok_or_else(not_found)?;
            if sandbox.phase() != Phase::Ready {
                let why = "it isn't ready, so that it has no resources to be changed".into();
                return Err(CriError::State { what: "sandbox", id, why });
            }
            pods.announce_pod_resources(&id, &sandbox, &request).await?;
            pods.change(&id, move |sandbox| {
                let cri::UpdatePodSandboxResourcesRequest { overhead, resources, .. } = request;
                sandbox.overhead = overhead.or(sandbox.overhead.take());
                sandbox.resources = resources.or(sandbox.resources.take());
            })
            .await?;
            info!(id, "resources of a sandbox changed");
            if let Some(sandbox) = pods.sandbox(&id)? {
                pods.announce_pod_done(Event::PostUpdatePodSandbox, &id, &sandbox).await;
            }
            Ok(())
        })
        .await
    }
}
