//! One engine, clients of all versions from 1.24 to 1.51.

use super::engine;
use serde_json::{Value, json};

/// Version, request, pointer into the answer, and whether it is there.
const SHAPES: &[(u16, &str, &str, bool)] = &[
    (24, "/images/test/json", "/VirtualSize", true),
    (43, "/images/test/json", "/VirtualSize", true),
    (44, "/images/test/json", "/VirtualSize", false),
    (44, "/images/test/json", "/Container", true),
    (51, "/images/test/json", "/ContainerConfig", true),
    (45, "/images/test/json", "/Container", false),
    (47, "/images/test/json", "/Descriptor", false),
    (48, "/images/test/json", "/Descriptor", true),
    (43, "/images/json", "/0/VirtualSize", true),
    (44, "/images/json", "/0/VirtualSize", false),
    (46, "/images/json?manifests=1", "/0/Manifests", false),
    (47, "/images/json?manifests=1", "/0/Manifests", true),
    (24, "/system/df?type=image", "/Containers/0", true),
    (41, "/system/df?type=image", "/Containers/0", true),
    (42, "/system/df?type=image", "/Containers/0", false),
    (41, "/system/df", "/BuilderSize", true),
    (42, "/system/df", "/BuilderSize", false),
    (43, "/system/df", "/Images/0/VirtualSize", true),
    (44, "/system/df", "/Images/0/VirtualSize", false),
    (24, "/info", "/ExecutionDriver", true),
    (25, "/info", "/ExecutionDriver", false),
    (41, "/info", "/KernelMemory", true),
    (42, "/info", "/KernelMemory", false),
    (46, "/info", "/RegistryConfig/AllowNondistributableArtifactsCIDRs", true),
    (47, "/info", "/RegistryConfig/AllowNondistributableArtifactsCIDRs", false),
    (48, "/info", "/ContainerdCommit/Expected", true),
    (49, "/info", "/ContainerdCommit/Expected", false),
    (49, "/info", "/BridgeNfIptables", true),
    (50, "/info", "/BridgeNfIptables", false),
    (47, "/containers/web/json", "/NetworkSettings/Networks/bridge/GwPriority", false),
    (48, "/containers/web/json", "/NetworkSettings/Networks/bridge/GwPriority", true),
    (51, "/containers/web/json", "/NetworkSettings/IPAddress", true),
    (27, "/networks?filters={\"name\":[\"bridge\"]}", "/0/Containers/{id}", true),
    (28, "/networks?filters={\"name\":[\"bridge\"]}", "/0/Containers/{id}", false),
];

