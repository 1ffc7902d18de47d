//! Filesystems of builds: snapshots at the supervisor.
//!
//! ```text
//! Trees::scratch, ::image ──▶ Tree ──Trees::draft──▶ Draft ──commit──▶ Tree ──keep──▶ a name that Trees::find knows
//! ```
//!
//! A [`Tree`] is a committed snapshot, kept from the collector while anything here refers to it: by the lease of this engine's builds
//! for what it made, by one of its own for an image, by the one that makes it last for what was found by a name. [`Trees::keep`] makes it last by one more lease, whose name is the
//! name to find it by; what several keep goes with the last of these. Leases of engines that ended otherwise are given back at the
//! next start ([`Lease::sweep`]), with everything half-made.
//!
//! Files are read and written by descriptors of detached mounts ([`Tree::open`], [`Draft::open`]): the machine's mount table never
//! has them.

mod root;

use crate::{
    ids,
    images::ImageContent,
    supervisor::{Client, Lease, SupervisorError},
    time::Timestamp,
};
use nix::errno::Errno;
use proto::{
    containerd::{
        services::{
            leases::v1 as leases,
            snapshots::v1::{
                CommitSnapshotRequest, Info, Kind, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
                UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
            },
        },
        types::Mount,
    },
    digest::Digest,
    kind::{ErrorKind, chain},
};
use root::Access;
use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::{runtime::Handle, sync::OnceCell};
use tracing::warn;

/// Begins the names of committed snapshots of builds.
pub const PREFIX: &str = "berth-tree-";
/// Label of leases that make trees last; its value says what for.
const KEPT: &str = "berth/build.kept";
/// Label of snapshots: manifest of the image at the bottom. [`BASE_BLOB`] keeps that from the collector.
const BASE: &str = "berth/build.base";
const BASE_BLOB: &str = "containerd.io/gc.ref.content.base";
/// Label of snapshots: their difference to what is below, as a blob. [`LAYER_BLOB`] keeps that from the collector.
const LAYER: &str = "berth/build.layer";
const LAYER_BLOB: &str = "containerd.io/gc.ref.content.layer";

/// Why a filesystem isn't to be had.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The supervisor refused or failed.
    #[error("{operation} {object}")]
    Supervisor {
        /// What was tried.
        operation: &'static str,
        /// With what.
        object: String,
        /// Why not.
        #[source]
        cause: SupervisorError,
    },
    /// Mounts of a kind that nobody here knows.
    #[error("snapshot mounts are not understood: {0}")]
    Mounts(String),
    /// The kernel refused.
    #[error("mount a snapshot of type {kind}")]
    Open {
        /// Its type.
        kind: String,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// No random bytes, no thread, or one that broke down.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
}

impl TreeError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Supervisor { cause, .. } => cause.kind(),
            _ => ErrorKind::Internal,
        }
    }
}

/// Makes filesystems. Cheap to clone.
#[derive(Clone)]
pub struct Trees(Arc<Workshop>);

struct Workshop {
    /// Makes its calls under the lease of this engine's builds.
    client: Client,
    /// Under none: a supervisor of Berth's has a lease keep what is looked up under it, too.
    plain: Client,
    /// What was found by its name and is in use.
    used: Mutex<HashMap<String, Used>>,
    lease: String,
    count: AtomicU64,
    runtime: Handle,
}

#[derive(Default)]
struct Used {
    count: usize,
    /// To go as soon as nobody uses it.
    doomed: bool,
}

/// A filesystem that nobody changes any more.
#[derive(Clone)]
pub struct Tree(Arc<Kept>);

struct Kept {
    trees: Trees,
    snapshot: Option<Snapshot>,
    /// What it stands on, as long as it is there.
    _below: Option<Tree>,
    base: Option<Base>,
    view: OnceCell<View>,
    layer: OnceCell<Layer>,
}

struct Snapshot {
    snapshotter: String,
    key: String,
    hold: Hold,
    /// Somebody made it last: it isn't ours to remove.
    lasts: AtomicBool,
}

