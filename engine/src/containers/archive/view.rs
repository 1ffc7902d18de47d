//! The file system of a container as its processes see it, with volumes and bind mounts, held by a descriptor of its root
//! and one of its mount namespace: both outlive the container, and vanish with this process even by SIGKILL.
//!
//! Of a living container it is the namespace of its first process. Of any other, a namespace is made that holds nothing
//! but the container's mounts. Nobody enters a container's namespace to run code there (CVE-2019-14271): all further work
//! is openat2(2) below the root descriptor, from our own namespace.

use crate::containers::{
    layers::LayersError,
    overlay::{self, Upper},
    record::{MountKind, MountPoint},
    sources::{Look, open_below},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    mount::{MsFlags, mount},
    sched::CloneFlags,
    sys::stat::{Mode, mkdirat},
};
use proto::containerd::types::Mount;
use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};
use sys::{
    mount::{Filesystem, Reach, attach, attr, clone_tree, pivot_to_cwd, set_attributes},
    ns,
    path::{Within, open_within},
};

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Its process is not there, or is no longer this container's.
    #[error("its process has ended")]
    Ended,
    #[error("open {what} of its process")]
    Process {
        what: &'static str,
        #[source]
        cause: Errno,
    },
    #[error("{step}")]
    Build {
        step: String,
        #[source]
        cause: Errno,
    },
    #[error(transparent)]
    Layers(#[from] LayersError),
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}

/// What a view of a container without a process is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The snapshot.
    pub snapshot: Vec<Mount>,
    /// What is mounted into the root.
    pub mounts: Vec<MountPoint>,
    /// Whether what is written stays. Else it is lost, and the snapshot may be in use by others.
    pub keep: bool,
    /// The root can't be written to.
    pub read_only: bool,
    /// Any folder: in the new namespace it is mounted over.
    pub place: PathBuf,
}

/// The root, and the namespace that keeps what is mounted there.
pub struct View {
    /// Everything is looked up below this.
    pub root: OwnedFd,
    _namespace: Option<OwnedFd>,
    /// What else must stay as it is until all is read.
    _kept: Option<Look>,
}

impl View {
    /// A folder of the host alone, which somebody else keeps mounted.
    pub fn of_folder(root: OwnedFd) -> Self {
        Self { root, _namespace: None, _kept: None }
    }

