//! Ids and cgroup paths that try to lead elsewhere: refused by every command.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use serde_json::json;

use super::host::{Host, bounded};
use crate::bundle::texts;

/// All commands that take an id, with what else they need.
const COMMANDS: &[(&[&str], &[&str])] = &[
    (&["create", "--bundle", "BUNDLE"], &[]),
    (&["run", "--bundle", "BUNDLE"], &[]),
    (&["state"], &[]),
    (&["start"], &[]),
    (&["kill"], &["KILL"]),
    (&["kill", "--all"], &["KILL"]),
    (&["delete"], &[]),
    (&["delete", "--force"], &[]),
    (&["exec"], &["true"]),
    (&["ps"], &[]),
    (&["pause"], &[]),
    (&["resume"], &[]),
    (&["update", "--pids-limit", "5"], &[]),
    (&["events", "--stats"], &[]),
    (&["checkpoint"], &[]),
    (&["restore", "--bundle", "BUNDLE"], &[]),
];

/// crun 1.28 and 1.29, 2026-33747: an id becomes the name of a folder, a cgroup, a unit.
#[test]
fn crun_1_28_ids_that_lead_elsewhere() {
    let Some(host) = Host::of_ours() else { return };
    let bundle = &host.bundle;
    bundle.write_config();
    // What "../victim" would lead to: a container's folder, state and all.
    let victim = bundle.path("victim");
    std::fs::create_dir(&victim).expect("folder");
    std::fs::create_dir(bundle.path("state")).expect("folder");
    let state = json!({"id": "victim", "pid": 0, "startTime": 0, "bundle": "/", "rootfs": "/", "created": "", "owner": "",
        "annotations": {}, "cgroup": "berth-victim", "ownPidNamespace": true, "hooks": {}});
    std::fs::write(victim.join("state.json"), state.to_string()).expect("write");
    std::fs::write(victim.join("config.json"), bundle.config.to_string()).expect("write");
    let (long, longer) = ("x".repeat(256), "x".repeat(100_000));
    let ids: Vec<&OsStr> = [
        "..",
        ".",
        "",
        "../victim",
        "a/../../victim",
        "/victim",
        "a/b",
        "a\nb",
        "victim\n",
        "a b",
        "a\tb",
        ".hidden",
        "a:b",
        "a\\b",
        "a%b",
        "a;b",
        "ä",
        "$(id)",
        &long,
        &longer,
    ]
    .into_iter()
    .map(OsStr::new)
    .chain([OsStr::from_bytes(b"\xff\xfe"), OsStr::from_bytes(b"a\x01")])
    .collect();
    let folder = bundle.path("bundle");
    for id in ids {
        for (before, after) in COMMANDS {
            let words = before.iter().map(|word| if *word == "BUNDLE" { folder.as_os_str() } else { OsStr::new(word) });
            let words: Vec<OsString> =
                words.chain([id]).chain(after.iter().map(OsStr::new)).map(OsStr::to_owned).collect();
            let mut command = bundle.command(&[]);
            let output = bounded(command.args(&words), Duration::from_secs(10));
            let (stdout, stderr) = texts(&output);
            let what = format!("{before:?} {:?}", id.to_string_lossy().chars().take(40).collect::<String>());
            assert!(!output.status.success(), "{what}: {stdout}");
            assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
            let absent = stderr.contains("not supported yet") || stderr.contains("criu");
            assert!(stderr.contains("container id") || absent, "{what}: {stderr}");
            let left: Vec<_> = std::fs::read_dir(bundle.path("state")).expect("state").flatten().collect();
            assert!(left.is_empty(), "{what}: {left:?}");
            assert!(victim.join("state.json").exists() && victim.join("config.json").exists(), "{what}");
        }
    }
    host.assert_untouched("ids");
}

/// The same for cgroup paths of config.json.
#[test]
fn crun_1_28_cgroup_paths_that_lead_elsewhere() {
    let long = format!("/{}", "x".repeat(256));
    let deep = "/x".repeat(3000);
    for path in [
        "..",
        "../x",
        "/..",
        "/../../x",
        "/a/../../b",
        "a/..",
        "/a/./b",
        ".",
        "/.",
        "/a\nb",
        "/a\u{0}b",
        "/a\u{7f}b",
        "/a\u{85}b",
        &long,
        &deep,
    ] {
        let Some(host) = Host::of_ours() else { return };
        let host = host.with(|bundle| bundle.set("/linux/cgroupsPath", json!(path)));
        let error = host.refused(path);
        assert!(error.contains("linux.cgroupsPath"), "{path:?}: {error}");
        assert!(error.len() < 500, "{path:?}: {error}");
    }
}

/// crun 1.29: the sub-cgroup of an exec.
#[test]
fn crun_1_29_cgroups_of_exec_that_lead_elsewhere() {
    let Some(host) = Host::of_ours() else { return };
    let host = host.with(|bundle| bundle.shell("sleep 1000"));
    let bundle = &host.bundle;
    bundle.start();
    let long = "x".repeat(256);
    for path in ["..", "../..", "a/../..", "/../x", "memory:..", "memory:/../..", "a\nb", &long] {
        let error = bundle.fails(&["exec", "--cgroup", path, &bundle.id, "true"]);
        assert!(error.contains("--cgroup"), "{path:?}: {error}");
    }
}
