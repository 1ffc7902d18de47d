//! The child's side of `create` and `run`: from clone to execve.
//!
//! ```text
//! namespaces -> names -> root attached -> mounts -> devices -> masks -> hooks -> root entered
//!            -> process settled (entry.rs) -> Ready -> wait for start -> startContainer hooks -> execve
//! ```
//! It has a copy of everything the parent prepared and only applies it. It is undumpable throughout, and dies with its parent
//! until it is ready.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use sys::Errno;

use super::entry::{ChildError, Entrant, open_terminal, report_ready, step};
use super::handshake::{Channel, Kind, chain};
use super::hooks;
use super::own_namespaces::Namespaces;
use super::prepared::{Prepared, Wait};
use crate::confine::cgroup::{self, Cgroup};
use crate::confine::{labels, limits};
use crate::netdev::netlink;
use crate::plan::libc_flag::{NEWCGROUP, NEWNET, NEWTIME};
use crate::plan::mounts::Source;
use crate::plan::namespaces::Join;
use crate::plan::{Plan, sysctl};
use crate::rootfs::sources::Sources;
use crate::rootfs::{cgroups, devices, masks, mounts, pivot, resolve};
use crate::state::{State, Status};

/// What the child was cloned for.
pub(super) struct Child<'a> {
    pub(super) plan: &'a Plan,
    pub(super) prepared: &'a Prepared,
    pub(super) cgroup: &'a Cgroup,
    pub(super) state: &'a State,
    /// Namespaces were joined by the helper already.
    pub(super) joined: bool,
}

/// Never comes back: the process becomes the container's, or reports why not and ends.
pub(super) fn run(child: &Child<'_>, channel: Channel) -> ! {
    let mut report = channel;
    let error = match child.build(&mut report) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // Without anybody to tell there is nothing left to do but to end.
    let _ = report.send(Kind::Failed, &chain(&error));
    sys::process::exit_now(1)
}

fn enter(join: &Join, namespace: &OwnedFd) -> Result<(), ChildError> {
    sys::ns::enter(namespace, join.flag).map_err(|cause| ChildError::Join { path: join.path.clone(), cause })
}

