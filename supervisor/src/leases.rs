//! Leases: named reasons to keep resources, for the time an operation needs them (containerd, `leases`).

use proto::kind::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    namespaces,
    store::{Database, Labels, Reader, StoreError, Table, Time, WriteTx},
};

const LEASES: Table<Lease> = Table::new("leases");
// Key: `lease NUL type NUL resource`.
const RESOURCES: Table<()> = Table::new("lease-resources");

/// A lease as it is recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// When it was made.
    pub(crate) created_at: Time,
    /// Its labels, the expiry among them.
    pub(crate) labels: Labels,
}

/// Something that a lease keeps: type (`content`, `ingests`, `snapshots/overlayfs`) and id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Resource {
    /// Its type in containerd's words.
    pub(crate) kind: String,
    /// Its id: digest, reference or key.
    pub(crate) id: String,
}

/// Why a lease could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// The id is taken.
    #[error("lease {0:?}: already exists")]
    Exists(String),
    /// No such lease.
    #[error("lease {0:?}: not found")]
    NotFound(String),
    /// A type of resource that nobody keeps.
    #[error("lease resource type {0:?} is not known: there are content, ingests, images and snapshots/SNAPSHOTTER")]
    Unknown(String),
    /// The id can't be used.
    #[error("{0}")]
    Invalid(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for LeaseError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Unknown(_) => ErrorKind::Unimplemented,
            Self::Store(error) => error.kind(),
        }
    }
}

/// The leases of every namespace.
#[derive(Clone)]
pub(crate) struct Leases {
    db: Database,
}

impl Leases {
    /// Leases kept in `db`.
    pub(crate) fn new(db: Database) -> Self {
        Self { db }
    }

    /// Makes a lease; an empty id gets one.
    pub(crate) fn create(&self, namespace: &str, id: &str, labels: Labels) -> Result<(String, Lease), LeaseError> {
        if id.contains('\0') || id.len() > 256 {
            return Err(LeaseError::Invalid(format!("lease id {id:?} is too long or holds a NUL")));
        }
        let lease = Lease { created_at: Time::now(), labels };
        let id = if id.is_empty() { unique("lease") } else { id.to_owned() };
        self.db.write(|tx| {
            if LEASES.get(tx, namespace, &id)?.is_some() {
                return Err(LeaseError::Exists(id.clone()));
            }
            LEASES.put(tx, namespace, &id, &lease)?;
            // Else the collector would not come by to end it.
            Ok(namespaces::touch_in(tx, namespace)?)
        })?;
        Ok((id, lease))
    }

    /// Ends a lease.
    pub(crate) fn delete(&self, namespace: &str, id: &str) -> Result<(), LeaseError> {
        self.db.write(|tx| {
            if !LEASES.remove(tx, namespace, id)? {
                return Err(LeaseError::NotFound(id.to_owned()));
            }
            drop_resources(tx, namespace, id)?;
            Ok(())
        })
    }

    /// The leases of a namespace.
    pub(crate) fn list(&self, namespace: &str) -> Result<Vec<(String, Lease)>, LeaseError> {
        Ok(self.db.read(|tx| LEASES.list(tx, namespace, ""))?)
    }

    /// Puts a resource under a lease.
    pub(crate) fn add(&self, namespace: &str, lease: &str, resource: &Resource) -> Result<(), LeaseError> {
        self.db.write(|tx| {
            if LEASES.get(tx, namespace, lease)?.is_none() {
                return Err(LeaseError::NotFound(lease.to_owned()));
            }
            add_in(tx, namespace, lease, &resource.kind, &resource.id)?;
            Ok(())
        })
    }

    /// Takes a resource from a lease; one that wasn't there is no error.
    pub(crate) fn remove(&self, namespace: &str, lease: &str, resource: &Resource) -> Result<(), LeaseError> {
        self.db.write(|tx| {
            if LEASES.get(tx, namespace, lease)?.is_none() {
                return Err(LeaseError::NotFound(lease.to_owned()));
            }
            RESOURCES.remove(tx, namespace, &resource_key(lease, &resource.kind, &resource.id))?;
            Ok(())
        })
    }

