//! Folders of clients: `local://context`.
//!
//! ```text
//! pin:     slot on disk (index, tree) ──▶ session: what has changed ──▶ nothing: the tree of the last time
//!                                                                  └──▶ a draft above that tree ──commit, keep──▶ slot on disk
//! perform: the tree that pin has
//! ```
//!
//! What a client sent is a tree that lasts, with an [`Index`] of what is in it: names, times, digests. The next time the client
//! tells of its files, and only those that differ travel; without any there is no snapshot to be made, nor a file to be looked at.
//! The key of a pin is the index' digest: contents, modes, owners and links, no times.
//!
//! A slot is the folder of one client (its shared key, the folder's name) with one filter. One with a filter that is new begins with
//! what another of the same folder has. Slots are only a short cut: each may be removed at any time.

use crate::build::{
    session::{FilesRequest, Session, SessionError, Sessions},
    tree::{Draft, Tree, TreeError, Trees},
    worker::content::Contents,
};
use filesync::{
    index::Index,
    receive::{Folder, Options},
};
use proto::{
    digest::Digest,
    kind::{ErrorKind, chain},
    moby::buildkit::v1::VertexStatus,
    pb,
};
use serde::{Deserialize, Serialize};
use solver::{Pin, Step, StepError};
use std::{
    collections::{HashSet, VecDeque},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tracing::{debug, warn};

/// Trees stand on each other these many times at most, then all is sent anew: mount options have an end.
const DEEPEST: u32 = 16;
/// And what later ones hide of earlier ones takes this much more than what is there at most, beside as much as is there.
const HIDDEN: u64 = 64 << 20;
/// These many slots at most; those unused for longest go.
const SLOTS: usize = 64;
/// What isn't used for that long goes (BuildKit's policy for local sources).
const UNUSED: Duration = Duration::from_secs(48 * 3600);
/// Begins the descriptions of trees that slots keep.
pub const SLOT: &str = "slot: ";
/// What was pinned is at hand for those who perform it.
const RECENT: usize = 32;
/// How often a client's progress is told.
const TOLD: Duration = Duration::from_millis(100);

/// Folders of clients.
#[derive(Clone)]
pub struct Locals(Arc<Inner>);

struct Inner {
    sessions: Sessions,
    trees: Trees,
    contents: Arc<Contents>,
    /// Of the slots.
    folder: PathBuf,
    recent: Mutex<VecDeque<Recent>>,
    /// One at a time writes a slot's file.
    writing: tokio::sync::Mutex<()>,
}

struct Recent {
    key: Digest,
    tree: Tree,
    index: Arc<Index>,
}

/// A slot as it is told to users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// To remove it by.
    pub id: String,
    /// What it is of.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// When it was used last.
    pub last_used: SystemTime,
}

/// What stands before an index in a slot's file, in one line.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
struct Header {
    /// Name of the tree that lasts.
    tree: String,
    /// On how many it stands.
    depth: u32,
    /// Bytes of all of these.
    written: u64,
    description: String,
}

/// A slot that was read, with its tree.
struct Slot {
    header: Header,
    index: Index,
    tree: Tree,
}

/// A source op, read.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    request: FilesRequest,
    session: Option<String>,
    hint: String,
    /// Whether what is there may be taken for what it was by its times.
    compare: bool,
}

