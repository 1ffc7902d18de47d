//! Volumes: folders that outlive containers. A named one is made when it is first used; an anonymous one goes with its
//! container.

pub mod copy;
mod driven;
mod error;
pub mod local;
pub mod mounter;
pub mod plugins;
mod quota;
mod unfinished;

pub use copy::copy_tree;
pub use driven::Described;
pub use error::VolumeError;

use crate::time::Timestamp;
use plugins::Plugins;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tracing::warn;

/// The driver that is always there.
pub const LOCAL: &str = "local";
/// Folder with a volume's data.
const DATA: &str = "_data";
/// File with what is known of it.
const DESCRIPTION: &str = "volume.json";
/// Folders of volumes that are being made or removed begin with this, which no volume's name does.
const HALF: &str = ".half-";

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
    /// Who keeps it. Of volumes of plugins nothing else is here than this description.
    #[serde(default = "local_driver")]
    pub driver: String,
    /// Project that its bytes are counted under, if they are limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<u32>,
}

fn local_driver() -> String {
    LOCAL.to_owned()
}

impl Volume {
    /// Whether it is a folder of ours.
    pub fn is_local(&self) -> bool {
        self.driver == LOCAL
    }

    /// Whether its data is something that has to be mounted.
    pub fn needs_mount(&self) -> bool {
        self.options.contains_key("type")
    }
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
    /// The container that is being made, if it is for one.
    pub maker: Option<String>,
}

fn missing<'a>(name: &str, others: impl Iterator<Item = &'a String>) -> VolumeError {
    VolumeError::Missing(name.to_owned(), crate::http::suggest::suffix(name, others.map(String::as_str)))
}

/// All volumes of this engine.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    state: Mutex<State>,
    /// Others who keep volumes.
    pub plugins: Plugins,
    driven: driven::Uses,
}

#[derive(Debug, Default)]
struct State {
    volumes: HashMap<String, Volume>,
    /// Volume to the containers that use it.
    users: HashMap<String, HashSet<String>>,
    /// Volume with options to those who need it mounted: containers that run, and what fills it. Behind a lock of its own, as
    /// mounting may take its time.
    mounted: HashMap<String, Arc<Mutex<HashSet<String>>>>,
    /// Volumes whose content may not be whole yet, and the container that is being made with them.
    unfinished: HashMap<String, String>,
    /// Who fills a volume has its lock.
    filling: HashMap<String, Arc<Mutex<()>>>,
}

