//! Whose a cgroup is when its path is given to more than one container.

use std::path::Path;

use serde_json::json;

use super::bundle::{Bundle, is_ours, texts};

/// What a create leaves that was killed before it knew whether the cgroup was free, or after somebody else got it.
#[test]
fn half_a_container_does_not_own_the_cgroup_it_names() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        println!("skipped: other runtimes have other files");
        return;
    }
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    let pid = bundle.pid();
    let (folder, half) = (bundle.path("state").join(&bundle.id), format!("{}-half", bundle.id));
    let mut state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("state.json")).expect("state.json")).expect("json");
    state["id"] = json!(half);
    state["pid"] = json!(0);
    for text in [state.to_string(), "cut short".to_owned()] {
        let folder = bundle.path("state").join(&half);
        std::fs::create_dir(&folder).expect("folder");
        std::fs::write(folder.join("state.json"), text).expect("write");
        std::fs::copy(bundle.path("bundle/config.json"), folder.join("config.json")).expect("copy");
        let output = bundle.call(&["delete", "--force", &half]);
        assert!(output.status.success(), "{output:?}");
        let stderr = texts(&output).1;
        assert!(stderr.contains("is left alone: somebody else is in it"), "{stderr}");
        assert!(!folder.exists());
        assert_eq!((bundle.state()["status"].as_str(), bundle.pid()), (Some("running"), pid));
    }
    bundle.ok(&["exec", &bundle.id, "true"]);
}

#[test]
fn what_another_container_has_left_is_refused() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        println!("skipped: runc shares it, and deletes one container with the other");
        return;
    }
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    let (folder, other) = (bundle.path("bundle").display().to_string(), format!("{}-other", bundle.id));
    let error = bundle.fails(&["run", "--detach", "--bundle", &folder, &other]);
    assert!(error.contains(&format!("is that of container {}; delete that one first", bundle.id)), "{error}");
    assert!(!bundle.path("state").join(&other).exists());
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_left();
    // One that nobody has is taken over, with what is set in it.
    let root = Path::new("/sys/fs/cgroup");
    let controller = if root.join("cgroup.controllers").exists() { "" } else { "pids" };
    let left = root.join(controller).join(format!("berth-{}", bundle.id));
    std::fs::create_dir(&left).expect("cgroup");
    bundle.start();
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_left();
}
