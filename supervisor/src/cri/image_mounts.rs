//! Images that containers have as mounts.
//!
//! A view of the image's layers is made with the container and goes with it; in between the container's record keeps it. It is mounted by us only
//! while the task is made, below a folder that the specification names: by then the runtime has it in the container's own mount table, and
//! the host's stays short. A foreign shim may want it longer, so there it stays until the task goes.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use proto::{kind::chain, runtime::v1 as cri};
use tracing::warn;

use super::{
    NAMESPACE,
    error::CriError,
    layer,
    place::{absent, unmount},
    pods::{Pods, blocking},
    record::{Container, Sandbox, words_of_ids},
    spec::ImageMount,
};
use crate::{
    layers::place,
    snapshots::{GID_MAP, SnapshotError, UID_MAP},
    store::Labels,
};

/// What a container is to see of images.
pub(super) struct Views {
    /// By the places of the mounts in the request.
    pub(super) mounts: BTreeMap<usize, ImageMount>,
    /// Labels of the container's record that keep them.
    pub(super) labels: Vec<(String, String)>,
}

impl Views {
    /// The keys of the views.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().map(|(_, key)| key.as_str())
    }
}

/// The images among the mounts of a container, by their places in the request.
fn images(config: &cri::ContainerConfig) -> impl Iterator<Item = (usize, &cri::Mount, &cri::ImageSpec)> {
    let mounts = config.mounts.iter().enumerate();
    mounts.filter_map(|(index, mount)| mount.image.as_ref().map(|image| (index, mount, image)))
}

fn key(id: &str, index: usize) -> String {
    format!("{id}-image-{index}")
}

impl Pods {
    /// Where the images of a container are mounted.
    fn image_mounts(&self, id: &str) -> PathBuf {
        self.folder().with_file_name("image-mounts").join(id)
    }

    /// Makes views of the images that a container wants.
    pub(super) fn view_images(
        &self,
        id: &str,
        sandbox: &Sandbox,
        config: &cri::ContainerConfig,
        lease: &str,
    ) -> Result<Views, CriError> {
        let snapshots = self.stores.snapshots.get_or_default("")?;
        let (mut seen, mut kept) = (BTreeMap::new(), Vec::new());
        for (index, mount, wanted) in images(config) {
            if wanted.image.is_empty() {
                return Err(CriError::Invalid(format!(
                    "the image to be mounted on {} has no name",
                    mount.container_path
                )));
            }
            let image = self.images.find(&wanted.image)?;
            let image = image.ok_or_else(|| CriError::NotFound { what: "image", id: wanted.image.clone() })?;
            // Overlays take no other owners once they are mounted: it is their layers that have them.
            let own = (!mount.uid_mappings.is_empty() && !mount.gid_mappings.is_empty())
                .then(|| (words_of_ids(&mount.uid_mappings), words_of_ids(&mount.gid_mappings)));
            let ids = own.or_else(|| sandbox.ids());
            let ids = ids.map(|(uids, gids)| [(UID_MAP.to_owned(), uids), (GID_MAP.to_owned(), gids)]);
            let labels: Labels = ids.into_iter().flatten().chain(layer::unfinished()).collect();
            let key = key(id, index);
            let parent = image.chain().map(|chain| chain.to_string()).unwrap_or_default();
            let mounts = snapshots.view(NAMESPACE, &key, &parent, labels, Some(lease))?;
            proto::fault!("supervisor.cri_container.image_viewed");
            let root = place::readable(&mounts, self.stores.snapshots.scratch()).map_err(SnapshotError::from)?;
            let root = root.ok_or(SnapshotError::NoMounts(key.clone()))?;
            seen.insert(index, ImageMount { root, at: self.image_mounts(id).join(index.to_string()) });
            kept.push((format!("containerd.io/gc.ref.snapshot.{}/image-{index}", snapshots.name()), key));
        }
        Ok(Views { mounts: seen, labels: kept })
    }

    /// Removes the views of a container that isn't on record; what is left goes to the collector.
    pub(super) fn remove_views(&self, id: &str, config: &cri::ContainerConfig) {
        for (index, ..) in images(config) {
            let key = key(id, index);
            let removed =
                self.stores.snapshots.get_or_default("").and_then(|snapshots| snapshots.remove(NAMESPACE, &key));
            match removed {
                Ok(()) | Err(SnapshotError::NotFound(_)) => {}
                Err(error) => warn!(id, key, error = %chain(&error), "view of an image is left to the collector"),
            }
        }
    }

    /// Mounts the images of a container, for its task to be made.
    pub(super) async fn mount_images(self: &Arc<Self>, id: &str, container: &Container) -> Result<(), CriError> {
        let wanted: Vec<usize> = images(&container.config).map(|(index, ..)| index).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let (pods, own) = (self.clone(), id.to_owned());
        let mounted = blocking(move || {
            let snapshots = pods.stores.snapshots.get_or_default("")?;
            for index in wanted {
                let mounts = snapshots.mounts(NAMESPACE, &key(&own, index))?;
                let mount = place::detached(&mounts, pods.stores.snapshots.scratch()).map_err(SnapshotError::from)?;
                let at = pods.image_mounts(&own).join(index.to_string());
                let failed = |what| {
                    let (id, at) = (own.clone(), at.clone());
                    move |cause| CriError::Io { id, what, at, cause }
                };
                fs::create_dir_all(&at).map_err(failed("make folder"))?;
                let folder = fs::File::open(&at).map_err(failed("open"))?;
                sys::mount::attach(mount, folder).map_err(|errno| failed("mount an image on")(errno.into()))?;
            }
            Ok(())
        });
        let mounted = mounted.await;
        match &mounted {
            Ok(()) => proto::fault!("supervisor.cri_container.images_mounted"),
            Err(_) => self.unmount_images(id).await,
        }
        mounted
    }

    /// Unmounts the images of a container; none need be mounted.
    pub(super) async fn unmount_images(self: &Arc<Self>, id: &str) {
        let (pods, own) = (self.clone(), id.to_owned());
        if let Err(error) = blocking(move || pods.take_images_away(&own)).await {
            warn!(id, error = %chain(&error), "images of a container stay mounted until our next start");
        }
    }

    fn take_images_away(&self, id: &str) -> Result<(), CriError> {
        let folder = self.image_mounts(id);
        let failed = |what, at: PathBuf| move |cause| CriError::Io { id: id.to_owned(), what, at, cause };
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let at = entry.path();
            unmount(&at).map_err(failed("unmount", at.clone()))?;
            absent(fs::remove_dir(&at)).map_err(failed("remove", at))?;
        }
        absent(fs::remove_dir(&folder)).map_err(failed("remove", folder))
    }

    /// Unmounts the images of all containers but those that run.
    pub(super) fn sweep_images(&self, running: impl Fn(&str) -> bool) {
        let folder = self.folder().with_file_name("image-mounts");
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Some(id) = entry.file_name().to_str().filter(|id| !running(id))
                && let Err(error) = self.take_images_away(id)
            {
                warn!(id, error = %chain(&error), "images of a container stay mounted");
            }
        }
    }
}
