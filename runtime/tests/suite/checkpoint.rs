//! `checkpoint` and `restore`, with the criu that is in PATH.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use super::bundle::{Bundle, eventually, is_ours, texts};
use super::criu;

/// A bundle, if criu can checkpoint what it runs.
fn checkpointable() -> Option<Bundle> {
    Bundle::new().filter(|_| criu::works())
}

/// Counts into a file, for ever. No number is ever taken back: whenever it is stopped, the last one is there.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i >> /count; sleep 0.02; done";

fn count(bundle: &Bundle) -> u64 {
    let text = std::fs::read_to_string(bundle.rootfs("count")).unwrap_or_default();
    text.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn images(bundle: &Bundle) -> String {
    bundle.path("images").to_str().expect("utf-8").to_owned()
}

/// Detached, its stdio being the null device.
fn run(bundle: &Bundle) {
    bundle.write_config();
    let folder = bundle.path("bundle");
    let status = bundle
        .command(&["run", "--detach", "--bundle", folder.to_str().expect("utf-8"), &bundle.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("the runtime runs").success());
}

/// Runs what counts, until it counts.
fn run_counter(bundle: &Bundle) {
    run(bundle);
    eventually("it counts", || count(bundle) > 3);
}

fn checkpoint(bundle: &Bundle, more: &[&str]) {
    bundle.ok(&[&["checkpoint", "--image-path", &images(bundle)], more, &[bundle.id.as_str()]].concat());
}

/// A `restore`, still to be run. A checkpoint stays quiet about what it hears on stderr.
fn restore(bundle: &Bundle, more: &[&str]) -> Command {
    let folder = bundle.path("bundle");
    let (images, folder) = (images(bundle), folder.to_str().expect("utf-8").to_owned());
    let first = ["restore", "--image-path", &images, "--bundle", &folder];
    let mut command = bundle.command(&[&first[..], more, &[bundle.id.as_str()]].concat());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn restore_ok(bundle: &Bundle, more: &[&str]) {
    let log = bundle.path("images/restore.log");
    let status = restore(bundle, more).status().expect("the runtime runs");
    assert!(status.success(), "{status}; {}", std::fs::read_to_string(log).unwrap_or_default());
}

/// Restores, until it counts on from where it was.
fn restore_and_count_on(bundle: &Bundle) {
    let before = count(bundle);
    restore_ok(bundle, &["--detach"]);
    eventually("it counts on", || count(bundle) > before);
}

#[test]
fn a_counter_goes_on_where_it_was() {
    let Some(bundle) = checkpointable() else { return };
    let shared = bundle.path("shared");
    std::fs::create_dir(&shared).expect("folder");
    std::fs::write(shared.join("given"), "from outside").expect("write");
    let bundle = bundle
        .shell(&format!("echo kept > /dev/shm/memory; {COUNTER}"))
        .set("/linux/resources/pids", json!({"limit": 44}))
        .set("/linux/maskedPaths", json!(["/proc/cpuinfo", "/proc/acpi", "/sys/firmware"]))
        .set("/linux/readonlyPaths", json!(["/proc/sys"]))
        .set(
            "/mounts/-",
            json!({"destination": "/data", "type": "bind", "source": shared, "options": ["rbind", "rw"]}),
        );
    run_counter(&bundle);
    checkpoint(&bundle, &[]);
    bundle.assert_nothing_left();
    let stopped_at = count(&bundle);
    assert!(stopped_at > 3);
    // Another copy of the image has no mount point that was made here.
    std::fs::remove_dir(bundle.rootfs("data")).expect("the mount point");
    let pid_file = bundle.path("pid");
    restore_ok(&bundle, &["--detach", "--pid-file", pid_file.to_str().expect("utf-8")]);
    eventually("it counts on", || count(&bundle) > stopped_at + 3);
    let state = bundle.state();
    assert_eq!(state["status"], "running");
    assert_eq!(std::fs::read_to_string(&pid_file).expect("pid").trim(), bundle.pid().to_string());
    let pids = std::fs::read_to_string(bundle.cgroup("pids").join("pids.max")).expect("pids.max");
    assert_eq!(pids.trim(), "44", "limits are there again");
    let cat = |path: &str| bundle.ok(&["exec", &bundle.id, "cat", path]);
    assert_eq!(cat("/data/given"), "from outside");
    assert_eq!(cat("/dev/shm/memory"), "kept");
    assert_eq!(cat("/proc/cpuinfo"), "", "still masked");
    assert!(bundle.fails(&["exec", &bundle.id, "sh", "-c", "echo x > /proc/sys/kernel/hostname"]).contains("ead-only"));
    // And once more, from what was restored.
    checkpoint(&bundle, &[]);
    restore_ok(&bundle, &["--detach"]);
    let before = count(&bundle);
    eventually("it counts on again", || count(&bundle) > before);
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["resume", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_left();
}

#[test]
fn a_container_left_running_is_left_alone() {
    let Some(bundle) = checkpointable() else { return };
    let bundle = bundle.shell(COUNTER);
    run_counter(&bundle);
    let pid = bundle.pid();
    let work = bundle.path("work");
    checkpoint(&bundle, &["--leave-running", "--work-path", work.to_str().expect("utf-8")]);
    assert!(work.join("dump.log").exists(), "logs go to the work path");
    assert_eq!((bundle.state()["status"].as_str(), bundle.pid()), (Some("running"), pid));
    let before = count(&bundle);
    eventually("it counts on", || count(&bundle) > before);
    if is_ours() {
        let error = String::from_utf8(restore(&bundle, &["-d"]).stderr(Stdio::piped()).output().expect("runs").stderr);
        assert!(error.expect("utf-8").contains("already exists"));
    }
}

#[test]
fn a_paused_container_can_be_checkpointed() {
    let Some(bundle) = checkpointable() else { return };
    let bundle = bundle.shell(COUNTER);
    run_counter(&bundle);
    bundle.ok(&["pause", &bundle.id]);
    checkpoint(&bundle, &[]);
    let before = count(&bundle);
    restore_ok(&bundle, &["--detach"]);
    assert_eq!(bundle.state()["status"], "running");
    eventually("it counts on", || count(&bundle) > before);
}

#[test]
fn restored_in_the_foreground_its_end_is_ours() {
    let Some(bundle) = checkpointable() else { return };
    let bundle = bundle.shell("echo > /ready; while [ ! -e /go ]; do sleep 0.02; done; exit 7");
    run(&bundle);
    eventually("it waits", || bundle.rootfs("ready").exists());
    checkpoint(&bundle, &[]);
    let mut child = restore(&bundle, &[]).spawn().expect("the runtime runs");
    eventually("it runs", || {
        let (stdout, _) = texts(&bundle.call(&["state", &bundle.id]));
        stdout.contains("\"status\": \"running\"")
    });
    std::fs::write(bundle.rootfs("go"), "").expect("write");
    assert_eq!(child.wait().expect("an end").code(), Some(7));
    bundle.assert_nothing_left();
}

#[test]
fn pipes_are_those_of_who_restores() {
    let Some(bundle) = checkpointable() else { return };
    let bundle = bundle.shell("echo > /ready; while [ ! -e /go ]; do sleep 0.02; done; echo hello; echo and >&2");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let mut first = bundle
        .command(&["run", "--detach", "--bundle", folder.to_str().expect("utf-8"), &bundle.id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the runtime runs");
    assert!(first.wait().expect("detached").success());
    eventually("it waits", || bundle.rootfs("ready").exists());
    checkpoint(&bundle, &[]);
    let mut second = restore(&bundle, &["--detach"]);
    let mut second = second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the runtime runs");
    assert!(second.wait().expect("detached").success());
    std::fs::write(bundle.rootfs("go"), "").expect("write");
    let (mut stdout, mut stderr) = (String::new(), String::new());
    second.stdout.take().expect("stdout").read_to_string(&mut stdout).expect("read");
    second.stderr.take().expect("stderr").read_to_string(&mut stderr).expect("read");
    assert_eq!((stdout.as_str(), stderr.lines().last()), ("hello\n", Some("and")));
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    let Some(bundle) = checkpointable() else { return };
    let bundle = bundle.shell("echo ready; read x; echo got $x; sleep 1000").set("/process/terminal", json!(true));
    let path = bundle.path("console.sock");
    let socket = path.to_str().expect("utf-8").to_owned();
    let listener = UnixListener::bind(&path).expect("bind");
    let master = |listener: UnixListener| {
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("accept");
            let (_, mut fds) = sys::fd::recv_fds(&stream, &mut [0; 4096]).expect("receive");
            std::fs::File::from(fds.remove(0))
        })
    };
    let read_until = |file: &mut std::fs::File, word: &str| {
        let (mut text, mut buffer) = (String::new(), [0; 256]);
        while !text.contains(word) {
            let count = file.read(&mut buffer).expect("read");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    let first = master(listener.try_clone().expect("clone"));
    assert!(bundle.create(&["--console-socket", &socket]));
    let mut terminal = first.join().expect("master");
    bundle.ok(&["start", &bundle.id]);
    read_until(&mut terminal, "ready");
    checkpoint(&bundle, &[]);
    drop(terminal);
    let second = master(listener);
    restore_ok(&bundle, &["--detach", "--console-socket", &socket]);
    let mut terminal = second.join().expect("master");
    terminal.write_all(b"hello\n").expect("write");
    read_until(&mut terminal, "got hello");
}

#[test]
fn a_namespace_of_somebody_else_is_left_alone() {
    let Some(bundle) = checkpointable() else { return };
    let mut holder = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().expect("unshare");
    let path = format!("/proc/{}/ns/net", holder.id());
    let own = std::fs::read_link("/proc/self/ns/net").expect("link");
    eventually("the namespace is there", || std::fs::read_link(&path).expect("link") != own);
    let mut bundle = bundle.shell(COUNTER);
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().expect("list") {
        if namespace["type"] == "network" {
            namespace["path"] = json!(path);
        }
    }
    run_counter(&bundle);
    checkpoint(&bundle, &[]);
    restore_and_count_on(&bundle);
    let now = std::fs::read_link(format!("/proc/{}/ns/net", bundle.pid())).expect("link");
    assert_eq!(now, std::fs::read_link(&path).expect("link"));
    holder.kill().expect("kill");
    holder.wait().expect("wait");
}

#[test]
fn hooks_run_before_what_is_restored() {
    let Some(bundle) = checkpointable() else { return };
    let told = bundle.path("told");
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("cat > {}", told.display())]}]);
    let bundle = bundle.shell(COUNTER).set("/hooks", json!({"createRuntime": hook}));
    run_counter(&bundle);
    checkpoint(&bundle, &[]);
    std::fs::remove_file(&told).expect("the hook ran for create");
    restore_ok(&bundle, &["--detach"]);
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&told).expect("told")).expect("json");
    assert_eq!((&state["id"], state["pid"].as_i64()), (&json!(bundle.id), Some(i64::from(bundle.pid()))));
}

