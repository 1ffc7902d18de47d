//! Diff service: unpacks layer blobs onto mounts, and makes layer blobs of what differs between mounts.

use std::{
    io::{self, Write},
    sync::Arc,
};

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
    content::{ContentError, Writer},
    failure::{blocking, lease, namespace, status},
    images::manifest::DOCKER_LAYER,
    layers::{LayerError, apply::apply, decompress::Compression, diff::Difference, place::writable},
    leases::unique,
    store::{Labels, Stores, labels_from},
};

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// In a request's labels: paths that are to stay out of the layer, one in each line. Whoever commits a container leaves out
/// with it what was made for its mounts. Not a label of the blob.
const EXCEPT: &str = "berth/diff.except";
/// Tells, of a compressed layer, the digest of what is in it.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// The service over content and snapshots.
pub(crate) struct DiffService(Arc<Stores>);

impl DiffService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

/// How a layer of this media type is compressed.
fn compression(media_type: &str) -> Option<Compression> {
    let (kind, suffix) = match media_type.strip_prefix(OCI_LAYER) {
        Some("") => return Some(Compression::Plain),
        Some(rest) => ('+', rest),
        None => match media_type.strip_prefix(DOCKER_LAYER)? {
            "" => return Some(Compression::Plain),
            rest => ('.', rest),
        },
    };
    match suffix.strip_prefix(kind)? {
        "gzip" => Some(Compression::Gzip),
        "zstd" => Some(Compression::Zstd),
        _ => None,
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
        blocking(move || {
            let ours = |folder: &std::path::Path| stores.snapshots.has_layer(folder);
            let (blob, _) = stores.content.reader(namespace.as_str(), &digest).map_err(status)?;
            let target = writable(&request.mounts, stores.snapshots.scratch(), ours).map_err(status)?;
            let wrong = |cause| status(LayerError::Layer { layer: digest, cause: Box::new(cause) });
            let applied = apply(blob, &target, &|_| ()).map_err(wrong)?;
            if request.sync_fs {
                let failed = |cause| wrong(LayerError::Entry { what: "sync", path: ".".into(), cause });
                target.sync().map_err(failed)?;
            }
            Ok(Response::new(api::ApplyResponse {
                applied: Some(ProtoDescriptor {
                    media_type: OCI_LAYER.into(),
                    digest: applied.diff_id.to_string(),
                    size: applied.size as i64,
                    annotations: Default::default(),
                }),
            }))
        })
        .await
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        let (namespace, lease, stores) = (namespace(&request)?, lease(&request), self.0.clone());
        let mut request = request.into_inner();
        if request.media_type.is_empty() {
            request.media_type = format!("{OCI_LAYER}+gzip");
        }
        let unknown =
            || Status::unimplemented(format!("diff: layers of media type {:?} are not written", request.media_type));
        let compression = compression(&request.media_type).ok_or_else(unknown)?;
        blocking(move || make_layer(&stores, namespace.as_str(), lease.as_deref(), request, compression)).await
    }
}

fn make_layer(
    stores: &Stores,
    namespace: &str,
    lease: Option<&str>,
    mut request: api::DiffRequest,
    compression: Compression,
) -> Result<Response<api::DiffResponse>, Status> {
    let except = request.labels.remove(EXCEPT).unwrap_or_default();
    let except = except.lines().map(|path| path.trim_start_matches('/').as_bytes().to_vec()).collect();
    let copy = stores.snapshots.copy_behind(&request.left, &request.right);
    let difference = Difference {
        left: &request.left,
        right: &request.right,
        scratch: stores.snapshots.scratch(),
        copy: copy.as_deref(),
        epoch: request.source_date_epoch.map(|epoch| epoch.seconds),
        except,
    };
    let reference = if request.r#ref.is_empty() { unique("diff") } else { request.r#ref.clone() };
    let mut writer = stores.content.writer(namespace, &reference, 0, None, lease).map_err(status)?;
    // What an earlier attempt of this name left is not the beginning of this layer.
    writer.seek(0).map_err(status)?;
    let mut output = Output { writer, failed: None };
    let written = difference.write(&mut io::BufWriter::with_capacity(256 << 10, &mut output), compression);
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            let failed = output.failed.take();
            drop(output);
            if let Err(left) = stores.content.abort(namespace, &reference) {
                tracing::warn!(reference, error = %proto::kind::chain(&left), "half a layer left to the collector");
            }
            return Err(failed.map_or_else(|| status(error), status));
        }
    };
    let mut labels: Labels = labels_from(request.labels);
    if let Some(diff_id) = written.diff_id {
        labels.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
    }
    let size = output.writer.offset();
    let digest = match output.writer.commit(size, None, &labels) {
        // The same layer is there from another time.
        Err(ContentError::Exists(digest)) => {
            stores.content.add_labels(namespace, &digest, &labels).map_err(status)?;
            digest
        }
        other => other.map_err(status)?,
    };
    Ok(Response::new(api::DiffResponse {
        diff: Some(ProtoDescriptor {
            media_type: request.media_type,
            digest: digest.to_string(),
            size: size as i64,
            annotations: Default::default(),
        }),
    }))
}

/// Bytes into the content store; what went wrong there is kept, since `io::Error` can't carry it.
struct Output {
    writer: Writer,
    failed: Option<ContentError>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.writer.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.failed = Some(error);
                Err(io::Error::other("the content store"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        for (media_type, wanted) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::Plain)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar+gzip", None),
            ("application/vnd.oci.image.layer.v1.tar+xz", None),
            ("text/plain", None),
        ] {
            assert_eq!(compression(media_type), wanted, "{media_type}");
        }
    }
}
