//! Requests that change or measure a running container.

use std::collections::HashMap;

use nix::unistd::Pid;
use prost_types::Any;
use proto::{
    containerd::{
        events::{TaskCheckpointed, TaskPaused, TaskResumed, TaskStart},
        runc::v1::{CheckpointOptions, ProcessDetails},
        task::v3::{CheckpointTaskRequest, PidsResponse},
        v1::types::ProcessInfo,
    },
    typeurl,
};

use super::Task;
use crate::{
    bundle::Key,
    cgroup::Cgroup,
    error::TaskError,
    events::Topic,
    io::IoError,
    process::Reply,
    rules::{Op, State},
    stats,
};

impl Task {
    /// Whether something may be begun that brings more events.
    fn admit_events(&self) -> Result<(), TaskError> {
        if self.shim.events.is_full() { Err(TaskError::Backlog(self.id.clone())) } else { Ok(()) }
    }

    /// As [`Task::admit`] for init, and with room for the event it brings.
    pub(super) fn admit_telling(&mut self, op: Op, verb: &'static str) -> Result<(), TaskError> {
        self.admit_events()?;
        self.admit(op, verb, &Key::Init).map(drop)
    }

    pub(super) fn start(&mut self, reply: Reply<u32>) {
        if let Err(error) = self.admit(Op::Start, "start", &Key::Init) {
            return drop(reply.send(Err(error)));
        }
        if self.init.state == State::Unrestored {
            return self.start_restored(reply);
        }
        proto::fault!("shim.run.admitted");
        let oci = self.oci.clone();
        self.exclusive(Op::Start, async move { oci.start().await }, move |task, done| {
            if let Err(error) = done {
                return drop(reply.send(Err(error.into())));
            }
            proto::fault!("shim.run.runtime_done");
            task.init.state = State::Running;
            task.tell(Topic::Start, &TaskStart { container_id: task.id.clone(), pid: task.init.pid });
            proto::fault!("shim.run.announced");
            let _ = reply.send(Ok(task.init.pid));
        });
    }

