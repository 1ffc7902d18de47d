//! Every seam is a published standard: each layer with a peer on its other side.

use integration_tests::{
    Stack, eventually_within, images,
    programs::{peer_or_skip, program},
    run, run_with,
    stack::Setup,
};
use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn engine_runs_containers_on_runc() {
    let Some(runc) = peer_or_skip("runc") else { return };
    let stack = Stack::start_with(Setup {
        engine_args: vec!["--runtime".into(), runc.display().to_string()],
        ..Setup::default()
    });
    stack.load_busybox();
    let hello = stack.berth(["run", "--rm", "busybox", "sh", "-c", "echo via runc; exit 6"]).expect_code(6);
    assert_eq!(hello.stdout(), "via runc");
    stack.berth(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).success();
    assert_eq!(stack.berth(["exec", "box", "echo", "in"]).success().stdout(), "in");
    // runc, not Berth's runtime, keeps this container's state.
    let states = run("find", [stack.run_root().join("runtime").to_str().unwrap(), "-name", "state.json"]).stdout();
    let state = fs::read_to_string(states.lines().next().unwrap()).unwrap();
    assert!(state.contains("\"init_process_start\""), "this is no state of runc: {state}");
    stack.berth(["rm", "-f", "box"]).success();
}

/// Debian's containerd in the supervisor's place, with its own shim: images that are there run; pulling is refused with the
/// reason. What the engine writes of their output is complete, whatever becomes of the engine.
#[test]
fn engine_runs_containers_on_containerd() {
    if ["containerd", "ctr", "containerd-shim-runc-v2", "runc"].iter().any(|name| peer_or_skip(name).is_none()) {
        return;
    }
    let stack = Stack::start_with(Setup { containerd: true, ..Setup::default() });
    let refused = stack.berth(["pull", "127.0.0.1:1/nothing"]);
    assert!(refused.code() != 0 && refused.stderr().contains("transfer service"), "{refused}");
    let archive = images::busybox_archive(stack.path());
    // Not unpacked: the engine sees to that.
    stack.ctr(["-n", "berth", "images", "import", "--no-unpack", archive.to_str().unwrap()]).success();
    assert!(stack.berth(["images"]).success().stdout().contains("busybox"));
    let hello = stack.berth(["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 6"]).expect_code(6);
    assert_eq!((hello.stdout(), hello.stderr()), ("out".into(), "err".into()));
    let mut cat = stack.client(program("berth"));
    let typed = run_with(cat.args(["run", "-i", "--rm", "busybox", "cat"]), b"typed\n", Duration::from_secs(60));
    assert_eq!((typed.code(), typed.stdout()), (0, "typed".into()), "{typed}");
    let script = "i=0; while test $i -lt 300; do i=$((i+1)); echo line $i; usleep 5000; done; exit 9";
    stack.berth(["run", "-d", "--name", "box", "busybox", "sh", "-c", script]).success();
    assert_eq!(stack.berth(["exec", "box", "echo", "in"]).success().stdout(), "in");
    let mut cat = stack.client(program("berth"));
    let typed = run_with(cat.args(["exec", "-i", "box", "cat"]), b"more", Duration::from_secs(60));
    assert_eq!((typed.code(), typed.stdout()), (0, "more".into()), "{typed}");
    stack.kill_engine();
    stack.start_engine();
    stack.kill_supervisor();
    stack.start_supervisor();
    assert_eq!(stack.berth(["wait", "box"]).success().stdout(), "9");
    let expected: Vec<_> = (1..=300).map(|number| format!("line {number}")).collect();
    assert_eq!(stack.berth(["logs", "box"]).success().stdout(), expected.join("\n"));
    stack.berth(["rm", "box"]).success();
    stack.berth(["run", "-d", "--name", "tty", "-t", "busybox", "sh", "-c", "tty; sleep 1000"]).success();
    eventually_within(Duration::from_secs(10), "the terminal's name is in the log", || {
        stack.berth(["logs", "tty"]).stdout().contains("/dev/pts/0").then_some(())
    });
    stack.berth(["stop", "-t", "0", "tty"]).success();
    stack.berth(["start", "tty"]).success();
    stack.berth(["rm", "-f", "tty"]).success();
}

