//! A host to look after, and those who change files under a runtime's hands.

use std::collections::HashSet;
use std::fmt::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::bundle::{Bundle, is_ours, texts};

/// What is in the files of the host, and in no image.
pub(crate) const SECRET: &str = "belongs-to-the-host";

/// A bundle, and a host around it that must stay as it is.
///
/// The test's thread gets a mount namespace of its own, with everything shared as systemd has it: what a container mounts where it must not
/// shows there, other tests' mounts do not.
pub(crate) struct Host {
    pub(crate) bundle: Bundle,
    canary: PathBuf,
    before: String,
    mounts: HashSet<String>,
}

impl Host {
    pub(crate) fn new() -> Option<Self> {
        // First of all, since it says why there is none.
        let bundle = Bundle::new()?;
        sys::ns::unshare(0x0002_0000).expect("a mount namespace"); // CLONE_NEWNS
        for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
            mount(None::<&str>, "/", None::<&str>, propagation | MsFlags::MS_REC, None::<&str>).expect("propagation");
        }
        let canary = bundle.path("canary");
        std::fs::create_dir_all(canary.join("folder/deeper")).expect("folder");
        for (name, mode) in [("file", 0o600), ("passwd", 0o644), ("folder/program", 0o4755), ("folder/deeper/x", 0o400)]
        {
            std::fs::write(canary.join(name), format!("{SECRET}: {name}\n")).expect("file");
            std::fs::set_permissions(canary.join(name), std::fs::Permissions::from_mode(mode)).expect("mode");
        }
        symlink("file", canary.join("link")).expect("link");
        let before = snapshot(&canary);
        Some(Self { bundle, canary, before, mounts: mounts() })
    }

    /// The same, where only Berth's own runtime is known to withstand.
    pub(crate) fn of_ours() -> Option<Self> {
        if !is_ours() {
            println!("skipped: Debian's runc 1.1.5 has this hole, or other words for it");
            return None;
        }
        Self::new()
    }

    /// Changes the bundle.
    pub(crate) fn with(mut self, change: impl FnOnce(Bundle) -> Bundle) -> Self {
        self.bundle = change(self.bundle);
        self
    }

    /// A path of the host that no container has any business with.
    pub(crate) fn canary(&self, below: &str) -> PathBuf {
        self.canary.join(below)
    }

    /// Fails if anything of the host has changed.
    pub(crate) fn assert_untouched(&self, what: &str) {
        let now = snapshot(&self.canary);
        assert!(now == self.before, "{what}: the host has changed\nbefore:\n{}\nnow:\n{now}", self.before);
        // One that is gone was somebody else's, who has removed its mount point.
        let more: Vec<_> = mounts().into_iter().filter(|line| !self.mounts.contains(line)).collect();
        assert!(more.is_empty(), "{what}: mounted on the host: {more:#?}");
    }

    /// `run` in the foreground, with an end: something that hangs is a failure too.
    pub(crate) fn run(&self) -> Output {
        self.bundle.write_config();
        let folder = self.bundle.path("bundle");
        let arguments = ["run", "--bundle", folder.to_str().expect("utf-8"), &self.bundle.id];
        bounded(&mut self.bundle.command(&arguments), Duration::from_secs(20))
    }

    /// Runs what may fail or succeed, and fails if the host noticed. Gives stdout if it succeeded.
    pub(crate) fn attempt(&self, what: &str) -> Option<String> {
        let output = self.run();
        let (stdout, stderr) = texts(&output);
        println!("{what}: {} {stdout:?} {stderr:?}", output.status);
        self.assert_untouched(what);
        assert!(!stdout.contains(SECRET), "{what}: the container read a file of the host: {stdout}");
        self.bundle.assert_nothing_left();
        if output.status.success() {
            return Some(stdout);
        }
        assert!(!stderr.is_empty(), "{what}: failed without a word");
        assert!(!stderr.contains("panicked"), "{what}: {stderr}");
        None
    }

    /// Runs what has to be refused; gives the one line of its error.
    pub(crate) fn refused(&self, what: &str) -> String {
        let output = self.run();
        let (stdout, stderr) = texts(&output);
        assert!(!output.status.success(), "{what}: was not refused: {stdout}\n{stderr}");
        self.assert_untouched(what);
        self.bundle.assert_nothing_left();
        assert!(stderr.lines().count() == 1 || !is_ours(), "{what}: {stderr}");
        stderr
    }
}

