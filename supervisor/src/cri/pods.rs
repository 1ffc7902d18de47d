//! Everything that the calls about sandboxes and containers stand on.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use ::spec::apparmor::AppArmor;
use proto::{id::NamespaceName, kind::chain, runtime::v1 as cri};
use tokio::sync::{Notify, broadcast};
use tracing::warn;

use super::{
    NAMESPACE, Node,
    cni::Cni,
    error::CriError,
    images::Images,
    lists::Listed,
    nri::Nri,
    place::Place,
    record::{CONTAINERS, Container, SANDBOXES, Sandbox},
    relays::Relays,
    spec::Host,
    starting::Starting,
    streaming::Streaming,
    turns::Turns,
};
use crate::{
    app::Draining,
    config::Config,
    containers::Containers,
    store::{StoreError, Stores},
    tasks::Tasks,
};

/// Events that somebody who listens may fall behind.
const BACKLOG: usize = 1024;

/// The pods of this node.
pub(crate) struct Pods {
    pub(super) stores: Arc<Stores>,
    pub(super) containers: Arc<Containers>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) images: Images,
    pub(super) cni: Arc<Cni>,
    pub(super) streaming: Arc<Streaming>,
    pub(super) relays: Arc<Relays>,
    /// Containers that were killed here and whose ends aren't recorded yet.
    pub(super) killed: Mutex<HashSet<String>>,
    /// Plugins, where they may be.
    pub(super) nri: Option<Arc<Nri>>,
    pub(super) turns: Turns,
    pub(super) starting: Starting,
    pub(super) listed: Listed,
    /// A container has ended: its record says how.
    pub(super) ended: Notify,
    /// For those who follow GetContainerEvents.
    pub(super) told: broadcast::Sender<Arc<cri::ContainerEventResponse>>,
    pub(super) node: Arc<Node>,
    pub(super) driver: cri::CgroupDriver,
    pub(super) apparmor: AppArmor,
    /// What specifications depend on.
    pub(super) host: Host,
    /// The namespace of all that is CRI's.
    pub(super) namespace: NamespaceName,
    pub(super) draining: Draining,
    /// Where descriptions of devices are (CDI).
    pub(super) cdi: Vec<PathBuf>,
    folder: PathBuf,
    volumes: PathBuf,
}

impl Pods {
    /// The pods of this configuration. Those of an earlier supervisor are looked after when this returns, or on the way.
    pub(crate) async fn open(
        config: &Config,
        node: Arc<Node>,
        (stores, containers, tasks): (Arc<Stores>, Arc<Containers>, Arc<Tasks>),
        draining: Draining,
    ) -> Result<Arc<Self>, CriError> {
        let namespace = NamespaceName::new(NAMESPACE).expect("a valid name");
        let relays = Relays::new(tasks.clone(), namespace.clone(), &config.run());
        let pods = Arc::new(Self {
            images: Images::new(stores.clone()),
            stores,
            containers,
            cni: Cni::new(config),
            streaming: Streaming::open(config, tasks.clone(), relays.clone())?,
            nri: config.nri.clone().map(Nri::new),
            tasks,
            relays,
            turns: Turns::default(),
            starting: Starting::default(),
            listed: Listed::default(),
            killed: Mutex::default(),
            ended: Notify::new(),
            told: broadcast::channel(BACKLOG).0,
            driver: node.cgroup_driver(),
            node,
            apparmor: AppArmor::here(Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists()),
            host: Host::here(),
            namespace,
            draining,
            cdi: config.cdi.clone(),
            folder: config.run().join("sandboxes"),
            volumes: config.data().join("volumes"),
        });
        if let Err(error) = pods.resume().await {
            // Damaged records, most likely: all else is served, and `check` says what they are.
            warn!(error = %chain(&error), "pods of an earlier run are not looked after");
        }
        if let Some(nri) = &pods.nri {
            nri.start(&pods, pods.draining.clone()).await;
        }
        Ok(pods)
    }

    /// Where sandboxes have their folders.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where containers have the volumes that their images want.
    pub(super) fn volumes(&self) -> &Path {
        &self.volumes
    }

    /// Those of one container.
    pub(super) fn volumes_of(&self, id: &str) -> PathBuf {
        self.volumes.join(id)
    }

