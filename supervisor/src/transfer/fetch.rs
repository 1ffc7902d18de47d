//! Walks an image from its name to its layers: index, manifest, configuration, layers, each with the labels that keep what
//! it points to. Where the bytes come from is the caller's matter.

use std::sync::Arc;

use proto::containerd::types::transfer::ImageStore;

use super::{Context, Operation, TransferError, unpack::Arrival};
use crate::{
    images::manifest::{CONFIG_LIMIT, Config, Descriptor, Document, MANIFEST_LIMIT, Manifest, Platform},
    registry::Registry,
    snapshots::{Snapshotter, Snapshotters},
    store::Labels,
};

/// Indexes within indexes that are followed.
pub(super) const DEPTH: u32 = 4;

/// What is wanted of an image.
#[derive(Clone)]
pub(super) struct Wanted {
    /// For which platform.
    pub(super) platform: Platform,
    /// For which snapshotters it is to be unpacked.
    pub(super) unpack: Vec<Arc<Snapshotter>>,
}

impl Wanted {
    /// What a destination asks for.
    pub(super) fn by(store: &ImageStore, snapshotters: &Snapshotters) -> Result<Self, TransferError> {
        let mut platform = store.platforms.first().cloned();
        let mut unpack: Vec<Arc<Snapshotter>> = Vec::new();
        for asked in &store.unpacks {
            let snapshotter = snapshotters.get_or_default(&asked.snapshotter)?;
            if !unpack.iter().any(|known| known.name() == snapshotter.name()) {
                unpack.push(snapshotter.clone());
            }
            platform = platform.or_else(|| asked.platform.clone());
        }
        Ok(Self { platform: platform.map_or_else(Platform::host, Platform::from_proto), unpack })
    }
}

impl Context {
    /// Reads a manifest or index from the store, and labels it with what it keeps.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Document, TransferError> {
        let content = &self.stores.content;
        let bytes = content.read_all(&self.namespace, &descriptor.digest, MANIFEST_LIMIT)?;
        let document = Document::parse(&bytes, descriptor.digest, &descriptor.media_type)?;
        content.add_labels(&self.namespace, &descriptor.digest, &document.gc_labels())?;
        Ok(document)
    }

    /// Reads the configuration, checks it against the manifest, and labels it with the snapshots it keeps.
    pub(super) fn config(&self, manifest: &Manifest, unpack: &[Arc<Snapshotter>]) -> Result<Config, TransferError> {
        let content = &self.stores.content;
        let digest = manifest.config.digest;
        let bytes = content.read_all(&self.namespace, &digest, CONFIG_LIMIT)?;
        let config = Config::parse(&bytes, digest)?;
        if !unpack.is_empty() {
            config.check(manifest)?;
            if let Some(chain) = config.chain_id() {
                let label = |snapshotter: &Arc<Snapshotter>| {
                    (format!("containerd.io/gc.ref.snapshot.{}", snapshotter.name()), chain.to_string())
                };
                content.add_labels(&self.namespace, &digest, &unpack.iter().map(label).collect())?;
            }
        }
        Ok(config)
    }

    /// Unpacks every layer of an image whose blobs are there.
    pub(super) async fn unpack_image(
        &self,
        operation: &Arc<Operation>,
        manifest: &Manifest,
        unpack: &[Arc<Snapshotter>],
    ) -> Result<(), TransferError> {
        let (this, copy, snapshotters) = (self.clone(), manifest.clone(), unpack.to_vec());
        let config = Arc::new(self.blocking(move |_| this.config(&copy, &snapshotters)).await?);
        let arrivals = manifest.layers.iter().map(|_| Arrival::of_stored()).collect();
        self.unpack_arriving(operation, unpack, &config, &manifest.layers, arrivals).await?;
        self.stores.sync_snapshots_behind();
        Ok(())
    }
}

/// Labels that say where a blob can be had again: `containerd.io/distribution.source.HOST = repository`.
pub(super) fn source_label(registry: &Registry) -> Labels {
    [(registry.source_label(), registry.path().to_owned())].into()
}
