//! The btrfs driver: every snapshot is a subvolume, and one that stands on another is a snapshot of it in btrfs' own sense.
//! Works only where its folder lies on btrfs. Committed subvolumes are read-only.

use std::{ffi::CStr, fs::File, os::fd::OwnedFd, path::Path};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open},
    sys::stat::{Mode, fstatat},
};
use proto::{containerd::types::Mount, kind::chain};
use sys::btrfs;

use super::{
    Kind, Record, SnapshotError, Usage,
    driver::{Driver, Pace, io_error},
    folders::Folders,
    native::bind_mounts,
};
use crate::{
    layers::{
        apply::Target,
        copy::{join, open_plain},
        tree::entries,
        usage,
    },
    store::{StoreError, make_folder},
};

const FILES: &CStr = c"fs";

/// Layers kept as subvolumes.
pub(crate) struct Btrfs {
    folders: Folders,
}

impl Btrfs {
    /// The driver over the folders below `root`.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        Ok(Self { folders: Folders::open(root)? })
    }

    /// Whether `root` lies on btrfs; says why it can't be used.
    pub(crate) fn probe(root: &Path) -> Result<(), String> {
        let existing = root.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
        let found = File::open(existing).map_err(Errno::try_from).map(btrfs::is_btrfs);
        match found {
            Ok(Ok(true)) => make_folder(root, 0o700).map_err(|error| chain(&error)),
            _ => Err(format!(
                "{} is not on btrfs: put the data root, or root of [snapshots.btrfs], there",
                root.display()
            )),
        }
    }
}

// Subvolumes within the subvolume: a container may have made some, and none is removed while it has others below it.
fn destroy(folder: &OwnedFd) -> Result<(), Errno> {
    match btrfs::destroy_subvolume(folder, FILES) {
        // Not a subvolume (a crash came first), or not there: what is left is the folder's matter.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL | Errno::ENOTTY | Errno::ENOTDIR) => return Ok(()),
        Err(Errno::ENOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    let top = open_plain(folder, FILES.to_bytes())?;
    let mut inner = Vec::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = open_plain(&top, &path)?;
        for (name, is_dir) in entries(&dir)? {
            if is_dir {
                let at = join(&path, name.to_bytes());
                if fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?.st_ino == btrfs::SUBVOLUME_INODE {
                    inner.push((path.clone(), name));
                }
                todo.push(at);
            }
        }
    }
    btrfs::set_read_only(&top, false)?;
    // The deepest first: what was found later lies beside or below what was found before.
    for (path, name) in inner.into_iter().rev() {
        let dir = open_plain(&top, &path)?;
        btrfs::set_read_only(open_plain(&dir, name.to_bytes())?, false)?;
        btrfs::destroy_subvolume(&dir, &name)?;
    }
    btrfs::destroy_subvolume(folder, FILES)
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn folders(&self) -> &Folders {
        &self.folders
    }

    fn pace(&self) -> Pace {
        Pace::Long
    }

    fn make(&self, _key: &str, record: &Record) -> Result<(), SnapshotError> {
        let folder = self.folders.make(record.id)?;
        let failed = |errno: Errno| io_error(format!("make subvolume {}/fs", folder.display()))(errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let at = open(&folder, flags, Mode::empty()).map_err(failed)?;
        match record.chain.first().filter(|_| record.kind == Kind::Active) {
            Some(below) => {
                let below = self.folders.open_files(*below)?;
                btrfs::snapshot(&below, &at, FILES).map_err(failed)?;
                proto::fault!("supervisor.snapshot_prepare.cloned");
            }
            None => {
                btrfs::create_subvolume(&at, FILES).map_err(failed)?;
                self.folders.dress(record)?;
            }
        }
        self.folders.sync(record.id)
    }

    fn remove(&self, id: u64) -> Result<(), SnapshotError> {
        let failed = |errno: Errno| io_error(format!("remove subvolume of snapshot folder {id}"))(errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(&self.folders.folder(id), flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            folder => destroy(&folder.map_err(failed)?).map_err(failed)?,
        }
        self.folders.remove(id)
    }

    fn mounts(&self, key: &str, record: &Record) -> Result<Vec<Mount>, SnapshotError> {
        bind_mounts(&self.folders, key, record)
    }

    // A committed one is never written to again; an active one that a crash left read-only is.
    fn settled(&self, record: &Record) -> Result<(), SnapshotError> {
        let files = self.folders.open_files(record.id)?;
        let wanted = record.kind == Kind::Committed;
        let done = btrfs::is_read_only(&files)
            .and_then(|is| if is == wanted { Ok(()) } else { btrfs::set_read_only(&files, wanted) });
        done.map_err(|errno| io_error(format!("make subvolume {} read-only: {wanted}", record.id))(errno.into()))
    }

    // What isn't shared with the parent: other blocks belong to that.
    fn usage(&self, record: &Record) -> Result<Usage, SnapshotError> {
        let Some(below) = record.chain.first().filter(|_| record.kind != Kind::View) else {
            return self.folders.usage(record.id);
        };
        let (below, here) = (self.folders.open_files(*below)?, self.folders.open_files(record.id)?);
        let (bytes, inodes) = usage::difference(&below, &here)
            .map_err(|errno| io_error(format!("measure snapshot folder {}", record.id))(errno.into()))?;
        Ok(Usage { bytes, inodes })
    }

    fn target(&self, record: &Record) -> Result<Target, SnapshotError> {
        Ok(Target::merged(self.folders.open_files(record.id)?))
    }
}
