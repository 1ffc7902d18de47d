//! What of a container is not its own: binds from the host, masks, namespaces of others, open files it got from its caller.
//! criu leaves those out of the images under a name, and at restore is told by that name what takes their place.
//!
//! The names are those of runc, so that images can go from one runtime to the other.

#![expect(clippy::disallowed_methods, reason = "procfs of the host, and namespaces that the caller names")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};

use super::CriuError;
use super::rpc::{Message, opt};
use crate::confine::cgroup::{Cgroup, ROOT};
use crate::plan::Plan;
use crate::plan::libc_flag::{NEWCGROUP, NEWIPC, NEWNET, NEWPID, NEWTIME, NEWUSER, NEWUTS};
use crate::plan::mounts::{MountStep, Source};
use crate::rootfs::resolve;

/// Where the kinds of stdio are kept beside the images.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";

/// What stands for masked files, in the images and outside.
const NULL: &str = "/dev/null";

/// A mount: where it is in the container, and what is bound there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outside {
    pub(crate) at: String,
    pub(crate) source: String,
}

/// The mounts that come from outside. `root` is the container's root, seen from wherever: links in it lead to other places in it.
pub(crate) fn mounts(plan: &Plan, bundle: &Path, cgroup: &Cgroup, root: &OwnedFd) -> Vec<Outside> {
    let mut found = Vec::new();
    let mut add = |at: &Path, source: &Path| {
        found.push(Outside { at: at.display().to_string(), source: source.display().to_string() });
    };
    let private_cgroups = (plan.namespaces.new | joined(plan)) & NEWCGROUP != 0;
    for step in &plan.mounts {
        let at = resolved(root, &step.destination);
        match &step.source {
            Source::Bind { path, .. } => add(&at, &bundle.join(path)),
            // A tree of its own is criu's to make.
            Source::Cgroup if private_cgroups => {}
            Source::Cgroup if cgroup.is_unified() => add(&at, &Path::new(ROOT).join(cgroup.path())),
            Source::Cgroup => {
                for hierarchy in cgroup.hierarchies() {
                    add(&at.join(&hierarchy.name), &hierarchy.mount_point().join(cgroup.path()));
                }
            }
            Source::Filesystem { .. } | Source::Remount { .. } => {}
        }
    }
    // In a user namespace devices are bound from the host.
    if plan.namespaces.in_user_namespace() && plan.populate_dev {
        for device in plan.devices.iter().filter(|device| device.kind != SFlag::S_IFIFO) {
            add(&resolved(root, &device.path), &device.path);
        }
    }
    found
}

fn joined(plan: &Plan) -> u64 {
    plan.namespaces.join.iter().map(|join| join.flag).fold(0, |all, flag| all | flag)
}

/// Where a path of config.json really is inside the root; as it is written, if it is not there.
fn resolved(root: &OwnedFd, path: &Path) -> PathBuf {
    let inside = |file: OwnedFd| {
        let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let top = std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).ok()?;
        Some(Path::new("/").join(real.strip_prefix(top).ok()?))
    };
    resolve::open(root, path).ok().and_then(inside).unwrap_or_else(|| path.to_owned())
}

/// Adds the mounts to the options of a dump.
pub(crate) fn dump_mounts(opts: &mut Message, plan: &Plan, bundle: &Path, cgroup: &Cgroup, root: &OwnedFd) {
    for mount in mounts(plan, bundle, cgroup, root) {
        opts.pair(opt::EXT_MNT, &mount.at, &mount.at);
    }
    for path in &plan.masked_paths {
        let is_directory = |file: OwnedFd| {
            fstat(&file).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
        };
        // A masked directory is a tmpfs inside; one that is not there was not masked.
        if let Ok(false) = resolve::open(root, Path::new(path)).and_then(is_directory) {
            opts.pair(opt::EXT_MNT, path, NULL);
        }
    }
}

/// Adds the mounts to the options of a restore.
pub(crate) fn restore_mounts(opts: &mut Message, plan: &Plan, bundle: &Path, cgroup: &Cgroup, root: &OwnedFd) {
    for mount in mounts(plan, bundle, cgroup, root) {
        opts.pair(opt::EXT_MNT, &mount.at, &mount.source);
    }
    if !plan.masked_paths.is_empty() {
        opts.pair(opt::EXT_MNT, NULL, NULL);
    }
}

