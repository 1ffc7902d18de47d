//! The garbage collector: marks what images, containers, tasks, leases and root labels reach, and sweeps the rest.
//!
//! Mark and sweep of the records are one write transaction, so that nothing can be made on something that is on its way
//! out. Files go after their records: a crash between leaves files that the next start sweeps. A collection can be ended at
//! any point: before its transaction is committed nothing has happened, afterwards only files are left over.
//!
//! `labels` is what labels mean, `mark` who is reached, `schedule` when this happens.

mod labels;
mod mark;
mod schedule;
mod time;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use proto::{
    containerd::{
        events::{ContentDelete, SnapshotRemove},
        services::images::v1::ImageDelete,
    },
    digest::Digest,
    kind::ErrorKind,
    typeurl,
};
use tokio::sync::Notify;

pub(crate) use self::{
    labels::{enter, expiry},
    mark::{Graph, Node},
    schedule::GcConfig,
};
use crate::{
    content::{CONTENT, Content, ContentError},
    failure::Failure,
    images::IMAGES,
    leases,
    metrics::METRICS,
    snapshots::{Kind, SNAPSHOTS, SnapshotError, Snapshotters, remove_in, split},
    store::{Database, EventSink, StoreError, Time, WriteTx},
};

/// A label on leases and snapshots of operations inside this process: without the process they mean nothing.
pub(crate) const OPERATION: &str = "berth.operation";

/// Between `prepare` and the container's record nothing refers to a fresh snapshot, unless the client uses leases.
const FRESH: Duration = Duration::from_secs(600);
/// Ingests that nobody has continued for so long are given up, unless a lease keeps them.
const INGEST_AGE: Duration = Duration::from_secs(24 * 3600);

/// Something whose records keep other things: containers, tasks.
pub(crate) trait Roots: Send + Sync {
    /// Enters what is kept in `namespace`.
    fn enter(&self, tx: &WriteTx, namespace: &str, graph: &mut Graph) -> Result<(), StoreError>;
}

/// Why a collection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    /// Blobs.
    #[error("collect blobs")]
    Content(#[from] ContentError),
    /// Snapshots.
    #[error("collect snapshots")]
    Snapshot(#[from] SnapshotError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This process ends.
    #[error("garbage collection was ended by the shutdown; the next start finishes it")]
    Cancelled,
}

impl Failure for CollectError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Content(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Cancelled => ErrorKind::Unavailable,
        }
    }
}

/// What a collection removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Collected {
    /// Blob records.
    pub(crate) blobs: usize,
    /// Bytes of these blobs.
    pub(crate) bytes: u64,
    /// Snapshots.
    pub(crate) snapshots: usize,
    /// Leases that had expired.
    pub(crate) leases: usize,
    /// Images that had expired.
    pub(crate) images: usize,
    /// Ingests that were given up.
    pub(crate) ingests: usize,
}

