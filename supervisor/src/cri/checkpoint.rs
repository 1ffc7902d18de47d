//! CheckpointContainer: what the processes of a container are, as an archive for who wants to look at them or to go on with them
//! elsewhere (Kubernetes' forensic checkpoints). The container runs on.
//!
//! The layout is that of containerd and CRI-O, which checkpointctl reads:
//!
//! ```text
//! config.dump  spec.dump  status.dump  status   what it is: name and image, specification, CRI's status, containerd's
//! checkpoint/                                   criu's images
//! dump.log  stats-dump                          criu's log and figures, where it has written them
//! rootfs-diff.tar                               what it has changed of its image, as a layer
//! container.log                                 its log
//! ```
//!
//! The archive has no name until it is complete, so that nobody finds half of one, whatever ends us. What criu writes goes to a folder of
//! ours, which the next start would sweep.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    libc,
};
use proto::{
    containerd::runc::v1::CheckpointOptions,
    kind::{ErrorKind, chain},
    runtime::v1 as cri,
    typeurl,
};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{
    NAMESPACE,
    error::CriError,
    layer,
    pods::{Pods, blocking},
    record::Container,
};
use crate::{
    failure::Failure,
    layers::{
        decompress::Compression,
        diff::{DiffError, Difference},
    },
    leases::unique,
    snapshots::SnapshotError,
};

/// Where it is looked for if nothing else is said, as in the runtime.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The archive, and all that is in it: memory of processes is nobody else's.
const MODE: u32 = 0o600;

/// Why a container isn't checkpointed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// There is nobody to do it.
    #[error("CheckpointContainer needs criu, which is not in PATH")]
    NoCriu,
    /// The archive can't be there.
    #[error("location {0:?} of a checkpoint: an absolute path of a file is wanted")]
    Location(String),
    /// It takes too long.
    #[error("checkpoint of container {id}: not done within {} s", .limit.as_secs())]
    Late {
        /// The container.
        id: String,
        /// What the kubelet has said.
        limit: Duration,
    },
    /// What the container has changed can't be told.
    #[error("checkpoint of container {id}: changes of its files")]
    Changes {
        /// The container.
        id: String,
        /// Why.
        #[source]
        cause: DiffError,
    },
    /// A file.
    #[error("checkpoint of container {id}: {what} {}", .at.display())]
    File {
        /// The container.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Where.
        at: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}

impl Failure for CheckpointError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoCriu => ErrorKind::Unimplemented,
            Self::Location(_) => ErrorKind::InvalidArgument,
            Self::Late { .. } => ErrorKind::DeadlineExceeded,
            Self::Changes { cause, .. } => cause.kind(),
            Self::File { cause, .. } => ErrorKind::of_io(cause),
        }
    }
}

/// An archive that has no name yet; without one it goes when it is closed.
#[derive(Debug)]
struct Nameless {
    file: File,
    /// Where the file system can't do without a name.
    partial: Option<PathBuf>,
}

impl Nameless {
    fn make(location: &Path) -> io::Result<Self> {
        let folder = location.parent().unwrap_or(Path::new("/"));
        let open = |path: &Path, flags: i32| {
            fs::OpenOptions::new().read(true).write(true).mode(MODE).custom_flags(flags | libc::O_NOFOLLOW).open(path)
        };
        match open(folder, libc::O_TMPFILE) {
            Ok(file) => Ok(Self { file, partial: None }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                let partial = folder.join(format!(".{}", unique("berth-checkpoint")));
                let file = open(&partial, libc::O_CREAT | libc::O_EXCL)?;
                Ok(Self { file, partial: Some(partial) })
            }
            Err(error) => Err(error),
        }
    }

