//! Config -> App -> serve -> drain.

use crate::{
    access::{AccessError, Gate},
    build::{Builder, api::workers, session::Sessions, worker::whole},
    config::{Config, Live},
    containers::{
        Containers, exits, networking,
        store::{Store, StoreError},
    },
    events::Events,
    http::{self, routes},
    identity::{Identity, IdentityError},
    images::{Images, Outside},
    launch::{self, LaunchError},
    listen::{self, Certificates, Door, ListenError, Listeners},
    metrics::{self, Metrics},
    networks::{BridgeConfig, NetworkError, NetworkIds, Networks, unique_local_bridge},
    supervisor::{Client, DriverError},
    time::Timestamp,
    volumes::Volumes,
};
use nix::fcntl::{Flock, FlockArg};
use spec::apparmor::AppArmor;
use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use sys::service::{Notifier, Service};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
};
use tracing::{info, warn};

/// How long the first comparison with the supervisor may take.
const COMPARE: Duration = Duration::from_secs(30);

/// Everything handlers share.
#[derive(Debug)]
pub struct App {
    /// What we were told from outside.
    pub config: Config,
    /// The part of it that a reload replaces.
    live: RwLock<Arc<Live>>,
    /// Counters.
    pub metrics: Metrics,
    /// What happened.
    pub events: Events,
    /// The supervisor.
    pub supervisor: Client,
    /// The images that the supervisor keeps.
    pub images: Images,
    /// Networks of containers.
    pub networks: Networks,
    /// Volumes.
    pub volumes: Arc<Volumes>,
    /// Containers.
    pub containers: Containers,
    /// Clients of builds.
    pub sessions: Sessions,
    /// Builds.
    pub builder: Arc<Builder>,
    /// What this machine has of AppArmor.
    pub apparmor: AppArmor,
    /// Who this engine is.
    pub identity: Identity,
    /// When it started.
    pub started: Timestamp,
    /// Where threads leave work that they don't wait for.
    pub runtime: tokio::runtime::Handle,
    /// Whether /sys/fs/cgroup is cgroup2.
    pub unified_cgroups: bool,
}

impl App {
    /// The part of the configuration that a reload replaces, as it is now.
    pub fn live(&self) -> Arc<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
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
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("write {what} {path}")]
    Process {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("process with PID {pid} is still running, as {path} says")]
    Running { pid: i32, path: PathBuf },
    #[error("watch for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Supervisor(#[from] LaunchError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the supervisor at {0} does not answer")]
    NoAnswer(PathBuf),
    #[error("supervisor at {at}")]
    Driver {
        at: PathBuf,
        #[source]
        cause: DriverError,
    },
}

