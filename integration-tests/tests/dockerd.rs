//! Debian's dockerd on Berth's supervisor in the place of containerd: images are dockerd's own there, containers are the
//! supervisor's.

use integration_tests::{
    Outcome, eventually_within, images,
    programs::{peer_or_skip, program},
    run, run_with,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

struct Pair {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
    cgroup: String,
}

impl Pair {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("berth-moby-").tempdir().unwrap();
        let cgroup = format!("berth-moby-{}", std::process::id());
        let mut pair = Self { folder, daemons: Vec::new(), cgroup };
        let mut supervisor = Command::new(program("berth-supervisor"));
        supervisor.args(["--data-root", &pair.at("data"), "--run-root", &pair.at("run")]);
        pair.daemon("supervisor.log", &mut supervisor);
        let socket = pair.socket();
        eventually_within(Duration::from_secs(20), "the supervisor listens", || {
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        let mut dockerd = Command::new("dockerd");
        dockerd
            .args(["--containerd", &socket.display().to_string(), "-H", &pair.host()])
            .args(["--data-root", &pair.at("docker"), "--exec-root", &pair.at("exec"), "--pidfile", &pair.at("pid")])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--cgroup-parent", &format!("/{}", pair.cgroup)]);
        pair.daemon("dockerd.log", &mut dockerd);
        eventually_within(Duration::from_secs(40), "dockerd answers", || {
            (pair.docker(&["version"]).code() == 0).then_some(())
        });
        pair
    }

    fn daemon(&mut self, log: &str, command: &mut Command) {
        let log = fs::File::create(self.at(log)).unwrap();
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push(command.spawn().unwrap());
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("run/supervisor.sock")
    }

    fn host(&self) -> String {
        format!("unix://{}", self.at("docker.sock"))
    }

    fn docker(&self, args: &[&str]) -> Outcome {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", self.host()).env("DOCKER_CONFIG", self.at("client")).args(args);
        run_with(&mut docker, b"", Duration::from_secs(60))
    }

    fn ctr(&self, args: &[&str]) -> String {
        let socket = self.socket().display().to_string();
        run("ctr", [&["-a", &socket, "-n", "moby"], args].concat()).success().stdout()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["dockerd.log", "supervisor.log"] {
                let text = fs::read_to_string(self.at(log)).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                eprintln!("--- {log}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
        for daemon in self.daemons.iter_mut().rev() {
            kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM).ok();
            daemon.wait().ok();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(mount).starts_with(self.folder.path()) {
                run("umount", ["-q", "-l", mount]);
            }
        }
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            fs::remove_dir(controller.path().join(&self.cgroup)).ok();
        }
    }
}

#[test]
fn dockerd_runs_its_containers_on_the_supervisor() {
    for peer in ["dockerd", "docker", "ctr", "runc"] {
        if peer_or_skip(peer).is_none() {
            return;
        }
    }
    let pair = Pair::start();
    let archive = images::busybox_archive(pair.folder.path());
    pair.docker(&["load", "-q", "-i", archive.to_str().unwrap()]).success();
    let hello =
        pair.docker(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; exit 8"]);
    assert_eq!((hello.code(), hello.stdout(), hello.stderr()), (8, "out".into(), "err".into()), "{hello}");
    let missing = pair.docker(&["run", "--rm", "--network", "none", "busybox", "nope"]).expect_code(127);
    assert!(missing.stderr().contains("executable file not found in $PATH"), "{missing}");
    let run = ["run", "-d", "--name", "box", "--network", "none", "-m", "64m", "busybox", "sleep", "1000"];
    let id = pair.docker(&run).success().stdout();
    assert_eq!(pair.ctr(&["tasks", "ls", "-q"]), id, "the supervisor runs it");
    assert_eq!(pair.docker(&["exec", "box", "sh", "-c", "echo in; exit 4"]).expect_code(4).stdout(), "in");
    assert!(pair.docker(&["top", "box"]).success().stdout().contains("sleep 1000"));
    assert!(pair.docker(&["stats", "--no-stream", "box"]).success().stdout().contains("64MiB"));
    pair.docker(&["pause", "box"]).success();
    assert!(pair.ctr(&["tasks", "ls"]).contains("PAUSED"));
    pair.docker(&["unpause", "box"]).success();
    pair.docker(&["update", "-m", "80m", "--memory-swap", "80m", "box"]).success();
    pair.docker(&["stop", "-t", "0", "box"]).success();
    let state = pair.docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box"]).success();
    assert_eq!(state.stdout(), "exited 137");
    pair.docker(&["start", "box"]).success();
    pair.docker(&["rm", "-f", "box"]).success();
    assert_eq!(pair.docker(&["ps", "-aq"]).success().stdout(), "");
    assert_eq!(pair.ctr(&["tasks", "ls", "-q"]) + &pair.ctr(&["containers", "ls", "-q"]), "", "nothing is left of it");
}
