//! Roots of filesystems as descriptors: mounts that only this process has, and that go with it even by SIGKILL.

use super::TreeError;
use crate::containers::overlay::{self, Upper};
use nix::errno::Errno;
use proto::containerd::types::Mount;
use std::{os::fd::OwnedFd, path::Path};
use sys::mount::{Filesystem, Reach, attr, clone_tree, set_attributes};

/// Nothing of a build's files does anything here.
const INERT: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

/// Whether something may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The root of what a snapshot's mounts describe. Blocks.
pub(super) fn open(mounts: &[Mount], access: Access) -> Result<OwnedFd, TreeError> {
    let [mount] = mounts else { return Err(TreeError::Mounts(format!("{} mounts", mounts.len()))) };
    let attributes = INERT | if access == Access::Read { attr::RDONLY } else { 0 };
    let failed = |cause| TreeError::Open { kind: mount.r#type.clone(), cause };
    let folder = |path: &str| folder(Path::new(path), attributes).map_err(failed);
    let value = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key));
    match mount.r#type.as_str() {
        "bind" | "rbind" => folder(&mount.source),
        "overlay" => {
            let upper = value("upperdir=");
            let lower = value("lowerdir=").unwrap_or_default().split(':').filter(|folder| !folder.is_empty());
            match (upper, value("workdir="), access) {
                (Some(upper), Some(work), Access::Write) => {
                    let lower: Vec<&str> = lower.collect();
                    if lower.is_empty() {
                        return folder(upper);
                    }
                    let upper = Upper { folder: upper, work };
                    overlay::detached(&lower, Some(upper), attributes).map_err(failed)
                }
                (_, _, Access::Write) => Err(failed(Errno::EROFS)),
                (upper, _, Access::Read) => {
                    let folders: Vec<&str> = upper.into_iter().chain(lower).collect();
                    match folders.as_slice() {
                        // One folder is no overlay to the kernel.
                        [only] => folder(only),
                        folders => overlay::detached(folders, None, attributes).map_err(failed),
                    }
                }
            }
        }
        // What a containerd has besides: a file system of its own kind on a device (btrfs).
        kind => {
            let of_device = || {
                let filesystem = Filesystem::open(kind)?;
                filesystem.string("source", &mount.source)?;
                for option in mount.options.iter().filter(|option| !matches!(option.as_str(), "ro" | "rw")) {
                    match option.split_once('=') {
                        Some((key, value)) => filesystem.string(key, value)?,
                        None => filesystem.flag(option)?,
                    }
                }
                filesystem.mount(attributes)
            };
            of_device().map_err(failed)
        }
    }
}

/// An empty filesystem that nobody can write to.
pub(super) fn empty() -> Result<OwnedFd, TreeError> {
    let tmpfs = || Filesystem::open("tmpfs")?.mount(INERT | attr::RDONLY);
    tmpfs().map_err(|cause| TreeError::Open { kind: "tmpfs".into(), cause })
}

fn folder(path: &Path, attributes: u64) -> Result<OwnedFd, Errno> {
    let tree = clone_tree(nix::fcntl::AT_FDCWD, path, Reach::One)?;
    set_attributes(&tree, Reach::One, attributes, 0, None)?;
    Ok(tree)
}