/// Serves until SIGTERM or SIGINT. Containers run on. `set_filter` changes what is logged.
pub async fn run(config: Config, service: Service, set_filter: SetFilter) -> Result<(), AppError> {
    for (path, mode) in [
        (config.data_root.clone(), 0o711),
        (config.run_root.clone(), 0o711),
        (config.engine_data(), 0o711),
        (config.engine_run(), 0o711),
    ] {
        make_folder(&path, mode)?;
    }
    // Before anybody can know of us: who is told that we are ready may tell us to stop at once.
    let failed = AppError::Signals;
    let signals = Signals {
        term: signal(SignalKind::terminate()).map_err(failed)?,
        int: signal(SignalKind::interrupt()).map_err(failed)?,
        hup: signal(SignalKind::hangup()).map_err(failed)?,
    };
    let _data_lock = lock_root(&config.engine_data())?;
    let _run_lock = lock_root(&config.engine_run())?;
    let _pidfile = config.pidfile.as_deref().map(PidFile::write).transpose()?;
    if let Some(score) = config.oom_score_adjust {
        let path = PathBuf::from("/proc/self/oom_score_adj");
        std::fs::write(&path, score.to_string()).map_err(|cause| AppError::Process {
            what: "oom-score-adjust",
            path,
            cause,
        })?;
    }
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
    networking::resume(&app).await;
    tokio::spawn(networking::follow_resolver(app.clone()));
    networking::follow_host(&app);
    exits::resume(&app).await;
    // Containers don't depend on it: an engine that can't build is one all the same.
    match whole::open(&app).await {
        Ok(backend) => app.builder.give(Arc::new(backend)),
        Err(error) => warn!(error = %proto::kind::chain(&error), "images can't be built"),
    }
    // The service manager's sockets are not ours to remove.
    let Listeners { sockets, files, certificates } = Listeners::open(&app.config, service.sockets).await?;
    if let Some(address) = &app.config.metrics {
        tokio::spawn(metrics::serve(metrics::bind(address).await?, app.clone()));
    }
    tokio::spawn(crate::budget::keep(app.clone()));
    let (stop, stopped) = watch::channel(false);
    let door = Door { router: routes::router(app.clone()), gate: Gate::new(app.clone())?, app: app.clone(), stopped };
    let servers: Vec<_> = sockets.into_iter().map(|socket| tokio::spawn(listen::serve(socket, door.clone()))).collect();
    drop(door);
    info!(version = env!("CARGO_PKG_VERSION"), listen = ?files, "engine serves");
    tell(&service.notifier, "READY=1");
    let reload = || reload(&app, certificates.as_deref(), &set_filter, &service.notifier);
    until_told_to_stop(signals, reload, &service.notifier, service.watchdog).await;
    info!("engine stops; containers run on");
    tell(&service.notifier, "STOPPING=1");
    let _ = stop.send(true);
    for server in servers {
        let _ = server.await;
    }
    for path in files {
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

/// Changes the filter of log messages.
pub type SetFilter = Box<dyn Fn(&str) + Send + Sync>;

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

/// SIGHUP: reads the configuration again. A bad one changes nothing.
fn reload(app: &App, certificates: Option<&Certificates>, set_filter: &SetFilter, notifier: &Notifier) {
    let micros = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
    tell(notifier, &format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    match app.config.reload() {
        Ok(config) => {
            let live = config.live;
            set_filter(&live.log_filter);
            app.images.set_outside(outside(&live));
            let mut attributes: BTreeMap<String, String> = live.attributes().into_iter().collect();
            attributes.insert("name".into(), http::system::host_name());
            *app.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
            if let (Some(certificates), true) = (certificates, config.tls.on)
                && let Err(error) = certificates.reload(&config.tls)
            {
                warn!(error = %proto::kind::chain(&error), "certificates stay as they were");
            }
            // As dockerd: the way to have rules again that others have wiped.
            if let Err(error) = app.networks.repair() {
                warn!(error = %proto::kind::chain(&error), "networks can't be repaired");
            }
            info!("configuration read again");
            app.events.publish("daemon", "reload", app.identity.id.clone(), attributes);
        }
        Err(error) => warn!(error = %proto::kind::chain(&error), "configuration stays as it was"),
    }
    tell(notifier, "READY=1");
}

/// What transfers need to know.
fn outside(live: &Live) -> Outside {
    Outside { registries: live.registries.clone(), downloads: live.downloads, uploads: live.uploads }
}

/// Our number in a file, for as long as we live.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, AppError> {
        let old = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
        // A number that came to somebody else meanwhile is no engine.
        let ours = std::fs::read_link("/proc/self/exe").ok();
        if let Some(pid) = old.filter(|pid| *pid != std::process::id().cast_signed())
            && ours.is_some()
            && std::fs::read_link(format!("/proc/{pid}/exe")).ok() == ours
        {
            return Err(AppError::Running { pid, path: path.to_owned() });
        }
        if let Some(parent) = path.parent() {
            make_folder(parent, 0o755)?;
        }
        let failed = |cause| AppError::Process { what: "pidfile", path: path.to_owned(), cause };
        std::fs::write(path, std::process::id().to_string()).map_err(failed)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
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

/// What networks are told of the default bridge.
pub fn bridge_config(config: &Config, identity: &Identity) -> BridgeConfig {
    let wanted = &config.bridge;
    let own = || unique_local_bridge(&identity.bridge);
    BridgeConfig {
        name: wanted.name.clone(),
        address: wanted.address,
        address_v6: wanted.address_v6.or_else(own).filter(|_| wanted.ipv6),
        ranges: wanted.ranges.clone(),
        icc: wanted.icc,
        masquerade: wanted.masquerade,
        mtu: config.mtu,
        ids: NetworkIds { bridge: identity.bridge.clone(), host: identity.host.clone(), none: identity.none.clone() },
        bus: config.bus.clone(),
    }
}

/// Reads what is kept, takes up the networks of containers that may live.
pub fn open(config: Config, supervisor: Client) -> Result<Arc<App>, AppError> {
    let (data, run) = (config.engine_data(), config.engine_run());
    let (containers, streams) = (data.join("containers"), run.join("streams"));
    make_folder(&containers, 0o711)?;
    make_folder(&streams, 0o700)?;
    let identity = Identity::load_or_make(&data.join("identity.json"))?;
    let (store, records, definitions) = Store::open(&data.join("engine.redb"))?;
    let volumes_folder = data.join("volumes");
    let volumes = Volumes::open(volumes_folder.clone(), run.clone(), config.plugin_folders())
        .map_err(|cause| AppError::Folder { path: volumes_folder, cause })?;
    let networks = Networks::open(bridge_config(&config, &identity), &config.run_root, definitions)?;
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
            if record.state.phase.is_live() {
                volumes.remember_mounted(volume, &record.id);
            }
        }
    }
    let sessions = Sessions::new();
    let contexts = data.join("build/contexts");
    // Of builds that an engine before us didn't finish.
    let _ = std::fs::remove_dir_all(&contexts);
    let gateway = networks.gateway();
    let worker = workers::describe(&identity.id, supervisor.snapshotter(), &http::system::host_name(), gateway);
    let builder = Builder::new(sessions.clone(), config.builder.clone(), worker, contexts);
    let known: std::collections::HashSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
    volumes.resume(|maker| known.contains(maker));
    Ok(Arc::new(App {
        images: Images::new(supervisor.clone(), outside(&config.live), run.join("registries")),
        live: RwLock::new(Arc::new(config.live.clone())),
        metrics: Metrics::default(),
        apparmor: AppArmor::here(crate::config::in_container()),
        containers: Containers::new(store, records, containers, streams),
        events: Events::open(&data.join("events.log")),
        unified_cgroups: is_cgroup2(),
        started: Timestamp::now(),
        runtime: tokio::runtime::Handle::current(),
        config,
        supervisor,
        networks,
        sessions,
        builder: Arc::new(builder),
        volumes: Arc::new(volumes),
        identity,
    }))
}

/// Whether /sys/fs/cgroup is cgroup2.
pub fn is_cgroup2() -> bool {
    let magic = nix::sys::statfs::statfs("/sys/fs/cgroup").map(|s| s.filesystem_type().0);
    magic == Ok(sys::path::CGROUP2_MAGIC)
}

/// Waits for SIGTERM or SIGINT; meanwhile reads the configuration again at SIGHUP, and shows the service manager, if it asks for
/// that, that we are not stuck.
async fn until_told_to_stop(mut signals: Signals, reload: impl Fn(), notifier: &Notifier, watchdog: Option<Duration>) {
    let watchdog = watchdog.filter(|_| notifier.is_wanted());
    let show_life = async {
        let Some(limit) = watchdog else { return std::future::pending().await };
        let mut turns = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
        loop {
            turns.tick().await;
            tell(notifier, "WATCHDOG=1");
        }
    };
    let mut show_life = std::pin::pin!(show_life);
    loop {
        tokio::select! {
            _ = signals.term.recv() => return,
            _ = signals.int.recv() => return,
            _ = signals.hup.recv() => reload(),
            () = show_life.as_mut() => {}
        }
    }
}

fn tell(notifier: &Notifier, state: &str) {
    if let Err(error) = notifier.send(state) {
        warn!(%error, state, "service manager not told");
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

/// Makes a root this process' own for as long as what it gives lives.
pub fn lock_root(folder: &Path) -> Result<Flock<File>, AppError> {
    let path = folder.join("engine.lock");
    let lock = |cause| AppError::Lock { path: path.clone(), cause };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(lock)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => AppError::Taken(folder.to_owned()),
        other => lock(other.into()),
    })
}
