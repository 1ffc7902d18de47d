//! Mounts the root filesystem that a caller describes, and takes it away again.

mod detached;
mod id_map;

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use proto::{containerd::types::Mount, kind::ErrorKind};
use sys::mount::Reach;

/// Why the root filesystem isn't there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// The folder to mount on couldn't be made.
    #[error("make folder {at}")]
    Folder {
        /// The folder.
        at: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// mount(2) failed.
    #[error("mount {what} on {at}")]
    Mount {
        /// Type and source.
        what: String,
        /// Where.
        at: PathBuf,
        /// What the system said.
        #[source]
        cause: Errno,
    },
    /// umount(2) failed.
    #[error("unmount {at}")]
    Unmount {
        /// Where.
        at: PathBuf,
        /// What the system said.
        #[source]
        cause: Errno,
    },
    /// Owners can't be changed for a mount.
    #[error(
        "map the ids of {what} (id-mapped mounts need Linux 5.12, those of overlays 5.19, and a file system that has them)"
    )]
    IdMap {
        /// The folder, or the layers.
        what: String,
        /// What the system said.
        #[source]
        cause: Errno,
    },
    /// Something the shim doesn't do.
    #[error("rootfs mount with {0} is not supported by berth-shim")]
    Unsupported(String),
}

impl MountError {
    /// What kind of failure it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Folder { cause, .. } => ErrorKind::of_io(cause),
            Self::IdMap { cause: Errno::EINVAL, .. } => ErrorKind::FailedPrecondition,
            Self::Mount { cause, .. } | Self::Unmount { cause, .. } | Self::IdMap { cause, .. } => {
                ErrorKind::of_io(&io::Error::from(*cause))
            }
            Self::Unsupported(_) => ErrorKind::Unimplemented,
        }
    }
}

/// Options of a mount, told apart as mount(8) does.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    propagation: MsFlags,
    data: String,
    /// Whose files are to be shown as whose (`uidmap` and `gidmap`, as containerd's snapshotters write them).
    id_map: Option<(String, String)>,
}

fn parse_options(options: &[String]) -> Options {
    let (mut flags, mut propagation, mut data) = (MsFlags::empty(), MsFlags::empty(), Vec::new());
    let rec = MsFlags::MS_REC;
    let (mut uids, mut gids) = (None, None);
    for option in options {
        if let Some((name @ ("uidmap" | "gidmap"), map)) = option.split_once('=') {
            *(if name == "uidmap" { &mut uids } else { &mut gids }) = Some(map.to_owned());
            continue;
        }
        let (set, clear) = match option.as_str() {
            "" | "defaults" => continue,
            "ro" => (MsFlags::MS_RDONLY, MsFlags::empty()),
            "rw" => (MsFlags::empty(), MsFlags::MS_RDONLY),
            "bind" => (MsFlags::MS_BIND, MsFlags::empty()),
            "rbind" => (MsFlags::MS_BIND | rec, MsFlags::empty()),
            "nosuid" => (MsFlags::MS_NOSUID, MsFlags::empty()),
            "suid" => (MsFlags::empty(), MsFlags::MS_NOSUID),
            "nodev" => (MsFlags::MS_NODEV, MsFlags::empty()),
            "dev" => (MsFlags::empty(), MsFlags::MS_NODEV),
            "noexec" => (MsFlags::MS_NOEXEC, MsFlags::empty()),
            "exec" => (MsFlags::empty(), MsFlags::MS_NOEXEC),
            "noatime" => (MsFlags::MS_NOATIME, MsFlags::empty()),
            "nodiratime" => (MsFlags::MS_NODIRATIME, MsFlags::empty()),
            "relatime" => (MsFlags::MS_RELATIME, MsFlags::empty()),
            "strictatime" => (MsFlags::MS_STRICTATIME, MsFlags::empty()),
            "sync" => (MsFlags::MS_SYNCHRONOUS, MsFlags::empty()),
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                let depth = if option.starts_with('r') { rec } else { MsFlags::empty() };
                propagation = depth
                    | match option.trim_start_matches('r') {
                        "private" => MsFlags::MS_PRIVATE,
                        "shared" => MsFlags::MS_SHARED,
                        "slave" => MsFlags::MS_SLAVE,
                        _ => MsFlags::MS_UNBINDABLE,
                    };
                continue;
            }
            other => {
                data.push(other);
                continue;
            }
        };
        flags = (flags - clear) | set;
    }
    let id_map = (uids.is_some() || gids.is_some()).then(|| (uids.unwrap_or_default(), gids.unwrap_or_default()));
    Options { flags, propagation, data: data.join(","), id_map }
}

