//! What is known about each container on disk: `<root>/<id>/state.json`, beside it a copy of config.json and, until `start`,
//! the socket at which the process waits.
//!
//! Only the process that creates a container writes its state (replaced atomically: written aside, then renamed), so readers need
//! no lock. Whether it is created, running or stopped is not stored but seen: by the process, and by who answers at the gate.

#![expect(clippy::disallowed_methods, reason = "the state folder is the runtime's own, and procfs is the host's")]

mod claim;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::confine::cgroup::systemd::Unit;
use crate::confine::cgroup::{Cgroup, CgroupError};
use crate::confine::rdt;
use crate::spec::Hooks;
pub(crate) use claim::Claim;

/// Why state could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// An id that cannot be.
    #[error(
        "container id {0:?} is not made of letters, digits, '_', '+', '-' and '.', or begins with '.', or is too long"
    )]
    Id(String),
    /// Somebody has it.
    #[error("container with given ID already exists: {0}")]
    Taken(ContainerId),
    /// Nobody has it.
    #[error("container does not exist: {0}")]
    Missing(ContainerId),
    /// Somebody was faster.
    #[error("the container was deleted while it was made ({0})")]
    Deleted(PathBuf),
    /// The file system said no.
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// The file is not ours.
    #[error("parse {path}")]
    Parse {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    /// The file says something that this runtime never wrote.
    #[error("{path}: {field} is not what this runtime wrote; delete --force removes the container")]
    Foreign { path: PathBuf, field: &'static str },
    /// Its cgroup could not be asked.
    #[error("look at the container's cgroup")]
    Cgroup(#[from] CgroupError),
}

/// An id that is safe as the name of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ContainerId(String);

impl TryFrom<String> for ContainerId {
    type Error = StateError;

    fn try_from(text: String) -> Result<Self, StateError> {
        Self::parse(&text)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl ContainerId {
    /// Checks an id.
    pub(crate) fn parse(text: &str) -> Result<Self, StateError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte));
        if text.is_empty() || text.len() > 255 || text.starts_with('.') || !plain {
            return Err(StateError::Id(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where in its life a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Being built, or what a killed `create` left behind.
    Creating,
    /// Built, waiting for `start`.
    Created,
    /// Its process runs.
    Running,
    /// Its process is frozen.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The content of state.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) id: ContainerId,
    /// 0 while it is being built.
    pub(crate) pid: i32,
    /// When that process started, in clock ticks since boot: pids are used again.
    pub(crate) start_time: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: String,
    pub(crate) owner: String,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Path of the cgroup, the same in every hierarchy; empty for a container that could have none.
    pub(crate) cgroup: String,
    /// The unit that the cgroup is, when systemd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<Unit>,
    /// True when killing the process kills all others: it is the init of a pid namespace of the container's own.
    pub(crate) own_pid_namespace: bool,
    pub(crate) hooks: Hooks,
    /// Its part of resctrl, if it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rdt: Option<rdt::Group>,
}

/// `state` and `list`, as the specification and runc have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    oci_version: &'static str,
    pub(crate) id: ContainerId,
    pub(crate) pid: i32,
    pub(crate) status: Status,
    pub(crate) bundle: PathBuf,
    rootfs: PathBuf,
    pub(crate) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(crate) owner: String,
}

impl State {
    /// The report for a status.
    pub(crate) fn report(&self, status: Status) -> Report {
        Report {
            oci_version: crate::spec::VERSION,
            id: self.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.pid },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: self.owner.clone(),
        }
    }

    /// The field with which a state could make a command act on something else than the container it was read for.
    fn foreign_field(&self, id: &ContainerId) -> Option<&'static str> {
        if self.id != *id {
            Some("id")
        } else if self.pid < 0 {
            Some("pid")
        } else if !crate::plan::is_cgroup_path(&self.cgroup)
            || (!self.cgroup.is_empty() && self.cgroup.split('/').all(str::is_empty))
        {
            // The root's processes are everybody's.
            Some("cgroup")
        } else {
            None
        }
    }

    /// What there is to know of a container whose state.json is of no use: where it would be if it followed config.json.
    pub(crate) fn guess(id: &ContainerId, cgroups_path: &str) -> Self {
        Self {
            id: id.clone(),
            pid: 0,
            start_time: 0,
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: String::new(),
            owner: String::new(),
            annotations: BTreeMap::new(),
            cgroup: cgroups_path.to_owned(),
            unit: None,
            own_pid_namespace: false,
            hooks: Hooks::default(),
            rdt: None,
        }
    }

    /// Its cgroup.
    pub(crate) fn cgroup(&self) -> Result<Cgroup, CgroupError> {
        Ok(Cgroup::locate(&self.cgroup)?.of_unit(self.unit.clone()))
    }

    /// The process, if it is still the one that was started.
    pub(crate) fn live_pid(&self) -> Option<Pid> {
        let stat = ProcessStat::read(self.pid).filter(|_| self.pid > 0)?;
        (stat.start_time == self.start_time && !stat.is_dead).then(|| Pid::from_raw(self.pid))
    }
}

/// The two things about a process that decide whether it is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    pub(crate) start_time: u64,
    pub(crate) is_dead: bool,
}

impl ProcessStat {
    /// Reads /proc/PID/stat.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name of the program may hold anything, parentheses too: fields count from the last one.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&bytes[end + 1..]).ok()?.split_ascii_whitespace();
        let is_dead = matches!(fields.next()?, "Z" | "X" | "x");
        Some(Self { start_time: fields.nth(18)?.parse().ok()?, is_dead })
    }
}