impl Wanted {
    fn new(source: &pb::SourceOp) -> Result<Self, StepError> {
        let Some(name) = source.identifier.strip_prefix("local://") else {
            return Err(StepError::Invalid(format!("{}: not a local source", source.identifier)));
        };
        let request = FilesRequest { name: name.to_owned(), ..FilesRequest::default() };
        let mut wanted = Self { request, session: None, hint: String::new(), compare: true };
        for (key, value) in &source.attrs {
            let list = || {
                serde_json::from_str::<Option<Vec<String>>>(value)
                    .map(Option::unwrap_or_default)
                    .map_err(|error| StepError::Invalid(format!("{}: {key}: {error}", source.identifier)))
            };
            match key.as_str() {
                "local.session" => {
                    // A name before the id sets folders of the same name apart.
                    wanted.session = Some(match value.split_once(':') {
                        Some((prefix, id)) if !id.is_empty() => {
                            wanted.request.name = format!("{prefix}-{name}");
                            id.to_owned()
                        }
                        _ => value.clone(),
                    });
                }
                "local.includepattern" => wanted.request.include = list()?,
                "local.excludepatterns" => wanted.request.exclude = list()?,
                "local.followpaths" => wanted.request.follow = list()?,
                "local.sharedkeyhint" => wanted.hint.clone_from(value),
                // It sets ops apart, no more.
                "local.unique" => {}
                "local.differ" => match value.as_str() {
                    "" | "metadata" => {}
                    "none" => wanted.compare = false,
                    other => {
                        return Err(StepError::Invalid(format!(
                            "{}: unknown local.differ {other:?}",
                            source.identifier
                        )));
                    }
                },
                "local.metadatatransfer" if matches!(value.as_str(), "false" | "0" | "f" | "F" | "False" | "FALSE") => {
                }
                "local.metadatatransfer" | "local.metadatatransferexclude" => {
                    let text = format!("{}: {key}: this builder takes whole files only", source.identifier);
                    return Err(StepError::Unsupported(text));
                }
                _ => debug!(key, "attribute of a local source that isn't known"),
            }
        }
        Ok(wanted)
    }

