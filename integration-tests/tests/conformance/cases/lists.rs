//! The list of containers: its filters and its order.

use crate::{
    cases,
    run::{Run, encode, sh, waiting, with_host},
};
use serde_json::{Value, json};

cases!(filters, pages, shapes);

fn found(run: &mut Run, query: &str) {
    let answer = run.quietly("GET", &format!("/containers/json?{query}"), None);
    let names: Value = match serde_json::from_slice::<Value>(&answer.body).unwrap_or_default() {
        Value::Array(items) => items.iter().map(|item| item["Names"][0].clone()).collect(),
        _ => json!("no list"),
    };
    run.note(query, json!([answer.status, names]));
}

fn filters(run: &mut Run) {
    let mut labelled = with_host(
        waiting(),
        json!({"Binds": ["vol:/v"], "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}}),
    );
    labelled["Labels"] = json!({"a": "1", "b": "2"});
    labelled["ExposedPorts"] = json!({"80/tcp": {}, "81/udp": {}});
    run.start("web-one", &labelled);
    run.start("web-two", &with_host(waiting(), json!({"NetworkMode": "none"})));
    run.post(204, "/containers/web-two/pause");
    run.create("made", &sh("true"));
    run.runs("done", &sh("exit 4"));
    let all = [
        json!({"name": ["web"]}),
        json!({"name": ["^/web-one$"]}),
        json!({"name": ["one", "made"]}),
        json!({"status": ["running"]}),
        json!({"status": ["paused"]}),
        json!({"status": ["exited", "created"]}),
        json!({"status": ["odd"]}),
        json!({"exited": ["4"]}),
        json!({"exited": ["odd"]}),
        json!({"label": ["a"]}),
        json!({"label": ["a=1", "b=2"]}),
        json!({"label": ["a=1", "b=3"]}),
        json!({"ancestor": ["busybox"]}),
        json!({"ancestor": ["rich:1"]}),
        json!({"ancestor": ["nowhere"]}),
        json!({"before": ["web-two"]}),
        json!({"since": ["web-two"]}),
        json!({"since": ["nobody"]}),
        json!({"volume": ["vol"]}),
        json!({"volume": ["/v"]}),
        json!({"network": ["none"]}),
        json!({"network": ["bridge"]}),
        json!({"network": ["nowhere"]}),
        json!({"publish": ["80"]}),
        json!({"publish": ["1-65535/tcp"]}),
        json!({"publish": ["odd"]}),
        json!({"expose": ["81/udp"]}),
        json!({"expose": ["80"]}),
        json!({"health": ["none"]}),
        json!({"isolation": ["default"]}),
        json!({"is-task": ["false"]}),
        json!({"is-task": ["odd"]}),
        json!({"odd": ["x"]}),
        json!({"label": {"a": true}}),
        json!({"label": {"a=1": true, "b=2": true}}),
        json!({}),
        json!([]),
        json!("text"),
    ];
    for filter in &all {
        found(run, &format!("all=1&filters={}", encode(&filter.to_string())));
    }
    found(run, "all=1&filters=%7B");
    found(run, "all=1&filters=");
    found(run, "filters=%7B%22status%22%3A%5B%22exited%22%5D%7D");
    run.refused(400, "GET", "/containers/json?filters=%7B%22odd%22%3A%5B%22x%22%5D%7D", None, "Invalid filter 'odd'");
}

fn pages(run: &mut Run) {
    for name in ["first", "second", "third"] {
        run.create(name, &sh("true"));
    }
    for query in [
        "all=1",
        "limit=2",
        "limit=-1",
        "limit=odd",
        "all=true",
        "all=0",
        "all=no",
        "all=False",
        "last=1",
        "limit=0",
        "size=odd&all=1",
    ] {
        found(run, query);
    }
}

fn shapes(run: &mut Run) {
    run.get(200, "/containers/json");
    let root = run.folder().display().to_string();
    let host = json!({"Binds": [format!("{root}:/host"), "named:/named:ro"], "NetworkMode": "none"});
    let mut config = with_host(json!({"Image": "rich:1"}), host);
    config["Cmd"] = json!(["-c", "echo 'a  b'"]);
    run.create("shaped", &config);
    run.get(200, "/containers/json?all=1");
    // An image that is known by its id only.
    let id = run.quietly("GET", "/images/busybox/json", None).json()["Id"].as_str().unwrap().to_owned();
    run.create("by-id", &json!({"Image": id}));
    run.inspect("by-id", &["/Config/Image", "/Image"]);
    let listed = run.quietly("GET", "/containers/json?all=1&limit=1", None).json();
    run.note("image in the list", json!([listed[0]["Image"], listed[0]["Command"]]));
}