    /// What a lease keeps.
    pub(crate) fn resources(&self, namespace: &str, lease: &str) -> Result<Vec<Resource>, LeaseError> {
        self.db.read(|tx| {
            if LEASES.get(tx, namespace, lease)?.is_none() {
                return Err(LeaseError::NotFound(lease.to_owned()));
            }
            Ok(resources_in(tx, namespace, lease)?)
        })
    }

    /// Whether there is a lease of this id.
    pub(crate) fn exists(&self, namespace: &str, id: &str) -> Result<bool, StoreError> {
        self.db.read(|tx| Ok(LEASES.get(tx, namespace, id)?.is_some()))
    }
}

/// The leases of a namespace, in an open transaction.
pub(crate) fn list_in(tx: &impl Reader, namespace: &str) -> Result<Vec<(String, Lease)>, StoreError> {
    LEASES.list(tx, namespace, "")
}

/// Every lease with its namespace, in an open transaction.
pub(crate) fn all_in(tx: &impl Reader) -> Result<Vec<(String, String, Lease)>, StoreError> {
    LEASES.list_all(tx)
}

/// What a lease keeps, in an open transaction.
pub(crate) fn resources_in(tx: &impl Reader, namespace: &str, lease: &str) -> Result<Vec<Resource>, StoreError> {
    let found = RESOURCES.list(tx, namespace, &format!("{lease}\0"))?;
    Ok(found
        .into_iter()
        .filter_map(|(key, ())| {
            let mut parts = key.splitn(3, '\0').skip(1);
            Some(Resource { kind: parts.next()?.to_owned(), id: parts.next()?.to_owned() })
        })
        .collect())
}

/// Ends a lease in an open transaction.
pub(crate) fn delete_in(tx: &WriteTx, namespace: &str, id: &str) -> Result<(), StoreError> {
    LEASES.remove(tx, namespace, id)?;
    drop_resources(tx, namespace, id)
}

/// Records, in the transaction that makes a resource, that a lease keeps it. A lease that has ended keeps nothing.
pub(crate) fn add_in(tx: &WriteTx, namespace: &str, lease: &str, kind: &str, id: &str) -> Result<(), StoreError> {
    if LEASES.get(tx, namespace, lease)?.is_some() {
        RESOURCES.put(tx, namespace, &resource_key(lease, kind, id), &())?;
    }
    Ok(())
}

/// Takes a resource away in an open transaction.
pub(crate) fn remove_in(tx: &WriteTx, namespace: &str, lease: &str, kind: &str, id: &str) -> Result<(), StoreError> {
    RESOURCES.remove(tx, namespace, &resource_key(lease, kind, id))?;
    Ok(())
}

fn drop_resources(tx: &WriteTx, namespace: &str, lease: &str) -> Result<(), StoreError> {
    for (key, ()) in RESOURCES.list(tx, namespace, &format!("{lease}\0"))? {
        RESOURCES.remove(tx, namespace, &key)?;
    }
    Ok(())
}

fn resource_key(lease: &str, kind: &str, id: &str) -> String {
    format!("{lease}\0{kind}\0{id}")
}

impl Resource {
    /// A resource as a request names it: a type that is known, and an id.
    pub(crate) fn new(kind: String, id: String) -> Result<Self, LeaseError> {
        // Both words are in use for one thing.
        let kind = if kind == "image" { "images".to_owned() } else { kind };
        let known = matches!(kind.as_str(), "content" | "ingests" | "images")
            || kind.strip_prefix("snapshots/").is_some_and(|driver| !driver.is_empty() && !driver.contains('\0'));
        if !known {
            return Err(LeaseError::Unknown(kind));
        }
        if id.is_empty() || id.contains('\0') {
            return Err(LeaseError::Invalid(format!("lease resource id {id:?} is empty or holds a NUL")));
        }
        Ok(Self { kind, id })
    }
}

/// A name that no other call of this process gives, nor an earlier process: clock and counter.
pub(crate) fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let now = Time::now().to_proto();
    format!("{prefix}-{}-{:09}-{}", now.seconds, now.nanos, COUNTER.fetch_add(1, Ordering::Relaxed))
}