/// mount(2) reads at most a page of data, and an overlay of many layers has more. The layers' common folder then becomes
/// the working directory, and the layers are named relative to it.
fn shorten_lowerdirs(data: &str) -> Option<(PathBuf, String)> {
    let lower = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&str> = lower.split(':').collect();
    let mut parents = layers.iter().map(|layer| Path::new(layer).ancestors().skip(1).collect::<BTreeSet<_>>());
    let first = parents.next()?;
    let common = parents.fold(first, |common, next| common.intersection(&next).copied().collect());
    let folder = common.into_iter().max_by_key(|folder| folder.as_os_str().len())?;
    let mut short = Vec::new();
    for layer in &layers {
        short.push(Path::new(layer).strip_prefix(folder).ok()?.to_str()?);
    }
    let (old, new) = (format!("lowerdir={lower}"), format!("lowerdir={}", short.join(":")));
    Some((folder.to_owned(), data.replacen(&old, &new, 1)))
}

/// Most that mount(2) takes as data, less the closing NUL.
const DATA_LIMIT: usize = 4095;

/// Does something with `folder` as the working directory. The shim has one thread, so nobody else sees it.
fn within<T>(folder: Option<&Path>, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let Some(folder) = folder else { return work() };
    // Tests have several.
    #[cfg(test)]
    let _alone = tests::ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    nix::unistd::chdir(folder)?;
    let done = work();
    nix::unistd::chdir("/")?;
    done
}

fn mount_one(mount_spec: &Mount, at: &Path) -> Result<(), MountError> {
    if !matches!(mount_spec.target.as_str(), "" | "/") {
        return Err(MountError::Unsupported(format!("target {:?}", mount_spec.target)));
    }
    if mount_spec.options.iter().any(|option| option == "loop") {
        return Err(MountError::Unsupported("option \"loop\"".to_owned()));
    }
    let Options { mut flags, propagation, mut data, id_map } = parse_options(&mount_spec.options);
    let kind = mount_spec.r#type.as_str();
    if matches!(kind, "bind" | "rbind") {
        flags |= MsFlags::MS_BIND;
    }
    let what = format!("{kind} {}", mount_spec.source);
    let failed = |cause| MountError::Mount { what: what.clone(), at: at.to_owned(), cause };
    let bind = flags.contains(MsFlags::MS_BIND);
    let mut folder = None;
    let mapped = match id_map {
        None => None,
        Some(_) if !bind && kind != "overlay" => {
            return Err(MountError::Unsupported(format!("an id map of a {kind}")));
        }
        Some((uids, gids)) => {
            let maps = id_map::parse(&what, &uids, &gids)?;
            if bind {
                let reach = if flags.contains(MsFlags::MS_REC) { Reach::Tree } else { Reach::One };
                let copy = id_map::folder(Path::new(&mount_spec.source), reach, &maps)?;
                return id_map::attach(&copy, at).and_then(|()| settle(at, flags, propagation)).map_err(failed);
            }
            let (layers, short) = id_map::layers(&data, &maps)?;
            (folder, data) = (Some(id_map::path(&layers)), short);
            Some(layers)
        }
    };
    if folder.is_none()
        && data.len() > DATA_LIMIT
        && let Some((common, short)) = shorten_lowerdirs(&data)
    {
        (folder, data) = (Some(common), short);
    }
    let data = (!data.is_empty()).then_some(data.as_str());
    let make = || within(folder.as_deref(), || mount(Some(mount_spec.source.as_str()), at, Some(kind), flags, data));
    match (make(), &mapped) {
        // Before Linux 6.15 layers have to be in the table. They stay below the overlay, and go with it.
        (Err(Errno::EINVAL), Some(layers)) => id_map::attach(layers, at).and_then(|()| make()).map_err(failed)?,
        (made, _) => made.map_err(failed)?,
    }
    settle(at, flags, propagation).map_err(failed)
}

