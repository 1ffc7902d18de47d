//! The cgroup of a container on cgroup2, on v1, and on both at once (hybrid: v1 controllers plus a cgroup2 tree in `unified`).
//!
//! ```text
//! place -> create_unified (before the clone, which starts in it) -> finish (beside the child) -> join fds
//! ```
//! The child joins v1 hierarchies itself by writing "0" to `tasks`: a thread that moves itself needs no global lock, while
//! writing a pid to `cgroup.procs` takes one that waits for an RCU grace period (several ms).

#![expect(clippy::disallowed_methods, reason = "cgroup trees are the host's")]

mod check;
mod create;
pub(crate) mod devices;
pub(crate) mod enter;
mod error;
mod files;
mod legacy;
pub(crate) mod oom;
pub(crate) mod place;
pub(crate) mod stats;
mod stats_legacy;
mod stats_unified;
pub(crate) mod systemd;
mod tree;
mod unified;
mod update;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sys::Errno;

pub(crate) use create::mapped;
pub(crate) use error::CgroupError;
use files::{read, write};

/// Where all cgroup filesystems are.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// One mounted hierarchy.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    /// Name of its directory: `memory`, `cpu,cpuacct`, `systemd`; for cgroup2 "" or `unified`.
    pub(crate) name: String,
    pub(crate) dir: OwnedFd,
}

impl Hierarchy {
    fn controls(&self, controller: &str) -> bool {
        self.name.split(',').any(|name| name == controller)
    }

    /// The cgroup2 one.
    pub(crate) fn is_unified(&self) -> bool {
        sys::path::filesystem_magic(&self.dir) == Ok(sys::path::CGROUP2_MAGIC)
    }

    /// One of v1 that has a name instead of controllers.
    pub(crate) fn is_named(&self) -> bool {
        const CONTROLLERS: &[&str] = &[
            "cpu",
            "cpuacct",
            "cpuset",
            "memory",
            "devices",
            "freezer",
            "blkio",
            "pids",
            "net_cls",
            "net_prio",
            "perf_event",
            "hugetlb",
            "rdma",
            "misc",
            "debug",
        ];
        !self.is_unified() && !self.name.split(',').any(|name| CONTROLLERS.contains(&name))
    }

    /// Its mount point.
    pub(crate) fn mount_point(&self) -> PathBuf {
        PathBuf::from(ROOT).join(&self.name)
    }
}

/// A container's cgroup: the same path in every hierarchy.
#[derive(Debug)]
pub(crate) struct Cgroup {
    /// Relative to the hierarchies' roots.
    path: String,
    unified: Option<Hierarchy>,
    legacy: Vec<Hierarchy>,
    /// The unit that it is, when systemd makes it.
    unit: Option<systemd::Unit>,
    wishes: systemd::Wishes,
    /// Hierarchies in which it was not there before: a bit each, in the order of [`Cgroup::hierarchies`].
    made: Cell<u64>,
    /// Whether it was there before in one of those where it is to be made, with nobody in it.
    taken_over: Cell<bool>,
    /// Whether it was found to be the container's own.
    claimed: Cell<bool>,
}

impl Cgroup {
    /// No cgroup of its own: what a container without privileges and without limits may have to do with.
    pub(crate) fn none() -> Self {
        Self::new(String::new(), None, Vec::new())
    }

    fn new(path: String, unified: Option<Hierarchy>, legacy: Vec<Hierarchy>) -> Self {
        let (made, taken_over, claimed) = (Cell::new(0), Cell::new(false), Cell::new(false));
        Self { path, unified, legacy, unit: None, wishes: systemd::Wishes::default(), made, taken_over, claimed }
    }

    /// Fails for a container without.
    pub(crate) fn own(self) -> Result<Self, CgroupError> {
        if self.path.is_empty() { Err(CgroupError::NoneOfItsOwn) } else { Ok(self) }
    }

    /// The same as a unit of systemd's.
    pub(crate) fn of_unit(mut self, unit: Option<systemd::Unit>) -> Self {
        self.unit = unit;
        self
    }

    /// The unit, if systemd makes it.
    pub(crate) fn unit(&self) -> Option<&systemd::Unit> {
        self.unit.as_ref()
    }

    /// Finds the hierarchies and names the cgroup; nothing is made yet.
    pub(crate) fn locate(path: &str) -> Result<Self, CgroupError> {
        if path.is_empty() {
            return Ok(Self::none());
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(ROOT, flags, Mode::empty()).map_err(CgroupError::NotMounted)?;
        let path = path.trim_matches('/').to_owned();
        let magic = |dir: &OwnedFd| sys::path::filesystem_magic(dir).unwrap_or_default();
        if magic(&root) == sys::path::CGROUP2_MAGIC {
            return Ok(Self::new(path, Some(Hierarchy { name: String::new(), dir: root }), Vec::new()));
        }
        const CGROUP1_MAGIC: i64 = 0x27_e0eb;
        let (mut unified, mut legacy) = (None, Vec::new());
        let entries = std::fs::read_dir(ROOT).map_err(|error| CgroupError::NotMounted(errno(&error)))?;
        for entry in entries.flatten() {
            // Links such as cpu -> cpu,cpuacct name a hierarchy a second time.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let Ok(dir) = nix::fcntl::openat(&root, name.as_os_str(), flags, Mode::empty()) else { continue };
            let found = magic(&dir);
            let hierarchy = Hierarchy { name: name.to_string_lossy().into_owned(), dir };
            if found == sys::path::CGROUP2_MAGIC {
                unified = Some(hierarchy);
            } else if found == CGROUP1_MAGIC {
                legacy.push(hierarchy);
            }
        }
        if unified.is_none() && legacy.is_empty() {
            return Err(CgroupError::NotMounted(Errno::ENOENT));
        }
        Ok(Self::new(path, unified, legacy))
    }

    /// The path, relative to the roots.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// True without any v1 hierarchy.
    pub(crate) fn is_unified(&self) -> bool {
        self.legacy.is_empty()
    }

    /// All hierarchies it is in.
    pub(crate) fn hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        self.legacy.iter().chain(&self.unified)
    }

