//! The database file: opened, opened anew after a failed write, and able to forget things on a full disk.

use std::{
    cell::{Cell, RefCell},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::errno::Errno;
use redb::{ReadableDatabase, StorageBackend as _};

use super::{
    ReadTx, StoreError, WriteTx,
    journal::{DumpError, Journal},
    table::definition,
};
use crate::logging::caught;

/// The database of records; clones share it.
#[derive(Clone)]
pub(crate) struct Database(Arc<Shared>);

struct Shared {
    file: PathBuf,
    reserve: PathBuf,
    data_root: PathBuf,
    // `None` after a failed write: redb wants to be opened anew before it goes on.
    open: RwLock<Option<Opened>>,
    journal: Mutex<Journal>,
    changes: AtomicU64,
}

enum Opened {
    /// The file.
    File(redb::Database),
    /// A copy of it in memory, while its file system is read-only: what is known can be asked, nothing can be changed.
    Copy(redb::Database),
}

impl Opened {
    fn database(&self) -> &redb::Database {
        match self {
            Self::File(database) | Self::Copy(database) => database,
        }
    }
}

// Records are small and the kernel caches the file; redb's default of 1 GiB would break the memory budget.
const CACHE_BYTES: usize = 2 << 20;

/// Space that is kept free, so that records can still be removed when the disk is full.
const RESERVE_BYTES: i64 = 1 << 20;

impl Database {
    /// Opens or makes the database, and makes sure that it is well; `data_root` is what an error names.
    pub(crate) fn open(file: &Path, data_root: &Path) -> Result<Self, StoreError> {
        let damaged = |why| StoreError::Corrupt { file: file.to_owned(), why };
        if let Ok(why) = fs::read_to_string(marker(file)) {
            return Err(damaged(why.trim().to_owned()));
        }
        let empty = is_empty(file);
        let journal = file.with_extension("journal");
        if empty && journal.exists() {
            return Err(StoreError::Lost { file: file.to_owned() });
        }
        let mut database = open_file(file, data_root, empty)?;
        // Pages carry checksums, which redb looks at only after an unclean end: what rots on the disk is found here. A page
        // beyond repair can make it fall back to an older state, and that would be a wrong answer, too.
        match caught(|| database.check_integrity()) {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                let why = "pages of it don't match their checksums".to_owned();
                fs::write(marker(file), &why).map_err(|cause| StoreError::Folder {
                    what: "note damage in",
                    path: marker(file),
                    cause,
                })?;
                return Err(damaged(why));
            }
            Ok(Err(error)) => return Err(opening(error, file, data_root)),
            Err(panic) => return Err(damaged(panic)),
        }
        let shared = Shared {
            file: file.to_owned(),
            reserve: file.with_extension("reserve"),
            data_root: data_root.to_owned(),
            open: RwLock::new(Some(Opened::File(database))),
            journal: Mutex::new(Journal::new(journal)),
            changes: AtomicU64::new(0),
        };
        let database = Self(Arc::new(shared));
        database.renew_reserve();
        database.0.with(|open| {
            dump(open, &mut database.lock_journal());
            Ok::<(), StoreError>(())
        })?;
        Ok(database)
    }

    /// Makes a new database of records; there must be none.
    pub(crate) fn restore(
        file: &Path,
        records: impl IntoIterator<Item = ((String, String), Vec<u8>)>,
    ) -> Result<(), StoreError> {
        let failed = |cause| StoreError::Folder { what: "restore", path: file.to_owned(), cause };
        let new = file.with_extension("redb.new");
        let _ = fs::remove_file(&new); // half of an earlier attempt
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(&new).map_err(StoreError::database)?;
        let tx = database.begin_write().map_err(StoreError::database)?;
        for ((table, key), value) in records {
            let mut table = tx.open_table(definition(&table)).map_err(StoreError::database)?;
            table.insert(key.as_str(), value.as_slice()).map_err(StoreError::database)?;
        }
        tx.commit().map_err(StoreError::database)?;
        drop(database);
        fs::rename(&new, file).map_err(failed)
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
        // Held from beginning to end: frames come into the journal in the order of the transactions.
        let mut journal = self.lock_journal();
        self.0.leave_copy()?;
        let done = self.0.with(|database| {
            let tx = match database.begin_write() {
                Ok(tx) => WriteTx(tx, Cell::new(false), RefCell::default()),
                Err(error) => return (Err(StoreError::database(error).into()), true),
            };
            match work(&tx) {
                // Dropped without commit: rolled back.
                Err(error) => (Err(error), tx.1.get()),
                Ok(value) => match tx.0.commit() {
                    Ok(()) => {
                        journal.append(&tx.2.into_inner());
                        if journal.wants_dump() {
                            dump(database, &mut journal);
                        }
                        (Ok(value), false)
                    }
                    Err(error) => (Err(StoreError::database(error).into()), true),
                },
            }
        });
        let (done, failed) = done;
        if failed {
            tracing::warn!("metadata database failed to write; it is opened anew");
            // Whether the last change is in it is known once it is open again: the journal is then written from it.
            journal.give_up(&StoreError::Broken);
            let _ = fs::remove_file(&self.0.reserve);
            *self.0.open.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        // Also after a failure: what of it is on the disk isn't known yet.
        self.0.changes.fetch_add(1, Ordering::Release);
        done
    }

    /// Counts the attempts to change anything: what was read is as it was read as long as this is as it was before.
    pub(crate) fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    fn lock_journal(&self) -> MutexGuard<'_, Journal> {
        self.0.journal.lock().unwrap_or_else(PoisonError::into_inner)
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
                match open_file(&self.file, &self.data_root, false) {
                    Ok(database) => *open = Some(Opened::File(database)),
                    Err(StoreError::ReadOnly(_)) => match open_copy(&self.file, &self.data_root) {
                        Ok(database) => *open = Some(Opened::Copy(database)),
                        Err(error) => return R::unopened(error),
                    },
                    Err(error) => return R::unopened(error),
                }
            }
        }
        match lock().as_ref() {
            Some(open) => work(open.database()),
            // Another thread met the next failure in between.
            None => R::unopened(StoreError::Broken),
        }
    }

    /// Before a change: the file instead of its copy in memory, if it can be written again.
    fn leave_copy(&self) -> Result<(), StoreError> {
        if matches!(*self.open.read().unwrap_or_else(PoisonError::into_inner), Some(Opened::Copy(_))) {
            let database = open_file(&self.file, &self.data_root, false)?;
            *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(Opened::File(database));
        }
        Ok(())
    }
}