#[test]
fn ctr_runs_containers_on_the_supervisor() {
    if peer_or_skip("ctr").is_none() {
        return;
    }
    let stack = Stack::start();
    let archive = images::busybox_archive(stack.path());
    stack.ctr(["version"]).success();
    stack.ctr(["images", "import", archive.to_str().unwrap()]).success();
    let listed = stack.ctr(["images", "ls", "-q"]).success().stdout();
    assert_eq!(listed, "docker.io/library/busybox:latest");
    let run = [
        "run",
        "--rm",
        "--runtime",
        "io.containerd.berth.v1",
        "docker.io/library/busybox:latest",
        "one",
        "sh",
        "-c",
        "echo by ctr; exit 4",
    ];
    let one = stack.ctr(run);
    assert_eq!((one.code(), one.stdout()), (4, "by ctr".into()), "{one}");
    stack.ctr(["run", "-d", "docker.io/library/busybox:latest", "two", "sleep", "1000"]).success();
    assert!(stack.ctr(["containers", "ls", "-q"]).success().stdout().contains("two"));
    assert!(stack.ctr(["tasks", "ls"]).success().stdout().contains("RUNNING"));
    assert_eq!(stack.ctr(["tasks", "exec", "--exec-id", "e", "two", "echo", "in"]).success().stdout(), "in");
    stack.ctr(["tasks", "kill", "-s", "SIGKILL", "two"]).success();
    eventually_within(Duration::from_secs(10), "the task has stopped", || {
        stack.ctr(["tasks", "ls"]).stdout().contains("STOPPED").then_some(())
    });
    stack.ctr(["tasks", "delete", "two"]);
    stack.ctr(["containers", "delete", "two"]).success();
    stack.ctr(["images", "rm", "docker.io/library/busybox:latest"]).success();
    remove_parent_cgroups("default");
}

/// Debian's shim below Berth's supervisor, over ttrpc: a life, killed supervisors, a killed shim.
#[test]
fn supervisor_drives_debians_shim() {
    let Some(shim) = peer_or_skip("containerd-shim-runc-v2") else { return };
    if ["ctr", "runc"].iter().any(|name| peer_or_skip(name).is_none()) {
        return;
    }
    let shim = shim.display().to_string();
    let stack = Stack::start();
    let archive = images::busybox_archive(stack.path());
    stack.ctr(["images", "import", archive.to_str().unwrap()]).success();
    let image = "docker.io/library/busybox:latest";
    let one = stack.ctr(["run", "--rm", "--runtime", &shim, image, "one", "sh", "-c", "echo by runc; exit 4"]);
    assert_eq!((one.code(), one.stdout()), (4, "by runc".into()), "{one}");
    stack.ctr(["run", "-d", "--runtime", &shim, image, "two", "sleep", "1000"]).success();
    assert_eq!(stack.ctr(["tasks", "exec", "--exec-id", "e", "two", "echo", "in"]).success().stdout(), "in");
    let metrics = stack.ctr(["tasks", "metrics", "two"]).success().stdout();
    assert!(metrics.contains("memory"), "{metrics}");
    let status = |wanted: &str| {
        eventually_within(Duration::from_secs(10), wanted, || {
            stack.ctr(["tasks", "ls"]).stdout().contains(wanted).then_some(())
        });
    };
    stack.ctr(["tasks", "pause", "two"]).success();
    status("PAUSED");
    stack.ctr(["tasks", "resume", "two"]).success();
    // Ended while nobody is there to hear of it.
    stack.kill_supervisor();
    let pids = run("pgrep", ["-f", "^sleep 1000$"]).stdout();
    let in_two =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains("/default/two"));
    let pid = pids.lines().find(in_two).expect("the container's process");
    run("kill", ["-9", pid]).success();
    stack.start_supervisor();
    status("STOPPED");
    let deleted = stack.ctr(["tasks", "delete", "two"]);
    assert!(deleted.stderr().contains("exit code 137"), "{deleted}");
    stack.ctr(["containers", "delete", "two"]).success();
    // A shim that is killed: its container goes with it, and is told to have ended.
    stack.ctr(["run", "-d", "--runtime", &shim, image, "three", "sleep", "1000"]).success();
    let shims = run("pgrep", ["-f", "containerd-shim-runc-v2.*-id three"]).stdout();
    run("kill", ["-9", shims.trim()]).success();
    status("STOPPED");
    stack.ctr(["tasks", "delete", "three"]);
    stack.ctr(["containers", "delete", "three"]).success();
    // The engine's containers by configuration: whatever shim the supervisor has for a type.
    let berth = ["run", "--rm", "--runtime", "io.containerd.runc.v2", "busybox", "sh", "-c", "echo relayed; exit 3"];
    stack.ctr(["-n", "berth", "images", "import", archive.to_str().unwrap()]).success();
    let relayed = stack.berth(berth).expect_code(3);
    assert_eq!(relayed.stdout(), "relayed");
    stack.ctr(["images", "rm", image]).success();
    remove_parent_cgroups("default");
}

