//! Runs the OCI runtime by its command line and reads its report.

mod images;

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    rc::Rc,
    time::Duration,
};

use proto::kind::ErrorKind;
use serde::Deserialize;
use tokio::time::timeout;

pub(crate) use self::images::Images;
use crate::{
    args,
    bundle::{Bundle, Key, Settings, read_pid},
    mounts::Rootfs,
    reaper::{Reaper, kill_tree},
};

/// Why the runtime didn't do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    /// It could not be started.
    #[error("start OCI runtime {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What execve said.
        #[source]
        cause: io::Error,
    },
    /// It failed, and said why.
    #[error("OCI runtime {verb} failed: {message}")]
    Failed {
        /// What it was asked to do.
        verb: &'static str,
        /// The last error in its log.
        message: String,
    },
    /// It didn't end.
    #[error(
        "OCI runtime {verb} did not end within {} s and was killed: see what {program} waits for, or raise \
         BERTH_SHIM_RUNTIME_TIMEOUT",
        .limit.as_secs()
    )]
    Hung {
        /// What it was asked to do.
        verb: &'static str,
        /// The program.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// It succeeded but left no pid.
    #[error("OCI runtime {verb} left no pid in {file}")]
    NoPid {
        /// What it was asked to do.
        verb: &'static str,
        /// Where the pid should be.
        file: PathBuf,
        /// Why it couldn't be read.
        #[source]
        cause: io::Error,
    },
    /// What it printed isn't what it should be.
    #[error("OCI runtime {verb} printed something else than it should")]
    Output {
        /// What it was asked to do.
        verb: &'static str,
        /// What is wrong with it.
        #[source]
        cause: io::Error,
    },
    /// A file for it couldn't be written.
    #[error("write {file}")]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

impl OciError {
    /// What kind of failure it is. The command line gives no codes, so here, and only here, the text of a message counts.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Failed { message, .. } => kind_of_message(message),
            Self::Spawn { cause, .. } if cause.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Write { cause, .. } => ErrorKind::of_io(cause),
            Self::Hung { .. } => ErrorKind::DeadlineExceeded,
            Self::Spawn { .. } | Self::NoPid { .. } | Self::Output { .. } => ErrorKind::Internal,
        }
    }
}

fn kind_of_message(message: &str) -> ErrorKind {
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if has(&["already exists", "id already in use"]) {
        ErrorKind::AlreadyExists
    } else if has(&["container does not exist", "already finished", "container not running", "no such process"]) {
        ErrorKind::NotFound
    } else {
        ErrorKind::Internal
    }
}

/// Standard streams for a runtime; most operations need none.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    /// Its stdin.
    pub(crate) stdin: Stdio,
    /// Its stdout.
    pub(crate) stdout: Stdio,
    /// Its stderr.
    pub(crate) stderr: Stdio,
    /// One more descriptor, by the number that it has here.
    pub(crate) further: Option<OwnedFd>,
}

impl ChildStdio {
    /// All three are /dev/null.
    pub(crate) fn null() -> Self {
        Self { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null(), further: None }
    }
}

/// What a caller may choose about the runtime (containerd.runc.v1.Options).
#[derive(Debug, Default, Clone)]
pub(crate) struct Choice {
    /// Program; empty for the one beside the shim.
    pub(crate) program: String,
    /// Folder of its state; empty for the run root's.
    pub(crate) root: String,
    /// Cgroups by way of systemd.
    pub(crate) systemd_cgroup: bool,
    /// MS_MOVE in place of pivot_root.
    pub(crate) no_pivot: bool,
    /// Keep the session keyring.
    pub(crate) no_new_keyring: bool,
}

/// The runtime of one container.
#[derive(Debug)]
pub(crate) struct Oci {
    program: PathBuf,
    root: PathBuf,
    systemd_cgroup: bool,
    no_pivot: bool,
    no_new_keyring: bool,
    id: String,
    bundle: Bundle,
    reaper: Rc<Reaper>,
    limit: Duration,
}