/// The folder of all containers.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
    sticky: bool,
}

const STATE_FILE: &str = "state.json";
const GATE: &str = "start.sock";
const CONFIG: &str = "config.json";

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StateError {
    let path = path.to_owned();
    move |cause| StateError::Io { action, path, cause }
}

impl StateDir {
    /// Names the folder; it is made when the first container is.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, sticky: false }
    }

    /// The same for a folder of one user, where nobody is to tidy up.
    pub(crate) fn sticky(root: PathBuf) -> Self {
        Self { root, sticky: true }
    }

    /// The name of the user whose container it is.
    pub(crate) fn owner(&self, id: &ContainerId) -> String {
        use std::os::unix::fs::MetadataExt;
        let uid = fs::metadata(self.dir(id)).map_or(0, |metadata| metadata.uid());
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
            (id.parse() == Ok(uid)).then(|| name.to_owned())
        });
        name.unwrap_or_else(|| uid.to_string())
    }

    fn dir(&self, id: &ContainerId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Takes an id. What is made here goes when the entry is dropped, unless it is kept.
    pub(crate) fn reserve(&self, id: &ContainerId) -> Result<Entry, StateError> {
        let dir = self.dir(id);
        let make = |dir: &Path| fs::DirBuilder::new().mode(0o700).create(dir);
        let made = match make(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let root = &self.root;
                fs::DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(io("make folder", root))?;
                if self.sticky {
                    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1700);
                    fs::set_permissions(root, mode).map_err(io("set the mode of", root))?;
                }
                make(&dir)
            }
            made => made,
        };
        match made {
            Ok(()) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let folder = nix::fcntl::open(&dir, flags, nix::sys::stat::Mode::empty()).map_err(|errno| {
                    // Empty, or another's by now: nothing of somebody else's goes with it.
                    let _ = fs::remove_dir(&dir);
                    io("open folder", &dir)(errno.into())
                })?;
                Ok(Entry { dir, folder: Some(folder), keep: false })
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(StateError::Taken(id.clone())),
            Err(error) => Err(io("make folder", &dir)(error)),
        }
    }

    /// Reads the state of a container.
    pub(crate) fn load(&self, id: &ContainerId) -> Result<State, StateError> {
        let path = self.dir(id).join(STATE_FILE);
        match read_bounded(&path) {
            Ok(bytes) => {
                let state: State =
                    serde_json::from_slice(&bytes).map_err(|cause| StateError::Parse { path: path.clone(), cause })?;
                match state.foreign_field(id) {
                    None => Ok(state),
                    Some(field) => Err(StateError::Foreign { path, field }),
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(StateError::Missing(id.clone())),
            Err(error) => Err(io("read", &path)(error)),
        }
    }

    /// Where in its life a container is.
    pub(crate) fn status(&self, state: &State) -> Result<Status, StateError> {
        if state.pid == 0 {
            return Ok(Status::Creating);
        }
        if state.live_pid().is_none() {
            return Ok(Status::Stopped);
        }
        // First, because a frozen process does not answer knocks: they would queue up until one blocks.
        if state.cgroup()?.is_frozen()? {
            return Ok(Status::Paused);
        }
        Ok(if self.is_waiting(&state.id) { Status::Created } else { Status::Running })
    }

    /// Whether the process still waits at the gate. The socket is removed by `start`, which may be killed before it gets there:
    /// hence the knock. The process answers every knock that is not a start by waiting on.
    fn is_waiting(&self, id: &ContainerId) -> bool {
        let path = self.gate(id);
        path.exists() && crate::launch::gate::connect(&path).is_ok()
    }

    /// Path of the socket at which the process waits for `start`.
    pub(crate) fn gate(&self, id: &ContainerId) -> PathBuf {
        self.dir(id).join(GATE)
    }

    /// Path of the folder in which a container's process finds the socket for sd_notify(3).
    pub(crate) fn notify_folder(&self, id: &ContainerId) -> PathBuf {
        self.dir(id).join("notify")
    }

    /// Path of the copy of config.json.
    pub(crate) fn config(&self, id: &ContainerId) -> PathBuf {
        self.dir(id).join(CONFIG)
    }

    /// Replaces the state of a container that is there.
    pub(crate) fn save(&self, state: &State) -> Result<(), StateError> {
        let dir = self.dir(&state.id);
        replace(&dir, &dir, state)
    }

    /// Forgets a container.
    pub(crate) fn remove(&self, id: &ContainerId) -> Result<(), StateError> {
        remove_dir(&self.dir(id))
    }

    /// Whether there is anything of this container.
    pub(crate) fn exists(&self, id: &ContainerId) -> bool {
        self.dir(id).exists()
    }

    /// The ids of all containers, sorted.
    pub(crate) fn list(&self) -> Result<Vec<ContainerId>, StateError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io("read folder", &self.root))?,
        };
        let names = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut ids: Vec<_> =
            names.filter_map(|entry| ContainerId::parse(&entry.file_name().to_string_lossy()).ok()).collect();
        ids.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(ids)
    }
}