    fn shown(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount_point().join(&self.path)
    }

    fn open_dir(&self, hierarchy: &Hierarchy) -> Result<OwnedFd, CgroupError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::openat(&hierarchy.dir, self.path.as_str(), flags, Mode::empty())
            .map_err(|cause| CgroupError::Read { file: self.shown(hierarchy).display().to_string(), cause })
    }

    /// The cgroup2 directory to start a process in, if there is one.
    pub(crate) fn open_unified(&self) -> Result<Option<OwnedFd>, CgroupError> {
        match &self.unified {
            None => Ok(None),
            Some(hierarchy) => match self.open_dir(hierarchy) {
                // A hybrid host whose containers were made by an older version.
                Err(CgroupError::Read { cause: Errno::ENOENT, .. }) if !self.is_unified() => Ok(None),
                other => other.map(Some),
            },
        }
    }

    /// Moves a process of somebody else's into the cgroup, with all its threads.
    pub(crate) fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        self.hierarchies().try_for_each(|hierarchy| write(hierarchy, &self.path, "cgroup.procs", &pid.to_string()))
    }

    /// The directory by which all of it can be frozen.
    pub(crate) fn freezer_path(&self) -> Option<PathBuf> {
        self.freezer().map(|(hierarchy, _)| self.shown(hierarchy))
    }

    /// Kills every process in the cgroup, frozen or not.
    pub(crate) fn kill_all(&self) -> Result<(), CgroupError> {
        if let Some(hierarchy) = &self.unified
            && write(hierarchy, &self.path, "cgroup.kill", "1").is_ok()
            && self.processes()?.is_empty()
        {
            return Ok(());
        }
        // Frozen, nothing can fork away from under the list.
        let frozen = self.freeze(true).is_ok();
        let killed = self.signal_all(nix::sys::signal::Signal::SIGKILL as i32);
        // Also where freezing has failed half-way: who is frozen does not die.
        let thawed = self.thaw();
        killed.and(if frozen { thawed } else { Ok(()) })
    }

    /// Thaws what was frozen to be killed. A cgroup that somebody else has removed by now has nobody left in it.
    pub(crate) fn thaw(&self) -> Result<(), CgroupError> {
        match self.freeze(false) {
            Err(CgroupError::Write { cause: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(()),
            done => done,
        }
    }

    /// Sends a signal to every process in the cgroup.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), CgroupError> {
        for pid in self.processes()? {
            match sys::process::kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(cause) => {
                    return Err(CgroupError::Write {
                        file: format!("signal of process {pid}"),
                        value: signal.to_string(),
                        cause,
                    });
                }
            }
        }
        Ok(())
    }

    fn freezer(&self) -> Option<(&Hierarchy, bool)> {
        let legacy = self.legacy.iter().find(|hierarchy| hierarchy.controls("freezer")).map(|found| (found, true));
        legacy.or(self.unified.as_ref().map(|found| (found, false)))
    }

    /// Freezes or thaws, and waits until it is done.
    pub(crate) fn freeze(&self, on: bool) -> Result<(), CgroupError> {
        let missing = CgroupError::NoController { field: "pause", controller: "freezer" };
        let (hierarchy, is_legacy) = self.freezer().ok_or(missing)?;
        let (file, word) = match (is_legacy, on) {
            (true, true) => ("freezer.state", "FROZEN"),
            (true, false) => ("freezer.state", "THAWED"),
            (false, true) => ("cgroup.freeze", "1"),
            (false, false) => ("cgroup.freeze", "0"),
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut pause = Duration::from_micros(100);
        write(hierarchy, &self.path, file, word)?;
        while on && !self.freezer_says(&["FROZEN"])? {
            if Instant::now() > deadline {
                write(hierarchy, &self.path, file, if is_legacy { "THAWED" } else { "0" })?;
                return Err(CgroupError::NotFrozen(self.shown(hierarchy)));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
            if is_legacy {
                // v1 may miss a process that forked meanwhile; asking again makes it look again.
                write(hierarchy, &self.path, file, word)?;
            }
        }
        Ok(())
    }

    /// Whether it is frozen, or will be: a v1 cgroup may be on its way for as long as one of its processes cannot be stopped, and
    /// has to be thawed then as well.
    pub(crate) fn is_frozen(&self) -> Result<bool, CgroupError> {
        self.freezer_says(&["FROZEN", "FREEZING"])
    }

    fn freezer_says(&self, words: &[&str]) -> Result<bool, CgroupError> {
        match self.freezer() {
            None => Ok(false),
            Some((hierarchy, true)) => match read(hierarchy, &self.path, "freezer.state") {
                Err(CgroupError::Read { cause: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(false),
                other => Ok(words.contains(&other?.trim())),
            },
            Some((hierarchy, false)) => match read(hierarchy, &self.path, "cgroup.events") {
                Err(CgroupError::Read { cause: Errno::ENOENT, .. }) => Ok(false),
                other => Ok(other?.lines().any(|line| line == "frozen 1")),
            },
        }
    }
}

/// Moves the calling thread into the cgroups whose `tasks` files these are.
pub(crate) fn join(task_files: &[OwnedFd]) -> Result<(), Errno> {
    for file in task_files {
        nix::unistd::write(file, b"0")?;
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