/// What keeps a snapshot while a [`Tree`] of it is there.
enum Hold {
    /// The lease of the workshop; nobody else knows its name.
    Made,
    /// A lease of its own.
    Lease(Lease),
    /// The lease that makes it last, which isn't given back before this is.
    Lasting(Use),
    /// What stands on it.
    Above(Tree),
}

/// What was made to last is in use.
struct Use {
    trees: Trees,
    name: String,
}

impl Use {
    /// Nothing if it is about to go.
    fn begin(trees: &Trees, name: &str) -> Option<Self> {
        let mut used = trees.used();
        let entry = used.entry(name.to_owned()).or_default();
        if entry.doomed {
            return None;
        }
        entry.count += 1;
        Some(Self { trees: trees.clone(), name: name.to_owned() })
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let doomed = {
            let mut used = self.trees.used();
            let Some(entry) = used.get_mut(&self.name) else { return };
            entry.count -= 1;
            if entry.count > 0 {
                return;
            }
            used.remove(&self.name).is_some_and(|entry| entry.doomed)
        };
        if doomed {
            let (trees, name) = (self.trees.clone(), std::mem::take(&mut self.name));
            self.trees.later(async move {
                if let Err(error) = trees.let_go(&name).await {
                    warn!(error = %chain(&error), "result of a build stays");
                }
            });
        }
    }
}

struct View {
    key: String,
    mounts: Vec<Mount>,
}

/// The image that a tree began with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Name of the snapshot of all its layers, if it has any.
    pub chain: Option<String>,
}

/// The difference of a tree to what it stands on, as a blob of the content store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: i64,
    /// Digest of the plain archive.
    pub diff_id: Digest,
    /// When it was made.
    pub created: Timestamp,
}

/// A filesystem that is being written. Dropped, nothing of it stays.
pub struct Draft {
    below: Tree,
    key: String,
    mounts: Vec<Mount>,
    done: bool,
}

/// What was made to last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lasting {
    /// To find it by.
    pub name: String,
    /// Bytes that it takes of its own, without what it stands on.
    pub size: u64,
}

fn supervisor(operation: &'static str, object: &str) -> impl FnOnce(SupervisorError) -> TreeError {
    let object = object.to_owned();
    move |cause| TreeError::Supervisor { operation, object, cause }
}

impl Trees {
    /// Takes the lease under which all is made; after [`Lease::sweep`], which would take it for one of an engine before.
    pub async fn open(client: &Client) -> Result<Self, TreeError> {
        let id = format!("berth-builds-{}", random()?);
        // While this engine is there: without an end of its own.
        let lease = Lease::take_for_good(client, &id).await.map_err(supervisor("take lease", &id))?;
        let workshop = Workshop {
            client: lease.client,
            plain: client.clone(),
            used: Mutex::default(),
            lease: id,
            count: AtomicU64::new(0),
            runtime: Handle::current(),
        };
        Ok(Self(Arc::new(workshop)))
    }

    /// Makes calls under the lease of builds.
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    fn used(&self) -> MutexGuard<'_, HashMap<String, Used>> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty filesystem.
    pub fn scratch(&self) -> Tree {
        let (view, layer) = (OnceCell::new(), OnceCell::new());
        Tree(Arc::new(Kept { trees: self.clone(), snapshot: None, _below: None, base: None, view, layer }))
    }

    /// The files of an image, all of whose layers are unpacked (`images::unpack::missing_layers`).
    pub async fn image(&self, image: &ImageContent) -> Result<Tree, TreeError> {
        let chain = image.chain_id().map(|chain| chain.to_string());
        let base = Some(Base { manifest: image.manifest, chain: chain.clone() });
        let snapshot = match chain {
            Some(chain) => Some(self.hold(self.0.client.snapshotter(), &chain, base.as_ref()).await?),
            None => None,
        };
        let (view, layer) = (OnceCell::new(), OnceCell::new());
        Ok(Tree(Arc::new(Kept { trees: self.clone(), snapshot, _below: None, base, view, layer })))
    }