    /// The slot's folder and file: what comes from a client becomes a digest before it is a name.
    fn place(&self, session: &Session) -> (String, String) {
        let fields = [self.request.name.as_str(), &self.hint, session.shared_key()];
        // Files of clients that don't say who they are may be anybody's: of the same size and time, and others all the same.
        let own = if session.shared_key().is_empty() { session.id() } else { "" };
        let of = |value: serde_json::Value| Digest::of(value.to_string().as_bytes()).hex();
        let filter = serde_json::json!([self.request.include, self.request.exclude, self.request.follow]);
        (of(serde_json::json!([fields, own])), of(filter))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locals {
    /// Keeps its slots in `folder`; `contents` learns what is in the files.
    pub fn open(sessions: Sessions, trees: Trees, contents: Arc<Contents>, folder: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let (recent, writing) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self(Arc::new(Inner { sessions, trees, contents, folder, recent, writing })))
    }

    /// Lets go of trees that slots were to have: of an engine that was killed before it wrote that down. Before any build.
    pub async fn sweep(&self) -> Result<(), TreeError> {
        let folder = self.0.folder.clone();
        let named = tokio::task::spawn_blocking(move || {
            let headers = slots(&folder).into_iter().filter_map(|(path, _)| read_header(&path));
            headers.map(|header| header.tree).collect::<HashSet<_>>()
        });
        let named = named.await.unwrap_or_default();
        for (name, description) in self.0.trees.lasting().await? {
            if description.starts_with(SLOT) && !named.contains(&name) {
                self.0.trees.remove(&name).await?;
            }
        }
        Ok(())
    }

    /// Brings a folder of a client up to date.
    pub async fn pin(&self, source: &pb::SourceOp, step: &Step) -> Result<Pin, StepError> {
        let wanted = Wanted::new(source)?;
        let failed = |error: SessionError| {
            let what = format!("transfer {}", wanted.request.name);
            match error.kind() {
                ErrorKind::NotFound => StepError::NotFound(chain(&error)),
                ErrorKind::Unimplemented => StepError::Unsupported(chain(&error)),
                ErrorKind::InvalidArgument => StepError::Invalid(chain(&error)),
                _ => StepError::Failed { what, cause: error.into() },
            }
        };
        let sync = |session: Session| {
            let (locals, wanted, step) = (self.clone(), wanted.clone(), step.clone());
            async move { locals.sync(&wanted, &session, &step).await }
        };
        // First the session that is named; then any of those who want the step.
        let mut sessions: Vec<String> = wanted.session.iter().cloned().collect();
        sessions.extend(step.sessions.iter().filter(|id| Some(*id) != wanted.session.as_ref()).cloned());
        let ask = |session: Session| {
            let work = sync(session);
            async move {
                match work.await {
                    Ok(key) => Ok(Ok(key)),
                    Err(SyncError::Session(error)) => Err(error),
                    // No other session would do better.
                    Err(SyncError::Step(error)) => Ok(Err(error)),
                }
            }
        };
        let key = self.0.sessions.any(&sessions, "files", ask).await.map_err(failed)??;
        Ok(Pin { key, source: source.clone() })
    }

    /// The files of what was pinned.
    pub async fn perform(&self, pin: &Pin, step: &Step) -> Result<Tree, StepError> {
        if let Some(tree) = self.recent(&pin.key) {
            return Ok(tree);
        }
        // Too long ago: once more.
        let again = self.pin(&pin.source, step).await?;
        match self.recent(&pin.key) {
            Some(tree) if again.key == pin.key => Ok(tree),
            _ => Err(StepError::Invalid(format!("{} changed during the build", pin.source.identifier))),
        }
    }

    fn recent(&self, key: &Digest) -> Option<Tree> {
        let (tree, index) = {
            let recent = lock(&self.0.recent);
            let found = recent.iter().find(|recent| recent.key == *key)?;
            (found.tree.clone(), found.index.clone())
        };
        self.0.contents.learn(&tree, index.contents());
        Some(tree)
    }

    async fn sync(&self, wanted: &Wanted, session: &Session, step: &Step) -> Result<Digest, SyncError> {
        let (group, file) = wanted.place(session);
        let group = self.0.folder.join(group);
        let slot = if wanted.compare { self.read(&group, &group.join(&file)).await } else { None };
        let base = slot.as_ref().map(|slot| slot.tree.clone());
        let (depth, written) = slot.as_ref().map_or((0, 0), |slot| (slot.header.depth, slot.header.written));
        let below = base.clone().unwrap_or_else(|| self.0.trees.scratch());
        let known = slot.map(|slot| slot.index).unwrap_or_default();
        let draft: Arc<Mutex<Option<Draft>>> = Arc::default();
        let folder = {
            let (trees, below, draft) = (self.0.trees.clone(), below.clone(), draft.clone());
            let runtime = tokio::runtime::Handle::current();
            Folder::later(move || {
                runtime.block_on(async move {
                    let made = trees.draft(&below).await.map_err(|error| io::Error::other(chain(&error)))?;
                    let root = made.open().await.map_err(|error| io::Error::other(chain(&error)))?;
                    *lock(&draft) = Some(made);
                    // Given up, it goes only when nothing is written to it any more.
                    Ok((root, draft))
                })
            })
        };
        let progress = Arc::new(AtomicU64::new(0));
        let options = Options { known, digests: true, progress: progress.clone(), ..Options::default() };
        let telling = Telling::begin(step, &wanted.request.name, progress);
        let mut receiving = std::pin::pin!(session.files(&wanted.request, folder, options));
        let mut ticks = tokio::time::interval(TOLD);
        let received = loop {
            tokio::select! {
                received = &mut receiving => break received,
                _ = ticks.tick() => telling.tell(false),
            }
        };
        telling.tell(true);
        let received = received.map_err(SyncError::Session)?;
        let failed = |what: &str, cause: Box<dyn std::error::Error + Send + Sync>| {
            SyncError::Step(StepError::Failed { what: format!("{what} {}", wanted.request.name), cause })
        };
        let Some(key) = received.index.digest() else {
            return Err(failed("digest of", "a file came without one".into()));
        };
        debug!(
            session = session.id(),
            name = wanted.request.name,
            entries = received.entries,
            fetched = received.fetched,
            bytes = received.bytes,
            removed = received.removed,
            "files of a client"
        );
        let index = Arc::new(received.index);
        let draft = lock(&draft).take();
        let tree = match draft {
            Some(draft) => {
                let tree = draft.commit().await.map_err(|error: TreeError| failed("commit", error.into()))?;
                let header = Header {
                    tree: String::new(),
                    depth: depth + 1,
                    written: written.saturating_add(received.bytes),
                    description: format!("local source for {}", wanted.request.name),
                };
                // A slot that can't be written is one that isn't there the next time; for who has no key there is none.
                if !session.shared_key().is_empty()
                    && let Err(error) = self.write(&group, &file, header, &tree, &index).await
                {
                    warn!(error = %chain(&error), "files of a client are to be sent again the next time");
                }
                tree
            }
            None => {
                if base.is_some() {
                    let path = group.join(&file);
                    let _ = fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
                }
                below
            }
        };
        let mut recent = lock(&self.0.recent);
        recent.retain(|recent| recent.key != key);
        recent.push_front(Recent { key, tree, index });
        recent.truncate(RECENT);
        Ok(key)
    }

    /// What is in a slot, or else in another of its group.
    async fn read(&self, group: &Path, file: &Path) -> Option<Slot> {
        let (group, file) = (group.to_owned(), file.to_owned());
        let read = tokio::task::spawn_blocking(move || read_slot(&file).or_else(|| read_slot(&latest(&group)?)));
        let (header, index) = read.await.ok()??;
        if header.depth >= DEEPEST || header.written > index.size().saturating_mul(2).saturating_add(HIDDEN) {
            debug!(description = header.description, "files of a client are sent anew: too much of the old is hidden");
            return None;
        }
        match self.0.trees.find(&header.tree).await {
            Ok(tree) => tree.map(|tree| Slot { header, index, tree }),
            Err(error) => {
                warn!(error = %chain(&error), "files of a client are sent anew");
                None
            }
        }
    }

    async fn write(
        &self,
        group: &Path,
        file: &str,
        mut header: Header,
        tree: &Tree,
        index: &Arc<Index>,
    ) -> Result<(), SlotError> {
        let description = format!("{SLOT}{}", header.description);
        let lasting = self.0.trees.keep(tree, &description).await.map_err(SlotError::Tree)?;
        header.tree = lasting.name;
        let _one = self.0.writing.lock().await;
        let (path, index) = (group.join(file), index.clone());
        let folder = self.0.folder.clone();
        let written = tokio::task::spawn_blocking(move || {
            let old = read_header(&path).map(|header| header.tree);
            let unused = write_slot(&folder, &path, &header, &index)?;
            Ok::<_, io::Error>((old, unused))
        });
        let (old, unused) = written.await.map_err(io::Error::other).and_then(|r| r).map_err(SlotError::File)?;
        for name in old.into_iter().chain(unused) {
            self.0.trees.remove(&name).await.map_err(SlotError::Tree)?;
        }
        Ok(())
    }

    /// What is kept.
    pub async fn usage(&self) -> Vec<Usage> {
        let folder = self.0.folder.clone();
        let list = tokio::task::spawn_blocking(move || {
            let slots = slots(&folder).into_iter();
            slots
                .filter_map(|(path, last_used)| {
                    let (header, _) = read_slot(&path)?;
                    let id = Digest::of(path.as_os_str().as_encoded_bytes()).hex();
                    Some(Usage { id, description: header.description, size: header.written, last_used })
                })
                .collect()
        });
        list.await.unwrap_or_default()
    }

    /// Removes those that `which` says; how many bytes that were. Builds that use them go on.
    pub async fn prune(&self, which: impl Fn(&Usage) -> bool + Send + 'static) -> Result<u64, StepError> {
        let _one = self.0.writing.lock().await;
        let folder = self.0.folder.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let mut removed = Vec::new();
            for (path, last_used) in slots(&folder) {
                let Some(header) = read_header(&path) else { continue };
                let id = Digest::of(path.as_os_str().as_encoded_bytes()).hex();
                let (description, size) = (header.description.clone(), header.written);
                if which(&Usage { id, description, size, last_used }) && fs::remove_file(&path).is_ok() {
                    removed.push(header);
                }
            }
            removed
        });
        let mut bytes = 0;
        for header in removed.await.unwrap_or_default() {
            let failed =
                |error: TreeError| StepError::Failed { what: "remove files of a client".into(), cause: error.into() };
            self.0.trees.remove(&header.tree).await.map_err(failed)?;
            bytes += header.written;
        }
        lock(&self.0.recent).clear();
        Ok(bytes)
    }
}

