//! Makes a committed snapshot of each layer of an image; named by chain id, so that images share what they have in common.
//!
//! Where a layer's files don't depend on those below it (overlayfs), all layers of an image are filled at the same time, each
//! while its blob is still arriving; they are put on top of one another at the end ([`Snapshotter::commit_stack`]). Otherwise
//! they are unpacked one after another.

use std::{
    collections::HashMap,
    io::Read,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use proto::digest::{Digest, chain_id};

use tokio::{
    sync::{OwnedMutexGuard, Semaphore, oneshot},
    task::JoinSet,
};

use super::{Context, Operation, TransferError};
use crate::{
    content::Arriving,
    gc::OPERATION,
    images::manifest::{Config, Descriptor},
    layers::{
        LayerError,
        apply::{Applied, Target, apply, dress},
    },
    leases::unique,
    snapshots::{Apart, Layered, SnapshotError, Snapshotter},
    store::Labels,
};

/// Layers of one image that are unpacked at the same time.
fn parallel() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get()).clamp(2, 6)
}

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

/// A layer's blob on its way into the store.
pub(super) struct Arrival {
    /// When it begins: a reader that follows it, or none if it is there.
    pub(super) begun: oneshot::Receiver<Option<Arriving>>,
    /// When it is stored, or has failed.
    pub(super) stored: oneshot::Receiver<Result<(), TransferError>>,
}

impl Arrival {
    /// Of a blob that is stored.
    pub(super) fn of_stored() -> Self {
        let (begin, begun) = oneshot::channel();
        let (store, stored) = oneshot::channel();
        let _ = (begin.send(None), store.send(Ok(())));
        Self { begun, stored }
    }

    /// Waits until the blob is stored.
    pub(super) async fn stored(self) -> Result<(), TransferError> {
        self.stored.await.unwrap_or(Err(TransferError::Cut("a download met a bug and was abandoned")))
    }
}

/// The layers of an image that are being filled. Dropped before they are committed, by the last who works on them, it removes them.
struct Stack {
    context: Context,
    operation: Arc<Operation>,
    snapshotter: Arc<Snapshotter>,
    layers: Vec<Apart>,
    // Until then nobody else makes the same layers.
    _turns: Vec<OwnedMutexGuard<()>>,
}

impl Drop for Stack {
    fn drop(&mut self) {
        // None are left of those that were committed.
        if !self.layers.is_empty() {
            self.snapshotter.drop_apart(&self.context.namespace, &self.layers);
        }
    }
}

/// What became of a layer that was filled apart.
enum Filled {
    Whole(Applied),
    /// It needs the layers below it, or its download began anew.
    Again,
}

impl Context {
    /// Unpacks the layers of an image while they arrive.
    pub(super) async fn unpack_arriving(
        &self,
        operation: &Arc<Operation>,
        snapshotters: &[Arc<Snapshotter>],
        config: &Arc<Config>,
        layers: &[Descriptor],
        arrivals: Vec<Arrival>,
    ) -> Result<(), TransferError> {
        let mut arrivals = Some(arrivals);
        for snapshotter in snapshotters {
            let arrivals = arrivals.take().unwrap_or_else(|| layers.iter().map(|_| Arrival::of_stored()).collect());
            if snapshotter.can_fill_apart() {
                self.unpack_stack(operation, snapshotter, config, layers, arrivals).await?;
                continue;
            }
            for (index, (layer, arrival)) in layers.iter().zip(arrivals).enumerate() {
                arrival.stored().await?;
                self.unpack_layer(operation, snapshotter, config, index, layer).await?;
            }
        }
        Ok(())
    }

    async fn unpack_stack(
        &self,
        operation: &Arc<Operation>,
        snapshotter: &Arc<Snapshotter>,
        config: &Arc<Config>,
        layers: &[Descriptor],
        arrivals: Vec<Arrival>,
    ) -> Result<(), TransferError> {
        let names: Arc<Vec<String>> = Arc::new(
            (1..=layers.len()).filter_map(|n| chain_id(&config.diff_ids[..n])).map(|id| id.to_string()).collect(),
        );
        let present = || {
            let (names, snapshotter, operation) = (names.clone(), snapshotter.clone(), operation.clone());
            self.blocking(move |this| Ok(snapshotter.keep_present(&this.namespace, &names, &operation.id)?))
        };
        // From the lowest that is missing to the top, in this order: two images that share layers share the lowest ones, so that
        // nobody waits for somebody who waits for them.
        let (first, turns) = loop {
            let first = present().await?;
            let mut turns = Vec::new();
            for name in &names[first..] {
                turns.push(turn(&format!("{}/{}/{name}", self.namespace, snapshotter.name())).lock_owned().await);
                // Somebody else may have made it while we waited.
                if turns.len() == 1 && present().await? != first {
                    turns.clear();
                    break;
                }
            }
            if turns.len() == names.len() - first {
                break (first, turns);
            }
        };
        let mut arrivals = arrivals.into_iter();
        for (layer, arrival) in layers.iter().zip(arrivals.by_ref().take(first)) {
            arrival.stored().await?;
            self.progress.blob("extracted", layer, layer.size);
        }
        let stack = if first < names.len() {
            Some(self.prepare_stack(operation, snapshotter, &names[first..], turns).await?)
        } else {
            None
        };
        let mut filled = Vec::new();
        if let Some(stack) = &stack {
            filled = self.fill_stack(stack, config, first, layers, arrivals).await?;
        }
        let (stack, config, layers) = (stack, config.clone(), layers.to_vec());
        self.blocking(move |this| {
            if let Some(stack) = stack {
                this.finish_stack(stack, &config, first, &layers, &names, filled)?;
            }
            let label = |(layer, diff_id): (&Descriptor, &Digest)| (layer.digest, uncompressed(diff_id));
            let labels: Vec<_> = layers.iter().zip(&config.diff_ids).map(label).collect();
            Ok(this.stores.content.label_all(&this.namespace, &labels)?)
        })
        .await
    }