    /// Keeps a snapshot of others from the collector, and the manifest of the image it is of.
    async fn hold(&self, snapshotter: &str, key: &str, base: Option<&Base>) -> Result<Snapshot, TreeError> {
        let id = format!("berth-holds-{}", random()?);
        let mut resources = vec![resource(snapshotter, key)];
        resources.extend(base.map(blob));
        let (trees, at) = (self.clone(), (snapshotter.to_owned(), key.to_owned()));
        self.run(async move {
            let (snapshotter, key) = at;
            let failed = supervisor("hold snapshot", &key);
            let lease = match Lease::take_for_good(trees.client(), &id).await {
                Ok(lease) => lease,
                Err(error) => return Err(failed(error)),
            };
            let added = add(trees.client(), &id, resources).await.map_err(failed);
            let held = match added {
                // It may have gone before it was held.
                Ok(()) => trees.stat(&snapshotter, &key).await.map(drop),
                Err(error) => Err(error),
            };
            match held {
                Ok(()) => Ok(Snapshot { snapshotter, key, hold: Hold::Lease(lease), lasts: AtomicBool::new(true) }),
                Err(error) => {
                    lease.give_back_later().await;
                    Err(error)
                }
            }
        })
        .await?
    }

    async fn stat(&self, snapshotter: &str, key: &str) -> Result<Info, TreeError> {
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        let call = |client: Client, request| async move { client.snapshots().stat(request).await };
        let answer = self.0.plain.retry(request, call).await.map_err(supervisor("look up snapshot", key))?;
        Ok(answer.info.unwrap_or_default())
    }

    /// Begins a filesystem above another.
    pub async fn draft(&self, below: &Tree) -> Result<Draft, TreeError> {
        let (trees, below) = (self.clone(), below.clone());
        // In a task: should nobody wait for it any more, what it has made is still removed.
        self.run(async move {
            let key = trees.key();
            let request = PrepareSnapshotRequest {
                snapshotter: below.snapshotter().to_owned(),
                key: key.clone(),
                parent: below.snapshot_key().unwrap_or_default().to_owned(),
                ..PrepareSnapshotRequest::default()
            };
            let mut draft = Draft { below, key, mounts: Vec::new(), done: false };
            match trees.client().snapshots().prepare(request).await.map_err(SupervisorError::from) {
                Ok(answer) => draft.mounts = answer.into_inner().mounts,
                Err(cause) => return Err(supervisor("prepare snapshot", &draft.key.clone())(cause)),
            }
            Ok(draft)
        })
        .await?
    }

    /// Makes a filesystem last, across restarts and until [`Trees::remove`]; `description` is for people.
    pub async fn keep(&self, tree: &Tree, description: &str) -> Result<Lasting, TreeError> {
        let snapshotter = tree.snapshotter().to_owned();
        let Some(snapshot) = &tree.0.snapshot else {
            return Ok(Lasting { name: SCRATCH.to_owned(), size: 0 });
        };
        let name = format!("berth-keeps-{}", random()?);
        let base = tree.0.base.as_ref();
        let mut resources = vec![resource(&snapshotter, &snapshot.key)];
        // Of what is an image and nothing more, the manifest is referred to by no snapshot of ours.
        resources.extend(base.map(blob));
        let (client, keyed) = (self.0.client.clone(), name.clone());
        let mut labels: HashMap<String, String> = [(KEPT.to_owned(), clipped(description))].into();
        if let Some(base) = base {
            labels.insert(BASE.to_owned(), base_text(base));
        }
        let made = self.run(async move {
            let request = leases::CreateRequest { id: keyed.clone(), labels };
            client.retry(request, |client, request| async move { client.leases().create(request).await }).await?;
            // The snapshot last: a lease without it is not whole, and found to be so.
            resources.reverse();
            add(&client, &keyed, resources).await
        });
        let measured = async {
            match snapshot.key.starts_with(PREFIX) {
                true => self.usage(&snapshotter, &snapshot.key).await,
                false => Ok(0),
            }
        };
        let (made, size) = tokio::join!(made, measured);
        made?.map_err(supervisor("keep snapshot", &snapshot.key))?;
        snapshot.lasts.store(true, Ordering::Relaxed);
        let size = size?;
        Ok(Lasting { name, size })
    }