// Runtimes make the parents of a cgroup path and leave them: who chose the path removes them.
fn remove_parent_cgroups(name: &str) {
    for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        fs::remove_dir(controller.path().join(name)).ok();
    }
}

/// Debian's dockerd with `berth-runtime` as one of its runtimes.
#[test]
fn dockerd_runs_containers_on_berth_runtime() {
    if peer_or_skip("dockerd").is_none() || peer_or_skip("containerd").is_none() || peer_or_skip("docker").is_none() {
        return;
    }
    let folder = tempfile::Builder::new().prefix("berth-dockerd-").tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let log = fs::File::create(at("log")).unwrap();
    let socket = format!("unix://{}", at("docker.sock"));
    let mut dockerd = Command::new("dockerd")
        .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid"), "-H", &socket])
        .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--add-runtime"])
        .arg(format!("berth={}", program("berth-runtime").display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let docker = |args: &[&str]| {
        run_with(
            Command::new("docker").env("DOCKER_HOST", &socket).env("DOCKER_CONFIG", at("client")).args(args),
            b"",
            Duration::from_secs(60),
        )
    };
    let result = std::panic::catch_unwind(|| {
        eventually_within(Duration::from_secs(30), "dockerd answers", || {
            (docker(&["version"]).code() == 0).then_some(())
        });
        let archive = images::busybox_archive(folder.path());
        docker(&["load", "-q", "-i", archive.to_str().unwrap()]).success();
        let run =
            ["run", "--rm", "--runtime", "berth", "--network", "none", "busybox", "sh", "-c", "echo on berth; exit 8"];
        let hello = docker(&run).expect_code(8);
        assert_eq!(hello.stdout(), "on berth");
        docker(&[
            "run",
            "-d",
            "--name",
            "box",
            "--runtime",
            "berth",
            "--network",
            "none",
            "-m",
            "64m",
            "busybox",
            "sleep",
            "1000",
        ])
        .success();
        assert_eq!(docker(&["exec", "box", "sh", "-c", "echo in; exit 0"]).success().stdout(), "in");
        docker(&["stop", "-t", "0", "box"]).success();
        docker(&["rm", "box"]).success();
    });
    let tail = fs::read_to_string(at("log")).unwrap_or_default();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(dockerd.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .ok();
    dockerd.wait().unwrap();
    // dockerd leaves its network namespace mount behind when its roots are moved.
    for mount in ["exec/netns/default", "data"] {
        run("umount", ["-q", &at(mount)]);
    }
    remove_parent_cgroups("docker");
    if let Err(panic) = result {
        eprintln!("{}", tail.lines().rev().take(30).collect::<Vec<_>>().join("\n"));
        std::panic::resume_unwind(panic);
    }
}
