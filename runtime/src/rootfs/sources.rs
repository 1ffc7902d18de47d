//! What a container takes from the host's file system, as detached copies: its root, what is bound, devices.
//!
//! The parent takes it before the clone, when nothing has been made yet and with all its rights. An ordinary user has the right to
//! copy mounts only in a mount namespace of a user namespace of his own: there the child takes it, once it is in both.

#![expect(
    clippy::disallowed_methods,
    reason = "root and sources are the caller's, looked up on the host before the container has a root"
)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat};
use sys::Errno;
use sys::mount::{Reach, clone_tree};

use super::idmap::IdMaps;
use super::mounts::what;
use super::{RootfsError, devices};
use crate::plan::Plan;
use crate::plan::mounts::{MountStep, Source};

/// What one mount takes.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Nothing: the mount is a file system of its own. With it a user namespace, if its ids are to be mapped.
    Nothing(Option<OwnedFd>),
    /// A detached copy.
    Mount(OwnedFd),
    /// Where a link leads that is to be made again.
    Link(PathBuf),
}

/// Everything taken.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The root's mounts, detached: a copy, unless the caller made them for this container.
    pub(crate) rootfs: OwnedFd,
    /// In the order of the mounts.
    pub(crate) mounts: Vec<Taken>,
    /// Host devices, for a user namespace.
    pub(crate) devices: Vec<Option<OwnedFd>>,
}

impl Sources {
    /// Takes everything. `None` if this process may not copy mounts at all; nothing on the host changes.
    pub(crate) fn take(
        plan: &Plan,
        bundle: &Path,
        root: Option<&OwnedFd>,
        proc: &OwnedFd,
        joined: Option<&OwnedFd>,
    ) -> Result<Option<Self>, RootfsError> {
        let failed = |cause| RootfsError::Root { action: "open", path: plan.rootfs.clone(), cause };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let taken = match root {
            // Taken itself, for a copy would cost one mount more, and leave this one to whoever closes it last.
            Some(root) => nix::fcntl::openat(root, ".", flags, Mode::empty()),
            None => nix::fcntl::open(&plan.rootfs, flags, Mode::empty())
                .and_then(|directory| clone_tree(&directory, "", Reach::Tree)),
        };
        let rootfs = match taken {
            Err(Errno::EPERM) => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut id_maps = IdMaps::new(proc, joined);
        let mounts = plan.mounts.iter().map(|step| take(step, bundle, &mut id_maps)).collect::<Result<_, _>>()?;
        let binds_devices = plan.namespaces.in_user_namespace() && plan.populate_dev;
        let devices = if binds_devices { devices::clone_host_devices(&plan.devices)? } else { Vec::new() };
        Ok(Some(Self { rootfs, mounts, devices }))
    }
}

/// Sources are the operator's: relative ones are below the bundle, links are followed unless an option says otherwise.
fn take(step: &MountStep, bundle: &Path, id_maps: &mut IdMaps<'_>) -> Result<Taken, RootfsError> {
    let Source::Bind { path, reach } = &step.source else {
        let namespace = step.id_map.as_ref().map(|map| id_maps.namespace(&map.ids)).transpose();
        return namespace.map(Taken::Nothing).map_err(|cause| RootfsError::IdMap { what: what(step), cause });
    };
    let path = bundle.join(path);
    let failed = |cause| {
        let (index, path) = (step.index, path.clone());
        match cause {
            Errno::EINVAL => RootfsError::Unbindable { index, path, cause },
            cause => RootfsError::Source { index, path, cause },
        }
    };
    let tree = if step.links.copy || step.links.source_itself {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let itself = nix::fcntl::open(&path, flags, Mode::empty()).map_err(failed)?;
        let mode = SFlag::from_bits_truncate(fstat(&itself).map_err(failed)?.st_mode);
        if step.links.copy && mode & SFlag::S_IFMT == SFlag::S_IFLNK {
            return nix::fcntl::readlinkat(&itself, "").map(|target| Taken::Link(target.into())).map_err(failed);
        }
        clone_tree(&itself, "", *reach).map_err(failed)?
    } else {
        clone_tree(AT_FDCWD, &path, *reach).map_err(failed)?
    };
    let is_proc = || sys::path::filesystem_magic(&tree) == Ok(sys::path::PROC_MAGIC);
    if step.destination == Path::new("/proc") && !is_proc() {
        return Err(RootfsError::NotProc { what: what(step) });
    }
    if let Some(map) = &step.id_map {
        id_maps.apply(map, &tree, &what(step))?;
    }
    Ok(Taken::Mount(tree))
}
