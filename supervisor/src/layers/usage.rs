//! What folders take on disk.

use std::{
    collections::HashSet,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open},
    sys::stat::{FileStat, Mode, fstat, fstatat},
};

use super::{
    copy::{join, open_plain},
    tree::{entries, look},
};

/// Bytes and inodes below a folder and of itself, hard links counted once.
pub(crate) fn usage(root: &Path) -> Result<(u64, u64), Errno> {
    let root = open(root, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    measure(&root, |_, _| Ok(true))
}

/// Bytes and inodes below `root` of what isn't, or isn't the same, below `base`.
pub(crate) fn difference(base: &OwnedFd, root: &OwnedFd) -> Result<(u64, u64), Errno> {
    measure(root, |path, stat| {
        let at = path.iter().rposition(|b| *b == b'/');
        let (parent, name) = at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        let found = match open_plain(base, parent) {
            Ok(dir) => look(dir.as_fd(), if name.is_empty() { b"." } else { name })?,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => None,
            Err(errno) => return Err(errno),
        };
        // A copy keeps the change time until somebody touches it.
        Ok(found.is_none_or(|found| {
            (found.st_mode, found.st_ctime, found.st_ctime_nsec, found.st_size)
                != (stat.st_mode, stat.st_ctime, stat.st_ctime_nsec, stat.st_size)
        }))
    })
}

fn measure(root: &OwnedFd, counts: impl Fn(&[u8], &FileStat) -> Result<bool, Errno>) -> Result<(u64, u64), Errno> {
    let (mut bytes, mut inodes) = (0, 0);
    let mut linked = HashSet::new();
    let mut add = |path: &[u8], stat: &FileStat| {
        if counts(path, stat)? && (stat.st_nlink < 2 || linked.insert(stat.st_ino)) {
            bytes += stat.st_blocks.max(0) as u64 * 512;
            inodes += 1;
        }
        Ok::<_, Errno>(())
    };
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = match open_plain(root, &path) {
            Ok(dir) => dir,
            // Gone meanwhile, or deeper than a path can say: an estimate must not fail.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => continue,
            Err(errno) => return Err(errno),
        };
        add(&path, &fstat(&dir)?)?;
        for (name, is_dir) in entries(&dir)? {
            let inner = join(&path, name.to_bytes());
            if is_dir {
                todo.push(inner);
            } else if let Ok(stat) = fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                add(&inner, &stat)?;
            }
        }
    }
    Ok((bytes, inodes))
}
