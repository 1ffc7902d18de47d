//! AppArmor profiles and SELinux labels: written to /proc, take effect by execve.
//!
//! Written through the handle on the host's procfs, so that nothing the container mounted can swallow them (CVE-2019-16884).

#![expect(clippy::disallowed_methods, reason = "sysfs of the host, read before the container has a root")]

use std::os::fd::OwnedFd;
use std::path::Path;

use sys::Errno;

use super::limits::write_proc;
use crate::plan::process::ProcessPlan;

/// A label that could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LabelError {
    /// The host has no AppArmor.
    #[error("process.apparmorProfile: {0:?} needs AppArmor, which is not enabled on this host")]
    NoAppArmor(String),
    /// The host has no SELinux.
    #[error("process.selinuxLabel: {0:?} needs SELinux, which is not enabled on this host")]
    NoSelinux(String),
    /// The session keyring, without which the caller's would be in reach.
    #[error("join a session keyring")]
    Keyring(#[source] Errno),
    /// The kernel said no.
    #[error("apply {lsm} label {label:?}")]
    Apply {
        lsm: &'static str,
        label: String,
        #[source]
        cause: Errno,
    },
}

/// What the host knows of labels, asked only when there is one, and before anything is made.
pub(crate) fn settle(process: &mut ProcessPlan) -> Result<(), LabelError> {
    if let Some(profile) = &process.apparmor_profile {
        let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
        match (enabled, profile.as_str()) {
            (true, _) => {}
            // What a process is without AppArmor.
            (false, "unconfined") => process.apparmor_profile = None,
            (false, _) => return Err(LabelError::NoAppArmor(profile.clone())),
        }
    }
    if let Some(label) = &process.selinux_label
        && !Path::new("/sys/fs/selinux/status").exists()
    {
        return Err(LabelError::NoSelinux(label.clone()));
    }
    Ok(())
}

/// Gives the labels that the next execve brings.
pub(crate) fn apply(proc: &OwnedFd, process: &ProcessPlan) -> Result<(), LabelError> {
    if let Some(profile) = &process.apparmor_profile {
        let text = format!("exec {profile}");
        // Since Linux 5.8 each module has a folder of its own; the old file belongs to whichever module comes first.
        let done = match write_own(proc, "attr/apparmor/exec", &text) {
            Err(Errno::ENOENT) => write_own(proc, "attr/exec", &text),
            done => done,
        };
        done.map_err(|cause| LabelError::Apply { lsm: "AppArmor", label: profile.clone(), cause })?;
    }
    if let Some(label) = &process.selinux_label {
        let failed = |cause| LabelError::Apply { lsm: "SELinux", label: label.clone(), cause };
        write_own(proc, "attr/exec", label).map_err(failed)?;
    }
    Ok(())
}

/// Joins the container's session keyring. It carries the process' label, or the process could not use it.
pub(crate) fn join_keyring(
    proc: &OwnedFd,
    name: &str,
    label: Option<&str>,
    permissions: Option<u32>,
) -> Result<(), LabelError> {
    let failed = |label: &str| {
        let label = label.to_owned();
        move |cause| LabelError::Apply { lsm: "SELinux key", label, cause }
    };
    if let Some(label) = label {
        write_own(proc, "attr/keycreate", label).map_err(failed(label))?;
    }
    match (sys::task::join_session_keyring(name), permissions) {
        (Ok(id), Some(permissions)) => {
            // One that was there before may be another user's; it serves as it is.
            let _ = sys::task::set_key_permissions(id, permissions);
        }
        // Kernels without keyrings, and quotas used up, are no reason not to run; nor is a keyring that is another user's by now.
        (Ok(_) | Err(Errno::ENOSYS | Errno::EDQUOT | Errno::EACCES), _) => {}
        (Err(cause), _) => return Err(LabelError::Keyring(cause)),
    }
    if let Some(label) = label {
        write_own(proc, "attr/keycreate", "").map_err(failed(label))?;
    }
    Ok(())
}

/// Who may use the keyring: its possessor everything but changing it, its owner look; and it has to be found by `exec`, which
/// comes as its owner, or, with a user namespace, as somebody else.
pub(crate) fn keyring_permissions(in_user_namespace: bool) -> u32 {
    const BASE: u32 = 0x3f13_0000;
    BASE | if in_user_namespace { 0x8 } else { 0x8_0000 }
}

fn write_own(proc: &OwnedFd, file: &str, text: &str) -> Result<(), Errno> {
    // Inside a pid namespace this procfs, the host's, still knows us by our pid out there.
    let own = nix::fcntl::readlinkat(proc, "self")?;
    write_proc(proc, &format!("{}/{file}", own.to_string_lossy()), text.as_bytes())
}
