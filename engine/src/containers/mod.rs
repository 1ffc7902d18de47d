//! Containers: what was asked for, what is so, and how the one follows the other.
//!
//! Each container has one turn-taking lock: requests that change it queue there, and only their holder talks to the
//! supervisor about it. Readers never wait: they copy from a record behind a short lock. Ends of processes come from the
//! supervisor's events (`exits`), not through the queue, since whoever holds the turn may be waiting for just that.

pub mod archive;
pub mod attach;
pub mod cdi;
pub mod changes;
pub mod commit;
pub mod create;
mod discard;
pub mod exec;
pub mod exits;
pub mod export;
pub mod files;
pub mod follow;
pub mod forward;
pub mod frames;
pub mod health;
pub mod init;
pub mod inspect;
pub mod layers;
pub mod links;
pub mod list;
pub mod locallog;
pub mod log_config;
pub mod logs;
pub mod merge;
pub mod mounts;
pub mod names;
pub mod namespaces;
pub mod networking;
pub mod overlay;
pub mod ports;
mod propagation;
pub mod record;
pub mod register;
pub mod relay;
pub mod remove;
pub mod resources;
pub mod restart;
pub mod rootfs;
pub mod rules;
pub mod security;
pub mod shims;
pub mod size;
pub mod sources;
pub mod spec;
pub mod start;
pub mod stats;
pub mod stop;
pub mod store;
pub mod streams;
pub mod sweep;
pub mod update;
pub mod validate;
pub mod volumes_from;

use crate::{http::ApiError, images::ImageUser, time::Timestamp};
use attach::Waiting;
use exec::Exec;
use proto::containerd::types::Mount;
use record::{Phase, Record};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use store::Store;
use tokio::sync::watch;

/// One container.
#[derive(Debug)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Whoever changes the container holds this.
    pub turn: tokio::sync::Mutex<()>,
    live: Mutex<Live>,
    /// Ends and removal, for those who wait.
    pub ends: watch::Sender<Ends>,
    /// It has started, or failed to, or ended: for those that need it.
    pub starts: tokio::sync::Notify,
    /// Clients that joined before the process exists.
    pub waiting: Mutex<Vec<Waiting>>,
    /// What takes back a start that failed.
    undoing: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// What is known about a container right now.
#[derive(Debug)]
pub struct Live {
    /// What is also on disk.
    pub record: Record,
    /// A start is under way.
    pub starting: bool,
    /// The process ended before its start was over.
    pub early_exits: Vec<Exit>,
    /// Its end is being worked on.
    pub ending: bool,
    /// The kernel killed for want of memory.
    pub oom: bool,
    /// As of when it is known whether the processes are frozen; older news of that are no news.
    pub frozen_as_of: Timestamp,
    /// Last wait of the restart policy.
    pub restart_delay: Option<Duration>,
    /// Changes whenever a planned restart is called off.
    pub restart_plan: u64,
    /// Its log is being sent to somebody.
    pub forwarding: bool,
    /// Changes whenever somebody else begins to watch its health.
    pub health_watch: u64,
    /// Mounts of the snapshot, as the supervisor gave them.
    pub snapshot: Option<Vec<Mount>>,
    /// Others are linked to it.
    pub linked: bool,
    /// The supervisor may have a task of it, or be making one: asked for here or by the engine before, and not known to be gone.
    pub may_have_task: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, 128+n for signal n.
    pub code: i64,
    /// When.
    pub at: Timestamp,
    /// Of which process, where that is known: the end of an earlier run may be heard late.
    pub pid: Option<u32>,
}

impl Exit {
    /// Whether it can be the end of the run that has this pid.
    pub fn is_of(&self, pid: u32) -> bool {
        pid == 0 || self.pid.is_none_or(|own| own == pid)
    }
}

/// What waiters learn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// How often it ended.
    pub count: u64,
    /// Last exit code.
    pub code: i64,
    /// Gone for good.
    pub removed: bool,
}

impl Container {
    /// A container from its record.
    pub fn new(record: Record) -> Self {
        let ends = Ends { count: 0, code: record.state.exit_code, removed: false };
        Self {
            id: record.id.clone(),
            turn: tokio::sync::Mutex::default(),
            live: Mutex::new(Live {
                record,
                starting: false,
                early_exits: Vec::new(),
                ending: false,
                oom: false,
                frozen_as_of: Timestamp::default(),
                restart_delay: None,
                restart_plan: 0,
                health_watch: 0,
                forwarding: false,
                snapshot: None,
                linked: false,
                may_have_task: false,
            }),
            ends: watch::Sender::new(ends),
            starts: tokio::sync::Notify::new(),
            waiting: Mutex::default(),
            undoing: Mutex::default(),
        }
    }

    /// The state, for a moment: never held across an await.
    pub fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    /// Work that takes back a failed start, until [`Container::undone`].
    pub fn undo(&self, work: impl Future<Output = ()> + Send + 'static) {
        *lock(&self.undoing) = Some(tokio::spawn(work));
    }

    /// Waits until a failed start is taken back: the next change must not meet its remains. The caller has the turn.
    pub async fn undone(&self) {
        let undoing = lock(&self.undoing).take();
        if let Some(undoing) = undoing {
            // Should it have panicked, there is nothing more to wait for.
            let _ = undoing.await;
        }
    }

    /// A copy of the record.
    pub fn record(&self) -> Record {
        self.live().record.clone()
    }

    /// Attributes of its events: labels, name, image.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let live = self.live();
        let mut attributes = live.record.config.labels.clone();
        attributes.insert("name".into(), live.record.name.clone());
        attributes.insert("image".into(), live.record.config.image.clone());
        attributes
    }
}

