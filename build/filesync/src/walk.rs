//! Walks a folder in the order of the protocol, and leaves out what isn't wanted. Goes by descriptors: a folder that is replaced by
//! a link while it is walked leads nowhere else.

use crate::{
    mode,
    patterns::{Matched, PatternError, Patterns, clean},
};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::stat::{FileStat, Mode, fstatat},
};
use proto::fsutil::types::Stat;
use std::{
    collections::{BTreeSet, HashMap},
    ffi::{CString, OsStr},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

/// Symbolic links are followed these many times at most.
const MOST_LINKS: usize = 10_000;

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A file here.
    #[error("read {path}")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// The protocol has no word for it.
    #[error("{path}: {what}")]
    Name {
        /// Its path, as far as it can be said.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Patterns.
    #[error("invalid {what}")]
    Patterns {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        cause: PatternError,
    },
    /// More links than anybody has.
    #[error("{0}: too many symbolic links to follow")]
    Links(String),
}

/// A filter made ready.
#[derive(Debug, Default)]
pub(crate) struct Filtered {
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    owned_by_root: bool,
}

impl Filtered {
    pub(crate) fn new(folder: BorrowedFd<'_>, filter: &crate::send::Filter) -> Result<Self, WalkError> {
        let read = |what, list: &[String]| match list.is_empty() {
            true => Ok(None),
            false => Patterns::new(list)
                .map(|patterns| Some(patterns).filter(|p| !p.is_empty()))
                .map_err(|cause| WalkError::Patterns { what, cause }),
        };
        let mut include = filter.include.clone();
        if !filter.follow.is_empty()
            && let Some(targets) = follow(folder, &filter.follow)?
        {
            include.extend(targets);
            // With the folder itself among them it is all of it.
            if include.iter().any(|path| path == ".") {
                include.clear();
            }
        }
        Ok(Self {
            include: read("include patterns", &include)?,
            exclude: read("exclude patterns", &filter.exclude)?,
            owned_by_root: filter.owned_by_root,
        })
    }
}

/// A folder on the way to where the walk is.
struct Level {
    path: String,
    include: Matched,
    exclude: Matched,
    /// Itself, if it hasn't been told of yet: it is when something in it is.
    untold: Option<Stat>,
}

/// Calls `each` for all that is wanted.
pub(crate) fn walk<E: From<WalkError>>(
    folder: BorrowedFd<'_>,
    filter: &Filtered,
    each: &mut dyn FnMut(Stat) -> Result<(), E>,
) -> Result<(), E> {
    let root = open_folder(folder, ".").map_err(|cause| WalkError::Read { path: ".".into(), cause })?;
    Walk { filter, each, levels: Vec::new(), links: HashMap::new() }.folder(root, "")
}

fn open_folder<P: nix::NixPath + ?Sized>(at: BorrowedFd<'_>, name: &P) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

struct Walk<'a, E> {
    filter: &'a Filtered,
    each: &'a mut dyn FnMut(Stat) -> Result<(), E>,
    levels: Vec<Level>,
    /// Files with several names by device and inode: the first of the names.
    links: HashMap<(u64, u64), String>,
}

impl<E: From<WalkError>> Walk<'_, E> {
    fn folder(&mut self, fd: OwnedFd, path: &str) -> Result<(), E> {
        let failed =
            |cause| WalkError::Read { path: if path.is_empty() { ".".into() } else { path.to_owned() }, cause };
        let mut dir = Dir::from_fd(fd).map_err(failed)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push((name.to_owned(), entry.file_type()));
            }
        }
        names.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        for (name, kind) in names {
            self.entry(dir.as_fd(), &name, kind, path)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        at: BorrowedFd<'_>,
        name: &CString,
        kind: Option<nix::dir::Type>,
        folder: &str,
    ) -> Result<(), E> {
        let text = name.to_string_lossy();
        let path = if folder.is_empty() { text.to_string() } else { format!("{folder}/{text}") };
        let known = self.levels.last();
        let (included, include) = match &self.filter.include {
            Some(patterns) => patterns.matches_below(&path, known.map(|level| &level.include)),
            None => (true, Matched::default()),
        };
        let (excluded, exclude) = match &self.filter.exclude {
            Some(patterns) => patterns.matches_below(&path, known.map(|level| &level.exclude)),
            None => (false, Matched::default()),
        };
        let wanted = included && !excluded;
        // Not even looked at, if its kind is known to be no folder.
        if !wanted && kind.is_some_and(|kind| kind != nix::dir::Type::Directory) {
            return Ok(());
        }
        let failed = |cause| WalkError::Read { path: path.clone(), cause };
        let stat = match fstatat(at, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since the folder was read.
            Err(Errno::ENOENT) => return Ok(()),
            Err(cause) => return Err(failed(cause).into()),
        };
        let go = mode::from_unix(stat.st_mode);
        let is_dir = mode::is_dir(go);
        if go & mode::SOCKET != 0 || (!wanted && !is_dir) {
            return Ok(());
        }
        let below = is_dir
            && (included || self.filter.include.as_ref().is_none_or(|p| p.may_include_below(&path)))
            && (!excluded || self.filter.exclude.as_ref().is_some_and(|p| p.may_except_below(&path)));
        if !wanted && !below {
            return Ok(());
        }
        if name.to_str().is_err() {
            let what = "the name is not valid UTF-8, the protocol can't say it";
            return Err(WalkError::Name { path, what }.into());
        }
        // Opened before it is told of: one that vanishes in between is not there at all.
        let opened = match is_dir {
            true => match open_folder(at, name.as_c_str()) {
                Ok(fd) => Some(fd),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
                Err(Errno::EACCES | Errno::EPERM) if !wanted => return Ok(()),
                Err(cause) => return Err(failed(cause).into()),
            },
            false => None,
        };
        let stat = match self.describe(at, name, &path, &stat, go) {
            Ok(stat) => stat,
            Err(Errno::ENOENT | Errno::EINVAL) => return Ok(()),
            Err(cause) => return Err(failed(cause).into()),
        };
        let mut untold = Some(stat);
        if wanted {
            for level in &mut self.levels {
                if let Some(stat) = level.untold.take() {
                    (self.each)(stat)?;
                }
            }
            if let Some(stat) = untold.take() {
                (self.each)(stat)?;
            }
        }
        if let Some(fd) = opened.filter(|_| below) {
            self.levels.push(Level { path, include, exclude, untold });
            let path = self.levels.last().map(|level| level.path.clone()).unwrap_or_default();
            self.folder(fd, &path)?;
            self.levels.pop();
        }
        Ok(())
    }

    fn describe(
        &mut self,
        at: BorrowedFd<'_>,
        name: &CString,
        path: &str,
        stat: &FileStat,
        go: u32,
    ) -> Result<Stat, Errno> {
        let mut told = Stat {
            path: path.to_owned(),
            mode: go,
            mod_time: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
            ..Stat::default()
        };
        if !self.filter.owned_by_root {
            (told.uid, told.gid) = (stat.st_uid, stat.st_gid);
        }
        if !mode::is_dir(go) {
            told.size = stat.st_size;
        }
        if go & mode::DEVICE != 0 {
            told.devmajor = nix::sys::stat::major(stat.st_rdev).cast_signed();
            told.devminor = nix::sys::stat::minor(stat.st_rdev).cast_signed();
        }
        if go & mode::SYMLINK != 0 {
            told.linkname = readlinkat(at, name.as_c_str())?.into_string().map_err(|_| Errno::EILSEQ)?;
        } else if !mode::is_dir(go) && stat.st_nlink > 1 {
            match self.links.entry((stat.st_dev, stat.st_ino)) {
                std::collections::hash_map::Entry::Occupied(first) => told.linkname.clone_from(first.get()),
                std::collections::hash_map::Entry::Vacant(place) => drop(place.insert(path.to_owned())),
            }
        }
        told.xattrs = attributes(at, name);
        Ok(told)
    }
}