    /// Removes them; what is left is found by our next start.
    pub(super) fn remove_volumes(&self, id: &str) {
        match std::fs::remove_dir_all(self.volumes_of(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(id, %error, "volumes of a container not removed");
            }
            _ => {}
        }
    }

    /// A sandbox's folder.
    pub(super) fn place(&self, id: &str) -> Place {
        Place::at(&self.folder, id)
    }

    /// A sandbox's record.
    pub(super) fn sandbox(&self, id: &str) -> Result<Option<Sandbox>, StoreError> {
        self.stores.db.read(|tx| SANDBOXES.get(tx, NAMESPACE, id))
    }

    /// A container's record.
    pub(super) fn container(&self, id: &str) -> Result<Option<Container>, StoreError> {
        let found = self.stores.db.read(|tx| CONTAINERS.get(tx, NAMESPACE, id))?;
        Ok(found.map(|container| self.starting.shown(id, container)))
    }

    /// Every sandbox.
    pub(super) fn sandboxes(&self) -> Result<Vec<(String, Sandbox)>, StoreError> {
        self.stores.db.read(|tx| SANDBOXES.list(tx, NAMESPACE, ""))
    }

    /// Every container, or those of a sandbox.
    pub(super) fn containers_of(&self, sandbox: Option<&str>) -> Result<Vec<(String, Container)>, StoreError> {
        let all = self.stores.db.read(|tx| CONTAINERS.list(tx, NAMESPACE, ""))?;
        let all = all.into_iter().filter(|(_, container)| sandbox.is_none_or(|id| container.sandbox == id));
        Ok(all.map(|(id, container)| (id.clone(), self.starting.shown(&id, container))).collect())
    }

    /// The whole id of a sandbox, of which `id` is the beginning.
    pub(super) fn sandbox_id(&self, id: &str) -> Result<String, CriError> {
        let found = self.stores.db.read(|tx| SANDBOXES.list(tx, NAMESPACE, id))?;
        one("sandbox", id, found)
    }

    /// The whole id of a container, of which `id` is the beginning.
    pub(super) fn container_id(&self, id: &str) -> Result<String, CriError> {
        let found = self.stores.db.read(|tx| CONTAINERS.list(tx, NAMESPACE, id))?;
        one("container", id, found)
    }

    /// Does work that is carried to its end even if its caller goes away.
    pub(super) async fn detached<T, F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) -> Result<T, CriError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CriError>> + Send + 'static,
    {
        tokio::spawn(work(self.clone())).await.unwrap_or(Err(CriError::Panic))
    }
}

// People type beginnings of ids, kubelets whole ones.
fn one<T>(what: &'static str, id: &str, mut found: Vec<(String, T)>) -> Result<String, CriError> {
    if id.is_empty() {
        return Err(CriError::Missing(what));
    }
    if let Some((whole, _)) = found.iter().find(|(whole, _)| whole == id) {
        return Ok(whole.clone());
    }
    match (found.pop(), found.pop()) {
        (Some((whole, _)), None) => Ok(whole),
        (None, _) => Err(CriError::NotFound { what, id: id.to_owned() }),
        _ => Err(CriError::Ambiguous { what, id: id.to_owned() }),
    }
}

/// Where waiting for the disk is allowed.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, CriError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, CriError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(CriError::Panic))
}

/// Nanoseconds since the epoch.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// An id like those of other runtimes: 64 hexadecimal digits that nobody can guess.
pub(super) fn new_id() -> Result<String, CriError> {
    let mut random = [0; 32];
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
    read.map_err(|error| CriError::Invalid(format!("no random number for an id: {error}")))?;
    Ok(proto::digest::hex(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_of_ids() {
        let all = || vec![("abc1".to_owned(), ()), ("abc12".to_owned(), ())];
        assert_eq!(one("sandbox", "abc1", all()).unwrap(), "abc1");
        assert!(matches!(one("sandbox", "abc", all()), Err(CriError::Ambiguous { .. })));
        assert!(matches!(one::<()>("sandbox", "x", vec![]), Err(CriError::NotFound { .. })));
        assert!(matches!(one("sandbox", "", all()), Err(CriError::Missing(_))));
        assert_eq!(one("sandbox", "ab", vec![("abc".to_owned(), ())]).unwrap(), "abc");
    }

    #[test]
    fn ids_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert!(a != b && a.len() == 64);
    }
}
