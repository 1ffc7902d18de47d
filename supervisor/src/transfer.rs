//! Transfers: images move between registry, image store and archive streams, inside the supervisor.
//!
//! `pull` and `import` fill the content store, `unpack` makes snapshots of layers, `export` writes archives, `push` fills a
//! registry; `streams`
//! are the side channels to the client, `progress` says on one of them how far it is.

mod archive;
mod auth;
mod compress;
mod export;
mod fetch;
mod import;
mod progress;
mod pull;
mod push;
mod restore;
mod streams;
mod unpack;

use std::sync::Arc;

use prost_types::Any;
use proto::{
    containerd::{
        services::images::v1::{ImageCreate, ImageUpdate},
        types::transfer::{ImageExportStream, ImageImportStream, ImageStore, OciRegistry},
    },
    digest::Digest,
    image_ref::{ImageRef, ImageRefError},
    kind::ErrorKind,
    typeurl,
};
use tokio::sync::{Semaphore, oneshot};

pub(crate) use compress::gzip;
pub(crate) use streams::{StreamError, Streams, pair};

use crate::{
    content::ContentError,
    failure::Failure,
    gc::OPERATION,
    images::{
        ImageError,
        manifest::{Descriptor, ManifestError},
    },
    layers::LayerError,
    leases::{LeaseError, Resource},
    metrics::METRICS,
    registry::{Credentials, Registries, RegistryError},
    snapshots::SnapshotError,
    store::{Labels, Stores},
};
use progress::Progress;

/// How many transfers may wait for clients and registries at once, each with a thread.
const PATIENT: usize = 256;

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// Source and destination that nothing is known about.
    #[error("transfer from {from} to {to} is not supported")]
    Unsupported {
        /// Type of the source.
        from: String,
        /// Type of the destination.
        to: String,
    },
    /// A part of the request that can't be carried out.
    #[error("{0}")]
    Invalid(String),
    /// A name that isn't one.
    #[error(transparent)]
    Reference(#[from] ImageRefError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A document of the image.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A layer that was dropped.
    #[error(transparent)]
    Recipe(#[from] crate::recipes::RecipeError),
    /// The archive that is imported.
    #[error("import archive: {0}")]
    Archive(String),
    /// The archive can't be read.
    #[error("import archive")]
    Tar(#[from] crate::layers::tar::TarError),
    /// The client's stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The content store.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The image records.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The snapshotter.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Leases.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Writing an archive to the client.
    #[error("export archive")]
    Export(#[source] std::io::Error),
    /// What is to be pushed isn't here.
    #[error("push {image}: {what} is not here: {cure}")]
    Missing {
        /// The image.
        image: String,
        /// Which of its parts.
        what: String,
        /// What to do.
        cure: &'static str,
    },
    /// A layer could not be compressed for the push.
    #[error("compress layer {layer}")]
    Compress {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A bug, or the end of the process.
    #[error("{0}")]
    Cut(&'static str),
}

impl Failure for TransferError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported { .. } => ErrorKind::Unimplemented,
            Self::Invalid(_) | Self::Reference(_) | Self::Archive(_) => ErrorKind::InvalidArgument,
            Self::Tar(crate::layers::tar::TarError::Read(cause)) | Self::Export(cause) => ErrorKind::of_io(cause),
            Self::Tar(_) => ErrorKind::InvalidArgument,
            Self::Registry(error) => error.kind(),
            Self::Manifest(error) => error.kind(),
            Self::Layer(error) => error.kind(),
            Self::Recipe(error) => error.kind(),
            Self::Stream(error) => error.kind(),
            Self::Content(error) => error.kind(),
            Self::Image(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Lease(error) => error.kind(),
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Compress { cause, .. } => ErrorKind::of_io(cause),
            Self::Cut(_) => ErrorKind::Internal,
        }
    }
}

/// What a transfer works with.
#[derive(Clone)]
pub(crate) struct Context {
    stores: Arc<Stores>,
    streams: Arc<Streams>,
    registries: Arc<Registries>,
    namespace: String,
    progress: Progress,
}

impl Context {
    /// Carries out one transfer of `namespace`; what is moved is told by the types.
    pub(crate) async fn run(
        stores: Arc<Stores>,
        streams: Arc<Streams>,
        registries: Arc<Registries>,
        namespace: &str,
        source: &Any,
        destination: &Any,
        progress_stream: &str,
    ) -> Result<(), TransferError> {
        let progress = match progress_stream {
            "" => Progress::silent(),
            id => Progress::to(streams.take(namespace, id).await?),
        };
        let context = Self { stores, streams, registries, namespace: namespace.to_owned(), progress };
        // A transfer is a big state machine: not on the stack.
        let done = Box::pin(context.clone().carry_out(source, destination)).await;
        // Also after one that brought layers back, and failed.
        context.drop_layers_soon();
        done
    }

    /// Pulls an image for a part of this program, which has it by digest and by tag afterwards. Credentials live as long as this.
    pub(crate) async fn fetch(
        stores: Arc<Stores>,
        registries: Arc<Registries>,
        namespace: &str,
        image: &ImageRef,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Descriptor, TransferError> {
        let (namespace, progress) = (namespace.to_owned(), Progress::silent());
        let context = Self { stores, streams: Arc::default(), registries, namespace, progress };
        let pulled = Box::pin(context.clone().pull_both_names(image, credentials)).await;
        METRICS.pulled(pulled.is_ok());
        context.drop_layers_soon();
        pulled
    }

    async fn carry_out(self, source: &Any, destination: &Any) -> Result<(), TransferError> {
        let context = self;
        let (from, to) = (unpack_any::<OciRegistry>(source)?, unpack_any::<ImageStore>(destination)?);
        if let (Some(from), Some(to)) = (from, to.as_ref()) {
            let pulled = Box::pin(context.pull(from, to)).await;
            METRICS.pulled(pulled.is_ok());
            return pulled;
        }
        if let (Some(from), Some(to)) = (unpack_any::<ImageImportStream>(source)?, to.as_ref()) {
            return Box::pin(context.import(from, to)).await;
        }
        if let Some(from) = unpack_any::<ImageStore>(source)? {
            if let Some(to) = to {
                return context.tag(&from, &to).await;
            }
            if let Some(to) = unpack_any::<ImageExportStream>(destination)? {
                return context.export(from, to).await;
            }
            if let Some(to) = unpack_any::<OciRegistry>(destination)? {
                return Box::pin(context.push(from, to)).await;
            }
        }
        let name = |any: &Any| any.type_url.rsplit('/').next().unwrap_or_default().to_owned();
        Err(TransferError::Unsupported { from: name(source), to: name(destination) })
    }

    /// Gives an image another name.
    async fn tag(self, from: &ImageStore, to: &ImageStore) -> Result<(), TransferError> {
        let record = self.stores.images.get(&self.namespace, &from.name)?;
        if to.name.is_empty() {
            return Err(TransferError::Invalid("name of the new image is missing".into()));
        }
        let labels = if to.labels.is_empty() { record.labels } else { to.labels.clone().into_iter().collect() };
        let (name, target) = (to.name.clone(), record.target);
        self.blocking(move |this| this.record_image(&name, &target, &labels)).await
    }

    /// Points a name to an image, says so to those who listen, and on the progress stream.
    fn record_image(&self, name: &str, target: &Descriptor, labels: &Labels) -> Result<(), TransferError> {
        proto::fault!("supervisor.image_record.contents_complete");
        let new = self.stores.images.put(&self.namespace, name, target, labels)?;
        let map = labels.clone().into_iter().collect();
        if new {
            self.stores.publish(&self.namespace, "/images/create", &ImageCreate { name: name.into(), labels: map });
        } else {
            self.stores.publish(&self.namespace, "/images/update", &ImageUpdate { name: name.into(), labels: map });
            self.stores.gc.schedule();
        }
        proto::fault!("supervisor.image_record.announced");
        self.progress.image("saved", name, target);
        Ok(())
    }

    /// Runs work on a thread that may wait for the disk. It goes on if the transfer is dropped, and undoes itself.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, TransferError> + Send + 'static,
    ) -> Result<T, TransferError> {
        let context = self.clone();
        let runtime = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let _entered = runtime.enter(); // the collector is scheduled from here
            work(&context)
        });
        done.await.unwrap_or(Err(TransferError::Cut("the transfer met a bug and was abandoned")))
    }

    /// The same for work that waits for a client or a registry, too: on a thread of its own. The runtime's are few, and containers
    /// need them: whoever stalls in the middle of a load must not keep one of those.
    async fn patiently<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, TransferError> + Send + 'static,
    ) -> Result<T, TransferError> {
        static TURNS: Semaphore = Semaphore::const_new(PATIENT);
        let turn = TURNS.acquire().await.map_err(|_| TransferError::Cut("the supervisor is stopping"))?;
        let context = self.clone();
        let runtime = tokio::runtime::Handle::current();
        let (sender, done) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("transfer".into()).spawn(move || {
            let _entered = runtime.enter(); // the collector is scheduled from here
            let outcome = work(&context);
            drop((context, turn));
            let _ = sender.send(outcome);
        });
        spawned.map_err(|_| TransferError::Cut("no thread for the transfer"))?;
        done.await.unwrap_or(Err(TransferError::Cut("the transfer met a bug and was abandoned")))
    }

    /// A lease that keeps what the transfer makes.
    fn lease(&self) -> Result<Operation, TransferError> {
        let labels = [(OPERATION.to_owned(), "transfer".to_owned())].into();
        let (id, _) = self.stores.leases.create(&self.namespace, "", labels)?;
        Ok(Operation { stores: self.stores.clone(), namespace: self.namespace.clone(), id })
    }
}