/// How many times longer it may take to write or read the memory of all processes: ten minutes, unless told otherwise, are
/// what the supervisor gives it too.
const MEMORY: u32 = 10;

/// How long a runtime that was killed may take to be reaped; only one stuck in the kernel is late.
const REAPED: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct LogLine<'a> {
    #[serde(borrow, default)]
    level: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    msg: std::borrow::Cow<'a, str>,
}

/// The last error in a log of JSON lines.
pub(crate) fn last_error(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let line: LogLine<'_> = serde_json::from_str(line).ok()?;
        matches!(line.level.as_ref(), "error" | "fatal" | "panic").then(|| line.msg.trim().replace(['\n', '\r'], " "))
    })
}

/// The runtime beside the shim, or by its name on the PATH.
pub(crate) fn default_program() -> PathBuf {
    const NAME: &str = "berth-runtime";
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(NAME)));
    beside.filter(|program| program.exists()).unwrap_or_else(|| NAME.into())
}

impl Oci {
    /// The runtime as chosen; `state_root` is used where the caller names no folder.
    pub(crate) fn new(
        choice: &Choice,
        state_root: &Path,
        namespace: &str,
        id: &str,
        bundle: &Bundle,
        reaper: Rc<Reaper>,
    ) -> Self {
        let root = if choice.root.is_empty() { state_root } else { Path::new(&choice.root) };
        Self {
            program: if choice.program.is_empty() { default_program() } else { (&choice.program).into() },
            root: root.join(namespace),
            systemd_cgroup: choice.systemd_cgroup,
            no_pivot: choice.no_pivot,
            no_new_keyring: choice.no_new_keyring,
            id: id.to_owned(),
            bundle: bundle.clone(),
            reaper,
            limit: args::runtime_limit(),
        }
    }

    /// What `delete` needs to know later.
    pub(crate) fn settings(&self) -> Settings {
        Settings { runtime: self.program.clone(), root: self.root.clone(), systemd_cgroup: self.systemd_cgroup }
    }

    /// Builds the container; its process waits for `start`. Gives the pid.
    pub(crate) async fn create(
        &self,
        rootfs: Rootfs,
        mut stdio: ChildStdio,
        console: Option<&Path>,
    ) -> Result<u32, OciError> {
        let mut args = self.rootfs_args();
        if self.no_new_keyring {
            args.push("--no-new-keyring".as_ref());
        }
        let number;
        if let Rootfs::Detached(root) = rootfs {
            number = root.as_raw_fd().to_string();
            args.extend([OsStr::new("--rootfs-fd"), number.as_ref()]);
            stdio.further = Some(root);
        }
        self.process("create", &Key::Init, args, stdio, console).await
    }

    /// Starts a further process; the runtime has ended when this is done. Gives the pid.
    pub(crate) async fn exec(
        &self,
        key: &Key,
        spec: &[u8],
        stdio: ChildStdio,
        console: Option<&Path>,
    ) -> Result<u32, OciError> {
        let spec_file = self.bundle.spec_file(key);
        fs::write(&spec_file, spec).map_err(|cause| OciError::Write { file: spec_file.clone(), cause })?;
        let args = vec![OsStr::new("--process"), spec_file.as_ref(), "--detach".as_ref()];
        self.process("exec", key, args, stdio, console).await
    }

    /// What operations that build a container say of where it is.
    fn rootfs_args(&self) -> Vec<&OsStr> {
        let mut args = vec![OsStr::new("--bundle"), self.bundle.path().as_ref()];
        if self.no_pivot {
            args.push("--no-pivot".as_ref());
        }
        args
    }

