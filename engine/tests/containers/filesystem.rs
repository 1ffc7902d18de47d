//! What is made of a container's files: changes, export, commit, sizes.

use super::{sh, with_host};
use crate::stack::{Stack, eventually};
use serde_json::{Value, json};
use std::io::{Read, Write};

fn entries(archive: &[u8]) -> Vec<String> {
    let mut listing = std::process::Command::new("tar")
        .args(["-t", "-f", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = listing.stdin.take().unwrap();
    let archive = archive.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&archive));
    let mut names = String::new();
    listing.stdout.take().unwrap().read_to_string(&mut names).unwrap();
    let _ = writer.join();
    assert!(listing.wait().unwrap().success(), "{names}");
    names.lines().map(str::to_owned).collect()
}

fn paths(changes: &Value) -> Vec<String> {
    let kinds = ["C", "A", "D"];
    let line = |c: &Value| {
        let kind = kinds[c["Kind"].as_u64().unwrap() as usize];
        format!("{kind} {}", c["Path"].as_str().unwrap())
    };
    changes.as_array().unwrap().iter().map(line).collect()
}

const WRITES: &str =
    "echo new >/new; busybox rm /bin/seq; busybox mkdir /srv; echo x >/srv/x; busybox chmod 600 /etc/passwd";

#[test]
fn changes_and_export() {
    let Some(stack) = Stack::start() else { return };
    let id = stack.create("?name=src", &sh(WRITES));
    assert_eq!(stack.get("/containers/src/changes").json(), Value::Null);
    stack.start_container("src");
    assert_eq!(stack.wait("src", "not-running"), 0);
    let expected =
        ["C /bin", "D /bin/seq", "C /etc", "C /etc/passwd", "A /new", "A /srv", "A /srv/x"].map(str::to_owned);
    assert_eq!(paths(&stack.get("/containers/src/changes").json()), expected);
    assert_eq!(stack.get("/containers/nope/changes").message(), "No such container: nope");

    let exported = stack.get(&format!("/containers/{id}/export"));
    assert_eq!(exported.status, 200);
    let names = entries(&exported.body);
    for (name, there) in [("new", true), ("srv/x", true), ("bin/seq", false), ("bin/busybox", true), ("vol/", true)] {
        assert_eq!(names.contains(&name.to_owned()), there, "{name}: {names:?}");
    }
    // As an image it has the same files.
    let imported = stack.request("POST", "/images/create?fromSrc=-&repo=flat", "application/x-tar", &exported.body);
    assert_eq!(imported.status, 200, "{}", imported.text());
    let made = stack.post(
        "/containers/create?name=flat",
        &json!({"Image": "flat", "Cmd": ["sh", "-c", "cat /new && busybox stat -c %a /etc/passwd"]}),
    );
    assert_eq!(made.status, 201, "{}", made.text());
    stack.start_container("flat");
    assert_eq!(stack.wait("flat", "not-running"), 0);
    assert_eq!(stack.get("/containers/flat/logs?stdout=1").streams().0, "new\n600\n");

    // A client that goes away leaves nothing open.
    let (head, stream) = stack.begin("GET", "/containers/src/export");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    drop(stream);
    assert_eq!(stack.get("/containers/nope/export").status, 404);
}

