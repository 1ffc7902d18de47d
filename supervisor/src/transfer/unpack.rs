//! Makes a committed snapshot of each layer of an image; named by chain id, so that images share what they have in common.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use proto::digest::{Digest, chain_id};

use super::{Context, Operation, TransferError};
use crate::{
    gc::OPERATION,
    images::manifest::{Config, Descriptor},
    layers::{LayerError, apply::apply},
    leases::unique,
    snapshots::{SnapshotError, Snapshotter},
    store::Labels,
};

type Turn = tokio::sync::Mutex<()>;

/// One turn per thing that two transfers may want to make at the same moment: the second finds it made.
pub(super) fn turn(name: &str) -> Arc<Turn> {
    static TURNS: OnceLock<Mutex<HashMap<String, Weak<Turn>>>> = OnceLock::new();
    let mut turns = TURNS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    turns.retain(|_, turn| turn.strong_count() > 0);
    if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
        return turn;
    }
    let turn = Arc::new(Turn::default());
    turns.insert(name.to_owned(), Arc::downgrade(&turn));
    turn
}

impl Context {
    /// Unpacks layer `index` for each snapshotter; those below must be there.
    pub(super) async fn unpack_layer(
        &self,
        operation: &Arc<Operation>,
        snapshotters: &[Arc<Snapshotter>],
        config: &Arc<Config>,
        index: usize,
        layer: &Descriptor,
    ) -> Result<(), TransferError> {
        let Some(name) = chain_id(&config.diff_ids[..=index]) else {
            return Ok(());
        };
        for snapshotter in snapshotters {
            let turn = turn(&format!("{}/{}/{name}", self.namespace, snapshotter.name())).lock_owned().await;
            let (operation, config, layer) = (operation.clone(), config.clone(), layer.clone());
            let snapshotter = snapshotter.clone();
            let unpack = move |this: &Self| {
                // Goes with the thread: it may outlive the transfer's future.
                let _turn = turn;
                this.unpack_now(&operation, &snapshotter, &config, index, &name, &layer)
            };
            self.blocking(unpack).await?;
        }
        Ok(())
    }

    fn unpack_now(
        &self,
        operation: &Operation,
        snapshots: &Snapshotter,
        config: &Config,
        index: usize,
        name: &Digest,
        layer: &Descriptor,
    ) -> Result<(), TransferError> {
        let namespace = self.namespace.as_str();
        let diff_id = config.diff_ids[index];
        let uncompressed: Labels = [("containerd.io/uncompressed".to_owned(), diff_id.to_string())].into();
        // Kept before it is looked for, so that no collection comes between.
        operation.keep_snapshot(snapshots.resource(), name)?;
        match snapshots.stat(namespace, &name.to_string()) {
            Ok(_) => {
                self.stores.content.add_labels(namespace, &layer.digest, &uncompressed)?;
                self.progress.blob("extracted", layer, layer.size);
                return Ok(());
            }
            Err(SnapshotError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let parent = chain_id(&config.diff_ids[..index]).map(|p| p.to_string()).unwrap_or_default();
        let key = format!("{} {name}", unique("extract"));
        let labels: Labels = [(OPERATION.to_owned(), "unpack".to_owned())].into();
        snapshots.prepare(namespace, &key, &parent, labels, Some(&operation.id))?;
        proto::fault!("supervisor.unpack.prepared");
        let filled = self.fill(snapshots, &key, &diff_id, layer).and_then(|()| {
            proto::fault!("supervisor.unpack.filled");
            match snapshots.commit(namespace, &name.to_string(), &key, Labels::new(), Some(&operation.id)) {
                // A client of the snapshots service was quicker.
                Err(SnapshotError::Exists(_)) => Ok(snapshots.remove(namespace, &key)?),
                other => Ok(other?),
            }
        });
        if let Err(error) = filled {
            if let Err(left) = snapshots.remove(namespace, &key) {
                tracing::warn!(key, error = %proto::kind::chain(&left), "half a snapshot left to the collector");
            }
            return Err(error);
        }
        proto::fault!("supervisor.unpack.committed");
        self.stores.content.add_labels(namespace, &layer.digest, &uncompressed)?;
        self.progress.blob("extracted", layer, layer.size);
        Ok(())
    }

    fn fill(
        &self,
        snapshots: &Snapshotter,
        key: &str,
        diff_id: &Digest,
        layer: &Descriptor,
    ) -> Result<(), TransferError> {
        let target = snapshots.target(&self.namespace, key)?;
        let (blob, _) = self.stores.content.reader(&self.namespace, &layer.digest)?;
        let meter = self.progress.meter("extracting", layer);
        let wrong = |cause| LayerError::Layer { layer: layer.digest, cause: Box::new(cause) };
        let applied = apply(blob, &target, &meter).map_err(wrong)?;
        if applied.diff_id != *diff_id {
            return Err(wrong(LayerError::WrongDiffId { actual: applied.diff_id, expected: *diff_id }).into());
        }
        Ok(())
    }
}
