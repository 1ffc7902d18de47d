//! The folder of one task in the run root: what the shim works with, and what tells the next supervisor about it.
//!
//! ```text
//! RUN/supervisor/tasks/NAMESPACE/ID/   0700
//!   task.json        ours: the shim's program; written before it starts, so that a crash at any later point can be undone
//!   config.json      the container's spec
//!   rootfs/          where the shim mounts
//!   bootstrap.json   where the shim listens; written when it runs
//!   deleted          empty; the shim has deleted the task, and is about to leave
//!   init.exit        written by the shim before it tells of an exit; by us when a shim died without
//!   exec-ID.exit     the same of further processes
//!   exec-ID.pid      written by the runtime when a further process runs
//!   events.journal   what the shim has to tell and nobody has taken yet (`proto::journal`)
//!   init.oom         the kernel has killed for memory; written before it is told
//! ```
//! The run root is a tmpfs: nothing here is meant to survive the machine, hence nothing is synced. Names appear with their
//! whole content, by rename.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::mount::{MntFlags, umount2};
use prost_types::Timestamp;
use proto::{
    containerd::services::events::v1::Envelope,
    id::{ContainerId, ExecId, NamespaceName},
    journal,
    kind::ErrorKind,
};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, net::UnixStream, time::timeout};

use super::shims::Bootstrap;
use crate::failure::Failure;

/// How long the last descriptor of a process that is being killed may stay open: the kernel closes one after the other, and lets
/// others run in between.
pub(super) const CLOSES: Duration = Duration::from_millis(200);
/// The same of one that is known to be dying, where nobody waits in vain for a shim that lives.
const CLOSES_AT_LAST: Duration = Duration::from_secs(3);

/// A step on a bundle failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {at}")]
pub(crate) struct BundleError {
    step: &'static str,
    at: PathBuf,
    #[source]
    cause: io::Error,
}

impl Failure for BundleError {
    fn kind(&self) -> ErrorKind {
        match self.cause.kind() {
            // A file of ours that is missing is no missing object of the caller's.
            io::ErrorKind::NotFound => ErrorKind::Internal,
            _ => ErrorKind::of_io(&self.cause),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exit {
    /// Its pid.
    pub(crate) pid: u32,
    /// Its exit code, or 128 and the signal.
    pub(crate) status: u32,
    /// When.
    pub(crate) at: Timestamp,
}

/// What `init.exit` holds.
#[derive(Serialize, Deserialize)]
struct ExitRecord {
    pid: u32,
    exit_status: u32,
    exited_at: String,
    // Older shims don't say.
    #[serde(default)]
    announced: bool,
}

/// What must be known about a task before its shim can be asked.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The shim's program, for `delete`.
    pub(crate) shim: PathBuf,
    /// As the caller gave it; told again when the shim is gone.
    pub(crate) stdin: String,
    /// As the caller gave it.
    pub(crate) stdout: String,
    /// As the caller gave it.
    pub(crate) stderr: String,
    /// As the caller gave it.
    pub(crate) terminal: bool,
    /// Snapshotter and key of the snapshot that it runs on, as its container's record says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<(String, String)>,
    /// What it is restored from when it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) images: Option<Images>,
}

/// The files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Images {
    /// Where they are, or will be.
    pub(crate) folder: PathBuf,
    /// They were unpacked for this task alone, and go when it has started or is removed.
    pub(crate) own: bool,
}

/// The folder of one task.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    folder: PathBuf,
}

