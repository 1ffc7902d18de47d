//! Folders of `RUN --mount=type=cache`: they outlive builds, and the engine, until somebody prunes them.
//!
//! Each is a folder of random name with its files in `data` and what it is in `cache.json`. One that is being filled or removed has
//! a name that begins with a dot, and goes at the next start: there is no half-filled one. What users call a cache is never a
//! file name.

use crate::{ids, time::Timestamp, volumes::copy::copy_tree};
use nix::{fcntl::OFlag, sys::stat::Mode};
use proto::{moby::buildkit::v1::UsageRecord, pb::CacheSharingOpt};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use sys::path::{Within, open_within};
use tokio::sync::Notify;
use tracing::warn;

/// What BuildKit calls these in lists.
pub const RECORD_TYPE: &str = "exec.cachemount";
const FACTS: &str = "cache.json";
const DATA: &str = "data";

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The disk says why.
    #[error("{what} {at}")]
    Folder {
        /// What was tried.
        what: &'static str,
        /// Where.
        at: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// Somebody has it.
    #[error("cache {0} is in use")]
    InUse(String),
}

fn failed(what: &'static str, at: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let at = at.to_owned();
    move |cause| CacheError::Folder { what, at, cause }
}

/// What a cache is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Facts {
    /// Its user's name for it.
    id: String,
    /// What it began as; empty for nothing.
    base: String,
    created: Timestamp,
    used: Timestamp,
    count: i64,
}

#[derive(Debug)]
struct Cache {
    facts: Facts,
    users: usize,
    /// Only one may have it.
    alone: bool,
}

/// The caches of an engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    known: Mutex<BTreeMap<String, Cache>>,
    given_back: Notify,
}

/// A cache in use, until it is dropped.
#[derive(Debug)]
pub struct Taken {
    caches: Caches,
    name: String,
}

/// What a new cache begins with.
#[derive(Debug)]
pub struct Base {
    /// The same for the same content.
    pub key: String,
    /// The folder that is copied.
    pub root: OwnedFd,
}

