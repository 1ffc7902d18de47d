//! The parent's side of `create` and `run`: everything is opened before the clone, so that what can fail fails before there is
//! anything to undo; cgroups are made while the child builds its root on another processor.

#![expect(
    clippy::disallowed_methods,
    reason = "namespaces that the caller names, looked up on the host before the container has a root"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sys::Errno;
use sys::clone::{Cloned, Options, clone};
use sys::process::Fork;

use super::child::{self, Child};
use super::handshake::{Channel, Kind, Message};
use super::hooks::{self, HookError};
use super::id_maps::{self, MapError};
use crate::confine::cgroup::{Cgroup, CgroupError};
use crate::confine::limits;
use crate::log::Log;
use crate::netdev::{self, NetDeviceError};
use crate::plan::Plan;
use crate::plan::libc_flag::{NEWCGROUP, NEWIPC, NEWNET, NEWPID, NEWTIME, NEWUSER, NEWUTS};
use crate::plan::namespaces::Join;
use crate::rootfs::RootfsError;
use crate::rootfs::sources::Sources;
use crate::state::{ProcessStat, State, Status};

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A step of the parent's.
    #[error("{0}")]
    Step(&'static str, #[source] Errno),
    /// A namespace to be joined.
    #[error("open namespace {path}")]
    Namespace {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// A file that is not that namespace.
    #[error("{path} is not a namespace of the kind that config.json says")]
    NotThatNamespace { path: PathBuf },
    /// The console socket.
    #[error("connect to console socket {path}")]
    Console {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// Something of the file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A namespace to be joined that is the runtime's own, when something would be changed in it.
    #[error("{path} is the runtime's own namespace: {what} would change the host")]
    HostsOwn { path: PathBuf, what: &'static str },
    /// An ordinary user without a user namespace.
    #[error("copy mounts: this takes root, or a user namespace in linux.namespaces (see spec --rootless)")]
    NotAllowed(#[source] Errno),
    /// Labels without SELinux.
    #[error("config.json: linux.mountLabel: SELinux is not enabled here")]
    NoSelinux,
    /// A share of cache and memory bandwidth.
    #[error(transparent)]
    Rdt(#[from] crate::confine::rdt::RdtError),
    /// An id map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A network device.
    #[error(transparent)]
    NetDevice(#[from] NetDeviceError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What the child reported.
    #[error("{0}")]
    Child(String),
    /// The child ended without a word.
    #[error("the container's first process ended unexpectedly")]
    ChildDied,
}

fn step(stage: &'static str) -> impl FnOnce(Errno) -> LaunchError {
    move |cause| LaunchError::Step(stage, cause)
}

/// What the child waits for once it is ready.
#[derive(Debug)]
pub(crate) enum Wait {
    /// Somebody at the gate (`create`).
    Gate(OwnedFd),
    /// A word from its parent (`run`).
    Parent,
}

/// Everything that is opened in advance.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The host's procfs.
    pub(super) proc: OwnedFd,
    /// What is taken from the host's file system; `None` if the child has to do it, because this user may not.
    pub(super) sources: Option<Sources>,
    pub(super) bundle: PathBuf,
    /// In the order of the plan's.
    pub(super) joins: Vec<OwnedFd>,
    pub(super) console: Option<OwnedFd>,
    pub(super) wait: Wait,
}

impl Prepared {
    /// Opens everything. Nothing on the host changes.
    pub(crate) fn new(plan: &Plan, bundle: &Path, console: Option<&Path>, wait: Wait) -> Result<Self, LaunchError> {
        let proc = limits::open_proc().map_err(step("open /proc"))?;
        if !plan.mount_label.is_empty() && !Path::new("/sys/fs/selinux/enforce").exists() {
            return Err(LaunchError::NoSelinux);
        }
        let join = |join: &crate::plan::namespaces::Join| {
            let failed = |cause| LaunchError::Namespace { path: join.path.clone(), cause };
            let file =
                nix::fcntl::open(&join.path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
            match sys::ns::kind(&file) {
                Ok(kind) if kind == join.flag => {
                    check_own(plan, join, &file)?;
                    Ok(file)
                }
                _ => Err(LaunchError::NotThatNamespace { path: join.path.clone() }),
            }
        };
        let joins = plan.namespaces.join.iter().map(join).collect::<Result<Vec<_>, _>>()?;
        let console = console.map(connect_console).transpose()?;
        let mut prepared = Self { proc, sources: None, bundle: bundle.to_owned(), joins, console, wait };
        prepared.sources = prepared.take_sources(plan)?;
        if prepared.sources.is_none() && !plan.namespaces.in_user_namespace() {
            return Err(LaunchError::NotAllowed(Errno::EPERM));
        }
        Ok(prepared)
    }

    /// Takes what the container needs of the host's file system, seen from where this process is.
    pub(super) fn take_sources(&self, plan: &Plan) -> Result<Option<Sources>, RootfsError> {
        let mut joins = plan.namespaces.join.iter().zip(&self.joins);
        let joined = joins.find(|(join, _)| join.flag == NEWUSER).map(|(_, file)| file);
        Sources::take(plan, &self.bundle, &self.proc, joined)
    }
}

/// A path to a namespace may lead to the runtime's own, and so past what `plan` could see (GHSA-w2j5-3rcx-vx7x).
fn check_own(plan: &Plan, join: &Join, file: &OwnedFd) -> Result<(), LaunchError> {
    let (name, what) = match join.flag {
        NEWUTS if plan.hostname.is_some() || plan.domainname.is_some() => ("uts", "hostname or domainname"),
        NEWNET if !plan.net_devices.is_empty() => ("net", "linux.netDevices"),
        NEWUTS if !plan.sysctl.is_empty() => ("uts", "linux.sysctl"),
        NEWNET if !plan.sysctl.is_empty() => ("net", "linux.sysctl"),
        NEWIPC if !plan.sysctl.is_empty() => ("ipc", "linux.sysctl"),
        _ => return Ok(()),
    };
    let own = format!("/proc/self/ns/{name}");
    let same = nix::sys::stat::stat(own.as_str())
        .and_then(|own| nix::sys::stat::fstat(file).map(|file| (own.st_dev, own.st_ino) == (file.st_dev, file.st_ino)))
        .map_err(step("compare namespaces"))?;
    if same { Err(LaunchError::HostsOwn { path: join.path.clone(), what }) } else { Ok(()) }
}

/// Connects to a console socket; the master of the terminal goes there.
pub(crate) fn connect_console(path: &Path) -> Result<OwnedFd, LaunchError> {
    sys::pty::connect_console(path).map_err(|cause| LaunchError::Console { path: path.to_owned(), cause })
}

/// A container whose process waits to be started. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: Pid,
    pub(crate) start_time: u64,
    pub(crate) channel: Channel,
    /// The terminal, when no console socket took it.
    pub(crate) terminal: Option<OwnedFd>,
    process: Guard,
}

impl Launched {
    /// A handle on the process.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    /// It lives on without us.
    pub(crate) fn release(&mut self) {
        self.process.armed = false;
    }
}

/// Kills and reaps a process unless told otherwise.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) armed: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            // ESRCH and ECHILD mean that it is gone, which is the point.
            let _ = sys::process::pidfd_send_signal(self.pidfd.as_fd(), nix::libc::SIGKILL);
            let _ = sys::process::wait(self.pid);
        }
    }
}

/// Clones the child and stays with it until it is ready.
pub(crate) fn spawn(
    plan: &Plan,
    prepared: &Prepared,
    cgroup: &Cgroup,
    state: &State,
    log: &Log,
) -> Result<Launched, LaunchError> {
    let mut warn = |text: String| log.warn(&text);
    // The child inherits it, so there is no moment in which the container could look into it (CVE-2016-9962).
    sys::process::set_dumpable(false).map_err(step("become undumpable"))?;
    let unified = cgroup.create_unified(&plan.resources, &mut warn)?;
    let (channel, theirs) = Channel::pair().map_err(step("make a pair of sockets"))?;
    let process = clone_child(plan, prepared, cgroup, state, unified.as_ref().map(AsFd::as_fd), &channel, theirs)?;
    let pid = process.pid;
    let stat = ProcessStat::read(pid.as_raw()).ok_or(LaunchError::ChildDied)?;
    let mut parent = Parent { plan, prepared, state, log, channel: &channel, pid };
    // Files of an undumpable process are root's: whoever is not root reaches them only while the child waits for its maps.
    let mut score = plan.process.oom_score_adj;
    if plan.namespaces.needs_parent() {
        parent.until(Kind::NeedMaps)?;
        parent.write_maps()?;
        if let Some(score) = score.take_if(|_| prepared.sources.is_none()) {
            set_oom_score(&prepared.proc, pid, score, log).map_err(step("set oom_score_adj"))?;
        }
        channel.send(Kind::Mapped, "").map_err(|_| parent.last_words())?;
    }
    if !plan.net_devices.is_empty() {
        let socket = parent.until(Kind::NetDevices)?.fds.pop().ok_or(LaunchError::ChildDied)?;
        netdev::move_all(&plan.net_devices, socket, pid)?;
        channel.send(Kind::NetDone, "").map_err(|_| parent.last_words())?;
    }
    cgroup.finish(pid, &plan.resources, &mut warn)?;
    super::delegate::to_container(plan, cgroup, pid, &mut warn)?;
    let mut tasks = cgroup.task_files()?;
    if let Some(group) = &state.rdt {
        tasks.extend(group.task_files()?);
    }
    let tasks: Vec<BorrowedFd<'_>> = tasks.iter().map(AsFd::as_fd).collect();
    channel.send_with(Kind::Cgroup, &pid.to_string(), &tasks).map_err(|_| parent.last_words())?;
    if let Some(score) = score {
        set_oom_score(&prepared.proc, pid, score, log).map_err(step("set oom_score_adj"))?;
    }
    let ready = parent.until(Kind::Ready)?;
    let terminal = ready.fds.into_iter().next();
    Ok(Launched { pid, start_time: stat.start_time, channel, terminal, process })
}

/// Writes a process' score; lowering it takes CAP_SYS_RESOURCE, without which it stays what it is.
pub(crate) fn set_oom_score(proc: &OwnedFd, pid: Pid, score: i32, log: &Log) -> Result<(), Errno> {
    match limits::write_proc(proc, &format!("{pid}/oom_score_adj"), score.to_string().as_bytes()) {
        Err(Errno::EACCES | Errno::EPERM) => {
            log.warn(&format!(
                "process.oomScoreAdj: {score} is lower than the runtime's own and needs CAP_SYS_RESOURCE; left as it is"
            ));
            Ok(())
        }
        other => other,
    }
}

struct Parent<'a> {
    plan: &'a Plan,
    prepared: &'a Prepared,
    state: &'a State,
    log: &'a Log,
    channel: &'a Channel,
    pid: Pid,
}

impl Parent<'_> {
    /// Serves the child until it says the word.
    fn until(&mut self, kind: Kind) -> Result<Message, LaunchError> {
        loop {
            let message = self.channel.receive().map_err(step("listen to the child"))?.ok_or(LaunchError::ChildDied)?;
            match message.kind {
                found if found == kind => return Ok(message),
                Kind::Warning => self.log.warn(&message.text),
                Kind::Failed => return Err(LaunchError::Child(message.text)),
                Kind::Hooks => {
                    let hooks = &self.plan.hooks;
                    let pid = self.pid.as_raw();
                    hooks::run("prestart", &hooks.prestart, self.state, pid, Status::Creating)?;
                    hooks::run("createRuntime", &hooks.create_runtime, self.state, pid, Status::Creating)?;
                    self.channel.send(Kind::HooksDone, "").map_err(|_| self.last_words())?;
                }
                _ => return Err(LaunchError::Step("listen to the child", Errno::EBADMSG)),
            }
        }
    }

    /// The child does not listen any more: it has said why, or died.
    fn last_words(&self) -> LaunchError {
        while let Ok(Some(message)) = self.channel.receive() {
            if message.kind == Kind::Failed {
                return LaunchError::Child(message.text);
            }
        }
        LaunchError::ChildDied
    }

    fn write_maps(&self) -> Result<(), LaunchError> {
        let namespaces = &self.plan.namespaces;
        if namespaces.new & NEWUSER != 0 {
            id_maps::write(&self.prepared.proc, self.pid, namespaces)?;
        }
        if !namespaces.time_offsets.is_empty() {
            let file = format!("{}/timens_offsets", self.pid);
            limits::write_proc(&self.prepared.proc, &file, namespaces.time_offsets.concat().as_bytes())
                .map_err(step("set linux.timeOffsets"))?;
        }
        Ok(())
    }
}

