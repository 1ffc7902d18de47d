//! `docker commit`: what a container has written becomes a layer on top of its image's.
//!
//! The layer is made by the Diff service and stays uncompressed: it is unpacked again at once, and compressing it would be
//! most of the time. A push compresses what it sends. All under one lease, so that a failure at any step leaves nothing.

use super::{
    ImageContent, ImageError, Images,
    config::{History, ImageConfig},
    content::Descriptor,
    import, unpack,
};
use crate::{
    api::Config,
    supervisor::{Client, SupervisorError, content},
    time::Timestamp,
};
use proto::{
    containerd::{services::diff::v1::DiffRequest, types},
    digest::{Digest, chain_id},
    image_ref::ImageRef,
};
use serde_json::json;

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// An archive without entries: two blocks of zeros.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// What the image is to be besides its files.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// Its name, if it gets one.
    pub name: Option<ImageRef>,
    /// Who made it.
    pub author: String,
    /// A note.
    pub comment: String,
    /// The command of the container, for the history.
    pub created_by: String,
    /// What its config says.
    pub config: Config,
}

/// Tells the Diff service what stays out of the layer. A containerd takes it for a label of the blob.
const EXCEPT: &str = "berth/diff.except";

/// Makes the layer of what `right` has and `left` hasn't, without the paths of `except`.
pub async fn layer(
    client: &Client,
    parent: &ImageContent,
    left: Vec<types::Mount>,
    right: Vec<types::Mount>,
    except: &[String],
) -> Result<types::Descriptor, SupervisorError> {
    let media_type = if is_docker(parent) { DOCKER_LAYER } else { OCI_LAYER };
    let labels = [(EXCEPT.to_owned(), except.join("\n"))].into_iter().filter(|_| !except.is_empty()).collect();
    let request = DiffRequest { left, right, media_type: media_type.into(), labels, ..DiffRequest::default() };
    let made = client.diffs().diff(request).await?.into_inner();
    made.diff.ok_or_else(|| SupervisorError::Protocol("no layer in the answer to Diff".into()))
}

// One family of media types in one manifest: some registries refuse mixtures.
fn is_docker(parent: &ImageContent) -> bool {
    parent.layers.iter().any(|layer| layer.media_type.starts_with("application/vnd.docker."))
}

impl Images {
    /// Makes an image of a layer above `parent`; gives its id. `client` has the lease that keeps the layer so far.
    pub async fn commit(
        &self,
        client: &Client,
        operation: &str,
        parent: &ImageContent,
        layer: &types::Descriptor,
        request: CommitRequest,
    ) -> Result<Digest, ImageError> {
        let failed = |error| ImageError::supervisor("commit", "layer", error);
        let encode_failed = |e: serde_json::Error| ImageError::Invalid(format!("commit: encode image: {e}"));
        let diff_id: Digest = layer
            .digest
            .parse()
            .map_err(|e| failed(SupervisorError::Protocol(format!("digest of the new layer: {e}"))))?;
        let empty = layer.digest == EMPTY_LAYER;
        let below = &parent.config.rootfs.diff_ids;
        // A run starts at once.
        if !empty {
            let found = unpack::apply(client, operation, below, layer).await.map_err(failed)?;
            if found != diff_id {
                let cause = format!("unpacked it has digest {found}");
                return Err(ImageError::Corrupt { image: layer.digest.clone(), what: "new layer".into(), cause });
            }
        }
        let now = Timestamp::now();
        let mut config = ImageConfig {
            created: now,
            author: request.author.clone(),
            comment: request.comment.clone(),
            docker_version: env!("CARGO_PKG_VERSION").into(),
            config: request.config,
            ..parent.config.clone()
        };
        config.history.push(History {
            created: now,
            created_by: request.created_by,
            author: request.author,
            comment: request.comment,
            empty_layer: empty,
        });
        let mut layers: Vec<serde_json::Value> = parent.layers.iter().map(shown).collect();
        if !empty {
            config.rootfs.diff_ids.push(diff_id);
            layers.push(json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}));
        }
        let digests: Vec<String> =
            layers.iter().filter_map(|layer| Some(layer["digest"].as_str()?.to_owned())).collect();
        let chain = chain_id(&config.rootfs.diff_ids);
        let keeps_snapshot = chain.map(|chain| (unpack::gc_label(client), chain.to_string()));
        // A supervisor that has dropped blobs of the parent's layers names at its config what they can be made from again.
        let of_parent = content::labels(client, &parent.id().to_string()).await.map_err(failed)?;
        let recipes = of_parent.into_iter().filter(|(key, _)| is_of_recipe(key));
        let config = serde_json::to_vec(&config).map_err(encode_failed)?;
        let config_size = config.len();
        let labels = recipes.chain(keeps_snapshot).collect();
        let id = content::write(client, config, labels).await.map_err(failed)?;
        let (manifest_type, config_type) =
            if is_docker(parent) { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (import::MANIFEST, import::CONFIG) };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": id, "size": config_size},
            "layers": layers,
        }));
        let manifest = manifest.map_err(encode_failed)?;
        let size = manifest.len() as i64;
        let config_label = [("containerd.io/gc.ref.content.config".to_owned(), id.to_string())].into_iter();
        let layer_label = |(at, digest)| (format!("containerd.io/gc.ref.content.l.{at}"), digest);
        let labels = config_label.chain(digests.into_iter().enumerate().map(layer_label)).collect();
        let digest = content::write(client, manifest, labels).await.map_err(failed)?.to_string();
        let target =
            types::Descriptor { media_type: manifest_type.into(), digest, size, ..types::Descriptor::default() };
        proto::fault!("engine.commit.manifest_written");
        self.name_new(request.name.as_ref(), &target).await?;
        Ok(id)
    }
}

/// Whether a label of a config says what dropped blobs of layers can be made from again.
// `containerd.io/gc.ref.content.recipe.N`, and `containerd.io/gc.ref.snapshot.DRIVER/recipe.N` for the files it needs; N is the
// number of a layer, which those of the parent keep.
pub fn is_of_recipe(label: &str) -> bool {
    let reference = label.strip_prefix("containerd.io/gc.ref.").unwrap_or_default();
    reference.starts_with("content.recipe.") || (reference.starts_with("snapshot.") && reference.contains("/recipe."))
}

fn shown(layer: &Descriptor) -> serde_json::Value {
    json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_recipes() {
        for (label, expected) in [
            ("containerd.io/gc.ref.content.recipe.0", true),
            ("containerd.io/gc.ref.snapshot.overlayfs/recipe.12", true),
            ("containerd.io/gc.ref.snapshot.overlayfs", false),
            ("containerd.io/gc.ref.content.config", false),
            ("containerd.io/uncompressed", false),
        ] {
            assert_eq!(is_of_recipe(label), expected, "{label}");
        }
    }
}
