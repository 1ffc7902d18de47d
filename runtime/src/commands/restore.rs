//! `restore`: makes a container go on from the files of a `checkpoint`.
//!
//! criu makes the processes and what they had; what is the runtime's is made here as for `create`: id, state, cgroup with its
//! limits, hooks. The restored process is our child, as a created one is.

#![expect(
    clippy::disallowed_methods,
    reason = "bundle and root are the caller's, looked up on the host before anything of the image runs"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::Pid;
use sys::mount::{Propagation, Reach, attach, clone_tree, set_attributes};

use super::build::NewCgroup;
use super::checkpoint::{Args, COMMON, check_version};
use super::{CommandError, Context, foreground, write_pid_file};
use crate::args::{Flag, Order, Parsed, switch, value};
use crate::confine::cgroup::Cgroup;
use crate::confine::rdt;
use crate::criu::rpc::{Message, kind, opt};
use crate::criu::{self, Criu, CriuError, Step, network, outside};
use crate::launch::hooks;
use crate::launch::prepared::connect_console;
use crate::plan::libc_flag::{NEWNS, NEWPID};
use crate::plan::mounts::{MountStep, Source};
use crate::plan::{Options, Plan};
use crate::rootfs::resolve::{self, Make};
use crate::spec::{Spec, load_json};
use crate::state::{ContainerId, Entry, ProcessStat, State, Status};

pub(super) const FLAGS: &[Flag] = &[
    value(&["bundle", "b"], "folder with config.json (default: here)"),
    value(&["console-socket"], "unix socket that gets the master of the terminal"),
    value(&["pid-file"], "file to write the pid to"),
    switch(&["detach", "d"], "do not wait for the process"),
    switch(&["no-subreaper"], "do not adopt what the process leaves behind"),
    switch(&["no-pivot"], "without effect, which is said: criu moves into the root in its own way"),
    value(&["lsm-profile"], "TYPE:NAME of another AppArmor or SELinux profile"),
    value(&["lsm-mount-context"], "another SELinux context of mounts"),
];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let flags = [COMMON, FLAGS].concat();
    let parsed = Parsed::parse(&flags, Order::Mixed, arguments)?;
    let id = ContainerId::parse(parsed.one_word("restore", "the container's id")?)?;
    let args = Args::new(&parsed)?;
    let given = parsed.path("bundle").unwrap_or_else(|| ".".into());
    let bundle = std::fs::canonicalize(&given);
    let bundle = bundle.map_err(|cause| CommandError::Io { action: "open bundle", path: given, cause })?;
    let (spec, config) = Spec::load(&bundle)?;
    let options = Options { systemd_cgroup: context.driver.systemd, ..Options::default() };
    let plan = Plan::new(&spec, &bundle, options)?;
    plan.warnings.iter().for_each(|warning| context.log.warn(warning));
    if parsed.is_on("no-pivot") {
        context.log.warn("--no-pivot has no effect on restore: criu moves into the root in its own way");
    }
    let (detach, console) = (parsed.is_on("detach"), parsed.path("console-socket"));
    if plan.process.terminal.is_some() && console.is_none() && detach {
        let text = "process.terminal needs --console-socket, since nobody stays to serve the terminal";
        return Err(CommandError::Conflict(text));
    }
    check_version(&plan)?;
    criu::check_features(false, args.lazy_pages)?;
    let cgroup = context.driver.place(&super::build::wanted(&plan, &id))?;
    let entry = context.states.reserve(&id)?;
    let state = State {
        id: id.clone(),
        pid: 0,
        start_time: 0,
        bundle,
        rootfs: plan.rootfs.clone(),
        created: crate::log::rfc3339(std::time::SystemTime::now()),
        owner: String::new(),
        annotations: plan.annotations.clone(),
        cgroup: cgroup.path().to_owned(),
        unit: cgroup.unit().cloned(),
        own_pid_namespace: plan.namespaces.new & NEWPID != 0,
        hooks: plan.hooks.clone(),
        rdt: plan.rdt.as_ref().map(|rdt| rdt::Group::locate(rdt::root()?, rdt, id.as_str())).transpose()?,
    };
    entry.save(&state)?;
    entry.save_config(&config)?;
    let console = console.map(|path| connect_console(&path)).transpose()?;
    let restorer = Restorer { context, parsed: &parsed, plan: &plan, entry, state, console, terminal: None };
    let (restored, log) = restorer.restore(args, cgroup, detach)?;
    let Restored { mut cgroup, signals, restorer } = restored;
    if let Some(path) = parsed.path("pid-file") {
        write_pid_file(&path, restorer.state.pid).inspect_err(|_| restorer.kill())?;
    }
    context.log.debug(&format!("restored; see {}", log.display()));
    cgroup.keep();
    let Restorer { entry, state, terminal, .. } = restorer;
    entry.keep();
    let Some(signals) = signals else { return Ok(0) };
    let exit = foreground::stay(&signals, Pid::from_raw(state.pid), terminal.as_ref(), None);
    super::delete::remove(context, &state)?;
    Ok(exit.map_err(|errno| CommandError::System("wait for the process", errno))?.status() as u8)
}

