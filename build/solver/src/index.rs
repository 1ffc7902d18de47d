//! What is known: records of results by their keys, on disk (`redb`). Survives SIGKILL at any moment.
//!
//! One thread writes; what queues up while it syncs goes into one transaction. A new record is on disk before anybody hears of
//! it. When something was last used, aliases and digests of contents may be lost with the power: they only save work.

use crate::worker::Kept;
use proto::digest::Digest;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, mpsc},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::oneshot;
use tracing::warn;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const ALIASES: TableDefinition<'_, &str, &str> = TableDefinition::new("aliases");
const CONTENTS: TableDefinition<'_, &str, &str> = TableDefinition::new("contents");
const FORMAT: u64 = 1;
/// Writes that share one transaction at most.
const BATCH: usize = 256;
/// Other keys of a record; the oldest go first. Each new state of a context makes one.
const ALIASES_MAX: usize = 16;
const CACHE_BYTES: usize = 4 << 20;

/// The index; clones share it. What was written last is on disk when the last of them is dropped.
#[derive(Clone)]
pub struct Index(Arc<Shared>);

struct Shared {
    file: Arc<File>,
    writes: Option<mpsc::Sender<Write>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct File {
    path: PathBuf,
    /// Nothing after a failed write: redb wants to be opened anew before it goes on.
    database: RwLock<Option<Database>>,
    #[cfg(test)]
    fail: std::sync::atomic::AtomicBool,
}

/// What is known at a moment. Not to be kept: what was written since isn't in it.
pub struct View {
    path: PathBuf,
    records: ReadOnlyTable<&'static str, &'static [u8]>,
    aliases: ReadOnlyTable<&'static str, &'static str>,
    contents: ReadOnlyTable<&'static str, &'static str>,
}

/// A result that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// By output; nothing is an empty filesystem.
    pub outputs: Vec<Option<Kept>>,
    /// Milliseconds since 1970.
    pub created: u64,
    /// Milliseconds since 1970.
    pub last_used: u64,
    /// How often it was used since.
    pub uses: u64,
    /// For users.
    pub description: String,
    /// As BuildKit calls it: regular, source.local, source.git.checkout, frontend, internal.
    pub kind: String,
    /// Keys of those that it is built on, whose files it needs.
    pub parents: Vec<Digest>,
    /// Other keys that lead here.
    pub aliases: Vec<Digest>,
}

impl Record {
    /// Bytes that it takes.
    pub fn size(&self) -> u64 {
        self.outputs.iter().flatten().map(|kept| kept.size).sum()
    }

    /// Names that the worker knows it by.
    pub fn names(&self) -> Vec<String> {
        self.outputs.iter().flatten().map(|kept| kept.name.clone()).collect()
    }
}

/// Why the index can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It can't be opened.
    #[error("open index of the build cache {path}; removed, the cache starts anew")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: Box<redb::Error>,
    },
    /// What is in it isn't whole.
    #[error("index of the build cache {path} is damaged: {why}; removed, the cache starts anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Made by a later version.
    #[error("index of the build cache {path} has format {format}, this version knows {FORMAT}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
    /// A write failed before, and it couldn't be opened since.
    #[error("index of the build cache {path} is closed after a failed write")]
    Closed {
        /// The file.
        path: PathBuf,
    },
    /// It can't be read.
    #[error("read index of the build cache {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: Box<redb::Error>,
    },
    /// It can't be written.
    #[error("write index of the build cache {path}: {cause}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// There is no thread to write it.
    #[error("start the writer of the build cache's index")]
    Thread(#[source] std::io::Error),
}

struct Write {
    change: Change,
    done: Option<oneshot::Sender<Result<Option<Record>, String>>>,
}

