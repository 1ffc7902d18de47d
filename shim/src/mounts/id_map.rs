//! Root filesystems whose files belong to somebody else than on the disk: those of containers in a user namespace.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use sys::{mount::Reach, userns::Maps};

use super::MountError;

/// The ids of the options `uidmap` and `gidmap`.
pub(super) fn parse(what: &str, uids: &str, gids: &str) -> Result<Maps, MountError> {
    let bad = || MountError::Unsupported(format!("uidmap {uids:?} and gidmap {gids:?} for {what}"));
    Maps::parse(uids, gids).ok_or_else(bad)
}

/// A folder with other owners, detached.
pub(super) fn folder(path: &Path, reach: Reach, maps: &Maps) -> Result<OwnedFd, MountError> {
    sys::idmap::folder(path, reach, maps).map_err(|cause| MountError::IdMap { what: path.display().to_string(), cause })
}

/// The layers of an overlay with other owners, detached, and the options that name them from there ([`path`]).
pub(super) fn layers(data: &str, maps: &Maps) -> Result<(OwnedFd, String), MountError> {
    let named = data.split(',').find_map(|option| option.strip_prefix("lowerdir="));
    let named = named.ok_or_else(|| MountError::Unsupported("an id map of an overlay without lowerdir".into()))?;
    let failed = |cause| MountError::IdMap { what: format!("layers {named}"), cause };
    let (mount, names) = sys::idmap::layers(named, maps).map_err(failed)?;
    let (old, new) = (format!("lowerdir={named}"), format!("lowerdir={names}"));
    Ok((mount, data.replacen(&old, &new, 1)))
}

/// What to go to for names that are seen from a mount.
pub(super) fn path(mount: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", mount.as_raw_fd()).into()
}

/// Mounts on a folder what is mounted nowhere.
pub(super) fn attach(mount: &OwnedFd, at: &Path) -> Result<(), Errno> {
    let at = open(at, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::mount::attach(mount, &at)
}
