//! The supervisor's durable state: one redb database for every record, and the folders beside it.
//!
//! A record lives in a named table under `namespace NUL key`. Each change is one transaction, on disk when it returns
//! (design, rule 3): what is announced afterwards can't be lost.

mod database;
mod journal;
mod table;
mod time;

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use prost_types::Any;
use proto::kind::ErrorKind;

#[cfg(test)]
pub(crate) use self::time::SET as CLOCK_SET;
pub(crate) use self::{
    database::{Database, is_empty, marker},
    journal::read as read_journal,
    table::{Codec, Proto, ReadTx, Reader, Table, WriteTx},
    time::Time,
};
use crate::{
    content::Content,
    failure::Failure,
    gc::Collector,
    images::Images,
    leases::Leases,
    namespaces::Namespaces,
    snapshots::{SnapshotConfig, SnapshotError, Snapshotters},
};

/// Where events go: namespace, topic (`/images/create`), message.
pub(crate) type EventSink = Arc<dyn Fn(&str, &str, Any) + Send + Sync>;

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process holds the database.
    #[error("data root {0} is in use by another supervisor")]
    InUse(PathBuf),
    /// A folder or file of the store can't be made or read.
    #[error("{what} {path}")]
    Folder {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: std::io::Error,
    },
    /// The database failed.
    #[error("metadata database")]
    Database(#[source] Box<redb::Error>),
    /// It is not what was written.
    #[error(
        "metadata database {file} is damaged ({why}): run \"berth-supervisor check --repair\" with the same --data-root and \
         --run-root, which rebuilds it and keeps what is there"
    )]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What shows it.
        why: String,
    },
    /// It is gone, and what it should know of is not.
    #[error(
        "metadata database {file} is missing or empty, although there is content: put it back, or run \"berth-supervisor \
         check --repair\" with the same --data-root and --run-root, which rebuilds it"
    )]
    Lost {
        /// The file.
        file: PathBuf,
    },
    /// The file system under it takes no changes any more.
    #[error(
        "data root {0} has become read-only (Read-only file system): look at the kernel's log, repair the file system and mount \
         it read-write"
    )]
    ReadOnly(PathBuf),
    /// It failed, and has not been opened anew yet.
    #[error("metadata database failed a moment ago; try again")]
    Broken,
    /// A record can't be decoded.
    #[error("record {key:?} in table {table} is damaged: {why}")]
    Damaged {
        /// The table.
        table: &'static str,
        /// The key with its namespace.
        key: String,
        /// What the decoder said.
        why: String,
    },
}

impl StoreError {
    fn database(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl Failure for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse(_) | Self::ReadOnly(_) => ErrorKind::FailedPrecondition,
            Self::Folder { cause, .. } => ErrorKind::of_io(cause),
            Self::Database(error) => match error.as_ref() {
                redb::Error::Io(cause) => ErrorKind::of_io(cause),
                redb::Error::PreviousIo => ErrorKind::Unavailable,
                redb::Error::Corrupted(_) => ErrorKind::DataLoss,
                _ => ErrorKind::Internal,
            },
            Self::Broken => ErrorKind::Unavailable,
            Self::Damaged { .. } | Self::Corrupt { .. } | Self::Lost { .. } => ErrorKind::DataLoss,
        }
    }
}

/// Everything that is kept below `DATA_ROOT/supervisor`, opened once and shared.
pub(crate) struct Stores {
    /// The records.
    pub(crate) db: Database,
    /// Blobs by digest.
    pub(crate) content: Arc<Content>,
    /// Image names.
    pub(crate) images: Images,
    /// File system layers.
    pub(crate) snapshots: Arc<Snapshotters>,
    /// What keeps things from being collected.
    pub(crate) leases: Leases,
    /// Who uses this supervisor.
    pub(crate) namespaces: Namespaces,
    /// The garbage collector.
    pub(crate) gc: Arc<Collector>,
    /// Where events go.
    pub(crate) events: EventSink,
    drops_layers: std::sync::atomic::AtomicBool,
}