    pub(super) fn kill(&mut self, key: &Key, signal: u32, all: bool, reply: Reply<()>) {
        let by_runtime = self.kills_by_runtime(key, signal, all);
        let pid = match self.admit(Op::Kill, "signal", key) {
            Ok(process) => process.pid,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let Some(number) = i32::try_from(signal).ok().filter(|number| (0..=64).contains(number)) else {
            return drop(reply.send(Err(TaskError::Invalid(format!("{signal} is not a signal")))));
        };
        if !by_runtime {
            proto::fault!("shim.kill.admitted");
            // It is our child and not reaped (that would have stopped it), so the number can mean nobody else.
            let id = self.name(key);
            let sent = sys::process::kill(Pid::from_raw(pid.cast_signed()), number).map_err(|errno| match errno {
                nix::Error::ESRCH => TaskError::Gone { id },
                errno => TaskError::Signal { id, cause: errno.into() },
            });
            proto::fault!("shim.kill.sent");
            return drop(reply.send(sent));
        }
        // A frozen process dies when it thaws. It may be dead by now, so that thawing fails.
        let thaws = self.init.state == State::Paused && number == nix::libc::SIGKILL;
        let oci = self.oci.clone();
        let work = async move {
            let killed = oci.kill(signal, all).await;
            let thawed = killed.is_ok() && thaws && oci.resume().await.is_ok();
            (killed, thawed)
        };
        self.exclusive(Op::Kill, work, move |task, (killed, thawed)| {
            proto::fault!("shim.kill.runtime_done");
            if thawed {
                task.init.state = State::Running;
            }
            let _ = reply.send(killed.map_err(TaskError::from));
        });
    }

    pub(super) fn pause(&mut self, reply: Reply<()>) {
        if let Err(error) = self.admit_telling(Op::Pause, "pause") {
            return drop(reply.send(Err(error)));
        }
        let oci = self.oci.clone();
        let work = async move {
            let done = oci.pause().await;
            if done.is_err() {
                // It may have got as far as freezing. Nobody would thaw what nobody knows to be frozen.
                let _ = oci.resume().await;
            }
            done
        };
        self.exclusive(Op::Pause, work, move |task, done| {
            if done.is_ok() {
                proto::fault!("shim.pause.frozen");
            }
            task.settle_frozen(if done.is_ok() { Some(true) } else { None });
            let _ = reply.send(done.map_err(TaskError::from));
        });
    }

    pub(super) fn resume(&mut self, reply: Reply<()>) {
        if let Err(error) = self.admit_telling(Op::Resume, "resume") {
            return drop(reply.send(Err(error)));
        }
        let oci = self.oci.clone();
        self.exclusive(Op::Resume, async move { oci.resume().await }, move |task, done| {
            if done.is_ok() {
                proto::fault!("shim.resume.thawed");
            }
            task.settle_frozen(if done.is_ok() { Some(false) } else { None });
            let _ = reply.send(done.map_err(TaskError::from));
        });
    }

    /// Takes note of whether the container is frozen, and tells of the change. After a runtime that failed (`None`) the
    /// cgroup says how far it came.
    fn settle_frozen(&mut self, frozen: Option<bool>) {
        let asked = || self.cgroup.as_ref().and_then(Cgroup::is_frozen);
        match (frozen.or_else(asked), self.init.state) {
            (Some(true), State::Running) => {
                self.init.state = State::Paused;
                self.tell(Topic::Paused, &TaskPaused { container_id: self.id.clone() });
            }
            (Some(false), State::Paused) => {
                self.init.state = State::Running;
                self.tell(Topic::Resumed, &TaskResumed { container_id: self.id.clone() });
            }
            _ => {}
        }
    }

    pub(super) fn update(&mut self, resources: Vec<u8>, reply: Reply<()>) {
        let readable = serde_json::from_slice::<HashMap<&str, &serde_json::value::RawValue>>(&resources);
        let readable = readable.map_err(|error| {
            TaskError::Invalid(format!("update container {}: its LinuxResources are no JSON object: {error}", self.id))
        });
        if let Err(error) = self.admit(Op::Update, "update", &Key::Init).and_then(|_| readable.map(drop)) {
            return drop(reply.send(Err(error)));
        }
        let oci = self.oci.clone();
        self.exclusive(Op::Update, async move { oci.update(&resources).await }, move |_, done| {
            proto::fault!("shim.update.runtime_done");
            let _ = reply.send(done.map_err(TaskError::from));
        });
    }

    pub(super) fn checkpoint(&mut self, request: CheckpointTaskRequest, reply: Reply<()>) {
        let options = match request.options.as_ref().filter(|any| !any.type_url.is_empty()).map(typeurl::unpack) {
            None => Ok(CheckpointOptions::default()),
            Some(Some(Ok(options))) => Ok(options),
            Some(_) => Err(TaskError::Invalid(format!(
                "options of the checkpoint of container {} are not containerd.runc.v1.CheckpointOptions",
                self.id
            ))),
        };
        let path = if request.path.is_empty() {
            Err(TaskError::Invalid(format!("checkpoint of container {} names no folder", self.id)))
        } else {
            Ok(request.path)
        };
        let admitted = self.admit_telling(Op::Checkpoint, "checkpoint");
        let (options, path) = match admitted.and_then(|()| Ok((options?, path?))) {
            Ok(both) => both,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let oci = self.oci.clone();
        let work = async move {
            let done = oci.checkpoint(&path, &options).await;
            (done, path)
        };
        self.exclusive(Op::Checkpoint, work, move |task, (done, path)| {
            let done = done.map(|()| {
                proto::fault!("shim.checkpoint.runtime_done");
                let event = TaskCheckpointed { container_id: task.id.clone(), checkpoint: path };
                task.tell(Topic::Checkpointed, &event);
            });
            let _ = reply.send(done.map_err(TaskError::from));
        });
    }

    /// Sets the size of a terminal, at once or as soon as there is one; what has none has no size, as with containerd's shim.
    pub(super) fn resize(&mut self, key: &Key, (columns, rows): (u16, u16)) -> Result<(), TaskError> {
        let id = self.name(key);
        let process = self.admit(Op::Resize, "resize", key)?;
        match &process.io {
            None => {
                process.early_size = Some((columns, rows));
                Ok(())
            }
            Some(io) => match io.resize(columns, rows) {
                Err(IoError::NoTerminal) => Ok(()),
                done => done.map_err(|cause| TaskError::Io { id, cause }),
            },
        }
    }

    pub(super) fn pids(&mut self, reply: Reply<PidsResponse>) {
        if let Err(error) = self.admit(Op::Pids, "list processes of", &Key::Init) {
            return drop(reply.send(Err(error)));
        }
        let execs: Vec<_> = self.execs.iter().filter(|(_, exec)| exec.state == State::Running).collect();
        let execs: Vec<_> = execs.into_iter().map(|(id, exec)| (exec.pid, id.clone())).collect();
        let answer = move |pids: Vec<u32>| {
            let info = |pid: u32| {
                let exec = execs.iter().find(|(its, _)| *its == pid);
                let info = exec.map(|(_, id)| typeurl::pack(&ProcessDetails { exec_id: id.clone() }));
                ProcessInfo { pid, info }
            };
            PidsResponse { processes: pids.into_iter().map(info).collect() }
        };
        if let Some(pids) = self.cgroup.as_ref().and_then(Cgroup::pids) {
            return drop(reply.send(Ok(answer(pids))));
        }
        if self.init.state == State::Stopped {
            return drop(reply.send(Ok(answer(Vec::new()))));
        }
        let oci = self.oci.clone();
        tokio::task::spawn_local(async move {
            let _ = reply.send(oci.ps().await.map(answer).map_err(TaskError::from));
        });
    }

    pub(super) fn stats(&mut self) -> Result<Any, TaskError> {
        self.admit(Op::Stats, "measure", &Key::Init)?;
        let cgroup = self.cgroup.as_ref().ok_or_else(|| TaskError::NoCgroup(self.id.clone()))?;
        Ok(stats::read(cgroup))
    }
}
