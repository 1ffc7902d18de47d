//! Start, pause, resume, update: the changes between create and delete.

use std::collections::HashMap;

use prost_types::Any;
use proto::{
    containerd::task::v3::{PauseRequest, ResumeRequest, StartRequest, UpdateTaskRequest},
    id::{ExecId, NamespaceName},
};
use tracing::info;

use super::{
    Tasks,
    checkpoint::release_images,
    error::TaskError,
    rules::{Request, State},
};

impl Tasks {
    /// Lets a process run: the init process, or one that `exec` added. Answers its pid.
    pub(crate) async fn start(&self, namespace: &NamespaceName, id: &str, exec: &str) -> Result<u32, TaskError> {
        if !exec.is_empty() {
            return self.start_exec(namespace, id, ExecId::new(exec)?).await;
        }
        let task = self.find(namespace, id).await?;
        let restores = task.facts.borrow().origin.as_ref().is_some_and(|origin| origin.images.is_some());
        task.in_turn(async move |task| {
            task.accept(Request::Start).await?;
            proto::fault!("supervisor.start.accepted");
            let message = StartRequest { id: task.id.to_string(), exec_id: String::new() };
            let call = if restores { "Start from a checkpoint" } else { "Start" };
            let started =
                task.call(call, message, |mut shim, request| async move { shim.start(request).await }).await?;
            task.facts.send_modify(|facts| {
                facts.pid = started.pid;
                facts.set_state(State::Running);
            });
            proto::fault!("supervisor.start.shim_started");
            info!(namespace = %task.namespace, id = %task.id, pid = started.pid, "task started");
            if restores {
                release_images(&task);
            }
            Ok(started.pid)
        })
        .await
    }

    /// Freezes every process.
    pub(crate) async fn pause(&self, namespace: &NamespaceName, id: &str) -> Result<(), TaskError> {
        let task = self.find(namespace, id).await?;
        task.in_turn(async |task| {
            task.accept(Request::Pause).await?;
            let message = PauseRequest { id: task.id.to_string() };
            task.call("Pause", message, |mut shim, request| async move { shim.pause(request).await }).await?;
            proto::fault!("supervisor.pause.shim_paused");
            task.facts.send_modify(|facts| facts.set_state(State::Paused));
            info!(namespace = %task.namespace, id = %task.id, "task paused");
            Ok(())
        })
        .await
    }

    /// Thaws every process.
    pub(crate) async fn resume(&self, namespace: &NamespaceName, id: &str) -> Result<(), TaskError> {
        let task = self.find(namespace, id).await?;
        task.in_turn(async |task| {
            task.accept(Request::Resume).await?;
            let message = ResumeRequest { id: task.id.to_string() };
            task.call("Resume", message, |mut shim, request| async move { shim.resume(request).await }).await?;
            proto::fault!("supervisor.resume.shim_resumed");
            task.facts.send_modify(|facts| facts.set_state(State::Running));
            info!(namespace = %task.namespace, id = %task.id, "task resumed");
            Ok(())
        })
        .await
    }

    /// Changes the limits of a living container.
    pub(crate) async fn update(
        &self,
        namespace: &NamespaceName,
        id: &str,
        resources: Option<Any>,
        annotations: HashMap<String, String>,
    ) -> Result<(), TaskError> {
        let task = self.find(namespace, id).await?;
        task.in_turn(async move |task| {
            task.accept(Request::Update).await?;
            let message = UpdateTaskRequest { id: task.id.to_string(), resources, annotations };
            task.call("Update", message, |mut shim, request| async move { shim.update(request).await }).await?;
            info!(namespace = %task.namespace, id = %task.id, "task updated");
            Ok(())
        })
        .await
    }
}
