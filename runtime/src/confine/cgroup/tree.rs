//! A cgroup with those that its container made below it: who is in them, and removing them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use sys::Errno;

use super::files::read;
use super::place::{self, parent};
use super::{Cgroup, CgroupError, Hierarchy};

impl Cgroup {
    /// All processes in the cgroup and below it.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        // Any hierarchy has all of them; `pids` is the one that containers have least to do with.
        let (pids, others): (Vec<_>, Vec<_>) = self.legacy.iter().partition(|hierarchy| hierarchy.controls("pids"));
        for hierarchy in pids.into_iter().chain(others).chain(&self.unified) {
            let found = self.processes_in(hierarchy)?;
            if !found.is_empty() {
                return Ok(found);
            }
            // Empty, or not there: in the latter case another may know.
            if fstatat(&hierarchy.dir, self.path.as_str(), AtFlags::empty()).is_ok() {
                break;
            }
        }
        Ok(Vec::new())
    }

    pub(super) fn processes_in(&self, hierarchy: &Hierarchy) -> Result<Vec<Pid>, CgroupError> {
        let mut out = Vec::new();
        collect(hierarchy, &self.path, &mut out, MAX_DEPTH)?;
        Ok(out)
    }

    /// Removes the cgroup and those below it. Processes that are still dying get two seconds.
    pub(crate) fn destroy(&self) -> Result<(), CgroupError> {
        if self.path.is_empty() {
            return Ok(()); // the root is not ours
        }
        let stopped = self.unit.as_ref().map_or(Ok(()), |unit| unit.stop());
        let mut first = Ok(());
        for hierarchy in self.hierarchies() {
            let removed = remove_tree(&hierarchy.dir, &self.path);
            if let (Ok(()), Err(cause)) = (&first, removed) {
                first = Err(CgroupError::Remove { path: self.shown(hierarchy), cause });
            }
            remove_empty_parents(&hierarchy.dir, &self.path);
        }
        match (first, stopped) {
            // With its folder gone the unit is gone as well, whoever could not be reached.
            (Ok(()), _) => Ok(()),
            (Err(_), Err(error)) => Err(error.into()),
            (Err(error), Ok(())) => Err(error),
        }
    }
}

impl Cgroup {
    /// Removes the cgroup of a container that never had a process in it that could have lived on: nobody is killed, and no unit
    /// stopped, as they would be somebody else's. Returns where somebody is all the same, after two seconds for those who die.
    pub(crate) fn discard(&self) -> Result<Option<PathBuf>, CgroupError> {
        if self.path.is_empty() {
            return Ok(None);
        }
        let patience = Patience::new();
        let mut busy = None;
        for hierarchy in self.hierarchies() {
            match patience.remove(|| unlinkat(&hierarchy.dir, self.path.as_str(), UnlinkatFlags::RemoveDir)) {
                Ok(()) => remove_empty_parents(&hierarchy.dir, &self.path),
                Err(Errno::EBUSY | Errno::ENOTEMPTY) => drop(busy.get_or_insert_with(|| self.shown(hierarchy))),
                Err(cause) => return Err(CgroupError::Remove { path: self.shown(hierarchy), cause }),
            }
        }
        Ok(busy)
    }

    /// Removes what was made here of a cgroup that turned out to be somebody else's in another hierarchy. What cannot be removed
    /// is told by nobody: the error that led here is the one to tell.
    pub(crate) fn take_back(&self) {
        let made = |index: usize| self.made.get() & 1_u64.checked_shl(index as u32).unwrap_or(0) != 0;
        for (_, hierarchy) in self.hierarchies().enumerate().filter(|(index, _)| made(*index)) {
            let _ = remove_tree(&hierarchy.dir, &self.path);
        }
    }
}

/// As deep as a container may nest cgroups and still be found; the kernel's own limit is its to set (`cgroup.max.depth`).
const MAX_DEPTH: u32 = 64;

fn collect(hierarchy: &Hierarchy, path: &str, out: &mut Vec<Pid>, depth: u32) -> Result<(), CgroupError> {
    match read(hierarchy, path, "cgroup.procs") {
        // Gone meanwhile; or threaded, and then its processes are told by the cgroup above.
        Err(CgroupError::Read { cause: Errno::ENOENT | Errno::ENODEV, .. }) => return Ok(()),
        Err(CgroupError::Read { cause: Errno::EOPNOTSUPP, .. }) => {}
        text => {
            let pids = text?;
            out.extend(pids.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw));
        }
    }
    // A directory is linked from itself, from above, and once from each below.
    let has_more = fstatat(&hierarchy.dir, path, AtFlags::empty()).is_ok_and(|found| found.st_nlink > 2);
    if has_more && depth > 0 {
        let names = children(&hierarchy.dir, path).map_err(|cause| CgroupError::Read {
            file: hierarchy.mount_point().join(path).display().to_string(),
            cause,
        })?;
        for name in names {
            collect(hierarchy, &format!("{path}/{name}"), out, depth - 1)?;
        }
    }
    Ok(())
}

/// Folders of relative paths go with their last container; those in use stay.
fn remove_empty_parents(dir: &OwnedFd, path: &str) {
    let mut path = parent(path);
    while path.split('/').next() == Some(place::PARENT) {
        if unlinkat(dir, path, UnlinkatFlags::RemoveDir).is_err() {
            return;
        }
        path = parent(path);
    }
}

fn remove_tree(dir: &OwnedFd, path: &str) -> Result<(), Errno> {
    Patience::new().remove(|| match unlinkat(dir, path, UnlinkatFlags::RemoveDir) {
        Err(busy @ (Errno::EBUSY | Errno::ENOTEMPTY)) => remove_children(dir, path).and(Err(busy)),
        done => done,
    })
}

/// How long it may take until the last one in a cgroup is gone.
struct Patience {
    deadline: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { deadline: Instant::now() + Duration::from_secs(2) }
    }

    /// Tries until it is gone, or its time is.
    fn remove(&self, attempt: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
        let mut pause = Duration::from_micros(200);
        loop {
            match attempt() {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EBUSY | Errno::ENOTEMPTY) if Instant::now() < self.deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn children(dir: &OwnedFd, path: &str) -> Result<Vec<String>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut here = match nix::dir::Dir::openat(dir, path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let folders = here.iter().flatten().filter(|entry| entry.file_type() == Some(nix::dir::Type::Directory));
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name != "." && name != "..").collect())
}

fn remove_children(dir: &OwnedFd, path: &str) -> Result<(), Errno> {
    for name in children(dir, path)? {
        let child = format!("{path}/{name}");
        remove_children(dir, &child)?;
        match unlinkat(dir, child.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
