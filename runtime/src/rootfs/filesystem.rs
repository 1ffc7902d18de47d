//! File systems of a container's own, and what stands in for those that a user namespace may not have.

use std::os::fd::OwnedFd;

use nix::fcntl::AT_FDCWD;
use sys::Errno;
use sys::mount::{Filesystem, Reach, clone_tree, set_attributes};

use super::RootfsError;
use crate::plan::mounts::MountStep;

/// File systems that belong to a network or ipc namespace and can be mounted only by its owner. Where that namespace is not the
/// container's, the mount that the runtime itself sees stands in.
const OF_A_NAMESPACE: &[(&str, &str)] = &[("sysfs", "/sys"), ("mqueue", "/dev/mqueue")];

/// Makes a file system; gives its mount, detached, with the attributes it is to have.
pub(super) fn make(
    step: &MountStep,
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
) -> Result<OwnedFd, RootfsError> {
    let failed = |cause| RootfsError::Mount { what: kind.to_owned(), at: step.destination.clone(), cause };
    let stand_in = OF_A_NAMESPACE.iter().find(|(name, _)| *name == kind).map(|(_, path)| *path);
    let fs = match (Filesystem::open(kind), stand_in) {
        (Err(Errno::EPERM), Some(path)) => return bind(step, path).map_err(failed),
        (fs, _) => fs.map_err(failed)?,
    };
    if !source.is_empty() {
        fs.string("source", source).map_err(failed)?;
    }
    configure(&fs, step, kind, options)?;
    // What is copied up has to be written first; it is closed then.
    let attributes = if step.copy_up { 0 } else { step.attributes.set };
    match (fs.mount(attributes), stand_in) {
        (Err(Errno::EPERM), Some(path)) => bind(step, path).map_err(failed),
        // An older kernel takes the layers one by one, and only here says that it does not know how.
        (Err(Errno::EINVAL), _) if options.iter().any(|(key, value)| is_long(kind, key, value.as_deref())) => {
            Err(RootfsError::Layers { at: step.destination.clone(), cause: Errno::EINVAL })
        }
        (mount, _) => mount.map_err(failed),
    }
}

fn is_long(kind: &str, key: &str, value: Option<&str>) -> bool {
    kind == "overlay" && key == "lowerdir" && value.is_some_and(|value| value.len() > LONGEST_VALUE)
}

/// Bytes of a value that fsconfig(2) takes.
const LONGEST_VALUE: usize = 255;

/// With all that is mounted below, since a user namespace must not see what lies under it. All of it gets the attributes: "ro" for
/// /sys alone would leave the cgroups below writable (CVE-2023-25809).
fn bind(step: &MountStep, path: &str) -> Result<OwnedFd, Errno> {
    let tree = clone_tree(AT_FDCWD, path, Reach::Tree)?;
    set_attributes(&tree, Reach::Tree, step.attributes.set, 0, Some(sys::mount::Propagation::Slave))?;
    Ok(tree)
}

/// Gives a file system its options.
pub(super) fn configure(
    fs: &Filesystem,
    step: &MountStep,
    kind: &str,
    options: &[(String, Option<String>)],
) -> Result<(), RootfsError> {
    for (key, value) in options {
        let done = match value {
            None => fs.flag(key),
            Some(value) if kind == "overlay" && key == "lowerdir" => layers(fs, value),
            Some(value) => fs.string(key, value),
        };
        done.map_err(|cause| RootfsError::MountOption {
            what: kind.to_owned(),
            at: step.destination.clone(),
            option: value.as_ref().map_or(key.clone(), |value| format!("{key}={value}")),
            cause,
        })?;
    }
    Ok(())
}

/// A value ends at 255 bytes, which layers soon exceed: they can be added one by one (Linux 6.5). Older kernels want all of it at
/// once, as do names with colons in them and layers of data only.
fn layers(fs: &Filesystem, value: &str) -> Result<(), Errno> {
    if value.len() <= LONGEST_VALUE || value.contains('\\') || value.contains("::") {
        return fs.string("lowerdir", value);
    }
    value.split(':').try_for_each(|layer| fs.string("lowerdir+", layer))
}
