//! Those who call an OCI runtime in real life, each with `berth-runtime` as its only one, through a whole life of containers:
//! dockerd, containerd, podman with conmon, buildah. Each has roots, sockets and a cgroup of its own.

use integration_tests::{
    caller::{Caller, LIMIT},
    eventually_within, images,
    programs::{peer_or_skip, program},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

fn runtime() -> String {
    program("berth-runtime").display().to_string()
}

fn words(parts: &[&[&str]]) -> Vec<String> {
    parts.iter().flat_map(|part| part.iter().map(|&word| word.to_owned())).collect()
}

fn installed(programs: &[&str]) -> bool {
    programs.iter().all(|name| peer_or_skip(name).is_some())
}

/// The file of a v1 controller, or of cgroup2, that a container sees as its own.
fn limit_file(v1: &str, v2: &str) -> String {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    format!("/sys/fs/cgroup/{}", if unified { v2 } else { v1 })
}

fn dockerd() -> Option<Caller> {
    if !installed(&["dockerd", "containerd", "docker", "script"]) {
        return None;
    }
    let mut caller = Caller::new("dockerd");
    let socket = format!("unix://{}", caller.at("docker.sock"));
    let mut daemon = Command::new("dockerd");
    daemon
        .args(["--data-root", &caller.at("data"), "--exec-root", &caller.at("exec"), "--pidfile", &caller.at("pid")])
        .args(["-H", &socket, "--bridge=none", "--iptables=false", "--ip6tables=false"])
        .args(["--add-runtime", &format!("berth={}", runtime()), "--default-runtime", "berth"])
        .args(["--cgroup-parent", &format!("/{}", caller.name)]);
    caller.start(&mut daemon);
    caller.client = vec!["docker".into(), "--host".into(), socket];
    eventually_within(Duration::from_secs(40), "dockerd answers", || {
        (caller.call(&["version"]).code() == 0).then_some(())
    });
    let archive = images::busybox_archive(caller.path());
    caller.ok(&["load", "-q", "-i", archive.to_str().unwrap()]);
    Some(caller)
}

#[test]
fn dockerd_takes_a_container_through_its_life() {
    let Some(docker) = dockerd() else { return };
    docker.has_terminal(&["run", "--rm", "-it", "--network", "none", "busybox"]);
    let run = ["run", "-d", "--name", "box", "--network", "none", "-m", "64m", "busybox", "sleep", "1000"];
    docker.ok(&run);
    assert_eq!(docker.ok(&["inspect", "-f", "{{.HostConfig.Runtime}}", "box"]), "berth");
    docker.assert_state_is_ours();

    let both = ["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 4"];
    let outcome = docker.call(&both);
    assert_eq!((outcome.code(), outcome.stdout(), outcome.stderr()), (4, "out".into(), "err".into()), "{outcome}");
    docker.has_terminal(&["exec", "-it", "box"]);
    docker.ok(&["exec", "-u", "1000", "-w", "/tmp", "-e", "A=b", "box", "sh", "-c", "test $(id -u)$PWD$A = 1000/tmpb"]);
    docker.code(&["exec", "box", "nothing-there"], 126);

    docker.ok(&["pause", "box"]);
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), "paused");
    docker.code(&["exec", "box", "true"], 1);
    docker.ok(&["unpause", "box"]);

    docker.ok(&["update", "-m", "128m", "--memory-swap", "256m", "--pids-limit", "50", "box"]);
    let limit = docker.ok(&["exec", "box", "cat", &limit_file("memory/memory.limit_in_bytes", "memory.max")]);
    assert_eq!(limit, (128 << 20).to_string());
    assert_eq!(docker.ok(&["exec", "box", "cat", &limit_file("pids/pids.max", "pids.max")]), "50");
    let stats = docker.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "box"]);
    assert!(stats.contains("/ 128MiB 1"), "{stats}");
    assert!(docker.ok(&["top", "box"]).contains("sleep 1000"));

    docker.ok(&["kill", "-s", "KILL", "box"]);
    assert_eq!(docker.ok(&["wait", "box"]), "137");
    docker.ok(&["start", "box"]);
    assert_eq!(docker.ok(&["exec", "box", "echo", "again"]), "again");
    docker.ok(&["rm", "-f", "box"]);
    assert_eq!(docker.ok(&["ps", "-aq"]), "");
}

