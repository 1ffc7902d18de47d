//! What all snapshotters have in common: names, parents, labels, leases, and the order in which records and folders come
//! and go.
//!
//! ```text
//! prepare, Instant:  [ folder, record ]                     one transaction; a folder without record is swept
//! prepare, Long:     [ record: making ] copy [ record ]     the next start removes what is still marked
//! commit:            sync, [ record ]
//! remove:            [ record away ] folder                 a folder without record is swept
//! ```

use std::{path::Path, sync::Arc};

use proto::{
    containerd::types::Mount,
    kind::{ErrorKind, chain},
};

use super::{
    Kind, Record, SNAPSHOTS, SnapshotError, Usage,
    driver::{Driver, Pace, io_error},
    records::{full, get, next_id, remove_in, split},
};
use crate::{
    failure::Failure,
    filters::Filters,
    layers::apply::Target,
    leases::{self, Leases},
    namespaces,
    store::{Database, Labels, StoreError, Time, WriteTx, update_labels},
};

/// One snapshotter: a driver and its records.
#[derive(Clone)]
pub(crate) struct Snapshotter {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) db: Database,
    leases: Leases,
    // As leases name it.
    pub(super) resource: Arc<str>,
}

/// What a snapshot is made of.
pub(super) struct New<'a> {
    pub(super) kind: Kind,
    pub(super) namespace: &'a str,
    pub(super) key: &'a str,
    pub(super) parent: &'a str,
    pub(super) labels: Labels,
    pub(super) lease: Option<&'a str>,
}

fn check_name(what: &str, name: &str) -> Result<(), SnapshotError> {
    if name.is_empty() || name.len() > 1024 || name.contains('\0') {
        return Err(SnapshotError::Invalid(format!("snapshot {what} {name:?} is empty, too long, or holds a NUL")));
    }
    Ok(())
}

impl Snapshotter {
    pub(super) fn new(driver: Arc<dyn Driver>, db: Database, leases: Leases) -> Self {
        let resource = format!("snapshots/{}", driver.name()).into();
        Self { driver, db, leases, resource }
    }

