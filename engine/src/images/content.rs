//! What an image consists of, read from the content store: index, manifest, config.

use super::{ImageError, config::ImageConfig, platform::Platform};
use crate::supervisor::{Client, SupervisorError, content};
use proto::{
    containerd::{services::snapshots::v1::UsageRequest, types},
    digest::{Digest, chain_id},
};
use serde::Deserialize;
use std::collections::BTreeMap;
use tokio::sync::OnceCell;

/// Largest manifest or index (distribution-spec asks registries for 4 MiB).
const MANIFEST_LIMIT: usize = 4 << 20;
/// Largest config.
const CONFIG_LIMIT: usize = 8 << 20;
/// How deep indexes may be nested.
const DEPTH: usize = 4;

/// A reference to a blob, as manifests hold it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    #[serde(default)]
    pub size: i64,
    /// In an index: what the manifest is for.
    pub platform: Option<Platform>,
    /// Notes; builders mark attestations here.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

// One type for both: which of them a blob is shows in its fields, and media types may lie or be missing.
#[derive(Deserialize)]
struct Document {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

/// The parts of one image for one platform. Immutable: everything in it is named by digests.
#[derive(Debug)]
pub struct ImageContent {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Size of the manifest in bytes.
    pub manifest_size: i64,
    /// The config blob; its digest is the image id.
    pub config_descriptor: Descriptor,
    /// The compressed layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The config.
    pub config: ImageConfig,
    layer_sizes: OnceCell<Vec<i64>>,
}

impl ImageContent {
    /// Puts the parts together.
    pub fn new(
        manifest: Digest,
        manifest_size: i64,
        config_descriptor: Descriptor,
        layers: Vec<Descriptor>,
        config: ImageConfig,
    ) -> Self {
        Self { manifest, manifest_size, config_descriptor, layers, config, layer_sizes: OnceCell::new() }
    }

    /// The image id.
    pub fn id(&self) -> Digest {
        self.config_descriptor.digest
    }

    /// Name of the committed snapshot of all layers; none for an image without layers.
    pub fn chain_id(&self) -> Option<Digest> {
        chain_id(&self.config.rootfs.diff_ids)
    }

    /// What the image is for.
    pub fn platform(&self) -> Platform {
        let ImageConfig { os, architecture, variant, .. } = &self.config;
        Platform { os: os.clone(), architecture: architecture.clone(), variant: variant.clone() }.normalized()
    }

    /// Sizes of the layers on disk, lowest first; of the compressed blobs where a layer isn't unpacked.
    pub async fn layer_sizes(&self, client: &Client) -> Vec<i64> {
        let unpacked = self.layer_sizes.get_or_try_init(async || {
            let diff_ids = &self.config.rootfs.diff_ids;
            let mut sizes = Vec::with_capacity(diff_ids.len());
            for count in 1..=diff_ids.len() {
                let key = chain_id(&diff_ids[..count]).map(|id| id.to_string()).unwrap_or_default();
                let request = UsageRequest { snapshotter: client.snapshotter().into(), key };
                let usage = client
                    .retry(request, |client, request| async move { client.snapshots().usage(request).await })
                    .await?;
                sizes.push(usage.size);
            }
            Ok::<_, SupervisorError>(sizes)
        });
        match unpacked.await {
            Ok(sizes) => sizes.clone(),
            Err(_) => self.layers.iter().map(|layer| layer.size).collect(),
        }
    }