impl Bundle {
    /// The bundle of `id`, which may not exist.
    pub(crate) fn at(tasks: &Path, namespace: &NamespaceName, id: &ContainerId) -> Self {
        Self { folder: tasks.join(namespace).join(id) }
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder with everything the shim needs.
    pub(crate) fn make(&self, spec: &[u8], origin: &Origin) -> Result<(), BundleError> {
        let folder = |at: &Path, mode: u32, recursive: bool| {
            let made = fs::DirBuilder::new().mode(mode).recursive(recursive).create(at);
            made.map_err(|cause| BundleError { step: "make folder", at: at.to_owned(), cause })
        };
        if let Some(parent) = self.folder.parent() {
            folder(parent, 0o711, true)?;
        }
        folder(&self.folder, 0o700, false)?;
        proto::fault!("supervisor.create.folder_made");
        folder(&self.folder.join("rootfs"), 0o711, false)?;
        self.write("config.json", spec)?;
        proto::fault!("supervisor.create.spec_written");
        self.write_json("task.json", origin)
    }

    /// What was noted when the task was made; `None` if that was not reached.
    pub(crate) fn origin(&self) -> Option<Origin> {
        self.read_json("task.json")
    }

    /// Notes where the shim listens.
    pub(crate) fn set_bootstrap(&self, bootstrap: &Bootstrap) -> Result<(), BundleError> {
        self.write_json("bootstrap.json", bootstrap)
    }

    /// Notes that the shim has deleted the task: only the shim itself and this folder are left to go.
    pub(crate) fn set_deleted(&self) -> Result<(), BundleError> {
        self.write("deleted", b"")
    }

    /// Whether the shim has deleted the task.
    pub(crate) fn is_deleted(&self) -> bool {
        self.folder.join("deleted").exists()
    }

    /// Where the shim listens; `None` if it never said so.
    pub(crate) fn bootstrap(&self) -> Option<Bootstrap> {
        self.read_json("bootstrap.json")
    }

    /// Removes the socket of a shim that was killed before it could, and those it had for consoles beside it. One that is
    /// listened on stays: a pod's shim serves others. A shim that is `dying`, as its connections show, may take its time.
    pub(crate) async fn remove_dead_socket(&self, dying: bool) {
        let Some(Bootstrap { address, .. }) = self.bootstrap() else { return };
        let socket = Path::new(&address);
        let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else { return };
        if !is_dead(socket, if dying { CLOSES_AT_LAST } else { CLOSES }).await {
            return;
        }
        let consoles = format!("{}.pty", name.to_string_lossy());
        let beside = fs::read_dir(folder).into_iter().flatten().flatten();
        let consoles = beside.filter(|entry| entry.file_name().to_string_lossy().starts_with(&consoles));
        for file in consoles.map(|entry| entry.path()).chain([socket.to_owned()]) {
            if let Err(error) = fs::remove_file(&file) {
                tracing::debug!(%error, file = %file.display(), "socket of a dead shim not removed");
            }
        }
    }

    /// The exit of the init process, if it is recorded.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.read_exit("init.exit")
    }

    /// The exit of another process, if it is recorded.
    pub(crate) fn exec_exit(&self, exec: &ExecId) -> Option<Exit> {
        self.read_exit(&format!("exec-{exec}.exit"))
    }

    /// Whether the exit of the init process, or of another, is recorded as announced: its event was delivered or is in the
    /// journal.
    pub(crate) fn is_announced(&self, exec: Option<&ExecId>) -> bool {
        let name = exec.map_or_else(|| "init.exit".to_owned(), |exec| format!("exec-{exec}.exit"));
        self.read_json::<ExitRecord>(&name).is_some_and(|record| record.announced)
    }

    /// Records the exit of the init process in place of a shim that didn't live to.
    pub(crate) fn set_exit(&self, exit: &Exit, announced: bool) -> Result<(), BundleError> {
        let exited_at = exit.at.to_string();
        let record = ExitRecord { pid: exit.pid, exit_status: exit.status, exited_at, announced };
        self.write_json("init.exit", &record)
    }

    /// Further processes that were started, with their pids, in the order of their ids.
    pub(crate) fn started_execs(&self) -> Vec<(ExecId, u32)> {
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let exec = |name: std::ffi::OsString| {
            let id = name.to_str()?.strip_prefix("exec-")?.strip_suffix(".pid")?.to_owned();
            let pid = fs::read_to_string(self.folder.join(&name)).ok()?.trim().parse().ok()?;
            Some((ExecId::new(id).ok()?, pid))
        };
        let mut execs: Vec<_> = names.filter_map(exec).collect();
        execs.sort();
        execs
    }

    /// What the shim noted and nobody has taken.
    pub(crate) fn undelivered(&self) -> Vec<Envelope> {
        fs::read(self.folder.join(journal::FILE)).map(|bytes| journal::undelivered(&bytes)).unwrap_or_default()
    }

