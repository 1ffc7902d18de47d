//! Debian's dockerd with a containerd of its own, on roots and a bridge of its own: what Berth is measured by.

use crate::{
    command::Outcome,
    eventually_within,
    host::{Host, within},
    http::Api,
    images,
    programs::peer_or_skip,
    run_with,
};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

// Two of them would take each other's firewall chains away.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A running dockerd; ends itself when dropped.
#[derive(Debug)]
pub struct Dockerd {
    folder: tempfile::TempDir,
    child: Child,
    tables: BTreeSet<String>,
    bridge: String,
    cgroup: String,
    /// The network namespace that it runs in, if not this machine's.
    namespace: Option<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

// Lines such as `table ip nat`.
fn tables(namespace: Option<&Path>) -> BTreeSet<String> {
    let listed =
        command(namespace, "nft").args(["list", "tables"]).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect()
}

fn command(namespace: Option<&Path>, program: &str) -> Command {
    namespace.map_or_else(|| Command::new(program), |namespace| within(namespace, program))
}

fn ip(namespace: Option<&Path>, args: &[&str]) {
    command(namespace, "ip").args(args).stderr(Stdio::null()).status().ok();
}

impl Dockerd {
    /// Starts it and waits until it answers; where it isn't installed, says so on standard error.
    pub fn start() -> Option<Self> {
        Self::start_in(None)
    }

    /// The same, on another host.
    pub fn start_on(host: &Host) -> Option<Self> {
        Self::start_in(Some(host.namespace().to_owned()))
    }

    fn start_in(namespace: Option<PathBuf>) -> Option<Self> {
        for needed in ["dockerd", "containerd", "runc"] {
            peer_or_skip(needed)?;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("berth-dockerd-").tempdir().unwrap();
        let (bridge, cgroup) = (format!("bd{}", std::process::id()), format!("berth-dockerd-{}", std::process::id()));
        let tables = tables(namespace.as_deref());
        // dockerd makes docker0 by itself only under that name; a bridge that exists may have another.
        let ip = |args: &[&str]| ip(namespace.as_deref(), args);
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["addr", "add", "10.238.0.1/24", "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        let child = Self::spawn(folder.path(), namespace.as_deref(), &bridge, &cgroup);
        let dockerd = Self { folder, child, tables, bridge, cgroup, namespace, _turn: turn };
        dockerd.await_answer();
        Some(dockerd)
    }

    fn spawn(folder: &Path, namespace: Option<&Path>, bridge: &str, cgroup: &str) -> Child {
        let at = |name: &str| folder.join(name).display().to_string();
        let log = fs::OpenOptions::new().create(true).append(true).open(at("log")).unwrap();
        command(namespace, "dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["-H", &format!("unix://{}", at("docker.sock")), "--bridge", bridge, "--userland-proxy=false"])
            .args(["--cgroup-parent", &format!("/{cgroup}")])
            .args(["--default-address-pool", "base=10.236.0.0/16,size=24"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn await_answer(&self) {
        let api = self.api();
        eventually_within(Duration::from_secs(60), "dockerd answers", || {
            api.open("GET", "/_ping", None, "").is_ok_and(|answer| answer.status == 200).then_some(())
        });
    }

    /// Ends it in its orderly way. What it made of links and rules stays.
    pub fn end(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        self.child.wait().ok();
    }

    /// Starts it again, once it has ended.
    pub fn start_again(&mut self) {
        self.child = Self::spawn(self.folder.path(), self.namespace.as_deref(), &self.bridge, &self.cgroup);
        self.await_answer();
    }

    /// One that has `busybox:latest`.
    pub fn with_busybox() -> Option<Self> {
        let dockerd = Self::start()?;
        dockerd.load_busybox();
        Some(dockerd)
    }

    /// Loads `busybox:latest`.
    pub fn load_busybox(&self) {
        let archive = fs::read(images::busybox_archive(self.path())).unwrap();
        let kind = "Content-Type: application/x-tar\r\n";
        let answer = self.api().open_bytes("POST", "/images/load?quiet=1", &archive, kind).unwrap().finish();
        answer.expect(200);
    }

    /// Its folder; everything of it is below.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.path().join("docker.sock")
    }

    /// Its API.
    pub fn api(&self) -> Api {
        Api::new(self.socket())
    }

    /// A client program, prepared to talk to it.
    pub fn client(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.path().join("client"))
            .env_remove("BERTH_HOST")
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// Runs the real docker client.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        run_with(self.client("docker").args(args), b"", Duration::from_secs(120))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let api = self.api();
        if let Ok(all) = api.attempt("GET", "/containers/json?all=1", None) {
            for container in all.json().as_array().into_iter().flatten() {
                let id = container["Id"].as_str().unwrap_or_default();
                api.attempt("DELETE", &format!("/containers/{id}?force=1&v=1"), None).ok();
            }
        }
        api.attempt("POST", "/networks/prune", None).ok();
        self.end();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(mount).starts_with(self.path()) {
                Command::new("umount").args(["-q", "-l", mount]).status().ok();
            }
        }
        let namespace = self.namespace.as_deref();
        ip(namespace, &["link", "del", &self.bridge]);
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let cgroup = controller.path().join(&self.cgroup);
            // BuildKit's containers have had one of their own.
            fs::remove_dir(cgroup.join("buildkit")).ok();
            fs::remove_dir(cgroup).ok();
        }
        // dockerd leaves its firewall chains behind; a table that wasn't there before goes as a whole.
        for table in tables(namespace).difference(&self.tables) {
            let words: Vec<&str> = table.split(' ').collect();
            command(namespace, "nft").arg("delete").args(words).status().ok();
        }
    }
}
