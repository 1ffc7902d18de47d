//! Debian's containerd with Berth's shim: `ctr run --runtime io.containerd.berth.v1`, which finds `containerd-shim-berth-v1` on
//! the daemon's PATH. containerd 1.6 speaks the oldest dialect of the shim contract: a bare address, ttrpc, task service v2.

use integration_tests::{
    caller::{Caller, LIMIT},
    eventually_within, images,
    programs::{bin_dir, peer_or_skip, program},
};
use std::{fs, process::Command, time::Duration};

const IMAGE: &str = "docker.io/library/busybox:latest";
const RUNTIME: [&str; 2] = ["--runtime", "io.containerd.berth.v1"];
const SOON: Duration = Duration::from_secs(20);

fn path() -> String {
    // Before all others, so that no installed shim of the name is found.
    format!("{}:{}", bin_dir().display(), std::env::var("PATH").unwrap_or_default())
}

fn boot(ctr: &mut Caller) {
    let mut daemon = Command::new("containerd");
    // What it hears from shims, it says at this level.
    daemon.args(["--log-level", "debug", "--config", &ctr.at("config.toml")]).env("PATH", path());
    ctr.start(&mut daemon);
    eventually_within(Duration::from_secs(40), "containerd answers", || {
        (ctr.call(&["version"]).code() == 0).then_some(())
    });
}

fn containerd(who: &str) -> Option<Caller> {
    for name in ["containerd", "ctr", "script"] {
        peer_or_skip(name)?;
    }
    let mut ctr = Caller::of_containerd(who);
    boot(&mut ctr);
    let archive = images::busybox_archive(ctr.path());
    ctr.ok(&["images", "import", archive.to_str().unwrap()]);
    Some(ctr)
}

fn run(ctr: &Caller, flags: &[&str], id: &str, program: &[&str]) -> String {
    ctr.ok(&[&["run", "-d"], &RUNTIME[..], flags, &[IMAGE, id], program].concat())
}

fn status(ctr: &Caller, id: &str) -> String {
    let listed = ctr.ok(&["tasks", "ls"]);
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id));
    line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or("gone").to_owned()
}

fn reaches(ctr: &Caller, id: &str, wanted: &str) {
    eventually_within(SOON, &format!("{id} is {wanted}"), || (status(ctr, id) == wanted).then_some(()));
}

fn remove(ctr: &Caller, id: &str) {
    ctr.call(&["tasks", "kill", "-s", "SIGKILL", id]);
    reaches(ctr, id, "STOPPED");
    // Its code is the task's.
    ctr.call(&["tasks", "delete", id]);
    ctr.ok(&["containers", "delete", id]);
}

#[track_caller]
fn leaves_nothing(ctr: Caller) {
    eventually_within(SOON, "all shims have ended", || ctr.processes("start").is_empty().then_some(()));
    let names = |folder: &str| -> Vec<_> {
        fs::read_dir(ctr.at(folder)).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    assert!(names("s").is_empty(), "sockets: {:?}", names("s"));
    for folder in [format!("runtime/{}", ctr.name), format!("run/io.containerd.runtime.v2.task/{}", ctr.name)] {
        assert!(names(&folder).is_empty(), "{:?}", names(&folder));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let bundles = ctr.at("run/io.containerd.runtime.v2.task");
    assert!(!mounts.contains(&bundles), "{mounts}");
}

#[test]
fn ctr_takes_a_container_through_its_life_in_berths_shim() {
    let Some(ctr) = containerd("shim-life") else { return };
    fn once<'a>(rest: &[&'a str]) -> Vec<&'a str> {
        [&["run", "--rm"], &RUNTIME[..], &[IMAGE], rest].concat()
    }
    assert_eq!(ctr.code(&once(&["one", "sh", "-c", "echo by ctr; exit 4"]), 4), "by ctr");
    ctr.has_terminal(&[&["run", "--rm", "-t"], &RUNTIME[..], &[IMAGE, "two"]].concat());
    let failed = ctr.call(&once(&["three", "nothing-there"]));
    assert!(failed.code() == 1 && failed.stderr().contains("executable file not found"), "{failed}");

    run(&ctr, &["--memory-limit", "67108864", "--cpus", "0.5", "--seccomp"], "box", &["sleep", "1000"]);
    ctr.assert_state_is_ours();
    assert_eq!(status(&ctr, "box"), "RUNNING");
    assert_eq!(ctr.ok(&["tasks", "exec", "--exec-id", "a", "box", "echo", "in"]), "in");
    ctr.code(&["tasks", "exec", "--exec-id", "b", "box", "sh", "-c", "exit 6"], 6);
    ctr.has_terminal(&["tasks", "exec", "-t", "--exec-id", "c", "box"]);
    assert_eq!(ctr.ok(&["tasks", "ps", "box"]).lines().count(), 2);
    ctr.ok(&["tasks", "pause", "box"]);
    assert_eq!(status(&ctr, "box"), "PAUSED");
    ctr.ok(&["tasks", "resume", "box"]);
    assert_eq!(status(&ctr, "box"), "RUNNING");
    assert!(ctr.ok(&["tasks", "metrics", "box"]).contains("67108864"));
    remove(&ctr, "box");

    // Forwarded by the shim, over ttrpc, each once and in order.
    let forwarded = ctr.logged(&["event forwarded"]);
    let topic = |line: &String| line.split("topic=/tasks/").nth(1)?.split(' ').next().map(str::to_owned);
    let topics: Vec<String> = forwarded.iter().filter_map(topic).collect();
    let life = ["create", "start", "exit", "delete"];
    let exec = ["exec-added", "exec-started", "exit"];
    let wanted = [&life[..], &life, &life[..2], &exec, &exec, &exec, &["paused", "resumed"], &life[2..]].concat();
    assert_eq!(topics, wanted, "{}", ctr.log());
    leaves_nothing(ctr);
}