    /// Bytes of all layers on disk.
    pub async fn size(&self, client: &Client) -> i64 {
        self.layer_sizes(client).await.iter().sum()
    }
}

/// Loads what `target` points to. Of several platforms it takes this machine's, else one that is there; the second value
/// says whether the choice holds for good.
pub async fn load(client: &Client, name: &str, target: &types::Descriptor) -> Result<(ImageContent, bool), ImageError> {
    let corrupt =
        |what: &str, cause: String| ImageError::Corrupt { image: name.to_owned(), what: what.to_owned(), cause };
    let mut candidates = vec![(target.digest.clone(), 0, true)];
    let mut missing = None;
    while let Some((digest, depth, preferred)) = candidates.pop() {
        let blob = match content::read(client, &digest, MANIFEST_LIMIT).await {
            Ok(blob) => blob,
            // Of an index, only the platforms that were asked for have been fetched.
            Err(error) if error.is_not_found() => {
                missing.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(ImageError::supervisor("read image", name, error)),
        };
        let document: Document = serde_json::from_slice(&blob).map_err(|e| corrupt("manifest", e.to_string()))?;
        match document {
            Document { config: Some(config), layers, .. } => {
                let manifest: Digest = digest.parse().map_err(|e| corrupt("manifest", format!("{e}")))?;
                let json = content::read(client, &config.digest.to_string(), CONFIG_LIMIT)
                    .await
                    .map_err(|error| ImageError::supervisor("read config of image", name, error))?;
                let parsed: ImageConfig =
                    serde_json::from_slice(&json).map_err(|e| corrupt("config", e.to_string()))?;
                let layers = layers.unwrap_or_default();
                if layers.len() != parsed.rootfs.diff_ids.len() {
                    let (have, want) = (layers.len(), parsed.rootfs.diff_ids.len());
                    return Err(corrupt("manifest", format!("it has {have} layers and its config {want}")));
                }
                let size = blob.len() as i64;
                return Ok((ImageContent::new(manifest, size, config, layers, parsed), preferred));
            }
            Document { manifests: Some(manifests), .. } if depth < DEPTH => {
                let ordered = by_preference(manifests);
                // Taken from the end.
                candidates
                    .extend(ordered.into_iter().rev().map(|(entry, host)| (entry.digest.to_string(), depth + 1, host)));
            }
            _ => return Err(corrupt("manifest", "it is neither a manifest nor an index".into())),
        }
    }
    let error = missing.unwrap_or_else(|| SupervisorError::Protocol("no platform in the index".into()));
    Err(ImageError::supervisor("read image", name, error))
}

/// Manifests of images in the order in which to try them, each with whether it is for this machine.
fn by_preference(manifests: Vec<Descriptor>) -> Vec<(Descriptor, bool)> {
    let host = Platform::host();
    let is_image = |entry: &Descriptor| {
        let attests = entry.annotations.as_ref().is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
        !attests && entry.platform.as_ref().is_none_or(|p| p.os != "unknown")
    };
    let mut ordered: Vec<_> = manifests
        .into_iter()
        .filter(is_image)
        .map(|entry| {
            let fits = entry.platform.as_ref().is_none_or(|p| {
                let p = p.normalized();
                p.os == host.os && p.architecture == host.architecture
            });
            (entry, fits)
        })
        .collect();
    ordered.sort_by_key(|(_, fits)| !fits);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_comes_first_and_attestations_are_left_out() {
        let entry = |os: &str, architecture: &str, attests: bool| {
            let mut json = serde_json::json!({
                "digest": Digest::of(format!("{os}{architecture}").as_bytes()),
                "platform": {"os": os, "architecture": architecture},
            });
            if attests {
                json["annotations"] = serde_json::json!({"vnd.docker.reference.type": "attestation-manifest"});
            }
            serde_json::from_value::<Descriptor>(json).unwrap()
        };
        let host = Platform::host().architecture;
        let list = vec![
            entry("linux", "s390x", false),
            entry("linux", &host, true),
            entry("unknown", "unknown", false),
            entry("linux", &host, false),
        ];
        let ordered = by_preference(list);
        let names: Vec<_> = ordered.iter().map(|(d, host)| (d.platform.clone().unwrap().architecture, *host)).collect();
        assert_eq!(names, [(host, true), ("s390x".into(), false)]);
    }
}