    /// Notes that it was taken now.
    pub(crate) fn clear_journal(&self) -> Result<(), BundleError> {
        let at = self.folder.join(journal::FILE);
        match fs::remove_file(&at) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(BundleError { step: "remove", at, cause }),
            _ => Ok(()),
        }
    }

    /// Whether the kernel has killed for memory in this container.
    pub(crate) fn saw_oom(&self) -> bool {
        self.folder.join("init.oom").exists()
    }

    /// The pid that the runtime left, should nobody else know it.
    pub(crate) fn recorded_pid(&self) -> Option<u32> {
        fs::read_to_string(self.folder.join("init.pid")).ok()?.trim().parse().ok()
    }

    /// The cgroup that the spec asks for.
    pub(crate) fn cgroup(&self) -> Option<String> {
        let spec: serde_json::Value = self.read_json("config.json")?;
        Some(spec.pointer("/linux/cgroupsPath")?.as_str()?.to_owned())
    }

    /// Takes every mount off the rootfs; those below go with it.
    pub(crate) fn unmount(&self) -> Result<(), BundleError> {
        let at = self.folder.join("rootfs");
        loop {
            match umount2(&at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Mounts can lie on top of each other; EINVAL says that none is left.
                Ok(()) => {}
                Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
                Err(errno) => return Err(BundleError { step: "unmount", at, cause: errno.into() }),
            }
        }
    }

    /// Removes the files that the task was, or was to be, restored from, if nobody else has a right to them.
    pub(crate) fn remove_images(&self) -> Result<(), BundleError> {
        let Some(images) = self.origin().and_then(|origin| origin.images).filter(|images| images.own) else {
            return Ok(());
        };
        match fs::remove_dir_all(&images.folder) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(BundleError { step: "remove", at: images.folder, cause })
            }
            _ => Ok(()),
        }
    }

    /// Removes everything. The caller has unmounted; a rootfs that is still one is left alone, with an error: what is
    /// mounted there is an image or a volume, and must never be deleted through here.
    pub(crate) fn remove(&self) -> Result<(), BundleError> {
        let rootfs = self.folder.join("rootfs");
        let failed = |step, at: &Path, cause| BundleError { step, at: at.to_owned(), cause };
        match fs::remove_dir(&rootfs) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                let mounts =
                    fs::read_to_string("/proc/self/mountinfo").map_err(|e| failed("read mounts for", &rootfs, e))?;
                if mounts_below(&mounts, &self.folder) {
                    let busy = io::Error::from(io::ErrorKind::ResourceBusy);
                    return Err(failed("remove, with mounts in it,", &self.folder, busy));
                }
            }
            Err(error) => return Err(failed("remove", &rootfs, error)),
        }
        // While there is a note of where they are.
        self.remove_images()?;
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.folder, error)),
            _ => Ok(()),
        }
    }

    fn read_exit(&self, name: &str) -> Option<Exit> {
        let record: ExitRecord = self.read_json(name)?;
        let at = record.exited_at.parse().ok()?;
        Some(Exit { pid: record.pid, status: record.exit_status, at })
    }

    // What can't be read counts as not written: each file is there whole or not at all, and without it we clean up.
    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let bytes = fs::read(self.folder.join(name)).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(%error, file = %self.folder.join(name).display(), "file of a task is damaged, ignored");
                None
            }
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), BundleError> {
        let bytes = serde_json::to_vec(value).map_err(|cause| BundleError {
            step: "encode",
            at: self.folder.join(name),
            cause: cause.into(),
        })?;
        self.write(name, &bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), BundleError> {
        let (at, new) = (self.folder.join(name), self.folder.join(format!(".{name}.new")));
        let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, &at));
        written.map_err(|cause| BundleError { step: "write", at, cause })
    }
}

/// Whether a socket's file has outlived its listener.
pub(super) async fn is_dead(socket: &Path, patience: Duration) -> bool {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) => return error.kind() == io::ErrorKind::ConnectionRefused,
            // A process that is being killed closes one descriptor after the other: our connection may have got in before the
            // listener went, and ends with it. One that lives keeps it, or says something.
            Ok(mut stream) => match timeout(patience, stream.read_u8()).await {
                Ok(Err(_)) => {}
                Ok(Ok(_)) | Err(_) => return false,
            },
        }
    }
}