    async fn usage(&self, snapshotter: &str, key: &str) -> Result<u64, TreeError> {
        let request = UsageRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        let call = |client: Client, request| async move { client.snapshots().usage(request).await };
        let usage = self.0.plain.retry(request, call).await.map_err(supervisor("measure snapshot", key))?;
        Ok(u64::try_from(usage.size).unwrap_or_default())
    }

    /// What was made to last under this name; nothing if it is gone or not whole.
    pub async fn find(&self, name: &str) -> Result<Option<Tree>, TreeError> {
        if name == SCRATCH {
            return Ok(Some(self.scratch()));
        }
        let Some(user) = Use::begin(self, name).filter(|_| is_name(name)) else { return Ok(None) };
        let request = leases::ListResourcesRequest { id: name.to_owned() };
        let call = |client: Client, request| async move { client.leases().list_resources(request).await };
        let resources = match self.0.plain.retry(request, call).await {
            Ok(answer) => answer.resources,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(supervisor("look up lease", name)(error)),
        };
        let manifest = resources.iter().find(|resource| resource.r#type == "content");
        let manifest = manifest.and_then(|resource| resource.id.parse::<Digest>().ok());
        let found = resources.iter().find_map(|resource| {
            let snapshotter = resource.r#type.strip_prefix("snapshots/")?;
            Some((snapshotter.to_owned(), resource.id.clone()))
        });
        let Some((snapshotter, key)) = found else { return Ok(None) };
        // Of another storage driver than what is made now: no use to anybody.
        if snapshotter != self.0.client.snapshotter() {
            return Ok(None);
        }
        let info = match self.stat(&snapshotter, &key).await {
            Ok(info) => info,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let hold = Hold::Lasting(user);
        let snapshot = Snapshot { snapshotter, key: key.clone(), hold, lasts: AtomicBool::new(true) };
        if info.kind() != Kind::Committed {
            return Ok(None);
        }
        let layer = layer_of(&info.labels);
        let base = match (info.labels.get(BASE).and_then(|text| base_from(text)), manifest) {
            (Some(base), _) => Some(base),
            // The image itself.
            (None, Some(manifest)) => Some(Base { manifest, chain: Some(key) }),
            (None, None) => None,
        };
        let view = OnceCell::new();
        let layer = OnceCell::new_with(layer);
        Ok(Some(Tree(Arc::new(Kept {
            trees: self.clone(),
            snapshot: Some(snapshot),
            _below: None,
            base,
            view,
            layer,
        }))))
    }

    /// All that was made to last: names with descriptions.
    pub async fn lasting(&self) -> Result<Vec<(String, String)>, TreeError> {
        let call = |client: Client, request| async move { client.leases().list(request).await };
        let answer = self.0.client.retry(leases::ListRequest::default(), call).await;
        let leases = answer.map_err(supervisor("list leases", "of builds"))?.leases;
        let kept = leases.into_iter().filter(|lease| is_name(&lease.id));
        Ok(kept.filter_map(|mut lease| Some((lease.id, lease.labels.remove(KEPT)?))).collect())
    }

    /// Lets go of what was made to last. What others use stays with them; the rest goes at the next [`Trees::collect`].
    pub async fn remove(&self, name: &str) -> Result<(), TreeError> {
        if name == SCRATCH || !is_name(name) {
            return Ok(());
        }
        match self.used().get_mut(name) {
            Some(used) if used.count > 0 => used.doomed = true,
            _ => {}
        }
        if self.used().contains_key(name) { Ok(()) } else { self.let_go(name).await }
    }

    async fn let_go(&self, name: &str) -> Result<(), TreeError> {
        let request = leases::DeleteRequest { id: name.to_owned(), sync: false };
        let call = |client: Client, request| async move { client.leases().delete(request).await };
        match self.0.client.retry(request, call).await {
            Err(error) if !error.is_not_found() => Err(supervisor("delete lease", name)(error)),
            _ => Ok(()),
        }
    }

    /// Has the supervisor collect now what nobody refers to any more; the space is free when this returns.
    pub async fn collect(&self) -> Result<(), TreeError> {
        let id = format!("berth-collects-{}", random()?);
        let lease = Lease::take(&self.0.client, &id).await.map_err(supervisor("take lease", &id))?;
        lease.give_back().await;
        Ok(())
    }

    fn key(&self) -> String {
        format!("{}-{}", self.0.lease, self.0.count.fetch_add(1, Ordering::Relaxed))
    }

    /// Goes on even if nobody waits for it any more: what it gives is dropped then.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, TreeError> {
        let failed = |cause| TreeError::System { what: "a task of the builder broke down", cause };
        self.0.runtime.spawn(work).await.map_err(|error| failed(std::io::Error::other(error)))
    }

    /// In the background, from wherever something is dropped.
    fn later(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.runtime.spawn(work);
    }

    async fn discard(client: Client, snapshotter: String, key: String) {
        let request = RemoveSnapshotRequest { snapshotter, key };
        let call = |client: Client, request| async move { client.snapshots().remove(request).await };
        match client.retry(request, call).await {
            // Something stands on it: it goes with that.
            Err(error) if error.is_not_found() || error.kind() == ErrorKind::FailedPrecondition => {}
            Err(error) => warn!(error = %chain(&error), "snapshot of a build left to the collector"),
            Ok(_) => {}
        }
    }
}

/// The name of the empty filesystem.
const SCRATCH: &str = "scratch";

impl Tree {
    /// Its root, read-only. Nothing in it does anything: devices and set-id programs have no effect.
    pub async fn open(&self) -> Result<OwnedFd, TreeError> {
        let mounts = match &self.0.snapshot {
            Some(_) => Some(self.mounts().await?),
            None => None,
        };
        let held = self.clone();
        blocking(move || {
            let _held = held;
            match mounts {
                Some(mounts) => root::open(&mounts, Access::Read),
                None => root::empty(),
            }
        })
        .await
    }

