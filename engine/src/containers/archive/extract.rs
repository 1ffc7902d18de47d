//! Unpacks an archive into a container: every name is looked up below the container's root, whatever its processes
//! exchange meanwhile; nothing that was there is followed or opened, and modes are set by descriptors of what we made.

use super::view::{View, make_folders, mount_id};
use crate::untar::{Entry, Kind, Untar};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev,
            mkdirat, mknodat, utimensat,
        },
        statfs::fstatfs,
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};
use sys::path::{Within, open_within};

/// Folders whose times are set at the end; of more than these they stay as they came to be.
const FOLDERS: usize = 100_000;
/// Deeper trees than this are not removed to make place.
const DEPTH: usize = 400;
/// proc, sysfs, cgroup and cgroup2: what is written there are orders to the kernel.
const KERNEL: [i64; 4] = [sys::path::PROC_MAGIC, 0x6265_6572, 0x0027_e0eb, sys::path::CGROUP2_MAGIC];

/// Why it can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("no such folder")]
    Missing,
    #[error("extraction point is not a directory")]
    NotAFolder,
    #[error("container rootfs is marked read-only")]
    ReadOnlyRoot,
    #[error("mounted volume is marked read-only")]
    ReadOnlyMount,
    #[error("{0} is on a file system of the kernel, where nothing is copied to")]
    Kernel(String),
    #[error("cannot overwrite directory {0:?} with non-directory {0:?}")]
    FolderInTheWay(String),
    #[error("cannot overwrite non-directory {0:?} with directory {0:?}")]
    FileInTheWay(String),
    #[error("{0:?} leads out of the folder that is copied to")]
    Outside(String),
    #[error("read the archive")]
    Archive(#[source] io::Error),
    #[error("write {path}")]
    Write {
        path: String,
        #[source]
        cause: io::Error,
    },
}

/// How to unpack.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A folder is not replaced by what is none, nor the other way round.
    pub keep_kinds: bool,
    /// Everything belongs to this user and group, whatever the archive says.
    pub owner: Option<(u32, u32)>,
    /// The folder itself takes the attributes that the archive has for it, too.
    pub whole: bool,
}

/// Unpacks into the folder `destination`, which is clean and absolute.
pub fn extract<R: Read>(view: &View, destination: &str, archive: R, options: Options) -> Result<(), ExtractError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let folder = open_within(&view.root, destination, flags, 0, Within::Root).map_err(|error| match error {
        Errno::ENOENT => ExtractError::Missing,
        Errno::ENOTDIR => ExtractError::NotAFolder,
        other => ExtractError::Write { path: destination.to_owned(), cause: other.into() },
    })?;
    check_writable(view, &folder, destination)?;
    let mut work = Work { view, destination, options, parent: None, folders: Vec::new() };
    let mut archive = Untar::new(archive);
    while let Some(entry) = archive.next_entry().map_err(ExtractError::Archive)? {
        work.entry(&entry, &mut archive)?;
    }
    work.date_folders();
    archive.drain().map_err(ExtractError::Archive)
}

fn check_writable(view: &View, folder: &OwnedFd, path: &str) -> Result<(), ExtractError> {
    let failed = |cause: Errno| ExtractError::Write { path: path.to_owned(), cause: cause.into() };
    let facts = fstatfs(folder).map_err(failed)?;
    if KERNEL.contains(&(facts.filesystem_type().0 as i64)) {
        return Err(ExtractError::Kernel(path.to_owned()));
    }
    if !facts.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Ok(());
    }
    Err(match mount_id(folder) == mount_id(&view.root) {
        true => ExtractError::ReadOnlyRoot,
        false => ExtractError::ReadOnlyMount,
    })
}

struct Work<'a> {
    view: &'a View,
    destination: &'a str,
    options: Options,
    // The folder of the entry before: mostly that of the next as well.
    parent: Option<(String, OwnedFd)>,
    folders: Vec<(String, (i64, i64))>,
}

/// The parts of a name in the archive; `None` if it leads out.
fn clean(path: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts)
}