/// All containers of this engine.
#[derive(Debug)]
pub struct Containers {
    /// Where records are kept.
    pub store: Store,
    /// `D/engine/containers`: a folder for each with its log and files.
    pub folder: PathBuf,
    /// `R/engine/streams`: FIFOs while they are being opened.
    pub streams: PathBuf,
    /// Stdio of containers whose shim isn't Berth's.
    pub relays: relay::Relays,
    table: Mutex<Table>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// passwd and group files of images, by the name of their topmost snapshot.
    pub users: Mutex<HashMap<String, Arc<::spec::users::Database>>>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<String, Arc<Container>>,
    /// Name to id; also of containers that are being made.
    names: HashMap<String, String>,
}

impl Containers {
    /// Containers from their records.
    pub fn new(store: Store, records: Vec<Record>, folder: PathBuf, streams: PathBuf) -> Self {
        let mut table = Table::default();
        for record in records {
            table.names.insert(record.name.clone(), record.id.clone());
            table.by_id.insert(record.id.clone(), Arc::new(Container::new(record)));
        }
        links::note(&table.by_id.values().cloned().collect::<Vec<_>>());
        let relays = relay::Relays::new(streams.with_file_name("relays"));
        let (execs, users) = (Mutex::default(), Mutex::default());
        Self { store, folder, streams, relays, table: Mutex::new(table), execs, users }
    }

    /// Finds by full id, name, or unique beginning of an id.
    pub fn find(&self, text: &str) -> Result<Arc<Container>, ApiError> {
        let table = lock(&self.table);
        if let Some(container) = table.by_id.get(text) {
            return Ok(container.clone());
        }
        let missing = || {
            let near = crate::http::suggest::suffix(text, table.names.keys().map(String::as_str));
            ApiError::not_found(format!("No such container: {text}{near}")).hint("berth ps --all shows all containers")
        };
        let name = text.strip_prefix('/').unwrap_or(text);
        if let Some(container) = table.names.get(name).and_then(|id| table.by_id.get(id)) {
            return Ok(container.clone());
        }
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let mut fitting = table.by_id.iter().filter(|(id, _)| id.starts_with(text));
        match (fitting.next(), fitting.next()) {
            (Some((_, container)), None) => Ok(container.clone()),
            (Some(_), Some(_)) => Err(ApiError::invalid(format!("multiple IDs found with provided prefix: {text}"))),
            (None, _) => Err(missing()),
        }
    }

    /// By full id.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        lock(&self.table).by_id.get(id).cloned()
    }

    /// All of them, newest first.
    pub fn all(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = lock(&self.table).by_id.values().cloned().collect();
        all.sort_by_cached_key(|container| std::cmp::Reverse(container.live().record.created));
        all
    }

    /// Takes a name for a container that is about to exist.
    pub fn reserve_name(&self, name: &str, id: &str) -> Result<(), ApiError> {
        let mut table = lock(&self.table);
        match table.names.get(name) {
            Some(owner) => Err(ApiError::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
            ))
            .hint(format!("berth rm {name}, or another --name"))),
            None => {
                table.names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    /// Gives a name back, if this container has it.
    pub fn release_name(&self, name: &str, id: &str) {
        let mut table = lock(&self.table);
        if table.names.get(name).is_some_and(|owner| owner == id) {
            table.names.remove(name);
        }
    }

    /// Adds a container whose name is reserved.
    pub fn insert(&self, container: Arc<Container>) {
        lock(&self.table).by_id.insert(container.id.clone(), container);
    }

    /// Forgets a container and its name.
    pub fn forget(&self, id: &str) {
        let mut table = lock(&self.table);
        if let Some(container) = table.by_id.remove(id) {
            let name = container.live().record.name.clone();
            if table.names.get(&name).is_some_and(|owner| owner == id) {
                table.names.remove(&name);
            }
        }
        drop(table);
        lock(&self.execs).retain(|_, exec| exec.container != id);
    }

    /// Folder of a container.
    pub fn folder_of(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// Path of a container's log.
    pub fn log_of(&self, id: &str) -> PathBuf {
        self.folder_of(id).join(format!("{id}-json.log"))
    }

    /// Who needs which image, for `rmi`.
    pub fn image_users(&self, image_id: &str) -> Vec<ImageUser> {
        let all = self.all();
        let users = all.iter().filter_map(|container| {
            let live = container.live();
            (live.record.image_id == image_id)
                .then(|| ImageUser { container_id: container.id.clone(), running: live.record.state.phase.is_live() })
        });
        users.collect()
    }

    /// How many containers use each image.
    pub fn image_counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for container in self.all() {
            *counts.entry(container.live().record.image_id.clone()).or_default() += 1;
        }
        counts
    }

    /// Remembers an exec.
    pub fn add_exec(&self, exec: Arc<Exec>) {
        lock(&self.execs).insert(exec.id.clone(), exec);
    }

    /// An exec by its id.
    pub fn exec(&self, id: &str) -> Result<Arc<Exec>, ApiError> {
        let found = lock(&self.execs).get(id).cloned();
        found.ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
    }

    /// Execs of a container.
    pub fn execs_of(&self, container: &str) -> Vec<Arc<Exec>> {
        lock(&self.execs).values().filter(|exec| exec.container == container).cloned().collect()
    }

    /// Drops execs that ended a while ago, so that a health check by cron doesn't fill the memory.
    pub fn forget_old_execs(&self) {
        lock(&self.execs).retain(|_, exec| !exec.is_stale());
    }

    /// Notes which phase is on disk soon.
    pub fn keep_soon(&self, container: &Container) {
        self.store.put_soon(&container.live().record);
    }
}

/// Whether somebody else may be waiting for the process.
pub fn is_up(phase: Phase) -> bool {
    phase.is_live() || phase == Phase::Restarting
}

/// Locks; a panic elsewhere leaves data that is as good as before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
