//! Exec: a further process in a container, in two steps like the container itself.

use proto::{
    containerd::{
        services::tasks::v1::ExecProcessRequest,
        task::v3::{self, StartRequest},
    },
    id::{ExecId, NamespaceName},
};
use tracing::info;

use super::{Tasks, error::TaskError, rules::Request, task::ExecFacts};

impl Tasks {
    /// Adds a process; it waits for start.
    pub(crate) async fn exec(&self, namespace: &NamespaceName, request: ExecProcessRequest) -> Result<(), TaskError> {
        let task = self.find(namespace, &request.container_id).await?;
        let exec = ExecId::new(request.exec_id)?;
        proto::fault!("supervisor.exec.found");
        let message = v3::ExecProcessRequest {
            id: task.id.to_string(),
            exec_id: exec.to_string(),
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            spec: request.spec,
        };
        task.clone()
            .detached(async move {
                task.accept(Request::Exec).await?;
                task.call("Exec", message, |mut shim, request| async move { shim.exec(request).await }).await?;
                proto::fault!("supervisor.exec.shim_added");
                task.facts.send_modify(|facts| {
                    facts.execs.insert(exec, ExecFacts::default());
                });
                Ok(())
            })
            .await
    }

    /// Lets an added process run.
    pub(super) async fn start_exec(&self, namespace: &NamespaceName, id: &str, exec: ExecId) -> Result<u32, TaskError> {
        let task = self.find(namespace, id).await?;
        task.clone()
            .detached(async move {
                task.accept(Request::Exec).await?;
                proto::fault!("supervisor.exec.start_accepted");
                let message = StartRequest { id: task.id.to_string(), exec_id: exec.to_string() };
                let started =
                    task.call("Start", message, |mut shim, request| async move { shim.start(request).await }).await?;
                proto::fault!("supervisor.exec.shim_started");
                info!(namespace = %task.namespace, id = %task.id, %exec, pid = started.pid, "process started");
                task.facts.send_modify(|facts| facts.execs.entry(exec).or_default().pid = started.pid);
                Ok(started.pid)
            })
            .await
    }
}
