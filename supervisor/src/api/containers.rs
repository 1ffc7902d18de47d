//! Container records at the edge.

use std::{pin::Pin, sync::Arc};

use proto::containerd::services::containers::v1::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest, GetContainerResponse,
    ListContainerMessage, ListContainersRequest, ListContainersResponse, UpdateContainerRequest,
    UpdateContainerResponse, containers_server,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::required;
use crate::{
    containers::{ContainerError, Containers},
    failure::{blocking, namespace, status},
    gc::Collector,
};

/// `containerd.services.containers.v1.Containers`.
pub(crate) struct ContainersService {
    containers: Arc<Containers>,
    gc: Arc<Collector>,
}

impl ContainersService {
    /// The edge of `containers`; `gc` is told of what no container keeps any more.
    pub(crate) fn new(containers: Arc<Containers>, gc: Arc<Collector>) -> Self {
        Self { containers, gc }
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Containers) -> Result<T, ContainerError> + Send + 'static,
    ) -> Result<T, Status> {
        let containers = self.containers.clone();
        blocking(move || work(&containers).map_err(status)).await
    }
}

#[tonic::async_trait]
impl containers_server::Containers for ContainersService {
    async fn get(&self, request: Request<GetContainerRequest>) -> Result<Response<GetContainerResponse>, Status> {
        let namespace = namespace(&request)?;
        let container = self.with(move |all| all.get(&namespace, &request.get_ref().id)).await?;
        Ok(Response::new(GetContainerResponse { container: Some(container) }))
    }

    async fn list(&self, request: Request<ListContainersRequest>) -> Result<Response<ListContainersResponse>, Status> {
        let namespace = namespace(&request)?;
        let containers = self.with(move |all| all.list(&namespace, &request.get_ref().filters)).await?;
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type ListStreamStream = Pin<Box<dyn Stream<Item = Result<ListContainerMessage, Status>> + Send>>;

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let namespace = namespace(&request)?;
        let containers = self.with(move |all| all.list(&namespace, &request.get_ref().filters)).await?;
        let messages = containers.into_iter().map(|one| Ok(ListContainerMessage { container: Some(one) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn create(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let namespace = namespace(&request)?;
        let new = required(request.into_inner().container, "container")?;
        let container = self.with(move |all| all.create(&namespace, new)).await?;
        self.gc.changed();
        Ok(Response::new(CreateContainerResponse { container: Some(container) }))
    }

    async fn update(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        let namespace = namespace(&request)?;
        let UpdateContainerRequest { container, update_mask } = request.into_inner();
        let new = required(container, "container")?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let container = self.with(move |all| all.update(&namespace, new, &paths)).await?;
        Ok(Response::new(UpdateContainerResponse { container: Some(container) }))
    }

    async fn delete(&self, request: Request<DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        self.with(move |all| all.delete(&namespace, &request.get_ref().id)).await?;
        self.gc.schedule();
        Ok(Response::new(()))
    }
}
