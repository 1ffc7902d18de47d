//! The overlayfs driver: `ID/fs` holds a layer's files, `ID/work` is overlayfs' own.
//!
//! Making a snapshot is two folders and one record, whatever is below it: a container's start waits for it.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use proto::{containerd::types::Mount, kind::ErrorKind};

use super::{Kind, Record, SnapshotError, Snapshotter, Usage};
use crate::{
    failure::Failure,
    filters::Filters,
    layers::{self, apply::Target},
    leases::{self, Leases},
    namespaces,
    store::{Database, Labels, StoreError, Table, Time, WriteTx, make_folder, update_labels},
};

/// Records of snapshots: namespace and `driver NUL key`.
pub(crate) const SNAPSHOTS: Table<Record> = Table::new("snapshots");
const COUNTERS: Table<u64> = Table::new("counters");

// The driver's name in the API, and a NUL.
const PREFIX: &str = "overlayfs\0";

/// mount(2) takes one page of options; what the caller adds (a prefix, SELinux labels) must fit too.
const OPTIONS_LIMIT: usize = 4000;

/// Snapshots kept as folders for overlayfs.
pub(crate) struct Overlay {
    root: PathBuf,
    // Short names for `ID/fs`, used where many layers would not fit into a mount's options.
    links: PathBuf,
    index_off: bool,
    db: Database,
    leases: Leases,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> SnapshotError {
    let what = what.into();
    move |cause| SnapshotError::Io { what, cause }
}

fn full(key: &str) -> String {
    format!("{PREFIX}{key}")
}

impl Overlay {
    /// Opens the driver's folder and removes what crashes left in it.
    pub(crate) fn open(root: &Path, db: Database, leases: Leases) -> Result<Self, StoreError> {
        make_folder(root, 0o700)?;
        let links = root.join("l");
        make_folder(&links, 0o700)?;
        // Without index, an upper folder may be used again after an unclean end, and layers be shared (overlayfs.rst).
        let index_off = Path::new("/sys/module/overlay/parameters/index").exists();
        Ok(Self { root: root.to_owned(), links, index_off, db, leases })
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    fn upper(&self, id: u64) -> PathBuf {
        self.folder(id).join("fs")
    }

    fn make(
        &self,
        kind: Kind,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        if key.is_empty() || key.len() > 1024 || key.contains('\0') {
            return Err(SnapshotError::Invalid(format!("snapshot key {key:?} is empty, too long, or holds a NUL")));
        }
        if let Some(lease) = lease
            && !self.leases.exists(namespace, lease)?
        {
            return Err(SnapshotError::NoLease(lease.to_owned()));
        }
        let mut made = None;
        let record = self.db.write(|tx| {
            if SNAPSHOTS.get(tx, namespace, &full(key))?.is_some() {
                return Err(SnapshotError::Exists(key.to_owned()));
            }
            let mut chain = Vec::new();
            if !parent.is_empty() {
                let mut below = SNAPSHOTS
                    .get(tx, namespace, &full(parent))?
                    .ok_or_else(|| SnapshotError::NotFound(parent.to_owned()))?;
                if below.kind != Kind::Committed {
                    return Err(SnapshotError::NotCommitted(parent.to_owned()));
                }
                chain.push(below.id);
                chain.extend_from_slice(&below.chain);
                below.children += 1;
                SNAPSHOTS.put(tx, namespace, &full(parent), &below)?;
            }
            let id = COUNTERS.get(tx, "", "snapshots")?.unwrap_or(0) + 1;
            COUNTERS.put(tx, "", "snapshots", &id)?;
            let now = Time::now();
            let record = Record {
                id,
                kind,
                parent: (!parent.is_empty()).then(|| parent.to_owned()),
                chain,
                children: 0,
                created_at: now,
                updated_at: now,
                labels,
                usage: Usage::default(),
            };
            made = Some(id);
            self.make_folders(&record)?;
            SNAPSHOTS.put(tx, namespace, &full(key), &record)?;
            namespaces::touch_in(tx, namespace)?;
            if let Some(lease) = lease {
                leases::add_in(tx, namespace, lease, "snapshots/overlayfs", key)?;
            }
            Ok(record)
        });
        if record.is_err()
            && let Some(id) = made
            && let Err(error) = self.remove_folder(id)
        {
            tracing::warn!(id, %error, "folder of a failed snapshot left to the collector");
        }
        self.mounts_of(key, &record?)
    }

    // Runs before its record is committed: a folder without record is swept, a record without folder would be broken.
    fn make_folders(&self, record: &Record) -> Result<(), SnapshotError> {
        let folder = self.folder(record.id);
        let failed = || io_error(format!("make snapshot folder {}", folder.display()));
        match fs::create_dir(&folder) {
            // Number of a snapshot whose record was never committed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.remove_folder(record.id)?;
                fs::create_dir(&folder).map_err(failed())?;
            }
            other => other.map_err(failed())?,
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed())?;
        let upper = folder.join("fs");
        fs::create_dir(&upper).map_err(failed())?;
        // The merged root shows the upper folder's owner and mode, so it takes them from below.
        let (mode, owner) = match record.chain.first() {
            Some(below) => {
                let below = fs::metadata(self.upper(*below)).map_err(failed())?;
                (below.mode() & 0o7777, Some((below.uid(), below.gid())))
            }
            None => (0o755, None),
        };
        if let Some((uid, gid)) = owner
            && (uid, gid) != (0, 0)
        {
            std::os::unix::fs::chown(&upper, Some(uid), Some(gid)).map_err(failed())?;
        }
        fs::set_permissions(&upper, fs::Permissions::from_mode(mode)).map_err(failed())?;
        if record.kind == Kind::Active {
            fs::create_dir(folder.join("work")).map_err(failed())?;
            fs::set_permissions(folder.join("work"), fs::Permissions::from_mode(0o711)).map_err(failed())?;
        }
        Ok(())
    }