/// Steps whose mount points have to be made before criu comes: not those inside a file system that criu makes itself.
pub(crate) fn points(plan: &Plan) -> impl Iterator<Item = &MountStep> {
    let inside = |step: &MountStep, before: &[MountStep]| {
        let made = |other: &&MountStep| !other.source.is_bind() && step.destination != other.destination;
        before.iter().filter(made).any(|other| step.destination.starts_with(&other.destination))
    };
    let is_made = |step: &MountStep| matches!(step.source, Source::Cgroup | Source::Remount { .. });
    let steps = plan.mounts.iter().enumerate();
    steps.filter(move |(at, step)| !is_made(step) && !inside(step, &plan.mounts[..*at])).map(|(_, step)| step)
}

/// criu's name of a namespace that it leaves alone, and the word for its kind.
fn left_alone(flag: u64) -> Option<(&'static str, &'static str)> {
    match flag {
        NEWNET => Some(("net", "extRootNetNS")),
        NEWPID => Some(("pid", "extRootPidNS")),
        _ => None,
    }
}

/// Adds the joined namespaces to the options of a dump.
pub(crate) fn dump_namespaces(opts: &mut Message, plan: &Plan) -> Result<(), CriuError> {
    for join in &plan.namespaces.join {
        let Some((kind, name)) = left_alone(join.flag) else { continue };
        let look = |cause| CriuError::Look { what: join.path.display().to_string(), cause };
        let inode = nix::sys::stat::stat(&join.path).map_err(look)?.st_ino;
        opts.text(opt::EXTERNAL, &format!("{kind}[{inode}]:{name}"));
    }
    Ok(())
}

/// Adds the joined namespaces to the options of a restore; criu inherits the files.
pub(crate) fn restore_namespaces(opts: &mut Message, plan: &Plan) -> Result<Vec<OwnedFd>, CriuError> {
    let mut files = Vec::new();
    for join in &plan.namespaces.join {
        let shown = join.path.display().to_string();
        if let Some((_, name)) = left_alone(join.flag) {
            let file = nix::fcntl::open(&join.path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
            let file = file.map_err(|cause| CriuError::Look { what: shown, cause })?;
            inherit(opts, name, file.as_raw_fd());
            files.push(file);
            continue;
        }
        let kind = match join.flag {
            NEWIPC => "ipc",
            NEWUTS => "uts",
            NEWUSER => "user",
            NEWTIME => "time",
            _ => {
                let feature = "restoring into a cgroup namespace or mount namespace of somebody else";
                return Err(CriuError::Missing { feature, needs: "a criu that can; none does so far" });
            }
        };
        opts.pair(opt::JOIN_NS, kind, &shown);
    }
    Ok(files)
}

/// Adds a descriptor that takes the place of what has this name in the images.
fn inherit(opts: &mut Message, name: &str, number: i32) {
    let mut message = Message::default();
    message.text(1, name);
    message.number(2, i64::from(number));
    opts.message(opt::INHERIT_FD, &message);
}

/// What the first process has as stdio, by the names under which criu knows it: a pipe by itself; a file that is not in any mount
/// of the container (its caller's null device or log) by mount and inode. Anything else is the container's own.
pub(crate) fn stdio(pid: i32) -> Vec<String> {
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    (0..3).map(|number| stdio_name(pid, number, &mounts).unwrap_or_default()).collect()
}

fn stdio_name(pid: i32, number: i32, mounts: &str) -> Option<String> {
    let path = format!("/proc/{pid}/fd/{number}");
    let link = std::fs::read_link(&path).ok()?.display().to_string();
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim)?;
    let inode = nix::sys::stat::stat(path.as_str()).ok()?.st_ino;
    Some(name_of(&link, id, inode, mounts))
}

fn name_of(link: &str, mount: &str, inode: u64, mounts: &str) -> String {
    let known = mounts.lines().any(|line| line.split(' ').next() == Some(mount));
    match mount.parse::<u32>() {
        Ok(mount) if link.starts_with('/') && !known => format!("file[{mount:x}:{inode:x}]"),
        _ => link.to_owned(),
    }
}

/// Adds stdio to the options of a dump.
pub(crate) fn dump_stdio(opts: &mut Message, names: &[String]) {
    for name in names.iter().filter(|name| name.starts_with("file[")) {
        opts.text(opt::EXTERNAL, name);
    }
}

/// Adds stdio to the options of a restore: ours takes the place of what it was. One name may stand for several.
///
/// Only a pipe can take the place of a pipe's end, and a file that of a file, whose position criu sets. A stdin that was the null
/// device therefore stays it when ours is a pipe. What is opened for that must be open when criu starts.
pub(crate) fn restore_stdio(opts: &mut Message, names: &[String]) -> Vec<OwnedFd> {
    let mut opened = Vec::new();
    for (at, name) in names.iter().enumerate().take(3) {
        let told = names[..at].contains(name);
        if told || !(name.starts_with("file[") || name.contains("pipe:")) {
            continue;
        }
        let null = (at == 0 && is_pipe(0)).then(|| null_if(name)).flatten();
        inherit(opts, name, null.as_ref().map_or(at as i32, AsRawFd::as_raw_fd));
        opened.extend(null);
    }
    opened
}

