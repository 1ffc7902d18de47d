//! Container records: what a container is to be (image, snapshot, spec, runtime). Nothing here runs anything; `tasks` does.
//!
//! ```text
//! create -> record -> update* -> delete
//! ```
//! A record is durable before its event goes out.

mod update;

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use proto::{
    containerd::{
        events::{ContainerCreate, ContainerDelete, ContainerUpdate, container_create},
        services::containers::v1::Container,
    },
    id::{ContainerId, IdError, NamespaceName},
    kind::ErrorKind,
};

use crate::{
    events::EventBus,
    failure::Failure,
    filters::{FilterError, Filters},
    gc::{Graph, Node, Roots, enter},
    namespaces::touch_in,
    store::{Database, Proto, StoreError, Table, WriteTx, labels_from},
};

/// The records by namespace and id; the collector reads them too, since a container keeps its snapshot.
pub(crate) const CONTAINERS: Table<Container, Proto> = Table::new("containers");

/// Longest label, key and value together (containerd's limit).
const LABEL_LIMIT: usize = 4096;

/// Why a container record can't be had or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// The id isn't one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// There is no such record.
    #[error("container {0}: not found")]
    NotFound(String),
    /// The id is taken.
    #[error("container {0}: already exists")]
    Exists(ContainerId),
    /// A record lacks something.
    #[error("container {id}: {what} is required")]
    Missing {
        /// The container.
        id: ContainerId,
        /// The field.
        what: &'static str,
    },
    /// A label that is too long.
    #[error("container {id}: label {key:?} is longer than {LABEL_LIMIT} bytes with its value")]
    Label {
        /// The container.
        id: ContainerId,
        /// The label's key, cut.
        key: String,
    },
    /// A field that doesn't exist or never changes.
    #[error("container {id}: field {path:?} can't be updated")]
    Path {
        /// The container.
        id: ContainerId,
        /// The field.
        path: String,
    },
    /// A filter that can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for ContainerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::Store(error) => error.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// A record, whose it is, and its id.
pub(crate) type Owned = ((NamespaceName, ContainerId), Container);

/// The container records of every namespace.
pub(crate) struct Containers {
    db: Database,
    events: Arc<EventBus>,
}

impl Containers {
    /// Records in `db`, changes told to `events`.
    pub(crate) fn new(db: Database, events: Arc<EventBus>) -> Self {
        Self { db, events }
    }

    /// One record.
    pub(crate) fn get(&self, namespace: &NamespaceName, id: &str) -> Result<Container, ContainerError> {
        let found = self.db.read(|tx| CONTAINERS.get(tx, namespace.as_str(), id))?;
        found.ok_or_else(|| ContainerError::NotFound(id.to_owned()))
    }

    /// The records that pass any of the filters, in the order of their ids.
    pub(crate) fn list(&self, namespace: &NamespaceName, filters: &[String]) -> Result<Vec<Container>, ContainerError> {
        let filters = Filters::parse(filters)?;
        let all = self.db.read(|tx| CONTAINERS.list(tx, namespace.as_str(), ""))?;
        Ok(all.into_iter().map(|(_, one)| one).filter(|one| filters.accept(|path| field(one, path))).collect())
    }

    /// Every record of every namespace.
    pub(crate) fn everywhere(&self) -> Result<Vec<Owned>, ContainerError> {
        let all = self.db.read(|tx| CONTAINERS.list_all(tx))?;
        let named = |(namespace, id, record): (String, String, Container)| {
            Some(((NamespaceName::new(namespace).ok()?, ContainerId::new(id).ok()?), record))
        };
        Ok(all.into_iter().filter_map(named).collect())
    }

    /// Keeps a new record; the times are ours.
    pub(crate) fn create(&self, namespace: &NamespaceName, new: Container) -> Result<Container, ContainerError> {
        self.create_with(namespace, new, |_| Ok(()))
    }