    /// An operation that makes a process: `args` are those of its own. Gives the pid.
    async fn process(
        &self,
        verb: &'static str,
        key: &Key,
        mut args: Vec<&OsStr>,
        stdio: ChildStdio,
        console: Option<&Path>,
    ) -> Result<u32, OciError> {
        let pid_file = self.bundle.pid_file(key);
        args.insert(0, verb.as_ref());
        args.extend([OsStr::new("--pid-file"), pid_file.as_ref()]);
        if let Some(socket) = console {
            args.extend([OsStr::new("--console-socket"), socket.as_ref()]);
        }
        args.push(self.id.as_ref());
        self.run(verb, key, &args, stdio).await?;
        read_pid(&pid_file).map_err(|cause| OciError::NoPid { verb, file: pid_file, cause })
    }

    /// Lets the created process go.
    pub(crate) async fn start(&self) -> Result<(), OciError> {
        self.simple("start", &[]).await
    }

    /// Signals the container by way of the runtime.
    pub(crate) async fn kill(&self, signal: u32, all: bool) -> Result<(), OciError> {
        let number = signal.to_string();
        let mut args: Vec<&OsStr> = vec!["kill".as_ref()];
        if all {
            args.push("--all".as_ref());
        }
        args.extend([OsStr::new(&self.id), number.as_ref()]);
        self.run("kill", &Key::Init, &args, ChildStdio::null()).await
    }

