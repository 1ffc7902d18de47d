//! Volumes: folders that outlive containers. A named one is made when it is first used; an anonymous one goes with its
//! container.

mod copy;
pub mod local;

pub use copy::copy_tree;
pub use local::OptionsError;

use crate::{http::ApiError, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What is known of a volume, kept in `volume.json` beside its data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, unique.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Nobody gave it a name.
    pub anonymous: bool,
    /// What is mounted as its data; nothing for a plain folder.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What a volume is made with.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Nobody gave it a name.
    pub anonymous: bool,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// Why a volume cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{operation} volume {name}")]
    Io {
        operation: &'static str,
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("get {0}: no such volume{1}")]
    Missing(String, String),
    #[error("remove {name}: volume is in use - [{users}]")]
    InUse { name: String, users: String },
    #[error("create {name}")]
    Options {
        name: String,
        #[source]
        cause: OptionsError,
    },
    #[error("error while mounting volume '{at}'")]
    Mount {
        at: PathBuf,
        #[source]
        cause: io::Error,
    },
}

fn missing<'a>(name: &str, others: impl Iterator<Item = &'a String>) -> VolumeError {
    VolumeError::Missing(name.to_owned(), crate::http::suggest::suffix(name, others.map(String::as_str)))
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        match &error {
            VolumeError::Missing(..) => Self::not_found(error.to_string()),
            VolumeError::InUse { .. } => Self::conflict(error.to_string()),
            VolumeError::Options { .. } => Self::invalid(proto::kind::chain(&error).to_string()),
            VolumeError::Io { .. } | VolumeError::Mount { .. } => Self::unexpected(&error),
        }
    }
}

/// All volumes of this engine.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    volumes: HashMap<String, Volume>,
    /// Volume to the containers that use it.
    users: HashMap<String, HashSet<String>>,
    /// Volume with options to those who need it mounted: containers that run, and what fills it. Behind a lock of its own, as
    /// mounting may take its time.
    mounted: HashMap<String, Arc<Mutex<HashSet<String>>>>,
}

