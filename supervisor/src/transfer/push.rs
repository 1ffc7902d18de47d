//! Image store -> registry: blobs four at a time, only those that the registry lacks; then manifests, children first, and the
//! name last: until then nobody sees anything of it.
//!
//! Layers that are stored uncompressed are compressed on the way. The image keeps its configuration, and so its id; its
//! manifest becomes that of the compressed layers, here as well: what was pushed and what is kept are the same.

mod plan;
mod rewrite;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proto::{
    containerd::types::transfer::{ImageStore, OciRegistry},
    digest::Digest,
    image_ref::ImageRef,
};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{Context, Operation, TransferError, fetch::DEPTH, unpack::turn};
use crate::{
    images::manifest::{Descriptor, Platform},
    registry::{Access, Outcome, Registry},
};
use plan::Planned;
use rewrite::compressed_type;

/// Blobs of one push that are sent at the same time.
const PARALLEL: usize = 4;
/// Layers that are compressed at the same time, in all pushes: each has all processors, and buffers for them.
static COMPRESSING: Semaphore = Semaphore::const_new(2);
/// Longest label that the store takes, key and value.
const LABEL_LIMIT: usize = 4096;

impl Context {
    /// Brings an image of the store under a name into a registry.
    pub(super) async fn push(self, from: ImageStore, to: OciRegistry) -> Result<(), TransferError> {
        let image = to.reference.parse::<ImageRef>()?.with_default_tag();
        let resolver = to.resolver.unwrap_or_default();
        let credentials = self.credentials(&resolver, &to.reference).await?;
        let registry = Arc::new(self.registries.open(&image, &Access::of(&resolver, credentials))?);
        let name = if from.name.is_empty() { image.to_string() } else { from.name };
        let platform = from.platforms.into_iter().next().map(Platform::from_proto);
        let (this, wanted) = (self.clone(), image.clone());
        let (operation, whole, planned) = self
            .blocking(move |_| {
                let operation = Arc::new(this.lease()?);
                let target = this.stores.images.get(&this.namespace, &name)?.target;
                let target = this.with_layers(&operation, &target)?;
                // Removed meanwhile, it is pushed all the same.
                operation.keep_content(&target.digest)?;
                let whole = this.planned(&target, DEPTH, &wanted)?;
                let planned = this.chosen(&whole, platform.as_ref(), &wanted)?;
                Ok((operation, whole, planned))
            })
            .await?;
        if planned.descriptor.digest != whole.descriptor.digest {
            self.progress.image("partial", &image.to_string(), &planned.descriptor);
        }
        proto::fault!("supervisor.push.planned");
        let push = Push {
            context: self,
            registry,
            operation,
            slots: Arc::new(Semaphore::new(super::pull::at_once(resolver.parallel, PARALLEL))),
        };
        push.image(&image, whole, planned).await
    }
}

struct Push {
    context: Context,
    registry: Arc<Registry>,
    operation: Arc<Operation>,
    slots: Arc<Semaphore>,
}

