//! `exec`: runs one more process in a container. A list of its own, not `create` with questions in it.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sys::Errno;
use sys::clone::{Cloned, Options, clone};

use super::{CommandError, Context, connect_pidfd_socket, foreground, inherit, send_pidfd, write_pid_file};
use crate::args::{ArgsError, Flag, Order, Parsed, switch, value};
use crate::confine::caps;
use crate::confine::cgroup::enter::{Below, Entrance};
use crate::confine::cgroup::{self, Cgroup};
use crate::confine::rdt;
use crate::confine::seccomp::{self, Filter};
use crate::confine::{labels, limits};
use crate::launch::entry::{ChildError, Entrant, open_terminal, report_ready};
use crate::launch::gate;
use crate::launch::handshake::{Channel, Kind, Message, chain};
use crate::launch::listener;
use crate::launch::own_namespaces::Namespaces;
use crate::launch::parent::{Guard, LaunchError, set_oom_score};
use crate::launch::prepared::connect_console;
use crate::plan::PlanError;
use crate::plan::libc_flag::{NEWPID, NEWUSER};
use crate::plan::namespaces::flag_of;
use crate::plan::process::ProcessPlan;
use crate::spec::{Process, Spec, load_json};
use crate::state::{ContainerId, State, Status};

/// The exit code when the process could not be started, so that callers can tell it from the process' own.
pub(super) const FAILED: u8 = 255;

pub(super) const FLAGS: &[Flag] = &[
    value(&["console-socket"], "unix socket that gets the master of the terminal"),
    value(&["pidfd-socket"], "unix socket that gets a pidfd of the process"),
    value(&["cwd"], "working directory"),
    value(&["env", "e"], "variable to add"),
    switch(&["tty", "t"], "give the process a terminal"),
    value(&["user", "u"], "UID[:GID]"),
    value(&["additional-gids", "g"], "more groups"),
    value(&["process", "p"], "file with the process as JSON"),
    switch(&["detach", "d"], "do not wait for the process"),
    value(&["pid-file"], "file to write the pid to"),
    value(&["process-label"], "SELinux label"),
    value(&["apparmor"], "AppArmor profile"),
    switch(&["no-new-privs"], "no execve gives more privileges"),
    value(&["cap", "c"], "capability to add"),
    value(&["preserve-fds"], "descriptors after stdio to pass on"),
    value(&["cgroup"], "cgroup below the container's"),
    switch(&["ignore-paused"], "start it in a paused container too"),
    switch(&["no-subreaper"], "accepted: exec adopts nothing"),
];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::FlagsFirst, arguments)?;
    let Some((id, words)) = parsed.words.split_first() else {
        return Err(ArgsError::Count { command: "exec", expected: "an id and a command", found: 0 }.into());
    };
    let listen_env = inherit::descriptors(context, parsed.number("preserve-fds")?.unwrap_or(0))?;
    let id = ContainerId::parse(id)?;
    let state = context.states.load(&id)?;
    let status = context.states.status(&state)?;
    match status {
        Status::Created | Status::Running => {}
        Status::Paused if parsed.is_on("ignore-paused") => {}
        status => return Err(CommandError::WrongStatus { verb: "exec in", status }),
    }
    let spec: Spec = load_json(&context.states.config(&id))?;
    let mut work = Work::new(context, &parsed, words, &spec, &state, listen_env)?;
    let detach = parsed.is_on("detach");
    let console = parsed.path("console-socket");
    match (work.process.terminal.is_some(), &console) {
        (true, None) if detach => {
            return Err(CommandError::Conflict("a detached process with a terminal needs --console-socket"));
        }
        (false, Some(_)) => return Err(CommandError::Conflict("--console-socket needs a terminal")),
        _ => {}
    }
    work.console = console.as_deref().map(connect_console).transpose()?;
    if status == Status::Created && !nix::unistd::geteuid().is_root() {
        // If it was started this very moment, they can be had as always.
        work.shown = gate::namespaces(&context.states.gate(&id)).unwrap_or_default();
    }
    let pidfd_socket = connect_pidfd_socket(parsed.path("pidfd-socket"))?;
    let system = |stage| move |errno| CommandError::System(stage, errno);
    let signals = if detach { None } else { Some(foreground::Signals::catch().map_err(system("catch signals"))?) };
    let (mut process, terminal) = work.spawn(context, &state)?;
    send_pidfd(pidfd_socket.as_ref(), "setns", process.pidfd.as_fd())?;
    if let Some(path) = parsed.path("pid-file") {
        write_pid_file(&path, process.pid.as_raw())?;
    }
    process.armed = false;
    match signals {
        None => Ok(0),
        Some(signals) => {
            let exit = foreground::stay(&signals, process.pid, terminal.as_ref(), None)
                .map_err(system("wait for the process"))?;
            Ok(exit.status() as u8)
        }
    }
}

