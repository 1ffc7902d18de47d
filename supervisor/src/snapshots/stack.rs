//! The layers of an image at once: made apart from one another, filled in any order, put on top of one another when all are
//! there. One transaction makes the folders, one the snapshots.
//!
//! Their files are not synced when the snapshots are recorded: the blobs they come from are, and a power cut is answered by
//! unpacking them again. Until a sync has come behind, a record carries [`UNSYNCED`] and [`LAYER`].

use std::path::PathBuf;

use proto::{digest::Digest, kind::chain};

use super::{
    Kind, SNAPSHOTS, SnapshotError, Snapshotter,
    records::{get, remove_in, split},
    snapshotter::New,
};
use crate::{
    layers::apply::{Target, apply, dress},
    leases,
    store::{Labels, Time},
};

/// Label of a committed snapshot whose files may be in memory only: the boot in which it was made.
const UNSYNCED: &str = "berth.unsynced";
/// Label of such a snapshot: the blob that it was made from.
pub(crate) const LAYER: &str = "berth.layer";

/// A layer that is filled apart from those below it.
#[derive(Debug, Clone)]
pub(crate) struct Apart {
    /// The key under which it is made.
    pub(crate) key: String,
    /// Number of its folder.
    id: u64,
}

/// A layer that is complete.
pub(crate) struct Layered {
    /// What was filled.
    pub(crate) apart: Apart,
    /// The name it gets.
    pub(crate) name: String,
    /// The name of the one below; empty if there is none.
    pub(crate) parent: String,
    /// The blob it was made from.
    pub(crate) layer: Digest,
}