/// What is needed while criu works.
struct Restorer<'a> {
    context: &'a Context,
    parsed: &'a Parsed,
    plan: &'a Plan,
    entry: Entry,
    state: State,
    console: Option<OwnedFd>,
    /// The master, when no console socket takes it.
    terminal: Option<OwnedFd>,
}

struct Restored<'a> {
    cgroup: NewCgroup,
    /// In the foreground.
    signals: Option<foreground::Signals>,
    restorer: Restorer<'a>,
}

impl<'a> Restorer<'a> {
    fn restore(mut self, args: Args, cgroup: Cgroup, detach: bool) -> Result<(Restored<'a>, PathBuf), CommandError> {
        let system = |stage| move |errno| CommandError::System(stage, errno);
        let plan = self.plan;
        let (mut opts, folders) = args.open(false, "restore.log", plan)?;
        let stdio: Vec<String> = load_json(&folders.images.join(outside::DESCRIPTORS))?;
        let root = open_root(plan)?;
        for field in [opt::EVASIVE_DEVICES, opt::RST_SIBLING] {
            opts.flag(field, true);
        }
        opts.text(opt::ROOT, &plan.rootfs.display().to_string());
        for (name, field) in [("lsm-profile", opt::LSM_PROFILE), ("lsm-mount-context", opt::LSM_MOUNT_CONTEXT)] {
            if let Some(text) = self.parsed.value(name).filter(|text| !text.is_empty()) {
                opts.text(field, text);
            }
        }
        let mut files = outside::restore_namespaces(&mut opts, plan)?;
        files.extend(outside::restore_stdio(&mut opts, &stdio));
        if !detach && !self.parsed.is_on("no-subreaper") {
            sys::process::set_child_subreaper(true).map_err(system("become subreaper"))?;
        }
        let mut warn = |text: String| self.context.log.warn(&text);
        let unified = cgroup.create_unified(&plan.resources, &mut warn);
        let cgroup = NewCgroup::new(cgroup, self.state.rdt.clone(), unified.as_ref().err());
        unified?;
        // systemd wants a process for its scope, and gets criu's.
        let by_systemd = cgroup.get().unit().is_some();
        let cgroup = if by_systemd { cgroup } else { cgroup.finished(Pid::from_raw(0), &plan.resources, &mut warn)? };
        let mut criu =
            Criu::start(&folders.descriptors().chain(files.iter().map(AsFd::as_fd)).collect::<Vec<_>>(), || {
                prepare_root(plan, &self.state.bundle, &root)?;
                folders.reopen()
            })?;
        // After criu, which must not have them blocked, and before there is a process whose end could be missed.
        let signals = match detach {
            true => None,
            false => Some(foreground::Signals::catch().map_err(system("catch signals"))?),
        };
        let cgroup = if by_systemd { cgroup.finished(criu.pid(), &plan.resources, &mut warn)? } else { cgroup };
        let cgroup = cgroup.claimed(&self.entry)?;
        cgroup.get().add(criu.pid())?;
        if let (Some(group), Some(rdt)) = (&self.state.rdt, &plan.rdt) {
            group.make(rdt)?;
            // What it restores are its children.
            group.add(std::iter::once(criu.pid().as_raw()))?;
        }
        outside::cgroup_roots(&mut opts, criu.pid())?;
        // The root the mount points are looked up in is the one outside: what criu mounts inside does not matter to their names.
        outside::restore_mounts(&mut opts, plan, &self.state.bundle, cgroup.get(), &root);
        let mut failed = None;
        let request = Message::request(kind::RESTORE, Some(&opts));
        let response = criu.ask(&request, &mut |step| match self.step(step) {
            Ok(()) => true,
            Err(error) => {
                failed.get_or_insert(error);
                false
            }
        });
        drop(criu);
        if let Some(error) = failed {
            self.kill();
            return Err(error);
        }
        criu::check(&response?, "restore the container", Some(&folders.log)).inspect_err(|_| self.kill())?;
        if self.state.pid == 0 {
            return Err(CriuError::Silent(": it did not say which process it restored".into()).into());
        }
        Ok((Restored { cgroup, signals, restorer: self }, folders.log))
    }