/// Why a client's files aren't here.
enum SyncError {
    /// The session's part: another session may have them.
    Session(SessionError),
    /// Ours.
    Step(StepError),
}

/// Why a slot wasn't written.
#[derive(Debug, thiserror::Error)]
enum SlotError {
    #[error("keep a filesystem")]
    Tree(#[source] TreeError),
    #[error("write the list of files")]
    File(#[source] io::Error),
}

fn read_slot(path: &Path) -> Option<(Header, Index)> {
    let bytes = fs::read(path).ok()?;
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header = serde_json::from_slice(&bytes[..end]).ok()?;
    Some((header, Index::decode(&bytes[end + 1..])?))
}

fn read_header(path: &Path) -> Option<Header> {
    use io::BufRead;
    let mut line = String::new();
    io::BufReader::new(fs::File::open(path).ok()?).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// Replaces a slot's file; gives the trees of slots that go for it.
fn write_slot(folder: &Path, path: &Path, header: &Header, index: &Index) -> io::Result<Vec<String>> {
    let group = path.parent().unwrap_or(folder);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(group)?;
    let mut bytes = serde_json::to_vec(header)?;
    bytes.push(b'\n');
    bytes.extend(index.encode());
    let temporary = path.with_extension("new");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)?;
    let mut all = slots(folder);
    all.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
    let mut unused = Vec::new();
    for (place, (old, used)) in all.iter().enumerate() {
        let is_old = used.elapsed().is_ok_and(|age| age > UNUSED);
        if old != path && (place >= SLOTS || is_old) {
            unused.extend(read_header(old).map(|header| header.tree));
            fs::remove_file(old)?;
            // The group, if that was its last.
            let _ = old.parent().map(fs::remove_dir);
        }
    }
    Ok(unused)
}

/// All slots, and when they were used.
fn slots(folder: &Path) -> Vec<(PathBuf, SystemTime)> {
    let groups = fs::read_dir(folder).into_iter().flatten().flatten().map(|group| group.path());
    groups.flat_map(|group| files(&group)).collect()
}

fn files(group: &Path) -> Vec<(PathBuf, SystemTime)> {
    let files = fs::read_dir(group).into_iter().flatten().flatten();
    files
        .filter(|file| file.path().extension().is_none())
        .filter_map(|file| Some((file.path(), file.metadata().ok()?.modified().ok()?)))
        .collect()
}

fn latest(group: &Path) -> Option<PathBuf> {
    files(group).into_iter().max_by_key(|(_, used)| *used).map(|(path, _)| path)
}

/// Tells of a transfer.
struct Telling<'a> {
    step: &'a Step,
    id: String,
    started: prost_types::Timestamp,
    bytes: Arc<AtomicU64>,
}

impl<'a> Telling<'a> {
    fn begin(step: &'a Step, name: &str, bytes: Arc<AtomicU64>) -> Self {
        Self { step, id: format!("transferring {name}:"), started: SystemTime::now().into(), bytes }
    }

    fn tell(&self, completed: bool) {
        let now: prost_types::Timestamp = SystemTime::now().into();
        self.step.progress.status(VertexStatus {
            id: self.id.clone(),
            vertex: self.step.digest.clone(),
            name: "transferring".into(),
            current: i64::try_from(self.bytes.load(Ordering::Relaxed)).unwrap_or(i64::MAX),
            total: 0,
            timestamp: Some(now),
            started: Some(self.started),
            completed: completed.then_some(now),
        });
    }
}

#[cfg(test)]
mod tests;