#[test]
fn commit_of_a_running_container() {
    let Some(stack) = Stack::start() else { return };
    let config = with_host(sh(&format!("{WRITES}; sleep 1000")), json!({}));
    let id = stack.create("?name=src", &config);
    stack.start_container("src");
    eventually("it has written", || {
        let changes = stack.get("/containers/src/changes").text();
        if changes.contains("/etc/passwd") { Ok(()) } else { Err(changes) }
    });
    let changes = "&changes=ENV%20A=b&changes=ENTRYPOINT%20[%22cat%22]%0ACMD%20[%22/new%22]&changes=LABEL%20k=v";
    let target = format!("/commit?container=src&repo=made&tag=1&author=me&comment=note{changes}");
    let answer = stack.post(&target, &Value::Null);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let image_id = answer.json()["Id"].as_str().unwrap().to_owned();
    assert_eq!(stack.inspect("src")["State"]["Status"], "running");
    let image = stack.get("/images/made:1/json").json();
    assert_eq!((&image["Id"], &image["Author"], &image["Comment"]), (&json!(image_id), &json!("me"), &json!("note")));
    let parent = stack.get("/images/test/json").json();
    let layers = |image: &Value| image["RootFS"]["Layers"].as_array().unwrap().clone();
    assert_eq!(layers(&image)[..1], layers(&parent)[..]);
    assert_eq!(layers(&image).len(), 2);
    let config = &image["Config"];
    assert_eq!((&config["Entrypoint"], &config["Cmd"]), (&json!(["cat"]), &json!(["/new"])));
    assert_eq!(config["Env"], json!(["FROM=image", "A=b"]));
    assert_eq!((&config["Labels"]["k"], &config["Volumes"]), (&json!("v"), &json!({"/vol": {}})));
    let history = stack.get("/images/made:1/history").json();
    let newest = &history[0];
    assert!(newest["CreatedBy"].as_str().unwrap().starts_with("sh -c echo new"), "{history}");
    assert_eq!((&newest["Comment"], history.as_array().unwrap().len()), (&json!("note"), 2));

    let made = stack.post("/containers/create?name=of-made", &json!({"Image": "made:1"}));
    assert_eq!(made.status, 201, "{}", made.text());
    stack.start_container("of-made");
    assert_eq!(stack.wait("of-made", "not-running"), 0);
    assert_eq!(stack.get("/containers/of-made/logs?stdout=1").streams().0, "new\n");

    // Without a name, and without the freezer.
    let nameless = stack.post("/commit?container=src&pause=0", &json!({"Cmd": ["true"]}));
    assert_eq!(nameless.status, 201, "{}", nameless.text());
    let nameless = stack.get(&format!("/images/{}/json", nameless.json()["Id"].as_str().unwrap())).json();
    assert_eq!((&nameless["RepoTags"], &nameless["Config"]["Cmd"]), (&json!([]), &json!(["true"])));
    for (target, status, words) in [
        ("/commit?container=nope", 404, "No such container: nope"),
        ("/commit?container=src&changes=FROM%20x", 400, "from is not a valid change command"),
        ("/commit?container=src&repo=Bad", 400, "invalid reference format"),
    ] {
        let refused = stack.post(target, &Value::Null);
        assert_eq!(refused.status, status, "{target}: {}", refused.text());
        assert!(refused.message().starts_with(words), "{target}: {}", refused.text());
    }
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let events = stack.get(&format!("/events?since=0&until={}", now + 1)).text();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str, id: &str| -> Vec<String> {
        let ours = events.iter().filter(|e| e["Type"] == kind && e["Actor"]["ID"] == id);
        ours.map(|e| e["Action"].as_str().unwrap().to_owned()).collect()
    };
    let expected = ["create", "start", "pause", "unpause", "commit", "commit"];
    let container: Vec<_> = of("container", &id).into_iter().filter(|a| expected.contains(&a.as_str())).collect();
    assert_eq!(container, expected);
    assert_eq!(of("image", &image_id), ["tag"]);
}

#[test]
fn commit_of_a_container_that_wrote_nothing() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=src", &sh("true"));
    let commit = || {
        let answer = stack.post("/commit?container=src&repo=same", &Value::Null);
        assert_eq!(answer.status, 201, "{}", answer.text());
        let (image, parent) = (stack.get("/images/same/json").json(), stack.get("/images/test/json").json());
        assert_eq!(image["RootFS"], parent["RootFS"]);
        let history = stack.get("/images/same/history").json();
        assert_eq!((&history[0]["Size"], history.as_array().unwrap().len()), (&json!(0), 2));
    };
    commit();
    // What its mounts needed is not what it wrote.
    stack.start_container("src");
    assert_eq!(stack.wait("src", "not-running"), 0);
    assert_eq!(stack.get("/containers/src/changes").json(), Value::Null);
    commit();
}

/// Bytes on disk below a folder.
fn disk(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let sizes = entries.map(|entry| {
        let meta = entry.metadata().unwrap();
        meta.blocks() * 512 + if meta.is_dir() { disk(&entry.path()) } else { 0 }
    });
    sizes.sum()
}

