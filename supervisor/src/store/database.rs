//! The database file: opened, opened anew after a failed write, and able to forget things on a full disk.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use nix::errno::Errno;
use redb::ReadableDatabase;

use super::{ReadTx, StoreError, WriteTx};

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
