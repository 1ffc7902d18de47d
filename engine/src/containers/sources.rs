//! Where mounts come from, as far as that exists only for a container: an image seen through a read-only snapshot, a volume
//! that has to be mounted itself, a path below either. At the start it is opened here, by descriptor, and the runtime is told
//! `/proc/PID/fd/N`: no link that is put in its place meanwhile changes where it leads.
//!
//! Views of images live as long as their container; what is mounted on the host lives while it runs.

use super::{
    create::LABEL,
    layers::Layers,
    namespaces,
    record::{MountKind, MountPoint, Record},
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    ids,
    images::unpack,
    supervisor::{Client, SupervisorError},
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, umount2},
    sys::stat::Mode,
};
use proto::{
    containerd::{
        services::snapshots::v1::{MountsRequest, RemoveSnapshotRequest, ViewSnapshotRequest},
        types::Mount,
    },
    kind::{ErrorKind, chain},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::DirBuilder,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use sys::{
    mount::{Reach, attr},
    path::{Within, open_within},
};
use tracing::warn;

/// Sources that were opened, by the place of their mount in the record. The descriptors must live until the task is created.
#[derive(Debug, Default)]
pub struct Sources {
    /// What the specification is to say.
    pub paths: BTreeMap<usize, String>,
    /// What they are below, on the host.
    roots: BTreeMap<usize, PathBuf>,
    held: Vec<OwnedFd>,
}

/// Makes views of the images that are to be mounted.
pub async fn make_views(app: &App, record: &mut Record) -> ApiResult<()> {
    for at in 0..record.mounts.len() {
        let (kind, source) = (record.mounts[at].kind, record.mounts[at].source.clone());
        if kind != MountKind::Image {
            continue;
        }
        let image = app.images.resolve(&source).await?;
        let parent = image.content.chain_id().map(|chain| chain.to_string()).unwrap_or_default();
        if parent.is_empty() {
            return Err(ApiError::invalid(format!("image {source} has no files that could be mounted")));
        }
        let key = format!("{}-image-{at}", record.id);
        let labels = HashMap::from([
            ("containerd.io/gc.root".to_owned(), record.created.to_string()),
            (LABEL.to_owned(), record.id.clone()),
        ]);
        let snapshotter = record.snapshotter.clone();
        let request = ViewSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        // In the record first: what fails from here on is taken back by it.
        record.mounts[at].snapshot = Some(key);
        record.mounts[at].source = image.id.to_string();
        let call = |client: Client, request| async move { client.snapshots().view(request).await };
        let made = match app.supervisor.retry(request.clone(), call).await {
            // Fetched by somebody who didn't unpack it.
            Err(error) if error.is_not_found() => {
                unpack::missing_layers(&app.supervisor, &source, &image.content).await?;
                app.supervisor.retry(request, call).await
            }
            made => made,
        };
        match made {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                let text = format!("prepare a view of image {source}: {}", chain(&error));
                return Err(ApiError::new(crate::http::error::status_of(error.kind()), text));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the views with their container.
pub async fn remove_views(client: &Client, snapshotter: &str, mounts: &[MountPoint]) -> Result<(), SupervisorError> {
    for key in mounts.iter().filter_map(|mount| mount.snapshot.clone()) {
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
        let call = |client: Client, request| async move { client.snapshots().remove(request).await };
        match client.retry(request, call).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_special(mount: &MountPoint) -> bool {
    mount.kind == MountKind::Image || mount.kind == MountKind::Volume
}

/// Opens the sources of a container that starts.
pub async fn open(app: &Arc<App>, record: &Record) -> ApiResult<Sources> {
    if !record.mounts.iter().any(is_special) {
        return Ok(Sources::default());
    }
    let mut views = HashMap::new();
    for mount in &record.mounts {
        if let Some(key) = &mount.snapshot {
            let request = MountsRequest { snapshotter: record.snapshotter.clone(), key: key.clone() };
            let call = |client: Client, request| async move { client.snapshots().mounts(request).await };
            let answer = app.supervisor.retry(request, call).await.map_err(|error| {
                ApiError::internal(format!(
                    "start container {}: view of {}: {}",
                    record.name,
                    mount.source,
                    chain(&error)
                ))
            })?;
            views.insert(key.clone(), answer.mounts);
        }
    }
    let driven = match mount_driven(app, record).await {
        Ok(driven) => driven,
        Err(error) => {
            unmount_driven(app, &record.id).await;
            return Err(error);
        }
    };
    let (owner, copy) = (app.clone(), record.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let opened = open_all(&owner, &copy, &views, &driven);
        if opened.is_err() {
            release_all(&owner, &copy);
        }
        opened
    });
    let opened = opened.await.map_err(|e| ApiError::unexpected(&e)).flatten();
    if opened.is_err() {
        unmount_driven(app, &record.id).await;
    }
    opened
}

/// The mounts of a container that doesn't run, for somebody who looks into its files: what has to be mounted for that is, until this
/// is dropped.
pub struct Look {
    /// Mounts with sources that are there.
    pub mounts: Vec<MountPoint>,
    app: Arc<App>,
    looker: Record,
}

impl Look {
    /// Opens the sources as a start would, in a name of its own: the container may start meanwhile.
    pub async fn open(app: &Arc<App>, record: &Record) -> ApiResult<Self> {
        let id = ids::random_id().map_err(|e| ApiError::unexpected(&e))?;
        let looker = Record { id: format!("looking-{id}"), ..record.clone() };
        let sources = open(app, &looker).await.map_err(|mut error| {
            error.message = error.message.replacen("start container", "look into the files of container", 1);
            error
        })?;
        let mut mounts = record.mounts.clone();
        // Paths below are opened anew, in the namespace where they are to be mounted.
        for (at, root) in sources.roots {
            mounts[at].source = root.display().to_string();
        }
        Ok(Self { mounts, app: app.clone(), looker })
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if !self.mounts.iter().any(is_special) {
            return;
        }
        let (app, looker) = (self.app.clone(), self.looker.clone());
        // Threads that read for a client have no runtime of their own.
        self.app.runtime.spawn(async move { give_back(&app, &looker).await });
    }
}

/// Where volumes of plugins are: each is mounted once for a container, however often it has it.
type Driven = HashMap<String, PathBuf>;

async fn mount_driven(app: &App, record: &Record) -> ApiResult<Driven> {
    let mut driven = Driven::new();
    for mount in record.mounts.iter().filter(|mount| mount.is_driven()) {
        let Some(volume) = mount.volume.as_ref().filter(|volume| !driven.contains_key(*volume)) else { continue };
        let at = app.volumes.mount_driven(volume, &record.id).await;
        let at =
            at.map_err(|error| ApiError::internal(format!("start container {}: {}", record.name, chain(&error))))?;
        driven.extend(at.map(|at| (volume.clone(), at)));
    }
    Ok(driven)
}

/// A plugin that hangs holds up the end of its containers for this long.
const FAREWELL: Duration = Duration::from_secs(5);

async fn unmount_driven(app: &Arc<App>, user: &str) {
    if !app.volumes.has_driven(user) {
        return;
    }
    let (app, user) = (app.clone(), user.to_owned());
    let work = tokio::spawn(async move { app.volumes.unmount_driven(&user).await });
    // It goes on all the same.
    let _ = tokio::time::timeout(FAREWELL, work).await;
}

fn open_all(app: &App, record: &Record, views: &HashMap<String, Vec<Mount>>, driven: &Driven) -> ApiResult<Sources> {
    let mut sources = Sources::default();
    for (at, mount) in record.mounts.iter().enumerate() {
        let root = match (mount.kind, &mount.volume, &mount.snapshot) {
            (MountKind::Volume, Some(volume), _) if mount.is_driven() => {
                let Some(at_host) = driven.get(volume) else {
                    return Err(ApiError::internal(format!(
                        "start container {}: volume {volume} is not mounted: its driver is not the one it was",
                        record.name
                    )));
                };
                sources.paths.insert(at, at_host.display().to_string());
                at_host.clone()
            }
            (MountKind::Volume, Some(volume), _) => {
                app.volumes.mount(volume, &record.id).map_err(|error| {
                    ApiError::internal(format!("start container {}: {}", record.name, chain(&error)))
                })?;
                app.volumes.path(volume)
            }
            (MountKind::Image, _, Some(key)) => {
                let folder = folder_of(app, &record.id).join(at.to_string());
                let mounts = views.get(key).map_or(&[][..], Vec::as_slice);
                show(mounts, &folder).map_err(|why| {
                    ApiError::internal(format!("start container {}: mount image {}: {why}", record.name, mount.source))
                })?;
                sources.paths.insert(at, folder.display().to_string());
                folder
            }
            _ => continue,
        };
        sources.roots.insert(at, root.clone());
        if mount.subpath.is_empty() {
            continue;
        }
        let opened = open_below(&root, &mount.subpath).map_err(|error| {
            ApiError::internal(format!(
                "start container {}: cannot access path {}: {}",
                record.name,
                root.join(&mount.subpath).display(),
                error.desc().to_lowercase()
            ))
        })?;
        sources.paths.insert(at, format!("/proc/{}/fd/{}", std::process::id(), opened.as_raw_fd()));
        sources.held.push(opened);
    }
    Ok(sources)
}

/// Never leads out of the root, whatever links there are in it.
pub fn open_below(root: &Path, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(root, flags, Mode::empty())?;
    open_within(&root, path, OFlag::O_PATH, 0, Within::Root)
}

fn folder_of(app: &App, id: &str) -> PathBuf {
    app.config.engine_run().join("mounts").join(id)
}

/// Mounts a view on the host, read-only.
fn show(mounts: &[Mount], folder: &Path) -> Result<(), String> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| e.to_string())?;
    // Of a start that was interrupted.
    let _ = umount2(folder, MntFlags::MNT_DETACH);
    let layers = Layers::open_for(mounts, attr::RDONLY).map_err(|error| chain(&error).to_string())?;
    let at = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let failed = |error: Errno| error.desc().to_lowercase();
    let folder = nix::fcntl::open(folder, at, Mode::empty()).map_err(failed)?;
    sys::mount::set_attributes(layers.root(), Reach::One, attr::RDONLY, 0, None).map_err(failed)?;
    sys::mount::attach(layers.root(), &folder).map_err(failed)
}

/// Gives back what a container has on the host only while it runs.
pub async fn release(app: &Arc<App>, record: &Record) {
    namespaces::release(app, record);
    give_back(app, record).await;
}

async fn give_back(app: &Arc<App>, record: &Record) {
    unmount_driven(app, &record.id).await;
    if !record.mounts.iter().any(is_special) {
        return;
    }
    let (app, record) = (app.clone(), record.clone());
    if let Err(error) = tokio::task::spawn_blocking(move || release_all(&app, &record)).await {
        warn!(%error, "mounts of a container left behind");
    }
}

fn release_all(app: &App, record: &Record) {
    for volume in record.mounts.iter().filter_map(|mount| mount.volume.as_ref()) {
        if let Err(error) = app.volumes.unmount(volume, &record.id) {
            warn!(id = ids::short(&record.id), error = %chain(&error), "volume stays mounted");
        }
    }
    if record.mounts.iter().any(|mount| mount.kind == MountKind::Image) {
        unmount_folder(&folder_of(app, &record.id), &record.id);
    }
}

fn unmount_folder(folder: &Path, id: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match umount2(&entry.path(), MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => warn!(id = ids::short(id), %error, "view of an image stays mounted"),
        }
        // Only an empty folder can be removed: never what is in the image.
        let _ = std::fs::remove_dir(entry.path());
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(id = ids::short(id), %error, "folder with views of images left behind");
        }
        _ => {}
    }
}

/// Gives back what engines before this one could not.
pub fn sweep(app: &App) {
    let needed = |app: &App, id: &str| {
        app.containers.get(id).is_some_and(|container| {
            let live = container.live();
            live.starting || live.ending || live.record.state.phase.is_live()
        })
    };
    for entry in std::fs::read_dir(app.config.engine_run().join("mounts")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str() else { continue };
        if !needed(app, id) {
            unmount_folder(&entry.path(), id);
        }
    }
    app.volumes.sweep();
    namespaces::sweep(app);
    app.volumes.sweep_driven(|user| needed(app, user));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_below_stays_below() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("in/side")).unwrap();
        std::fs::write(folder.path().join("secret"), "outside").unwrap();
        symlink("../../secret", root.join("in/out")).unwrap();
        symlink("/in/side", root.join("absolute")).unwrap();
        assert!(open_below(&root, "in/side").is_ok());
        assert!(open_below(&root, "absolute").is_ok(), "the volume is the root of its links");
        assert_eq!(open_below(&root, "in/out").unwrap_err(), Errno::ENOENT);
        assert_eq!(open_below(&root, "nowhere").unwrap_err(), Errno::ENOENT);
    }
}
