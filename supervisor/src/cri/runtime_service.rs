//! `runtime.v1.RuntimeService`. What isn't built says so.

use std::{path::PathBuf, pin::Pin, sync::Arc};

use futures_util::StreamExt;
use proto::runtime::v1::{self as cri, runtime_service_server};
use tokio_stream::{Stream, wrappers::BroadcastStream};
use tonic::{Request, Response, Status, async_trait};

use super::{Node, error::CriError, pods::Pods, stats::Stats};
use crate::{
    api::MESSAGE_LIMIT,
    failure::{blocking, status},
};

/// Version of what clients of CRI compare: that of the kubelet's side of the interface, which never changed.
const KUBELET_API: &str = "0.1.0";
/// Ours.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Items in one message of a stream.
const PER_MESSAGE: usize = 64;
/// Bytes of them: more is only in a message that has one item, and that is no larger than the request which made it.
const BYTES_PER_MESSAGE: usize = MESSAGE_LIMIT / 4;

/// The service over this node and its pods.
pub(crate) struct RuntimeService {
    node: Arc<Node>,
    pods: Arc<Pods>,
    stats: Arc<Stats>,
}

impl RuntimeService {
    /// The service over `pods` and their node; `layers` is the folder whose file system containers fill.
    pub(crate) fn new(pods: Arc<Pods>, layers: PathBuf) -> Self {
        Self { node: pods.node.clone(), stats: Stats::new(pods.clone(), layers), pods }
    }

    /// What it serves.
    pub(crate) fn pods(&self) -> Arc<Pods> {
        self.pods.clone()
    }

    /// Reads records on a thread where waiting is allowed.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pods) -> Result<T, CriError> + Send + 'static,
    ) -> Result<T, Status> {
        let pods = self.pods.clone();
        blocking(move || work(&pods).map_err(status)).await
    }
}

fn unbuilt(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not supported by berth-supervisor {VERSION}"))
}

/// A stream of messages.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a list has, in several messages.
fn lots<T: prost::Message, M: Send + 'static>(all: Vec<T>, pack: impl Fn(Vec<T>) -> M) -> Answers<M> {
    let (mut lots, mut lot, mut bytes) = (Vec::new(), Vec::new(), 0);
    for item in all {
        let size = item.encoded_len();
        if lot.len() == PER_MESSAGE || (!lot.is_empty() && bytes + size > BYTES_PER_MESSAGE) {
            lots.push(Ok(pack(std::mem::take(&mut lot))));
            bytes = 0;
        }
        bytes += size;
        lot.push(item);
    }
    if !lot.is_empty() {
        lots.push(Ok(pack(lot)));
    }
    Box::pin(tokio_stream::iter(lots))
}

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
        let network = self.pods.cni.ready().await;
        Ok(Response::new(self.node.status(request.into_inner().verbose, network).await))
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: self.node.cgroup_driver().into() };
        Ok(Response::new(cri::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        let pod_sandbox_id = self.pods.run_sandbox(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        self.pods.stop_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        self.pods.remove_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        let cri::PodSandboxStatusRequest { pod_sandbox_id, verbose } = request.into_inner();
        self.look(move |pods| pods.sandbox_status(&pod_sandbox_id, verbose)).await.map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        let items = self.look(move |pods| pods.list_sandboxes(request.into_inner().filter)).await?;
        Ok(Response::new(cri::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Answers<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let all = self.look(move |pods| pods.list_sandboxes(request.into_inner().filter)).await?;
        Ok(Response::new(lots(all, |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        let container_id = self.pods.create_container(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        self.pods.start_container(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        let cri::StopContainerRequest { container_id, timeout } = request.into_inner();
        self.pods.stop_container(&container_id, timeout).await.map_err(status)?;
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        self.pods.remove_container(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        let containers = self.look(move |pods| pods.list_containers(request.into_inner().filter)).await?;
        Ok(Response::new(cri::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Answers<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let all = self.look(move |pods| pods.list_containers(request.into_inner().filter)).await?;
        Ok(Response::new(lots(all, |containers| cri::StreamContainersResponse { containers })))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        let cri::ContainerStatusRequest { container_id, verbose } = request.into_inner();
        self.look(move |pods| pods.container_status(&container_id, verbose)).await.map(Response::new)
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        self.pods.update_resources(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        self.pods.reopen_log(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(cri::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        self.pods.exec_sync(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Result<Response<cri::ExecResponse>, Status> {
        let url = self.pods.exec_url(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Result<Response<cri::AttachResponse>, Status> {
        let url = self.pods.attach_url(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        let url = self.pods.port_forward_url(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::PortForwardResponse { url }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<cri::UpdateRuntimeConfigResponse>, Status> {
        self.look(move |pods| pods.update_config(request.into_inner().runtime_config)).await?;
        Ok(Response::new(cri::UpdateRuntimeConfigResponse {}))
    }

    type GetContainerEventsStream = Answers<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let behind = |_| Status::resource_exhausted("events were told faster than they were read, and some are lost");
        let events = BroadcastStream::new(self.pods.told.subscribe());
        let events = events.map(move |event| event.map(|event| (*event).clone()).map_err(behind));
        let end = self.pods.draining.clone().begun();
        Ok(Response::new(Box::pin(events.take_until(end))))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        let stats = self.stats.container(request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(cri::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        let stats = self.stats.containers(request.into_inner().filter).await.map_err(status)?;
        Ok(Response::new(cri::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Answers<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let all = self.stats.containers(request.into_inner().filter).await.map_err(status)?;
        Ok(Response::new(lots(all, |container_stats| cri::StreamContainerStatsResponse { container_stats })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        let stats = self.stats.pod(request.into_inner().pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(cri::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        let stats = self.stats.pods(request.into_inner().filter).await.map_err(status)?;
        Ok(Response::new(cri::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Answers<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let all = self.stats.pods(request.into_inner().filter).await.map_err(status)?;
        Ok(Response::new(lots(all, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats })))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        let descriptors = self.stats.descriptors().await.map_err(status)?;
        Ok(Response::new(cri::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        let pod_metrics = self.stats.metrics().await.map_err(status)?;
        Ok(Response::new(cri::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Answers<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let all = self.stats.metrics().await.map_err(status)?;
        Ok(Response::new(lots(all, |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics })))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        self.pods.update_pod_resources(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::UpdatePodSandboxResourcesResponse {}))
    }

    async fn checkpoint_container(
        &self,
        request: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        self.pods.checkpoint(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(cri::CheckpointContainerResponse {}))
    }

    unbuilt! {
        checkpoint_pod("CheckpointPod"): cri::CheckpointPodRequest => cri::CheckpointPodResponse;
        restore_pod("RestorePod"): cri::RestorePodRequest => cri::RestorePodResponse;
    }
}
