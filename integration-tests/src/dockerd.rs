//! Debian's dockerd with a containerd of its own, on roots and a bridge of its own: what Berth is measured by.

use crate::{command::Outcome, eventually_within, http::Api, images, programs::peer_or_skip, run_with};
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
    _turn: MutexGuard<'static, ()>,
}

// Lines such as `table ip nat`.
fn tables() -> BTreeSet<String> {
    let listed = Command::new("nft").args(["list", "tables"]).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect()
}

fn ip(args: &[&str]) {
    Command::new("ip").args(args).stderr(Stdio::null()).status().ok();
}

impl Dockerd {
    /// Starts it and waits until it answers; where it isn't installed, says so on standard error.
    pub fn start() -> Option<Self> {
        for needed in ["dockerd", "containerd", "runc"] {
            peer_or_skip(needed)?;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("berth-dockerd-").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (bridge, cgroup) = (format!("bd{}", std::process::id()), format!("berth-dockerd-{}", std::process::id()));
        let log = fs::File::create(at("log")).unwrap();
        let tables = tables();
        // dockerd makes docker0 by itself only under that name; a bridge that exists may have another.
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["addr", "add", "10.238.0.1/24", "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        let child = Command::new("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["-H", &format!("unix://{}", at("docker.sock")), "--bridge", &bridge, "--userland-proxy=false"])
            .args(["--cgroup-parent", &format!("/{cgroup}")])
            .args(["--default-address-pool", "base=10.236.0.0/16,size=24"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let dockerd = Self { folder, child, tables, bridge, cgroup, _turn: turn };
        let api = dockerd.api();
        eventually_within(Duration::from_secs(60), "dockerd answers", || {
            api.open("GET", "/_ping", None, "").is_ok_and(|answer| answer.status == 200).then_some(())
        });
        Some(dockerd)
    }

    /// One that has `busybox:latest`.
    pub fn with_busybox() -> Option<Self> {
        let dockerd = Self::start()?;
        let archive = fs::read(images::busybox_archive(dockerd.path())).unwrap();
        let kind = "Content-Type: application/x-tar\r\n";
        let answer = dockerd.api().open_bytes("POST", "/images/load?quiet=1", &archive, kind).unwrap().finish();
        answer.expect(200);
        Some(dockerd)
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
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        self.child.wait().ok();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(mount).starts_with(self.path()) {
                Command::new("umount").args(["-q", "-l", mount]).status().ok();
            }
        }
        ip(&["link", "del", &self.bridge]);
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            fs::remove_dir(controller.path().join(&self.cgroup)).ok();
        }
        // dockerd leaves its firewall chains behind; a table that wasn't there before goes as a whole.
        for table in tables().difference(&self.tables) {
            let words: Vec<&str> = table.split(' ').collect();
            Command::new("nft").arg("delete").args(words).status().ok();
        }
    }
}
