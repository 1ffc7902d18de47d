//! The whole: opens what is kept, serves, drains. Everything long-lived is made here and handed down.
//!
//! Order at start: folders, locks (a second supervisor is turned away before it touches anything), stores, socket, then
//! service, then word to the service manager. Order at the end: stop accepting, tell those who wait for events, finish what
//! is in hand, go. Shims stay.

mod door;
mod roots;

use std::{io, sync::Arc, time::Duration};

use proto::{
    berth::{
        content::v1::store_server::StoreServer, registry::v1::registry_server::RegistryServer,
        streams::v1::streams_server::StreamsServer,
    },
    containerd::services::{
        containers::v1::containers_server::ContainersServer, content::v1::content_server::ContentServer,
        diff::v1::diff_server::DiffServer, events::v1::events_server::EventsServer,
        images::v1::images_server::ImagesServer, introspection::v1::introspection_server::IntrospectionServer,
        leases::v1::leases_server::LeasesServer, namespaces::v1::namespaces_server::NamespacesServer,
        snapshots::v1::snapshots_server::SnapshotsServer, streaming::v1::streaming_server::StreamingServer,
        tasks::v1::tasks_server::TasksServer, transfer::v1::transfer_server::TransferServer,
        version::v1::version_server::VersionServer,
    },
    grpc::health::v1::health_server::HealthServer,
    runtime::v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use sys::service::{Notifier, Service};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tonic::{
    Status,
    body::Body,
    codegen::http,
    service::Routes,
    transport::{Server, server::Router},
};
use tower::layer::util::{Identity, Stack};
use tracing::{info, warn};

use self::door::{Callers, Door, DoorError};
pub(crate) use self::roots::{RootError, Roots};
use crate::{
    api::{
        containers::ContainersService,
        content::ContentService,
        diff::DiffService,
        events::EventsService,
        health::HealthService,
        images::ImagesService,
        introspection::{IdentityError, IntrospectionService},
        leases::LeasesService,
        limited,
        namespaces::NamespacesService,
        registry::RegistryService,
        snapshots::SnapshotsService,
        store::StoreService,
        streaming::StreamingService,
        streams::StreamsService,
        tasks::TasksService,
        transfer::TransferService,
        version::{VERSION, VersionService},
    },
    config::Config,
    containers::{ContainerRoots, Containers},
    cri::{self, CriError, ImageService, Node, Pods, RuntimeService},
    events::EventBus,
    metrics::{self, CallsLayer, MetricsError, Sources},
    registry::Registries,
    snapshots::SnapshotError,
    store::Stores,
    tasks::{TaskError, TaskRoots, Tasks, shims::ttrpc_socket},
};

/// Why the supervisor can't begin, or ended badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// Folders and locks.
    #[error(transparent)]
    Roots(#[from] RootError),
    /// The socket.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The other socket.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Our identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Records, content, snapshots.
    #[error("open the data root")]
    Stores(#[from] SnapshotError),
    /// Tasks of an earlier supervisor.
    #[error("take over what runs")]
    Adopt(#[from] TaskError),
    /// Pods of an earlier supervisor.
    #[error("take over pods")]
    Pods(#[from] CriError),
    /// Signal handlers.
    #[error("watch for signals")]
    Signals(#[source] io::Error),
    /// The server broke.
    #[error("serve")]
    Serve(#[source] tonic::transport::Error),
}

/// Tells those who wait inside the process that it is about to end.
#[derive(Debug, Clone)]
pub(crate) struct Draining(watch::Receiver<bool>);

impl Draining {
    /// The signal, and what sets it off.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (begin, begun) = watch::channel(false);
        (begin, Self(begun))
    }

    /// Whether the end has begun.
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the end begins.
    pub(crate) async fn begun(mut self) {
        // The sender lives as long as the application: its loss means that the end is over, not only begun.
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}

/// What we are told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they end nothing by themselves.
    fn expect() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Everything long-lived.
pub(crate) struct App {
    config: Config,
    services: Services,
    begin_drain: watch::Sender<bool>,
    draining: Draining,
    signals: Signals,
    door: Door,
    /// Where shims that speak ttrpc send their events.
    ttrpc: Door,
    metrics: Option<metrics::Door>,
    notifier: Notifier,
    watchdog: Option<Duration>,
    // Held until the process ends.
    _roots: Roots,
}

impl App {
    /// Makes folders and locks, opens the stores, and binds the socket, unless `service` brings one.
    pub(crate) async fn open(mut config: Config, service: Service) -> Result<Self, AppError> {
        let roots = Roots::take(&config)?;
        let (begin_drain, draining) = Draining::new();
        let events = Arc::new(EventBus::open(&config.data().join("events")));
        let sink = events.clone();
        let stores = Stores::open(
            &config.data_root,
            &config.snapshots,
            Arc::new(move |namespace: &str, topic: &str, event| sink.publish_any(namespace, topic, event)),
        )?;
        stores.keep_layers(config.keep_layers);
        let introspection = IntrospectionService::open(&config.data(), stores.clone())?;
        stores.gc.add_roots(ContainerRoots);
        if let Err(error) = stores.gc.repair() {
            // What could not be put right is left over, not broken: we serve all the same.
            warn!(error = %proto::kind::chain(&error), "leftovers of an earlier run not removed");
        }
        stores.unpack_again();
        let containers = Arc::new(Containers::new(stores.db.clone(), events.clone()));
        // Who finds our socket may end us in an orderly way.
        let signals = Signals::expect().map_err(AppError::Signals)?;
        // Shims that waited for us find the socket before we look for them: their events come in meanwhile.
        let door = Door::open(&config.socket, service.sockets)?;
        // Shims are told where we are, not where we should have been.
        config.socket.clone_from(&door.path);
        let ttrpc = Door::open(&ttrpc_socket(&door.path), Vec::new())?;
        let metrics = match &config.metrics {
            Some(address) => Some(metrics::bind(address).await?),
            None => None,
        };
        let tasks = Tasks::new(&config, containers.clone(), stores.content.clone(), events.clone(), draining.clone());
        tasks.end_strays().await;
        tasks.adopt()?;
        tasks.sweep_sockets();
        stores.gc.add_roots(TaskRoots(tasks.clone()));
        stores.gc.start(config.gc, draining.clone());
        let introspection = introspection.about(tasks.clone());
        let registries = Arc::new(config.registries.clone());
        let begun = draining.clone();
        let node = Arc::new(Node::new(&config, &stores, tasks.clone()));
        let layers = config.snapshots.folder(&config.data().join("snapshots"), stores.snapshots.default_name());
        let images = ImageService::new(stores.clone(), node.clone(), registries.clone(), layers.clone());
        let parts = (stores.clone(), containers.clone(), tasks.clone());
        let pods = Pods::open(&config, node, parts, begun.clone()).await?;
        let cri = (RuntimeService::new(pods.clone(), layers), images, pods);
        let services = Services { events, introspection, containers, tasks, stores, registries, cri, draining: begun };
        let (notifier, watchdog) = (service.notifier, service.watchdog);
        Ok(Self {
            config,
            services,
            begin_drain,
            draining,
            signals,
            door,
            ttrpc,
            metrics,
            notifier,
            watchdog,
            _roots: roots,
        })
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    pub(crate) async fn serve(self) -> Result<(), AppError> {
        let Self { config, services, begin_drain, draining, signals, door, ttrpc, metrics, notifier, watchdog, _roots } =
            self;
        let Signals { mut terminate, mut interrupt, mut hangup } = signals;
        let events = services.events.clone();
        if let Some(metrics) = metrics {
            tokio::spawn(metrics::serve(metrics, services.sources()));
        }
        let forwarded = Arc::new(EventsService::new(events.clone(), services.tasks.clone()));
        tokio::spawn(crate::api::ttrpc::serve(Callers::of(ttrpc.listener), forwarded, draining.clone()));
        let router = services.router();
        let stop = draining.begun();
        let mut server = tokio::spawn(router.serve_with_incoming_shutdown(Callers::of(door.listener), stop));
        info!(
            version = VERSION,
            socket = %config.socket.display(),
            data_root = %config.data_root.display(),
            "supervisor serves"
        );
        let notifier = Arc::new(notifier);
        tell(&notifier, "READY=1");
        if let Some(limit) = watchdog.filter(|_| notifier.is_wanted()) {
            tokio::spawn(keep_telling(notifier.clone(), limit));
        }
        let reason = loop {
            tokio::select! {
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                _ = hangup.recv() => crate::logging::reopen(),
                ended = &mut server => {
                    return ended.unwrap_or(Ok(())).map_err(AppError::Serve);
                }
            }
        };
        info!(reason, "supervisor drains");
        tell(&notifier, "STOPPING=1");
        // Gone before the last request: a client that connects now finds nobody, instead of one who won't answer. The
        // service manager's stays: who connects there is answered by the next supervisor.
        for (path, ours) in [(&config.socket, door.ours), (&ttrpc.path, true)] {
            if ours && let Err(error) = std::fs::remove_file(path) {
                warn!(%error, socket = %path.display(), "socket not removed");
            }
        }
        begin_drain.send_replace(true);
        events.close();
        match tokio::time::timeout(config.drain, server).await {
            Ok(ended) => ended.unwrap_or(Ok(())).map_err(AppError::Serve)?,
            Err(_) => warn!(seconds = config.drain.as_secs_f32(), "requests cut off"),
        }
        info!("supervisor ends; shims stay");
        Ok(())
    }
}

fn tell(notifier: &Notifier, state: &str) {
    if let Err(error) = notifier.send(state) {
        warn!(%error, state, "service manager not told");
    }
}

/// Shows the service manager that we are not stuck, twice as often as it asks for.
async fn keep_telling(notifier: Arc<Notifier>, limit: Duration) {
    let mut turns = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        turns.tick().await;
        tell(&notifier, "WATCHDOG=1");
    }
}

/// What the services at the edge stand on.
struct Services {
    events: Arc<EventBus>,
    introspection: IntrospectionService,
    containers: Arc<Containers>,
    tasks: Arc<Tasks>,
    stores: Arc<Stores>,
    registries: Arc<Registries>,
    cri: (RuntimeService, ImageService, Arc<Pods>),
    draining: Draining,
}

impl Services {
    /// Who is asked for metrics.
    fn sources(&self) -> Sources {
        Sources { tasks: self.tasks.clone(), stores: self.stores.clone(), events: self.events.clone() }
    }

    /// Every service on one server; what isn't here answers UNIMPLEMENTED.
    fn router(self) -> Router<Stack<CallsLayer, Identity>> {
        let Self { events, introspection, containers, tasks, stores, registries, cri, draining } = self;
        let (runtime_service, image_service, pods) = cri;
        // What a client opens with the Streaming service, a transfer takes by its name.
        let transfer_streams = Arc::<crate::transfer::Streams>::default();
        let mut routes = Routes::default()
            .add_service(limited!(HealthServer::new(HealthService::new(draining))))
            .add_service(limited!(VersionServer::new(VersionService)))
            .add_service(limited!(IntrospectionServer::new(introspection)))
            .add_service(limited!(EventsServer::new(EventsService::new(events, tasks.clone()))))
            .add_service(limited!(ContainersServer::new(ContainersService::new(containers, stores.gc.clone()))))
            .add_service(limited!(TasksServer::new(TasksService::new(tasks.clone()))))
            .add_service(limited!(StreamsServer::new(StreamsService::new(tasks))))
            .add_service(limited!(ContentServer::new(ContentService::new(stores.clone()))))
            .add_service(limited!(StoreServer::new(StoreService::new(stores.clone()))))
            .add_service(limited!(ImagesServer::new(ImagesService::new(stores.clone()))))
            .add_service(limited!(SnapshotsServer::new(SnapshotsService::new(stores.clone()))))
            .add_service(limited!(DiffServer::new(DiffService::new(stores.clone()))))
            .add_service(limited!(LeasesServer::new(LeasesService::new(stores.clone()))))
            .add_service(limited!(NamespacesServer::new(NamespacesService::new(stores.clone()))))
            .add_service(limited!(StreamingServer::new(StreamingService::new(transfer_streams.clone()))))
            .add_service(limited!(RuntimeServiceServer::new(runtime_service)))
            .add_service(limited!(ImageServiceServer::new(image_service)))
            .add_service(limited!(RegistryServer::new(RegistryService::new(registries.clone()))))
            .add_service(limited!(TransferServer::new(TransferService::new(stores, transfer_streams, registries))));
        let routes = cri::add_routes(std::mem::take(routes.axum_router_mut()), &pods).fallback(unknown);
        Server::builder().layer(CallsLayer).add_routes(routes.into())
    }
}

/// What no service here answers; most often one that this release lacks.
async fn unknown(uri: http::Uri) -> http::Response<Body> {
    let call = uri.path().trim_start_matches('/');
    let service = call.split('/').next().unwrap_or(call);
    Status::unimplemented(format!("berth-supervisor {VERSION} has no service {service} (called as {call})")).into_http()
}