impl Caches {
    /// Takes up what is there. Blocks.
    pub fn open(folder: PathBuf) -> Result<Self, CacheError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed("make folder", &folder))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(failed("read folder", &folder))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let facts = fs::read(entry.path().join(FACTS)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            match facts {
                Some(facts) if !name.starts_with('.') => {
                    known.insert(name, Cache { facts, users: 0, alone: false });
                }
                _ => {
                    if let Err(error) = fs::remove_dir_all(entry.path()) {
                        warn!(%error, folder = name, "half-made cache left behind");
                    }
                }
            }
        }
        Ok(Self(Arc::new(Inner { folder, known: Mutex::new(known), given_back: Notify::new() })))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Cache>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the cache of that name, or makes it. Waits for one that somebody else has alone.
    pub async fn take(&self, id: &str, base: Option<Base>, sharing: CacheSharingOpt) -> Result<Taken, CacheError> {
        let base = base.map(Arc::new);
        loop {
            // Before looking: what is given back meanwhile is heard.
            let mut given_back = std::pin::pin!(self.0.given_back.notified());
            given_back.as_mut().enable();
            match self.look(id, base.as_ref().map_or("", |base| base.key.as_str()), sharing) {
                Look::Found(taken) => {
                    taken.note_use().await;
                    return Ok(taken);
                }
                Look::Busy => given_back.await,
                Look::Missing => {
                    let (caches, id) = (self.clone(), id.to_owned());
                    let base = base.clone();
                    let made = tokio::task::spawn_blocking(move || caches.make(id, base.as_deref(), sharing)).await;
                    let made =
                        made.map_err(|error| failed("fill folder", &self.0.folder)(io::Error::other(error)))??;
                    if let Some(taken) = made {
                        return Ok(taken);
                    }
                }
            }
        }
    }

    fn look(&self, id: &str, base: &str, sharing: CacheSharingOpt) -> Look {
        let mut known = self.known();
        let mut fitting = known.iter_mut().filter(|(_, cache)| cache.facts.id == id && cache.facts.base == base);
        let found = match sharing {
            CacheSharingOpt::Private => fitting.find(|(_, cache)| cache.users == 0),
            _ => fitting.next(),
        };
        let Some((name, cache)) = found else { return Look::Missing };
        let alone = sharing != CacheSharingOpt::Shared;
        if cache.users > 0 && (alone || cache.alone) {
            return Look::Busy;
        }
        cache.users += 1;
        cache.alone = alone;
        Look::Found(Taken { caches: self.clone(), name: name.clone() })
    }

    /// Nothing if somebody else was quicker.
    fn make(&self, id: String, base: Option<&Base>, sharing: CacheSharingOpt) -> Result<Option<Taken>, CacheError> {
        let now = Timestamp::now();
        let key = base.map(|base| base.key.clone()).unwrap_or_default();
        let facts = Facts { id: id.clone(), base: key.clone(), created: now, used: now, count: 1 };
        let random = ids::random_bytes::<12>().map_err(failed("make a name in", &self.0.folder))?;
        let name = proto::digest::hex(&random);
        let unfinished = self.0.folder.join(format!(".new-{name}"));
        let filled = self.fill(&unfinished, &facts, base);
        let mut known = self.known();
        let twin = |cache: &Cache| cache.facts.id == id && cache.facts.base == key;
        let late = sharing != CacheSharingOpt::Private && known.values().any(twin);
        if filled.is_err() || late {
            drop(known);
            let _ = fs::remove_dir_all(&unfinished);
            return filled.map(|()| None);
        }
        let folder = self.0.folder.join(&name);
        fs::rename(&unfinished, &folder).map_err(failed("finish folder", &folder))?;
        let alone = sharing != CacheSharingOpt::Shared;
        known.insert(name.clone(), Cache { facts, users: 1, alone });
        Ok(Some(Taken { caches: self.clone(), name }))
    }

    fn fill(&self, folder: &Path, facts: &Facts, base: Option<&Base>) -> Result<(), CacheError> {
        let data = folder.join(DATA);
        DirBuilder::new().mode(0o700).create(folder).map_err(failed("make folder", folder))?;
        fs::create_dir(&data).map_err(failed("make folder", &data))?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).map_err(failed("make folder", &data))?;
        if let Some(base) = base {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let to =
                nix::fcntl::open(&data, flags, Mode::empty()).map_err(|e| failed("open folder", &data)(e.into()))?;
            // What it was opened by may be a name and no more.
            let from = open_within(&base.root, ".", flags, 0, Within::Root);
            let from = from.map_err(|e| failed("open the base of", &data)(e.into()))?;
            copy_tree(&from, &to).map_err(failed("fill folder", &data))?;
        }
        write(folder, facts)
    }

    /// What there is, as BuildKit lists it. Walks through all of them. Blocks.
    pub fn list(&self) -> Vec<UsageRecord> {
        let found: Vec<(String, Facts, bool)> =
            self.known().iter().map(|(name, cache)| (name.clone(), cache.facts.clone(), cache.users > 0)).collect();
        found
            .into_iter()
            .map(|(name, facts, in_use)| UsageRecord {
                size: size_of(&self.0.folder.join(&name).join(DATA)),
                id: name,
                mutable: true,
                in_use,
                created_at: Some(stamp(facts.created)),
                last_used_at: Some(stamp(facts.used)),
                usage_count: facts.count,
                description: format!("cached mount {} from exec", facts.id),
                record_type: RECORD_TYPE.to_owned(),
                ..UsageRecord::default()
            })
            .collect()
    }

    /// Whether this is one of these, as [`Caches::list`] names them.
    pub fn has(&self, name: &str) -> bool {
        self.known().contains_key(name)
    }

    /// Removes one, named as in the list; nothing if it is gone. Blocks.
    pub fn remove(&self, name: &str) -> Result<(), CacheError> {
        let gone = self.0.folder.join(format!(".gone-{name}"));
        {
            let mut known = self.known();
            match known.get(name) {
                None => return Ok(()),
                Some(cache) if cache.users > 0 => return Err(CacheError::InUse(cache.facts.id.clone())),
                Some(_) => {}
            }
            let folder = self.0.folder.join(name);
            fs::rename(&folder, &gone).map_err(failed("remove folder", &folder))?;
            known.remove(name);
        }
        fs::remove_dir_all(&gone).map_err(failed("remove folder", &gone))
    }
}

enum Look {
    Found(Taken),
    Busy,
    Missing,
}

impl Taken {
    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        self.caches.0.folder.join(&self.name).join(DATA)
    }

    async fn note_use(&self) {
        let facts = {
            let mut known = self.caches.known();
            let Some(cache) = known.get_mut(&self.name) else { return };
            cache.facts.used = Timestamp::now();
            cache.facts.count += 1;
            cache.facts.clone()
        };
        let folder = self.caches.0.folder.join(&self.name);
        let written = tokio::task::spawn_blocking(move || write(&folder, &facts)).await;
        if let Ok(Err(error)) = written {
            warn!(error = %proto::kind::chain(&error), "use of a cache not noted");
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(cache) = self.caches.known().get_mut(&self.name) {
            cache.users = cache.users.saturating_sub(1);
            cache.alone &= cache.users > 0;
        }
        self.caches.0.given_back.notify_waiters();
    }
}

fn write(folder: &Path, facts: &Facts) -> Result<(), CacheError> {
    let (part, whole) = (folder.join(".cache.json"), folder.join(FACTS));
    let text = serde_json::to_vec(facts).map_err(|error| failed("write", &whole)(io::Error::other(error)))?;
    fs::write(&part, text).and_then(|()| fs::rename(&part, &whole)).map_err(failed("write", &whole))
}

fn stamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.seconds(), nanos: i32::try_from(at.subsec_nanos()).unwrap_or_default() }
}

