//! The two that are compared, each with roots, namespace and folder of its own.

use crate::table::{Answer, Row};
use integration_tests::{eventually_within, images, programs::program, run, run_with};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// What every row finds: `ctr` on this daemon and namespace, `t` for one that may hang, and `soon`, which waits until a
/// command succeeds.
const PRELUDE: &str = r#"
ctr() { command ctr -a "$S" -n "$NS" "$@" 2>&1; }
soon() { for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.05; done; echo "never: $*"; return 99; }
stopped() { ctr tasks ls | grep -q "^$1 .*STOPPED"; }
terminal() { script -qec "stty rows 33 cols 99; exec ctr -a $S -n $NS $*" /dev/null </dev/null 2>&1; }
"#;

/// One of the two.
pub(crate) struct Daemon {
    folder: tempfile::TempDir,
    namespace: String,
    socket: String,
    image: String,
    child: Child,
}

impl Daemon {
    /// Berth's supervisor.
    pub(crate) fn berth(registry: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("berth-ctr-b-").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut command = Command::new(program("berth-supervisor"));
        command.args(["--data-root", &at("data"), "--run-root", &at("run")]);
        let socket = at("run/supervisor.sock");
        Self::start(folder, "b", socket, registry, command)
    }

    /// Debian's containerd, on runc.
    pub(crate) fn containerd(registry: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("berth-ctr-c-").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let socket = at("c.sock");
        let config = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = '{socket}'\n",
            at("root"),
            at("state"),
        );
        fs::write(at("config.toml"), config).unwrap();
        let mut command = Command::new("containerd");
        command.args(["-c", &at("config.toml")]);
        Self::start(folder, "c", socket, registry, command)
    }

    fn start(folder: tempfile::TempDir, who: &str, socket: String, registry: &str, mut command: Command) -> Self {
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let work = folder.path().join("work");
        fs::create_dir(&work).unwrap();
        images::busybox_archive(&work);
        let daemon = Self {
            namespace: format!("berth-ctr-{}-{who}", std::process::id()),
            image: format!("{registry}/{who}/busybox:1"),
            folder,
            socket,
            child,
        };
        eventually_within(Duration::from_secs(30), "the daemon answers", || {
            (run("ctr", ["-a", &daemon.socket, "version"]).code() == 0).then_some(())
        });
        daemon
    }

    /// Runs one row.
    pub(crate) fn run(&self, row: &Row) -> Answer {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("{PRELUDE}\n{}", row.line)]).current_dir(self.folder.path().join("work"));
        shell.env("S", &self.socket).env("NS", &self.namespace).env("I", &self.image);
        let outcome = run_with(&mut shell, b"", Duration::from_secs(30));
        Answer { code: outcome.code(), output: self.plain(&outcome.stdout()) }
    }

    /// What differs only because the two are two.
    fn plain(&self, text: &str) -> String {
        let folder = self.folder.path().display().to_string();
        let text = text.replace(&folder, "FOLDER").replace(&self.image, "IMAGE").replace(&self.namespace, "NAMESPACE");
        // The client's log lines begin with the time.
        let untimed = |line: &str| match line.strip_prefix("time=\"").and_then(|rest| rest.split_once("\" ")) {
            Some((_, rest)) => rest.to_owned(),
            None => line.to_owned(),
        };
        text.lines().map(untimed).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ctr = |args: &[&str]| run("ctr", [&["-a", &self.socket, "-n", &self.namespace], args].concat());
        for id in ctr(&["tasks", "ls", "-q"]).stdout().lines() {
            ctr(&["tasks", "rm", "-f", id]);
        }
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).ok();
        self.child.wait().ok();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(mount).starts_with(self.folder.path()) {
                run("umount", ["-q", "-l", mount]);
            }
        }
        // Runtimes make the parents of a cgroup path and leave them: who chose the path removes them.
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            fs::remove_dir(controller.path().join(&self.namespace)).ok();
        }
    }
}
