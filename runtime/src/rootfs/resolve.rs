//! Destinations below the container's root: found, or made.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use sys::Errno;
use sys::path::{Within, open_within};

/// What to make if there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

/// Links followed while making directories, as the kernel limits its own.
const MAX_LINKS: u32 = 40;

/// Opens what is at `path` inside the root, whatever it is (O_PATH).
pub(crate) fn open(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    open_within(root, relative(path), OFlag::O_PATH, 0, Within::Root)
}

/// Like [`open`], but a link at the end is opened itself.
pub(crate) fn open_no_follow(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    open_within(root, relative(path), OFlag::O_PATH | OFlag::O_NOFOLLOW, 0, Within::Root)
}

/// Opens the destination of a mount; made if it is not there.
pub(crate) fn destination(root: &OwnedFd, path: &Path, make: Make) -> Result<OwnedFd, Errno> {
    match open(root, path) {
        Err(Errno::ENOENT) => {}
        found => return found,
    }
    if make == Make::Directory {
        return directory(root, path, 0);
    }
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (parent, name) = parent_and_name(root, &path)?;
        match file(&parent, &name) {
            // A dangling link is made whole, as for directories: /etc/resolv.conf often is one.
            Err(Errno::EEXIST) => {
                let target = PathBuf::from(nix::fcntl::readlinkat(&parent, &name)?);
                path = resolved(path.parent().unwrap_or(Path::new("/")), &target);
            }
            made => return made,
        }
    }
    Err(Errno::ELOOP)
}

/// Where a link in the folder `at` leads, by its text.
fn resolved(at: &Path, target: &Path) -> PathBuf {
    let mut path = PathBuf::new();
    for component in at.join(target).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// Like [`destination`], but a link at the end of the path is the destination itself.
pub(crate) fn destination_itself(root: &OwnedFd, path: &Path, make: Make) -> Result<OwnedFd, Errno> {
    let Ok((parent, name)) = parent_and_name(root, path) else { return destination(root, path, make) };
    match open_within(&parent, name.as_path(), OFlag::O_PATH | OFlag::O_NOFOLLOW, 0, Within::Root) {
        Err(Errno::ENOENT) if make == Make::Directory => directory(root, path, 0),
        Err(Errno::ENOENT) => file(&parent, &name),
        found => found,
    }
}

fn file(parent: &OwnedFd, name: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::from_bits_truncate(0o644))?;
    open_within(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW, 0, Within::Root)
}

/// The directory that `path` is in, made if needed, and the last component.
pub(crate) fn parent_and_name(root: &OwnedFd, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
    let name = path.file_name().ok_or(Errno::EISDIR)?;
    let parent = directory(root, path.parent().unwrap_or(Path::new("/")), 0)?;
    Ok((parent, name.into()))
}

/// Opens a directory, making what is missing. A dangling link is made whole: images rely on `/var/run -> /run` and the like.
pub(crate) fn directory(root: &OwnedFd, path: &Path, links: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match open_within(root, relative(path), flags, 0, Within::Root) {
        Err(Errno::ENOENT) => {}
        found => return found,
    }
    let mut here = PathBuf::new();
    let mut current = open_within(root, ".", flags, 0, Within::Root)?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        here.push(name);
        current = match open_within(root, here.as_path(), flags, 0, Within::Root) {
            Ok(found) => found,
            Err(Errno::ENOENT) => match mkdirat(&current, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) => open_within(&current, Path::new(name), flags | OFlag::O_NOFOLLOW, 0, Within::Root)?,
                Err(Errno::EEXIST) if links < MAX_LINKS => {
                    let target = PathBuf::from(nix::fcntl::readlinkat(&current, name)?);
                    let parent = here.parent().unwrap_or(Path::new("")).to_owned();
                    directory(root, &resolved(&parent, &target), links + 1)?
                }
                Err(Errno::EEXIST) => return Err(Errno::ELOOP),
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        };
    }
    Ok(current)
}

fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_is_made_inside() {
        let dir = tempfile::tempdir().expect("folder");
        let outside = tempfile::tempdir().expect("folder");
        symlink("/run", dir.path().join("dangling")).expect("link");
        symlink(outside.path(), dir.path().join("escape")).expect("link");
        symlink("loop", dir.path().join("loop")).expect("link");
        std::fs::create_dir(dir.path().join("etc")).expect("folder");
        symlink("../run/resolve/stub.conf", dir.path().join("etc/resolv.conf")).expect("link");
        symlink("../run/deep", dir.path().join("etc/deep")).expect("link");
        let root = OwnedFd::from(std::fs::File::open(dir.path()).expect("open"));
        destination(&root, Path::new("/a/b/c"), Make::Directory).expect("made");
        destination(&root, Path::new("/a/f"), Make::File).expect("made");
        destination(&root, Path::new("/dangling/x"), Make::Directory).expect("made whole");
        destination(&root, Path::new("/escape/y"), Make::File).expect("stays inside");
        destination(&root, Path::new("/etc/resolv.conf"), Make::File).expect("made whole");
        destination(&root, Path::new("/etc/deep/x"), Make::Directory).expect("made whole");
        assert!(dir.path().join("run/resolve/stub.conf").is_file() && dir.path().join("run/deep/x").is_dir());
        assert_eq!(destination(&root, Path::new("/loop"), Make::File).err(), Some(Errno::ELOOP));
        assert!(dir.path().join("a/b/c").is_dir() && dir.path().join("a/f").is_file());
        assert!(dir.path().join("run/x").is_dir());
        assert_eq!(std::fs::read_dir(outside.path()).expect("read").count(), 0);
        assert_eq!(destination(&root, Path::new("/loop/x"), Make::Directory).err(), Some(Errno::ELOOP));
        assert_eq!(destination(&root, Path::new("/a/f/x"), Make::Directory).err(), Some(Errno::ENOTDIR));
    }
}
