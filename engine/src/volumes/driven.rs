//! Volumes whoever keeps them: made, found, listed, mounted and removed by their driver, which is the local one or a plugin.
//!
//! Of a plugin's volume it is on record here whose it is, and its labels; whether it is still there is asked each time. Each mount has
//! a number of its own, noted on disk before the plugin is asked for it: an engine that dies leaves no mount that nobody ends.

use super::{
    DATA, LOCAL, NewVolume, State, Volume, VolumeError, Volumes, check_unused, missing,
    plugins::{Plugin, PluginError, Told},
};
use crate::{ids, time::Timestamp};
use proto::kind::chain;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tracing::warn;

/// A volume, and what its driver says of it.
#[derive(Debug, Clone)]
pub struct Described {
    /// What is on record.
    pub volume: Volume,
    /// Where it is; nothing if the driver tells only those who mount it.
    pub mountpoint: String,
    /// When it was made, if that is known.
    pub created: Option<String>,
    /// `local` or `global`.
    pub scope: &'static str,
    /// What a plugin has to say.
    pub status: Option<Map<String, Value>>,
}

/// Mounts of plugins' volumes.
#[derive(Debug)]
pub(super) struct Uses {
    folder: PathBuf,
    /// By their numbers.
    mounts: Mutex<HashMap<String, Mount>>,
    /// One at a time is made or removed of a name.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// One mount, as it is noted.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mount {
    volume: String,
    driver: String,
    /// Who needs it: a container, or what fills a volume for one.
    user: String,
}

impl Uses {
    pub(super) fn open(run: PathBuf) -> io::Result<Self> {
        let folder = run.join("volume-mounts");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut mounts = HashMap::new();
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()) else { continue };
            match std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Mount>(&bytes).ok()) {
                Some(mount) => _ = mounts.insert(id.to_owned(), mount),
                // Half written: the plugin was not asked yet.
                None => _ = std::fs::remove_file(&path),
            }
        }
        Ok(Self { folder, mounts: Mutex::new(mounts), turns: Mutex::default() })
    }

    async fn turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(name.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }

    fn note(&self, id: &str, mount: Mount) -> io::Result<()> {
        std::fs::write(self.folder.join(id), serde_json::to_vec(&mount)?)?;
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), mount);
        Ok(())
    }

    fn strike(&self, id: &str) {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Err(error) = std::fs::remove_file(self.folder.join(id)) {
            warn!(%error, "note of a plugin's mount stays");
        }
    }

    fn of(&self, wanted: impl Fn(&Mount) -> bool) -> Vec<(String, Mount)> {
        let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        mounts.iter().filter(|(_, mount)| wanted(mount)).map(|(id, mount)| (id.clone(), mount.clone())).collect()
    }
}

fn failed(operation: &'static str, name: &str) -> impl Fn(PluginError) -> VolumeError {
    let name = name.to_owned();
    move |cause| VolumeError::Driver { operation, name: name.clone(), cause: Box::new(cause) }
}

impl Volumes {
    /// Gives the volume of this name, made by `driver` if it does not exist; an empty driver is any that has it, else the local one.
    /// The second value is true when it was made.
    pub async fn make(&self, name: &str, driver: &str, new: NewVolume) -> Result<(Volume, bool), VolumeError> {
        let known = self.lock().volumes.get(name).cloned();
        let by_plugin = if driver.is_empty() || driver == LOCAL {
            None
        } else {
            Some(self.plugins.get(driver).await.map_err(failed("create", name))?)
        };
        if let Some(volume) = known {
            let taken = !driver.is_empty() && driver != volume.driver;
            if self.exists(&volume).await? {
                return match taken {
                    true => Err(VolumeError::Taken { name: name.to_owned(), driver: volume.driver }),
                    false => Ok((volume, false)),
                };
            }
            let mut state = self.lock();
            if state.users.contains_key(name) {
                return Err(VolumeError::Lost { name: name.to_owned(), driver: volume.driver });
            }
            // Its plugin has lost it, or it was removed there.
            self.forget(&mut state, name)?;
        }
        if let Some(plugin) = by_plugin {
            return self.make_by(&plugin, name, new).await;
        }
        // A name that a plugin knows means the plugin's volume. Names of nobody's choice nobody else has.
        if driver.is_empty()
            && !new.anonymous
            && let Some((plugin, _)) = self.probe(name).await
        {
            return self.record(&plugin.name, name, new).map(|volume| (volume, false));
        }
        let (volume, made) = self.ensure(name, new)?;
        match volume.is_local() {
            true => Ok((volume, made)),
            false => Err(VolumeError::Taken { name: name.to_owned(), driver: volume.driver }),
        }
    }

