//! The supervisor's durable state: one redb database for every record, and the folders beside it.
//!
//! A record lives in a named table under `namespace NUL key`. Each change is one transaction, on disk when it returns
//! (design, rule 3): what is announced afterwards can't be lost.

use std::{
    cell::Cell,
    fs,
    marker::PhantomData,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::errno::Errno;
use prost_types::{Any, Timestamp};
use proto::kind::ErrorKind;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    content::Content, failure::Failure, gc::Collector, images::Images, leases::Leases, namespaces::Namespaces,
    snapshots::Overlay,
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
            Self::InUse(_) => ErrorKind::FailedPrecondition,
            Self::Folder { cause, .. } => ErrorKind::of_io(cause),
            Self::Database(error) => match error.as_ref() {
                redb::Error::Io(cause) => ErrorKind::of_io(cause),
                redb::Error::PreviousIo => ErrorKind::Unavailable,
                redb::Error::Corrupted(_) => ErrorKind::DataLoss,
                _ => ErrorKind::Internal,
            },
            Self::Broken => ErrorKind::Unavailable,
            Self::Damaged { .. } => ErrorKind::DataLoss,
        }
    }
}

/// A moment as records keep it: nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub(crate) struct Time(i64);

impl Time {
    /// This moment.
    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }

    /// The moment as protocol messages carry it.
    pub(crate) fn to_proto(self) -> Timestamp {
        Timestamp { seconds: self.0.div_euclid(1_000_000_000), nanos: self.0.rem_euclid(1_000_000_000) as i32 }
    }

    /// How long ago this was; zero for a moment still to come.
    pub(crate) fn age(self) -> std::time::Duration {
        std::time::Duration::from_nanos(Self::now().0.saturating_sub(self.0).max(0) as u64)
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().min(i64::MAX as u128) as i64))
    }
}

/// How values of type `T` become bytes.
pub(crate) trait Codec<T> {
    /// The bytes of `value`.
    fn encode(value: &T) -> Result<Vec<u8>, String>;
    /// The value that `bytes` hold.
    fn decode(bytes: &[u8]) -> Result<T, String>;
}

/// Values as JSON.
pub(crate) struct Json;

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(value: &T) -> Result<Vec<u8>, String> {
        serde_json::to_vec(value).map_err(|e| e.to_string())
    }

    fn decode(bytes: &[u8]) -> Result<T, String> {
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }
}

/// Values as protobuf messages.
pub(crate) struct Proto;