impl Volumes {
    /// Reads what is there. A folder without its description is taken for a named volume without labels. What is noted below
    /// `run` ends with the machine.
    pub fn open(root: PathBuf, run: PathBuf, plugin_folders: Vec<PathBuf>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o711).create(&root)?;
        let mut state = State::default();
        for entry in std::fs::read_dir(&root)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if name.starts_with('.') {
                clear_away(&entry.path());
                continue;
            }
            let described = std::fs::read(entry.path().join(DESCRIPTION)).ok();
            let volume = described.and_then(|bytes| serde_json::from_slice::<Volume>(&bytes).ok());
            let volume = volume.filter(|v| v.name == name);
            if !has_data(&entry.path()) && volume.as_ref().is_none_or(Volume::is_local) {
                continue;
            }
            let volume = volume.unwrap_or_else(|| Volume {
                name: name.clone(),
                created: entry.metadata().and_then(|m| m.modified()).map_or(Timestamp::NEVER, Timestamp::from),
                labels: BTreeMap::new(),
                anonymous: false,
                options: BTreeMap::new(),
                driver: local_driver(),
                project: None,
            });
            if let Some(maker) = unfinished::read(&entry.path()) {
                state.unfinished.insert(name.clone(), maker);
            }
            state.volumes.insert(name, volume);
        }
        let driven = driven::Uses::open(run)?;
        Ok(Self { root, state: Mutex::new(state), plugins: Plugins::new(plugin_folders), driven })
    }

    /// The folder with a volume's data.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name).join(DATA)
    }

    /// Gives the volume of this name, made by the local driver if it does not exist. The second value is true when it was made.
    pub fn ensure(&self, name: &str, new: NewVolume) -> Result<(Volume, bool), VolumeError> {
        let mut state = self.lock();
        if let Some(volume) = state.volumes.get(name) {
            return Ok((volume.clone(), false));
        }
        local::check(&new.options).map_err(|cause| VolumeError::Options { name: name.to_owned(), cause })?;
        let volume = self.make_folder(&state, name, &new)?;
        if let Some(maker) = new.maker {
            state.unfinished.insert(name.to_owned(), maker);
        }
        state.volumes.insert(name.to_owned(), volume.clone());
        Ok((volume, true))
    }

    /// Everything is made under another name: nobody ever sees half a volume.
    fn make_folder(&self, state: &State, name: &str, new: &NewVolume) -> Result<Volume, VolumeError> {
        let failed = |cause| VolumeError::Io { operation: "create", name: name.to_owned(), cause };
        let half = self.half().map_err(failed)?;
        DirBuilder::new().mode(0o711).create(&half).map_err(failed)?;
        let data = half.join(DATA);
        DirBuilder::new().mode(0o755).create(&data).map_err(failed)?;
        std::fs::set_permissions(&data, Permissions::from_mode(0o755)).map_err(failed)?;
        let taken: HashSet<u32> = state.volumes.values().filter_map(|volume| volume.project).collect();
        let limit = local::size(&new.options);
        let project = limit
            .map(|bytes| quota::limit(&data, bytes, &taken))
            .transpose()
            .map_err(|cause| VolumeError::Quota { name: name.to_owned(), cause });
        let finish = || -> Result<Volume, VolumeError> {
            let volume = Volume {
                name: name.to_owned(),
                created: Timestamp::now(),
                labels: new.labels.clone(),
                anonymous: new.anonymous,
                options: new.options.clone(),
                driver: local_driver(),
                project: project?,
            };
            if let Some(maker) = &new.maker {
                unfinished::write(&half, maker).map_err(failed)?;
            }
            let description = serde_json::to_vec(&volume).map_err(|e| failed(e.into()))?;
            describe(&half, &description).map_err(failed)?;
            proto::fault!("engine.volume_create.prepared");
            let folder = self.root.join(name);
            // Of an engine that was killed while it made the volume in place, as older ones did.
            let _ = std::fs::remove_file(folder.join(DESCRIPTION));
            let _ = std::fs::remove_dir(&folder);
            std::fs::rename(&half, folder).map_err(failed)?;
            proto::fault!("engine.volume_create.named");
            Ok(volume)
        };
        finish().inspect_err(|_| clear_away(&half))
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

    /// Mounts a local volume with options for somebody who needs it; others need nothing, or are mounted by their plugins.
    pub fn mount(&self, name: &str, user: &str) -> Result<(), VolumeError> {
        let Some((options, users)) = self.mountable(name)? else { return Ok(()) };
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.path(name);
        if let Err(cause) = mounter::mount(&options, &at) {
            // It may have come about at the last moment.
            if users.is_empty()
                && let Err(error) = mounter::unmount(&at)
            {
                warn!(volume = name, %error, "volume stays mounted");
            }
            return Err(VolumeError::Mount { at, cause });
        }
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
        mounter::unmount(&at).map_err(|cause| VolumeError::Unmount { at, cause })
    }

    /// Unmounts what engines before this one could not, which takes as long as servers take.
    pub fn sweep(self: &Arc<Self>) {
        let with_options: Vec<String> =
            self.lock().volumes.values().filter(|v| v.is_local() && v.needs_mount()).map(|v| v.name.clone()).collect();
        let is_mounted = |name: &String| local::is_mounted(&self.path(name)).unwrap_or(true);
        let with_options: Vec<String> = with_options.into_iter().filter(is_mounted).collect();
        if with_options.is_empty() {
            return;
        }
        let volumes = self.clone();
        let sweep = move || {
            for name in with_options {
                if let Err(error) = volumes.unmount(&name, "") {
                    warn!(volume = name, error = %proto::kind::chain(&error), "volume stays mounted");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("sweep".into()).spawn(sweep) {
            warn!(%error, "volumes stay mounted");
        }
    }

    #[allow(clippy::type_complexity, reason = "taken apart by its three callers at once")]
    fn mountable(
        &self,
        name: &str,
    ) -> Result<Option<(BTreeMap<String, String>, Arc<Mutex<HashSet<String>>>)>, VolumeError> {
        let mut state = self.lock();
        let volume = state.volumes.get(name).ok_or_else(|| VolumeError::Missing(name.to_owned(), String::new()))?;
        if !volume.is_local() || !volume.needs_mount() {
            return Ok(None);
        }
        let options = volume.options.clone();
        Ok(Some((options, state.mounted.entry(name.to_owned()).or_default().clone())))
    }

    /// Removes a local volume that nobody uses, with its data.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let users = {
            let mut state = self.lock();
            let Some(volume) = state.volumes.get(name) else {
                return Err(missing(name, state.volumes.keys()));
            };
            let mounts = volume.needs_mount();
            check_unused(&state, name)?;
            mounts.then(|| state.mounted.entry(name.to_owned()).or_default().clone())
        };
        // What is mounted there is not ours to empty. Others needn't wait for its server: the lock is its own.
        let users = users.as_ref().map(|users| users.lock().unwrap_or_else(PoisonError::into_inner));
        let at = self.path(name);
        if users.is_some() {
            mounter::unmount(&at).map_err(|cause| VolumeError::Unmount { at: at.clone(), cause })?;
        }
        let half = {
            let mut state = self.lock();
            let Some(volume) = state.volumes.get(name).cloned() else {
                return Err(missing(name, state.volumes.keys()));
            };
            check_unused(&state, name)?;
            if volume.needs_mount() && local::is_mounted(&at).unwrap_or(true) {
                return Err(VolumeError::Unmount { at, cause: io::Error::other("still mounted") });
            }
            let half = self.take_away(&mut state, name)?;
            if let Some(project) = volume.project {
                quota::give_back(&half.join(DATA), project);
            }
            half
        };
        drop(users);
        proto::fault!("engine.volume_remove.renamed");
        // Without the lock: others needn't wait for what may be many files.
        clear_away(&half);
        Ok(())
    }

    /// A new folder's name that no volume has.
    fn half(&self) -> io::Result<PathBuf> {
        let id = crate::ids::random_id()?;
        Ok(self.root.join(format!("{HALF}{}", crate::ids::short(&id))))
    }

    /// Takes a volume out of all lists: its folder has another name then, and goes at the next start at the latest.
    fn take_away(&self, state: &mut State, name: &str) -> Result<PathBuf, VolumeError> {
        let failed = |cause| VolumeError::Io { operation: "remove", name: name.to_owned(), cause };
        let half = self.half().map_err(failed)?;
        match std::fs::rename(self.root.join(name), &half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        state.volumes.remove(name);
        state.mounted.remove(name);
        state.unfinished.remove(name);
        Ok(half)
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

/// For root alone: there may be a password among the options.
fn describe(folder: &Path, description: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(DESCRIPTION))?;
    file.write_all(description)
}

fn check_unused(state: &State, name: &str) -> Result<(), VolumeError> {
    let Some(users) = state.users.get(name) else { return Ok(()) };
    let mut users: Vec<_> = users.iter().cloned().collect();
    users.sort();
    Err(VolumeError::InUse { name: name.to_owned(), users: users.join(", ") })
}

/// Removes what is left of a volume that was being made or removed.
fn clear_away(folder: &Path) {
    // Nothing is deleted through a mount.
    let removed = match local::is_mounted(&folder.join(DATA)) {
        Ok(true) => Err(io::Error::other("something is mounted in it")),
        Ok(false) => remove_folder(folder),
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        warn!(folder = %folder.display(), %error, "rest of a volume stays");
    }
}

/// Whether there is a folder for its data. It is not looked into: what is mounted there may be a server's that doesn't answer.
fn has_data(folder: &Path) -> bool {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name() == DATA && entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
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

    fn open(folder: &Path) -> Volumes {
        Volumes::open(folder.join("v"), folder.join("run"), Vec::new()).unwrap()
    }

    #[test]
    fn made_once_kept_while_used_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = open(folder.path());
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let new = NewVolume { labels: labels.clone(), ..NewVolume::default() };
        assert!(volumes.ensure("data", new).unwrap().1);
        assert!(!volumes.ensure("data", NewVolume::default()).unwrap().1);
        volumes.hold("data", "c1");
        assert!(matches!(volumes.remove("data"), Err(VolumeError::InUse { .. })));
        let again = open(folder.path());
        assert_eq!(again.get("data").unwrap().labels, labels);
        volumes.release("c1");
        volumes.remove("data").unwrap();
        assert!(matches!(volumes.get("data"), Err(VolumeError::Missing(..))));
        assert!(!folder.path().join("v/data").exists());
    }
}
