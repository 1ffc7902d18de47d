//! The native driver: every snapshot is a whole copy of what it stands on, with shared blocks where the file system has
//! them. It needs nothing of the kernel, and is what is left where overlayfs can't be had.

use std::path::Path;

use nix::sys::stat::{UtimensatFlags, utimensat};
use proto::containerd::types::Mount;

use super::{
    Kind, Record, SnapshotError,
    driver::{Driver, Pace, io_error},
    folders::Folders,
    overlay::bind_mount,
};
use crate::{
    layers::{apply::Target, copy::Copier},
    store::StoreError,
};

/// A link in a snapshot's folder to the folder that it is a copy of.
pub(super) const COPY_OF: &str = "below";

/// Layers kept as copies.
pub(crate) struct Native {
    folders: Folders,
}

impl Native {
    /// The driver over the folders below `root`.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        Ok(Self { folders: Folders::open(root)? })
    }
}

/// Mounts of a driver whose snapshots are complete by themselves: a bind of the one, or of what a view stands on.
pub(super) fn bind_mounts(folders: &Folders, key: &str, record: &Record) -> Result<Vec<Mount>, SnapshotError> {
    let (id, access) = match (record.kind, record.chain.first()) {
        (Kind::Committed, _) => return Err(SnapshotError::NoMounts(key.to_owned())),
        (Kind::Active, _) => (record.id, "rw"),
        (Kind::View, None) => (record.id, "ro"),
        (Kind::View, Some(below)) => (*below, "ro"),
    };
    let mut mount = bind_mount(&folders.files(id), access);
    mount.options.extend(record.map_options());
    Ok(vec![mount])
}

impl Driver for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn folders(&self) -> &Folders {
        &self.folders
    }

    fn pace(&self) -> Pace {
        Pace::Long
    }

    fn make(&self, key: &str, record: &Record) -> Result<(), SnapshotError> {
        let folder = self.folders.make(record.id)?;
        let failed = || io_error(format!("make snapshot folder {}", folder.display()));
        std::fs::create_dir(folder.join("fs")).map_err(failed())?;
        self.folders.dress(record)?;
        let Some(below) = record.chain.first().filter(|_| record.kind == Kind::Active) else { return Ok(()) };
        let (from, to) = (self.folders.open_files(*below)?, self.folders.open_files(record.id)?);
        let copied = Copier::default().tree(&from, &to);
        copied.map_err(|cause| SnapshotError::Copy { key: key.to_owned(), cause })?;
        proto::fault!("supervisor.snapshot_prepare.copied");
        // Of what it is a copy, and since when: what is changed from here on has a later change time than the folder (`layers::diff` looks at it).
        std::os::unix::fs::symlink(format!("../{below}"), folder.join(COPY_OF)).map_err(failed())?;
        let at = std::fs::File::open(&folder).map_err(failed())?;
        let now = nix::sys::time::TimeSpec::UTIME_NOW;
        utimensat(&at, ".", &now, &now, UtimensatFlags::NoFollowSymlink).map_err(|errno| failed()(errno.into()))?;
        // The record promises the whole copy.
        self.folders.sync(record.id)
    }

    fn mounts(&self, key: &str, record: &Record) -> Result<Vec<Mount>, SnapshotError> {
        bind_mounts(&self.folders, key, record)
    }

    fn target(&self, record: &Record) -> Result<Target, SnapshotError> {
        Ok(Target::merged(self.folders.open_files(record.id)?))
    }
}
