//! Whole images: all layers of one are dropped, found again, brought back.

use std::{collections::BTreeMap, sync::Arc};

use proto::digest::Digest;

use super::{
    RecipeError,
    keep::{Keeper, Layer, layers_of},
};
use crate::{
    content::ContentError,
    images::manifest::{CONFIG_LIMIT, Config, Descriptor, Document, MANIFEST_LIMIT, Manifest},
    leases::Resource,
    snapshots::{SnapshotError, Snapshotter},
    store::Stores,
};

/// Indexes within indexes that are followed.
const DEPTH: u32 = 8;

/// An image is about to be recorded by somebody who made its documents himself, say of a container's changes: for layers that
/// it has in common with another image and that were dropped, its configuration names the recipes as well.
pub(crate) fn adopt(stores: &Stores, namespace: &str, target: &Descriptor) -> Result<(), RecipeError> {
    let keeper = Keeper { stores, namespace, lease: "" };
    keeper.each_image(target, DEPTH, &mut |manifest, config| {
        for layer in layers_of(manifest, config) {
            keeper.lost_and_found(&manifest.config.digest, &layer)?;
        }
        Ok(())
    })
}

impl Keeper<'_> {
    // A manifest or index that is here. What is neither, though somebody gave it a name, has no layers.
    fn document(&self, at: &Descriptor) -> Result<Option<Document>, RecipeError> {
        match self.stores.content.read_all(self.namespace, &at.digest, MANIFEST_LIMIT) {
            Err(ContentError::NotFound(_) | ContentError::TooBig { .. }) => Ok(None),
            bytes => Ok(Document::parse(&bytes?, at.digest, &at.media_type).ok()),
        }
    }

    // The configuration of an image, if it is here and goes with the manifest.
    fn config(&self, manifest: &Manifest) -> Result<Option<Config>, RecipeError> {
        let digest = manifest.config.digest;
        match self.stores.content.read_all(self.namespace, &digest, CONFIG_LIMIT) {
            Err(ContentError::NotFound(_) | ContentError::TooBig { .. }) => Ok(None),
            bytes => {
                let config = Config::parse(&bytes?, digest);
                // Artifacts have configurations of their own kinds.
                Ok(config.ok().filter(|config| config.check(manifest).is_ok()))
            }
        }
    }

    fn each_image(
        &self,
        at: &Descriptor,
        depth: u32,
        visit: &mut impl FnMut(&Manifest, &Config) -> Result<(), RecipeError>,
    ) -> Result<(), RecipeError> {
        match self.document(at)? {
            Some(Document::Manifest(manifest)) => match self.config(&manifest)? {
                Some(config) => visit(&manifest, &config),
                None => Ok(()),
            },
            Some(Document::Index(index)) if depth > 0 => {
                index.manifests.iter().try_for_each(|entry| self.each_image(entry, depth - 1, visit))
            }
            _ => Ok(()),
        }
    }

    /// Drops the layers of an image that are unpacked and can be made again; gives the bytes that are free then.
    pub(crate) fn drop_layers(&self, target: &Descriptor) -> Result<u64, RecipeError> {
        let mut bytes = 0;
        self.each_image(target, DEPTH, &mut |manifest, config| {
            for layer in layers_of(manifest, config) {
                bytes += self.drop_layer(&manifest.config.digest, &layer)?;
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The image with all its layers: those that were dropped are made again, and stay as long as the lease. Where a blob
    /// can't be had as it was, the manifest becomes another one; the configuration, and so the image's id, never does.
    pub(crate) fn with_layers(&self, target: &Descriptor) -> Result<Descriptor, RecipeError> {
        self.with_layers_below(target, DEPTH)
    }

    fn with_layers_below(&self, at: &Descriptor, depth: u32) -> Result<Descriptor, RecipeError> {
        let mut replaced = BTreeMap::new();
        match self.document(at)? {
            Some(Document::Manifest(manifest)) => {
                let Some(config) = self.config(&manifest)? else { return Ok(at.clone()) };
                for layer in layers_of(&manifest, &config) {
                    if !self.lost_and_found(&manifest.config.digest, &layer)? {
                        continue;
                    }
                    let restored = self.restore(&manifest.config.digest, &layer)?;
                    if restored.digest != layer.blob.digest {
                        replaced.insert(layer.blob.digest.to_string(), restored);
                    }
                }
            }
            Some(Document::Index(index)) if depth > 0 => {
                for entry in &index.manifests {
                    let new = self.with_layers_below(entry, depth - 1)?;
                    if new.digest != entry.digest {
                        replaced.insert(entry.digest.to_string(), new);
                    }
                }
            }
            _ => {}
        }
        if replaced.is_empty() { Ok(at.clone()) } else { self.rewritten(at, &replaced) }
    }

    // Stores a document anew in which some descriptors are others. What it says besides stays as it is.
    fn rewritten(&self, at: &Descriptor, replaced: &BTreeMap<String, Descriptor>) -> Result<Descriptor, RecipeError> {
        let unwritten = |error: serde_json::Error| RecipeError::Io("write the manifest anew", error.into());
        let content = &self.stores.content;
        let bytes = content.read_all(self.namespace, &at.digest, MANIFEST_LIMIT)?;
        let mut json: serde_json::Value = serde_json::from_slice(&bytes).map_err(unwritten)?;
        for list in ["layers", "manifests"] {
            for entry in json.get_mut(list).and_then(|list| list.as_array_mut()).into_iter().flatten() {
                let digest = entry.get("digest").and_then(|digest| digest.as_str()).unwrap_or_default();
                if let Some(new) = replaced.get(digest).cloned() {
                    entry["digest"] = new.digest.to_string().into();
                    entry["size"] = new.size.into();
                    entry["mediaType"] = new.media_type.into();
                }
            }
        }
        let bytes = serde_json::to_vec(&json).map_err(unwritten)?;
        let digest = Digest::of(&bytes);
        let document = Document::parse(&bytes, digest, &at.media_type)?;
        content.put(self.namespace, &bytes, &document.gc_labels(), Some(self.lease))?;
        Ok(Descriptor { digest, size: bytes.len() as u64, ..at.clone() })
    }

    /// Which layers of an image need not be fetched: dropped here, unpacked for all of these snapshotters, and to be made again
    /// when somebody wants them. The lease keeps what that takes.
    pub(crate) fn covered(
        &self,
        manifest: &Manifest,
        config: &Config,
        snapshotters: &[Arc<Snapshotter>],
    ) -> Result<Vec<bool>, RecipeError> {
        let mut covered = vec![false; manifest.layers.len()];
        if snapshotters.is_empty() {
            return Ok(covered);
        }
        for layer in layers_of(manifest, config) {
            covered[layer.number] =
                self.lost_and_found(&manifest.config.digest, &layer)? && self.is_unpacked(&layer, snapshotters)?;
        }
        Ok(covered)
    }

    fn is_unpacked(&self, layer: &Layer, snapshotters: &[Arc<Snapshotter>]) -> Result<bool, RecipeError> {
        for snapshotter in snapshotters {
            // Kept before it is looked for, so that no collection comes between.
            let resource = Resource { kind: snapshotter.resource().to_owned(), id: layer.chain.to_string() };
            let kept = self
                .stores
                .db
                .write(|tx| crate::leases::add_in(tx, self.namespace, self.lease, &resource.kind, &resource.id));
            kept?;
            match snapshotter.open_committed(self.namespace, &layer.chain.to_string()) {
                Ok(_) => {}
                Err(SnapshotError::Store(error)) => return Err(error.into()),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }
}