/// Larger than any annotations that config.json may hold.
const MAX_SIZE: u64 = 64 << 20;

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    // Not to wait for the other end of what has been put in the file's place.
    let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes a container's folder; what is gone already is fine.
fn remove_dir(dir: &Path) -> Result<(), StateError> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
    // A `create` that has not noticed yet may still put something into it.
    for _ in 0..100 {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == DirectoryNotEmpty => {}
            Err(error) if error.kind() != NotFound => return Err(io("remove folder", dir)(error)),
            _ => return Ok(()),
        }
    }
    Err(io("remove folder", dir)(DirectoryNotEmpty.into()))
}

/// An id taken by this process. Whatever is written goes into the very folder that was made: if a `delete --force` has removed it
/// meanwhile, and another `create` has made it anew, this one fails and leaves the other alone.
#[derive(Debug)]
pub(crate) struct Entry {
    dir: PathBuf,
    /// Closed only to make room for what removing it takes.
    folder: Option<OwnedFd>,
    keep: bool,
}

impl Entry {
    fn inside(&self) -> PathBuf {
        let folder = self.folder.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        PathBuf::from(format!("/proc/self/fd/{folder}"))
    }

    /// Path of the gate, for as long as this entry lives.
    pub(crate) fn gate(&self) -> PathBuf {
        self.inside().join(GATE)
    }

