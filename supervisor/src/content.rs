//! Content: blobs by digest, and the writes on their way to become blobs (ingests).
//!
//! `blobs/sha256/HEX` is shared by all namespaces; who may see a blob is a record per namespace. A blob's file is synced
//! before its record is, and removed after it: a record never points nowhere, and a file without record is swept.

mod arriving;
mod commit;
mod writer;

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::{digest::Digest, kind::ErrorKind};
use serde::{Deserialize, Serialize};

pub(crate) use arriving::Arriving;
pub(crate) use writer::{IngestStatus, Writer};

use crate::{
    failure::Failure,
    filters::{FilterError, Filters},
    leases::{self, Leases},
    namespaces,
    store::{Database, Labels, Reader, StoreError, Table, Time, make_folder, update_labels},
};

/// Records of blobs: namespace and digest.
pub(crate) const CONTENT: Table<Info> = Table::new("content");

/// What is known about a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Info {
    /// Size in bytes.
    pub(crate) size: u64,
    /// When it came into the namespace.
    pub(crate) created_at: Time,
    /// When its labels were last changed.
    pub(crate) updated_at: Time,
    /// Its labels: references that keep other things, where it came from.
    pub(crate) labels: Labels,
}

/// Why content could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    /// No such blob in the namespace.
    #[error("content {0}: not found")]
    NotFound(Digest),
    /// The blob is there already.
    #[error("content {0}: already exists")]
    Exists(Digest),
    /// No such ingest.
    #[error("ingest {0:?}: not found")]
    NoIngest(String),
    /// The lease of the request has ended, or never was.
    #[error("lease {0:?}: not found")]
    NoLease(String),
    /// Another writer holds the ingest.
    #[error("ingest {0:?} is locked by another writer")]
    Locked(String),
    /// The bytes are not what was promised.
    #[error("content of {reference:?} has digest {actual}, expected {expected}")]
    WrongDigest {
        /// The ingest.
        reference: String,
        /// What arrived.
        actual: Digest,
        /// What was promised.
        expected: Digest,
    },
    /// There are more or fewer bytes than promised.
    #[error("content of {reference:?} is {actual} bytes long, expected {expected}")]
    WrongSize {
        /// The ingest.
        reference: String,
        /// What arrived.
        actual: u64,
        /// What was promised.
        expected: u64,
    },
    /// A write behind the end.
    #[error("write at {offset} of ingest {reference:?}, which is only {size} bytes long")]
    Offset {
        /// The ingest.
        reference: String,
        /// Where the write was to go.
        offset: u64,
        /// How far it has come.
        size: u64,
    },
    /// A document (manifest, config) beyond what is read into memory.
    #[error("content {digest} is {size} bytes long, more than the {limit} allowed for it")]
    TooBig {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The request can't be carried out.
    #[error("{0}")]
    Invalid(String),
    /// A filter that can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A file failed.
    #[error("{what}")]
    Io {
        /// What was tried, on which object.
        what: String,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ContentError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}

impl Failure for ContentError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::NoIngest(_) | Self::NoLease(_) => ErrorKind::NotFound,
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::Locked(_) => ErrorKind::Unavailable,
            Self::WrongDigest { .. } | Self::WrongSize { .. } => ErrorKind::FailedPrecondition,
            Self::Offset { .. } | Self::Invalid(_) | Self::Filter(_) | Self::TooBig { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::Io { cause, .. } => ErrorKind::of_io(cause),
            Self::Store(error) => error.kind(),
        }
    }
}

/// The content store.
pub(crate) struct Content {
    blobs: PathBuf,
    ingests: PathBuf,
    db: Database,
    leases: Leases,
    // Ingests that have a writer at the moment.
    busy: Mutex<HashSet<String>>,
    commits: commit::Commits,
}

impl Content {
    /// Opens the store below `root`.
    pub(crate) fn open(root: &Path, db: Database, leases: Leases) -> Result<Self, StoreError> {
        let (blobs, ingests) = (root.join("blobs/sha256"), root.join("ingest"));
        make_folder(root, 0o700)?;
        make_folder(&blobs, 0o700)?;
        make_folder(&ingests, 0o700)?;
        Ok(Self { blobs, ingests, db, leases, busy: Mutex::default(), commits: commit::Commits::default() })
    }

