//! Mounts: the kernel's file systems, those of the request, the sandbox's files, volumes of the image. Of two at one place that of
//! the request counts.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Component, Path, PathBuf},
};

use ::spec::propagation::{MountTable, Need};
use nix::{errno::Errno, fcntl::OFlag};
use proto::runtime::v1::{self as cri, MountPropagation, NamespaceMode};
use serde_json::{Value, json};
use sys::path::{Within, open_within};

use super::{Input, SpecError, namespaces, sandbox};

/// Options that the kubelet may add to a mount.
const MORE_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// A folder that the image wants to be a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cri) struct Volume {
    /// Where it is in the container, and in the image.
    pub(in crate::cri) destination: String,
    /// The folder of the host that has to be made, and filled with what the image has there.
    pub(in crate::cri) source: PathBuf,
}

/// All mounts of a container.
#[derive(Debug)]
pub(super) struct Mounts {
    pub(super) list: Vec<Value>,
    pub(super) volumes: Vec<Volume>,
    /// `linux.rootfsPropagation`: what is shared is so only below a root that is.
    pub(super) root_propagation: Option<&'static str>,
}

/// Plans them, the kernel's first, then the others from the top of the tree down.
pub(super) fn mounts(input: &Input<'_>, context: &cri::LinuxContainerSecurityContext) -> Result<Mounts, SpecError> {
    let mut planned = Vec::new();
    let mut root_propagation = None;
    for (index, mount) in input.container.mounts.iter().enumerate() {
        let at = destination("container_path", &mount.container_path)?;
        root_propagation = root_propagation.max(propagation(mount, &at)?.1);
        let entry = requested(input, index, mount, &at)?;
        planned.push((at, entry));
    }
    let taken: BTreeSet<String> = planned.iter().map(|(at, _)| at.clone()).collect();
    for (at, entry) in of_sandbox(input, context)? {
        if !taken.contains(at) {
            planned.push((at.to_owned(), entry));
        }
    }
    let mut volumes = Vec::new();
    for (index, path) in input.image.volumes.keys().enumerate() {
        let at = destination("volume of the image", path)?;
        // Two spellings of one place are one volume.
        if planned.iter().any(|(other, _)| *other == at) {
            continue;
        }
        let source = input.volumes.join(index.to_string());
        let mut entry = bind(&at, &source, &["rprivate"]);
        let_map_ids(&mut entry, input.pod)?;
        planned.push((at.clone(), entry));
        volumes.push(Volume { destination: at, source });
    }
    // What lies higher would hide what is mounted below it before.
    planned.sort_by_key(|(at, _)| Path::new(at).components().count());
    let covered = |at: &str| planned.iter().any(|(over, _)| Path::new(at).starts_with(over));
    let mut list = of_kernel(input, context)?;
    list.retain(|mount| !covered(mount["destination"].as_str().unwrap_or_default()));
    list.extend(planned.into_iter().map(|(_, entry)| entry));
    Ok(Mounts { list, volumes, root_propagation: root_propagation.map(RootPropagation::word) })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum RootPropagation {
    Slave,
    Shared,
}

impl RootPropagation {
    fn word(self) -> &'static str {
        match self {
            Self::Slave => "rslave",
            Self::Shared => "rshared",
        }
    }
}

/// A path of the container: from its root, without detours. What leads out of the root ends there, as the kernel has it.
pub(super) fn destination(field: &str, path: &str) -> Result<String, SpecError> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::ParentDir => drop(parts.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if parts.is_empty() || path.chars().any(char::is_control) {
        return Err(SpecError::invalid(field, path, "is no place below the container's root"));
    }
    let names: Vec<_> = parts.iter().map(|name| name.to_string_lossy()).collect();
    Ok(format!("/{}", names.join("/")))
}

fn bind(at: &str, source: &Path, options: &[&str]) -> Value {
    let options: Vec<&str> = ["rbind"].iter().chain(options).copied().collect();
    json!({"type": "bind", "destination": at, "source": source.display().to_string(), "options": options})
}