    /// Gives it its name, which nothing may have.
    fn publish(&self, location: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(partial) = &self.partial {
            return fs::hard_link(partial, location);
        }
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        nix::unistd::linkat(AT_FDCWD, own.as_str(), AT_FDCWD, location, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(())
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial
            && let Err(error) = fs::remove_file(partial)
        {
            warn!(%error, at = %partial.display(), "half a checkpoint stays");
        }
    }
}

/// What goes into an archive besides files of the folder that was made for it.
struct Documents {
    config: Value,
    spec: Vec<u8>,
    status: Value,
    containerd: Value,
    log: PathBuf,
}

impl Pods {
    /// Writes a container's processes into an archive at the place that the kubelet names.
    pub(super) async fn checkpoint(self: &Arc<Self>, request: cri::CheckpointContainerRequest) -> Result<(), CriError> {
        let cri::CheckpointContainerRequest { container_id, location, timeout } = request;
        let id = self.container_id(&container_id)?;
        let container = self.running(&id)?;
        let at = PathBuf::from(&location);
        if !at.is_absolute() || at.file_name().is_none() || location.ends_with('/') || location.contains('\0') {
            return Err(CheckpointError::Location(location).into());
        }
        if !has_criu() {
            return Err(CheckpointError::NoCriu.into());
        }
        let file = |what: &'static str| {
            let (id, at) = (id.clone(), at.clone());
            move |cause| CriError::from(CheckpointError::File { id, what, at, cause })
        };
        let archive = Nameless::make(&at).map_err(file("make archive"))?;
        let own = id.clone();
        // criu is never left alone in the middle, whoever waits for it: it would leave the container frozen.
        let written = self.detached(async move |pods| pods.write_checkpoint(&own, container, archive).await);
        let archive = match timeout {
            1.. => {
                let limit = Duration::from_secs(timeout as u64);
                let late = |_| CriError::from(CheckpointError::Late { id: id.clone(), limit });
                tokio::time::timeout(limit, written).await.map_err(late)??
            }
            _ => written.await?,
        };
        archive.publish(&at).map_err(file("name archive"))?;
        info!(id, at = %at.display(), "container checkpointed");
        Ok(())
    }

    async fn write_checkpoint(
        self: &Arc<Self>,
        id: &str,
        container: Container,
        archive: Nameless,
    ) -> Result<Nameless, CriError> {
        let scratch = self.tasks.scratch(id).map_err(CriError::task(id))?;
        let (images, work) = (scratch.path().join("checkpoint"), scratch.path().join("work"));
        let options = CheckpointOptions {
            terminal: container.config.tty,
            image_path: images.display().to_string(),
            work_path: work.display().to_string(),
            ..Default::default()
        };
        let options = Some(typeurl::pack(&options));
        self.tasks.checkpoint(&self.namespace, id, options, None).await.map_err(CriError::task(id))?;
        let pid = self.tasks.get(&self.namespace, id, "").await.map_or(0, |process| process.pid);
        let (pods, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let documents = pods.documents(&id, container, pid)?;
            pods.write_changes(&id, &scratch.path().join("rootfs-diff.tar"))?;
            let packed = pack(&archive.file, scratch.path(), &documents);
            packed.map_err(|cause| {
                let at = scratch.path().to_owned();
                CheckpointError::File { id, what: "pack", at, cause }
            })?;
            Ok(archive)
        })
        .await
    }

    fn documents(&self, id: &str, container: Container, pid: u32) -> Result<Documents, CriError> {
        let record = self.containers.get(&self.namespace, id)?;
        let image = container.config.image.clone().unwrap_or_default().image;
        let name = container.config.metadata.clone().unwrap_or_default().name;
        let log = PathBuf::from(&container.log);
        let status = self.container_status(id, false)?.status.unwrap_or_default();
        Ok(Documents {
            config: json!({
                "id": id,
                "name": name,
                "rootfsImage": image,
                "rootfsImageName": image,
                "rootfsImageRef": container.image_id,
                "runtime": record.runtime.map(|runtime| runtime.name),
                "createdTime": time(container.created_at),
                "checkpointedTime": time(super::pods::now()),
            }),
            spec: record.spec.map(|spec| spec.value).unwrap_or_default(),
            containerd: json!({
                "Version": "v1", "Pid": pid, "CreatedAt": status.created_at, "StartedAt": status.started_at,
                "FinishedAt": 0, "ExitCode": 0, "Reason": "", "Message": "",
            }),
            status: told(&status),
            log,
        })
    }

    /// Writes what a container has changed of its image.
    fn write_changes(&self, id: &str, at: &Path) -> Result<(), CriError> {
        let file = |what: &'static str| {
            let (id, at) = (id.to_owned(), at.to_owned());
            move |cause| CheckpointError::File { id, what, at, cause }
        };
        let snapshots = self.stores.snapshots.get_or_default("")?;
        let right = snapshots.mounts(NAMESPACE, id)?;
        let parent = snapshots.stat(NAMESPACE, id)?.parent.unwrap_or_default();
        let key = unique("checkpoint");
        let left = snapshots.view(NAMESPACE, &key, &parent, layer::unfinished(), None)?;
        let mut output = io::BufWriter::with_capacity(256 << 10, File::create(at).map_err(file("make"))?);
        let copy = self.stores.snapshots.copy_behind(&left, &right);
        let difference = Difference {
            left: &left,
            right: &right,
            scratch: self.stores.snapshots.scratch(),
            copy: copy.as_deref(),
            epoch: None,
            except: Default::default(),
        };
        let written = difference.write(&mut output, Compression::Plain);
        match snapshots.remove(NAMESPACE, &key) {
            Ok(()) | Err(SnapshotError::NotFound(_)) => {}
            Err(error) => warn!(id, error = %chain(&error), "view of an image left to the next start"),
        }
        written.map_err(|cause| CheckpointError::Changes { id: id.to_owned(), cause })?;
        output.flush().map_err(file("write"))?;
        Ok(())
    }
}

