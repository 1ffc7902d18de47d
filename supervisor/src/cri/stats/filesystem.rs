//! The file system on which containers write, and the names of devices.

use std::{fs, path::Path};

use nix::sys::{
    stat::{major, minor, stat},
    statvfs::statvfs,
};

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filesystem {
    pub(super) device: String,
    pub(super) bytes: u64,
    /// `None` where they are made as they are needed.
    pub(super) inodes: Option<u64>,
    pub(super) inodes_free: Option<u64>,
}

impl Filesystem {
    /// The one that a folder is on.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        let (sizes, device) = (statvfs(folder).ok()?, stat(folder).ok()?.st_dev);
        let inodes = Some(sizes.files()).filter(|inodes| *inodes > 0);
        Some(Self {
            device: device_name((major(device), minor(device))),
            bytes: sizes.blocks() * sizes.fragment_size(),
            inodes,
            inodes_free: inodes.map(|_| sizes.files_free()),
        })
    }
}

/// The name of a block device, as far as it has one: those of btrfs and the like are numbers only.
pub(super) fn device_name((major, minor): (u64, u64)) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names_or_numbers() {
        assert_eq!(device_name((0, 4_000_000)), "0:4000000");
        let (name, numbers) = fs::read_dir("/sys/class/block")
            .unwrap()
            .flatten()
            .find_map(|entry| {
                let numbers = fs::read_to_string(entry.path().join("dev")).ok()?;
                Some((entry.file_name().into_string().ok()?, numbers))
            })
            .expect("a block device");
        let (major, minor) = numbers.trim().split_once(':').unwrap();
        assert_eq!(device_name((major.parse().unwrap(), minor.parse().unwrap())), format!("/dev/{name}"));
    }

    #[test]
    fn file_systems_have_a_size() {
        let found = Filesystem::of(Path::new("/")).unwrap();
        assert!(found.bytes > 0 && !found.device.is_empty());
        assert!(found.inodes.is_none_or(|inodes| inodes >= found.inodes_free.unwrap()));
        assert_eq!(Filesystem::of(Path::new("/none/there")), None);
    }
}