/// Files and volumes that belong to root of the node belong to root of the pod's user namespace in there.
fn let_map_ids(entry: &mut Value, pod: &cri::PodSandboxConfig) -> Result<(), SpecError> {
    for (key, map) in namespaces::mappings(pod)? {
        entry[key] = map;
    }
    Ok(())
}

/// The propagation in the words of mount(8), and what it takes of the root.
fn propagation(mount: &cri::Mount, at: &str) -> Result<(&'static str, Option<RootPropagation>), SpecError> {
    let number = mount.propagation;
    match MountPropagation::try_from(number) {
        Ok(MountPropagation::PropagationPrivate) => Ok(("rprivate", None)),
        Ok(MountPropagation::PropagationHostToContainer) => Ok(("rslave", Some(RootPropagation::Slave))),
        Ok(MountPropagation::PropagationBidirectional) => Ok(("rshared", Some(RootPropagation::Shared))),
        Err(_) => Err(SpecError::invalid(format!("mount on {at}: propagation"), number, "is not known")),
    }
}

/// A mount of the request.
fn requested(input: &Input<'_>, index: usize, mount: &cri::Mount, at: &str) -> Result<Value, SpecError> {
    let refused =
        |field: &str, value: &str, why| Err(SpecError::invalid(format!("mount on {at}: {field}"), value, why));
    let (propagation, _) = propagation(mount, at)?;
    let mut options = vec![propagation];
    // One that is writable has no word for it: "rw" would say so of what is read-only on the node.
    match (mount.readonly, mount.recursive_read_only) {
        (false, false) => {}
        (true, false) => options.push("ro"),
        (false, true) => return refused("recursive_read_only", "true", "needs readonly beside it"),
        (true, true) if propagation != "rprivate" => {
            return refused(
                "recursive_read_only",
                "true",
                "can't be had with propagation: what comes would be writable",
            );
        }
        (true, true) if !input.recursive_read_only => {
            let what = format!("mount on {at}: recursive_read_only");
            return Err(SpecError::unsupported(what, "the handler's runtime doesn't know rro"));
        }
        (true, true) => options.push("rro"),
    }
    for option in &mount.mount_options {
        match MORE_OPTIONS.iter().find(|known| *known == option) {
            Some(known) if !options.contains(known) => options.push(known),
            Some(_) => {}
            None => return refused("mount_options", option, "is none of noexec, nodev and nosuid"),
        }
    }
    let source = match &mount.image {
        Some(_) => {
            if !mount.host_path.is_empty() {
                return refused("host_path", &mount.host_path, "is there beside an image");
            }
            if !mount.readonly {
                return refused("readonly", "false", "a mount of an image can't be written to");
            }
            if propagation != "rprivate" {
                return refused("propagation", propagation, "means nothing for an image");
            }
            // Kubernetes promises it (`VolumeSource.image`).
            if !options.contains(&"noexec") {
                options.push("noexec");
            }
            let top = input
                .image_mounts
                .get(&index)
                .ok_or_else(|| SpecError::Missing(format!("mount on {at}: its image is not mounted")))?;
            match below(&top.root, &mount.image_sub_path, at)? {
                path if path.as_os_str().is_empty() => top.at.clone(),
                path => top.at.join(path),
            }
        }
        None if !mount.image_sub_path.is_empty() => {
            return refused("image_sub_path", &mount.image_sub_path, "is there without an image");
        }
        None => on_host(&mount.host_path, at)?,
    };
    if let Some(need) = Need::of(propagation) {
        let table = MountTable::read().map_err(SpecError::MountTable)?;
        need.met(&table, &source).map_err(|mount| SpecError::NotShared {
            at: at.to_owned(),
            source_path: source.clone(),
            mount,
            need,
        })?;
    }
    let mut entry = bind(at, &source, &options);
    match (mount.uid_mappings.is_empty(), mount.gid_mappings.is_empty()) {
        (true, true) => {}
        // Its layers have them.
        (false, false) if mount.image.is_some() => {
            namespaces::map("uidMappings", &mount.uid_mappings)?;
            namespaces::map("gidMappings", &mount.gid_mappings)?;
        }
        (false, false) => {
            entry["uidMappings"] = namespaces::map("uidMappings", &mount.uid_mappings)?;
            entry["gidMappings"] = namespaces::map("gidMappings", &mount.gid_mappings)?;
        }
        _ => return refused("uidMappings", "", "either both of uids and gids are mapped, or none"),
    }
    Ok(entry)
}