/// Writes the archive.
fn pack(file: &File, folder: &Path, documents: &Documents) -> io::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, file));
    archive.follow_symlinks(false);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(MODE);
        header.set_mtime(now);
        archive.append_data(&mut header, name, bytes)
    };
    add("config.dump", &serde_json::to_vec(&documents.config)?)?;
    add("spec.dump", &documents.spec)?;
    add("status.dump", &serde_json::to_vec(&documents.status)?)?;
    add("status", &serde_json::to_vec(&documents.containerd)?)?;
    archive.append_dir_all("checkpoint", folder.join("checkpoint"))?;
    let work = folder.join("work");
    for (name, from) in [
        ("dump.log", work.join("dump.log")),
        ("stats-dump", work.join("stats-dump")),
        ("rootfs-diff.tar", folder.join("rootfs-diff.tar")),
        ("container.log", documents.log.clone()),
    ] {
        match File::open(&from) {
            // It may grow while it is read: as much of it as there is now.
            Ok(file) if file.metadata()?.is_file() => {
                let mut header = tar::Header::new_gnu();
                let size = file.metadata()?.len();
                header.set_size(size);
                header.set_mode(MODE);
                header.set_mtime(now);
                archive.append_data(&mut header, name, io::Read::take(file, size))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && name != "rootfs-diff.tar" => {}
            Err(error) => return Err(error),
        }
    }
    archive.into_inner()?.flush()
}

fn has_criu() -> bool {
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.into());
    let mut folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    folders.any(|folder| {
        let file = folder.join("criu");
        file.is_file() && nix::unistd::access(&file, nix::unistd::AccessFlags::X_OK).is_ok()
    })
}

fn time(nanoseconds: i64) -> String {
    prost_types::Timestamp::from(UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))).to_string()
}

/// A status as containerd writes it: the JSON of Go's message.
fn told(status: &cri::ContainerStatus) -> Value {
    let meta = status.metadata.clone().unwrap_or_default();
    let mounts = status.mounts.iter().map(|mount| {
        json!({ "container_path": mount.container_path, "host_path": mount.host_path, "readonly": mount.readonly })
    });
    json!({
        "id": status.id,
        "metadata": { "name": meta.name, "attempt": meta.attempt },
        "state": status.state,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "image": { "image": status.image.clone().unwrap_or_default().image },
        "image_ref": status.image_ref,
        "image_id": status.image_id,
        "labels": status.labels,
        "annotations": status.annotations,
        "mounts": mounts.collect::<Vec<_>>(),
        "log_path": status.log_path,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_archive_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, at) = (dir.path().join("scratch"), dir.path().join("checkpoint.tar"));
        fs::create_dir_all(folder.join("checkpoint")).unwrap();
        fs::create_dir(folder.join("work")).unwrap();
        for (name, text) in [("checkpoint/core-1.img", "core"), ("work/dump.log", "well"), ("rootfs-diff.tar", "layer")]
        {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::write(dir.path().join("0.log"), "line").unwrap();
        let documents = Documents {
            config: json!({ "id": "a" }),
            spec: b"{}".to_vec(),
            status: told(&cri::ContainerStatus { id: "a".into(), ..Default::default() }),
            containerd: json!({}),
            log: dir.path().join("0.log"),
        };
        let names = || fs::read_dir(dir.path()).unwrap().flatten().count();
        let archive = Nameless::make(&at).unwrap();
        pack(&archive.file, &folder, &documents).unwrap();
        assert_eq!(names(), 2);
        archive.publish(&at).unwrap();
        assert_eq!(archive.publish(&at).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(archive);
        assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, MODE);
        let mut read = tar::Archive::new(File::open(&at).unwrap());
        let found: Vec<_> = read.entries().unwrap().map(|one| one.unwrap().path().unwrap().into_owned()).collect();
        for name in [
            "config.dump",
            "spec.dump",
            "status.dump",
            "status",
            "checkpoint/core-1.img",
            "dump.log",
            "rootfs-diff.tar",
            "container.log",
        ] {
            assert!(found.contains(&name.into()), "{name}: {found:?}");
        }
        drop(Nameless::make(&dir.path().join("other.tar")).unwrap());
        assert_eq!(names(), 3);
        assert_eq!(time(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
    }
}
