//! Registry -> image store: several layers are fetched at a time, and each is unpacked while it arrives.

use std::sync::Arc;

use proto::{
    containerd::types::transfer::{ImageStore, OciRegistry, RegistryResolver},
    image_ref::ImageRef,
};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

use super::{
    Context, Operation, TransferError,
    fetch::{DEPTH, Wanted, source_label},
    unpack::{Arrival, turn},
};
use crate::{
    content::{Arriving, ContentError},
    images::{
        ImageError,
        manifest::{CONFIG_LIMIT, Descriptor, Document, MANIFEST_LIMIT, Manifest, Platform},
    },
    metrics::METRICS,
    registry::{Access, Credentials, Registry, RegistryError},
    store::Labels,
};

/// Layers of one image that are fetched at the same time, unless the request says otherwise.
const PARALLEL: usize = 6;

impl Context {
    /// Fetches an image by tag or digest, unpacks it if that is asked for, and records its name.
    pub(super) async fn pull(self, from: OciRegistry, to: &ImageStore) -> Result<(), TransferError> {
        let image = from.reference.parse::<ImageRef>()?.with_default_tag();
        let wanted = Wanted::by(to, &self.stores.snapshots)?;
        let resolver = from.resolver.unwrap_or_default();
        let credentials = self.credentials(&resolver, &from.reference).await?;
        let access = Access::of(&resolver, credentials);
        let name = if to.name.is_empty() { image.to_string() } else { to.name.clone() };
        let labels: Labels = to.labels.clone().into_iter().collect();
        let record = move |this: &Self, target: &Descriptor| this.record_image(&name, target, &labels);
        self.pull_image(&image, &access, wanted, resolver.parallel, record).await.map(drop)
    }