/// What containerd's CRI plugin sends to shims other than runc's, ctr sends too: options in a file of the runtime's own.
#[test]
fn options_of_a_configuration_file_reach_the_runtime() {
    let Some(ctr) = containerd("shim-options") else { return };
    let file = ctr.at("options.toml");
    fs::write(&file, format!("Root = {:?}\nNoNewKeyring = true\n", ctr.at("states"))).unwrap();
    run(&ctr, &["--runtime-config-path", &file], "box", &["sleep", "1000"]);
    assert!(fs::exists(ctr.at(&format!("states/{}/box/state.json", ctr.name))).unwrap(), "{}", ctr.log());
    remove(&ctr, "box");
    fs::write(&file, "[nonsense]\n").unwrap();
    let refused =
        ctr.call(&[&["run", "--rm"], &RUNTIME[..], &["--runtime-config-path", &file, IMAGE, "bad", "true"]].concat());
    assert!(refused.code() == 1 && refused.stderr().contains("line 1 is not KEY = VALUE"), "{refused}");
    leaves_nothing(ctr);
}

#[test]
fn a_pod_of_ctrs_shares_one_of_berths_shims() {
    let Some(mut ctr) = containerd("shim-pod") else { return };
    let pod = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"];
    run(&ctr, &pod, "pod", &["sleep", "1000"]);
    run(&ctr, &pod, "member", &["sleep", "1000"]);
    run(&ctr, &[], "alone", &["sleep", "1000"]);
    assert_eq!(ctr.processes("start").len(), 2, "one shim of two, and one of one");
    assert_eq!(ctr.ok(&["tasks", "exec", "--exec-id", "a", "member", "echo", "in"]), "in");
    // Whoever comes back finds all of them, and they stay beside one another.
    ctr.kill();
    boot(&mut ctr);
    for id in ["pod", "member", "alone"] {
        assert_eq!(status(&ctr, id), "RUNNING", "{id}");
    }
    remove(&ctr, "pod");
    assert_eq!(status(&ctr, "member"), "RUNNING");
    assert_eq!(ctr.ok(&["tasks", "exec", "--exec-id", "b", "member", "echo", "still"]), "still");
    run(&ctr, &pod, "late", &["sleep", "1000"]);
    assert_eq!(ctr.processes("start").len(), 2);
    for id in ["late", "member", "alone"] {
        remove(&ctr, id);
    }
    leaves_nothing(ctr);
}

#[test]
fn containerd_may_be_killed_and_hears_afterwards_what_happened() {
    let Some(mut ctr) = containerd("shim-restart") else { return };
    run(&ctr, &[], "stays", &["sleep", "1000"]);
    run(&ctr, &[], "ends", &["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 1000 & wait; done"]);
    let pid = ctr.ok(&["tasks", "ls"]).lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("ends")).then(|| words.next().unwrap().parse().unwrap())
    });
    ctr.kill();
    let init = nix::unistd::Pid::from_raw(pid.unwrap());
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGTERM).unwrap();
    eventually_within(SOON, "the container ends", || nix::sys::signal::kill(init, None).err());
    assert!(ctr.logged(&["event forwarded", "/tasks/exit"]).is_empty(), "{}", ctr.log());
    boot(&mut ctr);
    eventually_within(SOON, "the exit is told", || {
        (ctr.logged(&["event forwarded", "/tasks/exit"]).len() == 1).then_some(())
    });
    assert_eq!((status(&ctr, "stays"), status(&ctr, "ends")), ("RUNNING".into(), "STOPPED".into()));
    assert_eq!(ctr.ok(&["tasks", "exec", "--exec-id", "a", "stays", "echo", "in"]), "in");
    let deleted = ctr.call(&["tasks", "delete", "ends"]);
    assert!(deleted.stderr().contains("exit code 9"), "{deleted}");
    ctr.ok(&["containers", "delete", "ends"]);
    remove(&ctr, "stays");
    leaves_nothing(ctr);
}

