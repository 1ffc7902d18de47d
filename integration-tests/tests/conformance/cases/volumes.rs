//! Volumes.

use crate::{
    cases,
    run::{Run, encode, waiting, with_host},
};
use serde_json::json;

cases!(life, refusals, filters, prune, in_use, options, anonymous);

fn life(run: &mut Run) {
    run.get(200, "/volumes");
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "data", "Labels": {"a": "b"}})));
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "data"})));
    run.get(200, "/volumes/data");
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "plain"})));
    run.get(200, "/volumes/plain");
    run.get(200, "/volumes");
    run.delete(204, "/volumes/data");
    run.refused(404, "DELETE", "/volumes/data", None, "no such volume");
    run.delete(204, "/volumes/data?force=1");
    run.refused(404, "GET", "/volumes/data", None, "get data: no such volume");
}

fn refusals(run: &mut Run) {
    run.ask(400, "POST", "/volumes/create", Some(&json!({"Name": "bad name"})));
    run.ask(400, "POST", "/volumes/create", Some(&json!({"Name": "x"})));
    run.ask(400, "POST", "/volumes/create", Some(&json!({"Name": "../up"})));
    run.ask(404, "POST", "/volumes/create", Some(&json!({"Name": "driven", "Driver": "nowhere"})));
    run.ask(400, "POST", "/volumes/create", Some(&json!({"Name": "odd", "DriverOpts": {"odd": "1"}})));
    run.send(400, "POST", "/volumes/create", b"{", "Content-Type: application/json\r\n");
    run.send(400, "POST", "/volumes/create", b"{\"Name\": 1}", "Content-Type: application/json\r\n");
    run.send(400, "POST", "/volumes/create", b"{}", "Content-Type: text/plain\r\n");
    run.get(400, "/volumes?filters=%7B%22odd%22%3A%5B%22x%22%5D%7D");
    run.get(400, "/volumes?filters=%7B");
}

fn filters(run: &mut Run) {
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "one", "Labels": {"a": "1"}})));
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "two"})));
    run.create("web", &with_host(json!({"Image": "busybox"}), json!({"Binds": ["two:/v"]})));
    for filter in [
        json!({"name": ["on"]}),
        json!({"label": ["a"]}),
        json!({"label": ["a=2"]}),
        json!({"dangling": ["true"]}),
        json!({"dangling": ["0"]}),
        json!({"driver": ["local"]}),
        json!({"driver": ["odd"]}),
        json!({"dangling": ["odd"]}),
    ] {
        let answer = run.quietly("GET", &format!("/volumes?filters={}", encode(&filter.to_string())), None);
        let listed: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let mut names: Vec<String> =
            listed["Volumes"].as_array().into_iter().flatten().map(|v| v["Name"].to_string()).collect();
        names.sort();
        run.note(&filter.to_string(), json!([answer.status, names]));
    }
}

fn prune(run: &mut Run) {
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "gone"})));
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "kept", "Labels": {"keep": ""}})));
    let mounted = json!({"Name": "mounted", "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}});
    run.ask(201, "POST", "/volumes/create", Some(&mounted));
    run.create("web", &with_host(json!({"Image": "busybox"}), json!({"Binds": ["used:/v"]})));
    let usage = run.quietly("GET", "/system/df", None).json();
    let mut names: Vec<_> = usage["Volumes"].as_array().into_iter().flatten().map(|v| v["Name"].to_string()).collect();
    names.sort();
    run.note("volumes that take something", json!(names));
    run.post(400, "/volumes/prune?filters=%7B%22odd%22%3A%5B%22x%22%5D%7D");
    run.post(200, "/volumes/prune?filters=%7B%22label%21%22%3A%5B%22keep%22%5D%7D");
    run.post(200, "/volumes/prune");
    run.post(200, "/volumes/prune");
    run.get(200, "/volumes");
}

fn in_use(run: &mut Run) {
    run.start("web", &with_host(waiting(), json!({"Binds": ["used:/v"]})));
    run.refused(409, "DELETE", "/volumes/used", None, "volume is in use");
    run.delete(409, "/volumes/used?force=1");
    run.delete(204, "/containers/web?force=1&v=1");
    run.get(200, "/volumes/used");
    run.delete(204, "/volumes/used");
}

fn options(run: &mut Run) {
    let options = json!({"Name": "tmp", "Driver": "local", "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000"}});
    run.ask(201, "POST", "/volumes/create", Some(&options));
    run.get(200, "/volumes/tmp");
    let script = "stat -c %u /v; grep ' /v ' /proc/mounts | awk '{print $3}'";
    run.runs("web", &with_host(crate::run::sh(script), json!({"Binds": ["tmp:/v"]})));
    run.ask(404, "POST", "/volumes/create", Some(&json!({"Name": "tmp", "Driver": "nowhere"})));
    // As `docker volume create --opt type=none --opt o=bind`.
    let root = run.folder().join("bound-volume");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("file"), "bound\n").unwrap();
    let options =
        json!({"Name": "bind", "DriverOpts": {"type": "none", "o": "bind", "device": root.display().to_string()}});
    run.ask(201, "POST", "/volumes/create", Some(&options));
    run.runs("reader", &with_host(crate::run::sh("cat /v/file"), json!({"Binds": ["bind:/v"]})));
}

fn anonymous(run: &mut Run) {
    run.ask(201, "POST", "/volumes/create", Some(&json!({})));
    run.ask(400, "POST", "/volumes/create", None);
    let listed = run.quietly("GET", "/volumes", None).json();
    let lengths: Vec<usize> =
        listed["Volumes"].as_array().into_iter().flatten().map(|v| v["Name"].as_str().unwrap().len()).collect();
    run.note("lengths of names", json!(lengths));
}
