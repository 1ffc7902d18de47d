//! `update`, `pause` and `resume`.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::json;

use super::bundle::{Bundle, eventually, is_ours, texts};

fn unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What a limit's file says; its name on v1 and on cgroup2. `None` where the kernel has no such file.
fn limit(bundle: &Bundle, controller: &str, legacy: &str, modern: &str) -> Option<String> {
    let path = bundle.cgroup(controller).join(if unified() { modern } else { legacy });
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn memory(bundle: &Bundle) -> Option<String> {
    limit(bundle, "memory", "memory.limit_in_bytes", "memory.max")
}

fn with_stdin(bundle: &Bundle, arguments: &[&str], text: &str) -> Output {
    let mut command = bundle.command(arguments);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the runtime runs");
    child.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write");
    child.wait_with_output().expect("output")
}

#[test]
fn update_takes_every_flag() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    for (flag, value, controller, legacy, modern, expected) in [
        ("--memory", "64m", "memory", "memory.limit_in_bytes", "memory.max", ["67108864"; 2]),
        ("--memory", "48MiB", "memory", "memory.limit_in_bytes", "memory.max", ["50331648"; 2]),
        ("--memory-reservation", "32M", "memory", "memory.soft_limit_in_bytes", "memory.low", ["33554432"; 2]),
        ("--cpu-share", "512", "cpu", "cpu.shares", "cpu.weight", ["512", "59"]),
        ("--cpu-quota", "30000", "cpu", "cpu.cfs_quota_us", "cpu.max", ["30000", "30000 100000"]),
        ("--cpu-period", "50000", "cpu", "cpu.cfs_period_us", "cpu.max", ["50000", "30000 50000"]),
        ("--cpu-burst", "1000", "cpu", "cpu.cfs_burst_us", "cpu.max.burst", ["1000"; 2]),
        ("--cpu-quota", "-1", "cpu", "cpu.cfs_quota_us", "cpu.max", ["-1", "max 50000"]),
        ("--cpu-idle", "1", "cpu", "cpu.idle", "cpu.idle", ["1"; 2]),
        ("--cpuset-cpus", "0", "cpuset", "cpuset.cpus", "cpuset.cpus", ["0"; 2]),
        ("--cpuset-mems", "0", "cpuset", "cpuset.mems", "cpuset.mems", ["0"; 2]),
        ("--pids-limit", "33", "pids", "pids.max", "pids.max", ["33"; 2]),
        ("--pids-limit", "-1", "pids", "pids.max", "pids.max", ["max"; 2]),
    ] {
        let now = || limit(&bundle, controller, legacy, modern);
        if now().is_none() {
            println!("skipped: {flag}: the kernel has no {legacy} or {modern}");
            continue;
        }
        if !is_ours() && (["--cpu-burst", "--cpu-idle"].contains(&flag) || flag == "--cpu-share" && unified()) {
            println!("skipped: {flag}: newer than Debian's runc");
            continue;
        }
        bundle.ok(&["update", flag, value, &bundle.id]);
        assert_eq!(now().as_deref(), Some(expected[usize::from(unified())]), "{flag} {value}");
    }
    if is_ours() {
        let (_, stderr) = texts(&bundle.call(&["update", "--kernel-memory", "1m", &bundle.id]));
        assert!(stderr.contains("--kernel-memory is obsolete and ignored"), "{stderr}");
        let stderr = bundle.fails(&["update", "--memory", "lots", &bundle.id]);
        assert!(stderr.contains("--memory: \"lots\" is neither a number of bytes"), "{stderr}");
    }
}

#[test]
fn update_reads_resources_from_stdin_and_from_a_file() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    let resources = json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 21}, "cpu": {}}).to_string();
    let output = with_stdin(&bundle, &["update", "--resources", "-", &bundle.id], &resources);
    assert!(output.status.success(), "{:?}", texts(&output));
    assert_eq!(memory(&bundle).as_deref(), Some("67108864"));
    let file = bundle.path("resources.json");
    std::fs::write(&file, json!({"pids": {"limit": 22}}).to_string()).expect("write");
    bundle.ok(&["update", "-r", file.to_str().expect("utf-8"), &bundle.id]);
    assert_eq!(limit(&bundle, "pids", "pids.max", "pids.max").as_deref(), Some("22"));
    assert_eq!(memory(&bundle).as_deref(), Some("67108864"), "what is left out stays");
    let output = with_stdin(&bundle, &["update", "-r", "-", &bundle.id], "{");
    assert!(!output.status.success());
}