    /// How to mount it read-only, as long as this is there; nothing for an empty one.
    pub async fn mounts(&self) -> Result<Vec<Mount>, TreeError> {
        let Some(snapshot) = &self.0.snapshot else { return Ok(Vec::new()) };
        let trees = &self.0.trees;
        let make = || async {
            let (held, key) = (self.clone(), trees.key());
            let request = ViewSnapshotRequest {
                snapshotter: snapshot.snapshotter.clone(),
                key: key.clone(),
                parent: snapshot.key.clone(),
                ..ViewSnapshotRequest::default()
            };
            trees
                .run(async move {
                    let trees = &held.0.trees;
                    let answer = trees.client().snapshots().view(request).await.map_err(SupervisorError::from);
                    let mounts = answer.map_err(supervisor("view snapshot", &key))?.into_inner().mounts;
                    Ok(View { key, mounts })
                })
                .await?
        };
        Ok(self.0.view.get_or_try_init(make).await?.mounts.clone())
    }

    /// Whether it has nothing.
    pub fn is_scratch(&self) -> bool {
        self.0.snapshot.is_none()
    }

    /// The image that it began with.
    pub fn base(&self) -> Option<&Base> {
        self.0.base.as_ref()
    }

    /// The name of its snapshot, which is the same for the same filesystem as long as it is there.
    pub fn snapshot_key(&self) -> Option<&str> {
        self.0.snapshot.as_ref().map(|snapshot| snapshot.key.as_str())
    }

    /// Where its snapshot is.
    pub fn snapshotter(&self) -> &str {
        match &self.0.snapshot {
            Some(snapshot) => &snapshot.snapshotter,
            None => self.0.trees.client().snapshotter(),
        }
    }

    /// What made it.
    pub fn trees(&self) -> &Trees {
        &self.0.trees
    }

