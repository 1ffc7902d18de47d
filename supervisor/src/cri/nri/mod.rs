//! NRI: plugins that see pods and containers come and go, and may change them (`nri.pkg.api.v1alpha1`).
//!
//! `plugin` is one of them, `launch` finds those that are installed; `hooks` is where the calls of the kubelet meet them. `convert` says what
//! there is in their words, `collect` finds out who wants what, and `apply` writes it into a specification.
//!
//! # Which plugins there are
//!
//! Programs of a folder, started by us with one end of a socket as stdin (the protocol has its number in `NRI_PLUGIN_SOCKET`), before
//! CRI is served: no container is made past them. And whoever connects to the socket, at any time. Both are told the state of this
//! node first; an event is told to all plugins that are there, in the order of their indices, to one after another. So is what
//! they want applied: each sees what those before it have changed.
//!
//! # Time
//!
//! One event at a time, as in containerd: plugins decide about what the whole node has. A plugin that doesn't answer in time, goes away or
//! answers what nobody can read is disconnected, and the call goes on without it; only if it is there to judge adjustments
//! (`ValidateContainerAdjustment`) the container isn't made. An answer that is an error fails RunPodSandbox, CreateContainer,
//! StartContainer and updates; from all other events it is logged.
//!
//! Changes that plugins want of other containers are made after the event, without the turn of their sandboxes: two pods whose plugins
//! change one another's containers would wait for each other.
//!
//! # What is kept
//!
//! Nothing. A plugin that was there when we died connects again, or is started again, and is told the state of the node. While it
//! is told, nothing is made: a container is in that state, or its plugin hears of its creation. Off (`[cri.nri] disable`, the default)
//! there is neither socket nor thread nor lock; on and without plugins an event costs one look into an empty list.

mod apply;
mod collect;
mod convert;
mod error;
mod hooks;
mod launch;
mod plugin;
mod resources;

use std::{
    collections::HashSet,
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::{
    kind::chain,
    nri::pkg::api::v1alpha1::{self as nri, Event},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Mutex as Turn, OwnedRwLockReadGuard, RwLock, Semaphore},
};
use tracing::{info, warn};

pub(super) use self::error::NriError;
use self::{
    collect::{Collected, merge_resources},
    error::PluginError,
    plugin::{Candidate, Failed, Plugin},
};
use super::pods::Pods;
use crate::{app::Draining, config::NriConfig};

/// So many may be connected without being plugins yet.
const CANDIDATES: usize = 64;
/// Until somebody else who has the socket's place has taken our call.
const KNOCK: Duration = Duration::from_secs(1);

/// The plugins of this node.
pub(super) struct Nri {
    config: NriConfig,
    pods: OnceLock<Weak<Pods>>,
    plugins: Mutex<Vec<Arc<Plugin>>>,
    /// One event at a time; within are the containers of whose end plugins have been told.
    turn: Turn<HashSet<String>>,
    /// Held to make something, and by a plugin that is told the state of the node for itself.
    gate: Arc<RwLock<()>>,
    numbers: AtomicU64,
}

/// Keeps plugins from being told the state of the node.
pub(super) type Gate = OwnedRwLockReadGuard<()>;