impl Child<'_> {
    fn build(&self, channel: &mut Channel) -> Result<Infallible, ChildError> {
        let (plan, prepared) = (self.plan, self.prepared);
        sys::process::set_parent_death_signal(Some(Signal::SIGKILL)).map_err(step("set parent death signal"))?;
        sys::process::reset_signals().map_err(step("reset signals"))?;
        nix::sys::stat::umask(Mode::empty());
        self.namespaces(channel)?;
        let taken;
        let sources = match &prepared.sources {
            Some(sources) => sources,
            None => {
                taken = prepared.take_sources(plan)?.ok_or(ChildError::Step("copy mounts", Errno::EPERM))?;
                &taken
            }
        };
        let pid = self.file_system(channel, sources)?;
        let root = &sources.rootfs;
        // Made while the root can still be written to; if it cannot be made, entering it says so.
        let _ = resolve::directory(root, Path::new(&plan.process.cwd), 0);
        let terminal = match plan.process.terminal {
            None => None,
            Some(size) => {
                let pty = open_terminal(root, size)?;
                if plan.populate_dev {
                    devices::console(root, &pty.peer)?;
                }
                Some(pty.master)
            }
        };
        self.hooks(channel, pid)?;
        pivot::enter(root, plan.options.no_pivot, plan.readonly_rootfs, plan.rootfs_propagation)?;
        self.start(channel, pid, terminal)
    }

    /// Somebody else's namespaces, opened by the parent.
    fn joins(&self) -> impl Iterator<Item = (&Join, &OwnedFd)> {
        self.plan.namespaces.join.iter().zip(&self.prepared.joins)
    }

    fn namespaces(&self, channel: &Channel) -> Result<(), ChildError> {
        let plan = self.plan;
        let offsets = !plan.namespaces.time_offsets.is_empty();
        if offsets {
            sys::ns::unshare(NEWTIME).map_err(step("make a time namespace"))?;
        }
        if plan.namespaces.needs_parent() {
            // A parent that is not root could not write them otherwise. Nobody but him can reach us yet.
            if self.prepared.sources.is_none() {
                sys::process::set_dumpable(true).map_err(step("become dumpable"))?;
            }
            channel.send(Kind::NeedMaps, "").map_err(step("ask for id maps"))?;
            channel.expect(Kind::Mapped).map_err(step("wait for id maps"))?;
        }
        if offsets {
            self.enter_time_namespace().map_err(step("enter the time namespace"))?;
        }
        if plan.namespaces.in_user_namespace() {
            sys::creds::set_gid(0).map_err(step("become root of the user namespace"))?;
            sys::creds::set_uid(0).map_err(step("become root of the user namespace"))?;
            sys::process::set_dumpable(false).map_err(step("become undumpable"))?;
            // Changing ids cancelled it.
            sys::process::set_parent_death_signal(Some(Signal::SIGKILL)).map_err(step("set parent death signal"))?;
        }
        sys::ns::unshare(plan.namespaces.made_by_child()).map_err(step("make namespaces"))?;
        if !self.joined {
            for (join, namespace) in self.joins().filter(|(join, _)| join.flag != NEWCGROUP) {
                enter(join, namespace)?;
            }
        }
        nix::unistd::setsid().map_err(step("start a session"))?;
        if !plan.options.no_new_keyring {
            let permissions = labels::keyring_permissions(plan.namespaces.in_user_namespace());
            let (name, label) = (format!("_ses.{}", self.state.id), plan.process.selinux_label.as_deref());
            labels::join_keyring(&self.prepared.proc, &name, label, Some(permissions))?;
        }
        if let Some(name) = &plan.hostname {
            nix::unistd::sethostname(name).map_err(step("set hostname"))?;
        }
        if let Some(name) = &plan.domainname {
            sys::ns::set_domain_name(name).map_err(step("set domainname"))?;
        }
        if plan.namespaces.new & NEWNET != 0 {
            sys::netns::loopback_up().map_err(step("bring up the loopback interface"))?;
        }
        if !plan.net_devices.is_empty() {
            let socket = netlink::open().map_err(step("open a netlink socket"))?;
            channel.send_with(Kind::NetDevices, "", &[socket.as_fd()]).map_err(step("ask for network devices"))?;
            channel.expect(Kind::NetDone).map_err(step("wait for network devices"))?;
        }
        Ok(())
    }

    /// Its offsets are written: from now on nobody can change them. A process with one thread enters at once.
    fn enter_time_namespace(&self) -> Result<(), Errno> {
        let own = nix::fcntl::readlinkat(&self.prepared.proc, "self")?;
        let path = Path::new(&own).join("ns/time_for_children");
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace = nix::fcntl::openat(&self.prepared.proc, &path, flags, Mode::empty())?;
        sys::ns::enter(namespace, NEWTIME)
    }

    /// Mounts and devices. The cgroup is joined on the way, before anything that shows it; returns the pid that the parent sees.
    fn file_system(&self, channel: &Channel, sources: &Sources) -> Result<i32, ChildError> {
        let (plan, prepared) = (self.plan, self.prepared);
        let root = &sources.rootfs;
        let outer = plan.rootfs_propagation.0;
        mounts::attach_root(root, &plan.rootfs, mounts::inner(outer))?;
        let mut places = masks::Places::new(root);
        let mut pid = None;
        for (step, taken) in plan.mounts.iter().zip(&sources.mounts) {
            if step.source == Source::Cgroup {
                if pid.is_none() {
                    pid = Some(self.join_cgroup(channel)?);
                }
                cgroups::make(root, step, self.cgroup, plan.namespaces.is_private(NEWCGROUP))?;
            } else if let Some(mount) = mounts::make(root, step, taken, outer)? {
                places.add(&step.destination, mount);
            }
        }
        if plan.populate_dev {
            devices::make(root, &plan.devices, &sources.devices)?;
            devices::link(root)?;
        }
        for (key, value) in &plan.sysctl {
            let path = format!("sys/{}", sysctl::path_of(key));
            limits::write_proc(&prepared.proc, &path, value.as_bytes()).map_err(|cause| ChildError::Sysctl {
                key: key.clone(),
                value: value.clone(),
                cause,
            })?;
        }
        masks::make_read_only(&places, &plan.readonly_paths)?;
        masks::mask(&places, &plan.masked_paths, &plan.mount_label)?;
        pid.map_or_else(|| self.join_cgroup(channel), Ok)
    }

    fn join_cgroup(&self, channel: &Channel) -> Result<i32, ChildError> {
        let message = channel.expect(Kind::Cgroup).map_err(step("wait for the cgroup"))?;
        cgroup::join(&message.fds).map_err(step("join the cgroup"))?;
        // Only now: the namespace's root is where its maker is.
        if self.plan.namespaces.new & NEWCGROUP != 0 {
            sys::ns::unshare(NEWCGROUP).map_err(step("make a cgroup namespace"))?;
        }
        // One that is joined as well: our cgroup may not be seen in it, and then it could not be entered.
        for (join, namespace) in self.joins().filter(|(join, _)| join.flag == NEWCGROUP) {
            enter(join, namespace)?;
        }
        message.text.parse().map_err(|_| ChildError::Step("wait for the cgroup", Errno::EBADMSG))
    }

    fn hooks(&self, channel: &Channel, pid: i32) -> Result<(), ChildError> {
        let hooks = &self.plan.hooks;
        if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
            channel.send(Kind::Hooks, "").map_err(step("ask for hooks"))?;
            channel.expect(Kind::HooksDone).map_err(step("wait for hooks"))?;
        }
        hooks::run("createContainer", &hooks.create_container, self.state, pid, Status::Creating)?;
        Ok(())
    }

    fn start(&self, channel: &mut Channel, pid: i32, terminal: Option<OwnedFd>) -> Result<Infallible, ChildError> {
        let (plan, prepared) = (self.plan, self.prepared);
        let gate = match &prepared.wait {
            Wait::Gate(gate) => Some(gate),
            Wait::Parent => None,
        };
        // An ordinary user's `exec` has no other way to them.
        let own = match gate {
            Some(_) if prepared.sources.is_none() => Namespaces::open(&prepared.proc, &plan.namespaces),
            _ => Ok(Namespaces::default()),
        };
        let own = own.map_err(step("open own namespaces"))?;
        let keep = gate.into_iter().chain(&prepared.console).chain(&terminal).map(AsFd::as_fd);
        let keep: Vec<_> = keep.chain(own.descriptors()).collect();
        let settled = {
            let entrant =
                Entrant { process: &plan.process, seccomp: plan.seccomp.as_ref(), proc: &prepared.proc, channel };
            entrant.settle(&keep)?
        };
        // From here on the container lives without its parent.
        sys::process::set_parent_death_signal(None).map_err(step("set parent death signal"))?;
        report_ready(channel, prepared.console.as_ref(), terminal)?;
        match &prepared.wait {
            Wait::Gate(gate) => *channel = super::gate::wait(gate, &own).map_err(step("wait for start"))?,
            Wait::Parent => drop(channel.expect(Kind::Start).map_err(step("wait for start"))?),
        }
        hooks::run("startContainer", &plan.hooks.start_container, self.state, pid, Status::Created)?;
        let entrant = Entrant { process: &plan.process, seccomp: plan.seccomp.as_ref(), proc: &prepared.proc, channel };
        entrant.execute(settled)
    }
}
