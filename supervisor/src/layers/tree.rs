//! A folder in which entries are made for an archive that nobody trusts: every step goes from a directory's descriptor, and
//! symlinks lead nowhere but into the same folder (openat2(2), RESOLVE_IN_ROOT).

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::{CStr, CString},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    rc::Rc,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};

use super::apply::Target;

/// Marks a directory that hides what lies below it (overlayfs).
pub(crate) const OPAQUE: &CStr = c"trusted.overlay.opaque";

// The kernel's own limit for one path.
const SYMLINK_LIMIT: u32 = 40;

/// What a tree is filled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The upper folder of an overlay: what lies below is hidden by whiteouts.
    Overlay,
    /// A tree in which everything is.
    Merged,
}

/// A folder that is being filled.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    // Layers below, nearest first: they tell what an implied parent directory looks like.
    lowers: Vec<OwnedFd>,
    // There are layers below, and they aren't known yet.
    apart: bool,
    // Directories that were made on the way to something, and that nothing says anything about.
    implied: BTreeSet<Vec<u8>>,
    layout: Layout,
    // The last parent used: archives go folder by folder.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

/// The components of an archive's path, without `.` and without what would lead above the top.
pub(crate) fn components(path: &[u8]) -> Vec<&[u8]> {
    let mut clean: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(clean.pop()),
            part => clean.push(part),
        }
    }
    clean
}

