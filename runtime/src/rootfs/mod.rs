//! The container's file system: mounts, devices, masks, and moving into it.
//!
//! The root is opened once; every destination is looked up below that descriptor and mounted on by descriptor, so a link in an
//! image can only lead elsewhere inside the image, and no rename between check and use matters (CVE-2021-30465 and its kin).

pub(crate) mod cgroups;
pub(crate) mod copy_up;
pub(crate) mod devices;
mod filesystem;
pub(crate) mod idmap;
pub(crate) mod masks;
pub(crate) mod mounts;
pub(crate) mod pivot;
pub(crate) mod resolve;
pub(crate) mod sources;

use std::path::PathBuf;

use sys::Errno;

/// What went wrong with the container's file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    /// The root itself.
    #[error("{action} rootfs {path}")]
    Root {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// A mount.
    #[error("mount {what} on {at}")]
    Mount {
        what: String,
        at: PathBuf,
        #[source]
        cause: Errno,
    },
    /// What is to be bound.
    #[error("mounts[{index}].source {path}")]
    Source {
        index: usize,
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// What is to be bound, and cannot be.
    #[error(
        "mounts[{index}].source {path}: it is unbindable, or has mounts below that a user namespace must not uncover (bind it with \
         them: rbind)"
    )]
    Unbindable {
        index: usize,
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// Changing a mount.
    #[error("remount {at}")]
    Remount {
        at: PathBuf,
        #[source]
        cause: Errno,
    },
    /// An id map was refused.
    #[error("map the ids of {what}{}", if *cause == Errno::EPERM { ": this takes root's rights over its file system" } else { "" })]
    IdMap {
        what: String,
        #[source]
        cause: Errno,
    },
    /// Something that has no id maps.
    #[error("map the ids of {what}: its file system, or this kernel, has no id-mapped mounts")]
    IdMapUnsupported {
        what: String,
        #[source]
        cause: Errno,
    },
    /// Something else is where a link is to be.
    #[error("make link {at} to {target}: something else is there")]
    NotTheLink { at: PathBuf, target: PathBuf },
    /// More layers than the kernel can be told of.
    #[error("mount overlay on {at}: a lowerdir of more than 255 bytes takes Linux 6.5")]
    Layers {
        at: PathBuf,
        #[source]
        cause: Errno,
    },
    /// An option that a file system refused.
    #[error("mount {what} on {at}: option {option:?}")]
    MountOption {
        what: String,
        at: PathBuf,
        option: String,
        #[source]
        cause: Errno,
    },
    /// A destination could not be found or made.
    #[error("make mount point {at}")]
    Destination {
        at: PathBuf,
        #[source]
        cause: Errno,
    },
    /// A link where procfs or sysfs is to go (CVE-2023-28642).
    #[error("mount {what} on {at}: it is a symbolic link in the image, not a directory")]
    Link { what: String, at: PathBuf },
    /// A destination that a link of the image leads into /proc (CVE-2019-19921).
    #[error("mount {what} on {at}: it leads into /proc")]
    InsideProc { what: String, at: PathBuf },
    /// A bind of something else onto /proc.
    #[error("bind {what} on /proc: it is not procfs")]
    NotProc { what: String },
    /// A device.
    #[error("make device {at}")]
    Device {
        at: PathBuf,
        #[source]
        cause: Errno,
    },
    /// Something else is where a device has to be.
    #[error("make device {at}: something else is there")]
    NotTheDevice { at: PathBuf },
    /// The null device is not one (CVE-2025-31133).
    #[error("mask paths: /dev/null of the container is not the null device")]
    NotNull,
    /// A masked or read-only path.
    #[error("{action} {at}")]
    Path {
        action: &'static str,
        at: PathBuf,
        #[source]
        cause: Errno,
    },
    /// Moving in.
    #[error("move into the rootfs")]
    Pivot(#[source] Errno),
}