/// The attributes that belong to content. That there are none to be had is no failure: not all file systems have them.
fn attributes(at: BorrowedFd<'_>, name: &CString) -> HashMap<String, Vec<u8>> {
    let mut path = format!("/proc/self/fd/{}/", at.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    let Ok(path) = CString::new(path) else { return HashMap::new() };
    let Ok(names) = sys::xattr::llist(&path) else { return HashMap::new() };
    names
        .into_iter()
        .filter(|name| is_kept(name))
        .filter_map(|name| {
            let value = sys::xattr::lget(&path, &CString::new(name.clone()).ok()?).ok()??;
            Some((String::from_utf8(name).ok()?, value))
        })
        .collect()
}

/// Whether an attribute is one that travels.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    // The overlay's own words are no content.
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Opens a file below a folder, through no links at all.
pub(crate) fn open_below(folder: impl AsFd, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        match openat2(folder.as_fd(), path, how) {
            // A rename somewhere raced with it.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Where links on the way to `paths` lead, with the paths themselves: what has to be included for them. Nothing if that is all.
fn follow(folder: BorrowedFd<'_>, paths: &[String]) -> Result<Option<Vec<String>>, WalkError> {
    let mut resolved = BTreeSet::new();
    let mut queue: Vec<String> = paths.iter().rev().cloned().collect();
    let mut links = 0;
    while let Some(path) = queue.pop() {
        let mut current = String::from(".");
        let mut rest = path.as_str();
        loop {
            let (part, after) = rest.split_once('/').unwrap_or((rest, ""));
            rest = after;
            current = clean(&format!("{current}/{part}"));
            // It leads up no further than to the folder itself.
            while let Some(up) = current.strip_prefix("..") {
                current = clean(up.trim_start_matches('/'));
            }
            let targets = targets_of(folder, &current)?;
            if (rest.is_empty() || !targets.is_empty()) && resolved.contains(&current) {
                break;
            }
            if !targets.is_empty() {
                resolved.insert(current.clone());
                links += targets.len();
                if links > MOST_LINKS {
                    return Err(WalkError::Links(current));
                }
                queue.extend(targets.iter().rev().map(|target| clean(&format!("{target}/{rest}"))));
                break;
            }
            if rest.is_empty() {
                resolved.insert(current);
                break;
            }
        }
    }
    Ok(if resolved.contains(".") { None } else { Some(resolved.into_iter().collect()) })
}

/// What a path leads to, if it is a link; of a pattern, what the links lead to that it matches. From the folder, with a slash.
fn targets_of(folder: BorrowedFd<'_>, path: &str) -> Result<Vec<String>, WalkError> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let at = if parent.is_empty() { "." } else { parent };
    let absent = |cause: &Errno| matches!(cause, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP);
    let failed = |cause| WalkError::Read { path: path.to_owned(), cause };
    let fd = match open_below(folder, at, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        Ok(fd) => fd,
        Err(cause) if absent(&cause) => return Ok(Vec::new()),
        Err(cause) => return Err(failed(cause)),
    };
    let read = |name: &OsStr| -> Option<String> {
        let link = readlinkat(fd.as_fd(), name).ok()?.into_string().ok()?;
        let link = if link.starts_with('/') { link } else { format!("/{parent}/{link}") };
        Some(clean(&link))
    };
    if !has_wildcards(name) {
        return Ok(read(OsStr::new(name)).into_iter().collect());
    }
    // One name of a folder: nothing but what it says itself.
    let Ok(pattern) = Patterns::new(&[name]) else { return Ok(Vec::new()) };
    let copy = fd.try_clone().map_err(|_| failed(Errno::EMFILE))?;
    let mut dir = Dir::from_fd(copy).map_err(failed)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        names.push(entry.map_err(failed)?.file_name().to_owned());
    }
    names.sort_unstable();
    let matching = names.iter().filter(|name| name.to_str().is_ok_and(|text| pattern.matches(text)));
    Ok(matching.filter_map(|name| read(OsStr::from_bytes(name.as_bytes()))).collect())
}

fn has_wildcards(name: &str) -> bool {
    let mut escaped = false;
    name.chars().any(|c| match c {
        _ if escaped => {
            escaped = false;
            false
        }
        '\\' => {
            escaped = true;
            false
        }
        c => matches!(c, '*' | '?' | '['),
    })
}

/// Opens a folder of ours, wherever it is.
pub(crate) fn open_folder_at(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}