impl Tree {
    /// A folder with the layers below it.
    pub(crate) fn open(target: &Target) -> Result<Self, Errno> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|_| Errno::EMFILE);
        Ok(Self {
            root: Rc::new(copy(&target.root)?),
            lowers: target.lowers.iter().map(copy).collect::<Result<_, _>>()?,
            apart: target.apart,
            // Its top, too, has the looks of the one below it.
            implied: if target.apart { [b".".to_vec()].into() } else { BTreeSet::new() },
            layout: target.layout,
            last: None,
        })
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether there are layers below.
    pub(crate) fn has_lowers(&self) -> bool {
        self.apart || !self.lowers.is_empty()
    }

    /// Whether there are layers below that can't be asked.
    pub(crate) fn is_apart(&self) -> bool {
        self.apart
    }

    /// Notes that an entry says what the directory at `path` looks like.
    pub(crate) fn described(&mut self, path: &[u8]) {
        self.implied.remove(path);
    }

    /// The directories that should look like those in the layers below, if these have any.
    pub(crate) fn implied(&self) -> &BTreeSet<Vec<u8>> {
        &self.implied
    }

    /// Gives directories that were made apart from the layers below the owner and mode that they have there.
    pub(crate) fn dress(&self, implied: &BTreeSet<Vec<u8>>) -> Result<(), Errno> {
        for path in implied {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            match open_in(&self.root, path, flags) {
                Ok(dir) => self.copy_lower_attributes(path, &dir)?,
                // A later entry took its place.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Opens the directory at `parts`, following symlinks within the folder.
    pub(crate) fn find_dir(&self, parts: &[&[u8]]) -> Result<Rc<OwnedFd>, Errno> {
        if parts.is_empty() {
            return Ok(self.root.clone());
        }
        open_in(&self.root, &parts.join(&b'/'), OFlag::O_PATH | OFlag::O_DIRECTORY).map(Rc::new)
    }

    /// Opens the directory at `parts` and makes what is missing of it, as it is in the layers below.
    pub(crate) fn make_dir(&mut self, parts: &[&[u8]]) -> Result<Rc<OwnedFd>, Errno> {
        let path = parts.join(&b'/');
        if let Some((known, dir)) = &self.last
            && *known == path
        {
            return Ok(dir.clone());
        }
        let dir = match self.find_dir(parts) {
            // ENOTDIR too: a whiteout earlier in the archive may stand where a directory is to be.
            Err(Errno::ENOENT | Errno::ENOTDIR) => self.walk(parts)?,
            other => other?,
        };
        self.last = Some((path, dir.clone()));
        Ok(dir)
    }

    /// Forgets what it remembers of directories; to be called when one was removed or replaced.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    // Step by step, symlinks expanded by hand: openat2 can't make directories on its way.
    fn walk(&mut self, parts: &[&[u8]]) -> Result<Rc<OwnedFd>, Errno> {
        let mut todo: VecDeque<Vec<u8>> = parts.iter().map(|p| p.to_vec()).collect();
        let mut done: Vec<(Vec<u8>, Rc<OwnedFd>)> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            let here = done.last().map_or_else(|| self.root.clone(), |(_, dir)| dir.clone());
            if part == b".." {
                done.pop();
                continue;
            }
            let name = part.as_slice();
            match fstatat(&*here, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(found) if is(&found, SFlag::S_IFDIR) => {}
                Ok(found) if is(&found, SFlag::S_IFLNK) => {
                    links += 1;
                    if links > SYMLINK_LIMIT {
                        return Err(Errno::ELOOP);
                    }
                    let target = readlinkat(&*here, name)?;
                    if target.as_bytes().starts_with(b"/") {
                        done.clear();
                    }
                    let parts = target.as_bytes().split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b"."));
                    for part in parts.rev() {
                        todo.push_front(part.to_vec());
                    }
                    continue;
                }
                Ok(found) if self.layout == Layout::Overlay && is_whiteout(&found) => {
                    unlinkat(&*here, name, UnlinkatFlags::NoRemoveDir)?;
                    let dir = make_plain_dir(&here, name)?;
                    sys::xattr::fset(&dir, OPAQUE, b"y")?;
                }
                Ok(_) => return Err(Errno::ENOTDIR),
                Err(Errno::ENOENT) => {
                    let dir = make_plain_dir(&here, name)?;
                    let mut path: Vec<u8> = Vec::new();
                    for (part, _) in &done {
                        path.extend_from_slice(part);
                        path.push(b'/');
                    }
                    path.extend_from_slice(name);
                    self.copy_lower_attributes(&path, &dir)?;
                    if self.apart {
                        self.implied.insert(path);
                    }
                }
                Err(errno) => return Err(errno),
            }
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let dir = openat(&*here, name, flags, Mode::empty())?;
            done.push((part, Rc::new(dir)));
        }
        Ok(done.pop().map_or_else(|| self.root.clone(), |(_, dir)| dir))
    }

    /// What the layers below show at `parts`: the directory it is in, and what it is. Nothing that a whiteout, an opaque
    /// directory or a link hides.
    pub(crate) fn below(&self, parts: &[&[u8]]) -> Result<Option<(OwnedFd, FileStat)>, Errno> {
        let Some((name, parents)) = parts.split_last() else { return Ok(None) };
        // Our own folder hides too.
        for (index, layer) in std::iter::once(&*self.root).chain(&self.lowers).enumerate() {
            let mut dir = open_dir_at(layer, b".")?;
            let mut hides = is_opaque(&dir)?;
            let mut missing = false;
            for part in parents {
                match look(&dir, part)? {
                    Some(found) if is(&found, SFlag::S_IFDIR) => dir = open_dir_at(&dir, part)?,
                    Some(_) => return Ok(None),
                    None => {
                        missing = true;
                        break;
                    }
                }
                hides |= is_opaque(&dir)?;
            }
            if !missing && let Some(found) = look(&dir, name)? {
                return Ok((index > 0 && !is_whiteout(&found)).then_some((dir, found)));
            }
            if hides {
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn copy_lower_attributes(&self, path: &[u8], dir: &OwnedFd) -> Result<(), Errno> {
        for lower in &self.lowers {
            let found = match open_in(lower, path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
                Ok(found) => fstat(&found)?,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => continue,
                Err(errno) => return Err(errno),
            };
            if is(&found, SFlag::S_IFDIR) {
                fchown(dir, Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)))?;
                fchmod(dir, Mode::from_bits_truncate(found.st_mode))?;
            }
            // Something else there hides what is further below.
            return Ok(());
        }
        Ok(())
    }
}

fn make_plain_dir(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    mkdirat(at, name, Mode::from_bits_truncate(0o755))?;
    let dir = open_dir_at(at, name)?;
    fchmod(&dir, Mode::from_bits_truncate(0o755))?;
    Ok(dir)
}