    async fn make_by(&self, plugin: &Plugin, name: &str, new: NewVolume) -> Result<(Volume, bool), VolumeError> {
        let _turn = self.driven.turn(name).await;
        if let Some(volume) = self.lock().volumes.get(name).cloned() {
            // Made since we looked.
            return match volume.driver == plugin.name {
                true => Ok((volume, false)),
                false => Err(VolumeError::Taken { name: name.to_owned(), driver: volume.driver }),
            };
        }
        let there = plugin.look(name).await.map_err(failed("create", name))?.is_some();
        if !there {
            plugin.create(name, &new.options).await.map_err(failed("create", name))?;
            proto::fault!("engine.volume_driver.created");
        }
        let volume = self.record(&plugin.name, name, new)?;
        proto::fault!("engine.volume_driver.recorded");
        Ok((volume, !there))
    }

    /// Notes whose a volume is.
    fn record(&self, driver: &str, name: &str, new: NewVolume) -> Result<Volume, VolumeError> {
        let failed = |cause| VolumeError::Io { operation: "create", name: name.to_owned(), cause };
        let volume = Volume {
            name: name.to_owned(),
            created: Timestamp::now(),
            labels: new.labels,
            anonymous: new.anonymous,
            options: new.options,
            driver: driver.to_owned(),
            project: None,
        };
        let mut state = self.lock();
        if let Some(volume) = state.volumes.get(name) {
            return match volume.driver == driver {
                true => Ok(volume.clone()),
                false => Err(VolumeError::Taken { name: name.to_owned(), driver: volume.driver.clone() }),
            };
        }
        let half = self.half().map_err(failed)?;
        DirBuilder::new().mode(0o711).create(&half).map_err(failed)?;
        let description = serde_json::to_vec(&volume).map_err(|e| failed(e.into()))?;
        super::describe(&half, &description).map_err(failed)?;
        std::fs::rename(half, self.root.join(name)).map_err(failed)?;
        state.volumes.insert(name.to_owned(), volume.clone());
        Ok(volume)
    }

    async fn exists(&self, volume: &Volume) -> Result<bool, VolumeError> {
        if volume.is_local() {
            return Ok(true);
        }
        let failed = failed("create", &volume.name);
        let plugin = self.plugins.get(&volume.driver).await.map_err(&failed)?;
        plugin.look(&volume.name).await.map(|told| told.is_some()).map_err(failed)
    }

