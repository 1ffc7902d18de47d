//! Paths that are hidden or made read-only.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::stat::{SFlag, fstat};
use sys::Errno;
use sys::mount::{Filesystem, Reach, attach, attr, clone_tree, set_attributes};

use super::RootfsError;
use super::devices::open_null;
use super::resolve;

/// Where most of what is hidden is, each a mount of its own.
pub(super) const PLACES: &[&str] = &["/proc", "/sys"];

/// The root, and the mounts on /proc and /sys: what is below these is looked up from there. By its path it might be looked for in vain,
/// and stay open, if somebody who shares the root renames the folder that procfs is mounted on (the lesson of CVE-2025-31133).
pub(crate) struct Places<'a> {
    root: &'a OwnedFd,
    mounts: Vec<(&'a Path, OwnedFd)>,
}

impl<'a> Places<'a> {
    /// With the root alone, at first.
    pub(crate) fn new(root: &'a OwnedFd) -> Self {
        Self { root, mounts: Vec::new() }
    }

    /// Remembers a mount.
    pub(crate) fn add(&mut self, at: &'a Path, mount: OwnedFd) {
        self.mounts.push((at, mount));
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let below = self.mounts.iter().rev().find_map(|(at, mount)| Some((mount, path.strip_prefix(at).ok()?)));
        let (from, path) = below.unwrap_or((self.root, path));
        resolve::open(from, path)
    }
}

/// Makes paths read-only, with everything below. A path that is not there needs no protection.
pub(crate) fn make_read_only(places: &Places<'_>, paths: &[String]) -> Result<(), RootfsError> {
    for path in paths {
        let failed = |cause| RootfsError::Path { action: "make read-only", at: path.into(), cause };
        let at = match places.open(Path::new(path)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            found => found.map_err(failed)?,
        };
        let tree = clone_tree(&at, "", Reach::Tree).map_err(failed)?;
        set_attributes(&tree, Reach::Tree, attr::RDONLY, 0, None).map_err(failed)?;
        attach(&tree, &at).map_err(failed)?;
    }
    Ok(())
}

/// Hides paths: files behind the null device, directories behind one empty, read-only tmpfs that they share. It gets `label`, if
/// there is one.
pub(crate) fn mask(places: &Places<'_>, paths: &[String], label: &str) -> Result<(), RootfsError> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let failed = |cause| RootfsError::Path { action: "mask", at: path.into(), cause };
        let at = match places.open(Path::new(path)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            found => found.map_err(failed)?,
        };
        let kind = SFlag::from_bits_truncate(fstat(&at).map_err(failed)?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            // The first is attached itself: a kernel before 6.15 copies only mounts that are attached.
            let mount = match &empty {
                Some(first) => clone_tree(first, "", Reach::One).map_err(failed)?,
                None => empty_directory(label).map_err(failed)?,
            };
            attach(&mount, &at).map_err(failed)?;
            empty.get_or_insert(mount);
            continue;
        }
        let source = match &null {
            Some(source) => source,
            None => null.insert(open_null(places.root)?),
        };
        clone_tree(source, "", Reach::One).and_then(|mount| attach(mount, &at)).map_err(failed)?;
    }
    Ok(())
}

fn empty_directory(label: &str) -> Result<OwnedFd, Errno> {
    let fs = Filesystem::open("tmpfs")?;
    for (key, value) in [("source", "tmpfs"), ("nr_blocks", "1"), ("nr_inodes", "1"), ("mode", "755")] {
        fs.string(key, value)?;
    }
    if !label.is_empty() {
        fs.string("context", label)?;
    }
    fs.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
}