enum Change {
    /// Gives what was there before.
    Put(Digest, Box<Record>),
    /// Gives what was removed. With names: only if it is the record with these.
    Remove(Digest, Option<Vec<String>>),
    Alias(Digest, Digest),
    Content(Digest, String, Digest),
    Touch(Vec<Digest>, u64),
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Index").field(&self.0.file.path).finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.writes.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Index {
    /// Opens or makes it.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let file = Arc::new(File {
            path: path.to_owned(),
            database: RwLock::new(Some(open(path)?)),
            #[cfg(test)]
            fail: false.into(),
        });
        let (writes, queue) = mpsc::channel();
        let writer = file.clone();
        let thread = std::thread::Builder::new()
            .name("build-index".into())
            .spawn(move || write_all(&writer, &queue))
            .map_err(IndexError::Thread)?;
        Ok(Self(Arc::new(Shared { file, writes: Some(writes), thread: Some(thread) })))
    }

    /// A view of it as it is now, for many questions at once.
    pub fn view(&self) -> Result<View, IndexError> {
        self.0.file.read(|tx| {
            Ok(View {
                path: self.0.file.path.clone(),
                records: tx.open_table(RECORDS)?,
                aliases: tx.open_table(ALIASES)?,
                contents: tx.open_table(CONTENTS)?,
            })
        })
    }

    /// The record that a key leads to, and its canonical key.
    pub fn lookup(&self, key: &Digest) -> Result<Option<(Digest, Record)>, IndexError> {
        self.view()?.lookup(key)
    }

    /// All records.
    pub fn records(&self) -> Result<Vec<(Digest, Record)>, IndexError> {
        self.0.file.read(|tx| {
            let mut all = Vec::new();
            for entry in tx.open_table(RECORDS)?.iter()? {
                let (key, value) = entry?;
                let digest = format!("sha256:{}", key.value()).parse().ok();
                all.extend(digest.zip(decode(key.value(), value.value())));
            }
            Ok(all)
        })
    }

    /// Keeps a record; on disk when it returns. Gives the one that was there.
    pub async fn put(&self, canonical: Digest, record: Record) -> Result<Option<Record>, IndexError> {
        self.write(Change::Put(canonical, Box::new(record))).await
    }

    /// Forgets a record, and everything that leads to it. With `names` only if it is still the record with these.
    pub async fn remove(&self, canonical: Digest, names: Option<Vec<String>>) -> Result<Option<Record>, IndexError> {
        self.write(Change::Remove(canonical, names)).await
    }

    /// Everything said so far is on disk when it returns.
    pub async fn settle(&self) -> Result<(), IndexError> {
        self.write(Change::Touch(Vec::new(), 0)).await.map(drop)
    }

    /// One more key of a record.
    pub(crate) fn alias(&self, canonical: Digest, alias: Digest) {
        self.send(Change::Alias(canonical, alias));
    }

    /// What was found in a result.
    pub(crate) fn note_content(&self, canonical: &Digest, output: usize, selection: &Digest, content: Digest) {
        self.send(Change::Content(*canonical, content_key(canonical, output, selection), content));
    }

    /// These were used.
    pub(crate) fn touch(&self, canonical: Vec<Digest>) {
        if !canonical.is_empty() {
            self.send(Change::Touch(canonical, millis()));
        }
    }

    async fn write(&self, change: Change) -> Result<Option<Record>, IndexError> {
        let path = || self.0.file.path.clone();
        let (done, outcome) = oneshot::channel();
        let sent = self.0.writes.as_ref().map(|writes| writes.send(Write { change, done: Some(done) }));
        let Some(Ok(())) = sent else { return Err(IndexError::Closed { path: path() }) };
        let outcome = outcome.await.map_err(|_| IndexError::Closed { path: path() })?;
        outcome.map_err(|cause| IndexError::Write { path: path(), cause })
    }

    fn send(&self, change: Change) {
        if let Some(writes) = &self.0.writes {
            let _ = writes.send(Write { change, done: None });
        }
    }

    #[cfg(test)]
    pub(crate) fn fail_writes(&self, fail: bool) {
        self.0.file.fail.store(fail, std::sync::atomic::Ordering::SeqCst);
    }
}