fn is_pipe(number: i32) -> bool {
    let found = nix::sys::stat::stat(format!("/proc/self/fd/{number}").as_str());
    found.is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO)
}

/// The host's null device, if that is what has this name.
fn null_if(name: &str) -> Option<OwnedFd> {
    let null = nix::fcntl::open(NULL, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let inode = fstat(&null).ok()?.st_ino;
    (name.starts_with("file[") && name.ends_with(&format!(":{inode:x}]"))).then_some(null)
}

/// The cgroups of a process as criu's roots: what was in the container's cgroup then goes into this one.
pub(crate) fn cgroup_roots(opts: &mut Message, pid: nix::unistd::Pid) -> Result<(), CriuError> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|error| CriuError::Look {
        what: "the cgroup".into(),
        cause: sys::Errno::from_raw(error.raw_os_error().unwrap_or(0)),
    })?;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (parts.next(), parts.next()) {
            // Hierarchies of several controllers are known by each of them.
            for controller in controllers.split(',') {
                opts.pair(opt::CG_ROOT, controller, path);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_are_named_by_mount_and_inode() {
        let mounts = "26 1 0:5 / / rw - ext4 x rw\n30 26 0:6 / /dev rw - tmpfs x rw\n";
        assert_eq!(name_of("/dev/null", "255", 16, mounts), "file[ff:10]");
        assert_eq!(name_of("/dev/null", "30", 16, mounts), "/dev/null");
        assert_eq!(name_of("pipe:[77]", "14", 77, mounts), "pipe:[77]");
        assert_eq!(name_of("socket:[5]", "9", 5, mounts), "socket:[5]");
    }

    #[test]
    fn links_in_the_root_lead_inside() {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::create_dir_all(dir.path().join("run/x")).expect("folder");
        std::fs::create_dir(dir.path().join("var")).expect("folder");
        std::os::unix::fs::symlink("/run", dir.path().join("var/run")).expect("link");
        let root = OwnedFd::from(std::fs::File::open(dir.path()).expect("open"));
        assert_eq!(resolved(&root, Path::new("/var/run/x")), Path::new("/run/x"));
        assert_eq!(resolved(&root, Path::new("/not/there")), Path::new("/not/there"));
        assert_eq!(resolved(&root, Path::new("/")), Path::new("/"));
    }

    #[test]
    fn stdio_is_told_once() {
        let names = ["pipe:[1]", "file[1:2]", "file[1:2]"].map(str::to_owned);
        let (mut message, mut expected) = (Message::default(), Message::default());
        restore_stdio(&mut message, &names);
        inherit(&mut expected, "pipe:[1]", 0);
        inherit(&mut expected, "file[1:2]", 1);
        assert_eq!(message, expected);
    }

    #[test]
    fn the_null_device_is_known_by_its_inode() {
        let inode = nix::sys::stat::stat(NULL).expect("null device").st_ino;
        assert!(null_if(&format!("file[1a:{inode:x}]")).is_some());
        for other in [format!("file[1a:1{inode:x}]"), format!("pipe:[{inode}]"), NULL.to_owned()] {
            assert!(null_if(&other).is_none(), "{other}");
        }
    }

    #[test]
    fn only_points_outside_of_made_file_systems_are_made() {
        let mut config = crate::plan::tests::minimal();
        let mount = |destination: &str, kind: &str| serde_json::json!({"destination": destination, "type": kind, "source": "/x"});
        config["mounts"] = serde_json::json!([
            mount("/dev", "tmpfs"),
            mount("/dev/pts", "devpts"),
            mount("/data", "bind"),
            mount("/data/in", "bind"),
            mount("/sys", "sysfs"),
            mount("/sys/fs/cgroup", "cgroup"),
            mount("/devices", "tmpfs")
        ]);
        let spec: crate::spec::Spec = serde_json::from_value(config).expect("a spec");
        let plan = Plan::new(&spec, Path::new("/bundle"), crate::plan::Options::default()).expect("a plan");
        let found: Vec<_> = points(&plan).map(|step| step.destination.to_str().expect("utf-8")).collect();
        assert_eq!(found, ["/dev", "/data", "/data/in", "/sys", "/devices"]);
    }
}
