//! Bad input: a one-line error that names the thing, and nothing left.

use serde_json::json;

use super::bundle::{Bundle, is_ours};

#[test]
fn a_bundle_without_config() {
    let Some(bundle) = Bundle::new() else { return };
    let folder = bundle.path("bundle");
    let error = bundle.fails(&["create", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    assert!(error.contains("config.json"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    bundle.assert_nothing_left();
}

#[test]
fn malformed_json() {
    let Some(bundle) = Bundle::new() else { return };
    for text in ["", "{", "[]", "{\"process\":7}"] {
        std::fs::write(bundle.path("bundle/config.json"), text).expect("write");
        let folder = bundle.path("bundle");
        bundle.fails(&["create", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
        bundle.assert_nothing_left();
    }
}

#[test]
fn each_mistake_names_its_field() {
    if !is_ours() {
        return; // the words are our own
    }
    for (pointer, value, words) in [
        ("/process/args", json!(["no-such-program"]), "executable file not found in $PATH"),
        ("/process/args", json!(["/data"]), "is a directory"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/user", json!({"uid": 4_294_967_295_u32, "gid": 0}), "process.user.uid"),
        ("/root/path", json!("no-such-folder"), "no-such-folder"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "network", "path": "/no/such"}]), "/no/such"),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "network", "path": "/proc/self/ns/uts"}]),
            "not a namespace of the kind",
        ),
        (
            "/mounts",
            json!([{"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}]),
            "/no/such/source",
        ),
        ("/mounts", json!([{"destination": "/x", "type": "moonfs", "source": "x"}]), "moonfs"),
        (
            "/mounts",
            json!([{"destination": "/x", "type": "tmpfs", "source": "x", "options": ["size=large"]}]),
            "size=large",
        ),
        ("/linux/resources", json!({"memory": {"limit": 1}, "cpu": {"cpus": "9999"}}), "cpuset.cpus"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY cannot be the default"),
        ("/process/apparmorProfile", json!("no-such-profile"), "no-such-profile"),
    ] {
        let Some(bundle) = Bundle::new() else { return };
        let mut bundle = bundle;
        bundle.config.as_object_mut().expect("object").remove("hostname");
        let bundle = bundle.set(pointer, value);
        let error = bundle.run_fails();
        assert!(error.contains(words), "{pointer}: {error}");
        assert!(error.contains(&bundle.id), "{pointer}: {error}");
        assert_eq!(error.lines().count(), 1, "{pointer}: {error}");
    }
}

#[test]
fn ids_are_checked_by_every_command() {
    let Some(bundle) = Bundle::new() else { return };
    for id in ["../x", "a/b", "", ".hidden", "a b", "a\nb", &"x".repeat(256)] {
        for command in ["state", "start", "kill", "delete", "pause", "resume", "ps", "update", "events"] {
            let error = bundle.fails(&[command, id]);
            assert!(error.contains("container id") || !is_ours(), "{command} {id:?}: {error}");
        }
        bundle.write_config();
        let folder = bundle.path("bundle");
        bundle.fails(&["create", "--bundle", folder.to_str().expect("utf-8"), id]);
        bundle.fails(&["exec", id, "true"]);
    }
}

#[test]
fn users_of_exec_are_exact() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    for user in ["", "1000:", ":5", "1:2:3", "0x10", " 1", "4294967296", "4294967295", "root"] {
        let error = bundle.fails(&["exec", "--user", user, &bundle.id, "id"]);
        assert!(error.contains("--user"), "{user:?}: {error}");
    }
}

#[test]
fn errors_are_json_lines_for_callers() {
    let Some(bundle) = Bundle::new() else { return };
    let log = bundle.path("log.json");
    let output = bundle.call(&["--log", log.to_str().expect("utf-8"), "--log-format", "json", "state", &bundle.id]);
    assert_eq!(output.status.code(), Some(1));
    let text = std::fs::read_to_string(&log).expect("log");
    let last: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("json");
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().expect("msg").contains("does not exist") && last["time"].is_string(), "{last}");
}

#[test]
fn what_is_not_there_says_so() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    for (arguments, words) in
        [(&["dance"][..], "unknown command \"dance\""), (&["state", "--moon", "x"], "unknown flag --moon")]
    {
        let error = bundle.fails(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}

#[test]
fn the_cgroup_of_somebody_else_is_left_alone() {
    let (Some(first), Some(second)) = (Bundle::new(), Bundle::new()) else { return };
    if !is_ours() {
        return;
    }
    let first = first.shell("sleep 1000");
    first.start();
    let second = second.set("/linux/cgroupsPath", first.config["linux"]["cgroupsPath"].clone());
    let error = second.run_fails();
    assert!(error.contains("already has processes"), "{error}");
    assert_eq!(first.state()["status"], "running");
}