#[test]
fn containerd_cleans_up_after_a_killed_shim() {
    let Some(ctr) = containerd("shim-killed") else { return };
    run(&ctr, &[], "box", &["sleep", "1000"]);
    let [shim] = ctr.processes("start")[..] else { panic!("one shim") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    reaches(&ctr, "box", "gone");
    eventually_within(LIMIT, "the exit is told", || {
        (!ctr.logged(&["event published", "/tasks/exit"]).is_empty()).then_some(())
    });
    ctr.ok(&["containers", "delete", "box"]);
    // The name is free for another life; this time in a pod, where all share the fate of their shim.
    let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
    for id in ["box", "other"] {
        run(&ctr, &pod, id, &["sleep", "1000"]);
    }
    let [shim] = ctr.processes("start")[..] else { panic!("one shim") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    for id in ["box", "other"] {
        reaches(&ctr, id, "gone");
        ctr.ok(&["containers", "delete", id]);
    }
    run(&ctr, &pod, "box", &["sleep", "1000"]);
    remove(&ctr, "box");
    leaves_nothing(ctr);
}

/// Docker's daemon asks its containerd for `io.containerd.runc.v2` and nothing else (20.10), so Berth's shim stands in under that
/// name, with Berth's runtime below it.
#[test]
fn dockerd_runs_containers_in_berths_shim_in_place_of_runcs() {
    for name in ["dockerd", "containerd", "docker", "script"] {
        if peer_or_skip(name).is_none() {
            return;
        }
    }
    let mut docker = Caller::new("shim-dockerd");
    fs::create_dir(docker.at("bin")).unwrap();
    std::os::unix::fs::symlink(program("berth-shim"), docker.at("bin/containerd-shim-runc-v2")).unwrap();
    let socket = format!("unix://{}", docker.at("docker.sock"));
    let mut daemon = Command::new("dockerd");
    daemon
        .env("PATH", format!("{}:{}", docker.at("bin"), path()))
        .args(["--data-root", &docker.at("data"), "--exec-root", &docker.at("exec"), "--pidfile", &docker.at("pid")])
        .args(["-H", &socket, "--bridge=none", "--iptables=false", "--ip6tables=false"])
        .args(["--add-runtime", &format!("berth={}", program("berth-runtime").display()), "--default-runtime", "berth"])
        .args(["--cgroup-parent", &format!("/{}", docker.name)]);
    docker.start(&mut daemon);
    docker.client = vec!["docker".into(), "--host".into(), socket];
    eventually_within(Duration::from_secs(40), "dockerd answers", || {
        (docker.call(&["version"]).code() == 0).then_some(())
    });
    let archive = images::busybox_archive(docker.path());
    docker.ok(&["load", "-q", "-i", archive.to_str().unwrap()]);
    let run =
        |flags: &[&str], rest: &[&str]| docker.ok(&[&["run", "--network", "none"], flags, &["busybox"], rest].concat());
    run(&["-d", "--name", "box", "-m", "64m"], &["sleep", "1000"]);
    // Its shim is ours.
    let [shim] = docker.processes("start")[..] else { panic!("one shim\n{}", docker.log()) };
    let exe = fs::canonicalize(format!("/proc/{shim}/exe")).unwrap();
    assert_eq!(exe, fs::canonicalize(program("berth-shim")).unwrap());
    let outcome = docker.call(&["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 4"]);
    assert_eq!((outcome.code(), outcome.stdout(), outcome.stderr()), (4, "out".into(), "err".into()), "{outcome}");
    docker.has_terminal(&["exec", "-it", "box"]);
    docker.has_terminal(&["run", "--rm", "-it", "--network", "none", "busybox"]);
    docker.ok(&["pause", "box"]);
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), "paused");
    docker.ok(&["unpause", "box"]);
    docker.ok(&["update", "-m", "128m", "--memory-swap", "256m", "box"]);
    let stats = docker.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "box"]);
    assert!(stats.contains("/ 128MiB 1"), "{stats}");
    assert!(docker.ok(&["top", "box"]).contains("sleep 1000"));
    docker.ok(&["kill", "box"]);
    assert_eq!(docker.ok(&["wait", "box"]), "137");
    docker.ok(&["start", "box"]);
    docker.ok(&["rm", "-f", "box"]);

    assert_eq!(run(&["--rm"], &["sh", "-c", "seq 1 50000 | tail -n 1"]), "50000");
    run(&["-d", "--name", "logs"], &["sh", "-c", "seq 1 5000; exit 3"]);
    assert_eq!(docker.ok(&["wait", "logs"]), "3");
    let lines: Vec<String> = (1..=5000).map(|number| number.to_string()).collect();
    assert_eq!(docker.ok(&["logs", "logs"]), lines.join("\n"));
    let script = "x=x; while :; do x=$x$x; done";
    docker.call(&[
        "run",
        "--network",
        "none",
        "--name",
        "greedy",
        "-m",
        "16m",
        "--memory-swap",
        "16m",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.OOMKilled}}", "greedy"]), "true");
    docker.ok(&["rm", "logs", "greedy"]);
    eventually_within(SOON, "all shims have ended", || docker.processes("start").is_empty().then_some(()));
}