    /// Fetches an image with what was given to log in, unpacks it for the default snapshotter, and records it under its digest
    /// and, if it was asked for by tag, under that. Names that are there keep their labels.
    pub(super) async fn pull_both_names(
        self,
        image: &ImageRef,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Descriptor, TransferError> {
        let image = image.clone().with_default_tag();
        let access = Access::of(&RegistryResolver::default(), credentials);
        let unpack = vec![self.stores.snapshots.get_or_default("")?.clone()];
        let wanted = Wanted { platform: Platform::host(), unpack };
        let asked = image.clone();
        let record = move |this: &Self, target: &Descriptor| {
            // By digest first: the image must have a name left when its tag moves on to another one.
            let mut names = vec![asked.with_digest(target.digest).to_string()];
            names.extend(asked.digest().is_none().then(|| asked.to_string()));
            for name in names {
                let labels = match this.stores.images.get(&this.namespace, &name) {
                    Ok(known) => known.labels,
                    Err(ImageError::NotFound(_)) => Labels::new(),
                    Err(error) => return Err(error.into()),
                };
                this.record_image(&name, target, &labels)?;
            }
            Ok(())
        };
        self.pull_image(&image, &access, wanted, 0, record).await
    }

    async fn pull_image(
        self,
        image: &ImageRef,
        access: &Access,
        wanted: Wanted,
        parallel: u32,
        record: impl FnOnce(&Self, &Descriptor) -> Result<(), TransferError> + Send + 'static,
    ) -> Result<Descriptor, TransferError> {
        let registry = self.registries.open(image, access)?;
        let source = source_label(&registry);
        let this = self.clone();
        let operation = Arc::new(self.blocking(move |_| this.lease()).await?);
        proto::fault!("supervisor.pull.leased");
        let parallel = at_once(parallel, PARALLEL);
        let pull = Pull { context: self, registry: Arc::new(registry), operation, source, wanted, parallel };
        // A digest counts before a tag: it says which image is meant.
        let reference = match (image.digest(), image.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        let target = pull.manifest(&reference).await?;
        proto::fault!("supervisor.pull.manifest_stored");
        pull.image(target.clone()).await?;
        let recorded = target.clone();
        pull.context.blocking(move |this| record(this, &recorded)).await?;
        pull.context.stores.sync_snapshots_behind();
        Ok(target)
    }
}

struct Pull {
    context: Context,
    registry: Arc<Registry>,
    operation: Arc<Operation>,
    source: Labels,
    wanted: Wanted,
    parallel: usize,
}

/// How many blobs are moved at the same time: as many as the request says, within reason.
pub(super) fn at_once(asked: u32, usual: usize) -> usize {
    if asked == 0 { usual } else { asked.min(64) as usize }
}

impl Pull {
    // Fetches a manifest or index; one that is known by digest and there isn't fetched again.
    async fn manifest(&self, reference: &str) -> Result<Descriptor, TransferError> {
        let (bytes, media_type, digest) = self.registry.manifest(reference).await?;
        let size = bytes.len() as u64;
        // Refused before it is stored.
        let document = Document::parse(&bytes, digest, &media_type)?;
        let mut labels = document.gc_labels();
        labels.extend(self.source.clone());
        let lease = self.operation.id.clone();
        let stored = self
            .context
            .blocking(move |this| Ok(this.stores.content.put(&this.namespace, &bytes, &labels, Some(&lease))?));
        stored.await?;
        let media_type = if media_type.is_empty() { media_type_of(&document).to_owned() } else { media_type };
        let descriptor = Descriptor::new(&media_type, digest, size);
        self.context.progress.blob("complete", &descriptor, size);
        Ok(descriptor)
    }

    async fn image(&self, target: Descriptor) -> Result<(), TransferError> {
        let mut descriptor = target;
        for _ in 0..DEPTH {
            let (this, here) = (self.context.clone(), descriptor.clone());
            match self.context.blocking(move |_| this.document(&here)).await? {
                Document::Manifest(manifest) => return self.contents(&manifest).await,
                Document::Index(index) => {
                    let chosen = index.select(descriptor.digest, &self.wanted.platform)?;
                    if chosen.size > MANIFEST_LIMIT {
                        return Err(TransferError::Invalid(format!(
                            "manifest {} is {} bytes long, more than the {MANIFEST_LIMIT} allowed",
                            chosen.digest, chosen.size
                        )));
                    }
                    descriptor = self.manifest(&chosen.digest.to_string()).await?;
                }
            }
        }
        Err(TransferError::Invalid(format!("{}: indexes are nested too deeply", descriptor.digest)))
    }

    async fn contents(&self, manifest: &Manifest) -> Result<(), TransferError> {
        if manifest.config.size > CONFIG_LIMIT {
            return Err(TransferError::Invalid(format!(
                "image configuration {} is {} bytes long, more than the {CONFIG_LIMIT} allowed",
                manifest.config.digest, manifest.config.size
            )));
        }
        for layer in &manifest.layers {
            self.context.progress.blob("waiting", layer, 0);
        }
        let config_blob = self.blob(manifest.config.clone(), None);
        config_blob.await?;
        let (this, copy, unpack) = (self.context.clone(), manifest.clone(), self.wanted.unpack.clone());
        let config = Arc::new(self.context.blocking(move |_| this.config(&copy, &unpack)).await?);
        proto::fault!("supervisor.pull.config_stored");
        let (this, copy, conf) = (self.operation.clone(), manifest.clone(), config.clone());
        let unpack = self.wanted.unpack.clone();
        let covered = self.context.blocking(move |context| Ok(context.keeper(&this).covered(&copy, &conf, &unpack)?));
        let covered = covered.await?;
        // Dropped with everything in it if one fails, or if the client goes away.
        let mut fetching = JoinSet::new();
        let slots = Arc::new(Semaphore::new(self.parallel));
        let mut arrivals = Vec::new();
        for (layer, covered) in manifest.layers.iter().zip(covered) {
            if covered {
                self.context.progress.blob("already exists", layer, layer.size);
                arrivals.push(Arrival::of_stored());
                continue;
            }
            let (begin, begun) = oneshot::channel();
            let (store, stored) = oneshot::channel();
            let (fetch, slots) = (self.blob(layer.clone(), Some(begin)), slots.clone());
            fetching.spawn(async move {
                let _slot = slots.acquire_owned().await;
                let _ = store.send(fetch.await);
            });
            arrivals.push(Arrival { begun, stored });
        }
        if self.wanted.unpack.is_empty() {
            for arrival in arrivals {
                arrival.stored().await?;
            }
            return Ok(());
        }
        let unpack = &self.wanted.unpack;
        self.context.unpack_arriving(&self.operation, unpack, &config, &manifest.layers, arrivals).await
    }

    // One blob into the content store, unless it is there.
    //
    // Whoever unpacks it gets a reader as soon as it begins.
    fn blob(
        &self,
        blob: Descriptor,
        begin: Option<oneshot::Sender<Option<Arriving>>>,
    ) -> impl Future<Output = Result<(), TransferError>> + Send + 'static {
        let (context, registry) = (self.context.clone(), self.registry.clone());
        let (operation, labels) = (self.operation.clone(), self.source.clone());
        async move {
            let _turn = turn(&blob.digest.to_string()).lock_owned().await;
            let kind = if blob.media_type.contains("config") || blob.media_type.contains("container.image") {
                "config"
            } else {
                "layer"
            };
            // The name that containerd's clients use: each takes up what another left.
            let reference = format!("{kind}-{}", blob.digest);
            let (lease, wanted) = (operation.id.clone(), blob.clone());
            let opened = context.blocking(move |this| {
                let (content, namespace) = (&this.stores.content, &this.namespace);
                match content.writer(namespace, &reference, wanted.size, Some(wanted.digest), Some(&lease)) {
                    Err(ContentError::Exists(digest)) => {
                        content.add_labels(namespace, &digest, &labels)?;
                        Ok((None, labels))
                    }
                    other => Ok((Some(other?), labels)),
                }
            });
            let (Some(mut writer), labels) = opened.await? else {
                if let Some(begin) = begin {
                    let _ = begin.send(None);
                }
                context.progress.blob("already exists", &blob, blob.size);
                return Ok(());
            };
            if let Some(begin) = begin {
                let _ = begin.send(Some(writer.follow()?));
            }
            let meter = context.progress.meter("downloading", &blob);
            let writer = registry.blob(&blob, writer, &meter).await?;
            proto::fault!("supervisor.pull.blob_fetched");
            let (host, wanted) = (registry.host(), blob.clone());
            context
                .blocking(move |_| match writer.commit(wanted.size, Some(wanted.digest), &labels) {
                    Ok(_) | Err(ContentError::Exists(_)) => Ok(()),
                    Err(ContentError::WrongDigest { actual, expected, .. }) => {
                        let what = format!("blob {expected}");
                        Err(RegistryError::WrongDigest { host, what, actual, expected }.into())
                    }
                    Err(error) => Err(error.into()),
                })
                .await?;
            proto::fault!("supervisor.pull.blob_stored");
            METRICS.fetched(blob.size);
            context.progress.blob("complete", &blob, blob.size);
            Ok(())
        }
    }
}

fn media_type_of(document: &Document) -> &'static str {
    match document {
        Document::Manifest(_) => crate::images::manifest::OCI_MANIFEST,
        Document::Index(_) => crate::images::manifest::OCI_INDEX,
    }
}
