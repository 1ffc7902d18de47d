//! A container's root file system as the supervisor keeps it, and the image's layers below it.

use super::{Container, layers::Layers, layers::LayersError, record::Record};
use crate::{
    app::App,
    ids,
    supervisor::{Lease, SupervisorError},
};
use proto::{
    containerd::{
        services::snapshots::v1::{MountsRequest, RemoveSnapshotRequest, ViewSnapshotRequest},
        types::Mount,
    },
    kind::chain,
};
use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt, path::Path};
use tracing::warn;

/// Mounts of the container's snapshot; asked for once.
pub async fn mounts(app: &App, container: &Container, record: &Record) -> Result<Vec<Mount>, SupervisorError> {
    if let Some(mounts) = container.live().snapshot.clone() {
        return Ok(mounts);
    }
    let request = MountsRequest { snapshotter: record.snapshotter.clone(), key: record.id.clone() };
    let answer = app
        .supervisor
        .retry(request, |client, request| async move { client.snapshots().mounts(request).await })
        .await?;
    container.live().snapshot = Some(answer.mounts.clone());
    Ok(answer.mounts)
}

/// Puts the empty `/.dockerenv` into a new root, by which programs tell that they are in a container. `mounts` are of the
/// snapshot that was just made; one that isn't a folder of this machine goes without.
pub fn mark(mounts: &[Mount]) -> io::Result<()> {
    let [mount] = mounts else { return Ok(()) };
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let folder = match upper {
        Some(upper) => upper,
        None if mount.r#type == "bind" && mount.options.iter().any(|option| option == "rw") => &mount.source,
        None => return Ok(()),
    };
    match OpenOptions::new().write(true).create_new(true).mode(0o755).open(Path::new(folder).join(".dockerenv")) {
        // The image has one: on other snapshots than overlays it is seen here.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("make /.dockerenv: {error}")))
        }
        _ => Ok(()),
    }
}

/// The image's layers as a snapshot of their own, that nobody writes to. [`Base::give_back`] when done; a lease takes it
/// along if this engine dies.
pub struct Base {
    /// How to mount it; nothing if the image has no layers.
    pub mounts: Vec<Mount>,
    /// Makes its calls under the lease that keeps it.
    pub lease: Lease,
    snapshot: Option<(String, String)>,
}

impl Base {
    /// Of a container, for the time of an operation.
    pub async fn of(app: &App, record: &Record, operation: &str) -> Result<Self, SupervisorError> {
        let random = ids::random_bytes::<8>().map_err(|e| SupervisorError::Protocol(format!("make an id: {e}")))?;
        let key = format!("berth-{operation}-{}", proto::digest::hex(&random));
        let lease = Lease::take(&app.supervisor, &key).await?;
        if record.chain_id.is_empty() {
            return Ok(Self { mounts: Vec::new(), lease, snapshot: None });
        }
        let snapshotter = record.snapshotter.clone();
        let request =
            ViewSnapshotRequest { snapshotter, key, parent: record.chain_id.clone(), ..ViewSnapshotRequest::default() };
        match lease.client.snapshots().view(request.clone()).await {
            Ok(answer) => {
                let snapshot = Some((request.snapshotter, request.key));
                Ok(Self { mounts: answer.into_inner().mounts, lease, snapshot })
            }
            Err(error) => {
                lease.give_back().await;
                Err(error.into())
            }
        }
    }

    /// Gives it back; also what else was made under its lease and is referred to by nothing.
    pub async fn give_back(self) {
        if let Some((snapshotter, key)) = self.snapshot {
            let request = RemoveSnapshotRequest { snapshotter, key };
            let removed = self
                .lease
                .client
                .retry(request, |client, request| async move { client.snapshots().remove(request).await })
                .await;
            match removed {
                Err(error) if !error.is_not_found() => {
                    warn!(error = %chain(&error), "snapshot left to the collector");
                }
                _ => {}
            }
        }
        self.lease.give_back().await;
    }
}

/// The parts of an overlay.
pub struct Overlay {
    /// Where what was written is.
    pub upper: String,
    /// What it was written over.
    pub lower: Layers,
}

/// The parts of a snapshot's mounts, if they are an overlay that can be written to.
pub fn overlay(mounts: &[Mount]) -> Result<Option<Overlay>, LayersError> {
    let [mount] = mounts else { return Ok(None) };
    let value = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)).map(str::to_owned);
    let (Some(upper), Some(lower)) = (value("upperdir="), value("lowerdir=")) else { return Ok(None) };
    if mount.r#type != "overlay" {
        return Ok(None);
    }
    let below = Mount { options: vec![format!("lowerdir={lower}")], ..mount.clone() };
    Ok(Some(Overlay { upper, lower: Layers::open(&[below])? }))
}
