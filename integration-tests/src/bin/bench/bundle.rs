//! OCI runtimes on one bundle: the full cycle, `run` of `true` and the floor below it, `exec`, the default seccomp profile, a host
//! with many mounts, many containers, and the memory it takes.

use crate::table::{Table, interleaved};
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
const MOUNTS: usize = 1000;
const CONTAINERS: usize = 100;

/// A profile of the size of docker's default: 363 system calls, argument checks, three architectures.
const SECCOMP: &str = include_str!("seccomp.json");

/// A runtime and where it keeps its state: on a tmpfs, as the run root of every peer is.
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

    fn cycle(&self, bundle: &str) -> bool {
        self.run(&["create", "--bundle", bundle, "bench"])
            && self.run(&["start", "bench"])
            && self.run(&["delete", "--force", "bench"])
    }

    fn start(&self, bundle: &str, id: &str) -> bool {
        self.run(&["create", "--bundle", bundle, id]) && self.run(&["start", id])
    }
}

fn spec(args: &[&str], seccomp: bool) -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": args, "env": ["PATH=/bin"], "cwd": "/",
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
    if seccomp {
        spec["linux"]["seccomp"] = serde_json::from_str(SECCOMP).expect("seccomp.json");
    }
    spec
}

/// Bundles that share one root file system; gives their folders.
struct Bundles {
    plain: String,
    seccomp: String,
    sleeping: String,
    sleeping_seccomp: String,
    rootfs: PathBuf,
}

impl Bundles {
    fn new(folder: &Path) -> Self {
        let rootfs = folder.join("rootfs");
        images::busybox_folder(&rootfs);
        let bundle = |name: &str, args: &[&str], seccomp| {
            let at = folder.join(name);
            let mut spec = spec(args, seccomp);
            spec["root"]["path"] = rootfs.to_str().into();
            fs::create_dir(&at).expect("a folder");
            fs::write(at.join("config.json"), spec.to_string()).expect("config.json");
            at.to_str().expect("plain path").to_owned()
        };
        let sleep = ["/bin/sleep", "1000"];
        Self {
            plain: bundle("plain", &["/bin/true"], false),
            seccomp: bundle("seccomp", &["/bin/true"], true),
            sleeping: bundle("sleeping", &sleep, false),
            sleeping_seccomp: bundle("sleeping-seccomp", &sleep, true),
            rootfs,
        }
    }
}

/// Measures the rows of the runtime.
pub fn measure(table: &mut Table) {
    // crun 1.8 cannot use hybrid cgroups: everybody runs with the v1 controllers alone, on equal terms, and in a mount
    // namespace, where the thousand mounts go too.
    if std::env::var_os("BERTH_BENCH_INNER").is_none() {
        let me = std::env::current_exe().expect("own path");
        let alone = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/on-cgroup1");
        let status =
            Command::new("unshare").args(["-m", alone]).arg(me).arg("runtime").env("BERTH_BENCH_INNER", "1").status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("the runtime part could not run in a mount namespace of its own");
        }
        return;
    }
    let folder = tempfile::Builder::new().prefix("berth-bench-").tempdir().expect("temp folder");
    let state = tempfile::Builder::new().prefix("berth-bench-").tempdir_in("/dev/shm").expect("folder on a tmpfs");
    let bundles = Bundles::new(folder.path());
    let mut runtimes =
        vec![Runtime { name: "berth", path: program("berth-runtime"), root: state.path().join("berth") }];
    for name in ["crun", "runc", "youki"] {
        runtimes.extend(peer(name).map(|path| Runtime { name, path, root: state.path().join(name) }));
    }
    let bench = Bench { runtimes, bundles, mounts: folder.path().join("mounts") };
    bench.times(table);
    bench.memory(table);
}

struct Bench {
    runtimes: Vec<Runtime>,
    bundles: Bundles,
    mounts: PathBuf,
}