impl View {
    /// The record that a key leads to, and its canonical key.
    pub fn lookup(&self, key: &Digest) -> Result<Option<(Digest, Record)>, IndexError> {
        let find = || -> Result<_, redb::StorageError> {
            let alias = self.aliases.get(key.hex().as_str())?.and_then(|found| found.value().parse().ok());
            let canonical: Digest = alias.unwrap_or(*key);
            let name = canonical.hex();
            let found = self.records.get(name.as_str())?;
            Ok(found.and_then(|found| decode(&name, found.value())).map(|record| (canonical, record)))
        };
        find().map_err(|cause| self.failed(cause))
    }

    /// The digest of what `selection` says of a result, if it was made before.
    pub fn content(&self, canonical: &Digest, output: usize, selection: &Digest) -> Result<Option<Digest>, IndexError> {
        let found = self.contents.get(content_key(canonical, output, selection).as_str());
        let found = found.map_err(|cause| self.failed(cause))?;
        Ok(found.and_then(|found| found.value().parse().ok()))
    }

    fn failed(&self, cause: redb::StorageError) -> IndexError {
        IndexError::Read { path: self.path.clone(), cause: Box::new(cause.into()) }
    }
}

impl File {
    fn read<T>(&self, work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T, IndexError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else { return Err(IndexError::Closed { path: self.path.clone() }) };
        let done = database.begin_read().map_err(redb::Error::from).and_then(|tx| work(&tx));
        done.map_err(|cause| IndexError::Read { path: self.path.clone(), cause: Box::new(cause) })
    }

    fn apply(&self, batch: &[Write]) -> Result<Vec<Option<Record>>, redb::Error> {
        #[cfg(test)]
        if self.fail.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(redb::Error::Io(std::io::ErrorKind::StorageFull.into()));
        }
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else { return Err(redb::Error::DatabaseAlreadyOpen) };
        let mut tx = database.begin_write()?;
        if batch.iter().all(|write| write.done.is_none()) {
            let _ = tx.set_durability(Durability::None);
        }
        let outcomes = batch.iter().map(|write| change(&tx, &write.change)).collect::<Result<_, _>>()?;
        tx.commit()?;
        Ok(outcomes)
    }

    fn reopen(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
        match open(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(error) => warn!(%error, "index of the build cache stays closed"),
        }
    }
}

fn open(path: &Path) -> Result<Database, IndexError> {
    let failed = |cause: redb::Error| IndexError::Open { path: path.to_owned(), cause: Box::new(cause) };
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
        let tx = database.begin_write()?;
        let format = {
            let mut meta = tx.open_table(META)?;
            let format = meta.get("format")?.map_or(FORMAT, |format| format.value());
            if format <= FORMAT {
                meta.insert("format", FORMAT)?;
                tx.open_table(RECORDS)?;
                tx.open_table(ALIASES)?;
                tx.open_table(CONTENTS)?;
            }
            format
        };
        tx.commit()?;
        Ok::<_, redb::Error>((database, format))
    }));
    match opened {
        Ok(Ok((database, format))) if format <= FORMAT => Ok(database),
        Ok(Ok((_, format))) => Err(IndexError::Newer { path: path.to_owned(), format }),
        Ok(Err(redb::Error::Corrupted(why))) => Err(IndexError::Damaged { path: path.to_owned(), why }),
        Ok(Err(error)) => Err(failed(error)),
        // redb asserts what it reads.
        Err(_) => Err(IndexError::Damaged { path: path.to_owned(), why: "its pages contradict each other".into() }),
    }
}

fn write_all(file: &File, queue: &mpsc::Receiver<Write>) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            let Ok(next) = queue.try_recv() else { break };
            batch.push(next);
        }
        let outcome = file.apply(&batch);
        if let Err(error) = &outcome {
            warn!(%error, "index of the build cache failed to write; it is opened anew");
            file.reopen();
        }
        for (at, write) in batch.into_iter().enumerate() {
            if let Some(done) = write.done {
                let _ = done.send(match &outcome {
                    Ok(outcomes) => Ok(outcomes[at].clone()),
                    Err(error) => Err(error.to_string()),
                });
            }
        }
    }
    // Makes what was written loosely last.
    if let Some(database) = file.database.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
        let _ = database.begin_write().map(redb::WriteTransaction::commit);
    }
}

