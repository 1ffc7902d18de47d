//! Many objects, many clients, much log: what the engine costs whoever looks at it. Berth and dockerd answer the same requests.

use crate::{
    engines::{Dockerd, create},
    table::{Table, median, pss_mb, settle},
};
use integration_tests::{Stack, eventually, http::Api, images, programs::peer};
use serde_json::json;
use std::{
    path::Path,
    process::{Command, Stdio},
};

const ROUNDS: usize = 15;
const FEW: usize = 10;
const MANY: usize = 1000;
/// Clients that follow at once.
const FOLLOWERS: usize = 200;
/// What a container has written when its log is read.
const LOG_SIZE: usize = 50_000_000;

/// What one engine needs.
#[derive(Default)]
struct Figures {
    client: Option<f64>,
    client_exec: Option<f64>,
    list_few: Option<f64>,
    list_many: Option<f64>,
    inspect_few: Option<f64>,
    inspect_many: Option<f64>,
    log: Option<f64>,
    log_followers: Option<f64>,
    event_followers: Option<f64>,
}

fn docker(socket: &Path, words: &[&str]) -> bool {
    let host = format!("unix://{}", socket.display());
    let mut command = Command::new("docker");
    command.args(["-H", &host]).args(words).stdin(Stdio::null()).stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

// Containers named `x0`, `x1`, ... that never run, until there are `count`.
fn fill(api: &Api, from: usize, count: usize) -> bool {
    let body = json!({ "Image": "busybox", "Cmd": ["true"], "HostConfig": { "NetworkMode": "none" } });
    (from..count).all(|n| create(api, &format!("x{n}"), &body))
}

// Milliseconds for each of `count` containers.
fn list_each(api: &Api, count: usize) -> Option<f64> {
    median(ROUNDS, || api.get("/v1.41/containers/json?all=1").status == 200).map(|ms| ms / count as f64)
}

fn inspect_one(api: &Api) -> Option<f64> {
    median(50, || api.get("/v1.41/containers/x5/json").status == 200)
}

// Megabytes of log per second.
fn log_speed(api: &Api, name: &str) -> Option<f64> {
    let ms = median(3, || {
        let path = format!("/v1.41/containers/{name}/logs?stdout=1&stderr=1");
        let Ok(mut stream) = api.open("GET", &path, None, "") else { return false };
        let mut bytes = 0;
        while let Some(chunk) = stream.chunk() {
            bytes += chunk.len();
        }
        bytes > LOG_SIZE
    })?;
    Some(LOG_SIZE as f64 / 1e6 / (ms / 1000.0))
}

// By how much the daemons grow, in MB, while so many clients follow; each has seen something before it is counted.
fn growth(api: &Api, path: &str, tick: &dyn Fn() -> bool, daemons: &dyn Fn() -> Vec<u32>) -> Option<f64> {
    settle();
    let before = pss_mb(&daemons());
    let mut streams: Vec<_> = (0..FOLLOWERS).map(|_| api.open("GET", path, None, "").ok()).collect::<Option<_>>()?;
    if !tick() {
        return None;
    }
    for stream in &mut streams {
        stream.chunk()?;
    }
    settle();
    Some(pss_mb(&daemons()) - before)
}

fn figures(socket: &Path, daemons: &dyn Fn() -> Vec<u32>) -> Figures {
    let api = Api::new(socket);
    let mut figures = Figures::default();
    let has_client = peer("docker").is_some();
    if has_client && docker(socket, &["run", "--rm", "busybox", "true"]) {
        figures.client = median(ROUNDS, || docker(socket, &["run", "--rm", "busybox", "true"]));
    }
    let host = json!({ "NetworkMode": "none", "LogConfig": { "Type": "json-file", "Config": {} } });
    let talker = json!({ "Image": "busybox", "HostConfig": host,
        "Cmd": ["sh", "-c", "while true; do echo tick; sleep 1; done"] });
    if create(&api, "talker", &talker) && api.post("/v1.41/containers/talker/start", None).status == 204 {
        if has_client {
            figures.client_exec = median(ROUNDS, || docker(socket, &["exec", "talker", "true"]));
        }
        let follow = "/v1.41/containers/talker/logs?stdout=1&follow=1&tail=1";
        figures.log_followers = growth(&api, follow, &|| true, daemons);
        let tick = || {
            api.post("/v1.41/containers/talker/rename?name=talker2", None).status == 204
                && api.post("/v1.41/containers/talker2/rename?name=talker", None).status == 204
        };
        figures.event_followers = growth(&api, "/v1.41/events", &tick, daemons);
        api.delete("/v1.41/containers/talker?force=1");
    }
    let host = json!({ "NetworkMode": "none", "LogConfig": { "Type": "json-file",
        "Config": { "max-size": "1g", "max-file": "1" } } });
    let line = "a line of a log as services write it, of about sixty bytes";
    let writer = json!({ "Image": "busybox", "HostConfig": host,
        "Cmd": ["sh", "-c", format!("yes '{line}' | head -c {LOG_SIZE}")] });
    if create(&api, "writer", &writer) && api.post("/v1.41/containers/writer/start", None).status == 204 {
        api.post("/v1.41/containers/writer/wait", None);
        figures.log = log_speed(&api, "writer");
        api.delete("/v1.41/containers/writer?force=1&v=1");
    }
    if fill(&api, 0, FEW) {
        figures.list_few = list_each(&api, FEW);
        figures.inspect_few = inspect_one(&api);
    }
    if fill(&api, FEW, MANY) {
        figures.list_many = list_each(&api, MANY);
        figures.inspect_many = inspect_one(&api);
    }
    figures
}

/// Measures what clients see.
pub fn measure(table: &mut Table) {
    let ours = {
        let stack = Stack::with_busybox();
        let pids = || vec![stack.engine_pid(), stack.supervisor_pid()];
        figures(&stack.engine_socket(), &pids)
    };
    let theirs = Dockerd::start().map(|dockerd| {
        let archive = images::busybox_archive(dockerd.folder());
        docker(&dockerd.socket(), &["load", "-q", "-i", &archive.display().to_string()]);
        let api = Api::new(dockerd.socket());
        eventually("dockerd has the image", || (api.get("/v1.41/images/busybox/json").status == 200).then_some(()));
        figures(&dockerd.socket(), &|| dockerd.pids())
    });
    let mut row = |work: &str, unit: &'static str, pick: &dyn Fn(&Figures) -> Option<f64>, goal: &str| {
        table.row(work, unit, pick(&ours), &[("dockerd", theirs.as_ref().and_then(pick))], goal);
    };
    row("docker run --rm busybox true, the real client", "ms", &|f| f.client, "");
    row("docker exec ... true, the real client", "ms", &|f| f.client_exec, "");
    let per_item = |ms: Option<f64>| ms.map(|ms| ms * 1000.0);
    row("list, each of 10 containers", "µs", &|f| per_item(f.list_few), "");
    row("list, each of 1,000 containers", "µs", &|f| per_item(f.list_many), "as with 10");
    row("inspect one of 10 containers", "µs", &|f| per_item(f.inspect_few), "");
    row("inspect one of 1,000 containers", "µs", &|f| per_item(f.inspect_many), "as with 10");
    row("log read, megabytes per second", "MB/s", &|f| f.log, ">= 5");
    row("200 clients that follow a log, growth of the daemons' PSS", "MB", &|f| f.log_followers, "<= 20 MB");
    row("200 clients that follow events, growth of the daemons' PSS", "MB", &|f| f.event_followers, "<= 20 MB");
}