#[test]
fn each_version_has_its_shapes() {
    let stack = engine!();
    let id = stack.create("?name=web", &json!({"Cmd": ["sleep", "1000"]}));
    stack.start_container(&id);
    let encode = |target: &str| {
        target.replace('"', "%22").replace('{', "%7B").replace('}', "%7D").replace('[', "%5B").replace(']', "%5D")
    };
    for (minor, target, pointer, there) in SHAPES {
        let answer = stack.get(&format!("/v1.{minor}{}", encode(target)));
        assert_eq!(answer.status, 200, "1.{minor} {target}: {}", answer.text());
        let found = answer.json().pointer(&pointer.replace("{id}", &id)).is_some_and(|value| !value.is_null());
        assert_eq!(found, *there, "1.{minor} {target} {pointer}: {}", answer.text());
    }
    // Every version is served, and without one it is the newest.
    for minor in 24..=51 {
        for path in ["_ping", "version", "info", "containers/json", "images/json", "networks", "volumes", "system/df"] {
            let answer = stack.get(&format!("/v1.{minor}/{path}"));
            assert_eq!(answer.status, 200, "1.{minor} {path}: {}", answer.text());
            for header in ["api-version: 1.51", "docker-experimental: false", "ostype: linux", "server: berth/"] {
                assert!(answer.head.to_lowercase().contains(header), "1.{minor} {path}: {}", answer.head);
            }
        }
    }
    let keys = |value: Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(stack.get("/info").json()), keys(stack.get("/v1.51/info").json()));
    assert_eq!(keys(stack.get("/images/test/json").json()), keys(stack.get("/v1.51/images/test/json").json()));

    // What older requests mean.
    let created = |minor: u16, host: Value| {
        let body = json!({"Image": "test", "Cmd": ["true"], "HostConfig": host});
        let answer = stack.post(&format!("/v1.{minor}/containers/create"), &body);
        assert_eq!(answer.status, 201, "1.{minor}: {}", answer.text());
        stack.inspect(answer.json()["Id"].as_str().unwrap())["HostConfig"].clone()
    };
    assert_eq!(created(24, json!({"AutoRemove": true}))["AutoRemove"], false);
    assert_eq!(created(25, json!({"AutoRemove": true}))["AutoRemove"], true);
    assert_eq!(created(39, json!({}))["IpcMode"], "shareable");
    assert_eq!(created(40, json!({}))["IpcMode"], "private");
    let subpath = json!({"Image": "test", "HostConfig": {"Mounts": [
        {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"Subpath": "a"}}]}});
    let refused = stack.post("/v1.44/containers/create", &subpath);
    assert_eq!((refused.status, refused.message().as_str()), (400, "VolumeOptions.Subpath needs API v1.45 or newer"));
    // A condition is something of 1.30: before, a wait ends with the process whatever it asks for.
    assert_eq!(stack.post("/containers/web/kill", &Value::Null).status, 204);
    assert_eq!(stack.wait("web", "not-running"), 137);
    let ended = stack.post("/v1.29/containers/web/wait?condition=removed", &Value::Null);
    assert_eq!(ended.json()["StatusCode"], 137);
}

#[test]
fn untagged_images_were_called_none() {
    let stack = engine!();
    let id = stack.create("?name=old", &json!({"Cmd": ["true"]}));
    for _ in 0..2 {
        let commit = stack.post(
            &format!("/commit?container={id}&repo=again&comment={}", std::process::id()),
            &json!({"Labels": {"n": "1"}}),
        );
        assert_eq!(commit.status, 201, "{}", commit.text());
        let other = stack.post(&format!("/commit?container={id}&repo=again"), &json!({"Labels": {"n": "2"}}));
        assert_eq!(other.status, 201, "{}", other.text());
    }
    for (minor, tags, digests) in [
        (42, json!(["<none>:<none>"]), json!(["<none>@<none>"])),
        (43, json!([]), json!([])),
        (51, json!([]), json!([])),
    ] {
        let list =
            stack.get(&format!("/v1.{minor}/images/json?filters=%7B%22dangling%22%3A%5B%22true%22%5D%7D")).json();
        assert_eq!((&list[0]["RepoTags"], &list[0]["RepoDigests"]), (&tags, &digests), "1.{minor}: {list}");
    }
}