    /// Removes a stopped container, or any with `force`. One that doesn't exist is removed already.
    pub(crate) async fn delete(&self, force: bool) -> Result<(), OciError> {
        let flags: &[&str] = if force { &["--force"] } else { &[] };
        match self.simple("delete", flags).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Freezes all processes.
    pub(crate) async fn pause(&self) -> Result<(), OciError> {
        self.simple("pause", &[]).await
    }

    /// Thaws them.
    pub(crate) async fn resume(&self) -> Result<(), OciError> {
        self.simple("resume", &[]).await
    }

    /// Changes resource limits; `resources` is a runtime-spec LinuxResources as JSON.
    pub(crate) async fn update(&self, resources: &[u8]) -> Result<(), OciError> {
        let file = self.bundle.scratch("resources.json");
        fs::write(&file, resources).map_err(|cause| OciError::Write { file: file.clone(), cause })?;
        let args = [OsStr::new("update"), "--resources".as_ref(), file.as_ref(), self.id.as_ref()];
        let done = self.run("update", &Key::Init, &args, ChildStdio::null()).await;
        // Scratch; the bundle goes away with the container at the latest.
        let _ = fs::remove_file(&file);
        done
    }

    /// Pids of the container, where its cgroup can't be read.
    pub(crate) async fn ps(&self) -> Result<Vec<u32>, OciError> {
        let path = self.bundle.scratch("ps.json");
        let fail = |cause| OciError::Write { file: path.clone(), cause };
        let file = fs::File::create(&path).map_err(fail)?;
        let stdio = ChildStdio { stdout: file.into(), ..ChildStdio::null() };
        let args = [OsStr::new("ps"), "--format".as_ref(), "json".as_ref(), self.id.as_ref()];
        let done = self.run("ps", &Key::Init, &args, stdio).await;
        let text = fs::read(&path).map_err(fail)?;
        let _ = fs::remove_file(&path);
        done?;
        serde_json::from_slice(&text).map_err(|cause| OciError::Output { verb: "ps", cause: cause.into() })
    }

    async fn simple(&self, verb: &'static str, flags: &[&str]) -> Result<(), OciError> {
        let mut args = vec![OsStr::new(verb)];
        args.extend(flags.iter().map(OsStr::new));
        args.push(self.id.as_ref());
        self.run(verb, &Key::Init, &args, ChildStdio::null()).await
    }

    async fn run(&self, verb: &'static str, key: &Key, args: &[&OsStr], stdio: ChildStdio) -> Result<(), OciError> {
        let log = self.bundle.runtime_log(key);
        // What an earlier operation logged is no report on this one.
        let _ = fs::remove_file(&log);
        let mut command = command(&self.settings(), Some(&log), args);
        command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
        // Nothing else is started in between.
        let inherited = stdio.further.as_ref().map_or(Ok(()), |fd| sys::fd::set_cloexec(fd.as_raw_fd(), false));
        let spawned = inherited.map_err(io::Error::from).and_then(|()| command.spawn());
        drop(stdio.further);
        let child = spawned.map_err(|cause| OciError::Spawn { program: self.program.clone(), cause })?;
        // Nothing is awaited in between, so the reaper can't have seen it yet.
        let mut exit = self.reaper.claim(child.id());
        // The command holds our copies of the container's stdio.
        drop(command);
        let limit = self.limit * if matches!(verb, "checkpoint" | "restore") { MEMORY } else { 1 };
        let Ok(exit) = timeout(limit, &mut exit).await else {
            kill_tree(child.id());
            let _ = timeout(REAPED, exit).await;
            return Err(OciError::Hung { verb, program: self.program.clone(), limit });
        };
        let Ok(exit) = exit else {
            return Err(OciError::Failed { verb, message: "the shim is ending".to_owned() });
        };
        if exit.status == 0 {
            return Ok(());
        }
        let said = fs::read(&log).ok().and_then(|log| last_error(&String::from_utf8_lossy(&log)));
        let message = said.unwrap_or_else(|| match exit.status {
            killed @ 129..=192 => format!("{} was killed by signal {}", self.program.display(), killed - 128),
            code => format!("{} ended with code {code} and logged nothing", self.program.display()),
        });
        Err(OciError::Failed { verb, message })
    }
}

/// The command line up to and including the operation.
pub(crate) fn command(settings: &Settings, log: Option<&Path>, args: &[&OsStr]) -> Command {
    let mut all: Vec<OsString> = vec!["--root".into(), settings.root.clone().into()];
    if let Some(log) = log {
        all.extend([OsString::from("--log"), log.into(), "--log-format".into(), "json".into()]);
    }
    if settings.systemd_cgroup {
        all.push("--systemd-cgroup".into());
    }
    let mut command = Command::new(&settings.runtime);
    command.args(all).args(args);
    // Addressed to whoever started the supervisor; a runtime would take them as meant for the container.
    for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_error_counts() {
        let log = concat!(
            r#"{"level":"error","msg":"first","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"exec: \"x\": executable\nfile not found","time":"t"}"#,
            "\n",
            r#"{"level":"info","msg":"later"}"#,
            "\nnot json\n"
        );
        assert_eq!(last_error(log).as_deref(), Some("exec: \"x\": executable file not found"));
        assert_eq!(last_error(r#"{"level":"warning","msg":"w"}"#), None);
        assert_eq!(last_error(""), None);
    }

    #[test]
    fn messages_of_runtimes_have_kinds() {
        for (message, kind) in [
            ("container with given ID already exists", ErrorKind::AlreadyExists),
            ("error creating container: `/x` already exists", ErrorKind::AlreadyExists),
            ("container does not exist", ErrorKind::NotFound),
            ("unable to signal init: os: process already finished", ErrorKind::NotFound),
            ("exec: \"x\": executable file not found in $PATH", ErrorKind::Internal),
        ] {
            assert_eq!(kind_of_message(message), kind, "{message}");
        }
    }

    #[test]
    fn global_flags_stand_before_the_operation() {
        let settings = Settings { runtime: "/r".into(), root: "/run/x/ns".into(), systemd_cgroup: true };
        let command = command(&settings, Some(Path::new("/l")), &["start".as_ref(), "id".as_ref()]);
        let line: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        assert_eq!(line.join(" "), "--root /run/x/ns --log /l --log-format json --systemd-cgroup start id");
    }

    proptest! {
        #[test]
        fn any_log_can_be_read(log in ".*") {
            let _ = last_error(&log);
        }
    }
}
