//! The gRPC edge: converts requests, asks the desk, converts answers.

use std::{convert::Infallible, pin::Pin};

use hyper::body::Incoming;
use proto::{
    berth::streams::v1::{
        AttachRequest, AttachResponse, ReopenLogRequest, ReopenLogResponse,
        streams_server::{SERVICE_NAME as STREAMS, Streams, StreamsServer},
    },
    containerd::task::v3::{
        CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
        ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
        StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
        task_server::{SERVICE_NAME as TASK, Task, TaskServer},
    },
};
use tokio::sync::{mpsc, oneshot};
use tonic::{
    Response, Status,
    body::Body,
    codegen::{Service as _, http},
};

use crate::{
    desk::Request,
    error::TaskError,
    process::Reply,
    task::{Call, key_of},
};

/// Both services; a handle on the desk.
#[derive(Clone)]
pub(crate) struct Desk(mpsc::UnboundedSender<Request>);

impl Desk {
    /// Passes requests on to the desk.
    pub(crate) fn new(desk: mpsc::UnboundedSender<Request>) -> Self {
        Self(desk)
    }

    async fn call<T>(&self, id: String, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Call(id.clone(), call(reply));
        self.0.send(request).map_err(|_| TaskError::Ending)?;
        // Dropped unanswered: there is no such container, or not any more.
        Ok(answer.await.map_err(|_| TaskError::NoContainer(id))??)
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn size(number: u32) -> Result<u16, TaskError> {
    u16::try_from(number).map_err(|_| TaskError::Invalid(format!("{number} is no size of a terminal")))
}

#[tonic::async_trait]
impl Task for Desk {
    async fn state(&self, request: tonic::Request<StateRequest>) -> Answer<StateResponse> {
        let StateRequest { id, exec_id } = request.into_inner();
        let key = key_of(&exec_id)?;
        Ok(Response::new(self.call(id, |reply| Call::State(key, reply)).await?))
    }

    async fn create(&self, request: tonic::Request<CreateTaskRequest>) -> Answer<CreateTaskResponse> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Create(Box::new(request.into_inner()), reply);
        self.0.send(request).map_err(|_| TaskError::Ending)?;
        let pid = answer.await.map_err(|_| TaskError::Ending)??;
        Ok(Response::new(CreateTaskResponse { pid }))
    }

    async fn start(&self, request: tonic::Request<StartRequest>) -> Answer<StartResponse> {
        let StartRequest { id, exec_id } = request.into_inner();
        let key = key_of(&exec_id)?;
        let pid = self.call(id, |reply| Call::Start(key, reply)).await?;
        Ok(Response::new(StartResponse { pid }))
    }

    async fn delete(&self, request: tonic::Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let DeleteRequest { id, exec_id } = request.into_inner();
        let key = key_of(&exec_id)?;
        Ok(Response::new(self.call(id, |reply| Call::Delete(key, reply)).await?))
    }

    async fn pids(&self, request: tonic::Request<PidsRequest>) -> Answer<PidsResponse> {
        Ok(Response::new(self.call(request.into_inner().id, Call::Pids).await?))
    }

    async fn pause(&self, request: tonic::Request<PauseRequest>) -> Answer<()> {
        Ok(Response::new(self.call(request.into_inner().id, Call::Pause).await?))
    }

    async fn resume(&self, request: tonic::Request<ResumeRequest>) -> Answer<()> {
        Ok(Response::new(self.call(request.into_inner().id, Call::Resume).await?))
    }

    async fn checkpoint(&self, request: tonic::Request<CheckpointTaskRequest>) -> Answer<()> {
        let request = request.into_inner();
        Ok(Response::new(self.call(request.id.clone(), |reply| Call::Checkpoint(request, reply)).await?))
    }

    async fn kill(&self, request: tonic::Request<KillRequest>) -> Answer<()> {
        let KillRequest { id, exec_id, signal, all } = request.into_inner();
        let key = key_of(&exec_id)?;
        Ok(Response::new(self.call(id, |reply| Call::Kill(key, signal, all, reply)).await?))
    }

    async fn exec(&self, request: tonic::Request<ExecProcessRequest>) -> Answer<()> {
        let request = request.into_inner();
        Ok(Response::new(self.call(request.id.clone(), |reply| Call::Exec(request, reply)).await?))
    }

    async fn resize_pty(&self, request: tonic::Request<ResizePtyRequest>) -> Answer<()> {
        let ResizePtyRequest { id, exec_id, width, height } = request.into_inner();
        let (key, width, height) = (key_of(&exec_id)?, size(width)?, size(height)?);
        Ok(Response::new(self.call(id, |reply| Call::Resize(key, width, height, reply)).await?))
    }

    async fn close_io(&self, request: tonic::Request<CloseIoRequest>) -> Answer<()> {
        let CloseIoRequest { id, exec_id, stdin } = request.into_inner();
        let key = key_of(&exec_id)?;
        // The message could mean other streams too, but stdin is the only one there is a flag for.
        if !stdin {
            return Ok(Response::new(()));
        }
        Ok(Response::new(self.call(id, |reply| Call::CloseIo(key, reply)).await?))
    }

    async fn update(&self, request: tonic::Request<UpdateTaskRequest>) -> Answer<()> {
        let UpdateTaskRequest { id, resources, .. } = request.into_inner();
        let resources = resources.map(|any| any.value).filter(|json| !json.is_empty());
        let resources =
            resources.ok_or_else(|| TaskError::Invalid(format!("update of container {id} says nothing")))?;
        Ok(Response::new(self.call(id, |reply| Call::Update(resources, reply)).await?))
    }

    async fn wait(&self, request: tonic::Request<WaitRequest>) -> Answer<WaitResponse> {
        let WaitRequest { id, exec_id } = request.into_inner();
        let key = key_of(&exec_id)?;
        Ok(Response::new(self.call(id, |reply| Call::Wait(key, reply)).await?))
    }

    async fn stats(&self, request: tonic::Request<StatsRequest>) -> Answer<StatsResponse> {
        let stats = self.call(request.into_inner().id, Call::Stats).await?;
        Ok(Response::new(StatsResponse { stats: Some(stats) }))
    }

    async fn connect(&self, request: tonic::Request<ConnectRequest>) -> Answer<ConnectResponse> {
        // containerd asks this of shims that have no container yet.
        let task_pid = match self.call(request.into_inner().id, Call::InitPid).await {
            Err(status) if status.code() == tonic::Code::NotFound => 0,
            other => other?,
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(ConnectResponse { shim_pid: std::process::id(), task_pid, version }))
    }

    async fn shutdown(&self, request: tonic::Request<ShutdownRequest>) -> Answer<()> {
        let (reply, answer) = oneshot::channel();
        if self.0.send(Request::Shutdown(request.into_inner().now, reply)).is_ok() {
            // Either way it is no failure: a shim that still has containers ignores it.
            let _ = answer.await;
        }
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl Streams for Desk {
    async fn attach(&self, request: tonic::Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        self.call(request.container_id.clone(), |reply| Call::Attach(request, reply)).await?;
        Ok(Response::new(AttachResponse {}))
    }

    async fn reopen_log(&self, request: tonic::Request<ReopenLogRequest>) -> Answer<ReopenLogResponse> {
        let ReopenLogRequest { container_id, exec_id } = request.into_inner();
        let key = key_of(&exec_id)?;
        self.call(container_id, |reply| Call::ReopenLog(key, reply)).await?;
        Ok(Response::new(ReopenLogResponse {}))
    }
}

type ServiceFuture = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl hyper::service::Service<http::Request<Incoming>> for Desk {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = ServiceFuture;

    fn call(&self, request: http::Request<Incoming>) -> ServiceFuture {
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
        match service {
            TASK => TaskServer::new(self.clone()).call(request),
            STREAMS => StreamsServer::new(self.clone()).call(request),
            other => {
                let status = Status::unimplemented(format!("service {other:?} is not served by berth-shim"));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