/// The lease of a running transfer: what it makes stays until it ends, however it ends.
pub(crate) struct Operation {
    stores: Arc<Stores>,
    namespace: String,
    /// The lease's id.
    pub(crate) id: String,
}

impl Operation {
    /// Keeps a blob that was there already.
    fn keep_content(&self, digest: &Digest) -> Result<(), TransferError> {
        let resource = Resource { kind: "content".to_owned(), id: digest.to_string() };
        Ok(self.stores.leases.add(&self.namespace, &self.id, &resource)?)
    }

    /// Keeps a snapshot that was there already.
    fn keep_snapshot(&self, kind: &str, chain: &Digest) -> Result<(), TransferError> {
        let resource = Resource { kind: kind.to_owned(), id: chain.to_string() };
        Ok(self.stores.leases.add(&self.namespace, &self.id, &resource)?)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let delete = || self.stores.leases.delete(&self.namespace, &self.id);
        // Twice: after a full disk the first one only finds that out, and makes room.
        if let Err(error) = delete().or_else(|_| delete()) {
            tracing::warn!(lease = self.id, error = %proto::kind::chain(&error), "lease left to the next start");
        }
        // What of a failed transfer nothing else refers to goes away.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.stores.gc.schedule();
        }
    }
}

fn unpack_any<M: prost::Message + prost::Name + Default>(any: &Any) -> Result<Option<M>, TransferError> {
    typeurl::unpack(any)
        .transpose()
        .map_err(|error| TransferError::Invalid(format!("{} can't be decoded: {error}", any.type_url)))
}
