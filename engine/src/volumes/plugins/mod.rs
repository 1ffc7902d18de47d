//! Docker's volume plugins (protocol of 1.x, "legacy plugins"): programs of others that keep volumes, spoken to by JSON over HTTP
//! on a socket. They are looked for when somebody names them or asks for all; nothing of them is started or kept alive here.

mod call;
mod discover;

pub use call::CallError;
pub use discover::DescriptionError;

use call::{Patience, call};
use discover::Endpoint;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::Semaphore;

/// Calls that may take their time: volumes are made, mounted, removed.
const WORK: Patience = Patience { limit: Duration::from_secs(120), wait: true };
/// Questions about one volume.
const LOOK: Patience = Patience { limit: Duration::from_secs(60), wait: true };
/// Questions that go to all plugins: one that hangs holds up the others' answers no longer than this.
const ROUND: Patience = Patience { limit: Duration::from_secs(3), wait: false };
/// Calls to one plugin at the same time.
const AT_ONCE: usize = 32;

/// Where plugins are looked for if the configuration says nothing; below the run root too.
pub const FOLDERS: [&str; 3] = ["/run/docker/plugins", "/etc/docker/plugins", "/usr/lib/docker/plugins"];

/// Why a plugin can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("error looking up volume plugin {0}: plugin \"{0}\" not found")]
    Missing(String),
    #[error("error looking up volume plugin {0}: plugin \"{0}\" does not implement \"VolumeDriver\"")]
    OtherKind(String),
    #[error("error looking up volume plugin {0}")]
    Description(String, #[source] DescriptionError),
    #[error("error looking up volume plugin {name}")]
    Activate {
        name: String,
        #[source]
        cause: CallError,
    },
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("volume plugin {plugin} tells {path:?} as the place of volume {volume}: it is not an absolute path")]
    Place { plugin: String, volume: String, path: String },
}

impl PluginError {
    /// Whether the plugin was asked and said no, rather than being away or out of order.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { .. }))
    }
}

/// All plugins, as far as they are known.
#[derive(Debug)]
pub struct Plugins {
    folders: Vec<PathBuf>,
    active: Mutex<HashMap<String, Arc<Plugin>>>,
}

/// One that keeps volumes.
#[derive(Debug)]
pub struct Plugin {
    /// Its name: that of its socket or description.
    pub name: String,
    endpoint: Endpoint,
    slots: Semaphore,
    scope: Mutex<Option<&'static str>>,
}

/// A volume as its plugin tells of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Told {
    /// Name.
    pub name: String,
    /// Where it is on the host, as long as it is mounted.
    pub mountpoint: Option<String>,
    /// When it was made.
    pub created_at: Option<String>,
    /// Whatever the plugin has to say.
    pub status: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[derive(Default)]
struct Activated {
    implements: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct One {
    volume: Option<Told>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Many {
    volumes: Option<Vec<Told>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mounted {
    mountpoint: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Capable {
    capabilities: Capabilities,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Capabilities {
    scope: String,
}

#[derive(Deserialize)]
struct Nothing {}

impl Plugins {
    /// Plugins of these folders.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders, active: Mutex::default() }
    }

    /// The plugin of this name, ready to be used.
    pub async fn get(&self, name: &str) -> Result<Arc<Plugin>, PluginError> {
        self.activate(name, LOOK).await
    }

    /// Names of those that were used already.
    pub fn used(&self) -> Vec<String> {
        let mut names: Vec<_> = self.active.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        names.sort();
        names
    }

    /// All that keep volumes, and what is wrong with the others.
    pub async fn all(&self) -> (Vec<Arc<Plugin>>, Vec<(String, PluginError)>) {
        let names = discover::names(&self.folders);
        let asked = names.into_iter().map(async |name| (self.activate(&name, ROUND).await, name));
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for (answer, name) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(plugin) => found.push(plugin),
                Err(PluginError::OtherKind(_) | PluginError::Missing(_)) => {}
                Err(error) => failed.push((name, error)),
            }
        }
        (found, failed)
    }

    async fn activate(&self, name: &str, patience: Patience) -> Result<Arc<Plugin>, PluginError> {
        let endpoint = discover::find(&self.folders, name)
            .map_err(|cause| PluginError::Description(name.to_owned(), cause))?
            .ok_or_else(|| PluginError::Missing(name.to_owned()))?;
        let known = self.active.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(plugin) = known.filter(|plugin| plugin.endpoint == endpoint) {
            return Ok(plugin);
        }
        let answer: Activated = call(&endpoint, "Plugin.Activate", &json!({}), patience)
            .await
            .map_err(|cause| PluginError::Activate { name: name.to_owned(), cause })?;
        if !answer.implements.unwrap_or_default().iter().any(|kind| kind == "VolumeDriver") {
            return Err(PluginError::OtherKind(name.to_owned()));
        }
        let plugin = Arc::new(Plugin {
            name: name.to_owned(),
            endpoint,
            slots: Semaphore::new(AT_ONCE),
            scope: Mutex::new(None),
        });
        self.active.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), plugin.clone());
        Ok(plugin)
    }
}

