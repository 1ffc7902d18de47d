//! The suite itself run by an ordinary user who has a delegated cgroup: the second part of `make test-vm`. Under systemd it
//! is a service of the user's own manager, elsewhere a directory that was given to the user.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::bundle::{Bundle, eventually, is_ours, texts};

/// The user's bundle, and the directory of the cgroup that the suite runs in.
fn delegated() -> Option<(Bundle, PathBuf)> {
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).map(|path| Path::new("/sys/fs/cgroup").join(path));
    let ordinary = !nix::unistd::geteuid().is_root();
    let mine = |path: &PathBuf| nix::unistd::access(&path.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK).is_ok();
    let Some(own) = own.filter(|path| ordinary && mine(path)) else {
        println!("skipped: needs an ordinary user in a delegated cgroup (make test-vm)");
        return None;
    };
    if !is_ours() {
        println!("skipped: where containers of ordinary users go is each runtime's own");
        return None;
    }
    let mut bundle = Bundle::unprivileged()?;
    let config = bundle.path("bundle/config.json");
    let _ = std::fs::remove_file(&config);
    let folder = bundle.path("bundle");
    bundle.ok(&["spec", "--rootless", "--bundle", folder.to_str().expect("utf-8")]);
    bundle.config = serde_json::from_slice(&std::fs::read(config).expect("config.json")).expect("json");
    bundle.config["process"]["terminal"] = json!(false);
    Some((bundle, own))
}

fn value(bundle: &Bundle, file: &str) -> String {
    let path = bundle.cgroup("").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

fn limited(bundle: Bundle) -> Bundle {
    bundle.shell("sleep 1000").set("/linux/resources", json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 23}}))
}

/// Limits, pause, exec, update, kill: what takes a cgroup of one's own.
fn life(bundle: &Bundle) {
    assert_eq!((value(bundle, "memory.max"), value(bundle, "pids.max")), ("67108864".into(), "23".into()));
    let within = std::fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).expect("cgroup");
    bundle.ok(&["exec", &bundle.id, "sh", "-c", "sleep 1000 &"]);
    let procs = || std::fs::read_to_string(bundle.cgroup("").join("cgroup.procs")).expect("procs").lines().count();
    eventually("exec is in the cgroup too", || procs() == 2);
    assert!(within.contains("0::/"), "{within}");
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!((bundle.state()["status"].as_str(), value(bundle, "cgroup.freeze").as_str()), (Some("paused"), "1"));
    bundle.ok(&["resume", &bundle.id]);
    bundle.ok(&["update", "--memory", "33554432", "--pids-limit", "19", &bundle.id]);
    assert_eq!((value(bundle, "memory.max"), value(bundle, "pids.max")), ("33554432".into(), "19".into()));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
}

#[test]
fn rootless_limits_hold_in_a_delegated_cgroup() {
    let Some((bundle, own)) = delegated() else { return };
    let bundle = limited(bundle);
    bundle.start();
    let cgroup = bundle.cgroup("");
    let near = own.parent().expect("a parent");
    assert!(cgroup.starts_with(near) && cgroup != own, "{} near {}", cgroup.display(), own.display());
    life(&bundle);
    bundle.ok(&["delete", &bundle.id]);
    assert!(!cgroup.exists(), "{} is left", cgroup.display());
}

#[test]
fn rootless_systemd_makes_a_scope_of_the_users() {
    let Some((bundle, _)) = delegated() else { return };
    if !Path::new("/run/systemd/system").exists() {
        println!("skipped: systemd is not pid 1");
        return;
    }
    let bundle = limited(bundle);
    bundle.write_config();
    let folder = bundle.path("bundle");
    let log = bundle.path("create.log");
    let mut command =
        bundle.command(&["--systemd-cgroup", "create", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    let status =
        command.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).expect("a file")).status();
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(status.expect("the runtime runs").success(), "create: {said}");
    bundle.ok(&["start", &bundle.id]);
    let cgroup = bundle.cgroup("");
    let shown = cgroup.display().to_string();
    assert!(shown.contains("/user.slice/user-") && shown.ends_with(&format!("{}.scope", bundle.id)), "{shown}");
    life(&bundle);
    bundle.ok(&["delete", &bundle.id]);
    eventually("the scope is gone", || !cgroup.exists());
}

#[test]
fn rootless_a_limit_outside_of_what_is_delegated_is_refused() {
    let Some((bundle, _)) = delegated() else { return };
    let bundle = limited(bundle).set("/linux/cgroupsPath", json!("/not-for-users/x"));
    bundle.write_config();
    let folder = bundle.path("bundle");
    let (_, stderr) = texts(&bundle.call(&["run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]));
    assert!(stderr.contains("not-for-users") && stderr.contains("delegated"), "{stderr}");
    bundle.assert_nothing_left();
}
