//! Checkpoints: what the shim writes of a running container becomes blobs, and such blobs become a container again.
//!
//! A checkpoint is two blobs, as in containerd: the files that the runtime wrote, as a tar, and the container's
//! specification. With an image path in its options it is files in that folder, and no blob.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use prost::Message;
use prost_types::Any;
use proto::{
    containerd::{
        runc::v1::{CheckpointOptions, Options},
        task::v3::CheckpointTaskRequest,
        types::Descriptor,
    },
    digest::{Digest, DigestError},
    id::{ContainerId, NamespaceName},
    kind::{ErrorKind, chain},
    typeurl,
};
use tracing::{info, warn};

use super::{
    Tasks,
    bundle::{Bundle, Images, scan},
    error::TaskError,
    rules::Request,
    task::Task,
};
use crate::{
    content::{Content, ContentError, Writer},
    failure::Failure,
    leases::unique,
    store::Labels,
};

/// What the runtime wrote, as a tar.
const FILES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// The specification, as the record holds it.
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

/// Why a checkpoint can't be kept, or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// A blob.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The descriptor names no digest.
    #[error("checkpoint")]
    Digest(#[from] DigestError),
    /// It is a blob of another kind.
    #[error("a checkpoint of media type {0:?} is not known, only {FILES:?}")]
    Media(String),
    /// The archive holds what no checkpoint holds.
    #[error("checkpoint archive: {0:?} is neither a file nor a folder below its root")]
    Entry(PathBuf),
    /// A file.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}

impl Failure for CheckpointError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Content(error) => error.kind(),
            Self::Digest(_) | Self::Media(_) | Self::Entry(_) => ErrorKind::InvalidArgument,
            Self::Io { cause, .. } => ErrorKind::of_io(cause),
        }
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
    move |cause| CheckpointError::Io { what, cause }
}

/// A folder for the time of one operation.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    fn make(folder: &Path) -> Result<Self, CheckpointError> {
        let at = folder.join(unique("checkpoint"));
        make_folder(&at)?;
        Ok(Self(at))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            warn!(%error, folder = %self.0.display(), "folder of a checkpoint left to the next start");
        }
    }
}

fn make_folder(at: &Path) -> Result<(), CheckpointError> {
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(at);
    made.map_err(failed("make a folder for the checkpoint"))
}

/// Removes what operations of a dead process left; not what tasks below `tasks` have yet to be restored from.
pub(super) fn sweep(folder: &Path, tasks: &Path) {
    let found = match scan(tasks) {
        Ok(found) => found,
        Err(error) => return warn!(%error, "checkpoints not swept: tasks can't be listed"),
    };
    let images = |(namespace, id)| Bundle::at(tasks, &namespace, &id).origin()?.images;
    let wanted: Vec<_> = found.into_iter().filter_map(images).map(|images| images.folder).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let at = entry.path();
        if !wanted.contains(&at)
            && let Err(error) = fs::remove_dir_all(&at)
        {
            warn!(%error, folder = %at.display(), "left-over checkpoint not removed");
        }
    }
}

impl Tasks {
    /// A folder for what is made of a task's checkpoint; if we die, the next start removes it.
    pub(crate) fn scratch(&self, id: &str) -> Result<Scratch, TaskError> {
        let id = ContainerId::new(id)?;
        Scratch::make(&self.checkpoints).map_err(|cause| TaskError::Checkpoint { id, cause })
    }

