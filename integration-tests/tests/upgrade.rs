//! Containers that were started by the previous release's shim and runtime are driven by today's supervisor and engine: nobody has to
//! stop what runs in order to upgrade.
//!
//! The previous release is a commit, named in `integration-tests/previous-release` and built by `.ci/previous-shim`.

use integration_tests::{Stack, eventually, programs, run_with, stack::Setup};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The folder of the previous programs; a reason on standard error where they can't be had.
fn previous() -> Option<PathBuf> {
    let script = programs::workspace().join(".ci/previous-shim");
    let built = run_with(&mut Command::new(script), b"", Duration::from_secs(900));
    if built.code() == 3 {
        eprintln!("skipped: the previous release can't be built: {}", built.stdout());
        return None;
    }
    built.clone().success().stdout().lines().next_back().map(PathBuf::from)
}

/// A folder with today's daemons and the shim and runtime of another.
fn mixed(at: &Path, old: &Path) {
    fs::create_dir_all(at).unwrap();
    let today = programs::bin_dir();
    for (from, program) in [
        (today.as_path(), "berth"),
        (today.as_path(), "berth-engine"),
        (today.as_path(), "berth-supervisor"),
        (old, "berth-shim"),
        (old, "berth-runtime"),
    ] {
        testing::executable(&at.join(program), fs::read(from.join(program)).unwrap());
    }
    std::os::unix::fs::symlink("berth-shim", at.join("containerd-shim-berth-v1")).unwrap();
}

fn shim_of(stack: &Stack, name: &str) -> PathBuf {
    let id = stack.inspect(name)["Id"].as_str().unwrap().to_owned();
    let pid = stack.shims()[&id];
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

#[test]
fn containers_of_the_previous_shim_are_driven_on() {
    let Some(old) = previous() else { return };
    let folder = tempfile::Builder::new().prefix("berth-previous-").tempdir().unwrap();
    mixed(folder.path(), &old);
    let stack =
        Stack::start_with(Setup { bin_dir: Some(folder.path().to_owned()), keep_supervisor: true, ..Setup::default() });
    stack.load_busybox();
    let start = |args: &[&str]| {
        stack.berth([&["run", "-d"], args].concat()).success();
    };
    let counting = "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";
    start(&["--name", "log", "busybox", "sh", "-c", counting]);
    start(&["--name", "tty", "-t", "-i", "busybox", "sh"]);
    start(&["--name", "short", "busybox", "sh", "-c", "sleep 1; exit 21"]);
    start(&["--name", "again", "--restart", "always", "busybox", "sh", "-c", "echo up; sleep 1000"]);
    start(&["--name", "plain", "busybox", "sleep", "1000"]);
    let api = stack.api();
    let body = json!({ "Cmd": ["sleep", "1000"] });
    let exec = api.post("/containers/plain/exec", Some(&body)).expect(201).json()["Id"].as_str().unwrap().to_owned();
    api.post(&format!("/exec/{exec}/start"), Some(&json!({ "Detach": true }))).expect(200);
    let names = ["log", "tty", "again", "plain"];
    let pids: Vec<_> = names.iter().map(|name| stack.inspect(name)["State"]["Pid"].clone()).collect();
    assert!(shim_of(&stack, "log").starts_with(folder.path()));

    // The upgrade. One of them ends while nobody is there.
    stack.kill_engine();
    stack.kill_supervisor();
    stack.use_programs(&programs::bin_dir());
    std::thread::sleep(Duration::from_secs(1)); // `short` ends meanwhile, by the clock
    stack.start_supervisor();
    stack.start_engine();

    for (name, pid) in names.iter().zip(&pids) {
        let state = stack.inspect(name)["State"].clone();
        assert_eq!((&state["Status"], &state["Pid"]), (&json!("running"), pid), "{name}");
    }
    stack.await_status("short", "exited");
    assert_eq!(stack.inspect("short")["State"]["ExitCode"], 21);
    // The log goes on, without a gap.
    let lines = || stack.berth(["logs", "log"]).success().stdout();
    let before = lines().lines().count();
    eventually("the log goes on", || (lines().lines().count() > before).then_some(()));
    assert!(lines().lines().enumerate().all(|(at, line)| line == format!("line {}", at + 1)), "{}", lines());
    // Exec, and its exit code.
    assert_eq!(stack.berth(["exec", "log", "echo", "in"]).success().stdout(), "in");
    stack.berth(["exec", "tty", "sh", "-c", "exit 6"]).expect_code(6);
    // Attach: output of a container, input and output of a terminal.
    let mut attached = api
        .open("POST", "/containers/log/attach?stream=1&stdout=1", None, "Connection: Upgrade\r\nUpgrade: tcp\r\n")
        .unwrap();
    let (stream, text) = attached.frame().expect("output of an attached container");
    assert!(stream == 1 && String::from_utf8_lossy(&text).starts_with("line "), "{text:?}");
    drop(attached);
    let mut terminal = api
        .open(
            "POST",
            "/containers/tty/attach?stream=1&stdin=1&stdout=1",
            None,
            "Connection: Upgrade\r\nUpgrade: tcp\r\n",
        )
        .unwrap();
    std::io::Write::write_all(terminal.raw().get_mut(), b"echo $((6*7))\n").unwrap();
    let mut seen = String::new();
    while !seen.contains("42") {
        let mut part = [0; 64];
        let count = std::io::Read::read(terminal.raw(), &mut part).unwrap();
        assert!(count > 0, "the terminal closed after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    drop(terminal);
    api.post("/containers/tty/resize?h=40&w=100", None).expect(200);
    assert!(stack.berth(["exec", "plain", "ps"]).success().stdout().matches("sleep 1000").count() >= 2);
    // Pause, stop with its own exit code, events, restart policy, delete.
    stack.berth(["pause", "plain"]).success();
    stack.await_status("plain", "paused");
    stack.berth(["unpause", "plain"]).success();
    stack.berth(["stop", "log"]).success();
    assert_eq!(stack.inspect("log")["State"]["ExitCode"], 9);
    let killed = stack.inspect("again")["State"]["Pid"].as_u64().unwrap();
    integration_tests::run("kill", ["-9", &killed.to_string()]).success();
    eventually("the restart policy goes on", || {
        let state = stack.inspect("again")["State"].clone();
        (state["Status"] == "running" && state["Pid"] != json!(killed)).then_some(())
    });
    assert!(!shim_of(&stack, "again").starts_with(folder.path()), "started again, it has today's shim");
    stack.berth(["rm", "-f", "tty"]).success();
    stack.berth(["start", "log"]).success();
    assert!(!shim_of(&stack, "log").starts_with(folder.path()));
    let events = stack.berth(["events", "--since", "1h", "--until", "0s"]).stdout();
    for (name, action) in [("short", "die"), ("log", "die"), ("tty", "destroy")] {
        let told = events.lines().any(|line| line.contains(action) && line.contains(name));
        assert!(told, "no event {action} of {name}: {events}");
    }
    stack.remove_all();
    stack.assert_sound(1, "after everything was removed");
}
