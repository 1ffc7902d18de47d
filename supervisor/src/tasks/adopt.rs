//! Our start: the tasks of an earlier supervisor are found by their bundles and taken over from their shims. All at once,
//! each with deadlines: a shim that hangs delays nobody else.

use std::{sync::Arc, time::Duration};

use proto::kind::chain;
use tracing::{info, warn};

use super::{
    Tasks,
    bundle::{Origin, scan},
    connection::Connection,
    error::TaskError,
    rules::State,
    shims::Bootstrap,
    task::{Phase, Task},
};

/// How long a shim's socket may take to be connected; it is there already, or nobody is.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What a bundle says about how far its task has come.
enum Trace {
    /// No shim was started yet.
    Unstarted,
    /// A shim may have been started, but nobody knows where it listens.
    Starting(Origin),
    /// The shim has deleted it, and may have left.
    Deleted(Option<Bootstrap>),
    /// There is, or was, a shim.
    Shim(Origin, Bootstrap),
    /// The shim died and was buried; the exit is recorded.
    Buried(Origin),
}

impl Tasks {
    /// Takes over every task there is a bundle of. They are known when this returns, and answer once their shim has.
    pub(crate) fn adopt(self: &Arc<Self>) -> Result<(), TaskError> {
        let found = scan(&self.folder).map_err(|cause| TaskError::Scan { at: self.folder.clone(), cause })?;
        if !found.is_empty() {
            info!(tasks = found.len(), "adopting tasks");
        }
        proto::fault!("supervisor.adopt.scanned");
        for (namespace, id) in found {
            let task = Task::new(&self.folder, namespace.clone(), id.clone(), Phase::Adopting);
            self.lock().insert((namespace, id), task.clone());
            // Taken before anybody else can ask for it.
            let turn = task.first_turn();
            let tasks = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                tasks.adopt_one(&task).await;
            });
        }
        Ok(())
    }

    async fn adopt_one(self: &Arc<Self>, task: &Arc<Task>) {
        let trace = trace(task);
        if task.bundle.saw_oom() {
            task.facts.send_modify(|facts| facts.oom = true);
        }
        if let Trace::Starting(origin) | Trace::Shim(origin, _) | Trace::Buried(origin) = &trace {
            task.facts.send_modify(|facts| facts.origin = Some(origin.clone()));
        }
        match trace {
            // `undo` looks for a shim that may be there.
            Trace::Unstarted | Trace::Starting(_) => self.abandon(task).await,
            Trace::Deleted(bootstrap) => {
                if let Some(bootstrap) = bootstrap
                    && let Ok(Ok(connection)) = tokio::time::timeout(CONNECT_LIMIT, Connection::open(&bootstrap)).await
                {
                    super::delete::dismiss(task, &connection, true).await;
                }
                task.bundle.remove_dead_socket(false).await;
                self.clear_or_later(task);
                self.forget(task);
            }
            Trace::Buried(_) => {
                let exit = task.bundle.exit();
                task.facts.send_modify(|facts| {
                    facts.pid = exit.as_ref().map_or(0, |exit| exit.pid);
                    facts.told = true;
                    facts.exit = exit;
                    facts.state = State::Stopped;
                    facts.phase = Phase::Orphan;
                });
            }
            Trace::Shim(origin, bootstrap) => {
                // Before it may have to wait for somebody who reads what it says.
                task.hear_shim(&origin);
                match tokio::time::timeout(CONNECT_LIMIT, Connection::open(&bootstrap)).await {
                    Ok(Ok(connection)) => self.take_over(task, connection).await,
                    Ok(Err(error)) => {
                        info!(namespace = %task.namespace, id = %task.id, error = %chain(&error), "shim not reached");
                        self.bury(task).await;
                    }
                    Err(_) => {
                        warn!(namespace = %task.namespace, id = %task.id, "shim does not take connections");
                        self.bury(task).await;
                    }
                }
            }
        }
    }

    /// Takes a task over from a shim that takes our connection. The caller holds the turn.
    pub(super) async fn take_over(self: &Arc<Self>, task: &Arc<Task>, connection: Connection) {
        task.facts.send_modify(|facts| facts.connection = Some(connection.clone()));
        proto::fault!("supervisor.adopt.connected");
        match task.ask_state(&connection, None).await {
            Ok(state) => {
                task.facts.send_modify(|facts| {
                    facts.oom |= task.bundle.saw_oom();
                    super::task::note_state(facts, &state);
                    facts.phase = Phase::Live;
                });
                proto::fault!("supervisor.adopt.state_noted");
                info!(namespace = %task.namespace, id = %task.id, pid = state.pid, state = ?state.status(), "task adopted");
                self.watch(task, connection);
            }
            Err(TaskError::Answer(status)) if status.code() == tonic::Code::NotFound => {
                // Killed between the start of the shim and the creation of the container, or between the deletions of both.
                self.abandon(task).await;
            }
            Err(TaskError::ShimGone { .. }) => self.bury(task).await,
            Err(error) => {
                // It lives but says nothing. Its container may be well: we keep both, and ask again when we are asked.
                warn!(namespace = %task.namespace, id = %task.id, error = %chain(&error), "task adopted without its state");
                task.facts.send_modify(|facts| {
                    facts.pid = task.bundle.recorded_pid().unwrap_or(0);
                    facts.set_state(State::Running);
                    facts.phase = Phase::Live;
                });
                self.watch(task, connection);
            }
        }
    }

    async fn abandon(self: &Arc<Self>, task: &Task) {
        info!(namespace = %task.namespace, id = %task.id, "unfinished task undone");
        proto::fault!("supervisor.adopt.undo_begun");
        self.undo(task).await;
        proto::fault!("supervisor.adopt.undone");
        self.forget(task);
    }
}

fn trace(task: &Task) -> Trace {
    let bundle = &task.bundle;
    if bundle.is_deleted() {
        return Trace::Deleted(bundle.bootstrap());
    }
    match (bundle.origin(), bundle.bootstrap(), bundle.exit()) {
        (None, _, _) => Trace::Unstarted,
        (Some(origin), Some(bootstrap), _) => Trace::Shim(origin, bootstrap),
        (Some(origin), None, Some(_)) => Trace::Buried(origin),
        (Some(origin), None, None) => Trace::Starting(origin),
    }
}
