//! The event stream.

use crate::{
    cases,
    run::{Run, encode, sh, waiting, with_host},
};
use serde_json::{Value, json};

cases!(of_a_life, of_execs, of_images, of_volumes, of_networks, live, filters, refusals, of_health, of_restarts);

fn of_a_life(run: &mut Run) {
    let mut config = waiting();
    config["Labels"] = json!({"l": "1"});
    config["HostConfig"] = json!({"NetworkMode": "none"});
    run.start("web", &config);
    run.post(204, "/containers/web/pause");
    run.post(204, "/containers/web/unpause");
    run.quietly("POST", "/containers/web/rename?name=web2", None);
    run.quietly("POST", "/containers/web2/resize?h=10&w=10", None);
    run.quietly("GET", "/containers/web2/top", None);
    run.quietly("GET", "/containers/web2/export", None);
    run.post(204, "/containers/web2/kill?signal=HUP");
    run.quietly("DELETE", "/containers/web2?force=1", None);
    run.create("short", &with_host(sh("exit 3"), json!({"NetworkMode": "none"})));
    run.post(204, "/containers/short/start");
    run.ended("short");
    run.delete(204, "/containers/short");
    run.events("container events", &json!({"type": ["container"]}));
}

fn of_restarts(run: &mut Run) {
    run.start("web", &with_host(waiting(), json!({"NetworkMode": "none"})));
    run.post(204, "/containers/web/restart?t=5");
    run.post(204, "/containers/web/stop?t=5");
    run.events("container events", &json!({"type": ["container"]}));
}

fn of_execs(run: &mut Run) {
    run.start("web", &with_host(waiting(), json!({"NetworkMode": "none"})));
    let exec = run
        .quietly("POST", "/containers/web/exec", Some(&json!({"Cmd": ["sh", "-c", "exit 4"], "AttachStdout": true})))
        .json();
    run.quietly("POST", &format!("/exec/{}/start", exec["Id"].as_str().unwrap()), Some(&json!({})));
    let stream =
        run.open("POST", "/containers/web/attach?stream=1&stdout=1", None, "Connection: Upgrade\r\nUpgrade: tcp\r\n");
    drop(stream);
    run.quietly("GET", "/containers/web/archive?path=/etc/passwd", None);
    run.events("container events", &json!({"type": ["container"]}));
}

fn of_images(run: &mut Run) {
    run.post(201, "/images/busybox/tag?repo=other");
    run.delete(200, "/images/other");
    run.quietly("GET", "/images/busybox/get", None);
    run.events("image events", &json!({"type": ["image"]}));
}

fn of_volumes(run: &mut Run) {
    run.ask(201, "POST", "/volumes/create", Some(&json!({"Name": "vol"})));
    run.runs("web", &with_host(sh("true"), json!({"Binds": ["vol:/v"], "NetworkMode": "none"})));
    run.delete(204, "/containers/web");
    run.delete(204, "/volumes/vol");
    run.quietly("POST", "/volumes/prune", None);
    run.events("volume events", &json!({"type": ["volume"]}));
}

fn of_networks(run: &mut Run) {
    run.ask(201, "POST", "/networks/create", Some(&json!({"Name": "net"})));
    run.runs("web", &with_host(sh("true"), json!({"NetworkMode": "net"})));
    run.delete(204, "/containers/web");
    run.delete(204, "/networks/net");
    run.events("network events", &json!({"type": ["network"]}));
}

fn live(run: &mut Run) {
    let filters = encode(&json!({"container": ["web"]}).to_string());
    let mut stream = run.open("GET", &format!("/events?filters={filters}"), None, "");
    run.create("web", &sh("true"));
    let event: Value = stream.chunk().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    run.note("the event that came", event);
}

fn filters(run: &mut Run) {
    run.create("web", &sh("true"));
    run.create("other", &json!({"Image": "rich:1"}));
    run.quietly("POST", "/containers/web/rename?name=web2", None);
    for filter in [
        json!({"event": ["rename"]}),
        json!({"container": ["other"], "event": ["create"]}),
        json!({"image": ["rich:1"], "event": ["create"]}),
        json!({"label": ["origin"]}),
        json!({"type": ["volume"], "event": ["destroy"]}),
        json!({"scope": ["local"], "event": ["rename"]}),
        json!({"daemon": ["x"]}),
    ] {
        run.events(&filter.to_string(), &filter);
    }
}

fn refusals(run: &mut Run) {
    run.get(400, "/events?since=odd");
    run.get(400, "/events?until=odd");
    run.get(400, "/events?since=20&until=10");
    run.get(400, "/events?until=1&filters=%7B");
    run.get(200, "/events?until=1&filters=%7B%22odd%22%3A%5B%22x%22%5D%7D");
    run.get(200, "/events?since=1&until=2");
}

fn of_health(run: &mut Run) {
    let mut config = with_host(waiting(), json!({"NetworkMode": "none"}));
    config["Healthcheck"] = json!({"Test": ["CMD", "true"], "Interval": 300_000_000});
    run.start("web", &config);
    run.until("web", "/State/Health/Status", &json!("healthy"));
    run.events("health events", &json!({"event": ["health_status"]}));
    run.events("container event", &json!({"event": ["health_status: healthy"]}));
}
