//! What a request is, and whether a rule allows it. Pure: method and decoded path in, decision out.
//!
//! For "own" it is a list of what is allowed: whatever is added to the API is refused until somebody has thought about it.

use super::Allow;

/// What is to be done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes on as it is.
    Allowed,
    /// It ends here, because of this.
    Refused(&'static str),
    /// It goes on for a container that is the user's own; the segment of the path that names it.
    Container(String),
    /// The same, and the body says what is to be executed.
    ExecCreate(String),
    /// It goes on for an exec in a container that is the user's own.
    Exec(String),
    /// It goes on for a volume that is the user's own.
    Volume(String),
    /// It goes on, limited to what is the user's own.
    Listing,
    /// It goes on with a body that has been looked through.
    ContainerCreate,
    /// The same for a volume.
    VolumeCreate,
    /// It goes on for an image whose name is not here yet: one that others use must not become another one.
    Pull,
}

/// Decides. `segments` are those of the path without the API's version, decoded; `import` is whether the query asks for an import
/// and not for a pull.
pub fn decide(allow: Allow, method: &str, segments: &[&str], import: bool) -> Decision {
    match allow {
        Allow::All => Decision::Allowed,
        Allow::ReadOnly => read_only(method, segments),
        Allow::Own => own(method, segments, import),
    }
}

fn read_only(method: &str, segments: &[&str]) -> Decision {
    match (method, segments) {
        ("GET" | "HEAD", ["containers", .., "archive" | "export"]) => {
            Decision::Refused("the files of containers may hold secrets")
        }
        ("GET" | "HEAD", ["containers", .., "attach" | "ws"] | ["session" | "grpc", ..] | ["exec", _, "start"]) => {
            Decision::Refused("that takes part in what runs")
        }
        ("GET" | "HEAD", ["swarm", "unlockkey"]) => Decision::Refused("that is a secret"),
        ("GET" | "HEAD", _) => Decision::Allowed,
        _ => Decision::Refused("that changes something"),
    }
}

