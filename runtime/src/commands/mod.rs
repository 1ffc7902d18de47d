//! The commands, one file each, and what is common to them: global flags, dispatch, and how a failure is told.

#![expect(clippy::disallowed_methods, reason = "pid files are the caller's, on the host")]

mod build;
mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod help;
mod inherit;
mod kill;
mod list;
mod members;
mod notify;
mod pause;
mod ps;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use sys::Errno;

use crate::args::{ArgsError, Flag, Order, Parsed, switch, value};
use crate::confine::cgroup::CgroupError;
use crate::confine::cgroup::place::{Driver, Rootless};
use crate::confine::labels::LabelError;
use crate::launch::handshake::chain;
use crate::launch::hooks::HookError;
use crate::launch::listener::ListenerError;
use crate::launch::parent::LaunchError;
use crate::log::{Format, Log};
use crate::plan::PlanError;
use crate::spec::{SpecError, VERSION};
use crate::state::{ContainerId, StateDir, StateError, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The command line.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// State on disk.
    #[error(transparent)]
    State(#[from] StateError),
    /// config.json, or another JSON file.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What config.json asks for.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Building.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Whoever answers seccomp notifications.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A share of cache and memory bandwidth.
    #[error(transparent)]
    Rdt(#[from] crate::confine::rdt::RdtError),
    /// criu.
    #[error(transparent)]
    Criu(#[from] crate::criu::CriuError),
    /// A security label.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// No such command.
    #[error("unknown command {0:?}: see --help")]
    UnknownCommand(String),
    /// Flags or fields that do not go together.
    #[error("{0}")]
    Conflict(&'static str),
    /// The container is in the wrong state.
    #[error("cannot {verb} a container that is {status}")]
    WrongStatus { verb: &'static str, status: Status },
    /// The words containerd looks for.
    #[error("container not running")]
    NotRunning,
    /// The same, for one that lives.
    #[error("container not running: it is {0}")]
    NotRunningBut(Status),
    /// The words of runc.
    #[error("container not paused: it is {0}")]
    NotPaused(Status),
    /// A signal that does not exist.
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    /// The container's process said why it could not go on.
    #[error("{0}")]
    Child(String),
    /// A file or stream.
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// A system call.
    #[error("{0}")]
    System(&'static str, #[source] Errno),
    /// A descriptor that is not there.
    #[error("--preserve-fds and LISTEN_FDS: descriptor {0} is not open")]
    NoDescriptor(i32),
    /// A value of a flag.
    #[error("flag --{flag}: {value:?} {why}")]
    BadValue { flag: &'static str, value: String, why: &'static str },
}

/// What every command works with.
pub(crate) struct Context {
    pub(crate) states: StateDir,
    /// Who makes cgroups.
    pub(crate) driver: Driver,
    pub(crate) log: Log,
}

type Run = fn(&Context, &[String]) -> Result<u8, CommandError>;

/// Name, whether it enters a container (and so has to protect the program file), and what it does.
const COMMANDS: &[(&str, bool, Run)] = &[
    ("checkpoint", false, checkpoint::run),
    ("create", true, create::run),
    ("delete", false, delete::run),
    ("events", false, events::run),
    ("exec", true, exec::run),
    ("features", false, features::run),
    ("kill", false, kill::run),
    ("list", false, list::run),
    ("pause", false, pause::run),
    ("ps", false, ps::run),
    ("restore", false, restore::run),
    ("resume", false, pause::resume),
    ("run", true, run::run),
    ("spec", false, spec::run),
    ("start", false, start::run),
    ("state", false, state::run),
    ("update", false, update::run),
];

const GLOBAL: &[Flag] = &[
    value(&["root"], "folder of the containers' state (default /run/berth-runtime)"),
    value(&["log"], "log file (default stderr)"),
    value(&["log-format"], "text (default) or json"),
    switch(&["debug"], "log decisions too"),
    switch(&["systemd-cgroup"], "cgroups are scopes of systemd; linux.cgroupsPath is slice:prefix:name"),
    value(&["cgroup-manager"], "cgroupfs (default), systemd, or disabled: the container stays in the caller's cgroup"),
    value(&["rootless"], "true: do without cgroups that may not be made; false: do not; auto (default): find out"),
    switch(&["version", "v"], "print the version"),
    switch(&["help", "h"], "print this text"),
];

/// Runs a command line; returns the exit code.
pub(crate) fn run(arguments: &[String]) -> u8 {
    let globals = match Parsed::parse(GLOBAL, Order::FlagsFirst, arguments) {
        Ok(globals) => globals,
        Err(error) => return fail(&Log::default(), "", &error),
    };
    if globals.is_on("version") {
        return print(&version());
    }
    let Some((name, rest)) = globals.words.split_first() else {
        return print(&help::of(None));
    };
    if globals.is_on("help") || name == "help" {
        return print(&help::of(rest.first().map(String::as_str).filter(|_| name == "help")));
    }
    if let Some(text) = help::asked(name, rest) {
        return print(&text);
    }
    let format = match globals.value("log-format") {
        None | Some("" | "text") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => {
            let allowed = "text, json";
            return fail(
                &Log::default(),
                "",
                &ArgsError::NotOneOf { name: "log-format", value: other.into(), allowed },
            );
        }
    };
    let log = match Log::open(globals.path("log").as_deref(), format, globals.is_on("debug")) {
        Ok(log) => log,
        Err(error) => return fail(&Log::default(), "", &error),
    };
    // What it is about: the first word that is no flag comes near enough for an error message.
    let about = format!("{name} {}", subject(rest));
    let about = about.trim_end();
    let Some(rootless) = Rootless::parse(globals.value("rootless").unwrap_or_default()) else {
        let value = globals.value("rootless").unwrap_or_default().to_owned();
        return fail(&log, about, &ArgsError::NotOneOf { name: "rootless", value, allowed: "true, false, auto" });
    };
    let manager = globals.value("cgroup-manager").unwrap_or_default();
    if !matches!(manager, "" | "cgroupfs" | "systemd" | "disabled") {
        let (value, allowed) = (manager.to_owned(), "cgroupfs, systemd, disabled");
        return fail(&log, about, &ArgsError::NotOneOf { name: "cgroup-manager", value, allowed });
    }
    let systemd = globals.is_on("systemd-cgroup") || manager == "systemd";
    let driver = Driver { systemd, rootless, disabled: manager == "disabled" };
    let Some((_, enters, command)) = COMMANDS.iter().find(|(known, ..)| known == name) else {
        return fail(&log, "", &CommandError::UnknownCommand(name.clone()));
    };
    let failed = if name == "exec" { exec::FAILED } else { 1 };
    if *enters && let Err(errno) = crate::launch::protect::run_from_read_only() {
        fail(&log, about, &CommandError::System("protect the runtime's own file", errno));
        return failed;
    }
    // Hooks and ps(1) get stdio alone; commands that pass more on say so themselves.
    if !*enters && let Err(errno) = sys::fd::cloexec_from(3) {
        return fail(&log, about, &CommandError::System("close inherited descriptors", errno));
    }
    let states = globals.path("root").map_or_else(default_states, StateDir::new);
    let context = Context { states, driver, log };
    match command(&context, rest) {
        Ok(code) => code,
        Err(error) => {
            fail(&context.log, about, &error);
            failed
        }
    }
}

/// The id a command line is about, found without knowing the command's flags: for messages only.
fn subject(rest: &[String]) -> &str {
    let is_id = |word: &&String| ContainerId::parse(word).is_ok() && !word.starts_with('-');
    match rest {
        [first, ..] if is_id(&first) => first,
        // `exec` has its id in front of a command, everything else at the end.
        _ => rest.iter().rev().find(is_id).map_or("", String::as_str),
    }
}

/// Where state goes unless `--root` says so: a place that is gone after a reboot. An ordinary user has one of his own, also when
/// he is root of a user namespace (podman calls like that).
fn default_states() -> StateDir {
    let user = nix::unistd::geteuid();
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = match own {
        Some(folder) if !user.is_root() || is_root_for_himself() => folder,
        None if !user.is_root() => format!("/run/user/{user}").into(),
        _ => return StateDir::new("/run/berth-runtime".into()),
    };
    // The sticky bit keeps those away that clear the folder of what has not been touched for long (XDG base directories).
    StateDir::sticky(folder.join("berth-runtime"))
}

/// Whether root is so only in a user namespace, made by a user who still goes by his name.
fn is_root_for_himself() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"]) && std::env::var_os("USER").is_none_or(|user| user != "root")
}

fn fail(log: &Log, about: &str, error: &dyn std::error::Error) -> u8 {
    let text = chain(error);
    log.error(&if about.is_empty() { text } else { format!("{about}: {text}") });
    1
}

/// Prints to stdout; a reader that is gone is its own business.
fn print(text: &str) -> u8 {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
    0
}

fn version() -> String {
    // The commit is what `docker info` shows; whoever builds a release says which it was.
    let commit = match option_env!("BERTH_COMMIT") {
        // Empty where there is no git.
        None | Some("") => concat!("v", env!("CARGO_PKG_VERSION")),
        Some(commit) => commit,
    };
    format!("berth-runtime version {}\ncommit: {commit}\nspec: {VERSION}\n", env!("CARGO_PKG_VERSION"))
}

/// The container a command is about, which is all it takes.
fn only_id(command: &'static str, arguments: &[String]) -> Result<ContainerId, CommandError> {
    let parsed = Parsed::parse(&[], Order::Mixed, arguments)?;
    Ok(ContainerId::parse(parsed.one_word(command, "the container's id")?)?)
}

/// Writes a pid where a caller waits for it: aside first, so that it is never seen half written.
fn write_pid_file(path: &std::path::Path, pid: i32) -> Result<(), CommandError> {
    let failed = |cause| CommandError::Io { action: "write pid file", path: path.to_owned(), cause };
    let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let aside = path.with_file_name(format!(".{}", name.to_string_lossy()));
    std::fs::write(&aside, pid.to_string()).and_then(|()| std::fs::rename(&aside, path)).map_err(failed)
}

/// Connects to the socket that wants a handle on the process.
fn connect_pidfd_socket(path: Option<PathBuf>) -> Result<Option<OwnedFd>, CommandError> {
    let Some(path) = path else { return Ok(None) };
    let failed =
        |errno: Errno| CommandError::Io { action: "connect to pidfd socket", path: path.clone(), cause: errno.into() };
    sys::pty::connect_console(&path).map(Some).map_err(failed)
}

/// Sends a handle on the process; `what` is the word that runc sends along: `standard` for a container, `setns` for an exec.
fn send_pidfd(socket: Option<&OwnedFd>, what: &str, pidfd: BorrowedFd<'_>) -> Result<(), CommandError> {
    let Some(socket) = socket else { return Ok(()) };
    let sent = sys::fd::send_fds(socket, what.as_bytes(), &[pidfd]);
    sent.map(drop).map_err(|errno| CommandError::System("send the process' pidfd", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_about_the_id() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(subject(&words("--bundle /b --pid-file /p web")), "web");
        assert_eq!(subject(&words("web ls -l")), "web");
        assert_eq!(subject(&[]), "");
    }

    #[test]
    fn the_version_is_what_callers_parse() {
        let text = version();
        let mut lines = text.lines();
        assert!(lines.next().expect("line").starts_with("berth-runtime version "));
        assert!(lines.next().is_some_and(|line| line.starts_with("commit: ")));
        assert_eq!(lines.next(), Some("spec: 1.3.0"));
    }
}
