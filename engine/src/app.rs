//! Config -> App -> serve -> drain.

use crate::{
    config::Config,
    containers::{
        Containers, exits,
        store::{Store, StoreError},
    },
    events::Events,
    http::routes,
    identity::{Identity, IdentityError},
    images::Images,
    launch::{self, LaunchError},
    networks::{BridgeConfig, NetworkError, NetworkIds, Networks, Subnet},
    supervisor::{Client, DriverError},
    time::Timestamp,
    volumes::Volumes,
};
use axum::body::Body;
use hyper_util::rt::TokioIo;
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use sys::service::{Notifier, Service};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};
use tracing::{info, warn};

/// How long requests in flight may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

/// How long the first comparison with the supervisor may take.
const COMPARE: Duration = Duration::from_secs(30);

/// Everything handlers share.
#[derive(Debug)]
pub struct App {
    /// What we were told from outside.
    pub config: Config,
    /// What happened.
    pub events: Events,
    /// The supervisor.
    pub supervisor: Client,
    /// The images that the supervisor keeps.
    pub images: Images,
    /// Networks of containers.
    pub networks: Networks,
    /// Volumes.
    pub volumes: Volumes,
    /// Containers.
    pub containers: Containers,
    /// Who this engine is.
    pub identity: Identity,
    /// When it started.
    pub started: Timestamp,
    /// Whether /sys/fs/cgroup is cgroup2.
    pub unified_cgroups: bool,
}

/// Why the engine does not serve.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("make folder {path}")]
    Folder {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("another berth-engine uses {0}: stop it first or choose other roots")]
    Taken(PathBuf),
    #[error("lock {path}")]
    Lock {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("listen on {path}")]
    Listen {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("listen on {0}: somebody else serves there")]
    Served(PathBuf),
    #[error("watch for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Supervisor(#[from] LaunchError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("bridge address: {0}")]
    Subnet(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the supervisor at {0} does not answer")]
    NoAnswer(PathBuf),
    #[error("supervisor at {at}")]
    Driver {
        at: PathBuf,
        #[source]
        cause: DriverError,
    },
}

/// Serves until SIGTERM or SIGINT. Containers run on.
pub async fn run(config: Config, service: Service) -> Result<(), AppError> {
    for (path, mode) in [
        (config.data_root.clone(), 0o711),
        (config.run_root.clone(), 0o711),
        (config.engine_data(), 0o711),
        (config.engine_run(), 0o711),
    ] {
        make_folder(&path, mode)?;
    }
    // Before anybody can know of us: who is told that we are ready may tell us to stop at once.
    let term = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let int = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    let _data_lock = lock_root(&config.engine_data())?;
    let _run_lock = lock_root(&config.engine_run())?;
    launch::ensure_supervisor(&config).await?;
    let supervisor = connect(&config).await?;
    let app = open(config, supervisor)?;
    let (ready, compared) = oneshot::channel();
    tokio::spawn(exits::follow(app.clone(), ready));
    tokio::time::timeout(COMPARE, compared)
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or_else(|| AppError::NoAnswer(app.config.supervisor.clone()))?;
    exits::resume(&app).await;
    let mut listeners = passed(service.sockets)?;
    // The service manager's sockets are served instead of ours, and are not ours to remove.
    let ours = if listeners.is_empty() { app.config.listen.as_slice() } else { &[] };
    for path in ours {
        listeners.push(listen(path).await?);
    }
    let router = routes::router(app.clone());
    let (stop, stopped) = watch::channel(false);
    let servers: Vec<_> =
        listeners.into_iter().map(|l| tokio::spawn(accept(l, router.clone(), stopped.clone()))).collect();
    info!(version = env!("CARGO_PKG_VERSION"), listen = ?app.config.listen, "engine serves");
    tell(&service.notifier, "READY=1");
    until_told_to_stop(term, int, &service.notifier, service.watchdog).await;
    info!("engine stops; containers run on");
    tell(&service.notifier, "STOPPING=1");
    let _ = stop.send(true);
    for server in servers {
        let _ = server.await;
    }
    for path in ours {
        let _ = std::fs::remove_file(path);
    }
    match tokio::task::spawn_blocking(move || app.networks.remove_if_unused()).await {
        Ok(Err(error)) => warn!(error = %proto::kind::chain(&error), "bridge left behind"),
        Err(error) => warn!(%error, "bridge left behind"),
        Ok(Ok(_)) => {}
    }
    remove_cgroup_parent();
    Ok(())
}

/// Removes the cgroup that containers are put in, unless one is still there (rmdir refuses then).
fn remove_cgroup_parent() {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let _ = std::fs::remove_dir(hierarchy.join("berth"));
    }
}

/// A client that knows which snapshotter to use.
async fn connect(config: &Config) -> Result<Client, AppError> {
    let at = &config.supervisor;
    let chosen = Client::new(at).with_storage_driver(config.storage_driver.as_deref());
    let chosen = tokio::time::timeout(COMPARE, chosen).await.map_err(|_| AppError::NoAnswer(at.clone()))?;
    chosen.map_err(|cause| AppError::Driver { at: at.clone(), cause })
}