/// Every bundle below `tasks`. Names that aren't ids are somebody else's, and left alone.
pub(crate) fn scan(tasks: &Path) -> io::Result<Vec<(NamespaceName, ContainerId)>> {
    let names = |folder: &Path| -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut found = Vec::new();
    for namespace in names(tasks)?.into_iter().filter_map(|name| NamespaceName::new(name).ok()) {
        let ids = names(&tasks.join(&namespace))?;
        found.extend(ids.into_iter().filter_map(|id| Some((namespace.clone(), ContainerId::new(id).ok()?))));
    }
    Ok(found)
}

// proc_pid_mountinfo(5): the fifth field is the mount point, with blanks and the like as octal escapes; ids of ours hold
// none, and a run root that does is compared escaped.
fn mounts_below(mountinfo: &str, folder: &Path) -> bool {
    let mut escaped = String::new();
    for c in folder.to_string_lossy().chars() {
        match c {
            ' ' | '\t' | '\n' | '\\' => escaped.push_str(&format!("\\{:03o}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped.push('/');
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| point.starts_with(&escaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_made_read_and_removed() {
        let tasks = tempfile::tempdir().unwrap();
        let (namespace, id) = (NamespaceName::new("n").unwrap(), ContainerId::new("web").unwrap());
        let bundle = Bundle::at(tasks.path(), &namespace, &id);
        let origin = Origin {
            shim: "/bin/shim".into(),
            stdin: String::new(),
            stdout: "/o".into(),
            stderr: "/o".into(),
            terminal: false,
            snapshot: None,
            images: None,
        };
        bundle.make(br#"{"linux":{"cgroupsPath":"/x/web"}}"#, &origin).unwrap();
        assert!(bundle.make(b"{}", &origin).is_err());
        assert_eq!(bundle.origin(), Some(origin));
        assert_eq!(bundle.cgroup().as_deref(), Some("/x/web"));
        assert_eq!(scan(tasks.path()).unwrap(), [(namespace, id)]);
        assert_eq!((bundle.bootstrap(), bundle.exit()), (None, None));
        let at = "2026-11-21T00:56:31.25Z".parse().unwrap();
        let exit = Exit { pid: 7, status: 137, at };
        for announced in [false, true] {
            bundle.set_exit(&exit, announced).unwrap();
            assert_eq!((bundle.exit(), bundle.is_announced(None)), (Some(exit.clone()), announced));
        }
        fs::write(
            bundle.path().join("init.exit"),
            br#"{"pid":7,"exit_status":137,"exited_at":"2026-11-21T00:56:31.25Z"}"#,
        )
        .unwrap();
        assert_eq!((bundle.exit(), bundle.is_announced(None)), (Some(exit), false), "of an older shim");
        for (name, text) in [("exec-b.pid", "9\n"), ("exec-a.pid", "8"), ("exec-c.pid", "x"), ("exec-d.exit", "{}")] {
            fs::write(bundle.path().join(name), text).unwrap();
        }
        let execs: Vec<_> = bundle.started_execs().into_iter().map(|(id, pid)| (id.to_string(), pid)).collect();
        assert_eq!(execs, [("a".to_owned(), 8), ("b".to_owned(), 9)]);
        assert!(bundle.undelivered().is_empty() && !bundle.saw_oom());
        let event = Envelope { topic: "/tasks/exit".into(), ..Default::default() };
        let written = [journal::front(journal::FRONT).as_slice(), &journal::record(&event)].concat();
        fs::write(bundle.path().join(journal::FILE), written).unwrap();
        assert_eq!(bundle.undelivered(), [event]);
        bundle.clear_journal().unwrap();
        bundle.clear_journal().unwrap();
        assert!(bundle.undelivered().is_empty());
        fs::write(bundle.path().join("bootstrap.json"), "{").unwrap();
        assert_eq!(bundle.bootstrap(), None);
        fs::write(bundle.path().join("rootfs/left"), "").unwrap();
        bundle.unmount().unwrap();
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert!(scan(tasks.path()).unwrap().is_empty());
    }

    #[test]
    fn mount_points_are_found_below() {
        let info = "30 1 0:5 / /run/a\\040b/x/rootfs rw - tmpfs t rw\n31 1 0:6 / /run/xy rw - tmpfs t rw\n";
        for (folder, found) in [("/run/a b/x", true), ("/run/x", false), ("/run", true), ("/run/a b/x/rootfs", false)] {
            assert_eq!(mounts_below(info, Path::new(folder)), found, "{folder}");
        }
    }
}
