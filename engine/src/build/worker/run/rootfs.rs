//! What is done to the root file system of a command before and after it: its folder is made, and what was made only to mount
//! something on it goes again. By descriptor, and never out of the root.

use super::plan::Plan;
use ::spec::users::{self, Database, Memberships, ReadError, User, UserError};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::{
        stat::{Mode, SFlag, fstat, fstatat, futimens, mkdirat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat},
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};
use sys::path::{Within, open_within};

/// Why a root file system is no place for the command.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Its passwd and group files can't be read.
    #[error(transparent)]
    Users(#[from] ReadError),
    /// There is no such user.
    #[error(transparent)]
    User(#[from] UserError),
    /// The working directory can't be made.
    #[error("make working directory {at}")]
    Cwd {
        /// Where.
        at: String,
        /// Why not.
        #[source]
        cause: Errno,
    },
    /// Something was in the way of a look.
    #[error("look at {at}")]
    Look {
        /// At what.
        at: String,
        /// Why not.
        #[source]
        cause: Errno,
    },
    /// What was made to mount on it stays.
    #[error("remove mount point {at}")]
    Stub {
        /// Which.
        at: String,
        /// Why.
        #[source]
        cause: Errno,
    },
}

/// A root that a command can be run in.
#[derive(Debug)]
pub struct Prepared {
    /// Who the command runs as.
    pub user: User,
    /// What has to go afterwards.
    pub stubs: Vec<Stub>,
}

/// Something that will be made to mount on it, and wasn't there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stub {
    /// The nearest folder above that was there.
    above: String,
    /// Names from there on; those from the end that go again.
    names: Vec<String>,
    goes: usize,
    /// When that folder was changed last.
    changed: (i64, i64),
}

/// Makes a root ready. `points` are what will be mounted on. Blocks.
pub fn prepare(root: &OwnedFd, plan: &Plan, points: &[String]) -> Result<Prepared, RootError> {
    let user = users::find(&Database::read(root)?, &plan.user, Memberships::WithoutGroup, &[])?;
    // Before the folder is made: what is mounted on may be above it.
    let stubs = missing(root.as_fd(), points, plan.deep_cleaning)?;
    make_cwd(root.as_fd(), &plan.cwd, &user).map_err(|cause| RootError::Cwd { at: plan.cwd.clone(), cause })?;
    Ok(Prepared { user, stubs })
}

fn relative(path: &str) -> &str {
    match path.trim_matches('/') {
        "" => ".",
        path => path,
    }
}

fn folder(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
    open_within(root, relative(path), flags, 0, Within::Root)
}