    fn step(&mut self, step: Step) -> Result<(), CommandError> {
        self.context.log.debug(&format!("criu: {}", step.name));
        match step.name.as_str() {
            "setup-namespaces" => {
                let (hooks, pid) = (&self.plan.hooks, step.pid);
                network::set_up(self.plan, Pid::from_raw(pid)).map_err(CriuError::from)?;
                hooks::run("prestart", &hooks.prestart, &self.state, pid, Status::Creating)?;
                hooks::run("createRuntime", &hooks.create_runtime, &self.state, pid, Status::Creating)?;
            }
            "post-restore" => {
                // It does not run yet, so that its state is there before it can do anything.
                self.state.pid = step.pid;
                self.state.start_time = ProcessStat::read(step.pid).map_or(0, |stat| stat.start_time);
                self.entry.save(&self.state)?;
            }
            "orphan-pts-master" => {
                let master = step.fds.into_iter().next();
                let master = master.ok_or(CommandError::System("take the terminal from criu", sys::Errno::EBADMSG))?;
                match &self.console {
                    None => self.terminal = Some(master),
                    Some(console) => {
                        let sent = sys::fd::send_fds(console, b"/dev/pts/ptmx", &[master.as_fd()]);
                        sent.map_err(|errno| CommandError::System("send the terminal to the console socket", errno))?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends a process that nobody will get to know.
    fn kill(&self) {
        if let Some(pid) = self.state.live_pid() {
            let _ = sys::process::kill(pid, nix::libc::SIGKILL);
            let _ = sys::process::wait(pid);
        }
    }
}

fn open_root(plan: &Plan) -> Result<OwnedFd, CommandError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(&plan.rootfs, flags, Mode::empty()).map_err(|errno| CommandError::Io {
        action: "open rootfs",
        path: plan.rootfs.clone(),
        cause: errno.into(),
    })
}

/// In the process that becomes criu: a mount namespace in which the root is a mount, as criu wants it, with all mount points.
/// Nothing of it is seen outside, nor left if we are killed.
fn prepare_root(plan: &Plan, bundle: &Path, root: &OwnedFd) -> Result<(), String> {
    let said = |what: &str| {
        let what = format!("{what} {}", plan.rootfs.display());
        move |errno: sys::Errno| format!("{what}: {errno}")
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = |path: &std::path::Path| nix::fcntl::open(path, flags, Mode::empty());
    sys::ns::unshare(NEWNS).map_err(said("isolate mounts of"))?;
    let slash = open("/".as_ref()).map_err(said("isolate mounts of"))?;
    set_attributes(&slash, Reach::Tree, 0, 0, Some(Propagation::Slave)).map_err(said("isolate mounts of"))?;
    let bind = || {
        // Found anew: the descriptor from before belongs to the other mount namespace.
        let here = open(&plan.rootfs)?;
        let tree = clone_tree(&here, "", Reach::Tree)?;
        // A slave, not private: criu copies the root's master from it, where the host's mounts are shared (systemd).
        set_attributes(&tree, Reach::Tree, 0, 0, Some(Propagation::Slave))?;
        attach(&tree, &here)?;
        open(&plan.rootfs)
    };
    let missing = |step: &MountStep| resolve::open(root, &step.destination).is_err();
    if outside::points(plan).any(missing) {
        // Binds may have mount points in them, so they are there while those are made, and only then.
        let bound = bind().map_err(said("bind"))?;
        for step in outside::points(plan) {
            make_point(&bound, step, bundle)
                .map_err(|errno| format!("make mount point {}: {errno}", step.destination.display()))?;
        }
        drop(bound);
        umount2(&plan.rootfs, MntFlags::MNT_DETACH).map_err(said("unbind"))?;
    }
    bind().map(drop).map_err(said("bind"))
}

fn make_point(root: &OwnedFd, step: &MountStep, bundle: &Path) -> Result<(), sys::Errno> {
    let Source::Bind { path, .. } = &step.source else {
        return resolve::destination(root, &step.destination, Make::Directory).map(drop);
    };
    let tree = clone_tree(nix::fcntl::AT_FDCWD, &bundle.join(path), Reach::Tree)?;
    let kind = SFlag::from_bits_truncate(fstat(&tree)?.st_mode) & SFlag::S_IFMT;
    let make = if kind == SFlag::S_IFDIR { Make::Directory } else { Make::File };
    attach(&tree, resolve::destination(root, &step.destination, make)?)
}