/// One clone in the common case. Joining a user, pid or time namespace changes only what comes after it (for the latter two: only
/// children), so then a helper goes ahead, joins, clones the container's process as its sibling, and ends.
fn clone_child(
    plan: &Plan,
    prepared: &Prepared,
    cgroup: &Cgroup,
    state: &State,
    unified: Option<BorrowedFd<'_>>,
    channel: &Channel,
    theirs: Channel,
) -> Result<Guard, LaunchError> {
    let namespaces = &plan.namespaces;
    let joins_early = namespaces.join.iter().any(|join| join.flag & (NEWUSER | NEWPID | NEWTIME) != 0);
    let by_helper = joins_early || (namespaces.new & NEWUSER != 0 && !namespaces.join.is_empty());
    // With offsets the child makes it, since they have to be written before it is entered.
    let offsets = if namespaces.time_offsets.is_empty() { 0 } else { NEWTIME };
    // The cgroup namespace comes later: it is rooted where its maker is.
    let flags = namespaces.new & !(NEWCGROUP | offsets | namespaces.made_by_child());
    let options = Options { namespaces: flags, cgroup: unified, sibling: by_helper };
    let work = Child { plan, prepared, cgroup, state, joined: by_helper };
    if !by_helper {
        return match clone(&options).map_err(step("clone the container's first process"))? {
            Cloned::Child => child::run(&work, theirs),
            Cloned::Parent { pid, pidfd } => Ok(Guard { pid, pidfd, armed: true }),
        };
    }
    let helper = match sys::process::fork().map_err(step("fork a helper"))? {
        Fork::Parent(pid) => pid,
        Fork::Child => help(&work, &options, theirs),
    };
    drop(theirs);
    let answer = channel.receive().map_err(step("listen to the helper"))?;
    let _ = sys::process::wait(helper);
    let message = answer.ok_or(LaunchError::ChildDied)?;
    if message.kind == Kind::Failed {
        return Err(LaunchError::Child(message.text));
    }
    let pid = message
        .text
        .parse()
        .map(Pid::from_raw)
        .map_err(|_| LaunchError::Step("listen to the helper", Errno::EBADMSG))?;
    let pidfd = sys::process::pidfd_open(pid).map_err(step("open the container's first process"))?;
    Ok(Guard { pid, pidfd, armed: true })
}