/// Reads what is kept, takes up the networks of containers that may live.
fn open(config: Config, supervisor: Client) -> Result<Arc<App>, AppError> {
    let (data, run) = (config.engine_data(), config.engine_run());
    let (containers, streams) = (data.join("containers"), run.join("streams"));
    make_folder(&containers, 0o711)?;
    make_folder(&streams, 0o700)?;
    let identity = Identity::load_or_make(&data.join("identity.json"))?;
    let (store, records) = Store::open(&data.join("engine.redb"))?;
    let volumes_folder = data.join("volumes");
    let volumes =
        Volumes::open(volumes_folder.clone()).map_err(|cause| AppError::Folder { path: volumes_folder, cause })?;
    let bridge = BridgeConfig {
        name: config.bridge.clone(),
        address: config
            .bip
            .as_deref()
            .map(|text| text.parse::<Subnet>().map_err(|e| AppError::Subnet(e.to_string())))
            .transpose()?,
        mtu: 1500,
        ids: NetworkIds { bridge: identity.bridge.clone(), host: identity.host.clone(), none: identity.none.clone() },
    };
    let networks = Networks::open(bridge, &config.run_root)?;
    // All endpoints, also of containers that ended meanwhile: their ends are worked off in the usual way.
    let endpoints = records.iter().filter_map(|r| r.state.endpoint.as_ref().map(|e| (r.id.as_str(), e)));
    for damage in networks.restore(endpoints)? {
        let (id, error) = (crate::ids::short(&damage.id), proto::kind::chain(&damage.error));
        match damage.error {
            // Most likely it ended while no engine was there, which is about to be heard of.
            NetworkError::LinkGone(_) => info!(id, error, "network of a container"),
            _ => warn!(id, error, "network of a container"),
        }
    }
    for record in &records {
        for volume in record.mounts.iter().filter_map(|mount| mount.volume.as_ref()) {
            volumes.hold(volume, &record.id);
        }
    }
    Ok(Arc::new(App {
        images: Images::new(supervisor.clone()),
        containers: Containers::new(store, records, containers, streams),
        events: Events::default(),
        unified_cgroups: is_cgroup2(),
        started: Timestamp::now(),
        config,
        supervisor,
        networks,
        volumes,
        identity,
    }))
}

fn is_cgroup2() -> bool {
    let magic = nix::sys::statfs::statfs("/sys/fs/cgroup").map(|s| s.filesystem_type().0);
    magic == Ok(sys::path::CGROUP2_MAGIC)
}

/// Waits for SIGTERM or SIGINT; meanwhile shows the service manager, if it asks for that, that we are not stuck.
async fn until_told_to_stop(mut term: Signal, mut int: Signal, notifier: &Notifier, watchdog: Option<Duration>) {
    let watchdog = watchdog.filter(|_| notifier.is_wanted());
    let show_life = async {
        let Some(limit) = watchdog else { return std::future::pending().await };
        let mut turns = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
        loop {
            turns.tick().await;
            tell(notifier, "WATCHDOG=1");
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = show_life => {}
    }
}

fn tell(notifier: &Notifier, state: &str) {
    if let Err(error) = notifier.send(state) {
        warn!(%error, state, "service manager not told");
    }
}

/// The sockets that a service manager listens on for us already.
fn passed(sockets: Vec<(String, OwnedFd)>) -> Result<Vec<UnixListener>, AppError> {
    let listener = |socket| {
        let listener = std::os::unix::net::UnixListener::from(socket);
        // Neither a file nor a stream socket has this answer.
        listener.local_addr()?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    let each = sockets.into_iter().map(|(name, socket)| {
        listener(socket).map_err(|cause| AppError::Listen { path: format!("passed socket {name:?}").into(), cause })
    });
    each.collect()
}

async fn accept(listener: UnixListener, router: axum::Router, mut stopped: watch::Receiver<bool>) {
    // Every connection holds a clone of `alive`; when the last one is dropped, all have ended.
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: waiting is the only cure.
                    warn!(%error, "accept connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = stopped.changed() => break,
        };
        tokio::spawn(connection(stream, router.clone(), stopped.clone(), alive.clone()));
    }
    drop(alive);
    if tokio::time::timeout(DRAIN, all_ended.recv()).await.is_err() {
        info!("long requests cut off");
    }
}

async fn connection(
    stream: UnixStream,
    router: axum::Router,
    mut stopped: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        routes::serve(router.clone(), request.map(Body::new))
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Makes a folder with its parents; an existing one keeps its mode.
pub fn make_folder(path: &Path, mode: u32) -> Result<(), AppError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|cause| AppError::Folder { path: path.to_owned(), cause })
}

fn lock_root(folder: &Path) -> Result<Flock<File>, AppError> {
    let path = folder.join("engine.lock");
    let lock = |cause| AppError::Lock { path: path.clone(), cause };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(lock)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => AppError::Taken(folder.to_owned()),
        other => lock(other.into()),
    })
}

/// A socket for its owner and group `berth` (if there is such a group); what a dead engine left there goes.
async fn listen(path: &Path) -> Result<UnixListener, AppError> {
    let failed = |cause| AppError::Listen { path: path.to_owned(), cause };
    if let Some(parent) = path.parent() {
        make_folder(parent, 0o711)?;
    }
    if launch::listens(path).await {
        return Err(AppError::Served(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Nobody may connect between bind and chmod: born under another umask-proof name it would still be reachable, so
    // it is bound in a state that only root can use.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = bound.map_err(failed)?;
    if let Some(gid) = group_id("berth") {
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    }
    Ok(listener)
}

/// Looked up in the file itself: a static program has no name service switch.
fn group_id(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}
