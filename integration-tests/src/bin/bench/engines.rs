//! Engines over their API: Berth and dockerd do the same requests.

use crate::table::{Table, median, pss_mb, settle, timed};
use integration_tests::{Stack, eventually, http::Api, images, programs::peer};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const ROUNDS: usize = 15;
const MANY: usize = 100;
/// As many bytes as nearly five million short lines.
const LINES_SIZE: usize = 53_000_000;

/// Debian's dockerd with containerd, on roots of its own.
pub struct Dockerd {
    folder: tempfile::TempDir,
    child: Child,
    tables: BTreeSet<String>,
}

// Lines such as `table ip nat`.
fn tables() -> BTreeSet<String> {
    let listed = Command::new("nft").args(["list", "tables"]).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect()
}

impl Dockerd {
    /// Starts it, if it is installed.
    pub fn start() -> Option<Self> {
        Self::start_with(&["--userland-proxy=false"])
    }

    /// The same, with further arguments.
    pub fn start_with(args: &[&str]) -> Option<Self> {
        peer("dockerd")?;
        let folder = tempfile::Builder::new().prefix("berth-bench-docker-").tempdir().ok()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let log = fs::File::create(at("log")).ok()?;
        let tables = tables();
        // dockerd makes docker0 by itself only under that name; a bridge that exists may have another.
        let ip = |args: &[&str]| Command::new("ip").args(args).status().is_ok_and(|s| s.success());
        ip(&["link", "add", "bench-docker0", "type", "bridge"]);
        ip(&["addr", "add", "10.239.0.1/24", "dev", "bench-docker0"]);
        ip(&["link", "set", "bench-docker0", "up"]);
        let child = Command::new("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["-H", &format!("unix://{}", at("docker.sock")), "--bridge", "bench-docker0"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().ok()?)
            .stderr(log)
            .spawn()
            .ok()?;
        let dockerd = Self { folder, child, tables };
        let api = dockerd.api();
        for _ in 0..300 {
            if api.open("GET", "/_ping", None, "").is_ok_and(|answer| answer.status == 200) {
                return Some(dockerd);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        eprintln!(
            "dockerd does not start:\n{}",
            fs::read_to_string(dockerd.folder.path().join("log")).unwrap_or_default()
        );
        None
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    fn api(&self) -> Api {
        Api::new(self.socket())
    }

    /// The folder of all that is its.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// dockerd and its containerd.
    pub fn pids(&self) -> Vec<u32> {
        daemon_pids(self.folder.path(), &["dockerd", "containerd"])
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        self.child.wait().ok();
        for mount in ["exec/netns/default", "data"] {
            Command::new("umount").args(["-q", &self.folder.path().join(mount).display().to_string()]).status().ok();
        }
        Command::new("ip").args(["link", "del", "bench-docker0"]).status().ok();
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            fs::remove_dir(controller.path().join("docker")).ok();
        }
        // dockerd leaves its iptables chains behind; a table that wasn't there before goes as a whole.
        for table in tables().difference(&self.tables) {
            let words: Vec<&str> = table.split(' ').collect();
            Command::new("nft").arg("delete").args(words).status().ok();
        }
    }
}

// Daemons whose command line names `folder`, or that such a daemon started.
fn daemon_pids(folder: &Path, names: &[&str]) -> Vec<u32> {
    let text = folder.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line =
            String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        if line.contains(&text) && names.contains(&program) {
            found.push(pid);
        }
    }
    found
}

/// Creates a container.
pub fn create(api: &Api, name: &str, body: &Value) -> bool {
    api.post(&format!("/v1.41/containers/create?name={name}"), Some(body)).status == 201
}

/// What `run --rm IMAGE true` asks of the API: create, attach, wait, start, and the answers.
pub fn run_rm(api: &Api, network: &str, command: &[&str]) -> Option<usize> {
    run_rm_with(api, json!({ "AutoRemove": true, "NetworkMode": network }), command)
}

fn run_rm_with(api: &Api, host: Value, command: &[&str]) -> Option<usize> {
    let body = json!({ "Image": "busybox", "Cmd": command, "AttachStdout": true, "HostConfig": host });
    let id = api.post("/v1.41/containers/create", Some(&body)).json()["Id"].as_str()?.to_owned();
    let upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
    let mut attach =
        api.open("POST", &format!("/v1.41/containers/{id}/attach?stream=1&stdout=1&stderr=1"), None, upgrade).ok()?;
    let mut wait = api.open("POST", &format!("/v1.41/containers/{id}/wait?condition=removed"), None, "").ok()?;
    let started = api.post(&format!("/v1.41/containers/{id}/start"), None);
    if started.status != 204 {
        eprintln!("start: {}", started.text());
        return None;
    }
    let mut bytes = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = attach.raw().read(&mut buffer).ok()?;
        if n == 0 {
            break;
        }
        bytes += n;
    }
    wait.chunk()?;
    Some(bytes)
}

fn exec_true(api: &Api, name: &str) -> bool {
    let body = json!({ "Cmd": ["true"], "AttachStdout": true, "AttachStderr": true });
    let created = api.post(&format!("/v1.41/containers/{name}/exec"), Some(&body)).json();
    let Some(id) = created["Id"].as_str() else { return false };
    let start = json!({ "Detach": false, "Tty": false });
    let Ok(mut stream) =
        api.open("POST", &format!("/v1.41/exec/{id}/start"), Some(&start), "Connection: Upgrade\r\nUpgrade: tcp\r\n")
    else {
        return false;
    };
    std::io::copy(stream.raw(), &mut std::io::sink()).is_ok()
        && api.get(&format!("/v1.41/exec/{id}/json")).json()["ExitCode"] == 0
}

struct Figures {
    bridge: Option<f64>,
    none: Option<f64>,
    exec: Option<f64>,
    idle: f64,
    each: Option<f64>,
    list: Option<f64>,
    remove: Option<f64>,
    stdout: Option<f64>,
    lines: Option<f64>,
}

/// 53 MB of short lines.
fn write_lines(folder: &Path) -> std::io::Result<PathBuf> {
    let path = folder.join("lines");
    let mut text = b"0123456789\n".repeat(LINES_SIZE / 11 + 1);
    text.truncate(LINES_SIZE);
    fs::write(&path, text)?;
    Ok(path)
}

fn figures(api: &Api, daemons: &dyn Fn() -> Vec<u32>, shim: &str, folder: &Path) -> Figures {
    settle();
    let idle = pss_mb(&daemons());
    run_rm(api, "bridge", &["true"]);
    let bridge = median(ROUNDS, || run_rm(api, "bridge", &["true"]).is_some());
    let none = median(ROUNDS, || run_rm(api, "none", &["true"]).is_some());
    let sleeper = json!({ "Image": "busybox", "Cmd": ["sleep", "1000"], "HostConfig": { "NetworkMode": "none" } });
    let begun =
        create(api, "bench-exec", &sleeper) && api.post("/v1.41/containers/bench-exec/start", None).status == 204;
    let exec = if begun { median(ROUNDS, || exec_true(api, "bench-exec")) } else { None };
    let produce = format!("yes 0123456789 | head -c {LINES_SIZE}");
    let stdout = timed(|| run_rm(api, "none", &["sh", "-c", &produce]).is_some_and(|n| n > LINES_SIZE));
    // The two processes of the row above need both processors for a while, whoever runs them; a file costs next to nothing.
    let lines = write_lines(folder).ok().and_then(|path| {
        let bind = format!("{}:/lines:ro", path.display());
        let host = || json!({ "AutoRemove": true, "NetworkMode": "none", "Binds": [bind] });
        median(3, || run_rm_with(api, host(), &["cat", "/lines"]).is_some_and(|n| n > LINES_SIZE))
    });
    api.delete("/v1.41/containers/bench-exec?force=1");
    let bridge_sleeper =
        json!({ "Image": "busybox", "Cmd": ["sleep", "1000"], "HostConfig": { "NetworkMode": "bridge" } });
    let all = (0..MANY).all(|n| {
        create(api, &format!("many{n}"), &bridge_sleeper)
            && api.post(&format!("/v1.41/containers/many{n}/start"), None).status == 204
    });
    settle();
    let shims = shim_pids(shim);
    let each = (all && !shims.is_empty()).then(|| (pss_mb(&shims) + pss_mb(&daemons()) - idle) / MANY as f64);
    let list = all.then(|| median(ROUNDS, || api.get("/v1.41/containers/json").status == 200)).flatten();
    let remove = timed(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..MANY)
                .map(|n| scope.spawn(move || api.delete(&format!("/v1.41/containers/many{n}?force=1")).status == 204))
                .collect();
            threads.into_iter().all(|thread| thread.join().unwrap_or(false))
        })
    });
    Figures { bridge, none, exec, idle, each, list, remove, stdout, lines }
}

