//! What `create` and `run` have in common: flags, and building a container up to the point where its process waits.

#![expect(clippy::disallowed_methods, reason = "the bundle is a folder of the host, named by the caller")]

use std::path::PathBuf;

use nix::unistd::Pid;

use super::{CommandError, Context, connect_pidfd_socket, delete, inherit, notify, send_pidfd};
use crate::args::{Flag, Parsed, switch, value};
use crate::confine::cgroup::place::Wanted;
use crate::confine::cgroup::{Cgroup, CgroupError};
use crate::confine::labels;
use crate::confine::rdt;
use crate::launch::gate;
use crate::launch::listener;
use crate::launch::parent::{self, Launched};
use crate::launch::prepared::{Prepared, Wait};
use crate::plan::libc_flag::{NEWPID, NEWUSER};
use crate::plan::{Options, Plan};
use crate::spec::{Resources, Spec};
use crate::state::{ContainerId, Entry, State};

/// Flags of `create`; `run` has more.
pub(super) const FLAGS: &[Flag] = &[
    value(&["bundle", "b"], "folder with config.json (default: here)"),
    value(&["console-socket"], "unix socket that gets the master of the terminal"),
    value(&["pidfd-socket"], "unix socket that gets a pidfd of the process"),
    value(&["pid-file"], "file to write the pid to"),
    switch(&["no-pivot"], "do not use pivot_root"),
    switch(&["no-new-keyring"], "keep the caller's session keyring"),
    value(&["preserve-fds"], "descriptors after stdio to pass on"),
    value(&["rootfs-fd"], "descriptor of a detached mount that is the root; root.path is only where hooks see it"),
];

/// The same, parsed.
pub(super) struct BuildArgs {
    pub(super) id: ContainerId,
    bundle: PathBuf,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
    options: Options,
    preserve_fds: u16,
    rootfs_fd: Option<u16>,
}

impl BuildArgs {
    pub(super) fn new(command: &'static str, parsed: &Parsed) -> Result<Self, CommandError> {
        let bundle = parsed.path("bundle").unwrap_or_else(|| ".".into());
        let absolute = std::fs::canonicalize(&bundle);
        Ok(Self {
            id: ContainerId::parse(parsed.one_word(command, "the container's id")?)?,
            bundle: absolute.map_err(|cause| CommandError::Io { action: "open bundle", path: bundle, cause })?,
            console_socket: parsed.path("console-socket"),
            pid_file: parsed.path("pid-file"),
            options: Options {
                no_pivot: parsed.is_on("no-pivot"),
                no_new_keyring: parsed.is_on("no-new-keyring"),
                ..Options::default()
            },
            pidfd_socket: parsed.path("pidfd-socket"),
            preserve_fds: parsed.number("preserve-fds")?.unwrap_or(0),
            rootfs_fd: parsed.number("rootfs-fd")?,
        })
    }
}

/// Who lets the process go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starter {
    /// `start`, later.
    Gate,
    /// We, at once.
    Us,
}

/// A container that is built. Dropped, everything is undone: in the order of the fields.
pub(super) struct Built {
    pub(super) launched: Launched,
    pub(super) cgroup: NewCgroup,
    pub(super) entry: Entry,
    pub(super) state: State,
}

impl Built {
    /// Takes everything back because of an error: the process is killed, then come the poststop hooks, as after any other
    /// container.
    pub(super) fn undo(self, context: &Context, because: CommandError) -> CommandError {
        let state = self.state.clone();
        drop(self);
        delete::poststop(context, &state);
        because
    }
}

/// A cgroup made here, and a group of resctrl; removed when dropped, unless kept.
pub(super) struct NewCgroup {
    cgroup: Cgroup,
    rdt: Option<rdt::Group>,
    keep: bool,
    anothers: bool,
}