/// Runs a command to its end; kills it, and fails, when there is none.
pub(crate) fn bounded(command: &mut Command, limit: Duration) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the runtime runs");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let ended = Arc::new(AtomicBool::new(false));
    let watch = {
        let ended = ended.clone();
        std::thread::spawn(move || {
            let end = Instant::now() + limit;
            while !ended.load(Ordering::Relaxed) {
                if Instant::now() > end {
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                    return false;
                }
                std::thread::park_timeout(Duration::from_millis(200));
            }
            true
        })
    };
    let output = Child::wait_with_output(child).expect("output");
    ended.store(true, Ordering::Relaxed);
    watch.thread().unpark();
    assert!(watch.join().expect("thread"), "{command:?}: no end within {limit:?}");
    output
}

/// The host's folder to the last time stamp.
fn snapshot(canary: &Path) -> String {
    let mut text = String::new();
    describe(canary, &mut text);
    text
}

/// The mounts of the host, which is this thread's namespace.
fn mounts() -> HashSet<String> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    text.lines().map(str::to_owned).collect()
}

fn describe(path: &Path, text: &mut String) {
    let found = std::fs::symlink_metadata(path).expect("stat");
    let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
    let owner = (found.uid(), found.gid());
    writeln!(text, "{} {:o} {owner:?} {} {times:?}", path.display(), found.mode(), found.size()).expect("text");
    if found.is_dir() {
        let mut names: Vec<_> = std::fs::read_dir(path).expect("read").flatten().map(|entry| entry.path()).collect();
        names.sort();
        names.iter().for_each(|name| describe(name, text));
    } else if found.is_file() {
        writeln!(text, "{:?}", std::fs::read(path).expect("read")).expect("text");
    }
}

/// Exchanges two files for each other as fast as it can, until it is dropped.
pub(crate) struct Exchange {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Exchange {
    pub(crate) fn start(one: &Path, other: &Path) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, count, one, other) = (stop.clone(), count.clone(), one.to_owned(), other.to_owned());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let (at, flags) = (nix::fcntl::AT_FDCWD, nix::fcntl::RenameFlags::RENAME_EXCHANGE);
                    if nix::fcntl::renameat2(at, &one, at, &other, flags).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        Self { stop, count, thread: Some(thread) }
    }

    /// How often they changed places.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The tries of a race: 200 within three seconds, or 10,000 within `BERTH_RACE_SECONDS`; some in any case.
pub(crate) fn tries() -> impl Iterator<Item = u32> {
    let long = std::env::var("BERTH_RACE_SECONDS").ok().and_then(|text| text.parse().ok());
    let (seconds, most) = long.map_or((3, 200), |seconds| (seconds, 10_000));
    let end = Instant::now() + Duration::from_secs(seconds);
    (0..most).take_while(move |at| *at < 5 || Instant::now() < end)
}

/// An entry of `mounts`.
pub(crate) fn volume(source: &Path, destination: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate"]})
}

/// The mounts of a configuration without those whose destination begins with `prefix`.
pub(crate) fn without(bundle: Bundle, prefix: &str) -> Bundle {
    let mounts = bundle.config["mounts"].as_array().expect("mounts");
    let stays = |mount: &&Value| !mount["destination"].as_str().is_some_and(|at| at.starts_with(prefix));
    let mounts: Vec<Value> = mounts.iter().filter(stays).cloned().collect();
    bundle.set("/mounts", json!(mounts))
}