/// What a mount takes only once it is there.
fn settle(at: &Path, flags: MsFlags, propagation: MsFlags) -> Result<(), Errno> {
    let none: Option<&str> = None;
    // A bind mount takes its other flags only from a second call (mount(2), MS_REMOUNT and MS_BIND).
    if flags.contains(MsFlags::MS_BIND) && !(flags - MsFlags::MS_BIND - MsFlags::MS_REC).is_empty() {
        mount(none, at, none, flags | MsFlags::MS_REMOUNT, none)?;
    }
    if !propagation.is_empty() {
        mount(none, at, none, propagation, none)?;
    }
    Ok(())
}

/// Where the root filesystem is.
#[derive(Debug)]
pub(crate) enum Rootfs {
    /// In the bundle, made by somebody else.
    There,
    /// Mounted in the bundle.
    Mounted,
    /// Mounted nowhere yet.
    Detached(OwnedFd),
}

/// Makes the root filesystem: detached where that is allowed and possible, else mounted at `at`. After a failure nothing is left.
pub(crate) fn make_rootfs(mounts: &[Mount], at: &Path, may_detach: bool) -> Result<Rootfs, MountError> {
    if mounts.is_empty() {
        return Ok(Rootfs::There);
    }
    match fs::create_dir(at) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return Err(MountError::Folder { at: at.to_owned(), cause });
        }
        _ => {}
    }
    if may_detach && let Some(root) = detached::detached(mounts) {
        return Ok(Rootfs::Detached(root));
    }
    mount_rootfs(mounts, at).map(|()| Rootfs::Mounted)
}

/// Mounts all of `mounts` on one folder, each over the one before. After a failure none is left.
fn mount_rootfs(mounts: &[Mount], at: &Path) -> Result<(), MountError> {
    for mount in mounts {
        if let Err(error) = mount_one(mount, at) {
            // The first failure is the one to tell.
            let _ = unmount_rootfs(at);
            return Err(error);
        }
    }
    Ok(())
}

