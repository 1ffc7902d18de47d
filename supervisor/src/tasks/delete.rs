//! Delete: of a task, with its shim and its bundle, or of one further process.

use std::{sync::Arc, time::Duration};

use prost_types::Timestamp;
use proto::{
    containerd::{
        events::TaskDelete,
        services::tasks::v1::DeleteResponse,
        task::v3::{ConnectRequest, DeleteRequest, KillRequest, ShutdownRequest, WaitRequest},
    },
    id::{ContainerId, ExecId, NamespaceName},
};
use tokio::sync::OwnedMutexGuard;
use tracing::{info, warn};

use super::{
    Tasks,
    bundle::Exit,
    connection::{Connection, request},
    error::TaskError,
    rules::Request,
    task::{Phase, Task},
};

/// How long a shim may take to leave once it is told to.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

impl Tasks {
    /// Deletes an ended (or never started) task, and answers how it ended. One that is still being made is waited for: whoever
    /// asked for it may have died, and nobody else would ever find it.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        namespace: &NamespaceName,
        id: &str,
    ) -> Result<DeleteResponse, TaskError> {
        if let Some(task) = self.known(namespace, &ContainerId::new(id)?) {
            task.reaches(|phase| phase != Phase::Making).await;
        }
        let task = self.find(namespace, id).await?;
        let tasks = self.clone();
        task.clone().detached(async move { tasks.delete_in_turn(task).await }).await
    }

    async fn delete_in_turn(self: Arc<Self>, task: Arc<Task>) -> Result<DeleteResponse, TaskError> {
        let turn = task.turn().await;
        if let Some(connection) = task.connection()? {
            task.accept(Request::Delete).await?;
            proto::fault!("supervisor.delete.accepted");
            let message = DeleteRequest { id: task.id.to_string(), exec_id: String::new() };
            let deleted = task.call("Delete", message, |mut shim, request| async move { shim.delete(request).await });
            match deleted.await {
                Ok(deleted) => {
                    let answer = DeleteResponse {
                        id: task.id.to_string(),
                        pid: deleted.pid,
                        exit_status: deleted.exit_status,
                        exited_at: deleted.exited_at,
                    };
                    proto::fault!("supervisor.delete.shim_deleted");
                    // The shim may be gone before the bundle is; our successor must not mourn it as one that died.
                    if let Err(error) = task.bundle.set_deleted() {
                        warn!(namespace = %task.namespace, id = %task.id, error = %proto::kind::chain(&error), "end not noted");
                    }
                    proto::fault!("supervisor.delete.noted");
                    task.set_phase(Phase::Ending);
                    info!(namespace = %task.namespace, id = %task.id, exit_status = answer.exit_status, "task deleted");
                    // The container is gone; that its shim leaves is no concern of the caller's.
                    tokio::spawn(self.dismiss_in_turn(task, connection, turn));
                    return Ok(answer);
                }
                Err(TaskError::ShimGone { .. }) => self.bury(&task).await,
                Err(error) => return Err(error),
            }
        }
        self.delete_orphan(&task)
    }

    async fn dismiss_in_turn(self: Arc<Self>, task: Arc<Task>, connection: Connection, turn: OwnedMutexGuard<()>) {
        dismiss(&task, &connection, false).await;
        // A pod's shim that lives on for others tells it itself, and keeps its socket.
        if connection.is_lost() {
            self.tell_undelivered(&task);
            task.bundle.remove_dead_socket(true).await;
        }
        proto::fault!("supervisor.delete.shim_dismissed");
        // Only now: were we killed before, the next supervisor would find the bundle and with it the shim.
        self.clear_or_later(&task);
        proto::fault!("supervisor.delete.bundle_removed");
        self.forget(&task);
        drop(turn);
    }

    /// Deletes a task whose shim is gone: its exit is all that is left of it.
    fn delete_orphan(&self, task: &Task) -> Result<DeleteResponse, TaskError> {
        task.bundle
            .unmount()
            .and_then(|()| task.bundle.remove())
            .map_err(|cause| TaskError::Bundle { id: task.id.clone(), cause })?;
        proto::fault!("supervisor.delete.orphan_removed");
        let Exit { pid, status, at } = known_exit(task);
        let id = task.id.to_string();
        let event =
            TaskDelete { container_id: id.clone(), pid, exit_status: status, exited_at: Some(at), id: String::new() };
        self.forget(task);
        info!(namespace = %task.namespace, %id, exit_status = status, "task deleted, its shim was gone");
        let mut told = false;
        task.facts.send_modify(|facts| told = std::mem::replace(&mut facts.told_life.1, true));
        if !told {
            self.events.publish(&task.namespace, "/tasks/delete", &event);
        }
        Ok(DeleteResponse { id, pid, exit_status: status, exited_at: Some(at) })
    }

    /// Deletes an ended process that `exec` had added.
    pub(crate) async fn delete_process(
        &self,
        namespace: &NamespaceName,
        id: &str,
        exec: &str,
    ) -> Result<DeleteResponse, TaskError> {
        let task = self.find(namespace, id).await?;
        let exec = ExecId::new(exec)?;
        task.clone().detached(async move { delete_exec(&task, exec).await }).await
    }
}

