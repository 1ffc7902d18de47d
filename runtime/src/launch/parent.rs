//! The parent's side of `create` and `run`, from the clone on: cgroups are made while the child builds its root on another
//! processor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use sys::Errno;
use sys::clone::{Cloned, Options, clone};
use sys::process::Fork;

use super::child::{self, Child};
use super::handshake::{Channel, Kind, Message};
use super::hooks::{self, HookError};
use super::id_maps::{self, MapError};
use super::prepared::Prepared;
use crate::confine::cgroup::{Cgroup, CgroupError};
use crate::confine::limits;
use crate::log::Log;
use crate::netdev::{self, NetDeviceError};
use crate::plan::Plan;
use crate::plan::libc_flag::{NEWCGROUP, NEWPID, NEWTIME, NEWUSER};
use crate::rootfs::RootfsError;
use crate::state::{ContainerId, Entry, ProcessStat, State, StateError, Status};

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
    /// The container's folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// What the child reported.
    #[error("{0}")]
    Child(String),
    /// The child ended without a word.
    #[error("the container's first process ended unexpectedly")]
    ChildDied,
}

impl LaunchError {
    /// Whether another may be in the cgroup, or about to enter it.
    pub(crate) fn is_anothers(&self) -> bool {
        match self {
            Self::Cgroup(error) => error.is_anothers(),
            Self::State(_) => true,
            _ => false,
        }
    }
}

pub(super) fn step(stage: &'static str) -> impl FnOnce(Errno) -> LaunchError {
    move |cause| LaunchError::Step(stage, cause)
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
    (entry, state): (&Entry, &State),
    log: &Log,
) -> Result<Launched, LaunchError> {
    let mut warn = |text: String| log.warn(&text);
    // The child inherits it, so there is no moment in which the container could look into it (CVE-2016-9962).
    sys::process::set_dumpable(false).map_err(step("become undumpable"))?;
    let unified = cgroup.create_unified(&plan.resources, &mut warn)?;
    refuse_anothers(entry, cgroup)?;
    let work = Child { plan, prepared, cgroup, state, joined: joined_by_helper(plan) };
    let (process, channel) = clone_child(&work, unified.as_ref().map(AsFd::as_fd))?;
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
    refuse_anothers(entry, cgroup)?;
    super::delegate::to_container(plan, cgroup, pid, &mut warn)?;
    // Until it has its cgroup the child cannot outlive us; from then on it may, and `delete` has to know.
    entry.claim(Some((pid, stat.start_time)))?;
    cgroup.set_claimed();
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

/// A cgroup that was there, empty, may be what another container has left: to be deleted with that one, and with whoever would be
/// in it by then.
pub(crate) fn refuse_anothers(entry: &Entry, cgroup: &Cgroup) -> Result<(), CgroupError> {
    let other = if cgroup.is_taken_over() { entry.other_with_cgroup(cgroup.path()) } else { None };
    let refused = |id: ContainerId| CgroupError::OfContainer { path: cgroup.path().to_owned(), id: id.to_string() };
    other.map_or(Ok(()), |id| Err(refused(id)))
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
fn joined_by_helper(plan: &Plan) -> bool {
    let namespaces = &plan.namespaces;
    let joins_early = namespaces.join.iter().any(|join| join.flag & (NEWUSER | NEWPID | NEWTIME) != 0);
    joins_early || (namespaces.new & NEWUSER != 0 && !namespaces.join.is_empty())
}

/// The child keeps nothing of our end of the channel: it has to notice when we are gone, should we be killed before it could ask to
/// be killed with us.
fn clone_child(work: &Child<'_>, unified: Option<BorrowedFd<'_>>) -> Result<(Guard, Channel), LaunchError> {
    let (namespaces, by_helper) = (&work.plan.namespaces, work.joined);
    let (channel, theirs) = Channel::pair().map_err(step("make a pair of sockets"))?;
    // With offsets the child makes it, since they have to be written before it is entered.
    let offsets = if namespaces.time_offsets.is_empty() { 0 } else { NEWTIME };
    // The cgroup namespace comes later: it is rooted where its maker is.
    let flags = namespaces.new & !(NEWCGROUP | offsets | namespaces.made_by_child());
    let options = Options { namespaces: flags, cgroup: unified, sibling: by_helper };
    if !by_helper {
        return match clone(&options).map_err(step("clone the container's first process"))? {
            Cloned::Child => {
                drop(channel);
                child::run(work, theirs)
            }
            Cloned::Parent { pid, pidfd } => Ok((Guard { pid, pidfd, armed: true }, channel)),
        };
    }
    let helper = match sys::process::fork().map_err(step("fork a helper"))? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            drop(channel);
            help(work, &options, theirs)
        }
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
    Ok((Guard { pid, pidfd, armed: true }, channel))
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