    /// Keeps a new record, and what `also` writes in the same transaction.
    pub(crate) fn create_with<E: From<ContainerError> + From<StoreError>>(
        &self,
        namespace: &NamespaceName,
        mut new: Container,
        also: impl FnOnce(&WriteTx) -> Result<(), E>,
    ) -> Result<Container, E> {
        let id = ContainerId::new(new.id.as_str()).map_err(ContainerError::from)?;
        check(&id, &mut new)?;
        let now = Some(SystemTime::now().into());
        (new.created_at, new.updated_at) = (now, now);
        self.db.write(|tx| match CONTAINERS.get(tx, namespace.as_str(), &new.id)? {
            Some(_) => Err(ContainerError::Exists(id.clone()).into()),
            None => {
                touch_in(tx, namespace.as_str())?;
                CONTAINERS.put(tx, namespace.as_str(), &new.id, &new)?;
                also(tx)
            }
        })?;
        proto::fault!("supervisor.container_create.recorded");
        tracing::info!(%namespace, %id, image = %new.image, "container recorded");
        let runtime = new.runtime.clone().map(|r| container_create::Runtime { name: r.name, options: r.options });
        let event = ContainerCreate { id: new.id.clone(), image: new.image.clone(), runtime };
        self.events.publish(namespace, "/containers/create", &event);
        Ok(new)
    }

    /// Changes the fields that `paths` names, or everything that may change if it names none.
    pub(crate) fn update(
        &self,
        namespace: &NamespaceName,
        new: Container,
        paths: &[String],
    ) -> Result<Container, ContainerError> {
        let id = ContainerId::new(new.id.as_str())?;
        let updated = self.db.write(|tx| {
            let old = CONTAINERS.get(tx, namespace.as_str(), &new.id)?;
            let mut record = old.ok_or_else(|| ContainerError::NotFound(new.id.clone()))?;
            update::apply(&id, &mut record, &new, paths)?;
            check(&id, &mut record)?;
            record.updated_at = Some(SystemTime::now().into());
            CONTAINERS.put(tx, namespace.as_str(), &record.id, &record)?;
            Ok::<_, ContainerError>(record)
        })?;
        proto::fault!("supervisor.container_update.recorded");
        let event = ContainerUpdate {
            id: updated.id.clone(),
            image: updated.image.clone(),
            labels: updated.labels.clone(),
            snapshot_key: updated.snapshot_key.clone(),
        };
        self.events.publish(namespace, "/containers/update", &event);
        Ok(updated)
    }

    /// Forgets a record.
    pub(crate) fn delete(&self, namespace: &NamespaceName, id: &str) -> Result<(), ContainerError> {
        match self.delete_with(namespace, id, |_| Ok::<_, ContainerError>(()))? {
            true => Ok(()),
            false => Err(ContainerError::NotFound(id.to_owned())),
        }
    }

    /// Forgets a record, if there is one, and does what `also` does in the same transaction. Returns whether there was one.
    pub(crate) fn delete_with<E: From<StoreError>>(
        &self,
        namespace: &NamespaceName,
        id: &str,
        also: impl FnOnce(&WriteTx) -> Result<(), E>,
    ) -> Result<bool, E> {
        let removed = self.db.write(|tx| {
            let removed = CONTAINERS.remove(tx, namespace.as_str(), id)?;
            also(tx)?;
            Ok::<_, E>(removed)
        })?;
        proto::fault!("supervisor.container_delete.unrecorded");
        if removed {
            tracing::info!(%namespace, %id, "container record deleted");
            self.events.publish(namespace, "/containers/delete", &ContainerDelete { id: id.to_owned() });
        }
        Ok(removed)
    }
}

/// Changes the specification of a record that is there; one that isn't JSON stays as it is.
pub(crate) fn change_spec<E: From<StoreError>>(
    tx: &WriteTx,
    namespace: &str,
    id: &str,
    change: impl FnOnce(&mut serde_json::Value),
) -> Result<(), E> {
    let Some(mut record) = CONTAINERS.get(tx, namespace, id)? else { return Ok(()) };
    if let Some(any) = &mut record.spec
        && let Ok(mut spec) = serde_json::from_slice(&any.value)
    {
        change(&mut spec);
        any.value = spec.to_string().into_bytes();
        CONTAINERS.put(tx, namespace, id, &record)?;
    }
    Ok(())
}

/// What container records keep from the collector: their snapshots, and what their labels refer to.
pub(crate) struct ContainerRoots;

impl Roots for ContainerRoots {
    fn enter(&self, tx: &WriteTx, namespace: &str, graph: &mut Graph) -> Result<(), StoreError> {
        for (id, record) in CONTAINERS.list(tx, namespace, "")? {
            let node = Node::Container(id);
            if !record.snapshot_key.is_empty() {
                graph.reference(node.clone(), Node::Snapshot(record.snapshotter, record.snapshot_key));
            }
            enter(graph, &node, &labels_from(record.labels));
            graph.root(node);
        }
        Ok(())
    }
}

