//! Puts the mounts of config.json in place, in their order.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use sys::Errno;
use sys::mount::{Propagation, Reach, attach, reconfigure, set_attributes, set_id_mapping};

use super::resolve::{self, Make};
use super::sources::Taken;
use super::{RootfsError, filesystem};
use crate::plan::mounts::{MountStep, Source};

/// What somebody reads about a mount in an error.
pub(crate) fn what(step: &MountStep) -> String {
    match &step.source {
        Source::Bind { path, .. } => path.display().to_string(),
        Source::Cgroup => "cgroup".into(),
        Source::Filesystem { kind, .. } => kind.clone(),
        Source::Remount { .. } => "again".into(),
    }
}

/// Attaches the root where hooks expect it and keeps this mount namespace's changes to itself.
#[expect(
    clippy::disallowed_methods,
    reason = "the host's root, and the place of the container's on it, in a mount namespace of our own"
)]
pub(crate) fn attach_root(tree: &OwnedFd, path: &Path, propagation: Propagation) -> Result<(), RootfsError> {
    let failed = |action| move |cause| RootfsError::Root { action, path: path.to_owned(), cause };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let slash = nix::fcntl::open("/", flags, Mode::empty()).map_err(failed("isolate mounts of"))?;
    set_attributes(&slash, Reach::Tree, 0, 0, Some(propagation)).map_err(failed("isolate mounts of"))?;
    set_attributes(tree, Reach::Tree, 0, 0, Some(propagation)).map_err(failed("isolate"))?;
    // A path that this user cannot walk (user namespace, private folders above) matters to nobody but hooks: the old root will do.
    let at = nix::fcntl::open(path, flags, Mode::empty()).unwrap_or(slash);
    attach(tree, &at).map_err(failed("attach"))
}

/// How mounts propagate that config.json says nothing about, until the root is entered.
pub(crate) fn inner(outer: Propagation) -> Propagation {
    match outer {
        Propagation::Private | Propagation::Unbindable => Propagation::Private,
        Propagation::Shared | Propagation::Slave => Propagation::Slave,
    }
}

/// Makes one mount in a container whose root is to propagate as `outer` says. What is mounted on /proc and /sys comes back, for what is
/// to be hidden in there (see [`super::masks::Places`]).
pub(crate) fn make(
    root: &OwnedFd,
    step: &MountStep,
    taken: &Taken,
    outer: Propagation,
) -> Result<Option<OwnedFd>, RootfsError> {
    let failed = |cause| RootfsError::Mount { what: what(step), at: step.destination.clone(), cause };
    let made;
    let (mount, kind) = match (&step.source, taken) {
        (Source::Remount { options }, _) => return remount(root, step, options).map(|()| None),
        (_, Taken::Link(target)) => return link(root, step, target).map(|()| None),
        (_, Taken::Mount(tree)) => {
            let mode = SFlag::from_bits_truncate(fstat(tree).map_err(failed)?.st_mode);
            let is_directory = mode & SFlag::S_IFMT == SFlag::S_IFDIR;
            (tree, if is_directory { Make::Directory } else { Make::File })
        }
        (Source::Filesystem { kind, source, options }, Taken::Nothing(namespace)) => {
            made = filesystem::make(step, kind, source, options)?;
            if let (Some(map), Some(namespace)) = (&step.id_map, namespace) {
                set_id_mapping(&made, map.reach, namespace).map_err(|cause| match cause {
                    Errno::EINVAL => RootfsError::IdMapUnsupported { what: kind.clone(), cause },
                    cause => RootfsError::IdMap { what: kind.clone(), cause },
                })?;
            }
            (&made, Make::Directory)
        }
        (_, Taken::Nothing(_)) => return Err(failed(Errno::EBADF)),
    };
    let destination = destination(root, step, kind)?;
    if step.copy_up {
        super::copy_up::copy(&destination, mount).map_err(failed)?;
    }
    set(mount, step, outer).map_err(failed)?;
    attach(mount, &destination).map_err(failed)?;
    let wanted = super::masks::PLACES.iter().any(|place| step.destination == Path::new(place));
    wanted
        .then(|| mount.try_clone().map_err(|error| failed(error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))))
        .transpose()
}

