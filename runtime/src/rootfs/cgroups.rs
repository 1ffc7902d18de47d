//! The `cgroup` mount: the container sees its own cgroup as the root of the tree.

use std::os::fd::OwnedFd;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;
use sys::Errno;
use sys::mount::{Filesystem, Reach, attach, attr, clone_tree, set_attributes};
use sys::path::{Within, open_within};

use super::RootfsError;
use super::resolve::{self, Make};
use crate::confine::cgroup::{Cgroup, Hierarchy, ROOT};
use crate::plan::mounts::MountStep;

/// Mounts the cgroup tree. With a cgroup namespace it is mounted anew and shows what is below; without, the container's own
/// directories are bound.
pub(crate) fn make(root: &OwnedFd, step: &MountStep, cgroup: &Cgroup, private: bool) -> Result<(), RootfsError> {
    let failed = |cause| RootfsError::Mount { what: "cgroup".into(), at: step.destination.clone(), cause };
    let destination = resolve::destination(root, &step.destination, Make::Directory)
        .map_err(|cause| RootfsError::Destination { at: step.destination.clone(), cause })?;
    if cgroup.path().is_empty() && !private {
        // Its processes are in a cgroup of somebody else's, which may be ours to write: nothing of it is shown, and what a bind of
        // /sys may have brought along is covered (CVE-2023-25809).
        return empty(step).and_then(|mount| attach(mount, destination)).map_err(failed);
    }
    if cgroup.is_unified() {
        let mount = if private {
            // Without a cgroup of its own the root it sees is its caller's.
            let read_only = if cgroup.path().is_empty() { attr::RDONLY } else { 0 };
            Filesystem::open("cgroup2").and_then(|fs| fs.mount(step.attributes.set | read_only))
        } else {
            let path = std::path::Path::new(ROOT).join(cgroup.path());
            clone_tree(AT_FDCWD, &path, Reach::One).and_then(|tree| {
                set_attributes(&tree, Reach::One, step.attributes.set, step.attributes.clear, None)?;
                Ok(tree)
            })
        };
        let mount = match mount {
            Err(Errno::EPERM | Errno::EBUSY) => the_hosts(step),
            mount => mount,
        };
        return mount.and_then(|mount| attach(mount, destination)).map_err(failed);
    }
    match legacy(&destination, step, cgroup, private) {
        // What was attached until then is covered.
        Err(Errno::EPERM) => the_hosts(step).and_then(|mount| attach(mount, destination)),
        done => done,
    }
    .map_err(failed)
}

/// What the runtime itself sees, for a user namespace that may not mount cgroups. Read-only whatever config.json says: it is more
/// than the container's own, and on a host with delegation some of it is the user's (CVE-2023-25809).
fn the_hosts(step: &MountStep) -> Result<OwnedFd, Errno> {
    let tree = clone_tree(AT_FDCWD, ROOT, Reach::Tree)?;
    let set = step.attributes.set | attr::RDONLY;
    set_attributes(&tree, Reach::Tree, set, 0, Some(sys::mount::Propagation::Slave))?;
    Ok(tree)
}

/// Nothing at all, and read-only.
fn empty(step: &MountStep) -> Result<OwnedFd, Errno> {
    let fs = Filesystem::open("tmpfs")?;
    for (key, value) in [("source", "tmpfs"), ("mode", "555")] {
        fs.string(key, value)?;
    }
    fs.mount(step.attributes.set | attr::RDONLY)
}

/// One tmpfs with a directory per hierarchy, as the host has it.
fn legacy(destination: &OwnedFd, step: &MountStep, cgroup: &Cgroup, private: bool) -> Result<(), Errno> {
    let fs = Filesystem::open("tmpfs")?;
    for (key, value) in [("source", "tmpfs"), ("mode", "755")] {
        fs.string(key, value)?;
    }
    let read_only = step.attributes.set & attr::RDONLY;
    let top = fs.mount(step.attributes.set & !attr::RDONLY)?;
    attach(&top, destination)?;
    // On a hybrid host the cgroup2 tree is one of them.
    for hierarchy in cgroup.hierarchies() {
        mkdirat(&top, hierarchy.name.as_str(), Mode::from_bits_truncate(0o755))?;
        let at = open_within(&top, hierarchy.name.as_str(), nix::fcntl::OFlag::O_PATH, 0, Within::Plain)?;
        let mount = if private {
            fresh(hierarchy, step.attributes.set)?
        } else {
            let tree = clone_tree(AT_FDCWD, &hierarchy.mount_point().join(cgroup.path()), Reach::One)?;
            set_attributes(&tree, Reach::One, step.attributes.set, step.attributes.clear, None)?;
            tree
        };
        attach(mount, at)?;
        // cpu and cpuacct are links to cpu,cpuacct where they are mounted together.
        for name in hierarchy.name.split(',').filter(|name| *name != hierarchy.name) {
            symlinkat(hierarchy.name.as_str(), &top, name)?;
        }
    }
    if read_only != 0 {
        set_attributes(&top, Reach::One, attr::RDONLY, 0, None)?;
    }
    Ok(())
}

fn fresh(hierarchy: &Hierarchy, attributes: u64) -> Result<OwnedFd, Errno> {
    if hierarchy.is_unified() {
        return Filesystem::open("cgroup2")?.mount(attributes);
    }
    let fs = Filesystem::open("cgroup")?;
    if hierarchy.is_named() {
        // One without controllers, that somebody keeps track of processes with: systemd, elogind.
        fs.flag("none")?;
        fs.string("name", &hierarchy.name)?;
    } else {
        hierarchy.name.split(',').try_for_each(|name| fs.flag(name))?;
    }
    fs.mount(attributes)
}
