//! The folders of one driver: `ROOT/ID/fs` holds a layer's files.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use super::{Record, SnapshotError, Usage, driver::io_error};
use crate::{
    layers,
    store::{StoreError, make_folder},
};

/// The folders of one driver.
pub(crate) struct Folders {
    root: PathBuf,
    // The highest number that a folder has or had: no number is used twice while what had it first may still be there.
    used: AtomicU64,
}

impl Folders {
    /// The folders below `root`, which is made if need be.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        make_folder(root, 0o700)?;
        let folders = Self { root: root.to_owned(), used: AtomicU64::new(0) };
        let failed = |cause| StoreError::Folder { what: "list folder", path: root.to_owned(), cause };
        let highest = folders.ids().map_err(failed)?.into_iter().max().unwrap_or(0);
        folders.used.store(highest, Ordering::Relaxed);
        Ok(folders)
    }

    /// The folder of a snapshot.
    pub(crate) fn folder(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// The files of a snapshot.
    pub(crate) fn files(&self, id: u64) -> PathBuf {
        self.folder(id).join("fs")
    }

    /// The highest number in use so far.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Notes that a number is in use, whatever becomes of its record.
    pub(crate) fn note_used(&self, id: u64) {
        self.used.fetch_max(id, Ordering::Relaxed);
    }

    /// The snapshots that have a folder.
    pub(crate) fn ids(&self) -> std::io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(ids)
    }

    /// Makes the folder of a snapshot, private and empty.
    pub(crate) fn make(&self, id: u64) -> Result<PathBuf, SnapshotError> {
        let folder = self.folder(id);
        let failed = || io_error(format!("make snapshot folder {}", folder.display()));
        fs::create_dir(&folder).map_err(failed())?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed())?;
        Ok(folder)
    }

    /// Gives the top of a snapshot's files mode and owner of the one below it, which it stands for when mounted.
    pub(crate) fn dress(&self, record: &Record) -> Result<(), SnapshotError> {
        let files = self.files(record.id);
        let failed = || io_error(format!("prepare snapshot folder {}", files.display()));
        let (mode, owner) = match record.chain.first() {
            Some(below) => {
                let below = fs::metadata(self.files(*below)).map_err(failed())?;
                (below.mode() & 0o7777, Some((below.uid(), below.gid())))
            }
            None => (0o755, None),
        };
        if let Some((uid, gid)) = owner
            && (uid, gid) != (0, 0)
        {
            std::os::unix::fs::chown(&files, Some(uid), Some(gid)).map_err(failed())?;
        }
        fs::set_permissions(&files, fs::Permissions::from_mode(mode)).map_err(failed())
    }

    /// Opens the files of a snapshot.
    pub(crate) fn open_files(&self, id: u64) -> Result<OwnedFd, SnapshotError> {
        let files = self.files(id);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        open(&files, flags, Mode::empty())
            .map_err(|errno| io_error(format!("open snapshot folder {}", files.display()))(errno.into()))
    }

    /// Removes the folder of a snapshot with everything in it.
    pub(crate) fn remove(&self, id: u64) -> Result<(), SnapshotError> {
        let failed = |cause: Errno| io_error(format!("remove snapshot folder {id}"))(cause.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(&self.root, flags, Mode::empty()).map_err(failed)?;
        match layers::tree::remove(&root, id.to_string().as_bytes()) {
            Err(Errno::ENOENT) => Ok(()),
            other => other.map_err(failed),
        }
    }

    /// Removes everything in a snapshot's folder of files.
    pub(crate) fn empty(&self, id: u64) -> Result<(), SnapshotError> {
        let failed = |cause: Errno| io_error(format!("empty snapshot folder {id}"))(cause.into());
        let files = self.open_files(id)?;
        let names: Vec<_> = fs::read_dir(self.files(id))
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .map_err(io_error(format!("list snapshot folder {id}")))?;
        names.iter().try_for_each(|name| layers::tree::remove(&files, name.as_encoded_bytes())).map_err(failed)
    }

    /// Writes what the files of all snapshots have in memory to the disk.
    pub(crate) fn sync_all(&self) -> Result<(), SnapshotError> {
        let failed = || io_error(format!("sync {}", self.root.display()));
        let root = fs::File::open(&self.root).map_err(failed())?;
        nix::unistd::syncfs(&root).map_err(|errno| failed()(errno.into()))
    }

    /// Writes what a snapshot's files have in memory to the disk.
    pub(crate) fn sync(&self, id: u64) -> Result<(), SnapshotError> {
        nix::unistd::syncfs(self.open_files(id)?)
            .map_err(|errno| io_error(format!("sync snapshot folder {id}"))(errno.into()))
    }

    /// What a snapshot's files take.
    pub(crate) fn usage(&self, id: u64) -> Result<Usage, SnapshotError> {
        let (bytes, inodes) = layers::usage::usage(&self.files(id))
            .map_err(|errno| io_error(format!("measure snapshot folder {id}"))(errno.into()))?;
        Ok(Usage { bytes, inodes })
    }

    /// The snapshot whose files a path is. Clients may name any folder in a mount; only `ROOT/ID/fs` is a layer.
    pub(crate) fn own(&self, path: &Path) -> Option<u64> {
        let id = path.strip_prefix(&self.root).ok()?.to_str()?.strip_suffix("/fs")?;
        id.bytes().all(|b| b.is_ascii_digit()).then(|| id.parse().ok()).flatten()
    }
}
