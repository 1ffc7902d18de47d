//! Unpacks layers by the published calls alone: prepare, apply, commit. Berth's supervisor unpacks what it pulls by itself;
//! this serves imported archives, and images that somebody fetched into the supervisor without unpacking them.

use super::{ImageContent, ImageError};
use crate::{
    ids,
    supervisor::{Client, Lease, SupervisorError, content},
};
use proto::{
    containerd::{
        services::{
            diff::v1::ApplyRequest,
            snapshots::v1::{
                CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
            },
        },
        types,
    },
    digest::{Digest, chain_id},
    kind::{ErrorKind, chain},
};
use tracing::{info, warn};

/// Unpacks the layers of an image that have no snapshot yet in the snapshotter in use; `name` is for errors.
pub async fn missing_layers(client: &Client, name: &str, image: &ImageContent) -> Result<(), ImageError> {
    let failed = |error| ImageError::supervisor("unpack image", name, error);
    let operation = format!("unpack-{}", ids::random_id().map_err(|e| ImageError::Invalid(e.to_string()))?);
    let lease = Lease::take(client, &operation).await.map_err(failed)?;
    let unpacked = missing_under(&lease.client, &operation, name, image).await;
    lease.give_back().await;
    unpacked
}

async fn missing_under(client: &Client, operation: &str, name: &str, image: &ImageContent) -> Result<(), ImageError> {
    let failed = |error| ImageError::supervisor("unpack image", name, error);
    let diff_ids = &image.config.rootfs.diff_ids;
    for (at, layer) in image.layers.iter().enumerate() {
        let key = chain_id(&diff_ids[..=at]).map(|id| id.to_string()).unwrap_or_default();
        let request = StatSnapshotRequest { snapshotter: client.snapshotter().into(), key };
        let known =
            client.retry(request, |client, request| async move { client.snapshots().stat(request).await }).await;
        match known {
            Ok(_) => continue,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(failed(error)),
        }
        let blob = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size: layer.size,
            ..types::Descriptor::default()
        };
        info!(image = name, layer = %layer.digest, "layer unpacked on demand");
        let found = apply(client, operation, &diff_ids[..at], &blob).await.map_err(failed)?;
        if found != diff_ids[at] {
            return Err(ImageError::Corrupt {
                image: name.to_owned(),
                what: format!("layer {}", layer.digest),
                cause: format!("unpacked it has digest {found}, its config says {}", diff_ids[at]),
            });
        }
    }
    // As long as the image is there, its snapshots are kept.
    let Some(chain) = image.chain_id() else { return Ok(()) };
    let label = gc_label(client);
    content::label(client, &image.id().to_string(), &label, &chain.to_string()).await.map_err(failed)
}

/// The label by which an image's config keeps its snapshots.
pub fn gc_label(client: &Client) -> String {
    format!("containerd.io/gc.ref.snapshot.{}", client.snapshotter())
}

/// Applies a layer to a new snapshot above those of `below`, and commits it under its chain id. Gives its diff id.
pub async fn apply(
    client: &Client,
    key: &str,
    below: &[Digest],
    layer: &types::Descriptor,
) -> Result<Digest, SupervisorError> {
    let snapshotter = client.snapshotter().to_owned();
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.to_owned(),
        parent: chain_id(below).map(|id| id.to_string()).unwrap_or_default(),
        ..PrepareSnapshotRequest::default()
    };
    let applied = async {
        let mounts = client.snapshots().prepare(prepare).await?.into_inner().mounts;
        let apply = ApplyRequest { diff: Some(layer.clone()), mounts, ..ApplyRequest::default() };
        let applied = client.diffs().apply(apply).await?.into_inner().applied.unwrap_or_default();
        let diff_id: Digest = applied
            .digest
            .parse()
            .map_err(|e| SupervisorError::Protocol(format!("digest of the unpacked layer: {e}")))?;
        let chain: Vec<Digest> = below.iter().copied().chain([diff_id]).collect();
        let commit = CommitSnapshotRequest {
            snapshotter: snapshotter.clone(),
            name: chain_id(&chain).map(|id| id.to_string()).unwrap_or_default(),
            key: key.to_owned(),
            ..CommitSnapshotRequest::default()
        };
        match client.snapshots().commit(commit).await.map_err(SupervisorError::from) {
            Ok(_) => Ok((diff_id, true)),
            // The same files as in another image: its snapshot serves both, ours goes.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok((diff_id, false)),
            Err(error) => Err(error),
        }
    };
    let applied = applied.await;
    if !matches!(applied, Ok((_, true))) {
        let remove = RemoveSnapshotRequest { snapshotter, key: key.to_owned() };
        // It may be the supervisor's end that was in the way: the next one is asked.
        match client.retry(remove, |client, request| async move { client.snapshots().remove(request).await }).await {
            Err(error) if !error.is_not_found() => {
                warn!(error = %chain(&error), "snapshot left to the collector");
            }
            _ => {}
        }
    }
    applied.map(|(diff_id, _)| diff_id)
}