impl Work<'_> {
    fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), ExtractError> {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let parts = clean(&entry.path).ok_or_else(|| ExtractError::Outside(shown.clone()))?;
        let Some((name, above)) = parts.split_last() else {
            return match self.options.whole && entry.kind == Kind::Folder {
                true => self.dress_root(entry),
                // It keeps its attributes.
                false => Ok(()),
            };
        };
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionAborted => {
                ExtractError::Archive(cause)
            }
            _ => ExtractError::Write { path: shown.clone(), cause },
        };
        let name = CString::new(*name).map_err(|e| failed(e.into()))?;
        let above = String::from_utf8_lossy(&above.join(&b'/')).into_owned();
        self.enter(&above)?;
        let Some((folder_path, parent)) = &self.parent else { return Ok(()) };
        let there = match fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(failed(error.into())),
        };
        let was_folder = there.as_ref().is_some_and(is_folder);
        let is_folder = entry.kind == Kind::Folder;
        if self.options.keep_kinds && there.is_some() && was_folder != is_folder {
            let name = name.to_string_lossy().into_owned();
            return Err(if was_folder { ExtractError::FolderInTheWay(name) } else { ExtractError::FileInTheWay(name) });
        }
        let mut in_place = false;
        if there.is_some() && !(was_folder && is_folder) {
            match remove(parent, &name, 0) {
                Ok(()) | Err(Errno::ENOENT) => {}
                // A file that is mounted, as /etc/hosts: written into, it can't be replaced.
                Err(Errno::EBUSY) if entry.kind == Kind::File && !was_folder => in_place = true,
                Err(error) => return Err(failed(error.into())),
            }
        }
        if is_folder {
            let path = format!("{folder_path}/{}", name.to_string_lossy());
            if self.folders.len() < FOLDERS {
                self.folders.push((path, entry.mtime));
            }
        }
        let link_to = match &entry.kind {
            Kind::HardLink(target) => Some(self.link_source(target, &shown)?),
            _ => None,
        };
        self.make(entry, parent, &name, link_to, in_place, data).map_err(failed)
    }

    /// Opens the folder that an entry goes to.
    fn enter(&mut self, above: &str) -> Result<(), ExtractError> {
        let path = match above {
            "" => self.destination.to_owned(),
            above => format!("{}/{above}", self.destination.trim_end_matches('/')),
        };
        if self.parent.as_ref().is_some_and(|(open, _)| *open == path) {
            return Ok(());
        }
        let failed = |cause: Errno| ExtractError::Write { path: path.clone(), cause: cause.into() };
        let folder = make_folders(&self.view.root, &path).map_err(failed)?;
        // A link may have led to another mount than the one that was checked.
        check_writable(self.view, &folder, &path)?;
        self.parent = Some((path, folder));
        Ok(())
    }

    fn dress_root(&mut self, entry: &Entry) -> Result<(), ExtractError> {
        let failed = |cause: Errno| ExtractError::Write { path: self.destination.to_owned(), cause: cause.into() };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let folder = open_within(&self.view.root, self.destination, flags, 0, Within::Root).map_err(failed)?;
        let (uid, gid) = self.options.owner.unwrap_or((entry.uid, entry.gid));
        fchown(&folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
        fchmod(&folder, Mode::from_bits_truncate(entry.mode)).map_err(failed)?;
        set_xattrs(&folder, &entry.xattrs);
        self.folders.insert(0, (self.destination.to_owned(), entry.mtime));
        Ok(())
    }

    fn link_source(&self, target: &[u8], shown: &str) -> Result<(OwnedFd, CString), ExtractError> {
        let outside = || ExtractError::Outside(String::from_utf8_lossy(target).into_owned());
        let parts = clean(target).ok_or_else(outside)?;
        let (name, above) = parts.split_last().ok_or_else(outside)?;
        let above = String::from_utf8_lossy(&above.join(&b'/')).into_owned();
        let folder = format!("{}/{above}", self.destination.trim_end_matches('/'));
        let failed = |cause: io::Error| ExtractError::Write { path: shown.to_owned(), cause };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let folder =
            open_within(&self.view.root, folder.as_str(), flags, 0, Within::Root).map_err(|e| failed(e.into()))?;
        Ok((folder, CString::new(*name).map_err(|e| failed(e.into()))?))
    }

    fn make(
        &self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &CStr,
        link_to: Option<(OwnedFd, CString)>,
        in_place: bool,
        data: &mut dyn Read,
    ) -> io::Result<()> {
        let (uid, gid) = self.options.owner.unwrap_or((entry.uid, entry.gid));
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let mode = Mode::from_bits_truncate(entry.mode);
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let node = |kind: SFlag, device| mknodat(parent, name, kind, private, device);
        let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match &entry.kind {
            Kind::Folder => {
                match mkdirat(parent, name, Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let made = openat(parent, name, flags | OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
                fchown(&made, owner.0, owner.1)?;
                fchmod(&made, mode)?;
                set_xattrs(&made, &entry.xattrs);
            }
            Kind::File => {
                let how = if in_place { OFlag::O_TRUNC | OFlag::O_NONBLOCK } else { OFlag::O_CREAT | OFlag::O_EXCL };
                let mut file = File::from(openat(parent, name, flags | OFlag::O_WRONLY | how, private)?);
                io::copy(data, &mut file)?;
                if !in_place {
                    fchown(&file, owner.0, owner.1)?;
                    // After chown, which clears set-id bits and capabilities.
                    fchmod(&file, mode)?;
                    let file: OwnedFd = file.into();
                    set_xattrs(&file, &entry.xattrs);
                    let (accessed, modified) = times(entry.mtime);
                    futimens(&file, &accessed, &modified)?;
                }
            }
            Kind::Symlink(target) => {
                symlinkat(std::ffi::OsStr::from_bytes(target), parent, name)?;
                fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            Kind::HardLink(_) => {
                if let Some((folder, source)) = link_to {
                    // Flags 0: a link at the end is not followed.
                    linkat(&folder, source.as_c_str(), parent, name, LinkatFlags::empty())?;
                }
            }
            Kind::CharDevice(major, minor) => node(SFlag::S_IFCHR, makedev(*major, *minor))?,
            Kind::BlockDevice(major, minor) => node(SFlag::S_IFBLK, makedev(*major, *minor))?,
            Kind::Fifo => node(SFlag::S_IFIFO, 0)?,
        }
        if matches!(entry.kind, Kind::CharDevice(..) | Kind::BlockDevice(..) | Kind::Fifo) {
            fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            // Should it have been exchanged for a link meanwhile, this fails rather than follow it.
            fchmodat(parent, name, mode, FchmodatFlags::NoFollowSymlink).or_else(|error| match error {
                Errno::ENOTSUP | Errno::ENOSYS => Ok(()),
                error => Err(error),
            })?;
        }
        if !matches!(entry.kind, Kind::Folder | Kind::File | Kind::HardLink(_)) {
            let (accessed, modified) = times(entry.mtime);
            utimensat(parent, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(())
    }

    /// Times of folders, which everything made in them has changed.
    fn date_folders(&self) {
        for (path, mtime) in self.folders.iter().rev() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let (accessed, modified) = times(*mtime);
            // One that is gone again has no time.
            if let Ok(folder) = open_within(&self.view.root, path.as_str(), flags, 0, Within::Root) {
                let _ = futimens(&folder, &accessed, &modified);
            }
        }
    }
}

fn is_folder(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn times(mtime: (i64, i64)) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(mtime.0, mtime.1), TimeSpec::new(mtime.0, mtime.1))
}

/// What a file may bring along: nothing that the kernel or an overlay reads as its own.
fn set_xattrs(file: &OwnedFd, xattrs: &[(Vec<u8>, Vec<u8>)]) {
    for (name, value) in xattrs {
        let allowed =
            name.starts_with(b"user.") || name == b"security.capability" || name.starts_with(b"system.posix_acl_");
        if let Ok(name) = CString::new(name.clone())
            && allowed
        {
            // As Docker: a file system without them is no reason to fail.
            let _ = sys::xattr::fset(file, &name, value);
        }
    }
}

/// Removes whatever has the name, with all below it; links are not followed.
fn remove(folder: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
    match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        other => return other,
    }
    if depth > DEPTH {
        return Err(Errno::ENAMETOOLONG);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let below = openat(folder, name, flags, Mode::empty())?;
    for child in crate::containers::changes::names(&below)? {
        match remove(&below, &child, depth + 1) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    unlinkat(folder, name, UnlinkatFlags::RemoveDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below() {
        assert_eq!(clean(b"/a/./b//c"), Some(vec![&b"a"[..], b"b", b"c"]));
        assert_eq!(clean(b"a/../b"), Some(vec![&b"b"[..]]));
        assert_eq!(clean(b"./"), Some(vec![]));
        for bad in [&b".."[..], b"../x", b"a/../../x", b"/.."] {
            assert!(clean(bad).is_none(), "{bad:?}");
        }
    }
}