/// Changes what is mounted at the destination already.
fn remount(root: &OwnedFd, step: &MountStep, options: &[(String, Option<String>)]) -> Result<(), RootfsError> {
    let at = &step.destination;
    let failed = |cause| RootfsError::Remount { at: at.clone(), cause };
    let mount = resolve::open(root, at).map_err(failed)?;
    if !at.starts_with("/proc") && sys::path::filesystem_magic(&mount) == Ok(sys::path::PROC_MAGIC) {
        return Err(RootfsError::InsideProc { what: what(step), at: at.clone() });
    }
    if !options.is_empty() {
        let fs = reconfigure(&mount).map_err(failed)?;
        filesystem::configure(&fs, step, "again", options)?;
        fs.apply().map_err(failed)?;
    }
    for (propagation, reach) in &step.propagation {
        set_attributes(&mount, *reach, 0, 0, Some(*propagation)).map_err(failed)?;
    }
    attributes(&mount, step).map_err(failed)
}

/// Makes a link of the host's again; one that is there already has to lead to the same place.
fn link(root: &OwnedFd, step: &MountStep, target: &Path) -> Result<(), RootfsError> {
    let at = &step.destination;
    let failed = |cause| RootfsError::Destination { at: at.clone(), cause };
    let (parent, name) = resolve::parent_and_name(root, at).map_err(failed)?;
    match nix::unistd::symlinkat(target, &parent, name.as_path()) {
        Err(Errno::EEXIST) => match nix::fcntl::readlinkat(&parent, name.as_path()) {
            Ok(found) if Path::new(&found) == target => Ok(()),
            _ => Err(RootfsError::NotTheLink { at: at.clone(), target: target.to_owned() }),
        },
        done => done.map_err(failed),
    }
}

/// Attributes before the mount can be seen: there is never a moment in which it is more open than asked for.
fn set(mount: &OwnedFd, step: &MountStep, outer: Propagation) -> Result<(), Errno> {
    let bound = step.source.is_bind();
    // A copy of a shared mount belongs to the host's group. It stays there only if the root is shared as well; otherwise what is
    // shared is so among the container's own.
    let shared = step.propagation.iter().any(|(propagation, _)| *propagation == Propagation::Shared);
    if bound && (step.propagation.is_empty() || (shared && outer != Propagation::Shared)) {
        set_attributes(mount, Reach::Tree, 0, 0, Some(inner(outer)))?;
    }
    for (propagation, reach) in &step.propagation {
        set_attributes(mount, *reach, 0, 0, Some(*propagation))?;
    }
    if bound || step.copy_up {
        return attributes(mount, step);
    }
    if !step.tree_attributes.is_empty() {
        set_attributes(mount, Reach::Tree, step.tree_attributes.set, step.tree_attributes.clear, None)?;
    }
    Ok(())
}

fn attributes(mount: impl AsFd, step: &MountStep) -> Result<(), Errno> {
    if !step.attributes.is_empty() {
        set_attributes(&mount, Reach::One, step.attributes.set, step.attributes.clear, None)?;
    }
    if !step.tree_attributes.is_empty() {
        set_attributes(&mount, Reach::Tree, step.tree_attributes.set, step.tree_attributes.clear, None)?;
    }
    Ok(())
}

fn destination(root: &OwnedFd, step: &MountStep, make: Make) -> Result<OwnedFd, RootfsError> {
    let at = &step.destination;
    if let Source::Filesystem { kind, .. } = &step.source
        && matches!(kind.as_str(), "proc" | "sysfs")
    {
        let link = resolve::open_no_follow(root, at).and_then(|found| fstat(&found));
        if let Ok(found) = link
            && SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
        {
            return Err(RootfsError::Link { what: kind.clone(), at: at.clone() });
        }
    }
    let find = if step.links.destination_itself { resolve::destination_itself } else { resolve::destination };
    let found = find(root, at, make).map_err(|cause| RootfsError::Destination { at: at.clone(), cause })?;
    // What is to be below /proc by its name has been looked at in the plan; a link of the image may lead there as well.
    if !at.starts_with("/proc") && sys::path::filesystem_magic(&found) == Ok(sys::path::PROC_MAGIC) {
        return Err(RootfsError::InsideProc { what: what(step), at: at.clone() });
    }
    Ok(found)
}