// A new one at each start of the machine.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Snapshotter {
    /// Whether layers can be filled before those below them are there.
    pub(crate) fn can_fill_apart(&self) -> bool {
        self.driver.fills_apart()
    }

    /// How many of the snapshots `names`, each on top of the one before, are there; the lease keeps them from now on.
    pub(crate) fn keep_present(&self, namespace: &str, names: &[String], lease: &str) -> Result<usize, SnapshotError> {
        let count = |tx: &dyn Fn(&str) -> Result<bool, SnapshotError>| {
            for (index, name) in names.iter().enumerate() {
                if !tx(name)? {
                    return Ok(index);
                }
            }
            Ok::<_, SnapshotError>(names.len())
        };
        let there = |found: Result<super::Record, SnapshotError>| match found {
            Ok(record) => Ok(record.kind == Kind::Committed),
            Err(SnapshotError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        };
        if self.db.read(|tx| count(&|name| there(get(tx, self.name(), namespace, name))))? == 0 {
            return Ok(0);
        }
        self.db.write(|tx| {
            let present = count(&|name| there(get(tx, self.name(), namespace, name)))?;
            if let Some(top) = present.checked_sub(1) {
                // It keeps what it stands on.
                leases::add_in(tx, namespace, lease, &self.resource, &names[top])?;
            }
            Ok(present)
        })
    }

    /// Makes a folder for each key.
    pub(crate) fn prepare_apart(
        &self,
        namespace: &str,
        keys: Vec<String>,
        labels: &Labels,
        lease: &str,
    ) -> Result<Vec<Apart>, SnapshotError> {
        let mut made = Vec::new();
        let prepared = self.db.write(|tx| {
            let mut all = Vec::with_capacity(keys.len());
            for key in keys {
                let new = New {
                    kind: Kind::Active,
                    namespace,
                    key: &key,
                    parent: "",
                    labels: labels.clone(),
                    lease: Some(lease),
                };
                let record = self.reserve(tx, &new, false)?;
                made.push(record.id);
                self.driver.make(&key, &record)?;
                all.push(Apart { key, id: record.id });
            }
            proto::fault!("supervisor.stack_prepare.made");
            Ok(all)
        });
        if prepared.is_err() {
            made.into_iter().for_each(|id| self.sweep(id));
        }
        prepared
    }

    /// Where a layer is unpacked whose layers below are not known yet.
    pub(crate) fn target_apart(&self, apart: &Apart) -> Result<Target, SnapshotError> {
        Ok(Target::apart(&self.driver.folders().files(apart.id))?)
    }

    /// The same once they are known, nearest first; `anew` empties it.
    pub(crate) fn target_on(&self, apart: &Apart, below: &[u64], anew: bool) -> Result<Target, SnapshotError> {
        let folders = self.driver.folders();
        if anew {
            folders.empty(apart.id)?;
        }
        let lowers: Vec<PathBuf> = below.iter().map(|id| folders.files(*id)).collect();
        Ok(Target::overlay(&folders.files(apart.id), &lowers)?)
    }

    /// The number of a layer's folder.
    pub(crate) fn folder_number(&self, apart: &Apart) -> u64 {
        apart.id
    }

    /// The folders that a layer on top of `parent` has below it, nearest first.
    pub(crate) fn folders_below(&self, namespace: &str, parent: &str) -> Result<Vec<u64>, SnapshotError> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let record = self.stat(namespace, parent)?;
        Ok(std::iter::once(record.id).chain(record.chain).collect())
    }

    /// Fixes layers under their names, each on top of its parent, the lowest first. One that somebody else has made meanwhile is
    /// dropped.
    pub(crate) fn commit_stack(&self, namespace: &str, layers: &[Layered], lease: &str) -> Result<(), SnapshotError> {
        let boot = boot();
        let mut usages = Vec::with_capacity(layers.len());
        for layer in layers {
            usages.push(self.driver.folders().usage(layer.apart.id)?);
        }
        let (committed, dropped) = self.db.write(|tx| {
            let (mut committed, mut dropped) = (Vec::new(), Vec::new());
            for (layer, usage) in layers.iter().zip(&usages) {
                let (key, name) = (layer.apart.key.as_str(), layer.name.as_str());
                if SNAPSHOTS.get(tx, namespace, &self.full(name))?.is_some() {
                    dropped.push(remove_in(tx, self.name(), namespace, key)?);
                    leases::remove_in(tx, namespace, lease, &self.resource, key)?;
                    leases::add_in(tx, namespace, lease, &self.resource, name)?;
                    continue;
                }
                let mut record = get(tx, self.name(), namespace, key)?;
                if !layer.parent.is_empty() {
                    let mut below = get(tx, self.name(), namespace, &layer.parent)?;
                    below.children += 1;
                    SNAPSHOTS.put(tx, namespace, &self.full(&layer.parent), &below)?;
                    record.chain = std::iter::once(below.id).chain(below.chain).collect();
                    record.parent = Some(layer.parent.clone());
                }
                SNAPSHOTS.remove(tx, namespace, &self.full(key))?;
                record.kind = Kind::Committed;
                record.usage = *usage;
                record.updated_at = Time::now();
                record.labels.remove(crate::gc::OPERATION);
                record.labels.insert(UNSYNCED.to_owned(), boot.clone());
                record.labels.insert(LAYER.to_owned(), layer.layer.to_string());
                SNAPSHOTS.put(tx, namespace, &self.full(name), &record)?;
                leases::remove_in(tx, namespace, lease, &self.resource, key)?;
                leases::add_in(tx, namespace, lease, &self.resource, name)?;
                committed.push(record);
            }
            Ok::<_, SnapshotError>((committed, dropped))
        })?;
        proto::fault!("supervisor.stack_commit.recorded");
        dropped.into_iter().for_each(|id| self.sweep(id));
        for record in committed {
            if let Err(error) = self.driver.settled(&record) {
                tracing::warn!(id = record.id, error = %chain(&error), "committed snapshot not made read-only");
            }
        }
        Ok(())
    }

    /// Drops folders that became no layers.
    pub(crate) fn drop_apart(&self, namespace: &str, all: &[Apart]) {
        for apart in all {
            match self.remove(namespace, &apart.key) {
                Ok(()) | Err(SnapshotError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(key = apart.key, error = %chain(&error), "half a snapshot left to the collector");
                }
            }
        }
    }

    /// Writes to the disk what committed snapshots still have in memory, and takes the mark from them. True if there were any.
    pub(crate) fn sync_behind(&self) -> Result<bool, SnapshotError> {
        let waiting = self.unsynced()?;
        if waiting.is_empty() {
            return Ok(false);
        }
        // All of them are on one file system.
        self.driver.folders().sync_all()?;
        proto::fault!("supervisor.sync_behind.synced");
        self.db.write(|tx| {
            for (namespace, key, seen) in &waiting {
                if let Some(mut record) = SNAPSHOTS.get(tx, namespace, key)?.filter(|record| record.id == seen.id) {
                    record.labels.remove(UNSYNCED);
                    record.labels.remove(LAYER);
                    SNAPSHOTS.put(tx, namespace, key, &record)?;
                }
            }
            Ok(true)
        })
    }

    fn unsynced(&self) -> Result<Vec<(String, String, super::Record)>, SnapshotError> {
        let all = self.db.read(|tx| SNAPSHOTS.list_all(tx))?;
        let ours = |key: &str| split(key).0 == self.name();
        Ok(all.into_iter().filter(|(_, key, record)| ours(key) && record.labels.contains_key(UNSYNCED)).collect())
    }

    /// After a power cut: unpacks again what may not have reached the disk. `blob` opens a blob of a namespace.
    pub(crate) fn unpack_again(
        &self,
        blob: impl Fn(&str, &Digest) -> Option<std::fs::File>,
    ) -> Result<(), SnapshotError> {
        let boot = boot();
        let mut lost = self.unsynced()?;
        lost.retain(|(_, _, record)| record.labels.get(UNSYNCED) != Some(&boot));
        // Those below first.
        lost.sort_by_key(|(_, _, record)| record.chain.len());
        for (namespace, key, record) in &lost {
            let apart = Apart { key: key.clone(), id: record.id };
            let layer = record.labels.get(LAYER).and_then(|layer| layer.parse::<Digest>().ok());
            let Some(blob) = layer.and_then(|layer| blob(namespace, &layer)) else {
                tracing::error!(namespace, key, "snapshot may have lost files in a power cut, and its layer is gone");
                continue;
            };
            tracing::info!(namespace, key, "unpacking again what a power cut may have taken");
            let target = self.target_on(&apart, &record.chain, true)?;
            if let Err(error) = apply(blob, &target, &|_| ()).and_then(|applied| dress(&target, &applied.implied)) {
                tracing::error!(namespace, key, error = %chain(&error), "snapshot not unpacked again");
            }
        }
        if lost.is_empty() { Ok(()) } else { self.sync_behind().map(drop) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Stores;
    use std::{fs, sync::Arc};

    fn archive(path: &str, text: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o640);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        builder.into_inner().unwrap()
    }

    fn keys(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn layers_stand_on_one_another_and_survive_a_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::open(dir.path(), &Default::default(), Arc::new(|_, _, _| {})).unwrap();
        let overlay = stores.snapshots.get("overlayfs").unwrap();
        let (lease, _) = stores.leases.create("ns", "", Labels::new()).unwrap();
        let layers = [archive("etc/one", "1"), archive("etc/two", "2")];
        let blobs = layers.each_ref().map(|layer| stores.content.put("ns", layer, &Labels::new(), None).unwrap());
        let made = overlay.prepare_apart("ns", keys(&["a", "b"]), &Labels::new(), &lease).unwrap();
        assert_eq!(overlay.keep_present("ns", &keys(&["low", "high"]), &lease).unwrap(), 0);
        // The upper one first.
        for (apart, layer) in made.iter().zip(&layers).rev() {
            apply(&layer[..], &overlay.target_apart(apart).unwrap(), &|_| ()).unwrap();
        }
        let stack = |made: &[Apart]| {
            let layer = |index: usize, name: &str, parent: &str| Layered {
                apart: made[index].clone(),
                name: name.into(),
                parent: parent.into(),
                layer: blobs[index],
            };
            [layer(0, "low", ""), layer(1, "high", "low")]
        };
        overlay.commit_stack("ns", &stack(&made), &lease).unwrap();
        let high = overlay.stat("ns", "high").unwrap();
        assert_eq!((high.parent.as_deref(), high.chain.len(), high.kind), (Some("low"), 1, Kind::Committed));
        assert_eq!(overlay.stat("ns", "low").unwrap().children, 1);
        assert_eq!(overlay.keep_present("ns", &keys(&["low", "high", "none"]), &lease).unwrap(), 2);
        assert!(overlay.stat("ns", "a").is_err());

        // Somebody else who was slower gets what is there, and leaves nothing.
        let again = overlay.prepare_apart("ns", keys(&["c", "d"]), &Labels::new(), &lease).unwrap();
        overlay.commit_stack("ns", &stack(&again), &lease).unwrap();
        assert_eq!(overlay.stat("ns", "high").unwrap().id, high.id);
        assert_eq!(overlay.driver.folders().ids().unwrap().len(), 2);

        // What had not reached the disk: known by the mark of another boot.
        let file = overlay.driver.folders().files(high.id).join("etc/two");
        fs::write(&file, "").unwrap();
        fs::write(file.with_file_name("never there"), "").unwrap();
        let marked = Labels::from([(UNSYNCED.to_owned(), "another".to_owned())]);
        overlay.update("ns", "high", &marked, &[format!("labels.{UNSYNCED}")]).unwrap();
        let blob = |namespace: &str, layer: &Digest| Some(stores.content.reader(namespace, layer).unwrap().0);
        overlay.unpack_again(blob).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "2");
        assert!(!file.with_file_name("never there").exists());
        assert!(overlay.unsynced().unwrap().is_empty() && !overlay.sync_behind().unwrap());
    }
}
