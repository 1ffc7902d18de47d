//! Creating, starting, stopping, deleting; hooks; what a killed runtime leaves.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::bundle::{Bundle, eventually, texts};

#[test]
fn a_life_from_create_to_delete() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("touch /data/ran; sleep 1000").set("/annotations", json!({"who": "suite"}));
    let pid_file = bundle.path("pid");
    assert!(bundle.create(&["--pid-file", pid_file.to_str().expect("utf-8")]));
    let state = bundle.state();
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!(bundle.id)));
    assert_eq!(state["annotations"], json!({"who": "suite"}));
    assert_eq!(state["bundle"], json!(bundle.path("bundle")));
    assert_eq!(std::fs::read_to_string(&pid_file).expect("pid file"), bundle.pid().to_string());
    assert!(!bundle.rootfs("data/ran").exists(), "it must wait for start");

    bundle.ok(&["start", &bundle.id]);
    eventually("the process ran", || bundle.rootfs("data/ran").exists());
    assert_eq!(bundle.state()["status"], "running");
    bundle.fails(&["start", &bundle.id]);
    assert!(bundle.ok(&["list", "-q"]).contains(&bundle.id));
    let list: serde_json::Value = serde_json::from_str(&bundle.ok(&["list", "--format", "json"])).expect("json");
    assert_eq!(list[0]["status"], "running");

    bundle.fails(&["delete", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "SIGKILL"]);
    bundle.wait_for("stopped");
    assert_eq!(bundle.state()["pid"].as_i64().unwrap_or(0), 0);
    bundle.fails(&["kill", &bundle.id, "TERM"]);
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_left();
    bundle.fails(&["state", &bundle.id]);
}

#[test]
fn run_gives_the_status_and_cleans_up() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("echo out; echo err >&2; exit 7");
    let output = bundle.run();
    assert_eq!((output.status.code(), texts(&output)), (Some(7), ("out".into(), "err".into())));
    bundle.assert_nothing_left();
    let bundle = bundle.shell("sleep 1000 & kill -9 $!; wait $!; exit $?");
    assert_eq!(bundle.run().status.code(), Some(137));
}

#[test]
fn run_detached_leaves_it_running() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let arguments = ["run", "--detach", "--bundle", folder.to_str().expect("utf-8"), &bundle.id];
    let status = bundle.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run");
    assert!(status.success());
    assert_eq!(bundle.state()["status"], "running");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_left();
}

#[test]
fn signals_reach_the_process() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("trap 'touch /data/term; exit 0' TERM; touch /data/ready; while :; do sleep 0.05; done");
    bundle.start();
    eventually("trap set", || bundle.rootfs("data/ready").exists());
    bundle.ok(&["kill", &bundle.id]); // TERM unless told otherwise
    eventually("trapped", || bundle.rootfs("data/term").exists());
    bundle.wait_for("stopped");
}

#[test]
fn kill_all_reaches_those_who_share_our_pid_namespace() {
    let Some(bundle) = Bundle::new() else { return };
    let namespaces = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
    let bundle = bundle.shell("sleep 1000 & sleep 1000 & wait").set("/linux/namespaces", namespaces);
    bundle.start();
    let procs = bundle.cgroup("pids").join("cgroup.procs");
    eventually("three processes", || std::fs::read_to_string(&procs).is_ok_and(|text| text.lines().count() == 3));
    bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
    eventually("none left", || std::fs::read_to_string(&procs).is_ok_and(|text| text.is_empty()));
    bundle.wait_for("stopped");
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn force_needs_nothing_to_be_there() {
    let Some(bundle) = Bundle::new() else { return };
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.fails(&["delete", &bundle.id]);
}

#[test]
fn a_created_container_can_be_deleted() {
    let Some(bundle) = Bundle::new() else { return };
    assert!(bundle.create(&[]));
    let pid = bundle.pid();
    bundle.ok(&["delete", "--force", &bundle.id]);
    eventually("process gone", || kill(Pid::from_raw(pid), None).is_err() || is_zombie(pid));
    bundle.assert_nothing_left();
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| text.contains(") Z "))
}

