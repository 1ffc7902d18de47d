//! The connection and the typed clients of the services on it.

use super::{DriverError, Snapshotters, SupervisorError, connect::Connector};
use proto::{
    berth::{
        content::v1::store_client::StoreClient,
        registry::v1::registry_client::RegistryClient,
        streams::v1::{AttachRequest, streams_client::StreamsClient},
    },
    containerd::services::{
        containers::v1::containers_client::ContainersClient, content::v1::content_client::ContentClient,
        diff::v1::diff_client::DiffClient, events::v1::events_client::EventsClient,
        images::v1::images_client::ImagesClient, introspection::v1::introspection_client::IntrospectionClient,
        leases::v1::leases_client::LeasesClient, snapshots::v1::snapshots_client::SnapshotsClient,
        streaming::v1::streaming_client::StreamingClient, tasks::v1::tasks_client::TasksClient,
        transfer::v1::transfer_client::TransferClient, version::v1::version_client::VersionClient,
    },
    kind::ErrorKind,
};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::OnceCell;
use tonic::{
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// The namespace of the supervisor that holds everything of the engine.
pub const NAMESPACE: &str = "berth";
/// Largest message either way; containerd's own limit.
const MESSAGE_LIMIT: usize = 16 << 20;
/// How long [`Client::retry`] goes on.
const RETRY_FOR: Duration = Duration::from_secs(10);

/// A channel on which every request names the namespace, and the lease if there is one.
pub type Service = InterceptedService<Channel, Headers>;

/// Adds the metadata that containerd's services expect.
#[derive(Debug, Clone)]
pub struct Headers {
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

/// The supervisor. Cheap to clone; all clones share one connection.
#[derive(Debug, Clone)]
pub struct Client {
    connector: Connector,
    channel: Channel,
    headers: Headers,
    attaches: Arc<OnceCell<bool>>,
    snapshotters: Arc<Snapshotters>,
}

macro_rules! accessors {
    ($($(#[$doc:meta])* $name:ident: $client:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> $client<Service> {
            $client::new(self.service())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT)
        }
    )*};
}

impl Client {
    /// A client for the supervisor at `socket`. Connects when first used, so it can be made before the supervisor runs;
    /// must be called within a tokio runtime.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::over(Connector::new(socket.into()))
    }

    pub(super) fn over(connector: Connector) -> Self {
        let channel = Self::connect(connector.clone());
        let headers = Headers { lease: None };
        Self { connector, channel, headers, attaches: Arc::default(), snapshotters: Arc::default() }
    }

    fn connect(connector: Connector) -> Channel {
        // The address only fills the :authority header; where to connect to is the connector's business.
        Endpoint::from_static("http://localhost")
            // Archives and blobs travel here: windows that hold a few messages, on a link without latency.
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .connect_with_connector_lazy(connector)
    }

    /// A connection of its own, made when first used, for what moves at the pace of a client. What lies unread on a connection uses up
    /// its window, and then every other call on it waits: the starts of containers, for a `docker save` into a pipe that nobody
    /// reads.
    pub fn apart(&self) -> Self {
        Self { channel: Self::connect(self.connector.clone()), ..self.clone() }
    }

    /// The same connection, with every call made under the lease `id`: what it creates is kept while the lease exists.
    pub fn with_lease(&self, id: &str) -> Result<Self, SupervisorError> {
        let lease = MetadataValue::try_from(id).map_err(|_| SupervisorError::Refused {
            kind: proto::kind::ErrorKind::InvalidArgument,
            message: format!("lease id {id:?} cannot be sent"),
        })?;
        Ok(Self { headers: Headers { lease: Some(lease) }, ..self.clone() })
    }

    /// The same connection, with the snapshotter for what is made from here on: `wanted`, else the supervisor's default.
    pub async fn with_storage_driver(self, wanted: Option<&str>) -> Result<Self, DriverError> {
        let snapshotters = Arc::new(Snapshotters::choose(&self, wanted).await?);
        Ok(Self { snapshotters, ..self })
    }

    /// The snapshotter for what is made now; containers and layers of earlier engines may be in others.
    pub fn snapshotter(&self) -> &str {
        &self.snapshotters.chosen
    }

    /// All snapshotters that work.
    pub fn snapshotters(&self) -> &[String] {
        &self.snapshotters.loaded
    }

    /// Waits until the supervisor answers, and gives its version and revision.
    pub async fn version(&self) -> Result<(String, String), SupervisorError> {
        let answer =
            self.retry((), |client, request| async move { client.version_service().version(request).await }).await?;
        Ok((answer.version, answer.revision))
    }

    /// Whether this is a supervisor of Berth's, which has attachments; a containerd is told apart by its lack of the service.
    pub async fn attaches(&self) -> Result<bool, SupervisorError> {
        let probe = || async {
            // Names no container: who has the service says so.
            let call = |client: Self, request: AttachRequest| async move { client.streams().attach(request).await };
            match self.retry(AttachRequest::default(), call).await {
                Err(error) if error.is_disconnect() => Err(error),
                Err(error) => Ok(error.kind() != ErrorKind::Unimplemented),
                Ok(_) => Ok(true),
            }
        };
        self.attaches.get_or_try_init(probe).await.copied()
    }

    /// Makes a call that may be made twice: again when the supervisor went away meanwhile, for a bounded time.
    ///
    /// `client.retry(request, |client, request| async move { client.images().get(request).await })`
    pub async fn retry<R, T, F, C>(&self, request: R, call: F) -> Result<T, SupervisorError>
    where
        R: Clone,
        F: Fn(Self, R) -> C,
        C: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let started = Instant::now();
        loop {
            match call(self.clone(), request.clone()).await.map_err(SupervisorError::from) {
                Ok(answer) => return Ok(answer.into_inner()),
                // Away has already used up the connector's patience.
                Err(SupervisorError::Lost(_)) if started.elapsed() < RETRY_FOR => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.headers.clone())
    }

    accessors! {
        /// Container records.
        containers: ContainersClient;
        /// Running containers and their processes.
        tasks: TasksClient;
        /// Layers of file systems.
        snapshots: SnapshotsClient;
        /// Blobs by digest.
        content: ContentClient;
        /// Names of images.
        images: ImagesClient;
        /// Protection from garbage collection.
        leases: LeasesClient;
        /// The event bus.
        events: EventsClient;
        /// Pull, push, import, export.
        transfers: TransferClient;
        /// Side channels of transfers.
        streaming: StreamingClient;
        /// Applies layers, and makes them from differences.
        diffs: DiffClient;
        /// What the supervisor is made of.
        introspection: IntrospectionClient;
        /// Attachments to the stdio of running processes; Berth's own.
        streams: StreamsClient;
        /// What registries are asked beside pull and push; Berth's own.
        registry: RegistryClient;
        /// Whether stored content is whole; Berth's own.
        store: StoreClient;
        /// The version, as a raw service; see [`Client::version`].
        version_service: VersionClient;
    }
}