impl Plugin {
    async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        body: &Value,
        patience: Patience,
    ) -> Result<T, PluginError> {
        let late = |_| CallError::Late { method, endpoint: self.endpoint.clone(), seconds: patience.limit.as_secs() };
        let slot = tokio::time::timeout(patience.limit, self.slots.acquire()).await.map_err(late)?;
        let answer = call(&self.endpoint, method, body, patience).await;
        drop(slot);
        Ok(answer?)
    }

    /// Makes a volume.
    pub async fn create(&self, name: &str, options: &BTreeMap<String, String>) -> Result<(), PluginError> {
        let body = json!({"Name": name, "Opts": options});
        self.call::<Nothing>("VolumeDriver.Create", &body, WORK).await.map(drop)
    }

    /// Removes a volume.
    pub async fn remove(&self, name: &str) -> Result<(), PluginError> {
        self.call::<Nothing>("VolumeDriver.Remove", &json!({"Name": name}), WORK).await.map(drop)
    }

    /// Mounts a volume for a use with a number of its own; gives where.
    pub async fn mount(&self, name: &str, id: &str) -> Result<PathBuf, PluginError> {
        let mounted: Mounted = self.call("VolumeDriver.Mount", &json!({"Name": name, "ID": id}), WORK).await?;
        match mounted.mountpoint.filter(|path| !path.is_empty()) {
            Some(path) => self.place(name, path),
            // Allowed by the protocol: it may be asked for.
            None => {
                let told: Mounted = self.call("VolumeDriver.Path", &json!({"Name": name}), LOOK).await?;
                self.place(name, told.mountpoint.unwrap_or_default())
            }
        }
    }

    fn place(&self, volume: &str, path: String) -> Result<PathBuf, PluginError> {
        let clean = |path: &Path| {
            let mut parts = path.components();
            parts.next() == Some(Component::RootDir) && parts.all(|part| matches!(part, Component::Normal(_)))
        };
        if clean(Path::new(&path)) && path != "/" && !path.contains('\0') {
            return Ok(path.into());
        }
        Err(PluginError::Place { plugin: self.name.clone(), volume: volume.to_owned(), path })
    }

    /// The end of such a use.
    pub async fn unmount(&self, name: &str, id: &str) -> Result<(), PluginError> {
        self.call::<Nothing>("VolumeDriver.Unmount", &json!({"Name": name, "ID": id}), WORK).await.map(drop)
    }

    /// What it knows of a volume; `None` if it says that it has none of that name.
    pub async fn look(&self, name: &str) -> Result<Option<Told>, PluginError> {
        self.look_for(name, LOOK).await
    }

    /// The same for a question that goes to all.
    pub async fn look_quickly(&self, name: &str) -> Result<Option<Told>, PluginError> {
        self.look_for(name, ROUND).await
    }

    async fn look_for(&self, name: &str, patience: Patience) -> Result<Option<Told>, PluginError> {
        match self.call::<One>("VolumeDriver.Get", &json!({"Name": name}), patience).await {
            Ok(one) => Ok(one.volume),
            // The protocol has no other word for it.
            Err(error) if error.is_refusal() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All its volumes.
    pub async fn list(&self) -> Result<Vec<Told>, PluginError> {
        let many: Many = self.call("VolumeDriver.List", &json!({}), ROUND).await?;
        Ok(many.volumes.unwrap_or_default())
    }

    /// Whether its volumes are those of this machine or of several: "local" or "global".
    pub async fn scope(&self) -> &'static str {
        if let Some(scope) = *self.scope.lock().unwrap_or_else(PoisonError::into_inner) {
            return scope;
        }
        match self.call::<Capable>("VolumeDriver.Capabilities", &json!({}), ROUND).await {
            Err(error) if !error.is_refusal() => "local",
            told => {
                // A plugin needn't know the question.
                let global = told.is_ok_and(|told| told.capabilities.scope.eq_ignore_ascii_case("global"));
                let scope = if global { "global" } else { "local" };
                *self.scope.lock().unwrap_or_else(PoisonError::into_inner) = Some(scope);
                scope
            }
        }
    }
}