/// The process to be, from a file or from flags; what neither says is the container's.
fn process_of(parsed: &Parsed, words: &[String], base: &Process) -> Result<Process, CommandError> {
    if let Some(path) = parsed.path("process") {
        let mut process: Process = load_json(&path)?;
        process.capabilities = process.capabilities.or_else(|| base.capabilities.clone());
        process.scheduler = process.scheduler.or_else(|| base.scheduler.clone());
        process.io_priority = process.io_priority.or_else(|| base.io_priority.clone());
        process.exec_cpu_affinity = process.exec_cpu_affinity.or_else(|| base.exec_cpu_affinity.clone());
        process.oom_score_adj = process.oom_score_adj.or(base.oom_score_adj);
        process.user.umask = process.user.umask.or(base.user.umask);
        if process.rlimits.is_empty() {
            process.rlimits.clone_from(&base.rlimits);
        }
        if process.apparmor_profile.is_empty() {
            process.apparmor_profile.clone_from(&base.apparmor_profile);
        }
        if process.selinux_label.is_empty() {
            process.selinux_label.clone_from(&base.selinux_label);
        }
        process.terminal |= parsed.is_on("tty");
        return Ok(process);
    }
    if words.is_empty() {
        return Err(ArgsError::Count { command: "exec", expected: "an id and a command", found: 1 }.into());
    }
    let mut process = base.clone();
    process.args = words.to_vec();
    process.terminal = parsed.is_on("tty");
    process.console_size = None;
    process.no_new_privileges |= parsed.is_on("no-new-privs");
    process.env.extend(parsed.all("env").map(str::to_owned));
    for (flag, field) in [
        ("cwd", &mut process.cwd),
        ("apparmor", &mut process.apparmor_profile),
        ("process-label", &mut process.selinux_label),
    ] {
        if let Some(value) = parsed.value(flag).filter(|value| !value.is_empty()) {
            value.clone_into(field);
        }
    }
    if let Some(user) = parsed.value("user") {
        (process.user.uid, process.user.gid) = parse_user(user)?;
    }
    for gid in parsed.all("additional-gids").flat_map(|list| list.split(',')) {
        process.user.additional_gids.push(parse_id("additional-gids", gid)?);
    }
    Ok(process)
}

/// Digits only: what strtol would make of " 1", "0x10" or "" is how CVE-2026-30892 came about.
fn parse_id(flag: &'static str, text: &str) -> Result<u32, CommandError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse().ok().filter(|id| digits && *id != u32::MAX);
    id.ok_or_else(|| CommandError::BadValue { flag, value: text.to_owned(), why: "is not a numeric id" })
}

fn parse_user(text: &str) -> Result<(u32, u32), CommandError> {
    match text.split_once(':') {
        None => Ok((parse_id("user", text)?, 0)),
        Some((uid, gid)) => Ok((parse_id("user", uid)?, parse_id("user", gid)?)),
    }
}

/// Everything the child needs, opened before the clone.
struct Work {
    process: ProcessPlan,
    seccomp: Option<Filter>,
    namespaces: u64,
    /// The container's first process.
    target: OwnedFd,
    /// Its namespaces, where it had to show them.
    shown: Namespaces,
    /// That process' pid.
    init: Pid,
    cgroup: Cgroup,
    entrance: Entrance,
    /// Files of resctrl by which it gets the container's share of cache and memory bandwidth.
    rdt: Vec<OwnedFd>,
    proc: OwnedFd,
    console: Option<OwnedFd>,
    keyring: String,
}

