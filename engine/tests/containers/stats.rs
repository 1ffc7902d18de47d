//! Resource use, processes, and what waits: shapes as dockerd's.

use super::sh;
use crate::stack::{Stack, eventually};
use serde_json::{Value, json};

#[test]
fn samples_have_dockers_fields_alive_and_ended() {
    let Some(stack) = Stack::start() else { return };
    let mut config = sh("while :; do :; done");
    config["HostConfig"] = json!({"Memory": 64 << 20});
    let id = stack.create("?name=box", &config);
    let ended = stack.get("/containers/box/stats?stream=0").json();
    // From dockerd 20.10.
    assert_eq!((&ended["memory_stats"], &ended["pids_stats"]), (&json!({}), &json!({})));
    assert_eq!(ended["blkio_stats"]["io_service_bytes_recursive"], Value::Null);
    assert_eq!(ended["read"], "0001-01-01T00:00:00Z");
    stack.start_container("box");
    let sample = stack.get("/containers/box/stats?stream=false").json();
    assert_eq!((&sample["name"], &sample["id"]), (&json!("/box"), &json!(id)));
    let used = |stats: &Value| stats["cpu_usage"]["total_usage"].as_u64().unwrap();
    assert!(used(&sample["cpu_stats"]) > used(&sample["precpu_stats"]), "{sample}");
    assert!(sample["cpu_stats"]["system_cpu_usage"].as_u64() > sample["precpu_stats"]["system_cpu_usage"].as_u64());
    assert!(sample["cpu_stats"]["online_cpus"].as_u64() > Some(0));
    assert!(sample["read"].as_str() > sample["preread"].as_str());
    let memory = &sample["memory_stats"];
    assert_eq!(memory["limit"], 64 << 20);
    assert!(memory["usage"].as_u64() > Some(0));
    let keys = match memory.get("max_usage") {
        Some(_) => vec![
            "cache",
            "rss",
            "total_inactive_file",
            "inactive_file",
            "hierarchical_memory_limit",
            "pgpgin",
            "total_rss_huge",
        ],
        None => vec!["anon", "file", "inactive_file", "slab", "pgscan", "thp_collapse_alloc"],
    };
    for key in keys {
        assert!(memory["stats"][key].is_u64(), "{key}: {memory}");
    }
    assert!(sample["pids_stats"]["current"].as_u64() > Some(0));
    assert!(sample["blkio_stats"]["io_serviced_recursive"].is_array() || memory.get("max_usage").is_none(), "{sample}");
    assert!(sample["networks"]["eth0"]["rx_bytes"].is_u64(), "{}", sample["networks"]);
    // One alone, at once: nothing before it.
    let alone = stack.get("/containers/box/stats?stream=0&one-shot=1").json();
    assert_eq!((used(&alone["precpu_stats"]), &alone["preread"]), (0, &json!("0001-01-01T00:00:00Z")));
    assert_eq!(stack.get("/containers/box/stats?stream=1&one-shot=1").status, 400);
}

#[test]
fn processes_by_the_columns_of_ps() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &sh("sleep 1234 & wait"));
    stack.start_container("box");
    eventually("both run", || {
        let top = stack.get("/containers/box/top?ps_args=-o%20pid,cmd").json();
        assert_eq!(top["Titles"], json!(["PID", "CMD"]));
        let rows = top["Processes"].as_array().unwrap();
        let has = |text: &str| rows.iter().any(|row| row[1] == text);
        if has("sleep 1234") && has("sh -c sleep 1234 & wait") { Ok(()) } else { Err(top.to_string()) }
    });
    let full = stack.get("/containers/box/top").json();
    assert_eq!(full["Titles"], json!(["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]));
    let refused = stack.get("/containers/box/top?ps_args=-o%20user");
    assert_eq!((refused.status, refused.message().as_str()), (500, "Couldn't find PID field in ps output"));
    assert_eq!(stack.get("/containers/box/top?ps_args=--nope").status, 500);
    assert_eq!(stack.post("/containers/box/kill", &Value::Null).status, 204);
    assert_eq!(stack.get("/containers/box/top").status, 409);
}

#[test]
fn waits_end_with_each_condition() {
    let Some(stack) = Stack::start() else { return };
    let id = stack.create("?name=box", &sh("exit 4"));
    // Never started: it is not running.
    assert_eq!(stack.wait("box", "not-running"), 0);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| stack.wait(&id, "next-exit"));
        let removed = scope.spawn(|| stack.wait(&id, "removed"));
        eventually("both wait", || {
            let connections = stack.engine_descriptors();
            if connections > 2 { Ok(()) } else { Err(connections.to_string()) }
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        stack.start_container("box");
        assert_eq!(next.join().unwrap(), 4);
        assert_eq!(stack.delete("/containers/box").status, 204);
        assert_eq!(removed.join().unwrap(), 4);
    });
    stack.create("?name=two", &sh("true"));
    let bad = stack.post("/containers/two/wait?condition=sometimes", &Value::Null);
    assert_eq!((bad.status, bad.message().as_str()), (400, "invalid condition: \"sometimes\""));
}