    /// What it stands on, held; nothing for an empty one and for the image at the bottom.
    pub async fn below(&self) -> Result<Option<Tree>, TreeError> {
        let Some(snapshot) = &self.0.snapshot else { return Ok(None) };
        if !snapshot.key.starts_with(PREFIX) {
            return Ok(None);
        }
        if let Some(below) = &self.0._below {
            return Ok(Some(below.clone()));
        }
        let trees = &self.0.trees;
        let parent = trees.stat(&snapshot.snapshotter, &snapshot.key).await?.parent;
        if parent.is_empty() {
            return Ok(Some(trees.scratch()));
        }
        let layer = layer_of(&trees.stat(&snapshot.snapshotter, &parent).await?.labels);
        // Nothing that something stands on is collected.
        let (hold, lasts) = (Hold::Above(self.clone()), AtomicBool::new(true));
        let (base, view, layer) = (self.0.base.clone(), OnceCell::new(), OnceCell::new_with(layer));
        let snapshotter = snapshot.snapshotter.clone();
        let snapshot = Some(Snapshot { snapshotter, key: parent, hold, lasts });
        Ok(Some(Tree(Arc::new(Kept { trees: trees.clone(), snapshot, _below: None, base, view, layer }))))
    }

    /// Its layer, made by `make` if nobody made it before; remembered as long as the snapshot is there.
    pub async fn layer<E, F>(&self, make: F) -> Result<Layer, E>
    where
        E: From<TreeError>,
        F: AsyncFnOnce() -> Result<Layer, E>,
    {
        let made = async || {
            let layer = make().await?;
            if let Some(snapshot) = self.0.snapshot.as_ref().filter(|snapshot| snapshot.key.starts_with(PREFIX)) {
                let text = serde_json::json!([
                    layer.media_type,
                    layer.digest,
                    layer.size,
                    layer.diff_id,
                    layer.created.to_string()
                ]);
                let text = text.to_string();
                let labels = [(LAYER, text), (LAYER_BLOB, layer.digest.to_string())];
                self.label(snapshot, labels.map(|(key, value)| (key.to_owned(), value)).into()).await?;
            }
            Ok(layer)
        };
        self.0.layer.get_or_try_init(made).await.cloned()
    }

    /// Notes something at the snapshot, by labels.
    async fn label(&self, snapshot: &Snapshot, labels: HashMap<String, String>) -> Result<(), TreeError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = UpdateSnapshotRequest {
            snapshotter: snapshot.snapshotter.clone(),
            info: Some(Info { name: snapshot.key.clone(), labels, ..Info::default() }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let call = |client: Client, request| async move { client.snapshots().update(request).await };
        let labelled = self.0.trees.client().retry(request, call).await;
        labelled.map(drop).map_err(supervisor("label snapshot", &snapshot.key))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let trees = self.trees.clone();
        let view = self.view.take();
        let Some(mut snapshot) = self.snapshot.take() else { return };
        // Kept until it is removed: nothing below goes before.
        let below = self._below.take();
        let work = async move {
            let client = trees.client().clone();
            if let Some(view) = view {
                Trees::discard(client.clone(), snapshot.snapshotter.clone(), view.key).await;
            }
            match std::mem::replace(&mut snapshot.hold, Hold::Made) {
                Hold::Made if *snapshot.lasts.get_mut() => {
                    let resource = Some(resource(&snapshot.snapshotter, &snapshot.key));
                    let request = leases::DeleteResourceRequest { id: trees.0.lease.clone(), resource };
                    let call = |client: Client, request| async move { client.leases().delete_resource(request).await };
                    match client.retry(request, call).await {
                        Err(error) if !error.is_not_found() => {
                            warn!(error = %chain(&error), "snapshot of a build stays until the engine ends");
                        }
                        _ => {}
                    }
                }
                Hold::Made => Trees::discard(client, snapshot.snapshotter.clone(), snapshot.key.clone()).await,
                Hold::Lease(lease) => lease.give_back_later().await,
                Hold::Lasting(user) => drop(user),
                Hold::Above(above) => drop(above),
            }
            drop(below);
        };
        self.trees.later(work);
    }
}

impl Draft {
    /// Its root. Close it before [`Draft::commit`], and while a container has the mounts.
    pub async fn open(&self) -> Result<OwnedFd, TreeError> {
        let mounts = self.mounts.clone();
        blocking(move || root::open(&mounts, Access::Write)).await
    }

