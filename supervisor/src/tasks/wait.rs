//! Wait: answers when a process has ended, also if its shim dies meanwhile.

use proto::{
    containerd::task::v3::{WaitRequest, WaitResponse},
    id::{ExecId, NamespaceName},
};

use super::{
    Tasks,
    bundle::Exit,
    error::TaskError,
    signal::check_exec,
    task::{Phase, Task},
};

impl Tasks {
    /// How a process ended, once it has.
    pub(crate) async fn wait(&self, namespace: &NamespaceName, id: &str, exec: &str) -> Result<Exit, TaskError> {
        let exec = check_exec(exec)?;
        let task = self.find(namespace, id).await?;
        tokio::select! {
            exit = wait(&task, exec) => exit,
            // What is still running goes on; whoever waits asks our successor.
            () = self.draining.clone().begun() => Err(TaskError::Draining),
        }
    }
}

async fn wait(task: &Task, exec: Option<ExecId>) -> Result<Exit, TaskError> {
    loop {
        if let Some(exit) = known(task, exec.as_ref()) {
            return Ok(exit);
        }
        if task.connection()?.is_none() {
            let id = task.id.clone();
            return Err(exec.map_or_else(
                || TaskError::NotFound(task.id.to_string()),
                |exec| TaskError::ProcessNotFound { id, exec },
            ));
        }
        match ask(task, exec.as_ref()).await {
            // Either the connection is made again, and we ask again, or the task is being cleaned up, and the exit is known.
            Err(TaskError::ShimGone { .. }) => {
                task.connected_or_not_live(|facts| exec.is_none() && facts.exit.is_some()).await;
            }
            answer => return answer,
        }
    }
}

async fn ask(task: &Task, exec: Option<&ExecId>) -> Result<Exit, TaskError> {
    let exec_id = exec.map(ToString::to_string).unwrap_or_default();
    let message = WaitRequest { id: task.id.to_string(), exec_id };
    let asked = task.call("Wait", message, |mut shim, request| async move { shim.wait(request).await });
    let WaitResponse { exit_status, exited_at } = asked.await?;
    let exit = Exit { pid: 0, status: exit_status, at: exited_at.unwrap_or_default() };
    if exec.is_none() {
        task.facts.send_modify(|facts| {
            let pid = facts.pid;
            facts.set_exit(Exit { pid, ..exit.clone() });
        });
    }
    Ok(exit)
}

fn known(task: &Task, exec: Option<&ExecId>) -> Option<Exit> {
    match exec {
        None => task.facts.borrow().exit.clone(),
        // A live shim is asked even so: an exec id may be used again once its process was deleted.
        Some(exec) if task.phase() != Phase::Live => {
            let exit = task.facts.borrow().execs.get(exec).and_then(|facts| facts.exit.clone());
            exit.or_else(|| task.bundle.exec_exit(exec))
        }
        Some(_) => None,
    }
}
