//! `events`: statistics as runc's callers parse them, and news of want of memory.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, is_ours};

fn event(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

/// Paths of all keys; what belongs to a kernel or a machine (names in `raw`, sizes of huge pages) counts as one.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if !path.ends_with("/raw") && !path.ends_with("/hugetlb") => {
            for (key, value) in map {
                let path = format!("{path}/{key}");
                found.insert(path.clone());
                keys(value, &path, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, &format!("{path}[]"), found)),
        _ => {}
    }
}

#[test]
fn statistics_have_the_names_of_runc() {
    let Some(bundle) = Bundle::new() else { return };
    const RUNC: &str = "/usr/sbin/runc";
    if !is_ours() || !Path::new(RUNC).exists() {
        println!("skipped: compares berth-runtime with {RUNC}");
        return;
    }
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/f bs=64k count=16 2>/dev/null; \
                  cat /f > /dev/null; echo > /ready; sleep 1000";
    let bundle = bundle
        .shell(script)
        .set("/linux/resources/pids", json!({"limit": 40}))
        .set("/linux/resources/memory", json!({"limit": 268_435_456}));
    bundle.start();
    eventually("the container has done something", || bundle.rootfs("ready").exists());
    let ours = event(&bundle.ok(&["events", "--stats", &bundle.id]));
    std::fs::remove_file(bundle.rootfs("ready")).expect("remove");
    bundle.ok(&["delete", "--force", &bundle.id]);

    let runc = |arguments: &[&str]| {
        let mut command = Command::new(RUNC);
        command.arg("--root").arg(bundle.path("runc")).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        command
    };
    let folder = bundle.path("bundle");
    let created = runc(&["run", "--detach", "--bundle", folder.to_str().expect("utf-8"), &bundle.id])
        .stdout(Stdio::null())
        .status()
        .expect("runc runs");
    assert!(created.success());
    eventually("runc's container has done something", || bundle.rootfs("ready").exists());
    let output = runc(&["events", "--stats", &bundle.id]).output().expect("runc runs");
    runc(&["delete", "--force", &bundle.id]).status().expect("runc runs");
    let theirs = event(&String::from_utf8_lossy(&output.stdout));

    let all = |value: &Value| {
        let mut found = BTreeSet::new();
        keys(value, "", &mut found);
        found
    };
    let (ours, theirs) = (all(&ours), all(&theirs));
    // What a device or a counter did in one run and not in the other, and what runc has had only since 1.2.
    let by_chance = ["/blkio/", "/throttling/", "/failcnt", "/kernelTCP/", "/percpu", "/cache", "/kernel/", "/swap/"];
    let newer = ["/psi", "/event_count", "/memory/usage/max"];
    let odd = |path: &&String| !by_chance.iter().chain(&newer).any(|part| path.contains(part));
    let differing: Vec<&String> = ours.symmetric_difference(&theirs).filter(odd).collect();
    assert_eq!(differing, Vec::<&String>::new(), "only in one of ours {ours:#?} and theirs {theirs:#?}");
    for path in ["/type", "/id", "/data/cpu/usage/total", "/data/memory/usage/usage", "/data/pids/limit"] {
        assert!(ours.contains(path), "{path}");
    }
}

#[test]
fn statistics_are_of_this_container() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("dd if=/dev/zero of=/dev/shm/f bs=1M count=8 2>/dev/null; echo > /ready; sleep 1000")
        .set("/linux/resources/pids", json!({"limit": 40}))
        .set("/linux/resources/memory", json!({"limit": 268_435_456}));
    bundle.start();
    eventually("memory is in use", || bundle.rootfs("ready").exists());
    let stats = event(&bundle.ok(&["events", "--stats", &bundle.id]));
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(bundle.id)));
    let data = &stats["data"];
    assert_eq!(data["pids"]["limit"], 40);
    assert_eq!(data["memory"]["usage"]["limit"], 268_435_456);
    let usage = data["memory"]["usage"]["usage"].as_u64().expect("usage");
    assert!((8 << 20..200 << 20).contains(&usage), "{usage}");
    assert!(data["cpu"]["usage"]["total"].as_u64().expect("total") > 0);
    assert!((1..=3).contains(&data["pids"]["current"].as_u64().expect("pids")));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    assert!(bundle.fails(&["events", "--stats", &bundle.id]).contains("not running"));
}

fn watch(bundle: &Bundle, interval: &str) -> (Child, impl Iterator<Item = Value> + use<>) {
    let mut command = bundle.command(&["events", "--interval", interval, &bundle.id]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the runtime runs");
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    (child, lines.map(|line| event(&line.expect("a line"))))
}

#[test]
fn events_stream_until_the_container_ends() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    let (mut child, mut events) = watch(&bundle, "50ms");
    for _ in 0..3 {
        assert_eq!(events.next().expect("an event")["type"], "stats");
    }
    if !is_ours() {
        println!("skipped: Debian's runc ends when the cgroup is gone, and not with the container");
        bundle.ok(&["delete", "--force", &bundle.id]);
    } else {
        bundle.ok(&["kill", &bundle.id, "KILL"]);
    }
    assert!(events.all(|event| event["type"] == "stats"));
    assert!(child.wait().expect("events end").success());
}

#[test]
fn want_of_memory_is_an_event() {
    let Some(bundle) = Bundle::new() else { return };
    // The shell outlives the command that takes too much.
    let bundle = bundle
        .shell("while [ ! -e /go ]; do sleep 0.05; done; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 1000")
        .set("/linux/resources/memory", json!({"limit": 16_777_216, "swap": 16_777_216}));
    bundle.start();
    // Statistics show that the watch is there.
    let (mut child, mut events) = watch(&bundle, "50ms");
    assert_eq!(events.next().expect("an event")["type"], "stats");
    std::fs::write(bundle.rootfs("go"), "").expect("write");
    let oom = events.find(|event| event["type"] == "oom").expect("an oom event");
    assert_eq!(oom, json!({"type": "oom", "id": bundle.id}));
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(events.filter(|event| event["type"] == "oom").count(), 0, "the end of the cgroup is no such event");
    assert!(child.wait().expect("events end").success());
}

#[test]
fn intervals_are_checked() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    for bad in ["0s", "-1s", "soon"] {
        let flag = format!("--interval={bad}");
        bundle.fails(&["events", &flag, &bundle.id]);
    }
}