    /// The plugin that has a volume of this name.
    async fn probe(&self, name: &str) -> Option<(Arc<Plugin>, Told)> {
        let (plugins, _) = self.plugins.all().await;
        let asked = plugins.into_iter().map(async |plugin| {
            let told = plugin.look_quickly(name).await.ok().flatten()?;
            Some((plugin, told))
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().next()
    }

    /// Looks at a volume.
    pub async fn look(&self, name: &str) -> Result<Described, VolumeError> {
        let known = self.lock().volumes.get(name).cloned();
        match known {
            Some(volume) if volume.is_local() => Ok(self.describe(volume)),
            Some(volume) => {
                let plugin = self.plugins.get(&volume.driver).await.map_err(failed("get", name))?;
                let told = plugin.look(name).await.map_err(failed("get", name))?;
                let told = told.ok_or_else(|| VolumeError::Missing(name.to_owned(), String::new()))?;
                Ok(described(volume, told, plugin.scope().await))
            }
            None => match self.probe(name).await {
                Some((plugin, told)) => Ok(described(strange(&plugin.name, name), told, plugin.scope().await)),
                None => self.get(name).map(|volume| self.describe(volume)),
            },
        }
    }

    /// A volume as far as it is known without its driver.
    pub fn describe(&self, volume: Volume) -> Described {
        let local = volume.is_local();
        Described {
            mountpoint: if local { self.path(&volume.name).display().to_string() } else { String::new() },
            created: Some(volume.created.to_string()),
            scope: "local",
            status: None,
            volume,
        }
    }

    /// All volumes with the number of containers that use each, by name, and what drivers couldn't say. With `only_local`, no plugin is
    /// asked.
    pub async fn list_all(&self, only_local: bool) -> (Vec<(Described, usize)>, Vec<String>) {
        let known = self.list();
        let (local, driven): (Vec<_>, Vec<_>) = known.into_iter().partition(|(volume, _)| volume.is_local());
        let mut rows: Vec<_> = local.into_iter().map(|(volume, users)| (self.describe(volume), users)).collect();
        if only_local {
            return (rows, Vec::new());
        }
        let (plugins, failures) = self.plugins.all().await;
        let mut warnings: Vec<String> =
            failures.into_iter().map(|(name, error)| format!("list {name}: {}", chain(&error))).collect();
        let mut silent: HashSet<String> = driven.iter().map(|(volume, _)| volume.driver.clone()).collect();
        let asked = plugins.iter().map(async |plugin| {
            let listed = plugin.list().await;
            let scope = if listed.is_ok() { plugin.scope().await } else { "local" };
            (plugin, listed, scope)
        });
        for (plugin, listed, scope) in futures_util::future::join_all(asked).await {
            match listed {
                Err(error) => warnings.push(format!("list {}: {}", plugin.name, chain(&error))),
                Ok(volumes) => {
                    silent.remove(&plugin.name);
                    for told in volumes {
                        let own = driven.iter().find(|(v, _)| v.name == told.name && v.driver == plugin.name);
                        let (volume, users) = own.cloned().unwrap_or_else(|| (strange(&plugin.name, &told.name), 0));
                        // A name that is taken here can't be reached there.
                        if rows.iter().all(|(row, _)| row.volume.name != volume.name) {
                            rows.push((described(volume, told, scope), users));
                        }
                    }
                }
            }
        }
        // Of those who don't answer, what is known.
        for (volume, users) in driven {
            if silent.contains(&volume.driver) {
                if !warnings.iter().any(|text| text.starts_with(&format!("list {}:", volume.driver))) {
                    let error = PluginError::Missing(volume.driver.clone());
                    warnings.push(format!("list {}: {error}", volume.driver));
                }
                rows.push((self.describe(volume), users));
            }
        }
        rows.sort_by(|a, b| a.0.volume.name.cmp(&b.0.volume.name));
        warnings.sort();
        (rows, warnings)
    }

    /// Has a plugin's volume mounted for somebody; gives where it is. `None` for a local one.
    pub async fn mount_driven(&self, name: &str, user: &str) -> Result<Option<PathBuf>, VolumeError> {
        let volume = self.get(name)?;
        if volume.is_local() {
            return Ok(None);
        }
        let io_failed = |cause| VolumeError::Io { operation: "mount", name: name.to_owned(), cause };
        let mount_failed = |cause| VolumeError::DriverMount { name: name.to_owned(), cause: Box::new(cause) };
        let plugin = self.plugins.get(&volume.driver).await.map_err(mount_failed)?;
        let id = ids::random_id().map_err(io_failed)?;
        let mount = Mount { volume: name.to_owned(), driver: volume.driver, user: user.to_owned() };
        self.driven.note(&id, mount).map_err(io_failed)?;
        proto::fault!("engine.volume_mount.noted");
        match plugin.mount(name, &id).await {
            Ok(path) => {
                proto::fault!("engine.volume_mount.mounted");
                Ok(Some(path))
            }
            Err(cause) => {
                // One that said no has mounted nothing; one that was late may yet, which whoever undoes the start ends.
                if cause.is_refusal() {
                    self.driven.strike(&id);
                }
                Err(mount_failed(cause))
            }
        }
    }

    /// The end of all somebody's needs of plugins' volumes.
    pub async fn unmount_driven(&self, user: &str) {
        let mounts = self.driven.of(|mount| mount.user == user);
        let ends = mounts.iter().map(|(id, mount)| self.end(id, &mount.volume, &mount.driver));
        futures_util::future::join_all(ends).await;
    }

    /// Whether there is anything to end for it.
    pub fn has_driven(&self, user: &str) -> bool {
        !self.driven.of(|mount| mount.user == user).is_empty()
    }

    /// Ends mounts that engines before this one have left, which takes as long as plugins take; `lives` tells who still needs his.
    pub fn sweep_driven(self: &Arc<Self>, lives: impl Fn(&str) -> bool) {
        let left = self.driven.of(|mount| !lives(&mount.user));
        let volumes = self.clone();
        tokio::spawn(async move {
            let ends = left.iter().map(|(id, mount)| volumes.end(id, &mount.volume, &mount.driver));
            futures_util::future::join_all(ends).await;
        });
    }

    async fn end(&self, id: &str, volume: &str, driver: &str) {
        let ended = match self.plugins.get(driver).await {
            Ok(plugin) => plugin.unmount(volume, id).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => {
                proto::fault!("engine.volume_unmount.unmounted");
                self.driven.strike(id);
            }
            Err(error) => {
                warn!(volume, driver, error = %chain(&error), "volume stays mounted");
                if error.is_refusal() {
                    // Asking again would be answered the same.
                    self.driven.strike(id);
                }
            }
        }
    }

    /// Removes a volume with its data; gives its driver. By force, one whose plugin fails is at least forgotten here.
    pub async fn remove_driven(self: &Arc<Self>, name: &str, force: bool) -> Result<String, VolumeError> {
        let known = self.lock().volumes.get(name).cloned();
        if known.as_ref().is_some_and(Volume::is_local) {
            let (volumes, volume) = (self.clone(), name.to_owned());
            let removed = tokio::task::spawn_blocking(move || volumes.remove(&volume)).await;
            let cause = |error: tokio::task::JoinError| VolumeError::Io {
                operation: "remove",
                name: name.to_owned(),
                cause: io::Error::other(error),
            };
            return removed.map_err(cause)?.map(|()| LOCAL.to_owned());
        }
        let _turn = self.driven.turn(name).await;
        check_unused(&self.lock(), name)?;
        let driver = match known {
            Some(volume) => volume.driver,
            None => match self.probe(name).await {
                Some((plugin, _)) => plugin.name.clone(),
                None => return Err(missing(name, self.lock().volumes.keys())),
            },
        };
        let removed = match self.plugins.get(&driver).await {
            Ok(plugin) => plugin.remove(name).await,
            Err(error) => Err(error),
        };
        proto::fault!("engine.volume_driver.removed");
        match removed {
            Err(error) if force => warn!(volume = name, driver, error = %chain(&error), "volume forgotten by force"),
            other => other.map_err(failed("remove", name))?,
        }
        let mut state = self.lock();
        check_unused(&state, name)?;
        self.forget(&mut state, name)?;
        Ok(driver)
    }

    fn forget(&self, state: &mut State, name: &str) -> Result<(), VolumeError> {
        if state.volumes.get(name).is_none_or(Volume::is_local) {
            return Ok(());
        }
        let half = self.take_away(state, name)?;
        debug_assert!(!half.join(DATA).exists(), "a plugin's volume has no data here");
        super::clear_away(&half);
        Ok(())
    }
}

/// A volume that a plugin has and nobody here has used.
fn strange(driver: &str, name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        created: Timestamp::NEVER,
        labels: BTreeMap::new(),
        anonymous: false,
        options: BTreeMap::new(),
        driver: driver.to_owned(),
        project: None,
    }
}

fn described(volume: Volume, told: Told, scope: &'static str) -> Described {
    Described {
        volume,
        mountpoint: told.mountpoint.unwrap_or_default(),
        created: told.created_at.filter(|text| !text.is_empty()),
        scope,
        status: told.status.filter(|status| !status.is_empty()),
    }
}
