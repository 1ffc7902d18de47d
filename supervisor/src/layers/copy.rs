//! Copies files and whole trees as they are: content (shared where the file system can), holes, owner, mode, attributes,
//! times, devices, and the hard links among what is copied. Hard links to the original are never made.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io::{self, Seek, SeekFrom},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, Whence, fchownat, linkat, lseek, symlinkat},
};
use sys::path::{Within, open_within};

use super::tree::{entries, is, path_of};

/// What could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("copy {path:?}")]
pub(crate) struct CopyError {
    /// Path in the tree.
    pub(crate) path: String,
    /// Why.
    #[source]
    pub(crate) cause: Errno,
}

/// Copies entries, and remembers which of them are one file.
#[derive(Default)]
pub(crate) struct Copier {
    // Where a file with several names went first.
    links: HashMap<(u64, u64), Vec<u8>>,
    // The file system shares no blocks: not asked again for every file.
    no_reflinks: bool,
}

enum Step {
    Enter(Vec<u8>),
    Leave(Vec<u8>),
}

/// Opens a directory of a tree by its path, no link followed on the way.
pub(crate) fn open_plain(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    open_within(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, 0, Within::Plain)
}

/// `path` and a name in it.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

impl Copier {
    /// Copies everything below `from`, and the attributes of `from` itself, into the empty directory `to`.
    pub(crate) fn tree(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), CopyError> {
        let mut todo = vec![Step::Enter(Vec::new())];
        while let Some(step) = todo.pop() {
            let at = |path: &[u8]| {
                let path = String::from_utf8_lossy(path).into_owned();
                move |cause| CopyError { path, cause }
            };
            match step {
                Step::Enter(path) => {
                    let (source, target) = (open_plain(from, &path), open_plain(to, &path));
                    let (source, target) = (source.map_err(at(&path))?, target.map_err(at(&path))?);
                    todo.push(Step::Leave(path.clone()));
                    for (name, is_dir) in entries(&source).map_err(at(&path))? {
                        let inner = join(&path, name.to_bytes());
                        if is_dir {
                            mkdirat(&target, name.as_c_str(), Mode::S_IRWXU).map_err(at(&inner))?;
                            todo.push(Step::Enter(inner));
                        } else {
                            self.entry(&source, name.to_bytes(), &target, &inner, to).map_err(at(&inner))?;
                        }
                    }
                }
                // When nothing is made in it any more: its times stay, and its default ACL has touched nothing.
                Step::Leave(path) => {
                    let (source, target) = (open_plain(from, &path), open_plain(to, &path));
                    let (source, target) = (source.map_err(at(&path))?, target.map_err(at(&path))?);
                    let stat = fstat(&source).map_err(at(&path))?;
                    attributes(source.as_fd(), b".", target.as_fd(), b".", &stat).map_err(at(&path))?;
                }
            }
        }
        Ok(())
    }

    // Anything but a directory; `path` is where it is in the tree `top`.
    fn entry(&mut self, from: &OwnedFd, name: &[u8], to: &OwnedFd, path: &[u8], top: &OwnedFd) -> Result<(), Errno> {
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&id) {
                return linkat(top, first.as_slice(), to, name, AtFlags::empty());
            }
            self.links.insert(id, path.to_vec());
        }
        self.single(from.as_fd(), name, to.as_fd(), name, &stat)
    }

    /// Copies one entry that is no directory to a name that is free; its other names are not looked at.
    pub(crate) fn single(
        &mut self,
        from: BorrowedFd<'_>,
        name: &[u8],
        to: BorrowedFd<'_>,
        new_name: &[u8],
        stat: &FileStat,
    ) -> Result<(), Errno> {
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if is(stat, SFlag::S_IFLNK) {
            symlinkat(readlinkat(from, name)?.as_os_str(), to, new_name)?;
        } else if is(stat, SFlag::S_IFREG) {
            let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let source = File::from(openat(from, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK | flags, Mode::empty())?);
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            let made = openat(to, new_name, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | flags, mode)?;
            self.content(&source, &File::from(made), stat.st_size.max(0) as u64)?;
        } else {
            mknodat(to, new_name, kind, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev)?;
        }
        attributes(from, name, to, new_name, stat)
    }

    fn content(&mut self, from: &File, to: &File, size: u64) -> Result<(), Errno> {
        if size == 0 {
            return Ok(());
        }
        if !self.no_reflinks {
            match sys::reflink::clone(from, to) {
                Ok(()) => return Ok(()),
                Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EXDEV | Errno::ENOSYS) => self.no_reflinks = true,
                // This file can't be shared (a swap file, no-copy-on-write on one side): others may be.
                Err(Errno::EINVAL | Errno::ETXTBSY | Errno::EPERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        let mut at = 0;
        while at < size {
            // Of file systems that don't know holes, everything is data.
            let data = match lseek(from, at as i64, Whence::SeekData) {
                Ok(data) => data as u64,
                Err(Errno::ENXIO) => break,
                Err(Errno::EINVAL | Errno::EOPNOTSUPP) => at,
                Err(errno) => return Err(errno),
            };
            let hole = lseek(from, data as i64, Whence::SeekHole).map_or(size, |hole| hole as u64).max(data + 1);
            copy_range(from, to, data, hole.min(size)).map_err(errno_of)?;
            at = hole;
        }
        to.set_len(size).map_err(errno_of)
    }
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn copy_range(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    // copy_file_range(2) inside: the bytes stay in the kernel.
    io::copy(&mut io::Read::take(from, end.saturating_sub(start)), &mut to).map(drop)
}

// Owner, then mode and attributes (chown clears setuid bits and capabilities), then times.
fn attributes(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    new_name: &[u8],
    stat: &FileStat,
) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(to, new_name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !is(stat, SFlag::S_IFLNK) {
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        fchmodat(to, new_name, mode, FchmodatFlags::FollowSymlink)?;
    }
    copy_xattrs(&path_of(from, name)?, &path_of(to, new_name)?)?;
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(to, new_name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
}

fn copy_xattrs(from: &CString, to: &CString) -> Result<(), Errno> {
    for name in sys::xattr::llist(from)? {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let Some(value) = sys::xattr::lget(from, &name)? else { continue };
        match sys::xattr::lset(to, &name, &value) {
            Err(Errno::ENOTSUP) => {}
            other => other?,
        }
    }
    Ok(())
}
