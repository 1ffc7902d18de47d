//! What is opened before the clone, so that what can fail fails before there is anything to undo.

#![expect(
    clippy::disallowed_methods,
    reason = "namespaces that the caller names, looked up on the host before the container has a root"
)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sys::Errno;

use super::parent::{LaunchError, step};
use crate::confine::limits;
use crate::plan::Plan;
use crate::plan::libc_flag::{NEWIPC, NEWNET, NEWUSER, NEWUTS};
use crate::plan::namespaces::Join;
use crate::rootfs::RootfsError;
use crate::rootfs::sources::Sources;

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
    /// The root, if the caller made it.
    root: Option<OwnedFd>,
    /// In the order of the plan's.
    pub(super) joins: Vec<OwnedFd>,
    pub(super) console: Option<OwnedFd>,
    pub(super) wait: Wait,
}

impl Prepared {
    /// Opens everything. Nothing on the host changes. `root` is a detached mount that takes the place of what lies at the plan's
    /// path.
    pub(crate) fn new(
        plan: &Plan,
        bundle: &Path,
        root: Option<OwnedFd>,
        console: Option<&Path>,
        wait: Wait,
    ) -> Result<Self, LaunchError> {
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
        let mut prepared = Self { proc, sources: None, bundle: bundle.to_owned(), root, joins, console, wait };
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
        Sources::take(plan, &self.bundle, self.root.as_ref(), &self.proc, joined)
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