    /// Has the shim write what the container's processes are, and keeps that under `lease`.
    pub(crate) async fn checkpoint(
        &self,
        namespace: &NamespaceName,
        id: &str,
        options: Option<Any>,
        lease: Option<String>,
    ) -> Result<Vec<Descriptor>, TaskError> {
        let task = self.find(namespace, id).await?;
        let container = self.containers.get(namespace, id)?;
        let told = options.as_ref().and_then(typeurl::unpack::<CheckpointOptions>).and_then(Result::ok);
        let named = told.map(|options| options.image_path).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (content, folder) = (self.content.clone(), self.checkpoints.clone());
        task.in_turn(async move |task| {
            let kept = |cause| TaskError::Checkpoint { id: task.id.clone(), cause };
            task.accept(Request::Checkpoint).await?;
            let scratch = match named {
                Some(_) => None,
                None => Some(Scratch::make(&folder).map_err(kept)?),
            };
            let path = scratch.as_ref().map_or_else(|| named.clone().unwrap_or_default(), |s| s.path().to_owned());
            let path = path.display().to_string();
            let message = CheckpointTaskRequest { id: task.id.to_string(), path, options };
            let call =
                task.call("Checkpoint", message, |mut shim, request| async move { shim.checkpoint(request).await });
            call.await?;
            info!(namespace = %task.namespace, id = %task.id, "task checkpointed");
            let Some(scratch) = scratch else { return Ok(Vec::new()) };
            let spec = container.spec.unwrap_or_default().encode_to_vec();
            let namespace = task.namespace.to_string();
            let keep = move || {
                let files = keep_files(&content, &namespace, scratch.path(), lease.as_deref())?;
                let digest = content.put(&namespace, &spec, &Labels::new(), lease.as_deref())?;
                Ok(vec![files, descriptor(CONFIG, digest, spec.len() as u64)])
            };
            let done = tokio::task::spawn_blocking(keep).await;
            done.unwrap_or_else(|_| Err(failed("keep the checkpoint")(io::ErrorKind::Other.into()))).map_err(kept)
        })
        .await
    }

    /// What a new task is to be restored from: files in a folder that its options name, or those of a checkpoint's blob,
    /// which then get a folder of their own. As in containerd, the options count first.
    pub(super) fn images(
        &self,
        checkpoint: Option<Descriptor>,
        options: Option<&Any>,
    ) -> Result<Option<(Images, Option<Descriptor>)>, CheckpointError> {
        let told = options.and_then(typeurl::unpack::<Options>).and_then(Result::ok);
        if let Some(path) = told.map(|options| options.criu_image_path).filter(|path| !path.is_empty()) {
            return Ok(Some((Images { folder: path.into(), own: false }, None)));
        }
        let Some(checkpoint) = checkpoint.filter(|checkpoint| !checkpoint.digest.is_empty()) else { return Ok(None) };
        if checkpoint.media_type != FILES {
            return Err(CheckpointError::Media(checkpoint.media_type));
        }
        let folder = self.checkpoints.join(unique("restore"));
        Ok(Some((Images { folder, own: true }, Some(checkpoint))))
    }

    /// Lays out the files of a checkpoint for a shim to restore from. Whoever asks has noted the folder: it goes with the
    /// task.
    pub(super) async fn unpack_checkpoint(
        &self,
        namespace: &NamespaceName,
        checkpoint: Descriptor,
        folder: PathBuf,
    ) -> Result<(), CheckpointError> {
        let digest: Digest = checkpoint.digest.parse()?;
        let (content, namespace) = (self.content.clone(), namespace.to_string());
        let unpack = move || {
            let (file, _) = content.reader(&namespace, &digest)?;
            make_folder(&folder)?;
            unpack_files(file, &folder)
        };
        let done = tokio::task::spawn_blocking(unpack).await;
        done.unwrap_or_else(|_| Err(failed("unpack the checkpoint")(io::ErrorKind::Other.into())))
    }
}

/// A task has started: what it was restored from has done its work.
pub(super) fn release_images(task: &Task) {
    let (bundle, id) = (task.bundle.clone(), task.id.clone());
    // Memory images are big; nobody has to wait for their end.
    tokio::task::spawn_blocking(move || {
        if let Err(error) = bundle.remove_images() {
            warn!(%id, error = %chain(&error), "images of a restored task left until its deletion");
        }
    });
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: size as i64,
        annotations: Default::default(),
    }
}

fn keep_files(
    content: &Arc<Content>,
    namespace: &str,
    folder: &Path,
    lease: Option<&str>,
) -> Result<Descriptor, CheckpointError> {
    let mut ingest = Ingest(content.writer(namespace, &unique("checkpoint"), 0, None, lease)?);
    let mut archive = tar::Builder::new(&mut ingest);
    archive.mode(tar::HeaderMode::Deterministic);
    archive.follow_symlinks(false);
    let packed = archive.append_dir_all(".", folder).and_then(|()| archive.into_inner().map(drop));
    if let Err(cause) = packed {
        ingest.0.abort()?;
        return Err(failed("pack the checkpoint")(cause));
    }
    let size = ingest.0.offset();
    match ingest.0.commit(size, None, &Labels::new()) {
        Ok(digest) | Err(ContentError::Exists(digest)) => Ok(descriptor(FILES, digest, size)),
        Err(error) => Err(error.into()),
    }
}

