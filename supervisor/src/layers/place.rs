//! What mounts refer to, as open directories: a bind mount is its source; everything else is mounted in a mount namespace
//! that ends at once, so that nothing of it is seen, or left behind by a crash.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::CloneFlags,
    sys::stat::Mode,
};
use proto::{containerd::types::Mount, kind::ErrorKind};
use sys::{mount::Reach, userns::Maps};

use super::apply::Target;
use crate::failure::Failure;

/// Why mounts can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// Nothing to write to.
    #[error("mount {0} is read-only")]
    ReadOnly(String),
    /// A kind of mount that isn't made here.
    #[error("mount {what}: {why} is not supported")]
    Unsupported {
        /// Type and source.
        what: String,
        /// What isn't.
        why: String,
    },
    /// The kernel refuses.
    #[error("mount {what}")]
    Mount {
        /// Type and source.
        what: String,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// Owners can't be changed for a mount.
    #[error("mount {what} with other owners")]
    Ids {
        /// Type and source.
        what: String,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// A folder can't be opened.
    #[error("open {at}")]
    Open {
        /// The folder.
        at: PathBuf,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// A thread with a mount namespace of its own can't be had.
    #[error("make a mount namespace")]
    Namespace(#[source] io::Error),
}

impl Failure for PlaceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::ReadOnly(_) => ErrorKind::FailedPrecondition,
            Self::Unsupported { .. } => ErrorKind::Unimplemented,
            Self::Ids { cause: Errno::EINVAL, .. } => ErrorKind::FailedPrecondition,
            Self::Mount { cause, .. } | Self::Ids { cause, .. } | Self::Open { cause, .. } => {
                ErrorKind::of_io(&(*cause).into())
            }
            Self::Namespace(cause) => ErrorKind::of_io(cause),
        }
    }
}

/// What mounts are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// As they say.
    AsTold,
    /// Only for reading. An overlay then has its upper folder as topmost of the lower ones: somebody else may have it
    /// mounted for writing at the same time.
    ReadOnly,
}

fn what(mount: &Mount) -> String {
    format!("{} {}", mount.r#type, mount.source)
}

fn is_bind(mount: &Mount) -> bool {
    matches!(mount.r#type.as_str(), "bind" | "rbind") || mount.options.iter().any(|o| o == "bind" || o == "rbind")
}

fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(name))
}

pub(crate) fn open_folder(at: &Path) -> Result<OwnedFd, PlaceError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(at, flags, Mode::empty()).map_err(|cause| PlaceError::Open { at: at.to_owned(), cause })
}

/// The tree that mounts show; `None` for no mounts, which is an empty one.
pub(crate) fn readable(mounts: &[Mount], scratch: &Path) -> Result<Option<OwnedFd>, PlaceError> {
    match mounts {
        [] => Ok(None),
        [only] if is_bind(only) => open_folder(Path::new(&only.source)).map(Some),
        _ => mounted(mounts, scratch, Access::ReadOnly).map(Some),
    }
}

/// Where a layer for these mounts is unpacked. For an overlay whose folders `is_ours`, straight into the upper one;
/// nobody can have it mounted yet.
pub(crate) fn writable(
    mounts: &[Mount],
    scratch: &Path,
    is_ours: impl Fn(&Path) -> bool,
) -> Result<Target, PlaceError> {
    if let Some(read_only) = mounts.iter().find(|m| m.options.iter().any(|o| o == "ro")) {
        return Err(PlaceError::ReadOnly(what(read_only)));
    }
    if let [only] = mounts {
        if is_bind(only) {
            return open_folder(Path::new(&only.source)).map(Target::merged);
        }
        if only.r#type == "overlay" {
            let Some(upper) = option(only, "upperdir=") else { return Err(PlaceError::ReadOnly(what(only))) };
            let lowers: Vec<PathBuf> = option(only, "lowerdir=").unwrap_or_default().split(':').map(resolved).collect();
            let upper = resolved(upper);
            if is_ours(&upper) && lowers.iter().all(|lower| is_ours(lower)) {
                return Target::overlay(&upper, &lowers);
            }
        }
    }
    mounted(mounts, scratch, Access::AsTold).map(Target::merged)
}

fn resolved(path: impl AsRef<Path>) -> PathBuf {
    fs::canonicalize(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned())
}

/// The folders that an overlay or a bind mount consists of, topmost first; `None` for other mounts.
pub(crate) fn folders(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    match mounts {
        [] => Some(Vec::new()),
        [only] if is_bind(only) => Some(vec![resolved(&only.source)]),
        [only] if only.r#type == "overlay" => {
            let lowers = option(only, "lowerdir=")?.split(':');
            Some(option(only, "upperdir=").into_iter().chain(lowers).map(resolved).collect())
        }
        _ => None,
    }
}

