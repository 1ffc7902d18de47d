//! Tasks: the living side of containers. Each has a shim that minds it and outlives us; here is who may ask what of it,
//! and what becomes of a task whose shim, or whose supervisor, died.
//!
//! One file per command. `task` holds one task, `rules` what is accepted when, `bundle` its folder, `shims` and
//! `connection` the way to its shim, `adopt` our start, `bury` a shim's death.

mod adopt;
mod bridge;
mod bundle;
mod bury;
mod census;
mod checkpoint;
mod connection;
mod create;
mod delete;
mod error;
mod exec;
mod info;
mod inspect;
mod observe;
mod patience;
mod roots;
mod rules;
mod runtimes;
mod shim_log;
pub(crate) mod shims;
mod signal;
mod start;
mod strays;
mod task;
mod undo;
mod wait;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proto::id::{ContainerId, NamespaceName};

pub(crate) use self::{
    connection::{ConnectError, Connection, request},
    error::TaskError,
    info::InfoError,
    roots::TaskRoots,
    runtimes::RuntimeError,
    shim_log::ShimLog,
};
use self::{
    runtimes::Runtimes,
    shims::Program,
    task::{Phase, Task},
};
use crate::{app::Draining, config::Config, containers::Containers, content::Content, events::EventBus};

type Key = (NamespaceName, ContainerId);

/// Every task of every namespace.
pub(crate) struct Tasks {
    tasks: Mutex<HashMap<Key, Arc<Task>>>,
    folder: PathBuf,
    runtimes: Runtimes,
    containers: Arc<Containers>,
    content: Arc<Content>,
    // For checkpoints on their way from or to their blobs.
    checkpoints: PathBuf,
    events: Arc<EventBus>,
    draining: Draining,
    // What every shim is told; the program itself differs.
    program: Program,
}

impl Tasks {
    /// No tasks yet; `adopt` looks for those of an earlier supervisor.
    pub(crate) fn new(
        config: &Config,
        containers: Arc<Containers>,
        content: Arc<Content>,
        events: Arc<EventBus>,
        draining: Draining,
    ) -> Arc<Self> {
        let checkpoints = config.data().join("checkpoints");
        let folder = config.run().join("tasks");
        checkpoint::sweep(&checkpoints, &folder);
        let debug = config.shim_debug || tracing::enabled!(tracing::Level::DEBUG);
        Arc::new(Self {
            tasks: Mutex::default(),
            folder,
            runtimes: Runtimes::new(config.runtimes.clone()),
            containers,
            content,
            checkpoints,
            events,
            draining,
            program: Program { shim: PathBuf::new(), socket: config.socket.clone(), debug },
        })
    }

    /// Berth's own shim.
    pub(crate) fn own_shim(&self) -> Result<PathBuf, RuntimeError> {
        self.runtimes.shim("io.containerd.berth.v1")
    }

    /// Whether a runtime's shim is Berth's.
    pub(crate) fn is_own_runtime(&self, runtime: &str) -> bool {
        self.runtimes.shim(runtime).is_ok_and(|shim| shim_log::is_ours(&shim))
    }

    /// Whether a runtime's shim reads runc's options: Berth's, and containerd's own.
    pub(crate) fn takes_runc_options(&self, runtime: &str) -> bool {
        let is_containerd_s = |shim: &Path| shim.file_name().is_some_and(|name| name == "containerd-shim-runc-v2");
        // One that isn't there yet is told when it is.
        self.runtimes.shim(runtime).map_or(true, |shim| shim_log::is_ours(&shim) || is_containerd_s(&shim))
    }

    /// The task of a container; one that is being adopted is waited for.
    pub(super) async fn find(&self, namespace: &NamespaceName, id: &str) -> Result<Arc<Task>, TaskError> {
        let id = ContainerId::new(id)?;
        let found = self.lock().get(&(namespace.clone(), id.clone())).cloned();
        let task = found.ok_or_else(|| TaskError::NotFound(id.to_string()))?;
        task.reaches(|phase| phase != Phase::Adopting).await;
        match task.phase() {
            Phase::Live | Phase::Orphan => Ok(task),
            _ => Err(TaskError::NotFound(id.to_string())),
        }
    }

    /// The task of a container, if there is one, without waiting.
    pub(super) fn known(&self, namespace: &NamespaceName, id: &ContainerId) -> Option<Arc<Task>> {
        self.lock().get(&(namespace.clone(), id.clone())).cloned()
    }

    /// Every task of a namespace, in the order of their ids.
    pub(super) fn all(&self, namespace: &NamespaceName) -> Vec<Arc<Task>> {
        let mut all: Vec<_> = self.lock().values().filter(|task| task.namespace == *namespace).cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Forgets a task of which nothing is left.
    pub(super) fn forget(&self, task: &Task) {
        task.set_phase(Phase::Ended);
        let mut tasks = self.lock();
        let key = (task.namespace.clone(), task.id.clone());
        if tasks.get(&key).is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), task)) {
            tasks.remove(&key);
        }
    }

    // Only whole insertions and removals happen under the lock, so a panic leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Task>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