impl Push {
    async fn image(self, image: &ImageRef, whole: Planned, planned: Planned) -> Result<(), TransferError> {
        let mut parts: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        let mut configs = Vec::new();
        for manifest in planned.images() {
            // One for all: an image may have the same layer twice.
            for part in manifest.layers.iter().chain([&manifest.config]) {
                if parts.insert(part.digest, part.clone()).is_none() {
                    self.context.progress.pushed("waiting", &part.digest, part, 0, None);
                }
            }
            configs.push(manifest.config.digest);
        }
        // First of all something small: who may not push is told before anything is compressed.
        let Some(first) = configs.first().and_then(|digest| parts.remove(digest)) else {
            let text = format!("{image}: there is no image in it that could be pushed");
            return Err(TransferError::Invalid(text));
        };
        self.part(first).await?;
        // Dropped with everything in it if one fails, or if the client goes away.
        let mut pushing = JoinSet::new();
        // The lowest layers first, in the order of the image.
        let mut order: Vec<Descriptor> = Vec::new();
        for manifest in planned.images() {
            for part in manifest.layers.iter().chain([&manifest.config]) {
                order.extend(parts.remove(&part.digest));
            }
        }
        for part in order {
            pushing.spawn(self.part(part));
        }
        let mut replaced = BTreeMap::new();
        while let Some(done) = pushing.join_next().await {
            let (old, new) = done.unwrap_or(Err(TransferError::Cut("an upload met a bug and was abandoned")))?;
            if old != new.digest {
                replaced.insert(old, new);
            }
        }
        proto::fault!("supervisor.push.blobs_there");
        let planned = if replaced.is_empty() { planned } else { self.replace(whole, &planned, replaced).await? };
        let documents = planned.documents();
        for document in &documents[..documents.len() - 1] {
            self.document(&document.descriptor.digest.to_string(), document).await?;
        }
        proto::fault!("supervisor.push.children_there");
        let reference = match (image.tag(), image.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) if digest == planned.descriptor.digest => digest.to_string(),
            (None, _) => {
                let text = format!("{image} can't name {}: push it by a tag", planned.descriptor.digest);
                return Err(TransferError::Invalid(text));
            }
        };
        self.document(&reference, &planned).await?;
        self.context.progress.image("pushed", &image.to_string(), &planned.descriptor);
        Ok(())
    }

    async fn document(&self, reference: &str, document: &Planned) -> Result<(), TransferError> {
        let bytes = Bytes::from(document.bytes.clone());
        self.registry.push_manifest(reference, &document.descriptor.media_type, &bytes).await?;
        self.remember(document.descriptor.digest).await?;
        self.context.progress.blob("complete", &document.descriptor, document.descriptor.size);
        Ok(())
    }

    // One layer or configuration; gives its digest here and its descriptor there.
    fn part(
        &self,
        part: Descriptor,
    ) -> impl Future<Output = Result<(Digest, Descriptor), TransferError>> + Send + 'static {
        let this = Self {
            context: self.context.clone(),
            registry: self.registry.clone(),
            operation: self.operation.clone(),
            slots: self.slots.clone(),
        };
        async move {
            let _slot = this.slots.clone().acquire_owned().await;
            let (name, progress) = (part.digest, this.context.progress.clone());
            if part.is_foreign() && part.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
                progress.pushed("skipped", &name, &part, part.size, None);
                return Ok((name, part));
            }
            let blob = match compressed_type(&part.media_type) {
                Some(media_type) => this.compressed(&part, media_type).await?,
                None => part,
            };
            let _turn = turn(&format!("push {}/{} {}", this.registry.host(), this.registry.path(), blob.digest))
                .lock_owned()
                .await;
            let (label, digest) = (this.registry.source_label(), blob.digest);
            let opened = this.context.blocking(move |context| {
                let content = &context.stores.content;
                let info = content.info(&context.namespace, &digest)?;
                let (file, _) = content.reader(&context.namespace, &digest)?;
                let sources = info.labels.get(&label).map(String::as_str).unwrap_or_default();
                let sources: Vec<String> = sources.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
                Ok((Arc::new(file), sources))
            });
            let (file, sources) = opened.await?;
            let meter = progress.push_meter("uploading", &name, &blob);
            match this.registry.push_blob(&blob, &file, &sources, &meter).await? {
                Outcome::Exists => progress.pushed("already exists", &name, &blob, blob.size, None),
                Outcome::Mounted(from) => progress.pushed("mounted", &name, &blob, blob.size, Some(from)),
                Outcome::Uploaded => progress.pushed("complete", &name, &blob, blob.size, None),
            }
            proto::fault!("supervisor.push.blob_there");
            this.remember(blob.digest).await?;
            Ok((name, blob))
        }
    }

    // Notes on a blob that this repository has it: the next push elsewhere in the registry can have it mounted.
    async fn remember(&self, digest: Digest) -> Result<(), TransferError> {
        let (label, path) = (self.registry.source_label(), self.registry.path().to_owned());
        let noting = self.context.blocking(move |context| {
            let content = &context.stores.content;
            let info = content.info(&context.namespace, &digest)?;
            let known = info.labels.get(&label).map(String::as_str).unwrap_or_default();
            let mut all: Vec<&str> = known.split(',').filter(|s| !s.is_empty() && *s != path).collect();
            if known.split(',').any(|s| s == path) {
                return Ok(());
            }
            all.insert(0, &path);
            while all.len() > 1 && label.len() + all.iter().map(|s| s.len() + 1).sum::<usize>() > LABEL_LIMIT {
                all.pop();
            }
            Ok(content.add_labels(&context.namespace, &digest, &[(label.clone(), all.join(","))].into())?)
        });
        noting.await
    }

    // The layer's compressed form, from an earlier push or made now.
    async fn compressed(&self, layer: &Descriptor, media_type: String) -> Result<Descriptor, TransferError> {
        let _turn = turn(&format!("compress {}", layer.digest)).lock_owned().await;
        let _permit = COMPRESSING.acquire().await;
        let lease = self.operation.id.clone();
        let meter = self.context.progress.push_meter("compressing", &layer.digest, layer);
        // Gone when this future is dropped: then the work ends as well.
        let wanted = Arc::new(());
        let is_wanted = Arc::downgrade(&wanted);
        let copy = layer.clone();
        let compressing = self.context.blocking(move |context| {
            context.compress(&copy, media_type, &lease, &*meter, &|| is_wanted.strong_count() > 0)
        });
        let done = compressing.await;
        drop(wanted);
        done
    }

    // Rewrites the manifests for compressed layers, and lets the image's names stand for the new ones.
    async fn replace(
        &self,
        whole: Planned,
        planned: &Planned,
        replaced: BTreeMap<Digest, Descriptor>,
    ) -> Result<Planned, TransferError> {
        let (chosen, lease) = (planned.descriptor.digest, self.operation.id.clone());
        let replacing = self.context.blocking(move |context| {
            let mut renamed = BTreeMap::new();
            let new = context.rewritten(&whole, &replaced, &lease, &mut renamed)?;
            proto::fault!("supervisor.push.manifests_rewritten");
            for (name, record) in context.stores.images.list(&context.namespace, &[])? {
                if record.target.digest == whole.descriptor.digest {
                    context.record_image(&name, &new.descriptor, &record.labels)?;
                }
            }
            let wanted = renamed.get(&chosen).copied().unwrap_or(chosen);
            let found = new.documents().into_iter().find(|document| document.descriptor.digest == wanted).cloned();
            found.ok_or(TransferError::Cut("the rewritten image lost a manifest"))
        });
        replacing.await
    }
}
