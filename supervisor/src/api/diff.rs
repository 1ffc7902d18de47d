//! Diff service: unpacks layer blobs into snapshots that the client prepared.

use std::sync::Arc;

use proto::{
    containerd::{
        services::diff::v1::{self as api, diff_server},
        types::Descriptor as ProtoDescriptor,
    },
    digest::Digest,
};
use tonic::{Request, Response, Status, async_trait};

use super::required;
use crate::{
    failure::{blocking, namespace, status},
    layers::{LayerError, apply::apply},
    store::Stores,
};

/// The service over content and snapshots.
pub(crate) struct DiffService(Arc<Stores>);

impl DiffService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

#[async_trait]
impl diff_server::Diff for DiffService {
    async fn apply(&self, request: Request<api::ApplyRequest>) -> Result<Response<api::ApplyResponse>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let request = request.into_inner();
        let diff = required(request.diff, "diff")?;
        let digest: Digest =
            diff.digest.parse().map_err(|e: proto::digest::DigestError| Status::invalid_argument(e.to_string()))?;
        let target = stores.snapshots.target_of(&request.mounts).ok_or_else(|| {
            Status::unimplemented(format!(
                "apply {digest}: only mounts of a writable overlayfs snapshot of this supervisor can be unpacked to"
            ))
        })?;
        blocking(move || {
            let (blob, _) = stores.content.reader(namespace.as_str(), &digest).map_err(status)?;
            let applied = apply(blob, &target, &|_| ())
                .map_err(|cause| status(LayerError::Layer { layer: digest, cause: Box::new(cause) }))?;
            Ok(Response::new(api::ApplyResponse {
                applied: Some(ProtoDescriptor {
                    media_type: "application/vnd.oci.image.layer.v1.tar".into(),
                    digest: applied.diff_id.to_string(),
                    size: applied.size as i64,
                    annotations: Default::default(),
                }),
            }))
        })
        .await
    }

    async fn diff(&self, _: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        Err(Status::unimplemented("making a layer from the difference of two snapshots (commit) is not available yet"))
    }
}