impl<T: prost::Message + Default> Codec<T> for Proto {
    fn encode(value: &T) -> Result<Vec<u8>, String> {
        Ok(value.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<T, String> {
        T::decode(bytes).map_err(|e| e.to_string())
    }
}

/// A table of records: `const IMAGES: Table<Record> = Table::new("images");`
pub(crate) struct Table<T, C = Json> {
    name: &'static str,
    types: PhantomData<fn(T, C)>,
}

impl<T, C: Codec<T>> Table<T, C> {
    /// A table by its name in the database; it comes into being with its first record.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }

    fn decode(&self, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
        let damaged = |why| StoreError::Damaged { table: self.name, key: key.replace('\0', "/"), why };
        C::decode(bytes).map_err(damaged)
    }

    /// The record under `namespace` and `key`.
    pub(crate) fn get(&self, tx: &impl Reader, namespace: &str, key: &str) -> Result<Option<T>, StoreError> {
        let full = full_key(namespace, key);
        tx.get_bytes(self.name, &full)?.map(|bytes| self.decode(&full, &bytes)).transpose()
    }

    /// Every record of a namespace whose key begins with `prefix`, in the order of the keys.
    pub(crate) fn list(&self, tx: &impl Reader, namespace: &str, prefix: &str) -> Result<Vec<(String, T)>, StoreError> {
        let start = full_key(namespace, prefix);
        let skip = namespace.len() + 1;
        tx.scan_bytes(self.name, &start)?
            .into_iter()
            .map(|(full, bytes)| Ok((full[skip..].to_owned(), self.decode(&full, &bytes)?)))
            .collect()
    }

    /// Every record of every namespace: namespace, key, record.
    pub(crate) fn list_all(&self, tx: &impl Reader) -> Result<Vec<(String, String, T)>, StoreError> {
        tx.scan_bytes(self.name, "")?
            .into_iter()
            .map(|(full, bytes)| {
                let (namespace, key) = full.split_once('\0').unwrap_or(("", &full));
                Ok((namespace.to_owned(), key.to_owned(), self.decode(&full, &bytes)?))
            })
            .collect()
    }

    /// Writes the record, whether there was one or not.
    pub(crate) fn put(&self, tx: &WriteTx, namespace: &str, key: &str, value: &T) -> Result<(), StoreError> {
        let full = full_key(namespace, key);
        let bytes = C::encode(value).map_err(|why| StoreError::Damaged {
            table: self.name,
            key: full.replace('\0', "/"),
            why,
        })?;
        let mut table = tx.0.open_table(definition(self.name)).map_err(|error| tx.failed(error))?;
        table.insert(full.as_str(), bytes.as_slice()).map_err(|error| tx.failed(error))?;
        Ok(())
    }

    /// Removes the record; tells whether there was one.
    pub(crate) fn remove(&self, tx: &WriteTx, namespace: &str, key: &str) -> Result<bool, StoreError> {
        let mut table = tx.0.open_table(definition(self.name)).map_err(|error| tx.failed(error))?;
        let old = table.remove(full_key(namespace, key).as_str()).map_err(|error| tx.failed(error))?;
        Ok(old.is_some())
    }
}

fn definition(name: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(name)
}

fn full_key(namespace: &str, key: &str) -> String {
    format!("{namespace}\0{key}")
}

/// A transaction in which records can be read.
pub(crate) trait Reader {
    /// The bytes under a complete key.
    fn get_bytes(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Every record whose complete key begins with `prefix`.
    fn scan_bytes(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
}

/// A view of one moment.
pub(crate) struct ReadTx(redb::ReadTransaction);
/// A change, made whole or not at all.
///
/// Remembers whether the database itself failed.
pub(crate) struct WriteTx(redb::WriteTransaction, Cell<bool>);

fn get_in(table: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(table.get(key).map_err(StoreError::database)?.map(|value| value.value().to_vec()))
}

fn scan_in(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let mut found = Vec::new();
    for entry in table.range::<&str>(prefix..).map_err(StoreError::database)? {
        let (key, value) = entry.map_err(StoreError::database)?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(found)
}

impl Reader for ReadTx {
    fn get_bytes(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.0.open_table(definition(table)) {
            Ok(table) => get_in(&table, key),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(StoreError::database(error)),
        }
    }

    fn scan_bytes(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        match self.0.open_table(definition(table)) {
            Ok(table) => scan_in(&table, prefix),
            Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
            Err(error) => Err(StoreError::database(error)),
        }
    }
}

impl WriteTx {
    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        self.1.set(true);
        StoreError::database(error)
    }
}

impl Reader for WriteTx {
    fn get_bytes(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        get_in(&self.0.open_table(definition(table)).map_err(StoreError::database)?, key)
    }

    fn scan_bytes(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        scan_in(&self.0.open_table(definition(table)).map_err(StoreError::database)?, prefix)
    }
}

/// The database of records; clones share it.
#[derive(Clone)]
pub(crate) struct Database(Arc<Shared>);

struct Shared {
    file: PathBuf,
    reserve: PathBuf,
    data_root: PathBuf,
    // `None` after a failed write: redb wants to be opened anew before it goes on.
    open: RwLock<Option<redb::Database>>,
}

// Records are small and the kernel caches the file; redb's default of 1 GiB would break the memory budget.
const CACHE_BYTES: usize = 2 << 20;

/// Space that is kept free, so that records can still be removed when the disk is full.
const RESERVE_BYTES: i64 = 1 << 20;

impl Database {
    /// Opens or makes the database; `data_root` is what an error names.
    pub(crate) fn open(file: &Path, data_root: &Path) -> Result<Self, StoreError> {
        let shared = Shared {
            file: file.to_owned(),
            reserve: file.with_extension("reserve"),
            data_root: data_root.to_owned(),
            open: RwLock::new(None),
        };
        *shared.open.write().unwrap_or_else(PoisonError::into_inner) = Some(shared.open_file()?);
        let database = Self(Arc::new(shared));
        database.renew_reserve();
        Ok(database)
    }

    /// Reads in one consistent view.
    pub(crate) fn read<T, E: From<StoreError>>(&self, work: impl FnOnce(&ReadTx) -> Result<T, E>) -> Result<T, E> {
        self.0.with(|database| {
            let tx = ReadTx(database.begin_read().map_err(StoreError::database)?);
            work(&tx)
        })
    }

    /// Changes records; on disk when it returns, untouched if `work` fails. Writers take turns.
    ///
    /// After a full disk the next call finds the database opened anew, and the space of the reserve.
    pub(crate) fn write<T, E: From<StoreError>>(&self, work: impl FnOnce(&WriteTx) -> Result<T, E>) -> Result<T, E> {
        let done = self.0.with(|database| {
            let tx = match database.begin_write() {
                Ok(tx) => WriteTx(tx, Cell::new(false)),
                Err(error) => return (Err(StoreError::database(error).into()), true),
            };
            match work(&tx) {
                // Dropped without commit: rolled back.
                Err(error) => (Err(error), tx.1.get()),
                Ok(value) => match tx.0.commit() {
                    Ok(()) => (Ok(value), false),
                    Err(error) => (Err(StoreError::database(error).into()), true),
                },
            }
        });
        let (done, failed) = done;
        if failed {
            tracing::warn!("metadata database failed to write; it is opened anew");
            let _ = fs::remove_file(&self.0.reserve);
            *self.0.open.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
    }

    /// Takes the reserve's space again, if there is room.
    pub(crate) fn renew_reserve(&self) {
        let made = fs::File::options().create(true).truncate(false).write(true).open(&self.0.reserve);
        let taken = made
            .map_err(|_| Errno::EIO)
            .and_then(|file| nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), 0, RESERVE_BYTES));
        if taken.is_err() {
            let _ = fs::remove_file(&self.0.reserve); // half a reserve helps nobody
        }
    }
}

/// What comes out when the database can't even be opened.
trait Unopened {
    fn unopened(error: StoreError) -> Self;
}

impl<T, E: From<StoreError>> Unopened for Result<T, E> {
    fn unopened(error: StoreError) -> Self {
        Err(error.into())
    }
}

impl<T, E: From<StoreError>> Unopened for (Result<T, E>, bool) {
    fn unopened(error: StoreError) -> Self {
        (Err(error.into()), false)
    }
}

impl Shared {
    fn with<R: Unopened>(&self, work: impl FnOnce(&redb::Database) -> R) -> R {
        let lock = || self.open.read().unwrap_or_else(PoisonError::into_inner);
        if lock().is_none() {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            if open.is_none() {
                match self.open_file() {
                    Ok(database) => *open = Some(database),
                    Err(error) => return R::unopened(error),
                }
            }
        }
        match lock().as_ref() {
            Some(database) => work(database),
            // Another thread met the next failure in between.
            None => R::unopened(StoreError::Broken),
        }
    }

    fn open_file(&self) -> Result<redb::Database, StoreError> {
        redb::Builder::new().set_cache_size(CACHE_BYTES).create(&self.file).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(self.data_root.clone()),
            error => StoreError::database(error),
        })
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
    pub(crate) snapshots: Arc<Overlay>,
    /// What keeps things from being collected.
    pub(crate) leases: Leases,
    /// Who uses this supervisor.
    pub(crate) namespaces: Namespaces,
    /// The garbage collector.
    pub(crate) gc: Arc<Collector>,
    /// Where events go.
    pub(crate) events: EventSink,
}

impl Stores {
    /// Opens the data root, takes it for this process, and repairs what a crash left behind.
    pub(crate) fn open(data_root: &Path, events: EventSink) -> Result<Arc<Self>, StoreError> {
        let root = data_root.join("supervisor");
        make_folder(data_root, 0o711)?;
        make_folder(&root, 0o711)?;
        let db = Database::open(&root.join("metadata.redb"), data_root)?;
        let leases = Leases::new(db.clone());
        let content = Arc::new(Content::open(&root.join("content"), db.clone(), leases.clone())?);
        let snapshots = Arc::new(Overlay::open(&root.join("snapshots/overlayfs"), db.clone(), leases.clone())?);
        let images = Images::new(db.clone());
        let namespaces = Namespaces::new(db.clone());
        let gc = Collector::new(db.clone(), content.clone(), snapshots.clone());
        Ok(Arc::new(Self { db, content, images, snapshots, leases, namespaces, gc, events }))
    }

    /// Sends an event about an object of `namespace`.
    pub(crate) fn publish<M: prost::Message + prost::Name>(&self, namespace: &str, topic: &str, message: &M) {
        (self.events)(namespace, topic, proto::typeurl::pack(message));
    }
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

    #[test]
    fn a_second_opener_is_told_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Stores::open(dir.path(), Arc::new(|_, _, _| {})).unwrap();
        let error = Stores::open(dir.path(), Arc::new(|_, _, _| {})).err().unwrap();
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