    /// Its name in the API.
    pub(crate) fn name(&self) -> &'static str {
        self.driver.name()
    }

    /// The type of its snapshots as resources of leases.
    pub(crate) fn resource(&self) -> &str {
        &self.resource
    }

    pub(super) fn full(&self, key: &str) -> String {
        full(self.name(), key)
    }

    /// Makes a writable snapshot on `parent` (none if empty).
    pub(crate) fn prepare(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.make(New { kind: Kind::Active, namespace, key, parent, labels, lease })
    }

    /// Makes a read-only snapshot on `parent`.
    pub(crate) fn view(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.make(New { kind: Kind::View, namespace, key, parent, labels, lease })
    }

    fn make(&self, new: New<'_>) -> Result<Vec<Mount>, SnapshotError> {
        check_name("key", new.key)?;
        super::ids::check(new.key, &new.labels)?;
        if let Some(lease) = new.lease
            && !self.leases.exists(new.namespace, lease)?
        {
            return Err(SnapshotError::NoLease(lease.to_owned()));
        }
        let record = match self.driver.pace() {
            Pace::Instant => self.make_at_once(&new)?,
            Pace::Long => self.make_in_steps(&new)?,
        };
        proto::fault!("supervisor.snapshot_prepare.recorded");
        self.driver.mounts(new.key, &record)
    }

    fn make_at_once(&self, new: &New<'_>) -> Result<Record, SnapshotError> {
        let mut made = None;
        let record = self.db.write(|tx| {
            let record = self.reserve(tx, new, false)?;
            made = Some(record.id);
            // Before the record is committed: a folder without record is swept, a record without folder would be broken.
            self.driver.make(new.key, &record)?;
            proto::fault!("supervisor.snapshot_prepare.made");
            Ok(record)
        });
        if record.is_err()
            && let Some(id) = made
        {
            self.sweep(id);
        }
        record
    }

    // The record comes first and keeps key and parent, while others go on with their transactions.
    fn make_in_steps(&self, new: &New<'_>) -> Result<Record, SnapshotError> {
        let mut record = self.db.write(|tx| self.reserve(tx, new, true))?;
        proto::fault!("supervisor.snapshot_prepare.reserved");
        let made = self.driver.make(new.key, &record).and_then(|()| {
            record.making = false;
            self.db.write(|tx| Ok(SNAPSHOTS.put(tx, new.namespace, &self.full(new.key), &record)?))
        });
        if let Err(error) = made {
            // Files first: they may be what fills the disk.
            self.sweep(record.id);
            let undo = || self.db.write(|tx| remove_in(tx, self.name(), new.namespace, new.key));
            if let Err(left) = undo().or_else(|_| undo()) {
                tracing::warn!(key = new.key, error = %chain(&left), "half a snapshot left to the next start");
            }
            return Err(error);
        }
        Ok(record)
    }

    pub(super) fn reserve(&self, tx: &WriteTx, new: &New<'_>, making: bool) -> Result<Record, SnapshotError> {
        let New { kind, namespace, key, parent, .. } = *new;
        if SNAPSHOTS.get(tx, namespace, &self.full(key))?.is_some() {
            return Err(SnapshotError::Exists(key.to_owned()));
        }
        let mut chain = Vec::new();
        if !parent.is_empty() {
            let mut below = get(tx, self.name(), namespace, parent)?;
            if below.kind != Kind::Committed {
                return Err(SnapshotError::NotCommitted(parent.to_owned()));
            }
            chain.push(below.id);
            chain.extend_from_slice(&below.chain);
            below.children += 1;
            SNAPSHOTS.put(tx, namespace, &self.full(parent), &below)?;
        }
        let id = next_id(tx, self.driver.folders().used())?;
        self.driver.folders().note_used(id);
        let now = Time::now();
        let record = Record {
            id,
            kind,
            parent: (!parent.is_empty()).then(|| parent.to_owned()),
            chain,
            children: 0,
            created_at: now,
            updated_at: now,
            labels: new.labels.clone(),
            usage: Usage::default(),
            making,
        };
        SNAPSHOTS.put(tx, namespace, &self.full(key), &record)?;
        namespaces::touch_in(tx, namespace)?;
        if let Some(lease) = new.lease {
            leases::add_in(tx, namespace, lease, &self.resource, key)?;
        }
        Ok(record)
    }

    // A folder that nothing refers to any more; what resists is swept later.
    pub(super) fn sweep(&self, id: u64) {
        if let Err(error) = self.driver.remove(id) {
            tracing::warn!(snapshotter = self.name(), id, error = %chain(&error), "snapshot folder left to the collector");
        }
    }

    /// How to mount a writable or read-only snapshot.
    pub(crate) fn mounts(&self, namespace: &str, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        self.driver.mounts(key, &self.stat(namespace, key)?)
    }

    /// Fixes an active snapshot under its final name.
    pub(crate) fn commit(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<(), SnapshotError> {
        check_name("name", name)?;
        let record = self.stat(namespace, key)?;
        if record.kind != Kind::Active {
            return Err(SnapshotError::NotActive(key.to_owned()));
        }
        // Asked first: measuring a big layer for nothing would be slow.
        if self.db.read(|tx| SNAPSHOTS.get(tx, namespace, &self.full(name)))?.is_some() {
            return Err(SnapshotError::Exists(name.to_owned()));
        }
        let usage = self.driver.usage(&record)?;
        // The record promises files: they must not be in memory only (design, rule 3).
        self.driver.sync(&record)?;
        proto::fault!("supervisor.snapshot_commit.synced");
        let committed = self.db.write(|tx| {
            let mut record = SNAPSHOTS
                .get(tx, namespace, &self.full(key))?
                .filter(|now| now.id == record.id && now.kind == Kind::Active)
                .ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
            if SNAPSHOTS.get(tx, namespace, &self.full(name))?.is_some() {
                return Err(SnapshotError::Exists(name.to_owned()));
            }
            SNAPSHOTS.remove(tx, namespace, &self.full(key))?;
            record.kind = Kind::Committed;
            record.usage = usage;
            record.updated_at = Time::now();
            record.labels.remove(crate::gc::OPERATION);
            record.labels.extend(labels);
            SNAPSHOTS.put(tx, namespace, &self.full(name), &record)?;
            if let Some(lease) = lease {
                leases::remove_in(tx, namespace, lease, &self.resource, key)?;
                leases::add_in(tx, namespace, lease, &self.resource, name)?;
            }
            Ok(record)
        })?;
        proto::fault!("supervisor.snapshot_commit.recorded");
        if let Err(error) = self.driver.settled(&committed) {
            tracing::warn!(name, error = %chain(&error), "committed snapshot not made read-only");
        }
        Ok(())
    }

    /// Removes a snapshot on which nothing stands.
    pub(crate) fn remove(&self, namespace: &str, key: &str) -> Result<(), SnapshotError> {
        let remove = || {
            self.db.write(|tx| {
                get(tx, self.name(), namespace, key)?;
                remove_in(tx, self.name(), namespace, key)
            })
        };
        let id = match remove() {
            // The disk is full, and what is to go may be what fills it: files first, for once.
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => {
                let record = self.stat(namespace, key)?;
                if record.children == 0 {
                    self.driver.remove(record.id)?;
                }
                remove()?
            }
            other => other?,
        };
        proto::fault!("supervisor.snapshot_remove.unrecorded");
        // The record is gone and with it the snapshot, even if its folder resists.
        self.sweep(id);
        proto::fault!("supervisor.snapshot_remove.removed");
        Ok(())
    }

    /// What is recorded about a snapshot.
    pub(crate) fn stat(&self, namespace: &str, key: &str) -> Result<Record, SnapshotError> {
        self.db.read(|tx| get(tx, self.name(), namespace, key))
    }

    /// The same, for somebody who works under a lease: what they find they build on, so the lease keeps it from now on.
    pub(crate) fn stat_under(&self, namespace: &str, key: &str, lease: &str) -> Result<Record, SnapshotError> {
        let record = self.stat(namespace, key)?;
        let kept = self.db.write(|tx| {
            let record = get(tx, self.name(), namespace, key)?;
            leases::add_in(tx, namespace, lease, &self.resource, key)?;
            Ok(record)
        });
        match kept {
            // Where nothing can be written, nothing is collected.
            Err(SnapshotError::Store(StoreError::ReadOnly(_))) => Ok(record),
            kept => kept,
        }
    }

    /// Changes labels as the field mask asks; an empty mask replaces all.
    pub(crate) fn update(
        &self,
        namespace: &str,
        key: &str,
        labels: &Labels,
        paths: &[String],
    ) -> Result<Record, SnapshotError> {
        let all = ["labels".to_owned()];
        self.db.write(|tx| {
            let mut record = get(tx, self.name(), namespace, key)?;
            update_labels(&mut record.labels, if paths.is_empty() { &all } else { paths }, labels)
                .map_err(|path| SnapshotError::Invalid(format!("snapshot field {path:?} can't be updated")))?;
            record.updated_at = Time::now();
            SNAPSHOTS.put(tx, namespace, &self.full(key), &record)?;
            Ok(record)
        })
    }

    /// The snapshots of a namespace that pass the filters.
    pub(crate) fn list(&self, namespace: &str, filters: &[String]) -> Result<Vec<(String, Record)>, SnapshotError> {
        let filters = Filters::parse(filters)?;
        let found = self.db.read(|tx| SNAPSHOTS.list(tx, namespace, &self.full("")))?;
        let accept = |(key, record): &(String, Record)| {
            !record.making
                && filters.accept_labelled(&record.labels, |field| match field {
                    "name" => Some(key.clone()),
                    "parent" => record.parent.clone(),
                    "kind" => Some(format!("{:?}", record.kind).to_lowercase()),
                    _ => None,
                })
        };
        Ok(found.into_iter().map(|(key, record)| (split(&key).1.to_owned(), record)).filter(accept).collect())
    }

    /// What a snapshot takes.
    pub(crate) fn usage(&self, namespace: &str, key: &str) -> Result<Usage, SnapshotError> {
        let record = self.stat(namespace, key)?;
        if record.kind == Kind::Committed { Ok(record.usage) } else { self.driver.usage(&record) }
    }

    /// Where a layer is unpacked for an active snapshot.
    pub(crate) fn target(&self, namespace: &str, key: &str) -> Result<Target, SnapshotError> {
        let record = self.stat(namespace, key)?;
        if record.kind != Kind::Active {
            return Err(SnapshotError::NotActive(key.to_owned()));
        }
        self.driver.target(&record)
    }

    /// The folder of the snapshot whose files are at `path`, if it is one of this snapshotter.
    pub(crate) fn folder_of(&self, path: &Path) -> Option<std::path::PathBuf> {
        let folders = self.driver.folders();
        folders.own(path).map(|id| folders.folder(id))
    }

    /// Opens the files of a committed snapshot.
    pub(crate) fn open_committed(&self, namespace: &str, key: &str) -> Result<std::os::fd::OwnedFd, SnapshotError> {
        let record = self.stat(namespace, key)?;
        if record.kind != Kind::Committed {
            return Err(SnapshotError::NotCommitted(key.to_owned()));
        }
        self.driver.folders().open_files(record.id)
    }

    /// Whether the files of a snapshot are there, by the number of its record.
    pub(crate) fn has_files(&self, id: u64) -> bool {
        self.driver.folders().files(id).is_dir()
    }

    /// Removes folders that belong to no snapshot.
    pub(crate) fn cleanup(&self) -> Result<(), SnapshotError> {
        let mut stray = self.driver.folders().ids().map_err(io_error("list snapshot folders"))?;
        // Read after the folders: the folder of a snapshot made meanwhile is not in the list. Inside a (never committed)
        // write, so that one whose folder is there and whose record is on its way is not taken for stray. Numbers are not
        // given twice, so that what is stray stays it.
        let known = self.db.write(|tx| SNAPSHOTS.list_all(tx))?;
        let own = known.into_iter().filter(|(_, key, _)| split(key).0 == self.name());
        let known: std::collections::HashSet<u64> = own.map(|(_, _, record)| record.id).collect();
        stray.retain(|id| !known.contains(id));
        self.remove_folders(&stray)
    }

    /// Removes folders whose records are gone.
    pub(crate) fn remove_folders(&self, ids: &[u64]) -> Result<(), SnapshotError> {
        ids.iter().try_for_each(|id| self.driver.remove(*id))
    }

    /// Puts right what a crash left: unfinished snapshots, folders without record, and records without folder, unless
    /// something stands on them.
    pub(crate) fn repair(&self) -> Result<(), SnapshotError> {
        self.db.write(|tx| {
            for (namespace, key, record) in SNAPSHOTS.list_all(tx)? {
                if record.making && split(&key).0 == self.name() {
                    remove_in(tx, self.name(), &namespace, split(&key).1)?;
                }
            }
            Ok::<_, SnapshotError>(())
        })?;
        self.cleanup()?;
        for (namespace, key, record) in self.db.read(|tx| SNAPSHOTS.list_all(tx))? {
            let (driver, key) = split(&key);
            if driver != self.name() {
                continue;
            }
            if self.driver.folders().files(record.id).is_dir() {
                if let Err(error) = self.driver.settled(&record) {
                    tracing::warn!(namespace, key, error = %chain(&error), "snapshot not put right");
                }
                continue;
            }
            match self.remove(&namespace, key) {
                Ok(()) => tracing::warn!(namespace, key, "snapshot without folder dropped"),
                Err(error) => tracing::error!(namespace, key, %error, "snapshot has lost its folder"),
            }
        }
        Ok(())
    }
}