#[test]
fn an_id_is_given_once() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    let pid = bundle.pid();
    assert!(!bundle.create(&[]));
    assert_eq!((&bundle.state()["status"], bundle.pid()), (&json!("running"), pid), "the first one is untouched");
}

#[test]
fn paused_is_still() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("while :; do :; done");
    bundle.start();
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    bundle.fails(&["exec", &bundle.id, "true"]);
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.state()["status"], "running");
    bundle.ok(&["exec", &bundle.id, "true"]);
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]); // frozen ones die too
    bundle.assert_nothing_left();
}

/// A hook that writes down its name, that it got a state with our id, and the status in it.
fn hook(bundle: &Bundle, name: &str) -> serde_json::Value {
    let log = bundle.path("hooks");
    let script =
        format!("read -r state; case $state in *{}*) echo {name} ${{V:-none}} >> {};; esac", bundle.id, log.display());
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": [format!("V={name}")], "timeout": 10})
}

#[test]
fn hooks_run_in_order_with_state_and_environment() {
    let Some(bundle) = Bundle::new() else { return };
    let kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let hooks: serde_json::Map<_, _> =
        kinds.iter().map(|kind| ((*kind).to_owned(), json!([hook(&bundle, kind)]))).collect();
    let script = "cat > /data/start-container";
    let mut hooks = serde_json::Value::Object(hooks);
    hooks["startContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]);
    let bundle = bundle.set("/hooks", hooks);
    bundle.run_ok();
    let log = std::fs::read_to_string(bundle.path("hooks")).expect("hooks ran");
    let expected: String = kinds.iter().map(|kind| format!("{kind} {kind}\n")).collect();
    assert_eq!(log, expected);
    let state = std::fs::read_to_string(bundle.rootfs("data/start-container")).expect("ran in the container");
    assert!(state.contains(&bundle.id), "{state}");
}

#[test]
fn a_failing_hook_undoes_everything() {
    let Some(bundle) = Bundle::new() else { return };
    let hooks = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo because >&2; exit 3"]}]});
    let bundle = bundle.set("/hooks", hooks);
    let error = bundle.run_fails();
    assert!(error.contains("because"), "{error}");
}

#[test]
fn a_hook_that_hangs_is_killed() {
    let Some(bundle) = Bundle::new() else { return };
    let hooks = json!({"createContainer": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]});
    bundle.set("/hooks", hooks).run_fails();
}

fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

#[test]
fn what_a_killed_create_leaves_can_be_deleted() {
    let Some(bundle) = Bundle::new() else { return };
    let mark = bundle.path("mark");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", mark.display());
    let hooks = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]});
    let bundle = bundle.set("/hooks", hooks);
    bundle.write_config();
    let folder = bundle.path("bundle");
    let arguments = ["create", "--bundle", folder.to_str().expect("utf-8"), &bundle.id];
    let mut create = bundle.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
    eventually("the hook runs", || mark.exists());
    create.kill().expect("kill");
    create.wait().expect("wait");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_left();
    let pid: i32 = std::fs::read_to_string(&mark).expect("mark").trim().parse().expect("a pid");
    // Whoever has inherited it may take its time to reap it.
    eventually("the hook went with it", || is_gone(pid));
}

#[test]
fn signals_of_the_caller_are_passed_on() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("trap 'exit 42' TERM; touch /data/ready; while :; do sleep 0.05; done");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let mut run =
        bundle.command(&["run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]).spawn().expect("spawn");
    eventually("trap set", || bundle.rootfs("data/ready").exists());
    kill(Pid::from_raw(run.id() as i32), Signal::SIGTERM).expect("signal");
    assert_eq!(run.wait().expect("wait").code(), Some(42));
    bundle.assert_nothing_left();
}
