//! The other programs, each with folders of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::tree::{Tree, tree_of};

/// Runs a program to its end; what it printed.
#[track_caller]
pub(super) fn run(program: &str, args: &[&str]) -> String {
    attempt(program, args).unwrap_or_else(|error| panic!("{program} {}: {error}", args.join(" ")))
}

/// The same, where it may fail.
pub(super) fn attempt(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Runs a script of the shell.
#[track_caller]
pub(super) fn sh(script: &str) -> String {
    run("sh", &["-euc", script])
}

/// Whether all of these are installed; says what is not.
pub(crate) fn installed(programs: &[&str]) -> bool {
    programs.iter().all(|program| {
        let found = attempt("sh", &["-c", &format!("command -v {program}")]).is_ok();
        if !found {
            eprintln!("skipped: {program} is not installed");
        }
        found
    })
}

/// Waits until something works.
#[track_caller]
fn until(what: &str, mut works: impl FnMut() -> bool) {
    let began = Instant::now();
    while !works() {
        assert!(began.elapsed() < Duration::from_secs(40), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Debian's dockerd and the docker client.
pub(super) struct Docker {
    dir: tempfile::TempDir,
    child: Child,
}

impl Docker {
    /// Starts it on a containerd; images are its own, that is for containers.
    pub(super) fn start(containerd: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("berth-matrix-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let log = fs::File::create(at("log")).unwrap();
        let child = Command::new("dockerd")
            .args(["--containerd", &containerd.display().to_string(), "-H", &format!("unix://{}", at("sock"))])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self { dir, child };
        until("dockerd answers", || docker.attempt(&["version"]).is_ok());
        docker
    }

    fn attempt(&self, args: &[&str]) -> Result<String, String> {
        let (host, config) = (format!("unix://{}/sock", self.dir.path().display()), self.dir.path().join("client"));
        attempt("docker", &[&["--config", config.to_str().unwrap(), "-H", &host], args].concat())
    }

    /// Runs the client.
    #[track_caller]
    pub(super) fn run(&self, args: &[&str]) -> String {
        self.attempt(args).unwrap_or_else(|error| panic!("docker {}: {error}", args.join(" ")))
    }

    /// The tree of an image as dockerd has unpacked it.
    #[track_caller]
    pub(super) fn tree(&self, image: &str) -> Tree {
        let of = |key: &str| {
            self.run(&[
                "image",
                "inspect",
                "-f",
                &format!("{{{{with .GraphDriver.Data.{key}}}}}{{{{.}}}}{{{{end}}}}"),
                image,
            ])
        };
        let lowers = [of("UpperDir"), of("LowerDir")].into_iter().filter(|lower| !lower.is_empty());
        let lowers: Vec<String> = lowers.collect();
        let empty = self.dir.path().join("empty");
        fs::create_dir_all(&empty).unwrap();
        // overlayfs wants two of them.
        let options = format!("ro,lowerdir={}:{}", lowers.join(":"), empty.display());
        mounted(&["-t", "overlay", "-o", &options, "overlay"])
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- dockerd\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        end(&mut self.child);
        unmount_below(self.dir.path());
    }
}

fn end(child: &mut Child) {
    let _ = attempt("kill", &[&child.id().to_string()]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mount).starts_with(folder) {
            let _ = attempt("umount", &["-l", mount]);
        }
    }
}

/// Mounts something for a moment and describes it.
#[track_caller]
pub(super) fn mounted(args: &[&str]) -> Tree {
    let dir = tempfile::Builder::new().prefix("berth-matrix-").tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    run("mount", &[args, &[at]].concat());
    let tree = tree_of(dir.path());
    run("umount", &[at]);
    tree
}

/// podman and buildah with a storage of their own.
pub(super) struct Podman(tempfile::TempDir);

impl Podman {
    pub(super) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("berth-matrix-").tempdir().unwrap())
    }

    /// Runs `podman` or `buildah`.
    #[track_caller]
    pub(super) fn run(&self, program: &str, args: &[&str]) -> String {
        let at = |name: &str| self.0.path().join(name).display().to_string();
        let own = ["--root", &at("root"), "--runroot", &at("run"), "--storage-driver", "vfs"];
        run(program, &[&own, args].concat())
    }

    /// The id of an image.
    #[track_caller]
    pub(super) fn id(&self, image: &str) -> String {
        self.run("podman", &["image", "inspect", "-f", "{{.Id}}", image])
    }

    /// The tree of an image as podman has unpacked it.
    #[track_caller]
    pub(super) fn tree(&self, image: &str) -> Tree {
        let at = self.run("podman", &["image", "mount", image]);
        let tree = tree_of(Path::new(&at));
        self.run("podman", &["image", "unmount", image]);
        tree
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        unmount_below(self.0.path());
    }
}

/// Debian's containerd.
pub(super) struct Containerd {
    dir: tempfile::TempDir,
    child: Child,
}

impl Containerd {
    pub(super) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("berth-matrix-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        fs::write(at("config.toml"), config).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let child = Command::new("containerd")
            .args(["--config", &at("config.toml"), "--root", &at("root"), "--state", &at("state"), "-a", &at("sock")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { dir, child };
        until("containerd answers", || attempt("ctr", &["-a", &containerd.socket(), "version"]).is_ok());
        containerd
    }

    fn socket(&self) -> String {
        self.dir.path().join("sock").display().to_string()
    }

    #[track_caller]
    pub(super) fn ctr(&self, args: &[&str]) -> String {
        run("ctr", &[&["-a", &self.socket()], args].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        end(&mut self.child);
        unmount_below(self.dir.path());
    }
}

/// The tree of an image in an OCI layout as umoci unpacks it.
#[track_caller]
pub(super) fn umoci_tree(layout: &str) -> Tree {
    let dir = tempfile::Builder::new().prefix("berth-matrix-").tempdir().unwrap();
    let bundle: PathBuf = dir.path().join("bundle");
    run("umoci", &["unpack", "--image", layout, bundle.to_str().unwrap()]);
    tree_of(&bundle.join("rootfs"))
}