impl NewCgroup {
    /// Takes charge of a cgroup.
    pub(super) fn new(cgroup: Cgroup, rdt: Option<rdt::Group>, failed: Option<&CgroupError>) -> Self {
        Self { cgroup, rdt, keep: false, anothers: false }.unless_occupied(failed)
    }

    /// What somebody else is in must stay.
    pub(super) fn unless_occupied(mut self, failed: Option<&CgroupError>) -> Self {
        self.anothers |= failed.is_some_and(CgroupError::is_anothers);
        self
    }

    /// Makes what is missing of it now that there is a process.
    pub(super) fn finished(
        self,
        pid: Pid,
        resources: &Resources,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self, CgroupError> {
        let done = self.cgroup.finish(pid, resources, warn);
        let cgroup = self.unless_occupied(done.as_ref().err());
        done.map(|()| cgroup)
    }

    /// Says that whoever is in it belongs to the container, unless it is another's.
    pub(super) fn claimed(self, entry: &Entry) -> Result<Self, CommandError> {
        let free = parent::refuse_anothers(entry, &self.cgroup).map_err(CommandError::from);
        match free.and_then(|()| Ok(entry.claim(None)?)) {
            Ok(()) => {
                self.cgroup.set_claimed();
                Ok(self)
            }
            Err(error) => {
                drop(self.of_another());
                Err(error)
            }
        }
    }

    /// It has turned out that another may be about to enter it.
    pub(super) fn of_another(mut self) -> Self {
        self.anothers = true;
        self
    }

    pub(super) fn get(&self) -> &Cgroup {
        &self.cgroup
    }

    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for NewCgroup {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if self.anothers {
            self.cgroup.take_back();
        } else {
            // The error that led here is the one to tell; `delete --force` finishes what is left.
            let removed = self.cgroup.destroy();
            if removed.is_err() && self.cgroup.is_claimed() {
                // What a hook has started in it, with a session of its own.
                let _ = self.cgroup.kill_all().and_then(|()| self.cgroup.destroy());
            }
        }
        let _ = self.rdt.as_ref().map_or(Ok(()), rdt::Group::remove);
    }
}

/// Builds a container: check everything, reserve the id, make it.
pub(super) fn build(
    context: &Context,
    args: &BuildArgs,
    starter: Starter,
    detached: bool,
) -> Result<Built, CommandError> {
    let listen_env = inherit::descriptors(context, args.preserve_fds)?;
    let root = args.rootfs_fd.map(|number| inherit::take(context, number)).transpose()?;
    let (mut spec, config) = Spec::load(&args.bundle)?;
    if let Some(process) = &mut spec.process {
        process.env.extend(listen_env);
    }
    let notify_folder = notify::manager().map(|_| context.states.notify_folder(&args.id));
    if let Some(folder) = &notify_folder {
        notify::add_to(&mut spec, folder);
    }
    let options = Options { systemd_cgroup: context.driver.systemd, ..args.options };
    let mut plan = Plan::new(&spec, &args.bundle, options)?;
    check_terminal(&plan, args, detached)?;
    if !plan.namespaces.is_private(NEWUSER) {
        limit_caps(&mut plan)?;
    }
    labels::settle(&mut plan.process)?;
    listener::check(plan.seccomp.as_mut(), |warning| plan.warnings.push(warning))?;
    for warning in &plan.warnings {
        context.log.warn(warning);
    }
    let cgroup = context.driver.place(&wanted(&plan, &args.id))?;
    context.log.debug(&format!(
        "cgroup {} ({}), {} mounts, seccomp filter of {} instructions",
        cgroup.path(),
        if cgroup.is_unified() { "v2" } else { "v1" },
        plan.mounts.len(),
        plan.seccomp.as_ref().map_or(0, |filter| filter.program.len()),
    ));
    if let Some(filter) = plan.seccomp.as_ref().filter(|filter| !filter.unknown.is_empty()) {
        context.log.debug(&format!("seccomp: no such system calls here: {}", filter.unknown.join(" ")));
    }
    let pidfd_socket = connect_pidfd_socket(args.pidfd_socket.clone())?;
    let entry = context.states.reserve(&args.id)?;
    if let Some(folder) = notify_folder {
        notify::make_folder(&folder).map_err(|cause| CommandError::Io { action: "make", path: folder, cause })?;
    }
    let mut state = State {
        id: args.id.clone(),
        pid: 0,
        start_time: 0,
        bundle: args.bundle.clone(),
        rootfs: plan.rootfs.clone(),
        created: crate::log::rfc3339(std::time::SystemTime::now()),
        owner: owner(),
        annotations: plan.annotations.clone(),
        cgroup: cgroup.path().to_owned(),
        unit: cgroup.unit().cloned(),
        own_pid_namespace: plan.namespaces.new & NEWPID != 0,
        hooks: plan.hooks.clone(),
        rdt: plan.rdt.as_ref().map(|rdt| rdt::Group::locate(rdt::root()?, rdt, args.id.as_str())).transpose()?,
    };
    // Enough for `delete --force` to clean up if this process is killed.
    entry.save(&state)?;
    entry.save_config(&config)?;
    let system = |stage| move |errno| CommandError::System(stage, errno);
    let wait = match starter {
        Starter::Us => Wait::Parent,
        Starter::Gate => Wait::Gate(gate::build(&entry.gate()).map_err(system("make the start socket"))?),
    };
    let prepared = Prepared::new(&plan, &args.bundle, root, args.console_socket.as_deref(), wait)?;
    let cgroup = NewCgroup::new(cgroup, state.rdt.clone(), None);
    if let (Some(group), Some(rdt)) = (&state.rdt, &plan.rdt) {
        group.make(rdt)?;
    }
    let (cgroup, launched) = match parent::spawn(&plan, &prepared, cgroup.get(), (&entry, &state), &context.log) {
        Ok(launched) => (cgroup, launched),
        Err(error) => {
            drop((if error.is_anothers() { cgroup.of_another() } else { cgroup }, entry));
            delete::poststop(context, &state);
            return Err(error.into());
        }
    };
    state.pid = launched.pid.as_raw();
    state.start_time = launched.start_time;
    let built = Built { launched, cgroup, entry, state };
    match send_pidfd(pidfd_socket.as_ref(), "standard", built.launched.pidfd()) {
        Ok(()) => Ok(built),
        Err(error) => Err(built.undo(context, error)),
    }
}

/// What decides about the cgroup.
pub(super) fn wanted<'a>(plan: &'a Plan, id: &'a ContainerId) -> Wanted<'a> {
    Wanted {
        id: id.as_str(),
        path: &plan.cgroups_path,
        unit: &plan.unit,
        properties: &plan.unit_properties,
        resources: &plan.resources,
    }
}

/// Whose container it is, for `list`; nothing for root's. By name if the host's passwd file has one.
fn owner() -> String {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return String::new();
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user.as_raw())).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| user.to_string())
}

fn check_terminal(plan: &Plan, args: &BuildArgs, detached: bool) -> Result<(), CommandError> {
    match (plan.process.terminal.is_some(), args.console_socket.is_some()) {
        (true, false) if detached => Err(CommandError::Conflict(
            "process.terminal needs --console-socket, since nobody stays to serve the terminal",
        )),
        (false, true) => Err(CommandError::Conflict("--console-socket needs process.terminal")),
        _ => Ok(()),
    }
}

/// Capabilities that the runtime lacks cannot be given; the container runs without them, as with those that the kernel lacks.
fn limit_caps(plan: &mut Plan) -> Result<(), CommandError> {
    let own = sys::creds::caps().map_err(|errno| CommandError::System("read own capabilities", errno))?;
    let missing = plan.process.caps.limit_to(own.permitted);
    if missing != 0 {
        plan.warnings.push(format!("process.capabilities: {missing:#x} are not the runtime's own and cannot be given"));
    }
    Ok(())
}
