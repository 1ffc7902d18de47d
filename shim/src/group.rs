//! Which containers share a shim: those of a pod, by the annotations that containerd's own shim goes by.

use std::{borrow::Cow, collections::HashMap, path::Path};

use proto::id::ContainerId;
use serde::Deserialize;

/// Annotations that name a group, the first one found counts.
const LABELS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

#[derive(Deserialize)]
struct Spec<'a> {
    #[serde(borrow, default)]
    annotations: HashMap<Cow<'a, str>, Cow<'a, str>>,
}

/// The group of a container by its config.json; `None` if it is on its own.
fn of_spec(text: &[u8]) -> Option<String> {
    // Most are on their own, and most of a spec is long: parsed only if it pays.
    if !LABELS.iter().any(|label| memchr::memmem::find(text, label.as_bytes()).is_some()) {
        return None;
    }
    let spec: Spec<'_> = serde_json::from_slice(text).ok()?;
    let group = LABELS.iter().find_map(|label| spec.annotations.get(*label))?;
    // It becomes a part of a path's hash, and stands where an id does.
    ContainerId::new(group.as_ref()).ok().map(String::from)
}

/// The name under which the shim of container `id` is found: its group's, or its own. A bundle whose spec can't be read says
/// so when the container is created.
pub(crate) fn name(bundle: &Path, id: &str) -> String {
    let text = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    of_spec(&text).unwrap_or_else(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_annotation_counts() {
        for (annotations, group) in [
            (r#"{"io.kubernetes.cri.sandbox-id":"pod"}"#, Some("pod")),
            (r#"{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}"#, Some("g")),
            (r#"{"io.containerd.runc.v2.group":"g\u0031"}"#, Some("g1")),
            (r#"{"other":"io.kubernetes.cri.sandbox-id"}"#, None),
            (r#"{"io.kubernetes.cri.sandbox-id":"../../x"}"#, None),
            (r#"{"io.kubernetes.cri.sandbox-id":""}"#, None),
            (r#"["io.kubernetes.cri.sandbox-id"]"#, None),
            ("{}", None),
        ] {
            let text = format!(r#"{{"ociVersion":"1.0.2","process":{{"args":["a"]}},"annotations":{annotations}}}"#);
            assert_eq!(of_spec(text.as_bytes()).as_deref(), group, "{annotations}");
        }
        assert_eq!(of_spec(b""), None);
    }

    #[test]
    fn without_a_spec_a_container_is_on_its_own() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(name(folder.path(), "web"), "web");
        let spec = r#"{"annotations":{"io.containerd.runc.v2.group":"pod"}}"#;
        std::fs::write(folder.path().join("config.json"), spec).expect("write");
        assert_eq!(name(folder.path(), "web"), "pod");
    }
}
