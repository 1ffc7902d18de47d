//! Daemons with roots of their own, and `ctr` on their sockets.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A supervisor or a containerd, ended when dropped.
pub(crate) struct Daemon {
    root: PathBuf,
    command: fn(&Path) -> Command,
    child: Option<Child>,
}

fn supervisor(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-supervisor"));
    command.arg("--data-root").arg(root.join("data")).arg("--run-root").arg(root.join("run"));
    command.arg("--listen").arg(format!("unix://{}", root.join("sock").display()));
    if root.join("config.toml").exists() {
        command.arg("--config").arg(root.join("config.toml"));
    }
    command
}

fn containerd(root: &Path) -> Command {
    let at = |name: &str| root.join(name).display().to_string();
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
        at("data"),
        at("run"),
        at("sock"),
        at("ttrpc")
    );
    fs::write(root.join("config.toml"), config).unwrap();
    let mut command = Command::new("containerd");
    command.arg("--config").arg(root.join("config.toml"));
    command
}

/// Whether a program is there; says so if not.
pub(crate) fn installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v $0 >/dev/null", program]).status().unwrap().success();
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

impl Daemon {
    /// Our supervisor on a root; `fault` is where it is to die, and the file that proves it.
    pub(crate) fn supervisor(root: &Path, fault: Option<(&str, &Path)>) -> Self {
        Self::start(root, supervisor, fault)
    }

    /// Debian's containerd.
    pub(crate) fn containerd(root: &Path) -> Self {
        Self::start(root, containerd, None)
    }

    fn start(root: &Path, command: fn(&Path) -> Command, fault: Option<(&str, &Path)>) -> Self {
        let log = fs::File::options().create(true).append(true).open(root.join("log")).unwrap();
        let mut run = command(root);
        if let Some((point, mark)) = fault {
            run.env("BERTH_FAULT", point).env("BERTH_FAULT_ONCE", mark);
        }
        let child = run.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let daemon = Self { root: root.to_owned(), command, child: Some(child) };
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(root.join("sock")).is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "not up: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// The folder with everything of it.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it has killed itself, as told.
    pub(crate) fn has_died(&mut self) -> bool {
        let Some(child) = &mut self.child else { return true };
        let Some(status) = child.try_wait().unwrap() else { return false };
        assert_eq!(status.signal(), Some(9), "{}", self.log());
        self.child = None;
        true
    }

    /// Ends it at this instant and starts it again.
    pub(crate) fn again(mut self) -> Self {
        self.end();
        let (root, command) = (self.root.clone(), self.command);
        drop(self);
        Self::start(&root, command, None)
    }

    /// Ends it at this instant, for something else to be done with its roots.
    pub(crate) fn stopped(mut self) -> Self {
        self.end();
        self
    }

    /// Its program, with what it is started with.
    pub(crate) fn program(&self) -> Command {
        (self.command)(&self.root)
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A command of containerd's client.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.root.join("sock")).args(["--connect-timeout", "2s", "-n", "tests"]).args(args);
        command
    }

    /// What containerd's client prints, or why it fails.
    pub(crate) fn try_ctr(&self, args: &[&str]) -> Result<Vec<u8>, String> {
        let output = self.command(args).output().unwrap();
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// What it prints, where it must not fail.
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let done = self.try_ctr(args).unwrap_or_else(|error| panic!("ctr {args:?}: {error}\n{}", self.log()));
        String::from_utf8_lossy(&done).into_owned()
    }

    /// Keys of a snapshotter, with their kinds.
    pub(crate) fn snapshots(&self, snapshotter: &str) -> Vec<(String, String)> {
        let text = self.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"]);
        let words = text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        words.map(|words| (words[0].clone(), words.last().cloned().unwrap_or_default())).collect()
    }

    /// Mounts a snapshot where the client says, runs a script in it, and unmounts.
    pub(crate) fn within(&self, snapshotter: &str, key: &str, script: &str) -> String {
        let at = self.root.join("mnt");
        fs::create_dir_all(&at).unwrap();
        let at = at.to_str().unwrap();
        let mount = self.ctr(&["snapshots", "--snapshotter", snapshotter, "mounts", at, key]);
        let run = format!("set -e; {}\ncd {at}\n(set -e; {script})\ncd /; umount {at}", mount.trim());
        let output = Command::new("unshare").args(["-m", "sh", "-c", &run]).output().unwrap();
        assert!(output.status.success(), "{run}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.log());
        }
    }
}

/// A file system of its own; unmounted when dropped.
pub(crate) struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// btrfs on a loop device; `None`, with the reason on stderr, where that can't be had.
    pub(crate) fn btrfs() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("berth-disk-").tempdir().unwrap();
        fs::create_dir(folder.path().join("at")).unwrap();
        let make = "truncate -s 400M $0/image && mkfs.btrfs -q $0/image && mount -o loop $0/image $0/at";
        let output = Command::new("sh").args(["-c", make]).arg(folder.path()).output().unwrap();
        if !output.status.success() {
            eprintln!("skipped: no btrfs on a loop device: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        Some(Self { folder })
    }

    /// A small one in memory.
    pub(crate) fn tmpfs(size: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("berth-disk-").tempdir().unwrap();
        fs::create_dir(folder.path().join("at")).unwrap();
        let options = format!("size={size}");
        let at = folder.path().join("at");
        assert!(
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status().unwrap().success()
        );
        Self { folder }
    }

    /// Where it is mounted.
    pub(crate) fn at(&self) -> PathBuf {
        self.folder.path().join("at")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.at()).status();
        assert!(std::thread::panicking() || done.is_ok_and(|status| status.success()), "the disk is still in use");
    }
}
