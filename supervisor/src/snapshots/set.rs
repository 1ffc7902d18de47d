//! The snapshotters of this supervisor: which there are, which work here, and which one is meant when none is named.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::containerd::types::Mount;
use serde::{Deserialize, Serialize};

use super::{
    SnapshotError, Snapshotter,
    btrfs::Btrfs,
    driver::Driver,
    native::{COPY_OF, Native},
    overlay::Overlay,
};
use crate::{
    leases::Leases,
    store::{Database, make_folder},
};

/// Every snapshotter there is; where the configuration names none, the first two that work are tried in this order.
pub(crate) const DRIVERS: [&str; 3] = ["overlayfs", "native", "btrfs"];

/// The `[snapshots]` table of the configuration file. What is empty there is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct SnapshotConfig {
    /// The snapshotter for requests that name none; without it overlayfs where it works, else native.
    #[serde(with = "unset")]
    pub(crate) default: Option<DriverName>,
    /// Snapshotters that are not loaded.
    pub(crate) disabled: Vec<DriverName>,
    /// `[snapshots.overlayfs]`
    pub(crate) overlayfs: OverlayConfig,
    /// `[snapshots.native]`
    pub(crate) native: FolderConfig,
    /// `[snapshots.btrfs]`
    pub(crate) btrfs: FolderConfig,
}

/// The name of a snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DriverName {
    /// Folders, put over one another by the kernel.
    Overlayfs,
    /// Copies.
    Native,
    /// Subvolumes.
    Btrfs,
}

impl DriverName {
    fn as_str(self) -> &'static str {
        DRIVERS[self as usize]
    }
}

/// Where a snapshotter keeps its layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct FolderConfig {
    /// Its folder; without it `DATA-ROOT/supervisor/snapshots/NAME`.
    pub(crate) root: PathBuf,
}

/// Settings of overlayfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct OverlayConfig {
    /// As of the others.
    pub(crate) root: PathBuf,
    /// Options for every mount, say `volatile`.
    pub(crate) mount_options: Vec<String>,
}

/// A name that may be empty: the file has no other way to say "none", and its dump has every key.
mod unset {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::value::StrDeserializer};

    use super::DriverName;

    pub(super) fn serialize<S: Serializer>(name: &Option<DriverName>, serializer: S) -> Result<S::Ok, S::Error> {
        match name {
            Some(name) => name.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DriverName>, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "" => Ok(None),
            name => DriverName::deserialize(StrDeserializer::<D::Error>::new(name)).map(Some),
        }
    }
}

impl SnapshotConfig {
    /// The folder of a snapshotter; `top` is where it is if no other is set.
    pub(crate) fn folder(&self, top: &Path, name: &str) -> PathBuf {
        let own = match name {
            "overlayfs" => &self.overlayfs.root,
            "native" => &self.native.root,
            _ => &self.btrfs.root,
        };
        if own.as_os_str().is_empty() { top.join(name) } else { own.clone() }
    }

    /// The folders that are set, with the keys that set them.
    pub(crate) fn roots(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let roots = [
            ("snapshots.overlayfs.root", &self.overlayfs.root),
            ("snapshots.native.root", &self.native.root),
            ("snapshots.btrfs.root", &self.btrfs.root),
        ];
        roots.into_iter().map(|(key, root)| (key, root.as_path())).filter(|(_, root)| !root.as_os_str().is_empty())
    }
}

/// Whether a snapshotter is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether requests that name none are for it.
    pub(crate) default: bool,
    /// Why it isn't loaded, and what can be done.
    pub(crate) skipped: Option<String>,
}

/// The snapshotters of this supervisor.
pub(crate) struct Snapshotters {
    loaded: BTreeMap<&'static str, Arc<Snapshotter>>,
    states: Vec<State>,
    default: &'static str,
    scratch: PathBuf,
}

impl Snapshotters {
    /// Opens every snapshotter that works on its folder; `root` is where the folders are by default.
    pub(crate) fn open(
        root: &Path,
        config: &SnapshotConfig,
        db: &Database,
        leases: &Leases,
    ) -> Result<Self, SnapshotError> {
        make_folder(root, 0o700)?;
        // An empty folder, over which we mount things in mount namespaces of our own.
        let scratch = root.join("mnt");
        make_folder(&scratch, 0o700)?;
        let mut set = Self { loaded: BTreeMap::new(), states: Vec::new(), default: "", scratch };
        for name in [DriverName::Overlayfs, DriverName::Native, DriverName::Btrfs] {
            let skipped = match set.driver(root, config, name)? {
                Ok(driver) => {
                    let snapshotter = Snapshotter::new(driver, db.clone(), leases.clone());
                    set.loaded.insert(name.as_str(), Arc::new(snapshotter));
                    None
                }
                Err(reason) => Some(reason),
            };
            set.states.push(State { name: name.as_str(), default: false, skipped });
        }
        set.choose(config)?;
        Ok(set)
    }

