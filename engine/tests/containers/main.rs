//! Containers end to end: the engine over HTTP, with the real supervisor, shim and runtime below it.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, missing_docs)]

mod access;
mod archive;
mod events;
mod fields;
mod filesystem;
mod forward;
mod health;
mod init;
mod logs;
mod mounts;
mod namespaces;
mod plugin;
mod plugins;
#[allow(dead_code, reason = "other suites use it too")]
mod stack;
mod stats;
mod strays;
mod update;
mod volumes;
mod websocket;

use serde_json::{Value, json};
use stack::{Stack, eventually, split_frames};
use std::{
    io::{Read, Write},
    net::Shutdown,
};

macro_rules! stack {
    () => {
        match Stack::start() {
            Some(stack) => stack,
            None => return,
        }
    };
}

fn sh(script: &str) -> Value {
    json!({"Cmd": ["sh", "-c", script]})
}

fn with_host(mut config: Value, host: Value) -> Value {
    config["HostConfig"] = host;
    config
}

#[test]
fn a_life_from_create_to_remove() {
    let stack = stack!();
    let id = stack.create("?name=web", &sh("echo out; echo err >&2; exit 7"));
    let taken = stack.post("/containers/create?name=web", &json!({"Image": "test", "Cmd": ["true"]}));
    assert_eq!(taken.status, 409);
    assert!(taken.message().contains(&format!("\"/web\" is already in use by container \"{id}\"")), "{}", taken.text());
    assert_eq!(stack.inspect("web")["State"]["Status"], "created");
    // The header of wait comes before there is a result: `docker run` asks before it starts.
    let (head, mut waiting) = stack.begin("POST", &format!("/containers/{id}/wait?condition=next-exit"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stack.start_container(&id[..12]);
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert!(text.contains("{\"StatusCode\":7}"), "{text}");
    let state = stack.inspect("/web")["State"].clone();
    assert_eq!((&state["Status"], &state["ExitCode"], &state["Pid"]), (&json!("exited"), &json!(7), &json!(0)));
    let logs = stack.get("/containers/web/logs?stdout=1&stderr=1");
    assert!(logs.head.contains("application/vnd.docker.multiplexed-stream"), "{}", logs.head);
    assert_eq!(logs.streams(), ("out\n".into(), "err\n".into()));
    assert_eq!(stack.get("/containers/web/logs?stderr=1").streams().0, "");
    assert_eq!(stack.get("/containers/web/logs").status, 400);
    // A second run; its log comes after the first one's.
    stack.start_container("web");
    assert_eq!(stack.wait("web", "not-running"), 7);
    assert_eq!(stack.get("/containers/web/logs?stdout=1&tail=1").streams().0, "out\n");
    assert_eq!(stack.delete("/containers/web").status, 204);
    assert_eq!(stack.get("/containers/web/json").message(), "No such container: web");
}

#[test]
fn what_runs_is_protected_and_stops_with_grace() {
    let stack = stack!();
    stack.create("?name=loop", &sh("trap 'exit 5' TERM; while true; do usleep 10000; done"));
    stack.start_container("loop");
    assert_eq!(stack.post("/containers/loop/start", &Value::Null).status, 304);
    let refused = stack.delete("/containers/loop");
    assert_eq!(refused.status, 409);
    assert!(refused.message().contains("cannot remove container \"/loop\": container is running"));
    assert_eq!(stack.post("/containers/loop/pause", &Value::Null).status, 204);
    assert_eq!(stack.post("/containers/loop/pause", &Value::Null).status, 409);
    assert_eq!(stack.inspect("loop")["State"]["Status"], "paused");
    assert_eq!(stack.post("/containers/loop/unpause", &Value::Null).status, 204);
    let listed = stack.get("/containers/json").json();
    assert!(listed[0]["Status"].as_str().unwrap().starts_with("Up "), "{listed}");
    assert_eq!(stack.post("/containers/loop/stop?t=20", &Value::Null).status, 204);
    let state = stack.inspect("loop")["State"].clone();
    assert_eq!((&state["ExitCode"], &state["Running"]), (&json!(5), &json!(false)));
    assert_eq!(stack.post("/containers/loop/stop", &Value::Null).status, 304);
    assert_eq!(stack.post("/containers/loop/kill", &Value::Null).status, 409);
    assert_eq!(stack.post("/containers/loop/restart", &Value::Null).status, 204);
    // Its trap may not be set yet: killed then, after a second.
    assert_eq!(stack.post("/containers/loop/stop?t=1&signal=USR2", &Value::Null).status, 204);
    assert_eq!(stack.delete("/containers/loop?force=1").status, 204);
}

#[test]
fn attached_before_the_start_nothing_is_missed_and_input_ends_alone() {
    let stack = stack!();
    let config = json!({"Cmd": ["cat"], "OpenStdin": true, "StdinOnce": true, "AttachStdin": true});
    let id = stack.create("", &with_host(config, json!({"AutoRemove": true})));
    let (head, mut stream) = stack.hijack(&format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1"), "");
    assert!(head.starts_with("HTTP/1.1 101 UPGRADED"), "{head}");
    let (_, mut waiting) = stack.begin("POST", &format!("/containers/{id}/wait?condition=removed"));
    stack.start_container(&id);
    let input: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let writing = {
        let (mut stream, input) = (stream.try_clone().unwrap(), input.clone());
        std::thread::spawn(move || {
            stream.write_all(input.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        })
    };
    let mut output = Vec::new();
    stream.read_to_end(&mut output).unwrap();
    writing.join().unwrap();
    assert_eq!(split_frames(&output).0, input);
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert!(text.contains("{\"StatusCode\":0}"), "{text}");
    assert_eq!(stack.get(&format!("/containers/{id}/json")).status, 404);
}

#[test]
fn further_processes() {
    let stack = stack!();
    stack.create("?name=host", &sh("sleep 1000"));
    let early = stack.post("/containers/host/exec", &json!({"Cmd": ["true"]}));
    assert_eq!(early.status, 409);
    stack.start_container("host");
    let exec = |config: Value| {
        let answer = stack.post("/containers/host/exec", &config);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["Id"].as_str().unwrap().to_owned()
    };
    let run = |id: &str| {
        let (head, mut stream) = stack.hijack(&format!("/exec/{id}/start"), r#"{"Detach":false,"Tty":false}"#);
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        // The code has to be there as soon as the stream has ended.
        let code = stack.get(&format!("/exec/{id}/json")).json()["ExitCode"].clone();
        (split_frames(&bytes), code)
    };
    let both = |cmd: &[&str]| json!({"Cmd": cmd, "AttachStdout": true, "AttachStderr": true});
    let id = exec(both(&["sh", "-c", "echo a; echo b >&2; exit 9"]));
    assert_eq!(run(&id), (("a\n".into(), "b\n".into()), json!(9)));
    assert_eq!(stack.post(&format!("/exec/{id}/start"), &json!({})).status, 409);
    let mut as_user = both(&["sh", "-c", "id; echo $HOME $A"]);
    as_user["User"] = "www".into();
    as_user["Env"] = json!(["A=b"]);
    let ((out, _), _) = run(&exec(as_user));
    assert!(out.starts_with("uid=33(www) gid=33 groups=33,50(staff)\n/srv b\n"), "{out}");
    let ((_, err), code) = run(&exec(both(&["nosuch"])));
    assert!(err.contains("executable file not found"), "{err}");
    assert_eq!(code, json!(127));
    assert_eq!(stack.post("/containers/host/exec", &json!({"Cmd": []})).status, 400);
    assert_eq!(stack.get("/exec/none/json").message(), "No such exec instance: none");
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let stack = stack!();
    for (words, code) in [(json!(["nosuch"]), 127), (json!(["/etc"]), 126)] {
        let id = stack.create("", &json!({"Cmd": words}));
        let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
        assert_eq!(answer.status, 400, "{}", answer.text());
        let state = stack.inspect(&id)["State"].clone();
        assert_eq!(state["ExitCode"], json!(code), "{state}");
        assert_eq!(state["Error"], json!(answer.message()));
        eventually("nothing is left", || match stack.leftovers() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        });
    }
    let missing = stack.post("/containers/create", &json!({"Image": "nosuch", "Cmd": ["true"]}));
    assert_eq!((missing.status, missing.message().as_str()), (404, "No such image: nosuch:latest"));
    let bind = json!({"Mounts": [{"Type": "bind", "Source": "/no/such", "Target": "/x"}]});
    let bad = stack.post("/containers/create?name=later", &with_host(json!({"Image": "test", "Cmd": ["true"]}), bind));
    assert_eq!(bad.status, 400, "{}", bad.text());
    // The name of a container that could not be made is free again.
    stack.create("?name=later", &json!({"Cmd": ["true"]}));
}

#[test]
fn a_published_port_belongs_to_one() {
    let stack = stack!();
    let ports = |port: &str| json!({"PortBindings": {"80/tcp": [{"HostPort": port}]}});
    let first = stack.create("", &with_host(sh("sleep 1000"), ports("")));
    stack.start_container(&first);
    let inspected = stack.inspect(&first);
    let port = inspected["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"].as_str().unwrap().to_owned();
    let second = stack.create("", &with_host(sh("sleep 1000"), ports(&port)));
    let refused = stack.post(&format!("/containers/{second}/start"), &Value::Null);
    assert_eq!(refused.status, 500);
    assert!(refused.message().contains(&format!("Bind for 0.0.0.0:{port} failed: port is already allocated")));
    let network = stack.get("/networks/bridge").json();
    assert!(network["Containers"][&first]["IPv4Address"].as_str().unwrap().starts_with("10."), "{network}");
}

#[test]
fn the_restart_policy_and_its_events() {
    let stack = stack!();
    let (_, mut stream) = stack.begin("GET", "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%7D");
    let policy = json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}});
    let id = stack.create("?name=again", &with_host(sh("exit 3"), policy));
    stack.start_container(&id);
    eventually("it gives up", || match stack.inspect("again")["State"]["Status"].as_str() {
        Some("exited") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(stack.inspect("again")["RestartCount"], 2);
    assert_eq!(stack.delete("/containers/again").status, 204);
    let expected = ["create", "start", "die", "start", "die", "start", "die", "destroy"];
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("\"destroy\"") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    let actions: Vec<String> = text
        .lines()
        // Sizes of chunks may look like numbers.
        .filter_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object))
        .map(|event| event["Action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(actions, expected);
    // Stopped while it waits for its next start.
    let id = stack.create("", &with_host(sh("exit 3"), json!({"RestartPolicy": {"Name": "always"}})));
    stack.start_container(&id);
    eventually("it waits", || match stack.inspect(&id)["RestartCount"].as_u64() {
        Some(3..) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(stack.post(&format!("/containers/{id}/stop"), &Value::Null).status, 204);
    assert_eq!(stack.inspect(&id)["State"]["Status"], "exited");
}

#[test]
fn volumes_are_filled_kept_and_removed() {
    let stack = stack!();
    let binds = json!({"Binds": ["data:/vol"], "AutoRemove": true});
    let id = stack.create("", &with_host(sh("cat /vol/file; echo new > /vol/more"), binds.clone()));
    let (_, mut stream) = stack.hijack(&format!("/containers/{id}/attach?stream=1&stdout=1"), "");
    stack.start_container(&id);
    let mut output = Vec::new();
    stream.read_to_end(&mut output).unwrap();
    assert_eq!(split_frames(&output).0, "from the image\n");
    stack.wait_until_gone(&id);
    let used = stack.create("", &with_host(sh("true"), binds));
    assert_eq!(stack.delete("/volumes/data").status, 409);
    assert_eq!(stack.delete(&format!("/containers/{used}?v=1")).status, 204);
    let path = stack.get("/volumes/data").json()["Mountpoint"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::read_to_string(format!("{path}/more")).unwrap(), "new\n");
    assert_eq!(stack.delete("/volumes/data").status, 204);
    // The image's own volume has no name and goes with its container.
    let id = stack.create("", &sh("true"));
    assert_eq!(stack.get("/volumes").json()["Volumes"].as_array().unwrap().len(), 1);
    assert_eq!(stack.delete(&format!("/containers/{id}?v=1")).status, 204);
    assert_eq!(stack.get("/volumes").json()["Volumes"], json!([]));
}

#[test]
fn neither_daemon_is_needed_by_what_runs() {
    let mut stack = stack!();
    let counting = "i=0; while [ $i -lt 600 ]; do echo n $i; i=$((i+1)); usleep 5000; done; exit 42";
    let counter = stack.create("", &sh(counting));
    let short = stack.create("", &sh("usleep 300000; exit 17"));
    stack.start_container(&counter);
    stack.start_container(&short);
    let pid = stack.inspect(&counter)["State"]["Pid"].clone();
    stack.kill_engine();
    stack.kill_supervisor();
    // Ends while nobody is there to hear it.
    std::thread::sleep(std::time::Duration::from_millis(700));
    stack.start_engine();
    assert_eq!(stack.wait(&short, "not-running"), 17);
    let state = stack.inspect(&short)["State"].clone();
    let seconds = |key: &str| state[key].as_str().unwrap()[17..].trim_end_matches('Z').parse::<f64>().unwrap();
    let ran = (seconds("FinishedAt") - seconds("StartedAt")).rem_euclid(60.0);
    assert!((0.2..0.65).contains(&ran), "{state}");
    assert_eq!(stack.inspect(&counter)["State"]["Pid"], pid);
    stack.kill_engine();
    stack.start_engine();
    stack.kill_supervisor();
    assert_eq!(stack.wait(&counter, "not-running"), 42);
    let (log, _) = stack.get(&format!("/containers/{counter}/logs?stdout=1&follow=1")).streams();
    let expected: String = (0..600).map(|n| format!("n {n}\n")).collect();
    assert_eq!(log, expected);
}

#[test]
fn refusals_of_the_protocol() {
    let stack = stack!();
    let cases = [
        ("GET", "/v1.99/info", 400, "client version 1.99 is too new. Maximum supported API version is 1.51"),
        ("GET", "/nope", 404, "page not found"),
        ("PATCH", "/containers/json", 404, "page not found"),
        ("GET", "/images/x/attestations", 501, "GET /images/{name}/attestations is not implemented in berth yet"),
        ("GET", "/v1.41/containers/x/json", 404, "No such container: x"),
        ("GET", "/containers/json?filters=%7B%22what%22%3A%5B%22x%22%5D%7D", 400, "invalid filter 'what'"),
        ("GET", "/networks/nope", 404, "network nope not found"),
        ("GET", "/volumes/nope", 404, "get nope: no such volume"),
        ("GET", "/events?since=5&until=1", 400, "cannot be after"),
    ];
    for (method, target, status, text) in cases {
        let answer = stack.request(method, target, "", b"");
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        assert!(answer.message().contains(text), "{method} {target}: {}", answer.text());
        assert!(answer.head.to_lowercase().contains("api-version: 1.51"), "{}", answer.head);
    }
    let old = stack.get("/v1.12/info");
    assert!(old.status == 400 && old.text().starts_with("client version 1.12 is too old"), "{}", old.text());
    let form = stack.request("POST", "/containers/create", "text/plain", b"{}");
    assert!(form.status == 400 && form.message().contains("unsupported Content-Type"), "{}", form.text());
    let trailing = stack.request("POST", "/containers/create", "application/json", b"{} {}");
    assert!(trailing.status == 400 && trailing.message().contains("invalid JSON"), "{}", trailing.text());
    let ping = stack.request("HEAD", "/_ping", "", b"");
    assert!(ping.status == 200 && ping.body.is_empty() && ping.head.to_lowercase().contains("builder-version"));
    let second = stack.command().output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("another berth-engine uses"), "{text}");
}

impl Stack {
    fn wait_until_gone(&self, id: &str) {
        eventually("it is gone", || match self.get(&format!("/containers/{id}/json")).status {
            404 => Ok(()),
            other => Err(other.to_string()),
        });
    }
}
