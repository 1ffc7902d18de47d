//! Copies files from one tree into another.
//!
//! Nothing in either is trusted: every folder is opened below the one before it, no link is followed but when the path that was
//! asked for is looked up, and then inside its root.

use super::{
    FileError, Stop,
    filter::{Filter, Verdict},
    mode::Modes,
    paths::{self, Clean, is_folder, kind},
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, Whence, fchownat, linkat, lseek, symlinkat, unlinkat},
};
use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

/// Deeper trees than this are refused: two descriptors are open per level.
const DEPTH: usize = 400;
/// Bytes of a file copied between two looks at whether somebody still wants it.
const PIECE: u64 = 32 << 20;

/// How to copy.
#[derive(Debug, Default)]
pub struct Options {
    /// Owner of everything that is made.
    pub owner: Option<(u32, u32)>,
    /// Mode of everything that is copied.
    pub mode: Option<Modes>,
    /// Times of everything that is made.
    pub time: Option<TimeSpec>,
    /// What goes along.
    pub filter: Filter,
    /// Of a folder what is in it, not itself.
    pub contents: bool,
    /// Whether links at the end of the source's path are followed.
    pub follow: bool,
    /// A file takes the place of a folder, and the other way round.
    pub replace: bool,
}

/// Copies `from` of one root to `to` of another.
pub fn copy(
    source: &OwnedFd,
    from: &Clean,
    target: &OwnedFd,
    to: &str,
    options: &Options,
    stop: &Stop,
) -> Result<(), FileError> {
    let made = Made { owner: options.owner, time: options.time };
    // `a/b`: the folder; `a/b/` itself.
    let above = match to.rsplit_once('/') {
        Some((_, "" | ".")) => to,
        Some((above, _)) => above,
        None => "",
    };
    folders(target, &paths::resolve(target, above, true)?, 0o755, &made)?;
    let mut to = paths::resolve(target, to, true)?;
    let followed = paths::resolve(source, from.relative(), options.follow)?;
    let missing = || FileError::at(from, "lstat", Errno::ENOENT);
    let stat = paths::stat(source, &followed)?.ok_or_else(missing)?;
    let there = paths::stat(target, &to)?;
    let into = match (is_folder(&stat), &there) {
        (true, there) => !options.contents && there.is_some(),
        (false, there) => there.as_ref().is_some_and(is_folder),
    };
    if into {
        to = match from.name() {
            Some(name) => to.join(name),
            None => to,
        };
    }
    let parent = to.split();
    let folder = match &parent {
        Some((above, _)) if !(options.contents && is_folder(&stat) && there.is_none()) => above,
        _ => &to,
    };
    let opened = folders(target, folder, 0o755, &made)?;
    let mut copier = Copier { source_root: &followed, target_root: &to, options, stop, links: HashMap::new(), target };
    let Some((_, name)) = &parent else {
        // Onto the root itself.
        let below = paths::folder(source, &followed).map_err(|e| FileError::at(from, "open", e))?;
        let root = paths::folder(target, &to).map_err(|e| FileError::at(&to, "open", e))?;
        copier.children(&below, Some(&root), &Verdict::default(), &[], 0, &mut Vec::new())?;
        return copier.times(&root, c".", &stat).map_err(|e| FileError::at(&to, "utimes", e));
    };
    let above = match folder == &to {
        true => paths::folder(target, &to.split().unwrap_or_default().0).map_err(|e| FileError::at(&to, "open", e))?,
        false => opened,
    };
    let (source_above, source_name) = match followed.split() {
        Some((above, name)) => (paths::folder(source, &above).map_err(|e| FileError::at(from, "open", e))?, name),
        None => (source.try_clone().map_err(|e| FileError::io(from, "open", e))?, c".".to_owned()),
    };
    copier.top(&source_above, &source_name, &stat, &above, name)
}

/// What is said of folders that are made on the way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Made {
    /// Their owner.
    pub owner: Option<(u32, u32)>,
    /// Their times.
    pub time: Option<TimeSpec>,
}

