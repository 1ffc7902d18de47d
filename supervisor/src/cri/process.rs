//! What is done with, and in, a container that is on record: its specification, resources, further processes.

use std::sync::Arc;

use proto::{runtime::v1 as cri, typeurl};

use super::{
    error::CriError,
    images::Image,
    place::Kind,
    pods::Pods,
    record::{Container, Phase, Sandbox},
    spec::{self, Made},
    streaming::Target,
};

impl Pods {
    /// Writes the specification of a container.
    pub(super) fn specification(
        &self,
        id: &str,
        (sandbox_id, sandbox): (&str, &Sandbox),
        config: &cri::ContainerConfig,
        image: &Image,
    ) -> Result<Made, CriError> {
        todo!()
    }

    /// Changes the limits of a container, now if it runs, else for its start.
    pub(super) async fn update_resources(
        self: &Arc<Self>,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Result<(), CriError> {
        todo!()
    }

    /// Runs a command in a container and answers what it has written.
    pub(super) async fn exec_sync(&self, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, CriError> {
        let target = self.target(&request.container_id)?;
        Ok(self.streaming.exec_sync(target, request).await?)
    }

    /// Where a client may run a command in a container.
    pub(super) fn exec_url(&self, request: cri::ExecRequest) -> Result<String, CriError> {
        Ok(self.streaming.exec_url(self.target(&request.container_id)?, request)?)
    }

    /// Where a client may join a container's first process.
    pub(super) fn attach_url(&self, request: cri::AttachRequest) -> Result<String, CriError> {
        Ok(self.streaming.attach_url(self.target(&request.container_id)?, request)?)
    }

    /// Where a client may reach ports of a pod.
    pub(super) fn port_forward_url(&self, request: cri::PortForwardRequest) -> Result<String, CriError> {
        let id = self.sandbox_id(&request.pod_sandbox_id)?;
        let sandbox = self.sandbox(&id)?.unwrap_or_default();
        if sandbox.phase() != Phase::Ready {
            return Err(CriError::State { what: "sandbox", id, why: "it isn't ready, so that nobody listens in it".into() });
        }
        Ok(self.streaming.port_forward_url(self.place(&id).pinned(Kind::Net, &sandbox.namespaces()), request)?)
    }

    fn target(&self, id: &str) -> Result<Target, CriError> {
        let id = self.container_id(id)?;
        let Container { config, .. } = self.running(&id)?;
        let record = self.containers.get(&self.namespace, &id)?;
        let spec: serde_json::Value =
            record.spec.and_then(|spec| serde_json::from_slice(&spec.value).ok()).unwrap_or_default();
        let process = spec["process"].clone();
        Ok(Target { id, process, tty: config.tty, stdin: config.stdin, stdin_once: config.stdin_once })
    }

    fn running(&self, id: &str) -> Result<Container, CriError> {
        let container = self.known(id)?;
        match container.state() {
            cri::ContainerState::ContainerRunning => Ok(container),
            other => {
                let why = format!("it is {}, not running", other.as_str_name());
                Err(CriError::State { what: "container", id: id.to_owned(), why })
            }
        }
    }
}
