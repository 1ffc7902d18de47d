//! Images without a registry: list, inspect, history, tags, removal, save, load, import, prune.

use crate::{
    cases,
    run::{Run, encode, sh, waiting},
};
use integration_tests::images;
use serde_json::{Value, json};

cases!(
    list,
    inspect,
    history,
    tags,
    remove,
    in_use,
    save_and_load,
    import,
    prune,
    pull_refused,
    push_refused,
    distribution_refused
);

const TAR: &str = "Content-Type: application/x-tar\r\n";

fn list(run: &mut Run) {
    run.get(200, "/images/json");
    run.get(200, "/images/json?all=1&digests=1");
    run.post(201, "/images/busybox/tag?repo=local/other&tag=v1");
    let filters = [
        json!({"reference": ["busybox"]}),
        json!({"reference": ["local/*"]}),
        json!({"reference": ["*:v1"]}),
        json!({"reference": ["nothing"]}),
        json!({"label": ["origin"]}),
        json!({"label": ["origin=other"]}),
        json!({"label!": ["origin"]}),
        json!({"dangling": ["true"]}),
        json!({"dangling": ["false"]}),
        json!({"dangling": ["odd"]}),
        json!({"before": ["rich:1"]}),
        json!({"since": ["nowhere"]}),
        json!({"odd": ["x"]}),
    ];
    for filter in &filters {
        let answer = run.quietly("GET", &format!("/images/json?filters={}", encode(&filter.to_string())), None);
        let mut tags: Vec<String> = match serde_json::from_slice::<Value>(&answer.body).unwrap_or_default() {
            Value::Array(items) => items
                .iter()
                .map(|item| {
                    let mut tags: Vec<&str> =
                        item["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                    tags.sort_unstable();
                    tags.join(" ")
                })
                .collect(),
            _ => vec!["no list".into()],
        };
        tags.sort();
        run.note(&filter.to_string(), json!([answer.status, tags]));
    }
}

fn inspect(run: &mut Run) {
    let image = run.get(200, "/images/rich:1/json");
    run.get(200, "/images/busybox/json");
    run.get(200, "/images/busybox:latest/json");
    run.get(200, "/images/docker.io/library/busybox/json");
    let id = image["Id"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    for name in [id.clone(), id[..12].to_owned(), format!("sha256:{id}")] {
        let found = run.quietly("GET", &format!("/images/{name}/json"), None);
        run.note(&format!("by {} characters", name.len()), json!([found.status, found.json()["RepoTags"]]));
    }
    run.refused(404, "GET", "/images/nowhere/json", None, "No such image: nowhere");
    run.get(400, "/images/Bad%20Name/json");
    run.get(404, "/images/nowhere/history");
}

fn history(run: &mut Run) {
    run.get(200, "/images/rich:1/history");
}

fn tags(run: &mut Run) {
    run.post(201, "/images/busybox/tag?repo=again");
    run.post(201, "/images/busybox/tag?repo=again&tag=2");
    run.post(201, "/images/busybox/tag?repo=127.0.0.1:5000/team/app&tag=v1.0_x-y");
    run.get(200, "/images/again:2/json");
    run.post(404, "/images/nowhere/tag?repo=x");
    run.post(400, "/images/busybox/tag?repo=Bad");
    run.post(400, "/images/busybox/tag?repo=ok&tag=bad%20tag");
    run.post(400, "/images/busybox/tag");
    run.delete(200, "/images/again:2");
    run.delete(200, "/images/again");
    run.delete(404, "/images/again");
}

fn remove(run: &mut Run) {
    let archive =
        images::docker_archive("single:1", &images::busybox_rootfs(), json!({"Cmd": ["true"], "Labels": {"own": "1"}}));
    run.send(200, "POST", "/images/load?quiet=1", &archive, TAR);
    run.delete(200, "/images/single:1");
    run.refused(404, "DELETE", "/images/single:1", None, "No such image: single:1");
    run.refused(404, "DELETE", "/images/nowhere", None, "No such image: nowhere:latest");
    run.delete(400, "/images/Bad%20Name");
}

fn in_use(run: &mut Run) {
    let archive =
        images::docker_archive("used:1", &images::busybox_rootfs(), json!({"Cmd": ["true"], "Labels": {"own": "2"}}));
    run.send(200, "POST", "/images/load?quiet=1", &archive, TAR);
    let mut config = waiting();
    config["Image"] = json!("used:1");
    run.create("web", &config);
    run.refused(409, "DELETE", "/images/used:1", None, "unable to remove repository reference \"used:1\" (must force)");
    run.post(204, "/containers/web/start");
    run.delete(409, "/images/used:1");
    run.delete(200, "/images/used:1?force=1");
    run.inspect("web", &["/Config/Image"]);
    run.delete(204, "/containers/web?force=1");
}

fn save_and_load(run: &mut Run) {
    let saved = run.quietly("GET", "/images/busybox/get", None);
    run.note("saved", json!([saved.status, saved.header("content-type"), saved.body.len() > 100_000]));
    let names = |archive: &[u8]| -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    };
    let has = |names: &[String], name: &str| names.iter().any(|other| other == name);
    let found = names(&saved.body);
    run.note("its parts", json!([has(&found, "manifest.json"), has(&found, "repositories")]));
    let both = run.quietly("GET", "/images/get?names=busybox&names=rich:1", None);
    run.note("two", json!([both.status, has(&names(&both.body), "manifest.json")]));
    run.get(404, "/images/nowhere/get");
    run.get(404, "/images/get?names=nowhere");
    let again = run.quietly("GET", "/images/busybox/get", None).body;
    let loaded = run.api_send("/images/load?quiet=1", &again);
    run.note("loaded again", loaded);
    let loud =
        images::docker_archive("loaded:1", &images::busybox_rootfs(), json!({"Cmd": ["true"], "Labels": {"own": "3"}}));
    let answer = run.quietly("GET", "/_ping", None);
    run.note("ping", json!(answer.status));
    run.send(200, "POST", "/images/load?quiet=1", &loud, TAR);
    let bad = run.send(200, "POST", "/images/load?quiet=1", b"no tar, but long enough to be looked at", TAR);
    run.note("a bad archive is refused", json!(bad.status >= 400 || bad.text().contains("error")));
}

fn import(run: &mut Run) {
    let mut archive = tar::Builder::new(Vec::new());
    images::add_file(&mut archive, "file", b"imported\n", 0o644);
    let archive = archive.into_inner().unwrap();
    let path = format!("/images/create?fromSrc=-&repo=imported&tag=1&message=why&changes={}", encode("CMD [\"/x\"]"));
    let answer = run.quietly("GET", "/_ping", None);
    run.note("ping", json!(answer.status));
    run.send(200, "POST", &path, &archive, TAR);
    let image = run.quietly("GET", "/images/imported:1/json", None).json();
    run.note(
        "config",
        json!([image["Config"]["Cmd"], image["Comment"], image["RepoTags"], image["Architecture"], image["Os"]]),
    );
    run.get(200, "/images/imported:1/history");
    run.send(400, "POST", "/images/create?fromSrc=-&repo=Bad", &archive, TAR);
    run.send(400, "POST", "/images/create", b"", "");
}

fn prune(run: &mut Run) {
    run.runs("web", &sh("echo x > /x"));
    run.post(201, "/commit?container=web");
    run.delete(204, "/containers/web");
    run.post(400, "/images/prune?filters=%7B%22odd%22%3A%5B%22x%22%5D%7D");
    run.post(200, "/images/prune?filters=%7B%22until%22%3A%5B%2210h%22%5D%7D");
    let pruned = run.quietly("POST", "/images/prune", None).json();
    run.note("something was pruned", json!(pruned["ImagesDeleted"].as_array().is_some_and(|list| !list.is_empty())));
    run.post(200, "/images/prune");
}

fn pull_refused(run: &mut Run) {
    run.post(400, "/images/create?fromImage=Bad%20Name");
    run.post(400, "/images/create?fromImage=ok&tag=bad%20tag");
    run.post(400, "/images/create?fromImage=ok&tag=1&platform=a/b/c/d/e");
    let answer = run.quietly("POST", "/images/create?fromImage=127.0.0.1:1/nobody/there&tag=1", None);
    run.note(
        "a registry that isn't there",
        json!([answer.status, answer.text().contains("message") || answer.text().contains("error")]),
    );
}

fn push_refused(run: &mut Run) {
    let answer = run.quietly("POST", "/images/nowhere/push?tag=1", None);
    run.note("without credentials or image", json!(answer.status >= 400));
    let answer = run.send(200, "POST", "/images/127.0.0.1:1/nobody/push", b"", "X-Registry-Auth: e30=\r\n");
    run.note(
        "an image that isn't there",
        json!([answer.status, answer.text().contains("error") || answer.text().contains("message")]),
    );
}

fn distribution_refused(run: &mut Run) {
    run.get(400, "/distribution/Bad%20Name/json");
}
