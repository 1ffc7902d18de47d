//! Which fields of a record an update changes.

use proto::{containerd::services::containers::v1::Container, id::ContainerId};

use super::ContainerError;

/// What changes when a request names no field: everything that may.
const ALL: [&str; 5] = ["labels", "spec", "extensions", "image", "snapshotkey"];

/// Changes `record` where `paths` says so; a field that never changes is an error, never ignored.
pub(super) fn apply(
    id: &ContainerId,
    record: &mut Container,
    new: &Container,
    paths: &[String],
) -> Result<(), ContainerError> {
    let refused = |path: &str| ContainerError::Path { id: id.clone(), path: path.to_owned() };
    let named: Vec<&str> = if paths.is_empty() {
        // Runtime and snapshotter are what the container was made with; asking for another one would silently fail.
        if new.runtime.is_some() && new.runtime.as_ref().map(|r| &r.name) != record.runtime.as_ref().map(|r| &r.name) {
            return Err(refused("runtime.name"));
        }
        if new.snapshotter != record.snapshotter {
            return Err(refused("snapshotter"));
        }
        ALL.to_vec()
    } else {
        paths.iter().map(String::as_str).collect()
    };
    for path in named {
        match path {
            "labels" => record.labels.clone_from(&new.labels),
            "spec" => record.spec.clone_from(&new.spec),
            "extensions" => record.extensions.clone_from(&new.extensions),
            "image" => record.image.clone_from(&new.image),
            "snapshotkey" | "snapshot_key" => record.snapshot_key.clone_from(&new.snapshot_key),
            path => {
                if let Some(key) = path.strip_prefix("labels.") {
                    let value = new.labels.get(key).cloned().unwrap_or_default();
                    record.labels.insert(key.to_owned(), value);
                } else if let Some(key) = path.strip_prefix("extensions.") {
                    match new.extensions.get(key) {
                        Some(value) => drop(record.extensions.insert(key.to_owned(), value.clone())),
                        None => drop(record.extensions.remove(key)),
                    }
                } else {
                    return Err(refused(path));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_mask_names_changes() {
        let id = ContainerId::new("a").unwrap();
        let old = Container {
            image: "old".into(),
            snapshot_key: "k".into(),
            labels: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        };
        let new =
            Container { image: "new".into(), labels: [("a".to_owned(), "9".to_owned())].into(), ..Default::default() };
        let apply = |paths: &[&str]| {
            let mut record = old.clone();
            let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
            apply(&id, &mut record, &new, &paths).map(|()| record)
        };
        let image = apply(&["image"]).unwrap();
        assert_eq!((image.image.as_str(), image.labels.len(), image.snapshot_key.as_str()), ("new", 2, "k"));
        let label = apply(&["labels.a", "labels.b"]).unwrap();
        assert_eq!((label.labels["a"].as_str(), label.labels["b"].as_str()), ("9", ""));
        assert_eq!(apply(&["labels"]).unwrap().labels.len(), 1);
        assert_eq!(apply(&[]).unwrap().snapshot_key, "");
        assert!(apply(&["id"]).is_err() && apply(&["runtime.name"]).is_err());
    }
}