impl Stores {
    /// Opens the data root, takes it for this process, and repairs what a crash left behind.
    pub(crate) fn open(
        data_root: &Path,
        snapshots: &SnapshotConfig,
        events: EventSink,
    ) -> Result<Arc<Self>, SnapshotError> {
        // What is set ahead from now on expires nothing.
        Time::for_expiry();
        let root = data_root.join("supervisor");
        make_folder(data_root, 0o711)?;
        make_folder(&root, 0o711)?;
        let file = root.join("metadata.redb");
        if is_empty(&file) && holds_content(&root) {
            // An empty database would be the death of everything that it doesn't know.
            return Err(StoreError::Lost { file }.into());
        }
        let db = Database::open(&file, data_root)?;
        let leases = Leases::new(db.clone());
        let content = Arc::new(Content::open(&root.join("content"), db.clone(), leases.clone())?);
        let snapshots = Arc::new(Snapshotters::open(&root.join("snapshots"), snapshots, &db, &leases)?);
        let images = Images::new(db.clone());
        let namespaces = Namespaces::new(db.clone());
        let gc = Collector::new(db.clone(), content.clone(), snapshots.clone(), events.clone());
        let drops_layers = std::sync::atomic::AtomicBool::new(false);
        Ok(Arc::new(Self { db, content, images, snapshots, leases, namespaces, gc, events, drops_layers }))
    }

