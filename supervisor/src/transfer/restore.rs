//! Layers that are not kept: dropped when a transfer is over, brought back when one needs them.

use super::{Context, Operation, TransferError, unpack::turn};
use crate::{images::manifest::Descriptor, recipes::keep::Keeper};

impl Context {
    pub(super) fn keeper<'a>(&'a self, operation: &'a Operation) -> Keeper<'a> {
        Keeper { stores: &self.stores, namespace: &self.namespace, lease: &operation.id }
    }

    /// Drops the layers of this namespace's images that are unpacked and can be made again, if layers are not to be kept.
    /// In the background: nobody waits for room.
    pub(super) fn drop_layers_soon(&self) {
        if self.stores.keeps_layers() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            // One at a time; who finds nothing to do is quick.
            let _turn = turn(&format!("drop layers of {}", this.namespace)).lock_owned().await;
            let dropped = this.blocking(|this| {
                let operation = this.lease()?;
                // What a layer is made again of must be on the disk before the layer goes.
                for snapshotter in this.stores.snapshots.loaded() {
                    snapshotter.sync_behind()?;
                }
                let (mut bytes, images) = (0, this.stores.images.list(&this.namespace, &[])?);
                for (name, image) in images {
                    match this.keeper(&operation).drop_layers(&image.target) {
                        Ok(freed) => bytes += freed,
                        Err(error) => {
                            let error = proto::kind::chain(&error);
                            tracing::warn!(image = name, error, "layers of an image are kept: they can't be recorded");
                        }
                    }
                }
                Ok(bytes)
            });
            match dropped.await {
                Ok(0) => {}
                Ok(bytes) => tracing::info!(namespace = this.namespace, bytes, "layers dropped"),
                Err(error) => tracing::warn!(error = %proto::kind::chain(&error), "layers are kept"),
            }
        });
    }

    /// The image with all its layers, also those that were dropped; they stay as long as the operation.
    pub(super) fn with_layers(&self, operation: &Operation, target: &Descriptor) -> Result<Descriptor, TransferError> {
        Ok(self.keeper(operation).with_layers(target)?)
    }
}
