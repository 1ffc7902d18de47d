//! Snapshots: records without folders, folders without records, and what stands on a folder that is gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
};

use super::{Check, CheckError, Database, StoreError, entries, names};
use crate::{
    containers::CONTAINERS,
    snapshots::{DRIVERS, Record, SNAPSHOTS},
};

/// Namespace and `driver NUL key`.
type Name = (String, String);

impl Check {
    /// Compares records and folders.
    pub(super) fn snapshots(&mut self, db: &Database) -> Result<(), CheckError> {
        // One that was never finished is nobody's: the next start removes it.
        let read = db.read(|tx| Ok::<_, StoreError>((SNAPSHOTS.list_all(tx)?, CONTAINERS.list_all(tx)?)));
        let (mut records, containers) = read?;
        records.retain(|(_, _, record)| !record.making);
        let mut known = HashMap::<&str, HashSet<u64>>::new();
        for (_, key, record) in &records {
            known.entry(driver(key)).or_default().insert(record.id);
        }
        let gone: BTreeSet<(&str, u64)> = records
            .iter()
            .map(|(_, key, record)| (driver(key), record.id))
            .filter(|(driver, id)| !self.layers(driver).join(id.to_string()).join("fs").is_dir())
            .collect();
        let broken: BTreeMap<Name, &Record> = records
            .iter()
            .filter(|(_, key, record)| {
                let driver = driver(key);
                std::iter::once(&record.id).chain(&record.chain).any(|id| gone.contains(&(driver, *id)))
            })
            .map(|(namespace, key, record)| ((namespace.clone(), key.clone()), record))
            .collect();
        for ((namespace, key), record) in &broken {
            let (driver, key) = key.split_once('\0').unwrap_or(("", key));
            let users: Vec<String> = containers
                .iter()
                .filter(|(ns, _, one)| ns == namespace && one.snapshotter == driver && one.snapshot_key == *key)
                .map(|(ns, id, _)| format!("container {ns}/{id}"))
                .collect();
            let why =
                if gone.contains(&(driver, record.id)) { "has lost its folder" } else { "stands on one that is gone" };
            let what = format!("snapshot {namespace}/{key} ({driver}) {why}; it is used by {}", names(&users));
            self.tell(
                what,
                Some("dropped, so that the next pull or unpack makes it anew; files that are left moved aside"),
            );
        }
        if self.repair {
            self.drop_snapshots(db, &broken)?;
        }
        self.strays(&known)
    }

    // Where a snapshotter keeps its layers.
    fn layers(&self, driver: &str) -> PathBuf {
        self.snapshots.folder(&self.data.join("snapshots"), driver)
    }

    fn drop_snapshots(&self, db: &Database, broken: &BTreeMap<Name, &Record>) -> Result<(), CheckError> {
        for ((_, key), record) in broken {
            self.set_aside(&self.layers(driver(key)).join(record.id.to_string()))?;
        }
        db.write(|tx| {
            for ((namespace, key), record) in broken {
                SNAPSHOTS.remove(tx, namespace, key)?;
                // One that stays has a child less.
                let parent = record.parent.as_ref().map(|parent| format!("{}\0{parent}", driver(key)));
                if let Some(parent) = parent.filter(|parent| !broken.contains_key(&(namespace.clone(), parent.clone())))
                    && let Some(mut below) = SNAPSHOTS.get(tx, namespace, &parent)?
                {
                    below.children = below.children.saturating_sub(1);
                    SNAPSHOTS.put(tx, namespace, &parent, &below)?;
                }
            }
            Ok::<_, StoreError>(())
        })?;
        Ok(())
    }

    /// Folders that no record knows. After a crash they are leftovers, and go with the next start; behind a database that
    /// could not be rebuilt whole they may be somebody's work.
    fn strays(&mut self, known: &HashMap<&str, HashSet<u64>>) -> Result<(), CheckError> {
        for driver in DRIVERS {
            let (of_driver, top) = (known.get(driver), self.layers(driver));
            if !top.is_dir() {
                continue;
            }
            for name in entries(&top)? {
                let Ok(id) = name.parse::<u64>() else { continue };
                if of_driver.is_some_and(|known| known.contains(&id)) {
                    continue;
                }
                let at = top.join(name);
                if self.incomplete {
                    self.tell(format_args!("folder {} belongs to no snapshot", at.display()), Some("moved aside"));
                    if self.repair {
                        self.set_aside(&at)?;
                    }
                } else {
                    println!("folder {} is a leftover; the next start removes it", at.display());
                }
            }
        }
        Ok(())
    }
}

fn driver(key: &str) -> &str {
    key.split_once('\0').map_or("", |(driver, _)| driver)
}