fn change(tx: &redb::WriteTransaction, change: &Change) -> Result<Option<Record>, redb::Error> {
    match change {
        Change::Put(canonical, record) => {
            let before = forget(tx, canonical, None)?;
            let mut record = record.as_ref().clone();
            record.aliases.retain(|alias| alias != canonical);
            let mut aliases = tx.open_table(ALIASES)?;
            for alias in &record.aliases {
                aliases.insert(alias.hex().as_str(), canonical.to_string().as_str())?;
            }
            store(tx, canonical, &record)?;
            Ok(before)
        }
        Change::Remove(canonical, names) => forget(tx, canonical, names.as_deref()),
        Change::Alias(canonical, alias) => {
            let Some(mut record) = load(tx, canonical)? else { return Ok(None) };
            if alias == canonical || record.aliases.contains(alias) {
                return Ok(None);
            }
            let mut aliases = tx.open_table(ALIASES)?;
            record.aliases.push(*alias);
            if record.aliases.len() > ALIASES_MAX {
                aliases.remove(record.aliases.remove(0).hex().as_str())?;
            }
            aliases.insert(alias.hex().as_str(), canonical.to_string().as_str())?;
            store(tx, canonical, &record)?;
            Ok(None)
        }
        Change::Content(canonical, key, content) => {
            if load(tx, canonical)?.is_some() {
                tx.open_table(CONTENTS)?.insert(key.as_str(), content.to_string().as_str())?;
            }
            Ok(None)
        }
        Change::Touch(keys, at) => {
            for canonical in keys {
                if let Some(mut record) = load(tx, canonical)? {
                    record.last_used = *at;
                    record.uses += 1;
                    store(tx, canonical, &record)?;
                }
            }
            Ok(None)
        }
    }
}

fn forget(
    tx: &redb::WriteTransaction,
    canonical: &Digest,
    names: Option<&[String]>,
) -> Result<Option<Record>, redb::Error> {
    let Some(record) = load(tx, canonical)? else { return Ok(None) };
    if names.is_some_and(|names| names != record.names()) {
        return Ok(None);
    }
    tx.open_table(RECORDS)?.remove(canonical.hex().as_str())?;
    let mut aliases = tx.open_table(ALIASES)?;
    for alias in &record.aliases {
        // A step that was done again took the alias along.
        let leads_here = aliases.get(alias.hex().as_str())?.is_some_and(|to| to.value() == canonical.to_string());
        if leads_here {
            aliases.remove(alias.hex().as_str())?;
        }
    }
    let (from, to) = (format!("{}/", canonical.hex()), format!("{}0", canonical.hex()));
    tx.open_table(CONTENTS)?.retain_in(from.as_str()..to.as_str(), |_, _| false)?;
    Ok(Some(record))
}

fn load(tx: &redb::WriteTransaction, canonical: &Digest) -> Result<Option<Record>, redb::Error> {
    let records = tx.open_table(RECORDS)?;
    let found = records.get(canonical.hex().as_str())?;
    Ok(found.and_then(|found| decode(&canonical.hex(), found.value())))
}

fn store(tx: &redb::WriteTransaction, canonical: &Digest, record: &Record) -> Result<(), redb::Error> {
    let bytes = serde_json::to_vec(record).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
    tx.open_table(RECORDS)?.insert(canonical.hex().as_str(), bytes.as_slice())?;
    Ok(())
}

fn decode(key: &str, bytes: &[u8]) -> Option<Record> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| warn!(key, %error, "record of the build cache is unreadable"))
        .ok()
}

fn content_key(canonical: &Digest, output: usize, selection: &Digest) -> String {
    format!("{}/{output}/{}", canonical.hex(), selection.hex())
}

/// Milliseconds since 1970.
pub(crate) fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