#[test]
fn versions_out_of_range_and_bare_requests() {
    let stack = engine!();
    for (target, status, words) in [
        ("/v1.52/info", 400, "client version 1.52 is too new. Maximum supported API version is 1.51"),
        ("/v2/info", 400, "client version 2 is too new. Maximum supported API version is 1.51"),
        (
            "/v1.23/info",
            400,
            "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        ),
        ("/nonsense", 404, "page not found"),
        ("/v1.40/nonsense", 404, "page not found"),
        ("/v1.40", 404, "page not found"),
    ] {
        let answer = stack.get(target);
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
        assert!(answer.text().contains(words), "{target}: {}", answer.text());
        // Clients before 1.24 know errors as text.
        assert_eq!(answer.head.contains("application/json"), !target.contains("1.23"), "{}", answer.head);
        assert!(answer.head.to_lowercase().contains("api-version: 1.51"), "{}", answer.head);
    }
    let patch = stack.request("PATCH", "/info", "", b"");
    assert_eq!((patch.status, patch.message().as_str()), (404, "page not found"));
    for target in ["/containers/json", "/whatever", "/v1.30/images/json"] {
        let answer = stack.request("OPTIONS", target, "", b"");
        assert_eq!((answer.status, answer.body.len()), (200, 0));
    }
    let ping = stack.get("/_ping");
    for header in ["builder-version: ", "swarm: inactive", "cache-control: no-cache", "pragma: no-cache"] {
        assert!(ping.head.to_lowercase().contains(header), "{}", ping.head);
    }
    assert_eq!(ping.text(), "OK");
    assert_eq!(stack.request("HEAD", "/_ping", "", b"").body.len(), 0);
}

#[test]
fn swarm_and_plugins_are_told_about_as_outside_of_one() {
    let stack = engine!();
    let manager = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
    let body = json!({});
    for (method, path, status, message) in [
        ("GET", "/swarm", 503, manager),
        ("POST", "/swarm/init", 501, "swarm mode is not part of berth"),
        ("POST", "/swarm/join", 501, "swarm mode is not part of berth"),
        ("POST", "/swarm/leave", 503, "This node is not part of a swarm"),
        ("POST", "/swarm/update?version=1", 503, manager),
        ("GET", "/swarm/unlockkey", 503, manager),
        ("POST", "/swarm/unlock", 503, manager),
        ("GET", "/nodes", 503, manager),
        ("GET", "/nodes/x", 503, manager),
        ("DELETE", "/nodes/x", 503, manager),
        ("POST", "/nodes/x/update?version=1", 503, manager),
        ("GET", "/services", 503, manager),
        ("POST", "/services/create", 503, manager),
        ("GET", "/services/x", 503, manager),
        ("DELETE", "/services/x", 503, manager),
        ("POST", "/services/x/update?version=1", 503, manager),
        ("GET", "/services/x/logs?stdout=1", 503, manager),
        ("GET", "/tasks", 503, manager),
        ("GET", "/tasks/x", 503, manager),
        ("GET", "/tasks/x/logs?stdout=1", 503, manager),
        ("GET", "/secrets", 503, manager),
        ("POST", "/secrets/create", 503, manager),
        ("GET", "/secrets/x", 503, manager),
        ("DELETE", "/secrets/x", 503, manager),
        ("POST", "/secrets/x/update?version=1", 503, manager),
        ("GET", "/configs", 503, manager),
        ("POST", "/configs/create", 503, manager),
        ("GET", "/configs/x", 503, manager),
        ("DELETE", "/configs/x", 503, manager),
        ("POST", "/configs/x/update?version=1", 503, manager),
        ("PUT", "/volumes/x", 503, "volume update only valid for cluster volumes, but swarm is unavailable"),
        ("GET", "/plugins/a/b/json", 404, "plugin \"a/b\" not found"),
        ("DELETE", "/plugins/x", 404, "plugin \"x\" not found"),
        ("POST", "/plugins/x/enable", 404, "plugin \"x\" not found"),
        ("POST", "/plugins/x/disable", 404, "plugin \"x\" not found"),
        ("POST", "/plugins/x/push", 404, "plugin \"x\" not found"),
        ("POST", "/plugins/x/set", 404, "plugin \"x\" not found"),
        ("POST", "/plugins/x/upgrade", 404, "plugin \"x\" not found"),
        ("GET", "/plugins/privileges?remote=x", 501, "plugins are not part of berth"),
        ("POST", "/plugins/pull?remote=x", 501, "plugins are not part of berth"),
        ("POST", "/plugins/create?name=x", 501, "plugins are not part of berth"),
        ("GET", "/containers/x/checkpoints", 501, "checkpoints are not implemented in berth"),
        ("GET", "/debug/pprof/heap", 501, "berth is no Go program"),
    ] {
        let answer = if method == "POST" { stack.post(path, &body) } else { stack.request(method, path, "", b"") };
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert!(answer.message().starts_with(message), "{method} {path}: {}", answer.text());
    }
    assert_eq!(stack.get("/plugins").json(), json!([]));
    assert_eq!(stack.get("/plugins?filters=%7B%22x%22%3A%5B%22y%22%5D%7D").status, 400);
}