    /// Where the bytes of a blob are, if any namespace has it.
    pub(crate) fn file_of(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// What is known about a blob.
    pub(crate) fn info(&self, namespace: &str, digest: &Digest) -> Result<Info, ContentError> {
        let found = self.db.read(|tx| CONTENT.get(tx, namespace, &digest.to_string()))?;
        found.ok_or(ContentError::NotFound(*digest))
    }

    /// Whether the namespace has the blob.
    #[cfg(test)]
    pub(crate) fn has(&self, namespace: &str, digest: &Digest) -> Result<bool, ContentError> {
        match self.info(namespace, digest) {
            Ok(_) => Ok(true),
            Err(ContentError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The blobs of a namespace that pass the filters.
    pub(crate) fn list(&self, namespace: &str, filters: &[String]) -> Result<Vec<(String, Info)>, ContentError> {
        let filters = Filters::parse(filters)?;
        let mut found = self.db.read(|tx| CONTENT.list(tx, namespace, ""))?;
        found.retain(|(digest, info)| {
            filters.accept_labelled(&info.labels, |field| match field {
                "digest" => Some(digest.clone()),
                "size" => Some(info.size.to_string()),
                _ => None,
            })
        });
        Ok(found)
    }

    /// Number and bytes of blobs by namespace.
    pub(crate) fn totals(&self) -> Result<BTreeMap<String, (usize, u64)>, StoreError> {
        let mut totals = BTreeMap::<_, (usize, u64)>::new();
        for (namespace, _, info) in self.db.read(|tx| CONTENT.list_all(tx))? {
            let sum = totals.entry(namespace).or_default();
            *sum = (sum.0 + 1, sum.1 + info.size);
        }
        Ok(totals)
    }

    /// Changes labels as the field mask `paths` asks; an empty mask replaces all.
    pub(crate) fn update(
        &self,
        namespace: &str,
        digest: &Digest,
        labels: &Labels,
        paths: &[String],
    ) -> Result<Info, ContentError> {
        let all = ["labels".to_owned()];
        self.db.write(|tx| {
            let key = digest.to_string();
            let mut info = CONTENT.get(tx, namespace, &key)?.ok_or(ContentError::NotFound(*digest))?;
            update_labels(&mut info.labels, if paths.is_empty() { &all } else { paths }, labels)
                .map_err(|path| ContentError::Invalid(format!("content field {path:?} can't be updated")))?;
            info.updated_at = Time::now();
            CONTENT.put(tx, namespace, &key, &info)?;
            Ok(info)
        })
    }

    /// Adds labels to a blob and leaves its others; writes only if something changes.
    pub(crate) fn add_labels(&self, namespace: &str, digest: &Digest, labels: &Labels) -> Result<(), ContentError> {
        let info = self.info(namespace, digest)?;
        if labels.iter().all(|(name, value)| info.labels.get(name) == Some(value)) {
            return Ok(());
        }
        let paths: Vec<String> = labels.keys().map(|name| format!("labels.{name}")).collect();
        self.update(namespace, digest, labels, &paths).map(drop)
    }

    /// Adds labels to several blobs at once; layers that are not kept are passed over.
    pub(crate) fn label_all(&self, namespace: &str, all: &[(Digest, Labels)]) -> Result<(), ContentError> {
        let missing =
            |labels: &Labels, info: &Info| labels.iter().any(|(name, value)| info.labels.get(name) != Some(value));
        let mut todo = Vec::new();
        for (digest, labels) in all {
            match self.info(namespace, digest) {
                Ok(info) if missing(labels, &info) => todo.push((digest, labels)),
                Ok(_) | Err(ContentError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if todo.is_empty() {
            return Ok(());
        }
        self.db.write(|tx| {
            for (digest, labels) in todo {
                let key = digest.to_string();
                let Some(mut info) = CONTENT.get(tx, namespace, &key)? else { continue };
                info.labels.extend(labels.iter().map(|(name, value)| (name.clone(), value.clone())));
                info.updated_at = Time::now();
                CONTENT.put(tx, namespace, &key, &info)?;
            }
            Ok(())
        })
    }

    /// Removes a blob from the namespace, and its file if no other namespace has it.
    pub(crate) fn delete(&self, namespace: &str, digest: &Digest) -> Result<(), ContentError> {
        let removed = self.db.write(|tx| CONTENT.remove(tx, namespace, &digest.to_string()))?;
        if !removed {
            return Err(ContentError::NotFound(*digest));
        }
        self.remove_files(&[*digest])
    }

    /// Removes the files of blobs that no namespace has any more.
    ///
    /// Inside an (uncommitted) write transaction: no writer can bring a blob back meanwhile.
    pub(crate) fn remove_files(&self, digests: &[Digest]) -> Result<(), ContentError> {
        let done = self.db.write(|tx| {
            for digest in digests {
                if used_anywhere(tx, digest)? {
                    continue;
                }
                proto::fault!("supervisor.content_delete.unrecorded");
                match fs::remove_file(self.file_of(digest)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Removal::Failed(ContentError::io(format!("remove blob {digest}"))(error)));
                    }
                    _ => {}
                }
            }
            // There is nothing to commit, hence nothing for the disk to sync.
            Err::<(), _>(Removal::Done)
        });
        match done {
            Ok(()) | Err(Removal::Done) => Ok(()),
            Err(Removal::Failed(error)) => Err(error),
        }
    }

    /// Opens a blob for reading.
    pub(crate) fn reader(&self, namespace: &str, digest: &Digest) -> Result<(File, u64), ContentError> {
        let info = self.info(namespace, digest)?;
        let file = File::open(self.file_of(digest)).map_err(ContentError::io(format!("open blob {digest}")))?;
        Ok((file, info.size))
    }

    /// Reads a small blob whole; one beyond `limit` is refused before it is read.
    pub(crate) fn read_all(&self, namespace: &str, digest: &Digest, limit: u64) -> Result<Vec<u8>, ContentError> {
        let (file, size) = self.reader(namespace, digest)?;
        if size > limit {
            return Err(ContentError::TooBig { digest: *digest, size, limit });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.take(limit).read_to_end(&mut bytes).map_err(ContentError::io(format!("read blob {digest}")))?;
        Ok(bytes)
    }

    /// Stores bytes that are in memory as a blob; one that is there already gets the labels.
    pub(crate) fn put(
        self: &Arc<Self>,
        namespace: &str,
        bytes: &[u8],
        labels: &Labels,
        lease: Option<&str>,
    ) -> Result<Digest, ContentError> {
        let digest = Digest::of(bytes);
        let reference = format!("put-{}", leases::unique(&digest.hex()));
        let mut writer = match self.writer(namespace, &reference, bytes.len() as u64, Some(digest), lease) {
            Err(ContentError::Exists(_)) => {
                self.add_labels(namespace, &digest, labels)?;
                return Ok(digest);
            }
            other => other?,
        };
        writer.write(bytes)?;
        match writer.commit(bytes.len() as u64, Some(digest), labels) {
            Err(ContentError::Exists(_)) => self.add_labels(namespace, &digest, labels).map(|()| digest),
            other => other,
        }
    }

    /// Opens an ingest, at the end of what it already holds. `Exists` if the expected blob is there: it then belongs to
    /// the namespace, and to the lease.
    pub(crate) fn writer(
        self: &Arc<Self>,
        namespace: &str,
        reference: &str,
        total: u64,
        expected: Option<Digest>,
        lease: Option<&str>,
    ) -> Result<Writer, ContentError> {
        if reference.is_empty() || reference.len() > 4096 {
            return Err(ContentError::Invalid("ingest reference is empty or longer than 4096 bytes".into()));
        }
        if let Some(lease) = lease
            && !self.leases.exists(namespace, lease)?
        {
            return Err(ContentError::NoLease(lease.to_owned()));
        }
        if let Some(digest) = expected
            && self.adopt(namespace, &digest, lease)?
        {
            return Err(ContentError::Exists(digest));
        }
        Writer::open(self.clone(), namespace, reference, total, expected, lease)
    }

    /// Whether the blob that a writer is to become is there by now; it then belongs to the writer's namespace and lease.
    pub(crate) fn adopt_for(&self, namespace: &str, digest: &Digest, writer: &Writer) -> Result<bool, ContentError> {
        self.adopt(namespace, digest, writer.lease())
    }

    // A blob that any namespace has becomes one of this namespace: who knows the digest may have it (containerd's
    // default sharing policy), and no bytes travel twice.
    fn adopt(&self, namespace: &str, digest: &Digest, lease: Option<&str>) -> Result<bool, ContentError> {
        let key = digest.to_string();
        let known = self.db.read(|tx| CONTENT.get(tx, namespace, &key))?.is_some();
        if known && lease.is_none() {
            return Ok(true);
        }
        if !known && !self.file_of(digest).exists() {
            return Ok(false);
        }
        self.db.write(|tx| {
            if CONTENT.get(tx, namespace, &key)?.is_none() {
                // A file without any record is a leftover, of which nobody knows whether it is complete.
                if !used_anywhere(tx, digest)? {
                    return Ok(false);
                }
                let size = fs::metadata(self.file_of(digest))
                    .map_err(ContentError::io(format!("look at blob {digest}")))?
                    .size();
                let now = Time::now();
                let info = Info { size, created_at: now, updated_at: now, labels: Labels::new() };
                CONTENT.put(tx, namespace, &key, &info)?;
                namespaces::touch_in(tx, namespace)?;
            }
            if let Some(lease) = lease {
                leases::add_in(tx, namespace, lease, "content", &key)?;
            }
            Ok(true)
        })
    }

    /// How far an ingest is.
    pub(crate) fn status(&self, namespace: &str, reference: &str) -> Result<IngestStatus, ContentError> {
        IngestStatus::load(&writer::ingest_folder(self, namespace, reference))?
            .ok_or_else(|| ContentError::NoIngest(reference.to_owned()))
    }

    /// The ingests of a namespace that pass the filters.
    pub(crate) fn statuses(&self, namespace: &str, filters: &[String]) -> Result<Vec<IngestStatus>, ContentError> {
        let filters = Filters::parse(filters)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.ingests).map_err(ContentError::io("list ingests"))? {
            let entry = entry.map_err(ContentError::io("list ingests"))?;
            if let Some(status) = IngestStatus::load(&entry.path())?
                && status.namespace == namespace
                && filters.accept(|path| (path == ["ref"]).then(|| status.reference.clone()))
            {
                found.push(status);
            }
        }
        Ok(found)
    }

    /// Drops an ingest and what it holds.
    pub(crate) fn abort(self: &Arc<Self>, namespace: &str, reference: &str) -> Result<(), ContentError> {
        let folder = writer::ingest_folder(self, namespace, reference);
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(_claim) = self.claim(&name) else { return Err(ContentError::Locked(reference.to_owned())) };
        match fs::remove_dir_all(&folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ContentError::NoIngest(reference.to_owned())),
            Err(error) => Err(ContentError::io(format!("remove ingest {reference:?}"))(error)),
        }
    }

    fn lock_busy(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        // The set stays right even if a thread died while it held the lock.
        self.busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Removes what crashes left: blob files without record.
    pub(crate) fn sweep_blobs(&self) -> Result<(), ContentError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.blobs).map_err(ContentError::io("list blobs"))? {
            let entry = entry.map_err(ContentError::io("list blobs"))?;
            found.extend(format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>());
        }
        found.chunks(64).try_for_each(|lot| self.remove_files(lot))
    }

    /// Removes ingests that nobody has continued for `age`, writes now, or keeps by a lease: one that its writer named, or
    /// one of `leased` (namespace and reference). Tells how many, and when the next is due.
    pub(crate) fn sweep_ingests(
        self: &Arc<Self>,
        age: Duration,
        leased: &HashSet<(String, String)>,
    ) -> Result<(usize, Option<Duration>), ContentError> {
        let (mut removed, mut next) = (0, None);
        for entry in fs::read_dir(&self.ingests).map_err(ContentError::io("list ingests"))? {
            let entry = entry.map_err(ContentError::io("list ingests"))?;
            let (name, folder) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            let status = IngestStatus::load(&folder)?;
            let kept = match &status {
                Some(status) => {
                    leased.contains(&(status.namespace.clone(), status.reference.clone()))
                        || status.lease.as_ref().map(|id| self.leases.exists(&status.namespace, id)).transpose()?
                            == Some(true)
                }
                None => false,
            };
            let modified = folder.join("data").metadata().or_else(|_| entry.metadata()).and_then(|m| m.modified());
            let left = age.saturating_sub(modified.map(Time::since).unwrap_or_default());
            // One whose lease has ended may still be continued: a pull that was cut off is tried again.
            match self.claim(&name) {
                Some(_claim) if left.is_zero() && !kept => {
                    fs::remove_dir_all(&folder).map_err(ContentError::io(format!("remove ingest {name}")))?;
                    removed += 1;
                }
                // At most once an hour for those that are in use or leased: their end is no event of its own.
                _ => next = Some(next.unwrap_or(left).min(left).max(Duration::from_secs(3600))),
            }
        }
        Ok((removed, next))
    }

    /// Takes an ingest's folder for one writer, or for its removal; `None` if another has it.
    fn claim(self: &Arc<Self>, name: &str) -> Option<Claim> {
        self.lock_busy().insert(name.to_owned()).then(|| Claim(self.clone(), name.to_owned()))
    }
}

/// An ingest's folder, held by one.
struct Claim(Arc<Content>, String);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.lock_busy().remove(&self.1);
    }
}

/// How a transaction ends that removes files and no records.
enum Removal {
    Done,
    Failed(ContentError),
}

impl From<StoreError> for Removal {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

fn used_anywhere(tx: &impl Reader, digest: &Digest) -> Result<bool, StoreError> {
    let key = digest.to_string();
    for (namespace, _) in namespaces::all_in(tx)? {
        if CONTENT.get(tx, &namespace, &key)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
