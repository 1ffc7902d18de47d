//! Paths that are hidden or made read-only.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::stat::{SFlag, fstat};
use sys::Errno;
use sys::mount::{Filesystem, Reach, attach, attr, clone_tree, set_attributes};

use super::RootfsError;
use super::devices::open_null;
use super::resolve;

/// Makes paths read-only, with everything below. A path that is not there needs no protection.
pub(crate) fn make_read_only(root: &OwnedFd, paths: &[String]) -> Result<(), RootfsError> {
    for path in paths {
        let failed = |cause| RootfsError::Path { action: "make read-only", at: path.into(), cause };
        let at = match resolve::open(root, Path::new(path)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            found => found.map_err(failed)?,
        };
        let tree = clone_tree(&at, "", Reach::Tree).map_err(failed)?;
        set_attributes(&tree, Reach::Tree, attr::RDONLY, 0, None).map_err(failed)?;
        attach(&tree, &at).map_err(failed)?;
    }
    Ok(())
}

/// Hides paths: files behind the null device, directories behind one empty, read-only tmpfs that they share.
pub(crate) fn mask(root: &OwnedFd, paths: &[String]) -> Result<(), RootfsError> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let failed = |cause| RootfsError::Path { action: "mask", at: path.into(), cause };
        let at = match resolve::open(root, Path::new(path)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            found => found.map_err(failed)?,
        };
        let kind = SFlag::from_bits_truncate(fstat(&at).map_err(failed)?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            // The first is attached itself: a kernel before 6.15 copies only mounts that are attached.
            let mount = match &empty {
                Some(first) => clone_tree(first, "", Reach::One).map_err(failed)?,
                None => empty_directory().map_err(failed)?,
            };
            attach(&mount, &at).map_err(failed)?;
            empty.get_or_insert(mount);
            continue;
        }
        let source = match &null {
            Some(source) => source,
            None => null.insert(open_null(root)?),
        };
        clone_tree(source, "", Reach::One).and_then(|mount| attach(mount, &at)).map_err(failed)?;
    }
    Ok(())
}

fn empty_directory() -> Result<OwnedFd, Errno> {
    let fs = Filesystem::open("tmpfs")?;
    for (key, value) in [("source", "tmpfs"), ("nr_blocks", "1"), ("nr_inodes", "1"), ("mode", "755")] {
        fs.string(key, value)?;
    }
    fs.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
}
