//! Puts the mounts of config.json in place, in their order.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat};
use sys::Errno;
use sys::mount::{Filesystem, Propagation, Reach, attach, clone_tree, set_attributes};

use super::RootfsError;
use super::resolve::{self, Make};
use crate::plan::mounts::{MountStep, Source};

/// Detached copies of everything that is bound from the host, in the order of the mounts: taken by the parent, which may go where
/// a container's root user may not.
pub(crate) type Trees = Vec<Option<OwnedFd>>;

/// What somebody reads about a mount in an error.
pub(crate) fn what(step: &MountStep) -> String {
    match &step.source {
        Source::Bind { path, .. } => path.display().to_string(),
        Source::Cgroup => "cgroup".into(),
        Source::Filesystem { kind, .. } => kind.clone(),
    }
}

/// Copies the mounts to be bound. Sources are the operator's: relative ones are below the bundle, links are followed.
pub(crate) fn clone_sources(steps: &[MountStep], bundle: &Path) -> Result<Trees, RootfsError> {
    let clone = |step: &MountStep| {
        let Source::Bind { path, reach } = &step.source else { return Ok(None) };
        let tree = clone_tree(AT_FDCWD, &bundle.join(path), *reach).map_err(|cause| RootfsError::Mount {
            what: what(step),
            at: step.destination.clone(),
            cause,
        })?;
        let is_proc = || sys::path::filesystem_magic(&tree) == Ok(sys::path::PROC_MAGIC);
        if step.destination == Path::new("/proc") && !is_proc() {
            return Err(RootfsError::NotProc { what: what(step) });
        }
        Ok(Some(tree))
    };
    steps.iter().map(clone).collect()
}

/// Attaches the root where hooks expect it and keeps this mount namespace's changes to itself.
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

/// Makes one mount. `default` is the propagation of bound trees that config.json says nothing about.
pub(crate) fn make(
    root: &OwnedFd,
    step: &MountStep,
    tree: Option<&OwnedFd>,
    default: Propagation,
) -> Result<(), RootfsError> {
    let failed = |cause| RootfsError::Mount { what: what(step), at: step.destination.clone(), cause };
    let made;
    let (mount, kind) = match (&step.source, tree) {
        (Source::Filesystem { kind, source, options }, _) => {
            made = filesystem(step, kind, source, options)?;
            (&made, Make::Directory)
        }
        (_, Some(tree)) => {
            let mode = SFlag::from_bits_truncate(fstat(tree).map_err(failed)?.st_mode);
            let is_directory = mode & SFlag::S_IFMT == SFlag::S_IFDIR;
            (tree, if is_directory { Make::Directory } else { Make::File })
        }
        (_, None) => return Err(failed(Errno::EBADF)),
    };
    let destination = destination(root, step, kind)?;
    if step.copy_up {
        super::copy_up::copy(&destination, mount).map_err(failed)?;
    }
    set(mount, step, default).map_err(failed)?;
    attach(mount, &destination).map_err(failed)
}

/// Attributes before the mount can be seen: there is never a moment in which it is more open than asked for.
fn set(mount: &OwnedFd, step: &MountStep, default: Propagation) -> Result<(), Errno> {
    let bound = step.source.is_bind();
    if bound && step.propagation.is_empty() {
        set_attributes(mount, Reach::Tree, 0, 0, Some(default))?;
    }
    for (propagation, reach) in &step.propagation {
        set_attributes(mount, *reach, 0, 0, Some(*propagation))?;
    }
    if !step.attributes.is_empty() && (bound || step.copy_up) {
        set_attributes(mount, Reach::One, step.attributes.set, step.attributes.clear, None)?;
    }
    if !step.tree_attributes.is_empty() {
        set_attributes(mount, Reach::Tree, step.tree_attributes.set, step.tree_attributes.clear, None)?;
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
    let found = resolve::destination(root, at, make);
    let found = found.map_err(|cause| RootfsError::Destination { at: at.clone(), cause })?;
    // What is to be below /proc by its name has been looked at in the plan; a link of the image may lead there as well.
    if !at.starts_with("/proc") && sys::path::filesystem_magic(&found) == Ok(sys::path::PROC_MAGIC) {
        return Err(RootfsError::InsideProc { what: what(step), at: at.clone() });
    }
    Ok(found)
}

fn filesystem(
    step: &MountStep,
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
) -> Result<OwnedFd, RootfsError> {
    let failed = |cause| RootfsError::Mount { what: kind.to_owned(), at: step.destination.clone(), cause };
    let fs = Filesystem::open(kind).map_err(failed)?;
    if !source.is_empty() {
        fs.string("source", source).map_err(failed)?;
    }
    for (key, value) in options {
        let done = match value {
            None => fs.flag(key),
            // A value ends at 255 bytes, which layers soon exceed: they can be added one by one (Linux 6.5).
            Some(value) if kind == "overlay" && key == "lowerdir" => {
                value.split(':').try_for_each(|layer| fs.string("lowerdir+", layer))
            }
            Some(value) => fs.string(key, value),
        };
        done.map_err(|cause| RootfsError::MountOption {
            what: kind.to_owned(),
            at: step.destination.clone(),
            option: value.as_ref().map_or(key.clone(), |value| format!("{key}={value}")),
            cause,
        })?;
    }
    // What is copied up has to be written first; `set` closes it then.
    let attributes = if step.copy_up { 0 } else { step.attributes.set };
    fs.mount(attributes).map_err(failed)
}