    /// What a living process sees. A pid may have been given to another process since it was noted: only one in a cgroup of
    /// this container counts.
    pub fn of_process(pid: u32, id: &str) -> Result<Self, ViewError> {
        let open = |what: &'static str| {
            move |cause| match cause {
                Errno::ENOENT | Errno::ESRCH => ViewError::Ended,
                cause => ViewError::Process { what, cause },
            }
        };
        let folder = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // The folder stays that of this very process, whatever its number is used for later.
        let process =
            nix::fcntl::open(format!("/proc/{pid}").as_str(), folder, Mode::empty()).map_err(open("the folder"))?;
        let root = openat(&process, "root", folder, Mode::empty()).map_err(open("the root"))?;
        let read = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace = openat(&process, "ns/mnt", read, Mode::empty()).map_err(open("the mount namespace"))?;
        let cgroups = openat(&process, "cgroup", read, Mode::empty()).map_err(open("the cgroups"))?;
        let mut text = String::new();
        File::from(cgroups).read_to_string(&mut text).map_err(|_| ViewError::Ended)?;
        if !text.contains(id) {
            return Err(ViewError::Ended);
        }
        Ok(Self { root, _namespace: Some(namespace), _kept: None })
    }

    /// The same, with what its mounts need.
    pub fn keeping(self, look: Look) -> Self {
        Self { _kept: Some(look), ..self }
    }

    /// Device and inode of a folder of another mount than the root's.
    pub fn identity(&self, folder: &str) -> Option<(u64, u64)> {
        let folder = open_within(&self.root, folder, OFlag::O_PATH | OFlag::O_DIRECTORY, 0, Within::Root).ok()?;
        let stat = nix::sys::stat::fstat(&folder).ok()?;
        (mount_id(&folder) != mount_id(&self.root)).then_some((stat.st_dev, stat.st_ino))
    }

    /// What its next process will see.
    pub fn build(plan: &Plan) -> Result<Self, ViewError> {
        // On a thread of its own, since a namespace can't be left again.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("archive".into());
            let built = thread.spawn_scoped(scope, || build(plan)).map_err(ViewError::Thread)?;
            built.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn build(plan: &Plan) -> Result<View, ViewError> {
    let step = |step: &str| {
        let step = step.to_owned();
        move |cause| ViewError::Build { step, cause }
    };
    let none = None::<&str>;
    ns::unshare(CloneFlags::CLONE_NEWNS.bits() as u64).map_err(step("make a mount namespace"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(step("keep its mounts private"))?;
    let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let place = || nix::fcntl::open(plan.place.as_path(), path, Mode::empty()).map_err(step("open its place"));
    let scratch = Filesystem::open("tmpfs").and_then(|tmpfs| tmpfs.mount(0)).map_err(step("mount a tmpfs"))?;
    attach(&scratch, place()?).map_err(step("attach the tmpfs"))?;
    for name in ["root", "upper", "work"] {
        mkdirat(&scratch, name, Mode::S_IRWXU).map_err(step("make a folder"))?;
    }
    let detached = root_mount(plan).map_err(step("mount its root file system"))?;
    let at = nix::fcntl::open(&plan.place.join("root"), path, Mode::empty()).map_err(step("open its place"))?;
    attach(&detached, at).map_err(step("attach its root file system"))?;
    for mount in plan.mounts.iter().filter(|mount| mount.kind != MountKind::Tmpfs) {
        let failed = |cause| ViewError::Build { step: format!("mount {}", mount.destination), cause };
        add(&detached, mount).map_err(failed)?;
    }
    if plan.read_only {
        set_attributes(&detached, Reach::One, attr::RDONLY, 0, None).map_err(step("make it read-only"))?;
    }
    let read = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace =
        nix::fcntl::open("/proc/thread-self/ns/mnt", read, Mode::empty()).map_err(step("open the mount namespace"))?;
    // Nothing of the host's mounts stays behind in it, where they would be in use for as long as a client reads.
    nix::unistd::fchdir(&detached).map_err(step("enter"))?;
    pivot_to_cwd().map_err(step("leave the host's mounts"))?;
    let root = nix::fcntl::open("/", path, Mode::empty()).map_err(step("open its root"))?;
    Ok(View { root, _namespace: Some(namespace), _kept: None })
}

/// The root file system, detached. One that isn't kept has a layer above that goes with the namespace.
fn root_mount(plan: &Plan) -> Result<OwnedFd, Errno> {
    let [mount] = plan.snapshot.as_slice() else { return Err(Errno::EINVAL) };
    let attributes = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    let clone = |source: &str| {
        let tree = clone_tree(nix::fcntl::AT_FDCWD, Path::new(source), Reach::One)?;
        set_attributes(&tree, Reach::One, attributes, 0, None)?;
        Ok(tree)
    };
    let value = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key));
    let upper = value("upperdir=").into_iter();
    let lower = value("lowerdir=").into_iter().flat_map(|list| list.split(':')).filter(|folder| !folder.is_empty());
    let scratch = |name: &str| plan.place.join(name).display().to_string();
    let layered = |lower: &[&str], upper: &str, work: &str| {
        overlay::detached(lower, Some(Upper { folder: upper, work }), attributes)
    };
    match (mount.r#type.as_str(), plan.keep) {
        ("bind", true) => clone(&mount.source),
        // Where overlayfs can't be used the folder itself has to do; it is only read.
        ("bind", false) => {
            layered(&[mount.source.as_str()], &scratch("upper"), &scratch("work")).or_else(|_| clone(&mount.source))
        }
        ("overlay", true) => {
            let (Some(upper), Some(work)) = (value("upperdir="), value("workdir=")) else { return Err(Errno::EROFS) };
            let lower: Vec<&str> = lower.collect();
            if lower.is_empty() {
                return clone(upper);
            }
            layered(&lower, upper, work)
        }
        ("overlay", false) => {
            let lower: Vec<&str> = upper.chain(lower).collect();
            layered(&lower, &scratch("upper"), &scratch("work"))
        }
        _ => Err(Errno::ENODEV),
    }
}

fn add(root: &OwnedFd, wanted: &MountPoint) -> Result<(), Errno> {
    let reach = if wanted.non_recursive { Reach::One } else { Reach::Tree };
    let tree = match wanted.subpath.as_str() {
        "" => clone_tree(nix::fcntl::AT_FDCWD, Path::new(&wanted.source), reach)?,
        // A link in it leads nowhere outside.
        subpath => clone_tree(open_below(Path::new(&wanted.source), subpath)?, c"", reach)?,
    };
    if !wanted.writable {
        set_attributes(&tree, Reach::One, attr::RDONLY, 0, None)?;
    }
    let stat = nix::sys::stat::fstat(&tree)?;
    let is_folder = stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR;
    let at = match open_within(root, wanted.destination.as_str(), OFlag::O_PATH, 0, Within::Root) {
        Err(Errno::ENOENT) => make_destination(root, &wanted.destination, is_folder)?,
        other => other?,
    };
    attach(&tree, at)
}

/// A place for a mount, as the runtime makes it at the start.
fn make_destination(root: &OwnedFd, destination: &str, is_folder: bool) -> Result<OwnedFd, Errno> {
    let clean = destination.trim_matches('/');
    if is_folder {
        return make_folders(root, clean);
    }
    let (parent, name) = clean.rsplit_once('/').unwrap_or(("", clean));
    let parent = make_folders(root, parent)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(&parent, name, flags, Mode::from_bits_truncate(0o644))
}

/// Opens a folder below the root, making what is missing of its path. Every step is by descriptor and stays inside.
pub fn make_folders(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let mut folder = open_within(root, ".", flags, 0, Within::Root)?;
    let mut walked = String::new();
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        walked.push('/');
        walked.push_str(name);
        folder = match open_within(root, walked.as_str(), flags, 0, Within::Root) {
            Err(Errno::ENOENT) => {
                match mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
                open_within(root, walked.as_str(), flags, 0, Within::Root)?
            }
            other => other?,
        };
    }
    Ok(folder)
}

/// The number of the mount that something is on.
pub(super) fn mount_id(file: &OwnedFd) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}