#[test]
fn what_is_removed_is_free_again_and_all_figures_agree() {
    let Some(stack) = Stack::start() else { return };
    let supervisor = stack.data().join("supervisor");
    let on_disk = || disk(&supervisor.join("content/blobs")) + disk(&supervisor.join("snapshots"));
    let df = || stack.get("/system/df").json();
    let (empty, bare) = (df(), on_disk());
    assert_eq!((&empty["Containers"], &empty["BuildCache"]), (&json!([]), &json!([])));
    assert_eq!((&empty["Images"][0]["Containers"], &empty["Images"][0]["SharedSize"]), (&json!(0), &json!(0)));

    stack.create("?name=src", &sh("busybox dd if=/dev/urandom of=/big bs=1000000 count=3; echo x >/vol/y"));
    stack.start_container("src");
    assert_eq!(stack.wait("src", "not-running"), 0);
    let full = df();
    let written = full["Containers"][0]["SizeRw"].as_i64().unwrap();
    let root = full["Containers"][0]["SizeRootFs"].as_i64().unwrap();
    assert!((3_000_000..3_200_000).contains(&written), "{full}");
    assert_eq!(root - written, full["Images"][0]["Size"].as_i64().unwrap());
    assert_eq!(full["Images"][0]["Containers"], 1);
    assert_eq!(full["Volumes"][0]["UsageData"]["RefCount"], 1);
    assert!(full["Volumes"][0]["UsageData"]["Size"].as_i64().unwrap() > 0, "{full}");
    let listed = stack.get("/containers/json?all=1&size=1").json();
    let inspected = stack.get("/containers/src/json?size=1").json();
    for one in [&listed[0], &inspected] {
        assert_eq!((&one["SizeRw"], &one["SizeRootFs"]), (&json!(written), &json!(root)));
    }
    assert_eq!(stack.get("/containers/json?all=1").json()[0]["SizeRw"], Value::Null);

    let made = stack.post("/commit?container=src&repo=made", &Value::Null);
    assert_eq!(made.status, 201, "{}", made.text());
    let committed = df();
    let grown = committed["LayersSize"].as_i64().unwrap() - full["LayersSize"].as_i64().unwrap();
    // The layer, and the blob it can be pushed from.
    assert!((6_000_000..6_400_000).contains(&grown), "{grown}");
    let images = committed["Images"].as_array().unwrap();
    let made = images.iter().find(|image| image["RepoTags"][0] == "made:latest").unwrap();
    // Without the folders that were made for its mounts.
    let own = made["Size"].as_i64().unwrap() - made["SharedSize"].as_i64().unwrap();
    assert!((written - 64_000..=written).contains(&own), "{own} of {written}");

    let pruned = stack.post("/containers/prune", &Value::Null).json();
    assert_eq!(pruned["SpaceReclaimed"], json!(written));
    // The name goes, the image becomes one without a name.
    let id = made["Id"].as_str().unwrap();
    assert_eq!(stack.post("/commit?container=src", &Value::Null).status, 404);
    let kept = stack.post("/images/prune", &Value::Null).json();
    assert_eq!((&kept["ImagesDeleted"], &kept["SpaceReclaimed"]), (&Value::Null, &json!(0)));
    let spared =
        stack.post("/images/prune?filters={%22dangling%22:[%22false%22],%22label%22:[%22none%22]}", &Value::Null);
    assert_eq!(spared.json()["SpaceReclaimed"], 0);
    assert_eq!(stack.post("/images/made/tag?repo=test&tag=latest", &Value::Null).status, 201);
    assert_eq!(stack.delete("/images/made").status, 200);
    // The image that was called `test` has lost its name to the other one, which is larger by what is freed in the end.
    let pruned = stack.post("/images/prune?filters={%22dangling%22:{%22false%22:true}}", &Value::Null).json();
    let deleted = pruned["ImagesDeleted"].as_array().unwrap();
    assert!(deleted.iter().any(|line| line["Deleted"] == id), "{pruned}");
    assert_eq!(pruned["SpaceReclaimed"], committed["LayersSize"]);
    assert_eq!(df()["LayersSize"], 0);
    assert!(on_disk() < bare, "{} of {bare}", on_disk());
    let volumes = stack.post("/volumes/prune", &Value::Null).json();
    assert_eq!(volumes["VolumesDeleted"].as_array().unwrap().len(), 1, "{volumes}");
    assert_eq!(df()["Volumes"], json!([]));
    assert_eq!(stack.get("/system/df?type=bad").message(), "unknown object type: bad");
    let typed = stack.get("/system/df?type=volume").json();
    assert_eq!((&typed["Images"], &typed["Volumes"]), (&Value::Null, &json!([])));
}
