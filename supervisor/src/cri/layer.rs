//! The writable layer of a container: it comes and goes with the container's record. Left to the collector it would stay for the ten
//! minutes in which nobody need refer to a fresh snapshot, and what restarts again and again would fill the disk.

use std::sync::Arc;

use proto::kind::chain;
use tracing::warn;

use super::{NAMESPACE, pods::Pods};
use crate::{
    gc::OPERATION,
    snapshots::{SNAPSHOTS, SnapshotError, full, remove_in},
    store::{Labels, StoreError, WriteTx},
    tasks::TaskError,
};

/// A layer whose record went with its container's.
#[derive(Debug)]
pub(super) struct Unrecorded {
    driver: String,
    folder: u64,
}

/// Labels of what means nothing without this process: until the container is on record, the next start takes it away.
pub(super) fn unfinished() -> Labels {
    [(OPERATION.to_owned(), "container".to_owned())].into()
}

/// Keeps a layer from now on: its container is recorded in this transaction.
pub(super) fn settle(tx: &WriteTx, driver: &str, key: &str) -> Result<(), StoreError> {
    let at = full(driver, key);
    if let Some(mut record) = SNAPSHOTS.get(tx, NAMESPACE, &at)? {
        record.labels.remove(OPERATION);
        SNAPSHOTS.put(tx, NAMESPACE, &at, &record)?;
    }
    Ok(())
}

/// Takes a layer's record away together with that of its container.
pub(super) fn unrecord(tx: &WriteTx, driver: &str, key: &str) -> Result<Option<Unrecorded>, StoreError> {
    match remove_in(tx, driver, NAMESPACE, key) {
        Ok(folder) => Ok(Some(Unrecorded { driver: driver.to_owned(), folder })),
        Err(SnapshotError::Store(error)) => Err(error),
        // Somebody has removed it by itself, or stands on it.
        Err(_) => Ok(None),
    }
}

impl Pods {
    /// Whether nothing runs in a container's layer, or has it mounted.
    pub(super) async fn is_layer_free(self: &Arc<Self>, id: &str) -> bool {
        matches!(self.tasks.get(&self.namespace, id, "").await, Err(TaskError::NotFound(_)))
    }

    /// Removes the files of a layer whose record is gone; what resists is swept by the next start.
    pub(super) fn sweep_layer(&self, id: &str, layer: Option<Unrecorded>) {
        let Some(Unrecorded { driver, folder }) = layer else { return };
        if let Err(error) = self.stores.snapshots.remove_folders(&[(driver, folder)]) {
            warn!(id, error = %chain(&error), "layer of a container left to the next start");
        }
    }

    /// Removes the layer of a container that never was.
    pub(super) fn drop_layer(&self, id: &str) {
        let removed = self.stores.snapshots.get_or_default("").and_then(|snapshots| snapshots.remove(NAMESPACE, id));
        match removed {
            Ok(()) | Err(SnapshotError::NotFound(_)) => {}
            Err(error) => warn!(id, error = %chain(&error), "layer of a container left to the next start"),
        }
    }
}
