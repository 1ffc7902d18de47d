//! A supervisor in a folder of its own.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-supervisor");

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Folders of a supervisor, and at times the supervisor.
pub(crate) struct Daemon {
    pub(crate) folder: tempfile::TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Only the folders.
    pub(crate) fn prepare() -> Self {
        Self { folder: tempfile::Builder::new().prefix("berth-ops-").tempdir().unwrap(), child: None }
    }

    /// A running one.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut daemon = Self::prepare();
        daemon.run(&mut daemon.command(args));
        daemon.wait_until_up();
        daemon
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/supervisor.sock")
    }

    /// A command line on these folders.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--data-root").arg(self.path("data")).arg("--run-root").arg(self.path("run")).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Starts a command as our supervisor, its output in `log`.
    pub(crate) fn run(&mut self, command: &mut Command) -> u32 {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let pid = child.id();
        self.child = Some(child);
        pid
    }

    pub(crate) fn wait_until_up(&self) {
        eventually(&format!("supervisor listens: {}", self.log()), || UnixStream::connect(self.socket()).is_ok());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    /// Asks it to end, and waits.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.take().unwrap().wait().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs containerd's client.
    pub(crate) fn ctr(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new("ctr").arg("-a").arg(self.socket()).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("supervisor's log:\n{}", self.log());
        }
    }
}

/// What a command said and how it ended.
pub(crate) fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// One HTTP request on a unix socket; the whole answer.
pub(crate) fn http(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "{request}\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
