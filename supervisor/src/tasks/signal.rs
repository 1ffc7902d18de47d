//! What goes straight to a process, past the queue: signals, terminal size, end of stdin, attachments.

use proto::{
    berth::streams::v1::{AttachRequest, ReopenLogRequest},
    containerd::task::v3::{CloseIoRequest, KillRequest, ResizePtyRequest},
    id::{ExecId, NamespaceName},
};

use super::{
    Tasks,
    connection::request,
    error::TaskError,
    rules::Request,
    task::{Task, lost_or},
};

impl Tasks {
    /// Sends a signal to a process, or to all of them.
    pub(crate) async fn kill(
        &self,
        namespace: &NamespaceName,
        id: &str,
        exec: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), TaskError> {
        let task = self.find(namespace, id).await?;
        check_exec(exec)?;
        if exec.is_empty() || task.connection()?.is_none() {
            task.accept(Request::Kill).await?;
        }
        proto::fault!("supervisor.kill.accepted");
        let message = KillRequest { id: task.id.to_string(), exec_id: exec.to_owned(), signal, all };
        task.call("Kill", message, |mut shim, request| async move { shim.kill(request).await }).await?;
        proto::fault!("supervisor.kill.shim_sent");
        tracing::debug!(%namespace, id = %task.id, exec, signal, all, "signal sent");
        Ok(())
    }

    /// Sets the size of a process's terminal.
    pub(crate) async fn resize(
        &self,
        namespace: &NamespaceName,
        id: &str,
        exec: &str,
        (width, height): (u32, u32),
    ) -> Result<(), TaskError> {
        let task = self.living(namespace, id, exec).await?;
        let message = ResizePtyRequest { id: task.id.to_string(), exec_id: exec.to_owned(), width, height };
        task.call("ResizePty", message, |mut shim, request| async move { shim.resize_pty(request).await }).await
    }

    /// Closes a process's stdin.
    pub(crate) async fn close_io(
        &self,
        namespace: &NamespaceName,
        id: &str,
        exec: &str,
        stdin: bool,
    ) -> Result<(), TaskError> {
        let task = self.living(namespace, id, exec).await?;
        let message = CloseIoRequest { id: task.id.to_string(), exec_id: exec.to_owned(), stdin };
        task.call("CloseIO", message, |mut shim, request| async move { shim.close_io(request).await }).await
    }

    /// Joins FIFOs to a process's stdio. A foreign shim answers UNIMPLEMENTED, which is passed on.
    pub(crate) async fn attach(&self, namespace: &NamespaceName, attach: AttachRequest) -> Result<(), TaskError> {
        let task = self.living(namespace, &attach.container_id, &attach.exec_id).await?;
        let gone = || TaskError::ShimGone { id: task.id.clone(), call: "Attach" };
        let connection = task.connection()?.ok_or_else(gone)?;
        let mut streams = connection.streams();
        match task.patiently("Attach", streams.attach(request(namespace, attach))).await? {
            Ok(_) => Ok(()),
            Err(status) => Err(lost_or(&connection, status).await.map_or_else(gone, TaskError::Answer)),
        }
    }

    /// Lets a process's log be begun anew. A foreign shim answers UNIMPLEMENTED, which is passed on.
    pub(crate) async fn reopen_log(
        &self,
        namespace: &NamespaceName,
        reopen: ReopenLogRequest,
    ) -> Result<(), TaskError> {
        let task = self.living(namespace, &reopen.container_id, &reopen.exec_id).await?;
        let gone = || TaskError::ShimGone { id: task.id.clone(), call: "ReopenLog" };
        let connection = task.connection()?.ok_or_else(gone)?;
        match connection.streams().reopen_log(request(namespace, reopen)).await {
            Ok(_) => Ok(()),
            Err(status) => Err(lost_or(&connection, status).await.map_or_else(gone, TaskError::Answer)),
        }
    }

    /// A task whose shim is there to be asked.
    async fn living(&self, namespace: &NamespaceName, id: &str, exec: &str) -> Result<std::sync::Arc<Task>, TaskError> {
        let task = self.find(namespace, id).await?;
        check_exec(exec)?;
        if task.connection()?.is_none() {
            task.accept(Request::Inspect).await?;
        }
        Ok(task)
    }
}

/// Whether an exec id is one, or empty.
pub(super) fn check_exec(exec: &str) -> Result<Option<ExecId>, TaskError> {
    if exec.is_empty() { Ok(None) } else { Ok(Some(ExecId::new(exec)?)) }
}