/// Opens a directory by its name in another; a symlink is refused.
pub(crate) fn open_dir_at(at: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Opens `path` as if `root` were `/`.
pub(crate) fn open_in(root: &OwnedFd, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // EAGAIN: something on the system was renamed while a ".." was resolved; it says nothing about this path.
    for _ in 0..64 {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// Whether a file is of this type.
pub(crate) fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Whether a file is overlayfs' mark for "removed": a character device 0/0.
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    is(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

/// Whether a directory hides what lies below it.
pub(crate) fn is_opaque(dir: impl AsFd) -> Result<bool, Errno> {
    Ok(sys::xattr::lget(&path_of(dir, b".")?, OPAQUE)?.is_some_and(|value| value == b"y"))
}

/// What is at `name`, symlinks not followed; `None` if nothing is.
pub(crate) fn look(at: impl AsFd, name: &[u8]) -> Result<Option<FileStat>, Errno> {
    match fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A path under which the kernel finds `name` in an open directory, for calls that only take paths; the last component is
/// not followed by those that say so.
pub(crate) fn path_of(at: impl AsFd, name: &[u8]) -> Result<CString, Errno> {
    let mut path = format!("/proc/self/fd/{}/", at.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    CString::new(path).map_err(|_| Errno::EINVAL)
}

/// Removes `name` with everything in it.
///
/// Nested directories are moved up before they are emptied: neither stack nor descriptors grow with the depth, which a
/// container can make as large as it likes.
pub(crate) fn remove(at: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let at = at.as_fd();
    match unlinkat(at, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        done => return done,
    }
    let top = match unlinkat(at, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => open_dir_at(at, name)?,
        done => return done,
    };
    let mut moved = 0_u64;
    loop {
        let mut left = false;
        for (entry, is_dir) in entries(&top)? {
            if !is_dir {
                unlinkat(&top, entry.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
                continue;
            }
            match unlinkat(&top, entry.as_c_str(), UnlinkatFlags::RemoveDir) {
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                done => {
                    done?;
                    continue;
                }
            }
            let inner = open_dir_at(&top, entry.to_bytes())?;
            for (child, is_dir) in entries(&inner)? {
                let flag = if is_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
                match unlinkat(&inner, child.as_c_str(), flag) {
                    Err(Errno::ENOTEMPTY | Errno::EEXIST) if is_dir => {
                        left = true;
                        move_up(&inner, &child, &top, &mut moved)?;
                    }
                    done => done?,
                }
            }
            unlinkat(&top, entry.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
        if !left {
            return unlinkat(at, name, UnlinkatFlags::RemoveDir);
        }
    }
}

fn move_up(from: &OwnedFd, name: &CStr, to: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match renameat(from, name, to, format!(".berth-removed-{moved}").as_str()) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
            done => return done,
        }
    }
}

/// The names in a directory, and whether each is a directory itself.
pub(crate) fn entries(dir: &OwnedFd) -> Result<Vec<(CString, bool)>, Errno> {
    // A descriptor of its own: reading moves the position, which duplicates share.
    let mut found = Vec::new();
    for entry in Dir::openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_dir = match entry.file_type() {
            Some(kind) => kind == Type::Directory,
            None => is(&fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?, SFlag::S_IFDIR),
        };
        found.push((name.to_owned(), is_dir));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::open;
    use std::fs;

    #[test]
    fn paths_are_clamped() {
        let clean = |p: &str| components(p.as_bytes()).join(&b'/');
        for (path, wanted) in
            [("./a/b/", "a/b"), ("/../../a", "a"), ("a/../../b", "b"), ("", ""), ("./", ""), ("a//./b/..", "a")]
        {
            assert_eq!(clean(path), wanted.as_bytes(), "{path}");
        }
    }

    #[test]
    fn directories_are_made_behind_links_but_never_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (root, lower) = (dir.path().join("root"), dir.path().join("lower"));
        fs::create_dir(&root).unwrap();
        fs::create_dir_all(lower.join("run/shared")).unwrap();
        fs::set_permissions(lower.join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        std::os::unix::fs::symlink("/run", root.join("link")).unwrap();
        std::os::unix::fs::symlink("../../../up", root.join("dots")).unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        let mut tree = Tree::open(&Target::overlay(&root, &[lower]).unwrap()).unwrap();
        tree.make_dir(&[b"link", b"x"]).unwrap();
        tree.make_dir(&[b"dots", b"y"]).unwrap();
        assert!(root.join("run/x").is_dir() && root.join("up/y").is_dir());
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&root.join("run").metadata().unwrap()) & 0o7777, 0o1777);
        assert_eq!(tree.make_dir(&[b"loop", b"z"]).unwrap_err(), Errno::ELOOP);
        fs::write(root.join("file"), "").unwrap();
        assert_eq!(tree.make_dir(&[b"file", b"z"]).unwrap_err(), Errno::ENOTDIR);
    }

    #[test]
    fn removes_deep_trees_and_follows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("tree/up")).unwrap();
        let top = open(dir.path(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let mut here = open_dir_at(&top, b"tree").unwrap();
        for _ in 0..5000 {
            mkdirat(&here, "d", Mode::S_IRWXU).unwrap();
            mkdirat(&here, ".berth-removed-1", Mode::S_IRWXU).unwrap();
            here = open_dir_at(&here, b"d").unwrap();
        }
        remove(&top, b"tree").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(remove(&top, b"tree"), Err(Errno::ENOENT));
    }
}