/// A source on the node by its real path. A folder that isn't there is made, as every runtime does for the kubelet.
fn on_host(path: &str, at: &str) -> Result<PathBuf, SpecError> {
    let source = Path::new(path);
    if !source.is_absolute() || path.contains('\0') {
        return Err(SpecError::invalid(format!("mount on {at}: host_path"), path, "is no absolute path"));
    }
    let failed =
        |what| move |cause| SpecError::Source { at: at.to_owned(), what, source_path: source.to_owned(), cause };
    match source.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(source).map_err(failed("make folder"))?;
            source.canonicalize().map_err(failed("find"))
        }
        found => found.map_err(failed("find")),
    }
}

/// A folder of an image, from its root. Nobody writes to that, so that what is found stays what it is; links lead no further than the
/// image's own root.
fn below(top: &OwnedFd, sub_path: &str, at: &str) -> Result<PathBuf, SpecError> {
    if sub_path.is_empty() {
        return Ok(PathBuf::new());
    }
    let relative = Path::new(sub_path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        || sub_path.contains('\0')
    {
        let field = format!("mount on {at}: image_sub_path");
        return Err(SpecError::invalid(field, sub_path, "is no path below the image's root"));
    }
    let failed = |cause: io::Error| SpecError::Source {
        at: at.to_owned(),
        what: "find, in the image, folder",
        source_path: relative.to_owned(),
        cause,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let found = match open_within(top, relative, flags, 0, Within::Root) {
        // As containerd has it: what a single file would be mounted on isn't settled (KEP 4639).
        Err(Errno::ENOTDIR) => {
            let field = format!("mount on {at}: image_sub_path");
            return Err(SpecError::invalid(field, sub_path, "is no folder of the image"));
        }
        found => found.map_err(|errno| failed(errno.into()))?,
    };
    let path = |fd: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(failed);
    // Both are seen from the same mount, wherever that is, if anywhere.
    let (root, found) = (path(top)?, path(&found)?);
    found.strip_prefix(&root).map(Path::to_owned).map_err(|_| failed(Errno::EXDEV.into()))
}

/// The sandbox's files, at their places.
fn of_sandbox(
    input: &Input<'_>,
    context: &cri::LinuxContainerSecurityContext,
) -> Result<Vec<(&'static str, Value)>, SpecError> {
    let files = input.files;
    let mut list = Vec::new();
    for (at, source) in
        [("/etc/hostname", &files.hostname), ("/etc/hosts", &files.hosts), ("/etc/resolv.conf", &files.resolv_conf)]
    {
        let options: &[&str] = if context.readonly_rootfs { &["rprivate", "ro"] } else { &["rprivate"] };
        let mut entry = bind(at, source, options);
        let_map_ids(&mut entry, input.pod)?;
        list.push((at, entry));
    }
    let options = sandbox::context(input.pod).namespace_options.unwrap_or_default();
    let shm = if options.ipc == NamespaceMode::Node as i32 { Path::new("/dev/shm") } else { &files.shm };
    list.push(("/dev/shm", bind("/dev/shm", shm, &["rprivate", "nosuid", "noexec", "nodev"])));
    Ok(list)
}

/// File systems that every container has of the kernel.
fn of_kernel(input: &Input<'_>, context: &cri::LinuxContainerSecurityContext) -> Result<Vec<Value>, SpecError> {
    let access = if context.privileged { "rw" } else { "ro" };
    let mount = |kind: &str, at: &str, options: &[&str]| json!({"type": kind, "destination": at, "source": kind, "options": options});
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    // The group of terminals has to be there in the pod's user namespace.
    let groups = namespaces::mappings(input.pod)?.into_iter().find(|(key, _)| *key == "gidMappings");
    if groups.is_none_or(|(_, map)| map[0]["size"].as_u64().is_some_and(|size| size > 5)) {
        terminals.push("gid=5");
    }
    Ok(vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", &terminals),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
        mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ])
}