    /// How to mount it.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// The name of its snapshot: what a container's record says.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where its snapshot is.
    pub fn snapshotter(&self) -> &str {
        self.below.snapshotter()
    }

    /// What it was begun above.
    pub fn below(&self) -> &Tree {
        &self.below
    }

    /// Fixes it: from here on nobody changes it.
    pub async fn commit(mut self) -> Result<Tree, TreeError> {
        let trees = self.below.0.trees.clone();
        let key = format!("{PREFIX}{}", random()?);
        let base = self.below.0.base.clone();
        let mut labels = HashMap::new();
        if let Some(base) = &base {
            labels.insert(BASE.to_owned(), base_text(base));
            labels.insert(BASE_BLOB.to_owned(), base.manifest.to_string());
        }
        let runner = trees.clone();
        runner
            .run(async move {
                let request = CommitSnapshotRequest {
                    snapshotter: self.snapshotter().to_owned(),
                    name: key.clone(),
                    key: self.key.clone(),
                    labels,
                    ..CommitSnapshotRequest::default()
                };
                let committed = trees.client().snapshots().commit(request).await.map_err(SupervisorError::from);
                committed.map_err(supervisor("commit snapshot", &self.key))?;
                self.done = true;
                let (hold, lasts) = (Hold::Made, AtomicBool::new(false));
                let snapshot = Some(Snapshot { snapshotter: self.snapshotter().to_owned(), key, hold, lasts });
                let (view, layer, below) = (OnceCell::new(), OnceCell::new(), Some(self.below.clone()));
                Ok(Tree(Arc::new(Kept { trees: trees.clone(), snapshot, _below: below, base, view, layer })))
            })
            .await?
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.done {
            let (below, key) = (self.below.clone(), self.key.clone());
            self.below.0.trees.later(async move {
                let client = below.0.trees.client().clone();
                Trees::discard(client, below.snapshotter().to_owned(), key).await;
            });
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TreeError> + Send + 'static,
) -> Result<T, TreeError> {
    let failed = |error| TreeError::System { what: "open a filesystem", cause: std::io::Error::other(error) };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

fn random() -> Result<String, TreeError> {
    let bytes = ids::random_bytes::<12>().map_err(|cause| TreeError::System { what: "make a name", cause })?;
    Ok(proto::digest::hex(&bytes))
}

fn resource(snapshotter: &str, key: &str) -> leases::Resource {
    leases::Resource { id: key.to_owned(), r#type: format!("snapshots/{snapshotter}") }
}

fn blob(base: &Base) -> leases::Resource {
    leases::Resource { id: base.manifest.to_string(), r#type: "content".into() }
}

async fn add(client: &Client, lease: &str, resources: Vec<leases::Resource>) -> Result<(), SupervisorError> {
    for resource in resources {
        let request = leases::AddResourceRequest { id: lease.to_owned(), resource: Some(resource) };
        client.retry(request, |client, request| async move { client.leases().add_resource(request).await }).await?;
    }
    Ok(())
}

/// Names come back from an index on disk: only those of leases that make something last.
fn is_name(name: &str) -> bool {
    let random = name.strip_prefix("berth-keeps-");
    random.is_some_and(|hex| hex.len() == 24 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Labels hold 4096 bytes with their key.
fn clipped(description: &str) -> String {
    let mut end = description.len().min(1024);
    while !description.is_char_boundary(end) {
        end -= 1;
    }
    description[..end].to_owned()
}

fn base_text(base: &Base) -> String {
    format!("{} {}", base.manifest, base.chain.as_deref().unwrap_or_default())
}

fn base_from(text: &str) -> Option<Base> {
    let (manifest, chain) = text.split_once(' ')?;
    let chain = Some(chain.to_owned()).filter(|chain| !chain.is_empty());
    Some(Base { manifest: manifest.parse().ok()?, chain })
}

fn layer_of(labels: &HashMap<String, String>) -> Option<Layer> {
    let text = labels.get(LAYER)?;
    let (media_type, digest, size, diff_id, created) = serde_json::from_str::<(_, _, _, _, String)>(text).ok()?;
    Some(Layer { media_type, digest, size, diff_id, created: created.parse().ok()? })
}