/// An ingest as the archive writes to it.
struct Ingest(Writer);

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(|error| match error {
            ContentError::Io { cause, .. } => cause,
            other => io::Error::other(other),
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The archive comes from whoever could write content: plain files and folders below `folder`, and nothing else.
fn unpack_files(archive: impl Read, folder: &Path) -> Result<(), CheckpointError> {
    let unpack = || failed("unpack the checkpoint");
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(unpack())? {
        let mut entry = entry.map_err(unpack())?;
        let name = entry.path().map_err(unpack())?.into_owned();
        let plain = name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let kind = entry.header().entry_type();
        if !plain || !(kind.is_file() || kind.is_dir()) {
            return Err(CheckpointError::Entry(name));
        }
        // Nothing here is a link, so a name below the folder leads to a place below the folder.
        let at = folder.join(&name);
        if kind.is_dir() {
            fs::create_dir_all(&at).map_err(unpack())?;
            continue;
        }
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent).map_err(unpack())?;
        }
        let mut file = File::create(&at).map_err(unpack())?;
        io::copy(&mut entry, &mut file).map_err(unpack())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{snapshots::SnapshotConfig, store::Stores};

    #[test]
    fn files_become_a_blob_and_files_again() {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::open(dir.path(), &SnapshotConfig::default(), Arc::new(|_, _, _| {})).unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("below")).unwrap();
        fs::write(from.join("pages-1.img"), vec![7; 100_000]).unwrap();
        fs::write(from.join("below/dump.log"), "well").unwrap();
        let kept = keep_files(&stores.content, "ns", &from, None).unwrap();
        assert_eq!(keep_files(&stores.content, "ns", &from, None).unwrap(), kept, "the same files are the same blob");
        let (file, size) = stores.content.reader("ns", &kept.digest.parse().unwrap()).unwrap();
        assert_eq!((kept.media_type.as_str(), kept.size as u64), (FILES, size));
        let scratch = Scratch::make(&dir.path().join("scratch")).unwrap();
        unpack_files(file, scratch.path()).unwrap();
        assert_eq!(fs::read(scratch.path().join("pages-1.img")).unwrap(), vec![7; 100_000]);
        assert_eq!(fs::read_to_string(scratch.path().join("below/dump.log")).unwrap(), "well");
        let at = scratch.path().to_owned();
        drop(scratch);
        assert!(!at.exists());
    }

    #[test]
    fn a_sweep_spares_what_a_task_waits_to_be_restored_from() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, tasks) = (dir.path().join("checkpoints"), dir.path().join("tasks"));
        let namespace = NamespaceName::new("ns").unwrap();
        let wanted = Images { folder: checkpoints.join("restore-1"), own: true };
        for folder in [&wanted.folder, &checkpoints.join("restore-2")] {
            make_folder(folder).unwrap();
        }
        let bundle = Bundle::at(&tasks, &namespace, &ContainerId::new("a").unwrap());
        let origin = serde_json::json!({"shim": "/s", "stdin": "", "stdout": "", "stderr": "", "terminal": false,
            "images": wanted});
        bundle.make(b"{}", &serde_json::from_value(origin).unwrap()).unwrap();
        sweep(&checkpoints, &tasks);
        let left: Vec<_> = fs::read_dir(&checkpoints).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, [wanted.folder]);
        bundle.remove().unwrap();
        assert_eq!(fs::read_dir(&checkpoints).unwrap().count(), 0, "they go with their task");
        sweep(&checkpoints, &tasks);
        sweep(&dir.path().join("none"), &tasks);
    }

    #[test]
    fn archives_can_not_lead_out_of_their_folder() {
        for (name, kind) in [
            ("../out", tar::EntryType::Regular),
            ("/out", tar::EntryType::Regular),
            ("link", tar::EntryType::Symlink),
            ("link", tar::EntryType::Link),
            ("device", tar::EntryType::Char),
        ] {
            let mut archive = Vec::new();
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            archive.extend_from_slice(&[0; 1024]);
            let dir = tempfile::tempdir().unwrap();
            let error = unpack_files(&*archive, dir.path()).unwrap_err();
            assert!(matches!(error, CheckpointError::Entry(_)), "{name}: {error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