fn help(work: &Child<'_>, options: &Options<'_>, channel: Channel) -> ! {
    let failed = match join_and_clone(work, options) {
        Ok(Cloned::Child) => child::run(work, channel),
        Ok(Cloned::Parent { pid, .. }) => {
            let _ = channel.send(Kind::Pid, &pid.to_string());
            sys::process::exit_now(0)
        }
        Err(error) => error,
    };
    let _ = channel.send(Kind::Failed, &super::handshake::chain(&failed));
    sys::process::exit_now(1)
}

fn join_and_clone(work: &Child<'_>, options: &Options<'_>) -> Result<Cloned, LaunchError> {
    let namespaces = &work.plan.namespaces;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| LaunchError::Namespace { path, cause }
    };
    // Most belong to the host; those that belong to the user namespace can be entered only once we are in that.
    let mut later = Vec::new();
    let (user, others): (Vec<_>, Vec<_>) = namespaces
        .join
        .iter()
        .zip(&work.prepared.joins)
        // The child enters that of cgroups, once it is in its own.
        .filter(|(join, _)| join.flag != NEWCGROUP)
        .partition(|(join, _)| join.flag == NEWUSER);
    for (join, file) in others {
        match sys::ns::enter(file, join.flag) {
            Err(Errno::EPERM) if !user.is_empty() => later.push((join, file)),
            done => done.map_err(failed(&join.path))?,
        }
    }
    for (join, file) in user.into_iter().chain(later) {
        sys::ns::enter(file, join.flag).map_err(failed(&join.path))?;
    }
    clone(options).map_err(step("clone the container's first process"))
}
