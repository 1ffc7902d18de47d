//! OCI runtimes on one bundle: the full cycle, `run` of `true`, and the floor below both.

use crate::table::{Table, median};
use integration_tests::{
    images,
    programs::{peer, program},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const ROUNDS: usize = 60;

/// A runtime and what it needs on a machine with hybrid cgroups.
struct Runtime {
    name: &'static str,
    path: PathBuf,
    root: PathBuf,
}

impl Runtime {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(&self.root).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> bool {
        self.command().args(args).status().is_ok_and(|status| status.success())
    }
}

fn bundle(folder: &Path) {
    images::busybox_folder(&folder.join("rootfs"));
    let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
    let spec: Value = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"], "readonlyPaths": ["/proc/bus", "/proc/sys"],
        },
    });
    fs::write(folder.join("config.json"), spec.to_string()).expect("write config.json");
}

/// Measures the rows of the runtime.
pub fn measure(table: &mut Table) {
    // crun 1.8 refuses hybrid cgroups: everybody runs in a mount namespace without the cgroup2 tree, on equal terms.
    if std::env::var_os("BERTH_BENCH_INNER").is_none() && Path::new("/sys/fs/cgroup/unified").exists() {
        let me = std::env::current_exe().expect("own path");
        let script = format!("umount /sys/fs/cgroup/unified && exec {} runtime", me.display());
        let status = Command::new("unshare").args(["-m", "sh", "-c", &script]).env("BERTH_BENCH_INNER", "1").status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("the runtime part could not run in a mount namespace of its own");
        }
        return;
    }
    let folder = tempfile::Builder::new().prefix("berth-bench-").tempdir().expect("temp folder");
    bundle(folder.path());
    let at = folder.path().to_str().expect("plain path").to_owned();
    let mut runtimes =
        vec![Runtime { name: "berth", path: program("berth-runtime"), root: folder.path().join("r-berth") }];
    for name in ["crun", "runc", "youki"] {
        runtimes.extend(peer(name).map(|path| Runtime { name, path, root: folder.path().join(format!("r-{name}")) }));
    }
    let cycle = |runtime: &Runtime| {
        runtime.run(&["create", "--bundle", &at, "bench"])
            && runtime.run(&["start", "bench"])
            && runtime.run(&["delete", "--force", "bench"])
    };
    let run = |runtime: &Runtime| runtime.run(&["run", "--bundle", &at, "bench"]);
    let figures = |work: &dyn Fn(&Runtime) -> bool| -> Vec<(&'static str, Option<f64>)> {
        runtimes
            .iter()
            .map(|runtime| {
                let figure = if work(runtime) { median(ROUNDS, || work(runtime)) } else { None };
                runtime.run(&["delete", "--force", "bench"]);
                (runtime.name, figure)
            })
            .collect()
    };
    let cycles = figures(&cycle);
    table.row("bundle create+start+delete --force", "ms", cycles[0].1, &cycles[1..], "<= 0.6 of crun");
    let mut runs = figures(&run);
    let me = std::env::current_exe().expect("own path");
    let rootfs = folder.path().join("rootfs");
    let floor = || Command::new(&me).arg("floor").arg(&rootfs).status().is_ok_and(|status| status.success());
    runs.push(("bare clone and exec", median(ROUNDS, floor)));
    table.row("bundle run of true", "ms", runs[0].1, &runs[1..], "<= 2x bare");
}
