//! Requests that change or measure a running container.

use nix::unistd::Pid;
use prost_types::Any;
use proto::{
    containerd::{
        events::{TaskPaused, TaskResumed, TaskStart},
        runc::v1::ProcessDetails,
        task::v3::PidsResponse,
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
    rules::{Op, State},
    stats,
};

impl Task {
    pub(super) async fn start(&mut self) -> Result<u32, TaskError> {
        self.admit(Op::Start, "start", &Key::Init)?;
        proto::fault!("shim.run.admitted");
        self.oci.start().await?;
        proto::fault!("shim.run.runtime_done");
        self.init.state = State::Running;
        self.shim.events.push(Topic::Start, &TaskStart { container_id: self.id.clone(), pid: self.init.pid });
        proto::fault!("shim.run.announced");
        Ok(self.init.pid)
    }

    pub(super) async fn kill(&mut self, key: &Key, signal: u32, all: bool) -> Result<(), TaskError> {
        let id = self.name(key);
        let own_pids = self.own_pids;
        let process = self.admit(Op::Kill, "signal", key)?;
        let (pid, state) = (process.pid, process.state);
        let number = i32::try_from(signal).ok().filter(|number| (0..=64).contains(number));
        let number = number.ok_or_else(|| TaskError::Invalid(format!("{signal} is not a signal")))?;
        // With init dies everything in its pid namespace (pid_namespaces(7)).
        let reaches_all = own_pids && number == nix::libc::SIGKILL;
        if *key != Key::Init || ((!all || reaches_all) && state != State::Paused) {
            // It is our child and not reaped (that would have stopped it), so the number can mean nobody else.
            proto::fault!("shim.kill.admitted");
            sys::process::kill(Pid::from_raw(pid.cast_signed()), number).map_err(|errno| match errno {
                nix::Error::ESRCH => TaskError::Gone { id },
                errno => TaskError::Signal { id, cause: errno.into() },
            })?;
            proto::fault!("shim.kill.sent");
            return Ok(());
        }
        self.oci.kill(signal, all).await?;
        proto::fault!("shim.kill.runtime_done");
        if state == State::Paused && number == nix::libc::SIGKILL {
            // A frozen process dies when it thaws. It may be dead by now, so that this fails.
            if self.oci.resume().await.is_ok() {
                self.init.state = State::Running;
            }
        }
        Ok(())
    }

    pub(super) async fn pause(&mut self) -> Result<(), TaskError> {
        self.admit(Op::Pause, "pause", &Key::Init)?;
        self.oci.pause().await?;
        proto::fault!("shim.pause.frozen");
        self.init.state = State::Paused;
        self.shim.events.push(Topic::Paused, &TaskPaused { container_id: self.id.clone() });
        Ok(())
    }

    pub(super) async fn resume(&mut self) -> Result<(), TaskError> {
        self.admit(Op::Resume, "resume", &Key::Init)?;
        self.oci.resume().await?;
        proto::fault!("shim.resume.thawed");
        self.init.state = State::Running;
        self.shim.events.push(Topic::Resumed, &TaskResumed { container_id: self.id.clone() });
        Ok(())
    }

    pub(super) async fn update(&mut self, resources: &[u8]) -> Result<(), TaskError> {
        self.admit(Op::Update, "update", &Key::Init)?;
        Ok(self.oci.update(resources).await?)
    }

    pub(super) async fn pids(&mut self) -> Result<PidsResponse, TaskError> {
        let pid = self.admit(Op::Pids, "list processes of", &Key::Init)?.pid;
        let pids = match Cgroup::of(pid).and_then(|cgroup| cgroup.pids()) {
            Some(pids) => pids,
            None => self.oci.ps().await?,
        };
        let info = |pid: u32| {
            let exec = self.execs.iter().find(|(_, exec)| exec.pid == pid && exec.state == State::Running);
            let info = exec.map(|(id, _)| typeurl::pack(&ProcessDetails { exec_id: id.clone() }));
            ProcessInfo { pid, info }
        };
        Ok(PidsResponse { processes: pids.into_iter().map(info).collect() })
    }

    pub(super) fn stats(&mut self) -> Result<Any, TaskError> {
        let pid = self.admit(Op::Stats, "measure", &Key::Init)?.pid;
        let cgroup = Cgroup::of(pid).ok_or_else(|| TaskError::NoCgroup(self.id.clone()))?;
        Ok(stats::read(&cgroup))
    }
}