/// Processes whose program has this name.
pub fn shim_pids(name: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line =
            String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
        if line.split(' ').next().unwrap_or_default().ends_with(name) {
            found.extend(entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()));
        }
    }
    found
}

/// Measures the rows of the engine.
pub fn measure(table: &mut Table) {
    let ours = {
        let stack = Stack::with_busybox();
        let pids = || vec![stack.engine_pid(), stack.supervisor_pid()];
        figures(&stack.api(), &pids, "berth-shim", stack.path())
    };
    let theirs = Dockerd::start().map(|dockerd| {
        let archive = images::busybox_archive(dockerd.folder.path());
        let socket = format!("unix://{}", dockerd.folder.path().join("docker.sock").display());
        Command::new("docker")
            .args(["-H", &socket, "load", "-q", "-i"])
            .arg(archive)
            .stdout(Stdio::null())
            .status()
            .ok();
        let api = dockerd.api();
        eventually("dockerd has the image", || (api.get("/v1.41/images/busybox/json").status == 200).then_some(()));
        figures(&api, &|| dockerd.pids(), "containerd-shim-runc-v2", dockerd.folder.path())
    });
    let mut row = |work: &str, unit: &'static str, pick: &dyn Fn(&Figures) -> Option<f64>, goal: &str| {
        table.row(work, unit, pick(&ours), &[("dockerd", theirs.as_ref().and_then(pick))], goal);
    };
    row("run --rm true through the API, bridge", "ms", &|f| f.bridge, "<= 1/8");
    row("run --rm true through the API, --net none", "ms", &|f| f.none, "<= 1/10");
    row("exec true", "ms", &|f| f.exec, "<= 1/8");
    row("daemons idle, PSS", "MB", &|f| Some(f.idle), "<= 25 MB");
    row("each of 100 running containers, PSS, shim and daemons' growth", "MB", &|f| f.each, "<= 0.8 MB");
    row("list 100 running containers", "ms", &|f| f.list, "<= 10 ms");
    row("remove 100 by force, together", "ms", &|f| f.remove, "<= 700 ms");
    row("53 MB of attached stdout", "ms", &|f| f.stdout, "<= 300 ms");
    row("53 MB of attached stdout, from a file", "ms", &|f| f.lines, "<= 300 ms");
}
