//! The garbage collector: marks what images, containers, leases and root labels reach, and sweeps the rest.
//!
//! Mark and sweep of the records are one write transaction, so that nothing can be made on something that is on its way
//! out. Files go after their records: a crash between leaves files that the next start sweeps.
//!
//! References are containerd's labels: `containerd.io/gc.ref.content…` and `containerd.io/gc.ref.snapshot.DRIVER…`, and
//! `containerd.io/gc.root` for what stays by itself.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::{digest::Digest, kind::ErrorKind};

use crate::{
    content::{CONTENT, Content, ContentError},
    failure::Failure,
    images::IMAGES,
    leases,
    metrics::METRICS,
    snapshots::{Kind, SNAPSHOTS, SnapshotError, Snapshotters, remove_in, split},
    store::{Database, Labels, StoreError, WriteTx},
};

const REF_CONTENT: &str = "containerd.io/gc.ref.content";
const REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
const ROOT: &str = "containerd.io/gc.root";
/// A label on leases and snapshots of operations inside this process: without the process they mean nothing.
pub(crate) const OPERATION: &str = "berth.operation";

/// Between `prepare` and the container's record nothing refers to a fresh snapshot, unless the client uses leases.
const FRESH: Duration = Duration::from_secs(600);
/// Ingests that nobody has continued for so long are given up.
const INGEST_AGE: Duration = Duration::from_secs(24 * 3600);
/// Deletions come in bursts; one collection does for all of them.
const DELAY: Duration = Duration::from_millis(500);

/// One thing that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// A blob by its digest.
    Content(String),
    /// A snapshot by its snapshotter and its key.
    Snapshot(String, String),
    /// An image by its name.
    Image(String),
}

/// Something whose records keep other things: containers, for one.
pub(crate) trait Roots: Send + Sync {
    /// What is kept in `namespace`.
    fn roots(&self, tx: &WriteTx, namespace: &str) -> Result<Vec<Node>, StoreError>;
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
}

impl Failure for CollectError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Content(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

/// What a collection removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Collected {
    /// Blob records.
    pub(crate) blobs: usize,
    /// Snapshots.
    pub(crate) snapshots: usize,
    /// Leases that had expired.
    pub(crate) leases: usize,
}