impl Volumes {
    /// Reads what is there. A folder without its description is taken for a named volume without labels.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o711).create(&root)?;
        let mut state = State::default();
        for entry in std::fs::read_dir(&root)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if !entry.path().join("_data").is_dir() {
                continue;
            }
            let described = std::fs::read(entry.path().join("volume.json")).ok();
            let volume = described.and_then(|bytes| serde_json::from_slice::<Volume>(&bytes).ok());
            let volume = volume.filter(|v| v.name == name).unwrap_or_else(|| Volume {
                name: name.clone(),
                created: entry.metadata().and_then(|m| m.modified()).map_or(Timestamp::NEVER, Timestamp::from),
                labels: BTreeMap::new(),
                anonymous: false,
                options: BTreeMap::new(),
            });
            state.volumes.insert(name, volume);
        }
        Ok(Self { root, state: Mutex::new(state) })
    }

    /// The folder with a volume's data.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    /// Gives the volume of this name, made if it does not exist. The second value is true when it was made.
    pub fn ensure(&self, name: &str, new: NewVolume) -> Result<(Volume, bool), VolumeError> {
        let mut state = self.lock();
        if let Some(volume) = state.volumes.get(name) {
            return Ok((volume.clone(), false));
        }
        local::check(&new.options).map_err(|cause| VolumeError::Options { name: name.to_owned(), cause })?;
        let failed = |cause| VolumeError::Io { operation: "create", name: name.to_owned(), cause };
        let NewVolume { labels, anonymous, options } = new;
        let volume = Volume { name: name.to_owned(), created: Timestamp::now(), labels, anonymous, options };
        let folder = self.root.join(name);
        DirBuilder::new().recursive(true).mode(0o711).create(&folder).map_err(failed)?;
        let description = serde_json::to_vec(&volume).map_err(|e| failed(e.into()))?;
        std::fs::write(folder.join("volume.json"), description).map_err(failed)?;
        let data = folder.join("_data");
        DirBuilder::new().recursive(true).mode(0o755).create(&data).map_err(failed)?;
        std::fs::set_permissions(&data, Permissions::from_mode(0o755)).map_err(failed)?;
        state.volumes.insert(name.to_owned(), volume.clone());
        Ok((volume, true))
    }

    /// Notes that a container uses a volume.
    pub fn hold(&self, name: &str, container: &str) {
        self.lock().users.entry(name.to_owned()).or_default().insert(container.to_owned());
    }

    /// Forgets all uses by a container.
    pub fn release(&self, container: &str) {
        self.lock().users.retain(|_, users| {
            users.remove(container);
            !users.is_empty()
        });
    }

    /// Mounts a volume with options for somebody who needs it; a plain one needs nothing.
    pub fn mount(&self, name: &str, user: &str) -> Result<(), VolumeError> {
        let Some((options, users)) = self.mountable(name)? else { return Ok(()) };
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.path(name);
        local::mount_at(&options, &at).map_err(|cause| VolumeError::Mount { at, cause })?;
        users.insert(user.to_owned());
        Ok(())
    }

    /// Notes that somebody needs it who did so under an engine before this one.
    pub fn remember_mounted(&self, name: &str, user: &str) {
        if let Ok(Some((_, users))) = self.mountable(name) {
            users.lock().unwrap_or_else(PoisonError::into_inner).insert(user.to_owned());
        }
    }

    /// The end of such a need; the last one unmounts.
    pub fn unmount(&self, name: &str, user: &str) -> Result<(), VolumeError> {
        let Some((_, users)) = self.mountable(name)? else { return Ok(()) };
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        users.remove(user);
        if !users.is_empty() {
            return Ok(());
        }
        let at = self.path(name);
        local::unmount(&at).map_err(|cause| VolumeError::Mount { at, cause })
    }

    /// Unmounts what engines before this one could not.
    pub fn sweep(&self) {
        let with_options: Vec<String> =
            self.lock().volumes.values().filter(|v| !v.options.is_empty()).map(|v| v.name.clone()).collect();
        for name in with_options {
            if let Err(error) = self.unmount(&name, "") {
                tracing::warn!(volume = name, error = %proto::kind::chain(&error), "volume stays mounted");
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "taken apart by its three callers at once")]
    fn mountable(
        &self,
        name: &str,
    ) -> Result<Option<(BTreeMap<String, String>, Arc<Mutex<HashSet<String>>>)>, VolumeError> {
        let mut state = self.lock();
        let volume = state.volumes.get(name).ok_or_else(|| VolumeError::Missing(name.to_owned(), String::new()))?;
        if volume.options.is_empty() {
            return Ok(None);
        }
        let options = volume.options.clone();
        Ok(Some((options, state.mounted.entry(name.to_owned()).or_default().clone())))
    }

    /// Removes a volume that nobody uses, with its data.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let mut state = self.lock();
        if !state.volumes.contains_key(name) {
            return Err(missing(name, state.volumes.keys()));
        }
        if let Some(users) = state.users.get(name) {
            let mut users: Vec<_> = users.iter().cloned().collect();
            users.sort();
            return Err(VolumeError::InUse { name: name.to_owned(), users: users.join(", ") });
        }
        let options = state.volumes.get(name).is_some_and(|volume| !volume.options.is_empty());
        if options {
            // What is mounted there is not ours to empty.
            let at = self.path(name);
            local::unmount(&at).map_err(|cause| VolumeError::Mount { at: at.clone(), cause })?;
            if local::is_mounted(&at) {
                return Err(VolumeError::Mount { at, cause: io::Error::other("still mounted") });
            }
        }
        remove_folder(&self.root.join(name)).map_err(|cause| VolumeError::Io {
            operation: "remove",
            name: name.to_owned(),
            cause,
        })?;
        state.volumes.remove(name);
        state.mounted.remove(name);
        Ok(())
    }

    /// Bytes on disk of a volume's data; what can't be read counts as nothing.
    pub fn size(&self, name: &str) -> u64 {
        fn below(folder: &Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let sizes = entries.map(|entry| {
                let Ok(meta) = entry.metadata() else { return 0 };
                if meta.is_dir() {
                    return meta.blocks() * 512 + below(&entry.path(), seen);
                }
                let counted = meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino()));
                if counted { 0 } else { meta.blocks() * 512 }
            });
            sizes.sum()
        }
        below(&self.path(name), &mut HashSet::new())
    }

    /// A volume by name.
    pub fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        let table = self.lock();
        table.volumes.get(name).cloned().ok_or_else(|| missing(name, table.volumes.keys()))
    }

    /// All volumes with the number of containers that use each, by name.
    pub fn list(&self) -> Vec<(Volume, usize)> {
        let state = self.lock();
        let mut list: Vec<_> =
            state.volumes.values().map(|v| (v.clone(), state.users.get(&v.name).map_or(0, HashSet::len))).collect();
        list.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        list
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_kept_while_used_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(folder.path().join("v")).unwrap();
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let new = NewVolume { labels: labels.clone(), ..NewVolume::default() };
        assert!(volumes.ensure("data", new).unwrap().1);
        assert!(!volumes.ensure("data", NewVolume::default()).unwrap().1);
        volumes.hold("data", "c1");
        assert!(matches!(volumes.remove("data"), Err(VolumeError::InUse { .. })));
        let again = Volumes::open(folder.path().join("v")).unwrap();
        assert_eq!(again.get("data").unwrap().labels, labels);
        volumes.release("c1");
        volumes.remove("data").unwrap();
        assert!(matches!(volumes.get("data"), Err(VolumeError::Missing(..))));
        assert!(!folder.path().join("v/data").exists());
    }
}