/// Mounts over `scratch`, each over the one before, in a mount namespace of a thread that ends then; what stays is the
/// open top, and the mounts stay as long as that does.
pub(crate) fn mounted(mounts: &[Mount], scratch: &Path, access: Access) -> Result<OwnedFd, PlaceError> {
    within_nobodys_table(mounts, scratch, access, open_folder)
}

/// The same as a mount that is in no table and can be put into one.
pub(crate) fn detached(mounts: &[Mount], scratch: &Path) -> Result<OwnedFd, PlaceError> {
    within_nobodys_table(mounts, scratch, Access::AsTold, |at| {
        let cloned = sys::mount::clone_tree(nix::fcntl::AT_FDCWD, at, Reach::One);
        cloned.map_err(|cause| PlaceError::Open { at: at.to_owned(), cause })
    })
}

fn within_nobodys_table(
    mounts: &[Mount],
    scratch: &Path,
    access: Access,
    take: fn(&Path) -> Result<OwnedFd, PlaceError>,
) -> Result<OwnedFd, PlaceError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mount".into()).spawn_scoped(scope, || {
            let apart = |errno: Errno| PlaceError::Namespace(errno.into());
            sys::ns::unshare(CloneFlags::CLONE_NEWNS.bits() as u64).map_err(apart)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(apart)?;
            mounts.iter().try_for_each(|spec| mount_one(spec, scratch, access))?;
            take(scratch)
        });
        let ended = thread.map_err(PlaceError::Namespace)?.join();
        ended.unwrap_or_else(|_| Err(PlaceError::Namespace(io::Error::other("the thread met a bug"))))
    })
}

