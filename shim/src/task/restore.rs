//! Containers that go on from a checkpoint: Create only prepares, as in containerd, and Start restores the processes.
//!
//! What fails is undone, and the container waits as before: Start may be tried again, and Delete has nothing to kill.

use proto::containerd::events::{TaskOom, TaskStart};
use proto::kind::ErrorKind;
use tokio::sync::oneshot;

use super::{Started, Task, watch_exit};
use crate::{
    bundle::Key,
    cgroup::Cgroup,
    create::{self, Make},
    error::TaskError,
    events::Topic,
    io::Prepared,
    oci::Images,
    oom::OomWatch,
    process::Reply,
    reaper::Exit,
    report::warn_line,
    rules::{Op, State},
};

/// What a container is to be restored from.
pub(crate) struct Restore {
    /// The files of the checkpoint.
    pub(crate) images: Images,
    /// Its stdio, which a failed attempt has used up.
    pub(crate) prepared: Option<Prepared>,
    /// The runtime has tried, and may know the container.
    pub(crate) tried: bool,
}

impl Task {
    /// Start, of a container in state [`State::Unrestored`].
    pub(super) fn start_restored(&mut self, reply: Reply<u32>) {
        // The state says that there is something to restore from.
        let Some(restore) = &mut self.restore else { return };
        restore.tried = true;
        let (prepared, images) = (restore.prepared.take(), restore.images.clone());
        let (shim, oci, id, stdio) = (self.shim.clone(), self.oci.clone(), self.id.clone(), self.init.stdio.clone());
        proto::fault!("shim.restore.admitted");
        let work = async move {
            let prepared = match prepared {
                Some(prepared) => prepared,
                None => Prepared::open(&stdio, &shim.console_path(), &shim.reaper)
                    .await
                    .map_err(|cause| TaskError::Io { id: format!("container {id}"), cause })?,
            };
            create::begin(&shim, &oci, &id, prepared, Make::Restored(&images)).await
        };
        self.exclusive(Op::Start, work, move |task, done| {
            let started = match done {
                Ok(started) => started,
                Err(error) => {
                    if let Some(restore) = &mut task.restore {
                        // One of that name is somebody else's, and not to be deleted with ours.
                        restore.tried = error.kind() != ErrorKind::AlreadyExists;
                    }
                    return drop(reply.send(Err(error)));
                }
            };
            task.restore = None;
            let exit = task.has_begun(started);
            task.init.state = State::Running;
            task.tell(Topic::Start, &TaskStart { container_id: task.id.clone(), pid: task.init.pid });
            proto::fault!("shim.restore.announced");
            watch_exit(&task.inbox, Key::Init, exit);
            let _ = reply.send(Ok(task.init.pid));
        });
    }

    /// Takes over the first process, and what comes with it. Gives its end, to be watched when its beginning has been told.
    pub(crate) fn has_begun(&mut self, started: Started) -> oneshot::Receiver<Exit> {
        let Started { pid, exit, io } = started;
        if let Some((columns, rows)) = self.init.early_size {
            // A process without a terminal has no size; asked for later it would be ignored as well.
            let _ = io.resize(columns, rows);
        }
        if self.init.early_close {
            io.close_stdin();
        }
        (self.init.pid, self.init.io) = (pid, Some(io));
        self.cgroup = Cgroup::of(pid);
        self.oom = self.cgroup.as_ref().and_then(|cgroup| {
            let (shim, bundle, journal) = (self.shim.clone(), self.bundle.clone(), self.journal.clone());
            let container_id = self.id.clone();
            OomWatch::begin(cgroup, move || {
                // On record before it is told, and for whoever wasn't there to hear it.
                if let Err(error) = bundle.record_oom() {
                    warn_line!("record out-of-memory kill of {container_id}: {error}");
                }
                shim.events.push(&journal, Topic::Oom, &TaskOom { container_id: container_id.clone() });
            })
        });
        exit
    }
}