    // The inner error is why the driver can't be used.
    fn driver(
        &self,
        root: &Path,
        config: &SnapshotConfig,
        name: DriverName,
    ) -> Result<Result<Arc<dyn Driver>, String>, SnapshotError> {
        if config.disabled.contains(&name) {
            return Ok(Err("disabled in [snapshots] of the configuration".into()));
        }
        let root = config.folder(root, name.as_str());
        let probed = match name {
            DriverName::Overlayfs => Overlay::probe(&root, &self.scratch),
            DriverName::Native => Ok(()),
            DriverName::Btrfs => Btrfs::probe(&root),
        };
        if let Err(reason) = probed {
            return Ok(Err(reason));
        }
        Ok(Ok(match name {
            DriverName::Overlayfs => Arc::new(Overlay::open(&root, &config.overlayfs.mount_options)?),
            DriverName::Native => Arc::new(Native::open(&root)?),
            DriverName::Btrfs => Arc::new(Btrfs::open(&root)?),
        }))
    }

    fn choose(&mut self, config: &SnapshotConfig) -> Result<(), SnapshotError> {
        let reason = |set: &Self, name: &str| {
            let state = set.states.iter().find(|state| state.name == name);
            state.and_then(|state| state.skipped.clone()).unwrap_or_default()
        };
        self.default = match config.default {
            Some(name) if self.loaded.contains_key(name.as_str()) => name.as_str(),
            Some(name) => {
                return Err(SnapshotError::Default { name: name.as_str(), reason: reason(self, name.as_str()) });
            }
            None => {
                let Some(name) = DRIVERS.into_iter().find(|name| self.loaded.contains_key(name)) else {
                    return Err(SnapshotError::Default { name: "overlayfs", reason: reason(self, "overlayfs") });
                };
                if name != DRIVERS[0] {
                    let reason = reason(self, DRIVERS[0]);
                    tracing::warn!(default = name, reason, "overlayfs is not used");
                }
                name
            }
        };
        let default = self.default;
        self.states.iter_mut().for_each(|state| state.default = state.name == default);
        Ok(())
    }

    /// A snapshotter by its name.
    pub(crate) fn get(&self, name: &str) -> Result<&Arc<Snapshotter>, SnapshotError> {
        if name.is_empty() {
            return Err(SnapshotError::NoName);
        }
        if let Some(found) = self.loaded.get(name) {
            return Ok(found);
        }
        match self.states.iter().find(|state| state.name == name) {
            Some(state) => {
                let reason = state.skipped.clone().unwrap_or_default();
                Err(SnapshotError::Skipped { name: state.name, reason })
            }
            None => Err(SnapshotError::Unknown(name.to_owned())),
        }
    }

    /// A snapshotter by its name; without one, the default.
    pub(crate) fn get_or_default(&self, name: &str) -> Result<&Arc<Snapshotter>, SnapshotError> {
        self.get(if name.is_empty() { self.default } else { name })
    }

    /// The name of the default one.
    pub(crate) fn default_name(&self) -> &'static str {
        self.default
    }

    /// Every snapshotter and what has become of it.
    pub(crate) fn states(&self) -> &[State] {
        &self.states
    }

    /// Those that are loaded.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = &Arc<Snapshotter>> {
        self.loaded.values()
    }

    /// Where to mount things in a mount namespace that nobody else sees.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The folder of the snapshot that `right` shows, if that was made as a copy of what `left` shows.
    pub(crate) fn copy_behind(&self, left: &[Mount], right: &[Mount]) -> Option<PathBuf> {
        let native = self.loaded.get("native")?;
        let folder = |mounts: &[Mount]| match mounts {
            [only] if only.r#type == "bind" => native.folder_of(Path::new(&only.source)),
            _ => None,
        };
        let (left, right) = (folder(left)?, folder(right)?);
        let copy_of = std::fs::read_link(right.join(COPY_OF)).ok()?;
        (copy_of.file_name() == left.file_name()).then_some(right)
    }

    /// Whether a folder holds the layer of an overlay of ours.
    pub(crate) fn has_layer(&self, folder: &Path) -> bool {
        self.loaded.get("overlayfs").is_some_and(|overlay| overlay.folder_of(folder).is_some())
    }

    /// Puts right what a crash left.
    pub(crate) fn repair(&self) -> Result<(), SnapshotError> {
        self.loaded().try_for_each(|snapshotter| snapshotter.repair())
    }

    /// Removes folders whose records are gone: by snapshotter and number.
    pub(crate) fn remove_folders(&self, folders: &[(String, u64)]) -> Result<(), SnapshotError> {
        folders.iter().try_for_each(|(name, id)| self.get(name)?.remove_folders(&[*id]))
    }
}

#[cfg(test)]
impl Snapshotters {
    /// The default one.
    pub(crate) fn usual(&self) -> &Snapshotter {
        self.get_or_default("").unwrap()
    }
}
