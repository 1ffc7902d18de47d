//! Making a container's cgroup.
//!
//! ```text
//! cgroupfs: create_unified -> clone into it -> finish (v1 directories)              -> the child joins v1
//! systemd:                    clone         -> finish (the scope, then its files)   -> the child joins what systemd leaves out
//! ```

#![expect(clippy::disallowed_methods, reason = "cgroup trees are the host's")]

use std::os::fd::OwnedFd;

use nix::fcntl::AtFlags;
use nix::unistd::{Pid, Uid, fchownat};
use sys::Errno;

use super::files::{self, read};
use super::systemd::Unit;
use super::{Cgroup, CgroupError, Hierarchy, devices, legacy, place, unified};
use crate::spec::Resources;

type Warn<'a> = dyn FnMut(String) + 'a;

impl Cgroup {
    /// Makes the cgroup2 directory, with limits where cgroup2 has the controllers, and opens it for the clone.
    pub(crate) fn create_unified(
        &self,
        resources: &Resources,
        warn: &mut Warn<'_>,
    ) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(hierarchy) = self.unified.as_ref().filter(|_| self.unit.is_none()) else { return Ok(None) };
        let fresh = self.make(hierarchy, self.legacy.len())?;
        if !fresh {
            self.check_unused(hierarchy)?;
        }
        if !self.is_unified() {
            return self.open_dir(hierarchy).map(Some);
        }
        self.limit_unified(hierarchy, resources, !fresh, warn).map(Some)
    }

    fn make(&self, hierarchy: &Hierarchy, index: usize) -> Result<bool, CgroupError> {
        let fresh = files::make(hierarchy, &self.path)?;
        if fresh {
            self.made.set(self.made.get() | 1_u64.checked_shl(index as u32).unwrap_or(0));
        }
        Ok(fresh)
    }

    fn limit_unified(
        &self,
        hierarchy: &Hierarchy,
        resources: &Resources,
        used: bool,
        warn: &mut Warn<'_>,
    ) -> Result<OwnedFd, CgroupError> {
        unified::enable_controllers(hierarchy, &self.path)?;
        unified::limit(hierarchy, &self.path, resources, warn)?;
        let dir = self.open_dir(hierarchy)?;
        match devices::attach_filter(&dir, &resources.devices, used) {
            // Without privileges no filter can be loaded, and no device node be made that it would be about.
            Err(Errno::EPERM | Errno::EACCES) if is_unprivileged() => {}
            Err(cause) => return Err(CgroupError::DeviceFilter { path: self.shown(hierarchy), cause }),
            Ok(()) => {}
        }
        Ok(dir)
    }

    /// Makes what is missing once the process is there: the scope, or the v1 directories, with their limits.
    pub(crate) fn finish(&self, pid: Pid, resources: &Resources, warn: &mut Warn<'_>) -> Result<(), CgroupError> {
        let Some(unit) = &self.unit else { return self.create_legacy(resources, false, warn) };
        unit.start(pid, &self.wishes, resources, &devices::allowed(&resources.devices), self.is_unified())?;
        self.check_moved(unit, pid)?;
        if let Some(hierarchy) = &self.unified {
            if self.is_unified() {
                self.limit_unified(hierarchy, resources, false, warn)?;
            } else {
                files::make(hierarchy, &self.path)?;
            }
        }
        self.create_legacy(resources, true, warn)
    }

    fn create_legacy(&self, resources: &Resources, in_use: bool, warn: &mut Warn<'_>) -> Result<(), CgroupError> {
        for (index, hierarchy) in self.legacy.iter().enumerate() {
            let fresh = self.make(hierarchy, index)?;
            if !fresh && !in_use {
                self.check_unused(hierarchy)?;
            }
            if hierarchy.controls("cpuset") {
                legacy::inherit_cpuset(hierarchy, &self.path)?;
            }
            if hierarchy.controls("devices") {
                legacy::limit_devices(hierarchy, &self.path, &resources.devices)?;
            }
        }
        self.limit_legacy(resources, warn)
    }

    pub(super) fn limit_legacy(&self, resources: &Resources, warn: &mut Warn<'_>) -> Result<(), CgroupError> {
        if self.legacy.is_empty() {
            return Ok(());
        }
        legacy::limit(&self.legacy, self.unified.as_ref(), &self.path, resources, warn)
    }

    /// A cgroup that was there before may be taken over, but not from somebody, and not while nothing in it moves.
    fn check_unused(&self, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
        if !self.processes_in(hierarchy)?.is_empty() {
            return Err(CgroupError::Occupied(self.shown(hierarchy)));
        }
        self.taken_over.set(true);
        let frozen = match () {
            () if hierarchy.controls("freezer") => read(hierarchy, &self.path, "freezer.state")?.trim() != "THAWED",
            () if self.is_unified() => {
                read(hierarchy, &self.path, "cgroup.freeze").is_ok_and(|text| text.trim() == "1")
            }
            () => false,
        };
        if frozen { Err(CgroupError::Frozen(self.shown(hierarchy))) } else { Ok(()) }
    }

    /// Whether it was there before, empty.
    pub(crate) fn is_taken_over(&self) -> bool {
        self.taken_over.get()
    }

    /// Whoever is in it belongs to the container.
    pub(crate) fn set_claimed(&self) {
        self.claimed.set(true);
    }

    /// Whether that was said.
    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed.get()
    }

    /// Whether the process is where state.json says.
    fn check_moved(&self, unit: &Unit, pid: Pid) -> Result<(), CgroupError> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let places = [place::path_of(&text, None), place::path_of(&text, Some("systemd"))];
        if places.iter().flatten().any(|found| found.trim_matches('/') == self.path) {
            return Ok(());
        }
        let found = places.into_iter().flatten().next().unwrap_or_default();
        Err(CgroupError::NotMoved { unit: unit.name().to_owned(), found, expected: format!("/{}", self.path) })
    }

    /// Descriptors of the files by which a process joins what it is not in yet, for [`super::join`]. Opened here, because the
    /// kernel checks who opened them.
    pub(crate) fn task_files(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let mut out = Vec::with_capacity(self.legacy.len());
        for hierarchy in &self.legacy {
            match files::open_for_writing(hierarchy, &self.path, "tasks") {
                // Where an unprivileged container could have none.
                Err(CgroupError::Write { cause: Errno::ENOENT, .. }) if is_unprivileged() => {}
                opened => out.push(opened?),
            }
        }
        // On a hybrid host systemd may manage v1 alone.
        if let Some(hierarchy) = self.unified.as_ref().filter(|_| self.unit.is_some() && !self.is_unified()) {
            out.push(files::open_for_writing(hierarchy, &self.path, "cgroup.procs")?);
        }
        Ok(out)
    }

    /// Gives the cgroup to the user who is to manage it from inside: its directory and the files that the kernel says may be given
    /// away, nothing else (runtime-spec, "Cgroup ownership"). For cgroup2 alone: v1 is not safe to delegate.
    pub(crate) fn delegate(&self, owner: u32) -> Result<(), CgroupError> {
        let Some(hierarchy) = self.unified.as_ref().filter(|_| self.is_unified()) else { return Ok(()) };
        let dir = self.open_dir(hierarchy)?;
        let list = std::fs::read_to_string("/sys/kernel/cgroup/delegate");
        let list = list.unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned());
        for file in std::iter::once(".").chain(list.lines().filter(|name| !name.is_empty() && !name.contains('/'))) {
            match fchownat(&dir, file, Some(Uid::from_raw(owner)), None, AtFlags::AT_SYMLINK_NOFOLLOW) {
                // The list is of this kernel; which files there are depends on the controllers.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(cause) => {
                    let file = self.shown(hierarchy).join(file).display().to_string();
                    return Err(CgroupError::Delegate { file, owner, cause });
                }
            }
        }
        Ok(())
    }
}

/// Whether this is somebody else than the machine's root. Asked only after something was not permitted.
pub(super) fn is_unprivileged() -> bool {
    let whole = || {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"])
    };
    !nix::unistd::geteuid().is_root() || !whole()
}

/// The id outside of a user namespace for one inside, by an id map as /proc shows it.
pub(crate) fn mapped(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        let (inside, outside, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = id.checked_sub(inside).filter(|offset| *offset < size)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::mapped;

    #[test]
    fn ids_are_mapped() {
        let map = "         0     100000       1000\n      1000       5000          1\n";
        for (inside, outside) in [(0, Some(100_000)), (999, Some(100_999)), (1000, Some(5000)), (1001, None)] {
            assert_eq!(mapped(map, inside), outside);
        }
        assert_eq!(mapped("", 0), None);
    }
}