fn own(method: &str, segments: &[&str], import: bool) -> Decision {
    const SHARED: Decision = Decision::Refused("images are shared by all users");
    let name = |text: &str| text.to_owned();
    let reads = matches!(method, "GET" | "HEAD");
    match (method, segments) {
        (_, ["_ping" | "version" | "info"]) if reads => Decision::Allowed,
        ("POST", ["auth"]) => Decision::Allowed,
        ("GET", ["events"]) => Decision::Listing,

        ("GET", ["containers", "json"]) => Decision::Listing,
        ("POST", ["containers", "create"]) => Decision::ContainerCreate,
        (_, ["containers", "json" | "create" | "prune"]) => Decision::Refused("that is about everybody's containers"),
        ("DELETE", ["containers", id]) => Decision::Container(name(id)),
        ("GET", ["containers", id, "json" | "top" | "logs" | "stats" | "changes" | "export" | "archive"]) => {
            Decision::Container(name(id))
        }
        ("GET", ["containers", id, "attach", "ws"]) => Decision::Container(name(id)),
        ("HEAD" | "PUT", ["containers", id, "archive"]) => Decision::Container(name(id)),
        (
            "POST",
            [
                "containers",
                id,
                "start" | "stop" | "restart" | "kill" | "pause" | "unpause" | "rename" | "resize" | "attach" | "wait",
            ],
        ) => Decision::Container(name(id)),
        ("POST", ["containers", id, "exec"]) => Decision::ExecCreate(name(id)),
        ("POST", ["exec", id, "start" | "resize"]) | ("GET", ["exec", id, "json"]) => Decision::Exec(name(id)),

        ("POST", ["images", "create"]) if !import => Decision::Pull,
        ("POST", ["images", _, .., "push"]) => Decision::Allowed,
        (_, ["images", ..] | ["commit" | "build", ..]) if !reads => SHARED,
        ("GET", ["images", ..] | ["distribution", ..]) => Decision::Allowed,

        ("GET", ["networks"] | ["networks", _]) => Decision::Allowed,
        ("GET", ["volumes"]) => Decision::Listing,
        ("POST", ["volumes", "create"]) => Decision::VolumeCreate,
        ("GET" | "DELETE", ["volumes", id]) => Decision::Volume(name(id)),
        _ => Decision::Refused("that is not about one's own containers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(allow: Allow, method: &str, path: &str) -> Decision {
        let segments: Vec<&str> = path.strip_prefix('/').unwrap().split('/').collect();
        decide(allow, method, &segments, false)
    }

    #[test]
    fn read_only_looks_and_does_not_touch() {
        for (method, path, allowed) in [
            ("GET", "/containers/json", true),
            ("GET", "/containers/x/json", true),
            ("GET", "/containers/x/logs", true),
            ("GET", "/containers/x/stats", true),
            ("GET", "/images/a/b/json", true),
            ("HEAD", "/_ping", true),
            ("GET", "/events", true),
            ("GET", "/system/df", true),
            ("GET", "/containers/x/archive", false),
            ("HEAD", "/containers/x/archive", false),
            ("GET", "/containers/x/export", false),
            ("GET", "/containers/x/attach/ws", false),
            ("GET", "/swarm/unlockkey", false),
            ("POST", "/containers/x/attach", false),
            ("POST", "/containers/x/exec", false),
            ("POST", "/exec/x/start", false),
            ("POST", "/containers/create", false),
            ("DELETE", "/containers/x", false),
            ("PUT", "/containers/x/archive", false),
            ("POST", "/auth", false),
            ("POST", "/images/create", false),
        ] {
            let decision = of(Allow::ReadOnly, method, path);
            assert_eq!(decision == Decision::Allowed, allowed, "{method} {path}: {decision:?}");
        }
    }

    #[test]
    fn own_is_about_what_one_has() {
        use Decision as D;
        let x = || "x".to_owned();
        for (method, path, want) in [
            ("GET", "/_ping", D::Allowed),
            ("HEAD", "/_ping", D::Allowed),
            ("GET", "/containers/json", D::Listing),
            ("GET", "/events", D::Listing),
            ("POST", "/containers/create", D::ContainerCreate),
            ("GET", "/containers/x/json", D::Container(x())),
            ("POST", "/containers/x/start", D::Container(x())),
            ("DELETE", "/containers/x", D::Container(x())),
            ("PUT", "/containers/x/archive", D::Container(x())),
            ("POST", "/containers/x/exec", D::ExecCreate(x())),
            ("POST", "/exec/x/start", D::Exec(x())),
            ("GET", "/exec/x/json", D::Exec(x())),
            ("POST", "/images/create", D::Pull),
            ("POST", "/images/r:5/a/push", D::Allowed),
            ("GET", "/images/json", D::Allowed),
            ("GET", "/images/a/b/json", D::Allowed),
            ("GET", "/volumes", D::Listing),
            ("GET", "/volumes/x", D::Volume(x())),
            ("DELETE", "/volumes/x", D::Volume(x())),
            ("POST", "/volumes/create", D::VolumeCreate),
            ("GET", "/networks/bridge", D::Allowed),
        ] {
            assert_eq!(of(Allow::Own, method, path), want, "{method} {path}");
        }
        for (method, path) in [
            ("POST", "/containers/prune"),
            ("POST", "/containers/x/update"),
            ("POST", "/containers/x/checkpoints"),
            ("POST", "/images/load"),
            ("POST", "/images/a/tag"),
            ("POST", "/images/prune"),
            ("POST", "/images/push"),
            ("DELETE", "/images/a"),
            ("POST", "/commit"),
            ("POST", "/build"),
            ("POST", "/session"),
            ("POST", "/volumes/prune"),
            ("PUT", "/volumes/x"),
            ("POST", "/networks/create"),
            ("DELETE", "/networks/x"),
            ("GET", "/system/df"),
            ("GET", "/swarm"),
            ("GET", "/"),
        ] {
            let decision = of(Allow::Own, method, path);
            assert!(matches!(decision, D::Refused(_)), "{method} {path}: {decision:?}");
        }
        assert!(
            matches!(decide(Allow::Own, "POST", &["images", "create"], true), D::Refused(_)),
            "an import makes a name"
        );
    }

    proptest! {
        /// Nothing but what names a container of one's own reaches a container.
        #[test]
        fn no_way_around(method in "GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|get|X",
                         words in proptest::collection::vec("containers|exec|json|create|x|start|archive|attach|prune|images|\\PC{0,4}", 0..5)) {
            let segments: Vec<&str> = words.iter().map(String::as_str).collect();
            let decision = decide(Allow::Own, &method, &segments, false);
            if matches!(segments.first(), Some(&"containers" | &"exec")) {
                prop_assert_ne!(decision.clone(), Decision::Allowed);
            }
            if let Decision::Container(id) | Decision::ExecCreate(id) | Decision::Exec(id) = decision {
                prop_assert_eq!(id.as_str(), segments[1]);
            }
            if !matches!(method.as_str(), "GET" | "HEAD") {
                let refused = matches!(decide(Allow::ReadOnly, &method, &segments, false), Decision::Refused(_));
                prop_assert!(refused);
            }
        }
    }
}
