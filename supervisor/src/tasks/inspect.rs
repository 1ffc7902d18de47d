//! Looking at tasks: state, list, processes, resource use. None of it waits for a task's turn, and a list never waits for
//! a shim: one that hangs must not hide the others.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::join_all;
use proto::{
    containerd::{
        task::v3::{PidsRequest, StatsRequest},
        types::Metric,
        v1::types::{Process, ProcessInfo, Status as ProcessStatus},
    },
    id::{ContainerId, ExecId, NamespaceName},
};
use tracing::{debug, warn};

use super::{
    Tasks,
    error::TaskError,
    rules::Request,
    signal::check_exec,
    task::{Phase, STATE_LIMIT, Task},
};
use crate::filters::Filters;

/// How long a list waits for shims that are being taken over.
const ADOPTION_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);

impl Tasks {
    /// A process as it is now.
    pub(crate) async fn get(&self, namespace: &NamespaceName, id: &str, exec: &str) -> Result<Process, TaskError> {
        let task = self.find(namespace, id).await?;
        match check_exec(exec)? {
            Some(exec) => get_exec(&task, exec).await,
            None => {
                // Only a shim that lives can know better than we do.
                let ended = task.facts.borrow().exit.is_some();
                if !ended && let Err(error) = task.refresh(None).await {
                    match error {
                        TaskError::ShimSilent { .. } | TaskError::ShimGone { .. } => {
                            warn!(%namespace, id = %task.id, %error, "state answered from memory");
                        }
                        error => return Err(error),
                    }
                }
                Ok(task.process())
            }
        }
    }

    /// The init process of every task, from memory.
    pub(crate) async fn list(&self, namespace: &NamespaceName) -> Vec<Process> {
        let tasks = self.all(namespace);
        // Only our start makes a list wait, and not longer than this for a shim that hangs.
        let adopted = join_all(tasks.iter().map(|task| task.reaches(|phase| phase != Phase::Adopting)));
        let _ = tokio::time::timeout(ADOPTION_LIMIT, adopted).await;
        let there = tasks.iter().filter_map(|task| match task.phase() {
            Phase::Live | Phase::Orphan => Some(task.process()),
            // Its shim may know more; we know that it is there.
            Phase::Adopting => Some(Process {
                pid: task.bundle.recorded_pid().unwrap_or(0),
                status: ProcessStatus::Unknown.into(),
                ..task.process()
            }),
            Phase::Making | Phase::Ending | Phase::Ended => None,
        });
        there.collect()
    }

    /// Whether the kernel has killed something in a container because memory ran out, in this life of it.
    pub(crate) fn saw_oom(&self, namespace: &NamespaceName, id: &str) -> bool {
        let id = ContainerId::new(id).ok();
        id.and_then(|id| self.known(namespace, &id)).is_some_and(|task| task.facts.borrow().oom)
    }

    /// Whether a container's shim is Berth's, and so knows more of stdio than plain FIFOs.
    pub(crate) fn has_own_shim(&self, namespace: &NamespaceName, id: &str) -> bool {
        let id = ContainerId::new(id).ok();
        let ours = |task: Arc<Task>| {
            task.facts.borrow().origin.as_ref().is_some_and(|origin| super::shim_log::is_ours(&origin.shim))
        };
        id.and_then(|id| self.known(namespace, &id)).is_some_and(ours)
    }

    /// Every process of a container.
    pub(crate) async fn pids(&self, namespace: &NamespaceName, id: &str) -> Result<Vec<ProcessInfo>, TaskError> {
        let task = self.find(namespace, id).await?;
        if task.connection()?.is_none() {
            task.accept(Request::Inspect).await?;
        }
        let message = PidsRequest { id: task.id.to_string() };
        let pids = task.call("Pids", message, |mut shim, request| async move { shim.pids(request).await }).await?;
        Ok(pids.processes)
    }

    /// The resource use of the tasks that pass any of the filters (`id==web`); those that can't tell are left out.
    pub(crate) async fn metrics(
        &self,
        namespace: &NamespaceName,
        filters: &[String],
    ) -> Result<Vec<Metric>, TaskError> {
        let filters = Filters::parse(filters)?;
        let wanted = |task: &Arc<Task>| {
            filters.accept(|path| match path {
                ["id"] => Some(task.id.to_string()),
                ["namespace"] => Some(task.namespace.to_string()),
                _ => None,
            })
        };
        let tasks: Vec<_> = self.all(namespace).into_iter().filter(wanted).collect();
        Ok(join_all(tasks.iter().map(|task| metric(task))).await.into_iter().flatten().collect())
    }
}

async fn metric(task: &Task) -> Option<Metric> {
    task.reaches(|phase| phase != Phase::Adopting).await;
    let message = StatsRequest { id: task.id.to_string() };
    let asked = task.call("Stats", message, |mut shim, request| async move { shim.stats(request).await });
    match tokio::time::timeout(STATE_LIMIT, asked).await {
        Ok(Ok(answer)) => {
            Some(Metric { timestamp: Some(SystemTime::now().into()), id: task.id.to_string(), data: answer.stats })
        }
        Ok(Err(error)) => {
            debug!(id = %task.id, error = %proto::kind::chain(&error), "no metrics");
            None
        }
        Err(_) => {
            warn!(id = %task.id, "no metrics: the shim does not answer");
            None
        }
    }
}

async fn get_exec(task: &Task, exec: ExecId) -> Result<Process, TaskError> {
    if task.connection()?.is_some() {
        match task.refresh(Some(&exec)).await {
            Ok(state) => {
                return Ok(Process {
                    container_id: task.id.to_string(),
                    id: exec.to_string(),
                    pid: state.pid,
                    status: state.status,
                    stdin: state.stdin,
                    stdout: state.stdout,
                    stderr: state.stderr,
                    terminal: state.terminal,
                    exit_status: state.exit_status,
                    exited_at: state.exited_at,
                });
            }
            Err(TaskError::ShimGone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let known = task.facts.borrow().execs.get(&exec).and_then(|facts| facts.exit.clone());
    let exit = known.or_else(|| task.bundle.exec_exit(&exec));
    let exit = exit.ok_or_else(|| TaskError::ProcessNotFound { id: task.id.clone(), exec: exec.clone() })?;
    Ok(Process {
        container_id: task.id.to_string(),
        id: exec.to_string(),
        pid: exit.pid,
        status: ProcessStatus::Stopped.into(),
        exit_status: exit.status,
        exited_at: Some(exit.at),
        ..Default::default()
    })
}