/// Bytes on disk. What vanishes meanwhile doesn't count; links are not followed.
fn size_of(folder: &Path) -> i64 {
    let mut bytes = 0_u64;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            bytes = bytes.saturating_add(meta.blocks() * 512 / meta.nlink().max(1));
            if meta.is_dir() {
                bytes = bytes.saturating_add(meta.blocks() * 512 - meta.blocks() * 512 / meta.nlink().max(1));
                open.push(entry.path());
            }
        }
    }
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use CacheSharingOpt::{Locked, Private, Shared};
    use std::time::Duration;

    fn caches() -> (tempfile::TempDir, Caches) {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::open(folder.path().join("caches")).unwrap();
        (folder, caches)
    }

    #[tokio::test]
    async fn shared_by_all_alone_for_one() {
        let (_folder, caches) = caches();
        let one = caches.take("go", None, Shared).await.unwrap();
        let two = caches.take("go", None, Shared).await.unwrap();
        assert_eq!(one.folder(), two.folder());
        let other = caches.take("npm", None, Locked).await.unwrap();
        assert_ne!(one.folder(), other.folder());
        let waiting = tokio::spawn({
            let caches = caches.clone();
            async move { caches.take("npm", None, Locked).await.unwrap().folder() }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        let folder = other.folder();
        drop(other);
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap(), folder);
        // Who wants it alone waits for those who share it.
        let alone = caches.take("go", None, Locked);
        assert!(tokio::time::timeout(Duration::from_millis(20), alone).await.is_err());
    }

    #[tokio::test]
    async fn those_who_come_first_together_wait_for_one_another() {
        let (_folder, caches) = caches();
        let all = (0..8).map(|_| {
            let caches = caches.clone();
            tokio::spawn(async move { drop(caches.take("new", None, Locked).await.unwrap()) })
        });
        for one in all.collect::<Vec<_>>() {
            tokio::time::timeout(Duration::from_secs(10), one).await.unwrap().unwrap();
        }
        assert_eq!(caches.list().len(), 1);
    }

    #[tokio::test]
    async fn private_ones_are_several_and_used_again() {
        let (_folder, caches) = caches();
        let one = caches.take("x", None, Private).await.unwrap();
        let two = caches.take("x", None, Private).await.unwrap();
        assert_ne!(one.folder(), two.folder());
        let first = one.folder();
        drop((one, two));
        let (three, four) =
            (caches.take("x", None, Private).await.unwrap(), caches.take("x", None, Private).await.unwrap());
        assert!([three.folder(), four.folder()].contains(&first));
        assert_eq!(caches.list().len(), 2);
    }

    #[tokio::test]
    async fn what_is_in_it_stays_until_it_is_removed() {
        let (folder, caches) = caches();
        let taken = caches.take("../../etc", None, Shared).await.unwrap();
        assert!(taken.folder().starts_with(folder.path().join("caches")));
        fs::write(taken.folder().join("file"), vec![1; 100_000]).unwrap();
        let name = caches.list()[0].id.clone();
        assert!(matches!(caches.remove(&name), Err(CacheError::InUse(_))));
        let at = taken.folder();
        std::mem::forget(taken);
        // An engine that was killed, in the middle of another one.
        fs::create_dir(folder.path().join("caches/.new-1")).unwrap();
        fs::create_dir_all(folder.path().join("caches/.gone-2/data")).unwrap();
        let caches = Caches::open(folder.path().join("caches")).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("caches")).unwrap().count(), 1);
        let again = caches.take("../../etc", None, Shared).await.unwrap();
        assert_eq!(again.folder(), at);
        assert_eq!(fs::read(at.join("file")).unwrap().len(), 100_000);
        let list = caches.list();
        assert!(list[0].size >= 100_000 && list[0].size < 200_000, "{}", list[0].size);
        assert_eq!((list[0].record_type.as_str(), list[0].in_use, list[0].usage_count), (RECORD_TYPE, true, 2));
        drop(again);
        caches.remove(&name).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("caches")).unwrap().count(), 0);
        caches.remove("../caches").unwrap();
    }

    #[tokio::test]
    async fn one_with_a_base_begins_with_it() {
        let (folder, caches) = caches();
        let root = folder.path().join("base");
        fs::create_dir_all(root.join("cache")).unwrap();
        fs::set_permissions(root.join("cache"), fs::Permissions::from_mode(0o750)).unwrap();
        let base = || {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            Some(Base { key: "sha256:1".into(), root: nix::fcntl::open(&root, flags, Mode::empty()).unwrap() })
        };
        let taken = caches.take("x", base(), Shared).await.unwrap();
        assert_eq!(fs::metadata(taken.folder().join("cache")).unwrap().mode() & 0o777, 0o750);
        assert_ne!(caches.take("x", None, Shared).await.unwrap().folder(), taken.folder());
        assert_eq!(caches.take("x", base(), Shared).await.unwrap().folder(), taken.folder());
    }
}
