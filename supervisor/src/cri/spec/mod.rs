//! The OCI specification of a CRI container, and what of a sandbox's configuration can't be had.
//!
//! Everything it depends on is passed in; the disk is looked at for sources of mounts, devices, profiles and descriptions of CDI alone.
//! What is refused and what is left out follows containerd, except that nothing is dropped without a word: see [`Made::warnings`].

mod devices;
mod error;
mod image;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod rootfs;
mod sandbox;
mod security;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use ::spec::{kernel::Kernel, users::Database};
use proto::runtime::v1 as cri;
use serde_json::{Value, json};

pub(super) use self::{
    error::SpecError,
    image::ImageConfig,
    mounts::Volume,
    namespaces::mappings,
    process::stop_signal,
    resources::{cgroups_path, resources},
    rootfs::users,
    sandbox::{check_sandbox, sysctls},
    security::settle_apparmor,
};

/// What a container's specification depends on.
#[derive(Debug)]
pub(super) struct Input<'a> {
    /// The container's id.
    pub(super) id: &'a str,
    /// Its sandbox's.
    pub(super) sandbox_id: &'a str,
    /// The sandbox, checked by [`check_sandbox`].
    pub(super) pod: &'a cri::PodSandboxConfig,
    /// What is asked for.
    pub(super) container: &'a cri::ContainerConfig,
    /// What its image says.
    pub(super) image: &'a ImageConfig,
    /// The image's users, by [`users`].
    pub(super) users: &'a Database,
    /// Namespaces of the sandbox.
    pub(super) pins: &'a Pins,
    /// Files of the sandbox.
    pub(super) files: &'a SandboxFiles,
    /// The first process of the container whose pid namespace is asked for (`TARGET`).
    pub(super) target_pid: Option<u32>,
    /// Who owns the cgroups.
    pub(super) driver: cri::CgroupDriver,
    /// Images that are asked for as mounts, by the place of the mount in the request.
    pub(super) image_mounts: &'a BTreeMap<usize, ImageMount>,
    /// The folder for the image's own volumes.
    pub(super) volumes: &'a Path,
    /// AppArmor's profile, by [`settle_apparmor`].
    pub(super) apparmor: Option<&'a str>,
    /// Whether the handler's runtime knows `rro`.
    pub(super) recursive_read_only: bool,
    /// Where CDI's descriptions are.
    pub(super) cdi: &'a [PathBuf],
    /// This machine.
    pub(super) host: &'a Host,
}

/// An image that a container has as a mount.
#[derive(Debug)]
pub(super) struct ImageMount {
    /// Its files.
    pub(super) root: OwnedFd,
    /// Where they will be mounted when the container is made.
    pub(super) at: PathBuf,
}

/// Paths where the namespaces of a sandbox are pinned; none of those that it shares with the node. `pid` is there only if its
/// containers share one.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins {
    /// Network.
    pub(super) net: Option<PathBuf>,
    /// System V IPC and message queues.
    pub(super) ipc: Option<PathBuf>,
    /// Host name.
    pub(super) uts: Option<PathBuf>,
    /// Users.
    pub(super) user: Option<PathBuf>,
    /// Processes.
    pub(super) pid: Option<PathBuf>,
}

/// Files of a sandbox that its containers see.
#[derive(Debug, Clone, Default)]
pub(super) struct SandboxFiles {
    /// /etc/hosts
    pub(super) hosts: PathBuf,
    /// /etc/hostname
    pub(super) hostname: PathBuf,
    /// /etc/resolv.conf
    pub(super) resolv_conf: PathBuf,
    /// /dev/shm, unless the pod has the node's.
    pub(super) shm: PathBuf,
}

/// What this machine has.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Limits that can be kept.
    pub(super) kernel: Kernel,
    /// Whether SELinux is on.
    pub(super) selinux: bool,
    /// The lowest oom_score_adj that we may give, if we lack the privilege for less than our own.
    pub(super) lowest_oom_score_adj: Option<i64>,
}

impl Host {
    /// This one.
    pub(super) fn here() -> Self {
        let unified = nix::sys::statfs::statfs("/sys/fs/cgroup")
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
        Self {
            kernel: Kernel::probe(unified),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            lowest_oom_score_adj: resources::lowest_oom_score_adj(),
        }
    }
}

/// A specification, and what has to be done besides.
#[derive(Debug)]
pub(super) struct Made {
    /// The specification.
    pub(super) spec: Value,
    /// Volumes of the image: folders to make, and to fill with what the image has there, before the first start.
    pub(super) volumes: Vec<Volume>,
    /// What was asked for and left out, since this machine lacks it.
    pub(super) warnings: Vec<String>,
}

/// Writes the specification of a container.
pub(super) fn make(input: &Input<'_>) -> Result<Made, SpecError> {
    let config = input.container;
    if config.windows.is_some() {
        return Err(SpecError::unsupported("windows", "this node runs Linux"));
    }
    security::refuse_classes(&config.annotations)?;
    let context = security::context(config);
    let privileged = context.privileged;
    if privileged && !sandbox::context(input.pod).privileged {
        return Err(SpecError::invalid(
            "privileged",
            true,
            "the sandbox isn't: it has to be for a privileged container",
        ));
    }
    let mut warnings = Vec::new();
    let caps = security::capabilities(&context)?;
    let mut limits = resources::of_container(config, input.host, &mut warnings)?;
    let devices = devices::devices(config, privileged)?;
    limits.insert("devices".into(), devices.rules.into());
    let mut linux = json!({
        "namespaces": namespaces::namespaces(input, &context)?,
        "cgroupsPath": cgroups_path(sandbox::linux(input.pod).cgroup_parent.as_str(), input.driver, input.id)?,
        "resources": limits,
        "devices": devices.nodes,
        "maskedPaths": security::paths("masked_paths", &context.masked_paths, privileged)?,
        "readonlyPaths": security::paths("readonly_paths", &context.readonly_paths, privileged)?,
    });
    for (key, map) in namespaces::mappings(input.pod)? {
        linux[key] = map;
    }
    if let Some(filter) = security::seccomp(&context, &caps.all)? {
        linux["seccomp"] = filter;
    }
    security::check_selinux(&context, input.host)?;
    let mounts = mounts::mounts(input, &context)?;
    if let Some(propagation) = mounts.root_propagation {
        linux["rootfsPropagation"] = propagation.into();
    }
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "process": process::process(input, &context, &caps)?,
        "root": {"path": "rootfs", "readonly": context.readonly_rootfs},
        "mounts": mounts.list,
        "linux": linux,
        "annotations": annotations(input),
    });
    devices::inject(config, input.cdi, privileged, &mut spec)?;
    Ok(Made { spec, volumes: mounts.volumes, warnings })
}

/// Names of pod and container, by which shims and tools know them. Annotations of the kubelet's don't become the runtime's: some
/// mean something to it (CVE-2024-3154).
fn annotations(input: &Input<'_>) -> Value {
    let pod = input.pod.metadata.clone().unwrap_or_default();
    let image = input.container.image.clone().unwrap_or_default();
    let image_name = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    let container = input.container.metadata.clone().unwrap_or_default();
    json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": input.sandbox_id,
        "io.kubernetes.cri.sandbox-name": pod.name,
        "io.kubernetes.cri.sandbox-namespace": pod.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.uid,
        "io.kubernetes.cri.container-name": container.name,
        "io.kubernetes.cri.image-name": image_name,
    })
}