impl Work {
    fn new(
        context: &Context,
        parsed: &Parsed,
        words: &[String],
        spec: &Spec,
        state: &State,
        listen_env: Vec<String>,
    ) -> Result<Self, CommandError> {
        let system = |stage| move |errno| CommandError::System(stage, errno);
        let base = spec.process.as_ref().ok_or(PlanError::Missing { field: "process" })?;
        let linux = spec.linux.clone().unwrap_or_default();
        let mut warnings = Vec::new();
        let mut process = process_of(parsed, words, base)?;
        process.env.extend(listen_env);
        let mut process = ProcessPlan::new(&process, &mut warnings)?;
        process.add_common(&linux, &mut warnings)?;
        labels::settle(&mut process)?;
        for name in parsed.all("cap") {
            let why = "is not the name of a capability";
            let bit =
                caps::bit(name).ok_or_else(|| CommandError::BadValue { flag: "cap", value: name.to_owned(), why })?;
            process.caps.add(bit);
        }
        let namespaces =
            linux.namespaces.iter().filter_map(|namespace| flag_of(&namespace.kind)).fold(0, |all, flag| all | flag);
        if namespaces & NEWUSER == 0 {
            process.caps.limit_to(sys::creds::caps().map_err(system("read own capabilities"))?.permitted);
        }
        let mut seccomp = match &linux.seccomp {
            Some(section) => seccomp::compile(section, &mut warnings).map_err(PlanError::from)?,
            None => None,
        };
        listener::check(seccomp.as_mut(), |warning| warnings.push(warning))?;
        warnings.iter().for_each(|warning| context.log.warn(warning));
        let pid = state.live_pid().ok_or(CommandError::NotRunning)?;
        let target = sys::process::pidfd_open(pid).map_err(system("open the container's process"))?;
        if state.live_pid().is_none() {
            return Err(CommandError::NotRunning);
        }
        let below = Below::parse(parsed.all("cgroup")).map_err(|(value, why)| CommandError::BadValue {
            flag: "cgroup",
            value: value.to_owned(),
            why,
        })?;
        let cgroup = state.cgroup()?;
        Ok(Self {
            process,
            seccomp,
            namespaces,
            target,
            shown: Namespaces::default(),
            entrance: cgroup.enter(&below)?,
            cgroup,
            init: pid,
            rdt: state.rdt.as_ref().map(rdt::Group::task_files).transpose()?.unwrap_or_default(),
            proc: limits::open_proc().map_err(system("open /proc"))?,
            console: None,
            keyring: format!("_ses.{}", state.id),
        })
    }

    /// Clones the process and stays with it until its own program runs. Gives its terminal, if no socket took it.
    fn spawn(&self, context: &Context, state: &State) -> Result<(Guard, Option<OwnedFd>), CommandError> {
        let system = |stage| move |errno| CommandError::System(stage, errno);
        let mut score = self.process.oom_score_adj;
        if !nix::unistd::geteuid().is_root()
            && let Some(score) = score.take()
        {
            // The files of an undumpable process are root's: the child gets it from us, who still can.
            set_oom_score(&self.proc, nix::unistd::getpid(), score, &context.log)
                .map_err(system("set oom_score_adj"))?;
        }
        sys::process::set_dumpable(false).map_err(system("become undumpable"))?;
        // Takes effect for the child alone; whatever else the runtime does from here on needs no other child.
        let mut rest = self.namespaces & !NEWPID;
        if self.namespaces & NEWPID != 0 {
            match self.join(NEWPID) {
                // An ordinary user has rights over the container only inside his own user namespace.
                Err(Errno::EPERM) if rest & NEWUSER != 0 => {
                    rest &= !NEWUSER;
                    self.join(NEWPID | NEWUSER)
                }
                done => done,
            }
            .map_err(system("join the container's pid namespace"))?;
            sys::process::set_dumpable(false).map_err(system("become undumpable"))?;
        }
        let (ours, theirs) = Channel::pair().map_err(system("make a pair of sockets"))?;
        let into =
            |directory: Option<&OwnedFd>| clone(&Options { cgroup: directory.map(AsFd::as_fd), ..Options::default() });
        let affinity = self.set_initial_affinity().map_err(system("set process.execCPUAffinity.initial"))?;
        let cloned = match into(self.entrance.unified.as_ref()) {
            Err(errno) => match self.cgroup.other_entrance(&self.entrance, errno, self.init) {
                Some(other) => into(other.as_ref()),
                None => Err(errno),
            },
            done => done,
        };
        let guard = match cloned.map_err(system("clone a process into the container's cgroup"))? {
            Cloned::Child => self.become_process(&theirs, rest),
            Cloned::Parent { pid, pidfd } => Guard { pid, pidfd, armed: true },
        };
        drop(theirs);
        if let Some(former) = affinity {
            // Ours ends soon; a foreground exec is no worse for it.
            let _ = sys::task::set_cpu_affinity(None, &former);
        }
        if let Some(score) = score {
            set_oom_score(&self.proc, guard.pid, score, &context.log).map_err(system("set oom_score_adj"))?;
        }
        let ready = listen(context, &ours)?.ok_or(LaunchError::ChildDied)?;
        let terminal = ready.fds.into_iter().next();
        // Closes by execve; anything said now says why not.
        let mut last = listen(context, &ours)?;
        if let Some(message) = last.as_ref().filter(|message| message.kind == Kind::Listener) {
            let config = context.states.config(&state.id);
            listener::forward(message, &config, state.report(Status::Running), guard.pid.as_raw())?;
            last = listen(context, &ours)?;
        }
        match last {
            None => Ok((guard, terminal)),
            Some(_) => Err(CommandError::System("listen to the process", Errno::EBADMSG)),
        }
    }