    /// Puts a copy of config.json where `exec` finds it, whatever becomes of the bundle.
    pub(crate) fn save_config(&self, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.inside().join(CONFIG);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(bytes)).map_err(io("write", &self.dir.join(CONFIG)))
    }

    /// Replaces the state.
    pub(crate) fn save(&self, state: &State) -> Result<(), StateError> {
        replace(&self.inside(), &self.dir, state)
    }

    /// The container is there to stay.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }

    /// Whether the folder of that name is still the one made here.
    fn is_ours(&self) -> bool {
        use nix::sys::stat::{fstat, stat};
        let identity = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
        let made = self.folder.as_ref().and_then(|folder| fstat(folder).ok());
        made.is_some_and(|made| stat(&self.dir).map(identity) == Ok(identity(made)))
    }
}

/// Writes the state aside, then puts it in place; `dir` is the name that errors tell.
fn replace(inside: &Path, dir: &Path, state: &State) -> Result<(), StateError> {
    let (path, aside) = (inside.join(STATE_FILE), inside.join(".state.json"));
    let shown = dir.join(STATE_FILE);
    let bytes = serde_json::to_vec(state).map_err(|cause| StateError::Parse { path: shown.clone(), cause })?;
    // The folder is on a tmpfs and means nothing after a reboot: no fsync.
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside);
    file.and_then(|mut file| file.write_all(&bytes)).map_err(io("write", &shown))?;
    fs::rename(&aside, &path).map_err(io("write", &shown))
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.keep && self.is_ours() {
            // Removing takes one descriptor, and this may have been the last.
            self.folder = None;
            // Nobody is there to tell; `delete --force` finishes it.
            let _ = remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names() {
        for good in ["a", "A_b+c-d.e", "-x", "0", &"x".repeat(255)] {
            assert!(ContainerId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "a\n", "ä", "a\0", &"x".repeat(256)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn stat_is_read_behind_the_name() {
        let text = b"12 (a) b (c)) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(ProcessStat::parse(text), Some(ProcessStat { start_time: 4711, is_dead: true }));
        assert_eq!(ProcessStat::parse(b"12 (a) S 1"), None);
        let own = ProcessStat::read(std::process::id() as i32).expect("own stat");
        assert!(own.start_time > 0 && !own.is_dead);
    }

    fn state(id: &str, pid: i32, start_time: u64) -> State {
        State {
            id: ContainerId::parse(id).expect("id"),
            pid,
            start_time,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            owner: String::new(),
            annotations: BTreeMap::new(),
            cgroup: "x".into(),
            unit: None,
            own_pid_namespace: true,
            hooks: Hooks::default(),
            rdt: None,
        }
    }

    #[test]
    fn reserved_once_and_given_back() {
        let root = tempfile::tempdir().expect("folder");
        let states = StateDir::new(root.path().join("deep/er"));
        let id = ContainerId::parse("web").expect("id");
        let entry = states.reserve(&id).expect("first");
        assert!(matches!(states.reserve(&id), Err(StateError::Taken(_))));
        entry.save(&state("web", 0, 0)).expect("save");
        assert_eq!(states.status(&states.load(&id).expect("load")).expect("status"), Status::Creating);
        drop(entry);
        assert!(matches!(states.load(&id), Err(StateError::Missing(_))));
        let slow = states.reserve(&id).expect("a slow one");
        states.remove(&id).expect("deleted");
        let next = states.reserve(&id).expect("and made again");
        assert!(slow.save(&state("web", 1, 1)).is_err(), "into a folder that is gone");
        next.save(&state("web", 2, 2)).expect("save");
        drop(slow);
        assert_eq!(states.load(&id).expect("load").pid, 2);
        drop(next);
        states.reserve(&id).expect("again").keep();
        assert_eq!(states.list().expect("list"), [id]);
    }

    #[test]
    fn a_reused_pid_is_somebody_else() {
        let own = ProcessStat::read(std::process::id() as i32).expect("own stat");
        assert!(state("x", std::process::id() as i32, own.start_time).live_pid().is_some());
        assert!(state("x", std::process::id() as i32, own.start_time + 1).live_pid().is_none());
        assert!(state("x", 0, 0).live_pid().is_none());
    }
}
