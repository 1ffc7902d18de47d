//! The root filesystem as a mount that is in nobody's mount table, handed to the runtime as a descriptor.
//!
//! Whoever makes a mount namespace copies the table of the one it is in, and some look-ups walk all that is mounted below a mount.
//! With each container's root in the host's table, every start would cost more than the one before; so would a host with many mounts
//! of its own, about which nothing can be done. What nobody holds open any more is gone by itself, however the shim ends.

use std::{os::fd::OwnedFd, path::Path};

use nix::mount::MsFlags;
use proto::containerd::types::Mount;
use sys::mount::{Filesystem, Reach, attr};

use super::{Options, id_map, parse_options, shorten_lowerdirs};

/// Most bytes that fsconfig(2) takes as a value.
const VALUE_LIMIT: usize = 255;

/// The root that `mounts` describe, if it is one that can be made detached: an overlay or a bind mount alone. `None` also if that
/// fails: mounting it the long way then works, as on kernels before 5.2, or tells why not.
pub(crate) fn detached(mounts: &[Mount]) -> Option<OwnedFd> {
    let [mount] = mounts else { return None };
    let options = parse_options(&mount.options);
    if !matches!(mount.target.as_str(), "" | "/") || !options.propagation.is_empty() {
        return None;
    }
    match mount.r#type.as_str() {
        "overlay" => overlay(&mount.source, &options),
        "bind" | "rbind" => bind(&mount.source, &options),
        _ => None,
    }
}

fn overlay(source: &str, options: &Options) -> Option<OwnedFd> {
    let attributes = attributes(options.flags)?;
    let too_long = |data: &str| data.split(',').any(|option| value(option).len() > VALUE_LIMIT);
    let mapped;
    let (folder, data) = match &options.id_map {
        Some((uids, gids)) => {
            let (layers, data) = id_map::layers(&options.data, &id_map::parse(source, uids, gids).ok()?).ok()?;
            mapped = layers;
            (Some(id_map::path(&mapped)), data)
        }
        None if too_long(&options.data) => {
            shorten_lowerdirs(&options.data).map(|(folder, data)| (Some(folder), data))?
        }
        None => (None, options.data.clone()),
    };
    if too_long(&data) {
        return None;
    }
    let make = || {
        let filesystem = Filesystem::open("overlay")?;
        filesystem.string("source", source)?;
        for option in data.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) => filesystem.string(key, value)?,
                None => filesystem.flag(option)?,
            }
        }
        if options.flags.contains(MsFlags::MS_RDONLY) {
            filesystem.flag("ro")?;
        }
        filesystem.mount(attributes)
    };
    super::within(folder.as_deref(), make).ok()
}

fn value(option: &str) -> &str {
    option.split_once('=').map_or("", |(_, value)| value)
}

fn bind(source: &str, options: &Options) -> Option<OwnedFd> {
    let kind = MsFlags::MS_BIND | MsFlags::MS_REC;
    let attributes = attributes(options.flags - kind)?;
    if !options.data.is_empty() {
        return None;
    }
    let reach = if options.flags.contains(MsFlags::MS_REC) { Reach::Tree } else { Reach::One };
    let copy = match &options.id_map {
        Some((uids, gids)) => {
            id_map::folder(Path::new(source), reach, &id_map::parse(source, uids, gids).ok()?).ok()?
        }
        None => sys::mount::clone_tree(nix::fcntl::AT_FDCWD, source, reach).ok()?,
    };
    if attributes != 0 {
        sys::mount::set_attributes(&copy, Reach::One, attributes, 0, None).ok()?;
    }
    Some(copy)
}