#[test]
fn dockerd_passes_what_its_flags_ask_for() {
    let Some(docker) = dockerd() else { return };
    let run = |flags: &[&str], script: &str| {
        docker.ok(&[&["run", "--rm", "--network", "none"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let status = |field: &str| format!("sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status");
    assert_eq!(run(&[], &status("Seccomp")), "2", "the default profile");
    assert_eq!(run(&["--security-opt", "seccomp=unconfined"], &status("Seccomp")), "0");
    assert_eq!(run(&["--security-opt", "no-new-privileges"], &status("NoNewPrivs")), "1");
    assert_eq!(run(&["--cap-drop", "ALL", "--cap-add", "CHOWN"], &status("CapEff")), "0000000000000001");
    let profile =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    fs::write(docker.at("profile.json"), profile).unwrap();
    let seccomp = format!("seccomp={}", docker.at("profile.json"));
    assert_eq!(run(&["--security-opt", &seccomp], "mkdir /tmp/a 2>/dev/null || echo refused"), "refused");
    let flags = ["--read-only", "--tmpfs", "/tmp:size=1m", "--hostname", "one", "-u", "1000:50", "-w", "/work"];
    assert_eq!(run(&flags, "touch /x 2>/dev/null || echo \"$(id -u):$(id -g) $(hostname) $PWD\""), "1000:50 one /work");
    fs::create_dir(docker.at("volume")).unwrap();
    let volume = format!("{}:/v", docker.at("volume"));
    run(&["-v", &volume, "--shm-size", "8m", "--ulimit", "nofile=100:200"], "ulimit -n > /v/limit");
    assert_eq!(fs::read_to_string(docker.at("volume/limit")).unwrap(), "100\n");
    let limits = ["--cpus", "0.5", "--oom-score-adj", "100", "--pids-limit", "20", "--sysctl", "kernel.msgmax=9000"];
    assert_eq!(run(&limits, "cat /proc/self/oom_score_adj /proc/sys/kernel/msgmax"), "100\n9000");
    assert_eq!(run(&["--privileged"], "mount -t tmpfs none /tmp && echo mounted"), "mounted");
    if peer_or_skip("docker-init").is_some() {
        assert!(run(&["--init"], "cat /proc/1/cmdline").contains("docker-init"));
    }
}

#[test]
fn containerd_takes_a_container_through_its_life() {
    if !installed(&["containerd", "ctr", "containerd-shim-runc-v2", "script"]) {
        return;
    }
    let mut ctr = Caller::of_containerd("ctr");
    let mut daemon = Command::new("containerd");
    daemon.args(["--config", &ctr.at("config.toml")]);
    ctr.start(&mut daemon);
    eventually_within(Duration::from_secs(40), "containerd answers", || {
        (ctr.call(&["version"]).code() == 0).then_some(())
    });
    let archive = images::busybox_archive(ctr.path());
    ctr.ok(&["images", "import", archive.to_str().unwrap()]);
    let (image, runtime) = ("docker.io/library/busybox:latest", runtime());
    let root = ctr.at("states");
    let with = ["--runc-binary", runtime.as_str(), "--runc-root", &root];

    let once = [&["run", "--rm"], &with[..], &[image, "one", "sh", "-c", "echo by ctr; exit 4"]].concat();
    assert_eq!(ctr.code(&once, 4), "by ctr");
    ctr.has_terminal(&[&["run", "--rm", "-t"], &with[..], &[image, "two"]].concat());
    let limits = ["--memory-limit", "67108864", "--cpus", "0.5", "--seccomp"];
    ctr.ok(&[&["run", "-d"], &with[..], &limits, &[image, "box", "sleep", "1000"]].concat());
    ctr.assert_state_is_ours();
    let status = || ctr.ok(&["tasks", "ls"]);
    assert!(status().contains("RUNNING"));
    assert_eq!(ctr.ok(&["tasks", "exec", "--exec-id", "a", "box", "echo", "in"]), "in");
    ctr.code(&["tasks", "exec", "--exec-id", "b", "box", "sh", "-c", "exit 6"], 6);
    ctr.has_terminal(&["tasks", "exec", "-t", "--exec-id", "c", "box"]);
    assert_eq!(ctr.ok(&["tasks", "ps", "box"]).lines().count(), 2);
    ctr.ok(&["tasks", "pause", "box"]);
    assert!(status().contains("PAUSED"));
    ctr.ok(&["tasks", "resume", "box"]);
    assert!(status().contains("RUNNING"));
    assert!(ctr.ok(&["tasks", "metrics", "box"]).contains("67108864"));
    ctr.ok(&["tasks", "kill", "-s", "SIGKILL", "box"]);
    eventually_within(LIMIT, "the task has stopped", || status().contains("STOPPED").then_some(()));
    ctr.call(&["tasks", "delete", "box"]); // its code is the task's
    ctr.ok(&["containers", "delete", "box"]);
    ctr.ok(&["images", "rm", image]);
}

// What both tools for images and containers of podman's family need to stay out of each other's way.
fn storage(caller: &Caller) -> Vec<String> {
    let places = [("--root", caller.at("root")), ("--runroot", caller.at("run"))];
    places.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path]).chain(["--storage-driver=vfs".into()]).collect()
}

#[test]
fn podman_takes_a_container_through_its_life() {
    if !installed(&["podman", "conmon", "script"]) {
        return;
    }
    let mut podman = Caller::new("podman");
    let (runtime, tmp) = (runtime(), podman.at("tmp"));
    let own = ["--tmpdir", &tmp, "--runtime", &runtime, "--cgroup-manager=cgroupfs", "--events-backend=file"];
    podman.client = ["podman".to_owned()].into_iter().chain(storage(&podman)).chain(own.map(str::to_owned)).collect();
    let archive = images::busybox_archive(podman.path());
    podman.ok(&["load", "-q", "-i", archive.to_str().unwrap()]);
    let parent = format!("--cgroup-parent=/{}", podman.name);
    // Podman asks for as many files as the host has, which takes CAP_SYS_RESOURCE.
    let common = ["--network=none", &parent, "--ulimit=nofile=1000:1000", "--ulimit=nproc=1000:1000"];
    let run = |flags: &[&str], rest: &[&str]| words(&[&["run"], flags, &common, &["busybox"], rest]);

    podman.has_terminal(&run(&["--rm", "-it"], &[]));
    assert_eq!(podman.code(&run(&["--rm"], &["sh", "-c", "echo by podman; exit 8"]), 8), "by podman");
    podman.ok(&run(&["-d", "--name=box", "-m=64m", "--cpus=0.5"], &["sleep", "1000"]));
    assert!(podman.ok(&["inspect", "-f", "{{.OCIRuntime}}", "box"]).ends_with("berth-runtime"));
    let outcome = podman.call(&["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((outcome.code(), outcome.stdout(), outcome.stderr()), (3, "out".into(), "err".into()), "{outcome}");
    podman.has_terminal(&["exec", "-it", "box"]);
    podman.code(&["exec", "box", "nothing-there"], 127);
    podman.ok(&["pause", "box"]);
    assert_eq!(podman.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), "paused");
    podman.ok(&["unpause", "box"]);
    podman.ok(&["update", "-m=128m", "--cpus=0.25", "box"]);
    let limit = podman.ok(&["exec", "box", "cat", &limit_file("memory/memory.limit_in_bytes", "memory.max")]);
    assert_eq!(limit, (128 << 20).to_string());
    assert!(podman.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "box"]).contains("box 1"));
    assert!(podman.ok(&["top", "box", "args"]).contains("sleep 1000"));
    podman.ok(&["kill", "box"]);
    assert_eq!(podman.ok(&["wait", "box"]), "137");
    podman.ok(&["start", "box"]);
    podman.ok(&["stop", "-t=0", "box"]);
    podman.ok(&["rm", "box"]);

    let flags = ["--rm", "--read-only", "--tmpfs=/tmp", "--hostname=one", "--user=1000:50", "--cap-drop=all"];
    let script = "touch /x 2>/dev/null || echo \"$(id -u):$(id -g) $(hostname)\"";
    assert_eq!(podman.ok(&run(&flags, &["sh", "-c", script])), "1000:50 one");
    let map = podman.ok(&run(&["--rm", "--uidmap=0:100000:65536"], &["cat", "/proc/self/uid_map"]));
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    podman.ok(&run(&["--rm", "--privileged"], &["mount", "-t", "tmpfs", "none", "/tmp"]));
    let detached = podman.ok(&run(&["-d", "--pid=host"], &["sh", "-c", "sleep 1000 & wait"]));
    podman.ok(&["rm", "-f", "-t=0", &detached]);
    assert_eq!(podman.ok(&["ps", "-aq"]), "");
}

#[test]
fn buildah_runs_on_it() {
    if !installed(&["buildah", "script"]) {
        return;
    }
    let mut buildah = Caller::new("buildah");
    buildah.client = ["buildah".to_owned()].into_iter().chain(storage(&buildah)).collect();
    let archive: PathBuf = images::busybox_archive(buildah.path());
    let working = buildah.ok(&["from", &format!("docker-archive:{}", archive.display())]);
    let runtime = runtime();
    let run = |flags: &[&str], rest: &[&str]| {
        let common = ["--runtime", runtime.as_str(), "--isolation=oci", "--network=none"];
        words(&[&["run"], &common, flags, &[&working], rest])
    };
    buildah.ok(&run(&[], &["sh", "-c", "echo built > /made"]));
    assert_eq!(buildah.ok(&run(&[], &["cat", "/made"])), "built");
    buildah.code(&run(&[], &["sh", "-c", "exit 9"]), 9);
    assert_eq!(
        buildah.ok(&run(&["--user=1000", "--workingdir=/tmp"], &["sh", "-c", "echo $(id -u) $PWD"])),
        "1000 /tmp"
    );
    let (code, shown) = buildah.at_terminal(&run(&["--tty"], &["tty"]));
    assert!(code == 0 && shown.contains("/dev/pts/0"), "{code}: {shown:?}");
    buildah.ok(&["rm", &working]);
}
