//! Tasks at the edge.

use std::sync::Arc;

use proto::{
    containerd::services::tasks::v1::{
        CheckpointTaskRequest, CheckpointTaskResponse, CloseIoRequest, CreateTaskRequest, CreateTaskResponse,
        DeleteProcessRequest, DeleteResponse, DeleteTaskRequest, ExecProcessRequest, GetRequest, GetResponse,
        KillRequest, ListPidsRequest, ListPidsResponse, ListTasksRequest, ListTasksResponse, MetricsRequest,
        MetricsResponse, PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse,
        UpdateTaskRequest, WaitRequest, WaitResponse, tasks_server,
    },
    oom,
};
use tonic::{Request, Response, Status, metadata::MetadataValue};

use super::filters;
use crate::{
    failure::{lease, namespace, status},
    tasks::Tasks,
};

/// `containerd.services.tasks.v1.Tasks`.
pub(crate) struct TasksService {
    tasks: Arc<Tasks>,
}

impl TasksService {
    /// The edge of `tasks`.
    pub(crate) fn new(tasks: Arc<Tasks>) -> Self {
        Self { tasks }
    }
}

#[tonic::async_trait]
impl tasks_server::Tasks for TasksService {
    async fn create(&self, request: Request<CreateTaskRequest>) -> Result<Response<CreateTaskResponse>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let container_id = request.container_id.clone();
        let pid = self.tasks.create(namespace, request).await.map_err(status)?;
        Ok(Response::new(CreateTaskResponse { container_id, pid }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        let namespace = namespace(&request)?;
        let StartRequest { container_id, exec_id } = request.into_inner();
        let pid = self.tasks.start(&namespace, &container_id, &exec_id).await.map_err(status)?;
        Ok(Response::new(StartResponse { pid }))
    }

    async fn delete(&self, request: Request<DeleteTaskRequest>) -> Result<Response<DeleteResponse>, Status> {
        let namespace = namespace(&request)?;
        let deleted = self.tasks.delete(&namespace, &request.get_ref().container_id).await.map_err(status)?;
        Ok(Response::new(deleted))
    }

    async fn delete_process(&self, request: Request<DeleteProcessRequest>) -> Result<Response<DeleteResponse>, Status> {
        let namespace = namespace(&request)?;
        let DeleteProcessRequest { container_id, exec_id } = request.into_inner();
        let deleted = self.tasks.delete_process(&namespace, &container_id, &exec_id).await.map_err(status)?;
        Ok(Response::new(deleted))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let namespace = namespace(&request)?;
        let GetRequest { container_id, exec_id } = request.into_inner();
        let process = self.tasks.get(&namespace, &container_id, &exec_id).await.map_err(status)?;
        Ok(Response::new(GetResponse { process: Some(process) }))
    }

    async fn list(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let namespace = namespace(&request)?;
        // containerd takes a filter here and ignores it; we mean what we accept.
        let filter = request.into_inner().filter;
        let filters = filters(if filter.is_empty() { &[] } else { std::slice::from_ref(&filter) })?;
        let mut tasks = self.tasks.list(&namespace).await;
        tasks.retain(|task| filters.accept(|path| (path == ["id"]).then(|| task.id.clone())));
        let oom = oom::encode(tasks.iter().map(|task| self.tasks.saw_oom(&namespace, &task.id)));
        let mut answer = Response::new(ListTasksResponse { tasks });
        if let Some(oom) = oom {
            answer.metadata_mut().insert_bin(oom::HEADER, MetadataValue::from_bytes(&oom));
        }
        Ok(answer)
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let KillRequest { container_id, exec_id, signal, all } = request.into_inner();
        self.tasks.kill(&namespace, &container_id, &exec_id, signal, all).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<ExecProcessRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        self.tasks.exec(&namespace, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<ResizePtyRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let ResizePtyRequest { container_id, exec_id, width, height } = request.into_inner();
        self.tasks.resize(&namespace, &container_id, &exec_id, (width, height)).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<CloseIoRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let CloseIoRequest { container_id, exec_id, stdin } = request.into_inner();
        self.tasks.close_io(&namespace, &container_id, &exec_id, stdin).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<PauseTaskRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        self.tasks.pause(&namespace, &request.get_ref().container_id).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<ResumeTaskRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        self.tasks.resume(&namespace, &request.get_ref().container_id).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn list_pids(&self, request: Request<ListPidsRequest>) -> Result<Response<ListPidsResponse>, Status> {
        let namespace = namespace(&request)?;
        let processes = self.tasks.pids(&namespace, &request.get_ref().container_id).await.map_err(status)?;
        Ok(Response::new(ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointTaskRequest>,
    ) -> Result<Response<CheckpointTaskResponse>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request));
        let CheckpointTaskRequest { container_id, parent_checkpoint, options } = request.into_inner();
        if !parent_checkpoint.is_empty() {
            return Err(Status::unimplemented(format!(
                "task {container_id}: a checkpoint on top of another ({parent_checkpoint}) is not supported; make a whole one"
            )));
        }
        let descriptors = self.tasks.checkpoint(&namespace, &container_id, options, lease).await.map_err(status)?;
        Ok(Response::new(CheckpointTaskResponse { descriptors }))
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let namespace = namespace(&request)?;
        let UpdateTaskRequest { container_id, resources, annotations } = request.into_inner();
        self.tasks.update(&namespace, &container_id, resources, annotations).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn metrics(&self, request: Request<MetricsRequest>) -> Result<Response<MetricsResponse>, Status> {
        let namespace = namespace(&request)?;
        let metrics = self.tasks.metrics(&namespace, &request.get_ref().filters).await.map_err(status)?;
        Ok(Response::new(MetricsResponse { metrics }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let namespace = namespace(&request)?;
        let WaitRequest { container_id, exec_id } = request.into_inner();
        let exit = self.tasks.wait(&namespace, &container_id, &exec_id).await.map_err(status)?;
        Ok(Response::new(WaitResponse { exit_status: exit.status, exited_at: Some(exit.at) }))
    }
}