#[test]
fn memory_can_go_ahead() {
    let Some(bundle) = checkpointable() else { return };
    let bundle = bundle.shell(COUNTER);
    run_counter(&bundle);
    let parent = bundle.path("parent");
    let output =
        bundle.call(&["checkpoint", "--pre-dump", "--image-path", parent.to_str().expect("utf-8"), &bundle.id]);
    let (_, stderr) = texts(&output);
    if !output.status.success() && (stderr.contains("CONFIG_MEM_SOFT_DIRTY") || stderr.contains("missing features")) {
        println!("skipped: {stderr}");
        return;
    }
    assert!(output.status.success(), "{stderr}");
    assert_eq!(bundle.state()["status"], "running");
    checkpoint(&bundle, &["--parent-path", "../parent"]);
    assert!(bundle.path("images/parent").exists(), "the images refer to those before");
    restore_and_count_on(&bundle);
}

#[test]
fn what_cannot_be_checkpointed_says_why() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let bundle = bundle.shell(COUNTER);
    assert!(bundle.create(&[]));
    assert!(bundle.fails(&["checkpoint", &bundle.id]).contains("cannot checkpoint a container that is created"));
    bundle.ok(&["start", &bundle.id]);
    let images = images(&bundle);
    for (flags, words) in [
        (
            &["--manage-cgroups-mode", "odd"][..],
            "--manage-cgroups-mode: \"odd\" is not one of soft, full, strict, ignore",
        ),
        (&["--empty-ns", "pid"], "--empty-ns: \"pid\" is not one of network"),
        (&["--page-server", "here"], "--page-server: \"here\" is not ADDRESS:PORT"),
        (&["--parent-path", "/x"], "--parent-path: \"/x\" is not relative"),
        (&["--parent-path", "x"], "--parent-path: \"x\" is not a folder"),
        (&["--status-fd", "987654"], "--status-fd: \"987654\" is not an open descriptor"),
    ] {
        let error = bundle.fails(&[&["checkpoint", "--image-path", &images], flags, &[&bundle.id]].concat());
        assert!(error.contains(words), "{flags:?}: {error}");
    }
    // Without criu, with one that dies, and with one that cannot be run.
    let folder = bundle.path("bin");
    std::fs::create_dir(&folder).expect("folder");
    let with_path = |words: &str| {
        let output = bundle.command(&["checkpoint", "--image-path", &images, &bundle.id]).env("PATH", &folder).output();
        let (_, stderr) = texts(&output.expect("the runtime runs"));
        assert!(stderr.contains(words), "{stderr}");
    };
    with_path("criu is not installed (no such program in $PATH): install the package criu");
    let fake = |text: &str| testing::executable(&folder.join("criu"), text);
    fake("#!/bin/sh\nexit 7\n");
    with_path("criu ended without an answer, with status 7");
    fake("#!/no/such/interpreter\n");
    with_path("execute ");
    assert_eq!(bundle.state()["status"], "running", "nothing happened to it");
}