impl Nri {
    /// Nobody is there yet.
    pub(super) fn new(config: NriConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            pods: OnceLock::new(),
            plugins: Mutex::default(),
            turn: Turn::default(),
            gate: Arc::default(),
            numbers: AtomicU64::new(0),
        })
    }

    /// Starts the plugins that are installed, waits until they know the state of this node, and lets others in from then on.
    pub(super) async fn start(self: &Arc<Self>, pods: &Arc<Pods>, draining: Draining) {
        let _ = self.pods.set(Arc::downgrade(pods));
        let programs = launch::programs(&self.config.plugins, &self.config.configurations);
        let starting = programs.into_iter().map(async |program| {
            let name = format!("{}-{}", program.index, program.base);
            let begun = async {
                let (stream, process) = plugin::start(&program)?;
                self.admit(plugin::meet(self, stream, Some((program, process))).await?).await
            };
            if let Err(error) = begun.await {
                warn!(plugin = name, error = %chain(&error), "installed NRI plugin is not there");
            }
        });
        futures_util::future::join_all(starting).await;
        let listener = match &self.config.socket {
            None => None,
            Some(at) => match listen(at).await {
                Ok(listener) => Some(listener),
                Err(error) => {
                    warn!(socket = %at.display(), %error, "NRI plugins can't connect");
                    None
                }
            },
        };
        tokio::spawn(self.clone().serve(listener, draining));
    }

    async fn serve(self: Arc<Self>, listener: Option<UnixListener>, draining: Draining) {
        if let (Some(listener), Some(at)) = (listener, &self.config.socket) {
            info!(socket = %at.display(), "NRI plugins may connect");
            tokio::select! {
                () = self.clone().accept(&listener) => {}
                () = draining.clone().begun() => {}
            }
            // Before it is closed: the next supervisor may want its place at once.
            if let Err(error) = std::fs::remove_file(at) {
                warn!(socket = %at.display(), %error, "socket of NRI plugins not removed");
            }
        }
    }

    /// Tells plugins that we end; nobody asks them any more.
    pub(super) async fn dismiss(&self) {
        let ending = self.plugins().into_iter().map(|plugin| async move {
            // It may have no use for that, and is left in any case.
            let _ = plugin.call::<nri::Empty>("Shutdown", &nri::Empty {}).await;
        });
        futures_util::future::join_all(ending).await;
        self.list().clear();
    }

    async fn accept(self: Arc<Self>, listener: &UnixListener) {
        let places = Arc::new(Semaphore::new(CANDIDATES));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "NRI plugin not let in");
                    tokio::time::sleep(KNOCK).await;
                    continue;
                }
            };
            let nri = self.clone();
            tokio::spawn(async move {
                let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                let met = async { nri.admit(plugin::meet(&nri, stream, None).await?).await };
                if let Err(error) = met.await {
                    warn!(pid, error = %chain(&error), "who connected is no NRI plugin");
                }
                drop(place);
            });
        }
    }

    /// Makes a plugin of somebody, who knows the state of the node when this returns.
    async fn admit(self: &Arc<Self>, candidate: Candidate) -> Result<(), PluginError> {
        let name = candidate.plugin.name();
        let pods = self.pods().ok_or(PluginError::Gone)?;
        let gate = self.gate.write().await;
        let state = pods.state_of_node().await.map_err(|error| PluginError::State(Box::new(error)))?;
        let (there, known) = (state.pods.len(), state.containers.len());
        let updates = candidate.plugin.synchronize(state.pods, state.containers).await?;
        self.turn.lock().await.extend(state.ended);
        let Candidate { plugin, moving, door } = candidate;
        let number = plugin.number;
        {
            let mut all = self.list();
            let at = all.partition_point(|other| other.index <= plugin.index);
            all.insert(at, Arc::new(plugin));
        }
        door.open();
        drop(gate);
        info!(plugin = name, pods = there, containers = known, "NRI plugin is there");
        let nri = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = moving.await.map_err(io::Error::other).flatten();
            if let Some(nri) = nri.upgrade()
                && nri.drop_plugin(number)
            {
                let error = ended.err().map(|error| error.to_string());
                info!(plugin = name, error, "NRI plugin has gone");
            }
        });
        self.changes(updates, Vec::new()).await;
        Ok(())
    }

    /// A number that no plugin has had.
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn pods(&self) -> Option<Arc<Pods>> {
        self.pods.get().and_then(Weak::upgrade)
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Plugin>>> {
        // Only whole plugins come and go under the lock.
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugins(&self) -> Vec<Arc<Plugin>> {
        self.list().clone()
    }

    /// Whether nobody is there.
    fn is_idle(&self) -> bool {
        self.list().is_empty()
    }

    fn drop_plugin(&self, number: u64) -> bool {
        let mut all = self.list();
        let before = all.len();
        all.retain(|plugin| plugin.number != number);
        all.len() < before
    }

    /// Takes a call's outcome: a plugin that is lost is disconnected, and has no answer.
    fn outcome<A>(
        &self,
        plugin: &Plugin,
        event: &'static str,
        answer: Result<A, Failed>,
    ) -> Result<Option<A>, NriError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(Failed::Lost(error)) => {
                self.drop_plugin(plugin.number);
                warn!(plugin = plugin.name(), event, error = %chain(&error), "NRI plugin is disconnected");
                Ok(None)
            }
            Err(Failed::Refused(cause)) => {
                Err(NriError::Refused { plugin: plugin.name(), event, cause: Box::new(cause) })
            }
        }
    }

    /// Tells of an event that has no answer; the first refusal ends it. The caller has the turn.
    async fn tell(
        &self,
        event: Event,
        pod: &nri::PodSandbox,
        container: Option<&nri::Container>,
    ) -> Result<(), NriError> {
        let message =
            nri::StateChangeEvent { event: event.into(), pod: Some(pod.clone()), container: container.cloned() };
        for plugin in self.plugins().iter().filter(|plugin| plugin.wants(event)) {
            let answer = plugin.call::<nri::Empty>("StateChange", &message).await;
            self.outcome(plugin, event.as_str_name(), answer)?;
        }
        Ok(())
    }

    /// Asks what is wanted of a new container, whose specification `spec` is changed. The caller has the turn.
    async fn create(
        &self,
        pod: &nri::PodSandbox,
        spec: &mut serde_json::Value,
        describe: impl Fn(&serde_json::Value) -> nri::Container,
    ) -> Result<(Collected, Vec<nri::ContainerEviction>), NriError> {
        let (mut collected, mut evictions, mut asked) = (Collected::default(), Vec::new(), Vec::new());
        let pristine = describe(spec);
        for plugin in self.plugins() {
            asked.push(nri::PluginInstance { name: plugin.base.clone(), index: plugin.index.clone() });
            if !plugin.wants(Event::CreateContainer) {
                continue;
            }
            let request = nri::CreateContainerRequest { pod: Some(pod.clone()), container: Some(describe(spec)) };
            let answer = plugin.call::<nri::CreateContainerResponse>("CreateContainer", &request).await;
            let Some(answer) = self.outcome(&plugin, "CREATE_CONTAINER", answer)? else { continue };
            if let Some(wish) = &answer.adjust {
                let name = plugin.name();
                collected.adjust(&pristine.id, &name, wish)?;
                apply::apply(spec, wish).map_err(|what| NriError::Wish { plugin: name, what })?;
            }
            collected.update(Some(&pristine.id), &plugin.name(), answer.update)?;
            evictions.extend(answer.evict);
        }
        for plugin in self.plugins().iter().filter(|plugin| plugin.wants(Event::ValidateContainerAdjustment)) {
            let request = nri::ValidateContainerAdjustmentRequest {
                pod: Some(pod.clone()),
                container: Some(pristine.clone()),
                adjust: Some(collected.adjust.clone()),
                update: collected.updates.clone(),
                owners: Some(collected.owners()),
                plugins: asked.clone(),
            };
            let answer =
                plugin.call::<nri::ValidateContainerAdjustmentResponse>("ValidateContainerAdjustment", &request).await;
            match self.outcome(plugin, "VALIDATE_CONTAINER_ADJUSTMENT", answer)? {
                None => return Err(NriError::Unjudged(plugin.name())),
                Some(answer) if answer.reject => {
                    return Err(NriError::Rejected { plugin: plugin.name(), reason: answer.reason });
                }
                Some(_) => {}
            }
        }
        Ok((collected, evictions))
    }

    /// Asks what is wanted instead of a container's new resources, and of others. The caller has the turn.
    async fn update(
        &self,
        pod: &nri::PodSandbox,
        container: &nri::Container,
        resources: &mut nri::LinuxResources,
    ) -> Result<(Vec<nri::ContainerUpdate>, Vec<nri::ContainerEviction>), NriError> {
        let (mut collected, mut evictions) = (Collected::default(), Vec::new());
        let is_own = |update: &nri::ContainerUpdate| update.container_id == container.id;
        for plugin in self.plugins().iter().filter(|plugin| plugin.wants(Event::UpdateContainer)) {
            let request = nri::UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: Some(resources.clone()),
            };
            let answer = plugin.call::<nri::UpdateContainerResponse>("UpdateContainer", &request).await;
            let Some(answer) = self.outcome(plugin, "UPDATE_CONTAINER", answer)? else { continue };
            collected.update(None, &plugin.name(), answer.update)?;
            let own = collected.updates.iter().find(|update| is_own(update));
            if let Some(wanted) = own.and_then(|own| own.linux.as_ref()?.resources.as_ref()) {
                merge_resources(resources, wanted);
            }
            evictions.extend(answer.evict);
        }
        let others = collected.updates.into_iter().filter(|update| !is_own(update)).collect();
        Ok((others, evictions))
    }

    /// Tells of a container's end, once; gives what is wanted of others. The caller has the turn.
    async fn end(
        &self,
        told: &mut HashSet<String>,
        pod: &nri::PodSandbox,
        container: &nri::Container,
    ) -> Vec<nri::ContainerUpdate> {
        if !told.insert(container.id.clone()) {
            return Vec::new();
        }
        let mut collected = Collected::default();
        let request = nri::StopContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        for plugin in self.plugins().iter().filter(|plugin| plugin.wants(Event::StopContainer)) {
            let answer = plugin.call::<nri::StopContainerResponse>("StopContainer", &request).await;
            let noted = self.outcome(plugin, "STOP_CONTAINER", answer).and_then(|answer| {
                collected.update(None, &plugin.name(), answer.map(|answer| answer.update).unwrap_or_default())
            });
            if let Err(error) = noted {
                // It has ended whether or not they agree.
                warn!(id = container.id, error = %chain(&error), "what an NRI plugin wants is left");
            }
        }
        collected.updates
    }

    /// Tells what the kubelet says of a pod's resources. The caller has the turn.
    async fn update_pod(&self, request: &nri::UpdatePodSandboxRequest) -> Result<(), NriError> {
        for plugin in self.plugins().iter().filter(|plugin| plugin.wants(Event::UpdatePodSandbox)) {
            let answer = plugin.call::<nri::UpdatePodSandboxResponse>("UpdatePodSandbox", request).await;
            self.outcome(plugin, "UPDATE_POD_SANDBOX", answer)?;
        }
        Ok(())
    }

    /// Does what plugins want of containers, as far as it can be done; gives what couldn't, but for what they don't mind.
    async fn changes(
        &self,
        updates: Vec<nri::ContainerUpdate>,
        evictions: Vec<nri::ContainerEviction>,
    ) -> Vec<nri::ContainerUpdate> {
        let Some(pods) = self.pods() else { return updates };
        let mut failed = Vec::new();
        for update in updates {
            if let Err(error) = pods.change_as_wished(&update).await {
                warn!(id = update.container_id, error = %chain(&error), "container not changed as an NRI plugin wished");
                if !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        for eviction in evictions {
            pods.evict(eviction);
        }
        failed
    }
}

async fn listen(at: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = at.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let listener = match UnixListener::bind(at) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Another runtime's, or what one of us has left that was killed.
            if !matches!(tokio::time::timeout(KNOCK, UnixStream::connect(at)).await, Ok(Err(_))) {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another runtime listens there"));
            }
            std::fs::remove_file(at)?;
            UnixListener::bind(at)?
        }
        other => other?,
    };
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
