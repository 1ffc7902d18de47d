//! Namespaces: who uses this supervisor. One exists as soon as something is made in it.

use proto::kind::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    store::{Database, Labels, Reader, StoreError, Table, WriteTx},
};

const NAMESPACES: Table<Record> = Table::new("namespaces");

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Record {
    labels: Labels,
}

/// Why a namespace could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    /// The name is taken.
    #[error("namespace {0:?}: already exists")]
    Exists(String),
    /// No such namespace.
    #[error("namespace {0:?}: not found")]
    NotFound(String),
    /// Something is still in it.
    #[error("namespace {name:?} must be empty, but it still has {what}")]
    NotEmpty {
        /// The namespace.
        name: String,
        /// What is in it: tables with the number of their records.
        what: String,
    },
    /// The name or the mask can't be used.
    #[error("{0}")]
    Invalid(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for NamespaceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::NotEmpty { .. } => ErrorKind::FailedPrecondition,
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Store(error) => error.kind(),
        }
    }
}

/// The namespaces and their labels.
#[derive(Clone)]
pub(crate) struct Namespaces {
    db: Database,
}

/// Makes the namespace of a record that is being written, unless it is there.
pub(crate) fn touch_in(tx: &WriteTx, name: &str) -> Result<(), StoreError> {
    match NAMESPACES.get(tx, "", name)? {
        Some(_) => Ok(()),
        None => NAMESPACES.put(tx, "", name, &Record::default()),
    }
}

/// The names of all namespaces, in an open transaction.
pub(crate) fn all_in(tx: &impl Reader) -> Result<Vec<(String, Labels)>, StoreError> {
    Ok(NAMESPACES.list(tx, "", "")?.into_iter().map(|(name, record)| (name, record.labels)).collect())
}

impl Namespaces {
    /// Namespaces kept in `db`.
    pub(crate) fn new(db: Database) -> Self {
        Self { db }
    }

    /// The labels of a namespace. One that doesn't exist yet has none: clients of containerd ask for their namespace's
    /// defaults before they make anything in it, dockerd among them, and give up on NOT_FOUND.
    pub(crate) fn get(&self, name: &str) -> Result<Labels, NamespaceError> {
        let found = self.db.read(|tx| NAMESPACES.get(tx, "", name))?;
        Ok(found.map(|record| record.labels).unwrap_or_default())
    }

    /// Every namespace with its labels.
    pub(crate) fn list(&self) -> Result<Vec<(String, Labels)>, NamespaceError> {
        Ok(self.db.read(all_in)?)
    }

    /// Makes a namespace.
    pub(crate) fn create(&self, name: &str, labels: Labels) -> Result<(), NamespaceError> {
        self.db.write(|tx| {
            if NAMESPACES.get(tx, "", name)?.is_some() {
                return Err(NamespaceError::Exists(name.to_owned()));
            }
            Ok(NAMESPACES.put(tx, "", name, &Record { labels })?)
        })
    }

    /// Changes labels: those that `paths` name, all of them if it is empty.
    pub(crate) fn update(&self, name: &str, labels: &Labels, paths: &[String]) -> Result<Labels, NamespaceError> {
        self.db.write(|tx| {
            let mut record = NAMESPACES.get(tx, "", name)?.ok_or_else(|| NamespaceError::NotFound(name.to_owned()))?;
            let all = ["labels".to_owned()];
            crate::store::update_labels(&mut record.labels, if paths.is_empty() { &all } else { paths }, labels)
                .map_err(|path| NamespaceError::Invalid(format!("namespace field {path:?} can't be updated")))?;
            NAMESPACES.put(tx, "", name, &record)?;
            Ok(record.labels)
        })
    }

    /// Removes a namespace that holds nothing.
    pub(crate) fn delete(&self, name: &str) -> Result<(), NamespaceError> {
        self.db.write(|tx| {
            if NAMESPACES.get(tx, "", name)?.is_none() {
                return Err(NamespaceError::NotFound(name.to_owned()));
            }
            let mut rest = Vec::new();
            for (table, what) in [
                ("containers", "containers"),
                ("cri-sandboxes", "sandboxes"),
                ("images", "images"),
                ("snapshots", "snapshots"),
                ("content", "blobs"),
            ] {
                let count = tx.scan_bytes(table, &format!("{name}\0"))?.len();
                if count > 0 {
                    rest.push(format!("{count} {what}"));
                }
            }
            if !rest.is_empty() {
                return Err(NamespaceError::NotEmpty { name: name.to_owned(), what: rest.join(", ") });
            }
            for (id, _) in leases_of(tx, name)? {
                crate::leases::delete_in(tx, name, &id)?;
            }
            NAMESPACES.remove(tx, "", name)?;
            Ok(())
        })
    }
}

fn leases_of(tx: &WriteTx, name: &str) -> Result<Vec<(String, ())>, StoreError> {
    Ok(crate::leases::all_in(tx)?.into_iter().filter(|(ns, ..)| ns == name).map(|(_, id, _)| (id, ())).collect())
}
