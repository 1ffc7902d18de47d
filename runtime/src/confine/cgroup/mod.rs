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
use files::{read, write};

/// Where all cgroup filesystems are.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// Limits without anything to hold them.
    #[error("linux.resources has limits, which --cgroup-manager disabled leaves nobody to keep")]
    Disabled,
    /// No cgroup filesystem.
    #[error("no cgroup filesystem on {ROOT}")]
    NotMounted(#[source] Errno),
    /// A directory could not be made.
    #[error("make cgroup {path}")]
    Make {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// Somebody else's processes are in it.
    #[error("cgroup {0} already has processes")]
    Occupied(PathBuf),
    /// A file could not be written.
    #[error("write {value:?} to {file}")]
    Write {
        file: String,
        value: String,
        #[source]
        cause: Errno,
    },
    /// A file could not be read.
    #[error("read {file}")]
    Read {
        file: String,
        #[source]
        cause: Errno,
    },
    /// A limit was asked for that no mounted controller can keep.
    #[error("{field} needs the cgroup controller {controller:?}, which is not there")]
    NoController { field: &'static str, controller: &'static str },
    /// The same on cgroup2, where it may be there and not here.
    #[error(
        "{file} needs the cgroup controller {controller:?}, which {path} does not have; it has to be in cgroup.subtree_control of \
         all cgroups above (systemd: Delegate=)"
    )]
    NotHandedDown { file: String, controller: String, path: PathBuf },
    /// `exec --cgroup` with a controller that is no v1 hierarchy.
    #[error("--cgroup: there is no v1 hierarchy with controller {0:?}; on cgroup2 a path alone is enough")]
    NoHierarchy(String),
    /// `exec --cgroup` with a cgroup that is not there.
    #[error("--cgroup: {0} does not exist; it has to be made first")]
    NoSubCgroup(PathBuf),
    /// The device filter was refused.
    #[error("load the device filter of cgroup {path}")]
    DeviceFilter {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// It would not go.
    #[error("remove cgroup {path}")]
    Remove {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// A limit could not be changed; all others are as before.
    #[error("cannot set {field}")]
    Update {
        field: String,
        #[source]
        cause: Box<CgroupError>,
    },
    /// A change that cannot be.
    #[error("{field}: {why}")]
    Refused { field: &'static str, why: String },
    /// Nothing to be asked or changed.
    #[error("the container has no cgroup of its own: it was made without the right, or the wish, to make one")]
    NoneOfItsOwn,
    /// It is frozen: whoever joins it would stand still.
    #[error("cgroup {0} exists and is frozen; thaw it, or choose another linux.cgroupsPath")]
    Frozen(PathBuf),
    /// Limits are asked for where none can be set.
    #[error(
        "linux.resources asks for limits, and cgroup {0} may not be made by this user; leave the limits out, or run with \
         --systemd-cgroup or in a delegated cgroup (systemd-run --user --scope -p Delegate=yes)"
    )]
    NotPermitted(String),
    /// A file could not be given away.
    #[error("give {file} to user {owner}")]
    Delegate {
        file: String,
        owner: u32,
        #[source]
        cause: Errno,
    },
    /// The systemd driver.
    #[error(transparent)]
    Systemd(#[from] systemd::BusError),
    /// systemd did something else than it said.
    #[error("systemd started {unit}, but the process is in cgroup {found:?}, not in {expected:?}")]
    NotMoved { unit: String, found: String, expected: String },
    /// Freezing did not end.
    #[error("freeze cgroup {0}: still not frozen after 10 s")]
    NotFrozen(PathBuf),
}

impl CgroupError {
    /// Whether the cgroup is somebody else's, and so not ours to remove.
    pub(crate) fn is_anothers(&self) -> bool {
        match self {
            Self::Occupied(_) | Self::Frozen(_) => true,
            Self::Systemd(error) => error.is("UnitExists"),
            _ => false,
        }
    }
}

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
}

impl Cgroup {
    /// No cgroup of its own: what a container without privileges and without limits may have to do with.
    pub(crate) fn none() -> Self {
        Self::new(String::new(), None, Vec::new())
    }

    fn new(path: String, unified: Option<Hierarchy>, legacy: Vec<Hierarchy>) -> Self {
        Self { path, unified, legacy, unit: None, wishes: systemd::Wishes::default(), made: Cell::new(0) }
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