/// What a record must have. Labels without value are none: that is how clients remove them.
fn check(id: &ContainerId, record: &mut Container) -> Result<(), ContainerError> {
    let missing = |what| ContainerError::Missing { id: id.clone(), what };
    record.labels.retain(|_, value| !value.is_empty());
    if let Some(key) = record.labels.iter().find(|(k, v)| k.len() + v.len() > LABEL_LIMIT).map(|(k, _)| k) {
        return Err(ContainerError::Label { id: id.clone(), key: key.chars().take(64).collect() });
    }
    if record.runtime.as_ref().is_none_or(|runtime| runtime.name.is_empty()) {
        return Err(missing("runtime name"));
    }
    if record.spec.is_none() {
        return Err(missing("spec"));
    }
    if !record.snapshot_key.is_empty() && record.snapshotter.is_empty() {
        return Err(missing("snapshotter of the snapshot key"));
    }
    Ok(())
}

/// The fields that filters can ask for, as in containerd.
fn field(record: &Container, path: &[&str]) -> Option<String> {
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let label = |labels: &HashMap<String, String>, rest: &[&str]| labels.get(&rest.join(".")).cloned();
    match path {
        ["id"] => text(&record.id),
        ["image"] => text(&record.image),
        ["runtime", "name"] => record.runtime.as_ref().and_then(|runtime| text(&runtime.name)),
        ["snapshotter"] => text(&record.snapshotter),
        ["snapshotkey" | "snapshot_key"] => text(&record.snapshot_key),
        ["labels", rest @ ..] => label(&record.labels, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::containerd::services::containers::v1::container;

    fn record(id: &str) -> Container {
        Container {
            id: id.into(),
            image: "busybox".into(),
            runtime: Some(container::Runtime { name: "io.containerd.berth.v1".into(), options: None }),
            spec: Some(prost_types::Any::default()),
            labels: [("tier".to_owned(), "web".to_owned())].into(),
            ..Default::default()
        }
    }

    fn containers() -> (tempfile::TempDir, Containers, NamespaceName) {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(&folder.path().join("db"), folder.path()).unwrap();
        (folder, Containers::new(db, Arc::new(EventBus::new())), NamespaceName::new("test").unwrap())
    }

    #[test]
    fn records_live_and_end() {
        let (_folder, containers, namespace) = containers();
        let made = containers.create(&namespace, record("a")).unwrap();
        assert!(made.created_at.is_some() && made.created_at == made.updated_at);
        assert_eq!(containers.get(&namespace, "a").unwrap(), made);
        let other = NamespaceName::new("other").unwrap();
        assert!(matches!(containers.get(&other, "a"), Err(ContainerError::NotFound(_))));
        assert!(matches!(containers.create(&namespace, record("a")), Err(ContainerError::Exists(_))));
        containers.delete(&namespace, "a").unwrap();
        assert!(matches!(containers.delete(&namespace, "a"), Err(ContainerError::NotFound(_))));
    }

    #[test]
    fn incomplete_records_are_refused() {
        let (_folder, containers, namespace) = containers();
        type Spoil = fn(&mut Container);
        let spoil: [(Spoil, &str); 5] = [
            (|c| c.id = "../x".into(), "container id"),
            (|c| c.runtime = None, "runtime name is required"),
            (|c| c.spec = None, "spec is required"),
            (|c| c.snapshot_key = "k".into(), "snapshotter"),
            (|c| drop(c.labels.insert("x".into(), "y".repeat(5000))), "longer than 4096"),
        ];
        for (change, words) in spoil {
            let mut bad = record("a");
            change(&mut bad);
            let error = containers.create(&namespace, bad).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn filters_choose() {
        let (_folder, containers, namespace) = containers();
        containers.create(&namespace, record("a")).unwrap();
        let mut other = record("b");
        other.labels.clear();
        containers.create(&namespace, other).unwrap();
        for (filter, ids) in [
            ("id==a", vec!["a"]),
            ("labels.tier==web", vec!["a"]),
            ("labels.\"tier\"", vec!["a"]),
            ("image==busybox", vec!["a", "b"]),
            ("runtime.name==io.containerd.berth.v1,id!=a", vec!["b"]),
            ("id==c", vec![]),
        ] {
            let found = containers.list(&namespace, &[filter.to_owned()]).unwrap();
            assert_eq!(found.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ids, "{filter}");
        }
    }
}
