//! What an operator sees: metrics, `/info`, `/version`, `/debug/vars`, `/system/df`, prunes, budgets.

use super::{
    engine,
    stack::{Stack, eventually},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

fn scrape(stack: &Stack) -> String {
    let mut stream = UnixStream::connect(stack.root().join("metrics.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn sample(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("{name} in {page}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn metrics_have_dockers_names() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("metrics.sock");
    let stack = engine!(&format!("metrics-addr = 'unix://{}'\n", at.display()));
    std::os::unix::fs::symlink(&at, stack.root().join("metrics.sock")).unwrap();
    let id = stack.create("?name=measured", &json!({"Cmd": ["sleep", "1000"]}));
    stack.start_container(&id);
    assert_eq!(stack.get("/containers/none/json").status, 404);
    let (_, _events) = stack.begin("GET", "/events");
    let page = scrape(&stack);
    for (name, wanted) in [
        ("engine_daemon_container_actions_seconds_count{action=\"start\"}", 1.0),
        ("engine_daemon_container_actions_seconds_count{action=\"create\"}", 1.0),
        ("engine_daemon_container_states_containers{state=\"running\"}", 1.0),
        ("engine_daemon_container_states_containers{state=\"paused\"}", 0.0),
        ("berth_engine_requests_total{status=\"4xx\"}", 1.0),
        ("berth_engine_panics_total", 0.0),
    ] {
        assert!((sample(&page, name) - wanted).abs() < 0.5, "{name} in {page}");
    }
    assert!(sample(&page, "engine_daemon_events_subscribers_total") >= 1.0);
    assert!(sample(&page, "process_open_fds") > 5.0 && page.contains("engine_daemon_engine_info{"));
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() && name.starts_with(|c: char| c.is_ascii_alphabetic()), "{line}");
    }
    let variables = stack.get("/debug/vars").json();
    assert!(variables["cmdline"][0].as_str().unwrap().contains("berth-engine") && variables["containers"] == 1);
}

/// Every field that dockerd 28 has in these answers; those of swarm, Windows and Go have the value for "none".
#[test]
fn info_and_version_are_whole() {
    let stack = engine!();
    let info = stack.get("/info").json();
    for field in "ID Containers ContainersRunning ContainersPaused ContainersStopped Images Driver DriverStatus Plugins MemoryLimit SwapLimit \
                  CpuCfsPeriod CpuCfsQuota CPUShares CPUSet PidsLimit OomKillDisable IPv4Forwarding Debug NFd NGoroutines SystemTime \
                  LoggingDriver CgroupDriver CgroupVersion NEventsListener KernelVersion OperatingSystem OSVersion OSType Architecture \
                  IndexServerAddress RegistryConfig NCPU MemTotal GenericResources DockerRootDir HttpProxy HttpsProxy NoProxy Name Labels \
                  ExperimentalBuild ServerVersion Runtimes DefaultRuntime Swarm LiveRestoreEnabled Isolation InitBinary ContainerdCommit \
                  RuncCommit InitCommit SecurityOptions FirewallBackend CDISpecDirs Containerd Warnings"
        .split_whitespace()
    {
        assert!(info.get(field).is_some(), "{field} is missing in {info}");
    }
    assert_eq!(info["Swarm"]["LocalNodeState"], "inactive");
    assert_eq!(
        (&info["CgroupDriver"], &info["LiveRestoreEnabled"], &info["Warnings"]),
        (&json!("cgroupfs"), &json!(true), &Value::Null)
    );
    let version = stack.get("/version").json();
    for field in
        "Platform Components Version ApiVersion MinAPIVersion GitCommit GoVersion Os Arch KernelVersion BuildTime"
            .split_whitespace()
    {
        assert!(version.get(field).is_some(), "{field} is missing in {version}");
    }
    let names: Vec<&str> =
        version["Components"].as_array().unwrap().iter().filter_map(|c| c["Name"].as_str()).collect();
    assert_eq!(names, ["Engine", "supervisor", "berth-runtime"]);
}

fn filters(value: &Value) -> String {
    value.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn df_and_prunes_of_all_kinds() {
    let stack = engine!();
    stack.create("?name=keep", &json!({"Cmd": ["true"], "Labels": {"keep": "1"}}));
    let gone = stack.create("?name=gone", &json!({"Cmd": ["true"]}));
    for (name, labels) in [("kept", json!({"keep": "1"})), ("loose", json!({}))] {
        assert_eq!(stack.post("/volumes/create", &json!({"Name": name, "Labels": labels})).status, 201);
    }
    let df = stack.get("/system/df").json();
    assert_eq!((df["Containers"].as_array().unwrap().len(), df["Volumes"].as_array().unwrap().len()), (2, 4));
    assert!(df["LayersSize"].as_i64().unwrap() > 0 && df["BuildCache"] == json!([]));
    assert_eq!(df["Images"][0]["Containers"], 2);
    let volumes = stack.get("/system/df?type=volume").json();
    assert!(volumes["Images"].is_null());
    let rows = volumes["Volumes"].as_array().unwrap();
    let loose = rows.iter().find(|row| row["Name"] == "loose").unwrap();
    assert_eq!(loose["UsageData"]["RefCount"], 0);
    assert_eq!(rows.iter().filter(|row| row["UsageData"]["RefCount"] == 1).count(), 2, "those of the image");
    assert_eq!(stack.get("/system/df?type=nonsense").status, 400);

    let prune = |kind: &str, wanted: Value| {
        let answer = stack.post(&format!("/{kind}/prune?filters={}", filters(&wanted)), &Value::Null);
        assert_eq!(answer.status, 200, "{kind} {wanted}: {}", answer.text());
        answer.json()
    };
    assert_eq!(prune("containers", json!({"until": ["1h"]}))["ContainersDeleted"], Value::Null);
    assert_eq!(prune("containers", json!({"label!": ["keep"]}))["ContainersDeleted"], json!([gone]));
    assert_eq!(prune("volumes", json!({"label": ["no-such"], "all": ["true"]}))["VolumesDeleted"], json!([]));
    let removed = prune("volumes", json!({"all": ["true"], "label!": ["keep"]}))["VolumesDeleted"].clone();
    let removed: Vec<&str> = removed.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(removed.contains(&"loose") && !removed.contains(&"kept") && removed.len() == 2, "{removed:?}");
    assert_eq!(prune("images", json!({"dangling": ["true"]}))["ImagesDeleted"], Value::Null);
    assert_eq!(prune("build", json!({"until": ["1h"]})), json!({"CachesDeleted": null, "SpaceReclaimed": 0}));
    // The image of a container stays whatever is asked.
    assert_eq!(prune("images", json!({"dangling": ["false"]}))["ImagesDeleted"], Value::Null);
    for (kind, bad) in [
        ("containers", json!({"nonsense": ["x"]})),
        ("images", json!({"dangling": ["perhaps"]})),
        ("images", json!({"nonsense": ["x"]})),
        ("volumes", json!({"until": ["1h"]})),
        ("build", json!({"nonsense": ["x"]})),
    ] {
        let answer = stack.post(&format!("/{kind}/prune?filters={}", filters(&bad)), &Value::Null);
        assert_eq!(answer.status, 400, "{kind} {bad}: {}", answer.text());
    }
    assert_eq!(prune("containers", json!({}))["ContainersDeleted"].as_array().unwrap().len(), 1);
    let pruned = prune("images", json!({"dangling": ["false"]}));
    assert!(pruned["ImagesDeleted"].as_array().unwrap().contains(&json!({"Untagged": "test:latest"})), "{pruned}");
    assert!(pruned["SpaceReclaimed"].as_i64().unwrap() > 0, "{pruned}");
}

/// User-pain 9: what nobody named goes by itself, oldest first; what has a name or a container stays.
#[test]
fn images_keep_within_their_budget() {
    let stack = engine!("image-budget = '1M'\n");
    let id = stack.create("?name=base", &json!({"Cmd": ["true"]}));
    let commit = |text: &str| {
        let answer = stack.post(&format!("/commit?container={id}&repo=mine"), &json!({"Labels": {"n": text}}));
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["Id"].as_str().unwrap().to_owned()
    };
    let old = commit("1");
    let named = commit("2");
    let there = |id: &str| stack.get(&format!("/images/{id}/json")).status == 200;
    assert!(there(&old) && there(&named));
    // An import is a reason to look.
    let archive = [0_u8; 1024];
    let answer = stack.request("POST", "/images/create?fromSrc=-&repo=more", "application/x-tar", &archive);
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("the image without a name is gone", || if there(&old) { Err("it is there".into()) } else { Ok(()) });
    assert!(there(&named) && there("test") && there("more"));
    eventually("the log says so", || {
        let log = std::fs::read_to_string(stack.root().join("engine.log")).unwrap();
        if log.contains("images are over their budget, and what is left has a name or is in use") {
            Ok(())
        } else {
            Err(log)
        }
    });
}

/// Of all rotated logs together the oldest go; the files that are written to stay.
#[test]
fn logs_keep_within_their_budget() {
    let stack = engine!("log-budget = '60k'\nimage-budget = 'off'\n");
    let mut folders = Vec::new();
    for name in ["first", "second"] {
        let log = json!({"Type": "json-file", "Config": {"max-size": "20k", "max-file": "4"}});
        let id = stack.create(
            &format!("?name={name}"),
            &json!({"Cmd": ["sh", "-c", "seq 1 2000"], "HostConfig": {"LogConfig": log}}),
        );
        stack.start_container(&id);
        assert_eq!(stack.wait(&id, "not-running"), 0);
        folders.push(stack.data().join("engine/containers").join(&id));
    }
    let sizes = || -> Vec<(String, u64)> {
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap().flatten());
        let logs = entries.filter(|entry| entry.file_name().to_string_lossy().contains("-json.log"));
        logs.map(|entry| (entry.file_name().to_string_lossy()[64..].to_owned(), entry.metadata().unwrap().len()))
            .collect()
    };
    assert!(sizes().iter().map(|(_, size)| size).sum::<u64>() > 60 << 10, "{:?}", sizes());
    let answer = stack.request("POST", "/images/create?fromSrc=-&repo=more", "application/x-tar", &[0; 1024]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("the oldest are gone", || {
        let now = sizes();
        if now.iter().map(|(_, size)| size).sum::<u64>() <= 60 << 10 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let left = sizes();
    assert_eq!(left.iter().filter(|(name, _)| name == "-json.log").count(), 2, "{left:?}");
    // What is left of a log is still read.
    assert!(stack.get("/containers/second/logs?stdout=1&tail=1").streams().0.starts_with("2000"));
    assert_eq!(stack.get("/containers/first/logs?stdout=1").status, 200);
}
