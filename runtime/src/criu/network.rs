//! The network of a restored container. criu makes a namespace of its own for it, and leaves that empty; what config.json says
//! about it is done here, as for a new container.

#![expect(clippy::disallowed_methods, reason = "the host's procfs, for a process that was just made")]

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sys::Errno;

use crate::confine::limits;
use crate::netdev::{self, NetDeviceError, netlink};
use crate::plan::libc_flag::NEWNET;
use crate::plan::{Plan, sysctl};

/// What could not be had again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// A step.
    #[error("{0} the restored network namespace")]
    Step(&'static str, #[source] Errno),
    /// A device.
    #[error(transparent)]
    Device(#[from] NetDeviceError),
    /// A sysctl.
    #[error("set sysctl {key} to {value:?}")]
    Sysctl {
        key: String,
        value: String,
        #[source]
        cause: Errno,
    },
}

/// Brings up the loopback interface, moves the devices, sets the sysctls. Nothing for a namespace of somebody else.
pub(crate) fn set_up(plan: &Plan, pid: Pid) -> Result<(), NetworkError> {
    if plan.namespaces.new & NEWNET == 0 {
        return Ok(());
    }
    let step = |stage| move |errno| NetworkError::Step(stage, errno);
    let path = format!("/proc/{pid}/ns/net");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(step("open"))?;
    inside(&namespace, sys::netns::loopback_up)?.map_err(step("set up the loopback interface of"))?;
    if !plan.net_devices.is_empty() {
        let socket = inside(&namespace, netlink::open)?.map_err(step("open a netlink socket in"))?;
        netdev::move_all(&plan.net_devices, socket, pid)?;
    }
    // Those of other kinds of namespaces are in the images.
    let own = plan.sysctl.iter().map(|(key, value)| (key, sysctl::path_of(key), value));
    let own: Vec<_> = own.filter(|(_, path, _)| path.starts_with("net/")).collect();
    if own.is_empty() {
        return Ok(());
    }
    let proc = limits::open_proc().map_err(step("open /proc for"))?;
    // What is below /proc/sys/net is of the namespace of who looks.
    inside(&namespace, || {
        own.into_iter().try_for_each(|(key, path, value)| {
            limits::write_proc(&proc, &format!("sys/{path}"), value.as_bytes()).map_err(|cause| NetworkError::Sysctl {
                key: key.clone(),
                value: value.clone(),
                cause,
            })
        })
    })?
}

fn inside<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    sys::netns::within(namespace.as_fd(), work).map_err(|error| NetworkError::Step("enter", error.cause))
}