    async fn prepare_stack(
        &self,
        operation: &Arc<Operation>,
        snapshotter: &Arc<Snapshotter>,
        names: &[String],
        turns: Vec<OwnedMutexGuard<()>>,
    ) -> Result<Arc<Stack>, TransferError> {
        let keys: Vec<String> = names.iter().map(|name| format!("{} {name}", unique("extract"))).collect();
        let (operation, snapshotter) = (operation.clone(), snapshotter.clone());
        let prepared = self.blocking(move |this| {
            let labels: Labels = [(OPERATION.to_owned(), "unpack".to_owned())].into();
            let layers = snapshotter.prepare_apart(&this.namespace, keys, &labels, &operation.id)?;
            proto::fault!("supervisor.unpack.prepared");
            Ok(Arc::new(Stack { context: this.clone(), operation, snapshotter, layers, _turns: turns }))
        });
        prepared.await
    }

    // Each layer as soon as its blob begins to arrive; all are stored when this returns.
    async fn fill_stack(
        &self,
        stack: &Arc<Stack>,
        config: &Arc<Config>,
        first: usize,
        layers: &[Descriptor],
        arrivals: impl Iterator<Item = Arrival>,
    ) -> Result<Vec<Filled>, TransferError> {
        let slots = Arc::new(Semaphore::new(parallel()));
        // Dropped with everything in it if one fails, or if the client goes away.
        let mut filling = JoinSet::new();
        for (index, arrival) in arrivals.enumerate() {
            let (this, stack, config, slots) = (self.clone(), stack.clone(), config.clone(), slots.clone());
            let layer = layers[first + index].clone();
            filling.spawn(async move {
                // Its end says why it didn't begin.
                if let Ok(arriving) = arrival.begun.await {
                    let _slot = slots.acquire_owned().await;
                    let beginning = arriving.as_ref().map(Arriving::beginning);
                    let diff_id = config.diff_ids[first + index];
                    let work = move |this: &Self| {
                        // The lowest has nothing below it that it could depend on.
                        let apart = &stack.layers[index];
                        let target = if first + index == 0 {
                            stack.snapshotter.target_on(apart, &[], false)?
                        } else {
                            stack.snapshotter.target_apart(apart)?
                        };
                        let filled = match arriving {
                            Some(arriving) => this.fill(arriving, &target, &diff_id, &layer),
                            None => this.fill_from_store(&target, &diff_id, &layer),
                        };
                        filled.map(Filled::Whole).or_else(|error| match &error {
                            TransferError::Layer(LayerError::Layer { cause, .. })
                                if matches!(**cause, LayerError::NeedsBelow) =>
                            {
                                Ok(Filled::Again)
                            }
                            _ => Err(error),
                        })
                    };
                    // It reads what arrives at the pace of the registry.
                    let filled = this.patiently(work).await;
                    // A download that failed is why unpacking did.
                    let stored = arrival.stored.await;
                    stored.unwrap_or(Err(TransferError::Cut("a download met a bug and was abandoned")))?;
                    // A host may have sent something else before another one sent what is stored.
                    let other_bytes = || beginning.is_some_and(|beginning| beginning.is_over());
                    let filled = filled.or_else(|error| if other_bytes() { Ok(Filled::Again) } else { Err(error) });
                    return filled.map(|filled| (index, filled));
                }
                arrival.stored.await.unwrap_or(Err(TransferError::Cut("a download met a bug and was abandoned")))?;
                Ok((index, Filled::Again))
            });
        }
        let mut filled: Vec<Option<Filled>> = stack.layers.iter().map(|_| None).collect();
        while let Some(done) = filling.join_next().await {
            let (index, one) = done.unwrap_or(Err(TransferError::Cut("unpacking met a bug and was abandoned")))?;
            filled[index] = Some(one);
        }
        Ok(filled.into_iter().map(|one| one.unwrap_or(Filled::Again)).collect())
    }