#[test]
fn memory_and_swap_change_together_in_either_direction() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    let swap = || limit(&bundle, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
    if swap().is_none() {
        println!("skipped: the kernel does not account for swap");
        return;
    }
    // Together on v1, swap alone on cgroup2.
    for (limit, both, alone) in
        [("33554432", "67108864", "33554432"), ("134217728", "268435456", "134217728"), ("16777216", "16777216", "0")]
    {
        bundle.ok(&["update", "--memory", limit, "--memory-swap", both, &bundle.id]);
        assert_eq!(memory(&bundle).as_deref(), Some(limit));
        assert_eq!(swap().as_deref(), Some(if unified() { alone } else { both }));
    }
    bundle.ok(&["update", "--memory-swap", "-1", &bundle.id]);
    bundle.ok(&["update", "--memory", "-1", &bundle.id]);
    let none = if unified() { "max" } else { "9223372036854771712" };
    assert_eq!((memory(&bundle).as_deref(), swap().as_deref()), (Some(none), Some(none)));
    if is_ours() {
        let stderr = bundle.fails(&["update", "--memory", "32m", "--memory-swap", "16m", &bundle.id]);
        assert!(stderr.contains("linux.resources.memory.swap: 16777216 for memory and swap is less"), "{stderr}");
    }
}

#[test]
fn a_failed_update_changes_nothing_and_says_which_field() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000").set("/linux/resources/memory", json!({"limit": 67_108_864}));
    bundle.start();
    // Memory comes first and could be changed; there is no such processor.
    let stderr = bundle.fails(&["update", "--memory", "33554432", "--cpuset-cpus", "4000", &bundle.id]);
    if is_ours() {
        assert!(stderr.contains("cannot set linux.resources.cpu.cpus: write \"4000\""), "{stderr}");
    }
    assert_eq!(memory(&bundle).as_deref(), Some("67108864"));
}

#[test]
fn memory_in_use_is_not_taken_away() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("dd if=/dev/zero of=/dev/shm/full bs=1M count=24 2>/dev/null; echo > /ready; sleep 1000");
    bundle.start();
    eventually("memory is in use", || bundle.rootfs("ready").exists());
    let request = json!({"memory": {"limit": 8_388_608, "checkBeforeUpdate": true}}).to_string();
    let before = memory(&bundle);
    let output = with_stdin(&bundle, &["update", "-r", "-", &bundle.id], &request);
    let (_, stderr) = texts(&output);
    // With swap the kernel may find a place for it after all: then the limit holds, and that is right too.
    if output.status.success() {
        println!("skipped: the kernel has swapped it out");
        return;
    }
    if is_ours() {
        assert!(stderr.contains("memory.limit"), "{stderr}");
        assert!(stderr.contains("in use"), "{stderr}");
    }
    assert_eq!(memory(&bundle), before);
    assert_eq!(bundle.state()["status"], "running");
}

#[test]
fn only_what_lives_is_updated() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    assert!(bundle.create(&[]));
    bundle.ok(&["update", "--pids-limit", "30", &bundle.id]);
    bundle.ok(&["start", &bundle.id]);
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["update", "--pids-limit", "31", &bundle.id]);
    assert_eq!(limit(&bundle, "pids", "pids.max", "pids.max").as_deref(), Some("31"));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    if is_ours() {
        assert!(bundle.fails(&["update", "--pids-limit", "30", &bundle.id]).contains("container not running"));
    }
}

#[test]
fn pause_and_resume_check_the_state() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    assert!(bundle.fails(&["resume", &bundle.id]).contains("container not paused"));
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    let list = bundle.ok(&["list", "--format", "json"]);
    assert!(list.contains("\"status\":\"paused\""), "{list}");
    assert!(bundle.fails(&["pause", &bundle.id]).contains("container not running"));
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.state()["status"], "running");
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    assert!(bundle.fails(&["pause", &bundle.id]).contains("container not running"));
    assert!(bundle.fails(&["resume", &bundle.id]).contains("container not paused"));
}

#[test]
fn a_created_container_can_be_paused_and_asked_about() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    assert!(bundle.create(&[]));
    bundle.ok(&["pause", &bundle.id]);
    // More often than knocks would fit in the queue of a process that does not answer.
    for _ in 0..12 {
        assert_eq!(bundle.state()["status"], "paused");
    }
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.state()["status"], "created");
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.state()["status"], "running");
}