// What mount(8) makes flags of; the rest is the file system's.
fn flag(option: &str) -> Option<(MsFlags, MsFlags)> {
    let (set, clear) = (|flag| (flag, MsFlags::empty()), |flag| (MsFlags::empty(), flag));
    Some(match option {
        "ro" => set(MsFlags::MS_RDONLY),
        "rw" => clear(MsFlags::MS_RDONLY),
        "bind" => set(MsFlags::MS_BIND),
        "rbind" => set(MsFlags::MS_BIND | MsFlags::MS_REC),
        "nosuid" => set(MsFlags::MS_NOSUID),
        "suid" => clear(MsFlags::MS_NOSUID),
        "nodev" => set(MsFlags::MS_NODEV),
        "dev" => clear(MsFlags::MS_NODEV),
        "noexec" => set(MsFlags::MS_NOEXEC),
        "exec" => clear(MsFlags::MS_NOEXEC),
        "noatime" => set(MsFlags::MS_NOATIME),
        "nodiratime" => set(MsFlags::MS_NODIRATIME),
        "relatime" => set(MsFlags::MS_RELATIME),
        "strictatime" => set(MsFlags::MS_STRICTATIME),
        "sync" => set(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => set(MsFlags::MS_DIRSYNC),
        _ => return None,
    })
}

fn mount_one(spec: &Mount, at: &Path, access: Access) -> Result<(), PlaceError> {
    let unsupported = |why: &str| PlaceError::Unsupported { what: what(spec), why: why.to_owned() };
    if !matches!(spec.target.as_str(), "" | "/") {
        return Err(unsupported("a target below the top"));
    }
    let mut flags = if is_bind(spec) { MsFlags::MS_BIND } else { MsFlags::empty() };
    let mut data = Vec::new();
    for option in spec.options.iter().map(String::as_str) {
        match (option, flag(option)) {
            // Nobody else sees the mount: propagation means nothing.
            ("" | "defaults" | "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared", _) => {}
            ("loop", _) => return Err(unsupported("option loop")),
            (option, _) if option.starts_with("uidmap=") || option.starts_with("gidmap=") => {}
            (_, Some((set, clear))) => flags = (flags - clear) | set,
            (option, None) => data.push(option.to_owned()),
        }
    }
    if access == Access::ReadOnly {
        flags |= MsFlags::MS_RDONLY;
        if spec.r#type == "overlay" {
            below_only(&mut data);
        }
    }
    let failed = |cause| PlaceError::Mount { what: what(spec), cause };
    let mut data = data.join(",");
    // Who only looks sees what is on the disk.
    match (option(spec, "uidmap="), option(spec, "gidmap=")) {
        (None, None) => {}
        _ if access == Access::ReadOnly => {}
        (uids, gids) => {
            let maps = Maps::parse(uids.unwrap_or_default(), gids.unwrap_or_default());
            let maps = maps.ok_or_else(|| unsupported("such a uidmap and gidmap"))?;
            let failed = |cause| PlaceError::Ids { what: what(spec), cause };
            if flags.contains(MsFlags::MS_BIND) {
                let copy = sys::idmap::folder(Path::new(&spec.source), Reach::One, &maps).map_err(failed)?;
                sys::mount::attach(copy, open_folder(at)?).map_err(failed)?;
                return again(at, flags).map_err(failed);
            }
            let named = option(spec, "lowerdir=").ok_or_else(|| unsupported("a uidmap without lowerdir"))?;
            let (layers, names) = sys::idmap::layers(named, &maps).map_err(failed)?;
            data = data.replacen(&format!("lowerdir={named}"), &format!("lowerdir={names}"), 1);
            // Before Linux 6.15 layers have to be in a table; this one is nobody's.
            sys::mount::attach(&layers, open_folder(at)?).map_err(failed)?;
            // This thread's alone, since it has a mount namespace of its own (unshare(2)).
            nix::unistd::fchdir(&layers).map_err(failed)?;
        }
    }
    let data = (!data.is_empty()).then_some(data.as_str());
    mount(Some(spec.source.as_str()), at, Some(spec.r#type.as_str()), flags, data).map_err(failed)?;
    again(at, flags).map_err(failed)
}

fn again(at: &Path, flags: MsFlags) -> Result<(), Errno> {
    // A bind mount takes its other flags only from a second call (mount(2), MS_REMOUNT and MS_BIND).
    let (bind, none) = (MsFlags::MS_BIND | MsFlags::MS_REC, Option::<&str>::None);
    if flags.contains(MsFlags::MS_BIND) && !(flags - bind).is_empty() {
        mount(none, at, none, (flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT, none)?;
    }
    Ok(())
}

// An overlay for reading: its upper folder becomes the topmost of the lower ones.
fn below_only(data: &mut Vec<String>) {
    let Some(upper) = data.iter().find_map(|o| o.strip_prefix("upperdir=").map(str::to_owned)) else { return };
    data.retain(|o| !o.starts_with("upperdir=") && !o.starts_with("workdir=") && o != "volatile");
    for option in data {
        if let Some(lowers) = option.strip_prefix("lowerdir=") {
            *option = format!("lowerdir={upper}:{lowers}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Mount {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }

    fn bind(source: &str, access: &str) -> Mount {
        let options = vec![access.to_owned(), "rbind".to_owned()];
        Mount { r#type: "bind".into(), source: source.into(), target: String::new(), options }
    }

    #[test]
    fn folders_from_the_top() {
        let paths = |mounts: &[Mount]| {
            let found = folders(mounts)?;
            Some(found.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" "))
        };
        let writable = overlay(&["index=off", "workdir=/w", "upperdir=/no/u", "lowerdir=/no/b:/no/a"]);
        assert_eq!(paths(&[writable]).as_deref(), Some("/no/u /no/b /no/a"));
        assert_eq!(paths(&[overlay(&["lowerdir=/no/b:/no/a"])]).as_deref(), Some("/no/b /no/a"));
        assert_eq!(paths(&[bind("/no/x", "ro")]).as_deref(), Some("/no/x"));
        assert_eq!(paths(&[]).as_deref(), Some(""));
        assert_eq!(paths(&[Mount { r#type: "tmpfs".into(), ..Default::default() }]), None);
    }

    #[test]
    fn an_overlay_for_reading_has_no_upper_folder() {
        let mut data: Vec<String> =
            ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a"].map(str::to_owned).into();
        below_only(&mut data);
        assert_eq!(data, ["index=off", "lowerdir=/u:/b:/a"]);
    }

    #[test]
    fn what_can_not_be_written_to_is_refused() {
        let ours = |_: &Path| true;
        for (mount, words) in [
            (bind("/", "ro"), "mount bind / is read-only"),
            (overlay(&["lowerdir=/b:/a"]), "mount overlay overlay is read-only"),
            (bind("/nonexistent", "rw"), "open /nonexistent"),
        ] {
            let error = writable(&[mount], Path::new("/nonexistent"), ours).err().unwrap();
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn nothing_of_a_mount_is_seen_outside() {
        let folder = tempfile::tempdir().unwrap();
        let tmpfs = Mount { r#type: "tmpfs".into(), source: "tmpfs".into(), ..Default::default() };
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap().matches(" - tmpfs").count();
        let top = mounted(std::slice::from_ref(&tmpfs), folder.path(), Access::AsTold).unwrap();
        nix::sys::stat::mkdirat(&top, "made", Mode::S_IRWXU).unwrap();
        assert!(super::super::tree::look(&top, b"made").unwrap().is_some());
        assert!(!folder.path().join("made").exists());
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap().matches(" - tmpfs").count(), before);
        let error = mounted(&[Mount { target: "/x".into(), ..tmpfs }], folder.path(), Access::AsTold).err().unwrap();
        assert_eq!(error.to_string(), "mount tmpfs tmpfs: a target below the top is not supported");
    }
}
