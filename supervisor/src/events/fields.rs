//! What filters can ask of an event: `namespace`, `topic`, and the text fields of its content, by containerd's names:
//! `event.container_id`, `event.runtime.name`, `event.labels."a.b"`.
//!
//! Contents are read as far as they are asked for and no further, by the field numbers of their messages. They come from
//! clients and shims: nothing in them is believed.

use proto::containerd::services::events::v1::Envelope;

/// Kind of event, a field's path, and the numbers that lead to it.
type Known = (&'static str, &'static [&'static str], &'static [u32]);

const FIELDS: &[Known] = &[
    ("ContainerCreate", &["id"], &[1]),
    ("ContainerCreate", &["image"], &[2]),
    ("ContainerCreate", &["runtime", "name"], &[3, 1]),
    ("ContainerUpdate", &["id"], &[1]),
    ("ContainerUpdate", &["image"], &[2]),
    ("ContainerUpdate", &["snapshot_key"], &[4]),
    ("ContainerDelete", &["id"], &[1]),
    ("ContentCreate", &["digest"], &[1]),
    ("ContentDelete", &["digest"], &[1]),
    ("ImageCreate", &["name"], &[1]),
    ("ImageUpdate", &["name"], &[1]),
    ("ImageDelete", &["name"], &[1]),
    ("NamespaceCreate", &["name"], &[1]),
    ("NamespaceUpdate", &["name"], &[1]),
    ("NamespaceDelete", &["name"], &[1]),
    ("SnapshotPrepare", &["key"], &[1]),
    ("SnapshotPrepare", &["parent"], &[2]),
    ("SnapshotPrepare", &["snapshotter"], &[5]),
    ("SnapshotCommit", &["key"], &[1]),
    ("SnapshotCommit", &["name"], &[2]),
    ("SnapshotCommit", &["snapshotter"], &[5]),
    ("SnapshotRemove", &["key"], &[1]),
    ("SnapshotRemove", &["snapshotter"], &[5]),
    ("TaskCreate", &["bundle"], &[2]),
    ("TaskCreate", &["io", "stdin"], &[4, 1]),
    ("TaskCreate", &["io", "stdout"], &[4, 2]),
    ("TaskCreate", &["io", "stderr"], &[4, 3]),
    ("TaskCreate", &["checkpoint"], &[5]),
    ("TaskDelete", &["id"], &[5]),
    ("TaskExit", &["id"], &[2]),
    ("TaskExecAdded", &["exec_id"], &[2]),
    ("TaskExecStarted", &["exec_id"], &[2]),
    ("TaskCheckpointed", &["checkpoint"], &[2]),
];

/// The number of the labels in those that have some.
const LABELS: &[(&str, u32)] =
    &[("ContainerUpdate", 3), ("ImageCreate", 2), ("ImageUpdate", 2), ("NamespaceCreate", 2), ("NamespaceUpdate", 2)];

/// The value of a field of an event; an empty one isn't there.
pub(crate) fn field(envelope: &Envelope, path: &[&str]) -> Option<String> {
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    match path {
        ["namespace"] => text(&envelope.namespace),
        ["topic"] => text(&envelope.topic),
        ["event", path @ ..] => {
            let any = envelope.event.as_ref()?;
            let name = any.type_url.rsplit('/').next()?;
            // Those about images are in a package of their own.
            let kind = ["containerd.events.", "containerd.services.images.v1."]
                .iter()
                .find_map(|package| name.strip_prefix(package))?;
            text(&content_field(kind, &any.value, path)?)
        }
        _ => None,
    }
}

fn content_field(kind: &str, content: &[u8], path: &[&str]) -> Option<String> {
    if let ["labels", name @ ..] = path {
        let number = LABELS.iter().find(|(known, _)| *known == kind)?.1;
        let (name, mut value) = (name.join("."), None);
        for entry in all(content, number) {
            // The last of several values stands, as everywhere in protobuf.
            if last(entry, 1).unwrap_or_default() == name.as_bytes() {
                value = Some(last(entry, 2).unwrap_or_default());
            }
        }
        return String::from_utf8(value?.to_vec()).ok();
    }
    // Every event about a task begins with its container.
    let of_task: &[u32] = &[1];
    let numbers = if path == ["container_id"] && kind.starts_with("Task") && kind != "TaskIO" {
        of_task
    } else {
        FIELDS.iter().find(|(known, at, _)| *known == kind && *at == path)?.2
    };
    let value = numbers.iter().try_fold(content, |message, number| last(message, *number))?;
    String::from_utf8(value.to_vec()).ok()
}

/// The last field of this number that is text, bytes or a message.
fn last(message: &[u8], number: u32) -> Option<&[u8]> {
    all(message, number).last()
}

/// Every field of this number that is text, bytes or a message. Ends at what isn't protobuf.
fn all(mut message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while !message.is_empty() {
            let key = varint(&mut message)?;
            let value: &[u8] = match key & 7 {
                0 => {
                    varint(&mut message)?;
                    continue;
                }
                1 => {
                    take(&mut message, 8)?;
                    continue;
                }
                2 => {
                    let length = usize::try_from(varint(&mut message)?).ok()?;
                    take(&mut message, length)?
                }
                5 => {
                    take(&mut message, 4)?;
                    continue;
                }
                _ => return None,
            };
            if key >> 3 == u64::from(number) {
                return Some(value);
            }
        }
        None
    })
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (value, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some(value)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::Filters;
    use proptest::prelude::*;
    use prost::{Message, Name};
    use proto::{
        containerd::events::{
            ContainerCreate, ContainerUpdate, SnapshotCommit, TaskCreate, TaskExit, TaskIo, TaskOom,
            container_create::Runtime,
        },
        containerd::services::images::v1::ImageCreate,
        typeurl,
    };

    fn accepts<M: Message + Name>(topic: &str, event: &M, filter: &str) -> bool {
        let envelope = Envelope {
            namespace: "berth".into(),
            topic: topic.into(),
            event: Some(typeurl::pack(event)),
            ..Default::default()
        };
        Filters::parse(&[filter.to_owned()]).unwrap().accept(|path| field(&envelope, path))
    }

    #[test]
    fn fields_of_a_task_event() {
        let exit = TaskExit { container_id: "web".into(), id: "exec-1".into(), ..Default::default() };
        for (filter, accepted) in [
            ("topic==\"/tasks/exit\"", true),
            ("topic==/tasks/exit", true),
            ("topic~=|^/tasks/|", true),
            ("topic~=/tasks/.*", true),
            ("namespace==berth,event.container_id==web", true),
            ("event.id==exec-1", true),
            ("event.container_id==other", false),
            ("namespace==moby", false),
            ("event.pid", false),
            ("event", false),
        ] {
            assert_eq!(accepts("/tasks/exit", &exit, filter), accepted, "{filter}");
        }
        let create =
            TaskCreate { io: Some(TaskIo { stdout: "/o".into(), ..Default::default() }), ..Default::default() };
        assert!(accepts("/tasks/create", &create, "event.io.stdout==/o,event.io.stdin!=x"));
        assert!(accepts("/tasks/oom", &TaskOom { container_id: "a".into() }, "event.container_id==a"));
    }

    #[test]
    fn fields_of_other_events() {
        let create = ContainerCreate {
            id: "web".into(),
            image: "busybox".into(),
            runtime: Some(Runtime { name: "io.containerd.berth.v1".into(), options: None }),
        };
        assert!(accepts(
            "/containers/create",
            &create,
            "event.runtime.name==io.containerd.berth.v1,event.image==busybox"
        ));
        let labels = [("a.b".to_owned(), "1".to_owned()), ("c".to_owned(), String::new())].into();
        let update = ContainerUpdate { id: "web".into(), labels, snapshot_key: "s".into(), ..Default::default() };
        assert!(accepts(
            "/containers/update",
            &update,
            "event.labels.\"a.b\"==1,event.labels.c!=x,event.snapshot_key==s"
        ));
        assert!(!accepts("/containers/update", &update, "event.labels.d"));
        let image = ImageCreate { name: "i".into(), labels: [("x".to_owned(), "y".to_owned())].into() };
        assert!(accepts("/images/create", &image, "event.labels.x==y"));
        let commit = SnapshotCommit { key: "k".into(), name: "n".into() };
        assert!(accepts("/snapshot/commit", &commit, "event.key==k,event.name==n"));
    }

    proptest! {
        #[test]
        fn garbage_is_no_danger(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for (kind, path, _) in FIELDS {
                content_field(kind, &bytes, path);
            }
            for (kind, _) in LABELS {
                content_field(kind, &bytes, &["labels", "a"]);
            }
        }
    }
}