/// Where it is noted that the database is damaged, although it can be opened by now.
pub(crate) fn marker(file: &Path) -> PathBuf {
    file.with_extension("damaged")
}

/// Whether there is nothing in it, or it isn't there.
pub(crate) fn is_empty(file: &Path) -> bool {
    fs::metadata(file).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |file| file.len() == 0)
}

fn open_file(file: &Path, data_root: &Path, make: bool) -> Result<redb::Database, StoreError> {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    match caught(|| if make { builder.create(file) } else { builder.open(file) }) {
        Ok(opened) => opened.map_err(|error| opening(error, file, data_root)),
        Err(why) => Err(StoreError::Corrupt { file: file.to_owned(), why }),
    }
}

/// Opens a copy in memory: opening wants to write, if only what an unclean end left to do.
fn open_copy(file: &Path, data_root: &Path) -> Result<redb::Database, StoreError> {
    let failed = |cause| StoreError::database(redb::StorageError::Io(cause));
    let bytes = fs::read(file).map_err(failed)?;
    let memory = redb::backends::InMemoryBackend::new();
    memory.set_len(bytes.len() as u64).and_then(|()| memory.write(0, &bytes)).map_err(failed)?;
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    match caught(|| builder.create_with_backend(memory)) {
        Ok(opened) => opened.map_err(|error| opening(error, file, data_root)),
        Err(why) => Err(StoreError::Corrupt { file: file.to_owned(), why }),
    }
}

/// Why it can't be opened, in the words of somebody who has to do something about it.
fn opening(error: redb::DatabaseError, file: &Path, data_root: &Path) -> StoreError {
    use redb::{DatabaseError, StorageError};
    let corrupt = |why| StoreError::Corrupt { file: file.to_owned(), why };
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(data_root.to_owned()),
        DatabaseError::Storage(StorageError::Corrupted(why)) => corrupt(why),
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            io::ErrorKind::UnexpectedEof => corrupt("it is cut short".to_owned()),
            io::ErrorKind::InvalidData => corrupt("it is no database at all".to_owned()),
            io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly(data_root.to_owned()),
            _ => StoreError::database(StorageError::Io(error)),
        },
        error => StoreError::database(error),
    }
}

/// Writes the journal anew. Without it we go on: it is the second of two copies.
fn dump(database: &redb::Database, journal: &mut Journal) {
    let everything = database.begin_read().map_err(StoreError::database).and_then(|tx| ReadTx(tx).everything());
    let dumped = match everything {
        Ok(records) => journal.dump(records.into_iter().map(Ok::<_, StoreError>)),
        Err(error) => Err(DumpError::Read(error)),
    };
    if let Err(error) = dumped {
        tracing::debug!(error = %proto::kind::chain(&error), "journal of the metadata database not written");
        journal.give_up(&error);
    }
}
