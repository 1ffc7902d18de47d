//! A bundle to try things with: a root made of busybox, a config.json to change, and everything gone when it is dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::peers;
pub(crate) use super::peers::is_ours;

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "id", "ls", "mkdir", "mknod", "dd", "mount", "pwd", "ps", "sleep", "stty", "touch", "true",
    "tty", "env", "hostname", "kill", "readlink", "head", "grep", "stat", "umask", "wc", "sort",
];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One container that may come to be.
pub(crate) struct Bundle {
    dir: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) config: Value,
}

impl Bundle {
    /// `None`, with a reason printed, where containers cannot be made.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        Self::unprivileged()
    }

    /// The same for whoever runs the suite.
    pub(crate) fn unprivileged() -> Option<Self> {
        if !Path::new(BUSYBOX).exists() {
            println!("skipped: needs a static {BUSYBOX}");
            return None;
        }
        if let Some(reason) = peers::difference() {
            println!("{reason}");
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().join("bundle/rootfs");
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "data"] {
            std::fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        testing::executable(&root.join("bin/busybox"), std::fs::read(BUSYBOX).expect("busybox (static) is needed"));
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a link");
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n")
            .expect("passwd");
        std::fs::write(root.join("etc/secret"), "secret\n").expect("secret");
        // User namespaces have to get through.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("suite-{}-{number}", std::process::id());
        let config = config(&id);
        Some(Self { dir, id, config })
    }

    /// Sets what the container runs.
    pub(crate) fn shell(mut self, script: &str) -> Self {
        self.config["process"]["args"] = json!(["sh", "-c", script]);
        self
    }

    /// Sets one value of config.json by JSON pointer; the last part may be new, and `-` appends.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.config.pointer_mut(parent).expect("something there");
        match parent.as_array_mut() {
            Some(list) => list.push(value),
            None => parent[key] = value,
        }
        self
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn rootfs(&self, below: &str) -> PathBuf {
        self.path("bundle/rootfs").join(below)
    }

    /// The runtime's program where every user of the host can run it: as it is, or as a copy beside the bundle if it lies in
    /// a folder that only its owner enters (a checkout in root's home).
    pub(crate) fn program_for_users(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let program = peers::program();
        let enters = |folder: &Path| folder.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
        if program.is_absolute() && program.ancestors().skip(1).all(enters) {
            return program;
        }
        let copy = self.path("program");
        if !copy.exists() {
            testing::executable(&copy, std::fs::read(&program).expect("the program"));
        }
        copy
    }

    /// The runtime with this bundle's state folder.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = peers::command();
        command.arg("--root").arg(self.path("state")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command that ends.
    pub(crate) fn call(&self, arguments: &[&str]) -> Output {
        peers::output(&mut self.command(arguments))
    }

    /// Runs a command that has to succeed; gives its stdout.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{arguments:?}: {}\nstdout: {stdout}\nstderr: {stderr}", output.status);
        stdout
    }

    /// Runs a command that has to fail; gives its stderr.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let (stdout, stderr) = texts(&output);
        assert!(!output.status.success(), "{arguments:?} succeeded\nstdout: {stdout}\nstderr: {stderr}");
        stderr
    }

    pub(crate) fn write_config(&self) {
        std::fs::write(self.path("bundle/config.json"), self.config.to_string()).expect("config.json");
    }

    fn bundle(&self) -> String {
        self.path("bundle").to_str().expect("utf-8").to_owned()
    }

    /// `run` in the foreground.
    pub(crate) fn run(&self) -> Output {
        self.write_config();
        self.call(&["run", "--bundle", &self.bundle(), &self.id])
    }

    /// `run` of something that has to succeed; gives its stdout.
    pub(crate) fn run_ok(&self) -> String {
        let output = self.run();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "run: {}\nstdout: {stdout}\nstderr: {stderr}", output.status);
        stdout
    }

    /// `run` of something that has to fail; gives its stderr, after a look that nothing was left.
    pub(crate) fn run_fails(&self) -> String {
        let output = self.run();
        let (stdout, stderr) = texts(&output);
        assert!(!output.status.success(), "run succeeded\nstdout: {stdout}\nstderr: {stderr}");
        self.assert_nothing_left();
        stderr
    }

    /// `create`, with its output thrown away: the container keeps it open.
    pub(crate) fn create(&self, more: &[&str]) -> bool {
        self.write_config();
        let bundle = self.bundle();
        let arguments = [&["create", "--bundle", &bundle], more, &[self.id.as_str()]].concat();
        let status = self.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.expect("the runtime runs").success()
    }

    /// Creates and starts.
    pub(crate) fn start(&self) {
        assert!(self.create(&[]), "create");
        self.ok(&["start", &self.id]);
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).expect("json")
    }

    pub(crate) fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().expect("a pid") as i32
    }

    pub(crate) fn wait_for(&self, status: &str) {
        eventually(&format!("status {status}"), || self.state()["status"] == status);
    }

    /// Path of the cgroup directory of a controller, as the container's process says.
    pub(crate) fn cgroup(&self, controller: &str) -> PathBuf {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid())).expect("cgroup");
        let line = |wanted: &dyn Fn(&str) -> bool| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (name, path) = (fields.next()?, fields.next()?);
                wanted(name).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let root = Path::new("/sys/fs/cgroup");
        match line(&|name| name.split(',').any(|name| name == controller)) {
            Some(path) => root.join(controller).join(path),
            None => root.join(line(&|name| name.is_empty()).expect("a cgroup2 line")),
        }
    }

    /// No state, no cgroup, no mount.
    pub(crate) fn assert_nothing_left(&self) {
        assert!(!self.path("state").join(&self.id).exists(), "state is left");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(&self.bundle()), "a mount is left");
        assert_eq!(cgroups_of(&self.id), Vec::<PathBuf>::new(), "cgroups are left");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        // Under other ids there is something only if the test has failed.
        let others = std::fs::read_dir(self.path("state")).into_iter().flatten().flatten();
        for id in others.filter_map(|entry| entry.file_name().into_string().ok()) {
            let _ = self.command(&["delete", "--force", &id]).stderr(Stdio::null()).status();
        }
        if !std::thread::panicking() {
            self.assert_nothing_left();
        }
    }
}

/// Stdout and stderr as text.
pub(crate) fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// How many times longer than on hardware things may take: `BERTH_TEST_PATIENCE`, set in the emulated test VM.
pub(crate) fn patience() -> u32 {
    std::env::var("BERTH_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Waits for something to become true.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30) * patience();
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).expect("cgroups").flatten().map(|entry| entry.path());
    hierarchies
        .chain([root.to_owned()])
        .map(|path| path.join(format!("berth-{id}")))
        .filter(|path| path.exists())
        .collect()
}

fn config(id: &str) -> Value {
    let caps =
        ["CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID"];
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "suite",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("/berth-{id}"),
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": [],
            "readonlyPaths": [],
        },
    })
}
