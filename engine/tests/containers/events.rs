//! Events: names and attributes as dockerd 20.10 has them, and a history that outlives the engine.

use super::{sh, with_host};
use crate::stack::Stack;
use serde_json::{Value, json};

/// Type, action and attributes of everything that happened to one container, without ids.
fn told(stack: &Stack, id: &str) -> Vec<String> {
    let lines = stack.past_events();
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let shown = events.filter_map(|event| {
        let attributes = event["Actor"]["Attributes"].as_object().unwrap();
        let ours = event["Actor"]["ID"] == id || attributes.get("container").is_some_and(|c| c == id);
        let pairs = attributes.iter().map(|(key, value)| {
            let value = value.as_str().unwrap();
            let value = if value.len() == 64 {
                "ID"
            } else if value.starts_with("sha256:") {
                "DIGEST"
            } else {
                value
            };
            format!("{key}={value}")
        });
        let pairs: Vec<_> = pairs.filter(|pair| !pair.starts_with("execDuration")).collect();
        ours.then(|| {
            format!("{} {} {}", event["Type"].as_str().unwrap(), event["Action"].as_str().unwrap(), pairs.join(","))
        })
    });
    shown.filter(|line| !line.starts_with("network ")).collect()
}

#[test]
fn names_and_attributes_are_dockers() {
    let Some(stack) = Stack::start() else { return };
    let mut config =
        with_host(sh("trap 'exit 3' TERM; while :; do busybox usleep 20000; done"), json!({"Binds": ["evol:/ev"]}));
    config["Labels"] = json!({"team": "a"});
    let id = stack.create("?name=e1", &config);
    stack.start_container(&id);
    let post = |target: &str, status: u16| {
        let answer = stack.post(target, &Value::Null);
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    };
    let exec = stack.post(&format!("/containers/{id}/exec"), &json!({"Cmd": ["true"], "AttachStdout": true})).json();
    stack.post(&format!("/exec/{}/start", exec["Id"].as_str().unwrap()), &json!({"Detach": false}));
    assert_eq!(stack.get(&format!("/containers/{id}/top")).status, 200);
    post(&format!("/containers/{id}/pause"), 204);
    post(&format!("/containers/{id}/unpause"), 204);
    post(&format!("/containers/{id}/rename?name=e2"), 204);
    assert_eq!(stack.post("/containers/e2/update", &json!({"CpuShares": 99})).status, 200);
    assert_eq!(stack.get("/containers/e2/archive?path=/etc/passwd").status, 200);
    assert_eq!(stack.get("/containers/e2/export").status, 200);
    post("/containers/e2/stop?t=20", 204);
    stack.start_container("e2");
    post("/containers/e2/kill?signal=9", 204);
    stack.wait("e2", "not-running");
    assert_eq!(stack.delete("/containers/e2?force=1").status, 204);
    let of = |action: &str, name: &str, more: &str| {
        let mut pairs = vec!["image=test".to_owned(), format!("name={name}"), "team=a".to_owned()];
        pairs.extend(more.split(',').filter(|pair| !pair.is_empty()).map(str::to_owned));
        pairs.sort();
        format!("container {action} {}", pairs.join(","))
    };
    // From dockerd 20.10 for the same steps, but for `copy_up` of its volumes.
    let (mount, unmount) = (
        "volume mount container=ID,destination=/ev,driver=local,propagation=,read/write=true",
        "volume unmount container=ID,driver=local",
    );
    let expected = vec![
        of("create", "e1", ""),
        mount.into(),
        of("start", "e1", ""),
        of("exec_create: true ", "e1", "execID=ID"),
        of("exec_start: true ", "e1", "execID=ID"),
        of("exec_die", "e1", "execID=ID,exitCode=0"),
        of("top", "e1", ""),
        of("pause", "e1", ""),
        of("unpause", "e1", ""),
        of("rename", "e2", "oldName=/e1"),
        of("update", "e2", ""),
        of("archive-path", "e2", ""),
        of("export", "e2", ""),
        of("kill", "e2", "signal=15"),
        of("die", "e2", "exitCode=3"),
        unmount.into(),
        of("stop", "e2", ""),
        mount.into(),
        of("start", "e2", ""),
        of("kill", "e2", "signal=9"),
        of("die", "e2", "exitCode=137"),
        unmount.into(),
        of("destroy", "e2", ""),
    ];
    // The image of the tests has a volume of its own, which is mounted like the other.
    let told: Vec<String> = told(&stack, &id).into_iter().filter(|line| !line.contains("destination=/vol,")).collect();
    let mut unmounts = 0;
    let told: Vec<String> = told
        .into_iter()
        .filter(|line| {
            unmounts += usize::from(line == unmount);
            line != unmount || unmounts % 2 == 0
        })
        .collect();
    assert_eq!(told, expected);
    assert_eq!(stack.delete("/volumes/evol").status, 204);
}

#[test]
fn history_outlives_the_engine() {
    let Some(mut stack) = Stack::start() else { return };
    let id = stack.create("?name=box", &sh("exit 5"));
    stack.start_container("box");
    stack.wait("box", "not-running");
    let before = told(&stack, &id);
    assert!(before.iter().any(|line| line.starts_with("container die ")), "{before:?}");
    stack.kill_engine();
    stack.start_engine();
    assert_eq!(told(&stack, &id), before);
    // `until` in the past ends the answer, `since` begins it.
    let all = stack.past_events();
    let die = all.lines().find(|line| line.contains("\"Action\":\"die\"")).unwrap();
    let nano = serde_json::from_str::<Value>(die).unwrap()["timeNano"].as_i64().unwrap();
    let moment = |nano: i64| format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000);
    let only = stack.get(&format!("/events?since={}&until={}", moment(nano), moment(nano)));
    assert_eq!(only.text().lines().count(), 1, "{}", only.text());
    assert_eq!(stack.get(&format!("/events?since={}&until=1", moment(nano))).status, 400);
}

/// user-pain 13: whoever waits for a kill at every stop is told why.
#[test]
fn a_stop_that_had_to_kill_says_so() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=deaf", &sh("trap '' TERM; echo ready; while :; do busybox usleep 20000; done"));
    stack.start_container("deaf");
    crate::stack::eventually("it ignores the signal", || {
        let out = stack.get("/containers/deaf/logs?stdout=1").streams().0;
        if out.contains("ready") { Ok(()) } else { Err(out) }
    });
    let stopped = stack.post("/containers/deaf/stop?t=1", &Value::Null);
    assert_eq!(stopped.status, 204);
    assert!(stopped.head.contains("container deaf did not end within 1 s of SIGTERM"), "{}", stopped.head);
    assert!(stack.past_events().contains("berth.hint"));
    stack.create("?name=good", &json!({"Cmd": ["sleep", "1000"], "StopSignal": "KILL"}));
    stack.start_container("good");
    assert!(!stack.post("/containers/good/stop", &Value::Null).head.to_lowercase().contains("warning"));
}