    fn remove_folder(&self, id: u64) -> Result<(), SnapshotError> {
        let failed = |cause: Errno| io_error(format!("remove snapshot folder {id}"))(cause.into());
        let root =
            open(&self.root, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
        let _ = fs::remove_file(self.links.join(id.to_string()));
        match layers::tree::remove(&root, id.to_string().as_bytes()) {
            Err(Errno::ENOENT) => Ok(()),
            other => other.map_err(failed),
        }
    }

    fn mounts_of(&self, key: &str, record: &Record) -> Result<Vec<Mount>, SnapshotError> {
        let bind = |id, access: &str| {
            vec![Mount {
                r#type: "bind".into(),
                source: self.upper(id).display().to_string(),
                target: String::new(),
                options: vec![access.into(), "rbind".into()],
            }]
        };
        match (record.kind, record.chain.as_slice()) {
            (Kind::Committed, _) => return Err(SnapshotError::NoMounts(key.to_owned())),
            (Kind::Active, []) => return Ok(bind(record.id, "rw")),
            (Kind::View, []) => return Ok(bind(record.id, "ro")),
            (Kind::View, [only]) => return Ok(bind(*only, "ro")),
            _ => {}
        }
        let mut options = Vec::new();
        if self.index_off {
            options.push("index=off".to_owned());
        }
        if record.kind == Kind::Active {
            options.push(format!("workdir={}", self.folder(record.id).join("work").display()));
            options.push(format!("upperdir={}", self.upper(record.id).display()));
        }
        let join = |paths: &dyn Fn(u64) -> PathBuf| {
            let paths: Vec<String> = record.chain.iter().map(|id| paths(*id).display().to_string()).collect();
            format!("lowerdir={}", paths.join(":"))
        };
        let taken: usize = options.iter().map(|option| option.len() + 1).sum();
        let mut lower = join(&|id| self.upper(id));
        if taken + lower.len() > OPTIONS_LIMIT {
            lower = join(&|id| self.links.join(id.to_string()));
            if taken + lower.len() > OPTIONS_LIMIT {
                return Err(SnapshotError::TooManyLayers { key: key.to_owned(), layers: record.chain.len() });
            }
            for id in &record.chain {
                let link = self.links.join(id.to_string());
                match std::os::unix::fs::symlink(format!("../{id}/fs"), &link) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(io_error(format!("make link {}", link.display()))(error));
                    }
                    _ => {}
                }
            }
        }
        options.push(lower);
        Ok(vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }])
    }

    fn measure(&self, id: u64) -> Result<Usage, SnapshotError> {
        let (bytes, inodes) = layers::apply::usage(&self.upper(id))
            .map_err(|errno| io_error(format!("measure snapshot folder {id}"))(errno.into()))?;
        Ok(Usage { bytes, inodes })
    }

    /// The folders that an overlay or bind mount made by this driver writes to and reads from; `None` for other mounts.
    pub(crate) fn target_of(&self, mounts: &[Mount]) -> Option<Target> {
        let [mount] = mounts else { return None };
        match mount.r#type.as_str() {
            "bind" if mount.options.iter().any(|o| o == "rw") => {
                let upper = self.own(Path::new(&mount.source))?;
                Some(Target { upper, lowers: Vec::new() })
            }
            "overlay" => {
                let option = |name: &str| mount.options.iter().find_map(|o| o.strip_prefix(name));
                let upper = self.own(Path::new(option("upperdir=")?))?;
                let lowers = option("lowerdir=")?.split(':').map(|p| self.own(Path::new(p))).collect::<Option<_>>()?;
                Some(Target { upper, lowers })
            }
            _ => None,
        }
    }

    // Clients may name any folder in a mount; only `ROOT/ID/fs` is a layer.
    fn own(&self, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.root).ok()?.to_str()?;
        let id = rest.strip_suffix("/fs").or_else(|| rest.strip_prefix("l/"))?;
        id.bytes().all(|b| b.is_ascii_digit()).then(|| id.parse().ok()).flatten().map(|id| self.upper(id))
    }

    /// Removes the record in an open transaction; gives the folder to remove once that is committed.
    pub(crate) fn remove_in(tx: &WriteTx, namespace: &str, key: &str) -> Result<u64, SnapshotError> {
        let record =
            SNAPSHOTS.get(tx, namespace, &full(key))?.ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
        if record.children > 0 {
            return Err(SnapshotError::HasChildren { key: key.to_owned(), children: record.children });
        }
        if let Some(parent) = &record.parent
            && let Some(mut below) = SNAPSHOTS.get(tx, namespace, &full(parent))?
        {
            below.children = below.children.saturating_sub(1);
            SNAPSHOTS.put(tx, namespace, &full(parent), &below)?;
        }
        SNAPSHOTS.remove(tx, namespace, &full(key))?;
        Ok(record.id)
    }

    /// Removes folders whose records are gone.
    pub(crate) fn remove_folders(&self, ids: &[u64]) -> Result<(), SnapshotError> {
        ids.iter().try_for_each(|id| self.remove_folder(*id))
    }

    /// What is wrong after a crash: records without folder are dropped, unless something stands on them.
    pub(crate) fn repair(&self) -> Result<(), SnapshotError> {
        self.cleanup()?;
        for (namespace, key, record) in self.db.read(|tx| SNAPSHOTS.list_all(tx))? {
            if self.upper(record.id).is_dir() {
                continue;
            }
            let key = key.strip_prefix(PREFIX).unwrap_or(&key);
            match self.remove(&namespace, key) {
                Ok(()) => tracing::warn!(namespace, key, "snapshot without folder dropped"),
                Err(error) => tracing::error!(namespace, key, %error, "snapshot has lost its folder"),
            }
        }
        Ok(())
    }
}