/// Opens a folder, and makes what is missing of its path.
pub fn folders(root: &OwnedFd, path: &Clean, mode: u32, made: &Made) -> Result<OwnedFd, FileError> {
    match paths::folder(root, path) {
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(FileError::at(path, "mkdir", error)),
        Ok(folder) => return Ok(folder),
    }
    let failed = |error| FileError::at(path, "mkdir", error);
    let mut folder = paths::folder(root, &Clean::default()).map_err(failed)?;
    for part in path.parts() {
        let name = CString::new(part.clone()).map_err(|_| failed(Errno::EINVAL))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        folder = match openat(&folder, name.as_c_str(), flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                mkdirat(&folder, name.as_c_str(), Mode::from_bits_truncate(mode)).map_err(failed)?;
                let below = openat(&folder, name.as_c_str(), flags, Mode::empty()).map_err(failed)?;
                // Whatever umask there is.
                nix::sys::stat::fchmod(&below, Mode::from_bits_truncate(mode)).map_err(failed)?;
                dress(&folder, &name, made).map_err(failed)?;
                below
            }
            other => other.map_err(failed)?,
        };
    }
    Ok(folder)
}

/// Owner and times of what was made.
pub fn dress(folder: &OwnedFd, name: &CStr, made: &Made) -> Result<(), Errno> {
    if let Some((uid, gid)) = made.owner {
        fchownat(folder, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    match made.time {
        Some(time) => utimensat(folder, name, &time, &time, UtimensatFlags::NoFollowSymlink),
        None => Ok(()),
    }
}

/// Removes whatever has the name, with all below it; links are not followed.
pub fn remove(folder: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
    match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        other => return other,
    }
    if depth > DEPTH {
        return Err(Errno::ENAMETOOLONG);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let below = openat(folder, name, flags, Mode::empty())?;
    for child in paths::names(&below)? {
        remove(&below, &child, depth + 1)?;
    }
    unlinkat(folder, name, UnlinkatFlags::RemoveDir)
}

/// One thing alone, of a folder without what is in it, with all its facts; `to` is the folder and the name, and the path for
/// people. What is there makes place.
pub fn single(
    source: &OwnedFd,
    name: &CStr,
    stat: &FileStat,
    (above, to, path): (&OwnedFd, &CStr, &Clean),
    (target, links): (&OwnedFd, &mut HashMap<(u64, u64), Clean>),
    options: &Options,
    stop: &Stop,
) -> Result<(), FileError> {
    let links_before = std::mem::take(links);
    let mut copier = Copier { source_root: path, target_root: path, target, options, stop, links: links_before };
    let done = if is_folder(stat) {
        copier.folder(stat, above, to, true, &[]).and_then(|_| {
            copier.facts(source, name, stat, above, to).map_err(|error| FileError::at(path, "chmod", error))
        })
    } else {
        copier.one(source, name, stat, above, to, &[])
    };
    *links = copier.links;
    done
}

struct Copier<'a> {
    source_root: &'a Clean,
    target_root: &'a Clean,
    target: &'a OwnedFd,
    options: &'a Options,
    stop: &'a Stop,
    /// Where files with several names were copied to.
    links: HashMap<(u64, u64), Clean>,
}

/// A folder on the way that nothing is in yet: it is made when something is.
struct Pending {
    source: OwnedFd,
    stat: FileStat,
    name: CString,
    made: Option<OwnedFd>,
}

impl Copier<'_> {
    fn shown(&self, path: &[Vec<u8>]) -> Clean {
        path.iter().fold(self.target_root.clone(), |at, part| at.join(part))
    }

    fn source_shown(&self, path: &[Vec<u8>]) -> Clean {
        path.iter().fold(self.source_root.clone(), |at, part| at.join(part))
    }

    /// What was asked for itself: patterns say nothing of it.
    fn top(
        &mut self,
        source: &OwnedFd,
        name: &CStr,
        stat: &FileStat,
        target: &OwnedFd,
        to: &CStr,
    ) -> Result<(), FileError> {
        if !is_folder(stat) {
            return self.one(source, name, stat, target, to, &[]);
        }
        let made = self.folder(stat, target, to, false, &[])?;
        let open = |folder: &OwnedFd, name: &CStr| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(folder, name, flags, Mode::empty())
        };
        let below = open(source, name).map_err(|e| FileError::at(self.source_root, "open", e))?;
        let into = open(target, to).map_err(|e| FileError::at(self.target_root, "open", e))?;
        self.children(&below, Some(&into), &Verdict::default(), &[], 0, &mut Vec::new())?;
        let done = if made { self.facts(&below, c".", stat, target, to) } else { self.times(target, to, stat) };
        done.map_err(|e| FileError::at(self.target_root, "chmod", e))
    }

    /// All in a folder. Without `target` it isn't made yet: then the last of `pending` is this folder.
    fn children(
        &mut self,
        source: &OwnedFd,
        target: Option<&OwnedFd>,
        verdict: &Verdict,
        path: &[Vec<u8>],
        depth: usize,
        pending: &mut Vec<Pending>,
    ) -> Result<(), FileError> {
        if depth > DEPTH {
            return Err(FileError::at(&self.source_shown(path), "open", Errno::ENAMETOOLONG));
        }
        let failed = |error| FileError::at(&self.source_shown(path), "open", error);
        let listed = paths::names(source).map_err(failed)?;
        for name in listed {
            self.stop.check()?;
            let mut child = path.to_vec();
            child.push(name.to_bytes().to_vec());
            let failed = |error| FileError::at(&self.source_shown(&child), "lstat", error);
            let stat = fstatat(source, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
            let verdict = self.options.filter.look(&child, verdict);
            let wanted = verdict.is_wanted();
            if !is_folder(&stat) {
                if wanted {
                    let above = self.settle(target, pending, path)?;
                    let above = above.as_ref().or(target).ok_or_else(|| failed(Errno::ENOENT))?;
                    self.one(source, &name, &stat, above, &name, &child)?;
                }
                continue;
            }
            if !wanted && !self.options.filter.may_have_more(&child, &verdict) {
                continue;
            }
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let below = openat(source, name.as_c_str(), flags, Mode::empty()).map_err(failed)?;
            if wanted {
                let above = self.settle(target, pending, path)?;
                let above = above.as_ref().or(target).ok_or_else(|| failed(Errno::ENOENT))?;
                self.folder(&stat, above, &name, true, &child)?;
                let failed = |error| FileError::at(&self.shown(&child), "open", error);
                let into = openat(above, name.as_c_str(), flags, Mode::empty()).map_err(failed)?;
                self.children(&below, Some(&into), &verdict, &child, depth + 1, &mut Vec::new())?;
                // After all in it, which has changed its times.
                let failed = |error| FileError::at(&self.shown(&child), "chmod", error);
                self.facts(source, &name, &stat, above, &name).map_err(failed)?;
            } else {
                let failed = |error: io::Error| FileError::io(&self.source_shown(&child), "open", error);
                let base = match target {
                    Some(target) => Some(target.try_clone().map_err(failed)?),
                    None => None,
                };
                let kept = below.try_clone().map_err(failed)?;
                let first = pending.is_empty();
                // The folder that is there, at the beginning of those that aren't.
                if let (true, Some(base)) = (first, base) {
                    pending.push(Pending {
                        source: kept.try_clone().map_err(failed)?,
                        stat,
                        name: c".".to_owned(),
                        made: Some(base),
                    });
                }
                pending.push(Pending { source: kept, stat, name: name.clone(), made: None });
                self.children(&below, None, &verdict, &child, depth + 1, pending)?;
                if let Some(Pending { stat, name, made: Some(_), .. }) = pending.pop()
                    && let Some(above) = pending.last().and_then(|above| above.made.as_ref())
                {
                    let failed = |error| FileError::at(&self.shown(&child), "utimes", error);
                    self.times(above, &name, &stat).map_err(failed)?;
                }
                if first {
                    pending.clear();
                }
            }
        }
        Ok(())
    }

    /// Makes the folders that something is in after all. Gives the last one, if it is one of these.
    fn settle(
        &self,
        target: Option<&OwnedFd>,
        pending: &mut [Pending],
        path: &[Vec<u8>],
    ) -> Result<Option<OwnedFd>, FileError> {
        if target.is_some() {
            return Ok(None);
        }
        let begin = path.len() + 1 - pending.len();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        for at in 1..pending.len() {
            let shown = path[..begin + at].to_vec();
            let (above, here) = pending.split_at_mut(at);
            let (Some(Pending { made: Some(above), .. }), Some(here)) = (above.last(), here.first_mut()) else {
                continue;
            };
            if here.made.is_some() {
                continue;
            }
            let failed = |error| FileError::at(&self.shown(&shown), "mkdir", error);
            if self.folder(&here.stat, above, &here.name, true, &shown)? {
                self.facts(&here.source, c".", &here.stat, above, &here.name).map_err(failed)?;
            }
            here.made = Some(openat(above, here.name.as_c_str(), flags, Mode::empty()).map_err(failed)?);
        }
        match pending.last() {
            Some(Pending { made: Some(made), .. }) => {
                made.try_clone().map(Some).map_err(|error| FileError::io(&self.shown(path), "open", error))
            }
            _ => Ok(None),
        }
    }

    /// Makes a folder, unless one is there; tells whether it did.
    fn folder(
        &self,
        stat: &FileStat,
        target: &OwnedFd,
        name: &CStr,
        overwrite: bool,
        path: &[Vec<u8>],
    ) -> Result<bool, FileError> {
        let failed = |error| FileError::at(&self.shown(path), "mkdir", error);
        let make = || mkdirat(target, name, Mode::S_IRWXU);
        match make() {
            Ok(()) => return Ok(true),
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        let there = fstatat(target, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        if !is_folder(&there) {
            if !self.options.replace {
                return Err(FileError::Invalid(format!("cannot copy to non-directory: {}", self.shown(path).shown())));
            }
            remove(target, name, 0).and_then(|()| make()).map_err(failed)?;
            return Ok(true);
        }
        if overwrite {
            chmod(target, name, stat.st_mode & 0o7777).map_err(failed)?;
        }
        Ok(false)
    }

    /// Whatever is no folder.
    fn one(
        &mut self,
        source: &OwnedFd,
        name: &CStr,
        stat: &FileStat,
        target: &OwnedFd,
        to: &CStr,
        path: &[Vec<u8>],
    ) -> Result<(), FileError> {
        let shown = self.shown(path);
        let failed = |error| FileError::at(&shown, "write", error);
        match fstatat(target, to, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {}
            Ok(there) if is_folder(&there) && !self.options.replace => {
                let text = format!("cannot replace to directory {} with file", shown.shown());
                return Err(FileError::Invalid(text));
            }
            Ok(_) => remove(target, to, 0).map_err(|error| FileError::at(&shown, "remove", error))?,
            Err(error) => return Err(FileError::at(&shown, "lstat", error)),
        }
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        match kind(stat) {
            SFlag::S_IFREG => {
                if stat.st_nlink > 1 {
                    let key = (stat.st_dev, stat.st_ino);
                    if let Some(first) = self.links.get(&key) {
                        let (above, first) = first.split().ok_or_else(|| failed(Errno::EINVAL))?;
                        let above = paths::folder(self.target, &above).map_err(failed)?;
                        return linkat(&above, first.as_c_str(), target, to, LinkatFlags::empty()).map_err(failed);
                    }
                    self.links.insert(key, shown.clone());
                }
                let from = self.source_shown(path);
                let input = open_file(source, name, stat).map_err(|error| FileError::at(&from, "open", error))?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let output = openat(target, to, flags, private).map_err(failed)?;
                data(&input, &output.into(), self.stop).map_err(|error| FileError::of_data(&shown, error))?;
            }
            SFlag::S_IFLNK => {
                let link = readlinkat(source, name)
                    .map_err(|error| FileError::at(&self.source_shown(path), "readlink", error))?;
                symlinkat(link.as_os_str(), target, to).map_err(failed)?;
            }
            special => {
                let device = if matches!(special, SFlag::S_IFCHR | SFlag::S_IFBLK) { stat.st_rdev } else { 0 };
                mknodat(target, to, special, private, device).map_err(failed)?;
            }
        }
        self.facts(source, name, stat, target, to).map_err(failed)
    }

    /// Owner, mode, attributes and times.
    fn facts(&self, source: &OwnedFd, name: &CStr, stat: &FileStat, target: &OwnedFd, to: &CStr) -> Result<(), Errno> {
        let (uid, gid) = self.options.owner.unwrap_or((stat.st_uid, stat.st_gid));
        fchownat(target, to, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind(stat) != SFlag::S_IFLNK {
            let mode = match &self.options.mode {
                Some(modes) => modes.apply(stat.st_mode, is_folder(stat)),
                None => stat.st_mode & 0o7777,
            };
            chmod(target, to, mode)?;
        }
        // After chown, which clears capabilities.
        xattrs(source, name, target, to);
        self.times(target, to, stat)
    }

    fn times(&self, target: &OwnedFd, to: &CStr, stat: &FileStat) -> Result<(), Errno> {
        let (accessed, modified) = match self.options.time {
            Some(time) => (time, time),
            None => {
                (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
            }
        };
        utimensat(target, to, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
    }
}

/// Mode of what was just made, which is no link.
fn chmod(folder: &OwnedFd, name: &CStr, mode: u32) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let held = openat(folder, name, flags, Mode::empty())?;
    if kind(&fstat(&held)?) == SFlag::S_IFLNK {
        return Err(Errno::ELOOP);
    }
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
    nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, path.as_str(), Mode::from_bits_truncate(mode), flags)
}

/// Opens a regular file that `stat` was of.
fn open_file(folder: &OwnedFd, name: &CStr, stat: &FileStat) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(folder, name, flags, Mode::empty())?;
    // O_NONBLOCK: should it have become a FIFO, that holds nobody.
    if kind(&fstat(&file)?) != SFlag::S_IFREG || fstat(&file)?.st_ino != stat.st_ino {
        return Err(Errno::ESTALE);
    }
    Ok(file.into())
}

/// All attributes but those that this machine's overlays and security modules keep for themselves; what the file system refuses
/// is left out.
pub fn xattrs(source: &OwnedFd, name: &CStr, target: &OwnedFd, to: &CStr) {
    let path = |folder: &OwnedFd, name: &CStr| {
        CString::new([format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name.to_bytes()].concat())
    };
    let (Ok(from), Ok(to)) = (path(source, name), path(target, to)) else { return };
    for key in sys::xattr::llist(&from).unwrap_or_default() {
        if !travels(&key) {
            continue;
        }
        if let Ok(key) = CString::new(key)
            && let Ok(Some(value)) = sys::xattr::lget(&from, &key)
        {
            let _ = sys::xattr::lset(&to, &key, &value);
        }
    }
}

/// Whether an attribute belongs to the file wherever it is.
pub fn travels(key: &[u8]) -> bool {
    key.starts_with(b"user.") || key == b"security.capability" || key.starts_with(b"system.posix_acl_")
}

/// Copies content: by sharing blocks where the file system can, in the kernel else, holes as holes.
fn data(input: &File, output: &File, stop: &Stop) -> io::Result<()> {
    let facts = input.metadata()?;
    let size = facts.len();
    if size == 0 {
        return Ok(());
    }
    if sys::reflink::clone(input, output).is_ok() {
        return Ok(());
    }
    let sparse = std::os::unix::fs::MetadataExt::blocks(&facts) * 512 < size;
    if !sparse {
        return range(input, output, 0, size, stop);
    }
    output.set_len(size)?;
    let mut at = 0_i64;
    loop {
        let begin = match lseek(input, at, Whence::SeekData) {
            Ok(begin) => begin,
            // Nothing but a hole follows.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(input, begin, Whence::SeekHole)?;
        range(input, output, begin.unsigned_abs(), end.unsigned_abs(), stop)?;
        at = end;
    }
}

fn range(mut input: &File, mut output: &File, begin: u64, end: u64, stop: &Stop) -> io::Result<()> {
    input.seek(SeekFrom::Start(begin))?;
    output.seek(SeekFrom::Start(begin))?;
    let mut at = begin;
    while at < end {
        stop.check_io()?;
        let most = PIECE.min(end - at);
        let copied = io::copy(&mut input.take(most), &mut output)?;
        if copied == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter meanwhile"));
        }
        if end - begin > PIECE {
            // It has to be on disk in the end: the disk may as well begin.
            let _ = sys::writeback::start(output.as_fd(), at, copied);
        }
        at += copied;
    }
    Ok(())
}

/// Bytes of a path, for people.
pub fn shown(path: impl AsRef<std::ffi::OsStr>) -> String {
    String::from_utf8_lossy(path.as_ref().as_bytes()).into_owned()
}