fn make_cwd(root: BorrowedFd<'_>, cwd: &str, user: &User) -> Result<(), Errno> {
    match folder(root, cwd) {
        Err(Errno::ENOENT) => {}
        found => return found.map(drop),
    }
    let mut at = String::new();
    let mut above = folder(root, "/")?;
    for name in cwd.split('/').filter(|name| !name.is_empty()) {
        at.push('/');
        at.push_str(name);
        above = match folder(root, &at) {
            Err(Errno::ENOENT) => {
                // Of a link to nowhere this says that something is there: it is not for us to say where it was to lead.
                mkdirat(&above, name, Mode::from_bits_truncate(0o755))?;
                let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
                fchownat(&above, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                folder(root, &at)?
            }
            found => found?,
        };
    }
    Ok(())
}

fn missing(root: BorrowedFd<'_>, points: &[String], deep: bool) -> Result<Vec<Stub>, RootError> {
    let mut stubs: Vec<Stub> = Vec::new();
    for point in points {
        let names: Vec<&str> = point.split('/').filter(|name| !name.is_empty()).collect();
        let failed = |cause| RootError::Look { at: point.clone(), cause };
        if names.is_empty() || is_there(root, point).map_err(failed)? {
            continue;
        }
        // The nearest folder that is there: the root in the end.
        let mut there = names.len() - 1;
        let above = loop {
            match folder(root, &names[..there].join("/")) {
                Ok(folder) => break folder,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if there > 0 => there -= 1,
                Err(cause) => return Err(failed(cause)),
            }
        };
        let stat = fstat(&above).map_err(failed)?;
        let names_below: Vec<String> = names[there..].iter().map(|&name| name.to_owned()).collect();
        stubs.push(Stub {
            above: names[..there].join("/"),
            goes: if deep { names_below.len() } else { 1 },
            names: names_below,
            changed: (stat.st_mtime, stat.st_mtime_nsec),
        });
    }
    Ok(stubs)
}

fn is_there(root: BorrowedFd<'_>, path: &str) -> Result<bool, Errno> {
    match open_within(root, relative(path), OFlag::O_PATH, 0, Within::Root) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes mount points that are empty, deepest first; `begun` is when the command was about to start. No link is followed at the
/// end of a path, and none leads out of the root: whatever the command has put in their place stays (CVE-2024-23652). Blocks.
pub fn clean(root: &OwnedFd, stubs: &[Stub], begun: (i64, i64)) -> Result<(), RootError> {
    for stub in stubs.iter().rev() {
        let depth = stub.names.len();
        for last in (depth.saturating_sub(stub.goes)..depth).rev() {
            let path = [stub.above.as_str(), &stub.names[..last].join("/")].join("/");
            // No folder there, or something else in its place: the command has removed what was made.
            let Ok(above) = folder(root.as_fd(), &path) else { continue };
            let name = stub.names[last].as_str();
            let failed = |cause| RootError::Stub { at: format!("{path}/{name}"), cause };
            let before = fstat(&above).map_err(failed)?;
            let Ok(stat) = fstatat(&above, Path::new(name), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let how = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR => UnlinkatFlags::RemoveDir,
                SFlag::S_IFREG if stat.st_size == 0 => UnlinkatFlags::NoRemoveDir,
                _ => break,
            };
            match unlinkat(&above, Path::new(name), how) {
                Ok(()) => {}
                // The command has put something into it.
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => break,
                Err(Errno::ENOENT) => continue,
                Err(cause) => return Err(failed(cause)),
            }
            // As if nobody had been there: unless the command has changed it, too.
            let changed = (before.st_mtime, before.st_mtime_nsec);
            let mtime = if last == 0 && changed < begun { stub.changed } else { changed };
            let times = [TimeSpec::new(before.st_atime, before.st_atime_nsec), TimeSpec::new(mtime.0, mtime.1)];
            futimens(&above, &times[0], &times[1]).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::pb;
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
    };

    fn open(path: &Path) -> OwnedFd {
        nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
    }

    fn plan(change: impl FnOnce(&mut pb::Meta)) -> Plan {
        let mut meta = pb::Meta { args: vec!["true".into()], ..pb::Meta::default() };
        change(&mut meta);
        let mounts = vec![pb::Mount { dest: "/".into(), ..pb::Mount::default() }];
        Plan::new(&pb::ExecOp { meta: Some(meta), mounts, ..pb::ExecOp::default() }, 1, &[]).unwrap()
    }

    fn points(list: &[&str]) -> Vec<String> {
        list.iter().map(|&point| point.to_owned()).collect()
    }

    const LATER: (i64, i64) = (i64::MAX, 0);

    #[test]
    fn stubs_go_and_leave_no_trace() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/hosts"), "mine").unwrap();
        let fd = open(root.path());
        futimens(folder(fd.as_fd(), "etc").unwrap(), &TimeSpec::new(5, 6), &TimeSpec::new(7, 8)).unwrap();
        let wanted = points(&["/etc/hosts", "/etc/resolv.conf", "/a/b/c", "/run/x"]);
        let stubs = missing(fd.as_fd(), &wanted, true).unwrap();
        assert_eq!(stubs.len(), 3, "{stubs:?}");
        // As a runtime does.
        fs::write(root.path().join("etc/resolv.conf"), "").unwrap();
        fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        fs::create_dir_all(root.path().join("run/x")).unwrap();
        // As the command does.
        fs::write(root.path().join("run/kept"), "").unwrap();
        clean(&fd, &stubs, LATER).unwrap();
        assert!(!root.path().join("a").exists() && !root.path().join("run/x").exists());
        assert!(root.path().join("run/kept").exists() && root.path().join("etc/hosts").exists());
        let etc = fs::metadata(root.path().join("etc")).unwrap();
        assert_eq!((etc.mtime(), etc.mtime_nsec()), (7, 8));
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 1);
    }

    #[test]
    fn without_depth_the_folders_above_stay() {
        let root = tempfile::tempdir().unwrap();
        let fd = open(root.path());
        let stubs = missing(fd.as_fd(), &points(&["/a/b"]), false).unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        clean(&fd, &stubs, LATER).unwrap();
        assert!(root.path().join("a").exists() && !root.path().join("a/b").exists());
    }

    #[test]
    fn what_the_command_wrote_into_a_stub_stays() {
        let root = tempfile::tempdir().unwrap();
        let fd = open(root.path());
        let stubs = missing(fd.as_fd(), &points(&["/file", "/folder"]), true).unwrap();
        fs::write(root.path().join("file"), "words").unwrap();
        fs::create_dir_all(root.path().join("folder/x")).unwrap();
        clean(&fd, &stubs, LATER).unwrap();
        assert!(root.path().join("file").exists() && root.path().join("folder/x").exists());
    }

    #[test]
    fn links_in_the_place_of_stubs_lead_nowhere() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("root");
        let canary = host.path().join("canary");
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(canary.join("c")).unwrap();
        fs::write(host.path().join("empty"), "").unwrap();
        let fd = open(&root);
        let stubs = missing(fd.as_fd(), &points(&["/a/b/c", "/file", "/up/c"]), true).unwrap();
        fs::create_dir_all(root.join("a")).unwrap();
        symlink(&canary, root.join("a/b")).unwrap();
        symlink("../../empty", root.join("file")).unwrap();
        symlink("../canary", root.join("up")).unwrap();
        clean(&fd, &stubs, LATER).unwrap();
        assert!(canary.join("c").exists() && host.path().join("empty").exists());
        assert!(root.join("file").is_symlink() && root.join("up").is_symlink());
    }

    #[test]
    fn the_working_directory_is_the_users() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), "app:x:7:8::/home:/bin/sh\n").unwrap();
        symlink("/etc", root.path().join("link")).unwrap();
        symlink("/nowhere", root.path().join("lost")).unwrap();
        let fd = open(root.path());
        let with = |cwd: &str| prepare(&fd, &plan(|meta| (meta.cwd, meta.user) = (cwd.into(), "app".into())), &[]);
        let user = with("/link/deep/er").unwrap().user;
        assert_eq!((user.uid, user.gid), (7, 8));
        let made = fs::metadata(root.path().join("etc/deep/er")).unwrap();
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o755, 7, 8));
        assert_eq!(fs::metadata(root.path().join("etc")).unwrap().uid(), nix::unistd::geteuid().as_raw());
        assert!(matches!(with("/lost/x"), Err(RootError::Cwd { .. })));
        assert!(matches!(with("/etc/passwd"), Err(RootError::Cwd { cause: Errno::ENOTDIR, .. })));
        assert!(!Path::new("/nowhere").exists());
    }
}
