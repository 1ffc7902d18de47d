//! The cgroup of a container on cgroup2, on v1, and on both at once (hybrid: v1 controllers plus a cgroup2 tree in `unified`).
//!
//! ```text
//! detect -> create_unified (before the clone, which starts in it) -> create_legacy (beside the child) -> join fds
//! ```
//! The child joins v1 hierarchies itself by writing "0" to `tasks`: a thread that moves itself needs no global lock, while
//! writing a pid to `cgroup.procs` takes one that waits for an RCU grace period (several ms).

pub(crate) mod devices;
mod files;
mod legacy;
pub(crate) mod oom;
pub(crate) mod stats;
mod stats_legacy;
mod stats_unified;
mod unified;
mod update;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use sys::Errno;

use crate::spec::Resources;
use files::{read, write};

/// Where all cgroup filesystems are.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
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
    /// Freezing did not end.
    #[error("freeze cgroup {0}: still not frozen after 10 s")]
    NotFrozen(PathBuf),
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
}

impl Cgroup {
    /// Finds the hierarchies and names the cgroup; nothing is made yet.
    pub(crate) fn locate(path: &str) -> Result<Self, CgroupError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(ROOT, flags, Mode::empty()).map_err(CgroupError::NotMounted)?;
        let path = path.trim_matches('/').to_owned();
        let magic = |dir: &OwnedFd| sys::path::filesystem_magic(dir).unwrap_or_default();
        if magic(&root) == sys::path::CGROUP2_MAGIC {
            return Ok(Self { path, unified: Some(Hierarchy { name: String::new(), dir: root }), legacy: Vec::new() });
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
        Ok(Self { path, unified, legacy })
    }

    /// The path, relative to the roots.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// True without any v1 hierarchy.
    pub(crate) fn is_unified(&self) -> bool {
        self.legacy.is_empty()
    }

    /// The v1 hierarchies.
    pub(crate) fn legacy(&self) -> &[Hierarchy] {
        &self.legacy
    }

    /// Makes the cgroup2 directory, with limits where cgroup2 has the controllers, and opens it for the clone.
    pub(crate) fn create_unified(
        &self,
        resources: &Resources,
        warn: &mut dyn FnMut(String),
    ) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(hierarchy) = &self.unified else { return Ok(None) };
        let fresh = files::make(hierarchy, &self.path)?;
        if !fresh {
            self.check_empty(hierarchy, "cgroup.procs")?;
        }
        if self.is_unified() {
            unified::enable_controllers(hierarchy, &self.path)?;
            unified::limit(hierarchy, &self.path, resources, warn)?;
            let dir = self.open_dir(hierarchy)?;
            devices::attach_filter(&dir, &resources.devices)
                .map_err(|cause| CgroupError::DeviceFilter { path: self.shown(hierarchy), cause })?;
            return Ok(Some(dir));
        }
        self.open_dir(hierarchy).map(Some)
    }

    /// Makes the v1 directories with their limits.
    pub(crate) fn create_legacy(&self, resources: &Resources, warn: &mut dyn FnMut(String)) -> Result<(), CgroupError> {
        for hierarchy in &self.legacy {
            let fresh = files::make(hierarchy, &self.path)?;
            if !fresh {
                self.check_empty(hierarchy, "cgroup.procs")?;
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

    fn limit_legacy(&self, resources: &Resources, warn: &mut dyn FnMut(String)) -> Result<(), CgroupError> {
        if self.legacy.is_empty() {
            return Ok(());
        }
        legacy::limit(&self.legacy, self.unified.as_ref(), &self.path, resources, warn)
    }

    fn check_empty(&self, hierarchy: &Hierarchy, file: &str) -> Result<(), CgroupError> {
        if read(hierarchy, &self.path, file)?.trim().is_empty() {
            return Ok(());
        }
        Err(CgroupError::Occupied(self.shown(hierarchy)))
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

    /// Descriptors of the v1 `tasks` files, for [`join`]. Opened here, because the kernel checks who opened them.
    pub(crate) fn task_files(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        self.legacy.iter().map(|hierarchy| files::open_for_writing(hierarchy, &self.path, "tasks")).collect()
    }

    /// Moves a process of somebody else's into the cgroup, with all its threads.
    pub(crate) fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        let mut all = self.legacy.iter().chain(&self.unified);
        all.try_for_each(|hierarchy| write(hierarchy, &self.path, "cgroup.procs", &pid.to_string()))
    }

    /// The directory by which all of it can be frozen.
    pub(crate) fn freezer_path(&self) -> Option<PathBuf> {
        self.freezer().map(|(hierarchy, _)| self.shown(hierarchy))
    }

    /// All processes in the cgroup.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        let hierarchy = self.legacy.iter().find(|hierarchy| hierarchy.controls("pids"));
        let Some(hierarchy) = hierarchy.or(self.legacy.first()).or(self.unified.as_ref()) else {
            return Ok(Vec::new());
        };
        let text = match read(hierarchy, &self.path, "cgroup.procs") {
            Err(CgroupError::Read { cause: Errno::ENOENT | Errno::ENODEV, .. }) => return Ok(Vec::new()),
            other => other?,
        };
        Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw).collect())
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
        if frozen {
            self.freeze(false)?;
        }
        killed
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
        while on && !self.is_frozen()? {
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

    /// Whether all of it is frozen.
    pub(crate) fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self.freezer() {
            None => Ok(false),
            Some((hierarchy, true)) => match read(hierarchy, &self.path, "freezer.state") {
                Err(CgroupError::Read { cause: Errno::ENOENT, .. }) => Ok(false),
                other => Ok(other?.trim() == "FROZEN"),
            },
            Some((hierarchy, false)) => match read(hierarchy, &self.path, "cgroup.events") {
                Err(CgroupError::Read { cause: Errno::ENOENT, .. }) => Ok(false),
                other => Ok(other?.lines().any(|line| line == "frozen 1")),
            },
        }
    }

    /// Removes the cgroup and those below it. Processes that are still dying get two seconds.
    pub(crate) fn destroy(&self) -> Result<(), CgroupError> {
        let mut first = Ok(());
        if self.path.is_empty() {
            return first; // the root is not ours
        }
        for hierarchy in self.legacy.iter().chain(&self.unified) {
            let removed = remove_tree(&hierarchy.dir, &self.path);
            if let (Ok(()), Err(cause)) = (&first, removed) {
                first = Err(CgroupError::Remove { path: self.shown(hierarchy), cause });
            }
        }
        first
    }
}

fn remove_tree(dir: &OwnedFd, path: &str) -> Result<(), Errno> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut pause = Duration::from_micros(200);
    loop {
        match unlinkat(dir, path, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) if Instant::now() < deadline => {
                remove_children(dir, path)?;
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    }
}

fn remove_children(dir: &OwnedFd, path: &str) -> Result<(), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut here = match nix::dir::Dir::openat(dir, path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let names: Vec<String> = here
        .iter()
        .flatten()
        .filter(|entry| entry.file_type() == Some(nix::dir::Type::Directory))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    for name in names {
        let child = format!("{path}/{name}");
        remove_children(dir, &child)?;
        match unlinkat(dir, child.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