async fn delete_exec(task: &Task, exec: ExecId) -> Result<DeleteResponse, TaskError> {
    let message = DeleteRequest { id: task.id.to_string(), exec_id: exec.to_string() };
    let deleted = match task.connection()? {
        Some(_) => {
            Some(task.call("Delete", message, |mut shim, request| async move { shim.delete(request).await }).await?)
        }
        None => None,
    };
    proto::fault!("supervisor.delete.exec_deleted");
    let forgotten = {
        let mut forgotten = None;
        task.facts.send_modify(|facts| forgotten = facts.execs.remove(&exec));
        forgotten.and_then(|facts| facts.exit).or_else(|| task.bundle.exec_exit(&exec))
    };
    let (pid, exit_status, exited_at) = match (deleted, forgotten) {
        (Some(deleted), _) => (deleted.pid, deleted.exit_status, deleted.exited_at),
        (None, Some(exit)) => (exit.pid, exit.status, Some(exit.at)),
        (None, None) => return Err(TaskError::ProcessNotFound { id: task.id.clone(), exec }),
    };
    Ok(DeleteResponse { id: exec.to_string(), pid, exit_status, exited_at })
}

/// The end of a task that has ended; a task that never started has none, and gets the code of what was killed.
pub(super) fn known_exit(task: &Task) -> Exit {
    let facts = task.facts.borrow();
    let now = || Timestamp::from(std::time::SystemTime::now());
    facts.exit.clone().unwrap_or_else(|| Exit { pid: facts.pid, status: super::bury::KILLED, at: now() })
}

/// Tells a shim to end, and waits until it has. `now` asks for it even with a container left.
///
/// A shim of a pod stays as long as it has others: only the task itself is taken out of it.
pub(super) async fn dismiss(task: &Task, connection: &Connection, now: bool) {
    let shared = is_in_a_pod(task);
    let id = || task.id.to_string();
    let told = async {
        if now && shared {
            let mut shim = connection.tasks();
            let kill = KillRequest { id: id(), signal: 9, all: true, ..KillRequest::default() };
            let _ = shim.kill(request(&task.namespace, kill)).await;
            let _ = shim.wait(request(&task.namespace, WaitRequest { id: id(), ..WaitRequest::default() })).await;
            // It may not have come into being, or be gone; what else there is, the shim's program cleans up.
            let _ = shim.delete(request(&task.namespace, DeleteRequest { id: id(), ..DeleteRequest::default() })).await;
        }
        // A shim may be gone before its answer is out; only one that stays is of interest, below.
        let message = ShutdownRequest { id: id(), now: now && !shared };
        if let Err(status) = connection.tasks().shutdown(request(&task.namespace, message)).await {
            tracing::debug!(id = %task.id, %status, "shutdown of the shim");
        }
        if shared {
            let mut shim = connection.tasks();
            let lives = shim.connect(request(&task.namespace, ConnectRequest { id: id() }));
            tokio::select! {
                answer = lives => if answer.is_ok() { return },
                () = connection.lost() => {}
            }
        }
        connection.lost().await;
    };
    if tokio::time::timeout(LEAVE_LIMIT, told).await.is_err() {
        warn!(namespace = %task.namespace, id = %task.id, seconds = LEAVE_LIMIT.as_secs(), "shim does not end");
    }
}

/// Whether its shim may have other tasks: shims go by these annotations.
fn is_in_a_pod(task: &Task) -> bool {
    let spec = std::fs::read_to_string(task.bundle.path().join("config.json")).unwrap_or_default();
    ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"].iter().any(|label| spec.contains(label))
}
