//! Bad input: one line that names the object and the cause, the right status, nothing left behind.

use integration_tests::{Stack, images};
use serde_json::json;
use std::{fs, path::Path};

#[track_caller]
fn one_line(text: &str) {
    assert_eq!(text.trim_end().lines().count(), 1, "more than one line: {text}");
}

#[test]
fn names_that_do_not_exist() {
    let stack = Stack::start();
    let api = stack.api();
    let message = |path: &str| api.post(path, None).expect(404).json()["message"].as_str().unwrap().to_owned();
    assert_eq!(message("/containers/nobody/start"), "No such container: nobody");
    assert_eq!(message("/exec/nothing/resize?h=1&w=1"), "No such exec instance: nothing");
    let image = api.post("/containers/create", Some(&json!({ "Image": "absent:1" }))).expect(404);
    assert_eq!(image.json()["message"], "No such image: absent:1");
    let outcome = stack.berth(["run", "--rm", "127.0.0.1:1/absent:1"]).expect_code(125);
    assert!(outcome.stderr().contains("127.0.0.1:1"), "{outcome}");
    let outcome = stack.berth(["logs", "nobody"]).expect_code(1);
    one_line(&outcome.stderr());
    let outcome = stack.berth(["rmi", "absent:1"]).expect_code(1);
    one_line(&outcome.stderr());
}

#[test]
fn requests_that_are_wrong() {
    let stack = Stack::with_busybox();
    let api = stack.api();
    stack.berth(["run", "--rm", "UPPER"]).expect_code(125).expect_error("invalid reference format");
    let raw =
        api.open("POST", "/containers/create", None, "Content-Type: application/json\r\nX: y\r\n").unwrap().finish();
    assert_eq!(raw.status, 400, "{}", raw.text());
    api.post("/containers/create?name=bad/name", Some(&json!({ "Image": "busybox" }))).expect(400);
    api.post("/containers/create", Some(&json!({ "Image": "busybox", "HostConfig": { "Memory": 1 } }))).expect(400);
    api.post(
        "/containers/create",
        Some(&json!({ "Image": "busybox", "HostConfig": { "NetworkMode": "no-such-net" } })),
    );
    api.get(
        "/containers/json?filters={\"nonsense\":[\"x\"]}"
            .replace('"', "%22")
            .replace('{', "%7B")
            .replace('}', "%7D")
            .as_str(),
    )
    .expect(400);
    api.post("/containers/create?name=one", Some(&json!({ "Image": "busybox", "Cmd": ["sleep", "100"] }))).expect(201);
    let taken = api.post("/containers/create?name=one", Some(&json!({ "Image": "busybox" }))).expect(409).json();
    assert!(taken["message"].as_str().unwrap().contains("is already in use by container"), "{taken}");
    api.post("/containers/one/kill", None).expect(409);
    api.delete("/containers/one").expect(204);
}

#[test]
fn damaged_archives() {
    let stack = Stack::start();
    let good = images::docker_archive("damaged:1", &images::busybox_rootfs(), json!({}));
    let write = |name: &str, bytes: &[u8]| {
        let path = stack.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let truncated = write("truncated.tar", &good[..good.len() / 2]);
    let mut bytes = good.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    let corrupt = write("corrupt.tar", &bytes);
    let nonsense = write("nonsense.tar", b"this is no archive");
    for path in [truncated, corrupt, nonsense] {
        let outcome = stack.berth(["load", "-q", "-i", &path]).expect_code(1);
        one_line(&outcome.stderr());
        assert_eq!(stack.berth(["images", "-q"]).success().stdout(), "", "a damaged archive left an image");
    }
    no_content(&stack);
}

#[track_caller]
fn no_content(stack: &Stack) {
    integration_tests::eventually("no blob and no snapshot is left", || {
        let content = stack.data_root().join("supervisor/content");
        let count = |folder: &Path| fs::read_dir(folder).map(|entries| entries.count()).unwrap_or(0);
        (count(&content.join("blobs/sha256")) + count(&content.join("ingest")) == 0).then_some(())
    });
}

#[test]
fn full_disk_while_unpacking() {
    let stack = Stack::start();
    stack.stop_engine();
    stack.stop_supervisor();
    // A data root of 3 MiB: enough for the daemons' own files, not for an image with 12 MiB.
    let data = stack.data_root();
    integration_tests::run("mount", ["-t", "tmpfs", "-o", "size=6m", "none", data.to_str().unwrap()]).success();
    stack.start_supervisor();
    stack.start_engine();
    let mut layer = tar::Builder::new(Vec::new());
    images::add_file(&mut layer, "big", &vec![7; 12 << 20], 0o644);
    let archive = stack.path().join("big.tar");
    fs::write(&archive, images::docker_archive("big:1", &layer.into_inner().unwrap(), json!({}))).unwrap();
    let outcome = stack.berth(["load", "-q", "-i", archive.to_str().unwrap()]).expect_code(1);
    one_line(&outcome.stderr());
    assert!(outcome.stderr().to_lowercase().contains("no space left"), "{outcome}");
    assert_eq!(stack.berth(["images", "-q"]).success().stdout(), "");
    no_content(&stack);
    stack.stop_engine();
    stack.stop_supervisor();
    integration_tests::run("umount", [data.to_str().unwrap()]).success();
}

#[test]
fn socket_without_permission() {
    let stack = Stack::start();
    let socket = format!("unix://{}", stack.engine_socket().display());
    // Berth's client as nobody: the folder is open to it, the socket isn't.
    for folder in [stack.path().to_owned(), stack.run_root()] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(folder, mode).unwrap();
    }
    let copy = stack.path().join("berth-copy");
    testing::executable(&copy, fs::read(integration_tests::programs::program("berth")).unwrap());
    let mut nobody = std::process::Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", copy.to_str().unwrap(), "-H", &socket, "ps"]);
    // Root's folder is closed to nobody; its client config isn't what this is about.
    let outcome =
        integration_tests::run_with(nobody.env("HOME", "/nonexistent"), b"", std::time::Duration::from_secs(20));
    assert_eq!(outcome.code(), 1, "{outcome}");
    one_line(&outcome.stderr());
    assert!(outcome.stderr().contains("permission denied") && outcome.stderr().contains("engine.sock"), "{outcome}");
    let nobody = stack.berth(["-H", "unix:///nonexistent/engine.sock", "ps"]).expect_code(1);
    one_line(&nobody.stderr());
    assert!(nobody.stderr().contains("/nonexistent/engine.sock"), "{nobody}");
}
