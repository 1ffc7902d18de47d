//! Options of the local driver, and what lists and `prune` make of volumes with them.

use crate::{await_unmounted, is_mounted, make, stdout, with};
use integration_tests::{Stack, eventually};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::MetadataExt};

#[test]
fn what_mount_is_told() {
    let stack = Stack::with_busybox();
    make(&stack, "memory", "tmpfs", "size=1m,uid=7,mode=700,noexec", "tmpfs");
    let script = "stat -c '%u %a' /v; grep ' /v ' /proc/mounts; cp /bin/busybox /v/x; dd if=/dev/zero of=/v/y bs=64k count=32 2>&1";
    let seen = with(&stack, "memory", script).expect_code(1).stdout();
    assert!(
        seen.starts_with("7 700\n") && seen.contains("noexec") && seen.contains("No space left on device"),
        "{seen}"
    );
    await_unmounted(&stack, "memory");

    let outside = stack.path().join("outside");
    fs::create_dir(&outside).unwrap();
    make(&stack, "bound", "none", "bind,ro", outside.to_str().unwrap());
    let refused = with(&stack, "bound", "echo x >/v/x").expect_code(1);
    assert!(refused.stderr().contains("Read-only file system"), "{refused}");
    // Such a folder lives on, and was never copied into.
    make(&stack, "rw", "none", "bind", outside.to_str().unwrap());
    with(&stack, "rw", "echo kept >/v/kept").success();
    await_unmounted(&stack, "rw");
    stdout(&stack, &["volume", "rm", "bound", "rw"]);
    assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept\n");

    // With docker's exit codes: 127 for what isn't found.
    for (name, kind, options, device, why, code) in [
        ("folder", "none", "bind", "/no/such/folder", "no such file or directory", 127),
        ("kind", "no-such-type", "ro", "none", "no such device", 125),
        ("word", "tmpfs", "no-such-word=1", "tmpfs", "invalid argument", 125),
    ] {
        make(&stack, name, kind, options, device);
        let refused = with(&stack, name, "true").expect_code(code);
        let said = refused.stderr();
        assert!(
            said.contains(&format!("failed to mount local volume: mount {device}:")) && said.contains(why),
            "{refused}"
        );
        assert!(!is_mounted(&stack, name));
        // Nobody uses it: the container was not made, or is gone again.
        eventually(&format!("{name} can be removed"), || {
            (stack.berth(["volume", "rm", name]).code() == 0).then_some(())
        });
    }
    let long = format!("o=mode=700,{}", "x".repeat(4096));
    let refused = stack.berth(["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", &long, "long"]);
    assert!(refused.stderr().contains("mount options of 4105 bytes: the kernel takes 4095"), "{refused}");
    let port = ["volume", "create", "-o", "type=cifs", "-o", "device=//server:445/share", "port"];
    let refused = stack.berth(port).expect_code(1);
    assert!(refused.stderr().contains("port not allowed in CIFS device URL, include 'port' in 'o='"), "{refused}");
}

#[test]
fn an_engine_that_was_killed_leaves_no_mount() {
    let stack = Stack::with_busybox();
    make(&stack, "memory", "tmpfs", "size=1m", "tmpfs");
    stdout(&stack, &["run", "-d", "--init", "--name", "box", "-v", "memory:/v", "busybox", "sleep", "1000"]);
    let at = stack.data_root().join("engine/volumes/memory/_data");
    let device = fs::metadata(&at).unwrap().dev();
    stack.kill_engine();
    let pid = stdout_pid(&stack);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    stack.start_engine();
    stack.await_status("box", "exited");
    await_unmounted(&stack, "memory");
    assert_ne!(fs::metadata(&at).unwrap().dev(), device);
    stdout(&stack, &["rm", "box"]);
}

/// The container's first process, by its command line.
fn stdout_pid(stack: &Stack) -> i32 {
    let file = stack.path().join("data");
    let text = |pid: &str, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let found = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut found = found.filter(|pid| {
        let mounts = text(pid, "mountinfo");
        text(pid, "cmdline").replace('\0', " ").contains("sleep 1000") && mounts.contains(&file.display().to_string())
    });
    found.next().expect("its process").parse().unwrap()
}

#[test]
fn lists_and_prune() {
    let stack = Stack::with_busybox();
    let api = stack.api();
    for (name, labels) in [("plain", json!({})), ("labelled", json!({"a": "1", "b": ""})), ("used", json!({}))] {
        api.post("/volumes/create", Some(&json!({"Name": name, "Labels": labels}))).expect(201);
    }
    make(&stack, "memory", "tmpfs", "size=1m", "tmpfs");
    let anonymous = api.post("/volumes/create", Some(&json!({}))).expect(201).json();
    let anonymous = anonymous["Name"].as_str().unwrap().to_owned();
    stdout(&stack, &["create", "--name", "box", "-v", "used:/v", "busybox"]);
    let listed = |filters: Value| -> Vec<String> {
        let filters: String = filters.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
        let rows = api.get(&format!("/v1.43/volumes?filters={filters}")).expect(200).json();
        rows["Volumes"].as_array().unwrap().iter().map(|row| row["Name"].as_str().unwrap().to_owned()).collect()
    };
    for (filters, wanted) in [
        (json!({"dangling": ["false"]}), &["used"][..]),
        (json!({"dangling": {"true": true}, "name": ["l"]}), &["labelled", "plain"]),
        (json!({"name": ["^pl", "sed"]}), &["used"]),
        (json!({"label": ["a=1", "b"]}), &["labelled"]),
        (json!({"label": ["a=2"]}), &[]),
        (json!({"driver": ["local"], "name": ["plain"]}), &["plain"]),
        (json!({"driver": ["other"]}), &[]),
    ] {
        assert_eq!(listed(filters.clone()), wanted, "{filters}");
    }
    api.get("/v1.43/volumes?filters=%7B%22odd%22%3A%5B%221%22%5D%7D").expect(400);
    let usage = api.get("/v1.43/system/df?type=volume").expect(200).json();
    let mut rows: Vec<_> =
        usage["Volumes"].as_array().unwrap().iter().map(|row| row["Name"].as_str().unwrap()).collect();
    rows.retain(|name| *name != anonymous);
    assert_eq!(rows, ["labelled", "plain", "used"], "what is mounted takes nothing here");

    let prune = |filters: &str| -> Vec<String> {
        let said = api.post(&format!("/v1.43/volumes/prune{filters}"), None).expect(200).json();
        assert!(said["SpaceReclaimed"].is_u64(), "{said}");
        let mut names: Vec<String> =
            said["VolumesDeleted"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap().into()).collect();
        names.sort();
        names
    };
    assert_eq!(prune(""), [anonymous]);
    assert_eq!(prune("?filters=%7B%22all%22%3A%5B%22true%22%5D%2C%22label%22%3A%5B%22a%22%5D%7D"), ["labelled"]);
    // Volumes with options stay, as with docker: what they show is elsewhere.
    assert_eq!(prune("?filters=%7B%22all%22%3A%5B%221%22%5D%7D"), ["plain"]);
    assert_eq!(listed(json!({})), ["memory", "used"]);
    // Before 1.42, `all` was no filter, and all was the rule.
    api.post("/volumes/create", Some(&json!({"Name": "plain"}))).expect(201);
    api.post("/v1.41/volumes/prune?filters=%7B%22all%22%3A%5B%221%22%5D%7D", None).expect(400);
    let said = api.post("/v1.41/volumes/prune", None).expect(200).json();
    assert_eq!(said["VolumesDeleted"], json!(["plain"]));
    stdout(&stack, &["rm", "box"]);
}
