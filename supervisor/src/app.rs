//! The whole: opens what is kept, serves, drains. Everything long-lived is made here and handed down.
//!
//! Order at start: folders, locks (a second supervisor is turned away before it touches anything), stores, socket, then
//! service. Order at the end: stop accepting, tell those who wait for events, finish what is in hand, go. Shims stay.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::stat::{Mode, umask},
};
use proto::{
    berth::streams::v1::streams_server::StreamsServer,
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
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Server, server::Router};
use tracing::{info, warn};

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
        snapshots::SnapshotsService,
        streaming::StreamingService,
        streams::StreamsService,
        tasks::TasksService,
        transfer::TransferService,
        version::{VERSION, VersionService},
    },
    config::Config,
    containers::{ContainerRoots, Containers},
    events::EventBus,
    store::{StoreError, Stores},
    tasks::{TaskError, Tasks},
};

/// How long requests in hand may take once we are asked to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the supervisor can't begin, or ended badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// A folder that we need can't be made.
    #[error("make folder {at}")]
    Folder {
        /// The folder.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Another supervisor works on the same root.
    #[error("another berth-supervisor is using {root} (it holds {lock}): stop it, or choose other roots")]
    Taken {
        /// The root.
        root: PathBuf,
        /// The lock file.
        lock: PathBuf,
    },
    /// The lock can't be taken for another reason.
    #[error("lock {at}")]
    Lock {
        /// The lock file.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The socket can't be made.
    #[error("listen on {at}")]
    Listen {
        /// The socket.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Something that isn't a socket lies where ours should be.
    #[error("listen on {at}: a file that is not a socket is there; move it away")]
    NotASocket {
        /// The path.
        at: PathBuf,
    },
    /// Our identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Records, content, snapshots.
    #[error("open the data root")]
    Stores(#[from] StoreError),
    /// Tasks of an earlier supervisor.
    #[error("take over what runs")]
    Adopt(#[from] TaskError),
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

/// Everything long-lived.
pub(crate) struct App {
    config: Config,
    services: Services,
    begin_drain: watch::Sender<bool>,
    draining: Draining,
    listener: UnixListener,
    // Held until the process ends; the kernel lets go of them whatever happens.
    _locks: [Flock<std::fs::File>; 2],
}

impl App {
    /// Makes folders and locks, opens the stores, and binds the socket.
    pub(crate) async fn open(config: Config) -> Result<Self, AppError> {
        make_folder(&config.data_root, 0o711)?;
        make_folder(&config.data(), 0o700)?;
        make_folder(&config.run_root, 0o711)?;
        make_folder(&config.run(), 0o711)?;
        let locks = [
            lock(&config.run_root, config.run_root.join("supervisor.lock"))?,
            lock(&config.data_root, config.data().join("lock"))?,
        ];
        let introspection = IntrospectionService::open(&config.data())?;
        let (begin_drain, draining) = Draining::new();
        let events = Arc::new(EventBus::new());
        let sink = events.clone();
        let stores = Stores::open(
            &config.data_root,
            Arc::new(move |namespace: &str, topic: &str, event| sink.publish_any(namespace, topic, event)),
        )?;
        stores.gc.add_roots(ContainerRoots);
        if let Err(error) = stores.gc.repair() {
            // What could not be put right is left over, not broken: we serve all the same.
            warn!(error = %proto::kind::chain(&error), "leftovers of an earlier run not removed");
        }
        let containers = Arc::new(Containers::new(stores.db.clone(), events.clone()));
        let tasks = Tasks::new(&config, containers.clone(), events.clone(), draining.clone());
        // Shims that waited for us find the socket before we look for them: their events come in meanwhile.
        let listener = bind(&config.socket)?;
        tasks.adopt()?;
        let services = Services { events, introspection, containers, tasks, stores, draining: draining.clone() };
        Ok(Self { config, services, begin_drain, draining, listener, _locks: locks })
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    pub(crate) async fn serve(self) -> Result<(), AppError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
        let Self { config, services, begin_drain, draining, listener, _locks } = self;
        let events = services.events.clone();
        let router = services.router();
        let stop = draining.begun();
        let mut server = tokio::spawn(router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop));
        info!(
            version = VERSION,
            socket = %config.socket.display(),
            data_root = %config.data_root.display(),
            "supervisor serves"
        );
        let reason = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            ended = &mut server => {
                return ended.unwrap_or(Ok(())).map_err(AppError::Serve);
            }
        };
        info!(reason, "supervisor drains");
        // Gone before the last request: a client that connects now finds nobody, instead of one who won't answer.
        if let Err(error) = std::fs::remove_file(&config.socket) {
            warn!(%error, socket = %config.socket.display(), "socket not removed");
        }
        begin_drain.send_replace(true);
        events.close();
        match tokio::time::timeout(DRAIN, server).await {
            Ok(ended) => ended.unwrap_or(Ok(())).map_err(AppError::Serve)?,
            Err(_) => warn!(seconds = DRAIN.as_secs(), "requests cut off"),
        }
        info!("supervisor ends; shims stay");
        Ok(())
    }
}

/// What the services at the edge stand on.
struct Services {
    events: Arc<EventBus>,
    introspection: IntrospectionService,
    containers: Arc<Containers>,
    tasks: Arc<Tasks>,
    stores: Arc<Stores>,
    draining: Draining,
}

impl Services {
    /// Every service on one server; what isn't here answers UNIMPLEMENTED.
    fn router(self) -> Router {
        let Self { events, introspection, containers, tasks, stores, draining } = self;
        // What a client opens with the Streaming service, a transfer takes by its name.
        let transfer_streams = Arc::<crate::transfer::Streams>::default();
        Server::builder()
            .add_service(limited!(HealthServer::new(HealthService::new(draining))))
            .add_service(limited!(VersionServer::new(VersionService)))
            .add_service(limited!(IntrospectionServer::new(introspection)))
            .add_service(limited!(EventsServer::new(EventsService::new(events, tasks.clone()))))
            .add_service(limited!(ContainersServer::new(ContainersService::new(containers))))
            .add_service(limited!(TasksServer::new(TasksService::new(tasks.clone()))))
            .add_service(limited!(StreamsServer::new(StreamsService::new(tasks))))
            .add_service(limited!(ContentServer::new(ContentService::new(stores.clone()))))
            .add_service(limited!(ImagesServer::new(ImagesService::new(stores.clone()))))
            .add_service(limited!(SnapshotsServer::new(SnapshotsService::new(stores.clone()))))
            .add_service(limited!(DiffServer::new(DiffService::new(stores.clone()))))
            .add_service(limited!(LeasesServer::new(LeasesService::new(stores.clone()))))
            .add_service(limited!(NamespacesServer::new(NamespacesService::new(stores.clone()))))
            .add_service(limited!(StreamingServer::new(StreamingService::new(transfer_streams.clone()))))
            .add_service(limited!(TransferServer::new(TransferService::new(stores, transfer_streams))))
    }
}

fn make_folder(at: &Path, mode: u32) -> Result<(), AppError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(at)
        .map_err(|cause| AppError::Folder { at: at.to_owned(), cause })
}

fn lock(root: &Path, at: PathBuf) -> Result<Flock<std::fs::File>, AppError> {
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(&at);
    let file = file.map_err(|cause| AppError::Lock { at: at.clone(), cause })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => AppError::Taken { root: root.to_owned(), lock: at },
        errno => AppError::Lock { at, cause: errno.into() },
    })
}

fn bind(at: &Path) -> Result<UnixListener, AppError> {
    let failed = |cause| AppError::Listen { at: at.to_owned(), cause };
    if let Some(folder) = at.parent() {
        make_folder(folder, 0o711)?;
    }
    match std::fs::symlink_metadata(at) {
        // We hold the lock, so a socket there belongs to nobody who lives.
        Ok(old) if old.file_type().is_socket() => std::fs::remove_file(at).map_err(failed)?,
        Ok(_) => return Err(AppError::NotASocket { at: at.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // The socket is the owner's alone from its first moment; a chmod afterwards would leave a gap.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(at);
    umask(before);
    bound.map_err(failed)
}