    /// Joins namespaces of the container.
    fn join(&self, namespaces: u64) -> Result<(), Errno> {
        if self.shown.are_known() { self.shown.enter(namespaces) } else { sys::ns::enter(&self.target, namespaces) }
    }

    /// The child inherits it. Returns our own one, to go back to.
    fn set_initial_affinity(&self) -> Result<Option<Vec<u64>>, Errno> {
        let Some(mask) = &self.process.affinity.initial else { return Ok(None) };
        let former = sys::task::cpu_affinity()?;
        sys::task::set_cpu_affinity(None, mask)?;
        Ok(Some(former))
    }

    fn become_process(&self, channel: &Channel, namespaces: u64) -> ! {
        let error = match self.enter(channel, namespaces) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let _ = channel.send(Kind::Failed, &chain(&error));
        sys::process::exit_now(i32::from(FAILED))
    }

    /// `namespaces` are those that are still to be joined.
    #[expect(clippy::disallowed_methods, reason = "the container's root itself, to look up everything else below it")]
    fn enter(&self, channel: &Channel, namespaces: u64) -> Result<Infallible, ChildError> {
        let step = |stage| move |errno| ChildError::Step(stage, errno);
        sys::process::set_parent_death_signal(Some(Signal::SIGKILL)).map_err(step("set parent death signal"))?;
        sys::process::reset_signals().map_err(step("reset signals"))?;
        cgroup::join(&self.entrance.tasks).map_err(step("join the cgroup"))?;
        cgroup::join(&self.rdt).map_err(step("join the group of resctrl"))?;
        if let Some(mask) = &self.process.affinity.last {
            sys::task::set_cpu_affinity(None, mask).map_err(step("set process.execCPUAffinity.final"))?;
        }
        self.join(namespaces).map_err(step("join the container's namespaces"))?;
        if self.namespaces & NEWUSER != 0 {
            sys::creds::set_gid(0).map_err(step("become root of the user namespace"))?;
            sys::creds::set_uid(0).map_err(step("become root of the user namespace"))?;
            sys::process::set_dumpable(false).map_err(step("become undumpable"))?;
        }
        nix::unistd::setsid().map_err(step("start a session"))?;
        labels::join_keyring(&self.proc, &self.keyring, self.process.selinux_label.as_deref(), None)?;
        let terminal = match self.process.terminal {
            None => None,
            Some(size) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = nix::fcntl::open("/", flags, Mode::empty()).map_err(step("open the container's root"))?;
                Some(open_terminal(&root, size)?.master)
            }
        };
        let entrant = Entrant { process: &self.process, seccomp: self.seccomp.as_ref(), proc: &self.proc, channel };
        let keep: Vec<_> = self.console.iter().chain(&terminal).map(AsFd::as_fd).collect();
        let settled = entrant.settle(&keep)?;
        sys::process::set_parent_death_signal(None).map_err(step("set parent death signal"))?;
        report_ready(channel, self.console.as_ref(), terminal)?;
        entrant.execute(settled)
    }
}

/// The next thing the child says that is not a warning; `None` when it has closed its end.
fn listen(context: &Context, channel: &Channel) -> Result<Option<Message>, CommandError> {
    loop {
        let message = channel.receive().map_err(|errno| CommandError::System("listen to the process", errno))?;
        match message {
            Some(message) if message.kind == Kind::Warning => context.log.warn(&message.text),
            Some(message) if message.kind == Kind::Failed => return Err(CommandError::Child(message.text)),
            other => return Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_exact_or_refused() {
        assert_eq!(parse_user("1000").expect("ok"), (1000, 0));
        assert_eq!(parse_user("0:5").expect("ok"), (0, 5));
        for bad in ["", "1000:", ":5", "1:2:3", "0x10", " 1", "4294967296", "4294967295", "-1", "+1", "root"] {
            assert!(parse_user(bad).is_err(), "{bad:?}");
        }
    }
}
