//! How processes end: recorded, passed on, announced, removed.

use std::time::Duration;

use nix::unistd::Pid;
use proto::containerd::{
    events::{TaskDelete, TaskExit},
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
    process::{Process, Reply},
    reaper::Exit,
    report::warn_line,
    rules::{Op, State},
};

/// How long init's exit may wait for the exits of execs. With a pid namespace of its own they are all dead before it; else
/// they have been killed, and only a process that the kernel can't kill is late.
const EXECS_LATE: Duration = Duration::from_secs(5);

impl Task {
    pub(super) fn exited(&mut self, key: &Key, exit: Exit) {
        let Ok(process) = self.process(key) else { return };
        process.state = State::Stopped;
        process.exit = Some(exit);
        let pid = process.pid;
        proto::fault!("shim.exit.reaped");
        if let Err(error) = self.bundle.record_exit(key, pid, exit, false) {
            warn_line!("record exit of {}: {error}", self.name(key));
        }
        proto::fault!("shim.exit.recorded");
        if *key == Key::Init
            && let Some(oom) = self.oom.take()
        {
            // The cgroup goes with the container: what it counted is read now or never.
            oom.look();
        }
        let inbox = self.inbox.clone();
        // Processes of a shared pid namespace outlive their init; the container doesn't.
        let survivors = (*key == Key::Init && !self.own_pids).then(|| (self.oci.clone(), self.id.clone()));
        let key = key.clone();
        let settled = self.process(&key).ok().and_then(|process| process.io.as_ref().map(ProcessIo::settle));
        tokio::task::spawn_local(async move {
            if let Some((oci, id)) = survivors {
                match oci.kill(nix::libc::SIGKILL.unsigned_abs(), true).await {
                    Ok(()) => {}
                    Err(error) if matches!(&error, OciError::Failed { .. }) => {}
                    Err(error) => warn_line!("kill what init of {id} left: {error}"),
                }
            }
            if let Some(settled) = settled {
                settled.await;
            }
            let _ = inbox.send(Message::Settled(key));
        });
    }

    pub(super) fn announce(&mut self, key: &Key) {
        let container_id = self.id.clone();
        let Ok(process) = self.process(key) else { return };
        let Some(exit) = process.exit.filter(|_| !process.announced) else { return };
        let pid = process.pid;
        let event = TaskExit {
            id: key.event_id(&container_id).to_owned(),
            container_id,
            pid,
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)),
        };
        proto::fault!("shim.exit.settled");
        self.tell(Topic::Exit, &event);
        proto::fault!("shim.exit.announced");
        // Nothing is awaited in between: the event can't have been delivered before the record says that it is on its way.
        if let Err(error) = self.bundle.record_exit(key, pid, exit, true) {
            warn_line!("record announcement of {}: {error}", self.name(key));
        }
        proto::fault!("shim.exit.marked");
        if let Ok(process) = self.process(key) {
            process.tell_waiters(exit);
        }
    }

    pub(super) fn announce_init_if_due(&mut self, overdue: bool) {
        if !self.init_settled || self.init.announced {
            return;
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
            return;
        }
        self.announce(&Key::Init);
        if let Some(place) = self.deletes.iter().position(|(key, _)| *key == Key::Init) {
            let (_, reply) = self.deletes.swap_remove(place);
            self.delete(reply);
        }
    }

    pub(super) fn delete(&mut self, reply: Reply<DeleteResponse>) {
        match self.admit(Op::Delete, "delete", &Key::Init) {
            Err(error) => return drop(reply.send(Err(error))),
            Ok(init) if init.announced || init.state == State::Unrestored => {}
            Ok(init) => {
                // Created: it ends now, and its end is told before its removal. Stopped: its end is being told.
                if init.state == State::Created {
                    let _ = sys::process::kill(Pid::from_raw(init.pid.cast_signed()), nix::libc::SIGKILL);
                }
                return self.deletes.push((Key::Init, reply));
            }
        }
        let (oci, rootfs) = (self.oci.clone(), self.bundle.rootfs());
        // The runtime has never heard of what it hasn't tried to restore; and of what it has, little may be left.
        let (known, force) = self.restore.as_ref().map_or((true, false), |restore| (restore.tried, true));
        if let Some(restore) = &mut self.restore {
            restore.prepared = None;
        }
        // Whether or not the rest succeeds: nobody writes any more.
        let closing = self.init.io.take().map(ProcessIo::close);
        let work = async move {
            let removed = match known {
                true => match oci.delete(force).await {
                    Err(OciError::Failed { .. }) if !force => oci.delete(true).await,
                    done => done,
                },
                false => Ok(()),
            };
            proto::fault!("shim.delete.runtime_done");
            let unmounted = mounts::unmount_rootfs(&rootfs);
            proto::fault!("shim.delete.unmounted");
            if let Some(closing) = closing {
                closing.await;
            }
            removed.map_err(TaskError::from).and_then(|()| unmounted.map_err(TaskError::from))
        };
        self.exclusive(Op::Delete, work, move |task, done| match done {
            Err(error) => drop(reply.send(Err(error))),
            Ok(()) => task.deleted(reply),
        });
    }

    fn deleted(&mut self, reply: Reply<DeleteResponse>) {
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
        self.tell(Topic::Delete, &event);
        proto::fault!("shim.delete.announced");
        // Before the answer: a Shutdown that follows it must find no container.
        self.shim.forget(&self.id);
        let _ = reply.send(Ok(answer));
        proto::fault!("shim.delete.answered");
        self.gone = true;
    }
}
