//! How processes end: recorded, passed on, announced, removed.

use std::time::Duration;

use nix::unistd::Pid;
use proto::containerd::{
    events::{TaskDelete, TaskExit, TaskOom},
    task::v3::DeleteResponse,
};

use super::{Message, Task};
use crate::{
    bundle::Key,
    clock,
    error::TaskError,
    events::Topic,
    io::ProcessIo,
    mounts,
    oci::OciError,
    oom::OomWatch,
    process::{Process, Reply},
    reaper::Exit,
    report::warn_line,
    rules::{Op, State},
};

/// How long init's exit may wait for the exits of execs. With a pid namespace of its own they are all dead before it; else
/// they have been killed, and only a process that the kernel can't kill is late.
const EXECS_LATE: Duration = Duration::from_secs(5);

impl Task {
    pub(super) async fn exited(&mut self, key: &Key, exit: Exit) {
        let Ok(process) = self.process(key) else { return };
        process.state = State::Stopped;
        process.exit = Some(exit);
        let pid = process.pid;
        proto::fault!("shim.exit.reaped");
        if let Err(error) = self.bundle.record_exit(key, pid, exit) {
            warn_line!("record exit of {}: {error}", self.name(key));
        }
        proto::fault!("shim.exit.recorded");
        if *key == Key::Init {
            if self.oom.as_ref().is_some_and(OomWatch::has_grown) {
                self.shim.events.push(Topic::Oom, &TaskOom { container_id: self.id.clone() });
            }
            self.oom = None;
            if !self.own_pids {
                // Processes of a shared pid namespace outlive their init; the container doesn't.
                match self.oci.kill(nix::libc::SIGKILL.unsigned_abs(), true).await {
                    Ok(()) => {}
                    Err(error) if matches!(&error, OciError::Failed { .. }) => {}
                    Err(error) => warn_line!("kill what init of {} left: {error}", self.id),
                }
            }
        }
        let inbox = self.inbox.clone();
        let key = key.clone();
        let settled = self.process(&key).ok().and_then(|process| process.io.as_ref().map(ProcessIo::settle));
        tokio::task::spawn_local(async move {
            if let Some(settled) = settled {
                settled.await;
            }
            let _ = inbox.send(Message::Settled(key));
        });
    }

    pub(super) fn announce(&mut self, key: &Key) {
        let (container_id, events) = (self.id.clone(), self.shim.clone());
        let Ok(process) = self.process(key) else { return };
        let Some(exit) = process.exit.filter(|_| !process.announced) else { return };
        let event = TaskExit {
            id: key.event_id(&container_id).to_owned(),
            container_id,
            pid: process.pid,
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)),
        };
        proto::fault!("shim.exit.settled");
        events.events.push(Topic::Exit, &event);
        proto::fault!("shim.exit.announced");
        process.tell_waiters(exit);
    }

    /// True when a Delete that waited for this has removed the container.
    pub(super) async fn announce_init_if_due(&mut self, overdue: bool) -> bool {
        if !self.init_settled || self.init.announced {
            return false;
        }
        let alive = |exec: &Process| {
            matches!(exec.state, State::Starting | State::Running) || (exec.state == State::Stopped && !exec.announced)
        };
        if !overdue && self.execs.values().any(alive) {
            let inbox = self.inbox.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(EXECS_LATE).await;
                let _ = inbox.send(Message::Overdue);
            });
            return false;
        }
        self.announce(&Key::Init);
        let Some(place) = self.deletes.iter().position(|(key, _)| *key == Key::Init) else { return false };
        let (_, reply) = self.deletes.swap_remove(place);
        self.delete(reply).await
    }

    /// True when the container is gone.
    pub(super) async fn delete(&mut self, reply: Reply<DeleteResponse>) -> bool {
        match self.admit(Op::Delete, "delete", &Key::Init) {
            Err(error) => {
                let _ = reply.send(Err(error));
                return false;
            }
            Ok(init) if init.announced => {}
            Ok(init) => {
                // Created: it ends now, and its end is told before its removal. Stopped: its end is being told.
                if init.state == State::Created {
                    let _ = sys::process::kill(Pid::from_raw(init.pid.cast_signed()), nix::libc::SIGKILL);
                }
                self.deletes.push((Key::Init, reply));
                return false;
            }
        }
        let removed = match self.oci.delete(false).await {
            Err(_) => self.oci.delete(true).await,
            done => done,
        };
        proto::fault!("shim.delete.runtime_done");
        let unmounted = mounts::unmount_rootfs(&self.bundle.rootfs());
        proto::fault!("shim.delete.unmounted");
        let result = removed.map_err(TaskError::from).and_then(|()| unmounted.map_err(TaskError::from));
        if let Err(error) = result {
            let _ = reply.send(Err(error));
            return false;
        }
        let _ = std::fs::remove_file(self.bundle.pid_file(&Key::Init));
        let answer = self.init.obituary();
        let event = TaskDelete {
            container_id: self.id.clone(),
            pid: answer.pid,
            exit_status: answer.exit_status,
            exited_at: answer.exited_at,
            // containerd leaves it empty for init.
            id: String::new(),
        };
        self.shim.events.push(Topic::Delete, &event);
        proto::fault!("shim.delete.announced");
        // Before the answer: a Shutdown that follows it must find no container.
        self.shim.forget(&self.id);
        let _ = reply.send(Ok(answer));
        proto::fault!("shim.delete.answered");
        true
    }
}
