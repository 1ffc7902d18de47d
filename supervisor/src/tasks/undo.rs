//! Takes back what was made for a task that doesn't come to be, at once or, when descriptors or processes have run out, later.

use std::{io, sync::Arc, time::Duration};

use nix::errno::Errno;
use proto::{
    id::{ContainerId, NamespaceName},
    kind::chain,
};
use tracing::{info, warn};

use super::{
    Tasks,
    connection::Connection,
    shims::ShimError,
    task::{Phase, Task},
};
use crate::failure::Failure as _;

/// How long the first further attempt waits; each waits twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// So many further attempts, some eight minutes; then it is left to the next supervisor's start.
const ATTEMPTS: u32 = 9;

impl Tasks {
    /// Takes back whatever was made for a task that doesn't come to be. Failures are logged: the error that brought us
    /// here is the one to report. What can't be done now is done later.
    pub(super) async fn undo(self: &Arc<Self>, task: &Task) {
        if !self.try_undo(task).await {
            self.undo_later(task.namespace.clone(), task.id.clone());
        }
    }

    /// One attempt; whether nothing is left. The bundle goes last, and stays while there is anything to be found by it.
    pub(super) async fn try_undo(&self, task: &Task) -> bool {
        let (id, namespace) = (&task.id, &task.namespace);
        if task.facts.borrow().origin.is_none() {
            // Another attempt's bundle says which shim may be there.
            let origin = task.bundle.origin();
            task.facts.send_modify(|facts| facts.origin = origin);
        }
        let mut connection = task.facts.borrow().connection.clone();
        let mut short = false;
        if connection.is_none()
            && let Some(program) = task.program(&self.program)
        {
            // The contract's way to find a shim that may be there: a second start prints the address of the first.
            match program.start(namespace, id, task.bundle.path()).await {
                Ok(bootstrap) => connection = Connection::open(&bootstrap).await.ok(),
                Err(error) => short |= is_shortage(&error),
            }
        }
        if let Some(connection) = connection {
            super::delete::dismiss(task, &connection, true).await;
        }
        if let Some(program) = task.program(&self.program)
            && let Err(error) = program.delete(namespace, id, task.bundle.path()).await
        {
            warn!(%namespace, %id, error = %chain(&error), "clean-up by the shim's program failed");
            short |= is_shortage(&error);
        }
        self.end_story(task);
        if short {
            return false;
        }
        task.bundle.remove_dead_socket(false).await;
        self.clear(task)
    }

    /// Unmounts and removes a bundle; whether it is gone.
    fn clear(&self, task: &Task) -> bool {
        let cleared = task.bundle.unmount().and_then(|()| task.bundle.remove());
        if let Err(error) = &cleared {
            let (namespace, id) = (&task.namespace, &task.id);
            warn!(%namespace, %id, kind = ?error.kind(), error = %chain(error), "bundle left behind, for now");
        }
        cleared.is_ok()
    }

    /// Clears the place of a task that is over, now or, if that can't be done, later.
    pub(super) fn clear_or_later(self: &Arc<Self>, task: &Task) {
        if !self.clear(task) {
            self.undo_later(task.namespace.clone(), task.id.clone());
        }
    }

    /// Tries again in a while, unless somebody has made a task of that name meanwhile, who has then cleared its place.
    fn undo_later(self: &Arc<Self>, namespace: NamespaceName, id: ContainerId) {
        let tasks = self.clone();
        tokio::spawn(async move {
            for attempt in 0..ATTEMPTS {
                tokio::time::sleep(FIRST_PAUSE * (1 << attempt)).await;
                let task = {
                    let mut known = tasks.lock();
                    let key = (namespace.clone(), id.clone());
                    if known.contains_key(&key) {
                        return;
                    }
                    // On its way out: who wants the place waits for it.
                    let task = Task::new(&tasks.folder, namespace.clone(), id.clone(), Phase::Ending);
                    known.insert(key, task.clone());
                    task
                };
                let turn = task.turn().await;
                let done = tasks.try_undo(&task).await;
                tasks.forget(&task);
                drop(turn);
                if done {
                    info!(%namespace, %id, "bundle that was left behind is gone");
                    return;
                }
            }
        });
    }
}

/// Whether a program was not even run, because the machine or this process has no more to give.
fn is_shortage(error: &ShimError) -> bool {
    let ShimError::Run { cause, .. } = error else { return false };
    let errno = cause.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN | Errno::ENOMEM))
        || cause.kind() == io::ErrorKind::OutOfMemory
}