type Figures = Vec<(&'static str, Option<f64>)>;

impl Bench {
    /// Everybody's median, in turns: what disturbs the machine meanwhile disturbs all alike.
    fn figures(&self, work: &dyn Fn(&Runtime) -> bool) -> Figures {
        let works: Vec<Box<dyn FnMut() -> bool + '_>> =
            self.runtimes.iter().map(|runtime| Box::new(move || work(runtime)) as Box<dyn FnMut() -> bool>).collect();
        let times = interleaved(ROUNDS, works);
        self.runtimes.iter().map(|runtime| runtime.name).zip(times).collect()
    }

    fn row(&self, table: &mut Table, work: &str, goal: &str, doing: &dyn Fn(&Runtime) -> bool) {
        let figures = self.figures(doing);
        for runtime in &self.runtimes {
            runtime.run(&["delete", "--force", "bench"]);
        }
        table.row(work, "ms", figures[0].1, &figures[1..], goal);
    }

    fn times(&self, table: &mut Table) {
        let Bundles { plain, seccomp, sleeping, sleeping_seccomp, rootfs } = &self.bundles;
        self.row(table, "create+start+delete --force", "<= 0.6 of crun", &|runtime| runtime.cycle(plain));
        self.row(table, "the same with the default seccomp profile", "< crun", &|runtime| runtime.cycle(seccomp));
        let me = std::env::current_exe().expect("own path");
        let floor = || Command::new(&me).arg("floor").arg(rootfs).status().is_ok_and(|status| status.success());
        let mut works: Vec<Box<dyn FnMut() -> bool>> = vec![Box::new(floor)];
        for runtime in &self.runtimes {
            works.push(Box::new(move || runtime.run(&["run", "--bundle", plain, "bench"])));
        }
        let times = interleaved(ROUNDS, works);
        let mut peers: Figures =
            self.runtimes[1..].iter().map(|runtime| runtime.name).zip(times[2..].to_vec()).collect();
        peers.push(("bare clone, mounts and exec", times[0]));
        table.row("run of true", "ms", times[1], &peers, "<= 2x bare");
        for (work, bundle) in [("exec of true", sleeping), ("exec under the default seccomp profile", sleeping_seccomp)]
        {
            let able: Vec<bool> = self.runtimes.iter().map(|runtime| runtime.start(bundle, "bench")).collect();
            assert!(able[0], "berth starts a container");
            self.row(table, work, "< crun", &|runtime| runtime.run(&["exec", "bench", "/bin/true"]));
        }
        for runtime in &self.runtimes {
            for number in 0..CONTAINERS {
                runtime.run(&["create", "--bundle", sleeping, &format!("many-{number}")]);
            }
        }
        self.row(table, "cycle beside 100 containers", "as without", &|runtime| runtime.cycle(plain));
        for runtime in &self.runtimes {
            for number in 0..CONTAINERS {
                runtime.run(&["delete", "--force", &format!("many-{number}")]);
            }
        }
        self.mount_many();
        self.row(table, "cycle on a host with 1,000 mounts more", "as without", &|runtime| runtime.cycle(plain));
    }

    fn mount_many(&self) {
        fs::create_dir(&self.mounts).expect("a folder");
        let none = None::<&str>;
        for number in 0..MOUNTS {
            let at = self.mounts.join(number.to_string());
            fs::create_dir(&at).expect("a folder");
            nix::mount::mount(Some(&at), &at, none, nix::mount::MsFlags::MS_BIND, none).expect("a mount");
        }
    }

    /// Peak of resident memory, as the kernel counts it for a process that has ended (getrusage(2), ru_maxrss).
    fn memory(&self, table: &mut Table) {
        let me = std::env::current_exe().expect("own path");
        let peak = |runtime: &Runtime, args: &[&str]| -> Option<f64> {
            let mut command = Command::new(&me);
            command.arg("peak").arg(&runtime.path).arg("--root").arg(&runtime.root).args(args);
            let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
            let kilobytes: f64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
            output.status.success().then_some(kilobytes / 1024.0)
        };
        for (work, bundle) in [
            ("peak memory of create", &self.bundles.plain),
            ("peak memory of create, default seccomp profile", &self.bundles.seccomp),
        ] {
            let create = |runtime: &Runtime| {
                let figure = peak(runtime, &["create", "--bundle", bundle, "bench"]);
                runtime.run(&["delete", "--force", "bench"]);
                figure
            };
            let figures: Figures = self.runtimes.iter().map(|runtime| (runtime.name, create(runtime))).collect();
            table.row(work, "MB", figures[0].1, &figures[1..], "< crun");
        }
        let size = |runtime: &Runtime| fs::metadata(&runtime.path).ok().map(|found| found.len() as f64 / 1e6);
        let sizes: Figures = self.runtimes.iter().map(|runtime| (runtime.name, size(runtime))).collect();
        table.row("size of the program (crun's without its libraries)", "MB", sizes[0].1, &sizes[1..], "about 1.5");
    }
}

/// Runs a command with its output thrown away, and prints the peak of its resident memory in KiB.
pub fn peak(command: &[String]) -> std::process::ExitCode {
    let Some((program, args)) = command.split_first() else { return std::process::ExitCode::FAILURE };
    let status = Command::new(program).args(args).stdout(Stdio::null()).status();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    match (status, usage) {
        (Ok(status), Ok(usage)) if status.success() => {
            println!("{}", usage.max_rss());
            std::process::ExitCode::SUCCESS
        }
        _ => std::process::ExitCode::FAILURE,
    }
}