/// What mount(2) calls flags, as attributes of a mount; `None` if there is one that isn't.
fn attributes(flags: MsFlags) -> Option<u64> {
    let known = [
        (MsFlags::MS_RDONLY, attr::RDONLY),
        (MsFlags::MS_NOSUID, attr::NOSUID),
        (MsFlags::MS_NODEV, attr::NODEV),
        (MsFlags::MS_NOEXEC, attr::NOEXEC),
        (MsFlags::MS_NODIRATIME, attr::NODIRATIME),
    ];
    let all = known.iter().fold(MsFlags::empty(), |all, (flag, _)| all | *flag);
    (flags - all).is_empty().then(|| known.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, bit)| bit).sum())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsRawFd};

    use proto::kind::ErrorKind;

    use super::super::{Rootfs, make_rootfs, mount_one, tests::overlay, unmount_rootfs};
    use super::*;

    fn kind(made: &Rootfs) -> &'static str {
        match made {
            Rootfs::There => "there",
            Rootfs::Mounted => "mounted",
            Rootfs::Detached(_) => "detached",
        }
    }

    fn bind(source: &Path, options: &[&str]) -> Mount {
        let options = options.iter().map(|&option| option.into()).collect();
        Mount { r#type: "bind".into(), source: source.display().to_string(), options, ..Mount::default() }
    }

    #[test]
    fn one_overlay_or_bind_is_in_no_table() {
        let folder = tempfile::tempdir().expect("folder");
        let (at, layers) = (folder.path().join("rootfs"), folder.path().join("layers"));
        fs::create_dir(&layers).expect("folder");
        let tmpfs = Mount { r#type: "tmpfs".into(), source: "tmpfs".into(), ..Mount::default() };
        mount_one(&tmpfs, &layers).expect("tmpfs");
        let mut read_only = overlay(&layers, 1);
        read_only.options.push("ro".into());
        let mut found = Vec::new();
        for mount in [
            overlay(&layers, 2),
            // Too long for one value unless named from their common folder, and with them too long even then.
            overlay(&layers, 4),
            overlay(&layers, 60),
            read_only,
            bind(&layers.join("upper"), &["rbind", "ro"]),
            bind(&layers.join("upper"), &["rbind", "rshared"]),
        ] {
            let made = make_rootfs(&[mount], &at, true).expect("made");
            let inside = match &made {
                Rootfs::Detached(root) => format!("/proc/self/fd/{}", root.as_raw_fd()).into(),
                _ => at.clone(),
            };
            let writable = fs::write(inside.join("new"), "x").is_ok();
            let in_table = fs::read_to_string("/proc/self/mounts").expect("mounts").contains(&*at.to_string_lossy());
            found.push((kind(&made), writable, in_table));
            unmount_rootfs(&at).expect("unmount");
        }
        unmount_rootfs(&layers).expect("unmount layers");
        let (detached, mounted) = ("detached", "mounted");
        let expected = [
            (detached, true, false),
            (detached, true, false),
            (mounted, true, true),
            (detached, false, false),
            (detached, false, false),
            (mounted, true, true),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn layers_of_somebody_else() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("folder");
        let (at, layers) = (folder.path().join("rootfs"), folder.path().join("layers"));
        fs::create_dir(&layers).expect("folder");
        let tmpfs = Mount { r#type: "tmpfs".into(), source: "tmpfs".into(), ..Mount::default() };
        mount_one(&tmpfs, &layers).expect("tmpfs");
        let maps = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"].map(str::to_owned);
        let mut found = Vec::new();
        // So many that they need short names; and in the table, as for other runtimes.
        for (count, may_detach) in [(1, true), (3, true), (60, true), (3, false)] {
            let mut mount = overlay(&layers, count);
            mount.options.extend(maps.clone());
            let made = make_rootfs(&[mount], &at, may_detach).expect("made");
            let inside = match &made {
                Rootfs::Detached(root) => format!("/proc/self/fd/{}", root.as_raw_fd()).into(),
                _ => at.clone(),
            };
            let owner =
                |name: &str| fs::metadata(inside.join(name)).map(|file| (file.uid(), file.gid())).expect("file");
            let lower = owner("mark");
            fs::write(inside.join("new"), "x").expect("written");
            found.push((kind(&made), lower, owner("new")));
            fs::remove_file(inside.join("new")).expect("removed");
            unmount_rootfs(&at).expect("unmount");
        }
        let mut whole = bind(&layers.join("upper"), &["rbind"]);
        whole.options.extend(maps);
        let made = make_rootfs(std::slice::from_ref(&whole), &at, false).expect("made");
        let owner = fs::metadata(&at).map(|file| (file.uid(), file.gid())).expect("folder");
        unmount_rootfs(&at).expect("unmount");
        whole.options.push("uidmap=0".into());
        let bad = make_rootfs(&[whole], &at, true).expect_err("no map");
        unmount_rootfs(&layers).expect("unmount layers");
        let (mapped, own) = ((100_000, 200_000), (0, 0));
        let (detached, mounted) = (("detached", mapped, own), ("mounted", mapped, own));
        assert_eq!(found, [detached, detached, mounted, mounted]);
        assert_eq!((kind(&made), owner, bad.kind()), ("mounted", mapped, ErrorKind::Unimplemented));
    }

    #[test]
    fn what_cannot_be_made_is_told_by_the_long_way() {
        let folder = tempfile::tempdir().expect("folder");
        let at = folder.path().join("rootfs");
        let missing = bind(Path::new("/no/such/folder"), &["rbind"]);
        let error = make_rootfs(&[missing], &at, true).expect_err("no source");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/no/such/folder"), "{error}");
        assert_eq!(kind(&make_rootfs(&[], &at, true).expect("nothing to do")), "there");
    }
}