    fn finish_stack(
        &self,
        stack: Arc<Stack>,
        config: &Config,
        first: usize,
        layers: &[Descriptor],
        names: &[String],
        filled: Vec<Filled>,
    ) -> Result<(), TransferError> {
        proto::fault!("supervisor.unpack.filled");
        let snapshotter = &stack.snapshotter;
        let below_first = first.checked_sub(1).map_or("", |index| names[index].as_str());
        let mut below = snapshotter.folders_below(&self.namespace, below_first)?;
        let mut complete = Vec::new();
        for ((apart, filled), index) in stack.layers.iter().zip(filled).zip(first..) {
            let layer = &layers[index];
            let wrong = |cause| LayerError::Layer { layer: layer.digest, cause: Box::new(cause) };
            match filled {
                Filled::Whole(applied) if applied.implied.is_empty() => {}
                Filled::Whole(applied) => {
                    let target = snapshotter.target_on(apart, &below, false)?;
                    dress(&target, &applied.implied).map_err(wrong)?;
                }
                Filled::Again => {
                    let target = snapshotter.target_on(apart, &below, true)?;
                    self.fill_from_store(&target, &config.diff_ids[index], layer)?;
                }
            }
            below.insert(0, snapshotter.folder_number(apart));
            complete.push(Layered {
                apart: apart.clone(),
                name: names[index].clone(),
                parent: index.checked_sub(1).map_or_else(String::new, |index| names[index].clone()),
                layer: layer.digest,
            });
        }
        snapshotter.commit_stack(&self.namespace, &complete, &stack.operation.id)?;
        proto::fault!("supervisor.unpack.committed");
        // Everybody who filled is done: we are the last to have it.
        if let Some(mut stack) = Arc::into_inner(stack) {
            stack.layers.clear();
        }
        for layer in &layers[first..] {
            self.progress.blob("extracted", layer, layer.size);
        }
        Ok(())
    }

    /// Unpacks layer `index`; those below must be there.
    pub(super) async fn unpack_layer(
        &self,
        operation: &Arc<Operation>,
        snapshotter: &Arc<Snapshotter>,
        config: &Arc<Config>,
        index: usize,
        layer: &Descriptor,
    ) -> Result<(), TransferError> {
        let Some(name) = chain_id(&config.diff_ids[..=index]) else {
            return Ok(());
        };
        let turn = turn(&format!("{}/{}/{name}", self.namespace, snapshotter.name())).lock_owned().await;
        let (operation, config, layer) = (operation.clone(), config.clone(), layer.clone());
        let snapshotter = snapshotter.clone();
        let unpack = move |this: &Self| {
            // Goes with the thread: it may outlive the transfer's future.
            let _turn = turn;
            this.unpack_now(&operation, &snapshotter, &config, index, &name, &layer)
        };
        self.blocking(unpack).await
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
        let uncompressed = uncompressed(&diff_id);
        // Kept before it is looked for, so that no collection comes between.
        operation.keep_snapshot(snapshots.resource(), name)?;
        match snapshots.stat(namespace, &name.to_string()) {
            Ok(_) => {
                self.stores.content.label_all(namespace, &[(layer.digest, uncompressed)])?;
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
        let target = snapshots.target(namespace, &key)?;
        let filled = self.fill_from_store(&target, &diff_id, layer).and_then(|_| {
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
        self.stores.content.add_labels(namespace, &layer.digest, &uncompressed)?;
        self.progress.blob("extracted", layer, layer.size);
        Ok(())
    }

    fn fill_from_store(&self, target: &Target, diff_id: &Digest, layer: &Descriptor) -> Result<Applied, TransferError> {
        let (blob, _) = self.stores.content.reader(&self.namespace, &layer.digest)?;
        self.fill(blob, target, diff_id, layer)
    }

    fn fill(
        &self,
        blob: impl Read + Send,
        target: &Target,
        diff_id: &Digest,
        layer: &Descriptor,
    ) -> Result<Applied, TransferError> {
        let meter = self.progress.meter("extracting", layer);
        let wrong = |cause| LayerError::Layer { layer: layer.digest, cause: Box::new(cause) };
        let applied = apply(blob, target, &meter).map_err(wrong)?;
        if applied.diff_id != *diff_id {
            return Err(wrong(LayerError::WrongDiffId { actual: applied.diff_id, expected: *diff_id }).into());
        }
        Ok(applied)
    }
}

fn uncompressed(diff_id: &Digest) -> Labels {
    [("containerd.io/uncompressed".to_owned(), diff_id.to_string())].into()
}
