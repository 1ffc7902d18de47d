//! Processes that join a container.

use nix::unistd::Pid;
use proto::{
    containerd::{
        events::{TaskExecAdded, TaskExecStarted},
        task::v3::{DeleteResponse, ExecProcessRequest},
    },
    id::ExecId,
};

use super::{Message, Started, Task, watch_exit};
use crate::{
    bundle::Key,
    error::TaskError,
    events::Topic,
    io::{Prepared, StdioConfig},
    process::{Process, Reply},
    rules::{Op, State},
};

impl Task {
    pub(super) fn add_exec(&mut self, request: ExecProcessRequest) -> Result<(), TaskError> {
        let exec = String::from(ExecId::new(request.exec_id)?);
        if self.execs.contains_key(&exec) {
            return Err(TaskError::Exists { what: "exec", id: exec });
        }
        self.admit_telling(Op::AddExec, "exec in")?;
        let spec = request.spec.map(|any| any.value).unwrap_or_default();
        if spec.is_empty() {
            return Err(TaskError::Invalid(format!("exec {exec} has no process spec")));
        }
        let stdio = StdioConfig {
            container: self.id.clone(),
            namespace: self.shim.namespace.clone(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            owner: self.owner,
            stdin_waits: false,
        };
        let key = Key::Exec(exec.clone());
        self.execs.insert(exec.clone(), Process::new(key, stdio, spec));
        self.tell(Topic::ExecAdded, &TaskExecAdded { container_id: self.id.clone(), exec_id: exec });
        proto::fault!("shim.exec.added");
        Ok(())
    }

    /// Execs start beside one another and beside other requests: the runtime's part runs on its own, and its result
    /// queues here.
    pub(super) fn start_exec(&mut self, key: Key, reply: Reply<u32>) {
        let (shim, oci, inbox) = (self.shim.clone(), self.oci.clone(), self.inbox.clone());
        let id = self.name(&key);
        let init = self.own_pids.then_some(self.init.pid);
        let exec = match self.admit(Op::Start, "start", &key) {
            Ok(exec) => exec,
            Err(error) => return drop(reply.send(Err(error))),
        };
        exec.state = State::Starting;
        let (stdio, spec) = (exec.stdio.clone(), std::mem::take(&mut exec.spec));
        tokio::task::spawn_local(async move {
            let work = async {
                let io_failed = |cause| TaskError::Io { id: id.clone(), cause };
                let mut prepared =
                    Prepared::open(&stdio, &shim.console_path(), &shim.reaper).await.map_err(io_failed)?;
                proto::fault!("shim.exec.stdio_opened");
                let hold = shim.reaper.hold();
                let pid = match oci.exec(&key, &spec, prepared.child(), prepared.console()).await {
                    Ok(pid) => pid,
                    Err(error) => {
                        hold.kill_strays(init);
                        return Err(error.into());
                    }
                };
                proto::fault!("shim.exec.runtime_done");
                let exit = shim.reaper.claim(pid);
                drop(hold);
                match prepared.begin() {
                    Ok(io) => Ok(Started { pid, exit, io }),
                    Err(cause) => {
                        // Nobody would hear it, and nobody could stop it by name.
                        let _ = sys::process::kill(Pid::from_raw(pid.cast_signed()), nix::libc::SIGKILL);
                        Err(io_failed(cause))
                    }
                }
            };
            let result = work.await;
            let _ = inbox.send(Message::ExecStarted(key, result, reply));
        });
    }

    pub(super) fn exec_started(&mut self, key: &Key, started: Started) -> Result<u32, TaskError> {
        let inbox = self.inbox.clone();
        let Started { pid, exit, io } = started;
        let exec = self.process(key)?;
        if let Some((columns, rows)) = exec.early_size {
            // A process without a terminal has no size; asked for later it would be ignored as well.
            let _ = io.resize(columns, rows);
        }
        if exec.early_close {
            io.close_stdin();
        }
        (exec.state, exec.pid, exec.io) = (State::Running, pid, Some(io));
        let exec_id = key.event_id("").to_owned();
        self.tell(Topic::ExecStarted, &TaskExecStarted { container_id: self.id.clone(), exec_id, pid });
        proto::fault!("shim.exec.announced");
        watch_exit(&inbox, key.clone(), exit);
        Ok(pid)
    }

    pub(super) fn delete_exec(&mut self, key: &Key) -> Result<DeleteResponse, TaskError> {
        let exec = self.process(key)?;
        let answer = exec.obituary();
        if let Some(io) = exec.io.take() {
            io.abandon();
        }
        if let Key::Exec(id) = key {
            self.execs.remove(id);
        }
        proto::fault!("shim.delete.exec_removed");
        self.bundle.forget(key);
        Ok(answer)
    }
}