impl Snapshotter for Overlay {
    fn prepare(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.make(Kind::Active, namespace, key, parent, labels, lease)
    }

    fn view(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.make(Kind::View, namespace, key, parent, labels, lease)
    }

    fn mounts(&self, namespace: &str, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        self.mounts_of(key, &self.stat(namespace, key)?)
    }

    fn commit(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
        labels: Labels,
        lease: Option<&str>,
    ) -> Result<(), SnapshotError> {
        if name.is_empty() || name.len() > 1024 || name.contains('\0') {
            return Err(SnapshotError::Invalid(format!("snapshot name {name:?} is empty, too long, or holds a NUL")));
        }
        let record = self.stat(namespace, key)?;
        if record.kind != Kind::Active {
            return Err(SnapshotError::NotActive(key.to_owned()));
        }
        // Asked first: measuring a big layer for nothing would be slow.
        if self.db.read(|tx| SNAPSHOTS.get(tx, namespace, &full(name)))?.is_some() {
            return Err(SnapshotError::Exists(name.to_owned()));
        }
        let usage = self.measure(record.id)?;
        // The record promises files: they must not be in memory only (design, rule 3).
        let upper =
            open(&self.upper(record.id), OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        upper
            .and_then(nix::unistd::syncfs)
            .map_err(|errno| io_error(format!("sync snapshot {key:?}"))(errno.into()))?;
        self.db.write(|tx| {
            let mut record = SNAPSHOTS
                .get(tx, namespace, &full(key))?
                .filter(|now| now.id == record.id && now.kind == Kind::Active)
                .ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
            if SNAPSHOTS.get(tx, namespace, &full(name))?.is_some() {
                return Err(SnapshotError::Exists(name.to_owned()));
            }
            SNAPSHOTS.remove(tx, namespace, &full(key))?;
            record.kind = Kind::Committed;
            record.usage = usage;
            record.updated_at = Time::now();
            record.labels.remove(crate::gc::OPERATION);
            record.labels.extend(labels);
            SNAPSHOTS.put(tx, namespace, &full(name), &record)?;
            if let Some(lease) = lease {
                leases::remove_in(tx, namespace, lease, "snapshots/overlayfs", key)?;
                leases::add_in(tx, namespace, lease, "snapshots/overlayfs", name)?;
            }
            Ok(())
        })
    }

    fn remove(&self, namespace: &str, key: &str) -> Result<(), SnapshotError> {
        let remove = || self.db.write(|tx| Self::remove_in(tx, namespace, key));
        let id = match remove() {
            // The disk is full, and what is to go may be what fills it: files first, for once.
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => {
                let record = self.stat(namespace, key)?;
                if record.children == 0 {
                    self.remove_folder(record.id)?;
                }
                remove()?
            }
            other => other?,
        };
        // The record is gone and with it the snapshot; a folder that resists (a mount that is still up) is swept later.
        if let Err(error) = self.remove_folder(id) {
            tracing::warn!(key, error = %proto::kind::chain(&error), "snapshot folder left to the collector");
        }
        Ok(())
    }

    fn stat(&self, namespace: &str, key: &str) -> Result<Record, SnapshotError> {
        let found = self.db.read(|tx| SNAPSHOTS.get(tx, namespace, &full(key)))?;
        found.ok_or_else(|| SnapshotError::NotFound(key.to_owned()))
    }

    fn update(&self, namespace: &str, key: &str, labels: &Labels, paths: &[String]) -> Result<Record, SnapshotError> {
        let all = ["labels".to_owned()];
        self.db.write(|tx| {
            let mut record =
                SNAPSHOTS.get(tx, namespace, &full(key))?.ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
            update_labels(&mut record.labels, if paths.is_empty() { &all } else { paths }, labels)
                .map_err(|path| SnapshotError::Invalid(format!("snapshot field {path:?} can't be updated")))?;
            record.updated_at = Time::now();
            SNAPSHOTS.put(tx, namespace, &full(key), &record)?;
            Ok(record)
        })
    }

    fn list(&self, namespace: &str, filters: &[String]) -> Result<Vec<(String, Record)>, SnapshotError> {
        let filters = Filters::parse(filters)?;
        let found = self.db.read(|tx| SNAPSHOTS.list(tx, namespace, PREFIX))?;
        let strip = |(key, record): (String, Record)| (key[PREFIX.len()..].to_owned(), record);
        let accept = |(key, record): &(String, Record)| {
            filters.accept_labelled(&record.labels, |field| match field {
                "name" => Some(key.clone()),
                "parent" => record.parent.clone(),
                "kind" => Some(format!("{:?}", record.kind).to_lowercase()),
                _ => None,
            })
        };
        Ok(found.into_iter().map(strip).filter(accept).collect())
    }

    fn usage(&self, namespace: &str, key: &str) -> Result<Usage, SnapshotError> {
        let record = self.stat(namespace, key)?;
        if record.kind == Kind::Committed { Ok(record.usage) } else { self.measure(record.id) }
    }

    fn cleanup(&self) -> Result<(), SnapshotError> {
        let listing = || io_error("list snapshot folders");
        let mut stray = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(listing())? {
            let name = entry.map_err(listing())?.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.parse::<u64>().ok()) {
                stray.push(id);
            }
        }
        // Read after the folders: the folder of a snapshot made meanwhile is not in the list. Inside a (never committed)
        // write, so that one whose folder is there and whose record is on its way is not taken for stray.
        let known = self.db.write(|tx| SNAPSHOTS.list_all(tx))?;
        let known: std::collections::HashSet<u64> = known.into_iter().map(|(_, _, record)| record.id).collect();
        stray.retain(|id| !known.contains(id));
        self.remove_folders(&stray)
    }

    fn target(&self, namespace: &str, key: &str) -> Result<Target, SnapshotError> {
        let record = self.stat(namespace, key)?;
        if record.kind != Kind::Active {
            return Err(SnapshotError::NotActive(key.to_owned()));
        }
        Ok(Target { upper: self.upper(record.id), lowers: record.chain.iter().map(|id| self.upper(*id)).collect() })
    }
}