    /// Decides whether blobs of layers are kept once they are unpacked.
    pub(crate) fn keep_layers(&self, keep: bool) {
        self.drops_layers.store(!keep, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether they are.
    pub(crate) fn keeps_layers(&self) -> bool {
        !self.drops_layers.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Unpacks again what a power cut may have taken from snapshots; what only waits for the disk is synced behind.
    pub(crate) fn unpack_again(self: &Arc<Self>) {
        for snapshotter in self.snapshots.loaded() {
            let blob = |namespace: &str, layer: &_| self.content.reader(namespace, layer).ok().map(|(blob, _)| blob);
            if let Err(error) = snapshotter.unpack_again(blob) {
                let name = snapshotter.name();
                tracing::error!(snapshotter = name, error = %proto::kind::chain(&error), "snapshots not put right after a power cut");
            }
        }
        self.sync_snapshots_behind();
    }

    /// Writes what snapshots still have in memory only to the disk, on a thread of its own.
    pub(crate) fn sync_snapshots_behind(self: &Arc<Self>) {
        let stores = self.clone();
        tokio::task::spawn_blocking(move || {
            for snapshotter in stores.snapshots.loaded() {
                if let Err(error) = snapshotter.sync_behind() {
                    let name = snapshotter.name();
                    tracing::warn!(snapshotter = name, error = %proto::kind::chain(&error), "snapshots not synced");
                }
            }
        });
    }

    /// Sends an event about an object of `namespace`.
    pub(crate) fn publish<M: prost::Message + prost::Name>(&self, namespace: &str, topic: &str, message: &M) {
        (self.events)(namespace, topic, proto::typeurl::pack(message));
    }
}

/// Whether blobs or snapshots are there.
fn holds_content(root: &Path) -> bool {
    let below = |at: PathBuf| std::fs::read_dir(at).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_snapshot = |at: &PathBuf| at.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
    below(root.join("content/blobs/sha256")).next().is_some()
        || below(root.join("snapshots")).flat_map(below).any(|at| is_snapshot(&at))
}

/// Makes a folder, its parents included, with `mode` whatever the umask says.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |cause| StoreError::Folder { what: "make folder", path: path.to_owned(), cause };
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Labels of a record.
pub(crate) type Labels = std::collections::BTreeMap<String, String>;

/// The labels of a protocol message as records keep them.
pub(crate) fn labels_from(map: impl IntoIterator<Item = (String, String)>) -> Labels {
    map.into_iter().collect()
}

/// Changes labels as a field mask asks: `labels.NAME` for single ones (an empty value removes), `labels` for all.
pub(crate) fn update_labels(labels: &mut Labels, paths: &[String], new: &Labels) -> Result<(), String> {
    for path in paths {
        if path == "labels" {
            labels.clone_from(new);
        } else if let Some(name) = path.strip_prefix("labels.") {
            match new.get(name) {
                Some(value) if !value.is_empty() => labels.insert(name.to_owned(), value.clone()),
                _ => labels.remove(name),
            };
        } else {
            return Err(path.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THINGS: Table<Vec<u32>> = Table::new("things");

    #[test]
    fn records_are_kept_apart_by_namespace_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("db");
        let db = Database::open(&file, dir.path()).unwrap();
        db.write::<_, StoreError>(|tx| {
            THINGS.put(tx, "a", "x", &vec![1])?;
            THINGS.put(tx, "a", "y", &vec![2])?;
            THINGS.put(tx, "ab", "x", &vec![3])
        })
        .unwrap();
        let failed = db.write(|tx| {
            THINGS.put(tx, "a", "z", &vec![9])?;
            Err::<(), _>(StoreError::InUse(PathBuf::new()))
        });
        assert!(failed.is_err());
        drop(db);
        let db = Database::open(&file, dir.path()).unwrap();
        db.read::<_, StoreError>(|tx| {
            assert_eq!(THINGS.list(tx, "a", "")?, vec![("x".into(), vec![1]), ("y".into(), vec![2])]);
            assert_eq!(THINGS.list_all(tx)?.len(), 3);
            assert_eq!(THINGS.get(tx, "b", "x")?, None);
            Ok(())
        })
        .unwrap();
        assert!(db.write(|tx| THINGS.remove(tx, "a", "x")).unwrap());
    }

    fn things(file: &Path, dir: &Path) -> Result<Vec<(String, String, Vec<u32>)>, StoreError> {
        Database::open(file, dir)?.read(|tx| THINGS.list_all(tx))
    }

    #[test]
    fn a_damaged_database_is_an_error_or_no_damage_at_all_and_the_journal_has_everything() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metadata.redb");
        let db = Database::open(&file, dir.path()).unwrap();
        for i in 0..40_u32 {
            db.write::<_, StoreError>(|tx| {
                THINGS.put(tx, "a", &format!("{i}"), &vec![i; 300])?;
                THINGS.remove(tx, "a", &format!("{}", i / 3)).map(drop)
            })
            .unwrap();
        }
        drop(db);
        let right = things(&file, dir.path()).unwrap();
        let (bytes, journal) =
            (std::fs::read(&file).unwrap(), std::fs::read(dir.path().join("metadata.journal")).unwrap());
        let mut refused = 0;
        // Every other place in the pages that are used; all of it would take minutes.
        for step in 0..120 {
            let at = step * bytes.len() / 120;
            let mut wrong = bytes.clone();
            match step % 3 {
                0 => wrong[at] ^= 0x41,
                1 => wrong[at..].iter_mut().take(4096).for_each(|byte| *byte = 0),
                _ => wrong.truncate(at),
            }
            std::fs::write(&file, &wrong).unwrap();
            std::fs::write(dir.path().join("metadata.journal"), &journal).unwrap();
            let _ = std::fs::remove_file(marker(&file));
            match things(&file, dir.path()) {
                Ok(found) => assert_eq!(found, right, "{step}"),
                Err(StoreError::Corrupt { .. } | StoreError::Lost { .. }) => {
                    refused += 1;
                    // Still so the second time: nothing was made good in silence.
                    assert!(things(&file, dir.path()).is_err(), "{step}");
                }
                Err(error) => panic!("{step}: {error:?}"),
            }
        }
        assert!(refused > 40, "{refused}");
        std::fs::write(dir.path().join("metadata.journal"), &journal).unwrap();
        let contents = read_journal(&dir.path().join("metadata.journal")).unwrap().unwrap();
        assert!(contents.whole);
        for file in [&file, &marker(&file)] {
            let _ = std::fs::remove_file(file);
        }
        Database::restore(&file, contents.records).unwrap();
        assert_eq!(things(&file, dir.path()).unwrap(), right);
    }

    #[test]
    fn a_second_opener_is_told_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Stores::open(dir.path(), &Default::default(), Arc::new(|_, _, _| {})).unwrap();
        let error = Stores::open(dir.path(), &Default::default(), Arc::new(|_, _, _| {})).err().unwrap();
        assert_eq!(error.to_string(), format!("data root {} is in use by another supervisor", dir.path().display()));
    }

    #[test]
    fn label_masks() {
        let new = labels_from([("a".into(), "1".into()), ("b".into(), String::new())]);
        let mut labels = labels_from([("b".into(), "2".into()), ("c".into(), "3".into())]);
        update_labels(&mut labels, &["labels.a".into(), "labels.b".into()], &new).unwrap();
        assert_eq!(labels, labels_from([("a".into(), "1".into()), ("c".into(), "3".into())]));
        assert_eq!(update_labels(&mut labels, &["size".into()], &new), Err("size".into()));
    }
}