/// The collector.
pub(crate) struct Collector {
    db: Database,
    content: Arc<Content>,
    snapshots: Arc<Snapshotters>,
    roots: Mutex<Vec<Box<dyn Roots>>>,
    scheduled: Mutex<bool>,
    // One collection at a time; a second one waits, since it may have been asked for after a newer deletion.
    running: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector {
    /// A collector over these stores.
    pub(crate) fn new(db: Database, content: Arc<Content>, snapshots: Arc<Snapshotters>) -> Arc<Self> {
        Arc::new(Self {
            db,
            content,
            snapshots,
            roots: Mutex::default(),
            scheduled: Mutex::default(),
            running: Mutex::default(),
        })
    }

    /// Adds records that keep things. To be done before the first collection.
    pub(crate) fn add_roots(&self, roots: impl Roots + 'static) {
        lock(&self.roots).push(Box::new(roots));
    }

    /// Puts right what a crash left: operations of the dead process, files without records, records without files.
    /// Then collects. To be run once, before service begins and after the roots are known.
    pub(crate) fn repair(&self) -> Result<Collected, CollectError> {
        self.db.write(|tx| {
            for (namespace, id, lease) in leases::all_in(tx)? {
                if lease.labels.contains_key(OPERATION) {
                    leases::delete_in(tx, &namespace, &id)?;
                }
            }
            for (namespace, key, record) in SNAPSHOTS.list_all(tx)? {
                if record.kind == Kind::Active && record.labels.contains_key(OPERATION) {
                    let (snapshotter, key) = split(&key);
                    // Its folder goes with the repair below.
                    match remove_in(tx, snapshotter, &namespace, key) {
                        Ok(_) | Err(SnapshotError::HasChildren { .. }) => {}
                        Err(error) => return Err(CollectError::from(error)),
                    }
                }
            }
            Ok(())
        })?;
        self.content.sweep_files(INGEST_AGE)?;
        self.snapshots.repair()?;
        self.collect()
    }

    /// Collects soon, once for all calls until then.
    pub(crate) fn schedule(self: &Arc<Self>) {
        if std::mem::replace(&mut *lock(&self.scheduled), true) {
            return;
        }
        let collector = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(DELAY).await;
            *lock(&collector.scheduled) = false;
            let done = tokio::task::spawn_blocking(move || collector.collect()).await;
            match done {
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => tracing::warn!(error = %proto::kind::chain(&error), "garbage collection failed"),
            }
        });
    }

    /// Collects now.
    pub(crate) fn collect(&self) -> Result<Collected, CollectError> {
        let _turn = lock(&self.running);
        let began = std::time::Instant::now();
        let done = self.collect_now(began);
        METRICS.collected(began.elapsed(), done.as_ref().ok().map(|done| [done.blobs, done.snapshots, done.leases]));
        done
    }

    fn collect_now(&self, began: std::time::Instant) -> Result<Collected, CollectError> {
        let mark_and_sweep = || {
            self.db.write(|tx| {
                let mut sweep = Sweep::default();
                for (namespace, _) in crate::namespaces::all_in(tx)? {
                    self.collect_namespace(tx, &namespace, &mut sweep)?;
                }
                Ok::<_, CollectError>(sweep)
            })
        };
        let sweep = match mark_and_sweep() {
            // A full disk is when it matters most: the second time, the database's reserve is there.
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => mark_and_sweep()?,
            other => other?,
        };
        for digest in &sweep.digests {
            self.content.remove_file(digest)?;
        }
        self.snapshots.remove_folders(&sweep.folders)?;
        self.db.renew_reserve();
        let Sweep { digests, folders, leases } = sweep;
        let collected = Collected { blobs: digests.len(), snapshots: folders.len(), leases };
        if collected != Collected::default() {
            tracing::info!(?collected, ms = began.elapsed().as_millis() as u64, "garbage collected");
        }
        Ok(collected)
    }

    fn collect_namespace(&self, tx: &WriteTx, namespace: &str, sweep: &mut Sweep) -> Result<(), CollectError> {
        let content = CONTENT.list(tx, namespace, "")?;
        let snapshots = SNAPSHOTS.list(tx, namespace, "")?;
        let mut marked = HashSet::new();
        let mut todo = Vec::new();
        for (name, _) in IMAGES.list(tx, namespace, "")? {
            todo.push(Node::Image(name));
        }
        for roots in lock(&self.roots).iter() {
            todo.extend(roots.roots(tx, namespace)?);
        }
        for (_, id, lease) in leases::all_in(tx)?.into_iter().filter(|(ns, ..)| ns == namespace) {
            if expired(&lease.labels) {
                leases::delete_in(tx, namespace, &id)?;
                sweep.leases += 1;
                continue;
            }
            for resource in leases::resources_in(tx, namespace, &id)? {
                match resource.kind.as_str() {
                    "content" => todo.push(Node::Content(resource.id)),
                    "image" => todo.push(Node::Image(resource.id)),
                    kind => {
                        if let Some(snapshotter) = kind.strip_prefix("snapshots/") {
                            todo.push(Node::Snapshot(snapshotter.to_owned(), resource.id));
                        }
                    }
                }
            }
        }
        for (digest, info) in &content {
            if info.labels.contains_key(ROOT) {
                todo.push(Node::Content(digest.clone()));
            }
        }
        for (key, record) in &snapshots {
            let fresh = record.kind != Kind::Committed && record.updated_at.age() < FRESH;
            if fresh || record.labels.contains_key(ROOT) {
                todo.push(node(key));
            }
        }
        while let Some(node) = todo.pop() {
            if marked.contains(&node) {
                continue;
            }
            match &node {
                Node::Content(digest) => {
                    if let Some(info) = CONTENT.get(tx, namespace, digest)? {
                        references(&info.labels, &mut todo);
                    }
                }
                Node::Snapshot(snapshotter, key) => {
                    if let Some(record) = SNAPSHOTS.get(tx, namespace, &format!("{snapshotter}\0{key}"))? {
                        references(&record.labels, &mut todo);
                        todo.extend(record.parent.map(|parent| Node::Snapshot(snapshotter.clone(), parent)));
                    }
                }
                Node::Image(name) => {
                    if let Some(image) = IMAGES.get(tx, namespace, name)? {
                        references(&image.labels, &mut todo);
                        todo.push(Node::Content(image.target.digest.to_string()));
                    }
                }
            }
            marked.insert(node);
        }
        for (digest, _) in content {
            if marked.contains(&Node::Content(digest.clone())) {
                continue;
            }
            CONTENT.remove(tx, namespace, &digest)?;
            sweep.digests.extend(digest.parse::<Digest>());
        }
        // Those with the longest chains first: nothing is removed before what stands on it. What a snapshotter keeps that isn't
        // loaded now stays until it is: nobody could remove its files.
        let mut dead: Vec<_> = snapshots.iter().filter(|(key, _)| !marked.contains(&node(key))).collect();
        dead.retain(|(key, _)| self.snapshots.get(split(key).0).is_ok());
        dead.sort_by_key(|(_, record)| std::cmp::Reverse(record.chain.len()));
        for (key, _) in dead {
            let (snapshotter, key) = split(key);
            let id = remove_in(tx, snapshotter, namespace, key)?;
            sweep.folders.push((snapshotter.to_owned(), id));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Sweep {
    digests: Vec<Digest>,
    folders: Vec<(String, u64)>,
    leases: usize,
}

fn node(record_key: &str) -> Node {
    let (snapshotter, key) = split(record_key);
    Node::Snapshot(snapshotter.to_owned(), key.to_owned())
}

/// What labels refer to.
pub(crate) fn references(labels: &Labels, found: &mut Vec<Node>) {
    for (name, value) in labels {
        // `gc.ref.content`, `gc.ref.content.l.0` or `gc.ref.content/l.0`.
        if let Some(rest) = name.strip_prefix(REF_CONTENT)
            && (rest.is_empty() || rest.starts_with(['.', '/']))
        {
            found.push(Node::Content(value.clone()));
        } else if let Some(rest) = name.strip_prefix(REF_SNAPSHOT) {
            // `gc.ref.snapshot.DRIVER`, possibly with more behind a slash or point.
            let snapshotter = rest.split(['.', '/']).next().unwrap_or(rest);
            found.push(Node::Snapshot(snapshotter.to_owned(), value.clone()));
        }
    }
}

fn expired(labels: &Labels) -> bool {
    let Some(text) = labels.get(leases::EXPIRE_LABEL) else { return false };
    // A time that can't be read keeps the lease: losing data is worse than keeping it.
    text.parse::<prost_types::Timestamp>().is_ok_and(|at| {
        let now = crate::store::Time::now().to_proto();
        (at.seconds, at.nanos) <= (now.seconds, now.nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        images::manifest::{Descriptor, OCI_MANIFEST},
        store::{Stores, labels_from},
    };

    fn label(name: &str, value: &impl ToString) -> Labels {
        labels_from([(name.to_owned(), value.to_string())])
    }

    #[test]
    fn keeps_what_is_reached_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::open(dir.path(), &Default::default(), Arc::new(|_, _, _| {})).unwrap();
        let (content, snapshots) = (&stores.content, stores.snapshots.usual());
        let put = |bytes: &[u8], labels: &Labels| content.put("ns", bytes, labels, None).unwrap();
        snapshots.prepare("ns", "a", "", Labels::new(), None).unwrap();
        snapshots.commit("ns", "base", "a", Labels::new(), None).unwrap();
        snapshots.prepare("ns", "b", "base", Labels::new(), None).unwrap();
        snapshots.commit("ns", "top", "b", Labels::new(), None).unwrap();
        let config = put(b"config", &label("containerd.io/gc.ref.snapshot.overlayfs", &"top"));
        let manifest = put(b"manifest", &label("containerd.io/gc.ref.content.config", &config));
        let stray = put(b"stray", &Labels::new());
        let leased = put(b"leased", &Labels::new());
        let rooted = put(b"rooted", &label("containerd.io/gc.root", &"x"));
        let (lease, _) = stores.leases.create("ns", "", Labels::new()).unwrap();
        let resource = leases::Resource { kind: "content".into(), id: leased.to_string() };
        stores.leases.add("ns", &lease, &resource).unwrap();
        stores.images.create("ns", "img", Descriptor::new(OCI_MANIFEST, manifest, 8), Labels::new()).unwrap();
        let gc = &stores.gc;
        assert_eq!(gc.collect().unwrap(), Collected { blobs: 1, snapshots: 0, leases: 0 });
        assert!(!content.has("ns", &stray).unwrap() && content.has("ns", &rooted).unwrap());
        stores.leases.delete("ns", &lease).unwrap();
        stores.images.delete("ns", "img").unwrap();
        assert_eq!(gc.collect().unwrap(), Collected { blobs: 3, snapshots: 2, leases: 0 });
        assert_eq!(snapshots.list("ns", &[]).unwrap().len(), 0);
        assert!(content.has("ns", &rooted).unwrap());
        let folders = std::fs::read_dir(dir.path().join("supervisor/snapshots/overlayfs")).unwrap();
        assert_eq!(folders.filter(|f| f.as_ref().unwrap().file_name() != "l").count(), 0);
        // A fresh active snapshot waits for its container.
        snapshots.prepare("ns", "fresh", "", Labels::new(), None).unwrap();
        assert_eq!(gc.collect().unwrap(), Collected::default());
    }

    #[test]
    fn expired_leases_end() {
        assert!(expired(&label(leases::EXPIRE_LABEL, &"2020-01-01T00:00:00Z")));
        assert!(!expired(&label(leases::EXPIRE_LABEL, &"2999-01-01T00:00:00Z")));
        assert!(!expired(&label(leases::EXPIRE_LABEL, &"soon")));
    }

    #[test]
    fn repair_undoes_the_operations_of_a_dead_process() {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::open(dir.path(), &Default::default(), Arc::new(|_, _, _| {})).unwrap();
        let operation = label(OPERATION, &"pull");
        stores.leases.create("ns", "pull", operation.clone()).unwrap();
        stores.snapshots.usual().prepare("ns", "extract", "", operation, Some("pull")).unwrap();
        std::fs::create_dir_all(dir.path().join("supervisor/snapshots/overlayfs/77/fs")).unwrap();
        stores.gc.repair().unwrap();
        assert!(stores.leases.list("ns").unwrap().is_empty());
        assert!(stores.snapshots.usual().list("ns", &[]).unwrap().is_empty());
        assert!(!dir.path().join("supervisor/snapshots/overlayfs/77").exists());
    }
}
