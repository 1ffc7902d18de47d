//! `runtime.v1.RuntimeService`. What isn't built says so.

use std::{pin::Pin, sync::Arc};

use proto::runtime::v1::{self as cri, runtime_service_server};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::Node;

/// Version of what clients of CRI compare: that of the kubelet's side of the interface, which never changed.
const KUBELET_API: &str = "0.1.0";
/// Ours.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The service over this node.
pub(crate) struct RuntimeService(Arc<Node>);

impl RuntimeService {
    /// The service over `node`.
    pub(crate) fn new(node: Node) -> Self {
        Self(Arc::new(node))
    }
}

fn unbuilt(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not supported by berth-supervisor {VERSION}: it serves CRI's images only"))
}

/// A stream that never begins, since the call is answered with an error.
type Never<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Calls that aren't built, with the signature that `async_trait` gives them.
macro_rules! unbuilt {
    ($($call:ident($name:literal): $request:ty => $response:ty;)*) => {
        $(fn $call<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(unbuilt($name)) })
        })*
    };
}

#[async_trait]
impl runtime_service_server::RuntimeService for RuntimeService {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Result<Response<cri::VersionResponse>, Status> {
        Ok(Response::new(cri::VersionResponse {
            version: KUBELET_API.into(),
            runtime_name: "berth".into(),
            runtime_version: VERSION.into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Result<Response<cri::StatusResponse>, Status> {
        Ok(Response::new(self.0.status(request.into_inner().verbose).await))
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: self.0.cgroup_driver().into() };
        Ok(Response::new(cri::RuntimeConfigResponse { linux: Some(linux) }))
    }

    type StreamPodSandboxesStream = Never<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = Never<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = Never<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Never<cri::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Never<cri::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Never<cri::ContainerEventResponse>;

    unbuilt! {
        run_pod_sandbox("RunPodSandbox"): cri::RunPodSandboxRequest => cri::RunPodSandboxResponse;
        stop_pod_sandbox("StopPodSandbox"): cri::StopPodSandboxRequest => cri::StopPodSandboxResponse;
        remove_pod_sandbox("RemovePodSandbox"): cri::RemovePodSandboxRequest => cri::RemovePodSandboxResponse;
        pod_sandbox_status("PodSandboxStatus"): cri::PodSandboxStatusRequest => cri::PodSandboxStatusResponse;
        list_pod_sandbox("ListPodSandbox"): cri::ListPodSandboxRequest => cri::ListPodSandboxResponse;
        stream_pod_sandboxes("StreamPodSandboxes"): cri::StreamPodSandboxesRequest => Self::StreamPodSandboxesStream;
        create_container("CreateContainer"): cri::CreateContainerRequest => cri::CreateContainerResponse;
        start_container("StartContainer"): cri::StartContainerRequest => cri::StartContainerResponse;
        stop_container("StopContainer"): cri::StopContainerRequest => cri::StopContainerResponse;
        remove_container("RemoveContainer"): cri::RemoveContainerRequest => cri::RemoveContainerResponse;
        list_containers("ListContainers"): cri::ListContainersRequest => cri::ListContainersResponse;
        stream_containers("StreamContainers"): cri::StreamContainersRequest => Self::StreamContainersStream;
        container_status("ContainerStatus"): cri::ContainerStatusRequest => cri::ContainerStatusResponse;
        update_container_resources("UpdateContainerResources"):
            cri::UpdateContainerResourcesRequest => cri::UpdateContainerResourcesResponse;
        reopen_container_log("ReopenContainerLog"): cri::ReopenContainerLogRequest => cri::ReopenContainerLogResponse;
        exec_sync("ExecSync"): cri::ExecSyncRequest => cri::ExecSyncResponse;
        exec("Exec"): cri::ExecRequest => cri::ExecResponse;
        attach("Attach"): cri::AttachRequest => cri::AttachResponse;
        port_forward("PortForward"): cri::PortForwardRequest => cri::PortForwardResponse;
        container_stats("ContainerStats"): cri::ContainerStatsRequest => cri::ContainerStatsResponse;
        list_container_stats("ListContainerStats"): cri::ListContainerStatsRequest => cri::ListContainerStatsResponse;
        stream_container_stats("StreamContainerStats"):
            cri::StreamContainerStatsRequest => Self::StreamContainerStatsStream;
        pod_sandbox_stats("PodSandboxStats"): cri::PodSandboxStatsRequest => cri::PodSandboxStatsResponse;
        list_pod_sandbox_stats("ListPodSandboxStats"):
            cri::ListPodSandboxStatsRequest => cri::ListPodSandboxStatsResponse;
        stream_pod_sandbox_stats("StreamPodSandboxStats"):
            cri::StreamPodSandboxStatsRequest => Self::StreamPodSandboxStatsStream;
        update_runtime_config("UpdateRuntimeConfig"):
            cri::UpdateRuntimeConfigRequest => cri::UpdateRuntimeConfigResponse;
        checkpoint_container("CheckpointContainer"):
            cri::CheckpointContainerRequest => cri::CheckpointContainerResponse;
        get_container_events("GetContainerEvents"): cri::GetEventsRequest => Self::GetContainerEventsStream;
        list_metric_descriptors("ListMetricDescriptors"):
            cri::ListMetricDescriptorsRequest => cri::ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics("ListPodSandboxMetrics"):
            cri::ListPodSandboxMetricsRequest => cri::ListPodSandboxMetricsResponse;
        stream_pod_sandbox_metrics("StreamPodSandboxMetrics"):
            cri::StreamPodSandboxMetricsRequest => Self::StreamPodSandboxMetricsStream;
        update_pod_sandbox_resources("UpdatePodSandboxResources"):
            cri::UpdatePodSandboxResourcesRequest => cri::UpdatePodSandboxResourcesResponse;
    }
}
