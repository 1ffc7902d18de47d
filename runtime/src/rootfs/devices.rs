//! Device nodes, the links in /dev, and the console.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use sys::Errno;
use sys::mount::{Reach, attach, clone_tree};

use super::RootfsError;
use super::resolve::{self, Make, parent_and_name};
use crate::plan::devices::DeviceStep;

/// Links every container has, and where they lead.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// In a user namespace no device can be made; the host's own are bound instead, if they are there.
pub(crate) fn clone_host_devices(steps: &[DeviceStep]) -> Result<Vec<Option<OwnedFd>>, RootfsError> {
    let clone = |step: &DeviceStep| match step.kind {
        SFlag::S_IFIFO => Ok(None),
        _ => clone_host_device(step).map(Some),
    };
    steps.iter().map(clone).collect()
}

fn clone_host_device(step: &DeviceStep) -> Result<OwnedFd, RootfsError> {
    let failed = |cause| RootfsError::Device { at: step.path.clone(), cause };
    let tree = clone_tree(nix::fcntl::AT_FDCWD, &step.path, Reach::One).map_err(failed)?;
    // What the host has there may be something else, for which the device rules of config.json are not meant.
    let found = fstat(&tree).map_err(failed)?;
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    if kind != step.kind || found.st_rdev != step.number {
        return Err(RootfsError::NotTheDevice { at: step.path.clone() });
    }
    Ok(tree)
}

fn bind(root: &OwnedFd, step: &DeviceStep, tree: &OwnedFd) -> Result<(), RootfsError> {
    let failed = |cause| RootfsError::Device { at: step.path.clone(), cause };
    let Some(destination) = place(root, &step.path).map_err(failed)? else {
        return Err(RootfsError::NotTheDevice { at: step.path.clone() });
    };
    attach(tree, destination).map_err(failed)
}

/// Makes the devices; `trees` are those to be bound, if any. The umask is 0 here.
pub(crate) fn make(root: &OwnedFd, steps: &[DeviceStep], trees: &[Option<OwnedFd>]) -> Result<(), RootfsError> {
    for (at, step) in steps.iter().enumerate() {
        let failed = |cause| RootfsError::Device { at: step.path.clone(), cause };
        if let Some(tree) = trees.get(at).and_then(Option::as_ref) {
            bind(root, step, tree)?;
            continue;
        }
        let (parent, name) = parent_and_name(root, &step.path).map_err(failed)?;
        match mknodat(&parent, name.as_path(), step.kind, Mode::from_bits_truncate(step.mode), step.number) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                let found = fstatat(&parent, name.as_path(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
                let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
                if kind != step.kind || found.st_rdev != step.number {
                    return Err(RootfsError::NotTheDevice { at: step.path.clone() });
                }
            }
            // The runtime itself is in somebody's user namespace, as rootless podman has it.
            Err(Errno::EPERM) if step.kind != SFlag::S_IFIFO => {
                bind(root, step, &clone_host_device(step)?)?;
                continue;
            }
            Err(cause) => return Err(failed(cause)),
        }
        if (step.uid, step.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(step.uid), Gid::from_raw(step.gid));
            fchownat(&parent, name.as_path(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        }
    }
    Ok(())
}

/// The file that a device of the host is to be mounted on, made if there is none. `None` where the image has a link or a folder: a
/// link could lead into the container's procfs.
fn place(root: &OwnedFd, at: &Path) -> Result<Option<OwnedFd>, Errno> {
    let found = match resolve::open_no_follow(root, at) {
        Err(Errno::ENOENT) => return resolve::destination(root, at, Make::File).map(Some),
        found => found?,
    };
    let kind = SFlag::from_bits_truncate(fstat(&found)?.st_mode) & SFlag::S_IFMT;
    let in_proc = sys::path::filesystem_magic(&found)? == sys::path::PROC_MAGIC;
    Ok((!in_proc && kind != SFlag::S_IFLNK && kind != SFlag::S_IFDIR).then_some(found))
}

/// Makes the links in /dev.
pub(crate) fn link(root: &OwnedFd) -> Result<(), RootfsError> {
    let failed = |name: &str| {
        let at = Path::new("/dev").join(name);
        move |cause| RootfsError::Device { at, cause }
    };
    let dev = resolve::directory(root, Path::new("/dev"), 0).map_err(failed(""))?;
    for (target, name) in LINKS {
        match symlinkat(*target, &dev, *name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(cause) => return Err(failed(name)(cause)),
        }
    }
    // This one has to be right, or terminals come from another instance: whatever the image has there goes.
    match unlinkat(&dev, "ptmx", UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        // Something is mounted there, which config.json asked for.
        Err(Errno::EBUSY) => return Ok(()),
        Err(cause) => return Err(failed("ptmx")(cause)),
    }
    symlinkat("pts/ptmx", &dev, "ptmx").map_err(failed("ptmx"))
}

/// Puts the container's terminal at /dev/console.
pub(crate) fn console(root: &OwnedFd, peer: &OwnedFd) -> Result<(), RootfsError> {
    let at = Path::new("/dev/console");
    let failed = |cause| RootfsError::Device { at: at.to_owned(), cause };
    let destination = place(root, at).map_err(failed)?;
    let Some(destination) = destination else { return Err(RootfsError::NotTheDevice { at: at.to_owned() }) };
    clone_tree(peer, "", Reach::One).and_then(|tree| attach(tree, destination)).map_err(failed)
}

/// Opens the container's null device, and makes sure that it is the one (CVE-2025-31133).
pub(crate) fn open_null(root: &OwnedFd) -> Result<OwnedFd, RootfsError> {
    let null = resolve::open_no_follow(root, Path::new("/dev/null")).map_err(|_| RootfsError::NotNull)?;
    let found = fstat(&null).map_err(|_| RootfsError::NotNull)?;
    let is_null = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
        && found.st_rdev == nix::sys::stat::makedev(1, 3);
    if is_null { Ok(null) } else { Err(RootfsError::NotNull) }
}