/// Unmounts everything on a folder; nothing there is fine.
pub(crate) fn unmount_rootfs(at: &Path) -> Result<(), MountError> {
    loop {
        let result = match umount2(at, MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody still uses it: out of the tree now, gone for good when they are done.
            Err(Errno::EBUSY) => umount2(at, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH),
            other => other,
        };
        match result {
            Ok(()) => {}
            // Not a mount point (any more), or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(cause) => return Err(MountError::Unmount { at: at.to_owned(), cause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn options(text: &str) -> Options {
        parse_options(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_become_flags_and_data() {
        let none = MsFlags::empty();
        for (text, flags, propagation, data) in [
            ("", none, none, ""),
            ("ro,nosuid", MsFlags::MS_RDONLY | MsFlags::MS_NOSUID, none, ""),
            ("ro,rw", none, none, ""),
            ("rbind,rprivate", MsFlags::MS_BIND | MsFlags::MS_REC, MsFlags::MS_PRIVATE | MsFlags::MS_REC, ""),
            ("shared", none, MsFlags::MS_SHARED, ""),
            ("index=off,lowerdir=/a:/b,ro", MsFlags::MS_RDONLY, none, "index=off,lowerdir=/a:/b"),
        ] {
            assert_eq!(options(text), Options { flags, propagation, data: data.into(), id_map: None }, "{text}");
        }
        let mapped = options("lowerdir=/a:/b,uidmap=0:1:2,gidmap=0:3:4");
        assert_eq!((&*mapped.data, mapped.id_map), ("lowerdir=/a:/b", Some(("0:1:2".into(), "0:3:4".into()))));
    }

    #[test]
    fn many_layers_become_relative() {
        let data = "index=off,lowerdir=/s/12/fs:/s/3/fs:/s/1/fs,upperdir=/s/13/fs,workdir=/s/13/work";
        let short = "index=off,lowerdir=12/fs:3/fs:1/fs,upperdir=/s/13/fs,workdir=/s/13/work";
        assert_eq!(shorten_lowerdirs(data), Some(("/s".into(), short.into())));
        assert_eq!(shorten_lowerdirs("lowerdir=/s/1/fs"), Some(("/s/1".into(), "lowerdir=fs".into())));
        assert_eq!(shorten_lowerdirs("upperdir=/x"), None);
    }

    pub(super) fn overlay(layers: &Path, count: usize) -> Mount {
        let make = |name: String| {
            let path = layers.join(name);
            fs::create_dir_all(&path).expect("layer");
            path.display().to_string()
        };
        let lower: Vec<_> =
            (0..count).map(|n| make(format!("a-layer-with-a-long-name-to-fill-the-page-{n}/fs"))).collect();
        fs::write(layers.join("a-layer-with-a-long-name-to-fill-the-page-0/fs/mark"), "here").expect("file");
        let options = vec![
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", make("upper".into())),
            format!("workdir={}", make("work".into())),
        ];
        Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }

    #[test]
    fn overlays_stack_and_go_away() {
        let folder = tempfile::tempdir().expect("folder");
        let at = folder.path().join("rootfs");
        // An overlay can't have its upper folder on another overlay, so the layers lie on a tmpfs.
        let layers = folder.path().join("layers");
        fs::create_dir(&layers).expect("folder");
        let tmpfs = Mount { r#type: "tmpfs".into(), source: "tmpfs".into(), ..Mount::default() };
        mount_one(&tmpfs, &layers).expect("tmpfs");
        // More than a page of options.
        let mount = overlay(&layers, 60);
        let on_top = Mount {
            r#type: "bind".into(),
            source: at.display().to_string(),
            options: vec!["ro".into()],
            ..Mount::default()
        };
        let result = make_rootfs(&[mount, on_top], &at, true);
        let mark = fs::read_to_string(at.join("mark"));
        let written = fs::write(at.join("new"), "x");
        let bad = Mount { r#type: "nofs".into(), ..Mount::default() };
        let failure = make_rootfs(&[tmpfs.clone(), bad], &at, true).map_err(|error| error.kind());
        let table = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let unmounted = unmount_rootfs(&at);
        unmount_rootfs(&layers).expect("unmount layers");
        assert!(matches!(result.expect("mounted"), Rootfs::Mounted), "two mounts have to be mounted");
        assert_eq!(mark.expect("read"), "here");
        assert_eq!(written.map_err(|e| e.kind()), Err(io::ErrorKind::ReadOnlyFilesystem));
        assert!(failure.is_err());
        assert!(!table.contains(&*at.to_string_lossy()), "a failed mount leaves nothing, not even what was below");
        unmounted.expect("nothing there is fine");
    }

    #[test]
    fn what_is_not_done_is_said() {
        for mount in [
            Mount { target: "sub".into(), ..Mount::default() },
            Mount { options: vec!["loop".into()], ..Mount::default() },
        ] {
            assert_eq!(mount_one(&mount, Path::new("/nowhere")).unwrap_err().kind(), ErrorKind::Unimplemented);
        }
    }
}
