//! What labels say to the collector, in containerd's words.
//!
//! ```text
//! containerd.io/gc.root                          stays by itself
//! containerd.io/gc.expire                        a lease or an image ends at this time (RFC 3339)
//! containerd.io/gc.flat                          a lease keeps its resources, and not what these refer to
//! containerd.io/gc.ref.content[.NAME|/NAME]      keeps the blob of this digest
//! containerd.io/gc.ref.snapshot.DRIVER[./NAME]   keeps the snapshot of this key
//! containerd.io/gc.ref.image[./NAME]             keeps the image of this name
//! containerd.io/gc.bref.content, .snapshot.DRIVER, .image, .container
//!                                                the other way: is kept as long as the named thing is
//! ```

use super::mark::{Graph, Node};
use crate::store::{Labels, Time};

const ROOT: &str = "containerd.io/gc.root";
const FLAT: &str = "containerd.io/gc.flat";
const REFERENCE: &str = "containerd.io/gc.ref.";
const BACK_REFERENCE: &str = "containerd.io/gc.bref.";
/// A label that ends a lease or an image.
pub(super) const EXPIRE: &str = "containerd.io/gc.expire";

/// Whether something stays by itself.
pub(super) fn is_root(labels: &Labels) -> bool {
    labels.contains_key(ROOT)
}

/// Whether a lease keeps only what it names.
pub(super) fn is_flat(labels: &Labels) -> bool {
    labels.contains_key(FLAT)
}

/// When it ends, if it does. A time that can't be read keeps the thing: losing data is worse than keeping it.
pub(crate) fn expiry(labels: &Labels) -> Option<Time> {
    labels.get(EXPIRE)?.parse::<prost_types::Timestamp>().ok().map(Time::from_proto)
}

/// Enters into the graph what the labels of `node` say.
pub(crate) fn enter(graph: &mut Graph, node: &Node, labels: &Labels) {
    for (name, value) in labels {
        if let Some(other) = name.strip_prefix(REFERENCE).and_then(|kind| named(kind, value)) {
            graph.reference(node.clone(), other);
        } else if let Some(other) = name.strip_prefix(BACK_REFERENCE).and_then(|kind| named(kind, value)) {
            graph.reference(other, node.clone());
        }
    }
}

/// The thing of a kind (`content.l.0`, `snapshot.overlayfs/x`).
fn named(kind: &str, value: &str) -> Option<Node> {
    let value = value.to_owned();
    let rest_of = |word: &str| kind.strip_prefix(word).filter(|rest| rest.is_empty() || rest.starts_with(['.', '/']));
    if rest_of("content").is_some() {
        Some(Node::Content(value))
    } else if rest_of("image").is_some() {
        Some(Node::Image(value))
    } else if rest_of("container").is_some() {
        Some(Node::Container(value))
    } else {
        let driver = kind.strip_prefix("snapshot.")?.split(['.', '/']).next().filter(|driver| !driver.is_empty())?;
        Some(Node::Snapshot(driver.to_owned(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_labels() {
        let snapshot = |driver: &str| Some(Node::Snapshot(driver.into(), "v".into()));
        for (kind, wanted) in [
            ("content", Some(Node::Content("v".into()))),
            ("content.l.0", Some(Node::Content("v".into()))),
            ("content/config", Some(Node::Content("v".into()))),
            ("contents", None),
            ("snapshot.overlayfs", snapshot("overlayfs")),
            ("snapshot.btrfs/1", snapshot("btrfs")),
            ("snapshot.native.1", snapshot("native")),
            ("snapshot", None),
            ("snapshot.", None),
            ("image", Some(Node::Image("v".into()))),
            ("container", Some(Node::Container("v".into()))),
            ("", None),
        ] {
            assert_eq!(named(kind, "v"), wanted, "{kind}");
        }
    }

    #[test]
    fn times() {
        let labels = |text: &str| Labels::from([(EXPIRE.to_owned(), text.to_owned())]);
        assert!(expiry(&labels("2020-01-01T00:00:00Z")).unwrap() < Time::now());
        assert!(expiry(&labels("2999-01-01T00:00:00Z")).unwrap() > Time::now());
        assert!(expiry(&labels("2020-01-01T00:00:00.5+01:00")).is_some());
        assert_eq!(expiry(&labels("soon")), None);
        assert_eq!(expiry(&Labels::new()), None);
    }
}