/// The collector.
pub(crate) struct Collector {
    db: Database,
    content: Arc<Content>,
    snapshots: Arc<Snapshotters>,
    events: EventSink,
    roots: Mutex<Vec<Box<dyn Roots>>>,
    config: Mutex<GcConfig>,
    pending: Mutex<schedule::Pending>,
    wake: Notify,
    cancelled: AtomicBool,
    // One collection at a time; a second one waits, since it may have been asked for after a newer deletion.
    running: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector {
    /// A collector over these stores; `start` lets it work by itself.
    pub(crate) fn new(
        db: Database,
        content: Arc<Content>,
        snapshots: Arc<Snapshotters>,
        events: EventSink,
    ) -> Arc<Self> {
        Arc::new(Self {
            db,
            content,
            snapshots,
            events,
            roots: Mutex::default(),
            config: Mutex::default(),
            pending: Mutex::default(),
            wake: Notify::new(),
            cancelled: AtomicBool::new(false),
            running: Mutex::default(),
        })
    }

    /// Adds records that keep things. To be done before the first collection.
    pub(crate) fn add_roots(&self, roots: impl Roots + 'static) {
        lock(&self.roots).push(Box::new(roots));
    }

    fn go_on(&self) -> bool {
        !self.cancelled.load(Ordering::Acquire)
    }

    /// Puts right what a crash left: operations of the dead process, files without records, records without files.
    /// To be run once, before service begins.
    pub(crate) fn repair(&self) -> Result<(), CollectError> {
        self.db.write(|tx| {
            for (namespace, id, lease) in leases::all_in(tx)? {
                if lease.labels.contains_key(OPERATION) {
                    leases::delete_in(tx, &namespace, &id)?;
                }
            }
            for (namespace, key, record) in SNAPSHOTS.list_all(tx)? {
                if record.kind != Kind::Committed && record.labels.contains_key(OPERATION) {
                    // Its folder goes with the repair below.
                    let (driver, key) = split(&key);
                    match remove_in(tx, driver, &namespace, key) {
                        Ok(_) | Err(SnapshotError::HasChildren { .. }) => {}
                        Err(error) => return Err(CollectError::from(error)),
                    }
                }
            }
            Ok(())
        })?;
        proto::fault!("supervisor.repair.operations_undone");
        self.content.sweep_blobs()?;
        proto::fault!("supervisor.repair.blobs_swept");
        self.snapshots.repair()?;
        Ok(())
    }

    /// Collects now.
    pub(crate) fn collect(&self) -> Result<Collected, CollectError> {
        let _turn = lock(&self.running);
        let began = Instant::now();
        let done = self.collect_now(began);
        METRICS.collected(began.elapsed(), done.as_ref().ok().map(|done| [done.blobs, done.snapshots, done.leases]));
        done
    }

    fn collect_now(&self, began: Instant) -> Result<Collected, CollectError> {
        let mark_and_sweep = || {
            self.db.write(|tx| {
                let mut sweep = Sweep::default();
                for (namespace, _) in crate::namespaces::all_in(tx)? {
                    self.collect_namespace(tx, &namespace, &mut sweep)?;
                }
                if sweep.is_empty() { Err(Nothing::Here(Box::new(sweep))) } else { Ok(sweep) }
            })
        };
        let mark_and_sweep = || match mark_and_sweep() {
            Ok(sweep) => Ok(sweep),
            // Rolled back rather than committed: a commit would be a sync of the disk for nothing.
            Err(Nothing::Here(sweep)) => Ok(*sweep),
            Err(Nothing::Failed(error)) => Err(error),
        };
        let sweep = match mark_and_sweep() {
            // A full disk is when it matters most: the second time, the database's reserve is there.
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => mark_and_sweep()?,
            other => other?,
        };
        proto::fault!("supervisor.gc.unrecorded");
        let Sweep { gone, bytes, leases, images, due, leased_ingests } = sweep;
        let mut collected = Collected { bytes, leases, images, ..Collected::default() };
        self.remove_files(&gone, &mut collected)?;
        proto::fault!("supervisor.gc.folders_removed");
        let (ingests, next_ingest) = self.content.sweep_ingests(INGEST_AGE, &leased_ingests)?;
        collected.ingests = ingests;
        if collected != Collected::default() {
            self.db.renew_reserve();
            tracing::info!(?collected, ms = began.elapsed().as_millis() as u64, "garbage collected");
        }
        self.tell(&gone);
        let due = due.map(Time::until).into_iter().chain(next_ingest).min();
        lock(&self.pending).done(began.elapsed(), due);
        Ok(collected)
    }

    fn remove_files(&self, gone: &[Gone], collected: &mut Collected) -> Result<(), CollectError> {
        let (mut digests, mut folders) = (Vec::new(), Vec::new());
        for one in gone {
            match &one.node {
                Node::Content(digest) => digests.extend(digest.parse::<Digest>()),
                Node::Snapshot(..) => folders.extend(one.folder.clone()),
                Node::Image(_) | Node::Container(_) => {}
            }
        }
        // In small lots: the transaction that keeps writers from bringing a blob back must not last.
        for lot in digests.chunks(16) {
            self.content.remove_files(lot)?;
            collected.blobs += lot.len();
            if !self.go_on() {
                return Err(CollectError::Cancelled);
            }
        }
        proto::fault!("supervisor.gc.blobs_removed");
        for folder in folders {
            self.snapshots.remove_folders(&[folder])?;
            collected.snapshots += 1;
            if !self.go_on() {
                return Err(CollectError::Cancelled);
            }
        }
        Ok(())
    }

    /// Tells subscribers what is gone, as if somebody had deleted it.
    fn tell(&self, gone: &[Gone]) {
        for Gone { namespace, node, .. } in gone {
            match node {
                Node::Content(digest) => {
                    let event = ContentDelete { digest: digest.clone() };
                    (self.events)(namespace, "/content/delete", typeurl::pack(&event));
                }
                Node::Snapshot(_, key) => {
                    let event = SnapshotRemove { key: key.clone() };
                    (self.events)(namespace, "/snapshot/remove", typeurl::pack(&event));
                }
                Node::Image(name) => {
                    let event = ImageDelete { name: name.clone() };
                    (self.events)(namespace, "/images/delete", typeurl::pack(&event));
                }
                Node::Container(_) => {}
            }
        }
    }

    fn collect_namespace(&self, tx: &WriteTx, namespace: &str, sweep: &mut Sweep) -> Result<(), CollectError> {
        let mut graph = Graph::default();
        for (name, image) in IMAGES.list(tx, namespace, "")? {
            if sweep.is_over(labels::expiry(&image.labels)) {
                IMAGES.remove(tx, namespace, &name)?;
                sweep.images += 1;
                sweep.gone.push(Gone { namespace: namespace.to_owned(), node: Node::Image(name), folder: None });
                continue;
            }
            let node = Node::Image(name);
            enter(&mut graph, &node, &image.labels);
            graph.reference(node.clone(), Node::Content(image.target.digest.to_string()));
            graph.root(node);
        }
        for roots in lock(&self.roots).iter() {
            roots.enter(tx, namespace, &mut graph)?;
        }
        self.enter_leases(tx, namespace, &mut graph, sweep)?;
        let content = CONTENT.list(tx, namespace, "")?;
        for (digest, info) in &content {
            let node = Node::Content(digest.clone());
            enter(&mut graph, &node, &info.labels);
            if labels::is_root(&info.labels) {
                graph.root(node);
            }
        }
        let snapshots = SNAPSHOTS.list(tx, namespace, "")?;
        for (key, record) in &snapshots {
            let (driver, key) = split(key);
            let node = |key: &str| Node::Snapshot(driver.to_owned(), key.to_owned());
            enter(&mut graph, &node(key), &record.labels);
            if let Some(parent) = &record.parent {
                graph.stands_on(node(key), node(parent));
            }
            // Of fresh ones, the next collection may be the first that is allowed to take them.
            let left = FRESH.saturating_sub(record.updated_at.age());
            let fresh = record.kind != Kind::Committed && !sweep.is_over(Some(Time::now().after(left)));
            if fresh || labels::is_root(&record.labels) {
                graph.root(node(key));
            }
        }
        let marked = graph.mark(|| self.go_on()).ok_or(CollectError::Cancelled)?;
        for (digest, info) in content {
            let node = Node::Content(digest);
            if !marked.contains(&node) {
                let Node::Content(digest) = &node else { continue };
                CONTENT.remove(tx, namespace, digest)?;
                sweep.bytes += info.size;
                sweep.gone.push(Gone { namespace: namespace.to_owned(), node, folder: None });
            }
        }
        let mut dead: Vec<_> = snapshots
            .iter()
            .map(|(key, record)| (split(key), record))
            .filter(|((driver, key), _)| !marked.contains(&Node::Snapshot((*driver).into(), (*key).into())))
            .collect();
        // What a snapshotter keeps that isn't loaded now stays until it is: nobody could remove its files.
        dead.retain(|((driver, _), _)| self.snapshots.get(driver).is_ok());
        // Those with the longest chains first: nothing is removed before what stands on it.
        dead.sort_by_key(|(_, record)| std::cmp::Reverse(record.chain.len()));
        for ((driver, key), _) in dead {
            let folder = Some((driver.to_owned(), remove_in(tx, driver, namespace, key)?));
            let node = Node::Snapshot(driver.to_owned(), key.to_owned());
            sweep.gone.push(Gone { namespace: namespace.to_owned(), node, folder });
        }
        Ok(())
    }

    fn enter_leases(
        &self,
        tx: &WriteTx,
        namespace: &str,
        graph: &mut Graph,
        sweep: &mut Sweep,
    ) -> Result<(), StoreError> {
        for (id, lease) in leases::list_in(tx, namespace)? {
            if sweep.is_over(labels::expiry(&lease.labels)) {
                leases::delete_in(tx, namespace, &id)?;
                sweep.leases += 1;
                continue;
            }
            let flat = labels::is_flat(&lease.labels);
            for resource in leases::resources_in(tx, namespace, &id)? {
                let node = match (resource.kind.as_str(), resource.kind.strip_prefix("snapshots/")) {
                    ("content", _) => Node::Content(resource.id),
                    ("images" | "image", _) => Node::Image(resource.id),
                    (_, Some(driver)) => Node::Snapshot(driver.to_owned(), resource.id),
                    ("ingests", _) => {
                        sweep.leased_ingests.insert((namespace.to_owned(), resource.id));
                        continue;
                    }
                    _ => continue,
                };
                if flat { graph.flat_root(node) } else { graph.root(node) }
            }
        }
        Ok(())
    }
}

/// Something that was removed, and where its files are.
struct Gone {
    namespace: String,
    node: Node,
    folder: Option<(String, u64)>,
}

#[derive(Default)]
struct Sweep {
    gone: Vec<Gone>,
    bytes: u64,
    leases: usize,
    images: usize,
    // The next moment at which something more may be collected.
    due: Option<Time>,
    leased_ingests: HashSet<(String, String)>,
}

impl Sweep {
    fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.leases == 0
    }

    /// Whether a moment has come; one that has not is remembered.
    fn is_over(&mut self, at: Option<Time>) -> bool {
        match at {
            Some(at) if at <= Time::for_expiry() => true,
            Some(at) => {
                self.due = Some(self.due.map_or(at, |due| due.min(at)));
                false
            }
            None => false,
        }
    }
}

/// How a transaction ends that is not to be committed.
enum Nothing {
    Here(Box<Sweep>),
    Failed(CollectError),
}

impl<E: Into<CollectError>> From<E> for Nothing {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

#[cfg(test)]
mod tests;
