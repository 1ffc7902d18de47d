//! `linux.intelRdt`. What a group of resctrl does is tested beside the code, on a folder that looks like it; here, on real hardware
//! if there is some, and otherwise that its absence is told and nothing is left.

use std::path::Path;

use serde_json::json;

use super::bundle::{Bundle, is_ours};

fn resctrl() -> Option<&'static Path> {
    let root = Path::new("/sys/fs/resctrl");
    root.join("schemata").exists().then_some(root)
}

#[test]
fn without_resctrl_the_error_says_what_is_missing() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() || resctrl().is_some() {
        println!("skipped: needs berth-runtime and a machine without resctrl");
        return;
    }
    let bundle = bundle.set("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"}));
    let error = bundle.run_fails();
    assert!(error.contains("linux.intelRdt: "), "{error}");
    assert!(error.contains("no resctrl file system") || error.contains("mount -t resctrl"), "{error}");
}

#[test]
fn update_says_the_same_and_the_container_runs_on() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() || resctrl().is_some() {
        println!("skipped: needs berth-runtime and a machine without resctrl");
        return;
    }
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    for (flag, value) in [("--l3-cache-schema", "L3:0=f"), ("--mem-bw-schema", "MB:0=50")] {
        let error = bundle.fails(&["update", flag, value, &bundle.id]);
        assert!(error.contains("resctrl"), "{error}");
    }
    assert_eq!(bundle.state()["status"], "running");
}

#[test]
fn a_group_is_made_and_removed() {
    let Some(bundle) = Bundle::new() else { return };
    let Some(root) = resctrl() else {
        println!("skipped: needs resctrl (Intel RDT, AMD QoS)");
        return;
    };
    let line = std::fs::read_to_string(root.join("schemata")).expect("schemata");
    let line = line.lines().next().expect("a line").trim().to_owned();
    let bundle = bundle.shell("sleep 1000").set("/linux/intelRdt", json!({"l3CacheSchema": line}));
    bundle.start();
    let group = root.join(&bundle.id);
    let tasks = std::fs::read_to_string(group.join("tasks")).expect("tasks");
    assert!(tasks.lines().any(|task| task == bundle.pid().to_string()), "{tasks}");
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!group.exists());
}