#[test]
fn a_failed_restore_leaves_nothing() {
    let Some(bundle) = checkpointable() else { return };
    bundle.write_config();
    std::fs::create_dir(bundle.path("images")).expect("folder");
    assert!(!restore(&bundle, &["-d"]).status().expect("the runtime runs").success());
    bundle.assert_nothing_left();
    std::fs::write(bundle.path("images/descriptors.json"), "[\"\",\"\",\"\"]").expect("write");
    let output = restore(&bundle, &["-d"]).stderr(Stdio::piped()).output().expect("the runtime runs");
    assert!(!output.status.success());
    bundle.assert_nothing_left();
    if is_ours() {
        let (_, stderr) = texts(&output);
        assert!(stderr.contains("criu could not restore the container"), "{stderr}");
        assert!(Path::new(&bundle.path("images/restore.log")).exists());
    }
}

/// criu leaves the network namespace empty; config.json says what is to be in it.
#[test]
fn the_network_is_set_up_again() {
    let Some(bundle) = Bundle::new() else { return };
    if !criu::works() {
        return;
    }
    let bundle = bundle
        .shell("sleep 1000")
        .set("/linux/sysctl", json!({"net.ipv4.ip_default_ttl": "77", "net/ipv4/conf/lan0/forwarding": "1"}))
        .set("/linux/netDevices", json!({"suite0": {"name": "lan0"}}));
    bundle.write_config();
    let link =
        |peer: &str| format!("ip link add suite0 type veth peer name {peer} && ip addr add 192.0.2.7/24 dev suite0");
    let works = Command::new("unshare").args(["-n", "sh", "-c", &link("suite1")]).output().expect("unshare runs");
    if !works.status.success() {
        println!("skipped: needs unshare, ip and veth: {}", texts(&works).1);
        return;
    }
    let folder = bundle.path("bundle").display().to_string();
    let seen = "busybox ip addr show dev lan0; cd /proc/sys/net/ipv4; cat ip_default_ttl conf/lan0/forwarding";
    // Such a link goes with its namespace, so there has to be another one.
    let script = format!(
        "set -e; ip link set lo up; {}
         \"$@\" run --detach --bundle {folder} {id} > /dev/null 2>&1 < /dev/null
         \"$@\" checkpoint --image-path {images} {id}
         if \"$@\" restore --detach --image-path {images} --bundle {folder} {id} 2> {without}; then exit 3; fi > /dev/null
         {}
         \"$@\" restore --detach --image-path {images} --bundle {folder} {id} > /dev/null 2>&1 < /dev/null
         \"$@\" exec {id} sh -c '{seen}'",
        link("suite1"),
        link("suite2"),
        id = bundle.id,
        images = images(&bundle),
        without = bundle.path("without").display(),
    );
    let runtime = bundle.command(&[]);
    let mut all = Command::new("unshare");
    all.args(["-n", "sh", "-c", &script, "sh"]).arg(runtime.get_program()).args(runtime.get_args());
    let output = all.output().expect("unshare runs");
    let (stdout, stderr) = texts(&output);
    let without = std::fs::read_to_string(bundle.path("without")).unwrap_or_default();
    assert!(output.status.success(), "{stdout}\n{stderr}\n{without}");
    assert!(without.contains("\"suite0\" is not in the runtime's network namespace"), "{without}");
    assert!(stdout.contains("192.0.2.7/24") && stdout.contains(",UP"), "{stdout}");
    assert!(stdout.ends_with("\n77\n1"), "{stdout}");
}
