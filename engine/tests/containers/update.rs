//! `POST /containers/{id}/update`: live, stopped, refused, over the death of the engine.

use super::{sh, with_host};
use crate::stack::{Stack, eventually};
use serde_json::{Value, json};
use std::{io::Read, net::TcpStream, path::Path, time::Duration};

/// A file of a container's cgroup, on either version.
fn limit(id: &str, controller: &str, v1: &str, v2: &str) -> String {
    for path in [format!("/sys/fs/cgroup/{controller}/berth/{id}/{v1}"), format!("/sys/fs/cgroup/berth/{id}/{v2}")] {
        if let Ok(text) = std::fs::read_to_string(Path::new(&path)) {
            return text.trim().to_owned();
        }
    }
    panic!("no cgroup of {id} with {controller}")
}

fn memory(id: &str) -> String {
    limit(id, "memory", "memory.limit_in_bytes", "memory.max")
}

fn pids(id: &str) -> String {
    limit(id, "pids", "pids.max", "pids.max")
}

#[test]
fn limits_change_while_it_runs_and_stay() {
    let Some(mut stack) = Stack::start() else { return };
    let host = json!({"Memory": 64 << 20, "PidsLimit": 50, "CpuShares": 512});
    let id = stack.create("?name=box", &with_host(sh("sleep 1000"), host));
    stack.start_container("box");
    assert_eq!((memory(&id).as_str(), pids(&id).as_str()), ("67108864", "50"));
    let update = |body: Value| stack.post("/containers/box/update", &body);
    let done = update(json!({"Memory": 96 << 20, "MemorySwap": 192 << 20, "PidsLimit": 20, "CpuQuota": 0}));
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(done.json(), json!({"Warnings": null}));
    assert_eq!((memory(&id).as_str(), pids(&id).as_str()), ("100663296", "20"));
    let seen = stack.inspect("box")["HostConfig"].clone();
    assert_eq!((&seen["Memory"], &seen["PidsLimit"], &seen["CpuShares"]), (&json!(96 << 20), &json!(20), &json!(512)));
    // No limit any more.
    assert_eq!(update(json!({"PidsLimit": -1})).status, 200);
    assert_eq!(pids(&id), "max");
    let refused = update(json!({"Memory": 512 << 20}));
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.message(),
        format!(
            "Cannot update container {id}: Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    );
    assert_eq!(update(json!({"Memory": 1})).status, 400);
    assert_eq!(update(json!({"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 1}]})).status, 400);
    assert_eq!(stack.post("/containers/nobody/update", &json!({})).status, 404);
    assert_eq!(memory(&id), "100663296");
    // On disk before it was answered; and the restart has it too.
    stack.kill_engine();
    stack.start_engine();
    assert_eq!(stack.inspect("box")["HostConfig"]["Memory"], 96 << 20);
    assert_eq!(stack.post("/containers/box/restart?t=0", &Value::Null).status, 204);
    assert_eq!((memory(&id).as_str(), pids(&id).as_str()), ("100663296", "max"));
    // While it is stopped: for the next start.
    assert_eq!(stack.post("/containers/box/kill", &Value::Null).status, 204);
    assert_eq!(stack.post("/containers/box/update", &json!({"PidsLimit": 33})).status, 200);
    stack.start_container("box");
    assert_eq!(pids(&id), "33");
}

#[test]
fn the_restart_policy_changes_under_way() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &sh("sleep 0.2; exit 3"));
    stack.start_container("box");
    let always = json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}});
    assert_eq!(stack.post("/containers/box/update", &always).status, 200);
    crate::stack::eventually("it was started twice more", || {
        let seen = stack.inspect("box");
        let state = (&seen["RestartCount"], &seen["State"]["Status"]);
        if state == (&json!(2), &json!("exited")) { Ok(()) } else { Err(format!("{state:?}")) }
    });
    let id = stack.create("?name=gone", &with_host(sh("sleep 1000"), json!({"AutoRemove": true})));
    let refused = stack.post("/containers/gone/update", &always);
    assert_eq!(refused.status, 409);
    assert!(refused.message().starts_with(&format!("Cannot update container {id}: Restart policy cannot be updated")));
}

/// What a server of a container says by a port of the host.
fn said_at(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said)
}

#[test]
fn ports_come_and_go_while_it_runs() {
    let Some(mut stack) = Stack::start() else { return };
    let (first, second) = (testing::free_port(), testing::free_port());
    let binding = |port: u16| json!([{"HostIp": "127.0.0.1", "HostPort": port.to_string()}]);
    let serve = "for p in 80 81; do while :; do echo $p | nc -l -p $p; done & done; wait";
    let host = json!({"PortBindings": {"80/tcp": binding(first)}});
    let id = stack.create("?name=box", &with_host(sh(serve), host));
    stack.start_container("box");
    let answers = |port: u16, text: &str| {
        let says = || said_at(port).filter(|said| said.trim() == text).map(drop).ok_or("something else".to_owned());
        eventually("an answer", says);
    };
    answers(first, "80");
    let update = |stack: &Stack, ports: Value| stack.post("/containers/box/update", &json!({ "PortBindings": ports }));
    let done = update(&stack, json!({"80/tcp": binding(first), "81/tcp": binding(second)}));
    assert_eq!(done.status, 200, "{}", done.text());
    answers(first, "80");
    answers(second, "81");
    let shown = stack.inspect("box");
    assert_eq!(shown["NetworkSettings"]["Ports"]["81/tcp"], binding(second));
    assert_eq!(shown["HostConfig"]["PortBindings"]["81/tcp"], binding(second));
    // What is refused changes nothing.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = update(&stack, json!({"82/tcp": binding(port)}));
    assert!(refused.status >= 400 && refused.message().contains("address already in use"), "{}", refused.text());
    assert_eq!(stack.inspect("box")["HostConfig"]["PortBindings"]["81/tcp"], binding(second));
    answers(second, "81");
    stack.kill_engine();
    stack.start_engine();
    answers(second, "81");
    assert_eq!(update(&stack, json!({"81/tcp": binding(second)})).status, 200);
    answers(second, "81");
    assert_eq!(said_at(first), None, "gone");
    let _free_again = std::net::TcpListener::bind(("127.0.0.1", first)).unwrap();
    assert!(!id.is_empty());
}
