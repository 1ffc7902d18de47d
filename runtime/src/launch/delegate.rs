//! Whose a container's cgroup is.

#![expect(clippy::disallowed_methods, reason = "procfs of the host")]

use nix::unistd::Pid;
use sys::Errno;
use sys::mount::attr;

use crate::confine::cgroup::{Cgroup, CgroupError, mapped};
use crate::plan::Plan;
use crate::plan::libc_flag::NEWCGROUP;
use crate::plan::mounts::{MountStep, Source};

/// Lets the container manage its own cgroup: only if it sees no other, and may write there.
pub(super) fn to_container(
    plan: &Plan,
    cgroup: &Cgroup,
    pid: Pid,
    warn: &mut dyn FnMut(String),
) -> Result<(), CgroupError> {
    let writable = |step: &MountStep| step.source == Source::Cgroup && step.attributes.set & attr::RDONLY == 0;
    if plan.namespaces.new & NEWCGROUP == 0 || !plan.mounts.iter().any(writable) {
        return Ok(());
    }
    let mut owner = plan.process.uid;
    if plan.namespaces.in_user_namespace() {
        let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap_or_default();
        // An id that is not mapped cannot be that of the process, as it will find out.
        let Some(outside) = mapped(&map, owner) else { return Ok(()) };
        owner = outside;
    }
    if owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    match cgroup.delegate(owner) {
        Err(error @ CgroupError::Delegate { cause: Errno::EPERM, .. }) => {
            warn(format!("{}; the container cannot manage its cgroup", super::handshake::chain(&error)));
            Ok(())
        }
        done => done,
    }
}
