//! `GET /containers/{id}/changes`: what a container's files differ in from its image's.
//!
//! An overlay's upper folder holds the difference already; of other snapshots both trees are walked side by side. As docker
//! has it, a folder counts as changed when something in it has, and what every container's root gets for its mounts
//! doesn't count.

use super::{
    Container,
    layers::{Layers, LayersError},
    rootfs::{self, Base},
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
};
use proto::{containerd::types::Mount, kind::chain};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

/// Deeper trees than this are refused: a descriptor pair is open per level.
const DEPTH: usize = 400;

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Change {
    path: String,
    /// 0 modified, 1 added, 2 deleted.
    kind: u8,
}

const MODIFIED: u8 = 0;
const ADDED: u8 = 1;
const DELETED: u8 = 2;

/// Why the trees can't be compared.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    #[error(transparent)]
    Layers(#[from] LayersError),
    #[error("read {path}")]
    Read {
        path: String,
        #[source]
        cause: Errno,
    },
    #[error("{0}: folders nested deeper than {DEPTH}")]
    Deep(String),
    #[error("the walk was abandoned")]
    Abandoned(#[source] tokio::task::JoinError),
    /// An overlay's folder says that it is a folder of the layers below under another name.
    #[error("{0} refers to another folder")]
    Refers(String),
}

/// Compares.
pub async fn changes(app: &Arc<App>, container: &Arc<Container>) -> ApiResult<Vec<Change>> {
    let record = container.record();
    let failed = |error: &dyn std::error::Error| {
        ApiError::internal(format!("list changes of container {}: {}", record.name, chain(error)))
    };
    let mounts = rootfs::mounts(app, container, &record).await.map_err(|e| failed(&e))?;
    let upper = {
        let mounts = mounts.clone();
        tokio::task::spawn_blocking(move || of_overlay(&mounts)).await.map_err(|e| failed(&e))?
    };
    match upper {
        Ok(Some(found)) => return Ok(found.changes),
        Ok(None) | Err(ChangesError::Refers(_)) => {}
        Err(error) => return Err(failed(&error)),
    }
    let base = Base::of(app, &record, "changes").await.map_err(|e| failed(&e))?;
    let below = base.mounts.clone();
    let walked = tokio::task::spawn_blocking(move || of_trees(&below, &mounts)).await;
    base.give_back().await;
    Ok(walked.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?.changes)
}

/// Paths that have been added for what every container has mounted there; they are no part of what it wrote. `below` is
/// how to mount the image's layers.
pub async fn made_for_mounts(below: &[Mount], mounts: &[Mount]) -> Result<Vec<String>, ChangesError> {
    let (below, mounts) = (below.to_vec(), mounts.to_vec());
    let walk = move || match of_overlay(&mounts) {
        Ok(Some(found)) => Ok(found),
        Ok(None) | Err(ChangesError::Refers(_)) => of_trees(&below, &mounts),
        Err(error) => Err(error),
    };
    match tokio::task::spawn_blocking(walk).await {
        Ok(found) => found.map(|found| found.hidden),
        Err(error) => Err(ChangesError::Abandoned(error)),
    }
}

/// What a comparison finds.
#[derive(Debug, Default)]
struct Found {
    changes: Vec<Change>,
    hidden: Vec<String>,
}

fn of_overlay(mounts: &[Mount]) -> Result<Option<Found>, ChangesError> {
    let Some(overlay) = rootfs::overlay(mounts)? else { return Ok(None) };
    let read = |cause| ChangesError::Read { path: "/".into(), cause };
    let upper = open(nix::fcntl::AT_FDCWD, &CString::new(overlay.upper).unwrap_or_default()).map_err(read)?;
    let lower = overlay.lower.folder("/")?;
    compare(lower.as_ref(), &upper, true).map(Some)
}

fn of_trees(below: &[Mount], mounts: &[Mount]) -> Result<Found, ChangesError> {
    let old = if below.is_empty() { None } else { Layers::open(below)?.folder("/")? };
    let new = Layers::open(mounts)?.folder("/")?;
    let new = new.ok_or(ChangesError::Read { path: "/".into(), cause: Errno::ENOENT })?;
    compare(old.as_ref(), &new, false)
}

fn compare(old: Option<&OwnedFd>, new: &OwnedFd, upper: bool) -> Result<Found, ChangesError> {
    let mut found = Found::default();
    Walk { upper }.folder(old, new, "", false, &mut found, 0)?;
    Ok(found)
}

struct Walk {
    // `new` is the upper folder of an overlay: what isn't in it is as it was.
    upper: bool,
}

impl Walk {
    fn folder(
        &self,
        old: Option<&OwnedFd>,
        new: &OwnedFd,
        path: &str,
        whole: bool,
        found: &mut Found,
        depth: usize,
    ) -> Result<(), ChangesError> {
        let read = |cause| ChangesError::Read { path: if path.is_empty() { "/" } else { path }.to_owned(), cause };
        if depth > DEPTH {
            return Err(ChangesError::Deep(path.to_owned()));
        }
        let here = names(new).map_err(read)?;
        let mut all = here.clone();
        if (!self.upper || whole)
            && let Some(old) = old
        {
            all.extend(names(old).map_err(read)?);
        }
        for name in all {
            let child = format!("{path}/{}", name.to_string_lossy());
            let before = match old {
                Some(old) => stat(old, &name).map_err(read)?,
                None => None,
            };
            let after = if here.contains(&name) { stat(new, &name).map_err(read)? } else { None };
            self.one(old, new, &name, child, (before, after), found, depth)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "both sides of one entry")]
    fn one(
        &self,
        old: Option<&OwnedFd>,
        new: &OwnedFd,
        name: &CString,
        path: String,
        (before, after): (Option<FileStat>, Option<FileStat>),
        found: &mut Found,
        depth: usize,
    ) -> Result<(), ChangesError> {
        let read = |path: &str, cause| ChangesError::Read { path: path.to_owned(), cause };
        let after = after.filter(|stat| !(self.upper && is_whiteout(stat)));
        let Some(after) = after else {
            if before.is_some() {
                found.changes.push(Change { path, kind: DELETED });
            }
            return Ok(());
        };
        let (at, hidden) = (found.changes.len(), found.hidden.len());
        if is(&after, SFlag::S_IFDIR) {
            let below = open(new, name).map_err(|e| read(&path, e))?;
            let mark = |key: &std::ffi::CStr| if self.upper { overlay_mark(&below, key) } else { None };
            if mark(c"trusted.overlay.redirect").is_some() {
                return Err(ChangesError::Refers(path));
            }
            let was_folder = before.as_ref().is_some_and(|stat| is(stat, SFlag::S_IFDIR));
            let previous = match old.filter(|_| was_folder) {
                Some(old) => Some(open(old, name).map_err(|e| read(&path, e))?),
                None => None,
            };
            let whole = mark(c"trusted.overlay.opaque").is_some_and(|mark| mark == b"y");
            self.folder(previous.as_ref(), &below, &path, whole, found, depth + 1)?;
        }
        let kind = match before {
            None if is_made_for_mounts(&path, &after, new, name, found.changes.len() > at) => {
                found.hidden.push(path);
                return Ok(());
            }
            None => Some(ADDED),
            Some(before) if self.differs(&before, &after, found.changes.len() > at) => Some(MODIFIED),
            // Touched for the sake of what is hidden, and for nothing else.
            Some(_) if found.hidden.len() > hidden => {
                found.hidden.push(path);
                return Ok(());
            }
            Some(_) => None,
        };
        if let Some(kind) = kind {
            // Before what is in it.
            found.changes.insert(at, Change { path, kind });
        }
        Ok(())
    }

    fn differs(&self, before: &FileStat, after: &FileStat, within: bool) -> bool {
        let attributes = |stat: &FileStat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
        if is(after, SFlag::S_IFDIR) {
            return within || attributes(before) != attributes(after);
        }
        let content = |stat: &FileStat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        self.upper || attributes(before) != attributes(after) || content(before) != content(after)
    }
}

/// Whether an added path is one of those that every container's root has for what is mounted there, still empty.
fn is_made_for_mounts(path: &str, stat: &FileStat, folder: &OwnedFd, name: &CString, within: bool) -> bool {
    match path {
        "/dev" | "/dev/pts" | "/dev/shm" | "/proc" | "/sys" | "/etc" => is(stat, SFlag::S_IFDIR) && !within,
        "/.dockerenv" | "/etc/hosts" | "/etc/hostname" | "/etc/resolv.conf" | "/dev/console" => {
            is(stat, SFlag::S_IFREG) && stat.st_size == 0
        }
        "/etc/mtab" => {
            is(stat, SFlag::S_IFLNK) && readlinkat(folder, name.as_c_str()).is_ok_and(|to| to == "/proc/mounts")
        }
        _ => false,
    }
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

fn is_whiteout(stat: &FileStat) -> bool {
    is(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

fn overlay_mark(folder: &OwnedFd, key: &std::ffi::CStr) -> Option<Vec<u8>> {
    let path = CString::new(format!("/proc/self/fd/{}/.", folder.as_raw_fd())).ok()?;
    sys::xattr::lget(&path, key).ok().flatten()
}

fn stat(folder: &OwnedFd, name: &CString) -> Result<Option<FileStat>, Errno> {
    match fstatat(folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        // Gone since it was listed: a container may run.
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open(folder: impl std::os::fd::AsFd, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(folder, name.as_c_str(), flags, Mode::empty())
}

/// Names in a folder, sorted.
pub fn names(folder: &OwnedFd) -> Result<BTreeSet<CString>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(folder, ".", flags, Mode::empty())?;
    let mut names = BTreeSet::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if OsStr::from_bytes(name.to_bytes()) != "." && OsStr::from_bytes(name.to_bytes()) != ".." {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    fn folder(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        changes.iter().map(|c| format!("{}{}", ['C', 'A', 'D'][usize::from(c.kind)], c.path)).collect()
    }

    #[test]
    fn two_trees() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        for tree in [&old, &new] {
            fs::create_dir_all(tree.join("etc/keep")).unwrap();
            fs::write(tree.join("etc/same"), "s").unwrap();
        }
        let time = fs::metadata(old.join("etc/same")).unwrap().modified().unwrap();
        fs::File::options().write(true).open(new.join("etc/same")).unwrap().set_modified(time).unwrap();
        fs::write(old.join("gone"), "").unwrap();
        fs::write(old.join("etc/passwd"), "a").unwrap();
        fs::write(new.join("etc/passwd"), "ab").unwrap();
        fs::create_dir_all(new.join("srv/sub")).unwrap();
        // What mounts need isn't told, unless it is used.
        fs::create_dir_all(new.join("dev/shm")).unwrap();
        fs::create_dir_all(new.join("proc")).unwrap();
        fs::write(new.join("proc/own"), "").unwrap();
        fs::write(new.join("etc/hosts"), "").unwrap();
        fs::write(new.join("etc/hostname"), "mine").unwrap();
        let changes = compare(Some(&folder(&old)), &folder(&new), false).unwrap().changes;
        let expected =
            ["C/etc", "A/etc/hostname", "C/etc/passwd", "D/gone", "A/proc", "A/proc/own", "A/srv", "A/srv/sub"];
        assert_eq!(shown(&changes), expected);
        assert_eq!(shown(&compare(None, &folder(&old), false).unwrap().changes)[..2], ["A/etc", "A/etc/keep"]);
    }

    #[test]
    fn upper_folder() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: whiteouts need root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        fs::create_dir_all(old.join("etc/a")).unwrap();
        fs::create_dir_all(old.join("var/log")).unwrap();
        fs::write(old.join("var/log/x"), "").unwrap();
        fs::write(old.join("etc/passwd"), "").unwrap();
        fs::create_dir_all(new.join("var/log")).unwrap();
        fs::create_dir_all(new.join("etc")).unwrap();
        fs::write(new.join("var/log/y"), "").unwrap();
        fs::write(new.join("etc/passwd"), "").unwrap();
        sys::xattr::lset(
            &CString::new(new.join("var/log").as_os_str().as_bytes()).unwrap(),
            c"trusted.overlay.opaque",
            b"y",
        )
        .unwrap();
        for name in ["etc/a", "never"] {
            nix::sys::stat::mknod(&new.join(name), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
        }
        let changes = compare(Some(&folder(&old)), &folder(&new), true).unwrap().changes;
        let expected = ["C/etc", "D/etc/a", "C/etc/passwd", "C/var", "C/var/log", "D/var/log/x", "A/var/log/y"];
        assert_eq!(shown(&changes), expected);
    }
}
